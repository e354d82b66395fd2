"""The figures of a study of protocols: golfcore.analysis.decomposition makes the tables."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from golfcore.analysis.table import Row, Table, number
from golfcore.plots import style
from golfcore.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, PALE, PINK, RED

LEGALITY = {  # label, colour and marker; every marker is different, too, for print in grey
    "static": ("static", GREY, "o"),
    "score-first": ("score-first", BLUE, "D"),
    "train-first": ("train-first: not admissible", RED, "X"),
}
STEPS = {"a": ("(a) no overlap", BLUE), "b": ("(b) sliding", GREEN), "c": ("(c) sliding + TTT", RED)}
LINES = (RED, BLUE, GREEN, ORANGE, PINK, GREY)


def waterfall(table: Table) -> Figure:
    """From (a) over (b) to (c), of the artifact and of the float weights. Table: `decomposition.tables`."""
    rows = {str(row["label"]): row for row in table}
    steps = [label for label in STEPS if label in rows]
    floats = [f"{label} float" for label in steps if f"{label} float" in rows]
    fig = style.figure(1.5 + 0.4 * len(steps))
    style.title(fig, "What of the score is context, and what is adaptation?")
    ax = fig.subplots()
    level = number(rows[steps[0]], "bpb")
    for y, label in enumerate(steps):
        before, level, colour = level, number(rows[label], "bpb"), STEPS[label][1]
        ax.barh(y, level - before, left=before, height=0.5, color=colour)
        ax.plot([level, level], [y, min(y + 1.25, len(steps) - 0.75)], color=colour, lw=1, ls=":")
        ax.plot([level], [y], "D", color=colour, ms=5)
    at = [number(rows[label], "bpb") for label in floats]
    ax.plot(at, [steps.index(label[0]) for label in floats], "o", color="none", mec=BLACK, ms=8, label="float weights")
    _limits(ax, [number(row, "bpb") for row in table])
    ax.set_yticks(range(len(steps)), [STEPS[label][0] for label in steps])
    ax.set_ylim(len(steps) - 0.4, -0.6)
    ax.set_xlabel("bits per byte (lower is better)")
    ax.xaxis.set_major_locator(MaxNLocator(5))
    if floats:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), borderpad=0)
    _print(ax, 10, "score", [f"{number(rows[label], 'bpb'):.4f}" for label in steps])
    _print(ax, 50, "change [95 %]", [style.change(rows[label]) for label in steps])
    style.no_grid(ax, "y")
    return fig


def _limits(ax: Axes, values: Sequence[float]) -> None:
    margin = 0.1 * (max(values) - min(values)) or 0.001
    ax.set_xlim(min(values) - margin, max(values) + margin)


def _print(ax: Axes, offset: float, head: str, cells: Sequence[str]) -> None:
    """A printed column to the right of the axes: its head, then a cell for each row."""
    where = ax.get_yaxis_transform()
    style.note(ax, head, (1, -0.8), (offset, 0), xycoords=where, color=GREY, annotation_clip=False, fontsize=7)
    for y, text in enumerate(cells):
        style.note(ax, text, (1, y), (offset, 0), xycoords=where, color=BLACK, fontsize=7)


def scores(table: Table) -> Figure:
    """Every protocol with its legality. Table: `decomposition.tables`."""
    rows = [row for row in table if row["label"] != "a"]
    return _against(table, rows, "What does each protocol score, and is it admissible?")


def controls(table: Table) -> Figure:
    """Adaptation with one thing changed. Table: `decomposition.tables`."""
    return _against(table, list(table), "What does the gain of adaptation hang on?")


def _against(table: Table, rows: Sequence[Row], question: str) -> Figure:
    """Differences of the rows to their references with intervals; marker and colour say what the ledger saw."""
    fig = style.figure(1.5 + 0.23 * len(rows))
    style.title(fig, question)
    ax = fig.subplots()
    ax.axvline(0, color=BLACK, lw=0.8)
    seen = []
    for y, row in enumerate(rows):
        label, colour, marker = LEGALITY[str(row["legality"])]
        if row.get("low") is not None:
            ax.plot([number(row, "low"), number(row, "high")], [y, y], color=colour, lw=1.4)
        if row.get("difference") is not None:
            named = None if label in seen else label
            ax.plot([number(row, "difference")], [y], marker, color=colour, ms=5, ls="none", label=named)
            seen.append(label)
    ax.set_yticks(range(len(rows)), [_name(row) for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.margins(x=0.1)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.set_xlabel("difference to the cell in brackets (bits per byte), 95 % over chunks of text")
    if seen:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderpad=0)
    _print(ax, 10, "score", [f"{number(row, 'bpb'):.4f}" for row in rows])
    _print(ax, 50, "change [95 %]", [style.change(row) for row in rows])
    style.no_grid(ax, "y")
    return fig


def _name(row: Row) -> str:
    label = STEPS[str(row["label"])][0] if row["label"] in STEPS else str(row["label"])
    return f"{label}  [{row['reference']}]" if row.get("reference") else label


def strides(table: Table) -> Figure:
    """Score against cost of scoring without adaptation, by stride. Table: `decomposition.strides`."""
    fig = style.figure(2.7)
    style.title(fig, "What does a longer context cost?")
    ax = fig.subplots()
    cost, bpb = table.numbers("computed"), table.numbers("bpb")
    ax.plot(cost, bpb, "-", color=GREEN, lw=1)
    for row in table:
        x, y = number(row, "computed"), number(row, "bpb")
        ax.errorbar([x], [y], yerr=[[way] for way in _reach(row)], color=GREEN, marker="o", capsize=3, lw=1.2)
        name = "no overlap" if row["label"] == "a" else str(row["label"])
        style.note(ax, f"{name}\n{number(row, 'seconds'):,.3g} s", (x, y), (7, 10), fontsize=7)
    ax.set_xscale("log", base=2)
    ax.set_xlim(min(cost) / 1.3, max(cost) * 1.8)
    ax.set_xticks(cost, [f"{value:g}" for value in cost])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.margins(y=0.25)
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.set_ylabel("bits per byte")
    ax.set_xlabel("tokens computed for each target scored; line: 95 % of the difference to no overlap")
    return fig


def _reach(row: Row) -> tuple[float, float]:
    """How far the interval of the difference reaches below and above it."""
    if row.get("low") is None:
        return 0.0, 0.0
    difference = number(row, "difference")
    return max(difference - number(row, "low"), 0.0), max(number(row, "high") - difference, 0.0)


def positions(table: Table) -> Figure:
    """Loss by position in a window, and where the gain of context lies. Table: `decomposition.positions`."""
    fig = style.figure(2.8)
    style.title(fig, "Why does a sliding window score better without adapting?")
    left, right = fig.subplots(1, 2)
    edges = [*table.numbers("start"), number(table[-1], "stop")]
    for label, column in (("a", "static"), ("b", "sliding")):
        name, colour = STEPS[label]
        left.stairs(table.numbers(column), edges, color=colour, lw=1.6, baseline=None, label=name)
    left.set_ylabel("bits a target")
    left.legend()
    style.subtitle(left, "the same targets, by position in (a)")
    shares = [100 * value for value in table.numbers("so_far")]
    if shares:
        right.plot(edges[1:], shares, "o-", color=BLACK, ms=2.5, lw=1)
    right.set_ylim(min(0.0, *shares, 0.0) - 4, max(100.0, *shares, 100.0) + 8)
    right.set_ylabel("% of (b) \u2212 (a)")
    style.subtitle(right, "share of the gain up to this position")
    for ax in (left, right):
        ax.set_xscale("symlog", base=2, linthresh=1)
        ax.set_xlim(0, edges[-1])
        powers = [2**k for k in range(0, 17, 3) if 2**k < edges[-1]]
        ax.set_xticks([0, *powers])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        ax.set_xlabel("position in the window")
    return fig


def stream(table: Table) -> Figure:
    """The gain of each legal adaptation over (b) along the text. Table: `decomposition.along`."""
    labels = list(dict.fromkeys(str(row["label"]) for row in table))
    fig = style.figure(3.2)
    style.title(fig, "Where in the text does adaptation gain?")
    ax = fig.subplots()
    ax.axhline(0, color=BLACK, lw=0.8)
    for i, (label, colour) in enumerate(zip(labels, LINES, strict=False)):
        rows = table.only(label=label)
        at = [stop / 1000 for stop in rows.numbers("stop")]
        if i == 0:
            ax.stairs(rows.numbers("here"), [0.0, *at], fill=True, color=PALE, label=f"{_step(label)}, chunk alone")
            banded = Table(row for row in rows if row.get("low") is not None)
            where = [stop / 1000 for stop in banded.numbers("stop")]
            ax.fill_between(where, banded.numbers("low"), banded.numbers("high"), color=colour, alpha=0.25, lw=0)
        ax.plot(at, rows.numbers("difference"), color=colour, lw=1.8 if i == 0 else 1, label=_step(label))
    ax.set_ylabel("less (b), bits per byte")
    ax.set_xlabel("validation targets scored (thousands); lines: all chunks so far, band: 95 % over chunks")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return fig


def _step(label: str) -> str:
    return STEPS[label][0] if label in STEPS else label
