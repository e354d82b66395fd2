"""What the benchmarks work on: the same configuration, weights and text for golfcore and for the transcription."""

import argparse
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import plain
import torch
from timing import near
from torch import Tensor

from golfcore import config
from golfcore.base.runtime import Runtime
from golfcore.config import Config, ModelConfig
from golfcore.data.shards import write_shard
from golfcore.data.stream import TokenStream
from golfcore.data.tokens import Tables
from golfcore.evals import protocols
from golfcore.evals.evaluation import Subject
from golfcore.model import params
from golfcore.model.attention import choose_compute
from golfcore.model.forward import Net
from golfcore.model.weights import Weights, tree_map
from golfcore.optim.inner import Loss, loss_function
from golfcore.train import state
from golfcore.train.step import Report, train_step

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TINY = {"model.dim": 64, "model.n_heads": 4, "model.n_kv_heads": 2, "model.mlp_hidden": 192, "model.rope_ntk_len": 128}
TINY |= {"model.blocks": [0, 1, 2, 3], "model.frozen_skips": [1], "model.ve_layers": [2, 3], "model.ve_dim": 16}
SIX = {"model.dim": 256, "model.n_heads": 4, "model.n_kv_heads": 2, "model.mlp_hidden": 768, "model.ve_layers": [4, 5]}
SIX |= {"model.blocks": [0, 1, 2, 3, 4, 5], "model.frozen_skips": []}
# the model's size, and rows of one length that a step takes one of
SIZES = {"27M": {}, "6 layers": SIX, "tiny": TINY}
LENGTHS = {"27M": 1024, "6 layers": 1024, "tiny": 128}


def configuration(size: str, changes: dict[str, object] | None = None) -> Config:
    """exp101 at that size: a step is one row, windows are as long, and its tail is scored once."""
    length = LENGTHS[size]
    steps = {"data.seq_len": length, "optim.batch_tokens": length, "optim.grad_accum": 1, "meta.log_pre_every": 0}
    scores = {"eval.tail": "exact", "ttt.qat_projections": False, "ttt.chunk_tokens": 2 * length}
    return config.load("exp101", {**SIZES[size], **steps, **scores, **(changes or {})})


@cache
def weights(model: ModelConfig) -> Weights:
    """Initial weights with noise on top: as after some training, no matrix is 0 and no path without a gradient."""
    generator = torch.Generator().manual_seed(0)
    return tree_map(lambda t: t + 0.05 * torch.randn(t.shape, generator=generator), params.init(model, 0))


def text(cfg: Config, n: int) -> np.ndarray:
    """`n` + 1 random tokens, few of them frequent, as in a language."""
    ids = np.random.default_rng(0).zipf(1.3, 4 * n + 64)
    return ids[ids <= cfg.model.vocab_size][: n + 1].astype(np.uint16) - 1


def tables(cfg: Config) -> Tables:
    starts = torch.arange(cfg.model.vocab_size) % 3 == 0
    return Tables(torch.full((cfg.model.vocab_size,), 3, dtype=torch.int16), starts, torch.zeros_like(starts))


def the_runtime(dtype: torch.dtype, device: str = "cpu") -> Runtime:
    return Runtime(torch.device(device), 0, 1, 0, dtype)


class Training:
    """golfcore in the midst of training `cfg` on a text: what a step needs, and the step."""

    def __init__(self, cfg: Config, runtime: Runtime, compiled: bool = False) -> None:
        self.cfg, self.runtime = cfg, runtime
        compute = choose_compute(runtime.device, runtime.dtype)
        self.net = Net(cfg.model, tables(cfg).to(runtime.device), compute)
        self.loss: Loss = loss_function(self.net, cfg.optim.z_loss, compiled)
        self.state = state.start(cfg, weights(cfg.model), runtime.dtype, runtime.device)
        self.folder = tempfile.TemporaryDirectory()
        shard = Path(self.folder.name) / "text.bin"
        write_shard(shard, text(cfg, 4 * (cfg.optim.batch_tokens + cfg.optim.grad_accum)))
        self.stream = TokenStream([shard], cfg.model.vocab_size)

    def batch(self, rows: int = 1) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the stream's first rows."""
        x, y = self.stream.rows(0, rows, self.cfg.data.seq_len)
        return x.to(self.runtime.device), y.to(self.runtime.device)

    def step(self, number: int) -> Report:
        """Step `number` on the text's first rows: a meta call at multiples of four, averaging before those of ten."""
        self.state.step, self.stream.position = number, 0
        return train_step(self.cfg, self.net, self.state, self.stream, self.loss, self.runtime)


