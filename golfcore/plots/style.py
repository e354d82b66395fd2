"""How figures look: names, colours and order of everything that is drawn, and files that come out the same each time.

Colours are Okabe and Ito's, which stay apart for colour-blind readers and in grey.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from golfcore.analysis.table import Row, Table, number, write_csv
from golfcore.base import files

WIDTH = 6.9  # inches: the text width of a paper

BLACK, GREY, PALE = "#222222", "#767676", "#cfcfcf"
BLUE, GREEN, ORANGE, RED, PINK = "#0072b2", "#009e73", "#e69f00", "#d55e00", "#cc79a7"

MEASURES = {  # order, label and colour of the numbers of a run
    "float": ("float weights", GREY),
    "static": ("(a) quantized", BLUE),
    "sliding": ("(b) sliding window", GREEN),
    "ttt": ("(c) sliding + TTT", RED),
    "bigram": ("interpolated bigram", PINK),
}
CLASSES = ["word start", "within word", "byte", "control"]
HASHING = {"shared": ("shared", GREY), "split": ("split", BLUE)}
PARTS = {"all": ("shared", GREY), "word start": ("split: word starts", RED), "within word": ("split: the rest", BLUE)}
GROUPS = {"matrices": BLUE, "tables": GREEN, "the rest of the file": ORANGE, "code": GREY}
EVENTS = {"qat": "QAT on", "warmdown": "warmdown", "cap": "time is up"}

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
    """Label and colour of a measure; other protocols than the three go by their own name."""
    return MEASURES.get(name, (name, ORANGE))


def figure(height: float) -> Figure:
    """An empty figure as wide as the text; no window, no global state."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def title(fig: Figure, question: str) -> None:
    fig.suptitle(question, x=0.01, ha="left", fontsize=10, fontweight="bold", color=BLACK)


def subtitle(ax: Axes, text: str) -> None:
    ax.set_title(text, fontweight="normal", fontsize=8, color=GREY)


def signed(value: float) -> str:
    """A difference with four decimals and its sign, unless it rounds to nothing."""
    text = f"{value:+.4f}"
    return text[1:] if float(text) == 0 else text.replace("-", "\u2212")


def note(ax: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], **look: Any) -> None:
    """Small print at a point, `offset` points (1/72 inch) away from it."""
    place: dict[str, Any] = {"fontsize": 7.5, "va": "center", **look}
    ax.annotate(text, at, xytext=offset, textcoords="offset points", **place)


def no_grid(ax: Axes, axis: Literal["x", "y"]) -> None:
    ax.grid(False, axis=axis)


def save_figure(fig: Figure, table: Table, folder: Path, name: str) -> list[Path]:
    """`name`.svg and `name`.png beside `name`.csv, the table that they draw. Equal tables give equal files."""
    out = [folder / f"{name}{suffix}" for suffix in (".svg", ".png", ".csv")]
    with drawing():
        for path, metadata in ((out[0], {"Date": None}), (out[1], {"Software": None})):
            with files.atomic_path(path) as part:
                fig.savefig(part, format=path.suffix[1:], metadata=metadata)
    write_csv(out[2], table)
    return out


def read_index(folder: Path) -> dict[str, dict]:
    """What is known of each figure in `folder` ({} if there is no index)."""
    path = folder / "index.json"
    return files.read_json(path, "an index of figures", {"*": dict}) if path.exists() else {}


def write_index(folder: Path, entries: dict[str, dict]) -> Path:
    """Add or replace entries of the folder's index, by name of figure."""
    path = folder / "index.json"
    files.write_json(path, json.loads(json.dumps(read_index(folder) | entries)))
    return path


def change(row: Row) -> str:
    """A row's `difference` with its interval, if it has one; "" without a difference."""
    if row.get("difference") is None:
        return ""
    text = signed(number(row, "difference"))
    if row.get("low") is None:
        return text
    return f"{text}  [{signed(number(row, 'low'))}, {signed(number(row, 'high'))}]"
