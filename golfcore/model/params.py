"""The parameter table: for every tensor its shape, initial value, optimizer group and treatment in the artifact.

Optimizers, freezing, quantization and export read this table; nothing matches substrings of names.
Initial values follow exp101 (its model-level initialiser makes both small projections orthogonal), and where the
configuration says so pr294 and pr398.
"""

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from golfcore.config import ModelConfig
from golfcore.model.weights import Weights, unflat

Kind = Literal["matrix", "table", "projection", "control", "memory"]
Group = Literal["matrix", "table", "scalar", "none"]


class Param(NamedTuple):
    name: str
    shape: tuple[int, ...]
    init: str  # a rule of `_initial`; "_even" after it: only every other slot from 0 on, zeros between
    value: float  # standard deviation of "normal" and "overtone", gain of "orthogonal", value of "constant"
    group: Group  # Muon; AdamW at table_lr; AdamW at scalar_lr; no optimizer
    kind: Kind  # how the artifact stores it: low-bit matrix, int8 table, else fp16
    rows: Literal["slot", "block", "layer", ""] = ""  # what the first axis counts, if blocks can be frozen by it
    exported: bool = True  # False: train-only, never in an artifact


def table(cfg: ModelConfig) -> tuple[Param, ...]:
    """One row for every tensor of the model, banks first."""
    ngram = _ngram(cfg) if cfg.ngram_trained else [p._replace(group="none") for p in _ngram(cfg)]
    return (*_banks(cfg), *_controls(cfg), *ngram, *_optional(cfg), *_rates(cfg))


def mlp_shapes(cfg: ModelConfig) -> tuple[int, int]:
    """(rows of up, columns of down). SwiGLU: two thirds of F twice, so 3hD = 2FD parameters either way."""
    inner = 2 * cfg.mlp_hidden // 3
    return (2 * inner, inner) if cfg.mlp == "swiglu" else (cfg.mlp_hidden, cfg.mlp_hidden)


def _banks(c: ModelConfig) -> list[Param]:
    u, d = c.n_blocks, c.dim
    up, down = mlp_shapes(c)
    return [
        Param("qo", (2 * u, d, d), f"{c.linear_init}_even", 1, "matrix", "matrix", "slot"),
        Param("kv", (2 * u, c.kv_dim, d), c.linear_init, 1, "matrix", "matrix", "slot"),
        Param("up", (u, up, d), c.linear_init, 1, "matrix", "matrix", "block"),
        Param("down", (u, d, down), "zeros", 0, "matrix", "matrix", "block"),
    ]


def _controls(c: ModelConfig) -> list[Param]:
    n, d = c.n_layers, c.dim
    rows = [
        Param("tok_emb", (c.vocab_size, d), c.embed_init, c.embed_init_std, "table", "table"),
        Param("attn_scale", (n, d), "constant", 1, "scalar", "control", "layer"),
        Param("mlp_scale", (n, d), "constant", 1, "scalar", "control", "layer"),
        Param("resid_mix", (n, 2, d), f"{c.mix_init}_mix", 0, "scalar", "control", "layer"),
        Param("q_gain", (c.n_blocks, c.n_heads), "constant", c.q_gain_init, "scalar", "control", "block"),
    ]
    if c.n_skips:
        rows.append(Param("skip", (c.n_skips, d), "constant", 1, "scalar", "control"))
    return rows


def _ngram(c: ModelConfig) -> list[Param]:
    """The parts that read previous tokens: SmearGate and the n-gram embedding."""
    rows = [Param("smear", (c.dim,), "constant", 0, "scalar", "control")] if c.smear else []
    if c.bigram_rows:
        rows.append(Param("bigram", (c.bigram_rows, c.bigram_dim), "zeros", 0, "table", "table"))
        rows.append(Param("bigram_scale", (), "constant", 0.05, "scalar", "control"))
        if c.bigram_dim != c.dim:
            gain = (2 * c.n_layers) ** -0.5 if c.bigram_proj_init == "scaled" else 1.0
            rule = "zeros" if c.bigram_proj_init == "zeros" else "orthogonal"
            shape = (c.dim, c.bigram_dim)
            rows.append(Param("bigram_proj", shape, rule, gain, c.bigram_proj_group, "projection"))
        if c.word_start_boost:
            rows.append(Param("word_start_boost", (), "constant", 1, "scalar", "control"))
    return rows


def _optional(c: ModelConfig) -> list[Param]:
    """Memory tokens (pr398's ablation), always float16 in the artifact; the value embedding."""
    rows = []
    if c.memory_tokens:
        rows.append(Param("memory", (c.memory_tokens, c.dim), "normal", 0.02, "table", "memory"))
    if c.ve_layers:
        rows.append(Param("ve", (c.vocab_size, c.ve_dim), "normal", 0.01, "table", "table"))
        rows.append(Param("ve_scale", (), "constant", 0.1, "scalar", "control"))
        rows.append(Param("ve_layer_scale", (len(c.ve_layers),), "constant", 1, "scalar", "control"))
        if c.ve_dim != c.kv_dim:
            rows.append(Param("ve_proj", (c.kv_dim, c.ve_dim), c.linear_init, 1, "scalar", "projection"))
    return rows


