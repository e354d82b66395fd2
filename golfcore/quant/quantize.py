"""Quantized tensors from weights, by kinds of the parameter table: low-bit matrices, int8 tables, else float16."""

import math
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from golfcore.base.errors import UserError
from golfcore.config import Config, QuantConfig
from golfcore.model.generate import Progress
from golfcore.model.params import Param
from golfcore.model.weights import Weights, matrices
from golfcore.quant.gptq import Given, solve_all
from golfcore.quant.grid import (
    SCALE_MAX,
    WIDE,
    Grid,
    matrix_grid,
    quantize,
    round_to_nearest,
    sigma_scale,
    stored,
    table_grid,
)
from golfcore.quant.stored import Coded, Entry, Quantized, by_rows, entries

NO_BITS: Mapping[str, int] = MappingProxyType({})
NO_STEPS: Mapping[str, float] = MappingProxyType({})


def quantize_weights(
    cfg: Config,
    weights: Weights,
    hessians: Mapping[str, Tensor] | None,
    progress: Progress | None = None,
    bits: Mapping[str, int] = NO_BITS,
    steps: Mapping[str, float] = NO_STEPS,
) -> Quantized:
    """Every exported tensor as the artifact stores it, on the CPU.

    `hessians` (C, C) by matrix name, damped: matrices then go through GPTQ, unless `quant.rounding` is "nearest";
    without them they are rounded to nearest. `bits`: by matrix name, the widths that are not `quant.matrix_bits`.
    `steps`: by name, in root mean squares, instead (`quant.allocate`); all coded tensors are then in it.
    `progress` is called with the number of scalars done. UserError: a weight that is not finite, or that float16
    cannot hold; a Hessian that is not finite or not positive definite; a name in `quant.float16` that the model does
    not have.
    """
    q, tensors = cfg.quant, {**dict(matrices(weights)), **weights.rest}
    used = hessians if hessians and q.rounding == "gptq" else {}
    specs = check_names(cfg)
    scales = {name: sigma_scale(tensors[name].detach(), step, by_rows(specs[name])) for name, step in steps.items()}
    by_grid: dict[Grid, dict[str, tuple[Tensor, Tensor]]] = {}  # what GPTQ solves
    out: Quantized = {}
    for name, spec in specs.items():
        tensor = tensors[name].detach()
        largest = float(tensor.abs().max())
        if not largest <= SCALE_MAX:  # NaN compares as false
            raise UserError(f"{name}: expected finite weights within float16, found {largest}")
        grid = table_grid(q) if spec.kind == "table" else matrix_grid(q, bits.get(name))
        if name in used and spec.kind in ("matrix", "table") and is_coded(q, spec):
            by_grid.setdefault(WIDE if name in steps else grid, {})[name] = tensor, used[name]
            continue
        if is_coded(q, spec) and name in steps:
            out[name] = Coded(quantize(tensor, scales[name].expand(len(tensor)), WIDE).cpu(), scales[name].cpu())
        elif is_coded(q, spec):
            codes, scale = round_to_nearest(tensor, grid)
            out[name] = Coded(codes.cpu(), scale.cpu())
        else:
            out[name] = stored(tensor).cpu()
        if progress:
            progress(tensor.numel())
    how: dict[str, Any] = {"block": q.block, "damping": q.damping if q.damp_twice else 0.0, "score": q.clip_score}
    how["given"] = Given(scales, q.rate)
    for grid, problems in by_grid.items():
        for name, (codes, scale) in solve_all(problems, grid, **how, progress=progress).items():
            out[name] = Coded(codes.cpu(), scale.cpu())
    return {name: out[name] for name in specs}


def check_names(cfg: Config) -> dict[str, Param]:
    """What is stored, by name. UserError: a name in `quant.float16` that the model does not have."""
    known = entries(cfg.model)
    if strange := sorted(set(cfg.quant.float16) - known.keys()):
        raise UserError(f"quant.float16: expected names of stored tensors, as tok_emb or block0.up, found {strange[0]}")
    return known


def is_coded(cfg: QuantConfig, spec: Param) -> bool:
    """Whether a tensor is stored as integers: a matrix or table above `fp16_max_numel` that `float16` does not name."""
    large = math.prod(spec.shape) > cfg.fp16_max_numel
    return spec.kind in ("matrix", "table") and large and spec.name not in cfg.float16


def coverage(cfg: Config, quantized: Mapping[str, Entry], bits: Mapping[str, int] = NO_BITS) -> dict[str, int]:
    """Number of scalars stored at each precision, {"int6": ..., "fp16": ...}; `bits` as for `quantize_weights`."""
    q, out = cfg.quant, Counter[str]()
    for name, spec in entries(cfg.model).items():
        width = q.table_bits if spec.kind == "table" else bits.get(name, q.matrix_bits)
        kind = f"int{width}" if q.steps == "clip" else "codes"
        out[kind if isinstance(quantized[name], Coded) else "fp16"] += math.prod(spec.shape)
    return dict(out)


def guided_bits(cfg: QuantConfig, sensitivity: Mapping[str, float]) -> dict[str, int]:
    """Bit width of each matrix by the size of its gradients in training, by the names of `sensitivity` (pr398, pr332).

    The share `guided_high` of highest sensitivity gets a bit more than `matrix_bits`, the share `guided_low` of lowest
    a bit less; a share rounds down, but to no less than one matrix unless it is 0. Equals go by name.
    """
    order = sorted(sensitivity, key=lambda name: (-sensitivity[name], name))
    high, low = (max(1, int(s * len(order))) if s > 0 else 0 for s in (cfg.guided_high, cfg.guided_low))
    low = min(low, len(order) - high)
    change = {**dict.fromkeys(order[:high], 1), **dict.fromkeys(order[len(order) - low :], -1)}
    return {name: cfg.matrix_bits + change.get(name, 0) for name in sensitivity}
