"""Import of the twins by framework, and the process settings that must precede it."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import os
import platform
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from twinsep.errors import InputError

#: Package by framework.
TWINS = {"torch": "torch_impl", "jax": "jax_impl"}


def twin(framework: str, module: str = "") -> ModuleType:
    """Import the package that implements ``framework``, or its ``module``.

    Raises :class:`InputError` for a framework that is unknown or not installed.
    """
    if framework not in TWINS:
        raise InputError(f"unknown framework {framework!r}; known: {', '.join(TWINS)}")
    # Threads of GNU OpenMP wait for each other in long busy loops, which slow a training step down several times if
    # another process is busy. Short loops cost nothing on an idle machine. The variable is read on import.
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


#: The device that is chosen on this machine, and the kinds that twinsep was written for.
AUTO = "auto"
_KNOWN = ("cpu", "cuda", "gpu", "mps")


def choose_device(framework: str, name: str, say: Callable[[str], None]) -> str:
    """Return the device ``name``, or for "auto" the best one that ``framework`` can use here; ``say`` tells the user.

    Raises :class:`InputError` for a framework that is unknown or not installed.
    """
    if name == AUTO:
        name = twin(framework, "devices").choose_device()
        say(f"computing on {name}")
    elif name.partition(":")[0] not in _KNOWN:
        say(f"the device {name} is untested: compare a short song with --device cpu")
    return name


#: Parameters of glibc's mallopt(3): never map a block by itself, never trim the heap, grow it by 32 MiB, and let all
#: threads share the one heap: those of XLA's threads return freed memory whatever the other settings.
MALLOC_SETTINGS = {-4: 0, -1: 2**31 - 1, -2: 32 << 20, -8: 1}  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD, M_ARENA_MAX


def keep_freed_memory() -> None:
    """Keep freed memory in this process for reuse, at its peak size. Does nothing without glibc.

    A training step frees its activations, and the next step allocates them again. If they are returned to the system,
    each page costs a page fault, which on a virtual machine can take as long as the arithmetic on it.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in MALLOC_SETTINGS.items():
            mallopt(parameter, value)


def _prepare_xla() -> None:
    """Set XLA's CPU vector width and JAX's compilation cache, unless the environment already does.

    Compiling a model takes half a minute, most of the time of a short song. Programs compiled for one processor do not
    run on another, and several may share a home directory: each has its own folder. JAX reads the settings on import.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_prefer_vector_width" not in flags:
        # XLA's default is half the width of AVX-512, which is 10 % slower.
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_prefer_vector_width=512".strip()
    with contextlib.suppress(OSError, RuntimeError):  # no readable home directory: no cache
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        existing = next(path for path in (home, *home.parents) if path.exists())
        if existing.is_dir() and os.access(existing, os.W_OK):  # systems name /dev/null as the home of a service
            cache = home / "twinsep" / "xla" / hashlib.sha256(_processor().encode()).hexdigest()[:16]
            os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))


def _processor() -> str:
    """Model and features of the CPU, as the system describes them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform() + platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model", "flags", "Features", "CPU"))}))


def use_threads(count: int) -> None:
    """Limit this process to ``count`` cores, for either framework; call it before importing one.

    Raises :class:`InputError` unless ``count`` is between 1 and the number of cores.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    if not 1 <= count <= len(cores):
        raise InputError(f"--threads {count} is not possible here; choose 1 to {len(cores)}")
    os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = str(count)
    if hasattr(os, "sched_setaffinity"):  # JAX reads only this
        os.sched_setaffinity(0, cores[:count])


def make_deterministic(framework: str) -> None:
    """Make the framework choose deterministic algorithms, on accelerators too; call it before the framework is used.

    For an operation without such an algorithm PyTorch warns and JAX fails. CPU results are always deterministic.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"
    if framework == "torch":
        twin(framework, "train").make_deterministic()
