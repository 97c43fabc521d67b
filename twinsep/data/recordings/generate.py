"""Make a data set of songs of real recordings; it can be interrupted and resumed at any time.

Each track has ``<root>/{train,test}/<kind>-<split>-<number>/{vocals,instrumental}.flac`` (stereo, 44.1 kHz, 16 bit; the
mixture is their sum) and a ``song.json``. ``splits.csv`` holds the columns track and split, ``dataset.json`` what
determines the songs. Validation songs are in ``train/`` and the real excerpt in ``test/``, as in MUSDB18-HQ. A song
appears by a rename, complete or not at all; ``splits.csv`` appears last.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import numpy as np
import soundfile

from twinsep.data.dataset import SPLITS
from twinsep.data.recordings.material import read_material
from twinsep.data.recordings.song import KINDS, VERSION, Kind, Recipe, StemSong, make_song
from twinsep.data.synth import real_excerpt
from twinsep.data.synth.effects import SAMPLE_RATE
from twinsep.data.synth.pool import run_jobs
from twinsep.errors import InputError
from twinsep.utils.files import write_atomically

MAKER = "twinsep.recordings"
#: Name of the kind of the real excerpt.
REAL = "real"
#: Number of each split in the seed of a song; never reused, so that no two songs share a seed.
_NUMBERS = {"train": 0, "valid": 1, "test": 2}
_PARTIAL = ".partial-"
_PACKAGES = ("numpy", "scipy", "soxr", "soundfile", "midirenderer", "espeakng-loader", "pyworld-prebuilt")
#: Split → kind → number of songs.
Counts = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Sources:
    """Where songs come from: the file of their material, and the folder of the recordings."""

    material: Path
    recordings: Path


@dataclass(frozen=True)
class Job:
    """One track to write; ``kind`` None means the real excerpt."""

    root: Path
    split: str
    kind: Kind | None
    seed: int
    index: int
    sources: Sources
    recipe: Recipe

    @property
    def track(self) -> str:
        """Name of the track."""
        return real_excerpt.TRACK if self.kind is None else f"{self.kind}-{self.split}-{self.index:04d}"

    @property
    def target(self) -> Path:
        """Folder of the finished track."""
        return self.root / SPLITS[self.split] / self.track


def make_dataset(
    root: Path,
    *,
    songs: Counts,
    recipe: Recipe,
    seed: int,
    sources: Sources,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Write ``songs[split][kind]`` songs below ``root``, and the real excerpt.

    A second call with the same arguments makes only what is missing; other arguments start again. The bytes do not
    depend on ``workers`` (default: one per core). Raises :class:`InputError` for unknown splits or kinds, material that
    does not suffice, a root that holds other data or cannot be written, or a missing package.
    """
    jobs = _jobs(root, songs, recipe, seed, sources)
    header = _header(songs, recipe, seed, sources)
    try:
        _prepare(root, header, jobs)
        missing = [job for job in jobs if not job.target.is_dir()]
        run_jobs(write_song, missing, workers=workers or os.cpu_count() or 1, progress=progress)
        records = {job.track: json.loads((job.target / "song.json").read_text()) for job in jobs}
        write_atomically(root / "dataset.json", _json({**header, "songs": records}))
        write_atomically(root / "splits.csv", _splits(jobs))
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{root} could not be written ({reason}): check permissions and free space") from error


def kind_of(track: str) -> str:
    """The kind of a track, which its name begins with; ``real`` for the real excerpt."""
    found = track.partition("-")[0]
    return found if found in KINDS else REAL


