"""The tags and pictures of a sound file, and writing them into another.

Fields go by the names of Vorbis comments in lower case, whatever the format: title, artist, album,
albumartist, tracknumber, tracktotal, date, … Each has one or more values, kept to the letter. What is
true only of the sound it was made for is not read: gains, fingerprints, checksums, lengths, the encoder
and its settings, cue sheets.

mutagen reads MP3, FLAC, Ogg, M4A and the ID3 chunk of WAV and AIFF, and writes; PyAV reads the rest,
such as Matroska and the INFO list of a WAV. Chapters, ratings and synchronised lyrics, which are
no text, are not carried.
"""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mutagen
from mutagen.aiff import AIFF
from mutagen.flac import FLAC
from mutagen.flac import Picture as PictureBlock
from mutagen.id3 import APIC, ID3, Encoding
from mutagen.mp4 import MP4Tags
from mutagen.ogg import OggFileType
from mutagen.oggvorbis import OggVorbis
from mutagen.wave import WAVE

from twinsep.audio import tags_av, tags_id3, tags_mp4
from twinsep.audio.tags_id3 import Field

_UNTRUE = re.compile(
    r"replaygain|^r128_|mp3gain|autogain|itunnorm|dynamic range"  # loudness
    r"|fingerprint|acoustid|musicip|accuraterip|md5|^crc|crc32|checksum"
    r"|^(length|tlen|duration|filesize|filetype)$|itunsmpb|cue[ _]?sheet"
    r"|^encod|^(tool|cdec|software|coding_history|umid|creation_time)$"
    r"|^(major_brand|minor_version|compatible_brands)$"
)
_TEXT_LIMIT = 4_000_000  # bytes in all; with these two limits every format takes what is read
_PICTURE_LIMIT = 16_000_000  # bytes in all; FLAC's blocks end at 16 MiB
_FRONT_COVER = 3
_KINDS = range(21)  # those that ID3 and FLAC define
_MAGIC = {
    b"\xff\xd8": "image/jpeg",
    b"\x89PNG": "image/png",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
    b"RIFF": "image/webp",
}
_NOT_RIFF = (b"RF64", b"BW64", b"RIFX")  # what mutagen takes for WAV and then fails at
_LINK = "-->"  # in place of a type: the data are the picture's address
#: What the text chunks of WAV and AIFF hold beside ID3. PyAV gives them mixed with the ID3 frames.
_CHUNKS = {"album", "artist", "comment", "copyright", "date", "genre", "language", "title", "tracknumber", "tracktotal"}


@dataclass(frozen=True)
class Picture:
    """An image file in a tag; ``kind`` is ID3's number, 3 for the front cover."""

    mime: str
    kind: int
    description: str
    data: bytes


@dataclass(frozen=True)
class Tags:
    """Fields and pictures in the file's order; ``problem`` is a part of a sentence on what was not read."""

    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pictures: tuple[Picture, ...] = ()
    problem: str | None = None


# ---------------------------------------------------------------------------- reading


def read(path: Path) -> Tags:
    """What ``path`` is tagged with; raises nothing: without tags, or if they are damaged, there are no fields.

    Left out, and told in ``problem``: damaged tags, a damaged picture, pictures beyond 16 MB and text
    beyond 4 MB in all.
    """
    try:
        return _bounded(*_found(path))
    except Exception:  # parsers fail on damaged bytes in every way there is
        return Tags(problem="its tags are damaged and left out")


def _found(path: Path) -> tuple[Iterable[Field], Iterable[Picture | None]]:
    """Fields in the file's order, names repeated or not, and pictures; none in place of a damaged one."""
    with path.open("rb") as file:
        sound = None if file.read(4) in _NOT_RIFF else mutagen.File(path)
    tags = getattr(sound, "tags", None)
    if isinstance(tags, ID3):
        return _found_in_id3(path, tags_id3.load(path, type(tags)), chunks=isinstance(sound, WAVE | AIFF))
    if isinstance(tags, MP4Tags) and min(tags, default=" ") >= " ":  # else numbers, whose names only PyAV looks up
        return tags_mp4.fields(tags), [_cover(bytes(image)) for image in tags.get("covr", [])]
    if tags is not None and isinstance(sound, FLAC | OggFileType):
        return _found_in_comments(tags, [_picture(block) for block in getattr(sound, "pictures", [])])
    fields, images = tags_av.found(path)
    return fields, [_cover(image) for image in images]


def _found_in_id3(path: Path, tags: ID3, chunks: bool) -> tuple[list[Field], list[Picture | None]]:
    fields = list(tags_id3.fields(tags))
    if chunks:
        present = {name for name, _ in fields}
        fields += [item for item in tags_av.found(path)[0] if item[0] in _CHUNKS - present]
    return fields, [_picture(frame) for frame in tags.getall("APIC")]


def _found_in_comments(comments: Any, pictures: list[Picture | None]) -> tuple[list[Field], list[Picture | None]]:
    fields: list[Field] = []
    for key, value in comments:
        name = key.lower()
        if name == "metadata_block_picture":
            pictures.append(_decoded_picture(value, block=True))
        elif name == "coverart":  # what Ogg had before
            pictures.append(_decoded_picture(value, block=False))
        elif name != "coverartmime":
            fields.append((name, [value]))
    return fields, pictures


def _picture(found: Any) -> Picture:
    """Of an APIC frame or a FLAC block, which name things alike."""
    kind = int(found.type) if found.type in _KINDS else 0
    return Picture(_mime(found.mime, found.data), kind, found.desc.replace("\0", ""), found.data)


