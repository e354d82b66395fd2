"""Averages of the weights over training: EMA, SWA and LAWA as one small state with `start`, `update` and `result`."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from golfcore.base.tensors import expect
from golfcore.config import AverageConfig
from golfcore.model.weights import Weights, detach, flat, tree_map, unflat


class Average(NamedTuple):
    """What has been averaged so far. Its tensors are float32 and its own: never those of the weights."""

    taken: int  # updates or snapshots so far
    copies: tuple[Weights, ...]  # ema: the average; swa: the mean, if any; lawa: the last snapshots, oldest first


def start(cfg: AverageConfig, weights: Weights) -> Average:
    """EMA starts from the initial weights, without bias correction; the others start empty."""
    return Average(0, (detach(weights),) if cfg.kind == "ema" else ())


def update(cfg: AverageConfig, state: Average, weights: Weights, step: int, lr_multiplier: float) -> Average:
    """The state after `step` completed steps, the last of them at `lr_multiplier`. Uses up `state`.

    Every `every` steps: EMA (exp101) E <- d E + (1 - d) W with d = decay^every; SWA the running mean of snapshots taken
    while `lr_multiplier` < start_scale; LAWA the last `keep` snapshots. The tensors of `state` are changed in place.
    """
    if cfg.kind == "none" or step % cfg.every or (cfg.kind == "swa" and lr_multiplier >= cfg.start_scale):
        return state
    taken = state.taken + 1
    if cfg.kind == "lawa":
        return Average(taken, (*state.copies, detach(weights))[-cfg.keep :])
    if not state.copies:
        return Average(taken, (detach(weights),))
    new = 1 - cfg.decay**cfg.every if cfg.kind == "ema" else 1 / taken
    tree_map(lambda e, w: e.mul_(1 - new).add_(w.detach().to(e.dtype), alpha=new), *state.copies, weights)
    return state._replace(taken=taken)


def result(cfg: AverageConfig, state: Average, weights: Weights) -> Weights:
    """The weights to evaluate and export: a float32 copy of the average, or of `weights` if the kind is "none".

    Raises RuntimeError if an average is configured and nothing was averaged: the switch did nothing.
    """
    if cfg.kind == "none":
        return detach(weights)
    if not state.taken:
        when = f"every {cfg.every} steps"
        if cfg.kind == "swa":
            when += f" while the LR multiplier is below {cfg.start_scale}"
        raise RuntimeError(f"average.kind {cfg.kind}: expected at least one update ({when}), found none")
    return tree_map(lambda *copies: torch.stack(copies).mean(0), *state.copies)


def state_tensors(state: Average) -> dict[str, Tensor]:
    """The state by name ("taken", "0/qo", "1/qo", ...); not copied."""
    copies = {f"{i}/{name}": t for i, copy in enumerate(state.copies) for name, t in flat(copy).items()}
    return {"taken": torch.tensor(state.taken), **copies}


def load(cfg: AverageConfig, tensors: Mapping[str, Tensor], weights: Weights) -> Average:
    """The state that `state_tensors` returned, copied to where `weights` are. Raises UserError if it does not fit."""
    count = tensors.get("taken")
    taken = int(count) if count is not None and count.numel() == 1 else 0
    n = {"none": 0, "ema": 1, "swa": min(taken, 1), "lawa": min(taken, cfg.keep)}[cfg.kind]
    copy = {name: torch.empty_like(t, dtype=torch.float32) for name, t in flat(weights).items()}
    like = {f"{i}/{name}": t for i in range(n) for name, t in copy.items()}
    expect(tensors, {**like, "taken": torch.tensor(0)}, f"average state ({cfg.kind}, {taken} taken)")
    own = {key: tensors[key].to(place.device, torch.float32, copy=True) for key, place in like.items()}
    return Average(taken, tuple(unflat({name: own[f"{i}/{name}"] for name in copy}) for i in range(n)))
