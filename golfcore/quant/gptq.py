"""GPTQ (Frantar et al. 2022, as exp101 runs it): round one column after another; later columns make up for the error.

Shapes: G Hessians, R rows, C columns, Q candidate quantiles, P distinct (row, scale) pairs.

Let H be the Hessian of the inputs and U upper triangular with inv(H) = U^T U. Going through the columns in order,

    t_j = w_j - sum_{i<j} e_i U_ij,    code_j = round(t_j / s),    e_j = (t_j - code_j s) / U_jj,

so that the row's error is w - code s = e U, and its weighted error (w - code s) H (w - code s)^T is just e e^T.
Rows do not interact. A row therefore runs once for each different scale that the quantiles propose, all such pairs
side by side; where they propose one scale, as they do under the published floor, the search costs nothing. So do the
rows of all matrices with one Hessian (query, key and value), and those of all Hessians of one size.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, chain
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from golfcore.base.errors import UserError
from golfcore.base.runtime import full_float32
from golfcore.quant.grid import Grid, candidate_scales, dequantize, quantize, round_to_grid, stored

INNER = 16  # columns whose errors are fed back one by one: few enough for them to stay in the cache


class Given(NamedTuple):
    """What takes the place of a grid's clips."""

    scales: Mapping[str, Tensor] = MappingProxyType({})  # by name, (1,) or (R,) float16
    rate: float = 0.0  # weight of code length


NOTHING_GIVEN = Given()


