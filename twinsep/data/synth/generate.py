"""Generate a data set of songs in the layout of MUSDB18-HQ; it can be interrupted and resumed at any time.

Each track has ``<root>/{train,test}/<track>/{mixture,drums,bass,other,vocals}.wav`` (stereo, 44.1 kHz, 16 bit) and a
``song.json``. ``splits.csv`` holds the columns track and split, ``dataset.json`` parameters, versions and songs.
Validation songs are in ``train/`` and the real excerpt is in ``test/``, because the layout has only these two folders.
A song appears by a rename, complete or not at all; ``splits.csv`` appears last.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import soundfile

from twinsep.data.synth import real_excerpt
from twinsep.data.synth.effects import SAMPLE_RATE, Real
from twinsep.data.synth.pool import run_jobs
from twinsep.data.synth.song import SHORTEST, VERSION, Song, song
from twinsep.errors import InputError
from twinsep.utils.files import write_atomically

GENERATOR = "twinsep.synth"
#: Split → (number in the seed, folder). Numbers are never reused, so that no two splits share a song.
SPLITS = {"train": (0, "train"), "valid": (1, "train"), "test": (2, "test")}
_SONGS_PER_SPLIT = 1_000_000
_PARTIAL = ".partial-"
_PACKAGES = ("numpy", "scipy", "soxr", "midirenderer", "pretty_midi", "espeakng-loader", "pyworld-prebuilt")


@dataclass(frozen=True)
class Job:
    """One track to write, ``seconds`` long; ``seed`` None means the real excerpt."""

    root: Path
    folder: str
    track: str
    split: str
    seed: int | None
    seconds: Real

    @property
    def target(self) -> Path:
        """Folder of the finished track."""
        return self.root / self.folder / self.track


def song_seed(seed: int, split: str, index: int) -> int:
    """Return the seed of a song, unique for every (seed, split, index)."""
    return (seed * len(SPLITS) + SPLITS[split][0]) * _SONGS_PER_SPLIT + index


def generate_dataset(
    root: str | Path,
    *,
    songs: Mapping[str, int],
    seconds: Real,
    seed: int,
    workers: int | None = None,
    real: bool = True,
    progress: bool = True,
) -> None:
    """Write ``songs[split]`` songs of ``seconds`` each below ``root``, and the real excerpt if ``real``.

    A second call with the same arguments makes only what is missing; other arguments start again. The bytes do not
    depend on ``workers`` (default: one per core). Raises :class:`InputError` for arguments out of range, a root that is
    not a folder, holds other data or cannot be written, a full disk, or a missing package.
    """
    root = Path(root)
    seconds = float(seconds)  # 12 and 12.0 are the same data set
    jobs = _jobs(root, songs, seconds, seed, real)
    header = _header(songs, seconds, seed, real)
    try:
        _prepare(root, header)
        missing = [job for job in jobs if not job.target.is_dir()]
        run_jobs(write_song, missing, workers=workers or os.cpu_count() or 1, progress=progress)
        records = {job.track: json.loads((job.target / "song.json").read_text()) for job in jobs}
        write_atomically(root / "dataset.json", _json({**header, "songs": records}))
        write_atomically(root / "splits.csv", _splits(jobs))
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{root} could not be written ({reason}): check permissions and free space, or choose another folder"
        ) from error


def write_song(job: Job) -> None:
    """Generate and write one track; a failure removes its unfinished files."""
    made = real_excerpt.excerpt() if job.seed is None else song(job.seed, job.seconds)
    partial = job.root / f"{_PARTIAL}{job.track}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        _write_stems(partial, made)
        (partial / "song.json").write_bytes(_json({"split": job.split, **made.info}))
        job.target.parent.mkdir(exist_ok=True)
        partial.rename(job.target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_stems(folder: Path, made: Song) -> None:
    """Write mixture and stems as 16-bit WAV."""
    for name, samples in {"mixture": made.mixture, **made.stems}.items():
        # Through memory, because libsndfile reports a full disk without the reason.
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, SAMPLE_RATE, subtype="PCM_16", format="WAV")
        (folder / f"{name}.wav").write_bytes(buffer.getvalue())


def _jobs(root: Path, songs: Mapping[str, int], seconds: Real, seed: int, real: bool) -> list[Job]:
    """Every track of the data set. Raises :class:`InputError` for arguments out of range."""
    unknown = sorted(set(songs) - set(SPLITS))
    if unknown:
        raise InputError(f"unknown split {unknown[0]!r}; known: {', '.join(SPLITS)}")
    if any(not 0 <= count < _SONGS_PER_SPLIT for count in songs.values()):
        raise InputError(f"the number of songs in a split must be between 0 and {_SONGS_PER_SPLIT - 1}")
    if not SHORTEST <= seconds < 3600 or seed < 0:
        raise InputError(f"seconds must be from {SHORTEST:g} to 3600 and the seed must not be negative")
    jobs = [
        Job(root, folder, f"synth-{split}-{index:04d}", split, song_seed(seed, split, index), seconds)
        for split, (_, folder) in SPLITS.items()
        for index in range(songs.get(split, 0))
    ]
    return [*jobs, Job(root, "test", real_excerpt.TRACK, "real", None, seconds)] if real else jobs


def _header(songs: Mapping[str, int], seconds: Real, seed: int, real: bool) -> dict[str, Any]:
    """Everything that determines the bytes of the songs, as JSON types."""
    try:
        versions = {name: version(name) for name in _PACKAGES}
    except ModuleNotFoundError as error:
        raise InputError(f"generated songs need the package {error.name}; pip install 'twinsep[data]'") from error
    parameters = {"songs": {s: songs.get(s, 0) for s in SPLITS}, "seconds": seconds, "seed": seed, "real": real}
    return {"generator": GENERATOR, "version": VERSION, "parameters": parameters, "packages": versions}


def _prepare(root: Path, header: dict[str, Any]) -> None:
    """Remove unfinished songs and songs of another ``header``.

    Raises :class:`InputError` if ``root`` holds other data.
    """
    root.mkdir(parents=True, exist_ok=True)
    record = root / "dataset.json"
    try:
        found = json.loads(record.read_text()) if record.exists() else None
    except ValueError:
        found = {}
    ours = found if isinstance(found, dict) and found.get("generator") == GENERATOR else None
    if ours is None and (found is not None or (root / "train").exists() or (root / "test").exists()):
        raise InputError(f"{root} holds other data: choose an empty folder for the generated songs")
    for partial in root.glob(f"{_PARTIAL}*"):
        shutil.rmtree(partial)
    if ours is not None and {key: ours.get(key) for key in header} == header:
        return
    (root / "splits.csv").unlink(missing_ok=True)
    for folder in ("train", "test"):
        for track in [*(root / folder).glob("synth-*"), root / folder / real_excerpt.TRACK]:
            if track.is_dir():
                shutil.rmtree(track)
    write_atomically(record, _json(header))


def _splits(jobs: list[Job]) -> bytes:
    """Content of ``splits.csv``."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("track", "split"))
    rows.writerows((job.track, job.split) for job in jobs)
    return text.getvalue().encode()


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=1, sort_keys=True) + "\n").encode()
