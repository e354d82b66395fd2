"""Attention: the backends (held equal by a test), how a forward is executed, rotary angles, the key/value cache.

Shapes: B batch, T time, H heads, K head width; q (B, Tq, H, K), k and v (B, Tk, Hkv, K), Tq <= Tk aligned at the end.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from golfcore.base.runtime import Runtime
from golfcore.config import ModelConfig
from golfcore.model.pointwise import Pointwise

KERNELS = "golfcore.model.kernels"
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def attend_reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal softmax(q k / sqrt(K)) v, written out."""
    groups = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(groups, dim=2), v.repeat_interleave(groups, dim=2)
    scores = torch.einsum("bqhk,bshk->bhqs", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("bhqs,bshk->bqhk", (scores + _causal(q, k)).softmax(-1), v)


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same through torch's fused kernels."""
    square = q.shape[1] == k.shape[1]
    if q.is_cuda and q.dtype == torch.float32:  # grouped heads would fall to a kernel that stores all scores
        groups = q.shape[2] // k.shape[2]
        k, v = k.repeat_interleave(groups, dim=2), v.repeat_interleave(groups, dim=2)
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=None if square or q.shape[1] == 1 else _causal(q, k),
        is_causal=square and q.shape[1] > 1,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return y.transpose(1, 2)


def attend_blocks(q: Tensor, k: Tensor, v: Tensor, rows: int = 128) -> Tensor:
    """The same, `rows` queries at a time against the keys that they see; weights in float32.

    On a CPU in bfloat16 this is faster than torch's kernel, forward and backward (`benchmarks/README.md`).
    """
    (b, tq, h, width), (tk, hkv) = q.shape, k.shape[1:3]
    q = (q * width**-0.5).view(b, tq, hkv, h // hkv, width).permute(0, 2, 3, 1, 4)
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    out: list[Tensor] = []
    for block in q.split(rows, dim=3):
        n = block.shape[3]
        seen = tk - tq + n + rows * len(out)
        scores = (block.flatten(2, 3) @ k[:, :, :seen].mT).unflatten(2, (h // hkv, n))
        scores[..., seen - n :] += scores.new_full((n, n), float("-inf")).triu(1)
        weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
        out.append((weights.flatten(2, 3) @ v[:, :, :seen]).unflatten(2, (h // hkv, n)))
    return torch.cat(out, dim=3).permute(0, 3, 1, 2, 4).flatten(2, 3)


def attend_fa3(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same through FlashAttention-3, which takes half precision only and aligns the causal mask at the end."""
    from flash_attn_interface import flash_attn_func

    out = flash_attn_func(*(t.to(torch.bfloat16) for t in (q, k, v)), causal=True)
    return (out[0] if isinstance(out, tuple) else out).to(q.dtype)


def _causal(q: Tensor, k: Tensor) -> Tensor:
    """(Tq, Tk) additive mask: query i sees keys up to i + Tk - Tq."""
    mask = q.new_zeros(q.shape[1], k.shape[1])
    allowed = torch.ones_like(mask, dtype=torch.bool).tril(k.shape[1] - q.shape[1])
    return mask.masked_fill(~allowed, float("-inf"))


class Compute(NamedTuple):
    """Execution of a forward: results differ by rounding only."""

    dtype: torch.dtype = torch.float32  # of the activations
    attend: Attend = attend_sdpa
    compiled: bool = False  # losses and scores through torch's compiler
    pointwise: Pointwise = Pointwise()  # what lies between the products


def choose_compute(runtime: Runtime) -> Compute:
    """In bfloat16 on CUDA, FlashAttention-3 if it is installed and one-pass kernels; on a CPU, blocks of queries.

    Everywhere else torch's own kernels.
    """
    chosen = Compute(runtime.dtype, compiled=runtime.compiled)
    if runtime.dtype == torch.bfloat16 and runtime.device.type == "cpu":
        return chosen._replace(attend=attend_blocks)
    if runtime.dtype == torch.bfloat16 and runtime.device.type == "cuda":
        if find_spec("flash_attn_interface"):
            chosen = chosen._replace(attend=attend_fa3)
        if find_spec("triton") and find_spec(KERNELS):  # a submission's one file has none: Triton reads sources
            chosen = chosen._replace(pointwise=import_module(KERNELS).KERNELS)
    return chosen


def rope_base(cfg: ModelConfig, length: int) -> float:
    """The rotary base of a sequence of `length`: grows beyond `rope_ntk_len`, for all its positions (NTK rule).

    Example: base 10000, 16 rotary dims, rope_ntk_len 1024: a length of 2048 has 10000 * 2^(16/14) = 22081.8.
    """
    if not cfg.rope_ntk_len or length <= cfg.rope_ntk_len:
        return cfg.rope_base
    d = cfg.rope_dims
    return cfg.rope_base * (length / cfg.rope_ntk_len) ** (d / (d - 2))


def rope_angles(cfg: ModelConfig, start: int, stop: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin (stop - start, rope_dims/2) in float32 for positions start..stop-1 of a sequence of `length`.

    Quirk `rope_angles = "bfloat16"`: up to `rope_ntk_len` the originals multiplied bfloat16 positions by bfloat16
    frequencies, which merges neighbouring positions beyond 256.
    """
    halves = torch.arange(0, cfg.rope_dims, 2, dtype=torch.float32, device=device)
    frequencies = rope_base(cfg, length) ** (-halves / cfg.rope_dims)
    positions = torch.arange(start, stop, dtype=torch.float32, device=device)
    if cfg.rope_angles == "bfloat16" and length <= cfg.rope_ntk_len:
        positions, frequencies = positions.bfloat16(), frequencies.bfloat16()
    angles = torch.outer(positions, frequencies).float()
    return angles.cos(), angles.sin()


class Cache:
    """Keys, values and tokens of the positions so far, for a sequence whose final length is known.

    The final length fixes the rotary base, so that cached and uncached logits are the same function.
    """

    def __init__(self, cfg: ModelConfig, batch: int, length: int, compute: Compute, device: torch.device) -> None:
        shape = (cfg.n_layers, batch, length, cfg.n_kv_heads, cfg.head_dim)
        self.keys = torch.zeros(shape, dtype=compute.dtype, device=device)
        self.values = torch.zeros(shape, dtype=compute.dtype, device=device)
        self.tokens = torch.zeros(batch, length, dtype=torch.int64, device=device)
        self.length, self.filled = length, 0

    def context(self, tokens: Tensor, reach: int) -> Tensor:
        """Store this call's tokens (B, T); return them with up to `reach` of those before."""
        stop = self.filled + tokens.shape[1]
        self.tokens[:, self.filled : stop] = tokens
        return self.tokens[:, max(0, self.filled - reach) : stop]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store this call's keys and values of `layer`; return those of all positions so far."""
        stop = self.filled + k.shape[1]
        self.keys[layer, :, self.filled : stop] = k
        self.values[layer, :, self.filled : stop] = v
        return self.keys[layer, :, :stop], self.values[layer, :, :stop]
