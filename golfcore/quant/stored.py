"""The stored form of a model (codes with scales, or float16) and the float32 weights made from it.

Apart from quantize.py, because the code that reads an artifact counts against its size: reading needs no GPTQ.
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from golfcore.config import ModelConfig
from golfcore.model import params
from golfcore.model.params import Param
from golfcore.model.weights import ROLES, Banks, Weights, matrix_name, stacked
from golfcore.quant.grid import dequantize


class Coded(NamedTuple):
    codes: Tensor  # (rows, columns) int8
    scale: Tensor  # (rows,) float16; (1,) if one scale is of all rows


Entry = Coded | Tensor  # a tensor is float16
Quantized = dict[str, Entry]  # by the names of `entries`


def entries(cfg: ModelConfig) -> dict[str, Param]:
    """Everything that is exported, by name: the parameter table, with the banks as the matrices they are stacks of."""
    out = {}
    for p in params.table(cfg):
        if p.name in Banks._fields:
            roles = [role for role, (bank, _, _) in ROLES.items() if bank == p.name]
            names = [matrix_name(role, block) for block in range(cfg.n_blocks) for role in roles]
            out.update({name: p._replace(name=name, shape=p.shape[1:]) for name in names})
        elif p.exported:
            out[p.name] = p
    return out


def by_rows(spec: Param) -> bool:
    """Whether steps in root mean squares are of each row: of tables, not of matrices."""
    return spec.kind == "table"


def dequantize_weights(cfg: ModelConfig, quantized: Mapping[str, Entry]) -> Weights:
    """float32 weights in the shapes of the parameter table, train-only tensors left out."""
    tensors = {name: dequantize(*e) if isinstance(e, Coded) else e.float() for name, e in quantized.items()}
    rest = {p.name: tensors[p.name] for p in params.table(cfg) if p.name in tensors}
    return Weights(stacked(tensors, cfg.n_blocks), rest)
