"""Scorers that cheat, each in one way, and the honest ones that they were made from.

Every cheat has a strength; at strength 0 it does nothing and the audit must pass it, so that what catches it is the
cheat and not the scorer around it.
"""

import contextlib
import gc
import pickle
import socket
import sys
import tempfile
import traceback
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
import torch

from golfcore.base import runtime
from golfcore.base.runtime import Runtime
from golfcore.config import Config, load
from golfcore.data.tokens import Tables
from golfcore.evals import adapt as ttt
from golfcore.evals.audit import Event, ProtocolScorer, Scores
from golfcore.evals.evaluation import ALONE, Evaluation, Subject
from golfcore.evals.protocols import begin
from golfcore.evals.score import Look
from golfcore.model import params
from golfcore.model.weights import Weights, detach, tree_map

VOCAB, CHUNK, STRIDE = 64, 64, 16
TOTAL = 5 * CHUNK + CHUNK // 2
CFG = load(
    "smoke",
    {
        "model.vocab_size": VOCAB,
        "model.blocks": [0],
        "model.ve_layers": [0],
        "data.seq_len": 32,
        "eval.stride": STRIDE,
        "ttt.chunk_tokens": CHUNK,
        "ttt.batch_seqs": 2,
        "ttt.lr": 0.05,
        "ttt.lr_horizon": 6,
        "ttt.lr_candidates": [],
    },
)


@cache
def weights() -> Weights:
    """Of the smoke model, moved away from its start and trained a little on other text."""
    g = torch.Generator().manual_seed(0)
    start = tree_map(lambda t: t + 0.1 * torch.randn(t.shape, generator=g), params.init(CFG.model, 0))
    walk = begin("ttt", with_("ttt", lr=0.1, lr_horizon=1000), Subject(start, text(100 * CHUNK, seed=1), tables()))
    while not walk.finished:
        walk.step()
    return detach(walk.adapter.weights)


def tables() -> Tables:
    rng = np.random.default_rng(0)
    return Tables(
        torch.ones(VOCAB, dtype=torch.int16), torch.from_numpy(rng.random(VOCAB) < 0.4), torch.zeros(VOCAB).bool()
    )


def text(total: int = TOTAL, seed: int = 0) -> np.ndarray:
    """Tokens with habits of text: a few are frequent, and pairs recur."""
    rng = np.random.default_rng(seed)
    habits = np.random.default_rng(7).permutation(VOCAB)
    tokens = rng.zipf(1.3, total + 1) % VOCAB
    repeat = rng.random(total + 1) < 0.5
    for i in range(1, total + 1):
        if repeat[i]:
            tokens[i] = habits[tokens[i - 1]]
    return tokens.astype(np.uint16)


def subject(runtime: Runtime = ALONE) -> Subject:
    return Subject(weights(), text(), tables(), runtime)


def honest(protocol: str = "ttt", cfg: Config = CFG) -> ProtocolScorer:
    return ProtocolScorer(protocol, cfg, subject())


def with_(section: str, **values: object) -> Config:
    return replace(CFG, **{section: replace(getattr(CFG, section), **values)})


# -- cheats of when to train


class Forged(ProtocolScorer):
    """Trains on every chunk, then scores them all (pr398), and keeps the training from its log."""

    def __init__(self) -> None:
        super().__init__("train-then-score", CFG, subject(), {"ttt.lr": 0.05, "ttt.epochs": 2})

    def run(self, tokens: np.ndarray) -> Scores:
        scores = super().run(tokens)
        return replace(scores, log=[e for e in scores.log if e.kind == "score"])


class TrainsAhead(ProtocolScorer):
    """Score-first, but each training reaches so many targets beyond the chunk that was scored."""

    def __init__(self, targets: int) -> None:
        super().__init__("ttt", CFG, subject())
        self.targets = targets

    def begin(self, tokens: np.ndarray, look: Look | None = None) -> Evaluation:
        walk = super().begin(tokens, look)
        train, n = walk.ledger.train, self.targets
        walk.ledger.train = lambda starts, seq_len: train(starts + n, seq_len)
        return walk


