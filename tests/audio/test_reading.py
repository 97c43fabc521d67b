"""Reading sound files whole, in blocks and in segments; refusals in one sentence; resampling."""

import os
import struct
import tracemalloc

import numpy as np
import pytest
import soundfile

from twinsep import audio
from twinsep.errors import InputError
from twinsep.utils.files import display_path

RATE = 44_100
#: File name → (libsndfile's container, subtype, largest error), for all formats read with libsndfile.
FORMATS = {
    "8.wav": ("WAV", "PCM_U8", 2**-7),
    "16.wav": ("WAV", "PCM_16", 2**-15),
    "24.wav": ("WAV", "PCM_24", 2**-23),
    "32.wav": ("WAV", "PCM_32", 2**-24),
    "float.wav": ("WAV", "FLOAT", 0),
    "double.wav": ("WAV", "DOUBLE", 0),
    "extensible.wav": ("WAVEX", "PCM_24", 2**-23),
    "extensible float.wav": ("WAVEX", "FLOAT", 0),
    "rf64.wav": ("RF64", "PCM_24", 2**-23),
    "a.w64": ("W64", "PCM_24", 2**-23),
    "16.flac": ("FLAC", "PCM_16", 2**-15),
    "24.flac": ("FLAC", "PCM_24", 2**-23),
    "a.aiff": ("AIFF", "PCM_24", 2**-23),
    "float.aiff": ("AIFF", "FLOAT", 0),
    "float.au": ("AU", "FLOAT", 0),
    "a.caf": ("CAF", "PCM_16", 2**-15),
    "vorbis.ogg": ("OGG", "VORBIS", 0.05),
    "a.opus": ("OGG", "OPUS", 0.05),
}


def tone(frames=RATE + 37, channels=2):
    phase = 2 * np.pi * 440 * np.arange(frames) / RATE
    return np.stack([(0.3 + 0.2 * channel) * np.sin(phase + channel) for channel in range(channels)]).astype(np.float32)


def write(path, waveform, rate=RATE):
    container, subtype, _ = FORMATS[path.name]
    soundfile.write(path, waveform.T, 48_000 if subtype == "OPUS" else rate, format=container, subtype=subtype)


def assert_sentence(caught, *names):
    text = str(caught.value)
    assert "\n" not in text
    for name in names:
        assert name in text


def joined(path, **options):
    with audio.open_audio(path, **options) as source:
        return np.concatenate([*source.blocks()], axis=1)


# ---------------------------------------------------------------------------- reading


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_blocks_join_to_the_whole_and_verify_knows_it(tmp_path, name, channels):
    path, waveform = tmp_path / name, tone(2 * audio.BLOCK + 37, channels)
    write(path, waveform)
    with audio.open_audio(path) as source:
        blocks = [*source.blocks()]
    assert {block.dtype for block in blocks} == {np.dtype(np.float32)}
    assert [block.shape for block in blocks] == [(channels, audio.BLOCK)] * 2 + [(channels, 37)]
    sound = np.concatenate(blocks, axis=1)
    assert np.abs(sound - waveform)[:, 100:-100].max() <= FORMATS[name][2]
    assert np.array_equal(audio.read(path)[0], sound)
    is_float = FORMATS[name][1] in ("FLOAT", "DOUBLE")
    assert (source.path, source.channels, source.is_float, source.frames) == (path, channels, is_float, sound.shape[1])
    assert audio.verify(path) == audio.AudioInfo(sound.shape[1], source.sample_rate, channels, is_float)
    assert audio.info(path) == audio.AudioInfo(sound.shape[1], source.sample_rate, channels, is_float)


@pytest.mark.parametrize("name", ["24.wav", "24.flac"])
def test_memory_does_not_grow_with_the_song(tmp_path, name):
    write(tmp_path / name, tone(20 * audio.BLOCK))
    told = []
    tracemalloc.start()
    audio.verify(tmp_path / name, report=lambda *progress: told.append(progress))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * 2 * 4 * audio.BLOCK
    assert told == [((number + 1) * audio.BLOCK, 20 * audio.BLOCK) for number in range(20)]


