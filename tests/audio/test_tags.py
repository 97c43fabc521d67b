"""Tags and covers: read from every format, written into every format, with the sound unchanged."""

import base64
import errno
import resource
import struct
import subprocess
import sys

import av
import numpy as np
import pytest
import soundfile
from helpers.tagged import (
    COMMENTS,
    COVER,
    INPUTS,
    JPEG,
    OUTPUTS,
    PICTURES,
    PNG,
    RATE,
    SONG,
    block,
    info_list,
    placed,
    plain,
    sound,
    source,
    tone,
    with_comments,
    with_frames,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from mediafile import Image
from mutagen import flac, id3

from twinsep import audio
from twinsep.audio import tags
from twinsep.audio.tags import Tags
from twinsep.config import preset
from twinsep.separation.file import Encoding, separate_file
from twinsep.separation.overlap_add import ChunkGrid
from twinsep.separation.separator import Separator

LEFT_OUT = "tags that are damaged or too large are left out"


def images(*pictures):
    return [Image(data, description, kind) for kind, description, data in pictures]


FULL = Tags({**SONG, "images": images(*PICTURES)})


def contents(found):
    """(fields, pictures) of tags, to compare."""
    fields = dict(found.fields)
    return fields, tuple((image.type.value, image.desc, image.data) for image in fields.pop("images", []))


def tagged(found, extension, folder, content=None):
    """Write ``found`` into a sound file, by default a plain one, and return its path."""
    path = folder / f"out{extension}"
    path.write_bytes(content or plain(extension))
    assert tags.write(found, path) is None
    return path


@pytest.fixture
def no_mediafile(monkeypatch):
    monkeypatch.setitem(sys.modules, "mediafile", None)


# ---------------------------------------------------------------------------- from every format to every other


@pytest.mark.parametrize("name", INPUTS)
def test_every_format_is_read(tmp_path, name):
    _, fields, pictures = INPUTS[name]
    found = tags.read(placed(name, tmp_path))
    assert contents(found) == (fields, pictures)
    assert found.problem is None


@pytest.mark.parametrize("extension", OUTPUTS)
@pytest.mark.parametrize("name", INPUTS)
def test_tags_are_carried_and_the_sound_stays(tmp_path, name, extension):
    found = tags.read(placed(name, tmp_path))
    (tmp_path / f"before{extension}").write_bytes(plain(extension))
    path = tagged(found, extension, tmp_path)
    fields, pictures = contents(tags.read(path))
    assert {name: fields[name] for name in INPUTS[name][1]} == INPUTS[name][1]
    assert pictures == INPUTS[name][2]
    before, after = audio.read(tmp_path / f"before{extension}"), audio.read(path)
    assert after[1] == before[1]
    assert np.array_equal(after[0], before[0])


@pytest.mark.parametrize("extension", OUTPUTS)
def test_ffmpeg_finds_title_artist_and_cover(tmp_path, extension):
    path = tagged(Tags({**SONG, "images": images(COVER)}), extension, tmp_path)
    with av.open(str(path)) as container:
        holder = container.streams.audio[0] if extension == ".ogg" else container
        names = {name.lower(): value for name, value in holder.metadata.items()}
        assert names["title"] == SONG["title"]
        assert names["artist"].split(";")[0] == SONG["artist"][0]
        assert bytes(next(container.demux(container.streams.video[0]))) == PNG


@pytest.mark.parametrize("extension", OUTPUTS)
def test_the_bytes_of_the_sound_stay(tmp_path, extension):
    content = plain(extension)
    path = tagged(FULL, extension, tmp_path)
    out = path.read_bytes()
    if extension == ".mp3":  # includes the frame with the encoder's delay and the length
        assert out.endswith(content)
    elif extension == ".wav":
        assert out[8:].startswith(content[8:])
        assert struct.unpack("<I", out[4:8])[0] == len(out) - 8
    elif extension == ".flac":
        assert out[:42] == content[:42]  # STREAMINFO with length and MD5
        assert out.endswith(content[content.index(b"\xff\xf8") :])
    with path.open("rb") as file:
        assert soundfile.SoundFile(file).frames == 2205


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_wav_stays_whole(tmp_path, subtype, channels):
    content = sound(tmp_path / "a.wav", subtype, channels).read_bytes()  # of an odd size if mono with 24 bits
    path = tagged(FULL, ".wav", tmp_path, content)
    assert np.array_equal(audio.read(path)[0], audio.read(tmp_path / "a.wav")[0])
    assert contents(tags.read(path)) == (SONG, PICTURES)


@pytest.mark.parametrize("extension", OUTPUTS)
def test_equal_tags_make_equal_bytes(tmp_path, extension):
    first = tagged(FULL, extension, tmp_path).read_bytes()
    assert tagged(FULL, extension, tmp_path).read_bytes() == first


@pytest.mark.parametrize("extension", OUTPUTS)
def test_without_tags_nothing_changes(tmp_path, extension):
    path = tmp_path / f"a{extension}"
    path.write_bytes(plain(extension))
    found = tags.read(path)
    assert found == Tags()
    assert tagged(found, extension, tmp_path).read_bytes() == plain(extension)


def test_an_extension_in_capitals_is_known(tmp_path):
    assert contents(tags.read(tagged(FULL, ".FLAC", tmp_path, plain(".flac")))) == (SONG, PICTURES)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)


