"""The figures of rate and distortion, and what each says: golfcore.analysis.rates makes the frames."""

from typing import Any

import pandas as pd

from golfcore.analysis.rates import SHANNON, at_equal
from golfcore.plots import parts, style
from golfcore.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED
from golfcore.plots.weights import ROLES

LOOKS = {
    "published": ("published rule", BLACK, "s"),
    "clip": ("clips", GREY, "o-"),
    "floor": ("floors 1/15 to 1/127", BLACK, "s:"),
    "sigma": ("one step", ORANGE, "o-"),
    "measured": ("measured", BLUE, "o-"),
    "measured, coder": ("and for the coder", GREEN, "o-"),
    "measured, coder, table": ("and embedding by GPTQ", PINK, "o-"),
}


@parts.filled(3.4, "What does a bit buy?")
def curves(ax: Any, table: pd.DataFrame) -> None:
    """Cost against bits for every rule, with the bound. Frame: `rates.curve`."""
    for rule, (label, colour, look) in LOOKS.items():
        rows = table[(table["rule"] == rule) & (table["difference"] > 0)]
        ax.plot(rows["bits"], rows["difference"], look, ms=4, color=colour, label=label)
    best = table[(table["rule"] == "measured") & (table["difference"] > 0)]
    ax.plot(best["bits"] - SHANNON, best["difference"], ":", color=RED, label="bound of measured")
    ax.set_yscale("log")
    ax.set_xlabel("bits a coded value in the file")
    ax.set_ylabel("nats more")


def say_curves(table: pd.DataFrame) -> str:
    base = table[table["rule"] == "published"].iloc[0].to_dict()
    bits, cost = at_equal(table, "measured", "bits"), at_equal(table, "measured")
    fewer = f"{1 - bits / base['bits']:.0%} fewer bytes at its cost" if pd.notna(bits) else "its cost is off the curve"
    less = f"{cost / base['difference']:.2f} of its cost" if pd.notna(cost) else "no step that was tried"
    return (
        f"The published rule takes {base['bits']:.2f} bits under LZMA and costs, in nats, {style.effect(base)}. "
        f"Steps as measured: {fewer}; at its bytes {less}. The bound lies 0.255 bits lower."
    )


@parts.filled(2.7, "What do the coders leave on the table?")
def coders(ax: Any, table: pd.DataFrame) -> None:
    """The same codes under every coder, less their entropy. Frame: `rates.curve`."""
    rows = table[table["rule"].isin(("sigma", "measured"))]
    looks = {"bits": ("golfcore", BLUE), "lzma_bits": ("LZMA", ORANGE), "zstd_bits": ("zstandard", GREEN)}
    for column, (label, colour) in looks.items():
        ax.plot(
            rows["entropy_bits"], 100 * (rows[column] / rows["entropy_bits"] - 1), "o", ms=4, color=colour, label=label
        )
    ax.axhline(0, color=BLACK, lw=0.8)
    ax.set_xlabel("entropy of the codes of each tensor, bits a value")
    ax.set_ylabel("% above it")


def say_coders(table: pd.DataFrame) -> str:
    above = {c: (table[f"{c}_bits" if c else "bits"] / table["entropy_bits"] - 1).mean() for c in ("", "lzma", "zstd")}
    return (
        f"Above the entropy of the codes, mean over rules: golfcore {above['']:+.1%} with its tables, LZMA "
        f"{above['lzma']:+.1%}, zstandard {above['zstd']:+.1%} (a coder that adapts can be below)."
    )


@parts.filled(2.9, "Which tensor gets which step?", legend=False)
def widths(ax: Any, table: pd.DataFrame) -> None:
    """Steps by measurement, tensor by tensor. Frame: `rates.widths`."""
    names = [*ROLES, *(n for n in table["role"].unique() if n not in ROLES)]
    for i, role in enumerate(names):
        rows = table[table["role"] == role]
        shade = rows["block"].fillna(0).astype(float)
        ax.scatter(rows["relative"], [i] * len(rows), c=shade, cmap="viridis", vmin=0, s=28)
    ax.axvline(1, color=BLACK, lw=0.8)
    parts.rows_axis(ax, names)
    ax.set_xscale("log", base=2)
    ax.set_xlabel("step over the mean step (light: later blocks)")


def say_widths(table: pd.DataFrame) -> str:
    least, most = (table.loc[getattr(table["relative"], which)()] for which in ("idxmin", "idxmax"))
    return (
        f"The finest step, {least['relative']:.2f} of the mean, goes to {least['name']}, the coarsest, "
        f"{most['relative']:.1f}, to {most['name']}: rounding them alone moves the predictions by {least['moved']:.2g} "
        f"and {most['moved']:.2g} nats."
    )


@parts.filled(3.0, "Could a byte be spent better than on finer steps?")
def spent(ax: Any, table: pd.DataFrame) -> None:
    """What else a byte could be spent on, beside finer steps. Frame: `spending.spending`."""
    for what, colour in style.colours(table["what"]).items():
        rows = table[table["what"] == what].sort_values("bytes")
        ax.plot(rows["bytes"] / 1000, rows["difference"], "o-", ms=4, color=colour, label=what)
    ax.set_xlabel("kB of the file")
    ax.set_ylabel("nats more")


def say_spent(table: pd.DataFrame) -> str:
    rows = table[table["over_finer"].notna()] if "over_finer" in table else table[:0]
    if rows.empty:
        return "Nothing that was tried lies between two of the finer steps in bytes."
    renamed = rows.assign(difference=rows["over_finer"], low=rows["finer_low"], high=rows["finer_high"])
    said = [f"{row['what']} ({row['amount']:g}) {style.effect(row)}" for row in renamed.to_dict("records")]
    pays = [text for text, high in zip(said, renamed["high"], strict=True) if pd.notna(high) and high < 0]
    return (
        f"Nats more than finer steps of as many bytes: {'; '.join(said)}. "
        f"{'Better beyond doubt: ' + '; '.join(pays) if pays else 'None is better beyond doubt'}."
    )


FIGURES = {
    "rounding-spent": (spent, say_spent),
    "rounding-curves": (curves, say_curves),
    "rounding-coders": (coders, say_coders),
    "rounding-widths": (widths, say_widths),
}
