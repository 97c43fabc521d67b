"""Writing sound files: complete or not at all, in the format asked for, the same when read again."""

import errno
import io
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import av
import numpy as np
import pytest
import soundfile

from twinsep import audio
from twinsep.audio import writing
from twinsep.errors import InputError

RATE = 44_100


def tone(frames=RATE + 37, channels=2):
    phase = 2 * np.pi * 440 * np.arange(frames) / RATE
    return np.stack([(0.3 + 0.2 * channel) * np.sin(phase + channel) for channel in range(channels)]).astype(np.float32)


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
    assert audio.info(tmp_path / name) == audio.AudioInfo(waveform.shape[1], RATE, channels, subtype == "FLOAT")
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
def test_the_same_sound_gives_the_same_bytes(tmp_path, name, subtype):
    audio.write(tmp_path / name, tone(), RATE, subtype=subtype)
    first = (tmp_path / name).read_bytes()
    if subtype == "FLOAT":
        time.sleep(1.1)  # libsndfile's time of writing counts seconds
    audio.write(tmp_path / name, tone(), RATE, subtype=subtype)
    assert (tmp_path / name).read_bytes() == first


def test_samples_beyond_full_scale_are_clamped_and_counted_except_in_float(tmp_path):
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


# ---------------------------------------------------------------------------- MP3's bit rate


@pytest.mark.parametrize(
    ("rate", "bitrate", "expected"),
    [(44_100, 320, 320), (44_100, 192, 192), (48_000, 64, 64), (22_050, 320, 160), (24_000, 64, 64), (8_000, 80, 64)],
)
def test_an_mp3_has_the_bit_rate_asked_for(tmp_path, rate, bitrate, expected):
    noise = np.random.default_rng(0).standard_normal((1, 4 * rate)) * 0.1
    with audio.writer(tmp_path / "a.mp3", rate, 1, bitrate=bitrate) as sound:
        sound.write(noise)
    with av.open(str(tmp_path / "a.mp3")) as file:
        packets = [packet for packet in file.demux() if packet.size]
        seconds = float(sum(packet.duration for packet in packets) * packets[0].time_base)
    assert sum(packet.size for packet in packets) * 8 / seconds / 1000 == pytest.approx(expected, rel=0.01)
    assert audio.info(tmp_path / "a.mp3") == audio.AudioInfo(4 * rate, rate, 1, False)


@pytest.mark.parametrize("frames", [1, 1_151, 1_152, 50_001])
@pytest.mark.parametrize("bitrate", [64, 320])
def test_an_mp3_keeps_its_length(tmp_path, frames, bitrate):
    with audio.writer(tmp_path / "a.mp3", RATE, 2, bitrate=bitrate) as sound:
        sound.write(tone(frames))
    assert audio.read(tmp_path / "a.mp3")[0].shape == (2, frames)


@pytest.mark.parametrize("bitrate", [0, 32, 100, 144])
def test_bit_rates_that_mp3_lacks_are_refused(tmp_path, bitrate):
    sentence = f"a.mp3: an MP3 at 44100 Hz cannot have {bitrate} kbit/s; choose one of 64, 80, .*, 320"
    with pytest.raises(InputError, match=sentence), audio.writer(tmp_path / "new" / "a.mp3", RATE, 2, bitrate=bitrate):
        pass
    assert names(tmp_path) == []


# ---------------------------------------------------------------------------- 4 GiB


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_a_wav_expected_to_exceed_4_gib_is_an_rf64(tmp_path, monkeypatch, subtype):
    monkeypatch.setattr(writing, "_WAV_BYTES", 1000 * 2 * writing._BYTES[subtype])
    for frames, form in [(1000, "WAV"), (1001, "RF64")]:
        with audio.writer(tmp_path / "a.wav", RATE, 2, subtype=subtype, frames=frames) as sound:
            sound.write(tone(frames))
        assert soundfile.info(tmp_path / "a.wav").format == form
        assert np.abs(audio.read(tmp_path / "a.wav")[0] - tone(frames)).max() <= 2**-15
    first = (tmp_path / "a.wav").read_bytes()
    audio.write(tmp_path / "a.wav", tone(1001), RATE, subtype=subtype)
    assert (tmp_path / "a.wav").read_bytes() == first


