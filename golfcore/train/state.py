"""Everything a training run is: saved whole, it goes on to the same bits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from golfcore.base import tensors
from golfcore.base.errors import UserError
from golfcore.config import Config
from golfcore.data.stream import TokenStream
from golfcore.data.tokens import Tables
from golfcore.model.params import RATES, table
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


def start(cfg: Config, initial: Weights, dtype: torch.dtype, device: torch.device) -> TrainState:
    weights = build.leaves(cfg.model, cfg.optim, initial, dtype, device)
    optimizers = build.build(cfg.model, cfg.optim, weights, dtype)
    return TrainState(weights, optimizers, average.start(cfg.average, weights), sensitivity.start(cfg.quant, weights))


def save(state: TrainState, path: Path, belongs: Mapping[str, str]) -> None:
    """One file, whole or not at all; the one before it is kept beside it."""
    values = {
        **tensors.under("weights", flat(state.weights)),
        **tensors.under("optim", state.optimizers.state_tensors()),
        **tensors.under("average", average.state_tensors(state.averaged)),
        **tensors.under("sensitivity", sensitivity.state_tensors(state.sensitivity)),
    }
    plain = {name: getattr(state, name) for name in PLAIN}
    tensors.save_next(path, values, {**plain, "adaptive": state.adaptive._asdict()}, belongs)


def load(
    state: TrainState, cfg: Config, path: Path, belongs: Mapping[str, str], say: Callable[[str], object] = print
) -> TrainState:
    """`state` (fresh, of the same configuration) with everything `path` holds, or the file before it if it is damaged.

    UserError if neither is whole, or what they hold is no state of this training; `state` is then of no use.
    """
    values, plain = tensors.load_last(path, "a training checkpoint", belongs, say)
    _set_plain(state, cfg, plain, f"{path}")
    try:
        saved = tensors.part(values, "weights")
        tensors.expect(saved, flat(state.weights), "weights")
        with torch.no_grad():
            for name, tensor in flat(state.weights).items():
                tensor.copy_(saved[name])
        state.optimizers.load_state_tensors(tensors.part(values, "optim"), _updated(cfg) if state.step else ())
        state.averaged = average.load(cfg.average, tensors.part(values, "average"), state.weights)
        state.sensitivity = sensitivity.load(state.sensitivity, tensors.part(values, "sensitivity"))
    except UserError as e:
        raise UserError(f"{path}: {e}") from None
    counts = {"average": state.averaged.taken, "sensitivity": state.sensitivity.steps}
    for name in counts:
        tensors.number(counts, name, 0, state.step, f"{path}: steps taken")
    return state


def _updated(cfg: Config) -> set[str]:
    """The parameters that every step updates: all that are trained, but for the rates, which only meta steps train."""
    return {p.name for p in table(cfg.model) if p.group != "none" and not p.name.startswith(RATES)}


def _set_plain(state: TrainState, cfg: Config, plain: Mapping[str, object], what: str) -> None:
    """Set the plain values of `state`. UserError if one of them cannot be."""
    state.step = int(tensors.number(plain, "step", 0, ordinary(cfg).iterations, what, whole=True))
    consumed = state.step * (cfg.optim.batch_tokens + cfg.optim.grad_accum)
    state.position = int(tensors.number(plain, "position", consumed, consumed, what, whole=True))
    state.elapsed = tensors.number(plain, "elapsed", 0, float("inf"), what)
    for name in ("qat", "stopped"):
        if not isinstance(plain.get(name), bool):
            raise UserError(f"{what}, {name}: expected true or false, found {plain.get(name)!r}")
        setattr(state, name, plain[name])
    adaptive = plain.get("adaptive")
    if not isinstance(adaptive, dict) or adaptive.keys() != set(Adaptive._fields):
        raise UserError(f"{what}, adaptive: expected {' and '.join(Adaptive._fields)}, found {adaptive!r}")
    for name, value in adaptive.items():
        if value is not None:
            tensors.number(adaptive, name, 0, float("inf"), f"{what}, adaptive")
    state.adaptive = Adaptive(**adaptive)
