"""The one statistic: a mean over seeds and text, or a difference of two such means, with its interval.

Seeds and text are crossed random effects. Values are the sum of a part of the seed, a part of the text (neighbouring
chunks are alike) and their interaction. The variance of the mean is estimated as the seeds' plus the text's less the
interaction's, which both hold.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import linalg, optimize, special, stats

MIN_CHUNKS = 8  # fewer say nothing about their own spread
LEVEL, POWER = 0.95, 0.8
NEIGHBOURS = 0.22  # correlation of neighbouring chunks for which the text's variance is unbiased
CONCEDED = 1.2  # power of a part's share of the variance
TOLD = 1.1  # times the interaction's variance above which the text's counts


class Estimate(NamedTuple):
    """A mean or a difference of means, and what is known of its error; bits per byte, if the values are."""

    value: float
    low: float  # 95 % interval
    high: float
    error: float  # standard error
    df: float  # degrees of freedom
    p: float  # two-sided, against 0
    detectable: float  # the true difference that would be found 4 times out of 5
    seeds: int  # 1: the error is the text's alone
    chunks: int

    @property
    def over(self) -> str:
        """What the error is over."""
        return "seeds and text" if self.seeds > 1 else "text"


class Moments(NamedTuple):
    """Value, standard error and degrees of freedom; each is an array over the axes before the last two of the data."""

    value: np.ndarray
    error: np.ndarray
    df: np.ndarray


def estimate(values: np.ndarray, weights: np.ndarray, less: np.ndarray | None = None) -> Estimate:
    """The weighted mean of `values` (S seeds, C chunks of text), for other seeds and other text.

    `weights` (C,) are bytes, say; chunks that weigh nothing are left out. A difference that is paired by seed is a mean
    of differences; with `less` (S', C), of other seeds, it is the difference of the two means, still paired by chunk.
    If either has one seed, the interval is for other text alone (`over`). Coverage is 93 to 98 % for 2 to 30 seeds and
    8 to 512 chunks whose neighbours correlate by 0 to 0.3. ValueError: fewer than 2 chunks.
    """
    w = np.asarray(weights, float)
    groups = [np.atleast_2d(np.asarray(x, float)) for x in (values, less) if x is not None]
    if (w > 0).sum() < 2 or any(x.shape[1:] != w.shape for x in groups):
        raise ValueError(f"expected at least 2 chunks and as many weights, found {groups[0].shape[1]} and {w.size}")
    groups = [x[:, w > 0] for x in groups]
    value, error, df = (float(x) for x in moments(groups, w[w > 0]))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, df)) * error
    p = float(2 * stats.t.sf(abs(value) / error, df)) if error else float(value == 0)
    seeds, chunks = min(len(x) for x in groups), groups[0].shape[1]
    return Estimate(value, value - reach, value + reach, error, df, p, detectable(error, df), seeds, chunks)


def moments(groups: Sequence[np.ndarray], weights: np.ndarray) -> Moments:
    """The mean of one group (..., S, C), or the mean of the first less that of the second, with its error."""
    w = weights / weights.sum()
    means = [x.mean(-2) for x in groups]
    sign = (1.0, -1.0)
    here = sum(s * m for s, m in zip(sign, means, strict=False))
    value = np.asarray(here @ w)
    blocks = _Blocks.of(w)
    text = blocks.variance(here - value[..., None])
    if min(x.shape[-2] for x in groups) < 2:
        return Moments(value, np.sqrt(text), np.full_like(text, blocks.df))
    seeds, both = [], []
    for x, mean in zip(groups, means, strict=True):
        n, by_seed = x.shape[-2], x @ w
        seeds.append((by_seed.var(-1, ddof=1) / n, n - 1))
        rest = x - by_seed[..., None] - mean[..., None, :] + (mean @ w)[..., None, None]
        both.append((blocks.variance(rest).sum(-1) / (n * (n - 1)), (n - 1) * blocks.df))
    error, df = _total(_sum(seeds), (text, blocks.df), _sum(both))
    return Moments(value, error, df)


class _Blocks(NamedTuple):
    """Blocks of neighbouring chunks, n^(1/3) chunks each, as neighbours may come from one document.

    The sum of squares of blocks is scaled, and its degrees of freedom are those, that it has if chunks at distance d
    correlate by NEIGHBOURS^d: blocks this short would find too little of such a correlation.
    """

    weights: np.ndarray
    starts: np.ndarray
    scale: float
    df: float

    @classmethod
    def of(cls, w: np.ndarray) -> "_Blocks":
        n = len(w)
        starts = np.arange(0, n, max(1, round(n ** (1 / 3))))
        correlation = linalg.toeplitz(NEIGHBOURS ** np.arange(n))
        deviations = np.add.reduceat(np.diag(w) - np.outer(w, w), starts, axis=0)  # of block sums from their mean
        covariance = deviations @ correlation @ deviations.T
        trace = float(np.trace(covariance))
        return cls(w, starts, float(w @ correlation @ w) / trace, trace**2 / float((covariance**2).sum()))

    def variance(self, deviations: np.ndarray) -> np.ndarray:
        """Of the weighted mean of chunks with these deviations (..., C) from it."""
        return self.scale * (np.add.reduceat(self.weights * deviations, self.starts, axis=-1) ** 2).sum(-1)


Part = tuple[np.ndarray, np.ndarray | float]  # a variance and its degrees of freedom


def _sum(parts: Sequence[Part]) -> Part:
    """The sum of independent variances, with Satterthwaite's degrees of freedom."""
    if len(parts) == 1:
        return parts[0]
    total = np.sum([v for v, _ in parts], axis=0)
    scatter = np.sum([v**2 / df for v, df in parts], axis=0)
    least = np.full(np.shape(total), min(float(np.min(df)) for _, df in parts))
    return total, np.divide(total**2, scatter, out=least, where=scatter > 0)


def _total(seeds: Part, text: Part, both: Part) -> tuple[np.ndarray, np.ndarray]:
    """Standard error and degrees of freedom of seeds + text - both.

    The text counts where its variance is above TOLD times the interaction's. Student's critical value is the normal one
    and what the part that needs most adds for its share, less than in proportion: Cochran and Cox's (1950) in the
    limits. Satterthwaite's degrees of freedom would trust the text's where few seeds happen to agree: of two seeds that
    make 80 % of the variance, his intervals hold the truth 89 times out of 100.
    """
    counts = text[0] > TOLD * both[0]
    total = seeds[0] + np.where(counts, text[0] - both[0], 0.0)
    normal, more = stats.norm.ppf((1 + LEVEL) / 2), np.zeros_like(total)
    for part, df in (seeds, (np.where(counts, text[0], 0.0), text[1])):
        share = np.divide(part, total, out=np.ones_like(total), where=total > 0)
        more = np.maximum(more, (stats.t.ppf((1 + LEVEL) / 2, df) - normal) * np.minimum(share, 1.0) ** CONCEDED)
    return np.sqrt(total), special.stdtridf((1 + LEVEL) / 2, normal + more)


def detectable(error: float, df: float) -> float:
    """The smallest true difference that a two-sided t-test at LEVEL finds with probability POWER.

    The probability, of a noncentral t, is a mean over 2,000 quantiles of the estimated spread (scipy's overflows for
    few degrees of freedom).
    """
    critical = stats.t.ppf((1 + LEVEL) / 2, df)
    spread = np.sqrt(stats.chi2.ppf((np.arange(2000) + 0.5) / 2000, df) / df)

    def missing(shift: float) -> float:
        found = stats.norm.cdf(shift - critical * spread) + stats.norm.cdf(-shift - critical * spread)
        return float(found.mean()) - POWER

    return error * float(optimize.brentq(missing, 0.0, 3 * critical + 10))
