"""The figures of one run, each from its table: golfcore.analysis makes the tables and says what their columns mean."""

from collections.abc import Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from golfcore.analysis.table import Row, Table, number
from golfcore.plots import style
from golfcore.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, PALE, RED


def curves(table: Table) -> Figure:
    """Loss, validation, learning rate and momentum over the steps, events marked. Table: `analysis.runs.curves`."""
    train, val, events = (table.only(kind=kind) for kind in ("train", "val", "event"))
    fig = style.figure(4.2)
    style.title(fig, "How did training go?")
    top, middle, bottom = fig.subplots(3, 1, sharex=True, height_ratios=[3, 1, 1])
    steps = train.numbers("step")
    top.plot(steps, train.numbers("bpb"), color=PALE, lw=0.8)
    top.plot(steps, train.numbers("bpb_smooth"), color=BLUE, label="training batches, smoothed")
    top.plot(val.numbers("step"), val.numbers("bpb"), "o-", color=RED, ms=3.5, lw=1, label="validation, current weights")
    top.set_ylabel("bits per byte")
    _clip_top(top, train.numbers("bpb") + val.numbers("bpb"))
    top.legend(frameon=False, loc="upper right", fontsize=7.5)
    middle.plot(steps, train.numbers("scale"), color=GREEN)
    middle.set_ylabel("LR multiplier")
    middle.set_ylim(-0.05, 1.1)
    bottom.plot(steps, train.numbers("grad_norm"), color=ORANGE, lw=1)
    bottom.set_ylabel("gradient norm")
    bottom.set_yscale("log")
    bottom.set_xlabel("step")
    bottom.set_xlim(0, steps[-1])
    _mark_events((top, middle, bottom), events)
    fig.align_ylabels()
    return fig


def _clip_top(ax: Axes, values: Sequence[float]) -> None:
    """The first steps are far above the rest: show the lower two thirds of the way down."""
    low, high = min(values), max(values)
    ax.set_ylim(low - 0.05 * (high - low), low + 0.75 * (high - low))


def _mark_events(axes: Sequence[Axes], events: Table) -> None:
    for row in events:
        for ax in axes:
            ax.axvline(number(row, "step"), color=GREY, lw=0.8, ls=(0, (3, 2)))
        axes[0].annotate(
            style.EVENTS.get(str(row["event"]), str(row["event"])),
            (number(row, "step"), 1),
            xycoords=("data", "axes fraction"),
            xytext=(-3, -2),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="top",
            fontsize=7,
            color=GREY,
        )


def waterfall(table: Table) -> Figure:
    """What each step from float weights to adapted score changes. Table: `analysis.scores.waterfall`."""
    rows = [row for row in table if row["measure"] != "bigram"]
    bigram = number(table.one(measure="bigram"), "bpb")
    fig = style.figure(3.0)
    style.title(fig, "What do rounding, longer context and adaptation change?")
    ax = fig.subplots()
    levels = [number(row, "bpb") for row in rows]
    span = max(max(levels) - min(levels), 1e-4)
    for x, (row, level) in enumerate(zip(rows, levels, strict=True)):
        colour = style.MEASURES[str(row["measure"])][1]
        ax.plot([x - 0.3, x + 0.3], [level, level], color=colour, lw=5, solid_capstyle="butt")
        ax.annotate(
            f"{level:.4f}", (x, level), xytext=(0, 6), textcoords="offset points", ha="center", color=colour, weight="bold"
        )
    for x, (row, (before, after)) in enumerate(zip(rows[1:], pairwise(levels), strict=True), start=1):
        _step_arrow(ax, x - 0.5, before, after, row)
    ax.set_xticks(range(len(rows)), [f"{style.MEASURES[str(r['measure'])][0]}\n{r['legality']}" for r in rows])
    ax.set_xlim(-0.5, len(rows) - 0.5)
    ax.set_ylim(min(levels) - 0.35 * span, max(levels) + 0.35 * span)
    ax.set_ylabel("bits per byte (lower is better)")
    ax.set_title(f"an interpolated bigram model of the same text scores {bigram:.4f}", fontweight="normal", fontsize=8)
    style.no_grid(ax, "x")
    return fig


