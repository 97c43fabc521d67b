"""Training batches, the same for either framework, by Grain.

Example i is a pure function of (``training.seed``, i): its own random generator draws the songs, the places
and every augmentation. So batches do not depend on the framework, on the number of threads or workers,
or on where a run was interrupted. All draws are made whatever the probabilities are, so that two
experiments that differ in one augmentation still see the same songs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Float32

from twinsep.config import Config
from twinsep.data import augment
from twinsep.data.dataset import Track, open_track, sources_of, track_folders
from twinsep.errors import InputError

_END = 2**62  # of the numbering of examples: a year at a million a second uses 2^45


class Sounds(TypedDict):
    """The sound of an example."""

    mixture: Float32[np.ndarray, "2 s"]
    target: Float32[np.ndarray, "n 2 s"]


class Example(Sounds):
    """What one number gives; ``song`` names the songs, in the order of their sources where they differ.

    ``skipped`` are the sentences about what could not be read and was left out, see :class:`Examples`.
    """

    song: str
    index: int
    skipped: tuple[str, ...]


class Batch(TypedDict):
    """Examples side by side; ``song`` and ``index`` name them, so that a fault can be traced to its songs.

    ``skipped`` has each sentence once.
    """

    mixture: Float32[np.ndarray, "b 2 s"]
    target: Float32[np.ndarray, "b n 2 s"]
    song: tuple[str, ...]
    index: tuple[int, ...]
    skipped: tuple[str, ...]


class Examples:
    """Number → :class:`Example`, by random access.

    With probability ``data.remix`` each source comes from a song and place of its own, otherwise all
    from one. Songs are drawn in proportion to their length, so that every second of music is as
    likely; one shorter than the segment is zero-padded at its end. Then, for each source alone: gain
    uniform in ±``gain_db`` dB, channels swapped, polarity turned. Then for all together: a target
    silenced (:func:`twinsep.data.augment.silent_target`), a low-pass, dither.

    Where ``data.skip_unreadable`` is set and a file cannot be read, everything is drawn anew, from the
    other songs and by a generator of its own, so that an example still depends on its number alone.
    ``unopened`` are the sentences about songs that are not among ``songs`` for that reason.
    """

    def __init__(self, config: Config, songs: Sequence[Track], unopened: Sequence[str] = ()):
        self.config = config
        self.songs = tuple(songs)
        self.unopened = tuple(unopened)
        self.sources = self.songs[0].sources  # one set's songs are all of one kind

    def __call__(self, index: int) -> Example:
        """Raises :class:`InputError` if a stem cannot be read, naming its file, or, where that is skipped, if no
        song is left."""
        songs, skipped = self.songs, list(self.unopened)
        rng = np.random.default_rng([self.config.training.seed, index])
        attempt = 0
        while True:
            ends = np.cumsum([song.frames for song in songs])
            remix = rng.random() < self.config.data.remix
            places = [self._place(songs, ends, rng) for _ in self.sources]
            places = places if remix else places[:1] * len(self.sources)
            stems = []
            try:
                for (song, start), source in zip(places, self.sources, strict=True):
                    stems.append(self._chunk(song, start, source))
                break
            except InputError as error:
                if not self.config.data.skip_unreadable:
                    raise
                skipped.append(str(error))
            songs = tuple(other for other in songs if other is not song)
            if not songs:
                raise _none_readable(self.config, skipped)
            attempt += 1
            rng = np.random.default_rng([self.config.training.seed, index, attempt])
        names = [song.name for song, _ in places]
        return {
            **self._augmented(np.stack(stems), rng),
            "song": " | ".join(names if remix else names[:1]),
            "index": index,
            "skipped": tuple(skipped),
        }

    def _augmented(self, stems: np.ndarray, rng: np.random.Generator) -> Sounds:
        """Mixture and targets of the sources' segments (sources, 2, s), augmented in place."""
        data, model = self.config.data, self.config.model
        stems = augment.vary(stems, data, rng)
        silent = augment.silent_target(data, model.targets, rng)
        stems[self._indices(silent) if silent else []] = 0
        stems = augment.random_low_pass(stems, data, model.sample_rate, rng)
        stems += augment.dither(stems.shape, rng)
        return {
            # In this order, so that mixture = instrumental + vocals to the bit.
            "mixture": self._sum(stems, "instrumental") + self._sum(stems, "vocals"),
            "target": np.stack([self._sum(stems, target) for target in model.targets]),
        }

    def _place(self, songs: Sequence[Track], ends: np.ndarray, rng: np.random.Generator) -> tuple[Track, int]:
        """(song, first sample); ``ends`` are the songs' in samples, laid end to end."""
        song = songs[int(np.searchsorted(ends, rng.integers(ends[-1]), side="right"))]
        return song, int(rng.integers(max(1, song.frames - self.config.segment_samples + 1)))

    def _chunk(self, song: Track, start: int, source: str) -> np.ndarray:
        length = self.config.segment_samples
        chunk = song.read(source, start, min(length, song.frames))
        return np.pad(chunk, ((0, 0), (0, length - chunk.shape[1])))

    def _sum(self, stems: np.ndarray, stem: str) -> np.ndarray:
        return sum(stems[index] for index in self._indices(stem))

    def _indices(self, stem: str) -> list[int]:
        return [self.sources.index(source) for source in sources_of(stem, self.sources)]


