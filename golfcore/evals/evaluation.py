"""An evaluation in progress: train first if the protocol does, then score chunk by chunk, adapting in between."""

import time
from functools import cached_property
from math import isfinite
from typing import NamedTuple

import numpy as np
import torch

from golfcore.base.errors import UserError
from golfcore.base.runtime import Runtime, all_reduce_sum, send
from golfcore.config import Config
from golfcore.data.tokens import Tables
from golfcore.evals import adapt as ttt
from golfcore.evals import windows as spans
from golfcore.evals.ledger import Ledger, NotFinite, require_finite
from golfcore.evals.ppm import Ppm
from golfcore.evals.result import EvalResult
from golfcore.evals.score import Look, bits_per_byte, bytes_of, score
from golfcore.model.attention import choose_compute
from golfcore.model.forward import Net
from golfcore.model.weights import Weights, count

ALONE = Runtime(torch.device("cpu"), 0, 1, 0, torch.float32)


class Subject(NamedTuple):
    """What is scored: weights on a text, and where it is done."""

    weights: Weights  # never changed
    tokens: np.ndarray  # (total + 1,) ids
    tables: Tables
    runtime: Runtime = ALONE


class Evaluation:
    """The state between two steps of work: the ledger, what adapts, and how far it is.

    `span`: tokens of a row of the result's sums. It is that of the run's configuration, not the protocol's chunk, so
    that the rows of any two protocols on one text pair. `look` sees every batch as it is scored.
    """

    def __init__(self, name: str, cfg: Config, span: int, subject: Subject, look: Look | None = None) -> None:
        self.name, self.cfg, self.span, self.subject, self.look = name, cfg, span, subject, look
        self.runtime, tables = subject.runtime, subject.tables.to(subject.runtime.device)
        self.net = Net(cfg.model, tables, choose_compute(self.runtime))
        self.ledger = Ledger(subject.tokens, rescore=cfg.eval.tail != "exact")
        if self.ledger.total < 1:
            raise UserError(f"protocol {name}: expected at least 2 validation tokens, found {len(subject.tokens)}")
        previous, target = self.ledger.pairs()
        self.bytes = bytes_of(subject.tables.to("cpu"), previous, target)  # of each target
        documents = np.flatnonzero(subject.tables.boundary.cpu().numpy()[previous])
        self.plan = spans.plan(cfg, self.ledger.total, documents)
        self.choosing = self.plan.selected < len(self.plan.rows)  # the rows to train on first, by their loss
        self.adapter = ttt.start(cfg, subject.weights) if spans.adapts(cfg) else None
        self.weights = self.adapter.folded() if self.adapter else subject.weights
        self.ppm = Ppm(cfg.model.vocab_size)
        self.trained = self.chunk = self.resets = 0  # batches before the first score; chunks; starts again
        self.done, self.seconds = 0, 0.0  # tokens of `work`
        self.so_far = np.zeros(2)  # nats and bytes of all scores, repeats among them
        self.losses: dict[int, list[float]] = {}  # of every adaptation step, by chunk; -1: before the first
        self.row_nats: list[float] = []  # mean loss of every row so far, where rows are selected by it
        self.selected = 0  # rows trained on of a chunk, where rows are selected

    # -- progress
    @property
    def work(self) -> int:
        """Tokens to choose among, to train on before the first score, and to score."""
        p, c = self.plan, self.cfg.ttt
        rows = len(p.rows) * self.choosing + (c.epochs + c.sweeps) * p.selected
        return self.cfg.data.seq_len * rows + self.ledger.total - p.dropped + p.repeats

    @property
    def selecting(self) -> bool:
        return self.choosing and len(self.row_nats) < len(self.plan.rows)

    @cached_property
    def batches(self) -> list[np.ndarray]:
        """Row starts of every batch before the first score: of all rows, or, once their losses are known, the worst."""
        best = np.argsort(-np.array(self.row_nats), kind="stable") if self.choosing else np.arange(len(self.plan.rows))
        return spans.batches(self.cfg, self.plan.rows[np.sort(best[: self.plan.selected])])

    @property
    def finished(self) -> bool:
        return self.chunk == len(self.plan.chunks)

    def step(self) -> int:
        """The next rows chosen, batch trained on, or chunk scored and perhaps adapted on. Returns the tokens done.

        ttt.Diverged: adaptation led to values that are not finite.
        """
        began = time.perf_counter()
        before = not self.selecting and self.trained < len(self.batches)
        try:
            tokens = self._read_ahead() if self.selecting else self._train_batch() if before else self._chunk()
        except NotFinite as e:
            if self.adapter is None or not self.adapter.steps:
                raise
            where = f"{'before' if before else 'at'} chunk {self.chunk} of {len(self.plan.chunks)}"
            raise ttt.Diverged(
                f"protocol {self.name}: adaptation at rate {self.cfg.ttt.lr:g} diverged {where} "
                f"({e}); expected a rate that keeps scores finite, set a lower ttt.lr"
            ) from None
        self.seconds += time.perf_counter() - began
        self.done += tokens
        return tokens

    def _read_ahead(self) -> int:
        """Losses of the next rows that are chosen among."""
        t, at = self.cfg.data.seq_len, len(self.row_nats)
        starts = self.plan.rows[at : at + self.cfg.eval.batch_seqs * self.runtime.world]
        self.row_nats += [float(n.mean()) for n in self._scores(np.stack((starts, starts + t, starts), axis=1), t)]
        return len(starts) * t

    def _train_batch(self) -> int:
        adapter, batch, c = self.adapter, self.batches[self.trained], self.cfg.ttt
        assert adapter is not None
        if self.trained == self.plan.first_sweep:
            adapter.slots, adapter.steps = {}, 0
        self._steps(adapter, [batch], c.lr, -1)
        self.trained += 1
        if self.trained == len(self.batches):
            self.weights = adapter.folded()
        return len(batch) * self.cfg.data.seq_len

    def _chunk(self) -> int:
        rows = self.plan.chunks[self.chunk]
        nats = self._scores(rows, spans.window_length(self.cfg), self.look)
        if weight := self.cfg.eval.ppm_weight:
            pairs = [[ids[first:stop] for ids in self.ledger.pairs()] for _, stop, first in rows]
            nats = [-self.ppm.mix(weight, -n, *pair).astype(np.float32) for n, pair in zip(nats, pairs, strict=True)]
        self.ledger.record(rows, nats)
        for (_, stop, first), values in zip(rows, nats, strict=True):
            self.so_far += values.sum(dtype=np.float64), self.bytes[first:stop].sum()
        if self.adapter and self.cfg.ttt.order == "score-first" and self.chunk < len(self.plan.chunks) - 1:
            new_document = self.plan.edges[self.chunk + 1] in self.plan.documents
            if new_document or self.cfg.ttt.reset == "chunk":
                self.adapter = ttt.start(self.cfg, self.subject.weights)
                self.resets += 1
            if not new_document:
                self.adapt(self.adapter)
            self.weights = self.adapter.folded()
        self.chunk += 1
        return int((rows[:, 1] - rows[:, 2]).sum())

    def _scores(self, rows: np.ndarray, length: int, look: Look | None = None) -> list[np.ndarray]:
        """Nats of every window of `length`; each rank scores a contiguous share and all learn all.

        NotFinite: a score that is no number. RuntimeError: a score that no rank made, or several.
        """
        c, r = self.cfg, self.runtime
        edges = [len(rows) * k // r.world for k in (r.rank, r.rank + 1)]
        # where a document ends must not change the shape of a batch, and with it the rounding of what came before
        batch = 1 if c.ttt.reset == "document" else c.eval.batch_seqs
        found = score(self.net, self.weights, self.ledger, rows[slice(*edges)], length, batch, look)
        if r.world > 1:
            starts = np.concatenate(([0], np.cumsum(rows[:, 1] - rows[:, 2])))
            shared = torch.zeros(2, int(starts[-1]), dtype=torch.float64, device=r.device)  # nats, ranks that made them
            mine = slice(*starts[edges].tolist())
            shared[0, mine] = torch.from_numpy(np.concatenate([np.empty(0), *found])).to(shared)
            shared[1, mine] = 1
            nats, made = all_reduce_sum(shared).cpu().numpy()
            if (made != 1).any():
                raise RuntimeError(f"{int((made != 1).sum())} scores were not made by one of {r.world} ranks")
            found = np.split(nats.astype(np.float32), starts[1:-1])
        require_finite(rows, found)
        return found

    def adapt(self, adapter: ttt.Adapter) -> None:
        """Train on the present chunk: on its whole rows, or on those that are hard among all so far."""
        c, t = self.cfg.ttt, self.cfg.data.seq_len
        begin, end = self.plan.edges[self.chunk : self.chunk + 2]
        starts = np.arange(begin, end - t + 1, t)
        if c.top_fraction < 1 and len(starts):
            losses = [float(self.ledger.nats[s : s + t].mean()) for s in starts]
            self.row_nats += losses
            starts = starts[np.array(losses) > np.quantile(self.row_nats, 1 - c.top_fraction)]
            self.selected += len(starts)
        batches = [starts[at : at + c.batch_seqs] for at in range(0, len(starts), c.batch_seqs)]
        self._steps(adapter, c.epochs * batches, ttt.chunk_lr(c, self.chunk, len(self.plan.chunks)), self.chunk)

    def _steps(self, adapter: ttt.Adapter, batches: list[np.ndarray], lr: float, chunk: int) -> None:
        """Train on the batches; NotFinite: a loss that is no number. The host waits for the device once, at the end."""
        found = []
        for starts in batches:
            x, y = send(self.ledger.train(starts, self.cfg.data.seq_len), self.runtime.device)
            found.append(ttt.step(self.cfg, self.net, adapter, x, y, lr, self.runtime))
        losses = torch.stack(found).tolist() if found else []
        if wrong := [(i, loss) for i, loss in enumerate(losses, adapter.steps - len(losses) + 1) if not isfinite(loss)]:
            raise NotFinite("the loss of step {} is {}".format(*wrong[0]))
        if losses:
            self.losses.setdefault(chunk, []).extend(losses)

    # -- what comes of it
    def sums(self, start: int, stop: int) -> tuple[int, float, int]:
        """Targets, nats and bytes of the first scores of the positions [start, stop)."""
        nats = self.ledger.nats[start:stop]
        done = ~np.isnan(nats)
        return int(done.sum()), float(nats[done].sum(dtype=np.float64)), int(self.bytes[start:stop][done].sum())

    def result(self, source: dict) -> EvalResult:
        """RuntimeError: not every target was scored. UserError: something that is switched on touched nothing."""
        ledger, p = self.ledger, self.plan
        tokens, nats, n_bytes = self.sums(0, ledger.total)
        found = {"targets": (tokens, ledger.total - p.dropped), "repeats": (len(ledger.again), p.repeats)}
        if wrong := [f"{done:,} {what} instead of {of:,}" for what, (done, of) in found.items() if done != of]:
            raise RuntimeError(f"protocol {self.name}: {', '.join(wrong)}")
        nats += sum(n for _, n in ledger.again)
        n_bytes += sum(int(self.bytes[position]) for position, _ in ledger.again)
        if not n_bytes:
            raise UserError(f"protocol {self.name}: expected text, found {tokens:,} targets that stand for no byte")
        return EvalResult(
            protocol=self.name,
            legality=ledger.legality,
            nats=nats,
            tokens=tokens + p.repeats,
            bytes=n_bytes,
            bpb=bits_per_byte(nats, n_bytes),
            repeats=p.repeats,
            dropped=p.dropped,
            seconds=self.seconds,
            chunks=[self._row(start) for start in range(0, ledger.total, self.span)],
            adapt_losses=self.losses.get(-1, []),
            coverage=self._coverage(),
            source=source,
            per_target=ledger.nats,
            adapted=self.adapter.folded() if self.adapter else None,
        )

    def _row(self, start: int) -> dict:
        """Sums over a `span` of positions, with the losses of the adaptation steps of chunks that begin in it."""
        stop = min(start + self.span, self.ledger.total)
        _, nats, n_bytes = self.sums(start, stop)
        own = range(*np.searchsorted(self.plan.edges, (start, start + self.span)))
        losses = [loss for chunk in own for loss in self.losses.get(chunk, [])]
        row = {"chunk": start // self.span, "start": start, "stop": stop}
        return row | {"nats": nats, "bytes": n_bytes, "adapt_losses": losses}

    def _coverage(self) -> dict[str, dict]:
        """What is switched on, by feature, and what it touched. UserError: nothing of what it could."""
        found: dict[str, tuple[int, int, str, str]] = {}  # done, of, unit, and why it did nothing: a declared quirk
        c, p, weights = self.cfg.ttt, self.plan, self.subject.weights
        if self.adapter is not None:
            moved, held = self.adapter.scope.sizes(self.adapter.weights)
            found["ttt_adapted"] = moved, moved + held if c.adapted == "lora" else count(weights), "values", ""
            if c.freeze_blocks:
                quirk = "published: the freeze names no matrix" if c.freeze == "scalars" else ""
                found["ttt_frozen"] = held, moved + held, "values", quirk
            if c.top_fraction < 1:
                selected = p.selected if self.choosing else self.selected
                found["ttt_rows"] = selected, len(p.rows) or p.adapted_rows, "rows", ""
            if c.reset != "never":
                places = p.documents[p.documents > 0] if c.reset == "document" else p.chunks[1:]
                found["ttt_resets"] = self.resets, len(places), f"{c.reset}s", ""
            if c.qat_projections:
                size = sum(weights.rest[name].numel() for name in ttt.projections(self.cfg))
                found["ttt_projections"] = size, size, "values", ""
            short = "" if p.steps else "the text is too short: no chunk is followed by another"
            found["ttt_steps"] = sum(map(len, self.losses.values())), p.steps, "steps", short
        if self.cfg.eval.ppm_weight:
            found["ppm"] = int(self.ppm.all[0]), self.ledger.total, "targets", ""
        for feature, (done, of, unit, note) in found.items():
            if not done and not note and p.steps:
                raise UserError(f"protocol {self.name}: {feature} is switched on but touched 0 of {of:,} {unit}")
        return {f: dict(zip(("done", "of", "unit", "note"), row, strict=True)) for f, row in found.items()}