def _step_arrow(ax: Axes, x: float, before: float, after: float, row: Row) -> None:
    """An arrow from level to level with the difference, and its interval where there is one."""
    ax.plot([x - 0.2, x + 0.2], [before, before], color=GREY, lw=0.8, ls=":")
    ax.annotate("", (x, after), (x, before), arrowprops={"arrowstyle": "-|>", "color": GREY, "lw": 1.2, "shrinkA": 0, "shrinkB": 0})
    text = f"{number(row, 'difference'):+.4f}"
    if row.get("low") is not None:
        text += f"\n[{number(row, 'low'):+.4f}, {number(row, 'high'):+.4f}]"
    ax.annotate(text, (x, (before + after) / 2), xytext=(5, 0), textcoords="offset points", va="center", fontsize=7, color=BLACK)


def ttt(table: Table) -> Figure:
    """Running score with and without adaptation, and their paired difference. Table: `analysis.scores.ttt_gain`."""
    chunks, total = table.only(kind="chunk"), table.one(kind="total")
    fig = style.figure(3.9)
    style.title(fig, "Does test-time training help, and when?")
    top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    edges = [0.0, *(stop / 1000 for stop in chunks.numbers("stop"))]
    at = edges[1:]
    for name in ("sliding", "ttt"):
        label, colour = style.MEASURES[name]
        top.plot(at, chunks.numbers(name), "o-", color=colour, ms=3 if len(at) <= 60 else 0, label=label)
    top.set_ylabel("bits per byte so far")
    top.legend(frameon=False, fontsize=7.5)
    bottom.axhline(0, color=BLACK, lw=0.8)
    bottom.stairs(chunks.numbers("here"), edges, fill=True, color=PALE, label="on the chunk alone")
    bottom.plot(at, chunks.numbers("difference"), color=RED, lw=1.6, label="over all chunks so far")
    _final_difference(bottom, at[-1], total)
    bottom.legend(frameon=False, fontsize=7.5)
    bottom.set_ylabel("(c) - (b)")
    bottom.set_xlim(0, at[-1] * 1.16)
    bottom.set_xlabel("validation targets scored (thousands)")
    fig.align_ylabels()
    return fig


def _final_difference(ax: Axes, x: float, total: Row) -> None:
    """The last point of the running difference with its interval, if there is one, to the right of the curve."""
    final, text = number(total, "difference"), f"{number(total, 'difference'):+.4f}"
    if total.get("low") is not None:
        low, high = number(total, "low"), number(total, "high")
        ax.errorbar([x * 1.01], [final], yerr=[[final - low], [high - final]], color=RED, capsize=3, lw=1.2, marker="o", ms=3)
        text += f"\n95 %: {low:+.4f}\nto {high:+.4f}"
    ax.annotate(text, (x * 1.01, final), xytext=(6, 0), textcoords="offset points", va="center", fontsize=7, color=RED)


def buckets(table: Table) -> Figure:
    """Occupancy of the n-gram table's rows, shared and split. Table: `analysis.buckets.bucket_occupancy`."""
    fig = style.figure(3.1)
    style.title(fig, "Does split hashing relieve the n-gram table?")
    left, right = fig.subplots(1, 2, width_ratios=[5, 4])
    for hashing, part in (("shared", "all"), ("split", "word start"), ("split", "within word")):
        rows = table.only(kind="row", hashing=hashing, part=part)
        label, colour = style.PARTS[part]
        left.plot(rows.numbers("rank"), rows.numbers("occurrences"), color=colour, label=label)
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_xlabel("row, by falling occupancy")
    left.set_ylabel("occurrences of pairs in the row")
    left.legend(frameon=False, fontsize=7.5, loc="lower left")
    left.set_title("load of each row", fontweight="normal", fontsize=8)
    _contention(right, table)
    return fig


CONTENTION = {
    "contended": "whose row several\nfrequent pairs want",
    "not_own": "that read another\npair's row",
    "other_class": "that read a row of\nthe other class",
}


