"""The only source of validation tokens for a protocol, and the only place where scores are kept.

The legality of a result is what the ledger saw, never what a protocol says of itself.
"""

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor


class Legality(StrEnum):
    STATIC = "static"  # weights fixed before any validation token was read
    SCORE_FIRST = "score-first"  # adapted only on targets already scored
    TRAIN_FIRST = "train-first"  # some target was trained on before it was scored: not admissible


class NotFinite(RuntimeError):
    """A score that is NaN or infinite: it may neither be counted nor be left out."""


Kind = Literal["score", "train", "read"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Event(NamedTuple):
    """The positions [start, stop) were read to be predicted, scored, or trained on.

    Ranks that work side by side each keep their own order; what one does before the n-th meeting of all ranks (a
    collective operation) comes before what another does after it, and nothing else about their order is certain.
    """

    kind: Kind
    start: int
    stop: int
    rank: int = 0
    meeting: int = 0  # meetings of all ranks that this rank had passed


class Ledger:
    """`tokens` (total + 1,) ids. `rescore`: count repeated scores (a published quirk) instead of refusing them."""

    def __init__(self, tokens: np.ndarray, rescore: bool = False) -> None:
        self._tokens = np.asarray(tokens)
        self._rescore = rescore
        self.total = len(tokens) - 1
        self.nats = np.full(max(self.total, 0), np.nan, np.float32)  # first score of each target; NaN: none yet
        self.again: list[tuple[int, float]] = []  # (position, nats) of scores beyond the first
        self.events: list[Event] = []  # in order; neighbours of one kind that abut are one event

    @property
    def legality(self) -> Legality:
        if any(trained_too_early(self.events)):
            return Legality.TRAIN_FIRST
        return Legality.SCORE_FIRST if any(e.kind == "train" for e in self.events) else Legality.STATIC

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """(previous, target) ids of every position, to place documents and to account for what was scored."""
        return self._tokens[:-1], self._tokens[1:]

    def read(self, rows: np.ndarray, seq_len: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (n, seq_len) int64 of windows; short windows are padded with token 0 on the right."""
        for _, stop, score_from in rows.tolist():
            self._log("read", score_from, stop)
        return self._windows(rows, seq_len)

    def _windows(self, rows: np.ndarray, seq_len: int) -> tuple[Tensor, Tensor]:
        x, y = np.zeros((2, len(rows), seq_len), dtype=np.int64)
        for i, (start, stop, _) in enumerate(rows):
            x[i, : stop - start] = self._tokens[start:stop]
            y[i, : stop - start] = self._tokens[start + 1 : stop + 1]
        return torch.from_numpy(x), torch.from_numpy(y)

    def record(self, rows: np.ndarray, nats: list[np.ndarray]) -> None:
        """Enter the scores of windows: `nats[i]` for the positions [score_from, stop) of row i, final from now on.

        NotFinite: a score that is no number; RuntimeError: a second score, unless they are counted.
        """
        require_finite(rows, nats)
        for (_, stop, score_from), values in zip(rows.tolist(), nats, strict=True):
            known = self.nats[score_from:stop]
            repeated = np.flatnonzero(~np.isnan(known))
            if len(repeated) and not self._rescore:
                raise RuntimeError(f"positions {score_from} to {stop}: some were already scored")
            self.again += [(score_from + i, float(values[i])) for i in repeated.tolist()]
            self.nats[score_from:stop] = np.where(np.isnan(known), values, known)
            self._log("score", score_from, stop)

    def train(self, starts: np.ndarray, seq_len: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (n, seq_len) of the rows that begin at `starts`, to adapt on."""
        for start in starts.tolist():
            self._log("train", start, start + seq_len)
        return self._windows(np.stack((starts, starts + seq_len, starts), axis=1), seq_len)

    def _log(self, kind: Kind, start: int, stop: int) -> None:
        if self.events and self.events[-1].kind == kind and self.events[-1].stop == start:
            start = self.events.pop().start
        if stop > start:
            self.events.append(Event(kind, start, stop))


def require_finite(rows: np.ndarray, nats: list[np.ndarray]) -> None:
    """NotFinite: the first score of these windows that is no number."""
    for (_, _, score_from), values in zip(rows, nats, strict=True):
        if len(bad := np.flatnonzero(~np.isfinite(values))):
            raise NotFinite(f"the score of position {score_from + bad[0]} is {values[bad[0]]}")


def trained_too_early(log: Sequence[Event]) -> Iterator[str]:
    """A sentence for each training on targets not surely scored before it, in the joined logs of any number of ranks.

    A score comes surely before a training if the same rank made it before, or another rank made it before a meeting
    of all ranks that comes before the training.
    """
    size = max((e.stop for e in log), default=0)
    own = {rank: np.zeros(size, dtype=bool) for rank in {e.rank for e in log}}
    for event in log:
        if event.kind == "read":
            continue
        if event.kind == "score":
            own[event.rank][event.start : event.stop] = True
            continue
        sure = own[event.rank][event.start : event.stop].copy()
        for e in log if len(own) > 1 else ():
            if e.kind == "score" and e.rank != event.rank and e.meeting < event.meeting:
                sure[max(e.start - event.start, 0) : max(e.stop - event.start, 0)] = True
        if not sure.all():
            yield (
                f"rank {event.rank} trained on {(~sure).sum():,} targets before they were scored, "
                f"the first at position {event.start + int(np.argmin(sure))}"
            )


def read_before(log: Sequence[Event]) -> np.ndarray:
    """Positions that were read in an earlier pass than the one that scored them: in a warm-up, or to choose by."""
    size = max((e.stop for e in log), default=0)
    reads, scored = np.zeros(size, np.int64), np.zeros(size, dtype=bool)
    for event in log:
        span = slice(event.start, event.stop)
        if event.kind == "read":
            reads[span] += ~scored[span]
        elif event.kind == "score":
            scored[span] = True
    return np.flatnonzero(reads > 1)
