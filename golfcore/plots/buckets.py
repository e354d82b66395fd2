"""The figures of the n-gram table seen from inside, and what each says: golfcore.analysis.buckets makes the frames."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from golfcore.analysis.frames import only
from golfcore.plots import parts, style
from golfcore.plots.style import BLACK, BLUE, ORANGE

HASHING = {"shared": ORANGE, "split": BLUE}
CLASSES = {True: ("word start", BLUE), False: ("within word", ORANGE)}
ROUTES = {"alone": "alone in its row", "leads": "most frequent of its row", "follows": "behind a more frequent one"}


def _classes(table: pd.DataFrame) -> dict[str, tuple[str, pd.DataFrame]]:
    """Rows of the table by the class that most of their occurrences have: label -> (colour, rows)."""
    starts = table["word_start"] >= 0.5
    return {label: (colour, table[starts == kind]) for kind, (label, colour) in CLASSES.items()}


@parts.filled(2.8, "How many pairs share a row?")
def collisions(ax: Any, table: pd.DataFrame) -> None:
    """Pairs that share their row by the size of the table, beside a random hash. Frame: `buckets.sizes`."""
    for hashing, colour in HASHING.items():
        rows = only(table, hashing=hashing)
        ax.plot(rows["rows"], 100 * rows["sharing"], "o", ms=5, color=colour, label=hashing)
        ax.plot(
            rows["rows"], 100 * rows["sharing_by_chance"], "--", color=colour, lw=1, label=f"{hashing}, random hash"
        )
    ax.set_xscale("log", base=2)
    ax.set_ylim(0, 105)
    ax.set_xlabel("rows of the table")
    ax.set_ylabel("% of different pairs")


def say_collisions(table: pd.DataFrame) -> str:
    apart = (table["sharing"] - table["sharing_by_chance"]).abs().max()
    return (
        f"From {table['rows'].min():,} to {table['rows'].max():,} rows {table['sharing'].max():.0%} to "
        f"{table['sharing'].min():.0%} of the pairs share a row, within {100 * apart:.1f} points of a random hash."
    )


@parts.filled(3.0, "What does sharing a row hide?", 1, 2, sharex=True)
def bits(axes: Any, table: pd.DataFrame) -> None:
    """What a row hides of the token that follows, against its load. Frame: `Buckets.rows`."""
    for label, (colour, rows) in _classes(table).items():
        axes[0].plot(rows["times"], rows["mixed_bits"], ".", ms=2.5, alpha=0.5, color=colour, label=label)
        axes[1].plot(rows["times"], rows["norm"], ".", ms=2.5, alpha=0.5, color=colour, label=label)
    for ax, text in zip(
        axes, ("bits of the next token, pair known less row known", "norm of the row's vector"), strict=True
    ):
        ax.set_xscale("log")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel("occurrences of the row")
        style.subtitle(ax, text)


def say_bits(table: pd.DataFrame) -> str:
    weights = table["times"]
    hidden = (table["mixed_bits"] * weights).sum() / weights.sum()
    own = (table["own_bits"] * weights).sum() / weights.sum()
    return (
        f"Knowing the pair instead of its row would say {hidden:.2f} bits more of the next token, as counted in this "
        f"text, where the pair leaves {own:.2f}; counts of rare pairs overfit, so this is an upper bound."
    )


@parts.filled(2.7, "Does a pair that shares its row cost more?")
def routes(ax: Any, table: pd.DataFrame) -> None:
    """Loss after a pair by its class and by who shares its row. Frame: `buckets.routes`."""
    for offset, (kind, (label, colour)) in zip((-0.19, 0.19), CLASSES.items(), strict=True):
        rows = table[table["word_start"].astype(bool) == kind].set_index("route").reindex(ROUTES)
        nats = rows["nats"].fillna(0.0)
        counts = rows["targets"].fillna(0).astype(int)
        texts = [f"{n:.2f} ({t:,} targets)" if t else "no targets" for n, t in zip(nats, counts, strict=True)]
        parts.bars(ax, list(nats), texts, (colour, label), offset)
    parts.rows_axis(ax, list(ROUTES.values()))
    ax.margins(x=0.2)
    ax.set_xlabel("nats of the target that follows the pair")


def say_routes(table: pd.DataFrame) -> str:
    by = table.assign(total=table["nats"] * table["targets"]).groupby("route")[["total", "targets"]].sum()
    nats = by["total"] / by["targets"]
    said = ", ".join(f"{nats[route]:.2f} where it is {text}" for route, text in ROUTES.items() if route in nats)
    return (
        f"The target after a pair costs {said} (nats); rare pairs share their rows with frequent ones and are harder."
    )


def removals(table: pd.DataFrame) -> Figure:
    """Loss without parts of the n-gram embedding. Frame: `buckets.removals`."""
    rows = table[table["removed"] != "nothing"].reset_index(drop=True)
    fig = style.figure(1.3 + 0.3 * len(rows), "What does the model lose without its n-gram table?")
    ax = fig.subplots()
    parts.forest(ax, rows, [parts.Mark(BLACK)] * len(rows))
    parts.rows_axis(ax, list(rows["removed"]))
    ax.set_xlabel("nats more than the model as it is")
    return fig


def say_removals(table: pd.DataFrame) -> str:
    rows = table[table["removed"] != "nothing"].to_dict("records")
    said = "; ".join(f"without the {row['removed']} {style.effect(row)}" for row in rows)
    whole = table["nats"].iloc[0]
    return f"Nats a target {said}, of {whole:.3f}: what a model trained with it misses, not what it gained."


FIGURES = {
    "buckets-collisions": (collisions, say_collisions),
    "buckets-bits": (bits, say_bits),
    "buckets-routes": (routes, say_routes),
    "buckets-removals": (removals, say_removals),
}
