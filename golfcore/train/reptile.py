"""Reptile after training (Nichol et al. 2018; pr294): some SGD on new text, then a small step towards where it led.

The phase begins when ordinary training has ended and its average was taken. A meta-step is `inner_steps` plain steps
of SGD on the MLP matrices, each on text of its own, and then theta <- theta + outer_lr (theta' - theta). The text is
read from its first token on, as published: ordinary training has seen it.

All ranks take the same steps on the same text and exchange nothing but the clock; the first one's weights are kept.
(Published: also, but by each rank's own clock.) With one row in a batch there is nothing to share out.
"""

import math
import time
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from golfcore.base import tensors
from golfcore.base.errors import UserError
from golfcore.base.progress import bar
from golfcore.base.records import RunFolder
from golfcore.base.runtime import Runtime, all_reduce_mean_
from golfcore.config import Config
from golfcore.data.stream import TokenStream
from golfcore.data.tokens import Tables
from golfcore.model import params
from golfcore.model.attention import choose_compute
from golfcore.model.forward import Net
from golfcore.model.weights import Weights, flat, unflat
from golfcore.optim.inner import Batch, Loss, open_gradient
from golfcore.optim.schedule import ordinary
from golfcore.train.objective import reptile
from golfcore.train.step import Diverged, loss_function

CHECKPOINT = "reptile.safetensors"
MOVED = ("up", "down")
SAVE_EVERY_SECONDS = 20.0


class Budget(NamedTuple):
    meta_steps: int | None  # None: the clock alone ends the phase
    seconds: float  # 0: no cap

    def used(self, meta_steps: int, seconds: float) -> bool:
        by_steps = self.meta_steps is not None and meta_steps >= self.meta_steps
        return by_steps or (self.seconds > 0 and seconds >= self.seconds)


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
    return Budget(steps if by_steps else None, cfg.schedule.max_seconds - before.max_seconds)


def meta_step(cfg: Config, loss: Loss, weights: Weights, batches: Iterable[Batch]) -> tuple[Weights, Tensor]:
    """(weights after one meta-step, loss before each of its inner steps). One inner step for each of `batches`.

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
    return reptile(weights, adapted, r.outer_lr), torch.stack(losses)


def phase(
    cfg: Config, run: RunFolder, weights: Weights, step: int, stream: TokenStream, tables: Tables, runtime: Runtime
) -> Weights:
    """The weights (float32) that `weights` become; `step`: the steps of training before, for the metrics.

    A run killed at any moment goes on from CHECKPOINT to the same bits (CPU, step clock). Raises Diverged if a loss is
    not finite.
    """
    allowed, r, able = budget(cfg), cfg.reptile, sum(flat(weights)[name].numel() for name in MOVED)
    if not r.outer_lr:
        if runtime.is_main:
            run.cover("reptile", 0, able, "values", "outer_lr 0: its share of the budget is left unused")
        return weights
    now = _load(run, Progress(weights))
    if runtime.is_main:
        run.keep(lambda row: row["kind"] != "reptile" or row["meta_step"] <= now.meta_steps)
    cuda = runtime.device.type == "cuda"
    compute = choose_compute(runtime.device, runtime.dtype)
    loss = loss_function(Net(cfg.model, tables.to(runtime.device), compute), cfg.optim.z_loss, compiled=cuda)
    size = r.batch_seqs * cfg.data.seq_len + 1
    text = TokenStream(stream.shards, stream.vocab_size, stream.reserve, now.meta_steps * r.inner_steps * size)
    if cuda:  # compile before the clock starts
        meta_step(cfg, loss, weights, [_batch(cfg, TokenStream(stream.shards, stream.vocab_size), runtime)])
    now = _go(cfg, run, now, step, allowed, text, loss, runtime)
    if runtime.is_main:
        before, after = flat(weights), flat(now.weights)
        run.cover("reptile", sum(int((before[n] != after[n]).sum()) for n in MOVED), able, "values")
        _save(run, now)
    return now.weights


def _go(
    cfg: Config,
    run: RunFolder,
    now: Progress,
    step: int,
    allowed: Budget,
    text: TokenStream,
    loss: Loss,
    runtime: Runtime,
) -> Progress:
    """Meta-steps until the budget is used, with a bar, rows of metrics, and a checkpoint now and then."""
    timed, saved = allowed.meta_steps is None, time.perf_counter()
    total, unit = (allowed.seconds, "s") if timed else (allowed.meta_steps or 0, "meta-step")
    with bar(total, "reptile", unit, now.elapsed if timed else now.meta_steps, runtime.is_main) as progress:
        while not allowed.used(now.meta_steps, now.elapsed):
            began, before = time.perf_counter(), now.elapsed
            batches = [_batch(cfg, text, runtime) for _ in range(cfg.reptile.inner_steps)]
            weights, losses = meta_step(cfg, loss, now.weights, batches)
            found = losses.tolist()
            if not all(map(math.isfinite, found)):
                raise Diverged(f"reptile, meta-step {now.meta_steps}: expected finite losses, found {found}")
            seconds = _together(before + time.perf_counter() - began, runtime)
            now = Progress(weights, now.meta_steps + 1, seconds)
            progress.update(min(now.elapsed, total) - min(before, total) if timed else 1)
            progress.set_postfix_str(f"loss {found[0]:.3f}", refresh=False)
            if runtime.is_main and (now.meta_steps <= 10 or now.meta_steps % cfg.run.log_every == 0):
                row = {"kind": "reptile", "step": step, "meta_step": now.meta_steps, "tokens": text.position}
                run.log(row | {"loss": found[0], "loss_last": found[-1], "elapsed": now.elapsed})
            if runtime.is_main and time.perf_counter() - saved > SAVE_EVERY_SECONDS:
                _save(run, now)
                saved = time.perf_counter()
    return now


def _batch(cfg: Config, text: TokenStream, runtime: Runtime) -> Batch:
    x, y = text.batch(cfg.reptile.batch_seqs, cfg.data.seq_len)
    return x.to(runtime.device), y.to(runtime.device)


def _together(seconds: float, runtime: Runtime) -> float:
    """The mean of the ranks' clocks: all stop at the same meta-step."""
    if runtime.world == 1:
        return seconds
    clock = torch.tensor(seconds, dtype=torch.float64, device=runtime.device)
    all_reduce_mean_([clock])
    return float(clock)


def _save(run: RunFolder, now: Progress) -> None:
    values = {name: flat(now.weights)[name] for name in MOVED}
    tensors.save(run.file(CHECKPOINT), values, {"meta_steps": now.meta_steps, "elapsed": now.elapsed})


def _load(run: RunFolder, fresh: Progress) -> Progress:
    """Where an earlier process was, or `fresh`."""
    path = run.file(CHECKPOINT)
    if not path.exists():
        return fresh
    device = fresh.weights.banks.up.device
    values, plain = tensors.load(path, "a Reptile phase in progress", device=device)
    return Progress(unflat({**flat(fresh.weights), **values}), plain["meta_steps"], plain["elapsed"])
