"""Everything a training run is: saved whole, it goes on to the same bits."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from golfcore.base import files, tensors
from golfcore.base.errors import UserError
from golfcore.config import Config
from golfcore.data.stream import TokenStream
from golfcore.data.tokens import Tables
from golfcore.model.weights import Weights, flat
from golfcore.optim import average, build
from golfcore.optim.schedule import Adaptive, ordinary
from golfcore.train import sensitivity
from golfcore.train.sensitivity import Sensitivity

PLAIN = {"step": int, "elapsed": float, "position": int, "qat": bool, "stopped": bool}  # fields of TrainState
SCHEMA = PLAIN | {"averaged": int, "sensed": int} | dict.fromkeys(Adaptive._fields, (float, None))


class TrainingData(NamedTuple):
    """What a configuration is trained on and validated with."""

    stream: TokenStream
    val: np.ndarray  # token ids
    tables: Tables
    bytes_per_token: float  # of the validation text
    belongs: Mapping[str, str]  # hashes of the configuration and of the data: whose checkpoints these are


@dataclass
class TrainState:
    weights: Weights  # leaf tensors, updated in place by the optimizers
    optimizers: build.Optimizers
    averaged: average.Average
    sensitivity: Sensitivity
    adaptive: Adaptive = Adaptive()
    step: int = 0  # steps completed
    elapsed: float = 0.0  # seconds of training, validation and checkpoints not counted
    position: int = 0  # tokens of the stream consumed, over all ranks
    qat: bool = False  # late QAT has started
    stopped: bool = False  # the wall-clock cap was reached

    def named(self) -> dict[str, Tensor]:
        """All tensors by part and name ("weights/qo", "optim/muon/qo/momentum", ...), themselves."""
        return {
            **tensors.under("weights", flat(self.weights)),
            **tensors.under("optim", self.optimizers.state_tensors()),
            **tensors.under("average", average.state_tensors(self.averaged)),
            **tensors.under("sensitivity", self.sensitivity.sums),
        }


def start(cfg: Config, initial: Weights, dtype: torch.dtype, device: torch.device) -> TrainState:
    weights = build.leaves(cfg.model, cfg.optim, initial, dtype, device)
    optimizers = build.build(cfg.model, cfg.optim, weights, dtype)
    return TrainState(weights, optimizers, average.start(cfg.average, weights), sensitivity.start(cfg.quant, weights))


def save(state: TrainState, path: Path, belongs: Mapping[str, str]) -> None:
    """One file, whole or not at all; the one before it is kept beside it."""
    plain = {name: getattr(state, name) for name in PLAIN} | state.adaptive._asdict()
    plain |= {"averaged": state.averaged.taken, "sensed": state.sensitivity.steps}
    tensors.save_next(path, state.named(), plain, belongs)


def load(
    state: TrainState, cfg: Config, path: Path, belongs: Mapping[str, str], say: Callable[[str], object] = print
) -> TrainState:
    """`state` (fresh, of the same configuration) with everything `path` holds, or the file before it if it is damaged.

    UserError if neither is whole, or what they hold is no state of this training; `state` is then of no use.
    """
    values, plain = tensors.load_last(path, "a training checkpoint", belongs, say)
    own = state.named()
    tensors.expect(values, own, f"{path}")
    files.check(plain, SCHEMA, f"{path}: expected a training checkpoint")
    step, consumed = plain["step"], plain["step"] * (cfg.optim.batch_tokens + cfg.optim.grad_accum)
    bounds = dict.fromkeys(("elapsed", *Adaptive._fields), (0, math.inf)) | {"step": (0, ordinary(cfg).iterations)}
    bounds |= {"position": (consumed, consumed), "averaged": (0, step), "sensed": (0, step)}
    for name, (low, high) in bounds.items():
        if not low <= (plain[name] or 0) <= high:
            raise UserError(f"{path}, {name}: expected a number from {low} to {high}, found {plain[name]!r}")
    for name in PLAIN:
        setattr(state, name, plain[name])
    state.averaged = state.averaged._replace(taken=plain["averaged"])
    state.sensitivity = state.sensitivity._replace(steps=plain["sensed"])
    state.adaptive = Adaptive(*(plain[name] for name in Adaptive._fields))
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(values[name])
    return state
