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
from golfcore.base.runtime import Runtime, all_reduce_mean_, send
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


def meta_step(cfg: Config, loss: Loss, weights: Weights, batches: Iterable[Batch]) -> tuple[Weights, list[float]]:
    """(weights after one inner step on each of `batches` and the outer one, loss before each inner step).

    Only the MLP matrices of blocks from `reptile.freeze_blocks` on move; nothing else is differentiated.
    """
    r, losses, adapted = cfg.reptile, list[Tensor](), weights
    masks = params.frozen(cfg.model, r.freeze_blocks, ("matrix",))
    for batch in batches:
        value, gradient = open_gradient(loss, adapted, MOVED, masks, batch)
        losses.append(value)
        here = flat(adapted)
        adapted = unflat({**here, **{name: here[name] - r.inner_lr * g for name, g in gradient.items()}})
    return tree_map(lambda t, a: t + r.outer_lr * (a - t), weights, adapted), torch.stack(losses).tolist()


def phase(cfg: Config, run: RunFolder, weights: Weights, step: int, data: TrainingData, runtime: Runtime) -> Weights:
    """What the phase makes of the averaged `weights`; `step`: the steps of training before, for the metrics.

    A killed run goes on from CHECKPOINT to the same bits (CPU, step clock). Diverged if a loss is not finite.
    """
    idle = "" if cfg.reptile.outer_lr else "outer_lr 0: its share of the budget is left unused"
    found = weights if idle else _meta_steps(cfg, run, weights, step, data, runtime)
    if runtime.is_main:
        pairs = [(flat(weights)[name], flat(found)[name]) for name in MOVED]
        moved, able = sum(int((a != b).sum()) for a, b in pairs), sum(a.numel() for a, _ in pairs)
        run.cover("reptile", moved, able, "values", idle)
    return found


def _meta_steps(
    cfg: Config, run: RunFolder, weights: Weights, step: int, data: TrainingData, runtime: Runtime
) -> Weights:
    """Meta-steps until the budget is used, with a bar, rows of metrics, and a checkpoint now and then."""
    r, start, device, (most, cap) = cfg.reptile, flat(weights), runtime.device, budget(cfg)
    block = r.batch_seqs * cfg.data.seq_len + 1  # tokens of text that an inner step uses up
    net = Net(cfg.model, data.tables.to(device), choose_compute(runtime))
    loss = loss_function(net, cfg.optim.z_loss)
    path, belongs = run.file(CHECKPOINT), {**data.belongs, "weights": tensors.digest(start)}
    done, elapsed = 0, 0.0  # meta-steps, and their seconds
    if path.exists():
        say = tqdm.write if runtime.is_main else lambda text: None
        values, plain = tensors.load_last(path, "a Reptile phase in progress", belongs, say)
        tensors.expect(values, {name: start[name] for name in MOVED}, f"{path}")
        done = int(tensors.number(plain, "meta_steps", 0, most, f"{path}", whole=True))
        elapsed = tensors.number(plain, "elapsed", 0, math.inf, f"{path}")
        weights = unflat({**start, **{name: t.to(device) for name, t in values.items()}})

    def batches(number: int) -> list[Batch]:
        """What each inner step of a meta-step trains on."""
        rows = (data.stream.rows((number * r.inner_steps + i) * block, r.batch_seqs, cfg.data.seq_len) for i in inner)
        return [(x, y) for x, y in (send(batch, device) for batch in rows)]

    def save() -> None:
        values, plain = {name: flat(weights)[name] for name in MOVED}, {"meta_steps": done, "elapsed": elapsed}
        if runtime.is_main:
            tensors.save_next(path, values, plain, belongs)

    inner, saved, timed = range(r.inner_steps), time.perf_counter(), most == math.inf
    if runtime.is_main:
        run.keep(lambda row: row["kind"] != "reptile" or row["meta_step"] <= done)
    if device.type == "cuda":  # compile before the clock starts
        meta_step(cfg, loss, weights, batches(0))
    total, unit, at = (cap, "s", elapsed) if timed else (most, "meta-step", done)
    with bar(total, "reptile", unit, at, runtime.is_main) as progress:
        while done < most and elapsed < cap:
            began, before = time.perf_counter(), elapsed
            weights, losses = meta_step(cfg, loss, weights, batches(done))
            if not all(map(math.isfinite, losses)):
                raise Diverged(f"reptile, meta-step {done}: expected finite losses, found {losses}")
            clock = torch.tensor(before + time.perf_counter() - began, dtype=torch.float64, device=device)
            all_reduce_mean_([clock])  # all ranks stop at the same meta-step
            done, elapsed = done + 1, float(clock)
            progress.update(min(elapsed, cap) - before if timed else 1)
            progress.set_postfix_str(f"loss {losses[0]:.3f}", refresh=False)
            if runtime.is_main and (done <= 10 or done % cfg.run.log_every == 0):
                row = {"kind": "reptile", "step": step, "meta_step": done, "elapsed": elapsed}
                row |= {"tokens": done * r.inner_steps * block, "loss": losses[0], "loss_last": losses[-1]}
                run.log(row)
            if time.perf_counter() - saved > SAVE_EVERY_SECONDS:
                save()
                saved = time.perf_counter()
    save()
    return weights
