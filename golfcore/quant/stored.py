"""The stored form of a model (codes with scales, or float16) and the float32 weights made from it.

Apart from quantize.py, because the code that reads an artifact counts against its size: reading needs no GPTQ.
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from golfcore.config import ModelConfig
from golfcore.model import params
from golfcore.model.params import Kind
from golfcore.model.weights import ROLES, Banks, Weights, matrix_name, stacked
from golfcore.quant.grid import dequantize


class Coded(NamedTuple):
    codes: Tensor  # (rows, columns) int8
    scale: Tensor  # (rows,) float16


Entry = Coded | Tensor  # a tensor is float16
Quantized = dict[str, Entry]  # by the names of `entries`


class Spec(NamedTuple):
    shape: tuple[int, ...]
    kind: Kind


def entries(cfg: ModelConfig) -> dict[str, Spec]:
    """Name, shape and kind of everything that is exported; the banks as the matrices they are stacks of."""
    out = {}
    for p in params.table(cfg):
        if p.name in Banks._fields:
            roles = [role for role, (bank, _, _) in ROLES.items() if bank == p.name]
            for block in range(cfg.n_blocks):
                out.update({matrix_name(role, block): Spec(p.shape[1:], p.kind) for role in roles})
        elif p.exported:
            out[p.name] = Spec(p.shape, p.kind)
    return out


def restore(entry: Entry) -> Tensor:
    """float32 values of one stored tensor, in its shape."""
    return dequantize(*entry) if isinstance(entry, Coded) else entry.float()


def dequantize_weights(cfg: ModelConfig, quantized: Mapping[str, Entry]) -> Weights:
    """float32 weights in the shapes of the parameter table, train-only tensors left out."""
    tensors = {name: restore(entry) for name, entry in quantized.items()}
    rest = {p.name: tensors[p.name] for p in params.table(cfg) if p.name in tensors}
    return Weights(stacked(tensors, cfg.n_blocks), rest)
