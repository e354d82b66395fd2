"""The figure of a sweep beside its publication: golfcore.analysis.suite makes the table."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, SymmetricalLogLocator

from golfcore.analysis.claims import OPEN, REFUTED, REPRODUCED
from golfcore.analysis.suite import is_legal
from golfcore.analysis.table import Row, Table, number
from golfcore.plots import style
from golfcore.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, RED

SCORES = {"static": "(a) no overlap", "sliding": "(b) sliding", "ttt": "(c) under its own protocol"}
VERDICTS = {REPRODUCED: GREEN, REFUTED: RED, OPEN: GREY}
LINEAR = 0.001  # bits per byte around 0 that are drawn to scale; beyond, decades


def suite(table: Table) -> Figure:
    """Published and measured difference of every arm to the one it is compared with; and what of it is legal.

    Left: the publication's measure, under the arm's own protocol. Right: the same weights by a sliding window.
    """
    rows = Table(row for row in table if row.get("on") is not None)
    fig = style.figure(1.6 + 0.27 * max(len(rows), 1))
    style.title(fig, "Does the publication's table hold?")
    left, right = fig.subplots(1, 2, sharey=True)
    _panel(left, rows, "", SCORES.get(str(table[0]["measure"]), ""))
    for y, row in enumerate(rows):
        if row.get("published_delta") is not None:
            left.plot([number(row, "published_delta")], [y], "D", color="white", mec=BLACK, ms=5, zorder=2)
    _panel(right, rows, "sliding_", SCORES["sliding"] + ", the same weights: legal")
    left.set_yticks(range(len(rows)), [_label(row) for row in rows])
    left.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    verdicts = right.secondary_yaxis("right")
    verdicts.set_yticks(range(len(rows)), [str(row["verdict"]).removesuffix(" at this scale") for row in rows])
    verdicts.tick_params(length=0)
    for label, row in zip(verdicts.get_yticklabels(), rows, strict=True):
        label.set_color(VERDICTS.get(str(row["verdict"]), GREY))
    verdicts.spines["right"].set_visible(False)
    text = (
        "difference to the arm in brackets (bits per byte); open: published; filled: measured, 95 % over seeds and\n"
        "text; blue: legal, orange: trained on what it scores; to scale within 0.001, decades beyond"
    )
    fig.supxlabel(text, fontsize=7.5)
    return fig


def _panel(ax: Axes, rows: Table, prefix: str, text: str) -> None:
    ax.set_xscale("symlog", linthresh=LINEAR)
    ax.axvline(0, color=BLACK, lw=0.8)
    for y, row in enumerate(rows):
        colour = BLUE if prefix or is_legal(row) else ORANGE
        if row.get(f"{prefix}low") is not None:
            ax.plot([number(row, f"{prefix}low"), number(row, f"{prefix}high")], [y, y], color=colour, lw=1.6)
        ax.plot([number(row, f"{prefix}delta")], [y], "o", color=colour, ms=4, zorder=3)
    ax.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=LINEAR))
    ax.xaxis.set_major_formatter(FuncFormatter(_tick))
    ax.tick_params(axis="x", labelsize=6.5)
    style.subtitle(ax, text)
    style.no_grid(ax, "y")


def _tick(x: float, _: int) -> str:
    return f"{x:+g}".replace("0.", ".").replace("-", "\u2212") if x else "0"


def _label(row: Row) -> str:
    return f"{row['label']} [{row['on']}]"
