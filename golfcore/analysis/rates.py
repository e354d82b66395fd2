"""Rate and distortion: what each rule of rounding takes in bytes, and what it costs in nats, on the same model."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from golfcore.analysis.frames import frame
from golfcore.analysis.rounding import entropy
from golfcore.analysis.stats import over_rows
from golfcore.analysis.surface import row_scores
from golfcore.config import Config, QuantConfig
from golfcore.model.forward import Net
from golfcore.model.weights import Weights
from golfcore.quant import artifact, codec
from golfcore.quant.allocate import allocated, coded, divergences, relative_steps
from golfcore.quant.calibrate import collect
from golfcore.quant.quantize import quantize_weights
from golfcore.quant.stored import Coded, Quantized, dequantize_weights

STEPS = (0.15, 0.25, 0.35, 0.5, 0.7)  # root mean squares
BITS = (6, 5, 4)
FLOORS = (5, 6, 7, 8)  # widths whose published floors are 1/15, 1/31, 1/63 and 1/127
SHANNON = 0.5 * math.log2(2 * math.pi * math.e / 12)  # bits: what uniform steps take above the bound, 0.255
PUBLISHED = {"floor": True, "clip_score": "mse", "codec": "lzma"}  # exp101, its accidents of damping and width apart
RULES: dict[str, dict[str, Any]] = {
    "sigma": {"steps": "sigma"},
    "measured": {"steps": "measured"},
    "measured, coder": {"steps": "measured", "rate": 1.0},
    "measured, coder, table": {"steps": "measured", "rate": 1.0, "table_gptq": True},
}
CODERS: tuple[codec.Codec, ...] = ("ans", "lzma", "zstd")


def curve(
    cfg: Config, net: Net, weights: Weights, tokens: Tensor, x: Tensor, y: Tensor, steps: Sequence[float] = STEPS
) -> pd.DataFrame:
    """Every rule at several steps: its bits and its cost.

    `tokens` (N, T): calibration text that the model wrote; x, y (B, T): text that is scored. Columns: rule, step (of
    "clip" and "published" the width, of "floor" the least scale), bits (of all coded tensors, by the file of golfcore's
    coder, a value; of the published rule by LZMA's), entropy_bits, lzma_bits, zstd_bits (of the same codes), bytes (of
    the file), difference (nats more), low, high (its 95 % interval over rows).
    """
    score, rows = row_scores(net, x, y), list[dict[str, Any]]()
    before, values = score(weights), sum(math.prod(spec.shape) for spec in coded(_with(cfg, steps="sigma")).values())
    for rule, step, made_cfg, quantized in _every(cfg, net, weights, tokens, steps):
        found = over_rows(score(dequantize_weights(cfg.model, quantized)) - before)
        n_bytes = artifact.size(made_cfg, quantized)
        row = {"rule": rule, "step": step, "bits": 8 * coded_bytes(quantized, made_cfg.quant.codec) / values}
        row |= {"entropy_bits": _entropy(quantized) / values}
        row |= {f"{kind}_bits": 8 * coded_bytes(quantized, kind) / values for kind in ("lzma", "zstd")}
        rows.append(row | {"bytes": n_bytes} | found)
    return frame(rows)


def _every(
    cfg: Config, net: Net, weights: Weights, tokens: Tensor, steps: Sequence[float]
) -> Iterator[tuple[str, float, Config, Quantized]]:
    hessians = collect(net, weights, tokens, cfg.quant.damping, head=True)
    matrices = {name: h for name, h in hessians.items() if name != "tok_emb"}
    published = _with(cfg, **PUBLISHED)
    yield "published", 6, published, quantize_weights(published, weights, matrices)
    for bits in FLOORS:
        floored = _with(cfg, matrix_bits=bits, floor=True)
        yield "floor", 1 / (2 ** (bits - 1) - 1), floored, quantize_weights(floored, weights, matrices)
    for bits in BITS:
        clipped = _with(cfg, matrix_bits=bits)
        yield "clip", bits, clipped, quantize_weights(clipped, weights, matrices)
    moved = divergences(_with(cfg, steps="measured"), net, weights, matrices, tokens)
    for rule, values in RULES.items():
        for step in steps:
            made = _with(cfg, step=step, **values)
            used = hessians if made.quant.table_gptq else matrices
            yield rule, step, made, allocated(made, net, weights, used, tokens, measured=moved)[0]


def _with(cfg: Config, **values: Any) -> Config:
    """`cfg` with the defaults of rounding but for its calibration, and these values."""
    q = cfg.quant
    plain = QuantConfig(damping=q.damping, calib_seqs=q.calib_seqs, calib_len=q.calib_len, fp16_max_numel=0)
    return replace(cfg, quant=replace(plain, **values))


def with_rule(cfg: Config, step: float, rule: str = "measured, coder") -> Config:
    """`cfg` with one of the RULES at a step."""
    return _with(cfg, step=step, **RULES[rule])


def coded_bytes(quantized: Mapping[str, Any], kind: codec.Codec) -> int:
    """Bytes of the codes by a coder, each tensor alone; of golfcore's with its tables, two bytes a code that occurs."""
    streams = [codec.encode(e.codes.numpy(), kind) for e in quantized.values() if isinstance(e, Coded)]
    return sum(len(s.payload) + (2 * len(s.counts) if kind == "ans" else 0) for s in streams)


def _entropy(quantized: Mapping[str, Any]) -> float:
    return sum(entropy(e.codes) * e.codes.numel() for e in quantized.values() if isinstance(e, Coded))


def at_equal(table: pd.DataFrame, rule: str, column: str = "difference", at: float | None = None) -> float:
    """A rule's cost at the published rule's bits ("difference"), or its bits at the published cost ("bits").

    By interpolation between its steps, of the logarithm of the cost, which is straight in bits. `at`: instead of the
    published rule's value. NaN outside of what was measured, and where one of the two costs nothing at any step.
    """
    rows = table[(table["rule"] == rule) & (table["difference"] > 0)].sort_values("bits")
    base = table[table["rule"] == "published"].iloc[0]
    bits, cost = rows["bits"].to_numpy(float), np.log(rows["difference"].to_numpy(float))
    if rows.empty:
        return math.nan
    if column == "difference":
        return float(np.exp(np.interp(base["bits"] if at is None else at, bits, cost, np.nan, np.nan)))
    here = base["difference"] if at is None else at
    return float(np.interp(math.log(here), cost[::-1], bits[::-1], np.nan, np.nan)) if here > 0 else math.nan


def widths(cfg: Config, net: Net, weights: Weights, tokens: Tensor) -> pd.DataFrame:
    """Which tensor gets which step: name, role, block, values, moved (nats by its rounding alone), relative (step)."""
    made = _with(cfg, steps="measured")
    hessians = collect(net, weights, tokens, cfg.quant.damping)
    moved, specs = divergences(made, net, weights, hessians, tokens), coded(made)
    relative, rows = relative_steps(made, moved), list[dict[str, Any]]()
    for name, spec in specs.items():
        block, _, role = name.removeprefix("block").rpartition(".")
        row = {"name": name, "role": role, "block": int(block) if block else None, "values": math.prod(spec.shape)}
        rows.append(row | {"moved": moved[name], "relative": relative[name]})
    return frame(rows)
