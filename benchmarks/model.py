"""Speed of the forward pass: tokens a second, slices by unbind or by index, cached or uncached sampling.

    python benchmarks/model.py [--small]

The full exp101 model by default, the demo's with --small. Ratios are measured in one run; absolute figures are of this
machine.
"""

import argparse
import time
from collections.abc import Callable
from unittest import mock

import torch

from golfcore.config import ModelConfig, load
from golfcore.model import forward as module
from golfcore.model import params
from golfcore.model.forward import Net, forward, nll
from golfcore.model.generate import generate
from golfcore.model.weights import Weights, tree_map


def seconds(work: Callable[[], object], repeat: int) -> float:
    """Best of `repeat` after one untimed call."""
    work()
    best = float("inf")
    for _ in range(repeat):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


def train_step(cfg: ModelConfig, weights: Weights, x: torch.Tensor) -> None:
    nll(forward(Net(cfg), weights, x), x).mean().backward()


def sample(cfg: ModelConfig, weights: Weights, length: int, cached: bool) -> None:
    first, generator = torch.zeros(2, 1, dtype=torch.int64), torch.Generator().manual_seed(0)
    if cached:
        generate(Net(cfg), weights, first, length, generator)
        return
    tokens = first
    with torch.no_grad():
        while tokens.shape[1] < length:
            logits = forward(Net(cfg), weights, tokens, last=1)[:, -1]
            tokens = torch.cat((tokens, torch.multinomial(logits.softmax(-1), 1, generator=generator)), dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="the demo's model instead of exp101's")
    small = parser.parse_args().small
    cfg = load("demo" if small else "exp101").model
    rows, length, repeat = (16, 256, 5) if small else (1, 1024, 2)
    weights = tree_map(lambda t: t.requires_grad_(), params.init(cfg, 0))
    x = torch.randint(cfg.vocab_size, (rows, length))
    print(f"{params.summary(cfg)['total']:,} parameters, {rows} x {length} tokens, {torch.get_num_threads()} threads")
    by_unbind = seconds(lambda: train_step(cfg, weights, x), repeat)
    with mock.patch.object(module, "unbound", lambda w: w):
        by_index = seconds(lambda: train_step(cfg, weights, x), repeat)
    print(f"forward + backward: {x.numel() / by_unbind:,.0f} tokens/s; by index {by_index / by_unbind:.2f} x the time")
    with torch.no_grad():
        only = seconds(lambda: forward(Net(cfg), weights, x), repeat)
    print(f"forward: {x.numel() / only:,.0f} tokens/s")
    size = 256 if small else 128
    cached, uncached = (seconds(lambda c=c: sample(cfg, weights, size, c), 1) for c in (True, False))
    print(f"sampling 2 x {size} tokens: cached {cached:.1f} s, uncached {uncached / cached:.1f} x the time")


if __name__ == "__main__":
    main()