def test_a_wav_that_exceeds_4_gib_unexpectedly_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "_WAV_BYTES", 1000 * 2 * 3)
    with audio.writer(tmp_path / "a.wav", RATE, 2) as sound:
        sound.write(tone(1000))
    sentence = r"b\.wav: WAV ends at 4 GiB; write \.flac"
    with pytest.raises(InputError, match=sentence), audio.writer(tmp_path / "b.wav", RATE, 2) as sound:  # noqa: PT012
        sound.write(tone(1000))
        sound.write(tone(1))
    assert names(tmp_path) == ["a.wav"]


# ---------------------------------------------------------------------------- finish


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.ogg"])
@pytest.mark.parametrize("change", [+1000, -1000])
def test_finish_gets_the_path_of_the_complete_file_and_may_change_it(tmp_path, name, change):
    path, changed = tmp_path / name, b""

    def finish(temporary):
        nonlocal changed
        assert names(tmp_path) == [temporary.name]
        assert temporary.suffix == path.suffix
        whole = temporary.read_bytes()
        assert soundfile.info(io.BytesIO(whole)).frames == tone().shape[1]
        changed = b"tags" * 250 + whole if change > 0 else whole[:change]
        temporary.write_bytes(changed)

    with audio.writer(path, RATE, 2, finish=finish) as sound:
        sound.write(tone())
    assert changed
    assert path.read_bytes() == changed
    assert names(tmp_path) == [name]


@pytest.mark.parametrize(
    ("raised", "expected", "sentence"),
    [
        (ValueError("no such tag"), ValueError, "no such tag"),
        (OSError(errno.EIO, "broken"), InputError, "a.wav: broken"),
    ],
)
def test_a_finish_that_fails_fails_the_writing(tmp_path, raised, expected, sentence):
    def finish(_):
        raise raised

    with (
        pytest.raises(expected, match=sentence),
        audio.writer(tmp_path / "new" / "a.wav", RATE, 2, finish=finish) as sound,
    ):
        sound.write(tone())
    assert names(tmp_path) == []


# ---------------------------------------------------------------------------- refusals


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


def test_a_full_disk_is_reported(tmp_path, monkeypatch):
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


