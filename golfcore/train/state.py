"""Everything a training run is: saved whole, it goes on to the same bits."""

from dataclasses import dataclass
from pathlib import Path

import torch

from golfcore.base import tensors
from golfcore.config import Config
from golfcore.model.weights import Weights, flat
from golfcore.optim import average, build
from golfcore.optim.schedule import Adaptive
from golfcore.train import sensitivity
from golfcore.train.sensitivity import Sensitivity

PLAIN = ("step", "elapsed", "position", "qat", "stopped")


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


def start(cfg: Config, initial: Weights, dtype: torch.dtype, device: torch.device) -> TrainState:
    weights = build.leaves(cfg.model, cfg.optim, initial, dtype, device)
    optimizers = build.build(cfg.model, cfg.optim, weights, dtype)
    return TrainState(weights, optimizers, average.start(cfg.average, weights), sensitivity.start(cfg.quant, weights))


def save(state: TrainState, path: Path) -> None:
    """One file, whole or not at all."""
    values = {
        **tensors.under("weights", flat(state.weights)),
        **tensors.under("optim", state.optimizers.state_tensors()),
        **tensors.under("average", average.state_tensors(state.averaged)),
        **tensors.under("sensitivity", sensitivity.state_tensors(state.sensitivity)),
    }
    plain = {name: getattr(state, name) for name in PLAIN}
    tensors.save(path, values, {**plain, "adaptive": state.adaptive._asdict()})


def load(state: TrainState, cfg: Config, path: Path) -> TrainState:
    """`state` (fresh, of the same configuration) with everything `path` holds. UserError if the file is damaged."""
    values, plain = tensors.load(path, "a training checkpoint")
    saved = tensors.part(values, "weights")
    with torch.no_grad():
        for name, tensor in flat(state.weights).items():
            tensor.copy_(saved[name])
    state.optimizers.load_state_tensors(tensors.part(values, "optim"))
    state.averaged = average.load(cfg.average, tensors.part(values, "average"), state.weights)
    state.sensitivity = sensitivity.load(state.sensitivity, tensors.part(values, "sensitivity"))
    state.adaptive = Adaptive(**plain["adaptive"])
    for name in PLAIN:
        setattr(state, name, plain[name])
    return state