@pytest.mark.parametrize("extension", OUTPUTS)
@settings(max_examples=25)
@given(title=TEXT, comments=TEXT, lyrics=TEXT, artist=st.lists(TEXT, min_size=1, max_size=3))
def test_any_text_is_kept_to_the_letter(tmp_path_factory, extension, **fields):
    path = tagged(Tags(fields), extension, tmp_path_factory.getbasetemp())
    assert tags.read(path).fields == fields


# ---------------------------------------------------------------------------- fields that are not carried


@pytest.mark.parametrize(
    "name",
    [
        "REPLAYGAIN_TRACK_GAIN",
        "REPLAYGAIN_ALBUM_PEAK",
        "R128_TRACK_GAIN",
        "MP3GAIN_MINMAX",
        "ENCODER",
        "ENCODEDBY",
        "ENCODER_OPTIONS",
        "ACOUSTID_FINGERPRINT",
        "ACOUSTID_ID",
        "MD5",
        "ACCURATERIPRESULT",
        "LENGTH",
        "BITRATE",
        "ITUNSMPB",
        "CUESHEET",
    ],
)
def test_comments_about_the_original_sound_are_dropped(tmp_path, name):
    path = with_comments(sound(tmp_path / "a.flac"), {name: ["1"], "TITLE": ["t"]}, ())
    assert tags.read(path).fields == {"title": "t"}


@pytest.mark.parametrize(
    "frame",
    [
        id3.TENC(text=["e"]),
        id3.TSSE(text=["e"]),
        id3.TLEN(text=["50"]),
        id3.TDEN(text=["2001"]),
        id3.RVA2(desc="track", channel=1, gain=-3, peak=1),
        id3.COMM(lang="eng", desc="iTunNORM", text=[" 00000001" * 10]),
        id3.COMM(lang="eng", desc="iTunSMPB", text=["00000"]),
        id3.TXXX(desc="replaygain_track_gain", text=["-3 dB"]),
        id3.TXXX(desc="Acoustid Fingerprint", text=["AQ"]),
        id3.PRIV(owner="PeakValue", data=b"x"),
    ],
    ids=lambda frame: frame.HashKey,
)
def test_frames_about_the_original_sound_are_dropped(tmp_path, frame):
    path = with_frames(sound(tmp_path / "a.mp3"), [frame, id3.TIT2(text=["t"])])
    assert tags.read(path).fields == {"title": "t"}


