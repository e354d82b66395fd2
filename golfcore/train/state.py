"""Everything a training run is: saved whole, it goes on to the same bits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from golfcore.base import tensors
from golfcore.base.errors import UserError
from golfcore.config import Config
from golfcore.data.stream import TokenStream
from golfcore.data.tokens import Tables
from golfcore.model.weights import Weights, flat
from golfcore.optim import average, build
from golfcore.optim.schedule import Adaptive, ordinary
from golfcore.train import sensitivity
from golfcore.train.sensitivity import Sensitivity

PLAIN = ("step", "elapsed", "position", "qat", "stopped")


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
    own, what = state.named(), f"{path}"
    tensors.expect(values, own, what)

    def number(key: str, high: float = float("inf"), low: float = 0) -> float:
        return tensors.number(plain, key, low, high, what, whole=high < float("inf"))

    state.step = int(number("step", ordinary(cfg).iterations))
    consumed = state.step * (cfg.optim.batch_tokens + cfg.optim.grad_accum)
    state.position = int(number("position", consumed, consumed))
    state.elapsed = number("elapsed")
    state.averaged = state.averaged._replace(taken=int(number("averaged", state.step)))
    state.sensitivity = state.sensitivity._replace(steps=int(number("sensed", state.step)))
    unset = {name for name in Adaptive._fields if plain.get(name, 0) is None}
    state.adaptive = Adaptive(*(None if name in unset else number(name) for name in Adaptive._fields))
    for name in ("qat", "stopped"):
        if not isinstance(plain.get(name), bool):
            raise UserError(f"{what}, {name}: expected true or false, found {plain.get(name)!r}")
        setattr(state, name, plain[name])
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(values[name])
    return state
