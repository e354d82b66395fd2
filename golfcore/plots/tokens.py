"""The figures of losses by token and what each says: golfcore.analysis.tokens makes the frames."""

from typing import Any

import numpy as np
import pandas as pd

from golfcore.analysis.frames import only
from golfcore.plots import parts, style
from golfcore.plots.style import BLACK, GREEN, GREY, ORANGE, PALE, PINK, RED

COINCIDE = 0.005  # curves of shares that are nowhere further apart than this are drawn as one


def _ours(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each evaluation, in the order of a run's, without the published ones."""
    return {name: rows for name in style.MEASURES if len(rows := only(table, measure=name))}


def _last(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Label and rows of the evaluation that a table was made for, the last in it."""
    name = table.loc[table["measure"] != "published", "measure"].iloc[-1]
    return style.MEASURES[name][0], only(table, measure=name)


def _published(table: pd.DataFrame) -> pd.DataFrame:
    return only(table, measure="published").astype({"impossible": bool})


def _distinct(curves: dict[str, pd.DataFrame], x: str) -> list[tuple[str, str, pd.DataFrame]]:
    """(label, colour, rows) of the curves of shares over `x` that differ; the label names all that coincide in one."""
    found: list[tuple[list[str], pd.DataFrame]] = []
    for name, rows in curves.items():
        same = next((names for names, other in found if _apart(rows, other, x) < COINCIDE), None)
        if same is None:
            found.append(([name], rows))
        else:
            same.append(name)
    looks = [[style.MEASURES[name] for name in names] for names, _ in found]
    labels = [", ".join(label for label, _ in look) + " (they coincide)" * (len(look) > 1) for look in looks]
    return [(label, look[0][1], rows) for label, look, (_, rows) in zip(labels, looks, found, strict=True)]


def _apart(one: pd.DataFrame, other: pd.DataFrame, x: str) -> float:
    """The largest distance between two curves' shares."""
    return max(np.abs(np.interp(one[x], other[x], other[c]) - one[c]).max() for c in ("share", "share_of_loss"))


# -- distribution


@parts.filled(3.0, "How is the loss distributed over the targets?", 1, 2)
def histogram(axes: Any, table: pd.DataFrame) -> None:
    """Targets and loss by nats. Frame: `tokens.histogram` of each evaluation. Curves that coincide are drawn once."""
    for column, ax in zip(("share", "share_of_loss"), axes, strict=True):
        for label, colour, rows in _distinct(_ours(table), "low"):
            edges = list(rows["low"])
            ax.stairs(100 * rows[column], [*edges, 2 * edges[-1] - edges[-2]], color=colour, lw=1.2, label=label)
        ax.set_xlabel("nats of the target (the last bin: all beyond)")
        ax.set_ylabel("% of targets" if column == "share" else "% of the loss")


def say_histogram(table: pd.DataFrame) -> str:
    name, rows = _last(table)
    top = rows.loc[rows["share"].idxmax()]
    below = rows.loc[rows["low"] < 1, "share"].sum()
    return (
        f"Under {name} {100 * below:.1f} % of the targets cost less than 1 nat; the fullest bin "
        f"starts at {top['low']:g} nats and holds {100 * top['share']:.1f} %."
    )


@parts.filled(3.3, "Which share of the loss do the hard targets bring?", 1, 2, sharey=True)
def exceedance(axes: Any, table: pd.DataFrame) -> None:
    """Shares above each threshold, measured and published. Frame: `tokens.tables`."""
    name, ours = _last(table)
    sides = (
        (axes[0], ours.assign(impossible=False), f"measured here, {name}", "bound"),
        (axes[1], _published(table), "published (pr294)", "bound_low"),
    )
    for ax, rows, whose, bound in sides:
        targets, loss, least = (100 * rows[column] for column in ("share", "share_of_loss", bound))
        parts.bars(ax, targets, [f"{value:.1f}" for value in targets], (PALE, "of targets"), offset=-0.2)
        at = np.arange(len(rows)) + 0.2
        ax.barh(at, loss, height=0.37, color=GREEN, label="of the loss")
        ax.plot(least, at, "|", color=BLACK, ms=11, mew=1.6, ls="none", label="least that the counts allow")
        for y, share, limit, wrong in zip(at, loss, least, rows["impossible"], strict=True):
            text, colour = (f"{share:.1f}, impossible", RED) if wrong else (f"{share:.1f}", BLACK)
            style.note(ax, text, (max(share, limit), y), (5, 0), fontsize=7, color=colour)
        parts.rows_axis(ax, [f"> {threshold:g} nats" for threshold in rows["threshold"]])
        ax.set_xlabel("share (%)")
        ax.set_xlim(0, 118)
        style.subtitle(ax, whose)


def say_exceedance(table: pd.DataFrame) -> str:
    name, rows = _last(table)
    said = [
        f"> {r['threshold']:g}: {100 * r['share']:.1f} % of targets, {100 * r['share_of_loss']:.1f} % of the loss"
        for r in rows.to_dict("records")
    ]
    theirs = _published(table)
    wrong = [
        f"> {r['threshold']:g} ({100 * r['share_of_loss']:.0f} % where the counts need at least "
        f"{100 * r['bound_low']:.1f} %)"
        for r in theirs[theirs["impossible"]].to_dict("records")
    ]
    verdict = f"{len(wrong)} of {len(theirs)} published shares contradict their own counts: {', '.join(wrong)}"
    verdict = verdict if wrong else "no published share contradicts its own count"
    return f"Under {name}, by nats: {'; '.join(said)}; {verdict}."


@parts.filled(3.2, "How concentrated is the loss?", legend=False)
def concentration(ax: Any, table: pd.DataFrame) -> None:
    """Share of the loss against share of the targets, hardest first. Frame: `tokens.tables`.

    Curves that coincide are drawn once.
    """
    for label, colour, rows in _distinct(_ours(table), "share"):
        ax.plot(100 * rows["share"], 100 * rows["share_of_loss"], color=colour, label=label)
    theirs = _published(table)
    for impossible, colour, label in ((False, BLACK, "published"), (True, RED, "published, impossible")):
        rows = 100 * theirs.loc[theirs["impossible"] == impossible, ["share", "share_of_loss"]]
        if len(rows):
            marker = "X" if impossible else "o"
            ax.plot(rows["share"], rows["share_of_loss"], marker, color=colour, ms=6, ls="none", label=label)
    low, high = 100 * theirs["bound_low"], 100 * theirs["bound_high"]
    ax.vlines(100 * theirs["share"], low, high, color=PINK, lw=4, label="least that the published counts allow")
    ax.set_xlabel("share of the targets, hardest first (%)")
    ax.set_ylabel("share of the loss (%)")
    ax.set_xlim(0, 100)
    ax.set_ylim(0, 104)
    ax.legend(loc="lower right")


def say_concentration(table: pd.DataFrame) -> str:
    name, rows = _last(table)
    said = []
    for share in (0.1, 0.25, 0.5):
        row = rows.loc[(rows["share"] - share).abs().idxmin()]
        said.append(f"{100 * row['share']:.0f} % bring {100 * row['share_of_loss']:.1f} %")
    return f"Under {name}, of the targets the hardest {'; '.join(said)} of the loss."


# -- kinds of token


@parts.filled((1.7, 0.34), "Which kinds of token are hard?", 1, 2, sharey=True, legend=False)
def classes(axes: Any, table: pd.DataFrame) -> None:
    """Spread of the loss and hard targets in each class. Frame: `tokens.classes`."""
    left, right = axes
    for y, row in enumerate(table.to_dict("records")):
        colour = style.CLASSES[row["class"]]
        left.plot([row["p10"], row["p90"]], [y, y], color=colour, lw=3, alpha=0.5)
        left.plot([row["median"]], [y], "D", color=colour, ms=5)
    left.set_xlabel("nats (median; line: 10 to 90 % of targets)")
    hard = {"above_3": (-0.25, PALE), "above_5": (0.0, ORANGE), "above_7": (0.25, RED)}
    for column, (offset, colour) in hard.items():
        at, label = np.arange(len(table)) + offset, f"> {column.removeprefix('above_')} nats"
        right.barh(at, 100 * table[column], height=0.23, color=colour, label=label)
        for y, value in zip(at, 100 * table[column], strict=True):
            style.note(right, f"{value:.1f}", (value, y), (3, 0), fontsize=6.5)
    right.set_xlabel("share of the class's targets (%)")
    right.margins(x=0.2)
    parts.legend_above(right)
    for ax in (left, right):
        parts.rows_axis(ax, [f"{r['class']}\n{r['targets']:,} targets" for r in table.to_dict("records")])


def say_classes(table: pd.DataFrame) -> str:
    said = [
        f"{r['class']}: median {r['median']:.2f} nats, {100 * r['above_5']:.1f} % above 5, "
        f"{100 * r['share_of_loss']:.1f} % of the loss on {100 * r['share']:.1f} % of the targets"
        for r in table.to_dict("records")
    ]
    return f"{'; '.join(said)}."


@parts.filled(3.0, "Are rare tokens the hard ones?", 1, 2)
def frequency(axes: Any, table: pd.DataFrame) -> None:
    """Cost of a target by how frequent its token is in training. Frame: `tokens.frequency`."""
    (left, right), met = axes, table[table["targets"] > 0]
    left.plot(met["group"], met["unigram_bits"], "o-", color=GREY, ms=3, lw=1, label="by its frequency alone")
    left.plot(met["group"], met["bits_per_target"], "D-", color=GREEN, ms=4, lw=1.2, label="by the model")
    left.set_ylim(bottom=0)
    left.set_ylabel("bits a target")
    bars = ((-0.2, "share", PALE, "of targets"), (0.2, "share_of_loss", GREEN, "of the loss"))
    for offset, column, colour, label in bars:
        right.bar(table["group"] + offset, 100 * table[column], width=0.38, color=colour, label=label)
    right.set_ylabel("share (%)")
    for ax in (left, right):
        ax.set_xlabel("tenth of the vocabulary, most frequent first")
        ax.set_xlim(0.4, len(table) + 0.6)
        ax.set_xticks([1, len(table) // 2, len(table)])
    right.grid(False, axis="x")


def say_frequency(table: pd.DataFrame) -> str:
    met = table[table["targets"] > 0]
    first, last = met.iloc[0], met.iloc[-1]
    costs = [f"{r['bits_per_target']:.2f} bits a target ({r['unigram_bits']:.2f} by frequency)" for r in (first, last)]
    return (
        f"The most frequent tenth of the vocabulary is {100 * first['share']:.1f} % of the targets and "
        f"{100 * first['share_of_loss']:.1f} % of the loss, at {costs[0]}; the rarest tenth costs {costs[1]}."
    )


@parts.filled((1.1, 0.19), "Which tokens does the loss fall on?", legend=False)
def pieces(ax: Any, table: pd.DataFrame) -> None:
    """The tokens that cost most altogether. Frame: `tokens.pieces`."""
    for name, colour in style.CLASSES.items():
        rows = table[table["class"] == name]
        if len(rows):
            ax.barh(rows.index, 100 * rows["share_of_loss"], height=0.7, color=colour, label=name)
    for y, row in enumerate(table.to_dict("records")):
        text = f"{row['targets']:,} x {row['bits_per_target']:.2f} bits"
        style.note(ax, text, (100 * row["share_of_loss"], y), (4, 0), fontsize=7)
    parts.rows_axis(ax, table["piece"])
    ax.set_yticks(range(len(table)), table["piece"], parse_math=False)
    ax.set_xlabel("share of the loss (%)")
    ax.set_xlim(0, 1.25 * ax.dataLim.x1)
    ax.legend(loc="lower right")


def say_pieces(table: pd.DataFrame) -> str:
    share, loss, first = table["share"].sum(), table["share_of_loss"].sum(), table.iloc[0]
    return (
        f"These {len(table)} tokens are {100 * share:.1f} % of targets and {100 * loss:.1f} % of the loss; the first "
        f"is {first['piece']} with {100 * first['share_of_loss']:.1f} %."
    )


FIGURES = {
    "tokens-histogram": (histogram, say_histogram),
    "tokens-exceedance": (exceedance, say_exceedance),
    "tokens-concentration": (concentration, say_concentration),
    "tokens-classes": (classes, say_classes),
    "tokens-frequency": (frequency, say_frequency),
    "tokens-pieces": (pieces, say_pieces),
}
