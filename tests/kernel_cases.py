"""Triton kernels against what they stand for, values and gradients. `test_kernels.py` runs these."""

from collections.abc import Callable

import pytest
import torch
from tiny import lively, tables, with_
from torch import Tensor

from golfcore.config import load
from golfcore.model import kernels, pointwise
from golfcore.model.attention import Compute
from golfcore.model.forward import Net
from golfcore.model.kernels import KERNELS
from golfcore.model.pointwise import Pointwise
from golfcore.model.weights import flat, to_device
from golfcore.optim.inner import loss_function

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
B, T, D, H, G, K = 2, 37, 48, 4, 2, 24  # rows and widths that fill no tile


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE).requires_grad_()


def assert_alike(fn: Callable[..., object], reference: Callable[..., object], *given: object) -> None:
    """Equal outputs, and equal gradients of a sum in which every output has its own random weights."""
    found = []
    for call in (fn, reference):
        inputs = [g.detach().clone().requires_grad_() if isinstance(g, Tensor) else g for g in given]
        out = call(*inputs)
        outs = out if isinstance(out, tuple) else (out,)
        sum((o * random(*o.shape, seed=7 + i).detach()).sum() for i, o in enumerate(outs)).backward()
        found.append([*outs, *(i.grad for i in inputs if isinstance(i, Tensor) and i.grad is not None)])
    assert len(found[0]) == len(found[1]) > 1
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)


def test_add_norm() -> None:
    assert_alike(KERNELS.add_norm, pointwise.add_norm, random(B, T, D), random(B, T, D, seed=1), 0.7)


@pytest.mark.parametrize("programs", [kernels.PROGRAMS, 3], ids=["a tile each", "several tiles each"])
def test_mix_norm(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "PROGRAMS", programs)
    given = random(B, T, D), random(B, T, D, seed=1), random(2, D, seed=2)
    assert_alike(KERNELS.mix_norm, pointwise.mix_norm, *given, 0.7)


@pytest.mark.parametrize("turned", [8, K])
def test_heads(turned: int) -> None:
    angles = torch.outer(torch.arange(T), torch.rand(turned // 2))
    constants = angles.cos().to(DEVICE), angles.sin().to(DEVICE)
    fused, written = KERNELS.heads, pointwise.heads
    given = random(B, T, (H + 2 * G) * K), random(H, seed=1)
    assert_alike(lambda x, g: fused(x, g, *constants, G), lambda x, g: written(x, g, *constants, G), *given)


def test_exclude_self() -> None:
    assert_alike(KERNELS.exclude_self, pointwise.exclude_self, random(B, T, H, K), random(B, T, G, K, seed=1))
    nothing = torch.zeros(B, T, G, K, device=DEVICE)
    y = random(B, T, H, K)
    assert torch.equal(KERNELS.exclude_self(y, nothing), y)


@pytest.mark.parametrize("name", ["exp101", "pr294-recurrent", "pr398"])
def test_the_model_with_them(name: str) -> None:
    """Loss and gradient of every tensor, in float32."""
    cfg = with_(load(name, {}, "smoke"))
    weights = to_device(lively(cfg), torch.device(DEVICE))
    x, y = torch.randint(cfg.model.vocab_size, (2, 2, 32)).to(DEVICE)
    found = []
    for between in (Pointwise(), KERNELS):
        loss = loss_function(Net(cfg.model, tables(cfg).to(DEVICE), Compute(pointwise=between)))(weights, x, y)
        leaves = flat(weights)
        grads = torch.autograd.grad(loss, [t for t in leaves.values() if t.requires_grad], allow_unused=True)
        found.append([loss, *(g for g in grads if g is not None)])
    assert len(found[0]) == len(found[1]) > 10
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6)
