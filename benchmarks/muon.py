"""Muon on the banks of exp101: all matrices of a bank at once against one at a time, and against torch.optim.Muon.

Every figure is the fastest of a few repetitions that alternate between the two sides, in one run. torch.optim.Muon
takes 2-D parameters only and always computes in bfloat16: it gets the slices, and ours computes in bfloat16 beside it.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from golfcore import config
from golfcore.model.params import table
from golfcore.optim.muon import Muon, newton_schulz


def seconds(sides: list[Callable[[], object]], repeats: int) -> list[float]:
    """Fastest run of each side; one run of each beforehand does not count."""
    best = [float("inf")] * len(sides)
    for i in range(repeats + 1):
        for side, run in enumerate(sides):
            synchronize()
            began = time.perf_counter()
            run()
            synchronize()
            if i:
                best[side] = min(best[side], time.perf_counter() - began)
    return best


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def orthogonalise(banks: list[Tensor], dtype: torch.dtype) -> list[Callable[[], object]]:
    return [
        lambda: [newton_schulz(g, 5, dtype) for g in banks],
        lambda: [newton_schulz(m, 5, dtype) for g in banks for m in g],
    ]


def step(banks: list[Tensor]) -> list[Callable[[], object]]:
    """A whole optimizer step: ours on the banks, torch's on their slices, from equal weights and gradients."""
    whole = [torch.zeros_like(g).requires_grad_() for g in banks]
    slices = [torch.zeros_like(m).requires_grad_() for g in banks for m in g]
    gradients = [*banks, *(m for g in banks for m in g)]
    for p, gradient in zip([*whole, *slices], gradients, strict=True):
        p.grad = gradient.clone()
    given = {"lr": 0.025, "momentum": 0.99, "weight_decay": 0.04}
    ours = Muon(whole, **given)
    theirs = torch.optim.Muon(slices, nesterov=True, adjust_lr_fn="original", **given)
    return [ours.step, theirs.step]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--small", action="store_true", help="two blocks of width 128 instead of exp101's eleven of 512"
    )
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    overrides = {"model.dim": 128, "model.mlp_hidden": 384, "model.blocks": [0, 1], "model.frozen_skips": []}
    overrides |= {"model.ve_layers": [1], "meta.freeze_blocks": 0}
    cfg = config.load("exp101", overrides if args.small else {}).model
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(0)
    shapes = [p.shape for p in table(cfg) if p.group == "matrix"]
    banks = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
    print(f"{device.type}, {torch.get_num_threads()} threads, banks {' '.join('x'.join(map(str, s)) for s in shapes)}")
    for name, other, sides in (
        ("Newton-Schulz, float32", "one matrix at a time", orthogonalise(banks, torch.float32)),
        ("Newton-Schulz, bfloat16", "one matrix at a time", orthogonalise(banks, torch.bfloat16)),
        ("whole step, bfloat16", "torch.optim.Muon", step(banks)),
    ):
        ours, theirs = seconds(sides, args.repeats)
        print(f"{name}: {ours:.4f} s batched, {theirs:.4f} s {other}: ratio {theirs / ours:.2f}")


if __name__ == "__main__":
    main()
