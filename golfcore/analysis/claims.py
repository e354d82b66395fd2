"""Published claims and differences beside what runs measured, and the verdict on each.

A claim is confirmed or refuted only if it does not depend on scale (arithmetic, a closed form, legality) or was
measured at the published scale. Measured at another scale, a difference is in the same direction here, in the opposite
one, or not resolved here, and then the smallest difference that would have been seen stands beside it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from golfcore import config
from golfcore.analysis import compare
from golfcore.analysis.compare import MEASURES, Arm, Measure
from golfcore.analysis.frames import frame, only, to_text
from golfcore.evals.ledger import Legality
from golfcore.runs.stacks import exported
from golfcore.runs.sweep import ArmPlan, Sweep

CONFIRMED, REFUTED = "confirmed", "refuted"
SAME, OPPOSITE, OPEN = "same direction here", "opposite direction here", "not resolved here"
VERDICTS = (CONFIRMED, REFUTED, SAME, OPPOSITE, OPEN)
UNPUBLISHED, REFERENCE = "no published number", "reference"
RULE = (
    f"{CONFIRMED}, {REFUTED}: at the published scale, or where scale does not matter; {SAME}, {OPPOSITE}: measured at\n"
    f"another scale, the 95 % interval excludes 0 on the published or on the other side; otherwise {OPEN}."
)
LEGAL = "score-first"  # the one protocol by which arms are compared legally, with the run's own settings
ENOUGH = 0.9  # of the published optimizer steps, to be at the published scale

ADAPTATION_OVER_CONTEXT: Measure = {"ttt": 1, "sliding": -2, "static": 1}  # (c - b) - (b - a)
INVARIANT = 0.02  # published deltas of all arms, 0.0230 to 0.0234, are within this share of one another
RATES = (0.92, 1.08)  # where all 66 learned rates were said to end, after 1,083 calls
RATE_CALLS = 1083
STEPS = 7020  # of exp101


# -- verdicts


def by_sign(found: Mapping[str, Any], claimed: float, decides: bool) -> str:
    """The verdict on a difference of the sign of `claimed`, by the interval `low` to `high` of the measured one.

    `decides`: the scale is the published one, or does not matter; then an interval that holds nothing as large as what
    was claimed refutes it, too. A claimed difference of 0 has no side, so that nothing settles it.
    """
    if found["low"] is None or not claimed:
        return OPEN
    low, high = (found["low"], found["high"]) if claimed < 0 else (-found["high"], -found["low"])
    yes, no = (CONFIRMED, REFUTED) if decides else (SAME, OPPOSITE)
    return yes if high < 0 else no if low > (-abs(claimed) if decides else 0) else OPEN


def by_band(found: Mapping[str, Any], band: tuple[float, float], decides: bool) -> str:
    """The verdict on a claim that a number lies in `band`: its interval is within, outside, or neither."""
    if found["low"] is None:
        return OPEN
    yes, no = (CONFIRMED, REFUTED) if decides else (SAME, OPPOSITE)
    if band[0] <= found["low"] and found["high"] <= band[1]:
        return yes
    return no if found["high"] < band[0] or band[1] < found["low"] else OPEN


def scale(arm: Arm) -> dict[str, Any]:
    """Exported parameters, artifact bytes (largest of the seeds) and training tokens (fewest) of an arm."""
    n_bytes = max(run.results["artifact"]["bytes"] for run in arm.runs)
    tokens = steps(arm) * arm.config.optim.batch_tokens
    return {"parameters": exported(arm.config.model), "artifact_bytes": n_bytes, "train_tokens": tokens}


def steps(arm: Arm) -> int:
    """Optimizer steps of the arm's shortest run."""
    return min(run.run.metrics("train")[-1]["step"] for run in arm.runs)


def at_published_scale(arm: Arm, preset: str, published_steps: int | None) -> bool:
    """Whether the arm has the preset's model, other data than the embedded corpus, and about the published steps."""
    same = arm.config.model == config.load(preset).model and bool(arm.config.data.path)
    return same and published_steps is not None and steps(arm) >= ENOUGH * published_steps


# -- a sweep against its publication


