"""What the cells of a study say: tables of scores, gains, context and the course of adaptation along the text."""

from collections.abc import Sequence

import numpy as np

from golfcore.analysis.frames import only
from golfcore.analysis.scores import interval, paired, running_gain
from golfcore.analysis.stats import MIN_CHUNKS, block_length, paired_bootstrap
from golfcore.analysis.table import Row, Table, show, to_text
from golfcore.evals.ledger import Legality
from golfcore.evals.result import EvalResult
from golfcore.runs.study import Measured, by_label

BANDS = 30  # prefixes of the text that get an interval, at most
LINES = 6  # courses along the text, at most


def table(measured: Sequence[Measured]) -> Table:
    """One row a cell: its score, its difference to its reference with the interval over chunks, its cost and source.

    `low`, `high`: paired block bootstrap over chunks of the text, where there are at least MIN_CHUNKS. `steps`:
    optimizer steps of adaptation, `adapted`: the values that they moved. A cell without a result says why in `note`.
    """
    results = by_label(measured)
    return Table(_row(m, results.get(m.cell.reference)) for m in measured)


def _row(m: Measured, reference: EvalResult | None) -> Row:
    cell, r = m.cell, m.result
    row: Row = {"label": cell.label, "group": cell.group, "protocol": cell.protocol, "weights": cell.weights}
    if r is None:
        return row | {"note": m.note}
    row |= {"bpb": float(r.bpb), "reference": cell.reference or None}
    if reference is not None:
        row |= {"difference": _less(r, reference)} | interval(paired(reference, r))
    row |= {"seconds": r.seconds, "tokens_per_second": r.tokens / max(r.seconds, 1e-9), "legality": str(r.legality)}
    row |= {"steps": r.coverage.get("ttt_steps", 0), "adapted": r.coverage.get("ttt_adapted", 0)}
    row |= {"targets": r.tokens, "repeats": r.repeats}
    changes = "; ".join(f"{key}={value}" for key, value in cell.changes.items())
    sources = {"artifact" if k == "weights" else k: r.source.get(k) for k in ("weights", "config", "data", "seed")}
    return row | {"changes": changes or None, **sources}


def _less(r: EvalResult, other: EvalResult) -> float:
    return float(r.bpb - other.bpb)


def _seed(r: EvalResult) -> int:
    return int(r.source.get("seed", 0))


def as_text(rows: Table) -> str:
    """The table for a terminal: what was measured, and below it what was not."""
    shown = Table(
        {
            "cell": row["label"],
            "bpb": row["bpb"],
            "against": row.get("reference"),
            "difference": signed(row, "difference"),
            "95 % over text": f"{signed(row, 'low')} to {signed(row, 'high')}" if row.get("low") is not None else "",
            **{c: row[c] for c in ("legality", "steps", "adapted")},
            "seconds": f"{row['seconds']:.1f}",
            "tokens/s": f"{row['tokens_per_second']:,.0f}",
        }
        for row in rows
        if row.get("bpb") is not None
    )
    notes = [f"{row['label']}: not measured: {row['note']}" for row in rows if row.get("note")]
    return "\n".join([to_text(shown), *notes])


def signed(row: Row, column: str) -> str:
    value = row.get(column)
    return f"{value:+.5f}" if isinstance(value, int | float) else show(value)


# -- gains

GAINS = {  # gain -> (cell, less this cell)
    "context": ("b", "a"),
    "adaptation": ("c", "b"),
    "both": ("c", "a"),
    "adaptation, shuffled": ("c shuffled", "b shuffled"),
    "context, float": ("b float", "a float"),
    "adaptation, float": ("c float", "b float"),
}
CONTRASTS = {"order": ("adaptation", "adaptation, shuffled"), "rounding": ("adaptation", "adaptation, float")}


def gains(measured: Sequence[Measured]) -> Table:
    """What context and adaptation bring, each of the same weights; what the order of chunks and rounding do to it.

    Rows of kind "gain" (bits per byte, lower is better) and "contrast": one gain less another, paired by chunk of the
    text. `share` of a gain is of c - a. Those whose cells were not measured are left out.
    """
    r, rows = by_label(measured), Table()
    here = {name: paired(r[less], r[of]) for name, (of, less) in GAINS.items() if of in r and less in r}
    for name, by_chunk in here.items():
        of, less = GAINS[name]
        row: Row = {"kind": "gain", "gain": name, "is": f"{of} - {less}", "value": _less(r[of], r[less])}
        if name in ("context", "adaptation") and "both" in here and r["c"].bpb != r["a"].bpb:
            row["share"] = _less(r[of], r[less]) / _less(r["c"], r["a"])
        rows.append(row | interval(by_chunk))
    for name, (one, other) in CONTRASTS.items():
        if one in here and other in here and len(here[one][0]) == len(here[other][0]):
            (x, weights), (y, _) = here[one], here[other]
            values = {g: _less(*(r[label] for label in GAINS[g])) for g in (one, other)}
            row = {"kind": "contrast", "gain": name, "is": f"({one}) - ({other})", "value": values[one] - values[other]}
            rows.append(row | interval((x - y, weights)))
    return rows


