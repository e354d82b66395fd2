"""More figures of weight space, and what each says: frames of analysis.models, geometry, divergence, weight_space."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from golfcore.analysis import divergence as diverging
from golfcore.plots import parts, style
from golfcore.plots.style import BANKS, BLACK, BLUE, GREY, PALE
from golfcore.plots.weights import ROLES, first_pairs


def flat_map(table: pd.DataFrame) -> Figure:
    """Models in the plane by the distances of their matrices. Frame: `models.flat_map`."""
    fig = style.figure(3.0, "How far apart are the models?")
    ax = fig.subplots()
    x, y, norm = table["x"].iloc[0], table["y"].iloc[0], float(table["norm"].mean())
    turn = np.linspace(0, 2 * np.pi, 200)
    reach = 2**0.5 * norm
    ax.plot(x + reach * np.cos(turn), y + reach * np.sin(turn), color=PALE, label="\u221a2 norms from the first")
    for name, colour in style.colours(table["model"]).items():
        rows = table[table["model"] == name]
        ax.plot(rows["x"], rows["y"], "o", ms=6, color=colour, label=name)
    ax.set_aspect("equal")
    ax.margins(0.1)
    fig.legend(*ax.get_legend_handles_labels(), loc="outside right center")
    return fig


def say_flat_map(table: pd.DataFrame) -> str:
    points, norm = table[["x", "y"]].to_numpy(), float(table["norm"].mean())
    far = np.linalg.norm(points[:, None] - points[None], axis=-1)[np.triu_indices(len(points), 1)]
    return (
        f"Distances between the matrices of {len(table)} models are {far.min() / norm:.2f} to {far.max() / norm:.2f} "
        f"norms in this plane, which shows {table['kept'].iloc[0]:.0%} of their squares; independent models of equal "
        "norms lie 1.41 norms apart."
    )


def pairs(table: pd.DataFrame) -> Figure:
    """Overlap of leading subspaces by pair of models, side and role. Frame: `geometry.overlaps`."""
    rows = table[table["k"] == table["k"].min()]
    grid = rows.pivot_table("score", "models", ["side", "role"], sort=False)
    fig = style.figure(1.5 + 0.28 * len(grid), "Which models share directions?")
    axes = fig.subplots(1, 2, sharey=True)
    for ax, (side, what) in zip(axes, (("left", "outputs"), ("right", "inputs")), strict=True):
        cells = grid[side].reindex(columns=list(ROLES))
        image = ax.imshow(cells, cmap="viridis", vmin=0, vmax=1, aspect="auto")
        ax.set_xticks(range(len(cells.columns)), cells.columns, rotation=45, ha="right")
        ax.set_yticks(range(len(cells)), cells.index)
        ax.grid(False)
        style.subtitle(ax, f"spaces of {what}, {rows['k'].iloc[0]} dimensions")
    fig.colorbar(image, ax=axes, label="0 by chance, 1 equal")
    return fig


def say_pairs(table: pd.DataFrame) -> str:
    means = table[table["k"] == table["k"].min()].groupby("models", sort=False)["score"].mean()
    said = ", ".join(f"{name} {value:.2f}" for name, value in means.items())
    return f"Overlap above chance, mean over roles, sides and blocks: {said}."


def slots(table: pd.DataFrame) -> Figure:
    """Overlap by layer and kind of matrix, less chance. Frame: `geometry.overlaps`."""
    rows = table[table["k"] == table["k"].min()]
    fig = style.figure(2.9, "Where in the network are directions shared?")
    axes = fig.subplots(1, 2, sharey=True)
    for ax, side in zip(axes, ("left", "right"), strict=True):
        cells = rows[rows["side"] == side].pivot_table("score", "role", "block").reindex(list(ROLES))
        image = ax.imshow(cells, cmap="viridis", vmin=0, aspect="auto")
        ax.set_yticks(range(len(cells)), cells.index)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(False)
        ax.set_xlabel("block")
        style.subtitle(ax, "outputs" if side == "left" else "inputs")
        fig.colorbar(image, ax=ax)
    return fig


def say_slots(table: pd.DataFrame) -> str:
    by = table[table["k"] == table["k"].min()].groupby("block")["score"].mean()
    return (
        f"Mean over pairs of models, roles and sides, overlap above chance goes from {by.iloc[0]:.2f} in the first "
        f"block to {by.iloc[-1]:.2f} in the last."
    )


@parts.filled(3.6, "How do the cosines fall off?", 2, 3, sharex=True, sharey=True)
def angles(axes: Any, table: pd.DataFrame) -> None:
    """Cosines of the principal angles, all of them, with the band of chance. Frame: `geometry.angle_spectra`."""
    for ax, role in zip(axes, ROLES, strict=True):
        rows = table[table["role"] == role]
        band = rows.groupby("index")[["chance_low", "chance_high"]].mean()
        ax.fill_between(band.index, band["chance_low"], band["chance_high"], color=PALE, lw=0, label="chance")
        for name, colour in style.colours(first_pairs(rows)["models"]).items():
            line = rows[rows["models"] == name].groupby("index")["cosine"].mean()
            ax.plot(line.index, line, color=colour, label=name)
        style.subtitle(ax, role)
    axes[0].set_ylim(0, 1.05)
    axes[3].set_xlabel("principal angle")
    axes[3].set_ylabel("cosine")


def say_angles(table: pd.DataFrame) -> str:
    outside = (table["cosine"] > table["chance_high"]).groupby(table["models"], sort=False).mean()
    said = ", ".join(f"{share:.0%} ({name})" for name, share in outside.items())
    return f"Cosines above the 97.5 % of chance, over all roles and blocks, spaces of outputs: {said}."


@parts.filled(2.9, "What spectra do banks have, and what do matrices have?", 1, 2, sharey=True, legend=False)
def singular(axes: Any, table: pd.DataFrame) -> None:
    """Singular values of banks as published, and of the matrices in them. Frame: `geometry.singular_values`."""
    first = table[table["model"] == table["model"].iloc[0]]
    for bank, (label, colour) in BANKS.items():
        rows = first[(first["role"] == bank) & first["block"].isna()]
        axes[0].plot(rows["rank"], rows["share"], "o-", ms=3, color=colour, label=label)
    for role, colour in ROLES.items():
        line = first[(first["role"] == role) & first["block"].notna()].groupby("rank")["share"].mean()
        axes[1].plot(line.index, line, color=colour, label=role)
    for ax, text in zip(axes, ("banks, a row for each slot", "single matrices, mean over blocks"), strict=True):
        ax.set_xlabel("rank")
        ax.set_ylim(0, 1.05)
        style.subtitle(ax, text)
        ax.legend(loc="lower left" if ax is axes[0] else "upper right", fontsize=6.5)
    axes[0].set_ylabel("share of the largest")


def say_singular(table: pd.DataFrame) -> str:
    banks = table[table["block"].isna()].groupby(["model", "role"])["share"].min()
    single = table[table["block"].notna()].groupby(["model", "role", "block"])["share"].min()
    return (
        f"The smallest singular value of a bank is {banks.min():.2f} to {banks.max():.2f} of its largest, that of a "
        f"matrix {single.min():.1e} to {single.max():.2f}: the published condition is one of layers' norms."
    )


@parts.filled(2.8, "What are the published spectra made of?", 1, 4)
def norms(axes: Any, table: pd.DataFrame) -> None:
    """Norm of every slot by model. Frame: `geometry.slot_norms`."""
    for ax, (bank, (label, _)) in zip(axes, BANKS.items(), strict=True):
        rows = table[table["bank"] == bank]
        names = style.colours(rows["model"])
        for place, (name, colour) in enumerate(names.items()):
            own = rows[rows["model"] == name]
            ax.bar(
                own["slot"] + 0.8 * (place / len(names) - 0.5), own["norm"], 0.8 / len(names), color=colour, label=name
            )
        ax.set_xlabel("slot")
        ax.grid(False, axis="x")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        style.subtitle(ax, label)
    axes[0].set_ylabel("norm")


def say_norms(table: pd.DataFrame) -> str:
    by = table.groupby(["bank", "slot"])["norm"]
    spread, between = by.mean().groupby("bank").agg(lambda v: v.max() / v.min()), (by.max() / by.min()).max()
    said = ", ".join(f"{BANKS[b][0]} {v:.2f}" for b, v in spread.items())
    return (
        f"Largest over smallest slot, mean of models: {said}; between models the same slot differs up to "
        f"{between:.2f}-fold."
    )


@parts.filled(2.6, "Does the norm of the midpoint say more than the cosine?")
def midpoint(ax: Any, table: pd.DataFrame) -> None:
    """The midpoint's norm against the cosine, with its closed form. Frame: `weight_space.tables`, with `source`."""
    at = np.linspace(-0.2, 1, 200)
    ax.plot(at, ((1 + at) / 2) ** 0.5, color=GREY, lw=1, label="\u221a((1 + c) / 2), equal norms")
    for source, (colour, marker) in {"published": (BLACK, "x"), "here": (BLUE, "o")}.items():
        rows = table[table["source"] == source]
        ax.plot(rows["cosine"], rows["mid_over_a"], marker, ms=4, ls="none", color=colour, label=source)
    ax.set_xlabel("cosine of the two tensors")
    ax.set_ylabel("norm of the midpoint")


