"""The figure of a sweep beside its publication: golfcore.analysis.claims.suite makes the frame."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from golfcore.analysis.claims import CONFIRMED, OPEN, OPPOSITE, REFUTED, SAME, UNPUBLISHED, is_legal, summary
from golfcore.plots import parts, style
from golfcore.plots.style import BLACK, BLUE, GREEN, GREY, RED, has

VERDICTS = {CONFIRMED: GREEN, REFUTED: RED, SAME: BLACK, OPPOSITE: BLACK, OPEN: GREY, UNPUBLISHED: GREY}
LEGAL = {True: ("legal", BLUE), False: ("not legal: trained on what it scores", style.ORANGE)}
LINEAR = 0.001  # bits per byte around 0 that are drawn to scale; beyond, decades


def suite(table: pd.DataFrame) -> Figure:
    """Published and measured difference of every arm to the one it is compared with; and what of it is legal.

    Left: the publication's measure, under the arm's own protocol. Right, unless that is the same: the same weights by a
    sliding window.
    """
    rows = [row for row in table.to_dict("records") if has(row, "difference")]
    measure, published = str(table["measure"].iloc[0]), any(has(row, "published_difference") for row in rows)
    question = "Does the publication's table hold?" if published else "What does each arm change?"
    fig = style.figure(1.9 + 0.3 * max(len(rows), 1), question)
    prefixes = ("",) if measure == "sliding" else ("", "sliding_")
    axes = fig.subplots(1, len(prefixes), sharey=True, squeeze=False)[0]
    for ax, prefix in zip(axes, prefixes, strict=True):
        _panel(ax, rows, prefix)
    for y, row in enumerate(rows):
        if has(row, "published_difference"):
            axes[0].plot(
                [row["published_difference"]], [y], "D", color="white", mec=BLACK, ms=5, ls="none", label="published"
            )
    parts.rows_axis(axes[0], [f"{row['label']} [{row['on']}]" for row in rows])
    style.subtitle(axes[0], f"{style.measure(measure)[0]},\nas published" if published else style.measure(measure)[0])
    if len(axes) > 1:
        style.subtitle(axes[1], f"{style.measure('sliding')[0]},\nsame weights")
    for y, row in enumerate(rows):
        where, (verdict, ratio) = axes[-1].get_yaxis_transform(), said(row)
        place: dict[str, Any] = {"xycoords": where, "annotation_clip": False, "fontsize": 6.5}
        style.note(axes[-1], verdict, (1, y), (6, 4), color=VERDICTS.get(row["verdict"], GREY), **place)
        style.note(axes[-1], ratio, (1, y), (6, -4), color=GREY, **place)
    axes[0].set_xlabel("less the arm in brackets (bits per byte;\nto scale within 0.001, decades beyond)")
    parts.legend_below(fig, axes)
    return fig


def said(row: Mapping[str, Any]) -> tuple[str, str]:
    """The verdict, and under it the published and the measured difference, with their ratio or what would be seen."""
    if not has(row, "published_difference"):
        return row["verdict"], f"here {style.signed(row['difference'])}"
    text = f"{style.signed(row['published_difference'])}, here {style.signed(row['difference'])}"
    if row["verdict"] == OPEN and has(row, "detectable"):
        return row["verdict"], f"{text}; seen from {row['detectable']:.2g}"
    return row["verdict"], f"{text}; ratio {row['ratio']:.2g}" if has(row, "ratio") else text


def _panel(ax: Axes, rows: list[dict], prefix: str) -> None:
    ax.set_xscale("symlog", linthresh=LINEAR)
    ax.axvline(0, color=BLACK, lw=0.8)
    for y, row in enumerate(rows):
        label, colour = LEGAL[bool(prefix) or is_legal(row)]
        if has(row, f"{prefix}low"):
            ax.plot([row[f"{prefix}low"], row[f"{prefix}high"]], [y, y], color=colour, lw=1.6)
        at = [row[f"{prefix}difference"]]
        ax.plot(at, [y], "o", color=colour, ms=4, zorder=3, ls="none", label=f"measured, {label}")
    low, high = ax.get_xlim()
    ticks = [t for t in (-1.0, -0.01, 0.0, 0.01, 1.0) if low <= t <= high]
    ax.set_xticks(ticks, [f"{t:+g}".replace("0.", ".").replace("-", "\u2212") if t else "0" for t in ticks])


FIGURES = {"ablation-suite": (suite, summary)}
