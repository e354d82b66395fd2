"""Reading the original systems: their constructor keywords and state dicts, and back for comparison.

Families: "exp101" (also exp105a, exp106, exp107: banks), "pr398" and "pr294v2" (one matrix a layer), "pr294seed"
(shared blocks, scales per application). Bank order differs: the originals keep all queries, then all outputs.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from golfcore.base.errors import UserError
from golfcore.config import ModelConfig
from golfcore.model.params import RATES, table
from golfcore.model.weights import ROLES, Weights, flat, slot, unflat

FAMILIES = ("exp101", "exp106", "pr398", "pr294v2", "pr294seed")
MODULES = {  # a block's matrix in the original's per-layer naming
    "query": "attn.c_q.weight",
    "out": "attn.proj.weight",
    "key": "attn.c_k.weight",
    "value": "attn.c_v.weight",
    "up": "mlp.fc.weight",
    "down": "mlp.proj.weight",
}
BANKS = {  # original bank name, and how many banks' worth of layers precede a role
    "query": ("qo_bank", 0),
    "out": ("qo_bank", 1),
    "key": ("kv_bank", 0),
    "value": ("kv_bank", 1),
    "up": ("mlp_up_bank", 0),
    "down": ("mlp_down_bank", 0),
}
NAMES = {  # ours -> the original's, for tensors that correspond one to one
    "tok_emb": "tok_emb.weight",
    "skip": "skip_weights",
    "smear": "smear.gate",
    "bigram": "bigram.embed.weight",
    "bigram_scale": "bigram.scale",
    "bigram_proj": "bigram.proj.weight",
    "word_start_boost": "word_start_boost",
    "memory": "memory_tokens",
    "ve": "ve_shared.embed.weight",
    "ve_scale": "ve_shared.scale",
    "ve_proj": "ve_shared.proj.weight",
}
PER_LAYER = {  # ours -> the original's name in its block, and as a per-application list in pr294seed
    "attn_scale": ("blocks.{}.attn_scale", "iter_attn_scales.{}"),
    "mlp_scale": ("blocks.{}.mlp_scale", "iter_mlp_scales.{}"),
    "resid_mix": ("blocks.{}.resid_mix", "iter_resid_mixes.{}"),
}
ABSENT = ("mtp_num_heads", "dtg", "dtg_enabled", "gated_attention", "value_residual")
IGNORED = ("mtp_loss_weight", "tied_embed_init_std", "num_layers", "num_unique_blocks", "train_seq_len")


def reference_config(
    family: str,
    kw: Mapping[str, Any],
    *,
    poscond: bool | None = None,
    trigram: bool | None = None,
    meta_sgd: bool = False,
) -> ModelConfig:
    """The model of an original's constructor keywords.

    exp101 read two switches from its environment: position-conditional hashing and the trigram. They are the arguments
    `poscond` and `trigram`, or keys of those names in `kw`. exp106 always held its 66 inner rates; whether it used them
    was another switch, the argument `meta_sgd`: without it they are no part of the model. Raises UserError for a
    family, keyword or value we lack.
    """
    if family not in FAMILIES:
        raise UserError(f"reference family {family!r}: expected one of {', '.join(FAMILIES)}")
    kw = {"poscond": bool(poscond), "trigram": bool(trigram), **kw}
    for name in ABSENT:
        if kw.pop(name, 0):
            raise UserError(
                f"reference keyword {name!r}: used by none of the five systems, so golfcore has no such part"
            )
    if not kw.pop("tie_embeddings", True):
        raise UserError("reference keyword 'tie_embeddings': expected true, golfcore's head is tied")
    dim, layers = kw.pop("model_dim"), kw["num_layers"]
    heads = kw.pop("num_heads")
    unique = kw.get("num_unique_blocks", layers) if family == "pr294seed" else layers
    banked = family in ("exp101", "exp106")
    has_bigram = family != "pr294seed"
    ve_layers = kw.pop("ve_layers", "9,10")
    ve_on = kw.pop("ve_enabled", False)
    ntk = {"pr294seed": kw.get("train_seq_len", 1024), "pr294v2": 0}.get(family, 1024)
    config = ModelConfig(
        vocab_size=kw.pop("vocab_size"),
        dim=dim,
        n_heads=heads,
        n_kv_heads=kw.pop("num_kv_heads"),
        mlp_hidden=int(kw.pop("mlp_mult") * dim),
        mlp="leaky_relu2" if banked else "relu2",
        blocks=tuple(i % unique for i in range(layers)),
        frozen_skips=(),
        ln_scale=bool(kw.pop("ln_scale", False)),
        softcap=kw.pop("logit_softcap"),
        q_gain_init=kw.pop("qk_gain_init"),
        embed_init_std=kw.get("tied_embed_init_std", 0.005),
        rope_dims=kw.pop("rope_dims", 0) or dim // heads,
        rope_base=kw.pop("rope_base"),
        rope_ntk_len=ntk,
        xsa_last_n=kw.pop("xsa_last_n", 0),
        bigram_rows=kw.pop("bigram_vocab_size", 0) if has_bigram else 0,
        bigram_dim=kw.pop("bigram_dim", 128),
        bigram_split=bool(kw.pop("poscond")),
        trigram=bool(kw.pop("trigram")),
        word_start_boost=banked,
        smear=has_bigram,
        memory_tokens=kw.pop("num_memory_tokens", 0) or kw.pop("memory_tokens", 0),
        ve_layers=tuple(int(x) for x in str(ve_layers).split(",") if x.strip()) if ve_on else (),
        ve_dim=kw.pop("ve_dim", 128),
        meta_sgd=meta_sgd,
    )
    unknown = sorted(set(kw) - set(IGNORED))
    if unknown:
        raise UserError(f"reference keyword {unknown[0]!r} of family {family!r}: golfcore does not know it")
    return config


def from_reference(state: Mapping[str, Tensor], model_cfg: ModelConfig) -> Weights:
    """Our weights (float32) from an original state dict. UserError for a tensor missing, left over or misshapen.

    Train-only tensors may be missing, as they are from what the originals exported, and are then left out.
    """
    known = _layout(model_cfg, set(state))
    left = sorted(
        n for n in set(state) - {name for names in known.values() for name, _ in names} if not n.startswith(RATES)
    )
    if left:
        raise UserError(f"reference state: tensor {left[0]!r} has no place in this configuration")
    tensors = {}
    for p in table(model_cfg):
        parts = []
        if not p.exported and known[p.name][0][0] not in state:
            continue
        for name, index in known[p.name]:
            if name not in state:
                raise UserError(f"reference state: expected tensor {name!r} (for {p.name}), found none")
            part = torch.as_tensor(state[name]).to(torch.float32)
            parts.append(part if index is None else part[index])
        if sum(part.numel() for part in parts) != torch.Size(p.shape).numel():
            found = [tuple(part.shape) for part in parts]
            raise UserError(f"reference state: {p.name} expected shape {p.shape} in all, found {found}")
        tensors[p.name] = torch.stack(parts).reshape(p.shape)
    return unflat(tensors)


def to_reference(weights: Weights, model_cfg: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Values by the original's tensor names and shapes, whatever the weights hold: parameters or gradients."""
    known, ours = _layout(model_cfg, set(shapes)), flat(weights)
    out: dict[str, Tensor] = {}
    slots: dict[str, dict[int, Tensor]] = {}
    for p in [p for p in table(model_cfg) if p.name in ours]:
        places = known[p.name]
        pieces = [ours[p.name]] if len(places) == 1 else list(ours[p.name])
        for (name, index), piece in zip(places, pieces, strict=True):
            if index is None:
                out[name] = piece
            else:
                slots.setdefault(name, {})[index] = piece
    out.update({name: torch.stack([by[i] for i in sorted(by)]) for name, by in slots.items()})
    return {name: out[name].reshape(shape) for name, shape in shapes.items() if name in out}


