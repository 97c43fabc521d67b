"""Worker processes of ``twinsep bench``: one framework each, controlled by lines of JSON.

Between requests a worker waits for its standard input. It imports one framework; the controlling process imports none.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from twinsep.errors import InputError, TwinsepError

#: Bytes of a mebibyte.
MIB = 1 << 20


class WorkerProcess:
    """A worker process with ``framework``, as a context manager that kills it at the end.

    ``threads`` limits it to that number of cores. ``device`` is the device that it measures, "cpu" or "cuda";
    ``variables`` are added to its environment.
    """

    def __init__(
        self,
        framework: str,
        threads: int | None = None,
        device: str = "cpu",
        variables: Mapping[str, str] = MappingProxyType({}),
    ):
        self.framework = framework
        # JAX must use the CPU even where there is an accelerator, and the first call must show the cost of compiling.
        environment = (
            os.environ
            | dict(variables)
            | {
                "JAX_PLATFORMS": "cpu" if device == "cpu" else f"{device},cpu",
                "JAX_ENABLE_COMPILATION_CACHE": "false",
            }
        )
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the peak is to be that of the measurement
        limit = [] if threads is None else [str(threads)]
        if limit:  # NumPy's matrix products read it on import
            environment["OPENBLAS_NUM_THREADS"] = limit[0]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "twinsep.benchmarks.worker", framework, *limit],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            # Ctrl-C reaches only the controlling process, which then kills this one: no second traceback.
            start_new_session=True,
        )

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        # Leaving closes the pipes, one of which may hold a request to a process that has ended, and waits.
        with contextlib.suppress(BrokenPipeError), self.process:
            self.process.kill()

    def ask(self, method: str, **arguments: Any) -> Any:
        """Call ``method`` of :class:`twinsep.benchmarks.worker.Worker` in the process and return its result.

        Raises :class:`InputError` if the method raises an error of twinsep, and :class:`TwinsepError` if the process
        ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # reported below
            self.process.stdin.write(json.dumps([method, arguments]) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            why = f"signal {-status}, perhaps because memory ran out" if status < 0 else f"status {status}, see above"
            raise TwinsepError(f"the {self.framework} process ended during {method!r} ({why})")
        answer = json.loads(line)
        if "error" in answer:
            raise InputError(answer["error"])
        return answer["value"]
