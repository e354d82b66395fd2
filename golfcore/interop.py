"""The original systems' constructor keywords and state dicts as golfcore's configuration and weights, and back.

Families: exp101, exp105a, exp106 and exp107 (banks), pr398 and pr294v2 (one matrix a layer), pr294seed (shared blocks,
scales per application). Bank order differs: the originals keep all queries, then all outputs.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from golfcore.base.errors import UserError
from golfcore.config import ModelConfig
from golfcore.model.params import RATES, table
from golfcore.model.weights import ROLES, Banks, Weights, flat, unflat

BANKED = ("exp101", "exp105a", "exp106", "exp107")
FAMILIES = (*BANKED, "pr398", "pr294v2", "pr294seed")
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
REQUIRED = (
    *("vocab_size", "num_layers", "model_dim", "num_heads", "num_kv_heads", "mlp_mult"),
    *("logit_softcap", "rope_base", "qk_gain_init"),
)
OPTIONAL: dict[str, Any] = {  # keywords that an original may leave out, with its default
    "tied_embed_init_std": 0.005,
    "ln_scale": False,
    "rope_dims": 0,  # 0 = the whole head
    "xsa_last_n": 0,
    "num_memory_tokens": 0,
    "memory_tokens": 0,
    "ve_enabled": False,
    "ve_layers": "9,10",
    "ve_dim": 128,
}
NGRAM: dict[str, Any] = {"bigram_vocab_size": 0, "bigram_dim": 128, "poscond": False, "trigram": False}
SHARING: dict[str, Any] = {"num_unique_blocks": 0, "train_seq_len": 1024}  # 0 = as many as layers
ABSENT: dict[str, Any] = {  # parts that golfcore lacks, with the values that leave them out
    "tie_embeddings": True,
    "mtp_num_heads": 0,
    "dtg": False,
    "dtg_enabled": False,
    "gated_attention": False,
    "value_residual": False,
}
WITHOUT_EFFECT = ("mtp_loss_weight",)  # it weights the mtp heads, and there are none


def reference_config(family: str, kw: Mapping[str, Any], *, meta_sgd: bool = False) -> ModelConfig:
    """The model of an original's constructor keywords; `meta_sgd`: whether exp106 used its 66 inner rates.

    exp101 read two switches from its environment, which are the keywords `poscond` (hashing by word starts) and
    `trigram` here. UserError: a family, keyword or value that we lack, and a keyword that is missing.
    """
    if family not in FAMILIES:
        raise UserError(f"reference family {family!r}: expected one of {', '.join(FAMILIES)}")
    v = _keywords(family, kw)
    dim, layers, heads = v["model_dim"], v["num_layers"], v["num_heads"]
    banked, has_ngram = family in BANKED, family != "pr294seed"
    return ModelConfig(
        vocab_size=v["vocab_size"],
        dim=dim,
        n_heads=heads,
        n_kv_heads=v["num_kv_heads"],
        mlp_hidden=int(v["mlp_mult"] * dim),
        mlp="leaky_relu2" if banked else "relu2",
        blocks=tuple(i % (v["num_unique_blocks"] or layers) for i in range(layers)),
        frozen_skips=(),
        ln_scale=bool(v["ln_scale"]),
        softcap=v["logit_softcap"],
        q_gain_init=v["qk_gain_init"],
        embed_init_std=v["tied_embed_init_std"],
        rope_dims=v["rope_dims"] or dim // heads,
        rope_base=v["rope_base"],
        rope_ntk_len=0 if family == "pr294v2" else v["train_seq_len"],
        xsa_last_n=v["xsa_last_n"],
        bigram_rows=v["bigram_vocab_size"],
        bigram_dim=v["bigram_dim"],
        bigram_split=bool(v["poscond"]),
        trigram=bool(v["trigram"]),
        word_start_boost=banked,
        smear=has_ngram,
        memory_tokens=v["num_memory_tokens"] or v["memory_tokens"],
        ve_layers=tuple(int(x) for x in str(v["ve_layers"]).split(",") if x.strip()) if v["ve_enabled"] else (),
        ve_dim=v["ve_dim"],
        meta_sgd=meta_sgd,
    )


def _keywords(family: str, kw: Mapping[str, Any]) -> dict[str, Any]:
    """All keywords by name, defaults included. One that another family has is refused too: it would be ignored."""
    own = OPTIONAL | (SHARING if family == "pr294seed" else NGRAM)
    known = {*REQUIRED, *own, *ABSENT, *WITHOUT_EFFECT}
    for name in sorted(kw.keys() - known | set(REQUIRED) - kw.keys()):
        fault = "expected a value, found none" if name in REQUIRED else "golfcore does not know it"
        raise UserError(f"reference keyword {name!r} of family {family!r}: {fault}")
    for name, without in ABSENT.items():
        if bool(kw.get(name, without)) != bool(without):
            raise UserError(
                f"reference keyword {name!r}: expected {without}, golfcore has no such part; found {kw[name]}"
            )
    return {**SHARING, **NGRAM, **own, **kw}


def from_reference(state: Mapping[str, Tensor], model_cfg: ModelConfig) -> Weights:
    """Our weights (float32) from an original state dict. UserError for a tensor missing, left over or misshapen.

    Train-only tensors may be missing, as they are from what the originals exported, and are then left out. Axes of
    length 1 do not count: the originals keep some vectors as rows.
    """
    known = _layout(model_cfg, set(state))
    left = sorted(set(state) - {name for names in known.values() for name, _ in names})
    for name in [name for name in left if not name.startswith(RATES)]:
        raise UserError(f"reference state: tensor {name!r} has no place in this configuration")
    tensors = {}
    for p in table(model_cfg):
        places = known[p.name]
        if not p.exported and places[0][0] not in state:
            continue
        piece = p.shape[1:] if len(places) > 1 or places[0][1] is not None else p.shape
        parts = []
        for name, index in places:
            if name not in state:
                raise UserError(f"reference state: expected tensor {name!r} (for {p.name}), found none")
            tensor = torch.as_tensor(state[name])
            shape = piece if index is None else (sum(n == name for n, _ in places), *piece)
            if [n for n in shape if n != 1] != [n for n in tensor.shape if n != 1]:
                found = tuple(tensor.shape)
                raise UserError(f"reference state: {name!r} (for {p.name}) expected shape {shape}, found {found}")
            parts.append((tensor if index is None else tensor[index]).to(torch.float32))
        tensors[p.name] = torch.stack(parts).reshape(p.shape)
    return unflat(tensors)


def to_reference(weights: Weights, model_cfg: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Values by the original's tensor names and shapes, whatever the weights hold: parameters or gradients."""
    known, ours = _layout(model_cfg, set(shapes)), flat(weights)
    pieces: dict[str, dict[int, Tensor]] = {}
    for p in [p for p in table(model_cfg) if p.name in ours]:
        places = known[p.name]
        parts = [ours[p.name]] if len(places) == 1 else list(ours[p.name])
        for (name, index), part in zip(places, parts, strict=True):
            pieces.setdefault(name, {})[index or 0] = part
    whole = {name: torch.stack([by[i] for i in sorted(by)]) for name, by in pieces.items()}
    return {name: whole[name].reshape(shape) for name, shape in shapes.items() if name in whole}


