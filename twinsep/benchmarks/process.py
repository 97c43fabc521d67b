"""A framework in a fresh process of its own, asked in lines of JSON: for ``twinsep bench``.

Between questions a worker waits for its standard input and does nothing. It holds one framework, the process that asks
holds none.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from typing import Any

from twinsep.errors import InputError, TwinsepError

MIB = 1 << 20


class WorkerProcess:
    """The process, as a context: on leaving, for whatever reason, it is killed."""

    def __init__(self, framework: str):
        self.framework = framework
        # On a machine with an accelerator JAX too has to choose what is fastest on the CPU.
        # A first call is to show what compiling takes.
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "twinsep.benchmarks.worker", framework],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            # Ctrl-C reaches the asking process alone, which then kills this one: no second traceback.
            start_new_session=True,
        )

    def __enter__(self) -> WorkerProcess:
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
