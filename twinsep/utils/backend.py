"""The twins by name, imported only when one is asked for."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import os
import platform
from pathlib import Path
from types import ModuleType

from twinsep.errors import InputError

#: framework -> the package of its twin.
TWINS = {"torch": "torch_impl", "jax": "jax_impl"}


def twin(framework: str, module: str = "") -> ModuleType:
    """The twin's package, or one of its modules.

    Raises :class:`InputError` for an unknown framework or one that is not installed.
    """
    if framework not in TWINS:
        raise InputError(f"unknown framework {framework!r}; known: {', '.join(TWINS)}")
    # GNU OpenMP's threads wait for each other in busy loops of millions of turns: with one other busy process on the
    # machine a training step then takes several times as long. A short loop costs nothing on an idle one. Read when
    # the framework is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    keep_freed_memory()
    if framework == "jax":
        _prepare_xla()
    try:
        return importlib.import_module(f"{TWINS[framework]}.{module}".rstrip("."))
    except ModuleNotFoundError as error:
        raise InputError(
            f"framework {framework} needs the package {error.name}; install it with: pip install 'twinsep[{framework}]'"
        ) from error


#: Parameters of glibc's mallopt(3), and what they are set to: no block is mapped by itself, the heap is never trimmed
#: and grows by 32 MiB.
SETTINGS = {-4: 0, -1: 2**31 - 1, -2: 32 << 20}  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD


def keep_freed_memory() -> None:
    """Let this process use again what it has freed, for work that takes the same blocks over and over.

    A training step frees its activations and the next one asks for them again; fetched anew, each page of them costs a
    page fault, which on a virtual machine can take as long as the arithmetic on it. What is resident stays what it was
    at its peak. Does nothing where the C library is not glibc.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in SETTINGS.items():
            mallopt(parameter, value)


def _prepare_xla() -> None:
    """Have JAX keep what it compiles, and use the whole of the CPU's vectors, where nothing else was asked for.

    Half a minute of compiling a model is most of what a short song takes. Programs for one kind of processor do not run
    on another, and a home may be shared by several: each has a folder of its own. Read when JAX is loaded.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_prefer_vector_width" not in flags:
        # By default vectors are half as long as AVX-512's, which takes a tenth longer.
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_prefer_vector_width=512".strip()
    with contextlib.suppress(OSError, RuntimeError):  # no home, or none that may be looked into: nothing is kept
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        existing = next(path for path in (home, *home.parents) if path.exists())
        if os.access(existing, os.W_OK):
            kept = home / "twinsep" / "xla" / hashlib.sha256(_processor().encode()).hexdigest()[:16]
            os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(kept))


def _processor() -> str:
    """Model and abilities of the CPU, in whatever words the system has for them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform() + platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model", "flags", "Features", "CPU"))}))


def use_threads(count: int) -> None:
    """Have this process compute on so many cores, by either framework; call it before one is loaded.

    Raises :class:`InputError` for more than there are, or fewer than one.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    if not 1 <= count <= len(cores):
        raise InputError(f"--threads {count} is not possible here; give 1 to {len(cores)}")
    os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = str(count)
    if hasattr(os, "sched_setaffinity"):  # the way that JAX heeds
        os.sched_setaffinity(0, cores[:count])


def make_deterministic(framework: str) -> None:
    """Have the framework choose algorithms that repeat to the bit, on an accelerator too.

    Call it before the framework's first use: JAX reads its flags once. PyTorch warns of each operation that has no such
    algorithm, by name; JAX stops at it. On a CPU all repeat anyway.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats with this alone
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"
    if framework == "torch":
        twin(framework, "train").make_deterministic()
