"""Meta-learning inside training: first-order MAML on the banks (exp101).

    inner   g = dL(theta; first half of each row) / d banks, rows of frozen blocks set to 0
    outer   L(banks - alpha g; second half), differentiated with respect to every weight

With live banks and a detached g, plain autograd gives the first-order gradient: the adapted banks' gradient reaches
the banks unchanged, and every other weight gets its own.
"""

import torch
from torch import Tensor

from golfcore import params
from golfcore.config import MetaConfig, ModelConfig
from golfcore.data.tokens import Tables
from golfcore.model.attention import Compute
from golfcore.model.forward import DEFAULT, forward, nll
from golfcore.weights import Banks, Weights, flat, unflat


def meta_gradients(
    model_cfg: ModelConfig,
    meta_cfg: MetaConfig,
    weights: Weights,
    x: Tensor,
    y: Tensor,
    tables: Tables | None,
    compute: Compute = DEFAULT,
) -> tuple[Tensor, Weights]:
    """Loss after the inner step and its gradients, before any weighting. x, y: (B, T) with T even."""
    half = x.shape[1] // 2
    adapted = inner_step(model_cfg, meta_cfg, weights, x[:, :half], y[:, :half], tables, compute)
    loss = nll(forward(model_cfg, adapted, x[:, half:], tables, compute=compute), y[:, half:]).mean()
    leaves = flat(weights)
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    gradients = {n: torch.zeros_like(leaves[n]) if g is None else g for n, g in zip(leaves, found, strict=True)}
    return loss.detach(), unflat(gradients)


def inner_step(
    model_cfg: ModelConfig,
    meta_cfg: MetaConfig,
    weights: Weights,
    x: Tensor,
    y: Tensor,
    tables: Tables | None,
    compute: Compute,
) -> Weights:
    """One plain SGD step of the banks, still attached to the banks it started from (but not to its gradient)."""
    loss = nll(forward(model_cfg, weights, x, tables, compute=compute), y).mean()
    gradients = torch.autograd.grad(loss, list(weights.banks))
    masks = params.frozen(model_cfg, meta_cfg.freeze_blocks, ("matrix",))
    steps = [
        bank - meta_cfg.inner_lr * params.mask_rows(g, masks[name].to(g.device) if name in masks else None)
        for name, bank, g in zip(Banks._fields, weights.banks, gradients, strict=True)
    ]
    return weights._replace(banks=Banks(*steps))
