"""Tags and covers by PyAV, of what mutagen does not read; part of :mod:`twinsep.audio.tags`."""

from __future__ import annotations

from pathlib import Path

from twinsep.audio.tags_id3 import Field, name_of, parts

#: FFmpeg's names where they differ from ours.
_NAMES = {"album_artist": "albumartist", "author": "artist", "year": "date"}
_PARTS = {"track": ("tracknumber", "tracktotal"), "disc": ("discnumber", "disctotal")}
_RIFF = {"ISRC": "source", "IENG": "engineer", "IMED": "media"}  # ISRC is where the sound is from


def found(path: Path) -> tuple[list[Field], list[bytes]]:
    """Fields and attached pictures. Raises what PyAV raises for a damaged file."""
    import av  # here because most files never need it
    from av.stream import Disposition

    try:
        container = av.open(str(path))
    except UnicodeDecodeError:  # RIFF does not state an encoding; Windows writes its own
        container = av.open(str(path), metadata_encoding="cp1252", metadata_errors="replace")
    fields: list[Field] = []
    with container:
        own = _RIFF if container.format.name == "wav" else {}
        for key, value in container.metadata.items():
            name = key.lower()
            if name in _PARTS:
                fields += parts(value, *_PARTS[name])
            else:
                fields.append((own.get(key) or _NAMES.get(name) or name_of(key), [value]))
        covers = [stream for stream in container.streams.video if stream.disposition & Disposition.attached_pic]
        return fields, [bytes(next(container.demux(cover))) for cover in covers]
