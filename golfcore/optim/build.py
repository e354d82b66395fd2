"""From the parameter table to optimizers: leaf tensors, groups, clipping, and a state that can be saved."""

from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from golfcore.base.errors import UserError
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

    def step(self, scale: float, momentum: float) -> None:
        """One update with every learning rate times `scale`; `momentum` is Muon's.

        A parameter whose gradient is None is left alone: no update, no decay, no step counted (torch's AdamW, and what
        exp106 relied on).
        """
        for part in self.parts:
            for group in part.optimizer.param_groups:
                group["lr"] = part.base_lr * scale
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

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace the whole state by a copy of what `state_tensors` returned, bit for bit.

        Raises UserError, with the state as before, naming a key that is missing, unknown, or of another shape or dtype.
        """
        left = dict(tensors)
        states = []
        for part in self.parts:
            for name, p in part.params.items():
                found = {s: left.pop(key) for s in SLOTS[part.kind] if (key := f"{part.kind}/{name}/{s}") in left}
                if found:
                    states.append((part.optimizer, p, self._checked(part, name, found)))
        if left:
            raise UserError(f"optimizer state: expected slots of known parameters, found {min(left)!r}")
        for part in self.parts:
            part.optimizer.state.clear()
        for optimizer, p, state in states:
            optimizer.state[p] = state

    def _checked(self, part: Part, name: str, found: dict[str, Tensor]) -> dict[str, Tensor]:
        group, p = part.optimizer.param_groups[0], part.params[name]
        checked = {}
        for slot in sorted(SLOTS[part.kind]):
            key = f"{part.kind}/{name}/{slot}"
            like: tuple[Any, Any] = (p.shape, group["momentum_dtype"] if part.kind == "muon" else p.dtype)
            device = p.device
            if slot == "step":
                like = (torch.Size(), torch.float32)
                device = p.device if group["fused"] else torch.device("cpu")  # where torch's AdamW keeps it
            if slot not in found:
                raise UserError(f"optimizer state: expected {key!r} beside the parameter's other slots, found none")
            value = found[slot]
            if (value.shape, value.dtype) != like:
                raise UserError(
                    f"optimizer state {key!r}: expected {like[1]} of shape {tuple(like[0])}, "
                    f"found {value.dtype} of shape {tuple(value.shape)}"
                )
            checked[slot] = value.detach().to(device, copy=True)
        return checked


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
    muon = Muon(
        matrices.values(),
        c.matrix_lr,
        c.momentum,
        c.matrix_wd,
        c.ns_steps,
        compute_dtype,
        torch.float32 if c.momentum_dtype == "float32" else compute_dtype,
        decay_after=c.matrix_decay == "after",
    )
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
