"""A training step of exp101 on one row of 1,024 tokens, and its parts, golfcore beside the transcription.

    python benchmarks/step.py [--small] [--against TREE]

At 27M and with 6 layers of width 256, activations in float32 and in bfloat16. The parts are: forward and backward,
Newton-Schulz of all matrices, the whole optimizer with it, the moving average (every tenth step), and clipping.
"""

import argparse
from collections.abc import Iterator

import cases
import plain
import timing
import torch
from timing import OURS, Row

from golfcore.optim import average, build
from golfcore.optim.muon import newton_schulz


def check(args: argparse.Namespace) -> dict[str, str]:
    found = {}
    for size in cases.sizes(args, "27M", "6 layers"):
        for dtype in cases.DTYPES:
            for meta in (False, True):
                found |= cases.check_step(size, dtype, meta)
    g = torch.randn(96, 64, generator=torch.Generator().manual_seed(0))
    a, b = newton_schulz(g[None], 5, torch.float32)[0], plain.newton_schulz(g, torch.float32)
    return found | {
        "Newton-Schulz in float32, largest difference + 1": timing.near(float((a - b).abs().max()) + 1, 1, 1e-4)
    }


def rows(args: argparse.Namespace) -> Iterator[Row]:
    for size in cases.sizes(args, "27M", "6 layers"):
        for dtype in cases.DTYPES:
            yield from of(size, dtype)


def of(size: str, dtype: str) -> Iterator[Row]:
    cfg = cases.configuration(size)
    ours, theirs = (
        cases.Training(cfg, cases.the_runtime(cases.DTYPES[dtype])),
        cases.transcription(cfg, cases.DTYPES[dtype]),
    )
    (x, y), w, tokens = ours.batch(), theirs.w, cfg.data.seq_len

    def row(name: str, a: object, b: object, tokens: int = 0) -> Row:
        return Row(f"{size}, {dtype}: {name}", {"plain": a, OURS: b}, tokens)

    def steps(meta: bool) -> tuple[object, object]:
        a = lambda: plain.train_step(cfg, theirs.model, theirs.optimizer, x, y, meta)  # noqa: E731
        return a, lambda: ours.step(4 if meta else 1)

    yield row("step", *steps(False), tokens)
    yield row("step with a meta call", *steps(True), tokens)

    def theirs_backward() -> None:
        for t in w.values():
            t.grad = None
        theirs.model.loss(w, x, y).backward()

    def ours_backward() -> None:
        ours.state.optimizers.zero_grad()
        ours.loss(ours.state.weights, x, y).backward()

    yield row("forward and backward", theirs_backward, ours_backward, tokens)
    theirs_backward(), ours_backward()  # whose gradients every part below works on
    muon = next(part.optimizer for part in ours.state.optimizers.parts if part.kind == "muon").param_groups[0]
    banks = [p.grad.to(muon["dtype"]) for p in muon["params"]]
    matrices = [t.grad for name, t in w.items() if plain.is_matrix(name)]
    yield row(
        "Newton-Schulz",
        lambda: [plain.newton_schulz(g) for g in matrices],
        lambda: [newton_schulz(g, muon["ns_steps"], muon["dtype"]) for g in banks],
    )
    yield row(
        "optimizer with it",
        lambda: theirs.optimizer.step(1.0, cfg.optim.momentum_start),
        lambda: ours.state.optimizers.step(1.0, cfg.optim.momentum_start),
    )
    yield row(
        "moving average",
        lambda: plain.average(theirs.ema, w, cfg.average.decay**cfg.average.every),
        lambda: average.update(cfg.average, ours.state.averaged, ours.state.weights, cfg.average.every, 1.0),
    )
    yield row(
        "clipping",
        lambda: plain.clip(w.values(), cfg.optim.grad_clip),
        lambda: build.clip_(ours.state.weights, cfg.optim.grad_clip),
    )


if __name__ == "__main__":
    timing.main("step", timing.arguments(__doc__).parse_args(), check, rows)
