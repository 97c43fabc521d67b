"""What can go wrong through no fault of the program, told in one sentence.

The command line prints the sentence and exits with status 2, without a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

#: Exit status of a command that Ctrl-C ended.
INTERRUPTED = 130


class TwinsepError(Exception):
    """One sentence that says what is wrong and what to do."""


class InputError(TwinsepError, ValueError):
    """Bad input: a file, a folder, a configuration, an array."""


class NonFiniteLossError(TwinsepError):
    """Training met a loss or a gradient that is not a number."""


class OutOfMemoryError(TwinsepError):
    """The memory of the machine, or of its accelerator, does not hold what was asked for."""


class Interrupted(TwinsepError):
    """A person pressed Ctrl-C."""


#: What frameworks and systems say when there is no memory left.
_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "resource_exhausted", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of Python, PyTorch or JAX says that memory ran out."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY)


def guarded(command: Callable[[], object]) -> None:
    """Run ``command``; an error is one sentence on the standard error and a status other than 0, never a traceback."""
    try:
        command()
        return
    except TwinsepError as error:
        status, sentence = INTERRUPTED if isinstance(error, Interrupted) else 2, str(error)
    except KeyboardInterrupt:
        status, sentence = INTERRUPTED, "interrupted; nothing half-written was left behind"
    except BrokenPipeError:
        status, sentence = 141, ""
    except MemoryError:
        status, sentence = 2, "memory ran out; ask for less at once"
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        status, sentence = 2, f"{where}{error.strerror or error}; free the way or choose another place"
    if sentence:
        print(f"twinsep: {sentence}", file=sys.stderr)
    sys.exit(status)
