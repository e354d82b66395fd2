"""Which pairs of tokens share a row of the n-gram table, under shared hashing and under split hashing."""

from typing import Any

import numpy as np
import pandas as pd
import torch

from golfcore.analysis.frames import frame
from golfcore.data.tokens import Tables
from golfcore.model.hashing import ngram_rows

CURVE_POINTS = 60


def bucket_occupancy(tokens: np.ndarray, tables: Tables, n_rows: int) -> pd.DataFrame:
    """Occupancy of the bigram table under shared and split hashing of the same text, `tokens` (N,) ids.

    Rows of kind "summary", one for each part of the table (all; the two halves of a split one):
      rows, used, pairs, pairs_per_used_row
      share        of all occurrences that fall in this part
      contended    share of the part's occurrences in a row that two or more frequent pairs want; frequent are as many
                   of the most frequent pairs as there are rows, so that a perfect hash would give each its own
      not_own      share of occurrences that read a row in which another pair is more frequent
      other_class  share of occurrences in a row whose most frequent pair is of the other class (word start or not)
    Rows of kind "row": the part's rows by falling occupancy, at about CURVE_POINTS ranks evenly spaced in log(rank).
    """
    if tables.word_start is None:
        raise ValueError("tables without word_start do not tell the classes apart")
    pairs = _count_pairs(np.asarray(tokens), tables.word_start.numpy(), n_rows)
    both = torch.from_numpy(pairs[["previous", "current"]].to_numpy(copy=True))
    half, rows = (n_rows - 1) // 2, list[dict[str, Any]]()
    parts = {"shared": {"all": (0, n_rows - 1)}, "split": {"all": (0, 2 * half)}}
    parts["split"] |= {"word start": (0, half), "within word": (half, 2 * half)}
    for hashing, spans in parts.items():
        where = ngram_rows(both, tables.word_start, n_rows, split=hashing == "split")[:, 1].numpy()
        for part, (start, stop) in spans.items():
            label, here = {"hashing": hashing, "part": part}, pairs.assign(row=where)[(start <= where) & (where < stop)]
            share = float(here["times"].sum() / pairs["times"].sum())
            rows.append({"kind": "summary", **label, "rows": stop - start, "share": share, **_summary(here)})
            falling = here.groupby("row")["times"].sum().reindex(range(start, stop), fill_value=0).sort_values()[::-1]
            ranks = np.unique(np.geomspace(1, len(falling), CURVE_POINTS).round().astype(int))
            rows += [{"kind": "row", **label, "rank": r, "occurrences": falling.iloc[r - 1]} for r in ranks]
    return frame(rows)


def _count_pairs(tokens: np.ndarray, word_start: np.ndarray, n_rows: int) -> pd.DataFrame:
    """The different pairs of neighbours; the table's last row is a sentinel that no pair can have."""
    v = len(word_start)
    counts = np.bincount(tokens[:-1] * v + tokens[1:], minlength=v * v)
    code = np.flatnonzero(counts)
    found = pd.DataFrame({"previous": code // v, "current": code % v, "times": counts[code]})
    frequent = found["times"].rank(method="first", ascending=False) < n_rows
    return found.assign(word_start=word_start[code % v], frequent=frequent)


def _summary(here: pd.DataFrame) -> dict[str, Any]:
    """Of the pairs in one part of the table, each with its `row`."""
    top = here.sort_values("times", kind="stable").drop_duplicates("row", keep="last").set_index("row")
    times, total = here["times"], max(int(here["times"].sum()), 1)
    wanted = here.groupby("row")["frequent"].transform("sum")
    other = here["word_start"] != here["row"].map(top["word_start"])
    row = {"used": len(top), "pairs": len(here), "pairs_per_used_row": len(here) / max(len(top), 1)}
    row |= {"occurrences": int(times.sum()), "contended": float(times[wanted >= 2].sum() / total)}
    not_own = float(1 - top["times"].sum() / total) if len(here) else 0.0
    return row | {"not_own": not_own, "other_class": float(times[other].sum() / total)}
