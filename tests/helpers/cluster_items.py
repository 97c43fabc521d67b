"""Functions of items for a cluster, whose workers import them from here."""

import os
import signal
from pathlib import Path

from twinsep.errors import InputError


def double(x):
    """Twice the item; 3 is refused."""
    if x == 3:
        raise InputError("three is not wanted")
    return 2 * x


def killing(x, folder):
    """The item; -1 kills its worker at every try, 0 at the first."""
    marker = Path(folder) / str(x)
    if x == -1 or (x == 0 and not marker.exists()):
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return x
