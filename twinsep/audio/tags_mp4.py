"""The text of MP4's atoms as fields under Vorbis-comment names; part of :mod:`twinsep.audio.tags`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mutagen.mp4 import AtomDataType, MP4Tags

from twinsep.audio.tags_id3 import Field, name_of, parts

_NAMES = {
    "aART": "albumartist",
    "cpil": "compilation",
    "cprt": "copyright",
    "desc": "description",
    "rtng": "itunesadvisory",
    "soaa": "albumartistsort",
    "soal": "albumsort",
    "soar": "artistsort",
    "soco": "composersort",
    "sonm": "titlesort",
    "tmpo": "bpm",
    "©ART": "artist",
    "©alb": "album",
    "©cmt": "comment",
    "©day": "date",
    "©enc": "encodedby",
    "©gen": "genre",
    "©grp": "grouping",
    "©lyr": "lyrics",
    "©mvc": "movementtotal",
    "©mvi": "movement",
    "©mvn": "movementname",
    "©nam": "title",
    "©too": "encoder",
    "©wrk": "work",
    "©wrt": "composer",
}
_PARTS = {"trkn": ("tracknumber", "tracktotal"), "disk": ("discnumber", "disctotal")}
_ENCODINGS = {AtomDataType.IMPLICIT: "utf-8", AtomDataType.UTF8: "utf-8", AtomDataType.UTF16: "utf-16-be"}


def fields(tags: MP4Tags) -> Iterator[Field]:
    """(name, values) of every atom but pictures; 0 and false are how MP4 says that a value is not set."""
    for key, value in tags.items():
        if key in _PARTS:
            for pair in value:
                yield from parts("/".join(str(number or "") for number in pair), *_PARTS[key])
        elif key.startswith("----:"):
            yield name_of(key.split(":", 2)[2]), [text for item in value if (text := _decoded(item))]
        elif key != "covr":
            values = value if isinstance(value, list) else [value]
            yield _NAMES.get(key, key.strip("©").lower()), [_text(item) for item in values if item]


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _decoded(value: Any) -> str:
    """A free-form value, "" if it is not text."""
    try:
        return bytes(value).decode(_ENCODINGS[value.dataformat])
    except (KeyError, UnicodeDecodeError):
        return ""
