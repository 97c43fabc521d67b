"""Errors that are not the program's fault, each one sentence for the user.

The command line prints the sentence and exits with status 2, without a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

#: Exit status of a command that Ctrl-C ended.
INTERRUPTED = 130
#: Exit status of a command whose reader closed the pipe: 128 + SIGPIPE.
_BROKEN_PIPE = 141


class TwinsepError(Exception):
    """One sentence that says what is wrong and what to do."""


class InputError(TwinsepError, ValueError):
    """Bad input: a file, a folder, a configuration, an array."""


class NonFiniteLossError(TwinsepError):
    """A loss or a gradient in training is not finite."""


class OutOfMemoryError(TwinsepError):
    """The memory of the machine or of its accelerator is too small for the task."""


class Cancelled(TwinsepError):
    """The caller gave up; an ``on_progress`` callback raises it to end a separation."""


class Interrupted(TwinsepError):
    """Ctrl-C was pressed."""


#: What frameworks and systems say when there is no memory left.
_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "resource_exhausted", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an exception of Python, PyTorch or JAX says that memory ran out."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY)


def guarded(command: Callable[[], object]) -> None:
    """Run ``command``; turn its errors into one sentence on the standard error and a non-zero exit status."""
    try:
        command()
        return
    except TwinsepError as error:
        status, sentence = INTERRUPTED if isinstance(error, Interrupted) else 2, str(error)
    except KeyboardInterrupt:
        status, sentence = INTERRUPTED, "interrupted; nothing half-written is left"
    except BrokenPipeError:
        status, sentence = _BROKEN_PIPE, ""
    except MemoryError:
        status, sentence = 2, "memory ran out: choose smaller chunks or batches"
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        status = 2
        sentence = f"{where}{error.strerror or error}: check permissions and free space, or choose another path"
    if sentence:
        print(f"twinsep: {sentence}", file=sys.stderr)
    sys.exit(status)