def suite(plan: Sweep, arms: Sequence[Arm]) -> pd.DataFrame:
    """One row for each arm of the sweep that was run, in the file's order; bits per byte.

    `published_difference`, `difference`: to the arm `on`, in the measure that was published, under the arm's own
    protocol; `ratio` of the second to the first; `low` to `over`, `pairs`, `chunks`: as `compare.difference`. `noise`:
    what two published runs differ by in 19 of 20 cases, if they differ in their seed only. `bpb`: mean over seeds,
    `bpb_SEED` those of each. `legality`: of that number, as measured. `static`, `sliding`, `score_first`: what the same
    weights score legally, the last under LEGAL alone, missing if the runs did not measure it; `sliding_difference` with
    its interval. `runs`, `configs`, `trained_in`: where the numbers come from.
    """
    found = {arm.label: arm for arm in arms}
    reference = found.get(plan.reference.name)
    decides = plan.size == "full" and reference is not None
    decides = decides and at_published_scale(reference, plan.base, plan.published_steps)  # type: ignore[arg-type]
    return frame(_row(plan, spec, found, decides) for spec in plan.arms.values() if spec.name in found)


def _row(plan: Sweep, spec: ArmPlan, arms: Mapping[str, Arm], decides: bool) -> dict[str, Any]:
    arm, other = arms[spec.name], arms.get(spec.on)
    row: dict[str, Any] = {"arm": spec.name, "label": spec.label, "on": spec.on or None, "measure": plan.measure}
    row |= {"published": spec.published, "published_note": spec.published_note or None}
    claimed = plan.arms[spec.on].published if other else None
    delta = None if spec.published is None or claimed is None else spec.published - claimed
    row["published_difference"] = delta
    row["noise"] = None if plan.published_sd is None or delta is None else 1.96 * 2**0.5 * plan.published_sd
    totals = arm.totals(MEASURES[plan.measure])
    row |= {"seeds": len(totals), "bpb": float(np.mean(totals)), "verdict": REFERENCE}
    row |= {f"bpb_{seed}": value for seed, value in zip(arm.seeds, totals, strict=True)}
    if other:
        ours = compare.difference(other, arm, MEASURES[plan.measure])
        row |= ours | {"ratio": ours["difference"] / delta if delta else None}
        row["verdict"] = UNPUBLISHED if delta is None else by_sign(ours, delta, decides)
        legal = compare.difference(other, arm, MEASURES["sliding"])
        row |= {f"sliding_{column}": legal[column] for column in ("difference", "low", "high")}
    row |= {"size": plan.size, **scale(arm), **_measured(plan.measure, arm)}
    return row | {"unknown": "; ".join(spec.unknown) or None, "note": spec.note or None}


def _measured(measure: str, arm: Arm) -> dict[str, Any]:
    """What the runs of an arm reported, means over seeds; legality is what the ledger saw."""
    rows, sizes = ([run.results[part] for run in arm.runs] for part in ("measures", "artifact"))
    legal = [_legal(measures) for measures in rows]
    return {
        "legality": ", ".join(sorted({measures[measure]["legality"] for measures in rows})),
        **{name: float(np.mean([measures[name]["bpb"] for measures in rows])) for name in ("static", "sliding")},
        "score_first": None if None in legal else float(np.mean([score for score in legal if score is not None])),
        "bytes": max(size["total"] for size in sizes),
        "fits": all(size["fits"] for size in sizes),
        "runs": " ".join(run.run.id for run in arm.runs),
        "configs": " ".join(f"{run.seed}:{run.run.config_hash()}" for run in arm.runs),
        "trained_in": " ".join(run.run.stages()["train"].get("from", run.run.id) for run in arm.runs),
    }


def _legal(measures: Mapping[str, dict]) -> float | None:
    """The score under LEGAL, which a run's own TTT may be already."""
    name = LEGAL if LEGAL in measures else "ttt"
    return measures[name]["bpb"] if measures[name]["legality"] == Legality.SCORE_FIRST else None


def is_legal(row: Mapping[str, Any]) -> bool:
    """Whether the number that stands for the arm could be submitted."""
    return str(Legality.TRAIN_FIRST) not in str(row["legality"])


