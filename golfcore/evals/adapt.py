"""Test-time training: what adapts, at which rate, and a step of it.

Low-rank adapters (Hu et al. 2021): y <- y + (x A^T) B^T is x (W + B A)^T, so an adapted model is another `Weights` for
the one forward. Shapes: U blocks, r rank; "ROLE.a" (U, r, columns), "ROLE.b" (U, rows, r).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from golfcore.base.errors import UserError
from golfcore.base.runtime import Runtime, all_reduce_sum
from golfcore.config import Config, TTTConfig
from golfcore.model import params
from golfcore.model.forward import Net, forward, graph, nll
from golfcore.model.weights import ROLES, Weights, detach, flat, matrix, slot
from golfcore.optim.inner import adam, clipped, open_gradient, velocity
from golfcore.optim.muon import newton_schulz
from golfcore.quant.grid import fake_quant, projection_grid

LORA_SEED = 0  # of the adapters' start: part of the protocol, not of the run


class Diverged(UserError):
    """Adaptation led to losses or scores that are not finite: its rate is too high."""


class Scope(NamedTuple):
    """The tensors that adapt, and of each the rows of its first axis that do not."""

    names: tuple[str, ...]
    masks: dict[str, Tensor]  # bool, (rows,)

    def sizes(self, weights: Weights) -> tuple[int, int]:
        """Scalars that adapt, and scalars among the named tensors that are held."""
        tensors = flat(weights)
        held = sum(int(mask.sum()) * tensors[name][0].numel() for name, mask in self.masks.items())
        return sum(tensors[name].numel() for name in self.names) - held, held


def scope(cfg: Config) -> Scope:
    """What `ttt.adapted` names, without the first `ttt.freeze_blocks` blocks.

    freeze "scalars" is the published freeze of exp101: no bank's name contained its block's, so matrices adapt.
    """
    t = cfg.ttt
    if t.adapted == "lora":
        held = torch.arange(cfg.model.n_blocks) < t.freeze_blocks
        names = tuple(f"{role}.{part}" for role in t.lora_roles for part in "ab")
        return Scope(names, {name: held for name in names} if t.freeze_blocks else {})
    wanted = {
        "all": lambda p: p.kind != "index",
        "banks": lambda p: p.kind == "matrix",
        "blocks": lambda p: p.rows in ("slot", "block", "layer"),
        "mlps": lambda p: p.name in ("up", "down"),
        "scalars": lambda p: p.kind == "control",
    }[t.adapted]
    names = tuple(p.name for p in params.table(cfg.model) if p.exported and wanted(p))
    kinds: tuple[params.Kind, ...] = ("control",) if t.freeze == "scalars" else ("matrix", "control")
    masks = params.frozen(cfg.model, t.freeze_blocks, kinds)
    return Scope(names, {name: mask for name, mask in masks.items() if name in names})


@dataclass
class Adapter:
    """Weights that adapt (float32, whatever the compute dtype), and the optimizer's state; updated in place."""

    weights: Weights  # with low-rank adapters, if they are what adapts
    scope: Scope
    slots: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # "momentum", and "square" of Adam, by name
    steps: int = 0

    @torch.no_grad()
    def folded(self) -> Weights:
        """The weights to score with; shares what did not adapt."""
        return fold(self.weights)


def start(cfg: Config, weights: Weights) -> Adapter:
    """Nothing adapted yet. `weights` are copied, never changed.

    Low-rank adapters begin with A ~ N(0, 1 / columns) and B = 0 (pr294): at first they do nothing.
    """
    copy, generator = detach(weights), torch.Generator().manual_seed(LORA_SEED)
    blocks, rank = cfg.model.n_blocks, cfg.ttt.lora_rank
    for role in cfg.ttt.lora_roles if cfg.ttt.adapted == "lora" else ():
        w = matrix(copy.banks, role, 0)
        a = torch.randn(blocks, rank, w.shape[1], generator=generator) * w.shape[1] ** -0.5
        copy.rest[f"{role}.a"] = a.to(w.device)
        copy.rest[f"{role}.b"] = torch.zeros(blocks, w.shape[0], rank, device=w.device)
    return Adapter(copy, scope(cfg))


def fold(weights: Weights) -> Weights:
    """`weights` with the adapters it holds, if any, added to their matrices; differentiable.

    Banks and adapters may be stacks or tuples of slices (`golfcore.model.weights.unbound`).
    """
    rest = dict(weights.rest)
    banks: dict[str, list[Tensor]] = {}
    for role in ROLES:
        if f"{role}.a" in rest:
            for u, (a, b) in enumerate(zip(rest.pop(f"{role}.a"), rest.pop(f"{role}.b"), strict=True)):
                bank, at = slot(role, u)
                slices = banks.setdefault(bank, list(getattr(weights.banks, bank)))
                slices[at] = slices[at] + b @ a
    if not banks:
        return weights
    return Weights(weights.banks._replace(**{bank: torch.stack(slices) for bank, slices in banks.items()}), rest)


