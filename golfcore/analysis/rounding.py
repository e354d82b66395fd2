"""Quantization seen from inside: what rounding each matrix costs, in weights, through its inputs, and in nats."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from golfcore.analysis.frames import frame
from golfcore.analysis.stats import over_rows
from golfcore.analysis.surface import Score, row_scores
from golfcore.config import QuantConfig
from golfcore.model.forward import Net
from golfcore.model.weights import Weights, map_matrices, matrices
from golfcore.quant import codec, gptq
from golfcore.quant.calibrate import collect
from golfcore.quant.grid import Grid, dequantize, matrix_grid, round_to_nearest

Coded = dict[str, tuple[Tensor, Tensor]]  # codes (R, C) and scales (R,) by matrix


def floor_error(qmax: int) -> float:
    """(1 / qmax)^2 / 12: the mean squared error of a uniform step of 1 / qmax, the published floor; 8.67e-5 for 31."""
    return (1 / qmax) ** 2 / 12


def by_matrix(cfg: QuantConfig, net: Net, weights: Weights, x: Tensor, y: Tensor) -> pd.DataFrame:
    """Every block matrix rounded alone, and all of them, to nearest and by GPTQ, with and without the published floor.

    The text (B, T) gives both the Hessians and the losses. Columns: matrix ("all"), block, role, rule ("nearest",
    "gptq"), floor, mse (of weights), weighted (mean over weights of the error through the inputs, e H e^T), difference
    (nats more on the targets y), low and high (its 95 % interval over rows), bits (entropy of the codes, order 0, a
    weight), gaussian_bits (of a normal variable with each row's spread in steps of its scale).
    """
    hessians, score = collect(net, weights, x, damping=0.0), row_scores(net, x, y)
    before, rows = score(weights), []
    for floor in (True, False):
        grid = matrix_grid(cfg)._replace(floor=floor)
        for rule, coded in _rounded(weights, hessians, grid, cfg).items():
            made = {name: dequantize(*codes) for name, codes in coded.items()}
            facts = {name: _errors(m, made[name], hessians[name], *coded[name]) for name, m in matrices(weights)}
            sizes = {name: m.numel() for name, m in matrices(weights)}
            for name, fact in facts.items():
                block, role = name.removeprefix("block").split(".")
                row = {"matrix": name, "block": int(block), "role": role, "rule": rule, "floor": floor}
                rows.append(row | fact | _cost(score, before, weights, {name: made[name]}))
            whole = {q: sum(f[q] * sizes[n] for n, f in facts.items()) / sum(sizes.values()) for q in facts[name]}
            row = {"matrix": "all", "block": None, "role": "all", "rule": rule, "floor": floor}
            rows.append(row | whole | _cost(score, before, weights, made))
    return frame(rows)


def codes(cfg: QuantConfig, weights: Weights) -> pd.DataFrame:
    """How often each magnitude of a code occurs, to nearest: columns role, floor, magnitude, share of the role."""
    rows = []
    for floor in (True, False):
        grid, counts = matrix_grid(cfg)._replace(floor=floor, stored_scale_codes=True), dict[str, Tensor]()
        for name, m in matrices(weights):
            role = name.split(".")[1]
            found = round_to_nearest(m.detach().float(), grid)[0].flatten().long().abs()
            counts[role] = counts.get(role, 0) + found.bincount(minlength=grid.qmax + 2)
        for role, n in counts.items():
            rows += [
                {"role": role, "floor": floor, "magnitude": magnitude, "share": share}
                for magnitude, share in enumerate((n / n.sum()).tolist())
            ]
    return frame(rows)


def spreads(cfg: QuantConfig, weights: Weights, points: int = 12) -> pd.DataFrame:
    """Bits a weight under the published floor by the weights' root mean square: of normal numbers, and of this model.

    Columns: source ("normal", "here"), rms, bits (entropy of the codes), lzma_bits (of LZMA on the codes, as
    published), role (of this model's matrices).
    """
    grid, rows = matrix_grid(cfg)._replace(floor=True, stored_scale_codes=True), list[dict[str, Any]]()
    drawn = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))
    own = [(name.split(".")[1], m.detach().float()) for name, m in matrices(weights)]
    made = [("", drawn * rms) for rms in np.geomspace(0.004, 0.4, points)]
    for source, named in (("normal", made), ("here", own)):
        for role, m in named:
            found = round_to_nearest(m, grid)[0]
            row = {"source": source, "rms": float(m.square().mean().sqrt()), "bits": entropy(found)}
            packed = codec.encode(found.numpy(), "lzma").payload
            rows.append(row | {"lzma_bits": 8 * len(packed) / found.numel(), "role": role or None})
    return frame(rows)


def entropy(codes: Tensor) -> float:
    """Bits a code of order 0."""
    _, counts = codes.unique(return_counts=True)
    share = counts.double() / codes.numel()
    return float(-(share * share.log2()).sum())


def _rounded(weights: Weights, hessians: Mapping[str, Tensor], grid: Grid, cfg: QuantConfig) -> dict[str, Coded]:
    named = {name: m.detach().float() for name, m in matrices(weights)}
    coded = grid._replace(stored_scale_codes=True)
    problems = {name: (m, hessians[name]) for name, m in named.items()}
    return {
        "nearest": {name: round_to_nearest(m, coded) for name, m in named.items()},
        "gptq": gptq.solve_all(problems, coded, damping=cfg.damping),
    }


def _errors(m: Tensor, made: Tensor, hessian: Tensor, codes: Tensor, scale: Tensor) -> dict[str, float]:
    error = made - m.detach().float()
    spread = m.detach().float().std(dim=1) / scale.float()
    gaussian = 0.5 * np.log2(2 * np.pi * np.e) + spread.clamp(min=1e-9).log2()
    return {
        "mse": float(error.square().mean()),
        "weighted": float(((error @ hessian) * error).mean()),
        "bits": entropy(codes),
        "gaussian_bits": float(gaussian.clamp(min=0).mean()),
    }


def _cost(score: Score, before: np.ndarray, weights: Weights, made: Mapping[str, Tensor]) -> dict[str, float]:
    return over_rows(score(map_matrices(lambda name, m: made.get(name, m), weights)) - before)
