"""Where bits per byte come from: rounding, longer context, adaptation, and kinds of token."""

from itertools import pairwise

import numpy as np

from golfcore import config
from golfcore.analysis.runs import report
from golfcore.analysis.stats import MIN_CHUNKS, block_length, paired_bootstrap
from golfcore.analysis.table import Row, Table, number
from golfcore.analysis.text import Text
from golfcore.base.records import RunFolder
from golfcore.data.tokens import TokenClass
from golfcore.evals import result as results
from golfcore.evals.protocols import reference_of
from golfcore.evals.result import EvalResult
from golfcore.evals.score import bits_per_byte, bytes_of
from golfcore.runs.results import MEASURES

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

    Other protocols that the run measured follow, each with its difference to the same windows without adaptation, of
    first scores only. The interval is of the paired difference over chunks of text; it is missing where there are
    fewer than MIN_CHUNKS. The last row is the bigram baseline. UserError: a run that has not ended.
    """
    final, rows, cfg = report(run), Table(), config.of_run(run)
    before = {b: a for a, b in pairwise(MEASURES)}
    for name in [*MEASURES, *(other for other in final["measures"] if other not in MEASURES)]:
        m = final["measures"][name]
        row: Row = {"measure": name}
        row |= {k: m[k] for k in ("bpb", "legality", "tokens", "bytes", "repeats", "seconds")}
        if rows:
            reference = before.get(name) or reference_of(name, cfg)  # the same windows without adaptation
            a, b = evaluation(run, reference), evaluation(run, name)
            row["difference"] = b.bpb_first - a.bpb_first
            row |= interval(paired(a, b), cfg.run.seed) if _spans(a) == _spans(b) else {}
        rows.append(row)
    return Table([*rows, {"measure": "bigram", "bpb": final["baseline"]["bpb"]}])


def ttt_gain(run: RunFolder) -> Table:
    """What adaptation does as a run's validation text goes on: `running_gain` from its score (b) to its score (c)."""
    return running_gain(evaluation(run, "sliding"), evaluation(run, "ttt"), config.of_run(run).run.seed)


def running_gain(a: EvalResult, b: EvalResult, seed: int) -> Table:
    """From sliding `a` to adapted `b` as the text goes on: a row for each chunk (kind "chunk"), and "total".

    `sliding`, `ttt` and `difference` are over all chunks so far, `here` is the difference on the chunk alone, all in
    bits per byte; `stop` counts targets. The total has an interval if there are at least MIN_CHUNKS chunks.
    """
    here, weights = paired(a, b)
    running = {name: _running_bpb(r) for name, r in (("sliding", a), ("ttt", b))}
    rows = Table()
    for i, chunk in enumerate(b.chunks):
        row: Row = {"kind": "chunk", "chunk": i, **{k: chunk[k] for k in ("start", "stop", "bytes")}}
        row |= {name: float(curve[i]) for name, curve in running.items()}
        rows.append(row | {"difference": float(running["ttt"][i] - running["sliding"][i]), "here": float(here[i])})
    total: Row = {"kind": "total", "stop": b.chunks[-1]["stop"], "bytes": int(weights.sum())}
    total |= {k: rows[-1][k] for k in ("sliding", "ttt", "difference")}
    return Table([*rows, total | interval((here, weights), seed)])


def paired(a: EvalResult, b: EvalResult) -> tuple[np.ndarray, np.ndarray]:
    """(differences b - a in bits per byte of each chunk, bytes of each). Chunks without a scored byte are left out."""
    if _spans(a) != _spans(b):
        raise ValueError(f"{a.protocol} and {b.protocol} were recorded over other chunks and do not pair")
    scored = [(x, y) for x, y in zip(a.chunks, b.chunks, strict=True) if x["bytes"] and y["bytes"]]
    bits = [[bits_per_byte(c["nats"], c["bytes"]) for c in pair] for pair in scored]
    return np.array([y - x for x, y in bits]), np.array([y["bytes"] for _, y in scored])


def _spans(r: EvalResult) -> list[tuple[int, int]]:
    return [(c["start"], c["stop"]) for c in r.chunks]


def _running_bpb(r: EvalResult) -> np.ndarray:
    nats, n_bytes = (np.cumsum([c[k] for c in r.chunks]) for k in ("nats", "bytes"))
    return nats / (np.log(2) * n_bytes)


def interval(differences: tuple[np.ndarray, np.ndarray], seed: int) -> Row:
    """`chunks`, and if they are at least MIN_CHUNKS the ends `low` and `high` of what `paired` returned."""
    values, weights = differences
    n = len(values)
    if n < MIN_CHUNKS:
        return {"chunks": n}
    found = paired_bootstrap(values, weights, block_length(n), seed)
    return {"chunks": n, "low": found.low, "high": found.high}


def loss_by_class(run: RunFolder, text: Text) -> Table:
    """A row for each class of target and protocol: how many targets, how hard, and their part of the bits per byte.

    `share` is of targets, `share_of_loss` of all nats; the `bpb` of a protocol's classes sum to its score (of first
    scores), and `change` is from the protocol before. Classes that do not occur are left out. ValueError if the text
    is not the one that was scored.
    """
    rows, before = Table(), dict[str, float]()
    for name in ("static", "sliding", "ttt"):
        found = by_class(evaluation(run, name), text)
        for row in found:
            label, bpb = str(row["class"]), number(row, "bpb")
            rows.append({"measure": name} | row | ({"change": bpb - before[label]} if label in before else {}))
            before[label] = bpb
    return rows


def by_class(r: EvalResult, text: Text) -> Table:
    """The classes of one evaluation; columns and errors as `loss_by_class`."""
    previous, target = text.val[:-1], text.val[1:]
    if r.per_target is None or r.per_target.shape != target.shape:
        raise ValueError(f"{r.protocol}: expected scores of {len(target)} targets")
    scored, nats = ~np.isnan(r.per_target), r.per_target.astype(np.float64)
    n, total, n_bytes = scored.sum(), nats[scored].sum(), bytes_of(text.tables, previous, target)[scored].sum()
    rows = Table()
    for token_class, label in CLASS_NAMES.items():
        here = scored & (text.classes[target] == token_class)
        if targets := int(here.sum()):
            loss = float(nats[here].sum())
            row: Row = {"class": label, "targets": targets, "share": float(targets / n)}
            row |= {"bits_per_target": float(loss / np.log(2) / targets), "share_of_loss": float(loss / total)}
            rows.append(row | {"bpb": float(bits_per_byte(loss, float(n_bytes)))})
    return rows
