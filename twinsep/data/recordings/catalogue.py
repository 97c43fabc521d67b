"""The catalogue of recordings: which packages hold them, who speaks, and which files may train, validate or test."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from twinsep.errors import InputError

Role = Literal["instrumentals", "voices"]
Split = Literal["train", "valid", "test"]
#: Speaker of the files of a package whose path names none.
CAST = "cast"
_SOUND = (".ogg", ".opus", ".wav", ".flac", ".mp3")


@validated(frozen=True, config=ConfigDict(extra="forbid"), kw_only=True)
class Package:
    """A package that holds recordings; all patterns are shell patterns over the paths of its files."""

    source: Literal["debian", "sdist"]  # a Debian package, or a source distribution of the Python Package Index
    version: str
    sha256: str  # of the package file
    role: Role
    licence: str  # of the recordings, as the package states it
    attribution: str  # the authors that the package names
    files: tuple[str, ...]  # recordings to unpack
    archive: str | None = None  # a zip in the package that holds them
    drop: tuple[str, ...] = ()  # recordings that are not used, such as instrumentals with voice
    valid: tuple[str, ...] = ()  # recordings for validation
    test: tuple[str, ...] = ()  # recordings that are only tested on
    genre: str = ""  # of instrumentals
    sung: bool = False  # some instrumentals are songs with voice, which are only tested on
    speaker: str = ""  # regular expression whose first group, found in the path of a voice, names its speaker
    sings: bool = False  # voices that sing; others speak

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError(f"sha256 {self.sha256!r} is not 64 hexadecimal digits")
        if (self.role == "voices") != bool(self.speaker) or (self.role == "instrumentals") != bool(self.genre):
            raise ValueError("voices need a speaker and no genre, instrumentals a genre and no speaker")

    def split(self, path: str) -> Split | None:
        """The split of the recording ``path``, None if it is not used."""
        for patterns, split in ((self.drop, None), (self.test, "test"), (self.valid, "valid"), (self.files, "train")):
            if matches(path, patterns):
                return split  # type: ignore[return-value]
        return None


@dataclass(frozen=True)
class Recording:
    """One file: its ``path`` below the folder of recordings; ``speaker``, of voices, is ``<package>/<name>``."""

    path: str
    package: str
    role: Role
    split: Split
    speaker: str = ""
    sings: bool = False
    genre: str = ""


def read_catalogue(path: Path) -> dict[str, Package]:
    """Read the packages by name; raises :class:`InputError`, naming the first fault, for a faulty catalogue."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return TypeAdapter(dict[str, Package]).validate_python(values)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}): name a catalogue of recordings") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML: correct it") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if str(part) != "[key]")
        raise InputError(f"{path}: {where or 'catalogue'}: {first['msg'].removeprefix('Value error, ')}") from error


def recordings(packages: dict[str, Package], root: Path) -> Iterator[Recording]:
    """The unpacked recordings that are used, by package and path, of files in ``<root>/<package>/``."""
    for name, package in packages.items():
        folder = root / name
        for file in sorted(folder.rglob("*")):
            path = file.relative_to(folder).as_posix()
            split = package.split(path) if file.suffix.lower() in _SOUND else None
            if split is None:
                continue
            speaker = ""
            if package.role == "voices":
                found = re.search(package.speaker, path)
                speaker = f"{name}/{found[1] if found else CAST}"
            yield Recording(f"{name}/{path}", name, package.role, split, speaker, package.sings, package.genre)


def matches(path: str, patterns: tuple[str, ...]) -> bool:
    """True if ``path`` has one of the shell patterns, in which ``*`` also stands for folders."""
    return any(fnmatchcase(path, pattern) for pattern in patterns)
