"""The one exception for mistakes a user can make; everything else keeps its traceback."""

import errno


class UserError(Exception):
    """Bad input: one sentence naming the file or key, what was expected and what was found.

    The command line prints the sentence and exits with 2.
    """


SYSTEM = {  # what the operating system refuses, in words
    errno.ENOENT: "expected a file or folder, found none of that name",
    errno.ENOTDIR: "expected a folder in this path, found a file",
    errno.EISDIR: "expected a file, found a folder",
    errno.EEXIST: "expected a folder, found a file",
    errno.ENOTEMPTY: "expected an empty folder, found files in it",
    errno.EACCES: "expected to be allowed to use it, found permission denied",
    errno.EPERM: "expected to be allowed to use it, found permission denied",
    errno.ENAMETOOLONG: "expected a shorter file name, found one that the file system does not take",
    errno.ELOOP: "expected a file or folder, found links that lead back to themselves",
    errno.EMFILE: "expected to open another file, found that this process has too many open",
    errno.EIO: "expected to read or write, found that the device does not answer",
    errno.ENOSPC: "cannot write, no space left on the device",
    errno.EDQUOT: "cannot write, disk quota exceeded",
    errno.EROFS: "cannot write, read-only disk",
}


def sentence(e: OSError) -> str | None:
    """What the operating system refused and for which file; None for errors that are no user's."""
    if e.errno not in SYSTEM:
        return None
    where = e.filename2 or e.filename
    return f"{shown(str(where))}: {SYSTEM[e.errno]}" if where else SYSTEM[e.errno]


def shown(value: object, most: int = 80) -> str:
    """`value` for an error: text as it is and other values as Python spells them, in one line of `most` characters."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; lists thousands deep
        text = f"a {type(value).__name__} too large to show"
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."
