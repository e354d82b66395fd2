"""What the benchmarks work on: the same configuration, weights and text for golfcore and for the transcription."""

import argparse
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import plain
import torch
from timing import below, near
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
from golfcore.model.attention import Compute, choose_compute
from golfcore.model.forward import Net
from golfcore.model.weights import Weights, tree_map
from golfcore.optim import average, build
from golfcore.optim.inner import Loss, loss_function
from golfcore.optim.muon import newton_schulz
from golfcore.train import state
from golfcore.train.step import Report, plan, train_step

Parts = dict[str, Callable[[], object]]  # by name, what of a step can be called alone
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
    """golfcore in the midst of training `cfg` on a text: a step, and its parts."""

    def __init__(self, cfg: Config, runtime: Runtime, compute: Compute | None = None, compiled: bool = False) -> None:
        self.cfg, self.runtime = cfg, runtime
        compute = (compute or choose_compute(runtime))._replace(compiled=compiled)
        self.net = Net(cfg.model, tables(cfg).to(runtime.device), compute)
        self.loss: Loss = loss_function(self.net, cfg.optim.z_loss)
        self.state = state.start(cfg, weights(cfg.model), runtime.dtype, runtime.device)
        self.folder = tempfile.TemporaryDirectory()
        shard = Path(self.folder.name) / "text.bin"
        write_shard(shard, text(cfg, 2 * (cfg.optim.batch_tokens + cfg.optim.grad_accum)))
        self.stream = TokenStream([shard], cfg.model.vocab_size)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a micro-batch."""
        o, length = self.cfg.optim, self.cfg.data.seq_len
        x, y = self.stream.rows(0, o.batch_tokens // (o.grad_accum * length), length)
        return x.to(self.runtime.device), y.to(self.runtime.device)

    def step(self, number: int = 1) -> Report:
        """Step `number` on the text's first rows: a meta call at multiples of four, averaging before those of ten."""
        self.state.step, self.stream.position = number, 0
        return train_step(self.cfg, self.net, self.state, self.stream, self.loss, self.runtime, plan(self.cfg, 1))

    def parts(self) -> Parts:
        """The parts of a step, on the gradients of one micro-batch."""
        (x, y), c, s = self.batch(), self.cfg, self.state
        muon = s.optimizers.muon.param_groups[0]

        def backward() -> None:
            s.optimizers.zero_grad()
            self.loss(s.weights, x, y).backward()

        backward()
        banks = [p.grad.to(muon["dtype"]) for p in muon["params"]]
        return {
            "forward and backward": backward,
            "Newton-Schulz": lambda: [newton_schulz(g, muon["ns_steps"], muon["dtype"]) for g in banks],
            "optimizer with it": lambda: s.optimizers.step(1.0, c.optim.momentum_start),
            "moving average": lambda: average.update(c.average, s.averaged, s.weights, c.average.every, 1.0),
            "clipping": lambda: build.clip_(s.weights, c.optim.grad_clip),
        }


class Plain:
    """The transcription in the midst of the same training."""

    def __init__(self, cfg: Config, dtype: torch.dtype) -> None:
        self.cfg, self.w = cfg, plain.leaves(weights(cfg.model))
        self.model = plain.Model(cfg.model, tables(cfg).word_start, dtype)
        self.optimizer = plain.Optimizer(cfg.optim, self.w)
        self.ema = {n: t.detach().clone() for n, t in self.w.items()}

    def step(self, x: Tensor, y: Tensor, meta: bool) -> float:
        """The loss."""
        return plain.train_step(self.cfg, self.model, self.optimizer, x, y, meta)

    def parts(self, x: Tensor, y: Tensor) -> Parts:
        """As `Training.parts`."""
        c, w = self.cfg, self.w

        def backward() -> None:
            for t in w.values():
                t.grad = None
            self.model.loss(w, x, y).backward()

        backward()
        matrices = [t.grad for name, t in w.items() if plain.is_matrix(name)]
        return {
            "forward and backward": backward,
            "Newton-Schulz": lambda: [plain.newton_schulz(g) for g in matrices],
            "optimizer with it": lambda: self.optimizer.step(1.0, c.optim.momentum_start),
            "moving average": lambda: plain.average(self.ema, w, c.average.decay**c.average.every),
            "clipping": lambda: plain.clip(w.values(), c.optim.grad_clip),
        }


def evaluated(protocol: str, cfg: Config, subject: Subject) -> np.ndarray:
    """Nats of every target under a protocol of golfcore's."""
    evaluation = protocols.begin(protocol, cfg, subject)
    while not evaluation.finished:
        evaluation.step()
    return evaluation.ledger.nats


# -- what must be the same before anything is timed; tolerances are those of rounding in each dtype


def check_step(size: str, dtype: str) -> dict[str, str]:
    """Gradient from equal weights, then loss and update of a step with a meta call, in both programs."""
    cfg = configuration(size)
    theirs, ours = Plain(cfg, DTYPES[dtype]), Training(cfg, the_runtime(DTYPES[dtype]))
    before, (x, y) = plain.leaves(ours.state.weights), ours.batch()
    ours.loss(ours.state.weights, x, y).backward()
    theirs.model.loss(theirs.w, x, y).backward()
    gradient = distance(plain.leaves(gradients(ours.state.weights)), {n: t.grad for n, t in theirs.w.items()})
    loss, report = theirs.step(x, y, True), ours.step(4)
    if report.meta is None:
        raise SystemExit("expected a meta call at step 4, found none")
    after = plain.leaves(ours.state.weights)
    moved = [{n: t.detach() - before[n].detach() for n, t in tensors.items()} for tensors in (after, theirs.w)]
    matrices = [{n: t for n, t in found.items() if plain.is_matrix(n)} for found in moved]
    others = [{n: t for n, t in found.items() if not plain.is_matrix(n)} for found in moved]
    tight = dtype == "float32"
    apart = {
        "gradient": below(gradient, 1e-5 if tight else 0.03),
        "update of tables and scalars": below(distance(*others), 3e-3 if tight else 0.1),
        "update of matrices": below(distance(*matrices), 0.15),  # Newton-Schulz may be in float32 or in bfloat16
    }
    found = {"loss": near(report.loss, loss, 1e-5 if tight else 1e-3)}
    found |= {what: f"{error} of its norm apart" for what, error in apart.items()}
    return {f"{size}, {dtype}, step: {what}": text for what, text in found.items()}


def gradients(weights: Weights) -> Weights:
    return tree_map(lambda t: torch.zeros_like(t) if t.grad is None else t.grad, weights)


def distance(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """|found - expected| / |expected|, each over all tensors, on the CPU in float32."""
    pairs = [(found[n].detach().cpu().float(), t.detach().cpu().float()) for n, t in expected.items()]
    error, size = (
        torch.stack([t.square().sum() for t in ts]).sum() for ts in zip(*((a - b, b) for a, b in pairs), strict=True)
    )
    return float(error / size) ** 0.5


def sizes(args: argparse.Namespace, *full: str) -> tuple[str, ...]:
    return ("tiny",) if args.small else full
