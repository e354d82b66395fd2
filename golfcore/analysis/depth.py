"""Depth recurrence: what applying the same blocks several times buys, per byte and per unit of compute (pr294).

The arms are those of `runs.stacks`: the first shares blocks, each of the others shares none and equals it in all but
what it gives up. What the applications of one block have of their own are the scales, mixes and skip weights of layers.
Every row says where it is from: run id, configuration hash, seed and data hash; an arm's has the hash with seed 0.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from golfcore.analysis import compare
from golfcore.analysis.compare import EVALUATIONS, Arm, Scored, each
from golfcore.analysis.frames import frame, only
from golfcore.analysis.meta import learning_curves
from golfcore.analysis.sizes import run_bytes
from golfcore.base import tensors
from golfcore.model import params
from golfcore.runs.results import FLOAT
from golfcore.runs.stacks import EQUAL, applied, exported, flops_per_token

PARTS = {"matrices": ("matrix",), "tables": ("table",), "the rest": ("projection", "control")}
SCALES = ("attn_scale", "mlp_scale", "mix_x", "mix_x0")  # the last two: rows of resid_mix, of the stream and of x0


def _run_source(arm: Arm, run: Scored) -> dict[str, Any]:
    known = {"run": run.run.id, "config": run.run.config_hash(), "seed": run.seed, "data": run.run.data_hash()}
    return {"arm": arm.label} | known


def _source(arm: Arm) -> dict[str, Any]:
    row = {"runs": " ".join(run.run.id for run in arm.runs), "config": arm.config.hash}
    return row | {"seeds": " ".join(map(str, arm.seeds)), "data": arm.runs[0].run.data_hash()}


# -- size, compute and scores


def summary(arms: Sequence[Arm]) -> pd.DataFrame:
    """Size, compute and scores: rows of kind "run", and of kind "arm" with means over seeds.

    `bytes`: of the artifact, without code, and `matrix_bytes` of it the blocks' matrices; `bits_per_parameter`: 8 bytes
    over exported parameters; `applied_per_byte`: weights that a token is multiplied with, over bytes;
    `flops_per_token`: as the function; `flops`: of the whole training. Scores in bits per byte.
    """
    rows, means = [], []
    for arm in arms:
        m, per_token = arm.config.model, flops_per_token(arm.config)
        shape = {"blocks": m.n_blocks, "layers": m.n_layers, "dim": m.dim, "mlp_hidden": m.mlp_hidden}
        shape |= {"parameters": exported(m), "applied": applied(m), "flops_per_token": per_token}
        measured = []
        for run in arm.runs:
            n_bytes, steps = run.results["artifact"]["bytes"], max(r["step"] for r in run.run.metrics("val"))
            row = {"bytes": n_bytes, "matrix_bytes": int(only(run_bytes(run.run), group="matrices")["bytes"].sum())}
            row |= {"bits_per_parameter": 8 * n_bytes / shape["parameters"]}
            row |= {"applied_per_byte": shape["applied"] / n_bytes}
            row |= {"flops": float(per_token * steps * arm.config.optim.batch_tokens)}
            measured.append(row | {name: run.totals[name] for name in EVALUATIONS})
            rows.append({"kind": "run", **_run_source(arm, run), **shape, **measured[-1]})
        mean = pd.DataFrame(measured).mean().to_dict()
        means.append({"kind": "arm", "arm": arm.label, **_source(arm), **shape, **mean})
    return frame([*rows, *means])


def sizes(arms: Sequence[Arm]) -> pd.DataFrame:
    """Exported parameters of each arm by part, and their artifact bytes (mean over seeds; scales are in the rest)."""
    rows = []
    for arm in arms:
        counted = params.summary(arm.config.model)
        kinds = counted["kinds"] | {"control": counted["kinds"]["control"] - counted["total"] + counted["exported"]}
        found = pd.concat([only(run_bytes(run.run), kind="component") for run in arm.runs])
        n_bytes = found.groupby("group")["bytes"].sum() / len(arm.runs)
        for part, names in PARTS.items():
            group = "the rest of the file" if part == "the rest" else part
            row = {"arm": arm.label, "part": part, "parameters": sum(kinds[kind] for kind in names)}
            rows.append(row | {"bytes": float(n_bytes.get(group, 0)), **_source(arm)})
    return frame(rows)


def differences(arms: Sequence[Arm]) -> pd.DataFrame:
    """The first arm, "shared", less every other arm, by measure, with the columns of `compare.difference`.

    `equal`: what the two arms have in common by construction; `bytes_ratio`, `flops_ratio`: of shared to the other,
    the bytes as measured. Where no arm adapts there are no rows of (c) and of the gain of adaptation.
    """
    shared, rows = arms[0], []
    means = only(summary(arms), kind="arm").set_index("arm")[["bytes", "flops"]]
    ratios = (means.loc[shared.label] / means).add_suffix("_ratio").to_dict("index")
    adapts = any(run.totals["ttt_gain"] for _, run in each(arms))
    for other in arms[1:]:
        against = {f"other_{name}": value for name, value in _source(other).items() if name != "data"}
        for name in (*EVALUATIONS, "ttt_gain") if adapts else ("static", "sliding"):
            row = {"measure": name, "arm": shared.label, "other": other.label, "equal": EQUAL.get(other.label)}
            found = compare.difference(other, shared, name)
            rows.append(row | ratios[other.label] | found | _source(shared) | against)
    return frame(rows)


def curves(arms: Sequence[Arm]) -> pd.DataFrame:
    """Validation of `learning_curves` with the training FLOPs so far, and where each row is from."""
    rows = only(learning_curves(arms), kind="val")
    per_step = {arm.label: flops_per_token(arm.config) * arm.config.optim.batch_tokens for arm in arms}
    rows["flops"] = rows["step"] * rows["arm"].map(per_step).astype(float)
    known = frame(_run_source(arm, run) for arm, run in each(arms))
    return rows.merge(known, on=["arm", "seed"], how="left", sort=False)


# -- scales


def scales(arms: Sequence[Arm]) -> pd.DataFrame:
    """Rows of kind "layer" (a layer and one of SCALES) and "skip" (a skip connection), for every run.

    `block`: what the layer reads, `application`: how often it was read before. `mean`, `spread`: mean and standard
    deviation over channels of the trained weights before quantization; `start`: the mean at initialization. A skip's
    `layer` is the one it enters, `from_layer` the one it leaves.
    """
    rows = []
    for arm, run in each(arms):
        m, (trained, start) = arm.config.model, _weights(run)
        half = m.n_layers // 2
        places: list[tuple[int, dict[str, Any]]] = [
            (i, {"kind": "layer", "layer": i, "application": m.blocks[:i].count(m.blocks[i]), "name": name})
            for name in SCALES
            for i in range(m.n_layers)
        ]
        for i in range(m.n_skips):
            places.append((i, {"kind": "skip", "layer": half + i, "from_layer": half - 1 - i, "name": "skip"}))
        for i, at in places:
            now, before = trained[at["name"]][i], start[at["name"]][i]
            row = at | _run_source(arm, run) | {"block": m.blocks[at["layer"]], "mean": float(now.mean())}
            rows.append(row | {"spread": float(now.std(correction=0)), "start": float(before.mean())})
    head = ["kind", "arm", "run", "config", "seed", "data", "layer", "block", "application", "name"]
    return frame(rows).reindex(columns=[*head, "mean", "spread", "start", "from_layer"])


def _weights(run: Scored) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """SCALES (L, D) and "skip" of a run, trained and before quantization, and at initialization."""
    trained, start = tensors.load(run.run.file(FLOAT), "trained weights")[0], params.init(run.config.model, 0).rest
    mixes = ({"mix_x": w["resid_mix"][:, 0], "mix_x0": w["resid_mix"][:, 1]} for w in (trained, start))
    return dict(trained) | next(mixes), dict(start) | next(mixes)


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
    blocks = arms[0].config.model.blocks
    groups = {block: [i for i, read in enumerate(blocks) if read == block] for block in sorted(set(blocks))}
    rows = []
    for arm, run in each([arm for arm in arms if arm.config.model.n_layers == len(blocks)]):
        trained, start = _weights(run)
        for name in SCALES:
            for block, layers in groups.items():
                if len(layers) > 1:
                    row = _run_source(arm, run) | {"shares": arm is arms[0], "name": name, "block": block}
                    change = trained[name][layers] - start[name][layers]
                    rows.append(row | {"applications": len(layers)} | variances(change))
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