def test_a_cue_sheet_is_dropped(tmp_path):
    file = flac.FLAC(with_comments(sound(tmp_path / "a.flac"), {"TITLE": ["t"]}, ()))
    file.cuesheet = flac.CueSheet(None)
    file.cuesheet.tracks.append(flac.CueSheetTrack(170, 0))
    file.save()
    assert flac.FLAC(tagged(tags.read(tmp_path / "a.flac"), ".flac", tmp_path)).cuesheet is None


# ---------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("extension", OUTPUTS)
def test_pictures_with_one_description_are_all_kept(tmp_path, extension):
    pictures = (COVER, (4, "", JPEG), (0, "", JPEG))
    found = tags.read(with_comments(sound(tmp_path / "a.flac"), {}, pictures))
    kept = contents(tags.read(tagged(found, extension, tmp_path)))[1]
    assert sorted((kind, data) for kind, _, data in kept) == sorted((kind, data) for kind, _, data in pictures)


def test_the_cover_of_an_old_ogg_file_is_kept(tmp_path):
    cover = {"COVERART": [base64.b64encode(PNG).decode()], "COVERARTMIME": ["image/png"]}
    assert contents(tags.read(with_comments(sound(tmp_path / "a.ogg"), cover, ()))) == ({}, (COVER,))


@pytest.mark.parametrize("value", ["AAAA", "=", "ż", base64.b64encode(block(COVER).write()[:40]).decode()])
def test_a_damaged_picture_costs_no_text(tmp_path, value):
    found = tags.read(with_comments(sound(tmp_path / "a.ogg"), {"TITLE": ["t"], "METADATA_BLOCK_PICTURE": [value]}, ()))
    assert found == Tags({"title": "t"}, LEFT_OUT)


@pytest.mark.parametrize("data", [b"https://example.org/cover.png", PNG.ljust(16_000_001, b"\1")])
def test_a_picture_that_cannot_be_carried_is_left_out_with_a_note(tmp_path, data):
    path = with_frames(sound(tmp_path / "a.mp3"), [id3.TIT2(text=["t"]), id3.APIC(0, "", 4, "x", data)])
    path = with_frames(path, [id3.APIC(0, "", *COVER)])
    found = tags.read(path)
    assert contents(found) == ({"title": "t"}, (COVER,))
    assert found.problem == LEFT_OUT


# ---------------------------------------------------------------------------- damaged tags, files that take none


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
        assert found.problem in (None, LEFT_OUT)
        assert all(found.fields.values())
        for extension in OUTPUTS:
            tagged(found, extension, tmp_path)


