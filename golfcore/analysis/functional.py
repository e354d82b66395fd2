"""How far apart two models are in what they compute on the same tokens, whatever their weights are."""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from golfcore.analysis.frames import frame
from golfcore.model.forward import Net, forward, nll
from golfcore.model.weights import Weights


@torch.no_grad()
def predictions(net: Net, models: Mapping[str, Weights], x: Tensor, y: Tensor, batch: int = 8) -> pd.DataFrame:
    """Every two models on the targets y of x, (B, T) each.

    Columns: models ("a vs b"), targets, kl (nats from a's distribution to b's, the mean of both directions), agreement
    (share of targets with the same first choice), correlation (of the losses over targets), nats_a, nats_b.
    """
    pairs = list(combinations(models, 2))
    divergence, agreed = dict.fromkeys(pairs, 0.0), dict.fromkeys(pairs, 0)
    losses: dict[str, list[np.ndarray]] = {name: [] for name in models}
    for part, targets in zip(x.split(batch), y.split(batch), strict=True):
        logits = {name: forward(net, w, part) for name, w in models.items()}
        for name, found in logits.items():
            losses[name].append(nll(found, targets).flatten().double().cpu().numpy())
        logs = {name: found.log_softmax(-1).double() for name, found in logits.items()}
        for a, b in pairs:
            divergence[a, b] += float(((logs[a].exp() - logs[b].exp()) * (logs[a] - logs[b])).sum()) / 2
            agreed[a, b] += int((logits[a].argmax(-1) == logits[b].argmax(-1)).sum())
    nats, rows = {name: np.concatenate(found) for name, found in losses.items()}, []
    for a, b in pairs:
        row = {"models": f"{a} vs {b}", "targets": y.numel(), "kl": divergence[a, b] / y.numel()}
        row |= {"agreement": agreed[a, b] / y.numel(), "correlation": float(np.corrcoef(nats[a], nats[b])[0, 1])}
        rows.append(row | {"nats_a": nats[a].mean(), "nats_b": nats[b].mean()})
    return frame(rows)


@torch.no_grad()
def activations(net: Net, weights: Weights, x: Tensor, names: list[str]) -> dict[str, Tensor]:
    """(B T, n) by name, of what the tap sees: inputs of matrices ("block0.down"), outputs of layers ("layer3")."""
    seen: dict[str, Tensor] = {}

    def tap(name: str, value: Tensor) -> None:
        if name in names:
            seen[name] = value.flatten(0, -2).double()

    forward(net, weights, x, tap=tap)
    return seen


def representations(net: Net, models: Mapping[str, Weights], x: Tensor) -> pd.DataFrame:
    """Outputs of every layer on the same tokens, compared between every two models.

    Columns: models, layer, cka (linear centred kernel alignment, Kornblith et al. 2019: 1 for representations equal up
    to rotation and one scale, not more), explained (share of b's variance that a linear map from a's explains, the mean
    of both directions; 1 if there are no more tokens than channels).
    """
    layers = [f"layer{i}" for i in range(net.cfg.n_layers)]
    seen = {name: activations(net, w, x, layers) for name, w in models.items()}
    rows = []
    for a, b in combinations(models, 2):
        for number, layer in enumerate(layers):
            p, q = (s[layer] - s[layer].mean(0) for s in (seen[a], seen[b]))
            row = {"models": f"{a} vs {b}", "layer": number, "cka": cka(p, q)}
            rows.append(row | {"explained": (_explained(p, q) + _explained(q, p)) / 2})
    return frame(rows)


def cka(p: Tensor, q: Tensor) -> float:
    """|P^T Q|^2 / (|P^T P| |Q^T Q|) of centred representations (tokens, n) and (tokens, m)."""
    own = (p.T @ p).norm() * (q.T @ q).norm()
    return float((p.T @ q).square().sum() / own) if own else 0.0


def _explained(p: Tensor, q: Tensor) -> float:
    """Share of the variance of q that least squares from p explains."""
    basis = torch.linalg.svd(p, full_matrices=False)
    kept = basis.U[:, basis.S > 1e-9 * basis.S[0]]
    total = q.square().sum()
    return float((kept.T @ q).square().sum() / total) if total else 0.0
