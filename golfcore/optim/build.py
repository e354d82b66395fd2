"""From the parameter table to optimizers: leaf tensors, groups, clipping, and a state that can be saved."""

from collections.abc import Collection, Mapping
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from golfcore.base.tensors import expect
from golfcore.config import ModelConfig, OptimConfig
from golfcore.model.params import Group, table
from golfcore.model.weights import Weights, flat, unflat
from golfcore.optim.muon import Muon

SLOTS = {"adam": {"step", "exp_avg", "exp_avg_sq"}, "muon": {"momentum"}}  # what an optimizer keeps for a parameter


class Part(NamedTuple):
    kind: str  # a key of SLOTS
    optimizer: torch.optim.Optimizer
    base_lr: float
    params: dict[str, Tensor]  # by name


class Optimizers:
    """The optimizers of all parameters; they are stepped in the order tables, scalars, matrices (exp101)."""

    def __init__(self, parts: list[Part]) -> None:
        self.parts = parts

    def step(self, lr_multiplier: float, momentum: float) -> None:
        """One update with every learning rate times `lr_multiplier`; `momentum` is Muon's.

        A parameter whose gradient is None is left alone: no update, no decay, no step counted (torch's AdamW, and what
        exp106 relied on).
        """
        for part in self.parts:
            for group in part.optimizer.param_groups:
                group["lr"] = part.base_lr * lr_multiplier
                if part.kind == "muon":
                    group["momentum"] = momentum
            part.optimizer.step()

    def zero_grad(self) -> None:
        """Set every gradient to None."""
        for part in self.parts:
            part.optimizer.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """The state by optimizer, parameter and slot ("adam/tok_emb/exp_avg", "muon/qo/momentum"); not copied.

        Parameters that were never updated have no entries. The same on every rank.
        """
        return {
            f"{part.kind}/{name}/{slot}": part.optimizer.state[p][slot]
            for part in self.parts
            for name, p in part.params.items()
            if p in part.optimizer.state
            for slot in sorted(SLOTS[part.kind])
        }

    def load_state_tensors(self, tensors: Mapping[str, Tensor], updated: Collection[str] = ()) -> None:
        """Replace the whole state by a copy of what `state_tensors` returned, bit for bit.

        Raises UserError, with the state as before, naming a key that is missing, unknown, or of another shape or dtype.
        The parameters `updated` must have their slots; of any other, all or none.
        """
        present = {key.rsplit("/", 1)[0] for key in tensors}
        like = {
            f"{part.kind}/{name}": self._slots(part, name)
            for part in self.parts
            for name in part.params
            if name in updated or f"{part.kind}/{name}" in present
        }
        expect(tensors, {f"{p}/{slot}": t for p, slots in like.items() for slot, t in slots.items()}, "optimizer state")
        for part in self.parts:
            part.optimizer.state.clear()
            for name, p in part.params.items():
                key = f"{part.kind}/{name}"
                for slot, place in like.get(key, {}).items():
                    part.optimizer.state[p][slot] = tensors[f"{key}/{slot}"].detach().to(place.device, copy=True)

    def _slots(self, part: Part, name: str) -> dict[str, Tensor]:
        """Tensors of the shapes, dtypes and places that the optimizer's slots of a parameter have."""
        group, p = part.optimizer.param_groups[0], part.params[name]
        if part.kind == "muon":
            return {"momentum": torch.empty_like(p, dtype=group["momentum_dtype"])}
        count = torch.empty((), device=p.device if group["fused"] else "cpu")  # where torch's AdamW keeps it
        return {"step": count, "exp_avg": torch.empty_like(p), "exp_avg_sq": torch.empty_like(p)}


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
    low = compute_dtype if optim_cfg.table_dtype == "compute" else torch.float32
    tensors = flat(weights)
    return unflat(
        {
            p.name: tensors[p.name]
            .detach()
            .to(device, low if p.group == "table" else torch.float32, copy=True)
            .requires_grad_(p.group != "none")
            for p in table(model_cfg)
        }
    )


def build(model_cfg: ModelConfig, optim_cfg: OptimConfig, weights: Weights, compute_dtype: torch.dtype) -> Optimizers:
    """AdamW for tables and scalars, Muon for matrices, nothing for the rest, by the groups of the parameter table.

    `weights` are leaves, updated in place. `compute_dtype` is that of Newton-Schulz, and of Muon's momentum if
    `optim_cfg.momentum_dtype` says so; AdamW's moments have the dtype of their parameter. Raises
    ValueError if the table does not cover the tensors exactly once.
    """
    c, tensors, rows = optim_cfg, flat(weights), table(model_cfg)
    if sorted(tensors) != sorted(p.name for p in rows):
        raise ValueError(f"expected the tensors {sorted(p.name for p in rows)}, found {sorted(tensors)}")
    groups: dict[str, dict[str, Tensor]] = {name: {} for name in get_args(Group)}
    for p in rows:
        groups[p.group][p.name] = tensors[p.name]

    def adam(name: str, lr: float) -> Part:
        params = groups[name]
        optimizer = torch.optim.AdamW(
            params.values(),
            lr=lr,
            betas=(c.beta1, c.beta2),
            eps=c.eps,
            weight_decay=c.adam_wd,
            fused=all(t.is_cuda for t in params.values()),
        )
        return Part("adam", optimizer, lr, params)

    matrices = groups["matrix"]
    group = {
        "params": list(matrices.values()),
        "momentum_dtype": torch.float32 if c.momentum_dtype == "float32" else compute_dtype,
        "decay_after": c.matrix_decay == "after",
    }
    muon = Muon([group], c.matrix_lr, c.momentum, c.matrix_wd, c.ns_steps, compute_dtype, c.nesterov)
    tables, scalars = adam("table", c.table_lr), adam("scalar", c.scalar_lr)
    return Optimizers([tables, scalars, Part("muon", muon, c.matrix_lr, matrices)])


def mask_frozen_skips(model_cfg: ModelConfig, weights: Weights) -> None:
    """Zero the gradient of the skip rows that the model holds at 0; before clipping, so that they do not count."""
    if model_cfg.frozen_skips and (grad := weights.rest["skip"].grad) is not None:
        grad[list(model_cfg.frozen_skips)] = 0


def clip_(weights: Weights, max_norm: float) -> Tensor:
    """Scale all gradients by min(1, max_norm / (norm + 1e-6)); 0 leaves them alone. Returns the norm before (0-dim)."""
    params = list(flat(weights).values())
    norm = torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(params, max_norm, norm)
    return norm
