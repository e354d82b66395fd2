"""The figures of the error surface and what each says: golfcore.analysis.surface makes the frames."""

from typing import Any

import numpy as np
import pandas as pd

from golfcore.plots import parts, style
from golfcore.plots.style import BLACK, BLUE, GREY, RED

CURVES = {
    "change": ("measured", BLACK, "o-"),
    "linear": ("gradient alone", GREY, "--"),
    "quadratic": ("with curvature", RED, "-"),
}


@parts.filled(2.6, "How curved is the loss in what TTT adapts?", legend=False)
def density(ax: Any, table: pd.DataFrame) -> None:
    """Which curvatures there are. Frame: `surface.density`."""
    width = np.ptp(table["value"]) / 60 or 1.0
    at = np.linspace(table["value"].min() - 3 * width, table["value"].max() + 3 * width, 600)
    bumps = np.exp(-(((at[:, None] - table["value"].to_numpy()) / width) ** 2) / 2) / (width * np.sqrt(2 * np.pi))
    ax.fill_between(at, bumps @ table["weight"].to_numpy(), color=BLUE, lw=0, alpha=0.8)
    ax.set_yscale("symlog", linthresh=1e-4)
    ax.set_ylim(0)
    ax.set_xlabel("eigenvalue of the Hessian")
    ax.set_ylabel("density")


def say_density(table: pd.DataFrame) -> str:
    share = table.loc[table["value"] < 0, "weight"].sum()
    least, most = table["value"].min(), table["value"].max()
    return f"Eigenvalues reach from {least:.3g} to {most:.3g}; {share:.0%} of the spectrum is negative."


@parts.filled(2.6, "Does curvature predict what a step gains?")
def step(ax: Any, table: pd.DataFrame) -> None:
    """Change of the loss along the gradient, measured and predicted. Frame: `surface.along`."""
    for column, (label, colour, look) in CURVES.items():
        ax.plot(table["step"], table[column], look, ms=3, color=colour, label=label)
    ax.axhline(0, color=BLACK, lw=0.8)
    ax.set_xscale("log")
    ax.set_ylim(*parts.padded([*table["change"], 0.0], 0.3))
    ax.set_xlabel("step along the negative gradient")
    ax.set_ylabel("nats")


def say_step(table: pd.DataFrame) -> str:
    best = table.loc[table["change"].idxmin()]
    return (
        f"Of the steps tried, {best['step']:.3g} changes the loss most, by {best['change']:.5f} nats on the rows whose "
        f"gradient it follows; the gradient alone says {best['linear']:.5f}, with curvature {best['quadratic']:.5f}."
    )


@parts.filled((1.5, 0.22), "Does one model have a flatter loss?", 1, 3, sharey=True, legend=False)
def models(axes: Any, table: pd.DataFrame) -> None:
    """Curvature of several models in what TTT adapts. Frame: `surface.adaptation`, facts, with `model`."""
    looks = {"largest": "largest eigenvalue", "trace": "trace", "curvature_along": "curvature along the gradient"}
    for ax, (column, text) in zip(axes, looks.items(), strict=True):
        error = table["trace_error"] if column == "trace" else None
        ax.errorbar(table[column], range(len(table)), xerr=error, fmt="D", ms=4.5, color=BLUE)
        ax.set_xlim(*parts.padded([*table[column], 0.0], 0.15))
        style.subtitle(ax, text)
        parts.rows_axis(ax, list(table["model"]))


def say_models(table: pd.DataFrame) -> str:
    said = [
        f"{r['model']} {r['largest']:.3g} and {r['trace']:.4g} \u00b1 {r['trace_error']:.2g}"
        for r in table.to_dict("records")
    ]
    return f"Largest eigenvalue and trace (with its standard error) of the Hessian on the same rows: {'; '.join(said)}."


FIGURES = {
    "surface-models": (models, say_models),
    "surface-density": (density, say_density),
    "surface-step": (step, say_step),
}
