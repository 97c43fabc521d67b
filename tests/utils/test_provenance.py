"""Provenance: the commit inside and outside a git checkout, and the hash of the code."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from twinsep.utils import provenance

ROOT = Path(__file__).resolve().parents[2]


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def archive(tmp_path):
    """A copy of the code without ``.git``, inside the repository of another project."""
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "another project")
    folder = tmp_path / "twinsep-0.1.0"
    (folder / "twinsep/utils").mkdir(parents=True)
    for name in ("__init__.py", "errors.py", "utils/__init__.py", "utils/provenance.py"):
        shutil.copy(ROOT / "twinsep" / name, folder / "twinsep" / name)
    for name in ("torch_impl", "jax_impl", "ablations"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
    return folder


def commit_of(folder):
    """Return what ``provenance.commit`` returns for the code in ``folder``."""
    code = "from twinsep.utils import provenance; print(provenance.commit())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_an_archive_has_no_commit_even_inside_another_repository(archive):
    assert commit_of(archive) == "archive"


def test_a_checkout_has_its_commit_and_a_plus_if_code_was_changed(archive):
    lock = archive / "ablations/systems/dvc.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    git(archive, "init", "-q")
    git(archive, "add", ".")
    git(archive, "commit", "-q", "-m", "a")
    head = git(archive, "rev-parse", "--short=12", "HEAD")
    assert len(head) == 12
    assert commit_of(archive) == head
    (archive / "notes.txt").touch()
    lock.write_text("stages: {}\n")  # DVC, of the stage that has run before
    assert commit_of(archive) == head
    (archive / "jax_impl/__init__.py").write_text("x = 1\n")
    assert commit_of(archive) == f"{head}+"


def test_the_commit_is_that_of_the_first_question(archive):
    """A record names the commit that ran, whatever was committed while it ran."""
    git(archive, "init", "-q")
    git(archive, "add", ".")
    git(archive, "commit", "-q", "-m", "a")
    code = (
        "import subprocess\nfrom twinsep.utils import provenance\nfirst = provenance.commit()\n"
        "open('jax_impl/__init__.py', 'w').write('x = 1')\nassert provenance.commit() == first, first"
    )
    subprocess.run([sys.executable, "-c", code], cwd=archive, env={"PATH": "/usr/bin:/bin"}, check=True)


def test_a_checkout_that_git_cannot_read_counts_as_an_archive(archive):
    (archive / ".git").mkdir()
    assert commit_of(archive) == "archive"


def test_the_code_hash_depends_on_names_and_contents(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    (tmp_path / "a/b").mkdir(parents=True)
    hashes = [provenance.code_hash("a")]
    for change in (
        lambda: (tmp_path / "a/b/x.py").write_text("1"),
        lambda: (tmp_path / "a/b/x.py").write_text("2"),
        lambda: (tmp_path / "a/b/x.py").rename(tmp_path / "a/b/y.py"),
    ):
        change()
        hashes.append(provenance.code_hash("a"))
    (tmp_path / "a/notes.txt").write_text("no code")
    assert len(set(hashes)) == 4
    assert provenance.code_hash("a") == hashes[-1]
    with pytest.raises(FileNotFoundError):
        provenance.code_hash("a", "c")


def test_the_code_hash_covers_this_package():
    assert provenance.code_hash("twinsep") != provenance.code_hash("twinsep/utils")


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("model name\t: AMD EPYC\nflags\t\t: fpu avx avx2\n", "AMD EPYC (AVX2)"),
        ("model name\t: AMD EPYC\nflags\t\t: fpu avx2 avx512f\n", "AMD EPYC (AVX-512)"),
        ("model name\t: Old\nflags\t\t: fpu sse2\n", "Old"),
        ("Features\t: fp asimd\n", "aarch64"),
        (None, "aarch64"),
    ],
)
def test_the_processor_is_named_with_its_widest_vectors(cpuinfo, name, tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        file.write_text(cpuinfo)
    monkeypatch.setattr(provenance, "Path", lambda path: {"/proc/cpuinfo": file}[path])
    monkeypatch.setattr(provenance.platform, "processor", lambda: "")
    monkeypatch.setattr(provenance.platform, "machine", lambda: "aarch64")
    assert provenance.processor() == name
