"""An evaluation between two steps of work as a file: what a killed one goes on from."""

import hashlib
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from golfcore.base import files, tensors
from golfcore.evals.evaluation import Evaluation
from golfcore.evals.ledger import Event
from golfcore.model.weights import fingerprint, flat, unflat

NUMBERS = ("trained", "chunk", "done", "selected", "resets", "seconds")
LISTS = {"row_nats": [float], "losses": {"*": [float]}, "events": [list], "again": [list], "so_far": [float]}


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
    plain = {key: getattr(e, key) for key in (*NUMBERS, "row_nats")}
    plain |= {"steps": e.adapter.steps if e.adapter else 0, "losses": {str(k): v for k, v in e.losses.items()}}
    plain |= {"events": e.ledger.events, "again": e.ledger.again, "so_far": e.so_far.tolist()}
    tensors.save(path, _values(e), plain, belongs=owner)


def load(e: Evaluation, path: Path, owner: dict[str, str]) -> None:
    """Put a fresh evaluation where a saved one was. UserError: damaged, of another evaluation, or impossible."""
    what = f"a part of an evaluation under {e.name}"
    where = f"{path}: expected {what}"
    values, plain = tensors.load(path, what, owner, e.runtime.device)
    files.check(plain, LISTS, where)
    before = e.plan.steps if len(e.plan.rows) else 0
    most = {"trained": before, "chunk": len(e.plan.chunks) - 1, "resets": len(e.plan.chunks)}
    for key in (*NUMBERS, "steps"):
        tensors.number(plain, key, 0, most.get(key, math.inf), where, whole=key != "seconds")
    for key in (*NUMBERS, "row_nats"):
        setattr(e, key, plain[key])
    e.losses, e.so_far = {int(k): v for k, v in plain["losses"].items()}, np.array(plain["so_far"])
    e.ledger.events = [Event(*event) for event in plain["events"]]
    e.ledger.again = [(p, n) for p, n in plain["again"]]
    if e.adapter and plain["steps"]:
        kinds = ("momentum", "square") if e.cfg.ttt.optimizer == "adam" else ("momentum",)
        e.adapter.slots = dict.fromkeys(kinds, {n: flat(e.adapter.weights)[n] for n in e.adapter.scope.names})
    tensors.expect(values, _values(e), where)
    e.ledger.nats = values["nats"].cpu().numpy().copy()
    if e.adapter:
        e.adapter.weights = unflat({**flat(e.adapter.weights), **tensors.part(values, "weights")})
        e.adapter.slots = {kind: tensors.part(values, f"slots/{kind}") for kind in e.adapter.slots}
        e.adapter.steps = plain["steps"]
        e.weights = e.adapter.folded()
    if e.cfg.eval.ppm_weight:
        scored = int(np.isfinite(e.ledger.nats).sum())
        e.ppm.mix(0, np.zeros(scored), *(ids[:scored] for ids in e.ledger.pairs()))


def _values(e: Evaluation) -> dict[str, Tensor]:
    """What is kept as tensors: first scores, what adapts, and the optimizer's state."""
    kept = {"nats": torch.from_numpy(e.ledger.nats)}
    if e.adapter:
        kept |= tensors.under("weights", {name: flat(e.adapter.weights)[name] for name in e.adapter.scope.names})
        for kind, slots in e.adapter.slots.items():
            kept |= tensors.under(f"slots/{kind}", slots)
    return kept
