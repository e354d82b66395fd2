"""Test-time training: what adapts, at which rate, and a step of it.

What adapts is a set of tensors, or low-rank adapters that travel with the weights; all else is never copied. Optimizers
as published: exp101, pr294 in its script and pr398 SGD, pr294's error-guided adapters Adam.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from golfcore.base.runtime import Runtime
from golfcore.config import Config, ModelConfig, TTTConfig
from golfcore.evals import lora
from golfcore.model import params
from golfcore.model.forward import Net, forward, nll
from golfcore.model.weights import Weights, detach, flat, unflat
from golfcore.optim.inner import adam, clipped, open_gradient, velocity
from golfcore.quant.grid import fake_quant, projection_grid

BLOCK_KINDS = ("slot", "block", "layer")


class Scope(NamedTuple):
    """The tensors that adapt, and of each the rows of its first axis that do not."""

    names: tuple[str, ...]
    masks: dict[str, Tensor]  # bool, (rows,)

    def sizes(self, weights: Weights) -> tuple[int, int]:
        """Scalars that adapt, and scalars among the named tensors that are held."""
        tensors = flat(weights)
        total = sum(tensors[name].numel() for name in self.names)
        held = sum(int(mask.sum()) * tensors[name][0].numel() for name, mask in self.masks.items())
        return total - held, held


def scope(cfg: Config) -> Scope:
    """What `ttt.adapted` names, without the first `ttt.freeze_blocks` blocks.

    freeze "scalars" is the published freeze of exp101: no bank's name contained its block's, so matrices adapt.
    """
    t, rows = cfg.ttt, [p for p in params.table(cfg.model) if p.exported]
    if t.adapted == "lora":
        held = torch.arange(cfg.model.n_blocks) < t.freeze_blocks
        chosen = tuple(lora.names(t.lora_roles))
        return Scope(chosen, {name: held for name in chosen} if t.freeze_blocks else {})
    wanted = {
        "all": lambda p: True,
        "banks": lambda p: p.kind == "matrix",
        "blocks": lambda p: p.rows in BLOCK_KINDS,
        "mlps": lambda p: p.name in ("up", "down"),
        "scalars": lambda p: p.kind == "control",
    }[t.adapted]
    chosen = tuple(p.name for p in rows if wanted(p))
    kinds: tuple[params.Kind, ...] = ("control",) if t.freeze == "scalars" else ("matrix", "control")
    masks = params.frozen(cfg.model, t.freeze_blocks, kinds)
    return Scope(chosen, {name: mask for name, mask in masks.items() if name in chosen})


@dataclass
class Adapter:
    """Weights that adapt (float32, whatever the compute dtype), and the optimizer's state; updated in place."""

    weights: Weights  # with low-rank adapters, if they are what adapts
    scope: Scope
    slots: dict[str, Tensor]  # "momentum/qo", ...: filled by the optimizer
    steps: int = 0

    def folded(self) -> Weights:
        """The weights to score with; shares what did not adapt."""
        with torch.no_grad():
            return lora.fold(self.weights)


def start(cfg: Config, weights: Weights) -> Adapter:
    """Nothing adapted yet. `weights` are copied, never changed."""
    chosen, copy = scope(cfg), detach(weights)
    if cfg.ttt.adapted == "lora":
        copy = copy._replace(rest={**copy.rest, **lora.start(cfg, copy)})
    return Adapter(copy, chosen, {})


def chunk_lr(cfg: TTTConfig, chunk: int, n_chunks: int) -> float:
    """Constant within a chunk: `lr`, or its cosine over chunks. `lr_horizon` frees it of the stream's length."""
    if cfg.lr_shape == "constant":
        return cfg.lr
    horizon = cfg.lr_horizon or n_chunks
    return cfg.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, chunk / max(horizon - 1, 1))))


def step(
    cfg: Config,
    net: Net,
    adapter: Adapter,
    x: Tensor,
    y: Tensor,
    lr: float,
    runtime: Runtime,
) -> float:
    """One optimizer step on the rows (n, T); returns their mean loss before it."""
    loss, gradients = batch_gradient(cfg, net, adapter, x, y, runtime)
    update(cfg.ttt, adapter, gradients, lr)
    return loss


def batch_gradient(
    cfg: Config,
    net: Net,
    adapter: Adapter,
    x: Tensor,
    y: Tensor,
    runtime: Runtime,
) -> tuple[float, dict[str, Tensor]]:
    """Mean loss of a batch and its gradient by name; with several ranks each takes a share of the rows."""
    mine = slice(len(x) * runtime.rank // runtime.world, len(x) * (runtime.rank + 1) // runtime.world)
    total = torch.zeros((), device=x.device)

    def loss(weights: Weights, x: Tensor, y: Tensor) -> Tensor:
        seen = lora.fold(weights)
        if cfg.ttt.qat_projections:
            seen = fake_quant_projections(cfg.model, seen)
        found = nll(forward(net, seen, x), y).sum() / size
        total.copy_(found.detach())
        return found

    size, (names, masks) = y.numel(), adapter.scope
    if len(x[mine]):
        grads = open_gradient(loss, adapter.weights, names, masks, (x[mine], y[mine]), create_graph=False)
    else:
        grads = {name: torch.zeros_like(t) for name, t in flat(adapter.weights).items() if name in names}
    if runtime.world > 1:
        for tensor in (total, *grads.values()):
            dist.all_reduce(tensor)
    return float(total), grads


@torch.no_grad()
def update(cfg: TTTConfig, adapter: Adapter, gradients: dict[str, Tensor], lr: float) -> None:
    """Clip, then SGD with momentum or Adam: w <- w - lr direction."""
    adapter.steps += 1
    grads = clipped(gradients, cfg.clip)
    old = {slot: _slot(adapter.slots, slot) for slot in ("momentum", "square")}
    if cfg.optimizer == "adam":
        directions, new = adam(grads, old["momentum"], old["square"], adapter.steps)
    else:
        directions = velocity(grads, old["momentum"], cfg.momentum)
        new = {"momentum": directions}
    adapter.slots = {f"{slot}/{name}": t for slot, tensors in new.items() for name, t in tensors.items()}
    tensors = flat(adapter.weights)
    for name, direction in directions.items():
        tensors[name].sub_(lr * direction)


def _slot(slots: dict[str, Tensor], slot: str) -> dict[str, Tensor]:
    return {key.partition("/")[2]: t for key, t in slots.items() if key.startswith(f"{slot}/")}


def fake_quant_projections(cfg: ModelConfig, weights: Weights) -> Weights:
    """What the published late-QAT flag did to adaptation: fake-quantize the two small projections, nothing else."""
    grid = projection_grid()
    names = [p.name for p in params.table(cfg) if p.kind == "projection"]
    return weights._replace(rest={**weights.rest, **{n: fake_quant(weights.rest[n], grid) for n in names}})


def restored(
    cfg: Config, weights: Weights, tensors: dict[str, Tensor], slots: dict[str, Tensor], steps: int
) -> Adapter:
    """The adapter that was saved: what adapted by name, the optimizer's state, and its steps."""
    fresh = start(cfg, weights)
    device = weights.rest["tok_emb"].device
    moved = {name: t.to(device) for name, t in tensors.items()}
    return Adapter(
        unflat({**flat(fresh.weights), **moved}), fresh.scope, {k: t.to(device) for k, t in slots.items()}, steps
    )
