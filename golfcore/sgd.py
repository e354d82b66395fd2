"""The updates of SGD with momentum and of Adam, for test-time training and meta-learning's inner loop."""

from collections.abc import Mapping

import torch
from torch import Tensor

BETAS, EPS = (0.9, 0.999), 1e-8  # of Adam, as torch has them


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
    """Euclidean norm of all tensors together, 0-dim."""
    return torch.stack([t.square().sum() for t in tensors.values()]).sum().sqrt()
