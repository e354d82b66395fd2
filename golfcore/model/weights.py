"""Weights as a value: four banks of matrices stacked by block, and everything else by name.

Shapes: U unique blocks, D width, H heads, Hkv key/value heads, K head width, F hidden width.
Block u owns the pair of slots 2u, 2u+1 of `qo` (query, output) and `kv` (key, value).
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Banks(NamedTuple):
    qo: Tensor  # (2U, D, D)      even: query, odd: output
    kv: Tensor  # (2U, Hkv*K, D)  even: key, odd: value
    up: Tensor  # (U, F, D)       SwiGLU: (U, 2h, D), gate rows first
    down: Tensor  # (U, D, F)     SwiGLU: (U, D, h)


class Weights(NamedTuple):
    banks: Banks
    rest: dict[str, Tensor]  # names and shapes: golfcore.model.params.table


ROLES = {  # role -> bank, slots a block, slot within the block
    "query": ("qo", 2, 0),
    "out": ("qo", 2, 1),
    "key": ("kv", 2, 0),
    "value": ("kv", 2, 1),
    "up": ("up", 1, 0),
    "down": ("down", 1, 0),
}


def flat(weights: Weights) -> dict[str, Tensor]:
    """Every tensor by name, the banks first. The inverse of `unflat`."""
    return {**weights.banks._asdict(), **weights.rest}


def unflat(tensors: Mapping[str, Tensor]) -> Weights:
    rest = dict(tensors)
    return Weights(Banks(*(rest.pop(name) for name in Banks._fields)), rest)


def fingerprint(weights: Weights) -> str:
    """SHA-256 of every value, the same in any dtype that holds them."""
    digest = hashlib.sha256()
    for tensor in flat(weights).values():
        digest.update(tensor.detach().cpu().float().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tree_map(fn: Callable[..., Tensor], *trees: Weights) -> Weights:
    """`fn` over corresponding tensors of trees with the same names."""
    flats = [flat(t) for t in trees]
    return unflat({name: fn(*(f[name] for f in flats)) for name in flats[0]})


def slot(role: str, block: int) -> tuple[str, int]:
    """Bank name and slot index of a block's matrix."""
    bank, per_block, offset = ROLES[role]
    return bank, per_block * block + offset


def matrix(banks: Banks, role: str, block: int) -> Tensor:
    """The (rows, columns) view that block `block` uses as `role`; applied as x @ W.T."""
    bank, index = slot(role, block)
    return getattr(banks, bank)[index]


def unbound(weights: Weights) -> Weights:
    """The same with every stack as a tuple of its slices, indexed as before.

    One `unbind` has one backward; indexing a stack instead makes a stack of zeros for the gradient of every slice.
    What is a tuple already stays as it is: meta-learning differentiates some slices of a stack and not others.
    """
    stacks = (*Banks._fields, "attn_scale", "mlp_scale", "resid_mix", "q_gain", "skip", "ve_layer_scale")
    tensors = flat(weights).items()
    cut = {name: t.unbind() if name in stacks and isinstance(t, Tensor) else t for name, t in tensors}
    return unflat(cut)  # type: ignore[arg-type]


def matrix_name(role: str, block: int) -> str:
    return f"block{block}.{role}"


def matrices(weights: Weights) -> Iterator[tuple[str, Tensor]]:
    """(name, view) of every bank matrix, block by block."""
    for block in range(len(weights.banks.up)):
        for role in ROLES:
            yield matrix_name(role, block), matrix(weights.banks, role, block)


def map_matrices(fn: Callable[[str, Tensor], Tensor], weights: Weights) -> Weights:
    """Replace every bank matrix by `fn(name, matrix)`; differentiable."""
    new = {name: fn(name, m) for name, m in matrices(weights)}
    return weights._replace(banks=stacked(new, len(weights.banks.up)))


def stacked(named: Mapping[str, Tensor], n_blocks: int) -> Banks:
    """The banks of matrices by name."""
    slots: dict[str, list[Tensor]] = {bank: [] for bank in Banks._fields}
    for block in range(n_blocks):
        for role, (bank, _, _) in ROLES.items():
            slots[bank].append(named[matrix_name(role, block)])
    return Banks(*map(torch.stack, slots.values()))


def detach(weights: Weights) -> Weights:
    """A float32 copy that shares nothing with `weights` and has no gradient history."""
    return tree_map(lambda t: t.detach().to(torch.float32, copy=True), weights)


def to_device(weights: Weights, device: torch.device | str) -> Weights:
    return tree_map(lambda t: t.to(device), weights)


def count(weights: Weights) -> int:
    """All scalars of all tensors."""
    return sum(t.numel() for t in flat(weights).values())
