"""The figures of table layouts while models learn, and what each says: frames of golfcore.analysis.contention."""

from typing import Any

import pandas as pd

from golfcore.analysis.contention import ROUTES, recommendation
from golfcore.plots import parts, style
from golfcore.plots.style import BLACK

LINES = {True: "-", False: "--"}  # word starts, the rest


@parts.filled(2.8, "Which targets does a layout help, and when?", 1, 3, sharey=True)
def learning(axes: Any, table: pd.DataFrame) -> None:
    """Differences to one layout on the same targets by the route of their pairs. Frame: `contention.gains`."""
    looks = style.arms(table["arm"])
    for ax, route in zip(axes, ROUTES, strict=True):
        for arm, (label, colour) in looks.items():
            rows = table[(table["arm"] == arm) & (table["route"] == route)]
            ax.plot(rows["step"], rows["difference"], "o-", ms=2.5, color=colour, label=label)
        ax.axhline(0, color=BLACK, lw=0.8)
        ax.set_xlabel("step")
        style.subtitle(ax, f"pairs that are {route}")
    axes[0].set_ylabel("nats more than the reference")


def say_learning(table: pd.DataFrame) -> str:
    end = table[table["step"] == table["step"].max()].set_index(["arm", "route"])["difference"]
    said = [f"{arm} {', '.join(f'{end[arm, r]:+.3f} ({r})' for r in ROUTES)}" for arm in end.index.unique(0)]
    seeds = int(table["seeds"].min())
    return f"At the last step kept, nats against the reference by route, mean over {seeds} seeds: {'; '.join(said)}."


@parts.filled(2.8, "What does the model make of its table?", 1, 3)
def controls(axes: Any, table: pd.DataFrame) -> None:
    """Scale, gate and lengths of vectors over training. Frame: `contention.learning`."""
    with_table = table[table["scale"].notna()]
    for arm, (label, colour) in style.arms(with_table["arm"]).items():
        rows = with_table[with_table["arm"] == arm]
        for ax, column in zip(axes[:2], ("gate", "scale"), strict=True):
            means = rows.groupby("step")[column].mean()
            ax.plot(means.index, means, "o-", ms=2.5, color=colour, label=label)
        for starts, look in LINES.items():
            own = rows[rows["word_start"].astype(bool) == starts]
            weighted = own.assign(total=own["norm"] * own["targets"]).groupby("step")[["total", "targets"]].sum()
            axes[2].plot(weighted.index, weighted["total"] / weighted["targets"], look, color=colour)
    titles = ("word_start_boost", "bigram_scale", "length (dashed: in words)")
    for ax, title in zip(axes, titles, strict=True):
        ax.set_xlabel("step")
        style.subtitle(ax, title)


def say_controls(table: pd.DataFrame) -> str:
    end = table[(table["step"] == table["step"].max()) & table["scale"].notna()]
    means = end.groupby("arm", sort=False)[["gate", "scale"]].mean()
    said = [f"{arm} {row['gate']:.3f} and {row['scale']:.3f}" for arm, row in means.iterrows()]
    return f"At the last step kept, gate and scale are in {'; '.join(said)}. The gate begins at 1, the scale at 0.05."


@parts.filled((1.0, 0.3), "Which layout of the table is best?", legend=False)
def layouts(ax: Any, table: pd.DataFrame) -> None:
    """What each layout is worth beside the first. Frame: `compare.compare`, one measure."""
    rows = table.iloc[1:].reset_index(drop=True)
    parts.forest(ax, rows, [parts.Mark(style.ARMS.get(arm, ("", BLACK))[1]) for arm in rows["arm"]])
    parts.rows_axis(ax, list(rows["arm"]))
    ax.set_xlabel(f"bits per byte more than {table['arm'].iloc[0]} (95 % interval)")


FIGURES = {
    "buckets-learning": (learning, say_learning),
    "buckets-controls": (controls, say_controls),
    "buckets-layouts": (layouts, recommendation),
}
