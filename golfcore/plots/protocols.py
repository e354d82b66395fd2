"""The figures of a study of protocols and what each says: golfcore.analysis.protocols makes the frames."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from golfcore.plots import parts, style
from golfcore.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, has

STEPS = {label: style.MEASURES[name] for label, name in (("a", "static"), ("b", "sliding"), ("c", "ttt"))}
LINES = (RED, BLUE, GREEN, ORANGE, PINK, GREY)


def _name(label: str) -> str:
    return STEPS[label][0] if label in STEPS else label


# -- a, b, c


def waterfall(table: pd.DataFrame) -> Figure:
    """From (a) over (b) to (c), of the artifact and of the float weights. Frame: `protocols.tables`."""
    bpb = dict(zip(table["label"], table["bpb"], strict=True))
    rows = [row for row in table.to_dict("records") if row["label"] in STEPS]
    fig = style.figure(1.5 + 0.4 * len(rows), "What of the score is context, and what is adaptation?")
    ax = fig.subplots()
    parts.waterfall(ax, rows, [STEPS[row["label"]][1] for row in rows])
    floats = {y: bpb[label] for y, row in enumerate(rows) if (label := f"{row['label']} float") in bpb}
    if floats:
        label = style.MEASURES["float"][0]
        ax.plot(list(floats.values()), list(floats), "o", color="none", mec=BLACK, ms=8, label=label)
    ax.set_xlim(*parts.padded(table["bpb"], 0.1))
    parts.rows_axis(ax, [_name(row["label"]) for row in rows])
    parts.legend_above(ax)
    parts.scores(ax, rows)
    return fig


def say_waterfall(table: pd.DataFrame) -> str:
    rows = {row["label"]: row for row in table.to_dict("records")}
    names = {"b": "longer context (b \u2212 a) brings", "c": "adaptation (c \u2212 b) brings"}
    said = [f"{t} {style.effect(rows[k])}" for k, t in names.items() if has(rows.get(k, {}), "difference")]
    if {"a", "b", "c"} <= rows.keys() and rows["a"]["bpb"] != rows["c"]["bpb"]:
        a, b, c = (rows[label]["bpb"] for label in "abc")
        said.append(f"of c \u2212 a, which was published as one number, {100 * (b - a) / (c - a):.0f} % is context")
    return f"In bits per byte, {'; '.join(said) or 'neither b nor c was measured against its reference'}."


def say_gains(table: pd.DataFrame) -> str:
    """Of `protocols.gains`, which has no figure."""
    gain = table["kind"] == "gain"
    said = [
        f"{name} {style.effect(row, 'value')}"
        for name, row in zip(table["gain"].where(gain, table["is"]), table.to_dict("records"), strict=True)
    ]
    return f"Gains in bits per byte: {'; '.join(said)}." if said else "No two cells were measured: no gain to state."


# -- protocols and controls


def scores(table: pd.DataFrame) -> Figure:
    """Every protocol with its legality. Frame: `protocols.tables`."""
    return _against(table[table["label"] != "a"], "What does each protocol score, and is it legal?")


def controls(table: pd.DataFrame) -> Figure:
    """Adaptation with one thing changed. Frame: `protocols.tables`."""
    return _against(table, "What does the gain of adaptation hang on?")


def _against(table: pd.DataFrame, question: str) -> Figure:
    """Differences of the rows to their references with intervals; marker and colour say what the ledger saw."""
    rows = table.to_dict("records")
    fig = style.figure(1.6 + 0.23 * len(rows), question)
    ax = fig.subplots()
    looks = [style.LEGALITY[row["legality"]] for row in rows]
    parts.forest(ax, table, [parts.Mark(colour, marker, label) for label, colour, marker in looks])
    parts.rows_axis(ax, [f"{_name(r['label'])}  [{r['reference']}]" for r in rows])
    ax.set_xlabel("difference to the cell in brackets (bits per byte), 95 % over chunks of text")
    parts.legend_below(fig, [ax])
    parts.scores(ax, rows)
    return fig


def say_scores(table: pd.DataFrame) -> str:
    first = table["legality"] == "train-first"
    if first.all():
        return "No legal score was measured."
    best = table.loc[table.loc[~first, "bpb"].idxmin()]
    text = f"The best legal score is {best['bpb']:.4f} ({_name(best['label'])})"
    others = [
        f"{row['label']} {row['bpb']:.4f}, {row['bpb'] - best['bpb']:+.4f} against it"
        for row in table[first].to_dict("records")
    ]
    said = "; trained on targets before they were scored, so no scores of a code: " + "; ".join(others)
    return text + (said if others else "") + "."


def say_controls(table: pd.DataFrame) -> str:
    known = table[table["difference"].notna()]
    base, others = known[known["label"] == "c"].to_dict("records"), known[known["group"] != "abc"]
    lowest = others.loc[others.groupby("group", sort=False)["difference"].idxmin()].to_dict("records")
    said = [f"(c) gains {style.effect(base[0])}" if base else "(c) was not measured"]
    said += [f"lowest of {row['group']}, {row['label']} {style.effect(row)}" for row in lowest]
    return f"Against its reference {'; '.join(said)}."


# -- context


@parts.filled(2.7, "What does a longer context cost?", legend=False)
def strides(ax: Any, table: pd.DataFrame) -> None:
    """Score against cost of scoring without adaptation, by stride. Frame: `protocols.strides`."""
    cost = table["computed"]
    ax.plot(cost, table["bpb"], "-", color=GREEN, lw=1)
    for row in table.to_dict("records"):
        ends = [row["difference"] - row["low"], row["high"] - row["difference"]] if has(row, "low") else [0.0, 0.0]
        error = [[max(way, 0.0)] for way in ends]
        ax.errorbar([row["computed"]], [row["bpb"]], yerr=error, color=GREEN, marker="o", capsize=3, lw=1.2)
        style.note(ax, f"stride {row['stride']}", (row["computed"], row["bpb"]), (7, 8), fontsize=7)
    ax.set_xscale("log", base=2)
    ax.set_xlim(cost.min() / 1.3, cost.max() * 1.8)
    ax.set_xticks(cost, [f"{value:g}" for value in cost])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.margins(y=0.25)
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.set_ylabel("bits per byte")
    ax.set_xlabel("tokens computed for each target scored; bars: 95 % of the difference to no overlap")


def say_strides(table: pd.DataFrame) -> str:
    first, best = table.iloc[0], table.loc[table["bpb"].idxmin()]
    return (
        f"The lowest score is that of stride {best['stride']}: {best['bpb'] - first['bpb']:+.5f} against stride "
        f"{first['stride']}, for {best['computed'] / first['computed']:g} times the tokens computed."
    )


@parts.filled(2.7, "Do shorter chunks or more passes gain more?")
def grid(ax: Any, table: pd.DataFrame) -> None:
    """The gain of adaptation by the length of a chunk, a line for each number of passes. Frame: `protocols.grid`."""
    lengths = sorted(table["chunk_tokens"].unique())
    for i, (epochs, rows) in enumerate(table.groupby("epochs")):
        places = [lengths.index(n) + 0.06 * i for n in rows["chunk_tokens"]]
        known = rows["low"].notna().all()
        error = [(rows["difference"] - rows["low"]).clip(0), (rows["high"] - rows["difference"]).clip(0)]
        label = "one pass" if epochs == 1 else f"{epochs} passes"
        ax.errorbar(
            places, rows["difference"], error if known else None, fmt="o-", color=LINES[i], capsize=3, label=label
        )
    ax.axhline(0, color=GREY, lw=0.8)
    ax.set_xticks(range(len(lengths)), [f"{n:,}" for n in lengths])
    ax.set_xlabel("targets of a chunk; bars: 95 % over chunks of text")
    ax.set_ylabel("less (b), bits per byte")
    ax.margins(x=0.15)


def say_grid(table: pd.DataFrame) -> str:
    best = table.loc[table["difference"].idxmin()]
    worst = table.loc[table["difference"].idxmax()]
    return (
        f"Against the same windows without adaptation the most is gained by {best['label']}: "
        f"{style.effect(best.to_dict())}; the least by {worst['label']}: {style.effect(worst.to_dict())}."
    )


def positions(table: pd.DataFrame) -> Figure:
    """Loss by position in a window, and where the gain of context lies. Frame: `protocols.positions`."""
    fig = style.figure(3.0, "Why does a sliding window score better without adapting?")
    shared = "so_far" in table and table["so_far"].notna().any()
    axes = fig.subplots(1, 1 + shared, squeeze=False)[0]
    edges = [*table["start"], table["stop"].iloc[-1]]
    for label, column in (("a", "static"), ("b", "sliding")):
        name, colour = STEPS[label]
        axes[0].stairs(table[column], edges, color=colour, lw=1.6, baseline=None, label=name)
    axes[0].set_ylabel("bits a target")
    style.subtitle(axes[0], "the same targets, by position in (a)")
    if shared:
        shares = 100 * table["so_far"]
        axes[1].plot(edges[1:], shares, "o-", color=BLACK, ms=2.5, lw=1)
        axes[1].set_ylim(min(0.0, shares.min()) - 4, max(100.0, shares.max()) + 8)
        axes[1].set_ylabel("% of (b) \u2212 (a)")
        style.subtitle(axes[1], "share of the gain up to this position")
    for ax in axes:
        ax.set_xscale("symlog", base=2, linthresh=1)
        ax.set_xlim(0, edges[-1])
        ax.set_xticks([0, *(2**k for k in range(0, 17, 3) if 2**k < edges[-1])])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        ax.set_xlabel("position in the window")
    parts.legend_below(fig, axes)
    return fig


def say_positions(table: pd.DataFrame) -> str:
    targets = table["targets"].sum()
    change = (table["change"] * table["targets"]).sum() / targets
    text = f"A sliding window changes the mean target by {change:+.4f} bits"
    half = table[table["so_far"] >= 0.5] if "so_far" in table else table[:0]
    if len(half):
        stop = half["stop"].iloc[0]
        here = table.loc[table["stop"] <= stop, "targets"].sum() / targets
        text += f", half of it before position {stop:,.0f} of a window, at {100 * here:.1f} % of the targets"
    first, last = table.iloc[0], table.iloc[-1]
    return (
        f"{text}; from the first position to the last a target costs {first['static']:.2f} to {last['static']:.2f} "
        f"bits under (a), and {first['sliding']:.2f} to {last['sliding']:.2f} under (b)."
    )


@parts.filled(3.2, "Where in the text does adaptation gain?")
def stream(ax: Any, table: pd.DataFrame) -> None:
    """The gain of each legal adaptation over (b) along the text. Frame: `protocols.along`."""
    groups = table.groupby("label", sort=False)
    for i, ((label, rows), colour) in enumerate(zip(groups, LINES, strict=False)):
        name = _name(str(label))
        if i:  # one band and one set of bars: those of the first
            parts.course(ax, rows.drop(columns=["low", "high"], errors="ignore"), colour, name)
        else:
            parts.course(ax, rows, colour, name, f"{name}, chunk alone")
    ax.set_ylabel("less (b), bits per byte")
    ax.set_xlabel("validation targets scored (thousands); lines: all chunks so far, band: 95 % over chunks")


def say_stream(table: pd.DataFrame) -> str:
    said = [
        f"{label} {style.effect(rows.iloc[-1].to_dict())}, better on {(rows['here'] < 0).sum()} of {len(rows)} chunks"
        for label, rows in table.groupby("label", sort=False)
    ]
    return f"Against (b), over the whole text: {'; '.join(said)}."


FIGURES = {
    "protocols-waterfall": (waterfall, say_waterfall),
    "protocols-scores": (scores, say_scores),
    "protocols-controls": (controls, say_controls),
    "protocols-strides": (strides, say_strides),
    "protocols-grid": (grid, say_grid),
    "protocols-positions": (positions, say_positions),
    "protocols-stream": (stream, say_stream),
}