def write_song(job: Job) -> None:
    """Make and write one track; a failure removes its unfinished files."""
    made = _excerpt() if job.kind is None else _song(job, job.kind)
    partial = job.root / f"{_PARTIAL}{job.track}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        for name, samples in (("vocals", made.vocals), ("instrumental", made.instrumental)):
            # Through memory, because libsndfile reports a full disk without the reason.
            buffer = io.BytesIO()
            soundfile.write(buffer, samples, SAMPLE_RATE, subtype="PCM_16", format="FLAC")
            (partial / f"{name}.flac").write_bytes(buffer.getvalue())
        (partial / "song.json").write_bytes(_json({"split": job.split, **made.info}))
        job.target.parent.mkdir(exist_ok=True)
        partial.rename(job.target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _song(job: Job, kind: Kind) -> StemSong:
    material = read_material(job.sources.material, job.sources.recordings, job.split)
    return make_song(kind, (job.seed, _NUMBERS[job.split], job.index), material, job.recipe)


def _excerpt() -> StemSong:
    """The real excerpt in two stems."""
    found = real_excerpt.excerpt()
    vocals = found.stems["vocals"]
    rest = found.mixture.astype(np.int32) - vocals
    return StemSong(vocals, rest.astype(np.int16), {"kind": REAL, **found.info})


def _jobs(root: Path, songs: Counts, recipe: Recipe, seed: int, sources: Sources) -> list[Job]:
    """Every track of the data set. Raises :class:`InputError` for unknown splits and kinds."""
    for split, kinds in songs.items():
        if split not in _NUMBERS:
            raise InputError(f"unknown split {split!r}; known: {', '.join(_NUMBERS)}")
        if unknown := sorted(set(kinds) - set(KINDS)):
            raise InputError(f"unknown kind of song {unknown[0]!r}; known: {', '.join(KINDS)}")
        if any(not 0 <= count < 10_000 for count in kinds.values()):
            raise InputError(f"the numbers of {split} songs must be between 0 and 9999 for each kind")
    jobs = [
        Job(root, split, cast(Kind, kind), seed, index, sources, recipe)
        for split, kinds in songs.items()
        for kind, count in kinds.items()
        for index in range(count)
    ]
    return [*jobs, Job(root, REAL, None, seed, 0, sources, recipe)]


def _header(songs: Counts, recipe: Recipe, seed: int, sources: Sources) -> dict[str, Any]:
    """Everything that determines the bytes of the songs, as JSON types."""
    try:
        versions = {name: version(name) for name in _PACKAGES}
    except PackageNotFoundError as error:
        raise InputError(f"songs need the package {error.name}; pip install 'twinsep[data]'") from error
    try:
        digest = hashlib.sha256(sources.material.read_bytes()).hexdigest()
    except FileNotFoundError as error:
        raise InputError(f"{sources.material} does not exist: scan the recordings first") from error
    parameters = {"songs": {s: dict(kinds) for s, kinds in songs.items()}, "seed": seed, "recipe": asdict(recipe)}
    found = {"maker": MAKER, "version": VERSION, "parameters": parameters, "packages": versions, "material": digest}
    return json.loads(_json(found))


def _prepare(root: Path, header: dict[str, Any], jobs: list[Job]) -> None:
    """Remove unfinished songs and songs of another ``header``.

    Raises :class:`InputError` if ``root`` holds other data.
    """
    root.mkdir(parents=True, exist_ok=True)
    record = root / "dataset.json"
    try:
        found = json.loads(record.read_text()) if record.exists() else None
    except ValueError:
        found = {}
    ours = found if isinstance(found, dict) and found.get("maker") == MAKER else None
    if ours is None and (found is not None or (root / "train").exists() or (root / "test").exists()):
        raise InputError(f"{root} holds other data: choose an empty folder for the songs")
    for partial in root.glob(f"{_PARTIAL}*"):
        shutil.rmtree(partial)
    (root / "splits.csv").unlink(missing_ok=True)
    current = ours is not None and {key: ours.get(key) for key in header} == header
    wanted = {job.target for job in jobs} if current else set()
    for track in (track for folder in ("train", "test") for track in (root / folder).glob("*")):
        if track not in wanted:
            shutil.rmtree(track)
    if not current:
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