def as_text(plan: Sweep, table: pd.DataFrame) -> str:
    """The table for a terminal, what it leaves out of the publication, and the rule of the verdicts."""
    names = {"published_difference": "published diff", "static": "(a)", "sliding": "(b)", "score_first": "score-first"}
    shown = "arm on published published_difference bpb difference low high verdict detectable legality static sliding"
    listed = compare.signed(table, "published_difference", "difference", "low", "high")
    listed = listed.reindex(columns=[*shown.split(), "score_first", "bytes", "seeds", "over"]).rename(columns=names)
    head = f"{plan.title}\nsweep {plan.name} at size {plan.size}, measure {plan.measure}, bits per byte"
    notes = []
    for row in table.reindex(columns=["arm", "published_note", "note", "unknown"]).itertuples():
        unknown = f"not published: {row.unknown}" if isinstance(row.unknown, str) else None
        said = [text for text in (row.published_note, row.note, unknown) if isinstance(text, str)]
        notes += [f"{row.arm}: {'; '.join(said)}"] if said else []
    return "\n\n".join([head, to_text(listed), *(["\n".join(notes)] if notes else []), RULE])


def summary(table: pd.DataFrame) -> str:
    """The verdicts in one sentence, and in another what is legal of the numbers."""
    judged = table[table["verdict"].isin(VERDICTS)]
    counts = {v: list(judged[judged["verdict"] == v]["arm"]) for v in VERDICTS}
    parts = [f"{len(names)} {v} ({', '.join(names)})" for v, names in counts.items() if names] or ["none to judge"]
    illegal = sum(not is_legal(row) for row in table.to_dict("records"))
    text = f"Of {len(judged)} published differences {'; '.join(parts)}. {illegal} of {len(table)} arms are not legal"
    legal = table["score_first"].dropna() if "score_first" in table else []
    return f"{text}; {LEGAL}, arms score {min(legal):.4f} to {max(legal):.4f}." if len(legal) else f"{text}."


# -- the claims about meta-learning

Judge = Callable[[Mapping[str, Any], bool], str]  # of what was found, and whether it decides


