"""Pictures that are odd or huge, damaged tags, files and disks that take no tags."""

import base64
import errno
import io
import re

import numpy as np
import pytest
import soundfile
from helpers.tagged import (
    COVER,
    INPUTS,
    JPEG,
    OUTPUTS,
    PICTURES,
    PNG,
    RATE,
    SONG,
    block,
    plain,
    sound,
    source,
    tone,
    with_comments,
    with_frames,
    written,
)
from mutagen import id3

from twinsep import audio
from twinsep.audio import tags
from twinsep.audio.tags import Picture, Tags

# ---------------------------------------------------------------------------- pictures


def test_what_a_picture_is_shows_where_nothing_says_it(tmp_path):
    path = sound(tmp_path / "a.mp3")
    odd = [id3.APIC(3, mime, 200, mime, data) for mime, data in (("JPG", JPEG), ("", PNG), ("?", b"?"), ("-->", b"u"))]
    with_frames(path, odd)
    found = [(picture.mime, picture.kind) for picture in tags.read(path).pictures]
    assert found == [("image/jpeg", 0), ("image/png", 0), ("application/octet-stream", 0), ("-->", 0)]


def test_the_cover_of_old_ogg_files(tmp_path):
    cover = {"coverart": [base64.b64encode(PNG).decode()], "coverartmime": ["image/png"]}
    assert tags.read(with_comments(sound(tmp_path / "a.ogg"), cover, ())) == Tags(pictures=(COVER,))


@pytest.mark.parametrize("value", ["AAAA", "=", "ż", base64.b64encode(block(COVER).write()[:40]).decode()])
def test_a_damaged_picture_costs_no_text(tmp_path, value):
    comments = {"title": ["t"], "metadata_block_picture": [value]}
    found = tags.read(with_comments(sound(tmp_path / "a.ogg"), comments, (COVER,)))
    assert found == Tags({"title": ("t",)}, (COVER,), "a damaged picture is left out")


def test_more_than_there_is_room_for_is_left_out_and_told(monkeypatch, tmp_path):
    monkeypatch.setattr(tags, "_PICTURE_LIMIT", len(PNG) + 10)
    monkeypatch.setattr(tags, "_TEXT_LIMIT", 100)
    path = with_comments(sound(tmp_path / "a.flac"), {"lyrics": ["l" * 95], "title": ["t"]}, (*PICTURES[1:], COVER))
    problem = "text beyond 4 MB is left out; pictures beyond 16 MB are left out"
    assert tags.read(path) == Tags({"title": ("t",)}, (COVER,), problem)


def test_the_largest_picture_that_is_read_fits_into_flac(tmp_path):
    picture = Picture("image/png", 3, "ż" * 100, PNG.ljust(tags._PICTURE_LIMIT - 200, b"\1"))
    path, problem = written(Tags({"lyrics": ("l" * 3_999_000,)}, (picture,)), plain(".flac"), ".flac", tmp_path)
    assert problem is None
    assert tags.read(path) == Tags({"lyrics": ("l" * 3_999_000,)}, (picture,))
    assert audio.info(path).frames == 2205


# ---------------------------------------------------------------------------- damage


@pytest.mark.parametrize("name", [name for name in INPUTS if name not in ("mp3 v1", "aiff chunks")])
def test_damaged_tags_never_raise_and_can_be_written(tmp_path, name):
    file, content = source(name)
    rng = np.random.default_rng(0)
    path = tmp_path / file
    for _ in range(10):
        broken = bytearray(content)
        for position in rng.integers(len(content), size=12):
            broken[position] = rng.integers(256)
        path.write_bytes(bytes(broken[: rng.integers(len(content))] if rng.integers(2) else broken))
        found = tags.read(path)
        assert found.problem is None or re.fullmatch(r"[\w ;]+", found.problem)
        assert all(values and all(values) for values in found.fields.values())
        for extension in OUTPUTS:
            assert written(found, plain(extension), extension, tmp_path)[1] is None


def test_damage_is_told(tmp_path):
    _, content = source("flac")
    (tmp_path / "a.flac").write_bytes(content[:200])
    assert tags.read(tmp_path / "a.flac") == Tags(problem="its tags are damaged and left out")


@pytest.mark.parametrize("content", [b"", b"text", b"RIFF", b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f"])
def test_no_sound_file_at_all(tmp_path, content):
    (tmp_path / "a.mp3").write_bytes(content)
    assert tags.read(tmp_path / "a.mp3").fields == {}
    assert tags.read(tmp_path).problem
    assert tags.read(tmp_path / "none.wav").problem


# ---------------------------------------------------------------------------- files that take no tags


def test_rf64_is_read_and_left_as_it_was(tmp_path):
    with soundfile.SoundFile(tmp_path / "a.wav", "w", RATE, 2, "PCM_16", format="RF64") as file:
        file.title = "t"
        file.write(tone().T)
    assert tags.read(tmp_path / "a.wav") == Tags({"title": ("t",)})
    content = (tmp_path / "a.wav").read_bytes()
    assert content.startswith(b"RF64")
    path, problem = written(Tags(SONG), content, ".wav", tmp_path)
    assert problem == "its tags are left out, for only a plain WAV takes them"
    assert path.read_bytes() == content


def test_a_wav_without_room_is_left_as_it_was(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(plain(".wav"))
    size = 2**32 - 1000
    with path.open("r+b", buffering=0) as file:
        file.truncate(size)  # a sparse file
        assert tags.write(Tags(SONG, PICTURES), file, ".wav") == "its tags are left out, for WAV ends at 4 GiB"
        file.seek(0)
        assert file.read(len(plain(".wav"))) == plain(".wav")
    assert path.stat().st_size == size


class FullDisk(io.FileIO):
    """Takes no more than ``room`` further bytes, and 1,000 at once."""

    room = 0

    def write(self, data):
        taken = min(len(data), self.room, 1000)
        if taken == 0 and len(data):
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= taken
        return super().write(bytes(data)[:taken])


@pytest.mark.parametrize("extension", OUTPUTS)
@pytest.mark.parametrize("room", [0, 1500])
def test_a_full_disk_is_an_os_error(tmp_path, extension, room):
    path = tmp_path / f"a{extension}"
    path.write_bytes(plain(extension))
    with FullDisk(path, "r+b") as file:
        file.room = room
        with pytest.raises(OSError, match="No space left") as caught:
            tags.write(Tags(SONG, PICTURES), file, extension)
        assert caught.value.errno == errno.ENOSPC


class BrokenDisk(io.FileIO):
    def readinto(self, _):
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("extension", OUTPUTS)
def test_a_broken_disk_is_an_os_error(tmp_path, extension):
    (tmp_path / "a").write_bytes(plain(extension))
    with BrokenDisk(tmp_path / "a", "r+b") as file, pytest.raises(OSError, match="Input/output error"):
        tags.write(Tags(SONG), file, extension)


@pytest.mark.parametrize("extension", OUTPUTS)
def test_a_file_that_takes_its_bytes_in_parts_gets_all(tmp_path, extension):
    expected = written(Tags(SONG, PICTURES), plain(extension), extension, tmp_path)[0].read_bytes()
    path = tmp_path / f"a{extension}"
    path.write_bytes(plain(extension))
    with FullDisk(path, "r+b") as file:
        file.room = 10**6
        assert tags.write(Tags(SONG, PICTURES), file, extension) is None
        assert not file.closed
    assert path.read_bytes() == expected
