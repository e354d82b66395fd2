"""From the parameter table to optimizers: leaf tensors, groups, clipping, and a state that can be saved."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from golfcore.base.runtime import multiplies_bfloat16
from golfcore.config import ModelConfig, OptimConfig
from golfcore.model.params import table
from golfcore.model.weights import Weights, flat, unflat
from golfcore.optim.inner import joint_norm
from golfcore.optim.muon import Muon


class Optimizers(NamedTuple):
    """The optimizers of all parameters; they are stepped in the order tables, scalars, matrices (exp101)."""

    adam: torch.optim.AdamW  # of tables and scalars
    muon: Muon  # of matrices, unless AdamW has them as well
    params: dict[str, Tensor]  # by name

    def step(self, lr_multiplier: float, momentum: float) -> None:
        """One update with every learning rate times `lr_multiplier`; `momentum` is Muon's.

        A parameter whose gradient is None is left alone: no update, no decay, no step counted (torch's AdamW, and what
        exp106 relied on).
        """
        for optimizer in (self.adam, self.muon):
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * lr_multiplier
        self.muon.param_groups[0]["momentum"] = momentum
        self.adam.step()
        self.muon.step()

    def zero_grad(self) -> None:
        """Set every gradient to None."""
        self.adam.zero_grad()
        self.muon.zero_grad()

    def state_tensors(self) -> dict[str, Tensor]:
        """The whole state by optimizer, parameter and slot ("adam/tok_emb/exp_avg", "muon/qo/momentum"), itself."""
        return {
            f"{kind}/{name}/{slot}": value
            for name, p in self.params.items()
            for kind, optimizer in (("adam", self.adam), ("muon", self.muon))
            for slot, value in optimizer.state.get(p, {}).items()
        }


def leaves(
    model_cfg: ModelConfig,
    optim_cfg: OptimConfig,
    weights: Weights,
    compute_dtype: torch.dtype,
    device: torch.device | str,
) -> Weights:
    """A copy of `weights` as leaves on `device`; float32, but tables follow `optim_cfg.table_dtype`.

    What is in no optimizer takes no gradient either: it would be clipped with the others and never cleared.
    """
    low, tensors = compute_dtype if optim_cfg.table_dtype == "compute" else torch.float32, flat(weights)
    copies = {}
    for p in table(model_cfg):
        copy = tensors[p.name].detach().to(device, low if p.group == "table" else torch.float32, copy=True)
        copies[p.name] = copy.requires_grad_(p.group != "none")
    return unflat(copies)


def build(model_cfg: ModelConfig, optim_cfg: OptimConfig, weights: Weights, compute_dtype: torch.dtype) -> Optimizers:
    """AdamW for tables and scalars, Muon (or AdamW) for matrices, nothing for the rest, by the parameter table.

    `weights` are leaves, updated in place. `compute_dtype` is that of Muon's momentum if `optim_cfg.momentum_dtype`
    says so; AdamW's moments have the dtype of their parameter.
    ValueError if `weights` have other names than the table.
    """
    c, tensors, rows = optim_cfg, flat(weights), table(model_cfg)
    if wrong := tensors.keys() ^ {p.name for p in rows}:
        raise ValueError(f"expected the tensors of the parameter table, found {sorted(wrong)} unpaired")
    named = {
        group: {p.name: tensors[p.name] for p in rows if p.group == group} for group in ("table", "scalar", "matrix")
    }
    rates = {"table": c.table_lr, "scalar": c.scalar_lr, "matrix": c.matrix_lr}
    groups: dict[str, dict[str, Any]] = {
        g: {"params": list(named[g].values()), "lr": lr, "base_lr": lr} for g, lr in rates.items()
    }
    by_adam = [groups["table"], groups["scalar"]]
    if c.matrix_optimizer == "adamw":
        by_adam.append(groups["matrix"] | {"weight_decay": c.matrix_wd})
        groups["matrix"] = groups["matrix"] | {"params": []}
    adam = torch.optim.AdamW(by_adam, betas=(c.beta1, c.beta2), eps=c.eps, weight_decay=c.adam_wd, fused=True)
    for p in (p for by in by_adam for p in by["params"]):  # as torch begins at the first step
        count = torch.zeros((), device=p.device)
        adam.state[p] = {"step": count, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    group = groups["matrix"] | {
        "momentum_dtype": torch.float32 if c.momentum_dtype == "float32" else compute_dtype,
        "decay_after": c.matrix_decay == "after",
        "quintics": c.ns_quintics,
        "equal_rows": c.equal_rows,
        "conditioning": c.conditioning,
    }
    muon = Muon(
        [group], c.matrix_lr, c.momentum, c.matrix_wd, c.ns_steps, ns_dtype(c, weights.banks.qo.device), c.nesterov
    )
    return Optimizers(adam, muon, named["table"] | named["scalar"] | named["matrix"])


def ns_dtype(cfg: OptimConfig, device: torch.device) -> torch.dtype:
    """The dtype of Newton-Schulz: bfloat16, as published, wherever the device multiplies it itself."""
    if cfg.ns_dtype == "auto":
        return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
    return getattr(torch, cfg.ns_dtype)


def mask_frozen_skips(model_cfg: ModelConfig, weights: Weights) -> None:
    """Zero the gradient of the skip rows that the model holds at 0; before clipping, so that they do not count."""
    if model_cfg.frozen_skips and (grad := weights.rest["skip"].grad) is not None:
        grad[list(model_cfg.frozen_skips)] = 0


def clip_(weights: Weights, max_norm: float) -> Tensor:
    """Scale all gradients by min(1, max_norm / (norm + 1e-6)); 0 leaves them alone. Returns the norm before (0-dim).

    Not by torch's own norm, which of nine million float32 values on a CPU is a thousandth too small.
    """
    params = list(flat(weights).values())
    norm = joint_norm({name: p.grad for name, p in flat(weights).items() if p.grad is not None})
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(params, max_norm, norm)
    return norm
