"""The figures of one run and what each says: golfcore.analysis makes the frames and says what their columns mean."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from golfcore.analysis.frames import one, only
from golfcore.plots import parts, style
from golfcore.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, PALE, RED, has

Row = dict[str, Any]
EVENTS = {"qat": "QAT on", "warmdown": "warmdown", "cap": "time is up"}


def curves(table: pd.DataFrame) -> Figure:
    """Loss, validation, schedule and gradient norm over the steps, events marked. Frame: `analysis.runs.curves`."""
    train, val, events = (only(table, kind=kind) for kind in ("train", "val", "event"))
    fig = style.figure(4.6, "How did training go?")
    top, middle, bottom = fig.subplots(3, 1, sharex=True, height_ratios=[5, 2, 2])
    steps = train["step"]
    top.plot(steps, train["bpb"], color=PALE, lw=0.8, label="training batches")
    top.plot(steps, train["bpb_smooth"], color=BLUE, label="smoothed")
    if len(val):
        top.plot(val["step"], val["bpb"], "o-", color=RED, ms=3, lw=1, label="validation, current weights")
    top.set_ylabel("bits per byte")
    top.set_ylim(*parts.settled(table[table["kind"] != "event"]))
    middle.plot(steps, train["lr_multiplier"], color=GREEN, label="LR multiplier")
    middle.plot(steps, train["momentum"], color=ORANGE, label="momentum")
    middle.set_ylabel("schedule")
    middle.set_ylim(-0.06, 1.1)
    bottom.plot(steps, train["grad_norm"], color=GREY, lw=1)
    bottom.set_ylabel("gradient norm")
    bottom.yaxis.set_major_locator(MaxNLocator(4))
    bottom.set_xlabel("step")
    bottom.set_xlim(0, steps.iloc[-1] * 1.01)
    _mark_events((top, middle, bottom), events)
    parts.legend_below(fig, (top, middle))
    fig.align_ylabels()
    return fig


def _mark_events(axes: Sequence[Axes], events: pd.DataFrame) -> None:
    """A line through all panels for each event, its name above the first; names that are close are set higher."""
    last, lift = -1.0, 2
    for row in events.to_dict("records"):
        step, name = float(row["step"]), str(row["event"])
        for ax in axes:
            ax.axvline(step, color=BLACK, lw=0.8, ls=(0, (3, 2)))
        close = last >= 0 and step - last < 0.12 * axes[0].get_xlim()[1]
        last, lift = step, lift + 9 if close else 2
        above = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom", "fontsize": 7}
        style.note(axes[0], EVENTS.get(name, name), (step, 1), (0, lift), **above)


def say_curves(table: pd.DataFrame) -> str:
    train, val, events = (only(table, kind=kind) for kind in ("train", "val", "event"))
    first, last = train.iloc[0], train.iloc[-1]
    text = f"In {last['step']:,.0f} steps training went from {first['bpb_smooth']:.3f} to {last['bpb_smooth']:.3f} "
    text += "bits per byte, smoothed"
    if len(val):
        text += f", validation to {val['bpb'].iloc[-1]:.4f} (current weights, not the average that is exported)"
    return "; ".join([text, *(f"{row['event']} at step {row['step']:,}" for row in events.to_dict("records"))]) + "."


def waterfall(table: pd.DataFrame) -> Figure:
    """What each step from float weights to adapted score changes. Frame: `analysis.scores.waterfall`."""
    rows = table.to_dict("records")
    *steps, bigram = rows
    fig = style.figure(1.7 + 0.32 * len(steps), "What do rounding, longer context and adaptation change?")
    ax = fig.subplots()
    parts.waterfall(ax, steps, [style.measure(row["measure"])[1] for row in steps])
    ax.set_xlim(*parts.padded([row["bpb"] for row in steps]))
    _beyond(ax, len(steps), bigram["bpb"])
    names = [f"{style.measure(row['measure'])[0]}\n{style.LEGALITY[row['legality']][0]}" for row in steps]
    parts.rows_axis(ax, [*names, style.MEASURES["bigram"][0]])
    parts.scores(ax, rows)
    return fig


def _beyond(ax: Axes, y: float, value: float) -> None:
    """Mark a value at height `y`, or the side of the axes on which it lies outside."""
    low, high = ax.get_xlim()
    colour = style.MEASURES["bigram"][1]
    if low <= value <= high:
        ax.plot([value], [y], "D", color=colour, ms=5)
    else:
        parts.off_scale(ax, y, value > high, colour, "off the scale")


def say_waterfall(table: pd.DataFrame) -> str:
    names = {"static": "rounding", "sliding": "longer context (b \u2212 a)", "ttt": "adaptation (c \u2212 b)"}
    said = ", ".join(f"{text} {style.effect(one(table, measure=name))}" for name, text in names.items())
    final, bigram = (one(table, measure=name)["bpb"] for name in ("ttt", "bigram"))
    side = "below" if final < bigram else "ABOVE"
    return (
        f"In bits per byte, {said}; the final {final:.4f} is {abs(final - bigram):.4f} {side} an interpolated bigram "
        f"model of the training text."
    )


def ttt(table: pd.DataFrame) -> Figure:
    """Running score with and without adaptation, and their paired difference. Frame: `analysis.scores.ttt_gain`."""
    chunks, total = only(table, kind="chunk"), one(table, kind="total")
    fig = style.figure(4.1, "Does test-time training help, and when?")
    top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    at = chunks["stop"] / 1000
    for name, width in (("sliding", 3.5), ("ttt", 1.2)):  # they all but coincide: the thin one over the wide one
        label, colour = style.MEASURES[name]
        top.plot(at, chunks[name], "o-", color=colour, lw=width, ms=width, label=label)
    top.set_ylabel("bits per byte so far")
    parts.course(bottom, chunks, RED, "(c) \u2212 (b), all chunks so far", "(c) \u2212 (b), the chunk alone")
    _final_difference(bottom, at.iloc[-1], total)
    bottom.set_ylabel("(c) \u2212 (b)\nbits per byte")
    bottom.set_xlim(0, at.iloc[-1] * 1.16)
    bottom.set_xlabel("validation targets scored (thousands)")
    parts.legend_below(fig, (top, bottom))
    fig.align_ylabels()
    return fig


def _final_difference(ax: Axes, x: float, total: Row) -> None:
    """The last point of the running difference with its interval, if there is one, to the right of the curve."""
    final = total["difference"]
    text = style.signed(final)
    if has(total, "low"):
        low, high = total["low"], total["high"]
        spread = [[max(final - low, 0.0)], [max(high - final, 0.0)]]
        ax.errorbar([x * 1.01], [final], yerr=spread, color=RED, capsize=3, lw=1.2, marker="o", ms=3)
        text += f"\n95 %: {style.signed(low)}\nto {style.signed(high)}"
    style.note(ax, text, (x * 1.01, final), (6, 0), fontsize=7, color=RED)


def say_ttt(table: pd.DataFrame) -> str:
    chunks, total = only(table, kind="chunk"), one(table, kind="total")
    after = chunks[chunks["chunk"] > 0]["here"]
    if after.empty:
        return "There is one chunk only: it is scored before any adaptation, so there is nothing to compare."
    return (
        f"Over all chunks adaptation changes the bits per byte by {style.effect(total)}; it helped on "
        f"{(after < 0).sum()} of the {len(after)} chunks that were scored after some adaptation."
    )


PARTS = {"all": ("shared", GREY), "word start": ("split: word starts", RED), "within word": ("split: the rest", BLUE)}
HASHING = {"shared": ("shared", GREY), "split": ("split", GREEN)}
CONTENTION = {
    "contended": "whose row several\nfrequent pairs want",
    "not_own": "that read another\npair's row",
    "other_class": "that read a row of\nthe other class",
}


@parts.filled(3.3, "Does split hashing relieve the n-gram table?", 1, 2, width_ratios=[5, 4])
def buckets(axes: Any, table: pd.DataFrame) -> None:
    """Occupancy of the n-gram table's rows, shared and split. Frame: `analysis.buckets.bucket_occupancy`."""
    (left, right) = axes
    for hashing, part in (("shared", "all"), ("split", "word start"), ("split", "within word")):
        rows = only(table, kind="row", hashing=hashing, part=part)
        label, colour = PARTS[part]
        left.plot(rows["rank"], rows["occurrences"], color=colour, label=label)
    _log_axes(left)
    left.set_xlabel("row, by falling occupancy")
    left.set_ylabel("occurrences of pairs in the row")
    style.subtitle(left, "load of each row")
    for offset, (hashing, look) in zip((-0.2, 0.2), HASHING.items(), strict=True):
        row = one(table, kind="summary", hashing=hashing, part="all")
        values = [100 * row[column] for column in CONTENTION]
        parts.bars(right, values, [f"{value:.1f}" for value in values], look[::-1], offset)
    parts.rows_axis(right, list(CONTENTION.values()))
    right.set_xlabel("share of occurrences (%)")
    style.subtitle(right, "occurrences ...")
    right.set_xlim(0, 1.2 * max(right.dataLim.x1, 1.0))


