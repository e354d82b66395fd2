"""The figures of one run, each from its table: golfcore.analysis makes the tables and says what their columns mean."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from golfcore.analysis.table import Row, Table, number
from golfcore.plots import style
from golfcore.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, PALE, RED


def curves(table: Table) -> Figure:
    """Loss, validation, schedule and gradient norm over the steps, events marked. Table: `analysis.runs.curves`."""
    train, val, events = (table.only(kind=kind) for kind in ("train", "val", "event"))
    fig = style.figure(4.4)
    style.title(fig, "How did training go?")
    top, middle, bottom = fig.subplots(3, 1, sharex=True, height_ratios=[5, 2, 2])
    steps = train.numbers("step")
    top.plot(steps, train.numbers("bpb"), color=PALE, lw=0.8, label="training batches")
    top.plot(steps, train.numbers("bpb_smooth"), color=BLUE, label="smoothed")
    if val:
        at = val.numbers("step")
        top.plot(at, val.numbers("bpb"), "o-", color=RED, ms=3, lw=1, label="validation, current weights")
    top.set_ylabel("bits per byte")
    top.set_ylim(*_settled(table, steps[-1]))
    top.legend(loc="upper right")
    middle.plot(steps, train.numbers("lr_multiplier"), color=GREEN, label="LR multiplier")
    middle.plot(steps, train.numbers("momentum"), color=ORANGE, label="momentum")
    middle.set_ylabel("schedule")
    middle.set_ylim(-0.06, 1.1)
    middle.legend(loc="lower left")
    bottom.plot(steps, train.numbers("grad_norm"), color=GREY, lw=1)
    bottom.set_ylabel("gradient norm")
    bottom.yaxis.set_major_locator(MaxNLocator(4))
    bottom.set_xlabel("step")
    bottom.set_xlim(0, steps[-1] * 1.01)
    _mark_events((top, middle, bottom), events)
    fig.align_ylabels()
    return fig


def _settled(table: Table, last: float) -> tuple[float, float]:
    """Limits that show all but the first twentieth of the run, where the loss falls from far above."""
    values = [number(r, "bpb") for r in table if r["kind"] != "event" and number(r, "step") >= 0.05 * last]
    margin = 0.06 * (max(values) - min(values)) or 0.01
    return min(values) - margin, max(values) + margin


def _mark_events(axes: Sequence[Axes], events: Table) -> None:
    """A line through all panels for each event, its name above the first; names that are close are set higher."""
    last, lift = -1.0, 2
    for row in events:
        step, name = number(row, "step"), str(row["event"])
        for ax in axes:
            ax.axvline(step, color=BLACK, lw=0.8, ls=(0, (3, 2)))
        close = last >= 0 and step - last < 0.12 * axes[0].get_xlim()[1]
        last, lift = step, lift + 9 if close else 2
        above = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom", "fontsize": 7}
        style.note(axes[0], style.EVENTS.get(name, name), (step, 1), (0, lift), **above)


def waterfall(table: Table) -> Figure:
    """What each step from float weights to adapted score changes. Table: `analysis.scores.waterfall`."""
    rows, bigram = [row for row in table if row["measure"] != "bigram"], table.one(measure="bigram")
    levels = [number(row, "bpb") for row in rows]
    starts = [level - float(row.get("difference") or 0) for row, level in zip(rows, levels, strict=True)]
    fig = style.figure(1.7 + 0.25 * len(rows))
    style.title(fig, "What do rounding, longer context and adaptation change?")
    ax = fig.subplots()
    for y, (row, level) in enumerate(zip(rows, levels, strict=True)):
        _, colour = style.measure(str(row["measure"]))
        ax.barh(y, level - starts[y], left=starts[y], height=0.5, color=colour)
        if y + 1 == len(rows) or math.isclose(starts[y + 1], level):
            ax.plot([level, level], [y, min(y + 1.25, len(rows) - 0.75)], color=colour, lw=1, ls=":")
        ax.plot([level], [y], "D", color=colour, ms=5)
    margin = 0.08 * (max(levels) - min(levels)) or 0.001
    ax.set_xlim(min(levels) - margin, max(levels) + margin)
    _beyond(ax, len(rows), number(bigram, "bpb"))
    legality = [f"  ({row['legality']})" for row in rows] + [""]
    names = [style.measure(str(row["measure"]))[0] for row in (*rows, bigram)]
    ax.set_yticks(range(len(rows) + 1), [name + text for name, text in zip(names, legality, strict=True)])
    ax.set_ylim(len(rows) + 0.6, -0.6)
    ax.set_xlabel("bits per byte (lower is better)")
    ax.xaxis.set_major_locator(MaxNLocator(5))
    _print(ax, 10, ["score", *(f"{number(row, 'bpb'):.4f}" for row in (*rows, bigram))], "bold")
    intervals = any(row.get("low") is not None for row in rows)
    _print(ax, 50, ["change [95 %]" if intervals else "change", *map(style.change, rows)], "normal")
    style.no_grid(ax, "y")
    return fig


def _beyond(ax: Axes, y: float, value: float) -> None:
    """Mark a value at height `y`, or the side of the axes on which it lies outside."""
    low, high = ax.get_xlim()
    colour = style.MEASURES["bigram"][1]
    if low <= value <= high:
        ax.plot([value], [y], "D", color=colour, ms=5)
        return
    where = ax.get_yaxis_transform()
    edge, way = (1.0, -1) if value > high else (0.0, 1)
    arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (edge, y), (edge + 0.1 * way, y), xycoords=where, textcoords=where, arrowprops=arrow)
    side = "right" if way < 0 else "left"
    style.note(ax, "off the scale", (edge + 0.12 * way, y), (0, 0), xycoords=where, ha=side, color=GREY)


def _print(ax: Axes, offset: float, cells: Sequence[str], weight: str) -> None:
    """A printed column to the right of the axes: its head, then a cell for each row."""
    where = ax.get_yaxis_transform()
    style.note(ax, cells[0], (1, -0.75), (offset, 0), xycoords=where, color=GREY, annotation_clip=False)
    for y, text in enumerate(cells[1:]):
        style.note(ax, text, (1, y), (offset, 0), xycoords=where, color=BLACK, fontweight=weight)


def ttt(table: Table) -> Figure:
    """Running score with and without adaptation, and their paired difference. Table: `analysis.scores.ttt_gain`."""
    chunks, total = table.only(kind="chunk"), table.one(kind="total")
    fig = style.figure(3.9)
    style.title(fig, "Does test-time training help, and when?")
    top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    edges = [0.0, *(stop / 1000 for stop in chunks.numbers("stop"))]
    at = edges[1:]
    for name, width in (("sliding", 3.5), ("ttt", 1.2)):  # they all but coincide: the thin one over the wide one
        label, colour = style.MEASURES[name]
        top.plot(at, chunks.numbers(name), color=colour, lw=width, label=label)
    top.set_ylabel("bits per byte so far")
    top.legend()
    bottom.axhline(0, color=BLACK, lw=0.8)
    bottom.stairs(chunks.numbers("here"), edges, fill=True, color=PALE, label="on the chunk alone")
    bottom.plot(at, chunks.numbers("difference"), color=RED, lw=1.6, label="over all chunks so far")
    _final_difference(bottom, at[-1], total)
    bottom.legend()
    bottom.set_ylabel("(c) \u2212 (b)\nbits per byte")
    bottom.set_xlim(0, at[-1] * 1.16)
    bottom.set_xlabel("validation targets scored (thousands)")
    fig.align_ylabels()
    return fig


def _final_difference(ax: Axes, x: float, total: Row) -> None:
    """The last point of the running difference with its interval, if there is one, to the right of the curve."""
    final, text = number(total, "difference"), style.signed(number(total, "difference"))
    if total.get("low") is not None:
        low, high = number(total, "low"), number(total, "high")
        spread = [[final - low], [high - final]]
        ax.errorbar([x * 1.01], [final], yerr=spread, color=RED, capsize=3, lw=1.2, marker="o", ms=3)
        text += f"\n95 %: {style.signed(low)}\nto {style.signed(high)}"
    style.note(ax, text, (x * 1.01, final), (6, 0), fontsize=7, color=RED)


def buckets(table: Table) -> Figure:
    """Occupancy of the n-gram table's rows, shared and split. Table: `analysis.buckets.bucket_occupancy`."""
    fig = style.figure(3.1)
    style.title(fig, "Does split hashing relieve the n-gram table?")
    left, right = fig.subplots(1, 2, width_ratios=[5, 4])
    for hashing, part in (("shared", "all"), ("split", "word start"), ("split", "within word")):
        rows = table.only(kind="row", hashing=hashing, part=part)
        label, colour = style.PARTS[part]
        left.plot(rows.numbers("rank"), rows.numbers("occurrences"), color=colour, label=label)
    _log_axes(left)
    left.set_xlabel("row, by falling occupancy")
    left.set_ylabel("occurrences of pairs in the row")
    left.legend(loc="lower left")
    style.subtitle(left, "load of each row")
    _contention(right, table)
    return fig


