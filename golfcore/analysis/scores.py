"""Where bits per byte come from: rounding, longer context, adaptation, and kinds of token."""

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from golfcore.analysis import protocols
from golfcore.analysis.frames import frame
from golfcore.analysis.runs import report
from golfcore.analysis.text import Text, pieces_of, text_of
from golfcore.base.records import RunFolder
from golfcore.data.tokens import TokenClass
from golfcore.evals import result as results
from golfcore.evals.result import EvalResult
from golfcore.evals.score import bits_per_byte, bytes_of
from golfcore.runs import study
from golfcore.runs.results import measured

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

    `protocols.table` of the cells that the run measured itself, under the names of its `measure`s. The last row is the
    bigram baseline. UserError: a run that has not ended.
    """
    final, cells = report(run), study.reported(run)
    rows = protocols.table(cells).rename(columns={"targets": "tokens"})
    rows = rows[["bpb", "legality", "tokens", "repeats", "difference", *protocols.INTERVAL]]
    rows = rows.assign(measure=measured(final), bytes=[m.result.bytes for m in cells if m.result])
    last = {"measure": "bigram", "bpb": final["baseline"]["bpb"]}
    found = frame([*rows.to_dict("records"), last])
    return found[["measure", *found.columns.drop("measure")]].dropna(axis="columns", how="all")


def ttt_gain(run: RunFolder) -> pd.DataFrame:
    """What adaptation does as a run's text goes on, from its score (b) to (c): rows of kind "chunk", and "total".

    `sliding`, `ttt` and `difference` are over all chunks so far, `here` is the difference on the chunk alone, all in
    bits per byte; `stop` counts targets. The total has an interval if there are at least MIN_CHUNKS chunks.
    """
    b, c = evaluation(run, "sliding"), evaluation(run, "ttt")
    chunks = protocols.course(b, c).rename(columns={"before": "sliding", "after": "ttt"})
    rows = [{"kind": "chunk", **row} for row in chunks.to_dict("records")]
    total = {"kind": "total", **chunks.iloc[-1][["stop", "sliding", "ttt", "difference"]].to_dict()}
    total |= {"stop": int(total["stop"]), "bytes": int(chunks["bytes"].sum())}
    return frame([*rows, total | protocols.interval(*protocols.paired(b, c))])


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
            rows.append(row | {"bpb": bits_per_byte(loss, float(n_bytes))})
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
