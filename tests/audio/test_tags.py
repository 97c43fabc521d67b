"""Tags and covers: from every format read into every format written, to the letter, and the sound untouched."""

import io
import struct

import av
import numpy as np
import pytest
import soundfile
from helpers.tagged import (
    COVER,
    INPUTS,
    OUTPUTS,
    PICTURES,
    PNG,
    SONG,
    oldest_tag,
    placed,
    plain,
    sound,
    sound_by_av,
    with_atoms,
    with_comments,
    with_frames,
    written,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from mutagen import flac, id3, mp4

from twinsep import audio
from twinsep.audio import tags
from twinsep.audio.tags import Tags

# ---------------------------------------------------------------------------- from every format to every other


@pytest.mark.parametrize("name", INPUTS)
def test_reads(tmp_path, name):
    _, fields, pictures = INPUTS[name]
    assert tags.read(placed(name, tmp_path)) == Tags(fields, pictures)


@pytest.mark.parametrize("extension", OUTPUTS)
@pytest.mark.parametrize("name", INPUTS)
def test_carries_all_and_leaves_the_sound(tmp_path, name, extension):
    found = tags.read(placed(name, tmp_path))
    (tmp_path / f"before{extension}").write_bytes(plain(extension))
    path, problem = written(found, plain(extension), extension, tmp_path)
    assert problem is None
    assert tags.read(path) == found
    before, after = audio.read(tmp_path / f"before{extension}"), audio.read(path)
    assert after[1] == before[1]
    assert np.array_equal(after[0], before[0])


@pytest.mark.parametrize("extension", OUTPUTS)
def test_ffmpeg_finds_title_and_cover(tmp_path, extension):
    path, _ = written(Tags(SONG, (COVER,)), plain(extension), extension, tmp_path)
    with av.open(str(path)) as container:
        holder = container.streams.audio[0] if extension == ".ogg" else container
        names = {name.lower(): value for name, value in holder.metadata.items()}
        assert names["title"] == SONG["title"][0]
        assert names["artist"].split(";")[0] == SONG["artist"][0]
        assert bytes(next(container.demux(container.streams.video[0]))) == PNG


@pytest.mark.parametrize("extension", OUTPUTS)
def test_the_bytes_of_the_sound_stay(tmp_path, extension):
    content = plain(extension)
    path, _ = written(Tags(SONG, PICTURES), content, extension, tmp_path)
    out = path.read_bytes()
    if extension == ".mp3":  # the frame with the encoder's delay and the length included
        assert out.endswith(content)
    elif extension == ".wav":
        assert out[8:].startswith(content[8:])
        assert struct.unpack("<I", out[4:8])[0] == len(out) - 8
    elif extension == ".flac":
        assert out[:42] == content[:42]  # STREAMINFO with length and MD5
        frames_of_sound = content.index(b"\xff\xf8")
        assert out.endswith(content[frames_of_sound:])
    with path.open("rb") as file:
        assert soundfile.SoundFile(file).frames == 2205


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_wav_stays_whole(tmp_path, subtype, channels):
    content = sound(tmp_path / "a.wav", subtype, channels).read_bytes()  # of an odd size: mono of 24 bits
    path, _ = written(Tags(SONG, PICTURES), content, ".wav", tmp_path)
    assert np.array_equal(audio.read(path)[0], audio.read(tmp_path / "a.wav")[0])
    assert tags.read(path) == Tags(SONG, PICTURES)


@pytest.mark.parametrize("extension", OUTPUTS)
def test_same_tags_same_bytes(tmp_path, extension):
    first = written(Tags(SONG, PICTURES), plain(extension), extension, tmp_path)[0].read_bytes()
    assert written(Tags(SONG, PICTURES), plain(extension), extension, tmp_path)[0].read_bytes() == first


@pytest.mark.parametrize("extension", OUTPUTS)
def test_no_tags_no_change(tmp_path, extension):
    (tmp_path / f"a{extension}").write_bytes(plain(extension))
    assert tags.read(tmp_path / f"a{extension}") == Tags()
    path, problem = written(Tags(), plain(extension), extension, tmp_path)
    assert problem is None
    assert path.read_bytes() == plain(extension)


def test_buffered_files_and_upper_case_are_taken(tmp_path):
    file = io.BytesIO(plain(".flac"))
    tags.write(Tags(SONG), file, ".FLAC")
    assert file.tell() == len(file.getvalue())
    (tmp_path / "a.flac").write_bytes(file.getvalue())
    assert tags.read(tmp_path / "a.flac").fields == SONG


# ---------------------------------------------------------------------------- to the letter

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
NAMES = st.sampled_from([*SONG, "url", "website", "license", "producer", "performer", "comment:mood", "originaldate"])
FIELDS = st.dictionaries(
    NAMES | st.from_regex(r"x[ -<>-@\[-}]{0,9}", fullmatch=True),
    st.lists(TEXT, min_size=1, max_size=3, unique=True),
    max_size=6,
)


def test_names_that_differ_stay_apart(tmp_path):
    fields = {"comment": ("a",), "comment:": ("b",), "comment:\nc": ("c",)}
    path, _ = written(Tags(fields), plain(".mp3"), ".mp3", tmp_path)
    assert tags.read(path).fields == fields


@pytest.mark.parametrize("extension", OUTPUTS)
@settings(max_examples=25)
@given(fields=FIELDS)
def test_any_text_comes_back(tmp_path_factory, extension, fields):
    given_fields = {name: tuple(values) for name, values in fields.items()}
    for name in ("tracknumber", "discnumber"):  # ID3 has number and total in one text
        if any("/" in value for value in given_fields.get(name, ())):
            del given_fields[name]
    path, _ = written(Tags(given_fields), plain(extension), extension, tmp_path_factory.getbasetemp())
    expected = {name: values for name, values in given_fields.items() if not tags._UNTRUE.search(name)}
    assert tags.read(path).fields == expected


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("date", ("May 2001",)),
        ("date", ("2001-05-03T10:20:30+02:00",)),
        ("date", ("2001-05-03T10:20:30", "1999")),
        ("genre", ("17",)),
        ("genre", ("(4)Disco", "((odd")),
        ("lyrics", ("first", "second")),
        ("musicbrainz_trackid", ("a", "ż")),
        ("website", ("https://ż.pl", "https://b")),
        ("tracktotal", ("12",)),
        ("tracknumber", ("1", "2")),
        ("bpm", ("about 120",)),
        ("compilation", ("yes",)),
        ("producer", ("P", "Q")),
        ("performer", ("P (guitar)",)),
    ],
)
def test_what_an_id3_frame_would_change_survives(tmp_path, name, values):
    path, _ = written(Tags({name: values}), plain(".mp3"), ".mp3", tmp_path)
    assert tags.read(path).fields == {name: values}


