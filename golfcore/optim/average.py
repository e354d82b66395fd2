"""Averages of the weights over training: EMA, SWA and LAWA as one small state with `start`, `update` and `result`."""

from typing import NamedTuple

import torch
from torch import Tensor

from golfcore.config import AverageConfig
from golfcore.model.weights import Weights, detach, flat, tree_map


class Average(NamedTuple):
    """What has been averaged so far. Its tensors are float32 and its own: never those of the weights."""

    taken: int  # updates or snapshots so far
    copies: tuple[Weights, ...]  # ema: the average; swa: the mean; lawa: the last snapshots, oldest first


def start(cfg: AverageConfig, weights: Weights) -> Average:
    """EMA starts from the initial weights, without bias correction; the others only keep room for their copies."""
    return Average(0, tuple(detach(weights) for _ in range({"none": 0, "lawa": cfg.keep}.get(cfg.kind, 1))))


def update(cfg: AverageConfig, state: Average, weights: Weights, step: int, lr_multiplier: float) -> Average:
    """The state after `step` completed steps, the last of them at `lr_multiplier`. Uses up `state`.

    Every `every` steps: EMA (exp101) E <- d E + (1 - d) W with d = decay^every; SWA the running mean of snapshots taken
    while `lr_multiplier` < start_scale; LAWA the last `keep` snapshots. The tensors of `state` are changed in place.
    """
    if cfg.kind == "none" or step % cfg.every or (cfg.kind == "swa" and lr_multiplier >= cfg.start_scale):
        return state
    taken = state.taken + 1
    if cfg.kind == "lawa":
        return Average(taken, (*state.copies[1:], detach(weights)))
    new = 1 - cfg.decay**cfg.every if cfg.kind == "ema" else 1 / taken
    copies = list(flat(state.copies[0]).values())
    with torch.no_grad():
        torch._foreach_lerp_(copies, [w.to(e) for e, w in zip(copies, flat(weights).values(), strict=True)], new)
    return state._replace(taken=taken)


def result(cfg: AverageConfig, state: Average, weights: Weights) -> Weights:
    """The weights to evaluate and export: a float32 copy of the average, or of `weights` if the kind is "none".

    RuntimeError if an average is configured and nothing was averaged.
    """
    if cfg.kind == "none":
        return detach(weights)
    if not state.taken:
        when = f" while the LR multiplier is below {cfg.start_scale}" if cfg.kind == "swa" else ""
        raise RuntimeError(
            f"average.kind {cfg.kind}: expected at least one update (every {cfg.every} steps{when}), found none"
        )
    return tree_map(lambda *copies: torch.stack(copies).mean(0), *state.copies[-state.taken :])


def state_tensors(state: Average) -> dict[str, Tensor]:
    """The copies by name ("0/qo", "1/qo", ...), themselves."""
    return {f"{i}/{name}": t for i, copy in enumerate(state.copies) for name, t in flat(copy).items()}
