"""Standard streams as a command finds them: closed, or read by a program that has seen enough."""

import contextlib
import os
import sys
from collections.abc import Iterator


def open_closed() -> None:
    """Streams that are closed lead nowhere, instead of into the next file that is opened."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, open(number, mode, closefd=False))


@contextlib.contextmanager
def flushed() -> Iterator[None]:
    """What was printed is out when the block ends, however it ends: a pipe that is closed fails here, not at exit."""
    try:
        yield
    finally:
        sys.stdout.flush()


def discard() -> None:
    """Nothing that standard output still holds is written at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(text: str) -> None:
    """One line on standard error, whatever line breaks `text` has; nothing if nobody reads there."""
    with contextlib.suppress(OSError):
        print(" ".join(text.split()), file=sys.stderr, flush=True)
