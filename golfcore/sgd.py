"""The update of SGD with momentum that test-time training and meta-learning's inner loop share."""

from collections.abc import Mapping

import torch
from torch import Tensor


def velocity(
    gradients: Mapping[str, Tensor], before: Mapping[str, Tensor], momentum: float, clip: float
) -> dict[str, Tensor]:
    """Clip the joint norm of `gradients` to `clip` (0: leave it), then m <- momentum m + g (torch's SGD, no dampening).

    A name that `before` lacks starts from 0. Nothing is changed in place; differentiable. The step is then w - lr m.
    """
    scale: Tensor | float = 1.0
    if clip > 0:
        scale = torch.clamp(clip / (joint_norm(gradients) + 1e-6), max=1.0)
    clipped = {name: g * scale if clip > 0 else g for name, g in gradients.items()}
    return {name: momentum * before[name] + g if name in before else g for name, g in clipped.items()}


def joint_norm(tensors: Mapping[str, Tensor]) -> Tensor:
    """Euclidean norm of all tensors together, 0-dim."""
    return torch.stack([t.square().sum() for t in tensors.values()]).sum().sqrt()
