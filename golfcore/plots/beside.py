"""What the publications logged beside what was measured here; golfcore.analysis.beside makes the frames.

Published rows are drawn as lines with points and are named so; rows of ours stand in panels of their own.
"""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from golfcore.analysis.beside import HERE, PUBLISHED
from golfcore.plots import parts, style
from golfcore.plots.style import BLACK, GREY, PALE

TITLE = "(published)"


def training(table: pd.DataFrame) -> Figure:
    """Courses of training: loss over steps and hours, validation over steps and over the learning rate; and here."""
    theirs, ours = (table[table["source"] == source] for source in (PUBLISHED, HERE))
    fig = style.figure(4.6, "How did training go?")
    axes = fig.subplots(2, 2).ravel()
    colours = style.colours(theirs["system"])
    train, val = (theirs[theirs["kind"] == kind] for kind in ("train", "val"))
    for ax, rows, x, label in (
        (axes[0], train, "step", "step"),
        (axes[1], train, "seconds", "seconds of training"),
        (axes[2], val[val["lr_multiplier"] < 1], "lr_multiplier", "learning rate over its peak (computed)"),
    ):
        for (system, _), line in rows.groupby(["system", "run"], sort=False):
            ax.plot(line[x], line["value"], "o-", ms=2.5, lw=0.9, color=colours[str(system)], label=str(system))
        ax.set_xlabel(label)
    axes[1].set_xscale("log")
    axes[2].invert_xaxis()
    for ax, text in zip(axes, ("nats a token", "nats a token", "validation, bits a byte"), strict=False):
        style.subtitle(ax, f"{text} {TITLE}")
    _here(axes[3], ours, "share", "value", "share of the steps")
    style.subtitle(axes[3], "validation, bits a byte (measured here)")
    parts.legend_below(fig, axes[:3])
    return fig


def say_training(table: pd.DataFrame) -> str:
    rows = table[(table["step"] == 6000) & (table["kind"] == "val") & (table["source"] == PUBLISHED)]
    rows = rows[rows["system"].str.startswith("exp")].sort_values("lr_multiplier")
    said = ", ".join(f"{r.system} {r.value:.4f} at {r.lr_multiplier:.3f}" for r in rows.itertuples())
    return (
        f"At step 6,000 the published systems stand in the order of their learning rates, which follow the clock: "
        f"{said} of the peak. Their order at equal steps says nothing of meta-learning."
    )


def adaptation(table: pd.DataFrame) -> Figure:
    """Running scores while adapting, their differences to the system without meta-learning, and the same here."""
    theirs, ours = (table[table["source"] == source] for source in (PUBLISHED, HERE))
    fig = style.figure(2.9, "Does any system gain more from adapting?")
    axes = fig.subplots(1, 3)
    colours = style.colours(theirs["system"])
    for system, rows in theirs.groupby("system", sort=False):
        axes[0].plot(rows["share"], rows["bpb"], lw=0.9, color=colours[str(system)], label=str(system))
        axes[1].plot(rows["share"], rows["difference"], lw=0.9, color=colours[str(system)])
    axes[0].set_ylim(*parts.padded(theirs.loc[theirs["share"] > 0.05, "bpb"]))
    style.subtitle(axes[0], f"bits a byte so far {TITLE}")
    style.subtitle(axes[1], f"less exp105a {TITLE}")
    axes[1].axhline(0, color=BLACK, lw=0.8)
    _here(axes[2], ours, "share", "difference", "share of the text")
    axes[2].axhline(0, color=BLACK, lw=0.8)
    style.subtitle(axes[2], "less none (here)")
    for ax in axes:
        ax.set_xlabel("share of the text")
    parts.legend_below(fig, axes[:1])
    return fig


