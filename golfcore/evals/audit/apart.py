"""A black box in a process of its own: it answers questions, and has nothing else to look at.

The process is started anew, so that neither the stack nor the memory of the auditor is there; what it opens is heard;
connections are refused, and so are files but those below its own folder. Answers come back as plain numbers: nothing
that it sends can execute code here.
"""

import copy
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from golfcore.base.errors import UserError
from golfcore.evals.audit.bench import CODE, SYSTEM
from golfcore.evals.audit.scorer import Scorer, Scores
from golfcore.evals.ledger import KINDS, Event

PATIENCE = 600.0  # seconds for one answer
DTYPES = {"int64", "float64"}


@contextmanager
def process(serve: Callable[..., None], *arguments: object) -> Iterator[Connection]:
    """Our end of a pipe to a new process that runs `serve(its end, *arguments)`; it ends when the pipe is closed."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=serve, args=(theirs, *arguments), daemon=True)
    child.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        child.join(5)
        if child.is_alive():
            child.kill()


def receive(pipe: Connection, what: str) -> bytes:
    """The next message of the process. UserError: it has ended, or says nothing for PATIENCE."""
    if not pipe.poll(PATIENCE):
        raise UserError(f"{what}: expected an answer within {PATIENCE:.0f} s, found none")
    try:
        return pipe.recv_bytes()
    except EOFError:
        raise UserError(f"{what}: expected an answer, found that its process had ended") from None


def send(pipe: Connection, message: bytes, what: str) -> None:
    """UserError: the process has ended."""
    try:
        pipe.send_bytes(message)
    except OSError:
        raise UserError(f"{what}: expected it to listen, found that its process had ended") from None


@contextmanager
def scorer_apart(make: Callable[..., Scorer], *arguments: object, own: Path | None = None) -> Iterator[Scorer]:
    """The scorer `make(*arguments)` in a process of its own, as a scorer that can be audited here.

    `make` and its arguments travel by pickle, from here alone; it may read anything. What the scorer is asked later it
    answers without connections and without files but those below `own`: what it tries is in the report (T13).
    """
    with process(_serve, make, arguments, None if own is None else str(own.resolve())) as pipe:
        _numbers(pipe, "the scorer")  # it is made
        yield Remote(pipe, 0, [])


class Remote:
    """A scorer in another process, by its number there. A copy of it is a copy there."""

    def __init__(self, pipe: Connection, number: int, gone: list[int]) -> None:
        self.pipe, self.number, self.opened = pipe, number, list[str]()
        self.gone = gone  # copies that nobody holds any more: the next question says so

    def __deepcopy__(self, memo: dict) -> "Remote":
        return Remote(self.pipe, int(self._ask("copy", {})["number"][0]), self.gone)

    def __del__(self) -> None:
        self.gone.append(self.number)

    def run(self, tokens: np.ndarray) -> Scores:
        found = self._ask("run", {"tokens": tokens})
        try:
            log = [Event(KINDS[kind], *map(int, row)) for kind, *row in found.get("log", [])]
        except (IndexError, TypeError) as e:
            raise UserError(f"the scorer: expected a log of events, found another array ({e})") from None
        start = int(found["start"][0]) if "start" in found else None
        return Scores(found["positions"], found["nats"], log, found.get("states"), start)

    def log_probs(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return self._ask("rows", {"tokens": tokens, "positions": positions})["rows"]

    def _ask(self, question: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        what = "the scorer"
        gone, self.gone[:] = list(self.gone), []
        _tell(self.pipe, {"ask": question, "number": self.number, "gone": gone}, arrays)
        found = _numbers(self.pipe, what)
        self.opened += found.pop("opened", [])
        return found


def _tell(pipe: Connection, head: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """A message: its head with the shapes of the arrays, then each array."""
    shapes = {name: [str(array.dtype), list(array.shape)] for name, array in arrays.items()}
    send(pipe, json.dumps(head | {"arrays": shapes}).encode(), "the scorer")
    for array in arrays.values():
        send(pipe, np.ascontiguousarray(array).tobytes(), "the scorer")


def _numbers(pipe: Connection, what: str) -> dict[str, Any]:
    """An answer: arrays by name, and the list `opened`. UserError: an error there, or what is no answer."""
    try:
        head = json.loads(receive(pipe, what))
        found = {}
        for name, (kind, shape) in head["arrays"].items():
            if kind not in DTYPES:
                raise ValueError(f"an array of {kind}")
            found[name] = np.frombuffer(receive(pipe, what), kind).reshape(shape)
    except (ValueError, TypeError, KeyError) as e:
        raise UserError(f"{what}: expected numbers, found an answer that is none ({e})") from None
    if head.get("error"):
        raise UserError(f"{what}: expected an answer, found {str(head['error'])[:300]}")
    return found | {"opened": [str(name) for name in head.get("opened", [])]}


# -- in the other process


def _serve(pipe: Connection, make: Callable[..., Scorer], arguments: Sequence[object], own: str | None) -> None:
    scorers, made, heard = {0: make(*arguments)}, 1, list[str]()
    sys.addaudithook(_guard(own, heard))
    _tell(pipe, {}, {})
    while True:
        try:
            asked = json.loads(pipe.recv_bytes())
            given = {n: np.frombuffer(pipe.recv_bytes(), k).reshape(s).copy() for n, (k, s) in asked["arrays"].items()}
        except EOFError:
            return
        head, answer, number = dict[str, Any](), dict[str, np.ndarray](), asked["number"]
        for old in asked["gone"]:
            scorers.pop(old, None)
        try:
            match asked["ask"]:
                case "copy":
                    scorers[made], answer, made = copy.deepcopy(scorers[number]), {"number": np.array([made])}, made + 1
                case "run":
                    answer = _plain(scorers[number].run(given["tokens"]))
                case "rows":
                    rows = scorers[number].log_probs(given["tokens"], given["positions"])
                    answer = {"rows": np.asarray(rows, np.float64)}
        except Exception as e:
            head["error"] = f"{type(e).__name__}: {e}"
        head["opened"], heard[:] = list(heard), []
        _tell(pipe, head, answer)


def _plain(scores: Scores) -> dict[str, np.ndarray]:
    found = {"positions": np.asarray(scores.positions, np.int64), "nats": np.asarray(scores.nats, np.float64)}
    if scores.log:
        found["log"] = np.array([[KINDS.index(e.kind), *e[1:]] for e in scores.log], np.int64)
    if scores.states is not None:
        found["states"] = np.asarray(scores.states).astype(np.int64)
    return found if scores.start is None else found | {"start": np.array([scores.start], np.int64)}


def _guard(own: str | None, heard: list[str]) -> Callable[[str, tuple], None]:
    """An audit hook that refuses connections, other programs, and files that are not the scorer's own."""

    def hear(event: str, args: tuple) -> None:
        if event in ("socket.connect", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
            heard.append(f"{event} {args[1] if event == 'socket.connect' else args[0]}")
            raise PermissionError(f"{event} is not allowed while scoring")
        if event == "open" and isinstance(args[0], str | bytes | Path):
            name = args[0].decode(errors="replace") if isinstance(args[0], bytes) else str(args[0])
            if Path(name).suffix in CODE or name.startswith(SYSTEM):
                return
            if own is None or not Path(name).resolve().is_relative_to(own):
                heard.append(name)
                raise PermissionError(f"{name}: not the scorer's own")

    return hear
