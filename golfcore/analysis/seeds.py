"""Is a difference between two groups of runs more than the choice of their seeds, and which could be seen at all?"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

QUANTILES = 2000


class Welch(NamedTuple):
    """The difference of two means, for groups of different spread."""

    difference: float  # second group - first
    error: float  # its standard error
    df: float
    t: float | None  # None without any spread
    p: float  # two-sided
    low: float
    high: float


def welch(first: Sequence[float], second: Sequence[float], level: float = 0.95) -> Welch:
    """Welch's t-test (1947) of second - first, its interval at `level`. ValueError if a group has fewer than 2 values.

    Groups without any spread (a deterministic switch) differ for certain or not at all.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(f"expected at least 2 values in each group, found {len(first)} and {len(second)}")
    parts = [float(np.var(group, ddof=1)) / len(group) for group in (first, second)]
    difference, error = float(np.mean(second) - np.mean(first)), sum(parts) ** 0.5
    free = [len(group) - 1 for group in (first, second)]
    if error == 0:
        return Welch(difference, 0.0, float(sum(free)), None, 1.0 if difference == 0 else 0.0, difference, difference)
    df = error**4 / sum(part**2 / n for part, n in zip(parts, free, strict=True))
    t, half = difference / error, error * float(stats.t.ppf((1 + level) / 2, df))
    return Welch(difference, error, df, t, float(2 * stats.t.sf(abs(t), df)), difference - half, difference + half)


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's interval of a mean. ValueError if there are fewer than 2 values."""
    n = len(values)
    if n < 2:
        raise ValueError(f"expected at least 2 values, found {n}")
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * np.std(values, ddof=1) / n**0.5)
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def detectable(error: float, df: float, power: float = 0.8, level: float = 0.95) -> float:
    """The smallest true difference that a two-sided t-test finds with probability `power`.

    The probability, of a noncentral t, as a mean over the quantiles of the estimated spread (scipy's own overflows for
    few degrees of freedom).
    """
    critical = stats.t.ppf((1 + level) / 2, df)
    spread = np.sqrt(stats.chi2.ppf((np.arange(QUANTILES) + 0.5) / QUANTILES, df) / df)

    def missing(shift: float) -> float:
        found = stats.norm.cdf(shift - critical * spread) + stats.norm.cdf(-shift - critical * spread)
        return float(found.mean()) - power

    return error * float(optimize.brentq(missing, 0.0, 3 * critical + 10))