def say_midpoint(table: pd.DataFrame) -> str:
    apart = (table["mid_over_a"] - table["predicted"]).abs().groupby(table["source"]).max()
    said = " and ".join(f"{value:.3f} ({source})" for source, value in apart.items())
    return f"No midpoint is further from its closed form than {said}: the number is the cosine again, not a loss."


def divergence(table: pd.DataFrame) -> Figure:
    """Cosine between two runs over steps. Frame: `divergence.of_sweep`."""
    rows = table[table["part"] == "matrices"]
    bases = list(dict.fromkeys(rows["base"]))
    fig = style.figure(2.9, "How do two runs part?")
    axes = np.atleast_1d(fig.subplots(1, len(bases), sharey=True))
    changes = style.colours(rows["change"].str.replace("^.*-", "", regex=True))
    for ax, base in zip(axes, bases, strict=True):
        own = rows[rows["base"] == base]
        for _, line in own.groupby("pair", sort=False):
            change = str(line["change"].iloc[0]).split("-")[-1]
            drawn = ax.get_legend_handles_labels()[1]
            ax.plot(line["step"], line["cosine"], color=changes[change], label=None if change in drawn else change)
        ax.axhline(0, color=BLACK, lw=0.8)
        ax.set_xlabel("step")
        style.subtitle(ax, base)
    axes[0].set_ylabel("cosine of all block matrices")
    parts.legend_below(fig, axes)
    return fig


