"""What the cells of a study say: frames of scores, gains, context and the course of adaptation along the text.

All scores and differences are in bits per byte, lower is better. Differences count first scores only, on both sides,
whatever a published tail scores again; their intervals, of other text, are missing for fewer than MIN_CHUNKS chunks.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from golfcore.analysis import stats
from golfcore.analysis.frames import frame
from golfcore.evals.ledger import Legality
from golfcore.evals.result import EvalResult
from golfcore.runs.study import Measured, by_label

LINES = 6  # courses along the text, at most
INTERVAL = ["chunks", "low", "high", "p", "detectable"]
COLUMNS = ["label", "group", "protocol", "weights", "bpb", "reference", "difference", *INTERVAL]
COLUMNS += ["legality", "steps", "adapted", "targets", "repeats", "changes", "artifact", "config", "data", "seed"]
COLUMNS += ["note"]
SHOWN = ["label", "bpb", "reference", "difference", "low", "high", "legality", "steps", "adapted", "note"]
GAINS = {  # gain -> (cell, less this cell)
    "context": ("b", "a"),
    "adaptation": ("c", "b"),
    "both": ("c", "a"),
    "adaptation, shuffled": ("c shuffled", "b shuffled"),
    "context, float": ("b float", "a float"),
    "adaptation, float": ("c float", "b float"),
}
CONTRASTS = {"order": ("adaptation", "adaptation, shuffled"), "rounding": ("adaptation", "adaptation, float")}


def course(a: EvalResult, b: EvalResult) -> pd.DataFrame:
    """A row for each chunk with a scored byte: chunk, start, stop (targets), bytes, and what b differs from a by.

    `before` and `after` are the scores of a and b over all chunks so far, `difference` is their difference, `here` that
    on the chunk alone. ValueError: the two were recorded over other chunks.
    """
    one, other = (pd.DataFrame(r.chunks)[["chunk", "start", "stop", "nats", "bytes"]] for r in (a, b))
    if not one[["start", "stop"]].equals(other[["start", "stop"]]):
        raise ValueError(f"{a.protocol} and {b.protocol} were recorded over other chunks and do not pair")
    scored = (one["bytes"] > 0) & (other["bytes"] > 0)
    before, after, here_a, here_b = (
        chunks["nats"] / (np.log(2) * chunks["bytes"]) for chunks in (one.cumsum(), other.cumsum(), one, other)
    )
    found = other.drop(columns="nats").assign(before=before, after=after, difference=after - before)
    return found.assign(here=here_b - here_a)[scored].reset_index(drop=True)


def interval(chunks: pd.DataFrame) -> dict[str, Any]:
    """The columns INTERVAL of the difference `here` of a `course`."""
    found = stats.interval(chunks["here"].to_numpy()[None], chunks["bytes"].to_numpy())
    return {"chunks": len(chunks)} | {name: found[name] for name in INTERVAL[1:]}


# -- cells and gains


def table(measured: Sequence[Measured]) -> pd.DataFrame:
    """COLUMNS of every cell: its score, its difference to its reference, what the ledger saw, and its source.

    `steps`: optimizer steps of adaptation, `adapted`: the values that they moved, `repeats`: scores of a published tail
    beyond the first, which `bpb` counts. A cell without a result says why in `note`, one that adapted nothing too.
    """
    results = by_label(measured)
    return frame(_row(m, results.get(m.cell.reference)) for m in measured).reindex(columns=COLUMNS)


def _row(m: Measured, reference: EvalResult | None) -> dict[str, Any]:
    cell, r = m.cell, m.result
    row: dict[str, Any] = {"label": cell.label, "group": cell.group, "protocol": cell.protocol, "weights": cell.weights}
    if r is None:
        return row | {"note": m.note}
    steps, adapted = (r.coverage.get(name, {"done": 0})["done"] for name in ("ttt_steps", "ttt_adapted"))
    row |= {"bpb": float(r.bpb), "reference": cell.reference or None}
    if reference is not None:
        row |= {"difference": float(r.bpb_first - reference.bpb_first)} | interval(course(reference, r))
    row |= {"legality": str(r.legality), "steps": steps, "adapted": adapted, "targets": r.tokens, "repeats": r.repeats}
    changes = "; ".join(f"{key}={value}" for key, value in cell.changes.items())
    sources = {"artifact" if k == "weights" else k: r.source.get(k) for k in ("weights", "config", "data", "seed")}
    return row | {"changes": changes or None, **sources, "note": m.note or None}


def gains(measured: Sequence[Measured]) -> pd.DataFrame:
    """What context and adaptation bring, each of the same weights; what the order of chunks and rounding do to it.

    Columns kind, gain, is, value, share and INTERVAL. Rows of kind "gain" and "contrast": one gain less another, paired
    by chunk. `share` of a gain is of c - a. Those whose cells were not measured are left out.
    """
    r, rows = by_label(measured), []
    pairs = {name: pair for name, pair in GAINS.items() if r.keys() >= {*pair}}
    chunks = {name: course(r[less], r[of]) for name, (of, less) in pairs.items()}
    values = {name: float(r[of].bpb_first - r[less].bpb_first) for name, (of, less) in pairs.items()}
    for name, pair in pairs.items():
        row: dict[str, Any] = {"kind": "gain", "gain": name, "is": " - ".join(pair), "value": values[name]}
        share = values[name] / values["both"] if name in ("context", "adaptation") and values.get("both") else None
        rows.append(row | {"share": share} | interval(chunks[name]))
    for name, (one, other) in CONTRASTS.items():
        if pairs.keys() >= {one, other} and len(chunks[one]) == len(chunks[other]):
            row = {"kind": "contrast", "gain": name, "is": f"({one}) - ({other})", "value": values[one] - values[other]}
            rows.append(row | interval(chunks[one].assign(here=chunks[one]["here"] - chunks[other]["here"])))
    return frame(rows).reindex(columns=["kind", "gain", "is", "value", "share", *INTERVAL])


# -- where they come from


def positions(measured: Sequence[Measured], window: int) -> pd.DataFrame:
    """Bits of the same targets under (a) and (b), by the position that they have in a window of (a).

    Under (a) a target at position p has p + 1 tokens of context, under (b) a window less a stride, or more. `start` to
    `stop`: positions of the row, half an octave wide; `static` and `sliding`: bits a target, `change` their difference;
    `share`: what the row has of the whole change, `so_far`: with the rows above. Without rows if a or b was not
    measured.
    """
    results = by_label(measured)
    if not {"a", "b"} <= results.keys():
        return pd.DataFrame()
    a, b = (results[label].per_target for label in "ab")
    if a is None or b is None:
        raise ValueError("a and b were measured without the nats of every target")
    known = ~(np.isnan(a) | np.isnan(b))
    edges = np.unique(np.concatenate(([0], np.round(2 ** np.arange(0, np.log2(window) + 0.25, 0.5)), [window])))
    row = np.searchsorted(edges, np.flatnonzero(known) % window, "right") - 1
    targets, *sums = (np.bincount(row, w, minlength=len(edges) - 1) for w in (None, a[known], b[known]))
    static, sliding = (x / np.log(2) for x in sums)
    found = pd.DataFrame({"start": edges[:-1].astype(int), "stop": edges[1:].astype(int), "targets": targets})
    change, n = sliding - static, np.maximum(targets, 1)
    found = found.assign(static=static / n, sliding=sliding / n, change=change / n)
    if change.sum():
        found = found.assign(share=change / change.sum(), so_far=change.cumsum() / change.sum())
    return found[targets > 0].reset_index(drop=True)


def along(measured: Sequence[Measured]) -> pd.DataFrame:
    """The gain of (c), and of the other legal adaptations of the same weights and text, over (b) along the text.

    A row for each cell and chunk: label, chunk, stop, `here` on the chunk alone, `difference` over all chunks so far;
    some of them, the last one too, with `low` and `high` of `difference`. Cells that come to the same have one course.
    """
    results, courses = by_label(measured), dict[float, pd.DataFrame]()  # by the nats
    for cell, r, _ in measured if "b" in results else []:
        if r is None or r.legality != Legality.SCORE_FIRST or cell.group not in ("abc", "reset", "protocols"):
            continue
        if cell.reference == "b" and r.nats not in courses and len(courses) < LINES:
            found = course(results["b"], r)
            ends = stats.bands(found["here"].to_numpy()[None], found["bytes"].to_numpy())
            columns = ["label", "chunk", "stop", "here", "difference", "low", "high"]
            courses[r.nats] = found.join(ends.reindex(columns=["low", "high"])).assign(label=cell.label)[columns]
    return pd.concat(courses.values(), ignore_index=True) if courses else pd.DataFrame()


def strides(measured: Sequence[Measured], window: int) -> pd.DataFrame:
    """Scores without adaptation from the widest stride on: label, stride, computed, bpb, difference and INTERVAL.

    `computed`: tokens that the model reads for each target that it scores, a window over a stride.
    """
    cells = [m for m in measured if m.result and (m.cell.label == "a" or m.cell.group == "stride")]
    width = [int(str(m.cell.changes.get("eval.stride", window))) for m in cells]
    rows = table(measured).set_index("label").loc[[m.cell.label for m in cells]].reset_index()
    rows = rows.assign(stride=width, computed=window / np.array(width))
    return rows[["label", "stride", "computed", "bpb", "difference", *INTERVAL]]


def grid(measured: Sequence[Measured]) -> pd.DataFrame:
    """The gain over (b) by the length of a chunk and the passes over it: chunk_tokens, epochs, and as in `table`."""
    cells = [m.cell for m in measured if m.result and m.cell.group == "grid"]
    rows = table(measured).set_index("label").loc[[cell.label for cell in cells]].reset_index()
    keys = {key: [int(str(cell.changes[f"ttt.{key}"])) for cell in cells] for key in ("chunk_tokens", "epochs")}
    return rows.assign(**keys)[["label", *keys, "bpb", "difference", *INTERVAL, "legality", "steps"]]


def tables(measured: Sequence[Measured], window: int) -> dict[str, pd.DataFrame]:
    """Every frame of a study that has a figure, by the figure's name; those of one row at most are left out."""
    scores = table(measured).dropna(subset="bpb")
    group = scores["group"]
    controls = ("order", "reset", "epochs", "adapted", "optimizer")
    found = {
        "waterfall": scores[group.isin(["abc", "float"])],
        "scores": scores[group.isin(["abc", "protocols"])],
        "controls": scores[(scores["label"] == "c") | group.isin(controls)],
        "strides": strides(measured, window),
        "grid": grid(measured),
        "positions": positions(measured, window),
        "stream": along(measured),
    }
    return {name: rows.reset_index(drop=True) for name, rows in found.items() if len(rows) > 1}
