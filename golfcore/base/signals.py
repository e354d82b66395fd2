"""Being asked to end (SIGTERM, SIGHUP): at once, or as soon as what must be whole is whole. Only in the main thread."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
Handler = Callable[[int, FrameType | None], object]


class Stopped(BaseException):
    """The process was asked to end; what was saved is whole, and the same command goes on from it."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Within, a signal raises Stopped at once."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Stopped(signal.Signals(number).name)

    with _handled(stop):
        yield


@contextmanager
def whole() -> Iterator[Callable[[], bool]]:
    """Within, a signal waits for the end, where it raises Stopped; yields whether there was one."""
    found: list[int] = []

    def wait(number: int, frame: FrameType | None) -> None:
        found.append(number)

    with _handled(wait):
        yield lambda: bool(found)
    if found:
        raise Stopped(signal.Signals(found[0]).name)


@contextmanager
def _handled(handler: Handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
