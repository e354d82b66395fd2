"""What meta-learning did in training: frames over arms and seeds, from what the runs logged."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from golfcore.analysis import runs, stats
from golfcore.analysis.compare import MEASURES, Arm, by_chunk, each, mean, paired
from golfcore.analysis.frames import frame
from golfcore.model import params
from golfcore.model.weights import Banks
from golfcore.train.meta import counted_cost, instrument_cost

POINTS = 200  # of a curve, at most
PUBLISHED_CALLS = 1141 / 7020  # meta calls a step in exp101
PUBLISHED_MICRO = 8  # micro-batches a step
COSINES = tuple(f"cosine_{bank}" for bank in Banks._fields)
LOGGED = ("loss_pre", "loss_post", "predicted_gain", "main_norm", "meta_norm", "cosine", *COSINES)
LOGGED += ("displacement", "realised", "realised_cosine")


def learning_curves(arms: Sequence[Arm]) -> pd.DataFrame:
    """Rows of kind train (smoothed) and val: bits per byte of each run over its steps.

    `difference` is to the reference arm's run of the same seed, at steps that both logged alone: between two logged
    steps the batches differ, and so would the difference.
    """
    parts, reference = [], {}
    for arm, run in each(arms):
        logged = frame(runs.curves(run.run))
        for kind, column in (("train", "bpb_smooth"), ("val", "bpb")):
            rows = logged.loc[logged["kind"] == kind, ["step", column]].set_axis(["step", "bpb"], axis="columns")
            rows = rows.astype({"step": int, "bpb": float}).assign(kind=kind, arm=arm.label, seed=run.seed)
            if arm is arms[0]:
                reference[run.seed, kind] = rows.drop_duplicates("step").set_index("step")["bpb"]
            elif (run.seed, kind) in reference:
                rows["difference"] = rows["bpb"] - rows["step"].map(reference[run.seed, kind])
            parts.append(rows[:: max(1, -(-len(rows) // POINTS))])
    columns = ["kind", "arm", "seed", "step", "bpb", "difference"]
    found = pd.concat(parts, ignore_index=True)
    return found[[c for c in columns if c in found]]


def scores_by_seed(arms: Sequence[Arm]) -> pd.DataFrame:
    """One row a run: its scores, gains, TTT rate, steps and bytes."""
    rows = []
    for arm, run in each(arms):
        scores = {measure: run.totals[measure] for measure in MEASURES}
        more = {"ttt_lr": run.results["ttt"]["lr"], "bytes": run.results["artifact"]["total"]}
        rows.append({"arm": arm.label, "seed": run.seed, "steps": run.steps, **scores, **more})
    return frame(rows)


def gains(arms: Sequence[Arm]) -> pd.DataFrame:
    """What context (b - a) and adaptation (c - b) bring in each arm.

    Rows of kind "seed" (one a run) and "mean", which has its interval for other seeds and text, if there are enough
    chunks of it.
    """
    rows = []
    for measure in ("context_gain", "ttt_gain"):
        for arm in arms:
            head, totals = {"measure": measure, "arm": arm.label}, arm.totals(measure)
            rows += [head | {"kind": "seed", "seed": s, "gain": g} for s, g in zip(arm.seeds, totals, strict=True)]
            found = mean(arm, measure)
            rows.append(head | {"kind": "mean", "gain": found.pop("mean")} | found)
    return frame(rows)


def chunk_differences(arms: Sequence[Arm]) -> pd.DataFrame:
    """The difference of the score after TTT to the reference arm as the text goes on, paired as `compare.difference`.

    A row for each arm and chunk: `here` on the chunk alone, `difference` over all chunks so far, both in bits per
    byte; some of them with the interval of `difference`, the last one always.
    """
    parts, weights = [pd.DataFrame()], arms[0].weights
    for arm in arms[1:]:
        _, values, less = paired(arms[0], arm, "ttt")
        here = by_chunk(values, less)
        so_far = np.cumsum(here * weights) / np.maximum(np.cumsum(weights), 1.0)
        rows = pd.DataFrame({"arm": arm.label, "chunk": range(len(here)), "stop": arms[0].runs[0].chunks["stop"]})
        parts.append(rows.assign(here=here, difference=so_far).join(stats.bands(values, weights, less)))
    return frame(pd.concat(parts))


def meta_sgd(arms: Sequence[Arm]) -> pd.DataFrame:
    """The learned inner rate of every bank slot over the steps, for the arms that learn them.

    `predicted`: what weight decay alone makes of the rate of a frozen slot, whose gradient is 0: the product of
    1 - scalar_lr adam_wd lr_multiplier over the meta `calls` so far (the rates have no gradient at other steps).
    """
    rows = []
    for arm, run in each(arms):
        rate = run.config.optim.scalar_lr * run.config.optim.adam_wd
        decay = {r["step"]: 1 - rate * r["lr_multiplier"] for r in run.run.metrics("meta")}
        frozen = params.frozen(run.config.model, run.config.meta.freeze_blocks, ("matrix",))
        for logged in run.run.metrics("meta_sgd"):
            past = [factor for step, factor in decay.items() if step <= logged["step"]]
            head = {"arm": arm.label, "seed": run.seed, "step": logged["step"]}
            slots = [(bank, *slot) for bank in Banks._fields for slot in enumerate(logged[bank])]
            for bank, slot, value in slots:
                still = bool(bank in frozen and frozen[bank][slot])
                row = head | {"bank": bank, "slot": slot, "calls": len(past), "rate": value, "frozen": still}
                rows.append(row | {"predicted": float(np.prod(past)) if still else None})
    return frame(rows)


def interventions(arms: Sequence[Arm]) -> pd.DataFrame:
    """One row for each meta call: what the inner step changed, and what its gradient adds to the main one.

    `gained`: loss on the outer data before minus after the inner step, nats (missing where the loss before was not
    computed); `predicted_gain`: the same to first order, which rounding does not hide. `cosine`, `cosine_BANK`: between
    the main and the meta gradient. `displacement`: norm of the inner step; `realised`: the same after rounding to the
    dtype of the forward, over the intended norm.
    """
    rows = []
    for arm, run in each(arms):
        for r in run.run.metrics("meta"):
            gained = None if r["loss_pre"] is None else r["loss_pre"] - r["loss_post"]
            head = {"arm": arm.label, "seed": run.seed, "step": r["step"], "gained": gained}
            rows.append(head | {name: r[name] for name in LOGGED})
    return frame(rows)


def costs(arms: Sequence[Arm]) -> pd.DataFrame:
    """What meta-learning computes in each arm, by counting: one row an arm.

    `steps`, `tokens`: of its shortest run; `calls`: meta calls in it. `micro`: what a call computes, in micro-batches
    (forward and backward); `instruments`: what the log adds to it, which is not meta-learning's. `overhead`: micro-
    batches of all calls over those of the steps. `published_overhead`: the same at exp101's cadence, 1,141 calls in
    7,020 steps of 8 micro-batches.
    """
    rows = []
    for arm in arms:
        cfg, shortest = arm.config, min(arm.runs, key=lambda run: run.steps)
        steps, calls = shortest.steps, len(shortest.run.metrics("meta"))
        micro, instruments = (cost(cfg) if calls else 0.0 for cost in (counted_cost, instrument_cost))
        row = {"arm": arm.label, "steps": steps, "tokens": steps * cfg.optim.batch_tokens, "calls": calls}
        row |= {"micro": micro, "instruments": instruments}
        row |= {"overhead": calls * micro / (steps * cfg.optim.grad_accum)}
        rows.append(row | {"published_overhead": micro * PUBLISHED_CALLS / PUBLISHED_MICRO})
    return frame(rows)
