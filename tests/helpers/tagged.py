"""Tagged sound files of every format, made without mediafile."""

import base64
import functools
import struct
import tempfile
from pathlib import Path

import av
import mutagen
import numpy as np
import soundfile
from mutagen import flac, id3, mp4

from twinsep import audio

RATE = 44_100
OUTPUTS = (".wav", ".flac", ".mp3", ".ogg")
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
    "0000000d49444154789c6360000002000001e221bc330000000049454e44ae426082"
)
JPEG = b"\xff\xd8\xff\xe0" + bytes(range(256)) + b"\xff\xd9"
#: (ID3's number of the kind, description, data)
COVER = (3, "", PNG)
PICTURES = (COVER, (4, "tył płyty", JPEG))
#: By the names of Vorbis comments.
COMMENTS = {
    "TITLE": ["Zażółć 日本"],
    "ARTIST": ["AC/DC", "אבג"],
    "ALBUMARTIST": ["Various"],
    "ALBUM": ["A; B"],
    "TRACKNUMBER": ["03"],
    "TRACKTOTAL": ["12"],
    "DISCNUMBER": ["1"],
    "DATE": ["2001-05-03"],
    "GENRE": ["Rock", "80s"],
    "COMPOSER": ["C", "D"],
    "COMMENT": ["one\ntwo"],
    "LYRICS": ["la\r\nla\n\nlá"],
    "COPYRIGHT": ["© 2001"],
    "ISRC": ["PLA010100001"],
    "BPM": ["120"],
    "LANGUAGE": ["pol"],
    "COMPILATION": ["1"],
    "LABEL": ["Ł"],
    "MUSICBRAINZ_ALBUMID": ["0e1b2c3d"],
    "MUSICBRAINZ_TRACKID": ["4e5f6a7b"],
    "REPLAYGAIN_TRACK_GAIN": ["-3.00 dB"],
    "ENCODER": ["e"],
}
#: By the names of mediafile.
SONG = {
    "title": "Zażółć 日本",
    "artist": ["AC/DC", "אבג"],
    "albumartist": "Various",
    "album": "A; B",
    "track": 3,
    "tracktotal": 12,
    "disc": 1,
    "year": 2001,
    "month": 5,
    "day": 3,
    "genre": "Rock",
    "genres": ["Rock", "80s"],
    "composer": "C",
    "composers": ["C", "D"],
    "comments": "one\ntwo",
    "lyrics": "la\r\nla\n\nlá",
    "copyright": "© 2001",
    "isrc": "PLA010100001",
    "bpm": 120,
    "language": "pol",
    "languages": ["pol"],
    "comp": True,
    "label": "Ł",
    "mb_albumid": "0e1b2c3d",
    "mb_trackid": "4e5f6a7b",
}
# The same tags as frames of ID3v2.4 and as atoms of MP4.
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
    "TENC": ["e"],
    "TLEN": ["50"],
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
    "----:com.apple.iTunes:replaygain_track_gain": [b"-3.00 dB"],
    "----:com.apple.iTunes:iTunNORM": [b" 00000000" * 10],
    "\xa9too": ["e"],
}
SHORT = {
    "title": "Tïtle",
    "artist": ["A"],
    "album": "Alb",
    "year": 2001,
    "track": 3,
    "genre": "Rock",
    "comments": "one\ntwo",
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


def frames():
    made = [getattr(id3, name)(encoding=3, text=list(text)) for name, text in FRAMES.items()]
    made += [id3.APIC(3, "", *picture) for picture in PICTURES]
    return [
        *made,
        id3.COMM(encoding=3, lang="pol", desc="", text=["one\ntwo"]),
        id3.USLT(encoding=3, lang="pol", desc="", text="la\r\nla\n\nlá"),
        id3.UFID(owner="http://musicbrainz.org", data=b"4e5f6a7b"),
        id3.TXXX(encoding=3, desc="MusicBrainz Album Id", text=["0e1b2c3d"]),
        id3.TXXX(encoding=3, desc="replaygain_track_gain", text=["-3.00 dB"]),
        id3.TXXX(encoding=3, desc="Acoustid Fingerprint", text=["AQ"]),
        id3.RVA2(desc="track", channel=1, gain=-3, peak=1),
    ]


def with_frames(path, added=None, version=4):
    file = mutagen.File(path)
    if file.tags is None:
        file.add_tags()
    for frame in frames() if added is None else added:
        file.tags.add(frame)
    if version == 3:
        file.tags.update_to_v23()
    file.save(v2_version=version)
    return path


def block(picture):
    made = flac.Picture()
    made.type, made.desc, made.data = picture
    return made


def with_comments(path, comments=COMMENTS, pictures=PICTURES):
    file = mutagen.File(path)
    if file.tags is None:
        file.add_tags()
    for name, values in comments.items():
        file.tags.extend((name, value) for value in values)
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
    """Prepend an ID3v2.2 tag with text in UTF-16 and Latin-1."""

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


MKV = {"title": "Zażółć 日本", "ARTIST": "A", "album_artist": "B", "track": "3/12", "encoder": "e"}
MKV_SONG = {"title": "Zażółć 日本", "artist": ["A"], "albumartist": "B", "track": 3, "tracktotal": 12}
V23_SONG = SONG | {"artist": ["AC/DC/אבג"], "genre": "Rock/80s", "genres": ["Rock/80s"]}
V23_SONG |= {"composer": "C/D", "composers": ["C/D"]}
V1_SONG = {name: value for name, value in SHORT.items() if name != "comments"}
V22_SONG = {"title": "Zażółć 日本", "artist": ["A/B"], "track": 3, "tracktotal": 12, "year": 2001}
V22_SONG |= {"genre": "Rock", "genres": ["Rock"], "comments": "one\ntwo"}
MP4_PICTURES = (COVER, (3, " ", JPEG))
#: input -> (function that makes it in a folder, expected fields, expected pictures)
INPUTS = {
    "flac": (lambda folder: with_comments(sound(folder / "a.flac")), SONG, PICTURES),
    "vorbis": (lambda folder: with_comments(sound(folder / "a.ogg")), SONG, PICTURES),
    "opus": (lambda folder: with_comments(sound_by_av(folder / "a.opus", "libopus")), SONG, PICTURES),
    "mp3 v2.4": (lambda folder: with_frames(sound(folder / "a.mp3")), SONG, PICTURES),
    "mp3 v2.3": (lambda folder: with_frames(sound(folder / "a.mp3"), version=3), V23_SONG, PICTURES),
    "mp3 v2.2": (lambda folder: old_tag(sound(folder / "a.mp3")), V22_SONG, (COVER,)),
    "mp3 v1": (lambda folder: oldest_tag(sound(folder / "a.mp3")), V1_SONG | {"genres": ["Rock"]}, ()),
    "m4a": (lambda folder: with_atoms(sound_by_av(folder / "a.m4a", "aac")), SONG, MP4_PICTURES),
    "mp4 with keys of ffmpeg": (
        lambda folder: sound_by_av(folder / "a.mp4", "aac", metadata={"title": "T"}, movflags="use_metadata_tags"),
        {"title": "T"},
        (),
    ),
    "mkv": (lambda folder: sound_by_av(folder / "a.mkv", "flac", metadata=MKV, cover=PNG), MKV_SONG, (COVER,)),
    "wav": (lambda folder: with_frames(sound(folder / "a.wav")), SONG, PICTURES),
    "wav info": (lambda folder: info_list(sound(folder / "a.wav")), SHORT, ()),
    "wav info in cp1252": (lambda folder: info_list(sound(folder / "a.wav"), "cp1252"), SHORT, ()),
    "wav both": (
        lambda folder: info_list(with_frames(sound(folder / "a.wav"), [id3.TIT2(text=["long"])])),
        {"title": "long"},
        (),
    ),
    "aiff": (lambda folder: with_frames(aiff(folder / "a.aiff")), SONG, PICTURES),
    "aiff chunks": (
        lambda folder: text_chunks(folder / "a.aiff"),
        {key: SHORT[key] for key in ("title", "artist", "comments")},
        (),
    ),
}


@functools.cache
def source(name):
    """(file name, bytes) of an input."""
    with tempfile.TemporaryDirectory() as folder:
        path = INPUTS[name][0](Path(folder))
        return path.name, path.read_bytes()


@functools.cache
def plain(extension):
    """The bytes of an untagged sound file."""
    with tempfile.TemporaryDirectory() as folder:
        return sound(Path(folder) / f"a{extension}").read_bytes()


def placed(name, folder):
    """Put an input into ``folder`` and return its path."""
    file, content = source(name)
    (folder / file).write_bytes(content)
    return folder / file