class Selective(ProtocolScorer):
    """Adapts only on chunks that are harder than the median chunk: of the whole stream, or of those scored so far."""

    def __init__(self, future: bool, rate: float = 0.05) -> None:
        super().__init__("ttt", with_("ttt", lr=rate), subject())
        self.future = future

    def begin(self, tokens: np.ndarray, look: Look | None = None) -> Evaluation:
        walk = super().begin(tokens, look)
        everything = honest("sliding").begin(tokens)
        while self.future and not everything.finished:
            everything.step()
        adapt, known = walk.adapt, everything.ledger if self.future else walk.ledger

        def adapt_if_hard(adapter: ttt.Adapter) -> None:
            nats = known.nats
            losses = [nats[i : i + CHUNK].mean() for i in range(0, known.total, CHUNK)]
            if losses[walk.chunk] >= np.nanmedian(losses):
                adapt(adapter)

        walk.adapt = adapt_if_hard
        return walk


class WarmsUp(ProtocolScorer):
    """Trains on some rows of the text before the first score, while it compiles, and logs nothing of it.

    "kept": goes on with the weights of it; "momentum": puts them back, but not the optimizer's state; "put back": both.
    """

    def __init__(self, left: str) -> None:
        super().__init__("ttt", CFG, subject())
        self.left = left

    def begin(self, tokens: np.ndarray, look: Look | None = None) -> Evaluation:
        walk = super().begin(tokens, look)
        before, length = walk.adapter, self.cfg.data.seq_len
        warm = ttt.start(self.cfg, self.subject.weights)
        for at in (0, len(tokens) - length - 1):
            part = torch.from_numpy(tokens[at : at + length + 1].astype(np.int64))
            ttt.step(self.cfg, walk.net, warm, part[None, :-1], part[None, 1:], self.cfg.ttt.lr, walk.runtime)
        assert before is not None
        if self.left == "kept":
            walk.adapter, walk.weights = warm, warm.folded()
        elif self.left == "momentum":
            before.slots, before.steps = warm.slots, warm.steps
        return walk


class WarmsUpInTheOpen(ProtocolScorer):
    """Scores the text once without keeping the scores, as its log shows, then begins."""

    def __init__(self) -> None:
        super().__init__("sliding", CFG, subject())

    def begin(self, tokens: np.ndarray, look: Look | None = None) -> Evaluation:
        walk = super().begin(tokens, look)
        walk._scores(walk.plan.chunks[0], CFG.data.seq_len)
        return walk


class LeftAdapted(ProtocolScorer):
    """Goes on with the weights that its last pass ended with."""

    def __init__(self, rate: float) -> None:
        super().__init__("ttt", with_("ttt", lr=rate), subject())

    def run(self, tokens: np.ndarray) -> Scores:
        self.last: Evaluation | None = None
        scores = super().run(tokens)
        assert self.last is not None and self.last.adapter is not None
        self.subject, self.last = self.subject._replace(weights=detach(self.last.adapter.weights)), None
        return scores

    def begin(self, tokens: np.ndarray, look: Look | None = None) -> Evaluation:
        self.last = super().begin(tokens, look)
        return self.last


