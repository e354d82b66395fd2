"""Meta-learning inside training (exp101, exp106, exp107): one inner/outer objective, its parts as configuration.

    inner   k steps of SGD from theta on the inner data: theta' = theta - s * (lr v_1 + ... + lr v_k)
    outer   w L(theta') on the outer data; with a delta weight d, (w + d) L(theta') - d L(theta)

s is 1, or the learned rate of each bank slot (MetaSGD, exp106). First order takes the inner gradients as constants:
theta' is then theta plus a constant, so plain autograd hands the gradient at theta' to theta, gives every other weight
its own, and gives the rate s_j of slot j the gradient -<sum lr v_j, dL/dtheta'_j>. Second order differentiates through
them.
"""

import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from golfcore.base.runtime import all_reduce_mean_, full_float32
from golfcore.config import Config, MetaConfig, ModelConfig
from golfcore.model import params
from golfcore.model.attention import Compute, attend_reference, attend_sdpa
from golfcore.model.forward import Net
from golfcore.model.weights import Banks, Weights, flat, tree_map, unflat
from golfcore.optim.inner import Batch, Loss, clipped, gradient, joint_norm, loss_function, velocity


class Outcome(NamedTuple):
    """What one evaluation of the objective found."""

    loss_pre: Tensor | None  # on the outer data before the inner steps; None if it was not computed
    loss_post: Tensor  # and after them
    gradients: Weights  # of the weighted objective
    moved: dict[str, Tensor]  # by name, what the inner steps subtract (float32, before the learned rates)


def model_loss(net: Net, meta_cfg: MetaConfig, z_loss: float = 0.0) -> Loss:
    """`training_loss`, computed so that the inner step survives and can be differentiated as often as needed.

    In bfloat16 all but a few in ten thousand weights round a published inner step away. `meta.dtype` "compute" is how
    the originals ran. The fused attention kernels have no second derivative.
    """
    dtype = torch.float32 if meta_cfg.dtype == "float32" else net.compute.dtype
    own = net.compute.attend if dtype == net.compute.dtype else attend_sdpa
    compute = Compute(dtype, attend_reference if meta_cfg.order == "second" else own)
    return loss_function(net._replace(compute=compute), z_loss)


def freeze_masks(model_cfg: ModelConfig, meta_cfg: MetaConfig) -> dict[str, Tensor]:
    """Rows that take no inner step: those that TTT with "freeze all" leaves alone, among what is adapted."""
    kinds: tuple[params.Kind, ...] = ("matrix",) if meta_cfg.adapted == "banks" else ("matrix", "control")
    return params.frozen(model_cfg, meta_cfg.freeze_blocks, kinds)


def split(cfg: MetaConfig, x: Tensor, y: Tensor, following: Batch | None = None) -> tuple[Batch, Batch]:
    """(inner, outer) data of a micro-batch.

    "time" (exp101): first and second half of each row. "batch" (exp106): first and second half of the rows, of one row
    its halves in time. "next-chunk": the whole micro-batch, and the text that follows it, as in deployment.
    """
    if cfg.split == "next-chunk":
        assert following is not None
        return (x, y), following
    if cfg.split == "batch" and len(x) > 1:
        half = len(x) // 2
        return (x[:half], y[:half]), (x[half:], y[half:])
    half = x.shape[1] // 2
    return (x[:, :half], y[:, :half]), (x[:, half:], y[:, half:])


def evaluate(
    cfg: MetaConfig, loss: Loss, weights: Weights, inner_outer: tuple[Batch, Batch], masks: Mapping[str, Tensor]
) -> Outcome:
    """The objective and its gradient with respect to every weight.

    Weights are adapted in float32, whatever they are stored in. The loss before is back-propagated, and its graph
    freed, before the loss after it is built: one graph alive, where exp106 held two.
    """
    inner, outer = inner_outer
    leaves = tree_map(lambda t: t.detach().float().requires_grad_(), weights)

    def backward(weight: float, value: Tensor) -> Tensor:
        (weight * value).backward()
        return value.detach()

    pre = backward(-cfg.delta_weight, loss(leaves, *outer)) if cfg.delta_weight else None
    moved = inner_steps(cfg, loss, leaves, inner, masks)
    post = backward(cfg.loss_weight + cfg.delta_weight, loss(displaced(leaves, moved), *outer))
    gradients = tree_map(lambda t: torch.zeros_like(t) if t.grad is None else t.grad, leaves)
    return Outcome(pre if cfg.inner_steps else post, post, gradients, {n: m.detach() for n, m in moved.items()})


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
        g = gradient(loss, here, names, masks, data, second)
        if cfg.sam_rho:
            ascent = cfg.sam_rho / joint_norm(g).clamp(min=1e-12)
            uphill = unflat({**flat(here), **{n: flat(here)[n] + ascent * g[n] for n in names}})
            g = gradient(loss, uphill, names, masks, data, second)
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


def due(cfg: MetaConfig, step: int, lr_multiplier: float) -> bool:
    return cfg.enabled and step % cfg.every == 0 and lr_multiplier > cfg.min_scale


