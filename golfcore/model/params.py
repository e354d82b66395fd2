"""The parameter table: for every tensor its shape, initial value, optimizer group and treatment in the artifact.

Optimizers, freezing, quantization and export read this table; nothing matches substrings of names.
Initial values follow exp101 (its model-level initialiser makes both small projections orthogonal), and where the
configuration says so pr294 and pr398.
"""

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from golfcore.config import ModelConfig
from golfcore.model.weights import Weights, unflat

Kind = Literal["matrix", "table", "projection", "control", "memory", "index"]
Group = Literal["matrix", "table", "scalar", "none"]


class Param(NamedTuple):
    name: str
    shape: tuple[int, ...]
    init: str  # a rule of `_initial`; "_even" after it: only every other slot from 0 on, zeros between
    value: float  # standard deviation of "normal" and "overtone", gain of "orthogonal", value of "constant"
    group: Group  # Muon; AdamW at table_lr; AdamW at scalar_lr; no optimizer
    kind: Kind  # how the artifact stores it: low-bit matrix, int8 table, else fp16; no optimizer moves an index
    rows: Literal["slot", "block", "layer", ""] = ""  # what the first axis counts, if blocks can be frozen by it
    exported: bool = True  # False: train-only, never in an artifact


RATES = "meta_sgd_"  # before a bank's name: its learned inner rates (MetaSGD, exp106), one for every slot


def table(c: ModelConfig) -> tuple[Param, ...]:
    """One row for every tensor of the model, banks first."""
    n, d, u = c.n_layers, c.dim, c.n_blocks
    inner = 2 * c.mlp_hidden // 3  # of SwiGLU: 3hD = 2FD parameters either way
    up, down = (2 * inner, inner) if c.mlp == "swiglu" else (c.mlp_hidden, c.mlp_hidden)
    banks = [
        Param("qo", (2 * u, d, d), f"{c.linear_init}_even", 1, "matrix", "matrix", "slot"),
        Param("kv", (2 * u, c.kv_dim, d), c.linear_init, 1, "matrix", "matrix", "slot"),
        Param("up", (u, up, d), c.linear_init, 1, "matrix", "matrix", "block"),
        Param("down", (u, d, down), "zeros", 0, "matrix", "matrix", "block"),
    ]
    rest = [
        Param("tok_emb", (c.vocab_size, d), c.embed_init, c.embed_init_std, "table", "table"),
        _scalars("attn_scale", (n, d), 1, "layer"),
        _scalars("mlp_scale", (n, d), 1, "layer"),
        _scalars("resid_mix", (n, 2, d), 0, "layer")._replace(init=f"{c.mix_init}_mix"),
        _scalars("q_gain", (u, c.n_heads), c.q_gain_init, "block"),
    ]
    if c.n_skips:
        rest.append(_scalars("skip", (c.n_skips, d), 1))
    rest += _ngram(c) if c.ngram_trained else [p._replace(group="none") for p in _ngram(c)]
    if c.memory_tokens:
        rest.append(Param("memory", (c.memory_tokens, d), "normal", 0.02, "table", "memory"))
    if c.ve_layers:
        rest.append(Param("ve", (c.vocab_size, c.ve_dim), "normal", 0.01, "table", "table"))
        rest += [_scalars("ve_scale", (), 0.1), _scalars("ve_layer_scale", (len(c.ve_layers),), 1)]
        if c.ve_dim != c.kv_dim:
            rest.append(Param("ve_proj", (c.kv_dim, c.ve_dim), c.linear_init, 1, "scalar", "projection"))
    if c.meta_sgd:
        rest += [_scalars(RATES + bank.name, bank.shape[:1], 1)._replace(exported=False) for bank in banks]
    return (*banks, *rest)


def _scalars(name: str, shape: tuple[int, ...], value: float, rows: Literal["block", "layer", ""] = "") -> Param:
    return Param(name, shape, "constant", value, "scalar", "control", rows)


def _ngram(c: ModelConfig) -> list[Param]:
    """The parts that read previous tokens: SmearGate and the n-gram embedding."""
    rows = [_scalars("smear", (c.dim,), 0)] if c.smear else []
    if c.bigram_rows:
        rows.append(Param("bigram", (c.bigram_rows, c.bigram_dim), "zeros", 0, "table", "table"))
        rows.append(_scalars("bigram_scale", (), 0.05))
        if c.bigram_dim != c.dim:
            gain = (2 * c.n_layers) ** -0.5 if c.bigram_proj_init == "scaled" else 1.0
            rule, shape = "zeros" if c.bigram_proj_init == "zeros" else "orthogonal", (c.dim, c.bigram_dim)
            rows.append(Param("bigram_proj", shape, rule, gain, c.bigram_proj_group, "projection"))
        if c.word_start_boost:
            rows.append(_scalars("word_start_boost", (), 1))
        if c.bigram_layout == "frequent":  # ids of each row's pair, in the order of their codes
            rows.append(Param("bigram_pairs", (c.bigram_rows - 1, 2), "constant", 0, "none", "index"))
    return rows


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
        if rule == "overtone":  # singular values s_k = s_1 / sqrt(k), s_1 the sample's largest (pr294)
            u, s, vh = torch.linalg.svd(t, full_matrices=False)
            return (u * (s[0] * torch.arange(1, len(s) + 1) ** -0.5)) @ vh
    elif rule == "constant":
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
    return t


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
    sizes = {p.name: math.prod(p.shape[1:]) for p in table(cfg)}
    return sum(int(mask.sum()) * sizes[name] for name, mask in masks.items())


def summary(cfg: ModelConfig) -> dict[str, Any]:
    """Counts by optimizer group and by storage kind, as `golfcore params` prints them."""
    groups, kinds, exported = dict.fromkeys(get_args(Group), 0), dict.fromkeys(get_args(Kind), 0), 0
    for p in table(cfg):
        size = math.prod(p.shape)
        groups[p.group] += size
        kinds[p.kind] += size
        exported += size * p.exported
    return {
        "total": sum(groups.values()),
        "exported": exported,
        "adaptable": exported - kinds["index"],
        "groups": groups,
        "kinds": kinds,
        "tensors": {p.name: list(p.shape) for p in table(cfg)},
    }


def as_text(found: dict[str, Any]) -> str:
    """A `summary` for a terminal."""
    lines = []
    for name, value in found.items():
        lines.append(f"{name}: {value:,}" if isinstance(value, int) else f"{name}:")
        lines += [f"  {key:18} {part}" for key, part in value.items()] if isinstance(value, dict) else []
    return "\n".join(lines)
