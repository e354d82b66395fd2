"""The typed result of an evaluation, and its place on disk."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from golfcore.base import files
from golfcore.evals.ledger import Legality
from golfcore.model.weights import Weights


@dataclass(frozen=True)
class EvalResult:
    """One protocol on one set of weights. bpb = nats / (ln 2 * bytes); repeated scores, if any, are included."""

    protocol: str
    legality: Legality
    nats: float
    tokens: int
    bytes: int
    bpb: float
    repeats: int  # scores beyond the first of a target (the published tail; 0 when exact)
    seconds: float
    chunks: list[dict] = field(repr=False)  # per chunk: start, stop, nats, bytes, first scores only
    adapt_losses: list[float] = field(default_factory=list, repr=False)  # of steps before the first score
    coverage: dict = field(default_factory=dict)
    source: dict = field(default_factory=dict)  # run id, configuration, seed, data hash, hash of the weights
    per_target: np.ndarray | None = field(default=None, repr=False, compare=False)  # (total,) nats, first scores
    adapted: Weights | None = field(default=None, repr=False, compare=False)  # what TTT ended with; not saved

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens


def as_dict(result: EvalResult) -> dict:
    """Plain values, without the arrays."""
    arrays = ("per_target", "adapted")
    return {k: v for k, v in result.__dict__.items() if k not in arrays}


def save(result: EvalResult, path: Path) -> None:
    """`path` (JSON) and, beside it, the nats of every target (.npy)."""
    if result.per_target is not None:
        with files.atomic_path(path.with_suffix(".npy")) as part, part.open("wb") as f:
            np.save(f, result.per_target, allow_pickle=False)
    files.write_json(path, as_dict(result))


def load(path: Path) -> EvalResult:
    values = files.read_json(path, "an evaluation result")
    nats = path.with_suffix(".npy")
    per_target = np.load(nats, allow_pickle=False) if nats.exists() else None
    return EvalResult(**{**values, "legality": Legality(values["legality"]), "per_target": per_target})
