"""A framework in a fresh process of its own, asked in lines of JSON: for ``twinsep bench``.

Between questions a worker waits for its standard input and does nothing. It holds one framework, the process that asks
holds none.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from twinsep import provenance
from twinsep.errors import InputError, TwinsepError
from twinsep.kernels.threads import cores

MIB = 1 << 20
#: Variables of the environment that change what is measured.
VARIABLES = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "MKL_NUM_THREADS", "XLA_FLAGS", "NPROC")


class Worker:
    """The process, as a context: on leaving, for whatever reason, it is killed."""

    def __init__(self, framework: str):
        self.framework = framework
        # On a machine with an accelerator JAX too has to choose what is fastest on the CPU.
        # A first call is to show what compiling takes.
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "twinsep.benchmarks.workers", framework],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            # Ctrl-C reaches the asking process alone, which then kills this one: no second traceback.
            start_new_session=True,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        # Leaving closes the pipes, one of which may hold a question to a process that has ended, and waits.
        with contextlib.suppress(BrokenPipeError), self.process:
            self.process.kill()

    def ask(self, method: str, **arguments: Any) -> Any:
        """What ``method`` of the worker's :class:`Subject` returns.

        Raises :class:`InputError` where that does, and :class:`TwinsepError` where the process has ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # that it has ended is told below
            self.process.stdin.write(json.dumps([method, arguments]) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            why = f"signal {-status}, perhaps for want of memory" if status < 0 else f"status {status}, as said above"
            raise TwinsepError(f"the process of {self.framework} ended during {method!r} ({why})")
        answer = json.loads(line)
        if "error" in answer:
            raise InputError(answer["error"])
        return answer["value"]


def main() -> None:
    """Answer until the standard input ends, with the framework that the first argument names."""
    from twinsep.benchmarks.subject import Subject

    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what a library prints is no answer
        subject = Subject(sys.argv[1])
        for line in sys.stdin:
            method, arguments = json.loads(line)
            try:
                answer = {"value": getattr(subject, method)(**arguments)}
            except TwinsepError as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), file=answers, flush=True)


class Watch:
    """The largest resident size of this process from here on, in MiB; ``before`` is what it is here."""

    def __init__(self) -> None:
        gc.collect()
        # Freed memory that the C library keeps would be used again unseen; glibc alone has this.
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to what is resident now
            self.source = "VmHWM of /proc/self/status, reset before"
        except OSError:
            self.source = "ru_maxrss, never reset: where an earlier peak was higher, the difference is too small"
        self.before = self.peak()

    def peak(self) -> float:
        """So far."""
        if not self.source.startswith("VmHWM"):
            return provenance.peak_memory_mib()
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024  # KiB


def setting(framework: str) -> dict[str, Any]:
    """On how many threads the loaded framework computes, and what it was told by :data:`VARIABLES`."""
    threads = cores()  # XLA's, one for each
    if framework == "torch":
        import torch

        threads = torch.get_num_threads()
    return {"threads": threads, "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ}}


def noise(*shape: int, seed: int) -> np.ndarray:
    """White noise of 0.1 rms in float32."""
    return (0.1 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


if __name__ == "__main__":
    main()
