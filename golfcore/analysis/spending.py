"""What else a byte could be spent on: corrections of low rank and codes set to zero, beside finer steps.

Where errors are white, as those of uniform steps are, the answer is arithmetic. A correction of rank r with factors of
8 bits takes 8 r (R + C) bits of an R x C matrix, and takes away at most r (sqrt R + sqrt C)^2 / (R C) of the squared
error (its leading singular values, Marchenko and Pastur 1967), which is at most 2 r (R + C) / (R C). As many bits in
finer steps, at 6 dB a bit, take away 2 ln 2 * 8 r (R + C) / (R C): 5.5 times as much.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from golfcore.analysis.frames import frame
from golfcore.analysis.rates import with_rule
from golfcore.analysis.stats import over_rows
from golfcore.analysis.surface import row_scores
from golfcore.config import Config
from golfcore.model.forward import Net
from golfcore.model.weights import Weights, map_matrices, matrices
from golfcore.quant import artifact
from golfcore.quant.allocate import allocated, divergences
from golfcore.quant.calibrate import collect
from golfcore.quant.grid import Grid, dequantize, round_to_nearest
from golfcore.quant.stored import Coded, Entry, Quantized, dequantize_weights

STEPS = (0.2, 0.25, 0.3, 0.35, 0.4)  # root mean squares; the coarsest is corrected, the finest is pruned
RANKS = (1, 2, 4)
SHARES = (0.1, 0.3)  # of the codes of one step
FACTORS = Grid(127, -127)  # of corrections: 8 bits, a scale for each term


def spending(cfg: Config, net: Net, weights: Weights, tokens: Tensor, x: Tensor, y: Tensor) -> pd.DataFrame:
    """One rule (`rates.RULES`' "measured, coder") at several steps, and what is made of its coarsest and its finest.

    `tokens` (N, T): calibration text; x, y (B, T): text that is scored. Columns: what ("finer steps"; "low rank", of
    the coarsest; "pruned, as published" and "pruned, by error", of the finest), amount (step; rank; share of the codes
    of one step), bytes (of the file), difference (nats more than as trained), low, high (its 95 % interval over rows),
    over_finer with finer_low and finer_high (the same less what finer steps in as many bytes cost each row, between the
    steps that were tried; missing beyond them).
    """
    score, made, rows, costs_by_row = row_scores(net, x, y), dict[float, Quantized](), list[dict](), list[np.ndarray]()
    hessians, before = collect(net, weights, tokens, cfg.quant.damping), score(weights)
    ruled = {step: with_rule(cfg, step) for step in STEPS}
    moved = divergences(ruled[STEPS[0]], net, weights, hessians, tokens)

    def add(what: str, amount: float, n_bytes: int, changed: Weights) -> None:
        costs_by_row.append(score(changed) - before)
        rows.append({"what": what, "amount": amount, "bytes": n_bytes} | over_rows(costs_by_row[-1]))

    for step, own in ruled.items():
        made[step] = allocated(own, net, weights, hessians, tokens, measured=moved)[0]
        add("finer steps", step, artifact.size(own, made[step]), dequantize_weights(cfg.model, made[step]))
    coarsest, n_bytes = dequantize_weights(cfg.model, made[STEPS[-1]]), artifact.size(own, made[STEPS[-1]])
    for rank in RANKS:
        more = sum(rank * (sum(m.shape) + 4) for _, m in matrices(weights))  # codes of a byte, two float16 scales
        add("low rank", rank, n_bytes + more, corrected(weights, coarsest, rank))
    exact = {name: m.float() for name, m in matrices(weights)}
    for what, cost in {"pruned, as published": _as_published, "pruned, by error": _by_error}.items():
        costs = {name: cost(m, made[STEPS[0]][name], hessians[name]) for name, m in exact.items()}
        for share in SHARES:
            spared = pruned(made[STEPS[0]], costs, share)
            add(what, share, artifact.size(own, spared), dequantize_weights(cfg.model, spared))
    return frame(_beside_finer(rows, np.array(costs_by_row)))


def corrected(weights: Weights, rounded: Weights, rank: int) -> Weights:
    """`rounded` with the leading `rank` terms of each matrix's error added, their factors in 8 bits."""
    exact = dict(matrices(weights))

    def add(name: str, m: Tensor) -> Tensor:
        u, s, v = torch.linalg.svd(exact[name].float() - m.float(), full_matrices=False)
        root = s[:rank].sqrt()[:, None]
        left, right = (dequantize(*round_to_nearest(root * f, FACTORS)) for f in (u[:, :rank].T, v[:rank]))
        return m + left.T @ right

    return map_matrices(add, rounded)


def pruned(quantized: Quantized, costs: Mapping[str, Tensor], share: float) -> Quantized:
    """The cheapest `share` of the codes of one step set to 0; `costs` by name, (R, C), of every other code infinite."""
    ranked = torch.cat([cost.flatten() for cost in costs.values()]).sort().values
    most = ranked[max(int(share * int(ranked.isfinite().sum())) - 1, 0)]
    spared = {name: quantized[name] for name in costs}
    return quantized | {
        name: entry._replace(codes=entry.codes.masked_fill(costs[name] <= most, 0))
        for name, entry in spared.items()
        if isinstance(entry, Coded)
    }


def _as_published(exact: Tensor, entry: Entry, hessian: Tensor) -> Tensor:
    """What a code costs to lose, (R, C): the square of its scale."""
    codes, scale = _coded(entry)
    return (scale**2).expand(codes.shape).masked_fill(codes.abs() != 1, math.inf)


def _by_error(exact: Tensor, entry: Entry, hessian: Tensor) -> Tensor:
    """The same by the squared error that it adds, weighted by the mean square of its input."""
    codes, scale = _coded(entry)
    added = exact**2 - (exact - scale * codes) ** 2
    return (added * hessian.diagonal()).masked_fill(codes.abs() != 1, math.inf)


def _coded(entry: Entry) -> tuple[Tensor, Tensor]:
    if not isinstance(entry, Coded):
        raise ValueError("expected a matrix in codes, found one in float16")
    return entry.codes, entry.scale.float()[:, None]


def _beside_finer(rows: list[dict], costs: np.ndarray) -> Iterator[dict]:
    """The rows, each with its `costs` (rows, B) less those of finer steps in as many bytes, between the nearest two."""
    finer = sorted((row["bytes"], i) for i, row in enumerate(rows) if row["what"] == "finer steps")
    sizes, order = [n_bytes for n_bytes, _ in finer], [i for _, i in finer]
    for row, own in zip(rows, costs, strict=True):
        if row["what"] == "finer steps" or not sizes[0] <= row["bytes"] <= sizes[-1]:
            yield row
            continue
        same = np.array([np.interp(row["bytes"], sizes, column) for column in costs[order].T])
        found = over_rows(own - same)
        yield row | {"over_finer": found["difference"], "finer_low": found["low"], "finer_high": found["high"]}
