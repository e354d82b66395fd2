"""The one statistic: its intervals hold the truth 19 times out of 20, whatever the error is made of."""

import numpy as np
import pytest
from scipy import stats

from golfcore.analysis.stats import detectable, estimate, moments

MIXTURES = {  # shares of the variance of the mean: of seeds, text, interaction
    "seeds": (1.0, 0.0, 0.0),
    "text": (0.0, 1.0, 0.0),
    "interaction": (0.0, 0.0, 1.0),
    "seeds and text": (0.5, 0.5, 0.0),
    "mostly text": (0.2, 0.8, 0.0),
    "mostly seeds": (0.8, 0.2, 0.0),
    "all three": (0.33, 0.33, 0.34),
    "seeds and interaction": (0.5, 0.0, 0.5),
}


def neighbours(rng: np.random.Generator, shape: tuple[int, ...], rho: float) -> np.ndarray:
    """Normal values whose neighbours along the last axis correlate by rho, by rho^d at distance d."""
    x = rng.standard_normal(shape)
    for i in range(1, shape[-1] if rho else 0):
        x[..., i] = rho * x[..., i - 1] + np.sqrt(1 - rho**2) * x[..., i]
    return x


def draws(rng: np.random.Generator, shape: tuple[int, int, int], rho: float, mixture: str) -> np.ndarray:
    """(draws, seeds, chunks) of mean 0, its parts in the shares of the mixture."""
    n, seeds, chunks = shape
    a, b, c = MIXTURES[mixture]
    x = np.sqrt(a * seeds) * rng.standard_normal((n, seeds, 1)) + np.zeros(shape)
    x += np.sqrt(b * chunks) * neighbours(rng, (n, 1, chunks), rho) if b else 0.0
    return x + (np.sqrt(c * seeds * chunks) * neighbours(rng, shape, rho) if c else 0.0)


def held(groups: list[np.ndarray], weights: np.ndarray) -> float:
    """The share of draws whose interval holds 0."""
    value, error, df = moments(groups, weights)
    return float(np.mean(abs(value) <= stats.t.ppf(0.975, df) * error))


@pytest.mark.parametrize("mixture", MIXTURES)
def test_intervals_hold_the_truth_19_times_out_of_20(mixture: str) -> None:
    """For 2 to 30 seeds (and one of the text's error) and 8 to 512 chunks whose neighbours correlate by 0 or 0.3."""
    rng, wrong = np.random.default_rng([*map(ord, mixture)]), {}
    for seeds in (1, 2, 3, 30) if mixture == "text" else (2, 3, 30):
        for chunks, rho in [(chunks, rho) for chunks in (8, 13, 64, 512) for rho in (0.0, 0.3)]:
            n = min(1500, 500_000 // (seeds * chunks))
            share = held([draws(rng, (n, seeds, chunks), rho, mixture)], np.ones(chunks))
            chance = 2.5 * np.sqrt(0.05 * 0.95 / n)
            if not 0.93 - chance <= share <= 0.98 + chance:
                wrong[seeds, chunks, rho] = share
    assert not wrong


@pytest.mark.parametrize("mixture", ["seeds", "text", "all three"])
def test_arms_without_a_seed_in_common_are_held_too(mixture: str) -> None:
    """Their seeds and interactions are their own; the text is the same."""
    rng, n = np.random.default_rng(1), 3000
    for seeds in ((2, 2), (3, 8)):
        text = draws(rng, (n, 1, 24), 0.3, "text") if mixture != "seeds" else 0.0
        own, share = ("seeds and interaction", 1.0) if mixture == "all three" else ("seeds", float(mixture == "seeds"))
        groups = [share * draws(rng, (n, s, 24), 0.3, own) for s in seeds]
        groups[0] = groups[0] + text
        assert 0.92 <= held(groups, np.ones(24)) <= 0.985


def test_unequal_weights_are_held_too() -> None:
    rng = np.random.default_rng(2)
    weights = rng.uniform(0.2, 1.0, 40)
    assert 0.93 <= held([draws(rng, (4000, 3, 40), 0.0, "text")], weights) <= 0.98


def test_without_text_variance_it_is_students_t_or_welchs() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(0, 1, 5), rng.normal(1, 3, 4)
    level, weights = np.ones((1, 10)), np.arange(1.0, 11)
    one, theirs = estimate(first[:, None] * level, weights), stats.ttest_1samp(first, 0)
    assert (one.value, one.p, one.df) == pytest.approx((first.mean(), theirs.pvalue, 4))
    assert (one.low, one.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    two = estimate(first[:, None] * level, weights, second[:, None] * level)
    theirs = stats.ttest_ind(first, second, equal_var=False)
    assert (two.p, two.df) == pytest.approx((theirs.pvalue, theirs.df))
    assert (two.low, two.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))


def test_one_seed_says_that_its_error_is_the_texts() -> None:
    x, w = np.random.default_rng(4).normal(0, 1, (3, 20)), np.ones(20)
    assert [estimate(*args).over for args in ((x[:1], w), (x, w), (x, w, x[:1]))] == ["text", "seeds and text", "text"]


def test_no_spread_is_certainty_and_nothing_is_nothing() -> None:
    none, some = estimate(np.zeros((2, 9)), np.ones(9)), estimate(np.full((2, 9), 0.5), np.ones(9))
    assert none[:3] == (0, 0, 0) and none.p == 1 and none.detectable == 0
    assert some[:3] == pytest.approx((0.5, 0.5, 0.5)) and some.p < 1e-9


def test_chunks_that_weigh_nothing_count_for_nothing() -> None:
    x = np.random.default_rng(5).normal(0, 1, (2, 12))
    assert estimate(np.c_[x, [9, 9]], np.r_[np.ones(12), 0]) == estimate(x, np.ones(12))
    for wrong in (np.ones(11), np.eye(12)[0]):
        with pytest.raises(ValueError, match="expected at least 2 chunks and as many weights"):
            estimate(x, wrong)


def test_the_detectable_difference_is_detected_4_times_out_of_5() -> None:
    rng, n = np.random.default_rng(6), 4
    shift = detectable((2 / n) ** 0.5, 2 * n - 2)
    groups = rng.normal(0, 1, (2000, 2 * n))
    p = stats.ttest_ind(groups[:, :n] + shift, groups[:, n:], axis=1).pvalue
    assert np.mean(p < 0.05) == pytest.approx(0.8, abs=0.03)
    assert stats.nct.sf(stats.t.ppf(0.975, 6), 6, detectable(1.0, 6)) == pytest.approx(0.8, abs=1e-3)
    assert detectable(0.0, 4) == 0
