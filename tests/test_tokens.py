"""Laws of losses by token: shares sum, bounds hold, and what arithmetic forbids is flagged by arithmetic."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from synthetic_run import make_result, make_text
from test_plots import check_figure, draw, prints

from golfcore.analysis import tokens
from golfcore.analysis.text import Text, legible, render
from golfcore.analysis.tokens import THRESHOLDS
from golfcore.evals.result import EvalResult
from golfcore.plots import tokens as plots

N = 3000
LOSSES = hnp.arrays(np.float64, st.integers(1, 200), elements=st.floats(1e-3, 60.0))
PIECES = [
    "<0x0A>" if i % 50 == 7 else (" " if i % 3 == 0 else "") + (f"p{i}" if i % 7 else "$_{}^\u4e2d")
    for i in range(1024)
]


@pytest.fixture(scope="module")
def text() -> Text:
    return make_text(N)


@pytest.fixture(scope="module")
def evaluations(text: Text) -> dict[str, EvalResult]:
    nats = np.random.default_rng(0).gamma(1.2, 1.7, N)
    dropped = nats.copy()
    dropped[-5:] = np.nan
    return {n: make_result(n, x, text) for n, x in (("static", nats), ("ttt", 0.9 * nats), ("sliding", dropped))}


@pytest.fixture(scope="module")
def tables(evaluations: dict[str, EvalResult], text: Text) -> dict[str, pd.DataFrame]:
    return tokens.tables(evaluations, text, PIECES, "sliding")


# -- thresholds


@given(LOSSES)
def test_the_bound_of_the_counts_never_exceeds_the_share(nats: np.ndarray) -> None:
    rows = tokens.exceedance(nats)
    assert (rows["bound"] <= rows["share_of_loss"] + 1e-12).all()
    assert (rows["share_of_loss"] >= rows["share"] - 1e-12).all(), "above a threshold is above average"
    assert (rows[["targets", "share_of_loss", "bound"]].diff().dropna() <= 1e-12).all(axis=None)
    assert list(rows["targets"]) == [(nats > t).sum() for t in THRESHOLDS]


def test_the_bound_is_reached_by_losses_just_above_the_thresholds() -> None:
    rows = tokens.exceedance(np.repeat(np.nextafter(THRESHOLDS, np.inf), [5, 4, 3, 2, 1]))
    assert list(rows["bound"]) == pytest.approx(list(rows["share_of_loss"]))


def test_published_rows_are_impossible_exactly_where_their_own_counts_say_so() -> None:
    """Recomputed here from the statement alone: the cheapest losses that have these counts."""
    rows = tokens.published()
    between = -np.diff([*rows["targets"].astype(float), 0.0])
    for k, row in enumerate(rows.to_dict("records")):
        least = float(np.dot(THRESHOLDS[k:], between[k:]))
        shares = [least / (mean * tokens.PUBLISHED_TARGETS) for mean in tokens.PUBLISHED_MEAN]
        assert [row["bound_high"], row["bound_low"]] == pytest.approx(shares)
        assert row["impossible"] is (row["share_of_loss"] < min(shares))
    assert list(rows.loc[rows["impossible"], "threshold"]) == [3.0, 5.0]


# -- distribution


@given(LOSSES)
def test_a_histogram_holds_every_target_and_all_of_the_loss(nats: np.ndarray) -> None:
    rows = tokens.histogram(nats)
    assert rows["targets"].sum() == len(nats)
    assert list(rows[["share", "share_of_loss"]].sum()) == pytest.approx([1, 1])
    assert rows.loc[rows["low"] >= 5, "targets"].sum() == (nats >= 5).sum()


@given(LOSSES)
def test_concentration_rises_from_nothing_to_all_above_the_diagonal(nats: np.ndarray) -> None:
    x, y = tokens.concentration(nats)[["share", "share_of_loss"]].to_numpy().T
    assert (x[0], y[0]) == (0, 0) and (x[-1], y[-1]) == pytest.approx((1, 1))
    assert (np.diff(x) > 0).all() and (np.diff(y) >= 0).all() and (y >= x - 1e-9).all()


def test_a_threshold_lies_on_the_curve_of_concentration(evaluations: dict[str, EvalResult]) -> None:
    nats = evaluations["static"].per_target.astype(np.float64)
    curve, rows = tokens.concentration(nats), tokens.exceedance(nats)
    there = np.interp(rows["share"], curve["share"], curve["share_of_loss"])
    assert there == pytest.approx(rows["share_of_loss"].to_numpy(), abs=0.01)


# -- kinds of token


def test_classes_and_groups_hold_every_scored_target(tables: dict[str, pd.DataFrame]) -> None:
    for name in ("classes", "frequency"):
        assert tables[name]["targets"].sum() == N - 5
        assert list(tables[name][["share", "share_of_loss"]].sum()) == pytest.approx([1, 1])
    groups, classes = tables["frequency"], tables["classes"]
    assert groups["tokens"].sum() == 1024 and len(groups) == 10
    assert (groups["least"][:-1].to_numpy() >= groups["most"][1:].to_numpy()).all()
    for columns in (["above_10", "above_5", "above_1"], ["p10", "median", "p90"]):
        assert (np.diff(classes[columns].to_numpy()) >= 0).all()


def test_all_pieces_together_are_all_of_the_loss(evaluations: dict[str, EvalResult], text: Text) -> None:
    rows = tokens.pieces(evaluations["static"], text, PIECES, most=1024)
    assert rows["share_of_loss"].sum() == pytest.approx(1) and rows["targets"].sum() == N
    assert rows["share_of_loss"].is_monotonic_decreasing and rows["token"].is_unique


def test_the_hardest_targets_are_those(evaluations: dict[str, EvalResult], text: Text) -> None:
    result = evaluations["sliding"]
    rows = tokens.hardest(result, text, PIECES, most=7)
    expected = np.sort(result.per_target[~np.isnan(result.per_target)])[::-1][:7]
    assert list(rows["nats"]) == pytest.approx(expected.tolist())
    for row in rows.to_dict("records"):
        assert row["target"] == f'"{legible(PIECES[text.val[row["position"] + 1]])}"'
        assert row["after"].endswith(legible(PIECES[text.val[row["position"]]]))
    assert len(tokens.hardest(result, text, PIECES, most=10 * N)) == N - 5


# -- print


def test_text_is_rendered_from_pieces_and_bytes() -> None:
    pieces = [" the", "re", "<0xE2>", "<0x80>", "<0x99>", "<0x0A>", "<s>"]
    assert render(pieces, [0, 1, 2, 3, 4, 5, 0]) == " there\u2019\n the"
    assert render(pieces, [6, 2, 1]) == "<s>\\xe2re" and render(pieces, []) == ""


def test_what_does_not_print_is_spelled() -> None:
    assert legible("a b\u00e9\u2019\u0436") == "a b\u00e9\u2019\u0436"
    assert legible("\n\t\x00\u200b\u4e2d\xad") == "\\n\\t\\x00\\u200b\\u4e2d\\xad"


# -- figures


@pytest.mark.parametrize("name", list(plots.FIGURES))
@pytest.mark.parametrize("scale", [0.05, 5.0])
def test_figures_are_legible_for_any_losses(
    evaluations: dict[str, EvalResult], text: Text, scale: float, name: str, tmp_path: Path
) -> None:
    scaled = {n: make_result(n, scale * r.per_target, text) for n, r in evaluations.items()}
    found = tokens.tables(scaled, text, PIECES, "sliding")
    assert ["tokens-" + key for key in found] == list(plots.FIGURES)
    check_figure(name, found[name.removeprefix("tokens-")], tmp_path)


@pytest.mark.parametrize("name", ["histogram", "concentration"])
def test_curves_that_coincide_are_drawn_once_and_named_together(
    tables: dict[str, pd.DataFrame], evaluations: dict[str, EvalResult], text: Text, name: str
) -> None:
    """(a) and (b) differ in five targets of 3,000; of a steeper (c) the curve is its own."""
    steep = make_result("ttt", evaluations["static"].per_target ** 3, text)
    apart = tokens.tables({**evaluations, "ttt": steep}, text, PIECES, "sliding")[name]
    together = "(a) no overlap, (b) sliding window (they coincide)"
    printed = [words for words, _ in prints(draw(f"tokens-{name}", apart))]
    assert {together, "(c) sliding + TTT"} <= set(printed)


def test_the_figure_of_thresholds_says_whose_numbers_and_which_are_impossible(tables: dict[str, pd.DataFrame]) -> None:
    printed = [words for words, _ in prints(draw("tokens-exceedance", tables["exceedance"]))]
    assert {"measured here, (b) sliding window", "published (pr294)"} <= set(printed)
    assert [words for words in printed if "impossible" in words] == ["55.0, impossible", "30.0, impossible"]


def test_a_caption_names_what_is_impossible(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["exceedance"]
    assert "2 of 5 published shares contradict their own counts" in plots.say_exceedance(table)
    sound = table.assign(impossible=table["impossible"].map({True: False, False: False}))
    assert "no published share contradicts" in plots.say_exceedance(sound)
