"""The figures of weight space and what each says: golfcore.analysis.models makes the frames."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from golfcore.analysis.frames import only
from golfcore.plots import parts, style
from golfcore.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, PALE, PINK, RED, YELLOW

ROLES = {"query": BLUE, "key": ORANGE, "value": GREEN, "out": RED, "up": PINK, "down": YELLOW}
ALIGNED = {False: ("as trained", RED), True: ("aligned", BLUE)}


def _by_role(ax: Axes, rows: pd.DataFrame, x: str, y: str) -> None:
    """One line a role, the mean over whatever else the rows differ in."""
    for role, colour in ROLES.items():
        line = only(rows, role=role).groupby(x)[y].mean()
        ax.plot(line.index, line, "o-", ms=3, color=colour, label=role)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def first_pairs(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of pairs with the first model ("a vs b", published "a_vs_b")."""
    first = table["models"].str.split("[ _]vs[ _]", regex=True).str[0]
    return table[first == first.iloc[0]]


def noise(table: pd.DataFrame) -> Figure:
    """Published overlaps of banks beside noise with the same norms. Frame: `weight_space.noise`."""
    fig = style.figure(
        1.3 + 0.22 * len(first_pairs(table)), "Do the published overlaps say more than the norms of layers?"
    )
    ax = fig.subplots()
    rows = first_pairs(table).to_dict("records")
    for y, row in enumerate(rows):
        ax.plot([row["noise_low"], row["noise_high"]], [y, y], color=PALE, lw=7, solid_capstyle="butt")
        ax.plot([row["noise_overlap"]], [y], "|", color=GREY, ms=9, label=None if y else "noise: mean and range")
        ax.plot([row["overlap"]], [y], "D", color=BLUE, ms=5, ls="none", label=None if y else "these models")
    parts.rows_axis(ax, [f"{row['bank']}, {row['models'].replace('_vs_', ' and ')}" for row in rows])
    ax.set_xlabel("mean cosine between leading subspaces of slots, as published")
    parts.legend_below(fig, [ax])
    return fig


def say_noise(table: pd.DataFrame) -> str:
    inside = int(table["overlap"].between(table["noise_low"], table["noise_high"]).sum())
    return (
        f"{inside} of {len(table)} overlaps of banks lie in the range of independent noise whose slots have the same "
        "norms: such a number says nothing else about two models."
    )


@parts.filled(2.8, "How many directions does each matrix use?", 1, 2)
def spectra(axes: Any, table: pd.DataFrame) -> None:
    """Effective rank and condition of single matrices by block. Frame: `geometry.spectra`."""
    share = table.assign(share=100 * table["effective_rank"] / table[["rows", "columns"]].min(axis=1))
    _by_role(axes[0], share, "block", "share")
    _by_role(axes[1], table, "block", "condition")
    axes[0].set_ylabel("effective rank, % of full")
    axes[1].set_ylabel("condition")
    axes[1].set_yscale("log")
    for ax in axes:
        ax.set_xlabel("block")


def say_spectra(table: pd.DataFrame) -> str:
    share = (table["effective_rank"] / table[["rows", "columns"]].min(axis=1)).groupby(table["role"]).mean()
    return (
        f"Effective rank is lowest in {share.idxmin()} ({share.min():.0%} of the full one) and highest in "
        f"{share.idxmax()} ({share.max():.0%}), means over {table['model'].nunique()} models and all blocks."
    )


@parts.filled(2.8, "Do two models use the same directions?", 1, 2, sharey=True)
def overlaps(axes: Any, table: pd.DataFrame) -> None:
    """Normalised overlap of leading subspaces by their dimension, on both sides. Frame: `geometry.overlaps`."""
    for ax, side, what in zip(axes, ("left", "right"), ("outputs", "inputs"), strict=True):
        _by_role(ax, only(table, side=side), "k", "score")
        ax.axhline(0, color=BLACK, lw=0.8)
        ax.set_xlabel(f"dimensions of the leading space of {what}")
    axes[0].set_ylabel("overlap: 0 by chance, 1 equal")


def say_overlaps(table: pd.DataFrame) -> str:
    by = table.groupby(["role", "side"])["score"].mean()
    low, high = by.idxmin(), by.idxmax()
    return (
        f"Above chance, the overlap is largest for the {high[1]} spaces of {high[0]} ({by.max():.2f} on the scale from "
        f"chance to equality) and smallest for the {low[1]} spaces of {low[0]} ({by.min():.2f}), as trained, in means "
        f"over {table['models'].nunique()} pairs of models and all blocks."
    )


@parts.filled(2.9, "How much of the distance is only a choice of coordinates?")
def distances(ax: Any, table: pd.DataFrame) -> None:
    """Cosines to the first model, before and after alignment, by matrix role. Frame: `models.tables`, distances."""
    parts.bar_pairs(ax, _cosines(table), ALIGNED, ".3f")
    ax.set_xlabel("cosine to the first model, mean over blocks and models")


def _cosines(table: pd.DataFrame) -> pd.DataFrame:
    """Mean cosine by role (rows) and `aligned` (columns)."""
    named = table[table["tensor"].str.startswith("block")]
    role = named["tensor"].str.split(".").str[1]
    return named.groupby([role, named["aligned"].astype(bool)])["cosine"].mean().unstack().loc[list(ROLES)]


