"""Headers of pipes and of recorders that crashed: the sound is read to its end, and the file is left as it is."""

import io
import struct

import numpy as np
import pytest
import soundfile

from twinsep import audio
from twinsep.errors import InputError

RATE = 44_100
FRAMES = audio.BLOCK + 5_001
SOUND = np.random.default_rng(0).integers(-9_000, 9_000, (2, FRAMES)) / 2.0**15
#: Placeholders of sox, of encoders, of arecord, of GStreamer and of FFmpeg: (size of the whole, size of the sound).
PIPES = [
    (0x7FFF_F024, 0x7FFF_F000),
    (0x7FFF_FFFF, 0x7FFF_FFFF),
    (0x7FFF_FFFF, 0x7FFF_FFDB),
    (0x8000_0024, 0x8000_0000),
    (0x7FFF_0024, 0x7FFF_0000),
    (0xFFFF_FFFF, 0xFFFF_FFFF),
    (0xFFFF_FFFF, 0xFFFF_FFDB),
]
UNFINISHED = "the header of the file was never finished"


def made(container, subtype="PCM_16"):
    """The bytes of a good file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, SOUND.T, RATE, format=container, subtype=subtype)
    return bytearray(buffer.getvalue())


def put(content, place, form, *values):
    struct.pack_into(form, content, place, *values)
    return content


def wav(form, data, extra=b""):
    """A WAV with these sizes, and chunks before the sound."""
    content = made("WAV")
    place = content.index(b"data")
    content[place:place] = extra
    return put(put(content, 4, "<I", form), place + len(extra) + 4, "<I", data)


def rf64(sizes, magic=b"RF64"):
    content = made("RF64")
    content[:4] = magic
    return put(content, content.index(b"ds64") + 8, "<QQQ", *sizes)


def w64(form, data):
    content = made("W64")
    return put(put(content, 16, "<Q", form), content.index(b"data\xf3") + 16, "<Q", data)


def aiff(form, frames, data):
    content = made("AIFF")
    put(put(content, 4, ">I", form), content.index(b"COMM") + 10, ">I", frames)
    return put(content, content.index(b"SSND") + 4, ">I", data)


def au(size):
    return put(made("AU"), 8, ">I", size)


def caf(size):
    content = made("CAF")
    return put(content, content.index(b"data") + 4, ">Q", size)


def flac():
    content = made("FLAC")
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    return content


JUNK = b"JUNK" + struct.pack("<I", 28) + bytes(28)
FLLR = b"FLLR" + struct.pack("<I", 4008) + bytes(4008)
FROM_PIPES = {
    **{f"{form:x} {data:x}.wav": wav(form, data) for form, data in PIPES},
    "size of the sound alone.wav": wav(len(made("WAV")) - 8, 0xFFFF_FFFF),
    "float.wav": put(made("WAV", "FLOAT"), made("WAV", "FLOAT").index(b"data") + 4, "<I", 0x7FFF_F000),
    "a.rf64": rf64((2**64 - 1,) * 3),
    "a.w64": w64(2**63 - 1, 2**63 - 1),
    "a.aiff": aiff(0x7FFF_F02E, 0x7FFF_F000 // 4, 0x7FFF_F008),
    "max.aiff": aiff(0x7FFF_FFFF, 0x7FFF_FFFF, 0x7FFF_FFFF),
    "a.au": au(0xFFFF_FFFF),
    "max.au": au(0x7FFF_FFFF),
    "a.caf": caf(2**64 - 1),
    "a.flac": flac(),
}
CRASHED = {
    "zero.wav": wav(0, 0),
    "36.wav": wav(36, 0),
    "8.wav": wav(8, 0),
    "4088.wav": wav(4088, 0, JUNK + FLLR),
    "stale.wav": wav(36 + 4_000, 4_000),
    "a.rf64": rf64((0, 0, 0)),
    "a.w64": w64(0, 0),
    "zero.aiff": aiff(0, 0, 0),
    "46.aiff": aiff(46, 0, 8),
    "a.au": au(0),
    "a.caf": caf(4),
}


@pytest.mark.parametrize("name", [*FROM_PIPES, *(f"crashed {name}" for name in CRASHED)])
def test_the_sound_is_read_to_its_end(tmp_path, name):
    content = CRASHED[name.removeprefix("crashed ")] if name.startswith("crashed") else FROM_PIPES[name]
    path = tmp_path / name
    path.write_bytes(content)
    expected = SOUND.astype(np.float32)
    told = []
    info = audio.verify(path, report=lambda *progress: told.append(progress))
    assert (info.frames, info.sample_rate, info.channels) == (FRAMES, RATE, 2)
    assert told[-1] == (FRAMES, FRAMES)
    assert told[0][1] == FRAMES  # the bar knows the length from the start
    assert audio.info(path) == info
    assert [note.startswith(UNFINISHED) for note in info.notes] == ([True] if name.startswith("crashed") else [])
    assert np.array_equal(audio.read(path)[0], expected)
    assert np.array_equal(np.concatenate([*audio.blocks(path)], axis=1), expected)
    for start, frames in ((0, 10), (FRAMES // 2, 5_000), (FRAMES - 11, 11), (FRAMES - 5_000, 4_000)):
        assert np.array_equal(audio.read_segment(path, start, frames), expected[:, start : start + frames])
    with pytest.raises(InputError, match=f"has {FRAMES} samples, so 2 from {FRAMES - 1} on"):
        audio.read_segment(path, FRAMES - 1, 2)
    assert path.read_bytes() == content


@pytest.mark.parametrize("extra", [b"", JUNK + FLLR])
@pytest.mark.parametrize(
    "rest",
    [
        b"",
        b"LIST" + struct.pack("<I", 8000) + b"INFO" + bytes(7996),
        b"TAG" + bytes(125),
        b"APETAGEX" + bytes(9_000),
        b"ID3\3\0\0\0\0\0\0" + bytes(9_000),
        bytes(100_000),
        b"\x01padding" * 400,
    ],
)
def test_a_finished_header_is_taken_at_its_word(tmp_path, rest, extra):
    content = made("WAV")
    place = content.index(b"data")
    content[place:place] = extra
    put(content, 4, "<I", len(content) - 8)
    (tmp_path / "a.wav").write_bytes(content + rest)
    assert audio.verify(tmp_path / "a.wav") == audio.AudioInfo(FRAMES, RATE, 2, False)
    assert np.array_equal(audio.read(tmp_path / "a.wav")[0], SOUND.astype(np.float32))


def test_a_sound_of_no_samples_is_still_refused(tmp_path):
    for name, content in {
        "a.wav": wav(36, 0)[:44],
        "b.wav": wav(36 + 16, 0)[:44] + b"LIST" + struct.pack("<I", 8) + b"INFOabcd",
        "a.aiff": aiff(46, 0, 8)[:54],
        "a.au": au(0)[:24],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="holds no sound"):
            audio.verify(tmp_path / name)


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_flac_of_unknown_length_that_is_cut_through_a_frame_is_refused(tmp_path, kept):
    content = flac()
    (tmp_path / "a.flac").write_bytes(content[: int(kept * len(content))])
    for reader in (audio.verify, lambda path: [*audio.blocks(path)]):
        with pytest.raises(InputError, match="damaged or cut short"):
            reader(tmp_path / "a.flac")


def test_a_bw64_has_random_access_and_shows_a_cut(tmp_path):
    sizes = struct.unpack_from("<QQQ", made("RF64"), made("RF64").index(b"ds64") + 8)
    content = rf64(sizes, b"BW64")
    (tmp_path / "a.wav").write_bytes(content)
    assert np.array_equal(
        audio.read_segment(tmp_path / "a.wav", 70_000, 50), SOUND[:, 70_000:70_050].astype(np.float32)
    )
    (tmp_path / "a.wav").write_bytes(content[:-1_000])
    with pytest.raises(InputError, match="damaged or cut short"):
        audio.verify(tmp_path / "a.wav")
