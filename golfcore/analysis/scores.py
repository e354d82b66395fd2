"""Where bits per byte come from: rounding, longer context, adaptation, and kinds of token."""

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from golfcore import config
from golfcore.analysis.frames import frame
from golfcore.analysis.runs import report
from golfcore.analysis.stats import MIN_CHUNKS, estimate
from golfcore.analysis.text import Text, pieces_of, text_of
from golfcore.base.records import RunFolder
from golfcore.data.tokens import TokenClass
from golfcore.evals import protocols
from golfcore.evals import result as results
from golfcore.evals.result import EvalResult
from golfcore.evals.score import bits_per_byte, bytes_of
from golfcore.runs.results import MEASURES, measured

CLASS_NAMES = {
    TokenClass.WORD_START: "word start",
    TokenClass.WITHIN_WORD: "within word",
    TokenClass.BYTE: "byte",
    TokenClass.CONTROL: "control",
}


def evaluation(run: RunFolder, measure: str) -> EvalResult:
    return results.load(run.file(f"eval/{measure}.json"))


def waterfall(run: RunFolder) -> pd.DataFrame:
    """One row a measure, in the order of the pipeline, each with its difference to the one before and an interval.

    Other protocols that the run measured follow, each with its difference to the protocol that does not adapt and
    scores the same windows. Differences are of first scores, bits per byte; `bpb` counts repeated scores, too. The
    interval is missing where there are fewer than MIN_CHUNKS chunks of text, or where a protocol has chunks of its own.
    The last row is the bigram baseline. UserError: a run that has not ended.
    """
    final, cfg = report(run), config.of_run(run)
    before = {b: a for a, b in pairwise(MEASURES)}
    rows: list[dict[str, Any]] = []
    for name in measured(final):
        m = final["measures"][name]
        row = {"measure": name} | {k: m[k] for k in ("bpb", "legality", "tokens", "bytes", "repeats")}
        if rows:
            a, b = evaluation(run, before.get(name) or protocols.reference_of(name, cfg)), evaluation(run, name)
            row["difference"] = b.bpb_first - a.bpb_first
            row |= interval(paired(a, b)) if _spans(a) == _spans(b) else {}
        rows.append(row)
    return frame([*rows, {"measure": "bigram", "bpb": final["baseline"]["bpb"]}])


def ttt_gain(run: RunFolder) -> pd.DataFrame:
    """What adaptation does as a run's validation text goes on: `running_gain` from its score (b) to its score (c)."""
    return running_gain(evaluation(run, "sliding"), evaluation(run, "ttt"))


def running_gain(a: EvalResult, b: EvalResult) -> pd.DataFrame:
    """From sliding `a` to adapted `b` as the text goes on: a row for each chunk (kind "chunk"), and "total".

    `sliding`, `ttt` and `difference` are over all chunks so far, `here` is the difference on the chunk alone, all in
    bits per byte; `stop` counts targets. The total has an interval if there are at least MIN_CHUNKS chunks.
    """
    pairs = paired(a, b)
    spans = ("start", "stop", "bytes")
    found = frame({"kind": "chunk", "chunk": i} | {k: c[k] for k in spans} for i, c in enumerate(b.chunks))
    found = found.assign(sliding=_running_bpb(a), ttt=_running_bpb(b))
    found["difference"] = found["ttt"] - found["sliding"]
    found["here"] = pairs[0]
    total = {"kind": "total", "stop": b.chunks[-1]["stop"], "bytes": int(pairs[1].sum())}
    total |= found.iloc[-1][["sliding", "ttt", "difference"]].to_dict()
    return frame([*found.to_dict("records"), total | interval(pairs)])


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


def interval(differences: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """`chunks`, and if they are at least MIN_CHUNKS the 95 % interval `low` to `high` of what `paired` returned."""
    values, weights = differences
    if len(values) < MIN_CHUNKS:
        return {"chunks": len(values)}
    found = estimate(values[None, :], weights)
    return {"chunks": len(values), "low": found.low, "high": found.high}


def loss_by_class(run: RunFolder, text: Text) -> pd.DataFrame:
    """A row for each class of target and protocol: how many targets, how hard, and their part of the bits per byte.

    `share` is of targets, `share_of_loss` of all nats; the `bpb` of a protocol's classes sum to its score (of first
    scores), and `change` is from the protocol before. Classes that do not occur are left out. ValueError if the text
    is not the one that was scored.
    """
    rows, before = list[dict[str, Any]](), dict[str, float]()
    for name in ("static", "sliding", "ttt"):
        found = by_class(evaluation(run, name), text)
        for row in found.to_dict("records"):
            label, bpb = str(row["class"]), float(row["bpb"])
            rows.append({"measure": name} | row | ({"change": bpb - before[label]} if label in before else {}))
            before[label] = bpb
    return frame(rows)


def by_class(r: EvalResult, text: Text) -> pd.DataFrame:
    """The classes of one evaluation; columns and errors as `loss_by_class`."""
    previous, target = text.val[:-1], text.val[1:]
    if r.per_target is None or r.per_target.shape != target.shape:
        raise ValueError(f"{r.protocol}: expected scores of {len(target)} targets")
    scored, nats = ~np.isnan(r.per_target), r.per_target.astype(np.float64)
    n, total, n_bytes = scored.sum(), nats[scored].sum(), bytes_of(text.tables, previous, target)[scored].sum()
    rows = list[dict[str, Any]]()
    for token_class, label in CLASS_NAMES.items():
        here = scored & (text.classes[target] == token_class)
        if targets := int(here.sum()):
            loss = float(nats[here].sum())
            row: dict[str, Any] = {"class": label, "targets": targets, "share": float(targets / n)}
            row |= {"bits_per_target": float(loss / np.log(2) / targets), "share_of_loss": float(loss / total)}
            rows.append(row | {"bpb": float(bits_per_byte(loss, float(n_bytes)))})
    return frame(rows)


def targets(run: RunFolder) -> pd.DataFrame:
    """One row a validation target of a run, in the order of the text.

    `token`, the token `before` it, its `piece`, `class` and `bytes`, and for each measure the nats of its first score
    (missing where it was not scored). UserError: a run that has not ended, or whose data are gone.
    """
    text = text_of(run)
    before, token = text.val[:-1], text.val[1:]
    found = {
        "token": token,
        "before": before,
        "piece": pd.Categorical.from_codes(token, _distinct(pieces_of(run))),
        "class": pd.Categorical.from_codes(text.classes[token], [CLASS_NAMES[kind] for kind in sorted(CLASS_NAMES)]),
        "bytes": np.asarray(bytes_of(text.tables, before, token)),
    }
    return pd.DataFrame(found | {name: evaluation(run, name).per_target for name in measured(report(run))})


def _distinct(pieces: list[str]) -> list[str]:
    """The pieces, with its id added to one that another token has, too: a space in front is no part of a piece."""
    count = Counter(pieces)
    return [piece if count[piece] == 1 else f"{piece} ({i})" for i, piece in enumerate(pieces)]