def chunk_lr(cfg: TTTConfig, chunk: int, n_chunks: int) -> float:
    """Constant within a chunk: `lr`, or its cosine over chunks. `lr_horizon` frees it of the stream's length."""
    if cfg.lr_shape == "constant":
        return cfg.lr
    horizon = cfg.lr_horizon or n_chunks
    return cfg.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, chunk / max(horizon - 1, 1))))


def step(cfg: Config, net: Net, adapter: Adapter, x: Tensor, y: Tensor, lr: float, runtime: Runtime) -> Tensor:
    """One optimizer step on the rows (n, T), shared by the ranks; returns their mean loss before it, 0-dim.

    The host does not wait for it. RuntimeError: the ranks together did not see every row once.
    """
    mine = slice(len(x) * runtime.rank // runtime.world, len(x) * (runtime.rank + 1) // runtime.world)
    total = torch.zeros((), device=x.device)
    size, (names, masks) = y.numel(), adapter.scope
    rounded = tuple(projections(cfg) if cfg.ttt.qat_projections else ())
    usual = len(x[mine]) * runtime.world == cfg.ttt.batch_seqs  # what is left of a chunk is not worth a graph
    summed = graph(sum_of_nats) if net.compute.compiled and usual else sum_of_nats

    def loss(weights: Weights, x: Tensor, y: Tensor) -> Tensor:
        return summed(net, rounded, weights, x, y) / size

    if len(x[mine]):
        total, grads = open_gradient(loss, adapter.weights, names, masks, (x[mine], y[mine]))
    else:
        grads = {name: torch.zeros_like(flat(adapter.weights)[name]) for name in names}
    if runtime.world > 1:  # not of the process: one rank of several may adapt alone
        if (seen := int(all_reduce_sum(torch.tensor(len(x[mine]))))) != len(x):
            raise RuntimeError(f"{runtime.world} ranks trained on {seen} of {len(x)} rows")
        for tensor in (total, *grads.values()):
            dist.all_reduce(tensor)
    update(cfg.ttt, adapter, grads, lr)
    return total


def sum_of_nats(net: Net, rounded: Sequence[str], weights: Weights, x: Tensor, y: Tensor) -> Tensor:
    """Nats of the rows under `weights` with their adapters.

    `rounded` tensors pass through the artifact's grid: all that the published late-QAT flag did to adaptation.
    """
    folded = fold(weights)
    through = {name: fake_quant(folded.rest[name], projection_grid()) for name in rounded}
    return nll(forward(net, folded._replace(rest={**folded.rest, **through}), x), y).sum()


@torch.no_grad()
def update(cfg: TTTConfig, adapter: Adapter, gradients: dict[str, Tensor], lr: float) -> None:
    """Clip, then SGD with momentum, or what `optimizer` names: w <- w - lr direction."""
    adapter.steps += 1
    grads, momentum = clipped(gradients, cfg.clip), adapter.slots.get("momentum", {})
    if cfg.optimizer == "adam":
        directions, adapter.slots = adam(grads, momentum, adapter.slots.get("square", {}), adapter.steps)
    else:
        directions = velocity(grads, momentum, cfg.momentum)
        adapter.slots = {"momentum": directions}
    tensors = flat(adapter.weights)
    if cfg.optimizer in ("muon", "lars"):
        directions = {name: by_matrix(cfg, d, tensors[name]) for name, d in directions.items()}
    for name, direction in directions.items():
        tensors[name].sub_(lr * direction)


def by_matrix(cfg: TTTConfig, direction: Tensor, weights: Tensor) -> Tensor:
    """The direction of a stack of matrices as `optimizer` scales each; of anything else itself.

    muon: orthogonalised (`golfcore.optim.muon`), a step of lr sqrt(max(1, rows / columns)) in every singular direction.
    lars: as long as its matrix, so that a step is lr of the matrix's norm (You et al. 2017, arXiv 1708.03888).
    """
    if direction.ndim < 3:
        return direction
    if cfg.optimizer == "muon":
        rows, columns = direction.shape[-2:]
        return max(1.0, rows / columns) ** 0.5 * newton_schulz(direction, dtype=direction.dtype)
    sizes = [t.norm(dim=(-2, -1), keepdim=True) for t in (weights, direction)]
    return direction * (sizes[0] / sizes[1].clamp_min(1e-12))


def projections(cfg: Config) -> list[str]:
    """Names of the two small projections, as `ttt.qat_projections` means them."""
    return [p.name for p in params.table(cfg.model) if p.kind == "projection"]
