"""The figures of a meta-learning ablation: golfcore.analysis.ablation and .compare make the tables."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from golfcore.analysis.table import Row, Table, number
from golfcore.plots import style
from golfcore.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, PALE, PINK, RED

ARMS = {  # label and colour of the presets; others take the spare colours in turn
    "meta-none": ("none", BLACK),
    "meta-placebo": ("placebo", GREY),
    "meta-exp101": ("exp101", BLUE),
    "meta-exp106": ("exp106", RED),
    "meta-next-chunk": ("next chunk", GREEN),
    "meta-second-order": ("second order", ORANGE),
    "meta-ttt": ("as TTT", PINK),
}
YELLOW = "#f0e442"
SPARE = (YELLOW, PINK, ORANGE, GREEN, RED, BLUE)
MEASURES = {
    "static": "(a) no overlap",
    "sliding": "(b) sliding",
    "ttt": "(c) sliding + TTT",
    "context_gain": "context gain b - a",
    "ttt_gain": "adaptation gain c - b",
    "total_gain": "both, c - a",
}
BANKS = {
    "qo": ("query, output", BLUE),
    "kv": ("key, value", ORANGE),
    "up": ("MLP up", GREEN),
    "down": ("MLP down", RED),
}


def arms_in(table: Table) -> dict[str, tuple[str, str]]:
    """Label and colour of every arm in a table, in its order."""
    names = list(dict.fromkeys(str(row["arm"]) for row in table))
    return {name: ARMS.get(name, (name, SPARE[i % len(SPARE)])) for i, name in enumerate(names)}


def curves(table: Table) -> Figure:
    """Validation and smoothed training loss of all runs, and their distance to the reference arm."""
    fig, looks = style.figure(3.0), arms_in(table)
    style.title(fig, "Does meta-learning change how training goes?")
    left, right = fig.subplots(1, 2)
    last = max(table.numbers("step"))
    for name, (label, colour) in looks.items():
        for i, rows in enumerate(_by_seed(table.only(kind="val", arm=name))):
            left.plot(
                rows.numbers("step"), rows.numbers("bpb"), "o-", color=colour, ms=2, lw=0.8, label=None if i else label
            )
        for rows in _by_seed(table.only(kind="train", arm=name)):
            if rows.numbers("difference"):
                right.plot(rows.numbers("step"), rows.numbers("difference"), color=colour, lw=0.8)
    settled = [number(r, "bpb") for r in table.only(kind="val") if number(r, "step") >= 0.05 * last]
    margin = 0.08 * (max(settled) - min(settled)) or 0.01
    left.set_ylim(min(settled) - margin, max(settled) + margin)
    left.set_ylabel("bits per byte")
    left.legend()
    style.subtitle(left, "validation, current weights; one line a run")
    right.axhline(0, color=BLACK, lw=0.8)
    late = [
        number(r, "difference") for r in table if r.get("difference") is not None and number(r, "step") >= 0.1 * last
    ]
    if late:
        right.set_ylim(*_padded(late))
    right.set_ylabel("difference (bits per byte)")
    style.subtitle(right, f"smoothed training loss, less {next(iter(looks.values()))[0]} (same seed)")
    for ax in (left, right):
        ax.set_xlabel("step")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return fig


def differences(table: Table) -> Figure:
    """Differences to the reference arm with both intervals. Table: `analysis.compare.compare`."""
    looks = arms_in(table)
    reference, *others = looks
    fig = style.figure(1.4 + 0.5 * len(others) * 2)
    style.title(fig, "Do the arms score differently?")
    for ax, name in zip(fig.subplots(2, 3, sharey=True).flat, MEASURES, strict=True):
        ax.axvline(0, color=BLACK, lw=0.8)
        for y, arm in enumerate(others):
            two_intervals(ax, y, table.one(measure=name, arm=arm), looks[arm][1])
        ax.set_yticks(range(len(others)), [looks[arm][0] for arm in others])
        ax.set_ylim(len(others) - 0.5, -0.5)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        style.subtitle(ax, MEASURES[name])
        style.no_grid(ax, "y")
    text = (
        f"difference to {looks[reference][0]} (bits per byte); thick: 95 % over chunks of text, thin: 95 % over seeds"
    )
    fig.supxlabel(text, fontsize=8)
    return fig


def two_intervals(ax: Axes, y: float, row: Row, colour: str) -> None:
    """A difference with its intervals over chunks (thick) and over seeds (thin), where it has them."""
    for over, width in (("seeds", 1.0), ("chunks", 4.0)):
        if row.get(f"{over}_low") is not None:
            ax.plot([number(row, f"{over}_low"), number(row, f"{over}_high")], [y, y], color=colour, lw=width)
    ax.plot([number(row, "difference")], [y], "D", color="white", mec=colour, ms=5, zorder=3)


def gains(table: Table) -> Figure:
    """What context and adaptation bring in each arm. Table: `analysis.ablation.gains`."""
    looks = arms_in(table)
    fig = style.figure(1.0 + 0.28 * len(looks))
    style.title(fig, "Does meta-learning change what test-time training can do?")
    for ax, name in zip(fig.subplots(1, 2, sharey=True), ("context_gain", "ttt_gain"), strict=True):
        ax.axvline(0, color=BLACK, lw=0.8)
        for y, (arm, (_, colour)) in enumerate(looks.items()):
            seeds, mean = (table.only(measure=name, arm=arm, kind=kind) for kind in ("seed", "mean"))
            if mean[0].get("low") is not None:
                ax.plot([number(mean[0], "low"), number(mean[0], "high")], [y, y], color=colour, lw=4, alpha=0.5)
            ax.plot(seeds.numbers("gain"), [y] * len(seeds), "o", color=colour, ms=3)
            ax.plot(mean.numbers("gain"), [y], "D", color="white", mec=colour, ms=5, zorder=3)
        ax.set_yticks(range(len(looks)), [label for label, _ in looks.values()])
        ax.set_ylim(len(looks) - 0.5, -0.5)
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.set_xlabel("bits per byte (dots: seeds; bar: 95 % over chunks)")
        style.subtitle(ax, MEASURES[name])
        style.no_grid(ax, "y")
    return fig


def chunks(table: Table) -> Figure:
    """The score after TTT against the reference arm's, along the text. Table: `analysis.ablation.chunk_differences`."""
    looks = arms_in(table)
    fig = style.figure(1.2 + 1.9 * -(-len(looks) // 2))
    style.title(fig, "Where in the text do the arms differ?")
    axes = fig.subplots(-(-len(looks) // 2), 2, sharex=True, sharey=True, squeeze=False).flat
    for ax, (arm, (label, colour)) in zip(axes, looks.items(), strict=False):
        rows = table.only(arm=arm)
        at = [stop / 1000 for stop in rows.numbers("stop")]
        ax.stairs(rows.numbers("here"), [0.0, *at], fill=True, color=PALE, label="on the chunk alone")
        banded = Table(row for row in rows if row.get("low") is not None)
        if banded:
            where = [stop / 1000 for stop in banded.numbers("stop")]
            ax.fill_between(where, banded.numbers("low"), banded.numbers("high"), color=colour, alpha=0.25, lw=0)
        ax.plot(at, rows.numbers("difference"), color=colour, label="all chunks so far, 95 % over chunks")
        ax.axhline(0, color=BLACK, lw=0.8)
        ax.legend()
        style.subtitle(ax, label)
    fig.supylabel("(c) less the reference's (bits per byte)", fontsize=8)
    fig.supxlabel("validation targets scored (thousands)", fontsize=8)
    for ax in list(axes):
        ax.remove()
    return fig


def meta_sgd(table: Table) -> Figure:
    """The learned inner rates of all bank slots. Table: `analysis.ablation.meta_sgd`."""
    fig = style.figure(2.6)
    style.title(fig, "Do the learned inner rates stay at 1?")
    for ax, (bank, (label, colour)) in zip(fig.subplots(1, 4, sharey=True), BANKS.items(), strict=True):
        rows = table.only(bank=bank)
        for frozen, look in ((False, {"color": colour, "lw": 0.7, "alpha": 0.7}), (True, {"color": BLACK, "lw": 1.6})):
            for line in _split(rows.only(frozen=frozen), "arm", "seed", "slot"):
                ax.plot([0.0, *line.numbers("step")], [1.0, *line.numbers("rate")], **look)
        for line in _split(Table(row for row in rows if row["frozen"]), "arm", "seed")[:1]:
            ax.plot([0.0, *line.numbers("step")], [1.0, *line.numbers("predicted")], color=YELLOW, lw=1, ls="--")
        ax.set_xlabel("step")
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        style.subtitle(ax, label)
        if bank == "qo":
            ax.set_ylabel("learned rate")
    note = (
        "black: slots of frozen blocks; dashed: weight decay alone (predicted); coloured: all other slots, every seed"
    )
    fig.supxlabel(note, fontsize=7.5)
    return fig


def interventions(table: Table) -> Figure:
    """What a meta call does to the loss and to the gradient. Table: `analysis.ablation.interventions`.

    Lines are means over seeds; the gain's to first order, its dots the difference of the two losses.
    """
    fig, looks = style.figure(4.4), arms_in(table)
    style.title(fig, "How large an intervention is a meta step?")
    grid = fig.add_gridspec(2, 12)
    panels = {
        "predicted_gain": "gain of the inner step (nats)",
        "displacement": "norm of the inner step",
        "meta_norm": "norm of the added gradient",
    }
    for i, (column, text) in enumerate(panels.items()):
        ax = fig.add_subplot(grid[0, 4 * i : 4 * i + 4])
        for name, (label, colour) in looks.items():
            _mean_line(ax, table.only(arm=name), column, colour, label)
            if column == "predicted_gain":
                rows = Table(row for row in table.only(arm=name) if row.get("gained") is not None)
                ax.plot(rows.numbers("step"), rows.numbers("gained"), "o", color=colour, ms=2, alpha=0.5)
        style.subtitle(ax, text)
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        if column == "meta_norm":
            ax.legend()
    first: Axes | None = None
    for i, (bank, (text, _)) in enumerate(BANKS.items()):
        ax = fig.add_subplot(grid[1, 3 * i : 3 * i + 3], sharey=first)
        for name, (label, colour) in looks.items():
            _mean_line(ax, table.only(arm=name), f"cosine_{bank}", colour, label)
        ax.axhline(0, color=BLACK, lw=0.8)
        ax.set_xlabel("step")
        style.subtitle(ax, text)
        if first is None:
            first = ax
            ax.set_ylabel("cosine of main\nand added gradient")
        else:
            ax.tick_params(labelleft=False)
    return fig


def _mean_line(ax: Axes, rows: Table, column: str, colour: str, label: str) -> None:
    """The mean over seeds at each step, where there is a value."""
    steps = sorted({number(row, "step") for row in rows if row.get(column) is not None})
    means = [np.mean(rows.only(step=step).numbers(column)) for step in map(int, steps)]
    ax.plot(steps, means, color=colour, lw=1, label=label)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def costs(table: Table) -> Figure:
    """Time of training by part, and what a meta call costs. Table: `analysis.ablation.costs`."""
    rows = table.only(kind="arm")
    looks = arms_in(rows)
    fig = style.figure(1.0 + 0.28 * len(looks))
    style.title(fig, "What does meta-learning cost?")
    left, right = fig.subplots(1, 2, sharey=True)
    for y, row in enumerate(rows):
        colour = looks[str(row["arm"])][1]
        ordinary = number(row, "steps") * number(row, "step_seconds")
        left.barh(y, ordinary, height=0.6, color=PALE)
        left.barh(y, number(row, "seconds") - ordinary, left=ordinary, height=0.6, color=colour)
        _beside(left, number(row, "seconds"), y, f"+{100 * number(row, 'overhead'):.1f} %" if row["calls"] else "")
        right.barh(y, number(row, "micro"), height=0.6, color=colour)
        text = f"{number(row, 'micro'):.2f} = +{100 * number(row, 'published_overhead'):.1f} %" if row["calls"] else ""
        _beside(right, number(row, "micro"), y, text)
    left.set_yticks(range(len(looks)), [label for label, _ in looks.values()])
    left.set_ylim(len(looks) - 0.5, -0.5)
    left.set_xlabel("seconds of training")
    right.set_xlabel("micro-batches of an ordinary step")
    style.subtitle(left, "ordinary steps (grey) and meta calls")
    style.subtitle(right, "a meta call; what that is at the published cadence")
    for ax in (left, right):
        ax.margins(x=0.3)
        style.no_grid(ax, "y")
    return fig


def _beside(ax: Axes, x: float, y: float, text: str) -> None:
    ax.annotate(text, (x, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7.5)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(0.0, *values), max(0.0, *values)
    margin = 0.08 * (high - low) or 0.01
    return low - margin, high + margin


def _by_seed(table: Table) -> list[Table]:
    return _split(table, "seed")


def _split(table: Table, *columns: str) -> list[Table]:
    """The rows of each combination of values of the columns, in the order of first use."""
    groups: dict[tuple, Table] = {}
    for row in table:
        groups.setdefault(tuple(row.get(c) for c in columns), Table()).append(row)
    return list(groups.values())
