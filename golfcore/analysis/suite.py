"""A sweep against its publication: for each arm the published and the measured difference, and whether they agree.

An arm is compared with the arm that its sweep names, seed by seed. The interval of a difference holds Student's over
the paired seeds and the paired block bootstrap's over chunks of text: a finding must survive both.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from golfcore.analysis import runs
from golfcore.analysis.claims import OPEN, REFUTED, REPRODUCED
from golfcore.analysis.compare import MEASURES, Arm, contrast
from golfcore.analysis.readings import Reading
from golfcore.analysis.seeds import mean_interval
from golfcore.analysis.stats import Interval
from golfcore.analysis.table import Row, Table, number, to_text
from golfcore.evals.ledger import Legality
from golfcore.runs.sweepfile import ArmPlan, Sweep

UNPUBLISHED = "no published number"
REFERENCE = "reference"
RULE = (
    f"reproduced: the interval excludes 0 on the published side; refuted: on the other side; otherwise {OPEN}.\n"
    "The interval holds those over paired seeds (Student's t) and over chunks of text (block bootstrap)."
)


def suite(plan: Sweep, arms: Sequence[Arm]) -> Table:
    """One row for each arm of the sweep that was run, in the file's order; bits per byte.

    `published_delta`, `delta`: to the arm `on`, in the measure that was published, under the arm's own protocol.
    `noise`: what two published runs differ by in 19 of 20 cases, if they differ in their seed only.
    `low`, `high`: of `delta`, what the intervals over seeds and over chunks hold together; missing for fewer than 2
    seeds or too few chunks. `bpb`: mean over seeds, `bpb_SEED` those of each. `legality`: of that number, as measured.
    `static`, `sliding`, `score_first`: what the same weights score legally, the last if it was measured;
    `sliding_delta` with its interval as `delta`. `runs`, `configs`, `trained_in`: where the numbers come from.
    """
    found = {arm.label: arm for arm in arms}
    return Table(_row(plan, spec, found) for spec in plan.arms.values() if spec.name in found)


def _row(plan: Sweep, spec: ArmPlan, arms: Mapping[str, Arm]) -> Row:
    arm, other = arms[spec.name], arms.get(spec.on)
    row: Row = {"arm": spec.name, "label": spec.label, "on": spec.on or None, "measure": plan.measure}
    row |= {"published": spec.published, "published_note": spec.published_note or None}
    claimed = plan.arms[spec.on].published if other else None
    delta = None if spec.published is None or claimed is None else spec.published - claimed
    row["published_delta"] = delta
    row["noise"] = None if plan.published_sd is None or delta is None else 1.96 * 2**0.5 * plan.published_sd
    totals = arm.totals(MEASURES[plan.measure])
    row |= {"seeds": len(totals), "bpb": float(np.mean(totals))}
    row |= {f"bpb_{seed}": value for seed, value in zip(arm.seeds, totals, strict=True)}
    if other:
        ours = difference(other, arm, plan.measure)
        row |= ours | {"verdict": verdict(delta, interval(ours))}
        legal = difference(other, arm, "sliding")
        row |= {f"sliding_{column}": legal[column] for column in ("delta", "low", "high")}
    else:
        row["verdict"] = REFERENCE
    return row | _measured(plan, arm) | {"unknown": "; ".join(spec.unknown) or None, "note": spec.note or None}


def difference(other: Arm, arm: Arm, measure: str) -> Row:
    """The difference arm - other of a measure over the seeds that both have (all, if none), with its intervals."""
    both = sorted(set(arm.seeds) & set(other.seeds))
    ours, theirs = (dict(zip(a.seeds, a.totals(MEASURES[measure]), strict=True)) for a in (arm, other))
    paired = [ours[seed] - theirs[seed] for seed in both]
    mean = float(np.mean(paired) if both else np.mean(list(ours.values())) - np.mean(list(theirs.values())))
    row: Row = dict.fromkeys(("delta", "low", "high", "seeds_low", "seeds_high", "chunks_low", "chunks_high"))
    row |= {"delta": mean, "pairs": len(both)}
    if len(both) > 1:
        row["seeds_low"], row["seeds_high"] = mean_interval(paired)
    found = contrast(other, arm, MEASURES[measure])
    row |= {end: found.get(end) for end in ("chunks_low", "chunks_high")}
    if row["seeds_low"] is not None and row["chunks_low"] is not None:
        row["low"] = min(number(row, "seeds_low"), number(row, "chunks_low"))
        row["high"] = max(number(row, "seeds_high"), number(row, "chunks_high"))
    return row


def interval(row: Row) -> Interval | None:
    if row.get("low") is None:
        return None
    return Interval(number(row, "delta"), number(row, "low"), number(row, "high"))


def verdict(published: float | None, found: Interval | None) -> str:
    """By RULE. A published difference of 0 claims no side, so that nothing here can settle it."""
    if published is None:
        return UNPUBLISHED
    if found is None or found.low <= 0 <= found.high or published == 0:
        return OPEN
    return REPRODUCED if (found.low > 0) == (published > 0) else REFUTED


def _measured(plan: Sweep, arm: Arm) -> Row:
    """What the runs of an arm reported, means over seeds; legality is what the ledger saw."""
    reports = [runs.report(run.run) for run in arm.runs]
    rows = [report["measures"] for report in reports]
    seen = {measures[plan.measure]["legality"] for measures in rows}
    row: Row = {"legality": ", ".join(sorted(seen))}
    row |= {name: float(np.mean([m[name]["bpb"] for m in rows])) for name in ("static", "sliding")}
    adapted = [[r["bpb"] for r in m.values() if r["legality"] == Legality.SCORE_FIRST] for m in rows]
    row["score_first"] = float(np.mean([min(scores) for scores in adapted])) if all(adapted) else None
    sizes = [report["artifact"] for report in reports]
    row |= {"bytes": max(size["total"] for size in sizes), "fits": all(size["fits"] for size in sizes)}
    row["runs"] = " ".join(run.run.id for run in arm.runs)
    row["configs"] = " ".join(f"{run.seed}:{run.run.config_hash()}" for run in arm.runs)
    row["trained_in"] = " ".join(run.run.stages()["train"].get("from", run.run.id) for run in arm.runs)
    return row


def is_legal(row: Row) -> bool:
    """Whether the number that stands for the arm could be submitted."""
    return str(Legality.TRAIN_FIRST) not in str(row["legality"])


def as_text(plan: Sweep, table: Table) -> str:
    """The table for a terminal, what it leaves out of the publication, and the rule of the verdicts."""
    shown = Table(
        {
            "arm": row["arm"],
            "on": row.get("on"),
            "published": row.get("published"),
            "its delta": _signed(row.get("published_delta")),
            "measured": row["bpb"],
            "our delta": _signed(row.get("delta")),
            "95 %": _range(row),
            "verdict": row["verdict"],
            "legality": row["legality"],
            "(a)": row["static"],
            "(b)": row["sliding"],
            "score-first": row.get("score_first"),
            "bytes": row["bytes"],
            "n": row["seeds"],
        }
        for row in table
    )
    head = f"{plan.title}\nsweep {plan.name} at size {plan.size}, measure {plan.measure}, bits per byte"
    notes = [f"{row['arm']}: {'; '.join(parts)}" for row in table if (parts := _notes(row))]
    return "\n\n".join([head, to_text(shown), *(["\n".join(notes)] if notes else []), RULE])


def reading(table: Table) -> Reading:
    """What the table says: the verdicts, what is not legal, and the best number that is."""
    compared = [row for row in table if row.get("on") is not None and row["verdict"] != UNPUBLISHED]
    parts = [
        f"{len(names)} {kind}" + (f" ({', '.join(names)})" if names else "")
        for kind in (REPRODUCED, REFUTED, OPEN)
        for names in [[str(row["arm"]) for row in compared if row["verdict"] == kind]]
    ]
    text = f"Of {len(compared)} published differences {'; '.join(parts)}."
    small = [
        str(row["arm"])
        for row in compared
        if row.get("noise") is not None and abs(number(row, "published_delta")) < number(row, "noise")
    ]
    if small:
        text += f" Published differences within the noise of the publication's own seeds: {', '.join(small)}."
    illegal = [str(row["arm"]) for row in table if not is_legal(row)]
    if illegal:
        text += f" The number of {len(illegal)} of {len(table)} arms is not legal: its targets were trained on first."
    best, column, arm = min(
        (number(row, column), column, str(row["arm"]))
        for row in table
        for column in ("static", "sliding", "score_first")
        if row.get(column) is not None
    )
    return Reading(f"{text} The best legal score is {best:.4f}, {arm}'s {column.replace('_', '-')}.")


def _notes(row: Row) -> list[str]:
    unknown = row.get("unknown")
    said = [str(row[column]) for column in ("published_note", "note") if row.get(column)]
    return said + ([f"not published: {unknown}"] if unknown else [])


def _signed(value: object) -> str:
    return f"{value:+.4f}" if isinstance(value, float) else ""


def _range(row: Row) -> str:
    if row.get("on") is None:
        return ""
    found = interval(row)
    return f"{found.low:+.4f} to {found.high:+.4f}" if found else "-"
