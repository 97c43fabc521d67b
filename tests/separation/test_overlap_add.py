"""Chunks, context, fades, grids and batches, around models of one line."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinsep.errors import InputError, OutOfMemoryError
from twinsep.separation.overlap_add import ChunkGrid, apply_model, stream_model, zip_blocks


def identity(x):
    return x[:, None]


def noise(channels, samples, seed=0):
    return 0.3 * np.random.default_rng(seed).standard_normal((channels, samples)).astype(np.float32)


def pieces(x, size):
    return [x[:, start : start + size] for start in range(0, x.shape[-1], size)]


@given(
    samples=st.integers(1, 400),
    segment=st.integers(1, 120),
    overlap=st.floats(0, 0.95, allow_nan=False),
    shifts=st.integers(1, 3),
    batch=st.integers(1, 4),
    size=st.integers(1, 50),
)
def test_identity_returns_the_input_at_any_length(samples, segment, overlap, shifts, batch, size):
    x = noise(2, samples)
    chunking = ChunkGrid(segment, overlap, shifts, batch)
    y = np.concatenate(list(stream_model(identity, pieces(x, size), samples, chunking)), -1)
    assert y.shape == (1, 2, samples)
    # Float32 rounding of a weighted sum: four units in the last place of the peak.
    assert np.abs(y[0] - x).max() <= 4 * np.finfo(np.float32).eps * max(1, np.abs(x).max())


@given(samples=st.integers(1, 500), segment=st.integers(2, 100), overlap=st.floats(0, 0.95), shifts=st.integers(1, 4))
def test_chunks_begin_and_end_with_the_song_and_leave_no_gap(samples, segment, overlap, shifts):
    chunking = ChunkGrid(segment, overlap, shifts)
    starts, kept = chunking.starts(samples), len(chunking.weights)
    assert starts[0] == 0
    assert starts[-1] == max(0, samples - kept)
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert (steps <= min(chunking.hop, kept)).all()
    # In the middle there are as many chunks for a sample as without shifts, times their number.
    if samples >= 4 * kept and chunking.hop >= shifts:
        middle = samples // 2
        count = sum(start <= middle < start + kept for start in starts)
        once = sum(start <= middle < start + kept for start in ChunkGrid(segment, overlap).starts(samples))
        assert shifts * (once - 1) <= count <= shifts * (once + 1)


def test_block_sizes_and_batches_change_nothing():
    x, chunking = noise(2, 5000), ChunkGrid(400, 0.3, shifts=2, batch=3)

    def model(chunk):  # not pointwise, so that what is beside a chunk matters
        return np.cumsum(chunk, -1)[:, None]

    whole = apply_model(model, x, chunking)
    for size in (1, 7, 399, 5000):
        assert np.array_equal(np.concatenate(list(stream_model(model, pieces(x, size), 5000, chunking)), -1), whole)
    assert np.array_equal(apply_model(model, x, ChunkGrid(400, 0.3, shifts=2)), whole)


def test_all_batches_have_one_shape_and_progress_is_reported():
    shapes, told = set(), []

    def model(x):
        shapes.add(x.shape)
        return x[:, None]

    apply_model(model, noise(2, 1001), ChunkGrid(100, batch=4), progress=lambda *p: told.append(p))
    assert shapes == {(4, 2, 100)}
    assert told[-1] == (len(ChunkGrid(100).starts(1001)),) * 2


def test_the_stream_is_read_only_as_far_as_needed():
    read = 0

    def source():
        nonlocal read
        for piece in pieces(noise(2, 100_000), 100):
            read += 100
            yield piece

    written = 0
    for piece in stream_model(identity, source(), 100_000, ChunkGrid(1000, batch=2)):
        written += piece.shape[-1]
        assert read - written <= 3 * 1000 + 200


def test_context_is_discarded():
    # A model that spoils a chunk's outer eighths, which is the outer quarter of what is shared at half overlap.
    def model(x):
        y = x.copy()
        y[..., :100] = y[..., -100:] = 9
        return y[:, None]

    x = noise(2, 10_000)
    assert np.abs(apply_model(model, x, ChunkGrid(800, 0.5))[0] - x).max() <= 3e-7
    assert np.abs(apply_model(model, x, ChunkGrid(800, 0.45))[0] - x).max() > 1


def test_the_song_is_mirrored_at_both_ends():
    heard = []

    def model(x):
        heard.append(x[0, 0].copy())
        return x[:, None]

    x = np.arange(1, 31, dtype=np.float32)[None].repeat(2, 0)
    apply_model(model, x, ChunkGrid(20, 0.4))  # context 2, hop 12, 16 samples kept of each chunk
    assert heard[0][:5].tolist() == [3, 2, 1, 2, 3]
    assert heard[-1].tolist() == [*range(13, 31), 29, 28]
    apply_model(model, x[:, :6], ChunkGrid(20, 0.4))
    assert heard[-1].tolist() == [3, 2, 1, 2, 3, 4, 5, 6, 5, 4, *[0] * 10]


def test_no_seam_between_chunks_that_disagree():
    # A model whose gain changes from chunk to chunk: the fade spreads the step over what is shared and kept.
    gains = iter([1.0, 0.5] * 5)
    y = apply_model(lambda x: next(gains) * x[:, None], np.ones((2, 4000), np.float32), ChunkGrid(1000))
    assert np.abs(np.diff(y)).max() <= 0.5 / 125


def test_shifts_average_grids():
    # An estimate that depends on the place in the chunk comes out nearer to its mean with more grids.
    ramp = np.linspace(-1, 1, 1000, dtype=np.float32)
    middles = [
        apply_model(lambda x: (x * ramp)[:, None], np.ones((2, 9000), np.float32), ChunkGrid(1000, 0.0, n))[
            ..., 2000:7000
        ]
        for n in (1, 2, 4)
    ]
    deviations = [float(middle.std()) for middle in middles]
    assert deviations[0] > 1.5 * deviations[1] > 2 * deviations[2]


def test_the_batch_is_halved_when_memory_runs_out():
    sizes = []

    def model(x):
        sizes.append(len(x))
        if len(x) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return x[:, None]

    x = noise(2, 3000)
    assert np.abs(apply_model(model, x, ChunkGrid(200, batch=8))[0] - x).max() <= 3e-7
    assert sizes[:3] == [8, 4, 2]
    assert set(sizes[2:]) == {2}

    def starved(_):
        raise MemoryError

    with pytest.raises(OutOfMemoryError, match="smaller --segment"):
        apply_model(starved, x, ChunkGrid(200, batch=8))
    with pytest.raises(RuntimeError, match="another fault"):
        apply_model(lambda _: (_ for _ in ()).throw(RuntimeError("another fault")), x, ChunkGrid(200, batch=8))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"overlap": 1.0}, "overlap 1.0 is out of range: choose 0 to 0.95"),
        ({"segment": 0}, "a segment of 0 samples is empty"),
        ({"shifts": 0}, "shifts 0 is out of range: choose 1 to 100"),
        ({"batch": 0}, "batch 0 is out of range: choose 1 to 4096"),
    ],
)
def test_bad_options(options, sentence):
    with pytest.raises(InputError, match=sentence):
        ChunkGrid(**({"segment": 10} | options))


def test_a_model_that_changes_the_length_is_refused():
    with pytest.raises(InputError, match="returned 9 samples for 10"):
        apply_model(lambda x: x[:, None, :, 1:], noise(2, 100), ChunkGrid(10))


@given(st.lists(st.integers(0, 9), max_size=9), st.integers(1, 9))
def test_zip_blocks_cuts_both_streams_alike(lengths, size):
    x = noise(2, sum(lengths))
    ends = np.cumsum([0, *lengths])
    left = [x[:, a:b] for a, b in pairwise(ends)]
    found = list(zip_blocks(left, pieces(x, size)))
    assert all(np.array_equal(a, b) for a, b in found)
    assert sum(a.shape[-1] for a, _ in found) == sum(lengths)