def test_float_files_keep_samples_beyond_full_scale(tmp_path):
    write(tmp_path / "float.wav", 3 * tone())
    assert np.abs(audio.read(tmp_path / "float.wav")[0]).max() == np.abs(3 * tone()).max()


def test_an_error_inside_the_with_is_not_blamed_on_the_file(tmp_path):
    write(tmp_path / "16.wav", tone())
    with pytest.raises(OSError, match="disk"), audio.open_audio(tmp_path / "16.wav"):
        raise OSError("disk")


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_a_segment_equals_that_part_of_the_whole(tmp_path, name):
    audio.write(tmp_path / name, tone(), RATE)
    whole = audio.read(tmp_path / name)[0]
    for start, frames in [(0, 10), (12_345, 4_000), (RATE, 37), (5, 0)]:
        assert np.array_equal(audio.read_segment(tmp_path / name, start, frames), whole[:, start : start + frames])
    with pytest.raises(InputError, match="has 44137 samples, so 38 from 44100 on cannot be read"):
        audio.read_segment(tmp_path / name, RATE, 38)


# ---------------------------------------------------------------------------- refusals of reading


def test_missing_files_folders_empty_files_and_devices_are_refused(tmp_path):
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


def test_no_samples_many_channels_and_nan_are_refused(tmp_path):
    soundfile.write(tmp_path / "none.wav", np.zeros((0, 2)), RATE)
    soundfile.write(tmp_path / "six.wav", np.zeros((100, 6)), RATE)
    soundfile.write(tmp_path / "nan.wav", np.array([0.1, np.nan, 0.1]), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "inf.wav", np.array([0.1, np.inf, 0.1]), RATE, subtype="FLOAT")
    for name, sentence in [
        ("none.wav", r"holds no sound \(0 samples\)"),
        ("six.wav", "has 6 channels, but only mono and stereo are supported"),
        ("nan.wav", "holds NaN or infinite samples"),
        ("inf.wav", "holds NaN or infinite samples"),
    ]:
        with pytest.raises(InputError, match=sentence) as caught:
            audio.read(tmp_path / name)
        assert_sentence(caught, name)
    with pytest.raises(InputError, match=r"nan\.wav holds NaN"):
        audio.read_segment(tmp_path / "nan.wav", 0, 3)


