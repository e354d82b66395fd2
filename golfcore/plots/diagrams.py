"""How the published systems are wired, drawn from their presets: layers and skips, a meta step, adaptation."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from golfcore import config
from golfcore.analysis.frames import frame
from golfcore.plots import style
from golfcore.plots.style import BLACK, BLUE, GREY, PALE, RED

LIVE, DEAD = "live", "dead"
PANELS = {
    "layers": "layers of exp101 and their skips",
    "meta": "one meta call, and what each system changes of it",
    "adaptation": "scoring comes before adapting, chunk by chunk",
}
META = (  # box, where it stands, and what it says
    ("x", 0.0, 1.0, "inner half"),
    ("y", 0.0, 0.0, "outer half"),
    ("inner", 1.0, 1.0, "inner step\n(none: placebo)"),
    ("moved", 2.0, 1.0, "moved weights"),
    ("post", 2.0, 0.0, "loss after"),
    ("pre", 1.0, -0.6, "loss before\n(exp106)"),
    ("grad", 3.0, -0.3, "outer gradient"),
)
META_EDGES = (("x", "inner"), ("inner", "moved"), ("moved", "post"), ("y", "post"), ("y", "pre"), ("post", "grad"))
SECOND_ORDER = ("moved", "grad")  # through the inner step: second order alone; first order detaches it


def wiring(preset: str = "exp101") -> pd.DataFrame:
    """Rows of kind "box" (panel, name, x, y, text) and "edge" (panel, from, to, state: live or dead)."""
    return frame([*_layers(preset), *_meta(), *_adaptation()])


def _layers(preset: str) -> list[dict[str, object]]:
    """The second half takes the outputs of the first, the last one first, each scaled by a row of skip weights."""
    m = config.load(preset).model
    half, rows = m.n_layers // 2, list[dict[str, object]]()
    for layer in range(m.n_layers):
        x, y = (0.0, float(layer)) if layer < half else (2.0, float(2 * half - 1 - layer))
        rows.append(_box("layers", str(layer), x, y, f"layer {layer}"))
        rows += [_edge("layers", str(layer - 1), str(layer), LIVE)] if layer else []
    for row in range(m.n_skips):
        state = DEAD if row in m.frozen_skips else LIVE
        rows.append(_edge("layers", str(half - 1 - row), str(half + row), state))
    return rows


def _meta() -> list[dict[str, object]]:
    rows = [_box("meta", *box) for box in META]
    rows += [_edge("meta", *edge, LIVE) for edge in META_EDGES]
    return [*rows, _edge("meta", "pre", "grad", LIVE), _edge("meta", *SECOND_ORDER, DEAD)]


def _adaptation(chunks: int = 3) -> list[dict[str, object]]:
    rows = list[dict[str, object]]()
    for k in range(chunks):
        rows += [_box("adaptation", f"score {k}", 2.0 * k, 0.0, f"score chunk {k}")]
        rows += [_box("adaptation", f"adapt {k}", 2.0 * k + 1, 1.0, f"adapt on {k}")]
        rows += [_edge("adaptation", f"score {k}", f"adapt {k}", LIVE)]
        rows += [_edge("adaptation", f"adapt {k - 1}", f"score {k}", LIVE)] if k else []
        rows += [_edge("adaptation", f"adapt {k}", f"score {k}", DEAD)]
    return rows


def _box(panel: str, name: str, x: float, y: float, text: str) -> dict[str, object]:
    return {"panel": panel, "kind": "box", "name": name, "x": x, "y": y, "text": text}


def _edge(panel: str, start: str, end: str, state: str) -> dict[str, object]:
    return {"panel": panel, "kind": "edge", "name": start, "to": end, "state": state}


def diagrams(table: pd.DataFrame) -> Figure:
    """Boxes and arrows of `wiring`; dead ones are dashed: no gradient, or not allowed."""
    fig = style.figure(4.6, "How are the published systems wired?")
    axes = fig.subplot_mosaic([["layers", "meta"], ["layers", "adaptation"]], width_ratios=[1, 1.6])
    for panel, ax in axes.items():
        _panel(ax, table[table["panel"] == panel].to_dict("records"))
        style.subtitle(ax, PANELS[str(panel)])
    return fig


def _panel(ax: Axes, rows: Sequence[dict]) -> None:
    at = {row["name"]: (row["x"], row["y"]) for row in rows if row["kind"] == "box"}
    for row in rows:
        if row["kind"] == "edge":
            dead = row["state"] == DEAD
            look = {"arrowstyle": "-|>", "color": RED if dead else BLUE, "lw": 0.9, "ls": ":" if dead else "-"}
            bend = "arc3,rad=0.25" if dead else "arc3,rad=0"
            ax.annotate(
                "",
                at[row["to"]],
                at[row["name"]],
                arrowprops=look | {"connectionstyle": bend, "shrinkA": 16, "shrinkB": 16},
            )
    for row in rows:
        if row["kind"] == "box":
            look = {"boxstyle": "round,pad=0.3", "fc": "white", "ec": PALE if "score" in row["text"] else GREY}
            ax.text(row["x"], row["y"], row["text"], ha="center", va="center", fontsize=6.5, color=BLACK, bbox=look)
    xs, ys = zip(*at.values(), strict=True)
    ax.set_xlim(min(xs) - 0.6, max(xs) + 0.6)
    ax.set_ylim(max(ys) + 0.6, min(ys) - 0.6)
    ax.axis("off")


def say_diagrams(table: pd.DataFrame) -> str:
    edges = table[(table["panel"] == "layers") & (table["kind"] == "edge")]
    dead = int((edges["state"] == DEAD).sum())
    return (
        f"{dead} of exp101's skips never learn; first-order meta-learning lets no gradient through its inner step; and "
        "no chunk is scored by weights that have seen it (dotted: what does not happen)."
    )


FIGURES = {"published-wiring": (diagrams, say_diagrams)}