def _contention(ax: Axes, table: Table) -> None:
    for offset, (hashing, (label, colour)) in zip((-0.19, 0.19), style.HASHING.items(), strict=True):
        row = table.one(kind="summary", hashing=hashing, part="all")
        for y, column in enumerate(CONTENTION):
            value = 100 * number(row, column)
            ax.barh(y + offset, value, height=0.36, color=colour, label=label if y == 0 else None)
            ax.annotate(
                f"{value:.1f}", (value, y + offset), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7.5
            )
    ax.set_yticks(range(len(CONTENTION)), list(CONTENTION.values()))
    ax.invert_yaxis()
    ax.set_xlabel("share of occurrences (%)")
    ax.set_title("occurrences ...", fontweight="normal", fontsize=8)
    ax.margins(x=0.15)
    ax.legend(frameon=False, fontsize=7.5, loc="lower right")
    style.no_grid(ax, "y")


def losses(table: Table) -> Figure:
    """Which kinds of token cost most, and whom context and adaptation help. Table: `analysis.scores.loss_by_class`."""
    fig = style.figure(2.9)
    style.title(fig, "Which tokens cost the bits?")
    left, right = fig.subplots(1, 2)
    classes = [name for name in style.CLASSES if table.only(**{"class": name})]
    one = {name: table.one(measure="sliding", **{"class": name}) for name in classes}
    for offset, column, label, colour in ((-0.2, "share", "of targets", PALE), (0.2, "share_of_loss", "of the loss", GREEN)):
        values = [100 * number(one[name], column) for name in classes]
        _bars(left, [x + offset for x in range(len(classes))], values, 0.38, colour, label, "{:.0f}")
    left.set_ylabel("share (%)")
    left.set_title("targets and loss, under (b)", fontweight="normal", fontsize=8)
    for offset, name in zip((-0.27, 0.0, 0.27), ("static", "sliding", "ttt"), strict=True):
        label, colour = style.MEASURES[name]
        values = [number(table.one(measure=name, **{"class": c}), "bpb") for c in classes]
        _bars(right, [x + offset for x in range(len(classes))], values, 0.26, colour, label, "{:.3f}")
    right.set_ylabel("bits per byte")
    right.set_title("parts of the score (they sum to it)", fontweight="normal", fontsize=8)
    for ax in (left, right):
        ax.set_xticks(range(len(classes)), classes)
        ax.margins(y=0.15)
        ax.legend(frameon=False, fontsize=7.5)
        style.no_grid(ax, "x")
    return fig


def _bars(
    ax: Axes, at: Sequence[float], values: Sequence[float], width: float, colour: str, label: str, text: str
) -> None:
    ax.bar(at, values, width=width, color=colour, label=label)
    for x, value in zip(at, values, strict=True):
        ax.annotate(text.format(value), (x, value), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=6.5)


def sizes(table: Table) -> Figure:
    """What the bytes go to, and how much of the limit is used. Table: `analysis.sizes.bytes_by_component`."""
    parts, total = table.only(kind="component"), table.one(kind="total")
    fig = style.figure(1.1 + 0.23 * len(parts))
    style.title(fig, "What do the bytes go to?")
    ax = fig.subplots()
    for y, row in enumerate(parts):
        n_bytes = number(row, "bytes")
        ax.barh(y, n_bytes / 1000, color=GREY if row["component"] == "code" else BLUE, height=0.7)
        ax.annotate(
            f"{n_bytes:,.0f}  ({100 * number(row, 'share'):.1f} %)",
            (n_bytes / 1000, y),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
        )
    ax.set_yticks(range(len(parts)), [str(row["label"]) for row in parts])
    ax.invert_yaxis()
    ax.set_xlabel("kilobytes")
    ax.margins(x=0.2)
    used, limit = number(total, "bytes"), number(total, "limit")
    ax.set_title(
        f"{used:,.0f} of {limit:,.0f} bytes: {100 * used / limit:.1f} % of the limit", fontweight="normal", fontsize=8
    )
    style.no_grid(ax, "y")
    return fig