@pytest.mark.parametrize("name", ["a.flac", "a.mp3", "a.ogg"])
def test_a_file_damaged_in_the_middle_is_refused(tmp_path, name):
    path = tmp_path / name
    audio.write(path, np.random.default_rng(0).standard_normal((2, 3 * RATE)) * 0.1, RATE)
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    content[len(content) // 2 :][:9_000] ^= 0x5A
    path.write_bytes(content.tobytes())
    with pytest.raises(InputError, match=r"damaged or (cut short|of an unknown format)"):
        audio.read(path)


def test_a_wav_from_a_pipe_states_no_length_and_is_read(tmp_path):
    path = tmp_path / "a.wav"
    audio.write(path, tone(), RATE)
    content = bytearray(path.read_bytes())
    data = content.index(b"data")
    content[4:8] = content[data + 4 : data + 8] = b"\xff" * 4
    path.write_bytes(content)
    assert audio.read(path)[0].shape == tone().shape


# ---------------------------------------------------------------------------- more refusals


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kept", [0.5, 0.97])
def test_a_file_cut_short_is_refused_by_every_reader(tmp_path, name, kept):
    path = tmp_path / name
    write(path, tone(2 * RATE))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    for reader in (audio.read, audio.verify, joined, lambda path: [*audio.blocks(path)]):
        with pytest.raises(InputError, match=r"damaged or (cut short|of an unknown)|no random access") as caught:
            reader(path)
        assert_sentence(caught, name)


def test_a_cut_file_whose_tags_fill_the_log_of_libsndfile_is_refused(tmp_path):
    path = tmp_path / "16.wav"
    write(path, tone())
    content = path.read_bytes()
    start = content.index(b"data")
    tags = b"INFO" + b"".join(b"ICMT" + struct.pack("<I", 400) + b"y" * 400 for _ in range(10))
    content = content[:start] + b"LIST" + struct.pack("<I", len(tags)) + tags + content[start:]
    whole = content[:4] + struct.pack("<I", len(content) - 8) + content[8:]
    path.write_bytes(whole)
    assert audio.verify(path).frames == RATE + 37
    path.write_bytes(whole[:-1000])
    with pytest.raises(InputError, match="damaged or cut short"):
        audio.verify(path)


@pytest.mark.parametrize(("more", "refused"), [(6000, False), (30_000, True)])
def test_an_ogg_whose_last_page_counts_a_few_samples_too_many_ends_in_silence(tmp_path, more, refused):
    path = tmp_path / "vorbis.ogg"
    write(path, tone(10 * RATE))
    whole, _ = audio.read(path)
    path.write_bytes(with_longer_last_page(path.read_bytes(), more))
    if refused:
        with pytest.raises(InputError, match="samples are there"):
            audio.read(path)
        return
    found, _ = audio.read(path)
    assert found.shape[1] == whole.shape[1] + more
    assert np.array_equal(found[:, :-more], whole)
    assert not found[:, -1000:].any()  # what is before it the encoder's last block holds
    assert np.array_equal(audio.read_segment(path, 1000, 500), whole[:, 1000:1500])


def with_longer_last_page(ogg: bytes, samples: int) -> bytes:
    """An Ogg file whose last page counts more samples than there are."""
    start = ogg.rfind(b"OggS")
    page = bytearray(ogg[start:])
    position = int.from_bytes(page[6:14], "little") + samples
    page[6:14], page[22:26] = position.to_bytes(8, "little"), bytes(4)
    checksum = 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1 ^ (0x104C11DB7 if checksum >> 31 else 0)) & 0xFFFFFFFF
    page[22:26] = checksum.to_bytes(4, "little")
    return ogg[:start] + page


@pytest.mark.parametrize("name", ["vorbis.ogg", "a.opus"])
def test_an_ogg_whose_last_page_is_cut_is_refused_and_one_without_it_noted(tmp_path, name):
    path = tmp_path / name
    write(path, tone(5 * RATE))
    whole = path.read_bytes()
    assert audio.verify(path).notes == ()
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match="its last page is incomplete"):
        audio.verify(path)
    path.write_bytes(whole[: whole.rindex(b"OggS")])
    found = audio.verify(path)
    assert 0 < found.frames < 5 * RATE
    assert "not marked as the last" in found.notes[0]


def test_two_oggs_in_one_file_are_refused(tmp_path):
    write(tmp_path / "vorbis.ogg", tone())
    first = (tmp_path / "vorbis.ogg").read_bytes()
    write(tmp_path / "vorbis.ogg", tone(30_000))
    (tmp_path / "vorbis.ogg").write_bytes(first + (tmp_path / "vorbis.ogg").read_bytes())
    with pytest.raises(InputError, match="something follows its last page"):
        audio.verify(tmp_path / "vorbis.ogg")


def test_nan_is_found_anywhere(tmp_path):
    waveform = tone(3 * audio.BLOCK)
    waveform[1, -5] = np.nan
    write(tmp_path / "float.wav", waveform)
    with audio.open_audio(tmp_path / "float.wav") as source:
        pieces = source.blocks()
        assert np.array_equal(next(pieces), waveform[:, : audio.BLOCK])
        next(pieces)
        with pytest.raises(InputError, match="holds NaN or infinite samples"):
            next(pieces)
    with pytest.raises(InputError, match="holds NaN"):
        audio.verify(tmp_path / "float.wav")


