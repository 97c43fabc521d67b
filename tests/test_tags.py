"""Tags and covers: from every format read into every format written, to the letter, and the sound untouched."""

import base64
import errno
import io
import re
import struct

import av
import mutagen
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from mutagen import flac, id3, mp4

from twinsep import audio, tags
from twinsep.tags import Picture, Tags

RATE = 44_100
OUTPUTS = (".wav", ".flac", ".mp3", ".ogg")
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
    "0000000d49444154789c6360000002000001e221bc330000000049454e44ae426082"
)
JPEG = b"\xff\xd8\xff\xe0" + bytes(range(256)) + b"\xff\xd9"
COVER = Picture("image/png", 3, "", PNG)
PICTURES = (COVER, Picture("image/jpeg", 4, "tył płyty", JPEG), Picture("image/jpeg", 0, "", JPEG))
SONG = {
    "title": ("Zażółć 日本",),
    "artist": ("AC/DC", "אבג"),
    "albumartist": ("Various",),
    "album": ("A; B",),
    "tracknumber": ("03",),
    "tracktotal": ("12",),
    "discnumber": ("1",),
    "date": ("2001-05-03",),
    "genre": ("Rock", "80s"),
    "composer": ("C", "D"),
    "comment": ("one\ntwo",),
    "lyrics": ("la\r\nla\n\nlá",),
    "copyright": ("© 2001",),
    "isrc": ("PLA010100001",),
    "bpm": ("120",),
    "language": ("pol",),
    "compilation": ("1",),
    "label": ("Ł",),
    "musicbrainz_albumid": ("0e1b2c3d",),
    "musicbrainz_trackid": ("4e5f6a7b",),
    "my own: field": ("x=y", "z"),
}
# The same in v2.4's frames and in MP4's atoms, by other hands than the module's tables.
FRAMES = {
    "TIT2": ["Zażółć 日本"],
    "TPE1": ["AC/DC", "אבג"],
    "TPE2": ["Various"],
    "TALB": ["A; B"],
    "TRCK": ["03/12"],
    "TPOS": ["1"],
    "TDRC": ["2001-05-03"],
    "TCON": ["Rock", "80s"],
    "TCOM": ["C", "D"],
    "TCOP": ["© 2001"],
    "TSRC": ["PLA010100001"],
    "TBPM": ["120"],
    "TLAN": ["pol"],
    "TCMP": ["1"],
    "TPUB": ["Ł"],
}
ATOMS = {
    "\xa9nam": ["Zażółć 日本"],
    "\xa9ART": ["AC/DC", "אבג"],
    "aART": ["Various"],
    "\xa9alb": ["A; B"],
    "trkn": [(3, 12)],
    "disk": [(1, 0)],
    "\xa9day": ["2001-05-03"],
    "\xa9gen": ["Rock", "80s"],
    "\xa9wrt": ["C", "D"],
    "\xa9cmt": ["one\ntwo"],
    "\xa9lyr": ["la\r\nla\n\nlá"],
    "cprt": ["© 2001"],
    "tmpo": [120],
    "cpil": True,
    "----:com.apple.iTunes:ISRC": [b"PLA010100001"],
    "----:com.apple.iTunes:LANGUAGE": [b"pol"],
    "----:com.apple.iTunes:LABEL": ["Ł".encode()],
    "----:com.apple.iTunes:MusicBrainz Album Id": [b"0e1b2c3d"],
    "----:com.apple.iTunes:MusicBrainz Track Id": [b"4e5f6a7b"],
    "----:com.apple.iTunes:my own: field": [b"x=y", b"z"],
}
MP4_SONG = SONG | {"tracknumber": ("3",)}
SHORT = {
    "title": ("Tïtle",),
    "artist": ("A",),
    "album": ("Alb",),
    "date": ("2001",),
    "tracknumber": ("3",),
    "genre": ("Rock",),
    "comment": ("one\ntwo",),
}


def tone(frames=2205, channels=2):
    phase = 2 * np.pi * 440 * np.arange(frames) / RATE
    return np.stack([0.3 * np.sin(phase + channel) for channel in range(channels)]).astype(np.float32)