def add_gradient(
    cfg: Config, net: Net, weights: Weights, step: int, inner_outer: tuple[Batch, Batch], loss_fn: Loss
) -> dict[str, float | None]:
    """Add the meta gradient to the weights' own, those of the step. `loss_fn` is training's loss, maybe compiled.

    The published call is weighted as one of the step's micro-batches, though it happens once a step: its gradient is
    divided by `optim.grad_accum`. All ranks make the same call on the same data, so that number is all that counts.

    Returns the row of the log: `loss_pre` and `loss_post`, of the outer data before and after the inner steps (before:
    None where it was not computed); what `_measured` says; `seconds` of the call without what only the log needs, and
    `instrument_seconds` of that: `loss_pre` without a delta, norms, cosines.
    """
    m, device = cfg.meta, weights.banks.qo.device
    as_trained = m.order == "first" and (m.dtype == "compute" or net.compute.dtype == torch.float32)
    loss = loss_fn if as_trained else model_loss(net, m, cfg.optim.z_loss)
    began, pre = _now(device), None
    with full_float32() if m.dtype == "float32" else nullcontext():
        if _watches_before(m) and step % (m.every * m.log_pre_every) == 0:
            watching = tree_map(lambda t: t.detach().float().requires_grad_(), weights)  # finds the objective's graph
            pre = loss(watching, *inner_outer[1]).detach()
        watched = _now(device)
        found = evaluate(m, loss, weights, inner_outer, freeze_masks(cfg.model, m))
    all_reduce_mean_(flat(found.gradients).values())  # equal but for rounding, and the ranks must stay equal
    evaluated = _now(device)
    with torch.no_grad():
        row = _measured(cfg, weights, found, torch.float32 if m.dtype == "float32" else net.compute.dtype)
    noted = _now(device)
    for tensor, g in zip(flat(weights).values(), flat(found.gradients).values(), strict=True):
        if not tensor.requires_grad:  # in no optimizer: nothing would ever clear it
            continue
        addition = g.div_(cfg.optim.grad_accum).to(tensor.dtype)
        tensor.grad = addition if tensor.grad is None else tensor.grad.add_(addition)
    instruments, pre = watched - began + noted - evaluated, found.loss_pre if pre is None else pre
    losses = {"loss_pre": None if pre is None else float(pre), "loss_post": float(found.loss_post)}
    return losses | row | {"seconds": _now(device) - began - instruments, "instrument_seconds": instruments}


def _now(device: torch.device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def counted_cost(cfg: Config) -> float:
    """What a meta call computes, in micro-batches: 1 is the forward and backward pass of one over all its tokens.

    Not counted: attention is cheaper in half rows.
    """
    m, (inner, outer) = cfg.meta, _sizes(cfg)
    passes = m.inner_steps * (2 if m.sam_rho else 1) * (2 if m.order == "second" else 1)
    return passes * inner + (2 if m.delta_weight else 1) * outer


def instrument_cost(cfg: Config) -> float:
    """What the log alone costs a meta call on average, in micro-batches: forwards, each a third of a whole pass."""
    return _sizes(cfg)[1] / 3 / cfg.meta.log_pre_every if _watches_before(cfg.meta) else 0.0


def _watches_before(cfg: MetaConfig) -> bool:
    """Whether the log wants a loss before the inner steps that the objective itself does not compute."""
    return cfg.log_pre_every > 0 and cfg.inner_steps > 0 and not cfg.delta_weight


def _sizes(cfg: Config) -> tuple[float, float]:
    """Inner and outer tokens over those of a micro-batch."""
    rows = cfg.optim.batch_tokens // (cfg.optim.grad_accum * cfg.data.seq_len)
    x = torch.empty(rows, cfg.data.seq_len, device="meta")
    (inner, _), (outer, _) = split(cfg.meta, x, x, (x, x))
    return inner.numel() / x.numel(), outer.numel() / x.numel()


def _measured(cfg: Config, weights: Weights, found: Outcome, dtype: torch.dtype) -> dict[str, float | None]:
    """Gradients (means over the ranks, before clipping, as they join the step) and inner steps in numbers.

    `predicted_gain`: loss_pre - loss_post to first order, <inner steps, outer gradient> (float32 losses often cannot
    tell them apart; the objective's gradient is `loss_weight` times the outer one). `main_norm`, `meta_norm`, `cosine`
    (of each bank too): of the micro-batches' mean loss and of the meta gradient. `displacement`: norm of the inner
    steps; `realised`, `realised_cosine`: after rounding to the forward's `dtype`, over and with the intended one. None
    where one of the two is 0.
    """
    tensors, theirs = flat(weights), flat(found.gradients)
    grads = {n: torch.zeros_like(theirs[n]) if t.grad is None else t.grad.float() for n, t in tensors.items()}
    products = {name: _products(g, theirs[name]) for name, g in grads.items()}
    steps, gain, weight = torch.zeros(3, device=weights.banks.qo.device), 0.0, cfg.meta.loss_weight
    for name, moved in found.moved.items():
        before, step = tensors[name].float(), rated(tensors, name, moved)
        steps += _products(step, before.to(dtype).float() - (before - step).to(dtype).float())
        gain += float((step * theirs[name]).sum())
    main_squared, meta_squared, cross = torch.stack(list(products.values())).sum(0).tolist()
    intended, realised, agreement = steps.tolist()
    return {
        "predicted_gain": gain / weight if weight else None,
        "main_norm": main_squared**0.5,
        "meta_norm": meta_squared**0.5 / cfg.optim.grad_accum,
        "cosine": _cosine(main_squared, meta_squared, cross),
        **{f"cosine_{bank}": _cosine(*products[bank].tolist()) for bank in Banks._fields},
        "displacement": intended**0.5,
        "realised": (realised / intended) ** 0.5 if intended else None,
        "realised_cosine": _cosine(intended, realised, agreement),
    }


def _products(a: Tensor, b: Tensor) -> Tensor:
    """a . a, b . b, a . b: (3,)."""
    a, b = a.flatten(), b.flatten()
    return torch.stack((a.dot(a), b.dot(b), a.dot(b)))


def _cosine(aa: float, bb: float, ab: float) -> float | None:
    return ab / (aa * bb) ** 0.5 if aa * bb > 0 else None