def test_numbers_and_people_stand_where_players_look(tmp_path):
    fields = {"tracknumber": ("03",), "tracktotal": ("12",), "mixer": ("M",), "producer": ("P",)}
    path, _ = written(Tags(fields), plain(".mp3"), ".mp3", tmp_path)
    frames = id3.ID3(path)
    assert set(frames) == {"TRCK", "TIPL"}
    assert frames["TRCK"].text == ["03/12"]
    assert frames["TIPL"].people == [["mix", "M"], ["producer", "P"]]


@pytest.mark.parametrize(
    ("added", "fields"),
    [
        ([id3.TYER(text=["c. 1975"])], {"date": ("c. 1975",)}),
        (
            [id3.TYER(text=["1975"]), id3.TDAT(text=["0405"]), id3.TIME(text=["1030"])],
            {"date": ("1975-05-04T10:30:00",)},
        ),
        ([type("TDRC", (id3.TextFrame,), {})(encoding=0, text=["May 2001"])], {"date": ("May 2001",)}),
        ([id3.TORY(text=["1960?"])], {"originaldate": ("1960?",)}),
        ([id3.IPLS(people=[["mix", "M"], ["guitar", "G"]])], {"mixer": ("M",), "performer": ("G (guitar)",)}),
        (
            [id3.TPE1(text=["A"]), id3.TXXX(desc="artist", text=["A"]), id3.TXXX(desc="ARTIST", text=["B"])],
            {"artist": ("A", "B")},
        ),
        ([id3.COMM(lang="eng", desc="Mood", text=["m"])], {"comment:mood": ("m",)}),
        ([id3.USLT(lang="eng", text="a"), id3.USLT(lang="deu", text="b")], {"lyrics": ("b", "a")}),
        (
            [id3.WXXX(url="https://a"), id3.WXXX(desc="D", url="https://b")],
            {"url": ("https://a",), "url:d": ("https://b",)},
        ),
        ([id3.TXXX(desc="", text=["a"]), id3.TXXX(desc="E", text=[""])], {"text": ("a",)}),
        ([id3.UFID(owner="other", data=b"x"), id3.POPM(email="e", rating=9)], {}),
    ],
)
def test_frames_of_old_and_odd_taggers(tmp_path, added, fields):
    path = with_frames(sound(tmp_path / "a.mp3"), [])
    tag = id3.ID3()
    for frame in added:
        tag.add(frame)
    tag.save(path, v2_version=3)
    assert tags.read(path).fields == fields


