"""A tiny model, a text that it learns at once, and its training: for the tests of the loop and of what follows it."""

from pathlib import Path

import numpy as np
import torch

from golfcore.base import runtime
from golfcore.base.records import RunFolder
from golfcore.config import Config, load
from golfcore.data.shards import write_shard
from golfcore.data.stream import TokenStream
from golfcore.data.tokens import Tables
from golfcore.model.weights import Weights
from golfcore.train import loop
from golfcore.train.state import TrainingData

TINY = load(
    "smoke",
    {
        "schedule.iterations": 8,
        "schedule.warmdown_steps": 4,
        "run.val_every": 4,
        "run.checkpoint_every": 2,
        "optim.grad_accum": 2,
        "optim.batch_tokens": 512,
    },
)
RUNTIME = runtime.Runtime(torch.device("cpu"), 0, 1, 0, torch.float32)
BELONGS = {"training": "tiny", "data": "easy"}
TOKENS = np.random.default_rng(0).integers(0, 32, 20_000).astype(np.uint16)  # easy: 32 of the 1024 ids


def tables(cfg: Config = TINY) -> Tables:
    starts = torch.arange(cfg.model.vocab_size) % 3 == 0
    return Tables(torch.full((cfg.model.vocab_size,), 3, dtype=torch.int16), starts, torch.zeros_like(starts))


def open_stream(folder: Path) -> TokenStream:
    """TOKENS, from a shard written into `folder`."""
    write_shard(folder / "train_000000.bin", TOKENS)
    return TokenStream([folder / "train_000000.bin"], TINY.model.vocab_size)


def train(cfg: Config, folder: Path, stream: TokenStream) -> Weights:
    """The whole training of `cfg` from the stream's first token."""
    stream.position = 0
    val = np.random.default_rng(1).integers(0, cfg.model.vocab_size, 513).astype(np.uint16)
    data = TrainingData(stream, val, tables(cfg), 3.0, BELONGS)
    return loop.train(cfg, RunFolder(folder), data, RUNTIME)
