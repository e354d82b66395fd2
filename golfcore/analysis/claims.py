"""Published claims and differences beside what runs measured, and the verdict on each.

A claim is confirmed or refuted only if it does not depend on scale (arithmetic, a closed form, legality) or was
measured at the published scale. Measured at another scale, a difference is in the same direction here, in the opposite
one, or not resolved here, and then the smallest difference that would have been seen stands beside it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from golfcore import config
from golfcore.analysis import compare
from golfcore.analysis.compare import Arm
from golfcore.analysis.frames import frame, to_text
from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
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
INVARIANT = 0.02  # published deltas of all arms, 0.0230 to 0.0234, are within this share of one another
RATES = (0.92, 1.08)  # where all 66 learned rates were said to end, after 1,083 calls
RATE_CALLS = 1083
STEPS = 7020  # of exp101
DIFFERENCES = (  # statement, system and what it is compared with, measure, claimed, whether that was published
    ("exp101 improves the score after TTT", ("exp101", "exp105a"), "ttt", -0.00036, True),
    ("its inner step is what improves it (against the placebo)", ("exp101", "placebo"), "ttt", -0.00036, False),
    ("exp106 improves the score after TTT", ("exp106", "exp105a"), "ttt", -0.00155, True),
    ("the TTT delta of 0.0234 is a gain of adaptation", ("exp105a", ""), "ttt_over_context", -1e-9, False),
    ("the TTT delta c - a does not depend on meta-training", ("exp101", "exp105a"), "total_gain", 0.00011, True),
    ("nor does the gain of adaptation alone, c - b", ("exp101", "exp105a"), "ttt_gain", 0.0, False),
)


# -- verdicts


def verdict(holds: bool, fails: bool, decides: bool) -> str:
    """`decides`: the scale is the published one, or does not matter."""
    yes, no = (CONFIRMED, REFUTED) if decides else (SAME, OPPOSITE)
    return yes if holds else no if fails else OPEN


def by_sign(found: Mapping[str, Any], claimed: float, decides: bool) -> str:
    """The verdict on a difference of the sign of `claimed`, by the interval `low` to `high` of the measured one.

    If the scale decides, an interval that holds nothing as large as what was claimed refutes it, too. A claimed
    difference of 0 has no side, so that nothing settles it.
    """
    if found["low"] is None or not claimed:
        return OPEN
    low, high = (found["low"], found["high"]) if claimed < 0 else (-found["high"], -found["low"])
    return verdict(high < 0, low > (-abs(claimed) if decides else 0), decides)


def by_band(found: Mapping[str, Any], band: tuple[float, float], decides: bool) -> str:
    """The verdict on a claim that a number lies in `band`: its interval is within, outside, or neither."""
    if found["low"] is None:
        return OPEN
    within = band[0] <= found["low"] and found["high"] <= band[1]
    return verdict(within, found["high"] < band[0] or band[1] < found["low"], decides)


def scale(arm: Arm) -> dict[str, Any]:
    """Exported parameters, artifact bytes (largest of the seeds) and training tokens (fewest) of an arm."""
    n_bytes = max(run.results["artifact"]["bytes"] for run in arm.runs)
    tokens = min(run.steps for run in arm.runs) * arm.config.optim.batch_tokens
    return {"parameters": exported(arm.config.model), "artifact_bytes": n_bytes, "train_tokens": tokens}


def at_published_scale(arm: Arm, preset: str, published_steps: int | None) -> bool:
    """Whether the arm has the preset's model, other data than the embedded corpus, and about the published steps."""
    same = arm.config.model == config.load(preset).model and bool(arm.config.data.path)
    return same and published_steps is not None and min(run.steps for run in arm.runs) >= ENOUGH * published_steps


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
    arm, other, totals = arms[spec.name], arms.get(spec.on), arms[spec.name].totals(plan.measure)
    claimed = plan.arms[spec.on].published if other else None
    delta = None if spec.published is None or claimed is None else spec.published - claimed
    row: dict[str, Any] = {
        **{"arm": spec.name, "label": spec.label, "on": spec.on or None, "measure": plan.measure},
        **{"published": spec.published, "published_note": spec.published_note or None, "published_difference": delta},
        "noise": None if plan.published_sd is None or delta is None else 1.96 * 2**0.5 * plan.published_sd,
        **{"seeds": len(totals), "bpb": float(np.mean(totals)), "verdict": REFERENCE},
        **{f"bpb_{seed}": value for seed, value in zip(arm.seeds, totals, strict=True)},
    }
    if other:
        ours, legal = (compare.difference(other, arm, measure) for measure in (plan.measure, "sliding"))
        row |= ours | {"ratio": ours["difference"] / delta if delta else None}
        row["verdict"] = UNPUBLISHED if delta is None else by_sign(ours, delta, decides)
        row |= {f"sliding_{column}": legal[column] for column in ("difference", "low", "high")}
    row |= {"size": plan.size, **scale(arm), **_measured(plan.measure, arm)}
    return row | {"unknown": "; ".join(spec.unknown) or None, "note": spec.note or None}


