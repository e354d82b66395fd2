"""Test-time training: SGD on tokens that were already scored (exp101's optimiser; the freeze as a choice)."""

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from golfcore import params
from golfcore.config import Config, ModelConfig, TTTConfig
from golfcore.data.tokens import Tables
from golfcore.model.attention import Compute
from golfcore.model.forward import forward, nll
from golfcore.quant.grid import fake_quant, projection_grid
from golfcore.runtime import Runtime
from golfcore.sgd import velocity
from golfcore.weights import Weights, detach, flat, tree_map


class Adapter(NamedTuple):
    """Adapted weights (float32 leaves, whatever the compute dtype) and their momentum; both are updated in place."""

    weights: Weights
    momentum: Weights


def start(weights: Weights) -> Adapter:
    copy = tree_map(lambda t: t.requires_grad_(), detach(weights))
    return Adapter(copy, tree_map(torch.zeros_like, copy))


def freeze_masks(cfg: Config) -> dict[str, Tensor]:
    """Rows that do not adapt. "scalars" is the published freeze: no bank's name contained its block's."""
    kinds: tuple[params.Kind, ...] = ("control",) if cfg.ttt.freeze == "scalars" else ("matrix", "control")
    return params.frozen(cfg.model, cfg.ttt.freeze_blocks, kinds)


def chunk_lr(cfg: TTTConfig, chunk: int, n_chunks: int) -> float:
    """Cosine over chunks, constant within one. With `lr_horizon` the rate does not depend on the stream's length."""
    horizon = cfg.lr_horizon or n_chunks
    return cfg.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, chunk / max(horizon - 1, 1))))


def adapt(
    cfg: Config,
    adapter: Adapter,
    x: Tensor,
    y: Tensor,
    lr: float,
    masks: dict[str, Tensor],
    tables: Tables | None,
    compute: Compute,
    runtime: Runtime,
) -> list[float]:
    """`epochs` passes over the rows (n, T) of a chunk in order, `batch_seqs` rows a step. Returns each step's loss."""
    losses = []
    for _ in range(cfg.ttt.epochs):
        for at in range(0, len(x), cfg.ttt.batch_seqs):
            rows = slice(at, at + cfg.ttt.batch_seqs)
            loss, grads = batch_gradient(cfg, adapter.weights, x[rows], y[rows], tables, compute, runtime)
            sgd_step(adapter, grads, masks, lr, cfg.ttt.momentum, cfg.ttt.clip)
            losses.append(loss)
    return losses


def batch_gradient(
    cfg: Config,
    weights: Weights,
    x: Tensor,
    y: Tensor,
    tables: Tables | None,
    compute: Compute,
    runtime: Runtime,
) -> tuple[float, dict[str, Tensor]]:
    """Mean loss of a batch and its gradient by name; with several ranks each takes a share of the rows."""
    leaves = flat(weights)
    mine = slice(len(x) * runtime.rank // runtime.world, len(x) * (runtime.rank + 1) // runtime.world)
    if len(x[mine]):
        seen = fake_quant_projections(cfg.model, weights) if cfg.ttt.qat_projections else weights
        loss = nll(forward(cfg.model, seen, x[mine], tables, compute=compute), y[mine]).sum() / y.numel()
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        grads = {n: torch.zeros_like(leaves[n]) if g is None else g for n, g in zip(leaves, found, strict=True)}
        total = loss.detach()
    else:
        grads, total = {n: torch.zeros_like(t) for n, t in leaves.items()}, torch.zeros((), device=x.device)
    if runtime.world > 1:
        for tensor in (total, *grads.values()):
            dist.all_reduce(tensor)
    return float(total), grads


@torch.no_grad()
def sgd_step(
    adapter: Adapter, grads: dict[str, Tensor], masks: dict[str, Tensor], lr: float, momentum: float, clip: float
) -> None:
    """Zero the rows that do not adapt, then `golfcore.sgd.velocity` and w <- w - lr m."""
    grads = {n: params.mask_rows(g, masks[n].to(g.device)) if n in masks else g for n, g in grads.items()}
    weights, buffers = flat(adapter.weights), flat(adapter.momentum)
    for name, v in velocity(grads, buffers, momentum, clip).items():
        buffers[name].copy_(v)
        weights[name].sub_(lr * v)


def fake_quant_projections(cfg: ModelConfig, weights: Weights) -> Weights:
    """What the published late-QAT flag did to adaptation: fake-quantize the two small projections, nothing else."""
    grid = projection_grid()
    names = [p.name for p in params.table(cfg) if p.kind == "projection"]
    return weights._replace(rest={**weights.rest, **{n: fake_quant(weights.rest[n], grid) for n in names}})
