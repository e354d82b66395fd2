"""The operations of `golfcore.model.pointwise` as Triton kernels, forward and backward, each in one pass over memory.

What torch's compiler makes of them takes 40 % of a full-size training step on an H200: it computes angles again for
every element, sends norms through memory, and makes a pass of its own for every sum over tokens. `benchmarks/README.md`
has the times. Inside all is float32; what is stored has the dtype of the input. Rows are positions, (B, T) in one.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from golfcore.model.pointwise import RMS_EPS, Pointwise

ROWS, WARPS = 4, 2  # of a tile of rows of width D: the fastest of those tried on an H200, as those below
HEAD_ROWS, HEAD_WARPS = 16, 4  # of a tile of rows of one head
PROGRAMS = 528  # that share a sum over all rows: 4 for each processor of an H100


@triton.jit
def golf_norm(x, d, eps):
    """x / rms, and 1 / rms, of the rows of a tile whose columns beyond d are 0."""
    inverse = tl.rsqrt(tl.sum(x * x, 1) / d + eps)[:, None]
    return x * inverse, inverse


@triton.jit
def golf_norm_gradient(g, unit, inverse, d):
    """The gradient of a tile x whose normalised rows are `unit`, from that of `unit`."""
    return inverse * (g - unit * (tl.sum(g * unit, 1) / d)[:, None])


@triton.jit
def golf_add_norm(x, update, total, normed, c, n, eps, D: tl.constexpr, R: tl.constexpr, W: tl.constexpr):
    rows, cols = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, W)
    at, mask = rows[:, None].to(tl.int64) * D + cols[None, :], (rows < n)[:, None] & (cols < D)[None, :]
    s = tl.load(x + at, mask, 0.0).to(tl.float32) + tl.load(update + at, mask, 0.0).to(tl.float32)
    s = s.to(total.dtype.element_ty)  # the norm is that of what is stored
    unit, _ = golf_norm(s.to(tl.float32), D, eps)
    tl.store(total + at, s, mask)
    tl.store(normed + at, c * unit, mask)


@triton.jit
def golf_add_norm_back(d_total, d_normed, total, out, c, n, eps, D: tl.constexpr, R: tl.constexpr, W: tl.constexpr):
    rows, cols = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, W)
    at, mask = rows[:, None].to(tl.int64) * D + cols[None, :], (rows < n)[:, None] & (cols < D)[None, :]
    unit, inverse = golf_norm(tl.load(total + at, mask, 0.0).to(tl.float32), D, eps)
    g = c * tl.load(d_normed + at, mask, 0.0).to(tl.float32)
    d = tl.load(d_total + at, mask, 0.0).to(tl.float32) + golf_norm_gradient(g, unit, inverse, D)
    tl.store(out + at, d, mask)


@triton.jit
def golf_mix_norm(x, x0, mix, mixed, normed, c, n, eps, D: tl.constexpr, R: tl.constexpr, W: tl.constexpr):
    rows, cols = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, W)
    at, mask = rows[:, None].to(tl.int64) * D + cols[None, :], (rows < n)[:, None] & (cols < D)[None, :]
    m = tl.load(mix + cols, cols < D, 0.0).to(tl.float32)[None, :] * tl.load(x + at, mask, 0.0).to(tl.float32)
    m += tl.load(mix + D + cols, cols < D, 0.0).to(tl.float32)[None, :] * tl.load(x0 + at, mask, 0.0).to(tl.float32)
    m = m.to(mixed.dtype.element_ty)
    unit, _ = golf_norm(m.to(tl.float32), D, eps)
    tl.store(mixed + at, m, mask)
    tl.store(normed + at, c * unit, mask)


@triton.jit
def golf_mix_norm_back(
    d_mixed, d_normed, mixed, x, x0, mix, dx, dx0, d_mix, c, n, eps, D: tl.constexpr, R: tl.constexpr, W: tl.constexpr
):
    """Every program takes each so many-th tile and leaves its part of the sum over rows in `d_mix` (programs, 2, D)."""
    cols = tl.arange(0, W)
    first = tl.load(mix + cols, cols < D, 0.0).to(tl.float32)[None, :]
    second = tl.load(mix + D + cols, cols < D, 0.0).to(tl.float32)[None, :]
    of_x, of_x0 = tl.zeros((W,), tl.float32), tl.zeros((W,), tl.float32)
    for start in range(tl.program_id(0) * R, n, tl.num_programs(0) * R):
        rows = start + tl.arange(0, R)
        at, mask = rows[:, None].to(tl.int64) * D + cols[None, :], (rows < n)[:, None] & (cols < D)[None, :]
        unit, inverse = golf_norm(tl.load(mixed + at, mask, 0.0).to(tl.float32), D, eps)
        g = c * tl.load(d_normed + at, mask, 0.0).to(tl.float32)
        d = tl.load(d_mixed + at, mask, 0.0).to(tl.float32) + golf_norm_gradient(g, unit, inverse, D)
        of_x += tl.sum(d * tl.load(x + at, mask, 0.0).to(tl.float32), 0)
        of_x0 += tl.sum(d * tl.load(x0 + at, mask, 0.0).to(tl.float32), 0)
        tl.store(dx + at, first * d, mask)
        tl.store(dx0 + at, second * d, mask)
    place = d_mix + tl.program_id(0) * 2 * D + cols
    tl.store(place, of_x, cols < D)
    tl.store(place + D, of_x0, cols < D)


@triton.jit
def golf_turn(cos, sin, rows, cols, T, HALF: tl.constexpr):
    """cos (1 beyond what turns), sin with the sign of each dim (0 beyond), and each dim's partner."""
    angle, turns = (rows % T)[:, None] * HALF + (cols % HALF)[None, :], (cols < 2 * HALF)[None, :]
    c, s = tl.load(cos + angle, turns, 1.0), tl.load(sin + angle, turns, 0.0)
    partner = tl.where(cols < HALF, cols + HALF, tl.where(cols < 2 * HALF, cols - HALF, cols))
    return c, tl.where((cols < HALF)[None, :], s, -s), partner


