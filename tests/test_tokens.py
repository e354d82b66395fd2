"""Laws of losses by token: shares sum, bounds hold, and what arithmetic forbids is flagged by arithmetic."""

from pathlib import Path

import numpy as np
import pytest
from golfcore.analysis.token_losses import THRESHOLDS
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from synthetic_run import make_result, make_text
from test_plots import check_legible, draw, prints

from golfcore.analysis import token_losses, token_readings
from golfcore.analysis.table import Table, number, read_csv
from golfcore.analysis.text import Text, legible, render
from golfcore.evals.result import EvalResult
from golfcore.plots.figures import PLOTS, draw_group, redraw

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


# -- thresholds


@given(LOSSES)
def test_the_bound_of_the_counts_never_exceeds_the_share(nats: np.ndarray) -> None:
    rows = token_losses.exceedance(nats)
    for row in rows:
        assert number(row, "bound") <= number(row, "share_of_loss") + 1e-12
        assert number(row, "share_of_loss") >= number(row, "share") - 1e-12, "above a threshold is above average"
    for column in ("targets", "share_of_loss", "bound"):
        values = rows.numbers(column)
        assert all(a >= b - 1e-12 for a, b in zip(values[:-1], values[1:], strict=True))
    assert [row["targets"] for row in rows] == [int((nats > t).sum()) for t in THRESHOLDS]


def test_the_bound_is_reached_by_losses_just_above_the_thresholds() -> None:
    nats = np.repeat(np.nextafter(THRESHOLDS, np.inf), [5, 4, 3, 2, 1])
    rows = token_losses.exceedance(nats)
    assert rows.numbers("bound") == pytest.approx(rows.numbers("share_of_loss"))


def test_published_rows_are_impossible_exactly_where_their_own_counts_say_so() -> None:
    """Recomputed here from the statement alone: the cheapest losses that have these counts."""
    rows = token_losses.published()
    counts = rows.numbers("targets")
    least = []
    for k in range(len(THRESHOLDS)):
        between = [n - m for n, m in zip(counts[k:], [*counts[k + 1 :], 0], strict=True)]
        least.append(sum(t * n for t, n in zip(THRESHOLDS[k:], between, strict=True)))
    for row, nats in zip(rows, least, strict=True):
        shares = [nats / (mean * token_losses.PUBLISHED_TARGETS) for mean in token_losses.PUBLISHED_MEAN]
        assert [number(row, "bound_high"), number(row, "bound_low")] == pytest.approx(shares)
        assert row["impossible"] is (number(row, "share_of_loss") < min(shares))
    assert [row["threshold"] for row in rows if row["impossible"]] == [3.0, 5.0]


# -- distribution


@given(LOSSES)
def test_a_histogram_holds_every_target_and_all_of_the_loss(nats: np.ndarray) -> None:
    rows = token_losses.histogram(nats)
    assert sum(rows.numbers("targets")) == len(nats)
    assert sum(rows.numbers("share")) == pytest.approx(1) and sum(rows.numbers("share_of_loss")) == pytest.approx(1)
    above = sum(number(row, "targets") for row in rows if number(row, "low") >= 5)
    assert above == (nats >= 5).sum()


@given(LOSSES)
def test_concentration_rises_from_nothing_to_all_above_the_diagonal(nats: np.ndarray) -> None:
    rows = token_losses.concentration(nats)
    x, y = (np.array(rows.numbers(c)) for c in ("share", "share_of_loss"))
    assert (x[0], y[0]) == (0, 0) and (x[-1], y[-1]) == pytest.approx((1, 1))
    assert (np.diff(x) > 0).all() and (np.diff(y) >= 0).all() and (y >= x - 1e-9).all()


def test_a_threshold_lies_on_the_curve_of_concentration(evaluations: dict[str, EvalResult]) -> None:
    nats = evaluations["static"].per_target.astype(np.float64)
    curve = token_losses.concentration(nats)
    for row in token_losses.exceedance(nats):
        there = np.interp(number(row, "share"), curve.numbers("share"), curve.numbers("share_of_loss"))
        assert there == pytest.approx(number(row, "share_of_loss"), abs=0.01)


# -- kinds of token


def test_classes_and_groups_hold_every_scored_target(evaluations: dict[str, EvalResult], text: Text) -> None:
    result = evaluations["sliding"]
    for rows in (token_losses.classes(result, text), token_losses.frequency(result, text)):
        assert sum(rows.numbers("targets")) == result.tokens == N - 5
        assert sum(rows.numbers("share")) == pytest.approx(1) and sum(rows.numbers("share_of_loss")) == pytest.approx(1)
    groups = token_losses.frequency(result, text)
    assert sum(groups.numbers("tokens")) == 1024 and len(groups) == 10
    for one, other in zip(groups[:-1], groups[1:], strict=True):
        assert number(one, "least") >= number(other, "most")
    for row in token_losses.classes(result, text):
        assert number(row, "p10") <= number(row, "median") <= number(row, "p90")
        assert number(row, "above_1") >= number(row, "above_5") >= number(row, "above_10")


