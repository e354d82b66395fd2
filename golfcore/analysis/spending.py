"""What else a byte could be spent on: corrections of low rank and codes set to zero, beside finer steps.

Where errors are white, as those of uniform steps are, the answer is arithmetic. A correction of rank r with factors of
8 bits takes 8 r (R + C) bits of an R x C matrix, and takes away at most r (sqrt R + sqrt C)^2 / (R C) of the squared
error (its leading singular values, Marchenko and Pastur 1967), which is at most 2 r (R + C) / (R C). As many bits in
finer steps, at 6 dB a bit, take away 2 ln 2 * 8 r (R + C) / (R C): 5.5 times as much.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from golfcore.analysis.frames import frame
from golfcore.analysis.rates import with_rule
from golfcore.analysis.stats import interval
from golfcore.analysis.surface import row_scores
from golfcore.config import Config
from golfcore.model.forward import Net
from golfcore.model.weights import Weights, map_matrices, matrices
from golfcore.quant import artifact
from golfcore.quant.allocate import allocated, divergences
from golfcore.quant.calibrate import collect
from golfcore.quant.stored import Coded, Quantized, dequantize_weights

STEPS = (0.2, 0.25, 0.3, 0.35, 0.4)  # root mean squares; the last one is what is corrected or spared
RANKS = (1, 2, 4)
SHARES = (0.1, 0.3)  # of the codes of one step


def spending(cfg: Config, net: Net, weights: Weights, tokens: Tensor, x: Tensor, y: Tensor) -> pd.DataFrame:
    """One rule (`rates.RULES`' "measured, coder") at several steps, and what is made of its coarsest or finest.

    `tokens` (N, T): calibration text; x, y (B, T): text that is scored. Columns: what ("finer steps"; "low rank", of
    the coarsest; "pruned, as published" and "pruned, by error", of the finest), amount (step; rank; share of the codes
    of one step), bytes (of the file), difference (nats more than as trained), low, high (its 95 % interval over rows),
    over_finer (difference less that of finer steps in as many bytes; NaN beyond what was measured).
    """
    score, made = row_scores(net, x, y), dict[float, Quantized]()
    hessians = collect(net, weights, tokens, cfg.quant.damping)
    moved, rows, before = divergences(with_rule(cfg, 1.0), net, weights, hessians, tokens), list[dict](), score(weights)

    def add(what: str, amount: float, n_bytes: int, changed: Weights) -> None:
        less = score(changed) - before
        found = interval(less[None], np.ones(len(less)))
        row = {"what": what, "amount": amount, "bytes": n_bytes, "difference": float(less.mean())}
        rows.append(row | {"low": found["low"], "high": found["high"]})

    for step in STEPS:
        made[step] = allocated(with_rule(cfg, step), net, weights, hessians, tokens, measured=moved)[0]
        add("finer steps", step, artifact.size(cfg, made[step]), dequantize_weights(cfg.model, made[step]))
    coarsest = dequantize_weights(cfg.model, made[STEPS[-1]])
    for rank in RANKS:
        more = sum(rank * (sum(m.shape) + 4) for _, m in matrices(weights))  # codes of a byte, two float16 scales
        add("low rank", rank, artifact.size(cfg, made[STEPS[-1]]) + more, corrected(weights, coarsest, rank))
    for what, share, pruned in _pruned(made[STEPS[0]], weights, hessians):
        add(what, share, artifact.size(cfg, pruned), dequantize_weights(cfg.model, pruned))
    return _beside_finer(frame(rows))


def corrected(weights: Weights, rounded: Weights, rank: int) -> Weights:
    """`rounded` with the leading `rank` terms of each matrix's error added, their factors in 8 bits."""
    exact = dict(matrices(weights))

    def add(name: str, m: Tensor) -> Tensor:
        u, s, v = torch.linalg.svd(exact[name].float() - m.float(), full_matrices=False)
        root = s[:rank].sqrt()
        return m + _eight_bits(u[:, :rank] * root) @ _eight_bits(v[:rank].T * root).T

    return map_matrices(add, rounded)


def _eight_bits(factor: Tensor) -> Tensor:
    scale = (factor.abs().amax(0) / 127).clamp(min=1e-12)
    return (factor / scale).round() * scale


def _pruned(
    quantized: Quantized, weights: Weights, hessians: Mapping[str, Tensor], shares: Sequence[float] = SHARES
) -> Iterator[tuple[str, float, Quantized]]:
    """Codes of one step set to 0, the cheapest first: by the squared scale, as published, or by the error it adds."""
    exact = {name: m.float() for name, m in matrices(weights)}
    for what in ("pruned, as published", "pruned, by error"):
        costs = {}
        for name, m in exact.items():
            entry = quantized[name]
            assert isinstance(entry, Coded)
            step = entry.scale.float().view(-1, 1) * entry.codes.float()
            added = m**2 - (m - step) ** 2 if what == "pruned, by error" else step**2
            if what == "pruned, by error":
                added = added * hessians[name].diagonal()
            costs[name] = added.masked_fill(entry.codes.abs() != 1, math.inf)
        ranked = torch.cat([c.flatten() for c in costs.values()]).sort().values
        ones = int(ranked.isfinite().sum())
        for share in shares:
            most = ranked[max(int(share * ones) - 1, 0)]
            yield (
                what,
                share,
                quantized
                | {
                    n: entry._replace(codes=entry.codes.masked_fill(costs[n] <= most, 0))
                    for n, entry in quantized.items()
                    if n in costs and isinstance(entry, Coded)
                },
            )


def _beside_finer(table: pd.DataFrame) -> pd.DataFrame:
    """The cost of finer steps at the same bytes, between those measured: its logarithm is straight in bytes."""
    own = table[(table["what"] == "finer steps") & (table["difference"] > 0)].sort_values("bytes")
    logs = np.interp(table["bytes"], own["bytes"], np.log(own["difference"].astype(float)), np.nan, np.nan)
    return table.assign(over_finer=table["difference"] - np.exp(logs))
