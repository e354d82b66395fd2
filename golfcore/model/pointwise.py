"""What lies between the products of a layer: norms, residual mixing, rotary positions, exclusive self-attention.

Written out here; on a GPU `golfcore.model.kernels` computes the same in one pass over memory each (a test holds the two
together). Shapes: B batch, T time, D width, H heads, G groups (heads of keys and values), K head width.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

RMS_EPS = torch.finfo(torch.float32).eps  # the default of the originals' torch, for bfloat16 inputs too


def rms(x: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last axis: float32 inside, the input's dtype outside."""
    return F.rms_norm(x.float(), (x.shape[-1],), eps=RMS_EPS).to(x.dtype)


def mix_norm(x: Tensor, x0: Tensor, mix: Tensor, c: float, first: int = 0) -> tuple[Tensor, Tensor]:
    """m = mix[0] x + mix[1] x0 from position `first` on, and c rms(m) of all: (B, T, D), (B, T, D), (2, D)."""
    mix = mix.to(x.dtype)
    mixed = mix[0] * x + mix[1] * x0
    kept = mixed[:, first:]  # before the norm: the order of gradients' sums, and with it their bits, depends on it
    return kept, c * rms(mixed)


def add_norm(x: Tensor, update: Tensor, c: float) -> tuple[Tensor, Tensor]:
    """s = x + update, and c rms(s): (B, T, D), (B, T, D) -> (B, T, D) twice."""
    total = x + update
    return total, c * rms(total)


def heads(qkv: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values out of one product: (B, T, (H + 2G) K), (H,) -> (B, T, H, K), (B, T, G, K) twice.

    Queries and keys are normalised and rotated, and queries take their gain.
    """
    h = len(gain)
    q, k, v = qkv.unflatten(-1, (h + 2 * groups, -1)).split([h, groups, groups], dim=2)
    return rotate(rms(q), cos, sin) * gain.to(q.dtype)[:, None], rotate(rms(k), cos, sin), v


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first 2 * cos.shape[-1] dims of (B, T, H, K), pairing dim a with dim a + half."""
    half = cos.shape[-1]
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((a * cos + b * sin, b * cos - a * sin, rest), dim=-1)


def exclude_self(y: Tensor, v: Tensor) -> Tensor:
    """XSA (exp101): remove from each head's output its component along the same position's own value.

    y (B, T, H, K), v (B, T, G, K); float32 inside.
    """
    b, t, h, k = y.shape
    grouped = y.float().view(b, t, v.shape[2], -1, k)
    unit = F.normalize(v.float(), dim=-1).unsqueeze(3)
    return (grouped - (grouped * unit).sum(-1, keepdim=True) * unit).view(b, t, h, k).to(y.dtype)


class Pointwise(NamedTuple):
    """How a layer's operations between products are computed: all of them written out, or all by one-pass kernels."""

    mix_norm: Callable[[Tensor, Tensor, Tensor, float, int], tuple[Tensor, Tensor]] = mix_norm
    add_norm: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]] = add_norm
    heads: Callable[[Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor, Tensor]] = heads
    exclude_self: Callable[[Tensor, Tensor], Tensor] = exclude_self
    joined: bool = False  # queries, keys and values are one product, and scales are part of the matrix before them
