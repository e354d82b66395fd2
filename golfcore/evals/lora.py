"""Low-rank adapters (Hu et al. 2021) on a block's matrices, as tensors that travel with the weights.

y <- y + (x A^T) B^T is x (W + B A)^T, so an adapted model is another `Weights` for the one forward. Shapes: U blocks,
r rank; "ROLE.a" (U, r, columns), "ROLE.b" (U, rows, r).
"""

import torch
from torch import Tensor

from golfcore.config import Config
from golfcore.model.weights import ROLES, Banks, Weights, matrix

SEED = 0  # of the adapters' start: part of the protocol, not of the run


def names(roles: tuple[str, ...]) -> list[str]:
    return [f"{role}.{part}" for role in roles for part in "ab"]


def start(cfg: Config, weights: Weights) -> dict[str, Tensor]:
    """A ~ N(0, 1 / columns) and B = 0 (pr294): at first the adapters do nothing."""
    generator = torch.Generator().manual_seed(SEED)
    found = {}
    for role in cfg.ttt.lora_roles:
        w = matrix(weights.banks, role, 0)
        a = torch.randn(cfg.model.n_blocks, cfg.ttt.lora_rank, w.shape[1], generator=generator) * w.shape[1] ** -0.5
        found[f"{role}.a"] = a.to(w.device)
        found[f"{role}.b"] = torch.zeros(cfg.model.n_blocks, w.shape[0], cfg.ttt.lora_rank, device=w.device)
    return found


def fold(weights: Weights) -> Weights:
    """`weights` with the adapters it holds, if any, added to their matrices; differentiable.

    Banks and adapters may be stacks or tuples of slices (`golfcore.model.weights.unbound`).
    """
    roles = [role for role in ROLES if f"{role}.a" in weights.rest]
    if not roles:
        return weights
    banks: dict[str, list[Tensor]] = {}
    for role in roles:
        bank, per_block, offset = ROLES[role]
        slices = banks.setdefault(bank, list(getattr(weights.banks, bank)))
        for u, (a, b) in enumerate(zip(weights.rest[f"{role}.a"], weights.rest[f"{role}.b"], strict=True)):
            slices[per_block * u + offset] = slices[per_block * u + offset] + b @ a
    stacks = {bank: torch.stack(slices) for bank, slices in banks.items()}
    rest = {name: t for name, t in weights.rest.items() if name not in names(tuple(roles))}
    return Weights(Banks(**{**weights.banks._asdict(), **stacks}), rest)