def say_divergence(table: pd.DataFrame) -> str:
    said = [
        f"{row['base']} and {row['change']} {row['cosine']:.2f} ({row['pairs']} pairs)"
        for row in diverging.last(table).to_dict("records")
    ]
    return f"At the last step kept the cosine of all block matrices is: {'; '.join(said)}."


def plane(table: pd.DataFrame) -> Figure:
    """Losses on the plane through three models. Frame: `surface.plane`."""
    fig = style.figure(2.9, "What lies between three models?")
    ax = fig.subplots()
    grid = table.pivot_table("nats", "v", "u")
    image = ax.contourf(grid.columns, grid.index, grid, levels=20, cmap="viridis")
    for x, y, name in ((0, 0, "first"), (1, 0, "second"), (0, 1, "third")):
        ax.plot([x], [y], "o", ms=5, color="white", mec=BLACK)
        style.note(ax, name, (x, y), (5, 6), color="white")
    ax.grid(False)
    ax.set_xlabel("towards the second model")
    ax.set_ylabel("towards the third")
    fig.colorbar(image, ax=ax, label="nats")
    return fig


def say_plane(table: pd.DataFrame) -> str:
    inside = table[(table["u"] >= 0) & (table["v"] >= 0) & (table["u"] + table["v"] <= 1)]
    low, high = inside["nats"].min(), inside["nats"].max()
    return f"Within the triangle the loss rises to {high:.2f} nats, from {low:.2f} at its best."


FIGURES = {
    "weights-map": (flat_map, say_flat_map),
    "weights-pairs": (pairs, say_pairs),
    "weights-slots": (slots, say_slots),
    "weights-angles": (angles, say_angles),
    "weights-singular": (singular, say_singular),
    "weights-norms": (norms, say_norms),
    "weights-midpoint": (midpoint, say_midpoint),
    "weights-divergence": (divergence, say_divergence),
    "weights-plane": (plane, say_plane),
}
