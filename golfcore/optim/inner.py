"""What is differentiated in training and in the inner loops of meta-learning and TTT, and their SGD and Adam."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from golfcore.model.forward import Net, forward, graph, training_loss
from golfcore.model.weights import Weights, flat, tree_map, unflat

Loss = Callable[[Weights, Tensor, Tensor], Tensor]  # banks come as stacks or as tuples of slices, indexed alike
Batch = tuple[Tensor, Tensor]  # x, y: (B, T) each

BETAS, EPS = (0.9, 0.999), 1e-8  # of Adam, as torch has them


def batch_loss(net: Net, z_loss: float, weights: Weights, x: Tensor, y: Tensor) -> Tensor:
    """`training_loss` of a batch."""
    return training_loss(net.cfg, forward(net, weights, x), y, z_loss)


def loss_function(net: Net, z_loss: float = 0.0) -> Loss:
    """`batch_loss` as a function of weights and batch; in a graph of torch's compiler if `net.compute` says so."""
    return partial(graph(batch_loss) if net.compute.compiled else batch_loss, net, z_loss)


def clipped(gradients: Mapping[str, Tensor], most: float) -> dict[str, Tensor]:
    """The gradients with their joint norm clipped to `most` (0: left alone); differentiable."""
    if not most:
        return dict(gradients)
    scale = torch.clamp(most / (joint_norm(gradients) + 1e-6), max=1.0)
    return {name: g * scale for name, g in gradients.items()}


def velocity(gradients: Mapping[str, Tensor], before: Mapping[str, Tensor], momentum: float) -> dict[str, Tensor]:
    """m <- momentum m + g (torch's SGD, no dampening); the step is w - lr m.

    A name that `before` lacks starts from 0. Nothing is changed in place; differentiable.
    """
    return {name: momentum * before[name] + g if name in before else g for name, g in gradients.items()}


def adam(
    gradients: Mapping[str, Tensor], mean: Mapping[str, Tensor], square: Mapping[str, Tensor], steps: int
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Directions of Adam's step number `steps` (from 1 on), and the new "momentum" and "square" (Kingma and Ba 2015).

    Names that the old moments lack start from 0. The step is w - lr direction.
    """
    b1, b2 = BETAS
    new_mean = {n: (1 - b1) * g + (b1 * mean[n] if n in mean else 0) for n, g in gradients.items()}
    new_square = {n: (1 - b2) * g * g + (b2 * square[n] if n in square else 0) for n, g in gradients.items()}
    unbiased = {n: (new_square[n] / (1 - b2**steps)).sqrt() + EPS for n in gradients}
    directions = {n: new_mean[n] / (1 - b1**steps) / unbiased[n] for n in gradients}
    return directions, {"momentum": new_mean, "square": new_square}


def joint_norm(tensors: Mapping[str, Tensor]) -> Tensor:
    """Euclidean norm of all tensors together, 0-dim float32."""
    return torch.stack([t.float().square().sum() for t in tensors.values()]).sum().sqrt()


def gradient(
    loss: Loss, weights: Weights, names: Sequence[str], masks: Mapping[str, Tensor], data: Batch, create_graph: bool
) -> dict[str, Tensor]:
    """Gradient of the named tensors; of the rows that `masks` freezes 0.

    All of `weights` are differentiated, or none of them if they are not yet: one graph serves every use of `loss`.
    """
    here = weights if create_graph else tree_map(lambda t: t.detach().requires_grad_(), weights)
    tensors = [flat(here)[n] for n in names]
    found = torch.autograd.grad(loss(here, *data), tensors, create_graph=create_graph, allow_unused=True)
    whole = {n: torch.zeros_like(t) if g is None else g for n, t, g in zip(names, tensors, found, strict=True)}
    return {
        n: g.masked_fill(masks[n].to(g.device).view(-1, *[1] * (g.ndim - 1)), 0) if n in masks else g
        for n, g in whole.items()
    }


def open_gradient(
    loss: Loss, weights: Weights, names: Sequence[str], masks: Mapping[str, Tensor], data: Batch
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and the gradient of the named tensors; rows that `masks` freezes are 0 and not differentiated at all.

    Not differentiating them lets the backward pass end above the frozen blocks.
    """
    tensors = flat(weights)
    held = {n: masks[n].tolist() if n in masks else [False] for n in names}
    rows = {n: tensors[n].unbind() if n in masks else (tensors[n],) for n in names}
    pieces = {n: [r.detach().requires_grad_(not h) for r, h in zip(rows[n], held[n], strict=True)] for n in names}
    wanted = [p for n in names for p in pieces[n] if p.requires_grad]
    cut = {n: tuple(ps) if n in masks else ps[0] for n, ps in pieces.items()}
    value = loss(unflat({**tensors, **cut}), *data)  # type: ignore[dict-item]
    found = iter(torch.autograd.grad(value, wanted, allow_unused=True) if wanted else ())
    out = {}
    for n in names:
        taken = [next(found) if p.requires_grad else None for p in pieces[n]]
        rows_of = [
            torch.zeros_like(p, requires_grad=False) if g is None else g for p, g in zip(pieces[n], taken, strict=True)
        ]
        out[n] = torch.stack(rows_of) if n in masks else rows_of[0]
    return value.detach(), out
