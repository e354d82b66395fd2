"""The one exception for mistakes a user can make; everything else keeps its traceback."""

import errno

# Errors of the system that come from a name that a user gave, or from the disk.
USERS = {getattr(errno, name) for name in "ENOENT ENOTDIR EISDIR EEXIST ENOTEMPTY EACCES EPERM ENAMETOOLONG".split()}
USERS |= {errno.ELOOP, errno.EMFILE, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS}


class UserError(Exception):
    """Bad input: one sentence naming the file or key, what was expected and what was found.

    The command line prints the sentence and exits with 2.
    """


def sentence(e: OSError) -> str | None:
    """What the operating system refused and for which file; None for errors that are no user's."""
    if e.errno not in USERS:
        return None
    where = e.filename2 or e.filename
    named = f"{shown(str(where))}: " if where else ""
    return f"{named}expected to be able to use it, found {str(e.strerror).lower()!r}"


def shown(value: object, most: int = 80) -> str:
    """`value` for an error: text as it is and other values as Python spells them, in one line of `most` characters."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; lists thousands deep
        text = f"a {type(value).__name__} too large to show"
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."
