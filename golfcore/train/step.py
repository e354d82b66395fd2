"""One optimizer step: micro-batches, meta gradient, schedule, clipping, update, averaging (exp101's order)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from golfcore.base.errors import UserError
from golfcore.base.runtime import Runtime, all_reduce_mean_
from golfcore.config import Config
from golfcore.data.stream import TokenStream
from golfcore.model.forward import Net, forward, training_loss
from golfcore.model.weights import Weights, flat, map_matrices
from golfcore.optim import average, build, schedule
from golfcore.optim.schedule import Clock
from golfcore.quant.grid import fake_quant, qat_grid
from golfcore.train import meta, sensitivity
from golfcore.train.meta import MetaReport
from golfcore.train.objective import Batch, split
from golfcore.train.state import TrainState

Loss = Callable[[Weights, Tensor, Tensor], Tensor]


class Diverged(UserError):
    """The loss or a gradient is not finite."""


class Report(NamedTuple):
    """What a step did, for the metrics file."""

    loss: float  # nats a token, over all ranks and micro-batches
    scale: float  # LR multiplier
    momentum: float
    grad_norm: float  # before clipping
    meta: MetaReport | None  # on meta steps
    qat_started: bool
    warmdown_started: bool


def loss_function(net: Net, z_loss: float, compiled: bool) -> Loss:
    """`training_loss` of a batch; one graph for own, fake-quantized and adapted weights."""

    def loss(weights: Weights, x: Tensor, y: Tensor) -> Tensor:
        return training_loss(net.cfg, forward(net, weights, x), y, z_loss)

    return torch.compile(loss, dynamic=False, fullgraph=True) if compiled else loss


def fake_quantized(cfg: Config, weights: Weights) -> Weights:
    """Late QAT as it should have been: every bank matrix through the artifact's grid, straight-through gradients."""
    grid = qat_grid(cfg.quant)
    return map_matrices(lambda name, m: fake_quant(m, grid), weights)


def train_step(
    cfg: Config, net: Net, state: TrainState, stream: TokenStream, loss_fn: Loss, runtime: Runtime
) -> Report:
    """Advance `state` by one step. Raises Diverged before any update."""
    o, plan, elapsed = cfg.optim, schedule.ordinary(cfg), state.elapsed
    scale = schedule.lr_scale(plan, Clock(state.step, elapsed * 1000, state.adaptive.triggered))
    qat_started = o.qat != "none" and not state.qat and scale < o.qat_scale
    state.qat = state.qat or qat_started
    n_micro = o.grad_accum // runtime.world
    rows = o.batch_tokens // (o.grad_accum * cfg.data.seq_len)
    state.optimizers.zero_grad()
    total = torch.zeros((), device=runtime.device)
    for _ in range(n_micro):
        x, y = (t.to(runtime.device) for t in stream.batch(rows, cfg.data.seq_len, runtime.rank, runtime.world))
        seen = fake_quantized(cfg, state.weights) if state.qat and o.qat == "matrices" else state.weights
        loss = loss_fn(seen, x, y)
        (loss / n_micro).backward()
        total += loss.detach() / n_micro
    meta_report = None
    if meta.due(cfg.meta, state.step, scale):
        data = _meta_data(cfg, stream, (x, y), runtime)
        meta_report = meta.add_gradient(cfg, net, state.weights, state.step, n_micro, data, loss_fn)
    grads = [t.grad for t in flat(state.weights).values() if t.grad is not None]
    all_reduce_mean_([total, *grads])
    average_loss = float(total)
    triggered = state.adaptive.triggered
    state.adaptive = schedule.update_adaptive(plan, state.adaptive, state.step, elapsed * 1000, average_loss)
    momentum = schedule.momentum(o, state.step)
    build.mask_frozen_skips(cfg.model, state.weights)
    sensed = sensitivity.update(cfg.quant, state.sensitivity, state.weights, scale)  # before clipping, as published
    norm = float(build.clip_(state.weights, o.grad_clip))
    if not (math.isfinite(average_loss) and math.isfinite(norm)):
        raise Diverged(
            f"step {state.step}: expected a finite loss and gradient, found loss {average_loss}, norm {norm}"
        )
    state.sensitivity = sensed
    state.optimizers.step(scale, momentum)
    state.step += 1
    state.position = stream.position
    state.averaged = average.update(cfg.average, state.averaged, state.weights, state.step, scale)
    return Report(
        average_loss,
        scale,
        momentum,
        norm,
        meta_report,
        qat_started,
        triggered is None and state.adaptive.triggered is not None,
    )


def _meta_data(cfg: Config, stream: TokenStream, last: Batch, runtime: Runtime) -> tuple[Batch, Batch]:
    """Inner and outer data out of the step's last micro-batch and, if asked for, the text after it.

    That text is read ahead: the next step trains on it (with several ranks, the next rank does now).
    """
    ahead = None
    if cfg.meta.split == "next-chunk":
        rows, seq_len = last[0].shape
        x, y = stream.following(rows, seq_len, runtime.rank, runtime.world)
        ahead = x.to(runtime.device), y.to(runtime.device)
    return split(cfg.meta, *last, ahead)