def sound(path, subtype=None, channels=2):
    audio.write(path, tone(channels=channels), RATE, subtype=subtype)
    return path


def sound_by_av(path, codec, rate=48_000, metadata=(), cover=b"", **options):
    with av.open(str(path), "w", options=options) as container:
        container.metadata.update(metadata)
        stream = container.add_stream(codec, rate=rate, layout="stereo")
        if cover:
            container.add_attachment("cover.png", "image/png", cover)
        for start in range(0, 1920, 960):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1920), np.int16), format="s16", layout="stereo")
            frame.sample_rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def frames(song_frames=FRAMES):
    made = [getattr(id3, name)(encoding=3, text=list(text)) for name, text in song_frames.items()]
    made += [id3.APIC(3, picture.mime, picture.kind, picture.description, picture.data) for picture in PICTURES[:2]]
    return [
        *made,
        id3.COMM(encoding=3, lang="pol", desc="", text=["one\ntwo"]),
        id3.USLT(encoding=3, lang="pol", desc="", text="la\r\nla\n\nlá"),
        id3.UFID(owner="http://musicbrainz.org", data=b"4e5f6a7b"),
        id3.TXXX(encoding=3, desc="MusicBrainz Album Id", text=["0e1b2c3d"]),
        id3.TXXX(encoding=3, desc="My Own: Field", text=["x=y", "z"]),
    ]


def with_frames(path, added=None, version=4, **options):
    file = mutagen.File(path)
    if file.tags is None:
        file.add_tags()
    for frame in frames() if added is None else added:
        file.tags.add(frame)
    if version == 3:
        file.tags.update_to_v23()
    file.save(v2_version=version, **options)
    return path


def block(picture):
    made = flac.Picture()
    made.mime, made.type, made.desc, made.data = picture.mime, picture.kind, picture.description, picture.data
    return made


def with_comments(path, comments=SONG, pictures=PICTURES):
    file = mutagen.File(path)
    if file.tags is None:
        file.add_tags()
    for name, values in comments.items():
        file.tags.extend((name.upper(), value) for value in values)
    for picture in pictures:
        if path.suffix == ".flac":
            file.add_picture(block(picture))
        else:
            encoded = base64.b64encode(block(picture).write()).decode()
            file.tags.append(("METADATA_BLOCK_PICTURE", encoded))
    file.save()
    return path


def with_atoms(path, atoms=ATOMS, covers=(PNG, JPEG)):
    file = mp4.MP4(path)
    file.tags.update(atoms)
    kinds = {PNG: mp4.MP4Cover.FORMAT_PNG, JPEG: mp4.MP4Cover.FORMAT_JPEG}
    file.tags["covr"] = [mp4.MP4Cover(cover, kinds[cover]) for cover in covers]
    file.save()
    return path


def old_tag(path):
    """An ID3v2.2 tag by hand: names of three letters, UTF-16 and Latin-1."""

    def frame(name, content):
        return name + len(content).to_bytes(3, "big") + content

    body = frame(b"TT2", b"\x01" + "Zażółć 日本".encode("utf-16")) + frame(b"TP1", b"\x00A/B\x00")
    body += frame(b"TRK", b"\x003/12") + frame(b"TYE", b"\x002001") + frame(b"TCO", b"\x00(17)")
    body += frame(b"COM", b"\x00eng\x00one\ntwo") + frame(b"PIC", b"\x00PNG\x03\x00" + PNG)
    size = bytes(len(body) >> shift & 127 for shift in (21, 14, 7, 0))
    path.write_bytes(b"ID3\x02\x00\x00" + size + body + path.read_bytes())
    return path


def oldest_tag(path):
    fields = [text.encode("latin-1").ljust(30, b"\0") for text in ("Tïtle", "A", "Alb")]
    tail = b"2001" + b"one\ntwo".ljust(28, b"\0") + b"\0\x03" + bytes([17])
    path.write_bytes(path.read_bytes() + b"TAG" + b"".join(fields) + tail)
    return path


