"""A score that is proven: the auditor drives, one token at a time, and takes the score itself.

A predictor says log-probabilities of the next token, then is told it. It runs in a process of its own, to which
nothing is sent but the tokens that it has already predicted: there is no future to look at, no score of its own to
report, and no distribution that is not the one it is scored by. What is left to prove is that every one sums to one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import NamedTuple, Protocol

import numpy as np

from golfcore.base.errors import UserError
from golfcore.evals.audit.apart import process, receive, send
from golfcore.evals.audit.scorer import Scorer

SLACK = 1e-4  # that a sum of probabilities may be away from 1: float32 over a vocabulary
SAME = 1e-4  # nats between the driven score and the fast one that rounding explains


class Predictor(Protocol):
    def predict(self) -> np.ndarray:
        """(V,) log-probabilities of the next token, after all that was observed."""

    def observe(self, token: int) -> None:
        """The next token, which was predicted or not."""


class Proof(NamedTuple):
    """What driving gave."""

    positions: np.ndarray  # (P,) targets that were predicted, by their place in the stream
    nats: np.ndarray  # (P,) of each, taken by the auditor
    apart: float  # largest distance of a sum of probabilities from 1


class Refused(UserError):
    """A prediction that is no distribution over the vocabulary."""


def drive(predictor: Predictor, tokens: np.ndarray, vocab_size: int, positions: Sequence[int] | None = None) -> Proof:
    """The score of the stream `tokens` (N + 1,), of all targets or of those at `positions` (rising).

    Target p is tokens[p + 1]. Refused: what is predicted is no distribution.
    """
    wanted, nats, apart = list(range(len(tokens) - 1) if positions is None else positions), list[float](), 0.0
    asked = set(wanted)
    for p, token in enumerate(tokens[:-1].tolist()):
        predictor.observe(token)
        if p in asked:
            logs = np.asarray(predictor.predict(), np.float64)
            if logs.shape != (vocab_size,) or np.isnan(logs).any() or (logs > SLACK).any():
                raise Refused(
                    f"target {p}: expected {vocab_size} log-probabilities, found others of shape {logs.shape}"
                )
            off = abs(float(np.exp(logs).sum()) - 1)
            if off > SLACK:
                raise Refused(f"target {p}: expected probabilities that sum to 1, found a sum {off:.2g} away")
            apart = max(apart, off)
            nats.append(float(-logs[int(tokens[p + 1])]))
    return Proof(np.array(wanted), np.array(nats), apart)


class Stepwise:
    """A predictor of any scorer: what is known so far, filled up with one token to the whole length, is scored again.

    Equal to the scorer's own run wherever that looks at nothing to come. The length is all that it knows of the stream.
    """

    def __init__(self, scorer: Scorer, length: int) -> None:
        self.scorer, self.known, self.stream = scorer, 0, np.zeros(length, np.int64)

    def observe(self, token: int) -> None:
        self.stream[self.known] = token
        self.known += 1

    def predict(self) -> np.ndarray:
        return self.scorer.log_probs(self.stream, np.array([self.known - 1]))[0]


@contextmanager
def apart(make: Callable[..., Predictor], *arguments: object) -> Iterator[Predictor]:
    """The predictor `make(*arguments)` in a process of its own, which gets the tokens it is told and nothing else.

    `make` and its arguments travel by pickle, from here alone. UserError: it ends, or says nothing for PATIENCE.
    """
    with process(_serve, make, arguments) as pipe:
        yield _Remote(pipe)


def _serve(pipe: Connection, make: Callable[..., Predictor], arguments: Sequence[object]) -> None:
    predictor = make(*arguments)
    while True:
        try:
            token = pipe.recv_bytes()
        except EOFError:
            return
        if token:
            predictor.observe(int.from_bytes(token, "little"))
        else:
            pipe.send_bytes(np.asarray(predictor.predict(), np.float64).tobytes())


class _Remote:
    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def observe(self, token: int) -> None:
        send(self.pipe, token.to_bytes(4, "little"), "predictor")

    def predict(self) -> np.ndarray:
        send(self.pipe, b"", "predictor")
        return np.frombuffer(receive(self.pipe, "predictor"), np.float64)  # plain numbers: nothing is unpickled
