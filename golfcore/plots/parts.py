"""The parts that figures are made of: rows with names, forest plots, bars with numbers, courses along a text."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from golfcore.plots import style
from golfcore.plots.style import BLACK, GREY, PALE, has

OUTLIER = 5.0  # times as far from 0 as the next: would leave all others a sixth of the axis


class Mark(NamedTuple):
    """How one estimate of a forest plot looks. `label`: its entry in the legend, "" for none."""

    colour: str
    marker: str = "D"
    label: str = ""


# -- axes


def rows_axis(ax: Axes, labels: Sequence[str]) -> None:
    """One row for each label, the first on top, without lines between them."""
    ax.set_yticks(range(len(labels)), list(labels))
    ax.set_ylim(max(len(labels), 1) - 0.4, -0.6)
    ax.grid(False, axis="y")


def scores(ax: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Two columns of print to the right of the axes, one cell a row: `bpb` and the difference with its interval."""
    place: dict[str, Any] = {"xycoords": ax.get_yaxis_transform(), "annotation_clip": False, "fontsize": 7}
    change = "change [95 %]" if any(has(row, "low") for row in rows) else "change"
    style.note(ax, "score", (1, -0.8), (10, 0), color=GREY, **place)
    style.note(ax, change, (1, -0.8), (50, 0), color=GREY, **place)
    for y, row in enumerate(rows):
        style.note(ax, f"{row['bpb']:.4f}", (1, y), (10, 0), color=BLACK, **place)
        style.note(ax, style.change(row), (1, y), (50, 0), color=BLACK, **place)


def padded(values: Iterable[float], share: float = 0.08) -> tuple[float, float]:
    """Limits of an axis that holds all values with a margin; of equal values, a small range around them."""
    found = list(values)
    low, high = min(found), max(found)
    margin = share * (high - low) or 0.001
    return low - margin, high + margin


def settled(rows: pd.DataFrame, column: str = "bpb", start: float = 0.05) -> tuple[float, float]:
    """Limits for `column` after the first twentieth of the steps, where a loss falls from far above."""
    late = rows[rows["step"] >= start * rows["step"].max()][column].dropna()
    return padded(late, 0.06)


def legend_above(ax: Axes, ncols: int = 3) -> None:
    """The legend of one panel, above it in place of a subtitle."""
    if ax.get_legend_handles_labels()[1]:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=ncols, borderpad=0)


