"""The profile ``musdb`` on a fabricated folder in the layout of MUSDB18-HQ, from configurations to tables."""

import copy
import json

import pandas as pd
import pytest

from ablations import settings, side_by_side
from ablations.stages import collect, configure, evaluate, inventory, tabulate, train
from twinsep.config import from_dict
from twinsep.utils.files import write_json

#: A model that JAX compiles in seconds.
MICRO = {"model": {"d_model": 8, "n_heads": 2, "bands": "vocal18", "levels": 1}}


@pytest.fixture
def small(songs, tmp_path, monkeypatch, no_pictures):  # noqa: ARG001
    """The profile on those songs, with a model and runs that a CPU can train in a test; returns the folder's name."""
    params = copy.deepcopy(settings.params())
    params["profile"] = "musdb"
    params["data"]["root"] = str(songs)
    profile = params["profiles"]["musdb"]
    profile.update(preset="tiny", device="cpu", museval=False, seeds=1, only=["base", "default"])
    profile["training"].update(
        steps=2, batch_size=1, segment_seconds=0.5, validate_every=1, validation_seconds=1, precision="float32"
    )
    profile["rows"].update(steps=2)
    monkeypatch.setattr(settings, "params", lambda: params)
    monkeypatch.setattr(side_by_side, "run_modules", in_turns)
    monkeypatch.chdir(tmp_path)
    return songs.name


def in_turns(commands, **_):
    """Runs in this process, which has imported everything; tests/ablations/test_train.py runs some side by side."""
    for module, group, seed in commands.values():
        work = {"ablations.stages.train": train.train, "ablations.stages.evaluate": evaluate.run}[module]
        work(group, int(seed))


def test_the_profile_trains_six_rows_and_validates_on_all_songs():
    profile = settings.params()["profiles"]["musdb"]
    assert len(profile["only"]) == 6
    assert profile["training"]["validation_tracks"] == 14  # of MUSDB18-HQ


def test_musdb_runs_from_configurations_to_tables(small):
    configure.main()
    for path in settings.CONFIGS.glob("*-*.json"):  # of a group
        made = {
            seed: from_dict(config).override(MICRO).to_dict() for seed, config in json.loads(path.read_text()).items()
        }
        write_json(path, made)
    inventory.main()
    for group in ("torch-base", "torch-default", "jax-default", "torch-conv"):
        train.main(group)
        evaluate.main(group)
    for baseline in settings.params()["baselines"]:
        evaluate.main(baseline)
    collect.main()
    cost = {"flop_per_audio_second": 1e9, "step_s": 1.0, "peak_memory_mib": 1}
    write_json(tabulate.COST, {"rows": {row: cost for row in json.loads((settings.CONFIGS / "cost.json").read_text())}})
    trained = {axis: written(axis)["row"].dropna() for axis in ("base", "mixer", "bands")}
    floors = ["mixture", "fixed gain per band", "level regression", "weighted regression"]
    assert list(trained["bands"]) == [*floors, "default", "default", "ideal ratio mask"]
    assert "base" in set(trained["base"])
    assert "conv" not in set(trained["mixer"])  # not one of the profile's rows
    for axis in trained:
        caption = (tabulate.TABLES / f"{axis}.md").read_text().partition("\n\n")[0]
        assert f"test songs of {small}" in caption
        assert "generated" not in caption


def written(axis):
    tabulate.main(axis)
    return pd.read_csv(tabulate.TABLES / f"{axis}.csv")
