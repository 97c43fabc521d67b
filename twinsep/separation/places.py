"""The place of each song's stems: no two songs share one, no song is replaced, and the file system takes the names."""

from __future__ import annotations

import errno
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from twinsep.errors import InputError
from twinsep.separation.paths import SongFile
from twinsep.utils.files import display_path

#: Stem → file.
Outputs = dict[str, Path]
# What FAT, exFAT and Windows refuse in a name; dots and spaces at its end they drop.
_REFUSED = re.compile(r'[<>:"|?*\\\x00-\x1f]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]) *(\..*)?", re.IGNORECASE | re.DOTALL)
_REFUSALS = {errno.EINVAL, errno.EILSEQ}


@dataclass
class Places:
    """The files of each song, the sentence for each song that can have none, and sentences about changed names."""

    outputs: dict[SongFile, Outputs] = field(default_factory=dict)
    refused: dict[SongFile, InputError] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)


def find_places(songs: Iterable[SongFile], outputs: Callable[[SongFile], Outputs]) -> Places:
    """Choose the files of each song; ``outputs`` maps a song to its files by its track name.

    If songs have the same name, ignoring case, all of their names are extended by the folders in which they differ, by
    the extensions of their files, or else by numbers. So no name depends on the order of the songs, and a later call
    never takes the stems of one song for those of another. A name that the file system refuses is changed too. Raises
    :class:`InputError` for a template by which the stems of one song, or songs of different names, share a file.
    """
    songs, places = list(songs), Places()

    def fit(song: SongFile, track: str) -> str:
        """``track``, changed if the file system refuses it."""
        safe = safe_track(track)
        is_refused = safe != track and refuses_names(next(iter(outputs(song).values())).parent)
        return safe if is_refused else track

    tracks = {song: fit(song, song.track) for song in songs}
    places.messages += [
        f"{display_path(song.path)}: its stems are named {track}, because the file system refuses its own name"
        for song, track in tracks.items()
        if track != song.track
    ]
    found = {song: outputs(replace(song, track=tracks[song])) for song in songs}
    same: dict[str, list[SongFile]] = defaultdict(list)
    for song in songs:
        same[_key(tracks[song])].append(song)
    for group in same.values():
        # Songs of different formats or in different folders may share a name.
        counts = Counter(_key(path) for song in group for path in found[song].values())
        if len(group) > 1 and max(counts.values()) > 1:
            named = {song: fit(song, track) for song, track in _tell_apart(group, tracks).items()}
            for song, track in _number(named, taken=set(map(_key, tracks.values()))).items():
                found[song] = outputs(replace(song, track=track))
                places.messages.append(
                    f"{display_path(song.path)}: its stems are named {display_path(track)}, "
                    "because another song has the same name"
                )
    _check_template(found)
    sources = {os.path.realpath(song.path) for song in songs}
    for song, paths in found.items():
        replaced = next((path for path in paths.values() if os.path.realpath(path) in sources), None)
        if replaced is None:
            places.outputs[song] = paths
        else:
            sentence = f"{display_path(replaced)} is one of the songs: choose another --out or --filename"
            places.refused[song] = InputError(sentence)
    return places


def _tell_apart(group: list[SongFile], tracks: dict[SongFile, str]) -> dict[SongFile, str]:
    """The songs' names with the last folders in which they differ, and with extensions if songs of one folder do."""
    folders = {song: Path(os.path.abspath(song.path)).parts[1:-1] for song in group}  # noqa: PTH100 - keeps links
    depth = max(tracks[song].count("/") for song in group)
    most = max(map(len, folders.values()))
    while depth < most and len({_last(parts, depth) for parts in folders.values()}) < len(set(folders.values())):
        depth += 1
    named = {}
    for song in group:
        name = tracks[song].rpartition("/")[2]
        beside = [other for other in group if folders[other] == folders[song]]
        extensions = {_key(other.path.suffix) for other in beside}
        if len(beside) > 1 and len(extensions) == len(beside) and song.path.suffix != Path(name).suffix:
            name += song.path.suffix
        named[song] = "/".join((*_last(folders[song], depth), name))
    return named


def _last(parts: tuple[str, ...], count: int) -> tuple[str, ...]:
    return parts[max(0, len(parts) - count) :]


def _number(named: dict[SongFile, str], taken: set[str]) -> dict[SongFile, str]:
    """``named`` with numbers behind the names that still agree with each other or with one that is ``taken``."""
    counts = Counter(map(_key, named.values()))
    used = taken | {key for key, count in counts.items() if count == 1}
    chosen = {}
    for song in sorted(named, key=lambda song: str(song.path)):
        number, track = 0, named[song]
        if counts[_key(track)] > 1 or _key(track) in taken:
            while not number or _key(track) in used:
                number += 1
                track = f"{named[song]} ({number})"
            used.add(_key(track))
        chosen[song] = track
    return chosen


def _check_template(found: dict[SongFile, Outputs]) -> None:
    counts = Counter(_key(path) for paths in found.values() for path in paths.values())
    for paths in found.values():
        for path in paths.values():
            if counts[_key(path)] > 1:
                raise InputError(
                    f"{display_path(path)} would be written more than once: keep {{stem}}, "
                    "and {track} for several songs, in --filename"
                )


def _key(path: str | Path) -> str:
    """Key that is equal for names that a file system may take for one: it may ignore case and the spelling of an é."""
    return unicodedata.normalize("NFC", os.path.normpath(path)).casefold()


# ---------------------------------------------------------------------------- names


def safe_track(track: str) -> str:
    """``track`` with the names in it changed to such as FAT, exFAT and Windows take."""
    return "/".join(_safe_name(name) for name in track.split("/"))


def _safe_name(name: str) -> str:
    safe = _REFUSED.sub("_", name).rstrip(". ")
    if not safe:
        return "_" * max(1, len(name))
    return re.sub(r"^([^.]*)", r"\1_", safe) if _DEVICES.fullmatch(safe) else safe


def refuses_names(folder: Path) -> bool:
    """Return True if the file system of ``folder``, or of its nearest parent that exists, is FAT or such."""
    if os.name == "nt":
        return True
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    probe = folder / f'.twinsep "{os.getpid()}"?'
    try:
        probe.touch(exist_ok=False)
    except OSError as error:
        return error.errno in _REFUSALS
    probe.unlink()
    return False