def legend_below(fig: Figure, axes: Iterable[Axes]) -> None:
    """One legend below the figure, where it lies on no data, of every label in `axes`, each once."""
    found: dict[str, Artist] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        found = dict(zip(labels, handles, strict=True)) | found
    if found:
        ncols = len(found) if len(found) <= 4 else min(-(-len(found) // 2), 4)
        fig.legend(list(found.values()), list(found), loc="outside lower center", ncols=ncols)


def filled(height: float | tuple, question: str, *grid: int, legend: bool = True, **panels: Any) -> Callable:
    """Of a function that fills the axes it is given from a frame: the one that returns the whole figure.

    `height` in inches, or a fixed part and that of every row. `grid` (the function gets all axes, in reading order;
    without it, the only ones) and `panels` are those of `Figure.subplots`. `legend`: one below, of what any axes name.
    """

    def of(fill: Callable[..., None]) -> Callable[..., Figure]:
        @wraps(fill)
        def whole(*tables: Any) -> Figure:
            fixed, by_row = height if isinstance(height, tuple) else (height, 0)
            fig = style.figure(fixed + by_row * len(tables[0]), question)
            axes = np.ravel(fig.subplots(*grid, **panels))
            fill(axes if grid else axes[0], *tables)
            if legend:
                legend_below(fig, axes)
            return fig

        return whole

    return of


# -- forest plots


def forest(ax: Axes, rows: pd.DataFrame, marks: Sequence[Mark], value: str = "difference") -> None:
    """Estimates with intervals about the line at 0, one a row: `rows` have `value` and, where known, `low`, `high`.

    A row so far from 0 that it would flatten all others (OUTLIER) is an arrow at the edge with its number beside it.
    """
    listed = rows.to_dict("records")
    limit = _limit([_reach(row, value) for row in listed])
    ax.axvline(0, color=BLACK, lw=0.8)
    seen = set[str]()
    for y, (row, mark) in enumerate(zip(listed, marks, strict=True)):
        if not has(row, value):
            continue
        label = mark.label if mark.label not in seen else ""
        seen.add(mark.label)
        if limit and _reach(row, value) > limit:
            off_scale(ax, y, row[value] > 0, mark.colour, f"{style.signed(row[value])}, off the scale")
            at: tuple[list, list] = ([], [])
        else:
            at = ([row[value]], [y])
            if has(row, "low"):
                ax.plot([row["low"], row["high"]], [y, y], color=mark.colour, lw=1.4)
        ax.plot(*at, mark.marker, color=mark.colour, ms=5, ls="none", label=label or None)
    ax.margins(x=0.12)
    ax.xaxis.set_major_locator(MaxNLocator(5))


def _reach(row: Mapping, value: str) -> float:
    return max((abs(row[c]) for c in (value, "low", "high") if has(row, c)), default=0.0)


def _limit(reaches: Sequence[float]) -> float:
    """The largest distance from 0 that is drawn to scale; 0 if all are."""
    ordered = sorted(reaches)
    for inner, outer in zip(ordered[len(ordered) // 2 :], ordered[len(ordered) // 2 + 1 :], strict=False):
        if inner > 0 and outer > OUTLIER * inner:
            return inner
    return 0.0


def off_scale(ax: Axes, y: float, above: bool, colour: str, text: str) -> None:
    """An arrow at height `y` to the edge of the axes beyond which a value lies, with its text."""
    where = ax.get_yaxis_transform()
    edge, way, side = (1.0, -1, "right") if above else (0.0, 1, "left")
    arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (edge, y), (edge + 0.1 * way, y), xycoords=where, textcoords=where, arrowprops=arrow)
    style.note(ax, text, (edge + 0.12 * way, y), (0, 0), xycoords=where, ha=side, color=GREY)


# -- bars


def waterfall(ax: Axes, rows: Sequence[Mapping[str, Any]], colours: Sequence[str]) -> None:
    """Scores `bpb`, one a row, each with a bar from what its `difference` is to and a line to the row that goes on."""
    starts = [row["bpb"] - (row["difference"] if has(row, "difference") else 0.0) for row in rows]
    for y, (row, start, colour) in enumerate(zip(rows, starts, colours, strict=True)):
        level = row["bpb"]
        ax.barh(y, level - start, left=start, height=0.5, color=colour)
        if math.isclose(starts[min(y + 1, len(rows) - 1)], level) or y + 1 == len(rows):
            ax.plot([level, level], [y, min(y + 1.25, len(rows) - 0.75)], color=colour, lw=1, ls=":")
        ax.plot([level], [y], "D", color=colour, ms=5)
    ax.set_xlabel("bits per byte (lower is better)")
    ax.xaxis.set_major_locator(MaxNLocator(5))


def bars(
    ax: Axes, values: Sequence[float], texts: Sequence[str], look: tuple[str, str | None], offset: float = 0.0
) -> None:
    """One horizontal bar a row, `offset` rows from its tick, its text at its end. `look`: colour, label."""
    at = np.arange(len(values)) + offset
    ax.barh(at, values, height=0.37 if offset else 0.7, color=look[0], label=look[1])
    for y, value, text in zip(at, values, texts, strict=True):
        side, gap = ("left", 3) if value >= 0 else ("right", -3)
        style.note(ax, text, (value, y), (gap, 0), ha=side, fontsize=7)


def bar_pairs(ax: Axes, values: pd.DataFrame, looks: Mapping[Any, tuple[str, str]], form: str) -> None:
    """Two bars a row about the line at 0: `values` has a row for each label and a column for each key of `looks`."""
    for offset, (key, (label, colour)) in zip((-0.19, 0.19), looks.items(), strict=True):
        bars(ax, list(values[key]), [format(v, form) for v in values[key]], (colour, label), offset)
    rows_axis(ax, list(values.index))
    ax.axvline(0, color=BLACK, lw=0.8)
    ax.margins(x=0.12)


def stacked(ax: Axes, y: int, parts: Mapping[str, tuple[float, str]], text: str = "") -> None:
    """One row of parts end to end, label -> (width, colour); the labels enter the legend from the row 0 alone."""
    left = 0.0
    for label, (width, colour) in parts.items():
        ax.barh(y, width, left=left, height=0.6, color=colour, label=None if y else label)
        left += width
    if text:
        style.note(ax, text, (left, y), (4, 0))


# -- along a text


def course(ax: Axes, rows: pd.DataFrame, colour: str, label: str, alone: str = "") -> None:
    """A running difference over the targets scored so far (thousands), with its band where it has an interval.

    `rows`: one a chunk in the order of the text, with `stop`, `difference` and perhaps `low`, `high`. With `alone`,
    the label of them, the differences `here` of each chunk alone are drawn beneath.
    """
    at = rows["stop"] / 1000
    if alone:
        ax.stairs(rows["here"], [0.0, *at], fill=True, color=PALE, label=alone)
    if "low" in rows:
        known = rows["low"].notna()
        low, high = (rows.loc[known, c].astype(float) for c in ("low", "high"))
        ax.fill_between(at[known].astype(float), low, high, color=colour, alpha=0.25, lw=0)
    ax.axhline(0, color=BLACK, lw=0.8)
    ax.plot(at, rows["difference"], color=colour, label=label)


def learning_curves(ax: Axes, rows: pd.DataFrame, looks: Mapping[str, tuple[str, str]], x: str = "step") -> None:
    """Validation of every run against the column `x`, one line a run in the colour of its arm.

    `rows` have `arm`, `seed`, `step`, `bpb`; `looks` is what `style.arms` returned.
    """
    for (arm, seed), line in rows.groupby(["arm", "seed"], sort=False):
        first = seed == rows.loc[rows["arm"] == arm, "seed"].iloc[0]
        label, colour = looks[str(arm)]
        ax.plot(line[x], line["bpb"], "o-", color=colour, ms=2, lw=0.8, label=label if first else None)
    ax.set_ylim(*settled(rows))
    ax.xaxis.set_major_locator(MaxNLocator(5))
