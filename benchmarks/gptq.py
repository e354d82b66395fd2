"""GPTQ of all bank matrices of exp101 (random, of the trained rms): ours against the published procedure, in one run.

The published procedure factors each Hessian in three steps and repeats the whole pass for each of five quantiles.
Both run with the published floor and score; ours also with its own defaults (no floor, Hessian score), which have no
counterpart. Prints seconds, the ratio, and how far the codes agree.
"""

import argparse
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from golfcore import config
from golfcore.quant import gptq
from golfcore.quant.grid import Grid, candidate_scales, matrix_grid, round_to_grid, stored

RMS = {"query": 0.176, "out": 0.176, "key": 0.197, "value": 0.197, "up": 0.202, "down": 0.118}


def published(weight: Tensor, hessian: Tensor, grid: Grid, block: int = 128, damping: float = 0.01) -> Tensor:
    """The codes by exp101's procedure, as its description reads."""
    h = hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian))
    order = h.diagonal().argsort(descending=True)
    w, h = weight[:, order], h[order][:, order]
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    best, least = torch.empty(0), float("inf")
    for scale in stored(candidate_scales(weight, grid)).float():
        rest, codes = w.clone(), torch.zeros_like(w)
        for start in range(0, w.shape[1], block):
            stop = min(start + block, w.shape[1])
            errors = torch.zeros(len(w), stop - start)
            for j in range(start, stop):
                codes[:, j] = round_to_grid(rest[:, j] / scale, grid)
                errors[:, j - start] = (rest[:, j] - codes[:, j] * scale) / upper[j, j]
                rest[:, j:stop] -= torch.outer(errors[:, j - start], upper[j, j:stop])
            rest[:, stop:] -= errors @ upper[start:stop, stop:]
        error = float((w - codes * scale[:, None]).square().mean())
        if error < least:
            best, least = codes, error
    return best[:, order.argsort()]


def problems(blocks: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(weight, damped Hessian) of every bank matrix; the Hessians of correlated inputs of falling scale."""
    cfg, generator = config.load("exp101").model, torch.Generator().manual_seed(0)
    shapes = {
        "query": (cfg.dim, cfg.dim),
        "out": (cfg.dim, cfg.dim),
        "key": (cfg.kv_dim, cfg.dim),
        "value": (cfg.kv_dim, cfg.dim),
        "up": (cfg.mlp_hidden, cfg.dim),
        "down": (cfg.dim, cfg.mlp_hidden),
    }
    hessians = {n: hessian(n, generator) for n in (cfg.dim, cfg.mlp_hidden)}
    for _ in range(blocks):
        for role, (rows, columns) in shapes.items():
            yield RMS[role] * torch.randn(rows, columns, generator=generator), hessians[columns]


def hessian(n: int, generator: torch.Generator) -> Tensor:
    mixing = torch.randn(n, n, generator=generator) / n**0.5 + torch.eye(n)
    x = torch.randn(4 * n, n, generator=generator) @ mixing * torch.linspace(2, 0.1, n)
    h = x.T @ x / 64
    return h + 0.01 * h.diagonal().mean() * torch.eye(n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=11, help="blocks of six matrices (default: all 11 of exp101)")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    quirky, own = config.load("exp101").quant, config.QuantConfig()
    seconds = {"published": 0.0, "golfcore": 0.0, "golfcore, own defaults": 0.0}
    symbols = differ = 0
    for weight, h in problems(args.blocks):
        start = time.perf_counter()
        theirs = published(weight, h, matrix_grid(quirky))
        seconds["published"] += time.perf_counter() - start
        start = time.perf_counter()
        ours, _ = gptq.solve(weight, h, matrix_grid(quirky))
        seconds["golfcore"] += time.perf_counter() - start
        start = time.perf_counter()
        gptq.solve(weight, h, matrix_grid(own), damping=0.0, score=own.clip_score)
        seconds["golfcore, own defaults"] += time.perf_counter() - start
        symbols, differ = symbols + ours.numel(), differ + int((theirs != ours).sum())
    for name, value in seconds.items():
        print(f"{name:24s}{value:8.2f} s")
    print(f"ratio {seconds['published'] / seconds['golfcore']:.1f}; {differ / symbols:.2%} of {symbols:,} codes differ")


if __name__ == "__main__":
    main()
