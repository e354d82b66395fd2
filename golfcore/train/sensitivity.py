"""How steep the loss is in each matrix late in training: what gradient-guided bit widths go by (pr398, PR #332).

While the LR multiplier is below `quant.guided_scale`, each step adds the mean squared gradient of every block matrix,
after the mean over ranks and before clipping.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from golfcore.config import QuantConfig
from golfcore.model.weights import Banks, Weights, matrices

FILE = "sensitivity.json"  # in a run's folder: what `report` returns


class Sensitivity(NamedTuple):
    steps: int
    sums: dict[str, Tensor]  # bank -> (slots,) float64; empty if no bits are guided


def wanted(cfg: QuantConfig) -> bool:
    return cfg.guided_high > 0 or cfg.guided_low > 0


def start(cfg: QuantConfig, weights: Weights) -> Sensitivity:
    banks = weights.banks._asdict() if wanted(cfg) else {}
    return Sensitivity(0, {n: torch.zeros(len(b), dtype=torch.float64, device=b.device) for n, b in banks.items()})


def update(cfg: QuantConfig, state: Sensitivity, weights: Weights, lr_multiplier: float) -> Sensitivity:
    """The state after a step at `lr_multiplier` whose gradients the banks hold."""
    if not state.sums or lr_multiplier >= cfg.guided_scale:
        return state
    squares = {n: b.grad.float().square().mean((1, 2)) for n, b in weights.banks._asdict().items()}
    return Sensitivity(state.steps + 1, {name: total + squares[name] for name, total in state.sums.items()})


def report(state: Sensitivity) -> dict:
    """{"steps": n, "mean_square": {"block0.query": ..., ...}}: the mean over the `steps` (published: the sum)."""
    named = matrices(Weights(Banks(**state.sums), {}))
    return {"steps": state.steps, "mean_square": {name: float(total) / state.steps for name, total in named}}