def factor(hessians: Tensor, damping: float, names: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Column order, U and dead inputs of Hessians (G, C, C), `damping` times its mean diagonal added to each.

    Shape: order (G, C), columns by falling diagonal; upper (G, C, C), of the permuted Hessians; dead (G, C) bool,
    inputs that were always 0. UserError, with the Hessian's name: values that are not finite, or a matrix that is not
    positive definite even so.
    """
    h = hessians.detach().to(torch.float32, copy=True)
    diagonal = h.diagonal(dim1=1, dim2=2)
    if broken := [name for name, one in zip(names, h, strict=True) if not bool(one.isfinite().all())]:
        raise UserError(f"{broken[0]}: expected a finite Hessian of its inputs, found NaN or infinite values")
    dead = diagonal == 0
    diagonal[dead] = 1
    diagonal += damping * diagonal.mean(1, keepdim=True)
    order = diagonal.argsort(dim=1, descending=True)
    # With the order reversed, H = L L^T gives inv(H) = inv(L)^T inv(L) already: one Cholesky factor, no inverse of H.
    backward = order.flip(1)
    permuted = h.gather(1, backward[:, :, None].expand_as(h)).gather(2, backward[:, None].expand_as(h))
    lower, failed = torch.linalg.cholesky_ex(permuted)
    if broken := [name for name, code in zip(names, failed.tolist(), strict=True) if code]:
        raise UserError(
            f"{broken[0]}: expected a positive definite Hessian of its inputs, found one that is not at quant.damping "
            f"{damping:g}: calibrate on more text or raise quant.damping"
        )
    return order, _inverse(lower).flip(1, 2).contiguous(), dead


def _inverse(lower: Tensor) -> Tensor:
    """Inverses of lower triangular matrices (G, C, C), by halves: a third of the work of solving for the identity."""
    n, half = lower.shape[1], lower.shape[1] // 2
    if n <= 64:
        identity = torch.eye(n, dtype=lower.dtype, device=lower.device).expand_as(lower)
        return torch.linalg.solve_triangular(lower, identity, upper=False)
    out = torch.zeros_like(lower)
    out[:, :half, :half] = first = _inverse(lower[:, :half, :half])
    out[:, half:, half:] = second = _inverse(lower[:, half:, half:])
    out[:, half:, :half] = -second @ (lower[:, half:, :half] @ first)
    return out


class _Matrix(NamedTuple):
    weight: Tensor  # (R, C)
    lengths: Tensor  # (256,) bits of each code from -128 on; zeros where code length does not count
    pair: Tensor  # (Q, R) number of each quantile's (row, scale)
    row: Tensor  # (P,) row of each pair
    scale: Tensor  # (P,) float16


def solve(weight: Tensor, hessian: Tensor, grid: Grid, **how: Any) -> tuple[Tensor, Tensor]:
    """Codes and scales of one matrix: `solve_all`."""
    return solve_all({"the matrix": (weight, hessian)}, grid, **how)["the matrix"]


def solve_all(
    problems: Mapping[str, tuple[Tensor, Tensor]],
    grid: Grid,
    *,
    block: int = 128,
    damping: float = 0.01,
    score: Literal["mse", "hessian"] = "mse",
    progress: Callable[[int], object] | None = None,
    given: Given = NOTHING_GIVEN,
) -> dict[str, tuple[Tensor, Tensor]]:
    """int8 codes (R, C) and float16 scales (R,) by name of each weight (R, C), given the Hessian (C, C) of its inputs.

    `damping` is added in here, to whatever a Hessian already has; exp101 damps both times. `score` decides among the
    grid's quantiles: "mse" as published, one choice for the matrix by plain squared error (which GPTQ does not
    minimise); "hessian", a choice for each row by weighted error, the damping included. Equals: the first.
    Weights of dead inputs get the code 0, but count for the scales, as published. Codes always come from the stored
    scale. Float32 throughout, also where TF32 is allowed. Nothing given is changed. Weights whose Hessian is one tensor
    share its factor. `progress` is called with the number of weights done. UserError as `factor`.

    `given`: scales instead of those that the grid proposes, by name, and a rate. With a rate, a weight takes the
    code next to the nearest, towards 0, where that shortens the file by more than it costs: code lengths are those of
    the matrix rounded to nearest, and at 1 a bit is worth what it buys by a finer step (entropy-constrained
    quantization, Chou, Lookabaugh and Gray 1989).
    """
    if not grid.stored_scale_codes:
        raise ValueError("GPTQ needs a grid with stored_scale_codes")
    sizes: dict[int, dict[int, list[str]]] = {}  # columns -> identity of the Hessian -> names
    for name, (weight, hessian) in problems.items():
        sizes.setdefault(weight.shape[1], {}).setdefault(id(hessian), []).append(name)
    out: dict[str, tuple[Tensor, Tensor]] = {}
    for groups in ([*size.values()] for size in sizes.values()):
        matrices = [
            [
                _matrix(problems[name][0].detach().float(), grid, given.scales.get(name), given.rate > 0)
                for name in names
            ]
            for names in groups
        ]
        with full_float32():
            hessians = torch.stack([problems[names[0]][1] for names in groups])
            factors = factor(hessians, damping, [names[0] for names in groups])
            found = _side_by_side(matrices, factors, grid, block, score, given.rate)
        for name, coded in zip(chain(*groups), chain(*found), strict=True):
            out[name] = (coded[0], given.scales[name]) if name in given.scales else coded
            if progress:
                progress(coded[0].numel())
    return out


def _matrix(weight: Tensor, grid: Grid, given: Tensor | None, rated: bool) -> _Matrix:
    scales = stored(candidate_scales(weight, grid)) if given is None else given.expand(1, len(weight))
    pair, row = _distinct(scales)
    scale = torch.empty(len(row), dtype=torch.float16, device=weight.device)
    scale[pair] = scales
    lengths = code_lengths(quantize(weight, scales[0], grid)) if rated else weight.new_zeros(256)
    return _Matrix(weight, lengths, pair, row, scale)


def code_lengths(codes: Tensor) -> Tensor:
    """(256,) bits of each code from -128 on under the codes' own frequencies; codes that do not occur count as half."""
    counts = (codes.flatten().long() + 128).bincount(minlength=256) + 0.5
    return -(counts / counts.sum()).log2()


