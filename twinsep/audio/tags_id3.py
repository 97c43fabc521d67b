"""The text of ID3v2 frames as fields under Vorbis-comment names, and back; part of :mod:`twinsep.audio.tags`.

The names are those of MusicBrainz Picard and EasyID3. A field without a frame of its own, and what its
frame does not give back as it was (an irregular date, a second text of lyrics), is a TXXX frame of the
field's name; reading joins the two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mutagen.id3 import COMM, ID3, TIPL, TXXX, UFID, USLT, Encoding, Frame, Frames, Frames_2_2, TextFrame, UrlFrame

Field = tuple[str, list[str]]

_NO_LANGUAGE = "XXX"  # ID3's word for a language that is not known
_NAMES = {
    "GRP1": "grouping",
    "MVNM": "movementname",
    "TALB": "album",
    "TBPM": "bpm",
    "TCMP": "compilation",
    "TCOM": "composer",
    "TCON": "genre",
    "TCOP": "copyright",
    "TDEN": "encodingtime",
    "TDLY": "playlistdelay",
    "TDOR": "originaldate",
    "TDRC": "date",
    "TDRL": "releasedate",
    "TDTG": "taggingdate",
    "TENC": "encodedby",
    "TEXT": "lyricist",
    "TFLT": "filetype",
    "TIT1": "grouping",
    "TIT2": "title",
    "TIT3": "subtitle",
    "TKEY": "initialkey",
    "TLAN": "language",
    "TLEN": "length",
    "TMED": "media",
    "TMOO": "mood",
    "TOAL": "originalalbum",
    "TOFN": "originalfilename",
    "TOLY": "originallyricist",
    "TOPE": "originalartist",
    "TOWN": "fileowner",
    "TPE1": "artist",
    "TPE2": "albumartist",
    "TPE3": "conductor",
    "TPE4": "remixer",
    "TPRO": "producednotice",
    "TPUB": "label",
    "TRSN": "radiostation",
    "TRSO": "radioowner",
    "TSIZ": "filesize",
    "TSO2": "albumartistsort",
    "TSOA": "albumsort",
    "TSOC": "composersort",
    "TSOP": "artistsort",
    "TSOT": "titlesort",
    "TSRC": "isrc",
    "TSSE": "encodersettings",
    "TSST": "discsubtitle",
    "WCOP": "license",
    "WOAR": "website",
}
_FRAMES = {name: frame for frame, name in _NAMES.items()}
_PARTS = {
    "TRCK": ("tracknumber", "tracktotal"),
    "TPOS": ("discnumber", "disctotal"),
    "MVIN": ("movement", "movementtotal"),
}
_ROLES = {"arranger": "arranger", "DJ-mix": "djmixer", "engineer": "engineer", "mix": "mixer", "producer": "producer"}
#: field -> what MusicBrainz Picard calls it in TXXX frames and in MP4's free-form atoms.
_DESCRIPTIONS = {
    "musicbrainz_albumartistid": "MusicBrainz Album Artist Id",
    "musicbrainz_albumid": "MusicBrainz Album Id",
    "musicbrainz_artistid": "MusicBrainz Artist Id",
    "musicbrainz_discid": "MusicBrainz Disc Id",
    "musicbrainz_originalalbumid": "MusicBrainz Original Album Id",
    "musicbrainz_originalartistid": "MusicBrainz Original Artist Id",
    "musicbrainz_releasegroupid": "MusicBrainz Release Group Id",
    "musicbrainz_releasetrackid": "MusicBrainz Release Track Id",
    "musicbrainz_trackid": "MusicBrainz Track Id",
    "musicbrainz_trmid": "MusicBrainz TRM Id",
    "musicbrainz_workid": "MusicBrainz Work Id",
    "releasecountry": "MusicBrainz Album Release Country",
    "releasestatus": "MusicBrainz Album Status",
    "releasetype": "MusicBrainz Album Type",
}
_FIELDS = {description.lower(): name for name, description in _DESCRIPTIONS.items()}
_MUSICBRAINZ = "http://musicbrainz.org"
_V1_COMMENT = "ID3v1 Comment"  # mutagen's description of it
# mutagen reduces a date to the numbers it finds in it, so dates are read as any text is.
_DATES = ("TDEN", "TDOR", "TDRC", "TDRL", "TDTG")
_KNOWN = {**Frames, **Frames_2_2, **{name: type(name, (TextFrame,), {}) for name in _DATES}}


def load(path: Path, kind: type[ID3]) -> ID3:
    """The tag of any version, ID3v1 included, as frames of ID3v2.4 whose dates are plain text."""
    tags = kind()
    tags.load(path, known_frames=_KNOWN, translate=False)
    years = {new: tags.get(old) for old, new in (("TYER", "TDRC"), ("TORY", "TDOR"))}
    tags.update_to_v24()  # joins year, day and time where they are regular, and drops them where not
    for name, year in years.items():
        if year is not None and not str(tags.get(name, "")):
            tags[name] = _KNOWN[name](encoding=Encoding.UTF8, text=list(year.text))
    return tags


def fields(tags: ID3) -> Iterator[Field]:
    """(name, values) of every frame of text; what may repeat another frame comes last."""
    described: list[Any] = sorted(tags.values(), key=lambda frame: (frame.FrameID == "TXXX", _is_v1_comment(frame)))
    commented = False
    for frame in described:
        if _is_v1_comment(frame) and commented:  # the first 28 letters of the other
            continue
        commented |= frame.FrameID == "COMM" and not frame.desc
        yield from _fields(frame)


def _is_v1_comment(frame: Any) -> bool:
    return frame.FrameID == "COMM" and frame.desc == _V1_COMMENT


def _fields(frame: Any) -> list[Field]:
    kind = frame.FrameID
    if kind in _PARTS:
        return [field for text in frame.text for field in parts(text, *_PARTS[kind])]
    if kind in ("TIPL", "TMCL"):
        return [_person(role, name) for role, name in frame.people]
    if kind == "UFID":
        return [("musicbrainz_trackid", [frame.data.decode("ascii", "replace")])] if frame.owner == _MUSICBRAINZ else []
    if kind == "USLT":
        return [("lyrics", [frame.text])]
    if kind == "COMM":
        return [(f"comment:{frame.desc.lower()}" if frame.desc not in ("", _V1_COMMENT) else "comment", frame.text)]
    if kind == "TXXX":
        return [(name_of(frame.desc), frame.text)]
    if kind == "WXXX":
        return [(f"url:{frame.desc.lower()}" if frame.desc else "url", [frame.url])]
    if isinstance(frame, UrlFrame):
        return [(_NAMES.get(kind, kind.lower()), [str(frame)])]
    return [(_NAMES.get(kind, kind.lower()), _texts(frame))] if isinstance(frame, TextFrame) else []


def _texts(frame: Any) -> list[str]:
    if frame.FrameID == "TCON":
        return frame.genres  # as names, where the text has ID3v1's numbers
    dates = frame.FrameID in _DATES
    return [str(text).replace(" ", "T") if dates and not isinstance(text, str) else str(text) for text in frame.text]


def parts(text: str, number: str, total: str) -> list[Field]:
    """ "3/12" as two fields."""
    first, _, second = text.partition("/")
    return [(number, [first]), (total, [second])]


def name_of(description: str) -> str:
    """The field that a TXXX frame or a free-form atom of this description holds."""
    return _FIELDS.get(description.lower(), description.lower()) or "text"


def _person(role: str, name: str) -> Field:
    if role in _ROLES:
        return _ROLES[role], [name]
    return "performer", [f"{name} ({role})" if role and name else name]


def frames(given: Mapping[str, tuple[str, ...]]) -> Iterator[Frame]:
    """Frames of ID3v2.4 from which :func:`fields` gives the same fields."""
    rest = dict(given)
    for kind, (number, total) in _PARTS.items():
        numbers, totals = rest.pop(number, ()), rest.get(total, ())
        if len(numbers) == len(totals) == 1 and "/" not in numbers[0] + totals[0]:
            numbers = (f"{numbers[0]}/{rest.pop(total)[0]}",)
        if numbers:
            yield Frames[kind](encoding=Encoding.UTF8, text=list(numbers))
    people = [[role, value] for role, name in _ROLES.items() for value in rest.pop(name, ())]
    if people:
        yield TIPL(encoding=Encoding.UTF8, people=people)
    for name, values in rest.items():
        yield from _frames(name, list(values))


def _frames(name: str, values: list[str]) -> Iterable[Frame]:
    frame = _own_frame(name, values)
    held = [value for _, texts in _fields(frame) for value in texts] if frame is not None else []
    if held and held == values[: len(held)]:
        yield frame
        values = values[len(held) :]
    if values:
        own = name.upper() if name.isascii() else name  # ß has no capital to come back from
        yield TXXX(encoding=Encoding.UTF8, desc=_DESCRIPTIONS.get(name, own), text=values)


def _own_frame(name: str, values: list[str]) -> Any:
    """The frame ID3 has for the field, which may not hold all values or not as they are; or none."""
    if name == "lyrics":
        return USLT(encoding=Encoding.UTF8, lang=_NO_LANGUAGE, desc="", text=values[0])
    if re.fullmatch("comment(:.+)?", name, re.DOTALL):
        return COMM(encoding=Encoding.UTF8, lang=_NO_LANGUAGE, desc=name[len("comment:") :], text=values)
    if name == "musicbrainz_trackid":
        return UFID(owner=_MUSICBRAINZ, data=values[0].encode("ascii", "replace"))
    kind = _FRAMES.get(name)
    if kind is None:
        return None
    if issubclass(Frames[kind], UrlFrame):
        return Frames[kind](url=values[0]) if values[0].isascii() else None
    return Frames[kind](encoding=Encoding.UTF8, text=values)
