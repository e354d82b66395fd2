"""An evaluation between two steps of work as a file: what a killed one goes on from."""

import hashlib
import math
from pathlib import Path

import numpy as np
from torch import Tensor

from golfcore.base import tensors
from golfcore.base.errors import UserError
from golfcore.evals import adapt as ttt
from golfcore.evals.evaluation import Evaluation
from golfcore.model.weights import fingerprint, flat

PLAIN = ("trained", "chunk", "seconds", "row_nats", "selected", "resets")


def belongs(e: Evaluation) -> dict[str, str]:
    """What a saved part is good for. Another protocol, configuration, text, or other weights do not go on from it."""
    text = np.ascontiguousarray(e.subject.tokens)
    return {
        "protocol": e.name,
        "configuration": e.cfg.hash,
        "sums": f"{e.span} tokens",
        "text": hashlib.sha256(text.tobytes() + str(text.dtype).encode()).hexdigest(),
        "weights": fingerprint(e.subject.weights),
    }


def save(e: Evaluation, path: Path, owner: dict[str, str]) -> None:
    """`owner`: what `belongs` said of it."""
    values = tensors.under("ledger", e.ledger.state())
    plain = {key: getattr(e, key) for key in PLAIN} | {"steps": e.adapter.steps if e.adapter else 0}
    plain["losses"] = {str(chunk): losses for chunk, losses in e.losses.items()}
    if e.adapter:
        moved = {name: t for name, t in flat(e.adapter.weights).items() if name in e.adapter.scope.names}
        values |= tensors.under("weights", moved) | tensors.under("slots", e.adapter.slots)
    tensors.save(path, values, plain, belongs=owner)


def load(e: Evaluation, path: Path, owner: dict[str, str]) -> None:
    """Put a fresh evaluation where a saved one was. UserError: damaged, of another evaluation, or impossible."""
    what = f"a part of an evaluation under {e.name}"
    values, plain = tensors.load(path, what, owner)
    try:
        _take(e, values, plain)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: expected {what}, found one that cannot be ({error})") from None
    e.count()
    if e.cfg.eval.ppm_weight:
        e.blend(np.array([0, e.scored, 0]), np.zeros(e.scored))


def _take(e: Evaluation, values: dict[str, Tensor], plain: dict) -> None:
    """KeyError, TypeError or ValueError: values that no evaluation has between two steps."""
    losses = {int(chunk): list(rows) for chunk, rows in plain["losses"].items()}
    numbers = [plain["seconds"], *plain["row_nats"], *(x for rows in losses.values() for x in rows)]
    _require(all(math.isfinite(x) for x in numbers) and plain["seconds"] >= 0, "numbers that are not finite")
    _require(len(plain["row_nats"]) <= max(len(e.plan.rows), e.plan.adapted_rows), "losses of more rows than there are")
    e.row_nats, e.losses, e.seconds = plain["row_nats"], losses, plain["seconds"]
    if e.plan.selected < len(e.plan.rows) and not e.selecting:
        e.choose()
    most = {"trained": len(e.batches), "chunk": len(e.chunks) - 1, "resets": len(e.chunks), "steps": math.inf}
    for key, top in {**most, "selected": max(len(e.plan.rows), e.plan.adapted_rows)}.items():
        n = plain[key]
        _require(type(n) is int and 0 <= n <= top, f"{key} {n}")
    ready = not e.selecting and plain["trained"] == len(e.batches)
    _require(ready or not plain["chunk"], f"chunk {plain['chunk']} before the training was done")
    e.trained, e.chunk, e.selected, e.resets = (plain[key] for key in ("trained", "chunk", "selected", "resets"))
    e.ledger.restore(tensors.part(values, "ledger"))
    done = np.zeros(e.ledger.total, dtype=bool)
    for _, stop, first in (row for rows in e.chunks[: e.chunk] for row in rows.tolist()):
        done[first:stop] = True
    _require(np.array_equal(done, e.ledger.scored), "scores of other targets than its chunks have")
    if e.adapter is not None:
        moved, slots = tensors.part(values, "weights"), tensors.part(values, "slots")
        e.adapter = ttt.restored(e.cfg, e.subject.weights, moved, slots, plain["steps"])
        if ready:
            e.weights = e.adapter.folded()


def _require(holds: bool, found: str) -> None:
    if not holds:
        raise ValueError(found)
