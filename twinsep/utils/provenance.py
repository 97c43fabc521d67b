"""Provenance of results: command, commit, device, library versions."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_CODE = ("twinsep", "torch_impl", "jax_impl", "ablations")
#: DVC rewrites its locks in the folders of pipelines while stages run.
_NO_CODE = (":(exclude,glob)**/dvc.lock",)
_LIBRARIES = ("twinsep", "numpy", "scipy", "torch", "numba", "jax", "flax", "optax", "grain", "museval")
#: Packages whose versions matter only to the benchmarks that time them.
PEERS = ("bs-roformer", "demucs", "mambapy", "moises-light", "onnx", "onnxruntime", "onnxscript", "ray")


def describe(device: str, libraries: Sequence[str] = ()) -> dict[str, Any]:
    """Return the provenance to record beside a result, as JSON types.

    ``device`` is what the result was computed on ("cpu" is described further); ``libraries`` names packages whose
    versions are recorded besides the usual ones. Packages that are not installed are left out.
    """
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device if device != "cpu" else f"cpu, {os.cpu_count()} cores, {processor()}",
        "platform": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: v for name in (*_LIBRARIES, *libraries) if (v := _version(name))},
    }


def code_hash(*paths: str) -> str:
    """Return 16 hexadecimal digits of SHA-256 over the names and contents of .py and .csv files.

    ``paths`` are files, or folders to search, relative to the repository's root. Raises :class:`FileNotFoundError` if
    one is missing.
    """
    digest = hashlib.sha256()
    found = [(_ROOT / path).resolve(strict=True) for path in paths]
    for file in sorted(file for path in found for file in (path.rglob("*") if path.is_dir() else [path])):
        if file.suffix in (".py", ".csv"):
            digest.update(f"{file.relative_to(_ROOT).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@cache
def commit() -> str:
    """Return 12 digits of the checked-out commit, with "+" if tracked code differs from it, as first asked.

    A long computation asks at its start: a record then names the code that ran, not what was checked out meanwhile.
    Outside a git checkout (an archive, an installed package) and where git cannot read it, return "archive".
    """
    # Another project's repository may enclose an unpacked archive; git would find it.
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(_ROOT.parent)}

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *_CODE, *_NO_CODE)
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "archive"


def peak_memory_mib() -> int:
    """Return the largest resident size of this process so far, in MiB; 0 on Windows, which does not count it."""
    try:
        import resource  # here, so that songs are separated on Windows too
    except ModuleNotFoundError:
        return 0
    # getrusage counts KiB on Linux, bytes on macOS.
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit


def processor() -> str:
    """Return the processor's model name, or its architecture if the system does not tell.

    The widest vectors of an x86 processor follow in brackets: virtual machines give one name to several generations,
    whose results differ.
    """
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    lines = (line.partition(":") for line in text.splitlines())
    facts = {key.strip(): value.strip() for key, _, value in lines}
    name = facts.get("model name") or platform.processor() or platform.machine()
    flags = facts.get("flags", "").split()
    widest = next((vectors for flag, vectors in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), None)
    return f"{name} ({widest})" if widest else name


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