def _log_axes(ax: Axes) -> None:
    """Logarithmic both ways, numbers in print: 1, 2, 5, 10 ... over a short range, powers of ten over a long one."""
    ax.set_xscale("log")
    ax.set_yscale("log")
    for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * max(low, 1e-9) else (1.0,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.set_minor_formatter(NullFormatter())


def say_buckets(table: pd.DataFrame) -> str:
    shared, split = (one(table, kind="summary", hashing=hashing, part="all") for hashing in HASHING)
    listed = [
        f"{text.replace(chr(10), ' ')}: {100 * shared[column]:.1f} % shared, {100 * split[column]:.1f} % split"
        for column, text in CONTENTION.items()
    ]
    head = f"{shared['pairs']:,.0f} different pairs meet {shared['rows']:,.0f} rows; occurrences"
    return f"{head} {'; '.join(listed)}."


def losses(table: pd.DataFrame) -> Figure:
    """Which kinds of token cost most, and whom context and adaptation help. Frame: `analysis.scores.loss_by_class`."""
    held = only(table, measure="sliding").set_index("class")
    names = [name for name in style.CLASSES if name in held.index]
    held = held.loc[names]
    fig = style.figure(1.5 + 0.4 * len(names), "Which tokens cost the bits, and which do context and adaptation help?")
    left, right = fig.subplots(1, 2, sharey=True)
    for offset, column, look in ((-0.2, "share", (PALE, "of targets")), (0.2, "share_of_loss", (GREEN, "of the loss"))):
        values = 100 * held[column]
        parts.bars(left, values, [f"{value:.1f}" for value in values], look, offset)
    left.set_xlabel("share (%), under (b)")
    left.set_xlim(0, 1.18 * left.dataLim.x1)
    gains = (-0.2, "sliding", "context: (b) \u2212 (a)"), (0.2, "ttt", "adaptation: (c) \u2212 (b)")
    for offset, measure, label in gains:
        changes = only(table, measure=measure).set_index("class")["change"].loc[names]
        look = (style.MEASURES[measure][1], label)
        parts.bars(right, changes, [style.signed(value) for value in changes], look, offset)
    parts.rows_axis(left, [f"{c}\n{held['bits_per_target'][c]:.2f} bits each" for c in names])
    right.axvline(0, color=BLACK, lw=0.8)
    right.set_xlabel("change of the score (bits per byte)")
    right.margins(x=0.3)
    right.xaxis.set_major_locator(MaxNLocator(4))
    right.grid(False, axis="y")
    for ax in (left, right):
        parts.legend_above(ax, 2)
    return fig


def say_losses(table: pd.DataFrame) -> str:
    rows = [
        f"{row['class']} {100 * row['share']:.1f} % of targets and {100 * row['share_of_loss']:.1f} % of the loss"
        for row in only(table, measure="sliding").to_dict("records")
    ]
    adapted = only(table, measure="ttt")
    most = adapted.loc[adapted["change"].abs().idxmax()]
    return f"{'; '.join(rows)}; adaptation moves most at {most['class']}, {most['change']:+.4f} of the score."


GROUPS = {"matrices": BLUE, "tables": GREEN, "the rest of the file": ORANGE, "code": GREY}


def sizes(table: pd.DataFrame) -> Figure:
    """What the bytes go to, and how much of the limit is used. Frame: `analysis.sizes.bytes_by_component`."""
    rows, total = only(table, kind="component"), one(table, kind="total")
    fig = style.figure(1.4 + 0.22 * len(rows), "What do the bytes go to?")
    ax = fig.subplots()
    for group, colour in GROUPS.items():
        values = (rows["bytes"] / 1000).where(rows["group"] == group).astype(float)
        ax.barh(range(len(rows)), values, height=0.7, color=colour, label=group)
    for y, row in enumerate(rows.to_dict("records")):
        style.note(ax, f"{row['bytes']:,.0f}  ({100 * row['share']:.1f} %)", (row["bytes"] / 1000, y), (4, 0))
    parts.rows_axis(ax, list(rows["label"]))
    ax.set_xlabel("kilobytes")
    ax.set_xlim(0, 1.2 * ax.dataLim.x1)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    used, limit = total["bytes"], total["limit"]
    style.subtitle(ax, f"{used:,.0f} of {limit:,.0f} bytes: {100 * used / limit:.1f} % of the limit")
    parts.legend_below(fig, (ax,))
    return fig


def say_sizes(table: pd.DataFrame) -> str:
    rows, total = only(table, kind="component"), one(table, kind="total")
    used, limit = total["bytes"], total["limit"]
    largest = ", ".join(f"{row['label']} {100 * row['share']:.1f} %" for row in rows[:3].to_dict("records"))
    left = f"{limit - used:,.0f} bytes are free" if used <= limit else f"{used - limit:,.0f} bytes TOO MANY"
    return f"{used:,.0f} of {limit:,.0f} bytes, {left}; the largest parts: {largest}."


FIGURES = {
    "curves": (curves, say_curves),
    "waterfall": (waterfall, say_waterfall),
    "ttt": (ttt, say_ttt),
    "buckets": (buckets, say_buckets),
    "losses": (losses, say_losses),
    "sizes": (sizes, say_sizes),
}
