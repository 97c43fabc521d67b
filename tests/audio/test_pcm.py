"""Samples as bytes, and WAV headers read and written in a pipe."""

import contextlib
import io
import os

import numpy as np
import pytest
import soundfile

from twinsep.audio.pcm import PCM, read_wav_header
from twinsep.errors import InputError


def wav(samples, subtype, rate=44_100):
    """A WAV file (channels, n) as libsndfile writes it."""
    file = io.BytesIO()
    soundfile.write(file, samples.T, rate, subtype, format="WAV")
    return file.getvalue()


@pytest.fixture
def piped():
    """A function from at most 64 KiB to a pipe that holds them, which cannot be read twice."""
    with contextlib.ExitStack() as stack:

        def fill(content):
            source, sink = os.pipe()
            os.write(sink, content)
            os.close(sink)
            return stack.enter_context(os.fdopen(source, "rb"))

        yield fill


@pytest.mark.parametrize(("subtype", "name"), [("PCM_16", "s16le"), ("FLOAT", "f32le")])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_header_of_libsndfile_is_understood(piped, subtype, name, channels):
    x = np.random.default_rng(0).uniform(-1, 1, (channels, 100)).astype(np.float32)
    file = piped(wav(x, subtype, 48_000))
    pcm, left = read_wav_header(file)
    assert (pcm, left) == (PCM(48_000, channels, name), 100 * pcm.frame_bytes)
    np.testing.assert_allclose(pcm.decode(file.read(left)), x, atol=0 if name == "f32le" else 1 / 32768)


@pytest.mark.parametrize("name", ["s16le", "f32le"])
def test_what_is_written_is_a_wav_file(name, piped, tmp_path):
    pcm, x = PCM(44_100, 2, name), np.array([[0, 0.5, -1, 2], [0.25, -0.5, 1, -2]], np.float32)
    file = tmp_path / "pipe.wav"
    file.write_bytes(pcm.header() + pcm.encode(x))
    found, rate = soundfile.read(file, dtype="float32")
    assert rate == 44_100
    wanted = x if name == "f32le" else np.clip(x, -1, 1 - 1 / 32768)
    np.testing.assert_allclose(found.T[:, : x.shape[1]], wanted, atol=1e-7)
    header, left = read_wav_header(piped(file.read_bytes()))
    assert (header, left) == (pcm, None)


def test_a_format_of_extended_headers_is_understood(piped):
    file = io.BytesIO()
    soundfile.write(file, np.zeros((10, 2)), 44_100, "FLOAT", format="WAVEX")
    pcm, left = read_wav_header(piped(file.getvalue()))
    assert (pcm, left) == (PCM(44_100, 2, "f32le"), 80)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"fLaC" + bytes(100), "no WAV file: pipe one in, or name the format of raw samples by --raw"),
        (b"RIFF", "ends in the header"),
        (wav(np.zeros((2, 10)), "PCM_16")[:30], "ends in the header"),
        (wav(np.zeros((2, 10)), "PCM_24"), "2 channels of 24 bits"),
        (wav(np.zeros((6, 10)), "PCM_16"), "6 channels of 16 bits"),
        (b"RIFF" + bytes(4) + b"WAVEdata" + bytes(4), "no format before its sound"),
    ],
)
def test_other_content_is_refused(piped, content, sentence):
    with pytest.raises(InputError, match=sentence):
        read_wav_header(piped(content))