class TrainingBatches:
    """The endless stream of batches of ``config``; each ``iter`` starts it at example 0.

    ``data.workers`` 0 reads ahead in two threads of this process, more in so many processes. Songs named in
    ``data.exclude`` are left out, and with ``data.skip_unreadable`` those that do not open. Raises
    :class:`InputError` as :func:`twinsep.data.track_folders` and :func:`twinsep.data.open_track` do, or if
    no song opens.
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
            raise _none_readable(config, unopened)
        self.example = Examples(config, songs, unopened)

    def __iter__(self) -> BatchIterator:
        return BatchIterator(self.example)


class BatchIterator(Iterator[Batch]):
    """A place in the stream. Leave it by :meth:`close` or a ``with``, which ends its threads or processes."""

    def __init__(self, example: Examples):
        self._example = example
        self._next = 0
        self._source: Any = None

    def __next__(self) -> Batch:
        """The next batch; raises :class:`InputError` if one of its files cannot be read."""
        if self._source is None:
            self._source = _stream(self._example, self._next)
        batch: Batch = next(self._source)
        self._next += len(batch["index"])
        # Workers hand over shared memory, which is gone when they are.
        batch["mixture"], batch["target"] = np.array(batch["mixture"]), np.array(batch["target"])
        return batch

    def get_state(self) -> dict[str, int]:
        """The place as JSON; the same whatever the batch size, the threads and the workers."""
        return {"next_example": self._next}

    def set_state(self, state: dict[str, int]) -> None:
        """Go to the place that :meth:`get_state` gave: the next batch is the one that was next there."""
        self.close()
        self._next = state["next_example"]

    def close(self) -> None:
        """End the threads or processes; a later ``next`` starts them again at the same place."""
        if self._source is not None:
            self._source.close()
            self._source = None

    def __enter__(self) -> BatchIterator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _stream(example: Examples, first: int) -> Any:
    """Grain's iterator over the batches that begin at example ``first``."""
    import grain  # here because it takes seconds, and takes JAX along where that is installed

    size, workers = example.config.training.batch_size, example.config.data.workers
    batches = grain.MapDataset.range(first, _END).map(example).batch(size, batch_fn=_stack)
    # Grain's own default of 500 batches ahead would be gigabytes.
    stream = batches.to_iter_dataset(grain.ReadOptions(num_threads=1 if workers else 2, prefetch_buffer_size=2))
    if workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's processes read a flag that only absl programs parse
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    return iter(stream)


def _stack(examples: Sequence[Example]) -> Batch:
    return {
        "mixture": np.stack([example["mixture"] for example in examples]),
        "target": np.stack([example["target"] for example in examples]),
        "song": tuple(example["song"] for example in examples),
        "index": tuple(int(example["index"]) for example in examples),
        "skipped": tuple(dict.fromkeys(sentence for example in examples for sentence in example["skipped"])),
    }


def _none_readable(config: Config, sentences: Sequence[str]) -> InputError:
    root, count = config.data.root, len(sentences)
    return InputError(f"none of the {count} songs to train on in {root} can be read, to begin with: {sentences[0]}")
