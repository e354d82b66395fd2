"""What meta-learning did in training: tables over arms and seeds, from what the runs logged."""

from collections.abc import Sequence

import numpy as np

from golfcore.analysis import runs
from golfcore.analysis.compare import MEASURES, Arm, Scored, over_chunks, over_seeds
from golfcore.analysis.seeds import mean_interval
from golfcore.analysis.stats import MIN_CHUNKS, block_length, paired_bootstrap
from golfcore.analysis.table import Row, Table, number
from golfcore.model import params
from golfcore.model.weights import Banks

POINTS = 200  # of a curve, at most
BANDS = 30  # prefixes of the text that get an interval, at most
PUBLISHED_CALLS = 1141 / 7020  # meta calls a step in exp101
PUBLISHED_MICRO = 8  # micro-batches a step


def learning_curves(arms: Sequence[Arm]) -> Table:
    """Rows of kind train (smoothed) and val: bits per byte of each run over its steps.

    `difference` is to the reference arm's run of the same seed at the same step, if there is one.
    """
    reference = {run.seed: Table(runs.as_rows(runs.curves(run.run))) for run in arms[0].runs}
    table = Table()
    for arm, run in _each(arms):
        curves = Table(runs.as_rows(runs.curves(run.run)))
        for kind, column in (("train", "bpb_smooth"), ("val", "bpb")):
            rows, other = curves.only(kind=kind), reference.get(run.seed, Table()).only(kind=kind)
            for row in rows[:: max(1, -(-len(rows) // POINTS))]:
                step, bpb = number(row, "step"), number(row, column)
                found: Row = {"kind": kind, "arm": arm.label, "seed": run.seed, "step": row["step"], "bpb": bpb}
                found["elapsed"] = row["elapsed"]
                if arm is not arms[0] and other and step <= number(other[-1], "step"):
                    found["difference"] = bpb - float(np.interp(step, other.numbers("step"), other.numbers(column)))
                table.append(found)
    return table


def scores_by_seed(arms: Sequence[Arm]) -> Table:
    """One row a run: its scores, gains, TTT rate, steps and bytes."""
    table = Table()
    for arm, run in _each(arms):
        final = runs.report(run.run)
        row: Row = {"arm": arm.label, "seed": run.seed, "steps": run.run.metrics("train")[-1]["step"]}
        row |= {name: run.total(measure) for name, measure in MEASURES.items()}
        table.append(row | {"ttt_lr": final["ttt"]["lr"], "bytes": final["artifact"]["total"]})
    return table


def gains(arms: Sequence[Arm]) -> Table:
    """What context (b - a) and adaptation (c - b) bring in each arm.

    Rows of kind "seed" (one a run) and "mean", which has an interval over chunks (`low`, `high`) and one over seeds,
    where there are enough of them.
    """
    table = Table()
    for name in ("context_gain", "ttt_gain"):
        for arm in arms:
            head: Row = {"measure": name, "arm": arm.label}
            totals = arm.totals(MEASURES[name])
            table += [head | {"kind": "seed", "seed": s, "gain": g} for s, g in zip(arm.seeds, totals, strict=True)]
            mean: Row = head | {"kind": "mean", "gain": float(np.mean(totals))}
            for over, found in (("", over_chunks(arm, MEASURES[name])), ("seeds_", over_seeds(arm, MEASURES[name]))):
                mean |= {f"{over}low": found.low, f"{over}high": found.high} if found else {}
            table.append(mean)
    return table


def chunk_differences(arms: Sequence[Arm], name: str = "ttt") -> Table:
    """The difference to the reference arm as the text goes on, mean over the seeds that both have (all, if none).

    A row for each arm and chunk: `here` on the chunk alone, `difference` over all chunks so far, both in bits per
    byte; some of them with the bootstrap interval of `difference`, the last one always.
    """
    table, first = Table(), arms[0].runs[0]
    weights = first.weights
    total = np.maximum(np.cumsum(weights), 1.0)
    banded = {round(n) for n in np.linspace(MIN_CHUNKS, len(weights), BANDS)} if len(weights) >= MIN_CHUNKS else set()
    for arm in arms[1:]:
        pairs = sorted(set(arm.seeds) & set(arms[0].seeds))
        ours = arm.by_chunk(MEASURES[name], pairs or arm.seeds)
        here = ours - arms[0].by_chunk(MEASURES[name], pairs or arms[0].seeds)
        so_far = np.cumsum(here * weights) / total
        for i, (_, stop) in enumerate(first.spans):
            row: Row = {"arm": arm.label, "chunk": i, "stop": stop}
            row |= {"here": float(here[i]), "difference": float(so_far[i])}
            if i + 1 in banded:
                found = paired_bootstrap(here[: i + 1], weights[: i + 1], block_length(i + 1), seed=0)
                row |= {"low": found.low, "high": found.high}
            table.append(row)
    return table


def meta_sgd(arms: Sequence[Arm]) -> Table:
    """The learned inner rate of every bank slot over the steps, for the arms that learn them.

    `predicted`: what weight decay alone makes of the rate of a frozen slot, whose gradient is 0: the product of
    1 - scalar_lr adam_wd scale over the meta `calls` so far (the rates have no gradient at other steps).
    """
    table = Table()
    for arm, run in _each(arms):
        o, scales = run.config.optim, {r["step"]: r["scale"] for r in run.run.metrics("train")}
        factors = {r["step"]: 1 - o.scalar_lr * o.adam_wd * scales[r["step"]] for r in run.run.metrics("meta")}
        frozen = params.frozen(run.config.model, run.config.meta.freeze_blocks, ("matrix",))
        for logged in run.run.metrics("meta_sgd"):
            step = logged["step"]
            past = [factor for call, factor in factors.items() if call <= step]
            for bank in Banks._fields:
                for slot, rate in enumerate(logged[bank]):
                    row: Row = {"arm": arm.label, "seed": run.seed, "step": step, "bank": bank, "slot": slot}
                    row |= {"calls": len(past), "rate": rate, "frozen": bool(bank in frozen and frozen[bank][slot])}
                    table.append(row | {"predicted": float(np.prod(past)) if row["frozen"] else None})
    return table


def interventions(arms: Sequence[Arm]) -> Table:
    """One row for each meta call: what the inner step changed, and what its gradient adds to the main one.

    `gained`: loss on the outer data before minus after the inner step, nats (missing where the loss before was not
    computed); `predicted_gain`: the same to first order, which rounding does not hide. `cosine`, `cosine_BANK`: between
    the main and the meta gradient. `displacement`: norm of the inner step; `realised`: the same after rounding to the
    dtype of the forward, over the intended norm.
    """
    table = Table()
    for arm, run in _each(arms):
        for r in run.run.metrics("meta"):
            row: Row = {"arm": arm.label, "seed": run.seed, "step": r["step"]}
            row["gained"] = None if r["loss_pre"] is None else r["loss_pre"] - r["loss_post"]
            table.append(row | {name: r[name] for name in _LOGGED})
    return table


_LOGGED = (
    *("loss_pre", "loss_post", "predicted_gain", "main_norm", "meta_norm"),
    *("cosine", *(f"cosine_{bank}" for bank in Banks._fields)),
    *("displacement", "realised", "realised_cosine"),
)


def costs(arms: Sequence[Arm]) -> Table:
    """Time and memory of meta-learning: rows of kind "run", and of kind "arm" with means and Student's intervals.

    `step_seconds`: a step without its meta call. `micro`: a meta call in micro-batches of an ordinary step (of one
    process). `overhead`: time of all meta calls over the rest. `published_overhead`: what `micro` amounts to at
    exp101's cadence, 1,141 calls in 7,020 steps of 8 micro-batches. `peak_bytes`: of the meta call, on a GPU.
    """
    table, columns = Table(), ("step_seconds", "call_seconds", "micro", "overhead", "published_overhead")
    for arm, run in _each(arms):
        head: Row = {"kind": "run", "arm": arm.label, "seed": run.seed}
        table.append(head | _cost(run))
    for arm in arms:
        rows = table.only(kind="run", arm=arm.label)
        found: Row = {"kind": "arm", "arm": arm.label}
        found |= {c: float(np.mean(rows.numbers(c))) for c in ("steps", "calls", "seconds", *columns)}
        if len(rows) > 1:
            low, high = mean_interval(rows.numbers("published_overhead"))
            found |= {"low": low, "high": high}
        table.append(found | ({"peak_bytes": max(peaks)} if (peaks := rows.numbers("peak_bytes")) else {}))
    return table


def _cost(run: Scored) -> Row:
    last, calls = run.run.metrics("train")[-1], run.run.metrics("meta")
    spent = sum(r["seconds"] for r in calls)
    step_seconds = (last["elapsed"] - spent) / last["step"]
    call_seconds = spent / len(calls) if calls else 0.0
    micro = call_seconds / (step_seconds / run.config.optim.grad_accum)
    peaks = [r["peak_bytes"] for r in calls if r["peak_bytes"] is not None]
    return {
        "steps": last["step"],
        "calls": len(calls),
        "seconds": last["elapsed"],
        "step_seconds": step_seconds,
        "call_seconds": call_seconds,
        "micro": micro,
        "overhead": spent / (last["elapsed"] - spent),
        "published_overhead": micro * PUBLISHED_CALLS / PUBLISHED_MICRO,
        "peak_bytes": max(peaks, default=None),
    }


def _each(arms: Sequence[Arm]) -> list[tuple[Arm, Scored]]:
    return [(arm, run) for arm in arms for run in arm.runs]