RATES = "meta_sgd_"  # before a bank's name: its learned inner rates


def _rates(c: ModelConfig) -> list[Param]:
    """MetaSGD (exp106): one inner rate for every slot. Train-only, so nothing that reads an artifact knows them."""
    if not c.meta_sgd:
        return []
    return [Param(RATES + b.name, b.shape[:1], "constant", 1, "scalar", "control", exported=False) for b in _banks(c)]


def init(cfg: ModelConfig, seed: int) -> Weights:
    """Initial weights in float32 on the CPU, rounded through `cfg.init_dtype` (the original cast everything once)."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {p.name: _initial(p, generator) for p in table(cfg)}
    tensors["attn_scale"][0] = cfg.first_attn_scale
    for row in cfg.frozen_skips:
        tensors["skip"][row] = 0
    rounding = getattr(torch, cfg.init_dtype)
    return unflat({name: t.to(rounding).to(torch.float32) for name, t in tensors.items()})


def _initial(p: Param, generator: torch.Generator) -> Tensor:
    t, rule = torch.zeros(p.shape), p.init.removesuffix("_even")
    step = 1 if rule == p.init else 2  # output matrices start at 0
    if rule in ("normal", "overtone"):
        t.normal_(0, p.value, generator=generator)
        return overtone(t) if rule == "overtone" else t
    if rule == "constant":
        t.fill_(p.value)
    elif rule == "identity_mix":
        t[:, 0] = 1
    elif rule == "phase_mix":
        t[:, 0] = torch.sigmoid(3 * (torch.arange(len(t)) / max(len(t) - 1, 1) - 0.5))[:, None]
        t[:, 1] = 1 - t[:, 0]
    elif rule == "orthogonal":
        for m in t[::step] if t.ndim == 3 else [t]:
            torch.nn.init.orthogonal_(m, p.value, generator=generator)
    elif rule == "uniform":  # torch's default of a linear layer
        t[::step].uniform_(-(p.shape[-1] ** -0.5), p.shape[-1] ** -0.5, generator=generator)
    elif rule != "zeros":
        raise ValueError(f"{p.name}: no initialiser {p.init!r}")
    return t


def overtone(table: Tensor) -> Tensor:
    """`table` (V, D) with the singular values s_k = s_1 / sqrt(k), s_1 its own largest (pr294)."""
    u, s, vh = torch.linalg.svd(table, full_matrices=False)
    return (u * (s[0] * torch.arange(1, len(s) + 1) ** -0.5)) @ vh


def frozen(cfg: ModelConfig, n_blocks: int, kinds: tuple[Kind, ...]) -> dict[str, Tensor]:
    """For each tensor with rows that belong to the first `n_blocks` blocks, a bool mask over its first axis.

    A layer's scales belong to the block the layer reads. Only tensors of the given kinds are masked; the published
    TTT freeze masked "control" alone, because no bank's name contained the block's.
    """
    blocks = torch.arange(cfg.n_blocks)
    owner = {"slot": blocks.repeat_interleave(2), "block": blocks, "layer": torch.tensor(cfg.blocks)}
    rows = [p for p in table(cfg) if n_blocks and p.rows and p.kind in kinds]
    return {p.name: owner[p.rows] < n_blocks for p in rows}


def frozen_count(cfg: ModelConfig, masks: dict[str, Tensor]) -> int:
    """Number of scalars that the masks freeze."""
    sizes = {p.name: torch.Size(p.shape).numel() // p.shape[0] for p in table(cfg) if p.name in masks}
    return sum(int(mask.sum()) * sizes[name] for name, mask in masks.items())


def mask_rows(tensor: Tensor, mask: Tensor | None) -> Tensor:
    """`tensor` with the masked rows of its first axis set to zero."""
    if mask is None:
        return tensor
    return tensor * (~mask).to(tensor).view(-1, *[1] * (tensor.ndim - 1))


def summary(cfg: ModelConfig) -> dict[str, Any]:
    """Counts by optimizer group and by storage kind, as `golfcore params` prints them."""
    rows = table(cfg)
    sizes = {p.name: torch.Size(p.shape).numel() for p in rows}

    def total(**want: object) -> int:
        return sum(sizes[p.name] for p in rows if all(getattr(p, k) == v for k, v in want.items()))

    return {
        "total": total(),
        "exported": total(exported=True),
        "adaptable": total(exported=True),
        "groups": {g: total(group=g) for g in get_args(Group)},
        "kinds": {k: total(kind=k) for k in get_args(Kind)},
        "tensors": {p.name: list(p.shape) for p in rows},
    }


def as_text(found: dict[str, Any]) -> str:
    """A `summary` for a terminal."""
    lines = []
    for name, value in found.items():
        lines.append(f"{name}: {value:,}" if isinstance(value, int) else f"{name}:")
        lines += [f"  {key:18} {part}" for key, part in value.items()] if isinstance(value, dict) else []
    return "\n".join(lines)
