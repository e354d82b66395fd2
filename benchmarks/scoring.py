"""Sliding-window scoring, and legal test-time training over the same text, golfcore beside the transcription.

    python benchmarks/scoring.py [--small] [--against TREE]

6 layers of width 256; 6,144 targets, windows of 1,024 every 64 tokens; adaptation: four epochs over each chunk of 2,048
targets once it is scored. Activations in float32 and in bfloat16. The nats of all targets are compared first.
"""

import argparse
from collections.abc import Iterator
from functools import partial

import cases
import numpy as np
import plain
import timing
import torch
from timing import OURS, Row

from golfcore.evals.evaluation import Subject

PROTOCOLS = {"sliding": "sliding windows", "ttt": "legal TTT"}


class Scoring:
    """Both programs before a text; each call scores it anew from the same weights."""

    def __init__(self, size: str, dtype: str) -> None:
        self.cfg = cases.configuration(size)
        kind, length = cases.DTYPES[dtype], self.cfg.data.seq_len
        self.tokens = cases.text(self.cfg, 6 * length)
        weights, tables = cases.weights(self.cfg.model), cases.tables(self.cfg)
        self.subject = Subject(weights, self.tokens, tables, cases.the_runtime(kind))
        self.model, self.ids = (
            plain.Model(self.cfg.model, tables.word_start, kind),
            torch.from_numpy(self.tokens).long(),
        )

    def ours(self, protocol: str) -> np.ndarray:
        return cases.evaluated(protocol, self.cfg, self.subject)

    def theirs(self, protocol: str) -> np.ndarray:
        w = plain.leaves(self.subject.weights)
        if protocol == "ttt":
            return plain.legal_ttt(self.cfg, self.model, w, self.ids).numpy()
        windows = plain.sliding(self.cfg, len(self.ids) - 1)
        return plain.score(self.model, w, self.ids, windows, self.cfg.eval.batch_seqs).numpy()


def check(args: argparse.Namespace) -> dict[str, str]:
    found = {}
    for dtype in cases.DTYPES:
        both = Scoring(cases.sizes(args, "6 layers")[0], dtype)
        for protocol, name in PROTOCOLS.items():
            a, b = (f.astype(np.float64) for f in (both.ours(protocol), both.theirs(protocol)))
            found[f"{dtype}, {name}, mean nats"] = timing.near(a.mean(), b.mean(), 1e-5 if dtype == "float32" else 1e-3)
            largest = timing.below(np.abs(a - b).max(), 1e-3 if dtype == "float32" else 0.3)
            found[f"{dtype}, {name}, a target's nats"] = f"at most {largest} apart"
    return found


def rows(args: argparse.Namespace) -> Iterator[Row]:
    for dtype in cases.DTYPES:
        both = Scoring(size := cases.sizes(args, "6 layers")[0], dtype)
        for protocol, name in PROTOCOLS.items():
            sides = {"plain": partial(both.theirs, protocol), OURS: partial(both.ours, protocol)}
            yield Row(f"{size}, {dtype}: {name}", sides, len(both.tokens) - 1)


if __name__ == "__main__":
    timing.main("scoring", timing.sided(__doc__, repeats=2, warm=0).parse_args(), check, rows)
