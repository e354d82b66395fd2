"""Several trained models of one shape on one text: what they are, and every comparison of their weights as frames."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from golfcore import config
from golfcore.analysis import alignment, functional, geometry, surface, weight_space
from golfcore.analysis.frames import frame
from golfcore.analysis.text import text_of
from golfcore.base import tensors
from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.config import ModelConfig
from golfcore.model.forward import Net
from golfcore.model.weights import Weights, fingerprint, unflat

FLOAT = "weights.safetensors"  # of a run: its averaged weights before rounding


class Models(NamedTuple):
    """Models by run id, and rows of the validation text that all are looked at on."""

    net: Net
    weights: dict[str, Weights]
    x: Tensor  # (B, T)
    y: Tensor

    @property
    def cfg(self) -> ModelConfig:
        return self.net.cfg


def models_of(runs: Sequence[RunFolder], rows: int) -> Models:
    """The averaged weights of finished runs, and the first `rows` rows of their validation text.

    UserError: fewer than two, models of different shapes, runs on different data, or less text than that.
    """
    if len(runs) < 2:
        raise UserError(f"runs: expected two or more, found {len(runs)}")
    first, cfg = runs[0], config.of_run(runs[0])
    for run in runs[1:]:
        if config.of_run(run).model != cfg.model or run.data_hash() != first.data_hash():
            raise UserError(f"{run.path}: expected the model and the data of {first.path}, found others")
    weights = {run.id: unflat(tensors.load(run.file(FLOAT), "trained weights")[0]) for run in runs}
    net, x, y = rows_of(first, rows)
    return Models(net, weights, x, y)


def rows_of(run: RunFolder, rows: int) -> tuple[Net, Tensor, Tensor]:
    """The network of a run, and inputs and targets of the first rows of its validation text. UserError: too few."""
    cfg, text = config.of_run(run), text_of(run)
    length = cfg.data.seq_len
    if not 0 < rows * length < len(text.val):
        raise UserError(f"rows: expected 1 to {(len(text.val) - 1) // length} of {length} tokens, found {rows}")
    tokens = torch.from_numpy(text.val[: rows * length + 1].astype("int64"))
    return Net(cfg.model, text.tables), tokens[:-1].view(rows, length), tokens[1:].view(rows, length)


def identity(runs: Sequence[RunFolder]) -> pd.DataFrame:
    """One row a run: run, name, seed, config (hash), steps, weights (hash of the values), data (hash)."""
    rows = []
    for run in runs:
        cfg, weights = config.of_run(run), unflat(tensors.load(run.file(FLOAT), "trained weights")[0])
        row = {"run": run.id, "name": cfg.name, "seed": cfg.run.seed, "config": run.config_hash()}
        row["steps"] = max((r["step"] for r in run.metrics("train")), default=0)
        rows.append(row | {"weights": fingerprint(weights)[:16], "data": run.data_hash()[:16]})
    return frame(rows)


def tables(models: Models, points: int = 11) -> dict[str, pd.DataFrame]:
    """The frame of each figure of weight space, by its name.

    noise: `weight_space.noise`, the published measures beside noise with the same norms. spectra, overlaps: of
    `geometry`. distances: `alignment.distances` to the first model, with `aligned` (before or after). line, swaps:
    `surface.line` and `surface.swaps` from the first model to every other, `aligned` or not. layers:
    `functional.representations`.
    """
    names = list(models.weights)
    states = {name: dict(zip(weight_space.BANKS, w.banks, strict=True)) for name, w in models.weights.items()}
    target, before = models.weights[names[0]], {n: models.weights[n] for n in names[1:]}
    after = {name: nearest(models.cfg, target, w) for name, w in before.items()}
    sides, score = {False: before, True: after}, surface.row_scores(models.net, models.x, models.y)
    distances = [alignment.distances({names[0]: target, **s}, names[0]).assign(aligned=a) for a, s in sides.items()]
    lines = [
        surface.line(score, target, w, points).assign(models=f"{names[0]} to {name}", aligned=aligned)
        for aligned, side in sides.items()
        for name, w in side.items()
    ]
    swapped = [
        surface.swaps(score, target, w).assign(models=f"{names[0]} with {name}", aligned=aligned)
        for aligned, side in sides.items()
        for name, w in side.items()
    ]
    return {
        "noise": weight_space.noise(states),
        "spectra": geometry.spectra(models.weights),
        "overlaps": geometry.overlaps(models.weights),
        "distances": frame(pd.concat(distances)),
        "line": frame(pd.concat(lines)),
        "swaps": frame(pd.concat(swapped)),
        "layers": functional.representations(models.net, models.weights, models.x),
    }


def nearest(cfg: ModelConfig, target: Weights, weights: Weights) -> Weights:
    """`alignment.align` with or without the residual stream, whichever comes nearer (none, where both began alike)."""
    found = [alignment.align(cfg, target, weights, stream) for stream in (False, True)]
    return min(found, key=lambda w: alignment.distances({"a": target, "b": w}, "a")["l2"].iloc[-1])
