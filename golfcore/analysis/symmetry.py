"""Which changes of the weights leave every logit alone: the symmetries of this network, each as a function.

Within a block: hidden units of the MLP may change places, and scale (LeakyReLU^2 and ReLU^2 are of degree two, so a row
of `up` times a and the column of `down` times a^-2 cancel; SwiGLU's values are of degree one); groups of a key/value
head and its query heads may change places, and query heads within their group; values may turn within a head if `out`
turns back (exclusive self-attention turns along); queries and keys may turn together in the dimensions without rotary
angles, since QK norm sees lengths only. The value embedding is added to the values of its layers, so in their blocks
neither values nor groups move.

Of the residual stream only signed permutations of channels are left: what scales channels one by one (attn_scale,
mlp_scale, resid_mix, skip, SmearGate) stands in the way of any other rotation.
"""

import torch
from torch import Tensor

from golfcore.config import ModelConfig
from golfcore.model.weights import Banks, Weights, tree_map

STREAM = {  # axis of the channels
    "qo": None,  # query by columns, out by rows
    "kv": 2,
    "up": 2,
    "down": 1,
    "tok_emb": 1,
    "bigram_proj": 0,
    "smear": 0,
    "memory": 1,
    "attn_scale": 1,
    "mlp_scale": 1,
    "resid_mix": 2,
    "skip": 1,
}


def copied(weights: Weights) -> Weights:
    return tree_map(lambda t: t.detach().clone(), weights)


def permute_hidden(weights: Weights, cfg: ModelConfig, block: int, order: Tensor) -> Weights:
    """Hidden unit i becomes the former unit order[i]; SwiGLU's gates and values move together."""
    out = copied(weights)
    rows = torch.cat((order, order + len(order))) if cfg.mlp == "swiglu" else order
    out.banks.up[block], out.banks.down[block] = weights.banks.up[block][rows], weights.banks.down[block][:, order]
    return out


def scale_hidden(weights: Weights, cfg: ModelConfig, block: int, factors: Tensor) -> Weights:
    """What hidden unit i reads times factors[i] > 0, what it writes over the square (SwiGLU: its value, by it)."""
    out, n = copied(weights), len(factors)
    swiglu = cfg.mlp == "swiglu"
    out.banks.up[block, n if swiglu else 0 :] *= factors[:, None]
    out.banks.down[block] /= factors if swiglu else factors.square()
    return out


def permute_groups(weights: Weights, cfg: ModelConfig, block: int, order: Tensor) -> Weights:
    """Key/value head i and its query heads become the former head order[i]. ValueError: a value embedding enters."""
    _require_free(cfg, block)
    out, size, groups = copied(weights), cfg.head_dim, cfg.n_heads // cfg.n_kv_heads
    heads = (order[:, None] * groups + torch.arange(groups)).flatten()
    kv, q = _rows(order, size), _rows(heads, size)
    for slot in (2 * block, 2 * block + 1):
        out.banks.kv[slot] = weights.banks.kv[slot][kv]
    out.banks.qo[2 * block] = weights.banks.qo[2 * block][q]
    out.banks.qo[2 * block + 1] = weights.banks.qo[2 * block + 1][:, q]
    out.rest["q_gain"][block] = weights.rest["q_gain"][block][heads]
    return out


def permute_queries(weights: Weights, cfg: ModelConfig, block: int, order: Tensor) -> Weights:
    """Query head i becomes the former head order[i]. ValueError: of another group."""
    if (order // (cfg.n_heads // cfg.n_kv_heads) != torch.arange(cfg.n_heads) // (cfg.n_heads // cfg.n_kv_heads)).any():
        raise ValueError("query heads read the key/value head of their group, so they stay in it")
    out, q = copied(weights), _rows(order, cfg.head_dim)
    out.banks.qo[2 * block] = weights.banks.qo[2 * block][q]
    out.banks.qo[2 * block + 1] = weights.banks.qo[2 * block + 1][:, q]
    out.rest["q_gain"][block] = weights.rest["q_gain"][block][order]
    return out


def rotate_values(weights: Weights, cfg: ModelConfig, block: int, head: int, rotation: Tensor) -> Weights:
    """Values of a key/value head turned by the orthogonal (K, K) `rotation`, and `out` of its query heads turned back.

    ValueError: a value embedding enters.
    """
    _require_free(cfg, block)
    out, size = copied(weights), cfg.head_dim
    _heads(out.banks.kv[2 * block + 1], size)[head] = rotation @ _heads(weights.banks.kv[2 * block + 1], size)[head]
    columns = weights.banks.qo[2 * block + 1].unflatten(1, (-1, size))  # (D, H, K)
    turned = out.banks.qo[2 * block + 1].unflatten(1, (-1, size))
    for h in query_heads(cfg, head):
        turned[:, h] = columns[:, h] @ rotation.T
    return out


def rotate_queries(weights: Weights, cfg: ModelConfig, block: int, head: int, rotation: Tensor) -> Weights:
    """Keys of a head and the queries of its group turned alike in the dimensions without rotary angles."""
    out, size, first = copied(weights), cfg.head_dim, cfg.rope_dims
    for bank, heads in ((out.banks.kv, [head]), (out.banks.qo, query_heads(cfg, head))):
        rows = _heads(bank[2 * block], size)
        for h in heads:
            rows[h, first:] = rotation @ rows[h, first:]
    return out


def permute_stream(weights: Weights, order: Tensor, signs: Tensor) -> Weights:
    """Channel i of the residual stream becomes the former channel order[i], times signs[i] (1 or -1) where it is data.

    Scales of channels move and keep their sign.
    """
    scales = {"attn_scale", "mlp_scale", "resid_mix", "skip", "smear"}

    def moved(t: Tensor, axis: int, signed: bool) -> Tensor:
        shape = [len(signs) if a == axis else 1 for a in range(t.ndim)]
        return t.index_select(axis, order) * (signs.view(shape) if signed else 1)

    banks = weights.banks
    qo = banks.qo.clone()
    qo[0::2], qo[1::2] = moved(banks.qo[0::2], 2, True), moved(banks.qo[1::2], 1, True)
    others = {name: moved(getattr(banks, name), STREAM[name] or 0, True) for name in ("kv", "up", "down")}
    rest = {n: moved(t, STREAM[n] or 0, n not in scales) if n in STREAM else t.clone() for n, t in weights.rest.items()}
    if "bigram" in rest and "bigram_proj" not in rest:  # a table as wide as the stream
        rest["bigram"] = moved(weights.rest["bigram"], 1, True)
    return Weights(Banks(qo=qo, **others), rest)


def free_blocks(cfg: ModelConfig) -> list[int]:
    """Blocks into whose values no value embedding enters."""
    return [b for b in range(cfg.n_blocks) if b not in {cfg.blocks[i] for i in cfg.ve_layers}]


def query_heads(cfg: ModelConfig, head: int) -> list[int]:
    """The query heads that read key/value head `head`."""
    groups = cfg.n_heads // cfg.n_kv_heads
    return list(range(head * groups, (head + 1) * groups))


def _require_free(cfg: ModelConfig, block: int) -> None:
    if block not in free_blocks(cfg):
        raise ValueError(f"block {block}: the value embedding enters its values, so they cannot move")


def _heads(matrix: Tensor, size: int) -> Tensor:
    """(H K, D) as a view (H, K, D)."""
    return matrix.unflatten(0, (-1, size))


def _rows(heads: Tensor, size: int) -> Tensor:
    return (heads[:, None] * size + torch.arange(size)).flatten()
