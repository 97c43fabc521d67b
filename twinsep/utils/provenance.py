"""Where a number comes from: command, commit, device, library versions."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

_LIBRARIES = ("twinsep", "numpy", "scipy", "torch", "numba", "jax", "flax", "optax", "grain", "museval")
#: Named only where something is measured beside them.
PEERS = ("bs-roformer", "demucs", "mambapy", "moises-light")


def describe(device: str, libraries: Sequence[str] = ()) -> dict[str, Any]:
    """What a committed number has to name, as JSON types, the versions of more ``libraries`` where installed."""
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device if device != "cpu" else f"cpu, {os.cpu_count()} cores, {processor()}",
        "platform": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: v for name in (*_LIBRARIES, *libraries) if (v := _version(name))},
    }


def code_hash(*paths: str) -> str:
    """16 hexadecimal digits of the source below ``paths``, files or folders relative to the folder of ``twinsep``."""
    root, found = Path(__file__).resolve().parents[2], hashlib.sha256()
    files = [file for path in paths for file in ((root / path).rglob("*") if (root / path).is_dir() else [root / path])]
    for file in sorted(files):
        if file.suffix in (".py", ".csv"):
            found.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def commit() -> str:
    """The commit of the working tree, "+" behind it where code differs from it, "unknown" outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        code = [":/twinsep", ":/torch_impl", ":/jax_impl", ":/ablations"]
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *code)
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def peak_memory_mib() -> int:
    """Largest resident size of this process so far, in MiB (getrusage counts KiB on Linux, bytes on macOS)."""
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit


def processor() -> str:
    """The processor's own name, where the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