@triton.jit
def golf_heads(
    qkv, gain, cos, sin, q, k, v, n, T, eps, H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, HALF: tl.constexpr,
    R: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    rows, cols, head = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, W), tl.program_id(1)
    mask, wide = (rows < n)[:, None] & (cols < K)[None, :], rows[:, None].to(tl.int64)
    here = qkv + wide * ((H + 2 * G) * K) + head * K
    x = tl.load(here + cols[None, :], mask, 0.0)
    if head >= H + G:
        tl.store(v + wide * (G * K) + (head - H - G) * K + cols[None, :], x, mask)
    else:
        unit, inverse = golf_norm(x.to(tl.float32), K, eps)
        c, s, partner = golf_turn(cos, sin, rows, cols, T, HALF)
        y = unit * c + tl.load(here + partner[None, :], mask, 0.0).to(tl.float32) * inverse * s
        if head < H:
            y *= tl.load(gain + head).to(tl.float32)
            tl.store(q + wide * (H * K) + head * K + cols[None, :], y, mask)
        else:
            tl.store(k + wide * (G * K) + (head - H) * K + cols[None, :], y, mask)


@triton.jit
def golf_heads_back(
    dq, dk, dv, qkv, gain, cos, sin, out, d_gain, n, T, eps, H: tl.constexpr, G: tl.constexpr, K: tl.constexpr,
    HALF: tl.constexpr, R: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """`d_gain` (tiles, H): each tile's part of the sum over rows."""
    rows, cols, head = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, W), tl.program_id(1)
    mask, wide = (rows < n)[:, None] & (cols < K)[None, :], rows[:, None].to(tl.int64)
    here = wide * ((H + 2 * G) * K) + head * K
    if head >= H + G:
        from_v = tl.load(dv + wide * (G * K) + (head - H - G) * K + cols[None, :], mask, 0.0)
        tl.store(out + here + cols[None, :], from_v, mask)
    else:
        unit, inverse = golf_norm(tl.load(qkv + here + cols[None, :], mask, 0.0).to(tl.float32), K, eps)
        c, s, partner = golf_turn(cos, sin, rows, cols, T, HALF)
        if head < H:
            given = dq + wide * (H * K) + head * K
        else:
            given = dk + wide * (G * K) + (head - H) * K
        g = tl.load(given + cols[None, :], mask, 0.0).to(tl.float32)
        g = g * c - tl.load(given + partner[None, :], mask, 0.0).to(tl.float32) * s
        if head < H:  # <g, turned unit> is <g turned back, unit>
            tl.store(d_gain + tl.program_id(0) * H + head, tl.sum(g * unit))
            g *= tl.load(gain + head).to(tl.float32)
        tl.store(out + here + cols[None, :], golf_norm_gradient(g, unit, inverse, K), mask)


