"""Sampling with a key/value cache beside the transcription, which computes all tokens again for every new one.

    python benchmarks/sampling.py [--small] [--length N] [--against TREE]

Two rows of 256 tokens at 27M. That both draw the same tokens is checked first.
"""

import argparse
from collections.abc import Callable, Iterator

import cases
import plain
import timing
import torch
from timing import OURS, Row
from torch import Tensor

from golfcore.model.forward import Net
from golfcore.model.generate import generate


def both(size: str, length: int) -> dict[str, Callable[[], Tensor]]:
    """What samples two rows of that length, by side."""
    cfg, first = cases.configuration(size), torch.zeros(2, 1, dtype=torch.long)
    weights, tables = cases.weights(cfg.model), cases.tables(cfg)
    model, w, net = plain.Model(cfg.model, tables.word_start), plain.leaves(weights), Net(cfg.model, tables)
    return {
        "plain": lambda: plain.sample(model, w, first, length, torch.Generator().manual_seed(0)),
        OURS: lambda: generate(net, weights, first, length, torch.Generator().manual_seed(0)),
    }


def check(args: argparse.Namespace) -> dict[str, str]:
    a, b = (sample() for sample in both(cases.sizes(args, "27M")[0], 32).values())
    if not torch.equal(a, b):
        raise SystemExit(f"not the same work: {int((a != b).sum())} of {a.numel()} sampled tokens differ")
    return {"the first 32 tokens of each row": "equal"}


def rows(args: argparse.Namespace) -> Iterator[Row]:
    size, length = cases.sizes(args, "27M")[0], 64 if args.small else args.length
    yield Row(f"{size}: sampling 2 x {length} tokens", both(size, length), 2 * length)


if __name__ == "__main__":
    parser = timing.sided(__doc__, repeats=1, warm=0)
    parser.add_argument("--length", type=int, default=256)
    timing.main("sampling", parser.parse_args(), check, rows)