def test_paths_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "full.wav").symlink_to("/dev/full")
    for name, sentence in [
        ("file/a.wav", "file is a file where a folder is needed"),
        ("folder.wav", "it is a folder or a device"),
        ("full.wav", "it is a folder or a device"),
        ("a.aiff", r"its extension is none of \.wav, \.flac, \.mp3, \.ogg, \.m4a"),
        ("x" * 300 + ".wav", "File name too long"),
    ]:
        with pytest.raises(InputError, match=sentence) as caught:
            audio.write(tmp_path / name, tone(), RATE)
        assert_sentence(caught, name)
    assert names(tmp_path) == ["file", "folder.wav", "full.wav"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"):
        audio.write(tmp_path / "a.wav", tone(), RATE)


def test_sound_that_cannot_be_written_is_refused(tmp_path):
    path = tmp_path / "a.wav"
    with pytest.raises(InputError, match=r"a\.wav: the sound holds NaN"):
        audio.write(path, tone() * np.float32("nan"), RATE)
    with pytest.raises(InputError, match=r"a\.wav: there is no sound"):
        audio.write(path, np.zeros((2, 0)), RATE)
    with pytest.raises(InputError, match="MP3 does not take 3 channels at 44100 Hz"):
        audio.write(tmp_path / "a.mp3", tone(channels=3), RATE)
    with pytest.raises(InputError, match="FLAC has no FLOAT; leave it out for PCM_24"):
        audio.write(tmp_path / "a.flac", tone(), RATE, subtype="FLOAT")
    assert names(tmp_path) == []


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link.wav").symlink_to(tmp_path / "real.wav")
    audio.write(tmp_path / "link.wav", tone(), RATE)
    assert (tmp_path / "link.wav").is_symlink()
    assert audio.info(tmp_path / "real.wav").frames == tone().shape[1]


def test_missing_folders_are_made_and_files_have_the_usual_permissions(tmp_path):
    audio.write(tmp_path / "new" / "folder" / "a.wav", tone(), RATE)
    usual = tmp_path / "usual"
    usual.touch()
    assert (tmp_path / "new" / "folder" / "a.wav").stat().st_mode == usual.stat().st_mode
    shutil.rmtree(tmp_path / "new")


@pytest.mark.parametrize(
    ("name", "rate", "instead"),
    [
        ("a.mp3", 96_000, r"\.wav or \.flac"),
        ("a.mp3", 44_101, r"\.wav or \.flac"),
        ("a.flac", 96_001, r"\.wav,"),
        ("a.flac", 768_000, r"\.wav,"),
        ("a.ogg", 352_800, r"\.wav or \.flac"),
    ],
)
def test_rates_that_a_format_lacks_are_refused(tmp_path, name, rate, instead):
    sentence = f"does not take 2 channels at {rate} Hz; choose {instead}"
    with pytest.raises(InputError, match=sentence), audio.writer(tmp_path / name, rate, 2):
        pass
    assert names(tmp_path) == []


def test_existing_files_are_replaced_only_with_overwrite(tmp_path):
    (tmp_path / "real.wav").write_text("what stood there")
    (tmp_path / "link.wav").symlink_to("real.wav")
    for name in ("real.wav", "link.wav"):
        sentence = r"real\.wav exists; pass --overwrite to replace it, or choose another --out"
        with pytest.raises(InputError, match=sentence), audio.writer(tmp_path / name, RATE, 2, overwrite=False):
            pass
    assert (tmp_path / "real.wav").read_text() == "what stood there"
    with audio.writer(tmp_path / "new.wav", RATE, 2, overwrite=False) as sound:
        sound.write(tone())
    assert audio.info(tmp_path / "new.wav").frames == tone().shape[1]


def test_the_next_writer_removes_the_hidden_files_of_a_killed_one(tmp_path):
    (tmp_path / "old.flac").write_text("what stood there")
    program = """
import sys, time
import numpy as np
from twinsep import audio
with audio.writer("old.flac", 44_100, 2) as old, audio.writer("new/new.mp3", 44_100, 2) as new:
    for sound in (old, new):
        sound.write(np.zeros((2, 200_000)))
    print("written", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"written\n"
        audio.write(tmp_path / "new" / "new.mp3", tone(), RATE)  # the other's file is not complete: it stays
        assert [name.startswith(".new.") for name in names(tmp_path / "new")] == [True, False]
        process.send_signal(signal.SIGKILL)
    assert [name.startswith(".old.") for name in names(tmp_path)] == [True, False, False]
    assert (tmp_path / "old.flac").read_text() == "what stood there"
    audio.write(tmp_path / "old.flac", tone(), RATE)
    audio.write(tmp_path / "new" / "new.mp3", tone(), RATE)
    assert names(tmp_path) == ["new", "old.flac"]
    assert names(tmp_path / "new") == ["new.mp3"]


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.ogg"])
def test_ctrl_c_within_the_encoder_is_not_lost(tmp_path, name):
    waveform = np.random.default_rng(0).standard_normal((2, 4 * RATE)) * 0.1
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt), audio.writer(tmp_path / name, RATE, 2) as sound:  # noqa: PT012
        timer.start()
        while True:
            sound.write(waveform)
    assert names(tmp_path) == []


@pytest.mark.parametrize(("name", "subtype"), [("a.wav", "FLOAT"), ("a.flac", None), ("a.mp3", None), ("a.ogg", None)])
def test_a_disk_too_full_for_the_last_bytes_is_reported(tmp_path, name, subtype):
    noise = np.random.default_rng(0).standard_normal((2, 20_000)) * 0.1
    audio.write(tmp_path / name, noise, RATE, subtype=subtype)
    size = (tmp_path / name).stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for missing in (1, 100, 1000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size - missing, before[1]))
            with pytest.raises(InputError, match="File too large; free some space"):
                audio.write(tmp_path / name, noise, RATE, subtype=subtype)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == [name]
    assert (tmp_path / name).stat().st_size == size


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("bitrate", [64, 128, 160, 192, 224, 256, 320])
def test_an_mp3_is_as_loud_as_its_input(tmp_path, rate, bitrate):
    """LAME makes sound quieter at low bit rates."""
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)[None].repeat(2, 0)
    with audio.writer(tmp_path / "a.mp3", rate, 2, bitrate=bitrate) as sound:
        sound.write(tone)
    found = audio.read(tmp_path / "a.mp3")[0]
    middle = slice(rate // 4, 3 * rate // 4)
    assert abs((found[:, middle] * tone[:, middle]).sum() / (tone[:, middle] ** 2).sum() - 1) < 0.002
