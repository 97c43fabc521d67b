"""Reuse of freed memory, counted in page faults."""

import platform
import subprocess
import sys

import pytest

CODE = """
import resource
import sys
import threading
from twinsep.utils.backend import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def allocate():
    blocks = [b"x" * (int(sys.argv[2]) << 20) for _ in range(8)]

def activations():
    if sys.argv[3] == "main":
        allocate()
    else:
        thread = threading.Thread(target=allocate)
        thread.start()
        thread.join()

if sys.argv[1] == "keep":
    keep_freed_memory()
activations()
before = faults()
for _ in range(3):
    activations()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc is left alone")
@pytest.mark.parametrize("thread", ["main", "another"])  # XLA allocates in threads of its own
@pytest.mark.parametrize("mib", [2, 40])  # above 32 MiB glibc would map each block by itself, whatever its threshold
def test_freed_memory_is_used_again(mib, thread):
    counts = {}
    for how in ("keep", "default"):
        command = [sys.executable, "-c", CODE, how, str(mib), thread]
        counts[how] = int(subprocess.run(command, capture_output=True, check=True).stdout)
    pages = 3 * 8 * 256 * mib
    assert counts["keep"] < pages / 20
    assert counts["default"] > pages / 2  # or nothing was gained