def _cover(data: bytes) -> Picture:
    return Picture(_mime("", data), _FRONT_COVER, "", data)


def _decoded_picture(value: str, block: bool) -> Picture | None:
    try:
        data = base64.b64decode(value)
        return _picture(PictureBlock(data)) if block else _cover(data)
    except (ValueError, mutagen.MutagenError):
        return None


def _mime(stated: str, data: bytes) -> str:
    """The type that is stated, or the one the first bytes tell where none is."""
    if re.fullmatch(r"[!-~]+/[!-~]+", stated) or stated == _LINK:
        return stated
    return next((mime for magic, mime in _MAGIC.items() if data.startswith(magic)), "application/octet-stream")


def _bounded(found: Iterable[Field], images: Iterable[Picture | None]) -> Tags:
    """What of it is carried: no untrue field, no empty value, no more than the limits."""
    fields: dict[str, tuple[str, ...]] = {}
    pictures: list[Picture] = []
    problems: dict[str, None] = {}  # each once
    room = _TEXT_LIMIT
    for name, values in found:
        name = name.replace("\0", "")
        texts = [text for value in values for text in value.split("\0") if text]  # NUL separates them in ID3
        size = sum(len(f"{name}{text}".encode()) + 8 for text in texts)
        if not (name and texts) or _UNTRUE.search(name):
            continue
        if size > room:
            problems["text beyond 4 MB is left out"] = None
            continue
        room -= size
        fields[name] = tuple(dict.fromkeys((*fields.get(name, ()), *texts)))
    room = _PICTURE_LIMIT
    for image in images:
        size = len(image.data) + len(image.description.encode()) if image else 0
        if image is None:
            problems["a damaged picture is left out"] = None
        elif size > room:
            problems["pictures beyond 16 MB are left out"] = None
        elif image.data:
            room -= size
            pictures.append(image)
    return Tags(fields, tuple(pictures), "; ".join(problems) or None)


# ---------------------------------------------------------------------------- writing


def write(tags: Tags, file: io.RawIOBase | io.BufferedIOBase, extension: str) -> str | None:
    """Put ``tags`` into the finished, untagged .wav, .flac, .mp3 or .ogg file open in ``file`` for reading and writing.

    The sound stays bit for bit what it was, and the same tags give the same bytes. Gives none, or a part
    of a sentence that says why the file was left as it was. Raises ``OSError`` if writing fails (a full
    disk), and then the file is damaged.
    """
    if not tags.fields and not tags.pictures:
        return None
    # A raw file may take a part of what it is given, which mutagen would not notice.
    stream: Any = io.BufferedRandom(file) if isinstance(file, io.RawIOBase) else file
    try:
        stream.seek(0)
        problem = _WRITERS[extension.lower()](tags, stream)
        stream.flush()
        stream.seek(0, os.SEEK_END)
    except mutagen.MutagenError as error:
        if error.args and isinstance(error.args[0], OSError):
            raise error.args[0] from error
        raise
    finally:
        if stream is not file:
            stream.detach()
    return problem


def _write_wave(tags: Tags, file: Any) -> str | None:
    if file.read(4) != b"RIFF":
        return "its tags are left out, for only a plain WAV takes them"
    size = file.seek(0, os.SEEK_END)
    frames = _id3(tags)
    frames.save(chunk := io.BytesIO(), padding=_no_padding)
    if size + len(chunk.getvalue()) + 16 > 2**32:
        return "its tags are left out, for WAV ends at 4 GiB"
    file.seek(0)
    wave: Any = WAVE(file)
    wave.add_tags()
    wave.tags.update(frames)
    file.seek(0)
    wave.save(file, padding=_no_padding)
    return None


def _write_mp3(tags: Tags, file: Any) -> None:
    _id3(tags).save(file)


def _write_flac(tags: Tags, file: Any) -> None:
    sound: Any = FLAC(file)
    if sound.tags is None:
        sound.add_tags()
    sound.tags.extend(_comments(tags))
    for picture in tags.pictures:
        sound.add_picture(_block(picture))
    file.seek(0)
    sound.save(file)


def _write_ogg(tags: Tags, file: Any) -> None:
    sound: Any = OggVorbis(file)
    sound.tags.extend(_comments(tags))
    for picture in tags.pictures:
        sound.tags.append(("METADATA_BLOCK_PICTURE", base64.b64encode(_block(picture).write()).decode()))
    file.seek(0)
    sound.save(file)


_WRITERS = {".wav": _write_wave, ".flac": _write_flac, ".mp3": _write_mp3, ".ogg": _write_ogg}


def _comments(tags: Tags) -> list[tuple[str, str]]:
    """Pairs of a Vorbis comment, whose names are of printable ASCII without "=" and "~"."""
    return [
        (re.sub(r"[^ -<>-}]", "_", name).upper(), value) for name, values in tags.fields.items() for value in values
    ]


def _block(picture: Picture) -> PictureBlock:
    block = PictureBlock()
    block.mime, block.type, block.desc, block.data = picture.mime, picture.kind, picture.description, picture.data
    return block


def _id3(tags: Tags) -> ID3:
    frames = ID3()
    for frame in tags_id3.frames(tags.fields):
        frames.add(frame)
    for number, picture in enumerate(tags.pictures):
        image = APIC(Encoding.UTF8, picture.mime, picture.kind, picture.description, picture.data)
        image.salt = str(number)  # or one picture would take the place of another of its description
        frames.add(image)
    return frames


def _no_padding(_: Any) -> int:
    return 0
