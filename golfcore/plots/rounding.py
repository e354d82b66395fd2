"""The figures of quantization seen from inside, and what each says: golfcore.analysis.rounding makes the frame."""

from typing import Any

import pandas as pd

from golfcore.analysis.frames import only
from golfcore.analysis.rounding import floor_error
from golfcore.plots import parts, style
from golfcore.plots.style import BLACK, BLUE, GREY, ORANGE
from golfcore.plots.weights import ROLES

RULES = {"nearest": ("to nearest", ORANGE), "gptq": ("GPTQ", BLUE)}


def _single(table: pd.DataFrame, floor: bool) -> pd.DataFrame:
    return table[(table["matrix"] != "all") & (table["floor"].astype(bool) == floor)]


def _whole(table: pd.DataFrame, rule: str, floor: bool) -> dict:
    rows = only(table, matrix="all", rule=rule)
    return rows[rows["floor"].astype(bool) == floor].iloc[0].to_dict()


@parts.filled(2.9, "Which matrices cost what?")
def cost(ax: Any, table: pd.DataFrame) -> None:
    """Nats that rounding each kind of matrix costs, one matrix at a time, without the floor. Frame: `by_matrix`."""
    sums = _single(table, False).groupby(["role", "rule"])["difference"].sum().unstack()
    parts.bar_pairs(ax, sums.loc[list(ROLES)], RULES, "+.2g")
    ax.set_xlabel("nats a target, summed over blocks, each matrix rounded alone")


def say_cost(table: pd.DataFrame) -> str:
    said = [f"{label} {style.effect(_whole(table, rule, False))}" for rule, (label, _) in RULES.items()]
    by = only(_single(table, False), rule="gptq").groupby("role")["difference"].sum()
    return f"All matrices together, nats a target: {'; '.join(said)}. By GPTQ the dearest kind is {by.idxmax()}."


@parts.filled(2.7, "What does the published quantization error measure?")
def errors(ax: Any, table: pd.DataFrame) -> None:
    """Squared errors of weights, with and without the floor, and the published constant. Frame: `by_matrix`."""
    looks = {True: ("with the floor 1/31", GREY, "s"), False: ("without", BLUE, "o")}
    for floor, (label, colour, marker) in looks.items():
        rows = only(_single(table, floor), rule="nearest")
        for i, role in enumerate(ROLES):
            own = rows[rows["role"] == role]
            ax.plot(own["mse"], [i] * len(own), marker, ms=4, alpha=0.6, color=colour, label=None if i else label)
    ax.axvline(floor_error(31), color=BLACK, lw=0.8, ls="--", label="(1/31)\u00b2/12")
    parts.rows_axis(ax, list(ROLES))
    ax.set_xscale("log")
    ax.set_xlabel("mean squared error of the weights, rounded to nearest")


def say_errors(table: pd.DataFrame) -> str:
    with_floor, without = (only(_single(table, floor), rule="nearest")["mse"] for floor in (True, False))
    return (
        f"With the floor every matrix has an error of {with_floor.min():.3g} to {with_floor.max():.3g}, beside the "
        f"constant {floor_error(31):.3g}; without, {without.min():.2g} to {without.max():.2g}."
    )


@parts.filled(3.0, "How many bits do the codes hold?", 1, 2, sharex=True, sharey=True)
def bits(axes: Any, table: pd.DataFrame) -> None:
    """Entropy of the codes beside a normal variable's. Frame: `by_matrix`."""
    for ax, floor in zip(axes, (True, False), strict=True):
        for rule, (label, colour) in RULES.items():
            rows = only(_single(table, floor), rule=rule)
            ax.plot(rows["gaussian_bits"], rows["bits"], "o", ms=3, alpha=0.7, color=colour, label=label)
        ends = parts.padded([*table["bits"], *table["gaussian_bits"]])
        ax.plot(ends, ends, color=GREY, lw=0.8, ls="--")
        ax.set_xlabel("normal variable, bits a weight")
        style.subtitle(ax, "with the floor" if floor else "without")
    axes[0].set_ylabel("entropy of the codes, bits a weight")


def say_bits(table: pd.DataFrame) -> str:
    held = {word: _whole(table, "gptq", floor)["bits"] for word, floor in (("with", True), ("without", False))}
    said = [f"{value:.2f} bits {word} the floor" for word, value in held.items()]
    apart = (table["bits"] - table["gaussian_bits"]).abs().max()
    return f"Codes of GPTQ hold {' and '.join(said)}; no matrix is further than {apart:.2f} from a normal variable."


USED = 1e-3  # share of weights


@parts.filled(2.8, "Which codes are used?", 1, 2, sharey=True)
def codes(axes: Any, table: pd.DataFrame) -> None:
    """Histogram of code magnitudes with and without the floor. Frame: `rounding.codes`."""
    for ax, floor in zip(axes, (True, False), strict=True):
        for role, colour in ROLES.items():
            rows = table[(table["role"] == role) & (table["floor"].astype(bool) == floor)]
            ax.plot(rows["magnitude"], rows["share"].clip(lower=1e-6), color=colour, label=role)
        ax.set_yscale("log")
        ax.set_xlabel("magnitude of the code")
        style.subtitle(ax, "with the published floor" if floor else "without")
    axes[0].set_ylabel("share of weights")


def say_codes(table: pd.DataFrame) -> str:
    used = table[table["share"] > USED].groupby(table["floor"].astype(bool))["magnitude"].max()
    return (
        f"Of codes up to {table['magnitude'].max() - 1}, no kind of matrix has {USED:.1%} of its weights at one above "
        f"{used[True]} with the floor, or above {used[False]} without."
    )


@parts.filled(2.7, "What made the published artifact fit?")
def spreads(ax: Any, table: pd.DataFrame) -> None:
    """Bits under the published floor against the spread of weights. Frame: `rounding.spreads`."""
    line = table[table["source"] == "normal"]
    ax.plot(line["rms"], line["lzma_bits"], color=GREY, label="normal numbers, LZMA")
    ax.plot(line["rms"], line["bits"], "--", color=GREY, label="normal numbers, entropy")
    for role, colour in ROLES.items():
        rows = only(table, source="here", role=role)
        ax.plot(rows["rms"], rows["lzma_bits"], "o", ms=3.5, color=colour, label=role)
    ax.set_xscale("log")
    ax.set_xlabel("root mean square of the weights")
    ax.set_ylabel("bits a weight at scales of 1/31")


def say_spreads(table: pd.DataFrame) -> str:
    here = table[table["source"] == "here"]
    return (
        "At a fixed step of 1/31 size follows the spread of weights: matrices of this model have a root mean square of "
        f"{here['rms'].min():.3f} to {here['rms'].max():.3f} and take {here['lzma_bits'].min():.2f} to "
        f"{here['lzma_bits'].max():.2f} bits a weight under LZMA."
    )


FIGURES = {
    "rounding-codes": (codes, say_codes),
    "rounding-spreads": (spreads, say_spreads),
    "rounding-cost": (cost, say_cost),
    "rounding-errors": (errors, say_errors),
    "rounding-bits": (bits, say_bits),
}
