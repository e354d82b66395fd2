"""The published claims about meta-learning against what runs measured. Verdicts follow from numbers by stated rules.

An interval here holds whatever the interval over seeds or that over chunks of text holds: a claim must survive both.
Fewer than 2 seeds, or too few chunks, leave a claim unresolved, as does an arm that was not run.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from golfcore.analysis.compare import MEASURES, Arm, Measure, contrast, over_chunks, over_seeds
from golfcore.analysis.stats import Interval
from golfcore.analysis.table import Row, Table, Value, number

REPRODUCED, REFUTED, OPEN = "reproduced", "refuted", "not resolved at this scale"
ADAPTATION_OVER_CONTEXT: Measure = {"ttt": 1, "sliding": -2, "static": 1}  # (c - b) - (b - a)
INVARIANT = 0.02  # published deltas of all arms, 0.0230 to 0.0234, are within so much of one another
RATES = (0.92, 1.08)  # where all 66 learned rates were said to end, after 1,083 calls
RATE_CALLS = 1083
COST_BAND = 0.25  # a cost is reproduced within so much of itself: other hardware, other shapes


class Roles(NamedTuple):
    """Which arm stands for what; None: not run."""

    reference: Arm
    placebo: Arm | None
    exp101: Arm | None
    exp106: Arm | None


def roles(arms: Sequence[Arm]) -> Roles:
    """The first arm is the reference (exp105a's role); the others are known by their preset's name."""
    named = {arm.runs[0].config.name: arm for arm in arms[1:]}
    return Roles(arms[0], *(named.get(f"meta-{name}") for name in ("placebo", "exp101", "exp106")))


def claims(arms: Sequence[Arm], rates: Table, costs: Table) -> Table:
    """One row a claim: what was published, what these runs measured with its interval, the verdict and its rule.

    `detectable`: the true difference that the seeds would find 4 times out of 5.
    `rates` and `costs` are the tables `ablation.meta_sgd` and `ablation.costs` of the arms.
    """
    r = roles(arms)
    return Table(
        [
            _effect("exp101 improves the score after TTT (against exp105a)", -0.00036, r.exp101, r.reference),
            _effect("and does so by its inner step (against the placebo)", None, r.exp101, r.placebo),
            _effect("exp106 improves the score after TTT (against exp105a)", -0.00155, r.exp106, r.reference),
            _is_adaptation(r.reference),
            _invariance("the TTT delta c - a does not depend on meta-training", "total_gain", r),
            _invariance("nor does the gain of adaptation alone, c - b", "ttt_gain", r),
            _frozen_rates(rates),
            _free_rates(rates),
            _cost("exp101 costs 2.9 % more time", 0.029, r.exp101, costs),
            _cost("exp106 costs 8.1 % more time", 0.081, r.exp106, costs),
        ]
    )


# -- rules


def sign_verdict(found: Interval | None, claimed: float) -> str:
    """Reproduced: the whole interval has the claimed sign. Refuted: it holds nothing as large as what was claimed."""
    if found is None:
        return OPEN
    low, high = (found.low, found.high) if claimed < 0 else (-found.high, -found.low)
    return REPRODUCED if high < 0 else REFUTED if low > -abs(claimed) else OPEN


def band_verdict(found: Interval | None, low: float, high: float) -> str:
    """Reproduced: the whole interval is within [low, high]. Refuted: it is wholly outside."""
    if found is None:
        return OPEN
    if low <= found.low and found.high <= high:
        return REPRODUCED
    return REFUTED if found.high < low or found.low > high else OPEN


def both(row: Row) -> Interval | None:
    """What the interval of a difference over seeds or over chunks holds; None if one of them is missing."""
    ends = [row.get(f"{over}_{end}") for over in ("seeds", "chunks") for end in ("low", "high")]
    if any(end is None for end in ends):
        return None
    low, high = (
        pick(number(row, f"{over}_{end}") for over in ("seeds", "chunks"))
        for pick, end in ((min, "low"), (max, "high"))
    )
    return Interval(number(row, "difference"), low, high)


def both_of_arm(arm: Arm, measure: Measure) -> Interval | None:
    """The same for the mean of a measure in one arm."""
    a, b = over_seeds(arm, measure), over_chunks(arm, measure)
    return Interval(a.estimate, min(a.low, b.low), max(a.high, b.high)) if a and b else None


def _row(
    claim: str,
    published: str,
    found: Interval | float | None,
    unit: str,
    rule: str,
    verdict: str,
    detectable: Value = None,
) -> Row:
    measured, low, high = found if isinstance(found, Interval) else (found, None, None)
    row: Row = {"claim": claim, "published": published, "measured": measured, "low": low, "high": high, "unit": unit}
    return row | {"verdict": verdict, "detectable": detectable, "rule": rule}


# -- claims


def _effect(claim: str, published: float | None, arm: Arm | None, other: Arm | None) -> Row:
    """A better score after TTT. What has no published number is held against exp101's."""
    size = -0.00036 if published is None else published
    text = "never run" if published is None else f"{published:+.5f} bpb, one seed each"
    rule = f"reproduced: interval below 0; refuted: interval above {size:+.5f}"
    if arm is None or other is None:
        return _row(claim, text, None, "bpb", rule, OPEN)
    row = contrast(other, arm, MEASURES["ttt"])
    found = both(row)
    verdict = sign_verdict(found, size)
    return _row(claim, text, found or number(row, "difference"), "bpb", rule, verdict, row.get("mde_seeds"))


def _is_adaptation(arm: Arm) -> Row:
    """The published delta subtracts a sliding score with TTT from one without overlap: how much of it is TTT?"""
    found = both_of_arm(arm, ADAPTATION_OVER_CONTEXT)
    mean = sum(arm.totals(ADAPTATION_OVER_CONTEXT)) / len(arm.runs)
    rule = "(c - b) - (b - a); reproduced: interval below 0, adaptation brings more than context; refuted: above 0"
    claim, text = "the TTT delta of 0.0234 is a gain of adaptation", "0.0234 bpb, context not measured"
    return _row(claim, text, found or mean, "bpb", rule, band_verdict(found, -math.inf, 0.0))


def _invariance(claim: str, name: str, r: Roles) -> Row:
    size = abs(sum(r.reference.totals(MEASURES[name])) / len(r.reference.runs))
    rule = (
        f"exp101 - exp105a; reproduced: interval within 2 % of exp105a's own, {INVARIANT * size:.5f}; refuted: outside"
    )
    text = "0.02341 and 0.02331 bpb" if name == "total_gain" else "not measured"
    if r.exp101 is None:
        return _row(claim, text, None, "bpb", rule, OPEN)
    row = contrast(r.reference, r.exp101, MEASURES[name])
    found = both(row)
    verdict = band_verdict(found, -INVARIANT * size, INVARIANT * size)
    return _row(claim, text, found or number(row, "difference"), "bpb", rule, verdict, row.get("mde_seeds"))


def _frozen_rates(rates: Table) -> Row:
    """Frozen slots have no gradient: their rates decay as predicted, here and hence in the published run."""
    claim, text = "MetaSGD: the rates of frozen slots stay at 1", "0.92 to 1.08 (not logged)"
    rule = f"extrapolated to {RATE_CALLS:,} calls; reproduced: all within 0.92 to 1.08; refuted: all outside"
    last = Table(row for row in _last(rates) if row["frozen"])
    if not last:
        return _row(claim, text, None, "rate", rule, OPEN)
    ends = [number(row, "rate") ** (RATE_CALLS / number(row, "calls")) for row in last]
    found = Interval(sum(ends) / len(ends), min(ends), max(ends))
    as_predicted = all(math.isclose(number(r, "rate"), number(r, "predicted"), rel_tol=1e-4) for r in last)
    return _row(claim, text, found, "rate", rule, band_verdict(found, *RATES) if as_predicted else OPEN)


def _free_rates(rates: Table) -> Row:
    claim, text = "MetaSGD: the learned rates of all other slots stay near 1", "0.92 to 1.08 (not logged)"
    rule = f"reproduced: all within, after {RATE_CALLS:,} calls or more; refuted: in every run one is outside"
    last = Table(row for row in _last(rates) if not row["frozen"])
    if not last:
        return _row(claim, text, None, "rate", rule, OPEN)
    values = last.numbers("rate")
    found = Interval(sum(values) / len(values), min(values), max(values))
    outside = {row["seed"] for row in last if not RATES[0] <= number(row, "rate") <= RATES[1]}
    if outside == {row["seed"] for row in last}:
        return _row(claim, text, found, "rate", rule, REFUTED)
    enough = min(last.numbers("calls")) >= RATE_CALLS
    return _row(claim, text, found, "rate", rule, REPRODUCED if enough and not outside else OPEN)


def _last(rates: Table) -> Table:
    """The rates that runs ended with."""
    ends = {(row["arm"], row["seed"]): row["step"] for row in rates}
    return Table(row for row in rates if row["step"] == ends[row["arm"], row["seed"]])


def _cost(claim: str, published: float, arm: Arm | None, costs: Table) -> Row:
    low, high = (published * (1 + sign * COST_BAND) for sign in (-1, 1))
    rule = (
        f"at the published cadence; reproduced: interval within {100 * low:.1f} to {100 * high:.1f} %; refuted: outside"
    )
    text = f"+{100 * published:.1f} %"
    if arm is None:
        return _row(claim, text, None, "%", rule, OPEN)
    row = costs.one(kind="arm", arm=arm.label)
    mean = 100 * number(row, "published_overhead")
    if row.get("low") is None:
        return _row(claim, text, mean, "%", rule, OPEN)
    found = Interval(mean, 100 * number(row, "low"), 100 * number(row, "high"))
    return _row(claim, text, found, "%", rule, band_verdict(found, 100 * low, 100 * high))
