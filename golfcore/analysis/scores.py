"""Where bits per byte come from: rounding, longer context, adaptation, and kinds of token."""

from collections import Counter

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
from golfcore.evals.score import bytes_of
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
    """`protocols.table` of what a run measured itself, under the names of its measures; last, the bigram baseline.

    UserError: a run that has not ended.
    """
    final, cells = report(run), study.reported(run)
    rows = protocols.table(cells).rename(columns={"targets": "tokens"})
    rows.insert(0, "measure", measured(final))
    rows = rows[["measure", "bpb", "legality", "tokens", "repeats", "difference", *protocols.INTERVAL]]
    rows = rows.assign(bytes=[m.result.bytes for m in cells if m.result])
    found = frame([*rows.to_dict("records"), {"measure": "bigram", "bpb": final["baseline"]["bpb"]}])
    return found.dropna(axis="columns", how="all")


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
    return frame([*rows, total | protocols.interval(chunks)]).dropna(axis="columns", how="all")


def loss_by_class(run: RunFolder, text: Text) -> pd.DataFrame:
    """`by_class` of each measure of the artifact; `change` is that of bpb from the measure before."""
    found = {name: by_class(evaluation(run, name), text) for name in ("static", "sliding", "ttt")}
    rows = pd.concat(found, names=["measure", None]).reset_index("measure").reset_index(drop=True)
    return rows.assign(change=rows.groupby("class")["bpb"].diff())


def by_class(r: EvalResult, text: Text) -> pd.DataFrame:
    """`by_group` of the classes of targets that occur; their `bpb` sum to the score (of first scores)."""
    found = by_group(nats_of(r, text), text.classes[text.val[1:]], len(CLASS_NAMES)).loc[[*CLASS_NAMES]]
    found.insert(0, "class", [*CLASS_NAMES.values()])
    found = found[found["targets"] > 0].reset_index(drop=True)
    return found.assign(bpb=found["share_of_loss"] * r.bpb_first)


def by_group(nats: np.ndarray, group: np.ndarray, n: int) -> pd.DataFrame:
    """A row for each of `n` groups: targets, share (of targets), share_of_loss, bits_per_target (NaN without targets).

    `nats` (N,), NaN where a target was not scored; `group` (N,) of each target.
    """
    scored = ~np.isnan(nats)
    targets, sums = (np.bincount(group[scored], weights, n) for weights in (None, nats[scored]))
    found = pd.DataFrame({"targets": targets, "share": targets / targets.sum(), "share_of_loss": sums / sums.sum()})
    return found.assign(bits_per_target=sums / np.log(2) / found["targets"])


def nats_of(r: EvalResult, text: Text) -> np.ndarray:
    """(N,) nats of every target, NaN where it was not scored. ValueError: they are not known, or of another text."""
    if r.per_target is None or len(r.per_target) != len(text.val) - 1:
        raise ValueError(f"{r.protocol}: expected scores of {len(text.val) - 1} targets")
    return r.per_target.astype(np.float64)


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
