"""Where a scorer is examined: fresh copies of it, counted runs, streams changed on purpose, files watched."""

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from golfcore.evals.audit.scorer import Scorer, Scores

CODE = {".py", ".pyc", ".pyi", ".so", ".pth"}  # opened by Python itself when a module is first used
PROBES = 12
LONG = (2_500, 5_000)  # targets of the long stream, drawn between
SYSTEM = ("/proc/", "/sys/", "/dev/")


@dataclass(frozen=True)
class Layout:
    """Where a stream of `total` targets is cut and changed, made by `layout`. Tokens and positions count from 0."""

    cuts: Sequence[int]  # T1: tokens from each on are replaced
    swaps: Sequence[int]  # T2, T3, T5: positions whose target alone is replaced
    prefixes: Sequence[int]  # T4: numbers of targets that the stream is cut to
    blackbox: Sequence[int]  # T6: positions whose target is replaced by every token of the vocabulary
    canary: slice  # T10: tokens that are drawn at random
    shuffles: Sequence[int]  # T12: tokens from each on are permuted
    pieces: Sequence[int]  # T12: where the pieces (documents) begin that are permuted


def layout(total: int, chunk: int, stride: int, documents: Sequence[int] = ()) -> Layout:
    """Cuts at both ends of the stream, inside and at the end of a window's span, and around the end of a chunk.

    `chunk`, `stride`, `documents`: as `golfcore.evals.audit.audit`. Without at least three documents after the first
    chunk, quarters of a chunk take their place. ValueError: fewer than three chunks.
    """
    if total < 3 * chunk or chunk < 4:
        raise ValueError(f"expected at least 3 chunks of 4 targets or more, found {total} targets in chunks of {chunk}")
    chunks = total // chunk
    middle = chunks // 2 * chunk
    cuts = {2, stride // 2 + 1, stride, stride + 1, chunk - 1, chunk, chunk + 1, chunk + 2, middle, middle + 1}
    cuts |= {k * chunk + chunk // 2 for k in range(1, chunks, -(-chunks // 8))} | {total - chunk // 4}
    pieces = [int(d) for d in documents if chunk < d < total]
    if len(pieces) < 3:
        pieces = list(range(chunk + 1, total, max(chunk // 4, 1)))
    size = min(256, total // 4)
    return Layout(
        cuts=sorted(c for c in cuts if 2 <= c <= total),
        swaps=(0, chunk - 1, chunk, middle + chunk // 2),
        prefixes=sorted({chunk, middle, (chunks - 1) * chunk}),
        blackbox=sorted({1, min(stride, chunk - 1)}),
        canary=slice(middle - size // 2, middle - size // 2 + size),
        shuffles=(pieces[0], pieces[len(pieces) // 2 - 1]),
        pieces=pieces,
    )


@dataclass
class Bench:
    """A scorer, the stream it is examined on, and what its runs gave."""

    scorer: Scorer
    tokens: np.ndarray  # (total + 1,)
    vocab_size: int
    layout: Layout
    seed: int = 0  # of everything that is drawn; a scorer that does not know it cannot know where it is looked at
    tolerance: float = 0.0  # nats that may differ between runs that should agree, because repeated runs do
    runs: int = 0
    opened: list[str] = field(default_factory=list)  # files and connections opened by the scorer's runs
    _scores: dict[bytes, Scores] = field(default_factory=dict)
    _rows: dict[bytes, np.ndarray] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return len(self.tokens) - 1

    def fresh(self) -> Scorer:
        return copy.deepcopy(self.scorer)

    def run(self, tokens: np.ndarray) -> Scores:
        """What a fresh scorer makes of the stream; each stream is run once."""
        key = tokens.tobytes()
        if key not in self._scores:
            self._scores[key] = self.run_of(self.fresh(), tokens)
        return self._scores[key]

    def run_of(self, scorer: Scorer, tokens: np.ndarray) -> Scores:
        """What this very scorer makes of the stream."""
        self.runs += 1
        with watcher().watching(self.opened):
            scores = _unseen(scorer.run, tokens.copy())
        self._heard(scorer)
        positions, nats = np.asarray(scores.positions), np.asarray(scores.nats, dtype=np.float64)
        states = None if scores.states is None else np.asarray(scores.states)
        if positions.shape != nats.shape or positions.ndim != 1 or (states is not None and states.shape != nats.shape):
            raise ValueError(f"run: expected positions and nats of shape (n,), found {positions.shape}, {nats.shape}")
        return Scores(positions.astype(np.int64), nats, scores.log, states, scores.start)

    def nats(self, tokens: np.ndarray, scorer: Scorer | None = None) -> np.ndarray:
        """The first score of each position by a fresh scorer, or by this very one, (len(tokens) - 1,)."""
        scores = self.run(tokens) if scorer is None else self.run_of(scorer, tokens)
        return scores.dense(len(tokens) - 1)

    def rows(self, tokens: np.ndarray, positions: Sequence[int]) -> np.ndarray:
        """ln p (len(positions), V) by a fresh scorer; each question is asked once."""
        at = np.asarray(positions, dtype=np.int64)
        key = tokens.tobytes() + at.tobytes()
        if key not in self._rows:
            self._rows[key] = self.rows_of(self.fresh(), tokens, at)
        return self._rows[key]

    def rows_of(self, scorer: Scorer, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        self.runs += 1
        with watcher().watching(self.opened):
            rows = np.asarray(_unseen(scorer.log_probs, tokens.copy(), positions), dtype=np.float64)
        self._heard(scorer)
        if rows.shape != (len(positions), self.vocab_size):
            raise ValueError(f"log_probs: expected shape {(len(positions), self.vocab_size)}, found {rows.shape}")
        return rows

    def _heard(self, scorer: Scorer) -> None:
        """What a scorer in another process tried to open there since it was last asked."""
        heard = getattr(scorer, "opened", [])
        self.opened += heard
        heard.clear()

    def probes(self) -> list[int]:
        """Positions whose target is replaced: those of the layout, some drawn at random, some of the lowest scores."""
        drawn = self.rng(21).integers(0, self.total, PROBES)
        sure = np.argsort(self.nats(self.tokens), kind="stable")[:PROBES]  # NaN comes last
        return sorted({*self.layout.swaps, *drawn.tolist(), *sure.tolist()})

    # -- changed streams
    def replaced(self, start: int, stop: int, salt: int, tokens: np.ndarray | None = None) -> np.ndarray:
        """The stream, or `tokens`, with every token of [start, stop) replaced by another, drawn at random."""
        out = (self.tokens if tokens is None else tokens).copy()
        shift = self.rng(salt, start, stop).integers(1, self.vocab_size, len(out[start:stop]))
        out[start:stop] = (out[start:stop].astype(np.int64) + shift) % self.vocab_size
        return out

    def drawn(self, start: int, stop: int, salt: int) -> np.ndarray:
        """The stream with the tokens of [start, stop) drawn uniformly: what was there has no say."""
        out = self.tokens.copy()
        out[start:stop] = self.rng(salt).integers(0, self.vocab_size, len(out[start:stop]))
        return out

    def swapped(self, position: int, tokens: np.ndarray | None = None) -> np.ndarray:
        """The stream, or `tokens`, with only the target of `position` replaced."""
        return self.replaced(position + 1, position + 2, 2, tokens)

    def lengthened(self) -> np.ndarray:
        """A stream as long as real ones begin to be, of a length that is drawn: stretches of this one from anywhere."""
        rng = self.rng(14)
        total, size = int(rng.integers(*LONG)), max(self.total // 8, 1)
        starts = rng.integers(0, self.total - size + 1, -(-total // size) + 1)
        return np.concatenate([self.tokens[at : at + size] for at in starts.tolist()])[: total + 1]

    def rng(self, *salt: int) -> np.random.Generator:
        """Numbers that depend on the seed, and on what they are for."""
        return np.random.default_rng((self.seed, *salt))


def _unseen(question: Callable[..., Any], *arguments: object) -> Any:
    """The answer, given in a thread of its own, on whose stack nothing says who asks."""
    with ThreadPoolExecutor(1) as alone:
        return alone.submit(question, *arguments).result()


class Watcher:
    """Hears of every file that Python code opens and of every connection it makes, through an audit hook.

    Libraries that open files from C are not heard. A hook cannot be taken off, so a process has one watcher.
    """

    def __init__(self) -> None:
        self._into: list[str] | None = None
        sys.addaudithook(self._hear)

    @contextmanager
    def watching(self, into: list[str]) -> Iterator[None]:
        self._into = into
        try:
            yield
        finally:
            self._into = None

    def _hear(self, event: str, args: tuple) -> None:
        if self._into is None:
            return
        if event == "open" and isinstance(args[0], str | bytes | Path):
            name = args[0].decode(errors="replace") if isinstance(args[0], bytes) else str(args[0])
            if Path(name).suffix not in CODE and not name.startswith(SYSTEM):
                self._into.append(name)
        elif event == "socket.connect":
            self._into.append(f"connection to {args[1]}")


@cache
def watcher() -> Watcher:
    return Watcher()