def _side_by_side(
    groups: list[list[_Matrix]], factors: tuple[Tensor, Tensor, Tensor], grid: Grid, block: int, score: str, rate: float
) -> list[list[tuple[Tensor, Tensor]]]:
    """Codes and scales of each group's matrices, group g by the factor g; shorter groups are filled up with zeros."""
    order, upper, dead = factors
    pairs = max(sum(len(m.row) for m in group) for group in groups)
    runs, scale = upper.new_zeros(len(groups), pairs, upper.shape[1]), upper.new_ones(len(groups), pairs)
    for g, group in enumerate(groups):
        rows = torch.cat([m.weight.masked_fill(dead[g], 0)[:, order[g]][m.row] for m in group])
        runs[g, : len(rows)], scale[g, : len(rows)] = rows, torch.cat([m.scale.float() for m in group])
    lengths = None
    if rate:  # of a bit, in squared codes: the slope of a uniform step's error, ln(2) / 6, by what a column counts
        lengths = upper.new_zeros(len(groups), pairs, 256)
        for g, group in enumerate(groups):
            of = torch.cat([m.lengths.expand(len(m.row), -1) for m in group])
            lengths[g, : len(of)] = rate * math.log(2) / 6 * of
    codes, weighted = _feed_back(runs.mT.contiguous(), scale, upper, grid, block, lengths)
    squared = weighted if score == "hessian" else _squared(runs, codes, scale)
    out: list[list[tuple[Tensor, Tensor]]] = []
    for g, group in enumerate(groups):
        ends = [0, *accumulate(len(m.row) for m in group)]
        out.append([])
        for m, a, b in zip(group, ends, ends[1:], strict=False):
            errors = squared[g, a:b][m.pair]  # (Q, R)
            best = errors.argmin(0) if score == "hessian" else errors.sum(1).argmin().expand(len(m.weight))
            chosen = m.pair.gather(0, best[None])[0]
            own = torch.empty(m.weight.shape, dtype=torch.int8, device=runs.device)
            own[:, order[g]] = codes[g, :, a:b][:, chosen].T
            out[-1].append((own, m.scale[chosen]))
    return out


def _squared(runs: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """(G, P) squared errors in float64 of runs (G, P, C) with codes (G, C, P); a group at a time, to spare room."""
    together = zip(runs, codes, scale, strict=True)
    return torch.stack([(w - dequantize(c.T, s)).square().sum(1, dtype=torch.float64) for w, c, s in together])


def _distinct(scales: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's different scales, numbered: scales (Q, R) -> pair (Q, R), the number of each, and row (P,), its row.

    Example: scales [[1, 2], [1, 3]] of two rows are three pairs: pair [[0, 1], [0, 2]], row [0, 1, 1].
    """
    first = (scales[:, None] == scales[None]).int().argmax(1)  # (Q, R): the first quantile that proposes this scale
    new = first == torch.arange(len(scales), device=scales.device)[:, None]
    pair = (new.flatten().cumsum(0) - 1).view(scales.shape).gather(0, first)
    return pair, new.nonzero()[:, 1]


def _feed_back(
    columns: Tensor, scale: Tensor, upper: Tensor, grid: Grid, block: int, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Codes (G, C, P) and weighted errors (G, P) of transposed weights (G, C, P), which are overwritten.

    Errors reach the next INNER columns one by one, the rest of the block and the later blocks in one product each.
    `lengths` (G, P, 256): what each code costs, in squared codes of a column of mean weight.
    """
    counts = upper.diagonal(dim1=1, dim2=2).reciprocal().square()  # (G, C): what an error of each column weighs
    relative = counts.mean(1, keepdim=True) / counts
    codes = torch.empty(columns.shape, dtype=torch.int8, device=columns.device)
    weighted = torch.zeros_like(scale)
    for start, stop in _spans(0, columns.shape[1], block):
        errors = torch.empty_like(columns[:, start:stop])
        for a, b in _spans(start, stop, INNER):
            for j in range(a, b):
                known, u = errors[:, a - start : j - start], upper[:, a : j + 1, j]
                target = torch.baddbmm(columns[:, j : j + 1], u[:, None, :-1], known, alpha=-1)[:, 0]
                code = round_to_grid(target / scale, grid)
                if lengths is not None:
                    code = _shorter(code, target / scale, lengths, relative[:, j : j + 1])
                errors[:, j - start] = (target - code * scale) / u[:, -1:]
                codes[:, j] = code
            columns[:, b:stop].baddbmm_(upper[:, a:b, b:stop].mT, errors[:, a - start : b - start], alpha=-1)
        columns[:, stop:].baddbmm_(upper[:, start:stop, stop:].mT, errors, alpha=-1)
        weighted += errors.square().sum(1)
    return codes, weighted


def _shorter(code: Tensor, ratio: Tensor, lengths: Tensor, weight: Tensor) -> Tensor:
    """Codes (G, P), or those next to them towards 0 where length saves more than the error grows."""
    lower = code - code.sign()
    saved = lengths.gather(2, (code.long() + 128)[:, :, None]) - lengths.gather(2, (lower.long() + 128)[:, :, None])
    worse = (ratio - lower).square() - (ratio - code).square()
    return torch.where(worse < weight * saved[:, :, 0], lower, code)


def _spans(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    return ((a, min(a + size, stop)) for a in range(start, stop, size))
