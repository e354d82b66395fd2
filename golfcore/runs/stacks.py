"""Arms of a study of depth recurrence (pr294), computed from one configuration, and what a token costs in each.

One arm shares blocks; each of the others has no sharing and equals it in all but what it gives up:

    arm            layers  blocks  width    against "shared"
    shared         L       U       D
    unique         L       L       D        equal compute, depth and width; the bytes of L/U times as many blocks
    shallow        U       U       D        equal blocks, width and so bytes; U/L of the compute and of the depth
    shallow-long   U       U       D        the same trained for more steps: equal bytes and equal compute of training
    unique-narrow  L       L       smaller  equal exported parameters and so about equal bytes, at equal depth

No arm without sharing can have the bytes, depth and compute a token of "shared" at once: at equal bytes sharing costs
about L/U times the compute.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from golfcore import config
from golfcore.base.errors import UserError
from golfcore.config import Config, ModelConfig
from golfcore.model import params
from golfcore.model.weights import Banks

SHARED = "shared"
EQUAL = {  # arm -> what "shared" has in common with it
    "unique": "compute, depth, width, tokens",
    "shallow": "bytes, width, tokens",
    "shallow-long": "bytes, width, compute",
    "unique-narrow": "bytes, depth, tokens",
}
ARMS = (SHARED, *EQUAL)


def arms(
    preset: str, changes: Mapping[str, object], size: str = "full", repeats: int = 0, names: Sequence[str] = ARMS
) -> dict[str, Config]:
    """The arms of this module on `preset` at `size` with dotted `changes`, in the order of `names`.

    `repeats`: the preset's blocks in turn, as often as this (pr294's order); 0: as `model.blocks` has them, or twice
    where it repeats none. UserError: errors of `config.load`, an unknown arm, or "shared" not the first.
    """
    config.keys(names, list(ARMS), "arms")
    if len(set(names)) < len(names) or not names or names[0] != SHARED or repeats < 0:
        found = f"{', '.join(names) or 'none'} and {repeats}"
        raise UserError(f"arms: expected {SHARED} and then different others, and repeats from 0 on, found {found}")
    base = config.load(preset, changes, size)
    if not repeats and base.model.n_layers == base.model.n_blocks:
        repeats = 2
    shared = restack(base, tuple(range(base.model.n_blocks)) * repeats) if repeats else base
    n_layers, n_blocks = shared.model.n_layers, shared.model.n_blocks
    if n_layers == n_blocks:
        raise UserError(f"repeats: expected 0 or 2 and more, found {repeats}, which shares no block")
    unique, shallow = (restack(shared, tuple(range(n))) for n in (n_layers, n_blocks))
    longer = round(shallow.schedule.iterations * flops_per_token(shared) / flops_per_token(shallow))
    long, narrow = lasting(shallow, longer), narrowed(unique, exported(shared.model))
    made = dict(zip(ARMS, (shared, unique, shallow, long, narrow), strict=True))
    return {n: config.from_dict({**config.to_dict(made[n]), "name": n}, f"{preset}, arm {n}") for n in names}


def lasting(cfg: Config, steps: int) -> Config:
    """`cfg` with this number of optimizer steps, and the warmdown in proportion."""
    s = cfg.schedule
    warmdown = round(s.warmdown_steps * steps / s.iterations)
    return replace(cfg, schedule=replace(s, iterations=steps, warmdown_steps=warmdown))


def restack(cfg: Config, blocks: tuple[int, ...]) -> Config:
    """`cfg` with another stack of layers, and what names layers or blocks carried over.

    Value embeddings keep their distance from the last layer where there is such a layer, and go to the last if there
    is none; exclusive self-attention stays on as many last layers, or on all; skip rows that no longer exist are not
    frozen; the first blocks that adaptation leaves alone stay the same share of all blocks.
    """
    m, n = cfg.model, len(blocks)
    shift, share = n - m.n_layers, len(set(blocks)) / m.n_blocks
    ve_layers = tuple(i + shift for i in m.ve_layers if i + shift >= 0)
    model = replace(
        m,
        blocks=blocks,
        ve_layers=ve_layers or (n - 1,) * bool(m.ve_layers),
        xsa_last_n=n if m.xsa_last_n >= m.n_layers else min(m.xsa_last_n, n),
        frozen_skips=tuple(row for row in m.frozen_skips if row < n // 2),
    )
    sections: dict[str, Any] = {name: getattr(cfg, name) for name in ("meta", "ttt", "reptile")}
    frozen = {name: replace(s, freeze_blocks=round(s.freeze_blocks * share)) for name, s in sections.items()}
    return replace(cfg, model=model, **frozen)


def narrowed(cfg: Config, wanted: int) -> Config:
    """`cfg` at the width whose exported parameters come nearest to `wanted`, heads as wide as they were.

    Heads and the MLP's width go down in proportion to choose the width; then the MLP's width alone is fitted, in steps
    that keep it even (and divisible by 3 for SwiGLU).
    """
    m, step = cfg.model, 6 if cfg.model.mlp == "swiglu" else 2

    def at_width(dim: int) -> ModelConfig:
        heads = dim // m.head_dim
        divisors = [n for n in range(1, heads + 1) if heads % n == 0]
        kv = min(divisors, key=lambda n: abs(n - heads * m.n_kv_heads / m.n_heads))
        hidden = max(step, step * round(m.mlp_hidden * dim / m.dim / step))
        return replace(m, dim=dim, n_heads=heads, n_kv_heads=kv, mlp_hidden=hidden)

    widths = map(at_width, range(m.head_dim, m.dim + 1, m.head_dim))
    model = min(widths, key=lambda found: abs(exported(found) - wanted))
    per_unit = (exported(replace(model, mlp_hidden=model.mlp_hidden + step)) - exported(model)) / step
    hidden = model.mlp_hidden + (wanted - exported(model)) / per_unit
    return replace(cfg, model=replace(model, mlp_hidden=max(step, step * round(hidden / step))))


def exported(m: ModelConfig) -> int:
    """Scalars that an artifact of this model holds."""
    return params.summary(m)["exported"]


def applied(m: ModelConfig) -> int:
    """Weights that a token is multiplied with: each block once for every layer that reads it, the head, projections.

    Lookups of embeddings, gains and scales are left out.
    """
    sizes = {p.name: math.prod(p.shape) for p in params.table(m) if p.kind in ("matrix", "projection")}
    blocks = sum(sizes.pop(bank) for bank in Banks._fields)
    return blocks // m.n_blocks * m.n_layers + sum(sizes.values()) + m.vocab_size * m.dim


def flops_per_token(cfg: Config) -> int:
    """FLOPs of forward and backward for a token in training: 6 N + 12 L D T (Chowdhery et al. 2022, appendix B).

    N: `applied`, L layers of width D on rows of T tokens, attention as if it were not causal. Without inner steps of
    meta-learning, a Reptile phase, fake quantization and element-wise operations.
    """
    m = cfg.model
    return 6 * applied(m) + 12 * m.n_layers * m.dim * cfg.data.seq_len
