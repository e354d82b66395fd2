"""What can be audited: the two methods of a scorer, and golfcore's own protocols as scorers."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from golfcore.config import Config
from golfcore.evals import protocols
from golfcore.evals.evaluation import Evaluation, Subject
from golfcore.evals.ledger import Event
from golfcore.evals.ppm import Ppm
from golfcore.evals.score import Look
from golfcore.model.weights import Weights, fingerprint


@dataclass(frozen=True)
class Scores:
    """One pass over a stream of N + 1 tokens; position p (0 <= p < N) predicts token p + 1.

    `positions` and `nats` are all scores (n,) in the order in which they were recorded. `log`, if kept, is every
    scoring and every training in order. `states`, if kept, holds for each score a hash of all that can adapt, taken
    when it was made, and `start` the same before the first token was read. The log and the states are the scorer's
    word; the tests that change tokens do not depend on them.
    """

    positions: np.ndarray
    nats: np.ndarray
    log: Sequence[Event] = ()
    states: np.ndarray | None = None
    start: int | None = None

    def dense(self, total: int) -> np.ndarray:
        """The first score of each position, (total,) float64; NaN where there is none."""
        out = np.full(total, np.nan)
        inside = (self.positions >= 0) & (self.positions < total)
        out[self.positions[inside][::-1]] = self.nats[inside][::-1]
        return out


class Scorer(Protocol):
    """What a user brings. The audit runs only copies of it (`copy.deepcopy`), a fresh one for each question."""

    def run(self, tokens: np.ndarray) -> Scores:
        """Score the stream `tokens` (N + 1,) from its beginning, adapting as the scorer does."""
        ...

    def log_probs(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """The whole distributions ln p (len(positions), V) that `run` on the same stream takes its scores from."""
        ...


class ProtocolScorer:
    """A protocol of golfcore (`golfcore.evals.protocols`) with its configuration, and weights with byte tables.

    The `subject`'s own text is not scored: each run brings one.
    """

    def __init__(self, protocol: str, cfg: Config, subject: Subject, changes: protocols.Changes | None = None) -> None:
        self.protocol, self.span, self.subject = protocol, cfg.ttt.chunk_tokens, subject
        self.cfg = protocols.configure(protocol, cfg, changes)

    def __deepcopy__(self, memo: dict) -> "ProtocolScorer":
        """A copy that shares the weights, which an evaluation reads only (T0 shows if it does not)."""
        return copy.copy(self)

    def begin(self, tokens: np.ndarray, look: Look | None = None) -> Evaluation:
        return Evaluation(self.protocol, self.cfg, self.span, self.subject._replace(tokens=tokens), look)

    def run(self, tokens: np.ndarray) -> Scores:
        states = list[np.ndarray]()

        def look(rows: np.ndarray, logits: list[Tensor], weights: Weights) -> None:
            states.append(np.full(sum(map(len, logits)), _state(weights)))

        ledger = _finished(self.begin(tokens, look)).ledger
        positions = np.concatenate([np.arange(e.start, e.stop) for e in ledger.events if e.kind == "score"])
        nats = ledger.nats[positions].astype(np.float64)
        nats[pd.Series(positions).duplicated()] = [n for _, n in ledger.again]
        return Scores(positions, nats, ledger.events, np.concatenate(states), _state(self.subject.weights))

    def log_probs(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        rows = {int(p): np.full(self.cfg.model.vocab_size, np.nan) for p in positions}
        waiting = set(rows)

        def look(spans: np.ndarray, logits: list[Tensor], weights: Weights) -> None:
            for (_, stop, score_from), found in zip(spans, logits, strict=True):
                for p in waiting & set(range(score_from, stop)):
                    rows[p] = torch.log_softmax(found[p - score_from], dim=-1).cpu().numpy()
                    waiting.remove(p)

        evaluation = self.begin(tokens, look)
        while waiting and not evaluation.finished:  # what comes later changes nothing that was scored
            evaluation.step()
        if weight := self.cfg.eval.ppm_weight:
            ppm = Ppm(self.cfg.model.vocab_size)
            for p in range(len(tokens) - 1):
                previous, target = tokens[p : p + 1], tokens[p + 1 : p + 2]
                if p in rows:
                    rows[p] = ppm.mix(weight, rows[p][None], previous, target)[0]
                else:
                    ppm.see(previous[0], target[0])
        return np.array([rows[int(p)] for p in positions])


def _finished(evaluation: Evaluation) -> Evaluation:
    while not evaluation.finished:
        evaluation.step()
    return evaluation


def _state(weights: Weights) -> int:
    """A 63-bit hash of every value."""
    return int(fingerprint(weights)[:16], 16) >> 1