def say_adaptation(table: pd.DataFrame) -> str:
    theirs = table[(table["source"] == PUBLISHED) & (table["share"] > 0.1)].dropna(subset=["difference"])
    spans = theirs.groupby("system", sort=False)["difference"].agg(["min", "max"])
    said = "; ".join(
        f"{s} {style.signed(r['min'])} to {style.signed(r['max'])}" for s, r in spans.iterrows() if s != "exp105a"
    )
    text = f"As published, after a tenth of the text the distance to exp105a hardly moves while adapting: {said}."
    ours = table[table["source"] == HERE]
    last = ours[ours["share"] == 1].to_dict("records")
    if last:
        here = ", ".join(f"{row['system']} {style.change(row)}" for row in last)
        text += f" Here, at the end of the text: {here}."
    return text


@parts.filled(3.2, "What does the overlap of banks see?", 1, 2)
def banks(axes: Any, table: pd.DataFrame) -> None:
    """Overlaps of banks, published and here, with what independent noise of the same norms gives."""
    names = list(dict.fromkeys(table["bank"]))
    for ax, column in zip(axes, ("overlap", "cosine"), strict=True):
        colours = style.colours(table["pair"])
        for at, (pair, rows) in enumerate(table.groupby("pair", sort=False)):
            theirs = rows["source"].iloc[0] == PUBLISHED
            y = [names.index(b) + 0.11 * (at - 2.5) for b in rows["bank"]]
            if column == "overlap" and not theirs:
                ax.hlines(y, rows["noise_low"], rows["noise_high"], color=PALE, lw=4, label="noise of these norms")
            mark = "D" if theirs else "o"
            label = f"{pair} ({'published' if theirs else 'here'})"
            ax.plot(rows[column], y, mark, ms=4, color=colours[str(pair)], label=label)
        parts.rows_axis(ax, [name.replace("_bank", "") for name in names])
        style.subtitle(ax, {"overlap": "mean cosine of leading subspaces", "cosine": "cosine of all values"}[column])


def say_banks(table: pd.DataFrame) -> str:
    theirs = table[table["source"] == PUBLISHED]
    text = (
        f"As published, overlaps run from {theirs['overlap'].min():.2f} to {theirs['overlap'].max():.2f} and cosines "
        f"of all values from {theirs['cosine'].min():.2f} to {theirs['cosine'].max():.2f}."
    )
    ours = table[table["source"] == HERE]
    if ours.empty:
        return text
    within = int(((ours["noise_low"] <= ours["overlap"]) & (ours["overlap"] <= ours["noise_high"])).sum())
    return (
        f"{text} Here {within} of {len(ours)} overlaps lie within what independent noise of the same slot norms gives."
    )


@parts.filled(2.5, "Which schedules did the published systems follow? (computed from their settings)", 1, 2)
def courses(axes: Any, table: pd.DataFrame) -> None:
    """Schedules over time. Frame: `beside.courses`."""
    colours = style.colours(table["system"])
    for ax, (quantity, rows) in zip(axes, table.groupby("quantity", sort=False), strict=True):
        for system, line in rows.groupby("system", sort=False):
            share = line["seconds"] / line["seconds"].max()
            ax.plot(share, line["value"], color=colours[str(system)], label=str(system))
        style.subtitle(ax, f"{quantity}")
        ax.set_xlabel("share of the training time")
    for level, name in ((0.5, "meta-learning ends"), (0.25, "late QAT"), (0.2, "averaging")):
        axes[0].axhline(level, color=GREY, lw=0.6, ls=":")
        style.note(axes[0], name, (0.0, level), (2, 3), fontsize=6.5, color=GREY)


def say_courses(table: pd.DataFrame) -> str:
    rows = table[table["quantity"] == "learning rate"]
    rows = rows.assign(share=rows["seconds"] / rows.groupby("system")["seconds"].transform("max"))
    halves = rows[rows["value"] < 0.5].groupby("system")["share"].min()
    said = ", ".join(f"{system} {share:.2f}" for system, share in halves.items())
    return f"The learning rate is half of its peak after this share of the training time: {said}."


