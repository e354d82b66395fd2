"""Several trained models of one shape on one text: what they are, and every comparison of their weights as frames."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from golfcore import config
from golfcore.analysis import alignment, functional, geometry, stats, surface, weight_space
from golfcore.analysis.compare import Arm, Scored, compare
from golfcore.analysis.frames import frame
from golfcore.analysis.text import text_of
from golfcore.base import files, tensors
from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.config import ModelConfig
from golfcore.model.forward import Net
from golfcore.model.weights import Weights, fingerprint, matrices
from golfcore.runs.results import ARTIFACT, FLOAT, load_weights, packed_facts


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
    weights = {run.id: load_weights(run.file(FLOAT)) for run in runs}
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
        cfg, weights = config.of_run(run), load_weights(run.file(FLOAT))
        row = {"run": run.id, "name": cfg.name, "seed": cfg.run.seed, "config": run.config_hash()}
        row["steps"] = max((r["step"] for r in run.metrics("train")), default=0)
        rows.append(row | {"weights": fingerprint(weights)[:16], "data": run.data_hash()[:16]})
    return frame(rows)


def tables(models: Models, points: int = 11, kept: Path | None = None) -> dict[str, pd.DataFrame]:
    """The frame of each figure of weight space, by its name.

    noise: `weight_space.noise`, the published measures beside noise with the same norms. spectra, overlaps: of
    `geometry`. distances: `alignment.distances` to the first model, with `aligned` (before or after). line, swaps:
    `surface.line` and `surface.swaps` from the first model to every other, `aligned` or not. layers:
    `functional.representations`. angles, singular, norms: of `geometry`. map: `flat_map`. plane: `surface.plane` of the
    first three. Scores are kept in the folder `kept`, if it is given, and not computed again.
    """
    names, corners = list(models.weights), list(models.weights.values())[:3]
    states = {name: dict(zip(weight_space.BANKS, w.banks, strict=True)) for name, w in models.weights.items()}
    target, before = models.weights[names[0]], {n: models.weights[n] for n in names[1:]}
    after = {name: nearest(models.cfg, target, w) for name, w in before.items()}
    sides, score = {False: before, True: after}, surface.row_scores(models.net, models.x, models.y)
    if kept is not None:
        of = files.sha256_text(f"{models.cfg} {tensors.digest({'x': models.x, 'y': models.y})}")
        score = surface.kept(score, kept / f"scores-{of[:16]}.jsonl")
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
        "angles": geometry.angle_spectra(models.weights),
        "singular": geometry.singular_values(models.weights),
        "norms": geometry.slot_norms(models.weights),
        "map": flat_map(models.weights),
        "plane": surface.plane(score, corners[0], corners[1], corners[2]) if len(corners) == 3 else frame([]),
    }


def curvature(run: RunFolder, rows: int) -> dict[str, pd.DataFrame]:
    """`surface.adaptation` of a finished run's averaged weights, in what its TTT adapts, on rows of validation text."""
    cfg, (net, x, y) = packed_facts(run.file(ARTIFACT)).chosen(config.of_run(run)), rows_of(run, rows)
    return surface.adaptation(cfg, net, load_weights(run.file(FLOAT), x.device), x, y, cfg.ttt.lr)


def conditioning(arms: Sequence[Arm]) -> pd.DataFrame:
    """`compare.compare` of what arms score, (b) and what adapting gains, below two measures of their weights.

    `condition`: of the block matrices of the averaged weights, as their geometric mean. `artifact`: bytes. Of both,
    `mean` is geometric over seeds and `difference` the logarithm of the ratio to the first arm, with an interval over
    the seeds that both have.
    """
    measures = {"condition": _condition, "artifact": lambda run: np.log(run.results["artifact"]["bytes"])}
    rows = []
    for measure, of in measures.items():
        logs = [{run.seed: float(of(run)) for run in arm.runs} for arm in arms]
        for arm, found in zip(arms, logs, strict=True):
            mean = float(np.exp(np.mean(list(found.values()))))
            rows.append({"measure": measure, "arm": arm.label, "seeds": len(found), "mean": mean})
            pairs = np.array([value - logs[0][seed] for seed, value in found.items() if seed in logs[0]])
            if len(pairs) and arm is not arms[0]:
                beside = stats.over_seeds(pairs)
                rows[-1] |= {"difference": beside.pop("value"), **beside, "over": "seeds"}
    scores = compare(arms)
    return frame(pd.concat([frame(rows), scores[scores["measure"].isin(("sliding", "ttt_gain"))]]))


def _condition(run: Scored) -> float:
    """The mean logarithm of the block matrices' conditions."""
    return float(np.log(geometry.spectra({"": load_weights(run.run.file(FLOAT))})["condition"]).mean())


def flat_map(models: Mapping[str, Weights]) -> pd.DataFrame:
    """Points in the plane whose distances come nearest to those between the models' matrices (classical scaling).

    Columns: model, x, y, norm, kept (share of the squared distances that the plane shows). Independent models of equal
    norms lie sqrt(2) norms apart.
    """
    flat_ones = [torch.cat([m.flatten() for _, m in matrices(w)]).double() for w in models.values()]
    gram = (stack := torch.stack(flat_ones)) @ stack.T
    centred = torch.eye(len(gram), dtype=torch.float64) - 1 / len(gram)
    values, vectors = torch.linalg.eigh(centred @ gram @ centred)
    values = values.clamp(min=0).flip(0)
    places = torch.nn.functional.pad((vectors.flip(1) * values.sqrt())[:, :2], (0, max(0, 2 - len(gram))))
    share = float(values[:2].sum() / values.sum().clamp(min=1e-30))
    found = zip(models, places.tolist(), gram.diagonal().sqrt().tolist(), strict=True)
    return frame({"model": m, "x": x, "y": y, "norm": norm, "kept": share} for m, (x, y), norm in found)


def nearest(cfg: ModelConfig, target: Weights, weights: Weights) -> Weights:
    """`alignment.align` with or without the residual stream, whichever comes nearer (none, where both began alike)."""
    found = [alignment.align(cfg, target, weights, stream) for stream in (False, True)]
    return min(found, key=lambda w: alignment.distances({"a": target, "b": w}, "a")["l2"].iloc[-1])
