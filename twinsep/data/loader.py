"""Training batches for both frameworks, loaded by Grain.

Example i is a pure function of (``training.seed``, i): its own random generator draws the songs, the start samples and
every augmentation. Batches therefore do not depend on the framework, on the number of threads or workers, or on where a
run was interrupted. All draws are made whatever the probabilities are, so that two experiments that differ in one
augmentation still see the same songs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple, TypedDict

import numpy as np
from jaxtyping import Float32

from twinsep.config import Config
from twinsep.data import augment
from twinsep.data.dataset import Track, check_kinds, open_track, sources_of, track_folders
from twinsep.errors import InputError
from twinsep.training.processes import Process
from twinsep.utils.files import display_path

#: Number of examples in the stream; a year at a million per second uses 2^45.
_END = 2**62


class ExampleAudio(TypedDict):
    """Arrays of an example: mixture (C, S) and its n targets (n, C, S), float32."""

    mixture: Float32[np.ndarray, "2 s"]
    target: Float32[np.ndarray, "n 2 s"]


class Example(ExampleAudio):
    """Training example ``index``.

    ``song`` names its song, or the song of each source, joined by " | ". ``skipped`` holds one sentence for each file
    that could not be read, see :class:`Examples`.
    """

    song: str
    index: int
    skipped: tuple[str, ...]


class Batch(TypedDict):
    """Stacked examples; ``song`` and ``index`` name each of them, so that a fault can be traced to its songs.

    ``skipped`` holds each sentence once.
    """

    mixture: Float32[np.ndarray, "b 2 s"]
    target: Float32[np.ndarray, "b n 2 s"]
    song: tuple[str, ...]
    index: tuple[int, ...]
    skipped: tuple[str, ...]


class Examples:
    """Map from a number to its :class:`Example`, by random access.

    With probability ``data.remix`` each source comes from a song and a start sample of its own, otherwise all sources
    come from one. Songs are drawn in proportion to their length, so that every second of music is equally likely; a
    song shorter than the segment is zero-padded at its end. Each source then gets a gain uniform in ±``gain_db`` dB, a
    random swap of its channels and a random sign. Finally, for all sources together: a silenced target
    (:func:`twinsep.data.augment.silent_target`), a low-pass, dither. Spans, ranges and noise of
    :func:`twinsep.data.augment.corrupt` change the mixture alone.

    If ``data.skip_unreadable`` is set and a file cannot be read, everything is drawn again from the other songs by a
    new generator, so that an example still depends on its number alone. ``unopened`` holds one sentence for each song
    that is missing from ``songs`` for this reason.
    """

    def __init__(self, config: Config, songs: Sequence[Track], unopened: Sequence[str] = ()):
        self.config = config
        self.songs = tuple(songs)
        self.unopened = tuple(unopened)
        self.sources = self.songs[0].sources  # the songs of one set are all of one kind

    def __call__(self, index: int) -> Example:
        """Return example ``index``.

        Raises :class:`InputError` for a file that cannot be read, or, if such files are skipped, when no song is left.
        """
        songs, skipped = self.songs, list(self.unopened)
        rng = np.random.default_rng([self.config.training.seed, index])
        attempt = 0
        while True:
            ends = np.cumsum([song.frames for song in songs])
            remix = rng.random() < self.config.data.remix
            positions = [self._draw_position(songs, ends, rng) for _ in self.sources]
            positions = positions if remix else positions[:1] * len(self.sources)
            stems = []
            try:
                for (song, start), source in zip(positions, self.sources, strict=True):
                    stems.append(self._read_segment(song, start, source))
                break
            except InputError as error:
                if not self.config.data.skip_unreadable:
                    raise
                skipped.append(str(error))
            songs = tuple(other for other in songs if other is not song)
            if not songs:
                raise _no_song_readable(self.config, skipped)
            attempt += 1
            rng = np.random.default_rng([self.config.training.seed, index, attempt])
        names = [song.name for song, _ in positions]
        return {
            **self._augment(np.stack(stems), rng),
            "song": " | ".join(names if remix else names[:1]),
            "index": index,
            "skipped": tuple(skipped),
        }

    def _augment(self, stems: np.ndarray, rng: np.random.Generator) -> ExampleAudio:
        """Augment the segments of the sources (n, C, S), which may be overwritten; sum them to mixture and targets."""
        data, model = self.config.data, self.config.model
        stems = augment.vary(stems, data, rng)
        silent = augment.silent_target(data, model.targets, rng)
        stems[self._indices(silent) if silent else []] = 0
        stems = augment.random_low_pass(stems, data, model.sample_rate, rng)
        stems += augment.dither(stems.shape, rng)
        # In this order, so that mixture = instrumental + vocals to the bit.
        mixture = self._sum(stems, "instrumental") + self._sum(stems, "vocals")
        return {
            "mixture": augment.corrupt(mixture, data, model.sample_rate, rng),
            "target": np.stack([self._sum(stems, target) for target in model.targets]),
        }

    def _draw_position(self, songs: Sequence[Track], ends: np.ndarray, rng: np.random.Generator) -> tuple[Track, int]:
        """Draw (song, start sample); ``ends`` (songs,) are the songs' ends in samples when laid end to end."""
        song = songs[int(np.searchsorted(ends, rng.integers(ends[-1]), side="right"))]
        return song, int(rng.integers(max(1, song.frames - self.config.segment_samples + 1)))

    def _read_segment(self, song: Track, start: int, source: str) -> np.ndarray:
        """Read one segment of a source (C, S), zero-padded at its end."""
        length = self.config.segment_samples
        segment = song.read(source, start, min(length, song.frames))
        return np.pad(segment, ((0, 0), (0, length - segment.shape[1])))

    def _sum(self, stems: np.ndarray, stem: str) -> np.ndarray:
        """Sum of the sources that make up ``stem``, (C, S)."""
        return sum(stems[index] for index in self._indices(stem))

    def _indices(self, stem: str) -> list[int]:
        return [self.sources.index(source) for source in sources_of(stem, self.sources)]


