"""What can go wrong through no fault of the program, told in one sentence.

The command line prints the sentence and exits with status 2, without a traceback.
"""


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
