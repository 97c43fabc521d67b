"""Sound files: round trips, refusals in one sentence, writes that are whole or not at all."""

import errno
import os
import resource
import shutil
import time

import av
import numpy as np
import pytest
import soundfile

from twinsep import audio
from twinsep.errors import InputError

RATE = 44_100


def tone(frames=RATE + 37, channels=2):
    phase = 2 * np.pi * 440 * np.arange(frames) / RATE
    return np.stack([(0.3 + 0.2 * channel) * np.sin(phase + channel) for channel in range(channels)]).astype(np.float32)


def write_by_av(path, waveform, codec, rate=RATE, **options):
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout="stereo")
        for start in range(0, waveform.shape[1], 1024):
            block = np.ascontiguousarray(waveform[:, start : start + 1024])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_sentence(caught, *names):
    text = str(caught.value)
    assert "\n" not in text
    for name in names:
        assert name in text


# ---------------------------------------------------------------------------- round trips


@pytest.mark.parametrize(
    ("name", "subtype", "tolerance"),
    [
        ("a.wav", None, 2**-24),
        ("a.wav", "PCM_16", 2**-16),
        ("a.WAV", "FLOAT", 0),
        ("a.flac", None, 2**-24),
        ("a.flac", "PCM_16", 2**-16),
        ("a.mp3", None, 0.02),
        ("a.ogg", None, 0.02),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_round_trip_keeps_length_rate_and_sound(tmp_path, name, subtype, tolerance, channels):
    waveform = tone(channels=channels)
    assert audio.write(tmp_path / name, waveform, RATE, subtype=subtype) == 0
    back, rate = audio.read(tmp_path / name)
    assert (back.dtype, rate, back.shape) == (np.float32, RATE, waveform.shape)
    assert np.abs(back - waveform)[:, 100:-100].max() <= tolerance
    assert audio.info(tmp_path / name) == audio.AudioInfo(waveform.shape[1], RATE, channels)
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_integers_survive_and_are_rounded_to_the_nearest(tmp_path, subtype):
    step = 2.0 ** (1 - int(subtype[4:]))
    levels = np.arange(-50, 50)[None] * step
    audio.write(tmp_path / "a.wav", levels, RATE, subtype=subtype)
    assert np.array_equal(audio.read(tmp_path / "a.wav")[0], levels)
    audio.write(tmp_path / "b.wav", levels + 0.4 * step, RATE, subtype=subtype)
    audio.write(tmp_path / "c.wav", levels - 0.4 * step, RATE, subtype=subtype)
    assert np.array_equal(audio.read(tmp_path / "b.wav")[0], levels)
    assert np.array_equal(audio.read(tmp_path / "c.wav")[0], levels)


@pytest.mark.parametrize(("name", "subtype"), [("a.wav", "FLOAT"), ("a.wav", None), ("a.flac", None), ("a.mp3", None)])
def test_same_sound_same_bytes(tmp_path, name, subtype):
    audio.write(tmp_path / name, tone(), RATE, subtype=subtype)
    first = (tmp_path / name).read_bytes()
    if subtype == "FLOAT":
        time.sleep(1.1)  # libsndfile's time of writing counts seconds
    audio.write(tmp_path / name, tone(), RATE, subtype=subtype)
    assert (tmp_path / name).read_bytes() == first


def test_beyond_full_scale_is_clamped_and_counted_but_not_in_float(tmp_path):
    waveform = np.array([[0.5, 1.0, 1.5, -2.0]], np.float32)
    assert audio.write(tmp_path / "a.wav", waveform, RATE) == 2
    assert np.allclose(audio.read(tmp_path / "a.wav")[0], [[0.5, 1, 1, -1]], atol=2**-22)
    assert audio.write(tmp_path / "b.wav", waveform, RATE, subtype="FLOAT") == 0
    assert np.array_equal(audio.read(tmp_path / "b.wav")[0], waveform)


@pytest.mark.parametrize("name", ["a.mp3", "a.ogg"])
def test_lossy_formats_are_clamped_too(tmp_path, name):
    loud = 8 * tone()
    assert audio.write(tmp_path / name, loud, RATE) == np.count_nonzero(np.abs(loud) > 1)
    assert np.abs(audio.read(tmp_path / name)[0]).max() < 1.5


def test_writer_joins_blocks(tmp_path):
    waveform = tone(200_000)
    with audio.writer(tmp_path / "a.flac", RATE, 2) as sound:
        for start in range(0, 200_000, 70_001):
            sound.write(waveform[:, start : start + 70_001])
        assert not (tmp_path / "a.flac").exists()
    audio.write(tmp_path / "b.flac", waveform, RATE)
    assert np.array_equal(audio.read(tmp_path / "a.flac")[0], audio.read(tmp_path / "b.flac")[0])


def test_m4a_is_as_long_as_its_container_says(tmp_path):
    waveform = tone()
    write_by_av(tmp_path / "a.m4a", waveform, "aac")
    back, rate = audio.read(tmp_path / "a.m4a")
    assert rate == RATE
    assert 0 <= back.shape[1] - waveform.shape[1] <= RATE // 1000
    error = back[:, :RATE] - waveform[:, :RATE]
    assert np.std(error) < 0.1 * np.std(waveform)  # the encoder's 1,024 samples of delay are gone
    assert audio.info(tmp_path / "a.m4a").frames == back.shape[1]
    with pytest.raises(InputError, match=r"a\.m4a has 1 audio streams, none of number 1"):
        audio.read(tmp_path / "a.m4a", stream=1)


def test_mp3_without_a_length_is_not_cut(tmp_path):
    # Quiet, then loud: the bit rate of the start says nothing of the length.
    frames = 3 * RATE
    noise = np.random.default_rng(0).standard_normal((2, frames)) * np.linspace(0, 0.2, frames)
    path = tmp_path / "a.mp3"
    with av.open(str(path), "w", options={"write_xing": "0"}) as container:
        quality = {"global_quality": "236", "flags": "+qscale"}
        stream = container.add_stream("libmp3lame", rate=RATE, layout="stereo", options=quality)
        for start in range(0, frames, 1152):
            block = np.ascontiguousarray(noise[:, start : start + 1152], np.float32)
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = RATE, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert soundfile.info(path).frames < frames  # the trap: libsndfile would lose the end
    assert audio.read(path)[0].shape[1] >= frames


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_segment_is_the_same_part_of_the_whole(tmp_path, name):
    audio.write(tmp_path / name, tone(), RATE)
    whole = audio.read(tmp_path / name)[0]
    for start, frames in [(0, 10), (12_345, 4_000), (RATE, 37), (5, 0)]:
        assert np.array_equal(audio.read_segment(tmp_path / name, start, frames), whole[:, start : start + frames])
    with pytest.raises(InputError, match="has 44137 samples, so 38 from 44100 on cannot be read"):
        audio.read_segment(tmp_path / name, RATE, 38)


# ---------------------------------------------------------------------------- refusals of reading


def test_missing_folder_empty_and_device(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("no sound at all, " * 100)
    (tmp_path / "text.raw").write_text("no sound at all, " * 100)
    for name, sentence in [
        ("none.wav", "does not exist: check the path"),
        ("empty.wav/a.wav", "does not exist: check the path"),
        ("empty.wav", r"is empty \(0 bytes\)"),
        (".", "is a folder: name an audio file in it"),
        ("text.wav", "cannot be read as sound"),
        ("text.raw", r"(cannot be read as|holds no) sound"),
    ]:
        for function in (audio.read, audio.info):
            with pytest.raises(InputError, match=sentence) as caught:
                function(tmp_path / name)
            assert_sentence(caught, str(tmp_path / name))
    with pytest.raises(InputError, match="/dev/null is not a regular file"):
        audio.read("/dev/null")


def test_no_samples_many_channels_and_nan(tmp_path):
    soundfile.write(tmp_path / "none.wav", np.zeros((0, 2)), RATE)
    soundfile.write(tmp_path / "six.wav", np.zeros((100, 6)), RATE)
    soundfile.write(tmp_path / "nan.wav", np.array([0.1, np.nan, 0.1]), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "inf.wav", np.array([0.1, np.inf, 0.1]), RATE, subtype="FLOAT")
    for name, sentence in [
        ("none.wav", r"holds no sound \(0 samples\)"),
        ("six.wav", "has 6 channels, but only mono and stereo are handled"),
        ("nan.wav", "holds NaN or infinite samples"),
        ("inf.wav", "holds NaN or infinite samples"),
    ]:
        with pytest.raises(InputError, match=sentence) as caught:
            audio.read(tmp_path / name)
        assert_sentence(caught, name)
    with pytest.raises(InputError, match=r"nan\.wav holds NaN"):
        audio.read_segment(tmp_path / "nan.wav", 0, 3)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.ogg", "a.m4a"])
def test_a_file_cut_short_is_refused_not_shortened(tmp_path, name):
    path, waveform = tmp_path / name, tone(3 * RATE)
    if name == "a.m4a":
        write_by_av(path, waveform, "aac", movflags="faststart")
    else:
        audio.write(path, waveform, RATE)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])
    with pytest.raises(InputError, match=r"damaged or (cut short|of no known format)") as caught:
        audio.read(path)
    assert_sentence(caught, name, "ffmpeg -i")


@pytest.mark.parametrize("name", ["a.flac", "a.mp3", "a.ogg"])
def test_a_file_damaged_in_the_middle_is_refused(tmp_path, name):
    path = tmp_path / name
    audio.write(path, np.random.default_rng(0).standard_normal((2, 3 * RATE)) * 0.1, RATE)
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    content[len(content) // 2 :][:9_000] ^= 0x5A
    path.write_bytes(content.tobytes())
    with pytest.raises(InputError, match=r"damaged or (cut short|of no known format)"):
        audio.read(path)


def test_a_wav_from_a_pipe_states_no_length_and_is_read(tmp_path):
    path = tmp_path / "a.wav"
    audio.write(path, tone(), RATE)
    content = bytearray(path.read_bytes())
    data = content.index(b"data")
    content[4:8] = content[data + 4 : data + 8] = b"\xff" * 4
    path.write_bytes(content)
    assert audio.read(path)[0].shape == tone().shape


# ---------------------------------------------------------------------------- refusals of writing


@pytest.fixture
def file_size_limit():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("file_size_limit")
@pytest.mark.parametrize(
    ("name", "subtype"), [("a.wav", None), ("a.wav", "FLOAT"), ("a.flac", None), ("a.mp3", None), ("a.ogg", None)]
)
def test_a_file_that_does_not_fit_leaves_nothing_behind(tmp_path, name, subtype):
    (tmp_path / name).write_bytes(b"what stood there")
    noise = np.random.default_rng(0).standard_normal((2, 4 * RATE)) * 0.1
    with pytest.raises(InputError, match="File too large") as caught:
        audio.write(tmp_path / name, noise, RATE, subtype=subtype)
    assert_sentence(caught, name, "free some space")
    assert names(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b"what stood there"


def test_a_full_disk(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"a\.wav: No space left on device"):
        audio.write(tmp_path / "a.wav", tone(), RATE)
    assert names(tmp_path) == []


def test_an_interrupted_writer_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt), audio.writer(tmp_path / "a.wav", RATE, 2) as sound:  # noqa: PT012
        sound.write(tone())
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "full.wav").symlink_to("/dev/full")
    for name, sentence in [
        ("file/a.wav", "file is a file where a folder is needed"),
        ("folder.wav", "it is a folder or a device"),
        ("full.wav", "it is a folder or a device"),
        ("a.aiff", r"its extension is none of \.wav, \.flac, \.mp3, \.ogg"),
        ("x" * 300 + ".wav", "File name too long"),
    ]:
        with pytest.raises(InputError, match=sentence) as caught:
            audio.write(tmp_path / name, tone(), RATE)
        assert_sentence(caught, name)
    assert names(tmp_path) == ["file", "folder.wav", "full.wav"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"):
        audio.write(tmp_path / "a.wav", tone(), RATE)


def test_sound_that_cannot_be_written(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    with pytest.raises(InputError, match=r"a\.wav: the sound holds NaN"):
        audio.write(path, tone() * np.float32("nan"), RATE)
    with pytest.raises(InputError, match=r"a\.wav: there is no sound"):
        audio.write(path, np.zeros((2, 0)), RATE)
    with pytest.raises(InputError, match="MP3 does not take 2 channels at 96000 Hz"):
        audio.write(tmp_path / "a.mp3", tone(), 96_000)
    with pytest.raises(InputError, match="FLAC has no FLOAT; leave it out for PCM_24"):
        audio.write(tmp_path / "a.flac", tone(), RATE, subtype="FLOAT")
    monkeypatch.setattr("twinsep.audio_writing._WAV_BYTES", 1000)
    with pytest.raises(InputError, match=r"WAV ends at 4 GiB; write \.flac"):
        audio.write(path, tone(), RATE)
    assert names(tmp_path) == []


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link.wav").symlink_to(tmp_path / "real.wav")
    audio.write(tmp_path / "link.wav", tone(), RATE)
    assert (tmp_path / "link.wav").is_symlink()
    assert audio.info(tmp_path / "real.wav").frames == tone().shape[1]


def test_missing_folders_are_made_and_permissions_are_the_usual(tmp_path):
    audio.write(tmp_path / "new" / "folder" / "a.wav", tone(), RATE)
    usual = tmp_path / "usual"
    usual.touch()
    assert (tmp_path / "new" / "folder" / "a.wav").stat().st_mode == usual.stat().st_mode
    shutil.rmtree(tmp_path / "new")


# ---------------------------------------------------------------------------- resampling


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000, 96_000])
def test_resample_there_and_back_keeps_length_and_sound(rate):
    waveform = tone(30_011)
    there = audio.resample(waveform, RATE, rate)
    assert there.shape == (2, round(30_011 * rate / RATE))
    back = audio.resample(there, rate, RATE, frames=30_011)
    assert back.dtype == np.float32
    assert back.shape == waveform.shape
    assert np.abs(back - waveform)[:, 2_000:-2_000].max() < 1e-4


def test_resample_places_a_tone_in_time():
    at_48 = audio.resample(tone(), RATE, 48_000)[0, 4_000:44_000]
    expected = 0.3 * np.sin(2 * np.pi * 440 * np.arange(4_000, 44_000) / 48_000)
    assert np.abs(at_48 - expected).max() < 1e-4


def test_resample_at_equal_or_absurd_rates():
    assert np.array_equal(audio.resample(tone(), RATE, RATE), tone())
    with pytest.raises(InputError, match="rates must be positive"):
        audio.resample(tone(), RATE, 0)
    assert audio.resample(np.zeros((2, 1), np.float32), 48_000, 44_100).shape == (2, 1)
