"""Separating a song of any length around any callable: chunks with context, overlap-add, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np

from twinsep.config import Config
from twinsep.errors import InputError, OutOfMemoryError, is_out_of_memory
from twinsep.utils.progress import ProgressCallback

#: (b, c, s) float32 -> (b, stems, c, s) float32, NumPy in and out.
ArrayModel = Callable[[np.ndarray], np.ndarray]


#: Of a chunk, the least and the most; and what is the most of the others.
SEGMENT_SECONDS = (0.1, 600)
MOST_SHIFTS, MOST_CHUNKS = 100, 4096


@dataclass(frozen=True)
class Chunking:
    """How a song is cut up: chunks of ``segment`` samples that share the fraction ``overlap`` with the next one.

    Of what two chunks share, the outer quarter of either is context: the model hears it and what it makes of it is
    discarded, since it knows least there. Over the half in the middle one fades into the other. ``shifts`` grids of
    chunks, each moved by a part of a step, are averaged. ``batch`` chunks go through the model at once. Raises
    :class:`InputError` for an overlap outside [0, 0.95] and for counts below 1 or beyond reason.
    """

    segment: int
    overlap: float = 0.25
    shifts: int = 1
    batch: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.overlap <= 0.95:
            raise InputError(f"overlap {self.overlap} is not between 0 and 0.95")
        if self.segment < 1:
            raise InputError(f"a segment of {self.segment} samples is empty; give a longer one")
        for name, most in (("shifts", MOST_SHIFTS), ("batch", MOST_CHUNKS)):
            if not 1 <= getattr(self, name) <= most:
                raise InputError(f"{name} {getattr(self, name)} is not between 1 and {most}")

    @property
    def hop(self) -> int:
        """Samples from one chunk to the next."""
        return max(1, round(self.segment * (1 - self.overlap)))

    @property
    def context(self) -> int:
        """Samples discarded at either end of a chunk."""
        return (self.segment - self.hop) // 4

    @cached_property
    def weights(self) -> np.ndarray:
        """Of the samples of a chunk that are kept: ramps over what is shared, never 0, 1 elsewhere."""
        kept = self.segment - 2 * self.context
        shared = kept - self.hop
        rising = np.arange(1, kept + 1)
        return (np.minimum(np.minimum(rising, rising[::-1]), shared + 1) / (shared + 1)).astype(np.float32)

    def starts(self, samples: int) -> list[int]:
        """Where the kept part of each chunk begins, in samples of the song, ascending.

        The first one of each grid begins with the song and the last one ends with it: what lies beyond a song is less
        to go by than what lies in it. A song shorter than that is one chunk.
        """
        last = max(0, samples - len(self.weights))
        grids = (range(-(self.hop * shift // self.shifts), last + self.hop, self.hop) for shift in range(self.shifts))
        return sorted({min(max(start, 0), last) for grid in grids for start in grid})


def chunk_samples(config: Config, segment: float | None) -> int:
    """Samples of a chunk of ``segment`` seconds, the training segment's where none is given.

    Raises :class:`InputError` for seconds that are no number between those of :data:`SEGMENT_SECONDS`.
    """
    if segment is None:
        return config.segment_samples
    least, most = SEGMENT_SECONDS
    if not least <= segment <= most:
        raise InputError(f"a segment of {segment:g} seconds is not possible; give {least} to {most}")
    return round(segment * config.model.sample_rate)


def apply_model(
    model: ArrayModel, waveform: np.ndarray, chunking: Chunking, *, progress: ProgressCallback | None = None
) -> np.ndarray:
    """Stems (stems, c, s) of ``waveform`` (c, s), both float32 at the model's rate; see :func:`stream`."""
    return np.concatenate(
        list(stream_model(model, [waveform], waveform.shape[-1], chunking, progress=progress)), axis=-1
    )


def stream_model(
    model: ArrayModel,
    blocks: Iterable[np.ndarray],
    samples: int,
    chunking: Chunking,
    *,
    progress: ProgressCallback | None = None,
) -> Iterator[np.ndarray]:
    """Stems (stems, c, n) of a song that comes in ``blocks`` (c, n) of any lengths, ``samples`` in all.

    What has come out is as long as what went in. No more is held than a batch of chunks. All chunks have one length,
    and all batches one size, so that a compiled model is compiled once. Before the song and after it the model hears
    it mirrored, as far as the context goes, and zeros beyond if it is shorter than a chunk. Weights are divided by
    their sum: a model that returns its input returns the song. Where memory runs out the batch is halved, and stays so.
    ``progress`` is called with (chunks done, chunks in all). Raises :class:`InputError` for a model whose output has
    another length, and :class:`OutOfMemoryError` if memory does not hold one chunk.
    """
    starts = chunking.starts(samples)
    heard = _cut(_mirrored(blocks, chunking.context), starts, chunking.segment)
    sums = _Sums(chunking.weights, samples)
    batch, done = min(chunking.batch, len(starts)), 0
    waiting: list[np.ndarray] = []
    while done < len(starts):
        waiting += islice(heard, max(0, batch - len(waiting)))
        try:
            estimates = _run(model, waiting[:batch], batch)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if batch == 1:
                raise OutOfMemoryError(
                    f"memory does not hold the model's work on a chunk of {chunking.segment} samples; "
                    "give a smaller --segment"
                ) from error
            batch //= 2
            continue
        waiting = waiting[batch:]
        for estimate in estimates:
            yield from sums.finished(starts[done])
            sums.add(estimate[..., chunking.context : chunking.segment - chunking.context], starts[done])
            done += 1
        if progress:
            progress(done, len(starts))
    yield from sums.finished(samples)