def _measured(measure: str, arm: Arm) -> dict[str, Any]:
    """What the runs of an arm reported, means over seeds; legality is what the ledger saw."""
    rows, sizes = ([run.results[part] for run in arm.runs] for part in ("measures", "artifact"))
    legal = [score for measures in rows if (score := _legal(measures)) is not None]
    return {
        "legality": ", ".join(sorted({measures[measure]["legality"] for measures in rows})),
        **{name: float(np.mean([measures[name]["bpb"] for measures in rows])) for name in ("static", "sliding")},
        "score_first": float(np.mean(legal)) if len(legal) == len(rows) else None,
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


def meta_claims(arms: Sequence[Arm], rates: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """One row a claim: `statement`, `system`, `published`, `source`, `how` it was measured and judged, `size` and scale
    of the runs, `seeds`, `chunks`, `value` with `low`, `high` and `detectable`, its `ratio` to the published value, its
    `unit`, and the `verdict`.

    The first arm is the reference; others are known by their names. `rates` and `costs`: the frames `meta.meta_sgd` and
    `meta.costs` of the arms.
    """
    named = {arm.runs[0].config.name.removeprefix("meta-"): arm for arm in arms[1:]} | {"exp105a": arms[0]}
    rows = [*(_difference(named, *claim) for claim in DIFFERENCES), *_rates(rates, named.get("exp106"))]
    for system, percent in {"exp101": 2.9, "exp106": 8.1}.items():
        how = "counted micro-batches at the published cadence; published as time"  # so it gives the direction only
        row = {"statement": f"{system} costs more", "system": system, "published": percent, "unit": "%", "how": how}
        for overhead in costs.loc[costs["arm"] == f"meta-{system}", "published_overhead"]:
            row |= {"value": 100 * overhead, "verdict": SAME if overhead > 0 else OPPOSITE}
        rows.append(row)
    found = frame({"verdict": OPEN} | row for row in rows)
    source = found["system"].map({"exp106": "PR 1502"}).fillna("PR 1501")
    found = found.assign(source=source, ratio=found["value"] / found["published"])
    columns = "statement system published source how size parameters artifact_bytes train_tokens seeds chunks value low"
    return found.reindex(columns=[*columns.split(), "high", "detectable", "ratio", "unit", "verdict"])


def _difference(
    named: Mapping[str, Arm], statement: str, pair: tuple[str, str], measure: str, claimed: float, published: bool
) -> dict[str, Any]:
    """A claim about the difference of two arms, or about one arm where the pair names no other, and its verdict."""
    (system, other), arm = pair, named.get(pair[0])
    size = INVARIANT * abs(float(np.mean(named["exp105a"].totals(measure))))
    how = {
        "ttt": f"(c) of {system} less {other.replace('exp105a', 'none')}, same seeds and steps",
        "ttt_over_context": "(c - b) - (b - a): below 0, adaptation brings more than longer context",
    }.get(measure, f"{system} less {other}, within 2 % of {other}'s own: {size:.5f}")
    row = {"statement": statement, "system": system, "published": claimed if published else None, "how": how}
    row |= {"unit": "bpb"}
    if arm is None or (other and other not in named):
        return row
    found = compare.difference(named[other], arm, measure) if other else compare.mean(arm, measure)
    decides = at_published_scale(arm, system, STEPS)
    signed = measure in ("ttt", "ttt_over_context")
    said = by_sign(found, claimed, decides) if signed else by_band(found, (-size, size), decides)
    row |= {"size": "published" if decides else "smaller", **scale(arm), "seeds": len(arm.runs), "verdict": said}
    return row | {"chunks": len(arm.weights), **found, "value": found["difference" if other else "mean"]}


def _rates(rates: pd.DataFrame, arm: Arm | None) -> list[dict[str, Any]]:
    """Two claims about the learned inner rates that the runs of exp106 ended with, and their verdicts.

    Frozen slots have no gradient: weight decay alone acts on their rates, a closed form that knows no scale.
    """
    head = {"system": "exp106", "published": 1.0, "unit": "rate"}
    after, band = f"{RATE_CALLS:,} calls", f"within {RATES[0]} to {RATES[1]}"
    how = f"extrapolated to {after}, where rates follow weight decay alone; {band}"
    frozen: dict[str, Any] = {**head, "statement": "MetaSGD: the rates of frozen slots stay at 1", "how": how}
    how = f"smallest to largest of all slots after {after} or more; {band}"
    free: dict[str, Any] = {
        **head,
        "statement": "MetaSGD: the learned rates of all other slots stay near 1",
        "how": how,
    }
    if rates.empty or arm is None:
        return [frozen, free]
    last = rates[rates["step"] == rates.groupby(["arm", "seed"])["step"].transform("max")]
    still, moved = last[last["frozen"]], last[~last["frozen"]]
    if len(still):
        ends = still["rate"] ** (RATE_CALLS / still["calls"])
        frozen |= {"value": ends.mean(), "low": ends.min(), "high": ends.max(), "seeds": still["seed"].nunique()}
        if np.allclose(still["rate"], still["predicted"].astype(float), rtol=1e-4):
            frozen["verdict"] = by_band(frozen, RATES, decides=True)
    ends, decides, seeds = moved["rate"], at_published_scale(arm, "exp106", STEPS), moved["seed"].nunique()
    outside = moved[~ends.between(*RATES)]
    settled = outside.empty and moved["calls"].min() >= RATE_CALLS
    free |= {"size": "published" if decides else "smaller", **scale(arm), "seeds": seeds}
    free |= {"value": ends.mean(), "low": ends.min(), "high": ends.max()}
    in_every_run = outside["seed"].nunique() == seeds  # one rate is outside
    return [frozen, free | {"verdict": verdict(settled, in_every_run, decides)}]


def against(runs: Sequence[RunFolder], baseline: Sequence[RunFolder]) -> str:
    """How runs of one configuration stand against those of another: the difference of (c), its interval and p.

    UserError: as `compare.arms_of`, or runs of other than two configurations.
    """
    arms = compare.arms_of([run.path for run in (*baseline, *runs)])
    if len(arms) != 2:
        raise UserError(f"--against: expected runs of two configurations in all, found {len(arms)}")
    row = compare.difference(arms[0], arms[1], "ttt")
    known = "too few chunks for an interval"
    if row["p"] is not None:
        known = f"95 % {row['low']:+.5f} to {row['high']:+.5f}, p = {row['p']:.2g}, over {row['over']}"
    return f"Against {arms[0].label} ({len(arms[0].runs)} runs): {row['difference']:+.5f} bits per byte ({known})."
