"""A stream around any causal network: blocks of any size, nothing lost, nothing from outside the signal."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinsep.config import preset
from twinsep.errors import InputError
from twinsep.model.stream import Stream

MODEL = preset("tiny-causal").model
HOP, LATE = MODEL.hop, MODEL.n_fft - MODEL.hop


def start():
    """A network that returns its input twice, n_fft − hop samples late, as a causal one would."""
    past = np.full((2, LATE), 7, np.float32)

    def advance(block):
        nonlocal past
        both = np.concatenate([past, block], 1)
        past = both[:, HOP:]
        return both[None, :, :HOP].copy()

    return advance


def signal(samples):
    return np.arange(1, 2 * samples + 1, dtype=np.float32).reshape(2, samples)


@given(st.lists(st.sampled_from([0, 1, 3, 500, HOP - 1, HOP, HOP + 1, 3 * HOP]), max_size=12))
def test_blocks_of_any_size_give_the_signal(sizes):
    stream, x = Stream(start, MODEL), signal(sum(sizes))
    given_, found = 0, []
    for size in sizes:
        found.append(stream.push(x[:, given_ : given_ + size]))
        given_ += size
        returned = sum(y.shape[-1] for y in found)
        assert 0 <= given_ - returned < stream.latency
    found.append(stream.finish())
    np.testing.assert_array_equal(np.concatenate(found, -1)[0], x)


def test_after_the_end_a_stream_begins_again_from_silence():
    stream, x = Stream(start, MODEL), signal(5000)
    first = np.concatenate([stream.push(x), stream.finish()], -1)
    again = np.concatenate([stream.push(x), stream.finish()], -1)
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize(
    ("samples", "sentence"),
    [
        (np.zeros((2, 5)), "takes float32 samples of two channels"),
        (np.zeros((1, 5), np.float32), r"not float32 of \(1, 5\)"),
        (np.zeros(5, np.float32), "two channels"),
        (np.full((2, 5), np.nan, np.float32), "NaN or infinite"),
    ],
)
def test_bad_samples_are_refused_and_leave_the_stream_as_it_was(samples, sentence):
    stream, x = Stream(start, MODEL), signal(3000)
    found = [stream.push(x[:, :1500])]
    with pytest.raises(InputError, match=sentence):
        stream.push(samples)
    found += [stream.push(x[:, 1500:]), stream.finish()]
    np.testing.assert_array_equal(np.concatenate(found, -1)[0], x)


def test_the_stems_and_the_latency_are_the_models():
    stream = Stream(start, MODEL)
    assert (stream.stems, stream.latency) == (MODEL.stems, MODEL.n_fft)
