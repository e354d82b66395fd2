"""The typed result of an evaluation, and its place on disk."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from golfcore.base import files
from golfcore.base.errors import UserError
from golfcore.evals.ledger import Legality
from golfcore.evals.score import bits_per_byte
from golfcore.model.weights import Weights

SCHEMA: dict[str, Any] = {
    **dict.fromkeys(("protocol", "legality"), str),
    **dict.fromkeys(("nats", "bpb", "seconds"), float),
    **dict.fromkeys(("tokens", "bytes", "repeats", "dropped"), int),
    "chunks": [{"start": int, "stop": int, "nats": float, "bytes": int, "adapt_losses?": [float]}],
    "adapt_losses?": [float],
    "source?": dict,
    "coverage": {"*": {"done": int, "of": int, "unit": str, "note": str}},
}


@dataclass(frozen=True)
class EvalResult:
    """One protocol on one set of weights. bpb = nats / (ln 2 * bytes); repeated scores, if any, are included.

    Differences between protocols take `bpb_first` and the sums of `chunks`, where every target counts once.
    """

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
    coverage: dict[str, dict] = field(default_factory=dict)  # by feature that was switched on: done, of, unit, note
    source: dict = field(default_factory=dict)  # run id, configuration, seed, data hash, hash of the weights
    dropped: int = 0  # targets that the published tail leaves out
    per_target: np.ndarray | None = field(default=None, repr=False, compare=False)  # (total,) nats, NaN: dropped
    adapted: Weights | None = field(default=None, repr=False, compare=False)  # what TTT ended with; not saved

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens

    @property
    def bpb_first(self) -> float:
        """Bits per byte of the first score of every target."""
        if not self.repeats:
            return self.bpb
        return bits_per_byte(sum(c["nats"] for c in self.chunks), sum(c["bytes"] for c in self.chunks))


def as_dict(result: EvalResult) -> dict:
    """Plain values, without the arrays."""
    arrays = ("per_target", "adapted")
    return {k: v for k, v in result.__dict__.items() if k not in arrays} | {"bpb_first": result.bpb_first}


def as_text(result: EvalResult) -> str:
    """The score with what must be known of it: targets, bytes, data, legality, and what adaptation touched."""
    r = result
    counted = f"{r.tokens:,} targets, {r.bytes:,} bytes"
    if r.repeats:
        counted += f", {r.repeats:,} scores are repeats: {r.bpb_first:.4f} without"
    if r.dropped:
        counted += f", {r.dropped:,} targets dropped"
    lines = [f"{r.protocol}: {r.bpb:.4f} bpb, {counted}"]
    lines.append(f"data {str(r.source.get('data', ''))[:12] or 'unknown'}, legality {r.legality}")
    for feature, row in r.coverage.items():
        note = f" ({row['note']})" if row["note"] else ""
        lines.append(f"{feature}: {row['done']:,} of {row['of']:,} {row['unit']}{note}")
    return "\n".join([*lines, f"{r.seconds:.1f} s"])


def save(result: EvalResult, path: Path) -> None:
    """`path` (JSON) and, beside it, the nats of every target (.npy)."""
    values, nats = as_dict(result), path.with_suffix(".npy")
    if result.per_target is not None:
        with files.atomic_path(nats) as part, part.open("wb") as f:
            np.save(f, result.per_target, allow_pickle=False)
        values["nats_sha256"] = files.sha256_file(nats)
    files.write_record(path, values)


def load(path: Path) -> EvalResult:
    """What `save` wrote. UserError: not there, damaged, or with numbers that no evaluation gives."""
    values = files.read_json(path, "an evaluation result", SCHEMA)
    values.pop("bpb_first", None)
    known = values.pop("nats_sha256", None)
    try:
        found = EvalResult(**{**values, "legality": Legality(values["legality"])})
    except (TypeError, ValueError) as e:
        raise UserError(f"{path}: expected an evaluation result, found another record ({e})") from None
    if min(found.tokens, found.bytes) < 1:
        raise UserError(f"{path}: expected scores of targets, found {found.tokens} over {found.bytes} bytes")
    nats = path.with_suffix(".npy")
    if not nats.exists() and known is None:
        return found
    total = found.chunks[-1]["stop"] if found.chunks else 0
    try:
        if known not in (None, files.sha256_file(nats)):
            raise ValueError("content that was changed since")
        per_target = np.load(nats, allow_pickle=False)
        if per_target.shape != (total,) or np.isnan(per_target).sum() != found.dropped:
            raise ValueError(f"an array of shape {per_target.shape}")
    except (ValueError, TypeError, EOFError, FileNotFoundError, IsADirectoryError) as e:
        raise UserError(f"{nats}: expected the nats of {total - found.dropped} of {total} targets, found {e}") from None
    return replace(found, per_target=per_target)