def _log_axes(ax: Axes) -> None:
    """Logarithmic both ways, numbers in print: 1, 2, 5, 10 ... over a short range, powers of ten over a long one."""
    ax.set_xscale("log")
    ax.set_yscale("log")
    for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * max(low, 1e-9) else (1.0,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.set_minor_formatter(NullFormatter())


CONTENTION = {
    "contended": "whose row several\nfrequent pairs want",
    "not_own": "that read another\npair's row",
    "other_class": "that read a row of\nthe other class",
}


def _contention(ax: Axes, table: Table) -> None:
    for offset, (hashing, (label, colour)) in zip((-0.2, 0.2), style.HASHING.items(), strict=True):
        row = table.one(kind="summary", hashing=hashing, part="all")
        values = [100 * number(row, column) for column in CONTENTION]
        _bars(ax, offset, values, [f"{value:.1f}" for value in values], colour, label)
    ax.set_yticks(range(len(CONTENTION)), list(CONTENTION.values()))
    ax.invert_yaxis()
    ax.set_xlabel("share of occurrences (%)")
    style.subtitle(ax, "occurrences ...")
    ax.set_xlim(0, 1.2 * ax.dataLim.x1)
    ax.legend(loc="lower right")
    style.no_grid(ax, "y")


def losses(table: Table) -> Figure:
    """Which kinds of token cost most, and whom context and adaptation help. Table: `analysis.scores.loss_by_class`."""
    classes = [name for name in style.CLASSES if table.only(**{"class": name})]
    fig = style.figure(1.5 + 0.4 * len(classes))
    style.title(fig, "Which tokens cost the bits, and which ones do context and adaptation help?")
    left, right = fig.subplots(1, 2, sharey=True)
    one = {name: table.one(measure="sliding", **{"class": name}) for name in classes}
    shares = (-0.2, "share", "of targets", PALE), (0.2, "share_of_loss", "of the loss", GREEN)
    for offset, column, label, colour in shares:
        values = [100 * number(one[name], column) for name in classes]
        _bars(left, offset, values, [f"{value:.1f}" for value in values], colour, label)
    left.set_yticks(range(len(classes)), [f"{c}\n{number(one[c], 'bits_per_target'):.2f} bits each" for c in classes])
    left.set_ylim(len(classes) - 0.4, -0.6)
    left.set_xlabel("share (%), under (b)")
    left.set_xlim(0, 1.18 * left.dataLim.x1)
    gains = (-0.2, "sliding", "context: (b) \u2212 (a)"), (0.2, "ttt", "adaptation: (c) \u2212 (b)")
    for offset, name, label in gains:
        values = [number(table.one(measure=name, **{"class": c}), "change") for c in classes]
        _bars(right, offset, values, [style.signed(value) for value in values], style.MEASURES[name][1], label)
    right.axvline(0, color=BLACK, lw=0.8)
    right.set_xlabel("change of the score (bits per byte)")
    right.margins(x=0.3)
    right.xaxis.set_major_locator(MaxNLocator(5))
    for ax in (left, right):
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderpad=0)
        style.no_grid(ax, "y")
    return fig


