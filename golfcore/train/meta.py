"""The meta-learning part of a training step: when it is due, its gradient, and what is recorded of it."""

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from golfcore.config import Config, MetaConfig
from golfcore.model.forward import Net
from golfcore.model.weights import Banks, Weights, flat
from golfcore.train import objective as meta


@dataclass(frozen=True)
class MetaReport:
    """One meta call on this rank. Gradients: before the mean over ranks and before clipping, as they join the step."""

    loss_pre: float | None  # outer data before the inner steps; None: not computed at this call
    loss_post: float
    predicted_gain: float | None  # loss_pre - loss_post to first order: float32 losses often cannot tell them apart
    main_norm: float  # of the micro-batches' mean loss
    meta_norm: float
    cosine: float | None  # between the two, over all weights; None if one of them is 0
    cosines: dict[str, float | None]  # the same for each bank
    displacement: float  # norm of the inner steps, over all adapted tensors
    realised: float | None  # the same after rounding to the dtype the forward computes in, over the intended norm
    realised_cosine: float | None  # between the intended and the realised step; None without an inner step
    seconds: float = field(compare=False)
    peak_bytes: int | None = field(compare=False)  # most memory allocated during the call; None on CPU

    def row(self) -> dict[str, float | None]:
        plain = {name: value for name, value in vars(self).items() if name != "cosines"}
        return {**plain, **{f"cosine_{bank}": c for bank, c in self.cosines.items()}}


def due(cfg: MetaConfig, step: int, scale: float) -> bool:
    return cfg.enabled and step % cfg.every == 0 and scale > cfg.min_scale


def add_gradient(
    cfg: Config,
    net: Net,
    weights: Weights,
    step: int,
    n_micro: int,
    inner_outer: tuple[meta.Batch, meta.Batch],
    loss_fn: meta.Loss,
) -> MetaReport:
    """Add the meta gradient over `n_micro` to the weights' own gradients. `loss_fn` is training's loss, maybe compiled.

    The published call is weighted as one of the micro-batches, though it happens once a step.
    """
    m, device = cfg.meta, weights.banks.qo.device
    began = _begin(device)
    as_trained = m.order == "first" and (m.dtype == "compute" or net.compute.dtype == torch.float32)
    loss = loss_fn if as_trained else meta.model_loss(net, m, cfg.optim.z_loss)
    with_pre = m.log_pre_every > 0 and step % (m.every * m.log_pre_every) == 0
    masks = meta.freeze_masks(cfg.model, m)
    found = meta.evaluate(m, loss, weights, *inner_outer, masks, with_pre)
    dtype = torch.float32 if m.dtype == "float32" else net.compute.dtype
    with torch.no_grad():
        numbers = _numbers(weights, found, n_micro, dtype) | {"predicted_gain": _predicted_gain(m, weights, found)}
        for tensor, g in zip(flat(weights).values(), flat(found.gradients).values(), strict=True):
            if not tensor.requires_grad:  # in no optimizer: nothing would ever clear it
                continue
            addition = g.div_(n_micro).to(tensor.dtype)
            tensor.grad = addition if tensor.grad is None else tensor.grad.add_(addition)
    pre = None if found.loss_pre is None else float(found.loss_pre)
    return MetaReport(pre, float(found.loss_post), **numbers, **_end(device, began))


def _numbers(weights: Weights, found: meta.Outcome, n_micro: int, dtype: torch.dtype) -> dict:
    """The norms, cosines and displacements of `MetaReport`."""
    tensors, theirs = flat(weights), flat(found.gradients)
    products = {}  # name -> main . main, meta . meta, main . meta
    for name, t in tensors.items():
        main = torch.zeros_like(theirs[name]) if t.grad is None else t.grad.float()
        products[name] = _products(main, theirs[name])
    steps = [_products(*_step(tensors, name, moved, dtype)) for name, moved in found.moved.items()]
    main, theirs_, cross = torch.stack(list(products.values())).sum(0).tolist()
    intended, realised, agreement = torch.stack(steps).sum(0).tolist() if steps else (0.0, 0.0, 0.0)
    return {
        "main_norm": main**0.5,
        "meta_norm": theirs_**0.5 / n_micro,
        "cosine": _cosine(main, theirs_, cross),
        "cosines": {bank: _cosine(*products[bank].tolist()) for bank in Banks._fields},
        "displacement": intended**0.5,
        "realised": (realised / intended) ** 0.5 if intended else None,
        "realised_cosine": _cosine(intended, realised, agreement),
    }


def _predicted_gain(cfg: MetaConfig, weights: Weights, found: meta.Outcome) -> float | None:
    """<inner steps, outer gradient>; the objective's gradient is loss_weight times the outer one, to first order."""
    tensors, theirs = flat(weights), flat(found.gradients)
    products = [(meta.rated(tensors, n, moved) * theirs[n]).sum() for n, moved in found.moved.items()]
    total = float(torch.stack(products).sum()) if products else 0.0
    return total / cfg.loss_weight if cfg.loss_weight else None


def _step(tensors: dict[str, Tensor], name: str, moved: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The inner steps of a tensor as intended, and as what the forward sees of them."""
    before, step = tensors[name].float(), meta.rated(tensors, name, moved)
    return step, before.to(dtype).float() - (before - step).to(dtype).float()


def _products(a: Tensor, b: Tensor) -> Tensor:
    """a . a, b . b, a . b: (3,)."""
    a, b = a.flatten(), b.flatten()
    return torch.stack((a.dot(a), b.dot(b), a.dot(b)))


def _cosine(aa: float, bb: float, ab: float) -> float | None:
    return ab / (aa * bb) ** 0.5 if aa * bb > 0 else None


def _begin(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    return time.perf_counter()


def _end(device: torch.device, began: float) -> dict:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {"seconds": time.perf_counter() - began, "peak_bytes": peak}