# -- where they come from


def positions(measured: Sequence[Measured], window: int) -> Table:
    """Bits of the same targets under (a) and (b), by the position that they have in a window of (a).

    Under (a) a target at position p has p + 1 tokens of context, under (b) a window less a stride, or more. `start` to
    `stop`: positions of the row, half an octave wide; `change` is (b) - (a) in bits a target, `share` what the row has
    of the whole change, `so_far` what it has with the rows above. Empty if a or b was not measured.
    """
    results = by_label(measured)
    if not {"a", "b"} <= results.keys():
        return Table()
    a, b = (results[label].per_target for label in "ab")
    if a is None or b is None:
        raise ValueError("a and b were measured without the nats of every target")
    known = ~(np.isnan(a) | np.isnan(b))
    at, bits = np.flatnonzero(known) % window, [x[known].astype(np.float64) / np.log(2) for x in (a, b)]
    n, sums = np.bincount(at, minlength=window), [np.bincount(at, x, minlength=window) for x in bits]
    whole, so_far, rows = float(bits[1].sum() - bits[0].sum()), 0.0, Table()
    edges = np.unique(np.concatenate(([0], np.round(2 ** np.arange(0, np.log2(window) + 0.25, 0.5)), [window])))
    for start, stop in zip(edges[:-1].astype(int), edges[1:].astype(int), strict=True):
        count = int(n[start:stop].sum())
        if not count:
            continue
        static, sliding = (float(s[start:stop].sum()) for s in sums)
        so_far += sliding - static
        row: Row = {"start": int(start), "stop": int(stop), "targets": count}
        row |= {"static": static / count, "sliding": sliding / count, "change": (sliding - static) / count}
        rows.append(row | ({"share": (sliding - static) / whole, "so_far": so_far / whole} if whole else {}))
    return rows


def along(measured: Sequence[Measured]) -> Table:
    """The gain of (c), and of the other legal adaptations of the same weights and text, over (b) along the text.

    A row for each cell and chunk: `here` on the chunk alone, `difference` over all chunks so far, in bits per byte;
    some with the bootstrap interval of `difference`, the last one always, if there are MIN_CHUNKS chunks.
    """
    results, rows = by_label(measured), Table()
    same = {r.nats: label for label, r in reversed(results.items())}  # one line for cells that come to the same
    labels = [m.cell.label for m in measured if _adapts_legally(m) and m.cell.reference == "b"]
    labels = [label for label in labels if same[results[label].nats] == label]
    for label in labels[:LINES] if "b" in results else []:
        b, r = results["b"], results[label]
        chunks = Table(only(running_gain(b, r), kind="chunk").to_dict("records"))
        values, weights = paired(b, r)
        whole = len(values) == len(chunks) >= MIN_CHUNKS
        banded = {round(n) for n in np.linspace(MIN_CHUNKS, len(chunks), BANDS)} if whole else set()
        for n, chunk in enumerate(chunks, 1):
            row: Row = {"label": label, **{k: chunk[k] for k in ("chunk", "stop", "here", "difference")}}
            if n in banded:
                found = paired_bootstrap(values[:n], weights[:n], block_length(n), _seed(r))
                row |= {"low": found.low, "high": found.high}
            rows.append(row)
    return rows


def _adapts_legally(m: Measured) -> bool:
    legal = m.result is not None and m.result.legality == Legality.SCORE_FIRST
    return legal and m.cell.group in ("abc", "reset", "protocols")


def strides(measured: Sequence[Measured], window: int) -> Table:
    """Scores without adaptation from the widest stride on, and what they cost. Empty if there is one at most.

    `computed`: tokens that the model reads for each target that it scores, a window over a stride.
    """
    rows = {str(row["label"]): row for row in table(measured) if row.get("bpb") is not None}
    found = Table()
    for cell in (m.cell for m in measured if m.cell.label in rows):
        if cell.label == "a" or cell.group == "stride":
            row, stride = rows[cell.label], int(str(cell.changes.get("eval.stride", window)))
            kept = {k: row.get(k) for k in ("bpb", "difference", "low", "high", "seconds", "tokens_per_second")}
            found.append({"label": cell.label, "stride": stride, "computed": window / stride, **kept})
    return found if len(found) > 1 else Table()


def tables(measured: Sequence[Measured], window: int) -> dict[str, Table]:
    """Every table of a study that has a figure, by the figure's name; those without rows are left out."""
    rows = table(measured)
    scores = Table(row for row in rows if row.get("bpb") is not None)
    controls = ("order", "reset", "epochs", "adapted", "optimizer")
    found = {
        "waterfall": Table(row for row in scores if row["group"] in ("abc", "float")),
        "scores": Table(row for row in scores if row["group"] in ("abc", "protocols")),
        "controls": Table(row for row in scores if row["label"] == "c" or row["group"] in controls),
        "strides": strides(measured, window),
        "positions": positions(measured, window),
        "stream": along(measured),
    }
    return {name: rows for name, rows in found.items() if len(rows) > 1}