def test_an_id3v1_comment_does_not_repeat_the_longer_one(tmp_path):
    path = oldest_tag(sound(tmp_path / "a.mp3"))
    with_frames(path, [id3.COMM(lang="eng", text=["one\ntwo and more"])])
    found = tags.read(path).fields
    assert found["comment"] == ("one\ntwo and more",)
    assert found["title"] == ("Tïtle",)


def test_names_that_vorbis_lacks_are_written_without_their_letters(tmp_path):
    path, _ = written(Tags({"tonałość=~": ("a",)}), plain(".ogg"), ".ogg", tmp_path)
    assert tags.read(path).fields == {"tona_o____": ("a",)}


def test_empty_values_are_dropped_and_nul_separates(tmp_path):
    comments = {"artist": ["", "A", "B\0C", "A"], "album": [""], "title": [" "]}
    path = with_comments(sound(tmp_path / "a.flac"), comments, ())
    assert tags.read(path).fields == {"artist": ("A", "B", "C"), "title": (" ",)}


# ---------------------------------------------------------------------------- what is not true of a stem


@pytest.mark.parametrize(
    "name",
    [
        "REPLAYGAIN_TRACK_GAIN",
        "REPLAYGAIN_ALBUM_PEAK",
        "R128_TRACK_GAIN",
        "MP3GAIN_MINMAX",
        "DYNAMIC RANGE",
        "ENCODER",
        "ENCODED-BY",
        "ENCODEDBY",
        "ENCODERSETTINGS",
        "ENCODER_OPTIONS",
        "ACOUSTID_FINGERPRINT",
        "ACOUSTID_ID",
        "MUSICIP_PUID",
        "MD5",
        "AUDIOMD5",
        "CRC",
        "CRC32",
        "ACCURATERIPRESULT",
        "LENGTH",
        "ITUNSMPB",
        "ITUNNORM",
        "CUESHEET",
    ],
)
def test_fields_of_the_old_sound_are_left(tmp_path, name):
    path = with_comments(sound(tmp_path / "a.flac"), {name: ["x"], "TITLE": ["t"]}, ())
    assert tags.read(path).fields == {"title": ("t",)}


@pytest.mark.parametrize(
    "frame",
    [
        id3.TENC(text=["e"]),
        id3.TSSE(text=["e"]),
        id3.TLEN(text=["50"]),
        id3.TFLT(text=["MPG/3"]),
        id3.TDEN(text=["2001"]),
        id3.RVA2(desc="track", channel=1, gain=-3, peak=1),
        id3.COMM(lang="eng", desc="iTunNORM", text=["00000"]),
        id3.COMM(lang="eng", desc="iTunSMPB", text=["00000"]),
        id3.TXXX(desc="replaygain_track_gain", text=["-3 dB"]),
        id3.TXXX(desc="Acoustid Fingerprint", text=["AQ"]),
        id3.PRIV(owner="PeakValue", data=b"x"),
    ],
    ids=lambda frame: frame.HashKey,
)
def test_frames_of_the_old_sound_are_left(tmp_path, frame):
    path = with_frames(sound(tmp_path / "a.mp3"), [frame, id3.TIT2(text=["t"])])
    assert tags.read(path).fields == {"title": ("t",)}


def test_atoms_of_the_old_sound_are_left(tmp_path):
    freeform = {
        f"----:com.apple.iTunes:{name}": [b"x"]
        for name in ("iTunSMPB", "iTunNORM", "Encoding Params", "tool", "cdec", "replaygain_track_gain")
    }
    binary = {"----:com.apple.iTunes:blob": [mp4.MP4FreeForm(b"\xff\xfe\xfd", mp4.AtomDataType.UTF8)]}
    unset = {"cpil": False, "tmpo": [0], "trkn": [(0, 0)]}
    path = with_atoms(sound_by_av(tmp_path / "a.m4a", "aac"), freeform | binary | unset | {"\xa9too": ["e"]}, ())
    assert tags.read(path) == Tags()


def test_a_cue_sheet_is_left(tmp_path):
    file = flac.FLAC(sound(tmp_path / "a.flac"))
    file.add_tags() if file.tags is None else None
    file.tags.append(("TITLE", "t"))
    file.cuesheet = flac.CueSheet(None)
    file.cuesheet.tracks.append(flac.CueSheetTrack(170, 0))
    file.save()
    assert flac.FLAC(tmp_path / "a.flac").cuesheet
    assert tags.read(tmp_path / "a.flac") == Tags({"title": ("t",)})
