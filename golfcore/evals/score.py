"""Per-target negative log-likelihood of windows, and bits per byte. The only scorer."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from golfcore.base.runtime import send
from golfcore.data.tokens import Tables, target_bytes
from golfcore.evals.ledger import Ledger
from golfcore.model.forward import Net, forward, graph, nll
from golfcore.model.weights import Weights

# Sees a batch as it is scored: its windows, the logits (scored positions, V) of each, the weights that made them.
Look: TypeAlias = Callable[[np.ndarray, list[Tensor], Weights], None]


@torch.no_grad()
def score(
    net: Net, weights: Weights, ledger: Ledger, rows: np.ndarray, seq_len: int, batch: int, look: Look | None = None
) -> list[np.ndarray]:
    """Nats (float32) of the scored positions of each window, `batch` windows at a time; the ledger is not written.

    Every window is padded to `seq_len` (causal, so padding changes nothing; the rotary base depends on the length).
    """
    device = weights.rest["tok_emb"].device
    found: list[tuple[Tensor, list[slice]]] = []
    usual = np.bincount(rows[:, 2] - rows[:, 0]).argmax() if len(rows) else 0
    for at in range(0, len(rows), batch):
        part = rows[at : at + batch]
        x, y = send(ledger.read(part, seq_len), device)
        first = int((part[:, 2] - part[:, 0]).min())  # logits before the earliest scored position are not needed
        # a graph for windows that slide; their beginning and end, and rows that are scored whole, are not worth one
        sliding = net.compute.compiled and look is None and len(part) == batch and first == usual > 0
        logits, nats = (graph(_scored) if sliding else _scored)(net, weights, x, y, seq_len - first)
        spans = [slice(s - a - first, b - a - first) for a, b, s in part]
        found.append((nats, spans))
        if look is not None:
            look(part, [logits[i, span] for i, span in enumerate(spans)], weights)
    out: list[np.ndarray] = []
    for nats, spans in found:  # copied when all is asked for, so that a GPU need not wait for the host between batches
        losses = nats.cpu().numpy()
        out += [losses[i, span] for i, span in enumerate(spans)]
    return out


def _scored(net: Net, weights: Weights, x: Tensor, y: Tensor, last: int) -> tuple[Tensor, Tensor]:
    """Logits of the last positions, and the nats of their targets."""
    logits = forward(net, weights, x, last=last)
    return logits, nll(logits, y[:, -last:])


def bytes_of(tables: Tables, previous: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Bytes charged to each target, (n,) int64."""
    as_ids = [torch.from_numpy(np.asarray(ids).astype(np.int64)) for ids in (previous, target)]
    return target_bytes(tables, *as_ids).to(torch.int64).numpy()


def bits_per_byte(nats: float, n_bytes: float) -> float:
    return float(nats / (np.log(2.0) * n_bytes))
