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
from golfcore.model.weights import ROLES, Banks, Weights, flat, matrix_name, unflat

BANKED = ("exp101", "exp105a", "exp106", "exp107")
FAMILIES = (*BANKED, "pr398", "pr294v2", "pr294seed")
MATRICES = {  # role -> its module in a block; its bank, and after how many banks' worth of layers it begins there
    "query": ("attn.c_q", "qo_bank", 0),
    "out": ("attn.proj", "qo_bank", 1),
    "key": ("attn.c_k", "kv_bank", 0),
    "value": ("attn.c_v", "kv_bank", 1),
    "up": ("mlp.fc", "mlp_up_bank", 0),
    "down": ("mlp.proj", "mlp_down_bank", 0),
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
ITERATED = {"attn_scale": "iter_attn_scales", "mlp_scale": "iter_mlp_scales", "resid_mix": "iter_resid_mixes"}
REQUIRED = (
    "vocab_size num_layers model_dim num_heads num_kv_heads mlp_mult logit_softcap rope_base qk_gain_init".split()
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
    "mtp_loss_weight": 0,  # without effect: it weights the mtp heads, and there are none
}
NGRAM: dict[str, Any] = {"bigram_vocab_size": 0, "bigram_dim": 128, "poscond": False, "trigram": False}
SHARING: dict[str, Any] = {"num_unique_blocks": 0, "train_seq_len": 1024}  # pr294seed's; 0 = as many as layers
ABSENT = dict.fromkeys("mtp_num_heads dtg dtg_enabled gated_attention value_residual".split(), False)
ABSENT |= {"tie_embeddings": True}  # parts that golfcore lacks, with the values that leave them out


def reference_config(family: str, kw: Mapping[str, Any], *, meta_sgd: bool = False) -> ModelConfig:
    """The model of an original's constructor keywords; `meta_sgd`: whether exp106 used its 66 inner rates.

    exp101 read two switches from its environment, which are the keywords `poscond` (hashing by word starts) and
    `trigram` here. UserError: a family, keyword or value that we lack, and a keyword that is missing.
    """
    if family not in FAMILIES:
        raise UserError(f"reference family {family!r}: expected one of {', '.join(FAMILIES)}")
    own = OPTIONAL | ABSENT | (SHARING if family == "pr294seed" else NGRAM)
    for name in sorted(kw.keys() - {*REQUIRED, *own} | set(REQUIRED) - kw.keys()):
        fault = "expected a value, found none" if name in REQUIRED else "golfcore does not know it"
        raise UserError(f"reference keyword {name!r} of family {family!r}: {fault}")
    v = {**SHARING, **NGRAM, **own, **kw}
    for name, out in ABSENT.items():
        if bool(v[name]) != bool(out):
            raise UserError(f"reference keyword {name!r}: expected {out}, golfcore has no such part; found {v[name]}")
    dim, layers, banked = v["model_dim"], v["num_layers"], family in BANKED
    return ModelConfig(
        vocab_size=v["vocab_size"],
        dim=dim,
        n_heads=v["num_heads"],
        n_kv_heads=v["num_kv_heads"],
        mlp_hidden=int(v["mlp_mult"] * dim),
        mlp="leaky_relu2" if banked else "relu2",
        blocks=tuple(i % (v["num_unique_blocks"] or layers) for i in range(layers)),
        frozen_skips=(),
        ln_scale=bool(v["ln_scale"]),
        softcap=v["logit_softcap"],
        q_gain_init=v["qk_gain_init"],
        embed_init_std=v["tied_embed_init_std"],
        rope_dims=v["rope_dims"] or dim // v["num_heads"],
        rope_base=v["rope_base"],
        rope_ntk_len=0 if family == "pr294v2" else v["train_seq_len"],
        xsa_last_n=v["xsa_last_n"],
        bigram_rows=v["bigram_vocab_size"],
        bigram_dim=v["bigram_dim"],
        bigram_layout="split" if v["poscond"] else "shared",
        trigram=bool(v["trigram"]),
        word_start_boost=banked,
        smear=family != "pr294seed",
        memory_tokens=v["num_memory_tokens"] or v["memory_tokens"],
        ve_layers=tuple(int(x) for x in str(v["ve_layers"]).split(",") if x.strip()) if v["ve_enabled"] else (),
        ve_dim=v["ve_dim"],
        meta_sgd=meta_sgd,
    )


def from_reference(state: Mapping[str, Tensor], model_cfg: ModelConfig) -> Weights:
    """Our weights (float32) from an original state dict. UserError for a tensor missing, left over or misshapen.

    Train-only tensors may be missing, as they are from what the originals exported, and are then left out. Axes of
    length 1 do not count: the originals keep some vectors as rows.
    """
    known = _layout(model_cfg, set(state))
    for name in sorted(set(state) - {name for places in known.values() for name, _ in places}):
        if not name.startswith(RATES):
            raise UserError(f"reference state: tensor {name!r} has no place in this configuration")
    tensors = {}
    for p in table(model_cfg):
        places = known[p.name]
        if not p.exported and places[0][0] not in state:
            continue
        parts = []
        for name, index in places:
            if name not in state:
                raise UserError(f"reference state: expected tensor {name!r} (for {p.name}), found none")
            tensor = torch.as_tensor(state[name])
            shape = p.shape if len(places) == 1 else p.shape[1:]
            shape = shape if index is None else (sum(n == name for n, _ in places), *p.shape[1:])
            if [n for n in shape if n != 1] != [n for n in tensor.shape if n != 1]:
                found = tuple(tensor.shape)
                raise UserError(f"reference state: {name!r} (for {p.name}) expected shape {shape}, found {found}")
            parts.append((tensor if index is None else tensor[index]).to(torch.float32))
        tensors[p.name] = torch.stack(parts).reshape(p.shape)
    return unflat(tensors)


def to_reference(
    weights: Weights, model_cfg: ModelConfig, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, Tensor]:
    """Values by the original's tensor names and shapes, whatever the weights hold: parameters or gradients.

    Without `shapes` the names are those of exp101 and its kin.
    """
    known, ours = _layout(model_cfg, set(shapes or {"qo_bank"})), flat(weights)
    pieces: dict[str, dict[int, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for p in [p for p in table(model_cfg) if p.name in ours]:
        places = known[p.name]
        parts = [ours[p.name]] if len(places) == 1 else list(ours[p.name])
        for (name, index), part in zip(places, parts, strict=True):
            if index is None:
                whole[name] = part
            else:
                pieces.setdefault(name, {})[index] = part
    whole |= {name: torch.stack([by[i] for i in sorted(by)]) for name, by in pieces.items()}
    return whole if shapes is None else {name: whole[name].reshape(s) for name, s in shapes.items() if name in whole}


def matrix_names(model_cfg: ModelConfig) -> dict[str, str]:
    """Our matrix names -> the original's per-layer names, as its Hessians and artifacts use them."""
    pairs = [(matrix_name(role, u), _in_block(role, u)) for u in range(model_cfg.n_blocks) for role in MATRICES]
    return {**dict(pairs), "bigram_proj": NAMES["bigram_proj"], "ve_proj": NAMES["ve_proj"]}


def _in_block(role: str, block: int) -> str:
    return f"blocks.{block}.{MATRICES[role][0]}.weight"


def _layout(cfg: ModelConfig, names: set[str]) -> dict[str, list[tuple[str, int | None]]]:
    """For each of our tensors, the original (name, index along its first axis) of every piece, in our order."""
    layout: dict[str, list[tuple[str, int | None]]] = {ours: [(theirs, None)] for ours, theirs in NAMES.items()}
    for bank in Banks._fields:
        slots = [(role, b) for b in range(cfg.n_blocks) for role in ROLES if ROLES[role][0] == bank]
        at = [(MATRICES[role][1], MATRICES[role][2] * cfg.n_blocks + b) for role, b in slots]
        layout[bank] = [*at] if "qo_bank" in names else [(_in_block(*slot), None) for slot in slots]
        layout[RATES + bank] = [(RATES + bank, index) for _, index in at]
    shared = any(name.startswith("iter_") for name in names)
    for ours, iterated in ITERATED.items():
        each = [f"{iterated}.{i}" if shared else f"blocks.{i}.{ours}" for i in range(cfg.n_layers)]
        layout[ours] = [(name, None) for name in each]
    layout["q_gain"] = [(f"blocks.{b}.attn.q_gain", None) for b in range(cfg.n_blocks)]
    layout["ve_layer_scale"] = [(f"ve_layer_scales.{j}", None) for j in range(len(cfg.ve_layers))]
    return {p.name: layout[p.name] for p in table(cfg)}
