"""How figures look: one label, colour and order for everything that is drawn.

Colours are Okabe and Ito's, which stay apart for colour-blind readers and in grey.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 6.9  # inches: the text width of a paper

BLACK, GREY, PALE = "#222222", "#767676", "#cfcfcf"
BLUE, GREEN, ORANGE, RED, PINK, YELLOW = "#0072b2", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#f0e442"

MEASURES = {  # label and colour of the numbers of a run, in the order of the pipeline
    "float": ("float weights", GREY),
    "static": ("(a) no overlap", BLUE),
    "sliding": ("(b) sliding window", GREEN),
    "ttt": ("(c) sliding + TTT", RED),
    "bigram": ("interpolated bigram", PINK),
}
GAINS = {
    "context_gain": "context gain b \u2212 a",
    "ttt_gain": "adaptation gain c \u2212 b",
    "total_gain": "both, c \u2212 a",
}
LEGALITY = {  # label, colour and marker of what the ledger saw; markers tell them apart in grey, too
    "static": ("legal (static)", GREY, "o"),
    "score-first": ("legal (score-first)", BLUE, "D"),
    "train-first": ("not legal (train-first)", RED, "X"),
}
ARMS = {  # label and colour of arms of the studies that ship; others take the spare colours in turn
    "meta-none": ("none", BLACK),
    "meta-placebo": ("placebo", GREY),
    "meta-exp101": ("exp101", BLUE),
    "meta-exp106": ("exp106", RED),
    "meta-next-chunk": ("next chunk", GREEN),
    "meta-second-order": ("second order", ORANGE),
    "meta-ttt": ("as TTT", PINK),
    "conditioned-none": ("none", BLACK),
    "conditioned-weak": ("conditioning 0.1", BLUE),
    "conditioned-strong": ("conditioning 1", RED),
    "conditioned-meta": ("meta-learning", GREEN),
    "shared": ("shared", RED),
    "none": ("none", GREY),
    "split": ("split", BLUE),
    "split-trigram": ("split-trigram", GREEN),
    "frequent": ("frequent", ORANGE),
    "unique": ("unique", BLUE),
    "shallow": ("shallow", GREEN),
    "shallow-long": ("shallow-long", PINK),
    "unique-narrow": ("unique-narrow", ORANGE),
}
SPARE = (YELLOW, PINK, ORANGE, GREEN, RED, BLUE)
DISTINCT = (BLUE, RED, GREEN, ORANGE, PINK, GREY, BLACK)
CLASSES = {"word start": BLUE, "within word": ORANGE, "byte": GREEN, "control": GREY}
BANKS = {
    "qo": ("query, output", BLUE),
    "kv": ("key, value", ORANGE),
    "up": ("MLP up", GREEN),
    "down": ("MLP down", RED),
}

RC = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so text has the same width everywhere
    "font.size": 8.0,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 8.0,
    "axes.labelcolor": BLACK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#ececec",
    "grid.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": BLACK,
    "ytick.labelcolor": BLACK,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.framealpha": 0.9,
    "legend.edgecolor": "none",
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.4,
    "figure.facecolor": "white",
    "savefig.dpi": 200,
    "svg.hashsalt": "golfcore",
}


@contextmanager
def drawing() -> Iterator[None]:
    """matplotlib's defaults with our style, whatever the user's own settings are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)  # type: ignore[arg-type]  # the stubs want literal keys
        yield


def measure(name: str) -> tuple[str, str]:
    """Label and colour of a measure; other protocols than the run's own go by their name."""
    return MEASURES.get(name, (name, ORANGE))


def arms(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Label and colour of each arm, in the order of first mention."""
    found = dict.fromkeys(map(str, names))
    return {name: ARMS.get(name, (name, SPARE[i % len(SPARE)])) for i, name in enumerate(found)}


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each different name, in the order of first mention."""
    return {name: DISTINCT[i % len(DISTINCT)] for i, name in enumerate(dict.fromkeys(map(str, names)))}


def figure(height: float, question: str = "") -> Figure:
    """An empty figure as wide as the text, under its title; no window, no global state."""
    fig = Figure(figsize=(WIDTH, height), layout="constrained")
    if question:
        title(fig, question)
    return fig


def title(fig: Figure, question: str) -> None:
    fig.suptitle(question, x=0.01, ha="left", fontsize=10, fontweight="bold", color=BLACK)


def subtitle(ax: Axes, text: str) -> None:
    ax.set_title(text, fontweight="normal", fontsize=8, color=GREY)


def signed(value: float) -> str:
    """A difference with four decimals and its sign, unless it rounds to nothing."""
    text = f"{value:+.4f}"
    return text[1:] if float(text) == 0 else text.replace("-", "\u2212")


def has(row: Mapping[str, Any], column: str) -> bool:
    """Whether the row has a value in this column."""
    return not pd.isna(row.get(column))


def change(row: Mapping[str, Any]) -> str:
    """A row's `difference` with its interval `low` to `high`, if it has one; "" without a difference."""
    if not has(row, "difference"):
        return ""
    text = signed(row["difference"])
    return f"{text}  [{signed(row['low'])}, {signed(row['high'])}]" if has(row, "low") else text


def effect(row: Mapping[str, Any], column: str = "difference") -> str:
    """The same for a caption: "-0.01010 (95 % over text -0.01220 to -0.00800)"."""
    text = f"{row[column]:+.5f}"
    if not has(row, "low"):
        return f"{text} (too few chunks for an interval)"
    doubt = ", which includes no change" if row["low"] <= 0 <= row["high"] else ""
    over = row["over"] if has(row, "over") else "text"
    return f"{text} (95 % over {over} {row['low']:+.5f} to {row['high']:+.5f}{doubt})"


def note(ax: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], **look: Any) -> None:
    """Small print at a point, `offset` points (1/72 inch) away from it."""
    place: dict[str, Any] = {"fontsize": 7.5, "va": "center", **look}
    ax.annotate(text, at, xytext=offset, textcoords="offset points", **place)