def info_list(path, encoding="utf-8"):
    texts = {b"INAM": "Tïtle", b"IART": "A", b"IPRD": "Alb", b"ICRD": "2001", b"ITRK": "3", b"IGNR": "Rock"}
    texts |= {b"ICMT": "one\ntwo", b"ISFT": "encoder"}
    body = b"INFO"
    for name, text in texts.items():
        value = text.encode(encoding) + b"\0"
        body += name + struct.pack("<I", len(value)) + value + bytes(len(value) % 2)
    content = path.read_bytes() + b"LIST" + struct.pack("<I", len(body)) + body
    path.write_bytes(content[:4] + struct.pack("<I", len(content) - 8) + content[8:])
    return path


def aiff(path):
    soundfile.write(path, tone().T, RATE)
    return path


def text_chunks(path):
    with soundfile.SoundFile(path, "w", RATE, 2) as file:
        file.title, file.artist, file.comment = "Tïtle", "A", "one\ntwo"
        file.write(tone().T)
    return path


MKV = {
    "title": "Zażółć 日本",
    "ARTIST": "A",
    "album_artist": "B",
    "track": "3/12",
    "MY_OWN": "x=y",
    "encoder": "e",
}
V23_SONG = SONG | {"artist": ("AC/DC/אבג",), "genre": ("Rock/80s",), "composer": ("C/D",), "my own: field": ("x=y/z",)}
#: input -> (its maker, the fields to expect, the pictures to expect)
INPUTS = {
    "flac": (lambda folder: with_comments(sound(folder / "a.flac")), SONG, PICTURES),
    "vorbis": (lambda folder: with_comments(sound(folder / "a.ogg")), SONG, PICTURES),
    "opus": (lambda folder: with_comments(sound_by_av(folder / "a.opus", "libopus")), SONG, PICTURES),
    "mp3 v2.4": (lambda folder: with_frames(sound(folder / "a.mp3")), SONG, PICTURES[:2]),
    "mp3 v2.3": (lambda folder: with_frames(sound(folder / "a.mp3"), version=3), V23_SONG, PICTURES[:2]),
    "mp3 v2.2": (
        lambda folder: old_tag(sound(folder / "a.mp3")),
        {key: SONG[key] for key in ("title", "tracktotal", "comment")}
        | {"artist": ("A/B",), "tracknumber": ("3",), "date": ("2001",), "genre": ("Rock",)},
        (COVER,),
    ),
    "mp3 v1": (lambda folder: oldest_tag(sound(folder / "a.mp3")), SHORT, ()),
    "m4a": (
        lambda folder: with_atoms(sound_by_av(folder / "a.m4a", "aac")),
        MP4_SONG,
        (COVER, Picture("image/jpeg", 3, "", JPEG)),
    ),
    "mp4 of ffmpeg's keys": (
        lambda folder: sound_by_av(
            folder / "a.mp4", "aac", metadata={"title": "T", "MusicBrainz Album Id": "x"}, movflags="use_metadata_tags"
        ),
        {"title": ("T",), "musicbrainz_albumid": ("x",)},
        (),
    ),
    "mkv": (
        lambda folder: sound_by_av(folder / "a.mkv", "flac", metadata=MKV, cover=PNG),
        {key: SONG[key] for key in ("title", "tracktotal")}
        | {"tracknumber": ("3",), "artist": ("A",), "albumartist": ("B",), "my_own": ("x=y",)},
        (COVER,),
    ),
    "wav": (lambda folder: with_frames(sound(folder / "a.wav")), SONG, PICTURES[:2]),
    "wav info": (lambda folder: info_list(sound(folder / "a.wav")), SHORT, ()),
    "wav info of windows": (lambda folder: info_list(sound(folder / "a.wav"), "cp1252"), SHORT, ()),
    "wav both": (
        lambda folder: info_list(with_frames(sound(folder / "a.wav"), [id3.TIT2(text=["long"]), id3.TPE2(text=["B"])])),
        SHORT | {"title": ("long",), "albumartist": ("B",)},
        (),
    ),
    "aiff": (lambda folder: with_frames(aiff(folder / "a.aiff")), SONG, PICTURES[:2]),
    "aiff chunks": (
        lambda folder: text_chunks(folder / "a.aiff"),
        {key: SHORT[key] for key in ("title", "artist", "comment")},
        (),
    ),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Each kind of input, made when first asked for."""
    made = {}

    def source(name):
        if name not in made:
            made[name] = INPUTS[name][0](tmp_path_factory.mktemp("source"))
        return made[name]

    return source


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The bytes of an untagged sound of each output format."""
    folder = tmp_path_factory.mktemp("plain")
    return {extension: sound(folder / f"a{extension}").read_bytes() for extension in OUTPUTS}


def written(found, content, extension, folder):
    path = folder / f"out{extension}"
    path.write_bytes(content)
    with path.open("r+b", buffering=0) as file:
        problem = tags.write(found, file, extension)
    return path, problem


# ---------------------------------------------------------------------------- from every format to every other


@pytest.mark.parametrize("name", INPUTS)
def test_reads(sources, name):
    _, fields, pictures = INPUTS[name]
    assert tags.read(sources(name)) == Tags(fields, pictures)


@pytest.mark.parametrize("extension", OUTPUTS)
@pytest.mark.parametrize("name", INPUTS)
def test_carries_all_and_leaves_the_sound(sources, plain, tmp_path, name, extension):
    found = tags.read(sources(name))
    (tmp_path / f"before{extension}").write_bytes(plain[extension])
    path, problem = written(found, plain[extension], extension, tmp_path)
    assert problem is None
    assert tags.read(path) == found
    before, after = audio.read(tmp_path / f"before{extension}"), audio.read(path)
    assert after[1] == before[1]
    assert np.array_equal(after[0], before[0])


@pytest.mark.parametrize("extension", OUTPUTS)
def test_ffmpeg_finds_title_and_cover(plain, tmp_path, extension):
    path, _ = written(Tags(SONG, (COVER,)), plain[extension], extension, tmp_path)
    with av.open(str(path)) as container:
        holder = container.streams.audio[0] if extension == ".ogg" else container
        names = {name.lower(): value for name, value in holder.metadata.items()}
        assert names["title"] == SONG["title"][0]
        assert names["artist"].split(";")[0] == SONG["artist"][0]
        assert bytes(next(container.demux(container.streams.video[0]))) == PNG


@pytest.mark.parametrize("extension", OUTPUTS)
def test_the_bytes_of_the_sound_stay(plain, tmp_path, extension):
    content = plain[extension]
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
def test_same_tags_same_bytes(plain, tmp_path, extension):
    first = written(Tags(SONG, PICTURES), plain[extension], extension, tmp_path)[0].read_bytes()
    assert written(Tags(SONG, PICTURES), plain[extension], extension, tmp_path)[0].read_bytes() == first


@pytest.mark.parametrize("extension", OUTPUTS)
def test_no_tags_no_change(plain, tmp_path, extension):
    (tmp_path / f"a{extension}").write_bytes(plain[extension])
    assert tags.read(tmp_path / f"a{extension}") == Tags()
    path, problem = written(Tags(), plain[extension], extension, tmp_path)
    assert problem is None
    assert path.read_bytes() == plain[extension]


def test_buffered_files_and_upper_case_are_taken(plain, tmp_path):
    file = io.BytesIO(plain[".flac"])
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


def test_names_that_differ_stay_apart(plain, tmp_path):
    fields = {"comment": ("a",), "comment:": ("b",), "comment:\nc": ("c",)}
    path, _ = written(Tags(fields), plain[".mp3"], ".mp3", tmp_path)
    assert tags.read(path).fields == fields


@pytest.mark.parametrize("extension", OUTPUTS)
@settings(max_examples=25)
@given(fields=FIELDS)
def test_any_text_comes_back(plain, tmp_path_factory, extension, fields):
    given_fields = {name: tuple(values) for name, values in fields.items()}
    for name in ("tracknumber", "discnumber"):  # ID3 has number and total in one text
        if any("/" in value for value in given_fields.get(name, ())):
            del given_fields[name]
    path, _ = written(Tags(given_fields), plain[extension], extension, tmp_path_factory.getbasetemp())
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
def test_what_an_id3_frame_would_change_survives(plain, tmp_path, name, values):
    path, _ = written(Tags({name: values}), plain[".mp3"], ".mp3", tmp_path)
    assert tags.read(path).fields == {name: values}


def test_numbers_and_people_stand_where_players_look(plain, tmp_path):
    fields = {"tracknumber": ("03",), "tracktotal": ("12",), "mixer": ("M",), "producer": ("P",)}
    path, _ = written(Tags(fields), plain[".mp3"], ".mp3", tmp_path)
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


def test_names_that_vorbis_lacks_are_written_without_their_letters(plain, tmp_path):
    path, _ = written(Tags({"tonałość=~": ("a",)}), plain[".ogg"], ".ogg", tmp_path)
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


def test_the_largest_picture_that_is_read_fits_into_flac(plain, tmp_path):
    picture = Picture("image/png", 3, "ż" * 100, PNG.ljust(tags._PICTURE_LIMIT - 200, b"\1"))
    path, problem = written(Tags({"lyrics": ("l" * 3_999_000,)}, (picture,)), plain[".flac"], ".flac", tmp_path)
    assert problem is None
    assert tags.read(path) == Tags({"lyrics": ("l" * 3_999_000,)}, (picture,))
    assert audio.info(path).frames == 2205


# ---------------------------------------------------------------------------- damage


@pytest.mark.parametrize("name", [name for name in INPUTS if name not in ("mp3 v1", "aiff chunks")])
def test_damaged_tags_never_raise_and_can_be_written(sources, plain, tmp_path, name):
    content = sources(name).read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / sources(name).name
    for _ in range(10):
        broken = bytearray(content)
        for position in rng.integers(len(content), size=12):
            broken[position] = rng.integers(256)
        path.write_bytes(bytes(broken[: rng.integers(len(content))] if rng.integers(2) else broken))
        found = tags.read(path)
        assert found.problem is None or re.fullmatch(r"[\w ;]+", found.problem)
        assert all(values and all(values) for values in found.fields.values())
        for extension, sound_of_it in plain.items():
            assert written(found, sound_of_it, extension, tmp_path)[1] is None


def test_damage_is_told(sources, tmp_path):
    content = sources("flac").read_bytes()
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


def test_a_wav_without_room_is_left_as_it_was(plain, tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(plain[".wav"])
    size = 2**32 - 1000
    with path.open("r+b", buffering=0) as file:
        file.truncate(size)  # a sparse file
        assert tags.write(Tags(SONG, PICTURES), file, ".wav") == "its tags are left out, for WAV ends at 4 GiB"
        file.seek(0)
        assert file.read(len(plain[".wav"])) == plain[".wav"]
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
def test_a_full_disk_is_an_os_error(plain, tmp_path, extension, room):
    path = tmp_path / f"a{extension}"
    path.write_bytes(plain[extension])
    with FullDisk(path, "r+b") as file:
        file.room = room
        with pytest.raises(OSError, match="No space left") as caught:
            tags.write(Tags(SONG, PICTURES), file, extension)
        assert caught.value.errno == errno.ENOSPC


class BrokenDisk(io.FileIO):
    def readinto(self, _):
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("extension", OUTPUTS)
def test_a_broken_disk_is_an_os_error(plain, tmp_path, extension):
    (tmp_path / "a").write_bytes(plain[extension])
    with BrokenDisk(tmp_path / "a", "r+b") as file, pytest.raises(OSError, match="Input/output error"):
        tags.write(Tags(SONG), file, extension)


@pytest.mark.parametrize("extension", OUTPUTS)
def test_a_file_that_takes_its_bytes_in_parts_gets_all(plain, tmp_path, extension):
    expected = written(Tags(SONG, PICTURES), plain[extension], extension, tmp_path)[0].read_bytes()
    path = tmp_path / f"a{extension}"
    path.write_bytes(plain[extension])
    with FullDisk(path, "r+b") as file:
        file.room = 10**6
        assert tags.write(Tags(SONG, PICTURES), file, extension) is None
        assert not file.closed
    assert path.read_bytes() == expected
