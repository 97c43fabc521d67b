"""Stage ``card``: write the model card of the released weights from the records of the other stages."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from ablations.release import export, proof, realism, scan, settings
from ablations.stages import run_stage
from twinsep import checkpoints
from twinsep.config import Config
from twinsep.data.recordings.catalogue import Package
from twinsep.utils.files import write_atomically

#: The command that makes the weights again.
COMMAND = "dvc repro ablations/release/dvc.yaml"
#: The tables that the card shows.
TABLES = (proof.TABLE, proof.BY_LOUDNESS, proof.BY_GENRE, realism.TABLE)
#: What must be reached: kind of song, what it is compared with (empty: nothing), dB, and the sentence.
GOALS = (
    ("the real excerpt", "", "mean", 9.5, "the real excerpt"),
    (
        "real singers over real instrumentals",
        "mixture",
        "mean",
        4.0,
        "real singers over real instrumentals, above the mixture",
    ),
    ("instrumentals without voice", "", "median", 15.0, "instrumentals without voice, median"),
)
#: The text of the card, with fields.
TEMPLATE = settings.HERE / "card.md"


def main() -> None:
    """Write ``results/released/README.md``."""
    record = json.loads(export.OUT.read_text())
    found = checkpoints.read(settings.WEIGHTS, prefixes=())
    tables = {stem: pd.read_csv(stem.with_suffix(".csv")) for stem in TABLES}
    minutes = pd.read_csv(scan.TABLE.with_suffix(".csv"))
    residual = json.loads(proof.RESIDUAL.read_text())
    text = card(found.config, record, settings.catalogue(), tables, minutes, residual, settings.WEIGHTS.stat().st_size)
    write_atomically(settings.CARD, text.encode())


def card(
    config: Config,
    record: dict[str, Any],
    packages: dict[str, Package],
    tables: dict[Any, pd.DataFrame],
    minutes: pd.DataFrame,
    residual: dict[str, Any],
    size: int,
) -> str:
    """The model card in Markdown."""
    shown = [scan.markdown(tables[stem]) for stem in TABLES[:-1]]
    made = tables[realism.TABLE].set_index("songs").T.rename_axis("median").reset_index()
    counts = settings.recipe()["songs"]["counts"]["train"]
    model, phases = config.to_dict()["model"], record["phases"]
    left = residual["median_db"]
    return TEMPLATE.read_text().format(
        network={"unet": "band-split U-Net"}.get(model["network"], model["network"]),
        parameters=phases[-1]["parameters"],
        width=model["d_model"],
        mixer=model["mixer"]["kind"],
        bands=model["bands"],
        hop=model["hop"],
        rate=model["sample_rate"],
        bytes=size,
        step=record["exported_step"],
        steps=config.training.steps,
        phase=len(phases),
        loss=", ".join(f"{weight:g} {name}" for name, weight in config.loss.weights.items()),
        command=COMMAND,
        by_kind=shown[0],
        by_loudness=shown[1],
        by_genre=shown[2],
        realism=scan.markdown(made),
        residual="no figure" if left is None else f"{left:.1f} dB of voice",
        sung=len(residual["songs"]),
        goals=goals(tables[proof.TABLE]),
        songs=", ".join(f"{count} {kind}" for kind, count in counts.items()),
        held_out="; ".join(f"`{name}`: {', '.join(p.test)}" for name, p in packages.items() if p.test),
        packages=scan.markdown(package_table(packages)),
        minutes=scan.markdown(minutes),
        phases=scan.markdown(phase_table(phases)),
    )


def phase_table(phases: list[dict[str, Any]]) -> pd.DataFrame:
    """A row for each phase of the run: what it was, what it took and what it reached on validation songs."""
    trainings = [record["configuration"]["training"] for record in phases]
    return pd.DataFrame(
        {
            "phase": number,
            "steps": training["steps"],
            "segments a batch": training["batch_size"],
            "seconds a segment": training["segment_seconds"],
            "highest rate": training["learning_rate"],
            "minutes": round(record["seconds"] / 60, 1),
            "validation uSDR, dB": record["validation"]["valid/usdr"],
            "device": ", ".join(dict.fromkeys(each["device"] for each in record["sittings"])),
            "sittings": len(record["sittings"]),
            "commit": ", ".join(dict.fromkeys(each["commit"] for each in record["sittings"])),
        }
        for number, (training, record) in enumerate(zip(trainings, phases, strict=True), 1)
    )


def package_table(packages: dict[str, Package]) -> pd.DataFrame:
    """A row for each package: version, digest, licence, authors."""
    return pd.DataFrame(
        {
            "package": name,
            "version": p.version,
            "holds": p.role,
            "licence": p.licence,
            "authors": p.attribution,
            "SHA-256": f"`{p.sha256}`",
        }
        for name, p in packages.items()
    )


def goals(table: pd.DataFrame) -> str:
    """List the goals for the weights, each with its score and whether it is reached."""
    lines = []
    for songs, against, statistic, wanted, name in GOALS:
        row = table[(table.songs == songs) & table.score.str.endswith(statistic)]
        if row.empty:
            continue
        value = float(row[proof.OURS].iloc[0]) - (float(row[against].iloc[0]) if against else 0.0)
        verdict = "reached" if value >= wanted else "not reached"
        lines.append(f"- {name}: {value:.2f} dB; wanted at least {wanted:g}: {verdict}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_stage(main)
