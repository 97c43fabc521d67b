"""Overlap-add: a model of short inputs applied to songs of any length, in chunks, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np

from twinsep.config import Config, PackageConfig
from twinsep.errors import InputError, OutOfMemoryError, is_out_of_memory
from twinsep.utils.progress import ProgressCallback

#: A model on NumPy arrays: (B, C, S) float32 → (B, stems, C, S) float32.
ArrayModel = Callable[[np.ndarray], np.ndarray]

#: Fraction of a chunk that neighbours share.
OVERLAP = 0.25
#: Limits: chunk length in seconds, shifts, chunks in a batch.
SEGMENT_SECONDS = (0.1, 600)
MAX_SHIFTS, MAX_BATCH = 100, 4096


@dataclass(frozen=True)
class Chunking:
    """Options for cutting songs into chunks, in a user's units.

    ``segment`` is the length of a chunk in seconds, the training segment's if None. Neighbours share the fraction
    ``overlap`` of a chunk, by default the model's. The result is averaged over ``shifts`` grids of chunks, each moved
    by a fraction of a hop. The model sees ``batch`` chunks at once. Raises :class:`InputError` for a value out of
    range.
    """

    segment: float | None = None
    overlap: float | None = None
    shifts: int = 1
    batch: int = 1

    def __post_init__(self) -> None:
        shortest, longest = SEGMENT_SECONDS
        if self.segment is not None and not shortest <= self.segment <= longest:
            raise InputError(f"a segment of {self.segment:g} s is out of range: choose {shortest} to {longest} s")
        _check_ranges(self)

    def grid(self, config: Config) -> ChunkGrid:
        """The grid in samples for the model of ``config``; raises InputError for chunks longer than it takes."""
        seconds = config.training.segment_seconds if self.segment is None else self.segment
        overlap = OVERLAP if self.overlap is None else self.overlap
        if isinstance(config.model, PackageConfig):
            overlap = config.model.overlap if self.overlap is None else overlap
            longest = config.model.max_segment
            if longest is not None and seconds > longest:
                raise InputError(f"a segment of {seconds:g} s is too long for this model: choose at most {longest:g} s")
        return ChunkGrid(round(seconds * config.model.sample_rate), overlap, self.shifts, self.batch)


@dataclass(frozen=True)
class ChunkGrid:
    """Positions of chunks of ``segment`` samples in a song, and their weights in the overlap-add.

    In the overlap of two chunks, the quarter nearest a chunk's own edge is context: the model reads it, and its output
    there is discarded, as a model is worst at its edges. Over the middle half one chunk fades into the other. For the
    other fields see :class:`Chunking`. Raises :class:`InputError` for an empty segment or a value out of range.
    """

    segment: int
    overlap: float = OVERLAP
    shifts: int = Chunking.shifts
    batch: int = Chunking.batch

    def __post_init__(self) -> None:
        if self.segment < 1:
            raise InputError(f"a segment of {self.segment} samples is empty: choose a longer one")
        _check_ranges(self)

    @property
    def hop(self) -> int:
        """Samples from one chunk to the next."""
        return max(1, round(self.segment * (1 - self.overlap)))

    @property
    def context(self) -> int:
        """Samples discarded at each end of a chunk."""
        return (self.segment - self.hop) // 4

    @cached_property
    def weights(self) -> np.ndarray:
        """Weights of the kept samples of a chunk: ramps (never 0) over the overlap, 1 elsewhere."""
        kept = self.segment - 2 * self.context
        shared = kept - self.hop
        rising = np.arange(1, kept + 1)
        return (np.minimum(np.minimum(rising, rising[::-1]), shared + 1) / (shared + 1)).astype(np.float32)

    def starts(self, samples: int) -> list[int]:
        """First kept sample of each chunk in a song of ``samples``, ascending.

        The first chunk of each grid begins with the song and the last ends with it, because the model has less to
        go by beyond the song than within it. A song shorter than a chunk is one chunk.
        """
        last = max(0, samples - len(self.weights))
        grids = (range(-(self.hop * shift // self.shifts), last + self.hop, self.hop) for shift in range(self.shifts))
        return sorted({min(max(start, 0), last) for grid in grids for start in grid})


def _check_ranges(chunks: Chunking | ChunkGrid) -> None:
    limits = {"overlap": (0, 0.95), "shifts": (1, MAX_SHIFTS), "batch": (1, MAX_BATCH)}
    for name, (low, high) in limits.items():
        value = getattr(chunks, name)
        if value is not None and not low <= value <= high:
            raise InputError(f"{name} {value} is out of range: choose {low} to {high}")


def apply_model(
    model: ArrayModel, waveform: np.ndarray, grid: ChunkGrid, *, progress: ProgressCallback | None = None
) -> np.ndarray:
    """Stems (stems, C, S) of ``waveform`` (C, S), both float32 at the model's rate; see :func:`stream_model`."""
    return np.concatenate(list(stream_model(model, [waveform], waveform.shape[-1], grid, progress=progress)), axis=-1)


