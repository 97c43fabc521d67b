"""What ``twinsep separate`` does: songs in, instrumentals out, each written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console

from twinsep import audio, frameworks, progress
from twinsep.config import Config
from twinsep.errors import InputError
from twinsep.evaluation import chunk_samples
from twinsep.separation import separate_song

#: What ``separate`` uses without ``--checkpoint``.
BASE_CHECKPOINT = Path("results/runs/torch-base-0/best.safetensors")
EXTENSIONS = ("wav", "flac", "mp3")


def run(
    songs: list[Path],
    *,
    out: Path,
    checkpoint: Path | None,
    vocals: bool,
    extension: str | None,
    overlap: float,
    segment: float | None,
    overwrite: bool,
    framework: str,
    device: str,
) -> None:
    """Separate ``songs`` into ``out/<song>/{instrumental,vocals}.<ext>``.

    Raises :class:`InputError` for what cannot be read or written, before any work where it can be known then.
    """
    console = Console(stderr=True)
    if extension is not None and extension not in EXTENSIONS:
        raise InputError(f"unknown format {extension!r}; known: {', '.join(EXTENSIONS)}")
    stems = ("instrumental", "vocals") if vocals else ("instrumental",)
    outputs = [(song, _outputs(song, out, stems, extension, overwrite)) for song in songs]
    if len({path for _, paths in outputs for path in paths}) < len(outputs) * len(stems):
        raise InputError("two of the songs have the same name; separate them into different --out folders")
    for song in songs:
        audio.info(song)
    model, config = frameworks.load(_checkpoint(checkpoint, console), framework=framework, device=device)
    if config.model.targets != ("instrumental",):
        raise InputError(f"the checkpoint estimates {', '.join(config.model.targets)}, not the instrumental")
    for song, paths in outputs:
        _separate(song, paths, model, config, chunk_samples(config, segment), overlap, console)


def _separate(song: Path, paths: list[Path], model, config: Config, segment: int, overlap: float, console) -> None:
    waveform, sample_rate = audio.read(song)
    with progress.bar(song.name) as report:
        estimate = separate_song(
            model,
            waveform,
            sample_rate,
            model_rate=config.model.sample_rate,
            segment=segment,
            overlap=overlap,
            progress=report,
        )
    instrumental = estimate[0]
    if not np.isfinite(instrumental).all():
        raise InputError(f"{song}: the model gave values that are not numbers; use another checkpoint")
    for path, stem in zip(paths, (instrumental, waveform - instrumental), strict=False):
        clamped = audio.write(path, stem, sample_rate)
        note = f" ({clamped} samples beyond full scale were clamped)" if clamped else ""
        console.print(f"wrote {path}{note}", soft_wrap=True)


def _outputs(song: Path, out: Path, stems: tuple[str, ...], extension: str | None, overwrite: bool) -> list[Path]:
    """Where a song's stems go, in the song's own format where it can be written, else WAV."""
    own = song.suffix.lower().lstrip(".")
    suffix = extension or (own if own in EXTENSIONS else "wav")
    paths = [out / song.stem / f"{stem}.{suffix}" for stem in stems]
    for path in paths:
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists; give --overwrite to replace it, or another --out")
    return paths


def _checkpoint(given: Path | None, console: Console) -> Path:
    if given is not None:
        return given
    if not BASE_CHECKPOINT.exists():
        raise InputError(f"no --checkpoint given and no {BASE_CHECKPOINT} here; `dvc repro base` trains it")
    console.print(f"using {BASE_CHECKPOINT}, the base run: a small model trained on generated songs", soft_wrap=True)
    return BASE_CHECKPOINT