def meta_claims(arms: Sequence[Arm], rates: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """One row a claim: `statement`, `system`, `published`, `source`, `how` it was measured and judged, `size` and scale
    of the runs, `seeds`, `chunks`, `value` with `low`, `high` and `detectable`, its `ratio` to the published value, its
    `unit`, and the `verdict`.

    The first arm is the reference; others are known by their names. `rates` and `costs`: the frames `meta.meta_sgd` and
    `meta.costs` of the arms.
    """
    named = {arm.runs[0].config.name.removeprefix("meta-"): arm for arm in arms[1:]} | {"none": arms[0]}
    rows = [
        _effect(named, ("exp101", "none"), -0.00036, "exp101 improves the score after TTT"),
        _effect(named, ("exp101", "placebo"), -0.00036, "its inner step is what improves it (against the placebo)"),
        _effect(named, ("exp106", "none"), -0.00155, "exp106 improves the score after TTT"),
        _is_adaptation(arms[0]),
        _invariance(named, "total_gain", "the TTT delta c - a does not depend on meta-training"),
        _invariance(named, "ttt_gain", "nor does the gain of adaptation alone, c - b"),
        _frozen_rates(rates),
        _free_rates(rates, arms),
        _cost(costs, "exp101", 2.9),
        _cost(costs, "exp106", 8.1),
    ]
    for row in rows:
        row["source"] = "PR 1502" if row["system"] == "exp106" else "PR 1501"
        row["ratio"] = row["value"] / row["published"] if "value" in row and row["published"] else None
    head = "statement system published source how size parameters artifact_bytes train_tokens seeds chunks value low"
    return frame(rows).reindex(columns=[*head.split(), "high", "detectable", "ratio", "unit", "verdict"])


def _claim(statement: str, system: str, published: float | None, unit: str, how: str) -> dict[str, Any]:
    return {"statement": statement, "system": system, "published": published, "unit": unit, "how": how, "verdict": OPEN}


def _of(arm: Arm, preset: str) -> tuple[dict[str, Any], bool]:
    """The columns of an arm's scale, and whether it is that of the published run of `preset`."""
    decides = at_published_scale(arm, preset, STEPS)
    return {"size": "published" if decides else "smaller", **scale(arm), "seeds": len(arm.runs)}, decides


def _compared(
    row: dict[str, Any], named: Mapping[str, Arm], pair: tuple[str, str], measure: str, judge: Judge
) -> dict[str, Any]:
    """The claim `row` with the difference of the first arm of `pair` to the second and the verdict of `judge` on it."""
    if not {*pair} <= named.keys():
        return row
    arm, other = (named[name] for name in pair)
    found, (at, decides) = compare.difference(other, arm, MEASURES[measure]), _of(arm, pair[0])
    return row | at | found | {"value": found["difference"], "verdict": judge(found, decides)}


def _effect(named: Mapping[str, Arm], pair: tuple[str, str], published: float, statement: str) -> dict[str, Any]:
    claimed = published if pair[1] == "none" else None  # nobody ran the placebo
    row = _claim(statement, pair[0], claimed, "bpb", f"(c) of {pair[0]} less {pair[1]}, same seeds and steps")
    return _compared(row, named, pair, "ttt", lambda found, decides: by_sign(found, published, decides))


def _is_adaptation(arm: Arm) -> dict[str, Any]:
    """The published delta subtracts a sliding score with TTT from one without overlap: is it adaptation mostly?"""
    how = "(c - b) - (b - a): below 0, adaptation brings more than longer context"
    row = _claim("the TTT delta of 0.0234 is a gain of adaptation", "exp105a", None, "bpb", how)
    found, (at, decides) = compare.mean(arm, ADAPTATION_OVER_CONTEXT), _of(arm, "exp105a")
    row |= at | found | {"value": found["mean"], "chunks": len(arm.weights)}
    return row | {"verdict": by_sign(found, -1e-9, decides)}


def _invariance(named: Mapping[str, Arm], name: str, statement: str) -> dict[str, Any]:
    size = INVARIANT * abs(float(np.mean(named["none"].totals(MEASURES[name]))))
    how = f"exp101 less exp105a, within 2 % of exp105a's own: {size:.5f}"
    row = _claim(statement, "exp101", 0.00011 if name == "total_gain" else None, "bpb", how)
    return _compared(row, named, ("exp101", "none"), name, lambda found, at: by_band(found, (-size, size), at))


def _last(rates: pd.DataFrame, frozen: bool) -> pd.DataFrame:
    """The rates that runs ended with, of frozen slots or of the others."""
    if rates.empty:
        return rates
    ends = rates.groupby(["arm", "seed"])["step"].transform("max")
    return only(rates[rates["step"] == ends], frozen=frozen)


def _range(last: pd.DataFrame, rates: pd.Series) -> dict[str, Any]:
    """Mean, smallest and largest of `rates`, those of `last`."""
    found = {"value": float(rates.mean()), "low": float(rates.min()), "high": float(rates.max())}
    return found | {"seeds": last["seed"].nunique()}


def _frozen_rates(rates: pd.DataFrame) -> dict[str, Any]:
    """Frozen slots have no gradient: weight decay alone acts on their rates, a closed form that knows no scale."""
    how = f"extrapolated to {RATE_CALLS:,} calls, where rates follow weight decay alone; within 0.92 to 1.08"
    row, last = _claim("MetaSGD: the rates of frozen slots stay at 1", "exp106", 1.0, "rate", how), _last(rates, True)
    if last.empty:
        return row
    row |= _range(last, last["rate"] ** (RATE_CALLS / last["calls"]))
    closed = np.allclose(last["rate"], last["predicted"].astype(float), rtol=1e-4)
    return row | ({"verdict": by_band(row, RATES, decides=True)} if closed else {})


def _free_rates(rates: pd.DataFrame, arms: Sequence[Arm]) -> dict[str, Any]:
    how = f"smallest to largest of all slots after {RATE_CALLS:,} calls or more; within 0.92 to 1.08"
    row = _claim("MetaSGD: the learned rates of all other slots stay near 1", "exp106", 1.0, "rate", how)
    last = _last(rates, False)
    if last.empty:
        return row
    at, decides = _of(next(arm for arm in arms if arm.label == last["arm"].iloc[0]), "exp106")
    row |= at | _range(last, last["rate"])
    outside = ~last["rate"].between(*RATES)
    if last[outside]["seed"].nunique() == row["seeds"]:  # in every run one rate is outside
        return row | {"verdict": REFUTED if decides else OPPOSITE}
    settled = not outside.any() and last["calls"].min() >= RATE_CALLS
    return row | ({"verdict": CONFIRMED if decides else SAME} if settled else {})


def _cost(costs: pd.DataFrame, system: str, published: float) -> dict[str, Any]:
    """Computing is counted; the published cost is time, of which a count gives the direction only."""
    how = "counted micro-batches at the published cadence; published as time"
    row, found = _claim(f"{system} costs more", system, published, "%", how), only(costs, arm=f"meta-{system}")
    if found.empty:
        return row
    value = 100 * float(found["published_overhead"].iloc[0])
    return row | {"value": value, "verdict": SAME if value > 0 else OPPOSITE}