@pytest.mark.parametrize("content", [b"", b"text", b"RIFF", b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f", b"RF64"])
def test_a_file_without_sound_has_no_tags(tmp_path, content):
    (tmp_path / "a.mp3").write_bytes(content)
    assert tags.read(tmp_path / "a.mp3").fields == {}
    assert tags.read(tmp_path / "none.wav") == Tags(problem=LEFT_OUT)


def test_rf64_is_read_and_left_as_it_was(tmp_path):
    path = tmp_path / "a.wav"
    with soundfile.SoundFile(path, "w", RATE, 2, "PCM_16", format="RF64") as file:
        file.title = "t"
        file.write(tone().T)
    assert tags.read(path) == Tags({"title": "t"})
    content = path.read_bytes()
    assert content.startswith(b"RF64")
    assert tags.write(FULL, path) == "its tags are left out because the file format cannot hold them"
    assert path.read_bytes() == content


@pytest.mark.parametrize(("form", "extension"), [("W64", "wav"), ("FLAC", "wav"), ("WAV", "mp3"), ("CAF", "caf")])
def test_untagged_files_of_other_formats_get_no_note(tmp_path, form, extension):
    path = tmp_path / f"a.{extension}"
    soundfile.write(path, tone().T, RATE, format=form, subtype="PCM_16")
    assert tags.read(path) == Tags()


def test_a_wav_without_room_is_left_as_it_was(tmp_path):
    path = sound(tmp_path / "a.wav")
    size = 2**32 - 1000
    with path.open("r+b") as file:
        file.truncate(size)  # a sparse file
    assert tags.write(FULL, path) == "its tags are left out because a WAV file cannot exceed 4 GiB"
    assert path.stat().st_size == size
    with path.open("rb") as file:
        assert file.read(len(plain(".wav"))) == plain(".wav")


def test_tags_too_large_for_flac_are_left_out(tmp_path):
    path = sound(tmp_path / "a.flac")
    problem = tags.write(Tags({"lyrics": "l" * 2**24}), path)
    assert problem == "its tags are left out because the file format cannot hold them"
    assert path.read_bytes() == plain(".flac")


@pytest.mark.parametrize("extension", OUTPUTS)
@pytest.mark.parametrize("room", [0, 300])
def test_a_full_disk_is_an_os_error(tmp_path, extension, room):
    path = sound(tmp_path / f"a{extension}")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            tags.write(Tags({**SONG, "lyrics": "l" * 100_000}), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG


# ---------------------------------------------------------------------------- without mediafile


@pytest.mark.usefixtures("no_mediafile")
@pytest.mark.parametrize("name", INPUTS)
def test_without_mediafile_a_note_says_what_to_install(tmp_path, name):
    problem = "its tags are left out; to keep them, install mediafile with: pip install 'twinsep[tags]'"
    assert tags.read(placed(name, tmp_path)) == Tags(problem=problem)


@pytest.mark.usefixtures("no_mediafile")
@pytest.mark.parametrize("extension", OUTPUTS)
def test_without_mediafile_an_untagged_song_gets_no_note(tmp_path, extension):
    path = sound(tmp_path / f"a{extension}")
    assert tags.read(path) == Tags()
    assert tags.write(Tags(), path) is None


def test_mediafile_is_imported_only_to_read_tags_and_prints_nothing(tmp_path):
    path = tmp_path / "a.flac"
    path.write_bytes(source("flac")[1][:200])
    code = (
        "import sys, pathlib, twinsep.audio, twinsep.separation.file; from twinsep.audio import tags\n"
        "assert not {'mediafile', 'mutagen'} & set(sys.modules)\n"
        "print(tags.read(pathlib.Path(sys.argv[1])).problem)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == (LEFT_OUT, "")


# ---------------------------------------------------------------------------- separation


def separated(song, folder):
    separator = Separator(lambda mixture: mixture[:, None], preset("tiny"), ChunkGrid(4096))
    return separate_file(song, {"instrumental": folder / "out.flac"}, separator, Encoding())


def test_a_stem_has_the_tags_of_its_song_and_equal_sound_without_them(tmp_path):
    song = with_comments(sound(tmp_path / "a.flac"), COMMENTS, PICTURES)
    outcome = separated(song, tmp_path / "tagged")
    untagged = separated(sound(tmp_path / "b.flac"), tmp_path / "untagged").paths["instrumental"]
    assert outcome.notes == []
    assert contents(tags.read(outcome.paths["instrumental"])) == (SONG, PICTURES)
    assert np.array_equal(audio.read(outcome.paths["instrumental"])[0], audio.read(untagged)[0])


def test_a_song_with_damaged_tags_is_separated_with_a_note(tmp_path):
    song = with_frames(sound(tmp_path / "a.wav"), [id3.TIT2(encoding=3, text=["t"])])
    song.write_bytes(song.read_bytes().replace(b"ID3\x04", b"ID3\x09"))  # a version that does not exist
    outcome = separated(song, tmp_path)
    assert outcome.notes == [LEFT_OUT]
    assert audio.info(outcome.paths["instrumental"]).frames == 2205


@pytest.mark.usefixtures("no_mediafile")
def test_a_song_is_separated_without_mediafile(tmp_path):
    outcome = separated(info_list(sound(tmp_path / "a.wav")), tmp_path)
    assert len(outcome.notes) == 1
    assert audio.info(outcome.paths["instrumental"]).frames == 2205