def costs(table: pd.DataFrame) -> Figure:
    """Step time, memory and steps of the logs, and micro-batches counted here."""
    quantities = list(dict.fromkeys(table["quantity"]))
    fig = style.figure(2.6, "What does meta-learning cost?")
    axes = fig.subplots(1, len(quantities), squeeze=False)[0]
    for ax, quantity in zip(axes, quantities, strict=True):
        rows = table[table["quantity"] == quantity]
        values = list(rows["value"])
        parts.bars(ax, values, [f"{v:,.0f}" if v > 10 else f"{v:.3f}" for v in values], (GREY, None))
        parts.rows_axis(ax, [str(s).removeprefix("meta-") for s in rows["system"]])
        theirs = rows["source"].iloc[0] == PUBLISHED
        style.subtitle(ax, f"{quantity}\n{TITLE if theirs else '(counted here)'}")
        ax.margins(x=0.35)
        ax.set_xticks([])
    return fig


def say_costs(table: pd.DataFrame) -> str:
    rows = table[table["source"] == PUBLISHED].pivot_table(index="system", columns="quantity", values="value")
    ms = rows["ms a step"]
    longer = {system: f"{ms[system] / ms['exp105a'] - 1:.1%}" for system in ("exp101", "exp106")}
    text = f"As logged, a step of exp101 takes {longer['exp101']} longer than one without meta-learning, of exp106 "
    text += longer["exp106"]
    ours = table[table["source"] == HERE].set_index("system")["value"]
    counted = ", ".join(f"{str(s).removeprefix('meta-')} {v - 1:.1%}" for s, v in ours.items() if v > 1)
    return f"{text}; counted in micro-batches at that cadence: {counted}." if counted else f"{text}."


def scores(table: pd.DataFrame) -> Figure:
    """Steps against scores of the published runs, one panel a protocol. Frame: `beside.scores`."""
    protocols = list(dict.fromkeys(table["protocol"]))
    fig = style.figure(2.5, "Do more steps score better? (published)")
    colours = style.colours(table["system"])
    for ax, protocol in zip(fig.subplots(1, len(protocols)), protocols, strict=True):
        for row in table[table["protocol"] == protocol].itertuples():
            ax.plot([row.steps], [row.bpb], "o", ms=5, color=colours[row.system], label=row.system)
            style.note(ax, str(row.variant or ""), (row.steps, row.bpb), (5, 0), fontsize=6, color=GREY)
        style.subtitle(ax, f"{protocol}, bits a byte")
        ax.set_xlabel("steps")
        ax.margins(0.25)
    parts.legend_below(fig, fig.axes)
    return fig


def say_scores(table: pd.DataFrame) -> str:
    adapted = table[table["protocol"] == "adapted"]
    spread = adapted[adapted["system"] == "pr398"]["bpb"]
    return (
        f"{len(adapted)} adapted scores of {adapted['system'].nunique()} systems; three seeds of one system differ by "
        f"{spread.max() - spread.min():.4f}, exp101 and exp105a by "
        f"{_of(adapted, 'exp105a') - _of(adapted, 'exp101'):.5f} of one seed each."
    )


def _of(rows: pd.DataFrame, system: str) -> float:
    return float(rows.loc[rows["system"] == system, "bpb"].iloc[0])


def _here(ax: Axes, rows: pd.DataFrame, x: str, y: str, label: str) -> None:
    """Our rows, one line a run in the colour of its arm; a word if there are none."""
    ax.set_xlabel(label)
    if rows.empty:
        style.note(ax, "no study in this folder", (0.5, 0.5), (0, 0), xycoords="axes fraction", ha="center", color=GREY)
        return
    looks = style.arms(rows["system"])
    keys = [c for c in ("system", "run") if c in rows and rows[c].notna().all()]
    for key, line in rows.groupby(keys, sort=False):
        name, colour = looks[str(key[0])]
        first = name not in ax.get_legend_handles_labels()[1]
        ax.plot(line[x], line[y], lw=0.9, color=colour, label=name if first else None)
    ax.legend(fontsize=6, ncols=2)
    if y == "value":
        ax.set_ylim(*parts.padded(rows.loc[rows[x] > 0.3, y]))


FIGURES = {
    "beside-training": (training, say_training),
    "beside-adaptation": (adaptation, say_adaptation),
    "beside-banks": (banks, say_banks),
    "beside-costs": (costs, say_costs),
    "published-schedules": (courses, say_courses),
    "published-scores": (scores, say_scores),
}
