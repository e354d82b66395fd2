"""GPTQ of all bank matrices of exp101 under the published rule, golfcore beside the naive rule.

    python benchmarks/gptq.py [--small] [--against TREE]

66 random matrices of the trained size of entries; Hessians of correlated inputs whose scale falls. The naive rule takes
one matrix after another, repeats the whole pass for each of five quantiles, and goes through it column after column.
"""

import argparse
from collections.abc import Iterator

import cases
import plain
import timing
import torch
from timing import OURS, Row
from torch import Tensor

from golfcore.config import Config
from golfcore.quant import gptq
from golfcore.quant.grid import matrix_grid

RMS = {"query": 0.176, "out": 0.176, "key": 0.197, "value": 0.197, "up": 0.202, "down": 0.118}  # trained
Problem = tuple[Tensor, Tensor]  # a matrix (R, C) and the Hessian (C, C) of its inputs, damped once


def problems(cfg: Config) -> list[Problem]:
    """Every bank matrix; the query, key and value of a block have one Hessian, and so it is here."""
    generator = torch.Generator().manual_seed(0)
    c, found = cfg.model, list[Problem]()
    shapes = {"query": (c.dim, c.dim), "key": (c.kv_dim, c.dim), "value": (c.kv_dim, c.dim), "out": (c.dim, c.dim)}
    shapes |= {"up": (c.mlp_hidden, c.dim), "down": (c.dim, c.mlp_hidden)}
    for _ in range(c.n_blocks):
        h = hessian(c.dim, generator)
        for role, (rows, columns) in shapes.items():
            if role not in ("key", "value"):
                h = hessian(columns, generator)
            found.append((RMS[role] * torch.randn(rows, columns, generator=generator), h))
    return found


def hessian(n: int, generator: torch.Generator) -> Tensor:
    mixing = torch.randn(n, n, generator=generator) / n**0.5 + torch.eye(n)
    x = torch.randn(4 * n, n, generator=generator) @ mixing * torch.linspace(2, 0.1, n)
    h = x.T @ x / 64
    return h + 0.01 * h.diagonal().mean() * torch.eye(n)


def ours(cfg: Config, given: list[Problem]) -> list[tuple[Tensor, Tensor]]:
    grid = matrix_grid(cfg.quant)
    return [gptq.solve(w, h, grid, damping=cfg.quant.damping, score=cfg.quant.clip_score) for w, h in given]


def naive(cfg: Config, given: list[Problem]) -> list[tuple[Tensor, Tensor]]:
    return [plain.gptq(w, h, cfg.quant.clip_quantiles) for w, h in given]


def check(args: argparse.Namespace) -> dict[str, str]:
    """The scales, all codes but those at a tie that rounding decides, and the weighted error."""
    cfg = cases.configuration(cases.sizes(args, "27M")[0])
    worked = torch.tensor([[0.31, -1.24, 0.07, 0.52], [2.48, -0.93, 0.155, -3.1]])
    inputs = torch.tensor([[6, 1, 2.5, 4], [1, 6, 2.5, -1], [2.5, 2.5, 10.25, -1.5], [4, -1, -1.5, 6.25]])
    codes = [[8, -31, 2, 13], [25, -10, 2, -31]]
    for solve in (ours, naive):
        if (found := solve(cfg, [(worked, inputs)])[0][0].tolist()) != codes:
            raise SystemExit(f"not the published rule: {solve.__name__} has codes {found}, expected {codes}")
    given = [
        *problems(cfg)[:6],
        *((3 * w, h) for w, h in problems(cfg)[1:3]),
    ]  # above the floor, where quantiles differ
    differ = total = 0
    errors = torch.zeros(2, dtype=torch.float64)
    for (w, h), (a, scale), (b, same) in zip(given, ours(cfg, given), naive(cfg, given), strict=True):
        if not torch.equal(scale, same):
            raise SystemExit("not the same work: scales differ")
        apart = (a.int() - b.int()).abs()
        differ, total = differ + int((apart > 0).sum()), total + apart.numel()
        if int(apart.max()) > 2 or differ > 0.01 * total:
            raise SystemExit(f"not the same work: {differ} of {total} codes differ, by up to {int(apart.max())}")
        for i, codes in enumerate((a, b)):
            d = (w - codes * scale.float()[:, None]).double()
            errors[i] += (d @ h.double() * d).sum()
    return {
        "codes": f"{differ:,} of {total:,} differ",
        "weighted error": timing.near(float(errors[0]), float(errors[1]), 0.01),
    }


def rows(args: argparse.Namespace) -> Iterator[Row]:
    cfg = cases.configuration(size := cases.sizes(args, "27M")[0])
    given = problems(cfg)
    yield Row(
        f"{size}: GPTQ of {len(given)} matrices",
        {"plain": lambda: naive(cfg, given), OURS: lambda: ours(cfg, given)},
    )


if __name__ == "__main__":
    timing.main("gptq", timing.sided(__doc__, repeats=2, warm=0).parse_args(), check, rows)