class TrainingBatches:
    """Endless stream of training batches; each ``iter`` starts it at example 0.

    With ``data.workers`` 0 two threads of this process read ahead, otherwise that many processes. Songs named in
    ``data.exclude`` are left out, and with ``data.skip_unreadable`` also those that do not open. Raises
    :class:`InputError` as :func:`twinsep.data.dataset.track_folders` and :func:`twinsep.data.dataset.open_track` do,
    if no song opens, if some are in stems and some in pairs, and if no song is as long as a segment.
    """

    def __init__(self, config: Config, split: str = "train"):
        self.config = config
        songs, unopened = [], []
        for folder in track_folders(config.data.root, split, config.data.exclude):
            try:
                songs.append(open_track(folder, config.model.sample_rate, config.model.targets))
            except InputError as error:
                if not config.data.skip_unreadable:
                    raise
                unopened.append(str(error))
        if not songs:
            raise _no_song_readable(config, unopened)
        check_kinds(songs)
        _check_segment(config, songs)
        self.example = Examples(config, songs, unopened)

    def __iter__(self) -> BatchIterator:
        return BatchIterator(self.example)


class BatchIterator(Iterator[Batch]):
    """Position in the stream of batches. :meth:`close`, or leaving a ``with``, ends its threads or processes.

    ``process`` says which of several processes this one is: each reads its part of every batch, and all together read
    the batches of one process.
    """

    def __init__(self, example: Examples):
        self._example = example
        self._next = 0
        self._source: Any = None
        self.process = Process()

    def __next__(self) -> Batch:
        """Return the next batch. Raises :class:`InputError` if one of its files cannot be read."""
        if self._source is None:
            self._source = _stream(self._example, self._next, self.process)
        batch: Batch = next(self._source)
        self._next += len(batch["index"]) * self.process.size
        # Workers hand over shared memory, which disappears with them.
        batch["mixture"], batch["target"] = np.array(batch["mixture"]), np.array(batch["target"])
        return batch

    def get_state(self) -> dict[str, int]:
        """Return the position in JSON types, the same in every process, whatever the batch size and their number."""
        return {"next_example": self._next}

    def set_state(self, state: dict[str, int]) -> None:
        """Go to a position returned by :meth:`get_state`, so that the next batch is the one that was next there."""
        self.close()
        self._next = state["next_example"]

    def close(self) -> None:
        """End the threads or processes; a later ``next`` starts them again at the same position."""
        if self._source is not None:
            self._source.close()
            self._source = None

    def __enter__(self) -> BatchIterator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _stream(example: Examples, first: int, process: Process) -> Any:
    """Grain's iterator over the batches from example ``first`` on, or over the part of ``process`` of each."""
    try:
        import grain  # here because it takes seconds, and imports JAX where that is installed
    except ImportError as error:  # also one built for other libraries
        raise InputError(f"training needs the package grain, which cannot be imported here ({error})") from error

    size, workers = example.config.training.batch_size, example.config.data.workers
    part = size // process.size
    numbered = _Numbered(example, first, size, part, process)
    batches = grain.MapDataset.range(_END).map(numbered).batch(part, batch_fn=_stack)
    # Grain's default of 500 batches ahead would take gigabytes.
    stream = batches.to_iter_dataset(grain.ReadOptions(num_threads=1 if workers else 2, prefetch_buffer_size=2))
    if workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's processes read a flag that only absl programs parse
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    return iter(stream)


class _Numbered(NamedTuple):
    """Map from the number of an example in a process to the example: the parts of all processes make up each batch."""

    example: Examples
    first: int
    size: int
    part: int
    process: Process

    def __call__(self, index: int) -> Example:
        """Return the example with the number ``index`` in this process."""
        batch, position = divmod(index, self.part)
        return self.example(self.first + batch * self.size + self.process.rank * self.part + position)


def _stack(examples: Sequence[Example]) -> Batch:
    """Stack examples into a batch: mixture (B, C, S), target (B, n, C, S)."""
    return {
        "mixture": np.stack([example["mixture"] for example in examples]),
        "target": np.stack([example["target"] for example in examples]),
        "song": tuple(example["song"] for example in examples),
        "index": tuple(int(example["index"]) for example in examples),
        "skipped": tuple(dict.fromkeys(sentence for example in examples for sentence in example["skipped"])),
    }


def _check_segment(config: Config, songs: Sequence[Track]) -> None:
    """Raise :class:`InputError` if every song is shorter than a segment, which would be zeros from there on."""
    longest = max(songs, key=lambda song: song.frames)
    if longest.frames < config.segment_samples:
        seconds = math.floor(longest.frames / longest.sample_rate * 1000) / 1000  # not rounded up
        raise InputError(
            f"training.segment_seconds is {config.training.segment_seconds:g}, but the longest training song, "
            f"{display_path(longest.name)}, lasts {seconds:g} s: set training.segment_seconds to at most {seconds:g}"
        )


def _no_song_readable(config: Config, sentences: Sequence[str]) -> InputError:
    root, count = config.data.root, len(sentences)
    return InputError(f"{root} holds {count} training songs and none can be read; the first error is: {sentences[0]}")