def test_all_pieces_together_are_all_of_the_loss(evaluations: dict[str, EvalResult], text: Text) -> None:
    rows = token_losses.pieces(evaluations["static"], text, PIECES, most=1024)
    assert sum(rows.numbers("share_of_loss")) == pytest.approx(1) and sum(rows.numbers("targets")) == N
    shares = rows.numbers("share_of_loss")
    assert shares == sorted(shares, reverse=True)
    assert len({row["token"] for row in rows}) == len(rows)


def test_the_hardest_targets_are_those(evaluations: dict[str, EvalResult], text: Text) -> None:
    result = evaluations["sliding"]
    rows = token_losses.hardest(result, text, PIECES, most=7)
    expected = np.sort(result.per_target[~np.isnan(result.per_target)])[::-1][:7]
    assert rows.numbers("nats") == pytest.approx(expected.tolist())
    for row in rows:
        position = int(number(row, "position"))
        assert row["target"] == f'"{legible(PIECES[text.val[position + 1]])}"'
        assert str(row["after"]).endswith(legible(PIECES[text.val[position]]))
    everything = token_losses.hardest(result, text, PIECES, most=10 * N)
    assert len(everything) == N - 5


# -- print


def test_text_is_rendered_from_pieces_and_bytes() -> None:
    pieces = [" the", "re", "<0xE2>", "<0x80>", "<0x99>", "<0x0A>", "<s>"]
    assert render(pieces, [0, 1, 2, 3, 4, 5, 0]) == " there\u2019\n the"
    assert render(pieces, [6, 2, 1]) == "<s>\\xe2re" and render(pieces, []) == ""


def test_what_does_not_print_is_spelled() -> None:
    assert legible("a b\u00e9\u2019\u0436") == "a b\u00e9\u2019\u0436"
    assert legible("\n\t\x00\u200b\u4e2d\xad") == "\\n\\t\\x00\\u200b\\u4e2d\\xad"


# -- figures

NAMES = [name for name in PLOTS if name.startswith("tokens-")]


def test_the_figures_are_drawn_from_their_tables_again(
    evaluations: dict[str, EvalResult], text: Text, tmp_path: Path
) -> None:
    tables = token_losses.tables(evaluations, text, PIECES, "sliding")
    assert ["tokens-" + name for name in tables] == NAMES
    drawn = draw_group("tokens-", tables, tmp_path, {})
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    redraw(tmp_path)
    assert before == {p: p.read_bytes() for p in tmp_path.iterdir()}
    for name, figure in drawn.items():
        full = [{c: row.get(c) for c in figure.table.columns} for row in figure.table]
        assert read_csv(tmp_path / f"tokens-{name}.csv") == full and figure.reading
        check_legible(draw("tokens-" + name, figure.table))
        assert {type(v) for row in figure.table for v in row.values()} <= {str, int, float, bool, type(None)}


@pytest.mark.parametrize("scale", [0.05, 5.0])
def test_figures_stay_legible_for_other_losses(evaluations: dict[str, EvalResult], text: Text, scale: float) -> None:
    nats = scale * evaluations["static"].per_target
    one = {"sliding": make_result("sliding", nats, text)}
    for name, table in token_losses.tables(one, text, PIECES, "sliding").items():
        check_legible(draw("tokens-" + name, table))


def test_the_figure_of_thresholds_says_whose_numbers_and_which_are_impossible(
    evaluations: dict[str, EvalResult], text: Text
) -> None:
    table = token_losses.tables(evaluations, text, PIECES, "sliding")["exceedance"]
    printed = [words for words, _ in prints(draw("tokens-exceedance", table))]
    assert {"measured here, (b) sliding window", "published (pr294)"} <= set(printed)
    assert [words for words in printed if "impossible" in words] == ["55.0, impossible", "30.0, impossible"]


def test_a_reading_names_what_is_impossible(evaluations: dict[str, EvalResult], text: Text) -> None:
    table = token_losses.tables(evaluations, text, PIECES, "sliding")["exceedance"]
    assert "2 of 5 published shares contradict their own counts" in token_readings.exceedance(table)
    sound = Table({**row, **({"impossible": False} if row["measure"] == "published" else {})} for row in table)
    assert "No published share contradicts" in token_readings.exceedance(sound)
