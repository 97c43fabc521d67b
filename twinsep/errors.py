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
