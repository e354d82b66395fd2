"""Which positions a window sees and which of them it scores, and all that an evaluation will do, before it begins.

Position p (0 <= p < total) is an input whose target is token p + 1. A row (start, stop, score_from) is a window over
the positions [start, stop) that scores [score_from, stop).
"""

from typing import NamedTuple

import numpy as np

from golfcore.config import Config


def window_length(cfg: Config) -> int:
    """Positions of a window: `eval.seq_len`, or as many as a row of training has."""
    return cfg.eval.seq_len or cfg.data.seq_len


def windows(total: int, seq_len: int, stride: int, tail: str = "exact") -> np.ndarray:
    """(n, 3) int64 rows for a stream of `total` targets; stride = seq_len does not overlap, and is the most.

    tail "exact": the last window is cut at the end and scores what is left, so every target is scored once.
    tail "exp101": every start that leaves at least one stride makes a window, and all windows cut at the end score the
    same last stride again; a remainder shorter than a stride is dropped where windows do not overlap.
    tail "pr398": the same, but every start that leaves at least one position makes a window.
    """
    if tail == "exact":
        starts = stride * np.arange(1 + max(0, -(-(total - seq_len) // stride)))
        stops = np.minimum(starts + seq_len, total)
        score_from = starts + seq_len - stride
    else:
        starts = np.arange(0, total, stride)
        starts = starts[(total - starts >= (stride if tail == "exp101" else 1)) | (starts == 0)]
        stops = np.minimum(starts + seq_len, total)
        score_from = stops - np.minimum(stride, stops - starts)
    score_from[0] = 0
    return np.stack((starts, stops, score_from), axis=1).astype(np.int64)


def chunk_edges(total: int, chunk_tokens: int, documents: np.ndarray | None = None) -> np.ndarray:
    """(chunks + 1,) positions where chunks of at most `chunk_tokens` begin, at each of `documents` too; and `total`."""
    firsts = np.unique(np.append(0, documents if documents is not None else [])).astype(np.int64)
    pieces = [np.arange(a, b, chunk_tokens) for a, b in zip(firsts, [*firsts[1:], total], strict=True)]
    return np.append(np.concatenate(pieces), total)


def split(rows: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The windows with every scored span that crosses an edge divided there; both parts keep the window's start."""
    out = []
    for start, stop, score_from in rows.tolist():
        inner = edges[np.searchsorted(edges, score_from, "right") : np.searchsorted(edges, stop, "left")].tolist()
        out += [(start, b, a) for a, b in zip([score_from, *inner], [*inner, stop], strict=True)]
    return np.array(out, dtype=np.int64)


def by_chunk(rows: np.ndarray, edges: np.ndarray) -> list[np.ndarray]:
    """The windows of each chunk: a window belongs to the chunk of the first position that it scores.

    Where a stride does not divide a chunk, a window also scores the first positions of the next chunk: before that
    chunk is trained on, as all others.
    """
    return np.split(rows, np.searchsorted(rows[:, 2], edges[1:-1]))


class Plan(NamedTuple):
    """What an evaluation of a text will do."""

    edges: np.ndarray  # (chunks + 1,) positions where chunks begin, and the end
    chunks: list[np.ndarray]  # of each chunk its windows, (n, 3)
    documents: np.ndarray  # positions where adaptation starts again, if it does at every document
    rows: np.ndarray  # starts of the rows that may be trained on before the first score
    selected: int  # how many of them are
    first_sweep: int  # batches before the first score after which the optimizer starts again
    steps: int  # optimizer steps, at most
    adapted_rows: int  # rows that may be trained on after a score
    dropped: int  # targets that the published tail leaves out
    repeats: int  # scores beyond the first of a target


def adapts(cfg: Config) -> bool:
    return cfg.ttt.epochs + cfg.ttt.sweeps > 0


def plan(cfg: Config, total: int, documents: np.ndarray) -> Plan:
    """The plan for `total` targets; `documents` are the positions whose input begins one (read if they matter)."""
    c, t, none = cfg.ttt, cfg.data.seq_len, np.empty(0, dtype=np.int64)
    spans = windows(total, window_length(cfg), cfg.eval.stride, cfg.eval.tail)
    dropped = total - int(spans[:, 1].max())
    repeats = int((spans[:, 1] - spans[:, 2]).sum()) - (total - dropped)
    score_first = adapts(cfg) and c.order == "score-first"
    documents = documents if score_first and c.reset == "document" else none
    edges = chunk_edges(total, c.chunk_tokens, documents)
    if len(documents):
        spans = split(spans, edges)  # what a document ends with is scored before its adaptation is dropped
    rows, selected, first_sweep, steps, adapted_rows = none, 0, 0, 0, 0
    if score_first:
        counts = (np.diff(edges)[:-1] // t)[~np.isin(edges[1:-1], documents)]
        steps, adapted_rows = c.epochs * int((-(-counts // c.batch_seqs)).sum()), int(counts.sum())
    elif adapts(cfg):
        rows = t * np.arange(total // t)
        selected = max(1, int(c.top_fraction * len(rows))) if c.top_fraction < 1 and len(rows) else len(rows)
        first_sweep = c.epochs * len(epoch(cfg, rows[:selected]))
        steps = len(batches(cfg, rows[:selected]))
    counted = (selected, first_sweep, steps, adapted_rows, dropped, repeats)
    return Plan(edges, by_chunk(spans, edges), documents, rows, *counted)


def batches(cfg: Config, starts: np.ndarray) -> list[np.ndarray]:
    """Row starts of every batch of a train-first protocol: epochs over the rows, then sweeps, a batch a chunk."""
    per_chunk = max(1, cfg.ttt.chunk_tokens // cfg.data.seq_len)
    sweep = [starts[at : at + per_chunk] for at in range(0, len(starts), per_chunk)]
    return cfg.ttt.epochs * epoch(cfg, starts) + cfg.ttt.sweeps * sweep


def epoch(cfg: Config, starts: np.ndarray) -> list[np.ndarray]:
    """The batches of one pass: `batch_seqs` rows from each of `shards` parts of the stream."""
    size, n = cfg.ttt.batch_seqs, cfg.ttt.shards
    parts = np.split(starts, [len(starts) * k // n for k in range(1, n)])
    return [np.concatenate([p[at : at + size] for p in parts]) for at in range(0, max(map(len, parts)), size)]
