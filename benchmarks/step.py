"""A training step of exp101 on one row of 1,024 tokens, and its parts, golfcore beside the transcription.

    python benchmarks/step.py [--small] [--against TREE]

At 27M and with 6 layers of width 256, activations in float32 and in bfloat16. The parts are: forward and backward,
Newton-Schulz of all matrices, the whole optimizer with it, the moving average (every tenth step), and clipping.
"""

import argparse
from collections.abc import Iterator
from functools import partial

import cases
import plain
import timing
import torch
from timing import OURS, Row

from golfcore.optim.muon import newton_schulz


def check(args: argparse.Namespace) -> dict[str, str]:
    found = {}
    for size in cases.sizes(args, "27M", "6 layers"):
        for dtype in cases.DTYPES:
            found |= cases.check_step(size, dtype)
    g = torch.randn(96, 64, generator=torch.Generator().manual_seed(0))
    a, b = newton_schulz(g[None], 5, torch.float32)[0], plain.newton_schulz(g, torch.float32)
    return found | {"Newton-Schulz in float32": timing.below(cases.distance({"": a}, {"": b}), 1e-4)}


def rows(args: argparse.Namespace) -> Iterator[Row]:
    for size in cases.sizes(args, "27M", "6 layers"):
        for dtype, kind in cases.DTYPES.items():
            cfg = cases.configuration(size)
            ours, theirs = cases.Training(cfg, cases.the_runtime(kind)), cases.Plain(cfg, kind)
            x, y = ours.batch()
            for name, number in (("step", 1), ("step with a meta call", 4)):
                sides = {"plain": partial(theirs.step, x, y, number == 4), OURS: partial(ours.step, number)}
                yield Row(f"{size}, {dtype}: {name}", sides, y.numel())
            parts = theirs.parts(x, y)
            for name, part in ours.parts().items():
                yield Row(f"{size}, {dtype}: {name}", {"plain": parts[name], OURS: part})


if __name__ == "__main__":
    timing.main("step", timing.sided(__doc__).parse_args(), check, rows)
