"""Schedules as pure functions: learning-rate multiplier of a clock, momentum of a step, adaptive trigger.

A schedule's time is elapsed training time in ms if `schedule.clock` is "wall" (the published systems; validation does
not count) and the step number if it is "steps", which makes runs of different speed comparable step by step.
"""

import math
from dataclasses import replace
from typing import NamedTuple

from golfcore.config import Config, OptimConfig, ScheduleConfig


class Clock(NamedTuple):
    step: int  # completed steps
    elapsed_ms: float  # training time so far
    triggered: float | None = None  # `Adaptive.triggered`


class Adaptive(NamedTuple):
    """State of the adaptive warmdown; plain numbers."""

    ema: float | None = None  # running train loss; None before the first check
    triggered: float | None = None  # the schedule's time at which the warmdown started


def ordinary(cfg: Config) -> ScheduleConfig:
    """`cfg.schedule` with what `reptile.share` leaves of its steps and seconds; the warmdown keeps its length."""
    s, left = cfg.schedule, 1 - cfg.reptile.share
    return replace(s, iterations=round(left * s.iterations), max_seconds=left * s.max_seconds)


def lr_multiplier(cfg: ScheduleConfig, clock: Clock) -> float:
    """The multiplier of every learning rate, in [0, 1].

    1 until the warmdown starts, then half a cosine (exp101; 1 also during the first `guard_steps`) or a line (pr294,
    pr398; no guard) down to 0. There is no warm-up.
    """
    if cfg.warmdown_steps <= 0 or (cfg.shape == "cosine" and clock.step < cfg.guard_steps):
        return 1.0
    if cfg.clock == "wall" and cfg.max_seconds > 0:
        p = _progress_to_cap(cfg, clock)
    elif cfg.shape == "linear" and clock.step >= cfg.iterations:
        return 1.0  # as published; no step is taken there
    else:
        p = _progress_by_step(cfg, clock)
    if p < 0:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(p, 1.0))) if cfg.shape == "cosine" else max(1 - p, 0.0)


def _progress_to_cap(cfg: ScheduleConfig, clock: Clock) -> float:
    """How much of the warmdown is over (negative: not begun), when it ends at the wall-clock cap.

    It starts at the trigger, or `warmdown_steps` average steps before the cap, estimated anew at every step.
    """
    cap = 1000 * cfg.max_seconds
    start = clock.triggered
    if start is None:
        start = cap - cfg.warmdown_steps * clock.elapsed_ms / max(clock.step, 1)
        if cfg.shape == "cosine":  # the line keeps its slope instead and is below 1 from the outset
            start = max(start, 0.0)
    return (clock.elapsed_ms - start) / max(cap - start, 1e-9)


def _progress_by_step(cfg: ScheduleConfig, clock: Clock) -> float:
    """The same when it takes `warmdown_steps` steps: up to `iterations`, or from the trigger on."""
    start: float = cfg.iterations - cfg.warmdown_steps
    if clock.triggered is not None:
        step_ms = clock.elapsed_ms / max(clock.step, 1)
        start = clock.triggered / max(step_ms, 1e-9) if cfg.clock == "wall" else clock.triggered
    elif cfg.shape == "cosine":
        start = max(start, 0)
    return (clock.step - start) / cfg.warmdown_steps


def update_adaptive(cfg: ScheduleConfig, state: Adaptive, step: int, elapsed_ms: float, loss: float) -> Adaptive:
    """Look at the train loss of iteration `step`; start the warmdown when its running mean falls too little (exp101).

    Checked every `adaptive_every` steps from `adaptive_min_steps` on; acts from the next step. With the published
    values it fires unless one batch's loss is 0.05 below the running mean, that is, within the first few checks.
    """
    due = step >= cfg.adaptive_min_steps and step % cfg.adaptive_every == 0
    if not cfg.adaptive or state.triggered is not None or not due:
        return state
    if state.ema is None:
        return state._replace(ema=loss)
    ema = cfg.adaptive_ema * state.ema + (1 - cfg.adaptive_ema) * loss
    fires = state.ema - ema < cfg.adaptive_threshold
    now = elapsed_ms if cfg.clock == "wall" else float(step)
    return Adaptive(ema, now if fires else None)


def momentum(cfg: OptimConfig, step: int) -> float:
    """Muon's momentum: `momentum_start` to `momentum` in a line over `momentum_steps`, then constant."""
    p = min(step / cfg.momentum_steps, 1.0) if cfg.momentum_steps else 1.0
    return (1 - p) * cfg.momentum_start + p * cfg.momentum


def cyclic_momentum(step: int, low: float = 0.85, high: float = 0.95, half_period: int = 50) -> float:
    """A triangle wave from `low` to `high` and back in 2 `half_period` steps: exp101's code has it, its runs do not."""
    phase = step % (2 * half_period) / half_period
    return low + (high - low) * (1 - abs(1 - phase))
