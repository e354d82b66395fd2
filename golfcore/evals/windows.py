"""Which positions a window sees and which of them it scores.

Position p (0 <= p < total) is an input whose target is token p + 1. A row (start, stop, score_from) is a window over
the positions [start, stop) that scores [score_from, stop).
"""

import numpy as np

from golfcore.errors import UserError


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


def n_chunks(total: int, chunk_tokens: int) -> int:
    return -(-total // chunk_tokens)


def by_chunk(rows: np.ndarray, total: int, chunk_tokens: int) -> list[np.ndarray]:
    """The windows of each chunk: a window belongs to the chunk of the first position that it scores.

    Raises UserError if a scored span would straddle two chunks (score-first adaptation would then train too early).
    """
    chunk = np.minimum(rows[:, 2] // chunk_tokens, n_chunks(total, chunk_tokens) - 1)
    ends = np.minimum((chunk + 1) * chunk_tokens, total)
    if (rows[:, 1] > ends).any():
        bad = rows[rows[:, 1] > ends][0]
        raise UserError(
            f"a window scores positions {bad[2]} to {bad[1]}, across the end of a chunk of {chunk_tokens} tokens: "
            "expected a chunk that is a multiple of the stride and of no less than a window"
        )
    edges = np.searchsorted(chunk, np.arange(n_chunks(total, chunk_tokens) + 1))
    return [rows[a:b] for a, b in zip(edges[:-1], edges[1:], strict=True)]
