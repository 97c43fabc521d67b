"""How the C library hands memory back: by default it gives large blocks to the system as soon as they are free."""

from __future__ import annotations

import contextlib
import ctypes

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
