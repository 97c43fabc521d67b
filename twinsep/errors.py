"""The one exception that means "the input is wrong", as opposed to "the program is"."""


class InputError(ValueError):
    """Bad input, told in one sentence that says what is wrong and what to do.

    The command line prints the sentence and exits with status 2, without a traceback.
    """
