"""GPTQ (Frantar et al. 2022, as exp101 runs it): round one column after another; later columns make up for the error.

Shapes: R rows, C columns, Q candidate quantiles, P distinct (row, scale) pairs.

Let H be the Hessian of the inputs and U upper triangular with inv(H) = U^T U. Going through the columns in order,

    t_j = w_j - sum_{i<j} e_i U_ij,    code_j = round(t_j / s),    e_j = (t_j - code_j s) / U_jj,

so that the row's error is w - code s = e U, and its weighted error (w - code s) H (w - code s)^T is just e e^T.
Rows do not interact. A row therefore runs once for each different scale that the quantiles propose, all such pairs
side by side; where they propose one scale, as they do under the published floor, the search costs nothing.
"""

from typing import Literal

import torch
from torch import Tensor

from golfcore.base.errors import UserError
from golfcore.base.runtime import full_float32
from golfcore.quant.grid import Grid, candidate_scales, dequantize, round_to_grid, stored


def factor(hessian: Tensor, damping: float) -> tuple[Tensor, Tensor, Tensor]:
    """Column order, U and dead inputs of a Hessian (C, C), after `damping` times its mean diagonal was added to it.

    Shape: order (C,), columns by falling diagonal; upper (C, C), of the permuted Hessian; dead (C,) bool, inputs that
    were always 0. UserError: values that are not finite, or a matrix that is not positive definite even so.
    """
    h = hessian.detach().to(torch.float32, copy=True)
    diagonal = h.diagonal()
    if not bool(h.isfinite().all()):
        raise UserError("expected a finite Hessian of its inputs, found NaN or infinite values")
    dead = diagonal == 0
    diagonal[dead] = 1
    diagonal += damping * diagonal.mean()
    order = diagonal.argsort(descending=True)
    # With the order reversed, H = L L^T gives inv(H) = inv(L)^T inv(L) already: one Cholesky factor, no inverse of H.
    backward = order.flip(0)
    lower, failed = torch.linalg.cholesky_ex(h[backward][:, backward])
    if int(failed):
        raise UserError(
            f"expected a positive definite Hessian of its inputs, found one that is not at quant.damping {damping:g}: "
            "calibrate on more text or raise quant.damping"
        )
    inverse = torch.linalg.solve_triangular(lower, torch.eye(len(h), device=h.device), upper=False)
    return order, inverse.flip(0, 1).contiguous(), dead


def solve(
    weight: Tensor,
    hessian: Tensor,
    grid: Grid,
    *,
    block: int = 128,
    damping: float = 0.01,
    score: Literal["mse", "hessian"] = "mse",
) -> tuple[Tensor, Tensor]:
    """int8 codes (R, C) and float16 scales (R,) of `weight` (R, C), given the Hessian (C, C) of its inputs.

    `damping` is added in here, to whatever `hessian` already has; exp101 damps both times. `score` decides among the
    grid's quantiles: "mse" as published, one choice for the matrix by plain squared error (which GPTQ does not
    minimise); "hessian", a choice for each row by weighted error, the damping included. Equals: the first.
    Weights of dead inputs get the code 0, but count for the scales, as published. Codes always come from the stored
    scale. Float32 throughout, also where TF32 is allowed. Neither tensor is changed. UserError as `factor`.
    """
    if not grid.stored_scale_codes:
        raise ValueError("GPTQ needs a grid with stored_scale_codes")
    scales = stored(candidate_scales(weight.detach().float(), grid))
    pair, row = _distinct(scales)
    scale = torch.empty(len(row), dtype=torch.float16, device=weight.device)
    scale[pair] = scales
    with full_float32():
        order, upper, dead = factor(hessian, damping)
        w = weight.detach().float().masked_fill(dead, 0)
        runs = w[:, order][row]
        codes, weighted = _feed_back(runs.T.contiguous(), scale.float(), upper, grid, block)
    if score == "hessian":
        best = weighted[pair].argmin(0)
    else:
        squared = (runs - dequantize(codes.T, scale)).square().sum(1, dtype=torch.float64)
        best = squared[pair].sum(1).argmin().expand(len(w))
    chosen = pair.gather(0, best[None])[0]
    out = torch.empty(w.shape, dtype=torch.int8, device=w.device)
    out[:, order] = codes[:, chosen].T
    return out, scale[chosen]


def _distinct(scales: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's different scales, numbered: scales (Q, R) -> pair (Q, R), the number of each, and row (P,), its row.

    Example: scales [[1, 2], [1, 3]] of two rows are three pairs: pair [[0, 1], [0, 2]], row [0, 1, 1].
    """
    first = (scales[:, None] == scales[None]).int().argmax(1)  # (Q, R): the first quantile that proposes this scale
    new = first == torch.arange(len(scales), device=scales.device)[:, None]
    pair = (new.flatten().cumsum(0) - 1).view(scales.shape).gather(0, first)
    return pair, new.nonzero()[:, 1]


def _feed_back(columns: Tensor, scale: Tensor, upper: Tensor, grid: Grid, block: int) -> tuple[Tensor, Tensor]:
    """Codes (C, P) and weighted errors (P,) of transposed weights (C, P), which are overwritten.

    Errors reach the columns of the same block one by one, those of later blocks in one product.
    """
    codes = torch.empty(columns.shape, dtype=torch.int8, device=columns.device)
    weighted = torch.zeros_like(scale)
    for start in range(0, len(columns), block):
        stop = min(start + block, len(columns))
        errors = torch.empty_like(columns[start:stop])
        for j in range(start, stop):
            done = j - start
            target = torch.addmv(columns[j], errors[:done].T, upper[start:j, j], alpha=-1)
            code = round_to_grid(target / scale, grid)
            errors[done] = (target - code * scale) / upper[j, j]
            codes[j] = code
        columns[stop:] -= upper[start:stop, stop:].T @ errors
        weighted += errors.square().sum(0)
    return codes, weighted
