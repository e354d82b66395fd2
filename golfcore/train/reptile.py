"""Reptile after training (Nichol et al. 2018; pr294): some SGD on new text, then a small step towards where it led.

A meta-step is `inner_steps` steps of SGD on the MLP matrices, each on other text, and then theta <- theta + outer_lr
(theta' - theta). The text is read from its first token on, as published: ordinary training has seen it. All ranks take
the same steps on the same text and exchange nothing but the clock (published: not even that).
"""

import math
import time
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from golfcore.base import tensors
from golfcore.base.errors import UserError
from golfcore.base.progress import bar
from golfcore.base.records import RunFolder
from golfcore.base.runtime import Runtime, all_reduce_mean_
from golfcore.config import Config
from golfcore.model import params
from golfcore.model.attention import choose_compute
from golfcore.model.forward import Net
from golfcore.model.weights import Weights, flat, tree_map, unflat
from golfcore.optim.inner import Batch, Loss, loss_function, open_gradient
from golfcore.optim.schedule import ordinary
from golfcore.train.state import TrainingData
from golfcore.train.step import Diverged

CHECKPOINT = "reptile.safetensors"
MOVED = ("up", "down")
SAVE_EVERY_SECONDS = 20.0


class Budget(NamedTuple):
    meta_steps: float  # infinite: the clock alone ends the phase
    seconds: float  # infinite: no cap

    def used(self, meta_steps: int, seconds: float) -> bool:
        return meta_steps >= self.meta_steps or seconds >= self.seconds


class Progress(NamedTuple):
    weights: Weights
    meta_steps: int = 0
    elapsed: float = 0.0  # seconds, checkpoints not counted


def budget(cfg: Config) -> Budget:
    """What ordinary training leaves: by the step clock the tokens of its missing steps, and any share of the seconds.

    UserError if that is no meta-step, or ordinary training no step.
    """
    r, before = cfg.reptile, ordinary(cfg)
    tokens = (cfg.schedule.iterations - before.iterations) * cfg.optim.batch_tokens
    steps = tokens // (r.inner_steps * r.batch_seqs * cfg.data.seq_len)
    by_steps = cfg.schedule.clock == "steps"
    if before.iterations < 1 or (by_steps and steps < 1):
        raise UserError(
            f"reptile.share {r.share}: expected room for a step of training and one of Reptile within "
            f"{cfg.schedule.iterations} iterations, found {before.iterations} and {steps}"
        )
    return Budget(steps if by_steps else math.inf, cfg.schedule.max_seconds - before.max_seconds or math.inf)


def meta_step(cfg: Config, loss: Loss, weights: Weights, batches: Iterable[Batch]) -> tuple[Weights, Tensor]:
    """(weights after one inner step on each of `batches` and the outer one, loss before each inner step).

    Only the MLP matrices of blocks from `reptile.freeze_blocks` on move; nothing else is differentiated.
    """
    r, losses = cfg.reptile, list[Tensor]()
    masks = params.frozen(cfg.model, r.freeze_blocks, ("matrix",))

    def recorded(w: Weights, x: Tensor, y: Tensor) -> Tensor:
        value = loss(w, x, y)
        losses.append(value.detach())
        return value

    adapted = weights
    for batch in batches:
        gradient = open_gradient(recorded, adapted, MOVED, masks, batch, create_graph=False)
        here = flat(adapted)
        adapted = unflat({**here, **{name: here[name] - r.inner_lr * g for name, g in gradient.items()}})
    return tree_map(lambda t, a: t + r.outer_lr * (a - t), weights, adapted), torch.stack(losses)


def phase(cfg: Config, run: RunFolder, weights: Weights, step: int, data: TrainingData, runtime: Runtime) -> Weights:
    """What the phase makes of the averaged `weights`; `step`: the steps of training before, for the metrics.

    A killed run goes on from CHECKPOINT to the same bits (CPU, step clock). Diverged if a loss is not finite.
    """
    r, able = cfg.reptile, sum(flat(weights)[name].numel() for name in MOVED)
    if not r.outer_lr:
        if runtime.is_main:
            run.cover("reptile", 0, able, "values", "outer_lr 0: its share of the budget is left unused")
        return weights
    found = _Phase(cfg, run, weights, data, runtime).go(step)
    if runtime.is_main:
        before, after = flat(weights), flat(found)
        run.cover("reptile", sum(int((before[n] != after[n]).sum()) for n in MOVED), able, "values")
    return found


