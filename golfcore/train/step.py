"""One optimizer step: micro-batches, meta gradient, schedule, clipping, update, averaging (exp101's order)."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from golfcore.base.errors import UserError
from golfcore.base.runtime import Runtime, all_reduce_max, all_reduce_mean_, send
from golfcore.config import Config
from golfcore.data.stream import TokenStream
from golfcore.model.forward import Net
from golfcore.model.weights import Weights, flat, map_matrices
from golfcore.optim import average, build, schedule
from golfcore.optim.inner import Batch, Loss
from golfcore.optim.schedule import Clock
from golfcore.quant.grid import fake_quant, fake_steps, qat_grid
from golfcore.train import meta, sensitivity
from golfcore.train.state import TrainState


class Diverged(UserError):
    """The loss or a gradient is not finite."""


class Report(NamedTuple):
    """What a step did, for the metrics file."""

    loss: float  # nats a token, over all ranks and micro-batches
    lr_multiplier: float
    momentum: float
    grad_norm: float  # before clipping
    meta: dict[str, float | None] | None  # on meta steps: what `meta.add_gradient` returned
    events: tuple[str, ...]  # what began: "qat", the adaptive "warmdown"


class Plan(NamedTuple):
    """How the text of a step is laid out and shared by `world` ranks: the same text for any number of them.

    A step is `micro` blocks of rows * seq_len + 1 tokens, each cut by rows into `parts`; the pieces go round the ranks.
    """

    micro: int
    rows: int  # of a micro-batch
    parts: int  # pieces of a micro-batch
    seq_len: int
    world: int

    @property
    def tokens(self) -> int:
        """Tokens of text that a step uses up."""
        return self.micro * (self.rows * self.seq_len + 1)

    def piece(self, stream: TokenStream, block: int, part: int = 0, parts: int = 1) -> Batch:
        """Part `part` of `parts` of micro-batch `block` of the step at `stream.position`; moves nothing.

        Micro-batch `micro` is the first of the next step.
        """
        rows = self.rows // parts
        at = stream.position + block * (self.rows * self.seq_len + 1) + part * rows * self.seq_len
        return stream.rows(at, rows, self.seq_len)

    def smaller(self) -> "Plan":
        """The same text in the next smaller pieces: gradients equal but for rounding. UserError: a piece is a row."""
        factors = (k for k in range(2, self.rows // self.parts + 1) if self.rows // self.parts % k == 0)
        if (factor := next(factors, None)) is None:
            raise UserError(f"data.seq_len {self.seq_len}: expected room for one row on the device, found too little")
        return self._replace(parts=self.parts * factor)

    def fitted(self, attempt: Callable[["Plan"], None]) -> "Plan":
        """The plan with the largest pieces that leave `attempt` the memory it needs, on every rank."""
        fits = self
        while True:
            try:
                attempt(fits)
                break
            except torch.OutOfMemoryError:
                fits = fits.smaller()
        return self._replace(parts=all_reduce_max(fits.parts))

    def pieces(self, stream: TokenStream, rank: int) -> Iterator[Batch]:
        """The pieces of the step that `rank` reads."""
        for index in range(rank, self.micro * self.parts, self.world):
            yield self.piece(stream, *divmod(index, self.parts), self.parts)


def plan(cfg: Config, world: int) -> Plan:
    """How `world` ranks share a step. UserError if neither its micro-batches nor their rows can be shared evenly."""
    micro, pieces = cfg.optim.grad_accum, cfg.optim.pieces
    rows = cfg.optim.batch_tokens // (micro * cfg.data.seq_len)

    def parts(ranks: int) -> int:
        return pieces * (ranks // math.gcd(ranks, micro))

    if rows % pieces:
        raise UserError(f"optim.pieces {pieces}: expected a divisor of the {rows} rows of a micro-batch")
    if rows % parts(world):
        able = ", ".join(str(n) for n in range(1, min(micro * rows, 2 * world) + 1) if rows % parts(n) == 0)
        raise UserError(
            f"WORLD_SIZE: expected a number of ranks that shares optim.grad_accum {micro} micro-batches of {rows} rows "
            f"evenly ({able}), found {world}"
        )
    return Plan(micro, rows, parts(world), cfg.data.seq_len, world)


def fake_quantized(cfg: Config, weights: Weights) -> Weights:
    """Late QAT as it should have been: every bank matrix as the artifact rounds it, straight-through gradients.

    Steps that are measured after training are their mean here; ones that only the file's size will tell, the grid's.
    """
    if cfg.quant.steps != "clip" and cfg.quant.step > 0:
        return map_matrices(lambda name, m: fake_steps(m, cfg.quant.step), weights)
    grid = qat_grid(cfg.quant)
    return map_matrices(lambda name, m: fake_quant(m, grid), weights)


def train_step(
    cfg: Config, net: Net, state: TrainState, stream: TokenStream, loss_fn: Loss, runtime: Runtime, shared: Plan
) -> Report:
    """Advance `state` by one step. Raises Diverged before any update: there alone the host waits for the device."""
    o, scheduled = cfg.optim, schedule.ordinary(cfg)
    ms, began = state.elapsed * 1000, (state.qat, state.adaptive.triggered is not None)
    multiplier = schedule.lr_multiplier(scheduled, Clock(state.step, ms, state.adaptive.triggered))
    state.qat = state.qat or (o.qat != "none" and multiplier < o.qat_scale)
    state.optimizers.zero_grad()
    total = main_gradient(cfg, state, stream, loss_fn, runtime, shared)
    row = None
    if meta.due(cfg.meta, state.step, multiplier):
        data = meta_data(cfg, shared, stream, runtime.device)
        row = meta.add_gradient(cfg, net, state.weights, state.step, data, loss_fn)
    stream.position += shared.tokens
    momentum = schedule.momentum(o, state.step)
    build.mask_frozen_skips(cfg.model, state.weights)
    # before clipping, as published
    sensed = sensitivity.update(cfg.quant, state.sensitivity, state.weights, multiplier)
    loss, norm = torch.stack((total, build.clip_(state.weights, o.grad_clip))).tolist()
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise Diverged(f"step {state.step}: expected a finite loss and gradient, found loss {loss}, norm {norm}")
    state.adaptive = schedule.update_adaptive(scheduled, state.adaptive, state.step, ms, loss)
    state.sensitivity = sensed
    state.optimizers.step(multiplier, momentum)
    state.step += 1
    state.position = stream.position
    state.averaged = average.update(cfg.average, state.averaged, state.weights, state.step, multiplier)
    now = (state.qat, state.adaptive.triggered is not None)
    events = (name for name, a, b in zip(("qat", "warmdown"), began, now, strict=True) if b and not a)
    return Report(loss, multiplier, momentum, norm, row, tuple(events))


def main_gradient(
    cfg: Config, state: TrainState, stream: TokenStream, loss_fn: Loss, runtime: Runtime, shared: Plan
) -> Tensor:
    """Leave the gradient of the step's mean loss in the weights, on all ranks; returns that loss, 0-dim."""
    n_pieces, quantizes = shared.micro * shared.parts // shared.world, state.qat and cfg.optim.qat == "matrices"
    total, targets = torch.zeros((), device=runtime.device), 0
    for piece in shared.pieces(stream, runtime.rank):
        x, y = send(piece, runtime.device)
        seen = fake_quantized(cfg, state.weights) if quantizes else state.weights
        loss = loss_fn(seen, x, y)
        (loss / n_pieces).backward()
        total += loss.detach() / n_pieces
        targets += y.numel()
    if targets * shared.world != cfg.optim.batch_tokens:
        raise RuntimeError(f"expected {cfg.optim.batch_tokens} targets in a step, found {targets} x {shared.world}")
    all_reduce_mean_([total, *(t.grad for t in flat(state.weights).values() if t.grad is not None)])
    return total


def meta_data(cfg: Config, shared: Plan, stream: TokenStream, device: torch.device) -> tuple[Batch, Batch]:
    """Inner and outer data out of the step's last micro-batch and, if asked for, the text after it.

    Every rank takes all of that micro-batch. The text after it is read ahead: the next step trains on it.
    """
    blocks = (shared.micro - 1, shared.micro) if cfg.meta.split == "next-chunk" else (shared.micro - 1,)
    (x, y), *ahead = [(x, y) for x, y in (send(shared.piece(stream, block), device) for block in blocks)]
    return meta.split(cfg.meta, x, y, *ahead)
