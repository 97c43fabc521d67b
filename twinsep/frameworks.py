"""The twins by name, imported only when one is asked for."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

from twinsep.allocator import keep_freed_memory
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
    try:
        return importlib.import_module(f"{TWINS[framework]}.{module}".rstrip("."))
    except ModuleNotFoundError as error:
        raise InputError(
            f"framework {framework} needs the package {error.name}; install it with: pip install 'twinsep[{framework}]'"
        ) from error


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