class _Phase:
    def __init__(self, cfg: Config, run: RunFolder, weights: Weights, data: TrainingData, runtime: Runtime) -> None:
        self.cfg, self.run, self.runtime, self.stream = cfg, run, runtime, data.stream
        self.belongs = {**data.belongs, "weights": tensors.digest(flat(weights))}
        self.budget = budget(cfg)
        self.now = self._load(Progress(weights))
        net = Net(cfg.model, data.tables.to(runtime.device), choose_compute(runtime.device, runtime.dtype))
        self.loss = loss_function(net, cfg.optim.z_loss, compiled=runtime.device.type == "cuda")

    def go(self, step: int) -> Weights:
        """Meta-steps until the budget is used, with a bar, rows of metrics, and a checkpoint now and then."""
        allowed, main, saved = self.budget, self.runtime.is_main, time.perf_counter()
        if main:
            self.run.keep(lambda row: row["kind"] != "reptile" or row["meta_step"] <= self.now.meta_steps)
        if self.runtime.device.type == "cuda":  # compile before the clock starts
            meta_step(self.cfg, self.loss, self.now.weights, [self._batch(0)])
        timed = allowed.meta_steps == math.inf
        total, unit = (allowed.seconds, "s") if timed else (allowed.meta_steps, "meta-step")
        with bar(total, "reptile", unit, self.now.elapsed if timed else self.now.meta_steps, main) as progress:
            while not allowed.used(self.now.meta_steps, self.now.elapsed):
                before = self.now.elapsed
                losses = self._step()
                now = self.now
                progress.update(min(now.elapsed, total) - min(before, total) if timed else 1)
                progress.set_postfix_str(f"loss {losses[0]:.3f}", refresh=False)
                if main and (now.meta_steps <= 10 or now.meta_steps % self.cfg.run.log_every == 0):
                    tokens = now.meta_steps * self.cfg.reptile.inner_steps * self._block
                    row = {"kind": "reptile", "step": step, "meta_step": now.meta_steps, "tokens": tokens}
                    self.run.log(row | {"loss": losses[0], "loss_last": losses[-1], "elapsed": now.elapsed})
                if time.perf_counter() - saved > SAVE_EVERY_SECONDS:
                    self._save()
                    saved = time.perf_counter()
        self._save()
        return self.now.weights

    def _step(self) -> list[float]:
        """One meta-step; the loss before each of its inner steps."""
        began, now, n = time.perf_counter(), self.now, self.cfg.reptile.inner_steps
        batches = [self._batch(now.meta_steps * n + i) for i in range(n)]
        weights, found = meta_step(self.cfg, self.loss, now.weights, batches)
        losses = found.tolist()
        if not all(map(math.isfinite, losses)):
            raise Diverged(f"reptile, meta-step {now.meta_steps}: expected finite losses, found {losses}")
        clock = torch.tensor(now.elapsed + time.perf_counter() - began, dtype=torch.float64, device=found.device)
        all_reduce_mean_([clock])  # all ranks stop at the same meta-step
        self.now = Progress(weights, now.meta_steps + 1, float(clock))
        return losses

    @property
    def _block(self) -> int:
        """Tokens of text that an inner step uses up."""
        return self.cfg.reptile.batch_seqs * self.cfg.data.seq_len + 1

    def _batch(self, index: int) -> Batch:
        """What inner step `index` of the phase trains on."""
        x, y = self.stream.rows(index * self._block, self.cfg.reptile.batch_seqs, self.cfg.data.seq_len)
        return x.to(self.runtime.device), y.to(self.runtime.device)

    def _save(self) -> None:
        if self.runtime.is_main:
            values = {name: flat(self.now.weights)[name] for name in MOVED}
            plain = {"meta_steps": self.now.meta_steps, "elapsed": self.now.elapsed}
            tensors.save_next(self.run.file(CHECKPOINT), values, plain, self.belongs)

    def _load(self, fresh: Progress) -> Progress:
        """Where an earlier process was, or `fresh`. UserError if its checkpoint is of no such phase."""
        path, start = self.run.file(CHECKPOINT), flat(fresh.weights)
        if not path.exists():
            return fresh
        say = tqdm.write if self.runtime.is_main else lambda text: None
        values, plain = tensors.load_last(path, "a Reptile phase in progress", self.belongs, say)
        tensors.expect(values, {name: start[name] for name in MOVED}, f"{path}")
        steps = int(tensors.number(plain, "meta_steps", 0, self.budget.meta_steps, f"{path}", whole=True))
        elapsed = tensors.number(plain, "elapsed", 0, math.inf, f"{path}")
        moved = {name: t.to(start[name].device) for name, t in values.items()}
        return Progress(unflat({**start, **moved}), steps, elapsed)
