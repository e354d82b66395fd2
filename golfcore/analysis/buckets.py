"""Which pairs of tokens share a row of the n-gram table, under shared hashing and under split hashing."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from golfcore.analysis.frames import frame
from golfcore.data.tokens import Tables
from golfcore.model.hashing import bigram_rows

CURVE_POINTS = 60


class Pairs(NamedTuple):
    """The P different pairs of neighbours in a text."""

    previous: np.ndarray  # (P,) ids
    current: np.ndarray  # (P,)
    times: np.ndarray  # (P,) how often
    word_start: np.ndarray  # (P,) bool: `current` starts a word
    frequent: np.ndarray  # (P,) bool: among as many most frequent pairs as the table has rows


def count_pairs(tokens: np.ndarray, word_start: np.ndarray, n_rows: int) -> Pairs:
    """`tokens` (N,) ids, `word_start` (V,) bool; the table's last row is a sentinel that no pair can have."""
    v = len(word_start)
    counts = np.bincount(tokens[:-1] * v + tokens[1:], minlength=v * v)
    code = np.flatnonzero(counts)
    count = counts[code]
    frequent = np.zeros(len(code), dtype=bool)
    frequent[np.argsort(-count, kind="stable")[: n_rows - 1]] = True
    return Pairs(code // v, code % v, count, word_start[code % v], frequent)


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
    pairs = count_pairs(np.asarray(tokens), tables.word_start.numpy(), n_rows)
    both = torch.from_numpy(np.stack((pairs.previous, pairs.current), axis=1))
    half, rows = (n_rows - 1) // 2, list[dict[str, Any]]()
    parts = {"shared": {"all": (0, n_rows - 1)}, "split": {"all": (0, 2 * half)}}
    parts["split"] |= {"word start": (0, half), "within word": (half, 2 * half)}
    for hashing, spans in parts.items():
        where = bigram_rows(both, tables.word_start, n_rows, split=hashing == "split")[:, 1].numpy()
        for part, span in spans.items():
            label = {"hashing": hashing, "part": part}
            rows.append({"kind": "summary"} | label | _summary(pairs, where, span))
            rows += [{"kind": "row"} | label | row for row in _profile(pairs, where, span)]
    return frame(rows)


def _summary(pairs: Pairs, where: np.ndarray, span: tuple[int, int]) -> dict[str, Any]:
    here = (where >= span[0]) & (where < span[1])
    row, count, start = where[here], pairs.times[here], pairs.word_start[here]
    n = span[1] if len(row) else 0
    rising = np.argsort(count, kind="stable")  # of several pairs in a row, the last written is the most frequent
    most, dominant = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=bool)
    most[row[rising]], dominant[row[rising]] = count[rising], start[rising]
    wanted = np.bincount(row[pairs.frequent[here]], minlength=n)
    used, total = len(np.unique(row)), max(int(count.sum()), 1)
    return {
        "rows": span[1] - span[0],
        "used": used,
        "pairs": len(row),
        "pairs_per_used_row": len(row) / max(used, 1),
        "occurrences": int(count.sum()),
        "share": float(count.sum() / pairs.times.sum()),
        "contended": float(count[wanted[row] >= 2].sum() / total),
        "not_own": float(1 - most.sum() / total) if len(row) else 0.0,
        "other_class": float(count[dominant[row] != start].sum() / total),
    }


def _profile(pairs: Pairs, where: np.ndarray, span: tuple[int, int]) -> list[dict[str, Any]]:
    occurrences = np.bincount(where, weights=pairs.times, minlength=span[1])[slice(*span)]
    falling = np.sort(occurrences)[::-1].astype(np.int64)
    ranks = np.unique(np.geomspace(1, len(falling), CURVE_POINTS).round().astype(int))
    return [{"rank": int(rank), "occurrences": int(falling[rank - 1])} for rank in ranks]