def _bars(
    ax: Axes, offset: float, values: Sequence[float], texts: Sequence[str], colour: str, label: str | None
) -> None:
    """One horizontal bar for each class, `offset` from its tick, with its number at its end."""
    at = [y + offset for y in range(len(values))]
    ax.barh(at, values, height=0.37, color=colour, label=label)
    for y, value, text in zip(at, values, texts, strict=True):
        side, gap = ("left", 3) if value >= 0 else ("right", -3)
        style.note(ax, text, (value, y), (gap, 0), ha=side, fontsize=7)


def sizes(table: Table) -> Figure:
    """What the bytes go to, and how much of the limit is used. Table: `analysis.sizes.bytes_by_component`."""
    parts, total = table.only(kind="component"), table.one(kind="total")
    fig = style.figure(1.1 + 0.22 * len(parts))
    style.title(fig, "What do the bytes go to?")
    ax = fig.subplots()
    for group, colour in style.GROUPS.items():
        at = [y for y, row in enumerate(parts) if row["group"] == group]
        ax.barh(at, [number(parts[y], "bytes") / 1000 for y in at], height=0.7, color=colour, label=group)
    for y, row in enumerate(parts):
        text = f"{number(row, 'bytes'):,.0f}  ({100 * number(row, 'share'):.1f} %)"
        style.note(ax, text, (number(row, "bytes") / 1000, y), (4, 0))
    ax.set_yticks(range(len(parts)), [str(row["label"]) for row in parts])
    ax.set_ylim(len(parts) - 0.4, -0.6)
    ax.set_xlabel("kilobytes")
    ax.set_xlim(0, 1.2 * ax.dataLim.x1)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.legend(loc="lower right")
    used, limit = number(total, "bytes"), number(total, "limit")
    style.subtitle(ax, f"{used:,.0f} of {limit:,.0f} bytes: {100 * used / limit:.1f} % of the limit")
    style.no_grid(ax, "y")
    return fig