def matrix_names(model_cfg: ModelConfig) -> dict[str, str]:
    """Our matrix names -> the original's per-layer names, as its Hessians and artifacts use them."""
    ours = {f"block{u}.{role}": f"blocks.{u}.{m}" for u in range(model_cfg.n_blocks) for role, m in MODULES.items()}
    return {**ours, "bigram_proj": NAMES["bigram_proj"], "ve_proj": NAMES["ve_proj"]}


def _layout(cfg: ModelConfig, names: set[str]) -> dict[str, list[tuple[str, int | None]]]:
    """For each of our tensors, the original (name, index along its first axis) of every piece, in our order."""
    banked, shared = "qo_bank" in names, any(n.startswith("iter_") for n in names)
    layout: dict[str, list[tuple[str, int | None]]] = {}
    for bank in ("qo", "kv", "up", "down"):
        roles = sorted((slot(r, b)[1], r, b) for r in ROLES if ROLES[r][0] == bank for b in range(cfg.n_blocks))
        place: Callable[[str, int], tuple[str, int | None]] = (
            (lambda r, b: (BANKS[r][0], BANKS[r][1] * cfg.n_blocks + b))
            if banked
            else (lambda r, b: (f"blocks.{b}.{MODULES[r]}", None))
        )
        layout[bank] = [place(r, b) for _, r, b in roles]
        layout[RATES + bank] = [(RATES + bank, BANKS[r][1] * cfg.n_blocks + b) for _, r, b in roles]
    for ours, (in_block, in_list) in PER_LAYER.items():
        layout[ours] = [((in_list if shared else in_block).format(i), None) for i in range(cfg.n_layers)]
    layout["q_gain"] = [(f"blocks.{b}.attn.q_gain", None) for b in range(cfg.n_blocks)]
    layout["ve_layer_scale"] = [(f"ve_layer_scales.{j}", None) for j in range(len(cfg.ve_layers))]
    layout.update({ours: [(theirs, None)] for ours, theirs in NAMES.items()})
    return {p.name: layout[p.name] for p in table(cfg)}
