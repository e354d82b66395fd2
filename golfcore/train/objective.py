"""Meta-learning inside training (exp101, exp106, exp107): one inner/outer objective, its parts as configuration.

    inner   k steps of SGD from theta on the inner data: theta' = theta - s * (lr v_1 + ... + lr v_k)
    outer   w L(theta') on the outer data; with a delta weight d, (w + d) L(theta') - d L(theta)

s is 1, or the learned rate of each bank slot (MetaSGD, exp106). First order takes the inner gradients as constants:
theta' is then theta plus a constant, so plain autograd hands the gradient at theta' to theta, gives every other weight
its own, and gives the rate s_j of slot j the gradient -<sum lr v_j, dL/dtheta'_j>. Second order differentiates through
them.

Everything but `meta_gradients` and `model_loss` takes any `loss(weights, x, y)`; nothing here changes the weights.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from golfcore.base.runtime import full_float32
from golfcore.config import MetaConfig, ModelConfig
from golfcore.model import params
from golfcore.model.attention import Compute, attend_reference, attend_sdpa
from golfcore.model.forward import Net, forward, training_loss
from golfcore.model.weights import Banks, Weights, flat, tree_map, unflat
from golfcore.optim.inner import Batch, Loss, clipped, joint_norm, open_gradient, velocity


class Outcome(NamedTuple):
    """What one evaluation of the objective found."""

    loss_pre: Tensor | None  # on the outer data before the inner steps; None if it was not computed
    loss_post: Tensor  # and after them
    gradients: Weights  # of the weighted objective
    moved: dict[str, Tensor]  # by name, what the inner steps subtract (float32, before the learned rates)


def meta_gradients(
    net: Net,
    meta_cfg: MetaConfig,
    weights: Weights,
    x: Tensor,
    y: Tensor,
    following: Batch | None = None,
) -> tuple[Tensor, Weights]:
    """Loss after the inner steps, and the gradients of the weighted objective. x, y: (B, T).

    `following`: the micro-batch that follows (x, y) in the text; the split "next-chunk" needs it.
    """
    inner, outer = split(meta_cfg, x, y, following)
    loss = model_loss(net, meta_cfg)
    found = evaluate(meta_cfg, loss, weights, inner, outer, freeze_masks(net.cfg, meta_cfg), with_pre=False)
    return found.loss_post, found.gradients


def model_loss(net: Net, meta_cfg: MetaConfig, z_loss: float = 0.0) -> Loss:
    """`training_loss`, computed so that the inner step survives and can be differentiated as often as needed.

    In bfloat16 all but a few in ten thousand weights round a published inner step away. `meta.dtype` "compute" is how
    the originals ran. The fused attention kernels have no second derivative.
    """
    compute = net.compute
    if meta_cfg.order == "second":
        compute = Compute(torch.float32 if meta_cfg.dtype == "float32" else compute.dtype, attend_reference)
    elif meta_cfg.dtype == "float32" and compute.dtype != torch.float32:
        compute = Compute(torch.float32, attend_sdpa)

    precise = net._replace(compute=compute)

    def loss(weights: Weights, x: Tensor, y: Tensor) -> Tensor:
        return training_loss(net.cfg, forward(precise, weights, x), y, z_loss)

    return loss


def freeze_masks(model_cfg: ModelConfig, meta_cfg: MetaConfig) -> dict[str, Tensor]:
    """Rows that take no inner step: those that TTT with "freeze all" leaves alone, among what is adapted."""
    kinds: tuple[params.Kind, ...] = ("matrix",) if meta_cfg.adapted == "banks" else ("matrix", "control")
    return params.frozen(model_cfg, meta_cfg.freeze_blocks, kinds)


def split(cfg: MetaConfig, x: Tensor, y: Tensor, following: Batch | None) -> tuple[Batch, Batch]:
    """(inner, outer) data of a micro-batch.

    "time" (exp101): first and second half of each row. "batch" (exp106): first and second half of the rows, of one row
    its halves in time. "next-chunk": the whole micro-batch, and the text that follows it, as in deployment.
    """
    if cfg.split == "next-chunk":
        if following is None:
            raise ValueError("split next-chunk: expected the micro-batch that follows, found none")
        return (x, y), following
    if cfg.split == "batch" and len(x) > 1:
        half = len(x) // 2
        return (x[:half], y[:half]), (x[half:], y[half:])
    half = x.shape[1] // 2
    return (x[:, :half], y[:, :half]), (x[:, half:], y[:, half:])


def evaluate(
    cfg: MetaConfig,
    loss: Loss,
    weights: Weights,
    inner: Batch,
    outer: Batch,
    masks: Mapping[str, Tensor],
    with_pre: bool,
) -> Outcome:
    """The objective and its gradient with respect to every weight. `with_pre`: find the loss before in any case.

    Weights are adapted in float32, whatever they are stored in. The loss before is back-propagated, and its graph
    freed, before the loss after it is built: one graph alive, where exp106 held two.
    """
    leaves = tree_map(lambda t: t.detach().float().requires_grad_(), weights)
    pre = None
    with full_float32() if cfg.dtype == "float32" else nullcontext():
        if cfg.delta_weight:
            pre = _backward(-cfg.delta_weight, loss(leaves, *outer))
        elif with_pre and cfg.inner_steps:
            with torch.no_grad():
                pre = loss(leaves, *outer)
        moved = inner_steps(cfg, loss, leaves, inner, masks)
        post = _backward(cfg.loss_weight + cfg.delta_weight, loss(displaced(leaves, moved), *outer))
    gradients = tree_map(lambda t: torch.zeros_like(t) if t.grad is None else t.grad, leaves)
    moved = {name: m.detach() for name, m in moved.items()}
    return Outcome(post if not cfg.inner_steps else pre, post, gradients, moved)


def _backward(weight: float, loss: Tensor) -> Tensor:
    """Add the gradient of `weight` times the loss to the leaves; the loss without its graph."""
    (weight * loss).backward()
    return loss.detach()


def inner_steps(
    cfg: MetaConfig, loss: Loss, weights: Weights, data: Batch, masks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What `cfg.inner_steps` steps on `data` subtract from each adapted tensor, before the learned rates.

    SAM (exp107): the gradient of a step is that at the weights + rho g / |g|. First order: constants, and nothing but
    the adapted tensors is differentiated.
    """
    second = cfg.order == "second"
    base = weights if second else tree_map(torch.Tensor.detach, weights)
    everything = [name for name in flat(weights) if not name.startswith(params.RATES)]
    names = Banks._fields if cfg.adapted == "banks" else everything
    moved: dict[str, Tensor] = {}
    momentum: dict[str, Tensor] = {}
    for _ in range(cfg.inner_steps):
        here = displaced(base, moved)
        g = open_gradient(loss, here, names, masks, data, second)
        if cfg.sam_rho:
            ascent = cfg.sam_rho / joint_norm(g).clamp(min=1e-12)
            tensors = flat(here)
            uphill = unflat({**tensors, **{n: tensors[n] + ascent * g[n] for n in names}})
            g = open_gradient(loss, uphill, names, masks, data, second)
        momentum = velocity(clipped(g, cfg.inner_clip), momentum, cfg.inner_momentum)
        steps = {n: cfg.inner_lr * v for n, v in momentum.items()}
        moved = {n: moved[n] + step if n in moved else step for n, step in steps.items()}
    return moved


def displaced(weights: Weights, moved: Mapping[str, Tensor]) -> Weights:
    """The weights after the inner steps that `moved` sums up; attached to `weights`."""
    tensors = flat(weights)
    return unflat({**tensors, **{name: tensors[name] - rated(tensors, name, m) for name, m in moved.items()}})


def rated(tensors: Mapping[str, Tensor], name: str, moved: Tensor) -> Tensor:
    """`moved` times the learned rate of each slot, if tensor `name` has rates."""
    rates = tensors.get(params.RATES + name)
    return moved if rates is None else rates.view(-1, *[1] * (moved.ndim - 1)) * moved


def reptile(weights: Weights, adapted: Weights, rate: float) -> Weights:
    """Reptile's outer rule (Nichol et al. 2018): theta <- theta + rate (adapted - theta)."""
    return tree_map(lambda t, a: t + rate * (a - t), weights, adapted)
