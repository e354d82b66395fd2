"""Where bits per byte come from: rounding, longer context, adaptation, and kinds of token."""

from itertools import pairwise

import numpy as np

from golfcore.analysis.runs import report
from golfcore.analysis.stats import MIN_CHUNKS, block_length, paired_bootstrap
from golfcore.analysis.table import Row, Table
from golfcore.analysis.text import Text
from golfcore.data.tokens import TokenClass
from golfcore.evals import result as results
from golfcore.evals.result import EvalResult
from golfcore.evals.score import bits_per_byte, bytes_of
from golfcore.pipeline import MEASURES
from golfcore.records import RunFolder

CLASS_NAMES = {
    TokenClass.WORD_START: "word start",
    TokenClass.WITHIN_WORD: "within word",
    TokenClass.BYTE: "byte",
    TokenClass.CONTROL: "control",
}


def evaluation(run: RunFolder, measure: str) -> EvalResult:
    return results.load(run.file(f"eval/{measure}.json"))


def waterfall(run: RunFolder) -> Table:
    """One row a measure, in the order of the pipeline, each with its difference to the one before and an interval.

    The interval is of the paired difference over chunks of text; it is missing where there are fewer than
    MIN_CHUNKS. The last row is the bigram baseline. UserError: a run that has not ended.
    """
    final, rows = report(run), Table()
    for name in MEASURES:
        m = final["measures"][name]
        rows.append({"measure": name} | {k: m[k] for k in ("bpb", "legality", "tokens", "bytes", "repeats", "seconds")})
    for before, row in pairwise(rows):
        a, b = (evaluation(run, str(r["measure"])) for r in (before, row))
        row["difference"] = b.bpb - a.bpb
        row |= _interval(_paired(a, b), run.config().run.seed)
    return Table([*rows, {"measure": "bigram", "bpb": final["baseline"]["bpb"]}])


def ttt_gain(run: RunFolder) -> Table:
    """What adaptation does as it goes on: a row for each chunk (kind "chunk"), and the sum of them (kind "total").

    `sliding`, `ttt` and `difference` are over all chunks so far, `here` is the difference on the chunk alone, all in
    bits per byte; `stop` counts targets. The total has an interval if there are at least MIN_CHUNKS chunks.
    """
    a, b = evaluation(run, "sliding"), evaluation(run, "ttt")
    here, weights = _paired(a, b)
    running = {name: _running_bpb(r) for name, r in (("sliding", a), ("ttt", b))}
    rows = Table()
    for i, chunk in enumerate(b.chunks):
        row: Row = {"kind": "chunk", "chunk": i, "start": chunk["start"], "stop": chunk["stop"], "bytes": chunk["bytes"]}
        row |= {name: float(curve[i]) for name, curve in running.items()}
        rows.append(row | {"difference": float(running["ttt"][i] - running["sliding"][i]), "here": float(here[i])})
    total: Row = {"kind": "total", "stop": b.chunks[-1]["stop"], "bytes": int(weights.sum())}
    total |= {k: rows[-1][k] for k in ("sliding", "ttt", "difference")}
    return Table([*rows, total | _interval((here, weights), run.config().run.seed)])


def _paired(a: EvalResult, b: EvalResult) -> tuple[np.ndarray, np.ndarray]:
    """(differences b - a in bits per byte of each chunk, bytes of each). Chunks without a scored byte are left out."""
    spans = [[(c["start"], c["stop"]) for c in r.chunks] for r in (a, b)]
    if spans[0] != spans[1]:
        raise ValueError(f"{a.protocol} and {b.protocol} were recorded over other chunks and do not pair")
    scored = [(x, y) for x, y in zip(a.chunks, b.chunks, strict=True) if x["bytes"] and y["bytes"]]
    bits = [[bits_per_byte(c["nats"], c["bytes"]) for c in pair] for pair in scored]
    return np.array([y - x for x, y in bits]), np.array([y["bytes"] for _, y in scored])


def _running_bpb(r: EvalResult) -> np.ndarray:
    nats, n_bytes = (np.cumsum([c[k] for c in r.chunks]) for k in ("nats", "bytes"))
    return nats / (np.log(2) * n_bytes)


def _interval(paired: tuple[np.ndarray, np.ndarray], seed: int) -> Row:
    differences, weights = paired
    n = len(differences)
    if n < MIN_CHUNKS:
        return {"chunks": n}
    found = paired_bootstrap(differences, weights, block_length(n), seed)
    return {"chunks": n, "low": found.low, "high": found.high}


def loss_by_class(run: RunFolder, text: Text) -> Table:
    """A row for each class of target and protocol: how many targets, how hard, and their part of the bits per byte.

    `share` is of targets, `share_of_loss` of all nats; the `bpb` of a protocol's classes sum to its score (of first
    scores). Classes that do not occur are left out. ValueError if the text is not the one that was scored.
    """
    rows = Table()
    n_bytes = bytes_of(text.tables, text.val[:-1], text.val[1:])
    for name in ("static", "sliding", "ttt"):
        nats = evaluation(run, name).per_target
        if nats is None or nats.shape != n_bytes.shape:
            raise ValueError(f"{name}: expected scores of {len(n_bytes)} targets")
        scored = ~np.isnan(nats)
        total, total_bytes = float(nats[scored].sum(dtype=np.float64)), float(n_bytes[scored].sum())
        kind = text.classes[text.val[1:]]
        for token_class, label in CLASS_NAMES.items():
            here = scored & (kind == token_class)
            if here.any():
                sum_here = float(nats[here].sum(dtype=np.float64))
                row: Row = {"class": label, "measure": name, "targets": int(here.sum())}
                row |= {"share": float(here.sum() / scored.sum()), "bits_per_target": sum_here / np.log(2) / int(here.sum())}
                rows.append(row | {"share_of_loss": sum_here / total, "bpb": bits_per_byte(sum_here, total_bytes)})
    return rows
