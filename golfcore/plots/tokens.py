"""The figures of losses by token: golfcore.analysis.token_losses makes the tables."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from golfcore.analysis.table import Table, number
from golfcore.plots import style
from golfcore.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, PALE, PINK, RED

CLASSES = {"word start": BLUE, "within word": ORANGE, "byte": GREEN, "control": GREY}


def measures_in(table: Table) -> list[str]:
    """The evaluations in a table, in the order of a run's, without the published rows."""
    return [name for name in style.MEASURES if table.only(measure=name)]


def histogram(table: Table) -> Figure:
    """Targets and loss by nats. Table: `token_losses.histogram` of each evaluation."""
    fig = style.figure(2.8)
    style.title(fig, "How is the loss distributed over the targets?")
    for ax, column in zip(fig.subplots(1, 2, sharey=False), ("share", "share_of_loss"), strict=True):
        for name in measures_in(table):
            rows = table.only(measure=name)
            edges = rows.numbers("low")
            label, colour = style.MEASURES[name]
            step = edges[1] - edges[0]
            values = [100 * value for value in rows.numbers(column)]
            ax.stairs(values, [*edges, edges[-1] + step], color=colour, lw=1.2, label=label)
        ax.set_xlabel("nats of the target (the last bin: all beyond)")
        ax.set_ylabel("% of targets" if column == "share" else "% of the loss")
    fig.axes[1].legend()
    return fig


def exceedance(table: Table) -> Figure:
    """Shares above each threshold, measured and published. Table: `token_losses.tables`."""
    theirs = table.only(measure="published")
    measure = str([row for row in table if row["measure"] != "published"][-1]["measure"])
    ours = table.only(measure=measure)
    fig = style.figure(3.3)
    style.title(fig, "Which share of the loss do the hard targets bring?")
    left, right = fig.subplots(1, 2, sharey=True)
    names = [f"> {number(row, 'threshold'):g} nats" for row in ours]
    sides = (
        (left, ours, f"measured here, {style.MEASURES[measure][0]}", "bound"),
        (right, theirs, "published (pr294)", "bound_low"),
    )
    for ax, rows, whose, bound in sides:
        _bars(ax, -0.2, [100 * value for value in rows.numbers("share")], PALE, "of targets")
        at = [y + 0.2 for y in range(len(rows))]
        shares, least = ([100 * value for value in rows.numbers(c)] for c in ("share_of_loss", bound))
        ax.barh(at, shares, height=0.37, color=GREEN, label="of the loss")
        label = "least that the counts allow"
        ax.plot(least, at, "|", color=BLACK, ms=11, mew=1.6, ls="none", label=label)
        for y, row, share, limit in zip(at, rows, shares, least, strict=True):
            wrong = bool(row.get("impossible"))
            text, look = f"{share:.1f}" + (", impossible" if wrong else ""), RED if wrong else BLACK
            style.note(ax, text, (max(share, limit), y), (5, 0), fontsize=6.5, color=look)
        ax.set_xlabel("share (%)")
        ax.set_xlim(0, 118)
        style.subtitle(ax, whose)
        style.no_grid(ax, "y")
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) - 0.4, -0.6)
    handles, labels = left.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=3)
    return fig


def concentration(table: Table) -> Figure:
    """Share of the loss against share of the targets, hardest first. Table: `token_losses.tables`."""
    fig = style.figure(3.2)
    style.title(fig, "How concentrated is the loss?")
    ax = fig.subplots()
    for name in measures_in(table):
        rows = table.only(measure=name)
        label, colour = style.MEASURES[name]
        x, y = ([100 * v for v in rows.numbers(c)] for c in ("share", "share_of_loss"))
        ax.plot(x, y, color=colour, lw=1.4, label=label)
    theirs = table.only(measure="published")
    for impossible, colour, text in ((False, BLACK, "published"), (True, RED, "published, impossible")):
        rows = Table(row for row in theirs if row["impossible"] is impossible)
        x, y = ([100 * v for v in rows.numbers(c)] for c in ("share", "share_of_loss"))
        ax.plot(x, y, "X" if impossible else "o", color=colour, ms=6, ls="none", label=text)
    x, low, high = ([100 * v for v in theirs.numbers(c)] for c in ("share", "bound_low", "bound_high"))
    label = "least that the published counts allow"
    ax.vlines(x, low, high, color=PINK, lw=4, label=label)
    ax.set_xlabel("share of the targets, hardest first (%)")
    ax.set_ylabel("share of the loss (%)")
    ax.set_xlim(0, 100)
    ax.set_ylim(0, 104)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return fig


