"""Integer grids with one scale a row, and the only code that rounds to them.

A weight w becomes code = clamp(round(w / s), lo, qmax), half to even, and comes back as code * s. The scale of a row is
s = clip / qmax, where clip is a quantile of the row's magnitudes. Shapes: R rows, C columns, Q candidate quantiles.

The published systems as grids (the floor s >= 1/qmax is theirs): exp101 int6 (31, -31, its five quantiles); pr398 int6
(31, -32, maximum); pr294 int5 (15, -16, maximum); int8 tables, and pr294's int8 matrices (127, -127, quantile
0.9999984), whose codes came from the scale before it was rounded to float16. Their int8 rule also clipped the weights
at the quantile before rounding: under the floor that moves only a row's largest weight, by far less than a code, and is
left out.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from golfcore.config import QuantConfig

SCALE_MIN, SCALE_MAX = 2.0**-24, 65504.0  # the positive numbers of float16


class Grid(NamedTuple):
    qmax: int  # the largest code, and what the clip value is mapped to
    lo: int  # the smallest code: -qmax or -qmax - 1
    quantiles: tuple[float, ...] = (1.0,)  # candidates for the clip value; 1.0 is the row's maximum
    floor: bool = False  # scales are at least 1 / qmax
    stored_scale_codes: bool = True  # codes come from the float16 scale that is stored, not from the float32 one


def matrix_grid(cfg: QuantConfig, bits: int | None = None) -> Grid:
    """The grid of a matrix that gets `bits` bits, else `cfg.matrix_bits`; below 8 codes come from the stored scale."""
    bits = bits or cfg.matrix_bits
    qmax = 2 ** (bits - 1) - 1
    return Grid(qmax, -qmax - (cfg.lowest == "full"), cfg.clip_quantiles, cfg.floor, cfg.stored_scale_codes or bits < 8)


def table_grid(cfg: QuantConfig) -> Grid:
    qmax = 2 ** (cfg.table_bits - 1) - 1
    return Grid(qmax, -qmax, (cfg.table_quantile,), cfg.floor, cfg.stored_scale_codes)


def qat_grid(cfg: QuantConfig) -> Grid:
    """The matrices' grid without a search: what `fake_quant` rounds to in training."""
    return matrix_grid(cfg)._replace(quantiles=(1.0,))


def projection_grid() -> Grid:
    """What exp101 rounds its two small projections to where it fakes quantization: by the maximum, in float32."""
    return Grid(31, -32, floor=True, stored_scale_codes=False)


WIDE = Grid(127, -127)  # codes of steps in root mean squares: as many as a byte holds, which none should reach


def sigma_scale(weight: Tensor, step: float, by_row: bool) -> Tensor:
    """float16 scales: `step` root mean squares, or more where a code would not fit a byte.

    One of all rows (1,), or one each (R,): the rows of a table are as long as their tokens are frequent.
    """
    w = weight.float() if by_row else weight.float().view(1, -1)
    least = w.abs().amax(1) / WIDE.qmax
    return stored(torch.maximum(step * w.square().mean(1).sqrt(), least).clamp(SCALE_MIN, SCALE_MAX))


def candidate_scales(weight: Tensor, grid: Grid) -> Tensor:
    """float32 scales (Q, R) of the rows of (R, C), one line a quantile of the grid; SCALE_MIN for a row of zeros."""
    if grid.floor and bool(weight.abs().max() <= 1):  # every clip value is below the floor: nothing to search
        return torch.full((len(grid.quantiles), len(weight)), 1 / grid.qmax, device=weight.device)
    return _scales(_clips(weight, grid.quantiles), grid)


def _scales(clips: Tensor, grid: Grid) -> Tensor:
    return (clips / grid.qmax).clamp(1 / grid.qmax if grid.floor else SCALE_MIN, SCALE_MAX)


def _clips(weight: Tensor, quantiles: Sequence[float]) -> Tensor:
    """torch.quantile(|w|, q, dim=1), (R, C) -> (Q, R), without its limit on size: only each row's top is sorted."""
    magnitude = weight.float().abs()
    rank = torch.tensor(quantiles, device=weight.device) * (weight.shape[1] - 1)  # in float32, as torch does
    below, above = rank.floor().long(), rank.ceil().long()
    first = int(below.min())
    top = magnitude.topk(weight.shape[1] - first, dim=1).values.flip(1)
    return torch.lerp(top[:, below - first], top[:, above - first], rank - below).T


def stored(values: Tensor) -> Tensor:
    """The float16 that an artifact holds for a scale, or for a tensor without codes."""
    return values.to(torch.float16)


def round_to_grid(ratio: Tensor, grid: Grid) -> Tensor:
    """Codes of weight / scale, in the dtype of `ratio`."""
    return ratio.round().clamp(grid.lo, grid.qmax)


def quantize(weight: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """int8 codes of (..., R, C) with scales (..., R), or of a vector or scalar with a scale ()."""
    return round_to_grid(weight.float() / scale.float()[..., None], grid).to(torch.int8).view(weight.shape)


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """codes * scale in float32; shapes as in `quantize`."""
    return (codes.float() * scale.float()[..., None]).view(codes.shape)


def round_to_nearest(weight: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """(int8 codes, scale to store) without a Hessian: of the grid's quantiles the one of least squared error.

    One choice for the whole matrix (exp101), the first of equals. Vectors and scalars take the last quantile and no
    floor, 1 if they are 0; their scale stays float32 where codes do not come from the stored one (exp101).
    """
    if weight.ndim < 2:
        scale = _clips(weight.reshape(1, -1), grid.quantiles[-1:])[0, 0] / grid.qmax
        scale = torch.where(scale == 0, 1.0, scale)
        kept = stored(scale) if grid.stored_scale_codes else scale
        return quantize(weight, kept, grid), kept
    tried: list[tuple[Tensor, Tensor]] = []
    for scale in candidate_scales(weight, grid):
        kept = stored(scale)
        if not any(torch.equal(kept, other) for _, other in tried):
            tried.append((quantize(weight, kept if grid.stored_scale_codes else scale, grid), kept))
    return min(tried, key=lambda one: float((weight.float() - dequantize(*one)).square().mean()))


def fake_quant(weight: Tensor, grid: Grid) -> Tensor:
    """(..., R, C) rounded to the grid by each row's maximum, in its own dtype; the gradient passes straight through."""
    w = weight.detach().float()
    scale = _scales(w.abs().amax(-1), grid)
    if grid.stored_scale_codes:
        scale = stored(scale).float()
    return _straight_through(weight, scale, grid)


def fake_steps(weight: Tensor, step: float) -> Tensor:
    """(R, C) rounded in steps of `step` root mean squares of the matrix, as `sigma_scale` stores them."""
    return _straight_through(weight, sigma_scale(weight.detach(), step, by_row=False).float(), WIDE)


def _straight_through(weight: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    w = weight.detach().float()
    rounded = round_to_grid(w / scale[..., None], grid) * scale[..., None]
    return weight + (rounded.to(weight.dtype) - weight.detach())