def zip_blocks(left: Iterable[np.ndarray], right: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Two streams, cut along their last axis into pieces that are equally long in both."""
    others = iter(right)
    other = next(others, None)
    for piece in left:
        while piece.shape[-1]:
            while other is not None and not other.shape[-1]:
                other = next(others, None)
            assert other is not None, "one stream is longer than the other"
            length = min(piece.shape[-1], other.shape[-1])
            yield piece[..., :length], other[..., :length]
            piece, other = piece[..., length:], other[..., length:]


def _run(model: ArrayModel, chunks: list[np.ndarray], batch: int) -> np.ndarray:
    """The model's stems (chunks, stems, c, s) of at most ``batch`` chunks, zeros in place of those missing."""
    x = np.zeros((batch, *chunks[0].shape), np.float32)
    x[: len(chunks)] = chunks
    y = np.asarray(model(x))
    if y.shape[-1] != x.shape[-1]:
        raise InputError(f"the model returned {y.shape[-1]} samples for {x.shape[-1]}; it must keep the length")
    return y[: len(chunks)]


def _mirrored(blocks: Iterable[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """The stream with so many of its first and last samples mirrored before and after it."""
    stream = iter(blocks)
    head = [next(stream)]
    while sum(block.shape[-1] for block in head) <= count and (block := next(stream, None)) is not None:
        head.append(block)
    start = np.concatenate(head, axis=-1)
    yield np.pad(start, ((0, 0), (count, 0)), mode="reflect")
    tail = start[:, -count - 1 :]
    for block in stream:
        yield block
        tail = np.concatenate([tail, block[:, -count - 1 :]], axis=-1)[:, -count - 1 :]
    yield np.pad(tail, ((0, 0), (0, count)), mode="reflect")[:, tail.shape[-1] :]


def _cut(blocks: Iterable[np.ndarray], starts: list[int], length: int) -> Iterator[np.ndarray]:
    """The chunks of that length that begin at ``starts``, zeros where the stream has ended."""
    stream = iter(blocks)
    held = next(stream)
    first = 0  # the place of held[:, 0] in the stream
    for start in starts:
        pieces = [held[:, start - first :]]
        while sum(piece.shape[-1] for piece in pieces) < length and (block := next(stream, None)) is not None:
            pieces.append(block)
        # A song in one block is not copied for each of its chunks.
        held, first = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=-1), start
        chunk = held[:, :length]
        yield np.pad(chunk, ((0, 0), (0, length - chunk.shape[-1])))


class _Sums:
    """Weighted sums of estimates (stems, c, n) and of the weights, from the first sample not yet given out on."""

    def __init__(self, weights: np.ndarray, samples: int):
        self.weights, self.samples, self.given = weights, samples, 0
        self.estimates: np.ndarray | None = None
        self.weight = np.zeros(0, np.float32)

    def add(self, estimate: np.ndarray, start: int) -> None:
        """Add an estimate whose first sample is number ``start`` of the song; what lies outside of it is left out."""
        left = max(0, self.given - start)
        right = min(estimate.shape[-1], self.samples - start)
        first, end = start + left - self.given, start + right - self.given
        if self.estimates is None:
            self.estimates = np.zeros((*estimate.shape[:-1], 0), np.float32)
        missing = max(0, end - len(self.weight))
        self.estimates = np.pad(self.estimates, (*[(0, 0)] * (estimate.ndim - 1), (0, missing)))
        self.weight = np.pad(self.weight, (0, missing))
        self.estimates[..., first:end] += estimate[..., left:right] * self.weights[left:right]
        self.weight[first:end] += self.weights[left:right]

    def finished(self, until: int) -> Iterator[np.ndarray]:
        """What no chunk that begins at ``until`` or later adds to."""
        count = until - self.given
        if count > 0 and self.estimates is not None:
            yield self.estimates[..., :count] / self.weight[:count]
            self.estimates, self.weight = self.estimates[..., count:], self.weight[count:]
            self.given = until
