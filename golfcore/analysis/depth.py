"""Depth recurrence: what applying the same blocks several times buys, per byte and per unit of compute (pr294).

The arms are those of `runs.stacks`: the first shares blocks, each of the others shares none and equals it in all but
what it gives up. What the applications of one block have of their own are the scales, mixes and skip weights of layers.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from golfcore.analysis import compare, runs
from golfcore.analysis.compare import EVALUATIONS, MEASURES, Arm, Scored
from golfcore.analysis.frames import frame, one, only
from golfcore.analysis.meta import each, learning_curves
from golfcore.analysis.sizes import run_bytes
from golfcore.base import tensors
from golfcore.config import Config
from golfcore.model import params
from golfcore.runs.results import FLOAT
from golfcore.runs.stacks import EQUAL, applied, exported, flops_per_token

CONTRASTS = (*EVALUATIONS, "ttt_gain")
PARTS = {"matrices": ("matrix",), "tables": ("table",), "the rest": ("projection", "control")}
SCALES = ("attn_scale", "mlp_scale", "mix_x", "mix_x0")  # the last two: rows of resid_mix, of the stream and of x0


# -- size, compute and scores


def summary(arms: Sequence[Arm]) -> pd.DataFrame:
    """Size, compute and scores: rows of kind "run", and of kind "arm" with means over seeds.

    `bytes`: of the artifact, without code, and `matrix_bytes` of it the blocks' matrices; `bits_per_parameter`: 8 bytes
    over exported parameters; `applied_per_byte`: weights that a token is multiplied with, over bytes;
    `flops_per_token`: as the function; `flops`: of the whole training. Scores in bits per byte.
    """
    rows = [_run_row(arm, run) for arm, run in each(arms)]
    means = ("bytes", "matrix_bytes", "bits_per_parameter", "applied_per_byte", "flops", *EVALUATIONS)
    for arm in arms:
        of_runs = pd.DataFrame([row for row in rows if row["kind"] == "run" and row["arm"] == arm.label])
        head = {"kind": "arm", "arm": arm.label, **source(arm), **_shape(arm.config)}
        rows.append(head | of_runs[[*means]].mean().to_dict())
    return frame(rows)


def _shape(cfg: Config) -> dict[str, Any]:
    m = cfg.model
    row = {"blocks": m.n_blocks, "layers": m.n_layers, "dim": m.dim, "mlp_hidden": m.mlp_hidden}
    return row | {"parameters": exported(m), "applied": applied(m), "flops_per_token": flops_per_token(cfg)}


def _run_row(arm: Arm, run: Scored) -> dict[str, Any]:
    shape, n_bytes = _shape(run.config), run.results["artifact"]["bytes"]
    steps = max(r["step"] for r in run.run.metrics("val"))
    return {
        **{"kind": "run", "arm": arm.label, **run_source(run), **shape, "bytes": n_bytes},
        "matrix_bytes": int(run_bytes(run.run).query("group == 'matrices'")["bytes"].sum()),
        "bits_per_parameter": 8 * n_bytes / shape["parameters"],
        "applied_per_byte": shape["applied"] / n_bytes,
        "flops": float(shape["flops_per_token"] * steps * run.config.optim.batch_tokens),
        **run.bpb,
    }


def sizes(arms: Sequence[Arm]) -> pd.DataFrame:
    """Exported parameters of each arm by part, and their artifact bytes (mean over seeds; scales are in the rest)."""
    rows = []
    for arm in arms:
        counted = params.summary(arm.config.model)
        kinds = counted["kinds"] | {"control": counted["kinds"]["control"] - counted["total"] + counted["exported"]}
        found = pd.concat([run_bytes(run.run).query("kind == 'component'") for run in arm.runs])
        n_bytes = found.groupby("group")["bytes"].sum() / len(arm.runs)
        for part, names in PARTS.items():
            group = part if part in ("matrices", "tables") else "the rest of the file"
            row = {"arm": arm.label, "part": part, "parameters": sum(kinds[kind] for kind in names)}
            rows.append(row | {"bytes": float(n_bytes.get(group, 0)), **source(arm)})
    return frame(rows)


def differences(arms: Sequence[Arm]) -> pd.DataFrame:
    """The first arm, "shared", less every other arm, by measure, with the columns of `compare.difference`.

    `equal`: what the two arms have in common by construction; `bytes_ratio`, `flops_ratio`: of shared to the other,
    the bytes as measured. Where no arm adapts there are no rows of (c) and of the gain of adaptation.
    """
    shared, rows = arms[0], []
    means = only(summary(arms), kind="arm")
    ours = one(means, arm=shared.label)
    adapts = any(run.total(MEASURES["ttt_gain"]) for _, run in each(arms))
    for other in arms[1:]:
        theirs = one(means, arm=other.label)
        ratios = {f"{name}_ratio": ours[name] / theirs[name] for name in ("bytes", "flops")}
        against = {f"other_{name}": value for name, value in source(other).items() if name != "data"}
        for name in CONTRASTS if adapts else ("static", "sliding"):
            row = {"measure": name, "arm": shared.label, "other": other.label, "equal": EQUAL.get(other.label)}
            found = compare.difference(other, shared, MEASURES[name])
            rows.append(row | ratios | found | source(shared) | against)
    return frame(rows)


def curves(arms: Sequence[Arm]) -> pd.DataFrame:
    """Validation of `learning_curves` with the training FLOPs so far, and where each row is from."""
    rows = only(learning_curves(arms), kind="val")
    per_step = {arm.label: flops_per_token(arm.config) * arm.config.optim.batch_tokens for arm in arms}
    rows["flops"] = rows["step"] * rows["arm"].map(per_step).astype(float)
    known = frame({"arm": arm.label, **run_source(run)} for arm, run in each(arms))
    return rows.merge(known, on=["arm", "seed"], how="left", sort=False)


def run_source(run: Scored) -> dict[str, Any]:
    """Run id, configuration hash, seed and data hash of one run."""
    known = runs.provenance(run.run)
    return {name: known[name] for name in ("run", "config", "seed", "data")}


def source(arm: Arm) -> dict[str, Any]:
    """The same for an arm: its runs, the hash of its configuration with seed 0, its seeds, its data."""
    row = {"runs": " ".join(run.run.id for run in arm.runs), "config": arm.config.hash}
    return row | {"seeds": " ".join(map(str, arm.seeds)), "data": arm.runs[0].data}


# -- scales


def scales(arms: Sequence[Arm]) -> pd.DataFrame:
    """Rows of kind "layer" (a layer and one of SCALES) and "skip" (a skip connection), for every run.

    `block`: what the layer reads, `application`: how often it was read before. `mean`, `spread`: mean and standard
    deviation over channels of the trained weights before quantization; `start`: the mean at initialization. A skip's
    `layer` is the one it enters, `from_layer` the one it leaves.
    """
    return frame(row for arm, run in each(arms) for row in _scale_rows(arm, run))


def _scale_rows(arm: Arm, run: Scored) -> Iterator[dict[str, Any]]:
    m, trained, start = run.config.model, trained_weights(run), params.init(run.config.model, 0).rest
    head = {"arm": arm.label, **run_source(run)}
    for name in SCALES:
        now, before = by_layer(trained, name), by_layer(start, name)
        for i, block in enumerate(m.blocks):
            at = {"layer": i, "block": block, "application": m.blocks[:i].count(block), "name": name}
            yield {"kind": "layer", **head, **at, **_moments(now[i], before[i])}
    for i in range(m.n_skips):
        enters, leaves = m.n_layers // 2 + i, m.n_layers // 2 - 1 - i
        at = {"layer": enters, "from_layer": leaves, "block": m.blocks[enters], "name": "skip"}
        yield {"kind": "skip", **head, **at, **_moments(trained["skip"][i], start["skip"][i])}


def _moments(now: Tensor, before: Tensor) -> dict[str, float]:
    return {"mean": float(now.mean()), "spread": float(now.std(correction=0)), "start": float(before.mean())}


def trained_weights(run: Scored) -> dict[str, Tensor]:
    """The weights of a run before quantization, by name."""
    return tensors.load(run.run.file(FLOAT), "trained weights")[0]


def by_layer(weights: dict[str, Tensor], name: str) -> Tensor:
    """(L, D) of one of SCALES."""
    if name.startswith("mix_"):
        return weights["resid_mix"][:, ("mix_x", "mix_x0").index(name)]
    return weights[name]


def specialisation(arms: Sequence[Arm]) -> pd.DataFrame:
    """How far the applications of a block have gone apart, for each run, one of SCALES and block.

    Of what training changed (R applications x D channels, trained less initial): `between`, the variance over
    applications of their means; `within`, the mean over applications of the variance over channels; `ratio` of the two.
    And the shares of the whole variance, a two-way layout that sums to 1: `level` (applications differ in their mean),
    `common` (channels differ, alike in all applications), `pattern` (what is left: channels that differ in one
    application only). Unrelated applications have a `common` share of about 1/R.

    Layers are grouped by the blocks of the first arm, also in an arm that has as many layers and shares nothing
    (`shares` false): what layers at these places differ by without a block in common.
    """
    blocks, rows = arms[0].config.model.blocks, []
    groups = {block: [i for i, read in enumerate(blocks) if read == block] for block in sorted(set(blocks))}
    for arm in arms:
        if arm.config.model.n_layers != len(blocks):
            continue
        start = params.init(arm.config.model, 0).rest
        for run in arm.runs:
            trained = trained_weights(run)
            for name in SCALES:
                change = by_layer(trained, name) - by_layer(start, name)
                for block, layers in groups.items():
                    head = {"arm": arm.label, **run_source(run), "shares": arm is arms[0], "name": name}
                    head |= {"block": block, "applications": len(layers)}
                    if len(layers) > 1:
                        rows.append(head | variances(change[layers]))
    return frame(rows)


def variances(x: Tensor) -> dict[str, float]:
    """The numbers of `specialisation` for x (R, D); no shares where nothing varies."""
    x = x.to(torch.float64)
    between, within = float(x.mean(1).var(correction=0)), float(x.var(1, correction=0).mean())
    row, total = {"between": between, "within": within}, between + within
    if total == 0:
        return row
    common = float(x.mean(0).var(correction=0))
    row |= {"level": between / total, "common": common / total, "pattern": (within - common) / total}
    return row | ({"ratio": between / within} if within else {})
