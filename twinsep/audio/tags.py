"""A song's tags and cover art, carried over to its stems by the optional package ``mediafile``.

Fields have the names of :class:`mediafile.MediaFile`. PyAV reads the tags that mediafile does not know: Matroska, the
INFO list of a WAV, the text chunks of AIFF. Fields that hold only for the original sound, such as ReplayGain, encoder
and fingerprint, are not carried.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Loudness, encoder and fingerprint of the original sound; and fields that repeat others: "art" repeats the images, and
# a date its year, month and day, which unlike the date can state a year alone.
_NOT_CARRIED = re.compile(r"(rg|r128|acoustid)_|(art|date|encoder|original_date)$")
_MISSING = "its tags are left out; to keep them, install mediafile with: pip install 'twinsep[tags]'"
_LEFT_OUT = "tags that are damaged or too large are left out"
_IMAGE_BYTES = 16_000_000  # a block of FLAC ends at 16 MiB
_WAV_BYTES = 2**32 - 2**26  # a WAV ends at 4 GiB; leaves room for the tags
#: FFmpeg's names of text fields -> mediafile's.
_FFMPEG_NAMES = {
    "album": "album",
    "album_artist": "albumartist",
    "author": "artist",  # of AIFF
    "artist": "artist",
    "comment": "comments",
    "composer": "composer",
    "copyright": "copyright",
    "genre": "genre",
    "lyrics": "lyrics",
    "title": "title",
}
_FFMPEG_NUMBERS = {
    "date": (r"(\d{4})(?:-(\d\d)(?:-(\d\d))?)?", ("year", "month", "day")),
    "disc": (r"(\d{1,9})(?:/(\d{1,9}))?", ("disc", "disctotal")),
    "track": (r"(\d{1,9})(?:/(\d{1,9}))?", ("track", "tracktotal")),
}

# Without a handler, Python prints mediafile's messages about damaged tags on standard error.
logging.getLogger("mediafile").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Tags:
    """Values by field, without empty ones; ``problem`` says in part of a sentence why some or all are missing."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


def read(path: Path) -> Tags:
    """Read the tags of a sound file. Damaged tags are left out and reported in ``problem``, not raised."""
    try:
        from mediafile import FileTypeError, Image, ImageType
    except ModuleNotFoundError:
        return Tags(problem=_MISSING if _read_with_ffmpeg(path) else None)
    try:
        with path.open("rb") as file:
            is_riff = file.read(4) == b"RIFF"
        # mutagen takes every other file named .wav, such as RF64, for a damaged one.
        known = is_riff or path.suffix.lower() not in (".wav", ".wave")
        found = _read_fields(_media_file(path)) if known else Tags()
    except FileTypeError:
        found = Tags()
    except Exception:  # parsers raise many types of exception on damaged bytes
        return Tags(problem=_LEFT_OUT)
    if found.fields or found.problem:
        return found
    fields = _read_with_ffmpeg(path)
    images = _unique(Image(data, type=ImageType.front) for data in fields.pop("images", []))
    return Tags(fields | ({"images": images} if images else {}))


def write(tags: Tags, path: Path) -> str | None:
    """Write ``tags`` into an untagged .wav, .flac, .mp3 or .ogg file, leaving its sound unchanged to the bit.

    Equal tags make equal bytes. Returns None, or part of a sentence that says why the file was left as it was.
    Raises ``OSError`` if writing fails, for example on a full disk; the file may then be damaged.
    """
    if not tags.fields:
        return None
    size = path.stat().st_size
    if path.suffix.lower() == ".wav" and size > _WAV_BYTES:
        return "its tags are left out because a WAV file cannot exceed 4 GiB"
    try:
        media = _media_file(path)
        for name, value in tags.fields.items():
            setattr(media, name, value)
        media.save()
    except Exception as error:  # mutagen's errors of every type
        cause: BaseException | None = error
        while cause and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause:
            raise cause from error
        if path.stat().st_size != size:
            raise
        return "its tags are left out because the file format cannot hold them"
    return None


def _media_file(path: Path) -> Any:
    """Open ``path`` as a ``MediaFile`` whose field ``artist`` lists all artists instead of the first."""
    import mediafile

    artist = mediafile.ListMediaField(
        mediafile.MP3ListStorageStyle("TPE1"),
        mediafile.MP4ListStorageStyle("\xa9ART"),
        mediafile.ListStorageStyle("ARTIST"),
        mediafile.ASFStorageStyle("Author"),
    )
    return type("MediaFile", (mediafile.MediaFile,), {"artist": artist})(path)


def _read_fields(media: Any) -> Tags:
    from mediafile import MediaFile

    fields, problem = {}, None
    for name in MediaFile.sorted_fields():  # years before months before days, as they must be written
        if _NOT_CARRIED.match(name):
            continue
        try:
            value = getattr(media, name)
        except Exception:  # a damaged field costs no other
            problem = _LEFT_OUT
            continue
        if name == "images" and value:
            images = _unique(value)
            problem = _LEFT_OUT if len(images) < len(value) else problem
            value = images
        if value:
            fields[name] = value
    return Tags(fields, problem)


def _unique(images: Iterable[Any]) -> list[Any]:
    """Return the images that every file format can hold, with different descriptions, as ID3 requires."""
    from mediafile import ImageType

    kept: dict[str, Any] = {}
    for image in images:
        if not image.mime_type or len(image.data) > _IMAGE_BYTES:
            continue
        image.type = image.type or ImageType.front  # MP4 does not say
        image.desc = image.desc or ""
        while image.desc in kept:
            image.desc += " "
        kept[image.desc] = image
    return list(kept.values())


def _read_with_ffmpeg(path: Path) -> dict[str, Any]:
    """Read fields by PyAV, with "images" as a list of bytes; none if the file cannot be opened."""
    import av
    from av.stream import Disposition

    name, options = str(path.absolute()), {"protocol_whitelist": "file"}
    texts: dict[str, str] = {}
    try:
        try:
            container = av.open(name, options=options)
        except UnicodeDecodeError:  # an INFO list does not state its encoding, and Windows programs use this one
            container = av.open(name, options=options, metadata_encoding="cp1252", metadata_errors="replace")
        with container:
            holders: list[Any] = [*container.streams.audio[:1], container]  # Ogg keeps tags in the stream
            for holder in holders:
                texts |= {key.lower(): text for key, text in holder.metadata.items()}
            covers = [stream for stream in container.streams.video if stream.disposition & Disposition.attached_pic]
            images = [bytes(next(container.demux(cover))) for cover in covers]
    except (av.FFmpegError, OSError, UnicodeError, StopIteration):
        return {}
    fields: dict[str, Any] = {name: texts[key] for key, name in _FFMPEG_NAMES.items() if key in texts}
    if "artist" in fields:
        fields["artist"] = [fields["artist"]]
    for key, (pattern, names) in _FFMPEG_NUMBERS.items():
        if found := re.match(pattern, texts.get(key, "")):
            fields |= {name: int(number) for name, number in zip(names, found.groups(), strict=True) if number}
    return {name: value for name, value in {**fields, "images": images}.items() if value}
