"""What the applications of one block have of their own: the learned scales, mixes and skip weights of every layer."""

from collections.abc import Sequence

import torch
from torch import Tensor

from golfcore.analysis.compare import Arm, Scored
from golfcore.analysis.depth import run_source
from golfcore.analysis.table import Row, Table
from golfcore.base import tensors
from golfcore.model import params
from golfcore.runs.pipeline import FLOAT

SCALES = ("attn_scale", "mlp_scale", "mix_x", "mix_x0")  # the last two: rows of resid_mix, of the stream and of x0


def scales(arms: Sequence[Arm]) -> Table:
    """Rows of kind "layer" (a layer and one of SCALES) and "skip" (a skip connection), for every run.

    `block`: what the layer reads, `application`: how often it was read before. `mean`, `spread`: mean and standard
    deviation over channels of the trained weights before quantization; `start`: the mean at initialization. A skip's
    `layer` is the one it enters, `from_layer` the one it leaves.
    """
    table = Table()
    for arm in arms:
        start = params.init(arm.config.model, 0).rest
        for run in arm.runs:
            table += _run_rows(arm, run, start)
    return table


def _run_rows(arm: Arm, run: Scored, start: dict[str, Tensor]) -> list[Row]:
    m, trained = run.config.model, trained_weights(run)
    head: Row = {"arm": arm.label, **run_source(run)}
    rows: list[Row] = []
    for name in SCALES:
        now, before = by_layer(trained, name), by_layer(start, name)
        for i, block in enumerate(m.blocks):
            at: Row = {"layer": i, "block": block, "application": m.blocks[:i].count(block), "name": name}
            rows.append({"kind": "layer", **head, **at, **_moments(now[i]), "start": float(before[i].mean())})
    for i in range(m.n_skips):
        enters, leaves = m.n_layers // 2 + i, m.n_layers // 2 - 1 - i
        skip: Row = {"layer": enters, "from_layer": leaves, "block": m.blocks[enters], "name": "skip"}
        found: Row = {**_moments(trained["skip"][i]), "start": float(start["skip"][i].mean())}
        rows.append({"kind": "skip", **head, **skip, **found})
    return rows


def _moments(channels: Tensor) -> Row:
    return {"mean": float(channels.mean()), "spread": float(channels.std(correction=0))}


def trained_weights(run: Scored) -> dict[str, Tensor]:
    """The weights of a run before quantization, by name."""
    return tensors.load(run.run.file(FLOAT), "trained weights")[0]


def by_layer(weights: dict[str, Tensor], name: str) -> Tensor:
    """(L, D) of one of SCALES."""
    if name.startswith("mix_"):
        return weights["resid_mix"][:, ("mix_x", "mix_x0").index(name)]
    return weights[name]


def specialisation(arms: Sequence[Arm]) -> Table:
    """How far the applications of a block have gone apart, for each run, one of SCALES and block.

    Of what training changed (R applications x D channels, trained less initial): `between`, the variance over
    applications of their means; `within`, the mean over applications of the variance over channels; `ratio` of the two.
    And the shares of the whole variance, a two-way layout that sums to 1: `level` (applications differ in their mean),
    `common` (channels differ, alike in all applications), `pattern` (what is left: channels that differ in one
    application only). Unrelated applications have a `common` share of about 1/R.

    Layers are grouped by the blocks of the first arm, also in an arm that has as many layers and shares nothing
    (`shares` false): what layers at these places differ by without a block in common.
    """
    blocks, table = arms[0].config.model.blocks, Table()
    for arm in arms:
        if arm.config.model.n_layers != len(blocks):
            continue
        start = params.init(arm.config.model, 0).rest
        for run in arm.runs:
            trained = trained_weights(run)
            for name in SCALES:
                change = by_layer(trained, name) - by_layer(start, name)
                for block in range(max(blocks) + 1):
                    layers = [i for i, read in enumerate(blocks) if read == block]
                    head: Row = {"arm": arm.label, **run_source(run), "shares": arm is arms[0], "name": name}
                    head |= {"block": block, "applications": len(layers)}
                    if len(layers) > 1:
                        table.append(head | variances(change[layers]))
    return table


def variances(x: Tensor) -> Row:
    """The numbers of `specialisation` for x (R, D); none where nothing varies."""
    x = x.to(torch.float64)
    means = x.mean(1)
    between, within = float(means.var(correction=0)), float(x.var(1, correction=0).mean())
    row: Row = {"between": between, "within": within}
    total = between + within
    if total == 0:
        return row
    common = float(x.mean(0).var(correction=0))
    row |= {"ratio": between / within if within else None, "level": between / total}
    return row | {"common": common / total, "pattern": (within - common) / total}
