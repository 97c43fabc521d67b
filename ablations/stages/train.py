"""Stage ``train``: ``python -m ablations.stages.train <group>`` trains the runs of a group side by side.

With a seed as second argument it trains that run alone. DVC runs this stage if code, configuration or songs have
changed, or if the stage was interrupted. A run that was started with the same code and songs resumes, or is kept if it
was finished; any other run starts anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pandas as pd

from ablations import settings, side_by_side
from ablations.stages import inventory, run_stage
from twinsep import checkpoints
from twinsep.config import Config, from_dict
from twinsep.errors import InputError, TwinsepError
from twinsep.training import loop
from twinsep.training.run_dir import FINAL, LAST, RECORD
from twinsep.utils import provenance
from twinsep.utils.files import write_atomically, write_json

#: Folders of unfinished groups.
WORK = Path("results/work/runs")
#: Column of ``curves.csv`` -> (file of DVCLive below a run's ``live/plots/metrics``, its column).
LOGGED = {
    "seconds": ("machine/seconds.tsv", "seconds"),
    "training loss": ("train/loss.tsv", "loss"),
    "validation uSDR": ("valid/usdr.tsv", "usdr"),
    "validation SI-SDR": ("valid/si_sdr.tsv", "si_sdr"),
}


def main(group: str) -> None:
    """Train ``group`` and write its records, curves and weights: none for a row that the profile leaves out."""
    module = ["ablations.stages.train", group]
    seeds, made_with = settings.seeds(group), basis(settings.groups()[group].framework)
    side_by_side.run_modules(
        {f"{group}, seed {seed}": [*module, str(seed)] for seed in seeds}, device=settings.profile()["device"]
    )
    if any(not is_finished(WORK / group / str(seed), configuration(group, seed).hash, made_with) for seed in seeds):
        raise TwinsepError(
            f"code or songs changed while {group} trained, so that its runs are not all of the same code: the same "
            "command trains those again that are of other code"
        )
    for folder in (settings.RUNS / group / "training", settings.WEIGHTS / group):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    for seed in seeds:
        keep(WORK / group / str(seed), group, seed)
    shutil.rmtree(WORK / group, ignore_errors=True)


def train(group: str, seed: int) -> None:
    """Train one run into ``results/work/runs/<group>/<seed>``, unless it is finished there already."""
    config = configuration(group, seed)
    framework = settings.groups()[group].framework
    folder, made_with = WORK / group / str(seed), basis(framework)
    if is_finished(folder, config.hash, made_with):
        return
    options = loop.RunOptions(framework=framework, device=settings.profile()["device"], overwrite=True, basis=made_with)
    loop.train(config, folder, options)


def configuration(group: str, seed: int) -> Config:
    """Configuration of a run, as the stage ``configure`` wrote it."""
    return from_dict(json.loads(settings.configs_path(group).read_text())[str(seed)])


def is_finished(folder: Path, config_hash: str, made_with: str) -> bool:
    """True if ``folder`` holds a finished run of this configuration, code and data."""
    try:
        record = json.loads((folder / RECORD).read_text())
        found = checkpoints.read(folder / LAST, prefixes=())
    except (OSError, InputError):
        return False
    return record["hash"] == config_hash and found.provenance.get("basis") == made_with


def keep(folder: Path, group: str, seed: int) -> None:
    """Write the record, the curves and the weights of a finished run to where later stages look for them."""
    write_json(settings.run_path(group, seed), json.loads((folder / RECORD).read_text()))
    write_atomically(settings.curves_path(group, seed), curves(folder).to_csv(index=False).encode())
    shutil.copyfile(folder / FINAL, settings.weights_path(group, seed))


def curves(folder: Path) -> pd.DataFrame:
    """Time, training loss and validation scores of a run by step; a value that was not logged at a step is empty."""
    metrics = folder / "live" / "plots" / "metrics"
    logged = [
        pd.read_csv(metrics / file, sep="\t").set_index("step")[column].rename(heading)
        for heading, (file, column) in LOGGED.items()
    ]
    return pd.concat(logged, axis=1).sort_index().round(4).reset_index()


def basis(framework: str) -> str:
    """Digests of the code that ``dvc.yaml`` lists for this stage and of the songs: a run resumes only on the same."""
    code = provenance.code_hash(*settings.code_dependencies("train", framework))
    songs = hashlib.sha256(inventory.OUT.read_bytes()).hexdigest()[:16]
    return f"code {code}, songs {songs}"


if __name__ == "__main__":
    group, *seed = sys.argv[1:]
    run_stage((lambda: train(group, int(seed[0]))) if seed else (lambda: main(group)))
