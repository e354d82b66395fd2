"""The one exception for mistakes a user can make; everything else keeps its traceback."""


class UserError(Exception):
    """Bad input: one sentence naming the file or key, what was expected and what was found.

    The command line prints the sentence and exits with 2.
    """
