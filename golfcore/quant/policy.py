"""Which tensor is stored how: low-bit matrices, int8 tables, float16 for the rest, by the parameter table's kinds."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from golfcore.config import Config, QuantConfig
from golfcore.errors import UserError
from golfcore.params import Kind
from golfcore.quant import gptq
from golfcore.quant.grid import SCALE_MAX, matrix_grid, round_to_nearest, stored, table_grid
from golfcore.quant.stored import Coded, Entry, Quantized, Spec, entries
from golfcore.weights import Weights, matrices


def quantize_weights(
    cfg: Config,
    weights: Weights,
    hessians: Mapping[str, Tensor] | None,
    progress: Callable[[int], object] | None = None,
    *,
    bits: Mapping[str, int] | None = None,
) -> Quantized:
    """Every exported tensor as the artifact stores it, on the CPU.

    `hessians` (C, C) by matrix name, damped: matrices then go through GPTQ, else they are rounded to nearest.
    `progress` is called with the number of scalars done. UserError: a weight that is not finite, or that float16
    cannot hold.
    """
    tensors = {**dict(matrices(weights)), **weights.rest}
    out: Quantized = {}
    for name, spec in entries(cfg.model).items():
        tensor = tensors[name].detach()
        if not bool(tensor.abs().max() <= SCALE_MAX):
            raise UserError(f"{name}: expected finite weights within float16, found {float(tensor.abs().max())}")
        width = (bits or {}).get(name, cfg.quant.matrix_bits)
        out[name] = _entry(replace(cfg.quant, matrix_bits=width), name, spec, tensor, hessians)
        if progress:
            progress(tensor.numel())
    return out


def guided_bits(cfg: QuantConfig, sensitivity: Mapping[str, float]) -> dict[str, int]:
    ranked, n = sorted(sensitivity, key=lambda name: -sensitivity[name]), len(sensitivity)
    high, low = (max(1, int(share * n)) if share else 0 for share in (cfg.guided_high, cfg.guided_low))
    return {m: cfg.matrix_bits + (i < high) - (i >= n - low) for i, m in enumerate(ranked)}


def _entry(cfg: QuantConfig, name: str, spec: Spec, tensor: Tensor, hessians: Mapping[str, Tensor] | None) -> Entry:
    if not is_coded(cfg, spec):
        return stored(tensor).cpu()
    if spec.kind == "table":
        codes, scale = round_to_nearest(tensor, table_grid(cfg))
    elif hessians is None:
        codes, scale = round_to_nearest(tensor, matrix_grid(cfg))
    else:
        damping = cfg.damping if cfg.damp_twice else 0.0
        codes, scale = gptq.solve(
            tensor, hessians[name], matrix_grid(cfg), block=cfg.block, damping=damping, score=cfg.clip_score
        )
    return Coded(codes.cpu(), scale.cpu())


def is_coded(cfg: QuantConfig, spec: Spec) -> bool:
    """Whether a tensor is stored as integers: matrices and tables above `fp16_max_numel`."""
    return spec.kind in ("matrix", "table") and math.prod(spec.shape) > cfg.fp16_max_numel


def coverage(cfg: Config, quantized: Mapping[str, Entry], bits: Mapping[str, int] | None = None) -> dict[str, int]:
    """How many scalars are stored at which precision, for the run record: {"int6": ..., "int8": ..., "fp16": ...}."""
    kinds: dict[Kind, int] = {"matrix": cfg.quant.matrix_bits, "table": cfg.quant.table_bits}
    out: dict[str, int] = {}
    for name, spec in entries(cfg.model).items():
        label = f"int{(bits or {}).get(name, kinds[spec.kind])}" if isinstance(quantized[name], Coded) else "fp16"
        out[label] = out.get(label, 0) + math.prod(spec.shape)
    return out