@pytest.mark.parametrize("rate", [1_000, 7_999, 192_001, 384_000])
def test_rates_beyond_8_to_192_khz_are_refused(tmp_path, rate):
    path = tmp_path / "16.wav"
    write(path, tone(1_000), rate)
    for reader in (audio.verify, joined):
        with pytest.raises(
            InputError, match=f"has a sample rate of {rate} Hz, but 8 to 192 kHz are supported"
        ) as caught:
            reader(path)
        assert_sentence(caught, f"ffmpeg -i {path} -ar 44100")
    assert audio.read(path)[1] == audio.info(path).sample_rate == rate


@pytest.mark.parametrize("rate", [8_000, 192_000])
def test_rates_from_8_to_192_khz_are_read(tmp_path, rate):
    write(tmp_path / "16.wav", tone(1), rate)
    assert (audio.verify(tmp_path / "16.wav").frames, audio.verify(tmp_path / "16.wav").sample_rate) == (1, rate)


def test_more_channels_than_asked_for_are_refused(tmp_path):
    path = tmp_path / "24.wav"
    write(path, tone(100, 6))
    sentence = "has 6 channels, but only mono and stereo are supported: mix it down first, for example with `ffmpeg -i"
    pairs = "or separate the channels in pairs with --pairs"
    with pytest.raises(InputError, match=sentence) as caught:
        joined(path)
    assert pairs not in str(caught.value)
    with pytest.raises(InputError, match=sentence) as caught:
        audio.verify(path)
    assert_sentence(caught, pairs)
    with pytest.raises(InputError, match="has 6 channels, but at most 4 are supported") as caught:
        audio.verify(path, max_channels=4)
    assert pairs not in str(caught.value)
    assert audio.verify(path, max_channels=6).channels == len(joined(path, max_channels=6)) == 6


def test_error_sentences_are_one_line_for_any_file_name(tmp_path):
    for name in ("two\nlines.wav", "a\x1b[31mb.wav", os.fsdecode(b"\xff.wav"), "å" * 120 + ".wav"):
        write(tmp_path / "16.wav", tone(100))
        (tmp_path / "16.wav").rename(tmp_path / name)
        assert audio.verify(tmp_path / name).frames == 100
        (tmp_path / name).write_bytes(b"no sound")
        for reader in (audio.read, audio.info, audio.verify, lambda path: audio.read_segment(path, 0, 1)):
            with pytest.raises(InputError) as caught:
                reader(tmp_path / name)
            assert str(caught.value).isprintable()
            assert display_path(tmp_path / name) in str(caught.value)
    assert display_path("two\nlines ü.wav") == r"two\nlines ü.wav"
    with pytest.raises(InputError, match="File name too long"):
        audio.verify(tmp_path / ("x" * 300 + ".wav"))


def test_a_pipe_and_a_file_without_permission_are_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(InputError, match=r"pipe\.wav is not a regular file"):
        audio.verify(tmp_path / "pipe.wav")
    write(tmp_path / "16.wav", tone(100))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match=r"16\.wav cannot be read: check its permissions"):
        audio.verify(tmp_path / "16.wav")


# ---------------------------------------------------------------------------- resampling


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000, 96_000])
def test_resampling_there_and_back_keeps_length_and_sound(rate):
    waveform = tone(30_011)
    there = audio.resample(waveform, RATE, rate)
    assert there.shape == (2, round(30_011 * rate / RATE))
    back = audio.resample(there, rate, RATE, frames=30_011)
    assert back.dtype == np.float32
    assert back.shape == waveform.shape
    assert np.abs(back - waveform)[:, 2_000:-2_000].max() < 1e-4


def test_resampling_keeps_a_tone_in_time():
    at_48 = audio.resample(tone(), RATE, 48_000)[0, 4_000:44_000]
    expected = 0.3 * np.sin(2 * np.pi * 440 * np.arange(4_000, 44_000) / 48_000)
    assert np.abs(at_48 - expected).max() < 1e-4


def test_resampling_at_equal_or_absurd_rates():
    assert np.array_equal(audio.resample(tone(), RATE, RATE), tone())
    with pytest.raises(InputError, match="rates must be positive"):
        audio.resample(tone(), RATE, 0)
    assert audio.resample(np.zeros((2, 1), np.float32), 48_000, 44_100).shape == (2, 1)