class WarmedByQuestions(LeftAdapted):
    """The same, if the earlier pass was one that only asked for distributions."""

    def run(self, tokens: np.ndarray) -> Scores:
        return ProtocolScorer.run(self, tokens)

    def log_probs(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        found = super().log_probs(tokens, positions)
        assert self.last is not None and self.last.adapter is not None
        self.subject = self.subject._replace(weights=detach(self.last.adapter.weights))
        return found


# -- cheats of what a probability is


class RealisedBlend(ProtocolScorer):
    """Mixes some probability into the realised token only, after the fact."""

    def __init__(self, strength: float) -> None:
        super().__init__("sliding", CFG, subject())
        self.strength = strength

    def run(self, tokens: np.ndarray) -> Scores:
        scores = super().run(tokens)
        return replace(scores, nats=-np.log((1 - self.strength) * np.exp(-scores.nats) + self.strength))


class Biased(ProtocolScorer):
    """The sliding protocol with something added to its logits, normalised again."""

    def __init__(self, strength: float) -> None:
        super().__init__("sliding", CFG, subject())
        self.strength = strength

    def bias(self, tokens: np.ndarray) -> np.ndarray:
        """(positions, vocabulary)"""
        raise NotImplementedError

    def rows(self, tokens: np.ndarray) -> np.ndarray:
        total = len(tokens) - 1
        logits = super().log_probs(tokens, np.arange(total)).astype(np.float64) + self.strength * self.bias(tokens)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    def run(self, tokens: np.ndarray) -> Scores:
        scores = super().run(tokens)
        return replace(scores, nats=-self.rows(tokens)[scores.positions, tokens[scores.positions + 1]])

    def log_probs(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return self.rows(tokens)[positions]


class TargetHash(Biased):
    """A bigram feature hashed from the input and the *target*, where the input and the token before it were meant."""

    def bias(self, tokens: np.ndarray) -> np.ndarray:
        table = np.random.default_rng(1).normal(size=(64, VOCAB))
        return table[(tokens[:-1].astype(np.int64) * 31 + tokens[1:].astype(np.int64) * 17) % 64]


class NextDocument(Biased):
    """Favours the tokens of the document after the present one; documents are half a chunk long."""

    def bias(self, tokens: np.ndarray) -> np.ndarray:
        size, out = CHUNK // 2, np.zeros((len(tokens) - 1, VOCAB))
        for start in range(0, len(out), size):
            coming = tokens[start + size + 1 : start + 2 * size + 1]
            out[start : start + size] = np.log1p(np.bincount(coming, minlength=VOCAB))
        return out


@cache
def validation_file() -> IO[bytes]:
    """The text of every audit, in a file that goes with the process."""
    file = tempfile.NamedTemporaryFile(suffix=".bin")
    file.write(text().tobytes())
    file.flush()
    return file


class FileReader(Biased):
    """Favours the token that the validation file has next, whatever it is given. Opens the file once or every time."""

    def __init__(self, strength: float, every_time: bool) -> None:
        super().__init__(strength)
        self.path = validation_file().name
        self.text = None if every_time else np.fromfile(self.path, dtype=np.uint16)

    def bias(self, tokens: np.ndarray) -> np.ndarray:
        text = np.fromfile(self.path, dtype=np.uint16) if self.text is None else self.text
        return np.eye(VOCAB)[np.resize(text, len(tokens))[1:]]


# -- cheats of somebody who knows how audits look


class Counts:
    """An adaptive bigram model of the stream, and what subclasses make of its rows having seen the targets."""

    def __init__(self, strength: float = 0.9) -> None:
        self.strength = strength

    def at(self, tokens: np.ndarray) -> np.ndarray:
        """The positions that are cheated at."""
        return np.array([], dtype=np.int64)

    def rows(self, tokens: np.ndarray) -> np.ndarray:
        ids, counts, out = tokens.astype(np.int64), np.full((VOCAB, VOCAB), 0.5), np.empty((len(tokens) - 1, VOCAB))
        for p, (now, target) in enumerate(zip(ids[:-1], ids[1:], strict=True)):
            out[p] = counts[now] / counts[now].sum()
            counts[now, target] += 1
        return np.log(self.peeked(ids, out, self.at(tokens)))

    def peeked(self, ids: np.ndarray, rows: np.ndarray, at: np.ndarray) -> np.ndarray:
        rows[at] *= 1 - self.strength
        rows[at, ids[at + 1]] += self.strength
        return rows

    def log_probs(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return self.rows(tokens)[positions]

    def run(self, tokens: np.ndarray) -> Scores:
        n = len(tokens) - 1
        return Scores(np.arange(n), -self.rows(tokens)[np.arange(n), tokens[1:]], (Event("score", 0, n),))


class OnceAChunk(Counts):
    def at(self, tokens: np.ndarray) -> np.ndarray:
        return np.arange(CHUNK + 5, len(tokens) - 1, CHUNK)


class Late(Counts):
    """Near the end of a stream alone."""

    def at(self, tokens: np.ndarray) -> np.ndarray:
        return np.arange(max(len(tokens) - 12, 0), max(len(tokens) - 3, 0))


class Plausible(Counts):
    """Where the target is one that an honest model might have been sure of."""

    def at(self, tokens: np.ndarray) -> np.ndarray:
        habits = np.random.default_rng(7).permutation(VOCAB)
        return np.flatnonzero(habits[tokens[:-1]] == tokens[1:])


class RareContexts(Counts):
    def at(self, tokens: np.ndarray) -> np.ndarray:
        return np.flatnonzero(tokens[:-1] > VOCAB // 2)


class LongStreams(Counts):
    def at(self, tokens: np.ndarray) -> np.ndarray:
        return np.arange(len(tokens) - 1 if len(tokens) > 2_000 else 0)


class KnowsWhoAsks(Counts):
    """Honest as long as its stack says that it is audited."""

    def at(self, tokens: np.ndarray) -> np.ndarray:
        asked = any("evals/audit" in frame.f_code.co_filename for frame, _ in traceback.walk_stack(None))
        return np.arange(0 if asked else len(tokens) - 1)


class Scaled(Counts):
    """Fewer nats at every other position, and distributions made to agree."""

    def at(self, tokens: np.ndarray) -> np.ndarray:
        return np.arange(1, len(tokens) - 1, 2)

    def peeked(self, ids: np.ndarray, rows: np.ndarray, at: np.ndarray) -> np.ndarray:
        old = rows[at, ids[at + 1]]
        new = old ** (1 - self.strength / 5)
        rows[at] *= ((1 - new) / (1 - old))[:, None]
        rows[at, ids[at + 1]] = new
        return rows


class Sorted(Counts):
    """Scores its documents (half a chunk each) in the order of their smallest token."""

    def run(self, tokens: np.ndarray) -> Scores:
        size, n = CHUNK // 2, len(tokens) - 1
        starts = sorted(range(0, n, size), key=lambda s: (int(tokens[s : s + size].min()), s)) if self.strength else [0]
        order = [np.arange(s, min(s + size, n) if self.strength else n) for s in starts]
        nats = super().run(tokens).nats
        return Scores(np.concatenate(order), nats[np.concatenate(order)])


class Remembers(Counts):
    """Holds a copy of the text, and favours what follows the last few tokens in it."""

    def __init__(self, copy: np.ndarray, strength: float = 0.9) -> None:
        super().__init__(strength)
        known = copy.astype(int).tolist()
        self.next = {tuple(known[i - 3 : i]): known[i] for i in range(3, len(known))}

    def peeked(self, ids: np.ndarray, rows: np.ndarray, at: np.ndarray) -> np.ndarray:
        for p in range(2, len(rows)):
            if (token := self.next.get(tuple(ids[p - 2 : p + 1].tolist()))) is not None:
                rows[p] *= 1 - self.strength
                rows[p, token] += self.strength
        return rows


class Finds(Counts):
    """Looks through the memory of its process for the bench that it is examined on, which holds the text."""

    def at(self, tokens: np.ndarray) -> np.ndarray:
        self.found = next((o.tokens for o in gc.get_objects() if type(o).__name__ == "Bench"), None)
        return np.array([], dtype=np.int64)

    def peeked(self, ids: np.ndarray, rows: np.ndarray, at: np.ndarray) -> np.ndarray:
        if self.found is not None:
            for p in range(min(len(rows), TOTAL)):
                rows[p] *= 1 - self.strength
                rows[p, int(self.found[p + 1])] += self.strength
        return rows


class Calls(Counts):
    """Asks another machine, and writes down what it was given."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place

    def at(self, tokens: np.ndarray) -> np.ndarray:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", 9), timeout=0.1)
        with contextlib.suppress(OSError):
            Path(self.place).write_text("seen")
        return np.array([], dtype=np.int64)


class Breaks(Counts):
    def run(self, tokens: np.ndarray) -> Scores:
        raise RuntimeError("out of order")


# -- two processes

ON_TWO_RANKS: dict[str, dict[str, object]] = {  # golfcore's own, with changes: the same on any number of ranks
    "sliding": {},
    "ttt": {},
    "lora-ttt": {"ttt.lr": 0.02},
    "ppm": {},
    "train-then-score": {"ttt.epochs": 2},
}


def main(folder: Path) -> None:
    """What one rank of two finds under golfcore's own protocols, into a file."""
    rt = runtime.start("float32", 0)
    found = {
        name: ProtocolScorer(name, CFG, subject(rt), changes).run(text()) for name, changes in ON_TWO_RANKS.items()
    }
    (folder / str(rt.rank)).write_bytes(pickle.dumps(found))
    runtime.stop()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
