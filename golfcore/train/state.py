"""Everything a training run is: saved whole, it goes on to the same bits."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from golfcore import average, files
from golfcore.config import Config
from golfcore.errors import UserError
from golfcore.optim import build
from golfcore.schedule import Adaptive
from golfcore.weights import Weights, flat


@dataclass
class TrainState:
    weights: Weights  # leaf tensors, updated in place by the optimizers
    optimizers: build.Optimizers
    averaged: average.Average
    adaptive: Adaptive = Adaptive()
    step: int = 0  # steps completed
    elapsed: float = 0.0  # seconds of training, validation and checkpoints not counted
    position: int = 0  # tokens of the stream consumed, over all ranks
    qat: bool = False  # late QAT has started
    stopped: bool = False  # the wall-clock cap was reached


def start(cfg: Config, initial: Weights, dtype: torch.dtype, device: torch.device) -> TrainState:
    weights = build.leaves(cfg.model, cfg.optim, initial, dtype, device)
    optimizers = build.build(cfg.model, cfg.optim, weights, dtype)
    return TrainState(weights, optimizers, average.start(cfg.average, weights))


def save(state: TrainState, path: Path) -> None:
    """One safetensors file, with the plain values in its metadata."""
    tensors = {f"weights/{k}": v for k, v in flat(state.weights).items()}
    tensors |= {f"optim/{k}": v for k, v in state.optimizers.state_tensors().items()}
    tensors |= {f"average/{k}": v for k, v in average.state_tensors(state.averaged).items()}
    plain = {
        "adaptive": state.adaptive._asdict(),
        "step": state.step,
        "elapsed": state.elapsed,
        "position": state.position,
        "qat": state.qat,
        "stopped": state.stopped,
    }
    on_cpu = {k: v.detach().contiguous().cpu() for k, v in tensors.items()}
    with files.atomic_path(path) as part:
        save_file(on_cpu, part, metadata={"state": files.canonical_json(plain)})


def load(state: TrainState, cfg: Config, path: Path) -> TrainState:
    """`state` (fresh, of the same configuration) with everything `path` holds. UserError if the file is damaged."""
    try:
        with safe_open(path, "pt") as f:
            plain = json.loads(f.metadata()["state"])
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a mapping)
    except Exception as e:
        raise UserError(f"{path}: expected a training checkpoint, found a file that does not read ({e})") from None

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    saved = part("weights/")
    with torch.no_grad():
        for name, tensor in flat(state.weights).items():
            tensor.copy_(saved[name])
    state.optimizers.load_state_tensors(part("optim/"))
    state.averaged = average.load(cfg.average, part("average/"), state.weights)
    state.adaptive = Adaptive(**plain.pop("adaptive"))
    for name, value in plain.items():
        setattr(state, name, value)
    return state
