"""A smoke model moved away from its start, a text for it, and its evaluation in one call."""

from functools import cache

import numpy as np
import torch

from golfcore.config import load
from golfcore.data.tokens import Tables
from golfcore.evals.evaluation import Subject
from golfcore.evals.protocols import evaluate
from golfcore.evals.result import EvalResult
from golfcore.model import params
from golfcore.model.weights import Weights, tree_map

CFG = load(
    "smoke",
    {"ttt.freeze_blocks": 0, "ttt.lr": 0.02, "ttt.lr_candidates": [], "ttt.chunk_tokens": 128, "ttt.batch_seqs": 2},
)
VOCAB, T, CHUNK = CFG.model.vocab_size, CFG.data.seq_len, CFG.ttt.chunk_tokens


@cache
def weights(seed: int = 0) -> Weights:
    g = torch.Generator().manual_seed(seed)
    return tree_map(lambda t: t + 0.1 * torch.randn(t.shape, generator=g), params.init(CFG.model, seed))


def tables() -> Tables:
    """One to five bytes a token, some with a leading space; token 1 begins a document."""
    rng = np.random.default_rng(0)
    base = torch.from_numpy(rng.integers(1, 6, VOCAB).astype(np.int16))
    return Tables(base, torch.from_numpy(rng.random(VOCAB) < 0.4), torch.arange(VOCAB) == 1)


def text(total: int = 600, seed: int = 0) -> np.ndarray:
    return (2 + np.random.default_rng(seed).zipf(1.3, total + 1) % (VOCAB - 2)).astype(np.uint16)


def subject(tokens: np.ndarray | None = None) -> Subject:
    return Subject(weights(), text() if tokens is None else tokens, tables())


def run(name: str, tokens: np.ndarray | None = None, **changes: object) -> EvalResult:
    """Protocol `name` on `tokens`; `ttt__lr=0.1` sets ttt.lr."""
    return evaluate(name, CFG, subject(tokens), changes={key.replace("__", "."): v for key, v in changes.items()})