class Plain(NamedTuple):
    """The transcription in the midst of the same training."""

    cfg: Config
    model: plain.Model
    optimizer: plain.Optimizer
    ema: plain.W

    @property
    def w(self) -> plain.W:
        return self.optimizer.w


def transcription(cfg: Config, dtype: torch.dtype) -> Plain:
    w = plain.leaves(weights(cfg.model))
    model = plain.Model(cfg.model, tables(cfg).word_start, dtype)
    return Plain(cfg, model, plain.Optimizer(cfg.optim, w), {n: t.detach().clone() for n, t in w.items()})


def evaluated(protocol: str, cfg: Config, subject: Subject) -> np.ndarray:
    """Nats of every target under a protocol of golfcore's."""
    evaluation = protocols.begin(protocol, cfg, subject)
    while not evaluation.finished:
        evaluation.step()
    return evaluation.ledger.first_scores()


# -- what must be the same before anything is timed; tolerances are those of rounding in each dtype


def check_step(size: str, dtype: str, meta: bool) -> dict[str, str]:
    """Loss, clipped gradient and update of one step from equal weights, in both programs."""
    cfg, number = configuration(size), 4 if meta else 1
    theirs, ours = transcription(cfg, DTYPES[dtype]), Training(cfg, the_runtime(DTYPES[dtype]))
    before = plain.leaves(ours.state.weights)
    loss, _ = plain.train_step(cfg, theirs.model, theirs.optimizer, *ours.batch(), meta)
    report = ours.step(number)
    if (report.meta is not None) != meta:
        raise SystemExit(f"step {number}: expected a meta call at multiples of four only")
    after, w = plain.leaves(ours.state.weights), theirs.w
    gradient = plain.leaves(tree_map(lambda t: torch.zeros_like(t) if t.grad is None else t.grad, ours.state.weights))
    moved = [{n: t.detach() - before[n].detach() for n, t in tensors.items()} for tensors in (after, w)]
    matrices = [{n: t for n, t in found.items() if plain.is_matrix(n)} for found in moved]
    others = [{n: t for n, t in found.items() if not plain.is_matrix(n)} for found in moved]
    tight, what = dtype == "float32", f"{size}, {dtype}, step with a meta call," if meta else f"{size}, {dtype}, step,"
    return {
        f"{what} loss": near(report.loss, loss, 1e-5 if tight else 1e-3),
        f"{what} gradient": apart(gradient, {n: t.grad for n, t in w.items()}, 1e-4 if tight else 0.03),
        f"{what} update of tables and scalars": apart(*others, 1e-3 if tight else 0.1),
        f"{what} update of matrices": apart(*matrices, 0.1),  # Newton-Schulz may be in float32 or in bfloat16
    }


def apart(found: dict[str, Tensor], expected: dict[str, Tensor], most: float) -> str:
    """A sentence for the log. SystemExit: |found - expected| is more than `most` of |expected|, over all tensors."""
    squares = [
        ((found[n].detach() - t.detach()).square().sum(), t.detach().square().sum()) for n, t in expected.items()
    ]
    error, size = (float(torch.stack(part).sum()) for part in zip(*squares, strict=True))
    if not (ratio := (error / size) ** 0.5) <= most:
        raise SystemExit(f"not the same work: tensors {ratio:.1e} of their norm apart, expected {most:g}")
    return f"{ratio:.1e} of its norm apart"


def sizes(args: argparse.Namespace, *full: str) -> tuple[str, ...]:
    return ("tiny",) if args.small else full