@triton.jit
def golf_exclude(y, v, out, n, H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, R: tl.constexpr, W: tl.constexpr):
    rows, cols, group = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, W), tl.program_id(1)
    mask, wide = (rows < n)[:, None] & (cols < K)[None, :], rows[:, None].to(tl.int64)
    own = tl.load(v + wide * (G * K) + group * K + cols[None, :], mask, 0.0).to(tl.float32)
    size = tl.maximum(tl.sum(own * own, 1), 1e-24)
    for j in tl.static_range(H // G):
        at = wide * (H * K) + (group * (H // G) + j) * K + cols[None, :]
        x = tl.load(y + at, mask, 0.0).to(tl.float32)
        tl.store(out + at, x - (tl.sum(x * own, 1) / size)[:, None] * own, mask)


@triton.jit
def golf_exclude_back(
    d, y, v, dy, dv, n, H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, R: tl.constexpr, W: tl.constexpr
):
    """With s = <y, v> / |v|^2 and a = <d, v> / |v|^2: dy = d - a v, dv = sum over heads of 2 s a v - s d - a y."""
    rows, cols, group = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, W), tl.program_id(1)
    mask, wide = (rows < n)[:, None] & (cols < K)[None, :], rows[:, None].to(tl.int64)
    of_v = wide * (G * K) + group * K + cols[None, :]
    own = tl.load(v + of_v, mask, 0.0).to(tl.float32)
    size = tl.maximum(tl.sum(own * own, 1), 1e-24)[:, None]
    total = tl.zeros((R, W), tl.float32)
    for j in tl.static_range(H // G):
        at = wide * (H * K) + (group * (H // G) + j) * K + cols[None, :]
        x, g = tl.load(y + at, mask, 0.0).to(tl.float32), tl.load(d + at, mask, 0.0).to(tl.float32)
        s, a = tl.sum(x * own, 1)[:, None] / size, tl.sum(g * own, 1)[:, None] / size
        tl.store(dy + at, g - a * own, mask)
        total += 2 * s * a * own - s * g - a * x
    tl.store(dv + of_v, total, mask)


# -- as operations of torch, with their gradients


def operation(name: str, like: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """A function as torch's operation golfcore::NAME, which its compiler calls as it is; `like` makes empty outputs."""

    def register(fn: Callable[..., Any]) -> Any:
        op = torch.library.custom_op(f"golfcore::{name}", fn, mutates_args=())
        op.register_fake(like)
        return op

    return register


def tile(x: Tensor, rows: int, warps: int) -> dict[str, int]:
    """Of that many rows as long as the last axis of x, on so many warps."""
    return {"R": rows, "W": triton.next_power_of_2(x.shape[-1]), "num_warps": warps}


def empty(*like: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in like)


def positions(x: Tensor) -> int:
    return x.shape[0] * x.shape[1]


@operation("add_norm", lambda x, update, c: empty(x, x))
def _add_norm(x: Tensor, update: Tensor, c: float) -> tuple[Tensor, Tensor]:
    (total, normed), n = empty(x, x), positions(x)
    given = x.contiguous(), update.contiguous()
    golf_add_norm[(triton.cdiv(n, ROWS),)](*given, total, normed, c, n, RMS_EPS, D=x.shape[-1], **tile(x, ROWS, WARPS))
    return total, normed


@operation("add_norm_back", lambda d_total, d_normed, total, c: empty(total)[0])
def _add_norm_back(d_total: Tensor, d_normed: Tensor, total: Tensor, c: float) -> Tensor:
    (out,), n, shape = empty(total), positions(total), tile(total, ROWS, WARPS)
    given = d_total.contiguous(), d_normed.contiguous(), total
    golf_add_norm_back[(triton.cdiv(n, ROWS),)](*given, out, c, n, RMS_EPS, D=total.shape[-1], **shape)
    return out


@operation("mix_norm", lambda x, x0, mix, c: empty(x, x))
def _mix_norm(x: Tensor, x0: Tensor, mix: Tensor, c: float) -> tuple[Tensor, Tensor]:
    (mixed, normed), n = empty(x, x), positions(x)
    given = x.contiguous(), x0.contiguous(), mix.contiguous()
    golf_mix_norm[(triton.cdiv(n, ROWS),)](*given, mixed, normed, c, n, RMS_EPS, D=x.shape[-1], **tile(x, ROWS, WARPS))
    return mixed, normed


@operation("mix_norm_back", lambda d_mixed, d_normed, mixed, x, x0, mix, c: empty(x, x, mix))
def _mix_norm_back(
    d_mixed: Tensor, d_normed: Tensor, mixed: Tensor, x: Tensor, x0: Tensor, mix: Tensor, c: float
) -> tuple[Tensor, Tensor, Tensor]:
    given, (dx, dx0), n = [t.contiguous() for t in (d_mixed, d_normed, mixed, x, x0, mix)], empty(x, x), positions(x)
    parts = mix.new_empty(min(triton.cdiv(n, ROWS), PROGRAMS), *mix.shape, dtype=torch.float32)
    golf_mix_norm_back[(len(parts),)](*given, dx, dx0, parts, c, n, RMS_EPS, D=x.shape[-1], **tile(x, ROWS, WARPS))
    return dx, dx0, parts.sum(0).to(mix.dtype)


def split(qkv: Tensor, gain: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Empty queries, keys and values."""
    b, t, width = qkv.shape
    q, k, v = (qkv.new_empty(b, t, of, width // (len(gain) + 2 * groups)) for of in (len(gain), groups, groups))
    return q, k, v


@operation("heads", lambda qkv, gain, cos, sin, groups: split(qkv, gain, groups))
def _heads(qkv: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = split(qkv, gain, groups)
    given, n, h = [t.contiguous() for t in (qkv, gain, cos, sin)], positions(qkv), len(gain)
    sizes = {"H": h, "G": groups, "K": q.shape[-1], "HALF": cos.shape[-1], **tile(q, HEAD_ROWS, HEAD_WARPS)}
    grid = (triton.cdiv(n, HEAD_ROWS), h + 2 * groups)
    golf_heads[grid](*given, q, k, v, n, qkv.shape[1], RMS_EPS, **sizes)
    return q, k, v


@operation("heads_back", lambda dq, dk, dv, qkv, gain, cos, sin: empty(qkv, gain))
def _heads_back(
    dq: Tensor, dk: Tensor, dv: Tensor, qkv: Tensor, gain: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    given, (h, k), n = [t.contiguous() for t in (dq, dk, dv, qkv, gain, cos, sin)], dq.shape[2:], positions(dq)
    grid = (triton.cdiv(n, HEAD_ROWS), h + 2 * dk.shape[2])
    (out,), parts = empty(qkv), gain.new_empty(grid[0], h, dtype=torch.float32)
    sizes = {"H": h, "G": dk.shape[2], "K": k, "HALF": cos.shape[-1], **tile(dq, HEAD_ROWS, HEAD_WARPS)}
    golf_heads_back[grid](*given, out, parts, n, qkv.shape[1], RMS_EPS, **sizes)
    return out, parts.sum(0).to(gain.dtype)


@operation("exclude_self", lambda y, v: empty(y)[0])
def _exclude_self(y: Tensor, v: Tensor) -> Tensor:
    (out,), n, (h, k), g = empty(y), positions(y), y.shape[2:], v.shape[2]
    grid = (triton.cdiv(n, HEAD_ROWS), g)
    golf_exclude[grid](y.contiguous(), v.contiguous(), out, n, H=h, G=g, K=k, **tile(y, HEAD_ROWS, HEAD_WARPS))
    return out


@operation("exclude_self_back", lambda d, y, v: empty(y, v))
def _exclude_self_back(d: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    (dy, dv), n, (h, k), g = empty(y, v), positions(y), y.shape[2:], v.shape[2]
    given, grid = [t.contiguous() for t in (d, y, v)], (triton.cdiv(n, HEAD_ROWS), g)
    golf_exclude_back[grid](*given, dy, dv, n, H=h, G=g, K=k, **tile(y, HEAD_ROWS, HEAD_WARPS))
    return dy, dv


def keep(*names: int) -> Callable[..., None]:
    """What a gradient needs: the inputs and outputs of those numbers, outputs after inputs, and a last input c."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        known = (*inputs, *(output if isinstance(output, tuple) else (output,)))
        ctx.save_for_backward(*(known[i] for i in names))
        ctx.c = inputs[-1] if isinstance(inputs[-1], float) else None

    return setup


def _add_norm_gradient(ctx: Any, d_total: Tensor, d_normed: Tensor) -> tuple[Tensor, Tensor, None]:
    d = _add_norm_back(d_total, d_normed, *ctx.saved_tensors, ctx.c)
    return d, d, None


_add_norm.register_autograd(_add_norm_gradient, setup_context=keep(3))
_mix_norm.register_autograd(
    lambda ctx, *d: (*_mix_norm_back(*d, *ctx.saved_tensors, ctx.c), None), setup_context=keep(4, 0, 1, 2)
)
_heads.register_autograd(
    lambda ctx, *d: (*_heads_back(*d, *ctx.saved_tensors), None, None, None), setup_context=keep(0, 1, 2, 3)
)
_exclude_self.register_autograd(lambda ctx, d: _exclude_self_back(d, *ctx.saved_tensors), setup_context=keep(0, 1))


def _mix_norm_from(x: Tensor, x0: Tensor, mix: Tensor, c: float, first: int = 0) -> tuple[Tensor, Tensor]:
    mixed, normed = _mix_norm(x, x0, mix, c)
    return mixed[:, first:], normed


KERNELS = Pointwise(_mix_norm_from, _add_norm, _heads, _exclude_self, joined=True)