def stream_model(
    model: ArrayModel,
    blocks: Iterable[np.ndarray],
    samples: int,
    grid: ChunkGrid,
    *,
    progress: ProgressCallback | None = None,
) -> Iterator[np.ndarray]:
    """Stems (stems, C, n) of a song that arrives in ``blocks`` (C, n) of any length, ``samples`` in all.

    The output is as long as the input. At most one batch of chunks is held in memory. All chunks have one length and
    all batches one size, so that a compiled model is compiled once. The model reads the song mirrored at both ends,
    as far as the context reaches, and zeros beyond if the song is shorter than a chunk. Weights are divided by their
    sum, so a model that returns its input returns the song. When memory runs out, the batch is halved and stays so.
    ``progress`` is called with (chunks done, chunks in all). Raises :class:`InputError` for a model whose output has
    another length, and :class:`OutOfMemoryError` if memory does not hold one chunk.
    """
    starts = grid.starts(samples)
    chunks = _cut_chunks(_mirror_ends(blocks, grid.context), starts, grid.segment)
    sums = _WeightedSums(grid.weights, samples)
    batch, done = min(grid.batch, len(starts)), 0
    waiting: list[np.ndarray] = []
    while done < len(starts):
        waiting += islice(chunks, max(0, batch - len(waiting)))
        try:
            estimates = _run_batch(model, waiting[:batch], batch)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if batch == 1:
                raise OutOfMemoryError(
                    f"memory ran out on a chunk of {grid.segment} samples: choose a smaller --segment"
                ) from error
            batch //= 2
            continue
        waiting = waiting[batch:]
        for estimate in estimates:
            yield from sums.pop(starts[done])
            sums.add(estimate[..., grid.context : grid.segment - grid.context], starts[done])
            done += 1
        if progress:
            progress(done, len(starts))
    yield from sums.pop(samples)


def zip_blocks(left: Iterable[np.ndarray], right: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of equally long pieces of two streams of equal length, cut along the last axis."""
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


def _run_batch(model: ArrayModel, chunks: list[np.ndarray], batch: int) -> np.ndarray:
    """Stems (chunks, stems, C, S) of at most ``batch`` chunks; missing chunks are zeros."""
    x = np.zeros((batch, *chunks[0].shape), np.float32)  # (b, c, s)
    x[: len(chunks)] = chunks
    y = np.asarray(model(x))  # (b, stems, c, s)
    if y.shape[-1] != x.shape[-1]:
        raise InputError(f"the model returned {y.shape[-1]} samples for {x.shape[-1]}: it must keep the length")
    return y[: len(chunks)]


def _mirror_ends(blocks: Iterable[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """The stream with its first and last ``count`` samples mirrored before and after it."""
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


def _cut_chunks(blocks: Iterable[np.ndarray], starts: list[int], length: int) -> Iterator[np.ndarray]:
    """The chunks of ``length`` samples that begin at ``starts``, with zeros after the end of the stream."""
    stream = iter(blocks)
    held = next(stream)
    first = 0  # position of held[:, 0] in the stream
    for start in starts:
        pieces = [held[:, start - first :]]
        while sum(piece.shape[-1] for piece in pieces) < length and (block := next(stream, None)) is not None:
            pieces.append(block)
        # A song in one block is not copied for each of its chunks.
        held, first = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=-1), start
        chunk = held[:, :length]
        yield np.pad(chunk, ((0, 0), (0, length - chunk.shape[-1])))


class _WeightedSums:
    """Weighted sums of estimates (stems, C, n), and of their weights, from the first sample not yet returned on."""

    def __init__(self, weights: np.ndarray, samples: int):
        self.weights, self.samples, self.returned = weights, samples, 0
        self.estimates: np.ndarray | None = None
        self.weight = np.zeros(0, np.float32)

    def add(self, estimate: np.ndarray, start: int) -> None:
        """Add an estimate whose first sample is ``start`` of the song; samples outside the song are left out."""
        left = max(0, self.returned - start)
        right = min(estimate.shape[-1], self.samples - start)
        first, end = start + left - self.returned, start + right - self.returned
        if self.estimates is None:
            self.estimates = np.zeros((*estimate.shape[:-1], 0), np.float32)
        missing = max(0, end - len(self.weight))
        self.estimates = np.pad(self.estimates, (*[(0, 0)] * (estimate.ndim - 1), (0, missing)))
        self.weight = np.pad(self.weight, (0, missing))
        self.estimates[..., first:end] += estimate[..., left:right] * self.weights[left:right]
        self.weight[first:end] += self.weights[left:right]

    def pop(self, until: int) -> Iterator[np.ndarray]:
        """The samples before ``until``, to which no later chunk adds."""
        count = until - self.returned
        if count > 0 and self.estimates is not None:
            yield self.estimates[..., :count] / self.weight[:count]
            self.estimates, self.weight = self.estimates[..., count:], self.weight[count:]
            self.returned = until