def say_distances(table: pd.DataFrame) -> str:
    every = only(table, tensor="matrices").astype({"aligned": bool}).groupby("aligned")["cosine"].mean()
    return (
        f"Over all block matrices the cosine to the first model is {every[False]:.3f} as trained and {every[True]:.3f} "
        "once permutations, rotations and scales that change no logit are undone."
    )


@parts.filled(2.8, "Is there a barrier between the models?")
def line(ax: Any, table: pd.DataFrame) -> None:
    """Loss above the chord between models, as trained and aligned. Frame: `models.tables`, line."""
    seen = set[bool]()
    for (aligned, _), rows in table.astype({"aligned": bool}).groupby(["aligned", "models"]):
        label, colour = ALIGNED[bool(aligned)]
        if rows["low"].notna().all():
            low, high = (rows[c].astype(float) for c in ("low", "high"))
            ax.fill_between(rows["t"], low, high, color=colour, alpha=0.2, lw=0)
        ax.plot(rows["t"], rows["excess"], "o-", ms=3, color=colour, label=None if aligned in seen else label)
        seen.add(bool(aligned))
    ax.axhline(0, color=BLACK, lw=0.8)
    ax.set_xlabel("from the first model (0) to another (1)")
    ax.set_ylabel("nats above the chord")


def say_line(table: pd.DataFrame) -> str:
    most = table.groupby(table["aligned"].astype(bool))["excess"].max()
    return (
        f"On the straight line the loss rises up to {most[False]:.2f} nats above the chord as trained and "
        f"{most[True]:.2f} after alignment."
    )


@parts.filled(2.9, "Can a matrix of another model stand in?")
def swaps(ax: Any, table: pd.DataFrame) -> None:
    """Loss with one matrix of another model in place, as trained and aligned. Frame: `models.tables`, swaps."""
    means = table.astype({"aligned": bool}).groupby(["role", "aligned"])["difference"].mean().unstack()
    parts.bar_pairs(ax, means.loc[list(ROLES)], ALIGNED, ".3f")
    ax.set_xlabel("nats a target more, mean over blocks and models")


def say_swaps(table: pd.DataFrame) -> str:
    means = table.groupby(table["aligned"].astype(bool))["difference"].mean()
    return (
        f"One matrix of another model costs {means[False]:.3f} nats as trained and {means[True]:.3f} aligned, in the "
        "mean: equal subspaces would cost nothing."
    )


@parts.filled(2.6, "Do the layers compute the same?", 1, 2, sharey=True)
def layers(axes: Any, table: pd.DataFrame) -> None:
    """What layers compute on the same tokens, between models. Frame: `functional.representations`."""
    looks = {"cka": "linear CKA", "explained": "variance that a linear map explains"}
    for ax, (column, label) in zip(axes, looks.items(), strict=True):
        for name, colour in style.colours(table["models"]).items():
            rows = table[table["models"] == name]
            ax.plot(rows["layer"], rows[column], "o-", ms=3, color=colour, label=name)
        ax.set_xlabel("layer")
        style.subtitle(ax, label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylim(0, 1.05)


def say_layers(table: pd.DataFrame) -> str:
    means = table.groupby("layer")[["cka", "explained"]].mean()
    last = means.iloc[-1]
    return (
        f"CKA is {means['cka'].iloc[0]:.2f} after the first layer, {means['cka'].min():.2f} at its lowest "
        f"and {last['cka']:.2f} after the last, of which a linear map explains {last['explained']:.0%}."
    )


@parts.filled(2.2, "Are better conditioned matrices better, or easier to adapt?", 1, 4, sharey=True, legend=False)
def conditioning(axes: Any, table: pd.DataFrame) -> None:
    """What arms that differ in conditioning are, score and gain beside the first. Frame: `models.conditioning`."""
    titles = ("condition, log ratio", "bytes, log ratio", "(b), bpb", "(c) less (b), bpb")
    looks = style.arms(table["arm"])
    for ax, measure, title in zip(axes, table["measure"].unique(), titles, strict=True):
        rows = table[table["measure"] == measure].iloc[1:].reset_index(drop=True)
        parts.forest(ax, rows, [parts.Mark(BLUE)] * len(rows))
        parts.rows_axis(ax, [looks[arm][0] for arm in rows["arm"]])
        ax.xaxis.set_major_locator(MaxNLocator(3))
        style.subtitle(ax, title)


def say_conditioning(table: pd.DataFrame) -> str:
    condition, size, score, gain = (rows.set_index("arm") for _, rows in table.groupby("measure", sort=False))
    said = [
        f"{label}: {condition['mean'][arm]:.1f}, {np.expm1(size['difference'][arm]):+.1%} bytes, (b) "
        f"{style.effect(score.loc[arm])}, (c) less (b) {style.effect(gain.loc[arm])}"
        for arm, (label, _) in list(style.arms(table["arm"]).items())[1:]
    ]
    without = condition["mean"].iloc[0]
    return f"Condition of the block matrices ({without:.1f} without) and differences: {'; '.join(said)}."


FIGURES = {
    "weights-noise": (noise, say_noise),
    "weights-spectra": (spectra, say_spectra),
    "weights-overlaps": (overlaps, say_overlaps),
    "weights-distances": (distances, say_distances),
    "weights-line": (line, say_line),
    "weights-swaps": (swaps, say_swaps),
    "weights-layers": (layers, say_layers),
    "weights-conditioning": (conditioning, say_conditioning),
}