def matrix_names(model_cfg: ModelConfig) -> dict[str, str]:
    """Our matrix names -> the original's per-layer names, as its Hessians and artifacts use them."""
    ours = {f"block{u}.{role}": f"blocks.{u}.{m}" for u in range(model_cfg.n_blocks) for role, m in MODULES.items()}
    return {**ours, "bigram_proj": NAMES["bigram_proj"], "ve_proj": NAMES["ve_proj"]}


def _layout(cfg: ModelConfig, names: set[str]) -> dict[str, list[tuple[str, int | None]]]:
    """For each of our tensors, the original (name, index along its first axis) of every piece, in our order."""
    banked, shared = "qo_bank" in names, any(n.startswith("iter_") for n in names)
    layout: dict[str, list[tuple[str, int | None]]] = {}
    for bank in Banks._fields:
        slots = [(r, b) for b in range(cfg.n_blocks) for r in ROLES if ROLES[r][0] == bank]
        at = {(r, b): BANKS[r][1] * cfg.n_blocks + b for r, b in slots}
        apart: list[tuple[str, int | None]] = [(f"blocks.{b}.{MODULES[r]}", None) for r, b in slots]
        layout[bank] = [(BANKS[r][0], at[r, b]) for r, b in slots] if banked else apart
        layout[RATES + bank] = [(RATES + bank, at[slot]) for slot in slots]
    for ours, (in_block, in_list) in PER_LAYER.items():
        layout[ours] = [((in_list if shared else in_block).format(i), None) for i in range(cfg.n_layers)]
    layout["q_gain"] = [(f"blocks.{b}.attn.q_gain", None) for b in range(cfg.n_blocks)]
    layout["ve_layer_scale"] = [(f"ve_layer_scales.{j}", None) for j in range(len(cfg.ve_layers))]
    layout.update({ours: [(theirs, None)] for ours, theirs in NAMES.items()})
    return {p.name: layout[p.name] for p in table(cfg)}
