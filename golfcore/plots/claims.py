"""The claims ledger as a figure: how the published claims of each system fare."""

import pandas as pd
from matplotlib.figure import Figure

from golfcore.analysis.claims import CONFIRMED, OPEN, OPPOSITE, REFUTED, SAME
from golfcore.analysis.ledger import CONFOUNDED
from golfcore.plots import parts, style
from golfcore.plots.style import BLACK, BLUE, GREEN, ORANGE, PALE, RED

LOOKS = {CONFIRMED: GREEN, SAME: BLUE, CONFOUNDED: ORANGE, OPPOSITE: BLACK, REFUTED: RED, OPEN: PALE}


def verdicts(table: pd.DataFrame) -> Figure:
    """Verdicts of each system's claims, counted. Frame: `ledger.ledger`."""
    systems = list(dict.fromkeys(table["system"]))
    fig = style.figure(1.3 + 0.32 * len(systems), "What became of the published claims?")
    ax = fig.subplots()
    for y, system in enumerate(systems):
        counts = table.loc[table["system"] == system, "verdict"].value_counts()
        parts.stacked(ax, y, {v: (float(counts.get(v, 0)), c) for v, c in LOOKS.items()}, f"{counts.sum()}")
    parts.rows_axis(ax, systems)
    ax.set_xlabel("claims")
    parts.legend_below(fig, [ax])
    return fig


def say_verdicts(table: pd.DataFrame) -> str:
    counts = table["verdict"].value_counts()
    said = ", ".join(f"{counts[v]} {v}" for v in LOOKS if v in counts)
    hours = table["h100_hours"].fillna(0)
    return (
        f"Of {len(table)} published claims {said}. Those left could be settled on one H100 in {hours.max():,.0f} hours "
        f"at most each, {int((hours[hours > 0] <= 24).sum())} of {int((hours > 0).sum())} within a day."
    )


FIGURES = {"claims-ledger": (verdicts, say_verdicts)}
