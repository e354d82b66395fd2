"""A tiny model, a text that it learns at once, and its training: for the tests of the loop and of what follows it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from golfcore.base import runtime
from golfcore.base.records import RunFolder
from golfcore.config import Config, load
from golfcore.data.stream import TokenStream
from golfcore.data.tokens import Tables
from golfcore.model import params
from golfcore.model.forward import Net
from golfcore.model.weights import Weights, tree_map
from golfcore.optim.inner import loss_function
from golfcore.train import loop, state
from golfcore.train.state import TrainingData
from golfcore.train.step import plan, train_step

CHANGES = {"schedule.iterations": 8, "schedule.warmdown_steps": 4, "run.val_every": 4, "run.checkpoint_every": 2}
TINY = load("smoke", CHANGES | {"optim.grad_accum": 2, "optim.batch_tokens": 512})
RUNTIME = runtime.Runtime(torch.device("cpu"), 0, 1, 0, torch.float32)
BELONGS = {"training": "tiny", "data": "easy"}
TOKENS = np.random.default_rng(0).integers(0, 32, 20_000).astype(np.uint16)  # easy: 32 of the 1024 ids


def tables(cfg: Config = TINY) -> Tables:
    starts = torch.arange(cfg.model.vocab_size) % 3 == 0
    return Tables(torch.full((cfg.model.vocab_size,), 3, dtype=torch.int16), starts, torch.zeros_like(starts))


def with_(cfg: Config, **sections: dict) -> Config:
    """`cfg` with the given fields of the given sections changed; contradictions are not looked for."""
    return replace(cfg, **{name: replace(getattr(cfg, name), **changes) for name, changes in sections.items()})


def steps(cfg: Config, stream: TokenStream, n: int, s: state.TrainState | None = None) -> tuple[state.TrainState, list]:
    """The state after `n` steps from `s` (default: from the start), and their reports."""
    s = s or state.start(cfg, params.init(cfg.model, cfg.run.seed), torch.float32, torch.device("cpu"))
    stream.position = s.position
    net = Net(cfg.model, tables(cfg))
    loss = loss_function(net, cfg.optim.z_loss)
    return s, [train_step(cfg, net, s, stream, loss, RUNTIME, plan(cfg, 1)) for _ in range(n)]


def lively(cfg: Config, seed: int = 0) -> Weights:
    """Leaves of which none is at its initial value, so that every path carries a gradient."""
    g = torch.Generator().manual_seed(seed)
    start = params.init(cfg.model, seed)
    return tree_map(lambda t: (t + 0.1 * torch.randn(t.shape, generator=g)).requires_grad_(), start)


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether the names are the same, and the bits."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def killed_at(call: int, monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> list:
    """Make the function `module.name` raise KeyboardInterrupt at that call (from 1 on); what grows with its calls."""
    real, calls = getattr(module, name), []

    def killed(*args: object) -> object:
        calls.append(args)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(module, name, killed)
    return calls


def logged(folder: Path) -> list[dict]:
    """What a run logged, without the seconds that it took."""
    timed = ("elapsed", "seconds", "instrument_seconds")
    return [{k: v for k, v in row.items() if k not in timed} for row in RunFolder(folder).metrics()]


def train(cfg: Config, folder: Path, stream: TokenStream, dtype: torch.dtype = torch.float32) -> Weights:
    """The whole training of `cfg` from the stream's first token."""
    stream.position = 0
    val = np.random.default_rng(1).integers(0, cfg.model.vocab_size, 513).astype(np.uint16)
    data = TrainingData(stream, val, tables(cfg), 3.0, BELONGS)
    return loop.train(cfg, RunFolder(folder), data, RUNTIME._replace(dtype=dtype))
