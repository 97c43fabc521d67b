"""The position of this process among the processes of a training run, from environment variables."""

from __future__ import annotations

import os
from typing import NamedTuple

from twinsep.errors import InputError

#: Variables of a process's index and of their number: torchrun's, and those that JAX documents.
_VARIABLES = (("RANK", "WORLD_SIZE"), ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES"))


class Process(NamedTuple):
    """This process among those of the run."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """True for the process that validates, logs and writes checkpoints."""
        return self.rank == 0


def current() -> Process:
    """Return this process; raises :class:`InputError` unless the variables are integers with 0 ≤ rank < size."""
    for index, count in _VARIABLES:
        if index in os.environ and count in os.environ:
            try:
                found = Process(int(os.environ[index]), int(os.environ[count]))
            except ValueError:
                found = Process(0, 0)
            if not 0 <= found.rank < found.size:
                raise InputError(
                    f"{index}={os.environ[index]} and {count}={os.environ[count]} do not number a process: "
                    "start the processes with torchrun, or set both as the READMEs say"
                )
            return found
    return Process()
