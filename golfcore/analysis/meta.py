"""What meta-learning did in training: frames over arms and seeds, from what the runs logged."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from golfcore.analysis import runs
from golfcore.analysis.compare import MEASURES, Arm, Scored, interval, mean, paired
from golfcore.analysis.frames import frame
from golfcore.analysis.stats import MIN_CHUNKS
from golfcore.model import params
from golfcore.model.weights import Banks
from golfcore.train.meta import counted_cost, instrument_cost

POINTS = 200  # of a curve, at most
BANDS = 30  # prefixes of the text that get an interval, at most
PUBLISHED_CALLS = 1141 / 7020  # meta calls a step in exp101
PUBLISHED_MICRO = 8  # micro-batches a step

LOGGED = (
    *("loss_pre", "loss_post", "predicted_gain", "main_norm", "meta_norm"),
    *("cosine", *(f"cosine_{bank}" for bank in Banks._fields)),
    *("displacement", "realised", "realised_cosine"),
)


def learning_curves(arms: Sequence[Arm]) -> pd.DataFrame:
    """Rows of kind train (smoothed) and val: bits per byte of each run over its steps.

    `difference` is to the reference arm's run of the same seed, at steps that both logged alone: between two logged
    steps the batches differ, and so would the difference.
    """
    logged = {(arm.label, run.seed): frame(runs.curves(run.run)) for arm, run in each(arms)}
    parts = []
    for arm, run in each(arms):
        for kind, column in (("train", "bpb_smooth"), ("val", "bpb")):
            bpb = _by_step(logged[arm.label, run.seed], kind, column)
            rows = bpb.rename("bpb").reset_index()
            other = logged.get((arms[0].label, run.seed))
            if arm is not arms[0] and other is not None:
                theirs = _by_step(other, kind, column)
                rows["difference"] = rows["bpb"] - rows["step"].map(theirs[~theirs.index.duplicated()])
            head = pd.DataFrame({"kind": kind, "arm": arm.label, "seed": run.seed}, index=rows.index)
            parts.append(head.join(rows)[:: max(1, -(-len(rows) // POINTS))])
    return pd.concat(parts, ignore_index=True)


def _by_step(logged: pd.DataFrame, kind: str, column: str) -> pd.Series:
    rows = logged[logged["kind"] == kind]
    return rows[column].astype(float).set_axis(rows["step"].astype(int))


def scores_by_seed(arms: Sequence[Arm]) -> pd.DataFrame:
    """One row a run: its scores, gains, TTT rate, steps and bytes."""
    rows = []
    for arm, run in each(arms):
        row = {"arm": arm.label, "seed": run.seed, "steps": run.run.metrics("train")[-1]["step"]}
        row |= {name: run.total(measure) for name, measure in MEASURES.items()}
        rows.append(row | {"ttt_lr": run.results["ttt"]["lr"], "bytes": run.results["artifact"]["total"]})
    return frame(rows)


def gains(arms: Sequence[Arm]) -> pd.DataFrame:
    """What context (b - a) and adaptation (c - b) bring in each arm.

    Rows of kind "seed" (one a run) and "mean", which has its interval for other seeds and text, if there are enough
    chunks of it.
    """
    rows: list[dict[str, Any]] = []
    for name in ("context_gain", "ttt_gain"):
        for arm in arms:
            head, totals = {"measure": name, "arm": arm.label}, arm.totals(MEASURES[name])
            rows += [head | {"kind": "seed", "seed": s, "gain": g} for s, g in zip(arm.seeds, totals, strict=True)]
            found = mean(arm, MEASURES[name])
            rows.append(head | {"kind": "mean", "gain": found.pop("mean")} | found)
    return frame(rows)


def chunk_differences(arms: Sequence[Arm]) -> pd.DataFrame:
    """The difference of the score after TTT to the reference arm as the text goes on, paired as `compare.difference`.

    A row for each arm and chunk: `here` on the chunk alone, `difference` over all chunks so far, both in bits per
    byte; some of them with the interval of `difference`, the last one always.
    """
    rows, weights, reference = [], arms[0].weights, arms[0]
    n = len(weights)
    banded = {round(i) for i in np.linspace(MIN_CHUNKS, n, BANDS)} if n >= MIN_CHUNKS else set()
    for arm in arms[1:]:
        _, values, less = paired(reference, arm, MEASURES["ttt"])
        here = values.mean(0) - (0.0 if less is None else less.mean(0))
        so_far = np.cumsum(here * weights) / np.maximum(np.cumsum(weights), 1.0)
        for i, (_, stop) in enumerate(reference.runs[0].spans):
            row = {"arm": arm.label, "chunk": i, "stop": stop, "here": float(here[i]), "difference": float(so_far[i])}
            first = slice(i + 1)
            if i + 1 in banded:
                row |= interval(values[:, first], weights[first], None if less is None else less[:, first])
            rows.append(row)
    return frame(rows)


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
            for bank in Banks._fields:
                for slot, value in enumerate(logged[bank]):
                    row = {"arm": arm.label, "seed": run.seed, "step": logged["step"], "bank": bank, "slot": slot}
                    row |= {"calls": len(past), "rate": value, "frozen": bool(bank in frozen and frozen[bank][slot])}
                    rows.append(row | {"predicted": float(np.prod(past)) if row["frozen"] else None})
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
            rows.append({"arm": arm.label, "seed": run.seed, "step": r["step"], "gained": gained})
            rows[-1] |= {name: r[name] for name in LOGGED}
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
        cfg, shortest = arm.config, min(arm.runs, key=lambda run: run.run.metrics("train")[-1]["step"]).run
        steps, calls = shortest.metrics("train")[-1]["step"], len(shortest.metrics("meta"))
        micro = counted_cost(cfg) if calls else 0.0
        row = {"arm": arm.label, "steps": steps, "tokens": steps * cfg.optim.batch_tokens, "calls": calls}
        row |= {"micro": micro, "instruments": instrument_cost(cfg) if calls else 0.0}
        row["overhead"] = calls * micro / (steps * cfg.optim.grad_accum)
        rows.append(row | {"published_overhead": micro * PUBLISHED_CALLS / PUBLISHED_MICRO})
    return frame(rows)


def each(arms: Sequence[Arm]) -> Iterator[tuple[Arm, Scored]]:
    """Every run with its arm."""
    return ((arm, run) for arm in arms for run in arm.runs)