def classes(table: Table) -> Figure:
    """Spread of the loss and hard targets in each class. Table: `token_losses.classes`."""
    fig = style.figure(1.7 + 0.34 * len(table))
    style.title(fig, "Which kinds of token are hard?")
    left, right = fig.subplots(1, 2, sharey=True)
    for y, row in enumerate(table):
        colour = CLASSES[str(row["class"])]
        left.plot([number(row, "p10"), number(row, "p90")], [y, y], color=colour, lw=3, alpha=0.5)
        left.plot([number(row, "median")], [y], "D", color=colour, ms=5)
    left.set_yticks(range(len(table)), [f"{row['class']}\n{number(row, 'targets'):,.0f} targets" for row in table])
    left.set_ylim(len(table) - 0.4, -0.6)
    left.set_xlabel("nats (median; line: 10 to 90 % of targets)")
    hard = {"above_3": (-0.25, PALE), "above_5": (0.0, ORANGE), "above_7": (0.25, RED)}
    for column, (offset, colour) in hard.items():
        values = [100 * value for value in table.numbers(column)]
        _bars(right, offset, values, colour, f"> {column.removeprefix('above_')} nats", height=0.23)
    right.set_xlabel("share of the class's targets (%)")
    right.margins(x=0.2)
    right.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderpad=0)
    for ax in (left, right):
        style.no_grid(ax, "y")
    return fig


def frequency(table: Table) -> Figure:
    """Cost of a target by how frequent its token is in training. Table: `token_losses.frequency`."""
    fig = style.figure(2.8)
    style.title(fig, "Are rare tokens the hard ones?")
    left, right = fig.subplots(1, 2)
    met = Table(row for row in table if row["targets"])
    groups = met.numbers("group")
    left.plot(groups, met.numbers("unigram_bits"), "o-", color=GREY, ms=3, lw=1, label="by its frequency alone")
    left.plot(groups, met.numbers("bits_per_target"), "D-", color=GREEN, ms=4, lw=1.2, label="by the model")
    left.set_ylim(bottom=0)
    left.set_ylabel("bits a target")
    left.legend()
    for offset, column, colour, label in (
        (-0.2, "share", PALE, "of targets"),
        (0.2, "share_of_loss", GREEN, "of the loss"),
    ):
        at = [number(row, "group") + offset for row in table]
        right.bar(at, [100 * value for value in table.numbers(column)], width=0.38, color=colour, label=label)
    right.set_ylabel("share (%)")
    right.legend()
    for ax in (left, right):
        ax.set_xlabel("tenth of the vocabulary, most frequent first")
        ax.set_xlim(0.4, len(table) + 0.6)
        ax.set_xticks([1, len(table) // 2, len(table)])
    style.no_grid(right, "x")
    return fig


def pieces(table: Table) -> Figure:
    """The tokens that cost most altogether. Table: `token_losses.pieces`."""
    fig = style.figure(1.1 + 0.19 * len(table))
    style.title(fig, "Which tokens does the loss fall on?")
    ax = fig.subplots()
    for name, colour in CLASSES.items():
        at = [y for y, row in enumerate(table) if row["class"] == name]
        if at:
            shares = [100 * number(table[y], "share_of_loss") for y in at]
            ax.barh(at, shares, height=0.7, color=colour, label=name)
    for y, row in enumerate(table):
        text = f"{number(row, 'targets'):,.0f} x {number(row, 'bits_per_target'):.2f} bits"
        style.note(ax, text, (100 * number(row, "share_of_loss"), y), (4, 0), fontsize=7)
    ax.set_yticks(range(len(table)), [str(row["piece"]) for row in table], parse_math=False)
    ax.set_ylim(len(table) - 0.4, -0.6)
    ax.set_xlabel("share of the loss (%)")
    ax.set_xlim(0, 1.25 * ax.dataLim.x1)
    ax.legend(loc="lower right")
    style.no_grid(ax, "y")
    return fig


def _bars(ax: Axes, offset: float, values: Sequence[float], colour: str, label: str, height: float = 0.37) -> None:
    """One horizontal bar a row, `offset` from its tick, with its number at its end."""
    at = [y + offset for y in range(len(values))]
    ax.barh(at, values, height=height, color=colour, label=label)
    for y, value in zip(at, values, strict=True):
        style.note(ax, f"{value:.1f}", (value, y), (3, 0), fontsize=6.5)
