"""Sampling with a key/value cache beside the transcription, which computes all tokens again for every new one.

    python benchmarks/sampling.py [--small] [--length N] [--against TREE]

Two rows of 256 tokens at 27M. That both draw the same tokens is checked first.
"""

import argparse
from collections.abc import Iterator

import cases
import plain
import timing
import torch
from timing import OURS, Row
from torch import Tensor

from golfcore.model.forward import Net
from golfcore.model.generate import generate


class Sampling:
    def __init__(self, args: argparse.Namespace) -> None:
        self.size = cases.sizes(args, "27M")[0]
        cfg = cases.configuration(self.size)
        self.weights, tables = cases.weights(cfg.model), cases.tables(cfg)
        self.net = Net(cfg.model, tables)
        self.model, self.w = plain.Model(cfg.model, tables.word_start), plain.leaves(self.weights)

    def ours(self, length: int) -> Tensor:
        return generate(self.net, self.weights, torch.zeros(2, 1, dtype=torch.long), length, seeded())

    def theirs(self, length: int) -> Tensor:
        return plain.sample(self.model, self.w, torch.zeros(2, 1, dtype=torch.long), length, seeded())


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def check(args: argparse.Namespace) -> dict[str, str]:
    both = Sampling(args)
    a, b = both.ours(32), both.theirs(32)
    if not torch.equal(a, b):
        raise SystemExit(f"not the same work: {int((a != b).sum())} of {a.numel()} sampled tokens differ")
    return {"the first 32 tokens of each row": "equal"}


def rows(args: argparse.Namespace) -> Iterator[Row]:
    both, length = Sampling(args), 64 if args.small else args.length
    sides = {"plain": lambda: both.theirs(length), OURS: lambda: both.ours(length)}
    yield Row(f"{both.size}: sampling 2 x {length} tokens", sides, 2 * length)


if __name__ == "__main__":
    parser = timing.sided(__doc__, repeats=1, warm=0)
    parser.add_argument("--length", type=int, default=256)
    timing.main("sampling", parser.parse_args(), check, rows)
