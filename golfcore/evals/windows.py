"""Which positions a window sees and which of them it scores.

Position p (0 <= p < total) is an input whose target is token p + 1. A row (start, stop, score_from) is a window over
the positions [start, stop) that scores [score_from, stop).
"""

import numpy as np

from golfcore.base.errors import UserError


def windows(total: int, seq_len: int, stride: int, tail: str = "exact") -> np.ndarray:
    """(n, 3) int64 rows for a stream of `total` targets; stride = seq_len does not overlap.

    tail "exact": the last window is cut at the end and scores what is left, so every target is scored once.
    tail "exp101": every start that leaves at least one stride makes a window, and all windows cut at the end score the
    same last stride again; a remainder shorter than a stride is dropped where windows do not overlap.
    tail "pr398": the same, but every start that leaves at least one position makes a window.
    """
    if tail != "exact":
        starts = np.arange(0, total, stride)
        stops = np.minimum(starts + seq_len, total)
        keep = (stops - starts >= (stride if tail == "exp101" else 1)) | (starts == 0)
        starts, stops = starts[keep], stops[keep]
        score_from = stops - np.minimum(stride, stops - starts)
    else:
        count = 1 + max(0, -(-(total - seq_len) // stride))
        starts = stride * np.arange(count)
        stops = np.minimum(starts + seq_len, total)
        score_from = starts + seq_len - stride
    score_from[0] = 0
    return np.stack((starts, stops, score_from), axis=1).astype(np.int64)


def chunk_edges(total: int, chunk_tokens: int, starts: np.ndarray | None = None) -> np.ndarray:
    """(chunks + 1,) positions where chunks of at most `chunk_tokens` begin, and `total`.

    With `starts` (of documents, ascending) a chunk also begins at each of them.
    """
    firsts = np.unique(np.concatenate(([0], starts if starts is not None else [])).astype(np.int64))
    stops = np.append(firsts[1:], total)
    pieces = [np.arange(a, b, chunk_tokens) for a, b in zip(firsts, stops, strict=True)]
    return np.append(np.concatenate(pieces), total)


def split(rows: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The windows with every scored span that crosses an edge divided there; both parts keep the window's start."""
    out = []
    for start, stop, score_from in rows.tolist():
        inner = edges[np.searchsorted(edges, score_from, "right") : np.searchsorted(edges, stop, "left")]
        cuts = [score_from, *inner.tolist(), stop]
        out += [(start, b, a) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
    return np.array(out, dtype=np.int64)


def by_chunk(rows: np.ndarray, edges: np.ndarray) -> list[np.ndarray]:
    """The windows of each chunk: a window belongs to the chunk of the first position that it scores.

    Raises UserError if a scored span would straddle two chunks (score-first adaptation would then train too early).
    """
    chunk = np.minimum(np.searchsorted(edges, rows[:, 2], "right") - 1, len(edges) - 2)
    ends = edges[chunk + 1]
    if (rows[:, 1] > ends).any():
        bad = np.flatnonzero(rows[:, 1] > ends)[0]
        size = ends[bad] - edges[chunk[bad]]
        raise UserError(
            f"a window scores positions {rows[bad, 2]} to {rows[bad, 1]}, across the end of a chunk of {size} tokens: "
            "expected a chunk that is a multiple of the stride and of no less than a window"
        )
    at = np.searchsorted(chunk, np.arange(len(edges)))
    return [rows[a:b] for a, b in zip(at[:-1], at[1:], strict=True)]
