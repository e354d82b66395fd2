"""An evaluation in progress: train first if the protocol does, then score chunk by chunk, adapting in between."""

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from golfcore.base import tensors
from golfcore.base.runtime import Runtime, all_reduce_sum
from golfcore.config import Config
from golfcore.data.tokens import Tables
from golfcore.evals import adapt as ttt
from golfcore.evals.ledger import Ledger
from golfcore.evals.ppm import Ppm
from golfcore.evals.result import EvalResult
from golfcore.evals.score import Look, bits_per_byte, bytes_of, score
from golfcore.evals.windows import by_chunk, chunk_edges, split, windows
from golfcore.model.attention import Compute
from golfcore.model.forward import Net
from golfcore.model.weights import Weights, flat

SAVE_EVERY_SECONDS = 20.0


class Walk:
    """The state between two steps of work: the ledger, what adapts, and how far it is.

    `span`: tokens of a row of the result, the same for protocols of any chunk, so that they pair.
    """

    def __init__(
        self,
        cfg: Config,
        span: int,
        ledger: Ledger,
        weights: Weights,
        tables: Tables,
        runtime: Runtime,
        compute: Compute,
        resume: Path | None,
        look: Look | None,
    ) -> None:
        self.cfg, self.span, self.ledger, self.tables = cfg, span, ledger, tables.to(runtime.device)
        self.runtime, self.resume = runtime, resume
        self.net = Net(cfg.model, self.tables, compute)
        self.packed = weights
        adapts = cfg.ttt.epochs + cfg.ttt.sweeps > 0
        self.adapter = ttt.start(cfg, weights) if adapts else None
        self.weights = self.adapter.folded() if self.adapter else weights
        self._lay_out(adapts)
        self.ppm, self.look = Ppm(cfg.model.vocab_size), look
        if look is not None and cfg.eval.ppm_weight:
            self.look = _blended(look, cfg.eval.ppm_weight, Ppm(cfg.model.vocab_size), ledger)
        self.trained = self.chunk = 0  # batches before the first score; chunks
        self.seconds = 0.0
        self.losses: dict[int, list[float]] = {}  # of every adaptation step, by chunk; -1: before the first
        self.row_nats: list[float] = []  # mean recorded loss of every row so far, where rows are selected by it
        self._n_bytes = bytes_of(tables.to("cpu"), *ledger.pairs())
        self._saved = time.perf_counter()
        if resume is not None and resume.exists():
            self._load(resume)
        self.scored, self._nats, self._bytes = self._sums(0, ledger.total)  # first scores so far

    def _lay_out(self, adapts: bool) -> None:
        """Windows by chunk, and the batches that a train-first protocol begins with."""
        c, total = self.cfg, self.ledger.total
        rows = windows(total, c.data.seq_len, c.eval.stride, c.eval.tail)
        self.batches, self.documents = list[np.ndarray](), np.empty(0, dtype=np.int64)
        self.score_first = adapts and c.ttt.order == "score-first"
        if self.score_first and c.ttt.reset == "document":
            self.documents = self.ledger.documents(self.tables.boundary.cpu().numpy())
            rows = split(rows, chunk_edges(total, c.ttt.chunk_tokens, self.documents))
        self.edges = chunk_edges(total, c.ttt.chunk_tokens, self.documents)
        self.chunks = by_chunk(rows, self.edges)
        if adapts and not self.score_first:
            self.batches = self._training()

    def _training(self) -> list[np.ndarray]:
        """Row starts of every batch of a train-first protocol: epochs over (selected) rows, then sweeps."""
        c, t = self.cfg.ttt, self.cfg.data.seq_len
        starts = t * np.arange(self.ledger.total // t)
        if c.top_fraction < 1:
            rows = np.stack((starts, starts + t, starts), axis=1)
            losses = np.array([float(n.mean()) for n in self._scores(rows)])
            best = np.argsort(-losses, kind="stable")[: max(1, int(c.top_fraction * len(starts)))]
            starts = starts[np.sort(best)]
        bounds = [len(starts) * k // c.shards for k in range(c.shards + 1)]
        parts = [starts[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
        longest = max(map(len, parts), default=0)
        epoch = [np.concatenate([p[at : at + c.batch_seqs] for p in parts]) for at in range(0, longest, c.batch_seqs)]
        per_chunk = max(1, c.chunk_tokens // t)
        sweep = [starts[at : at + per_chunk] for at in range(0, len(starts), per_chunk)]
        self.first_sweep = c.epochs * len(epoch)
        return c.epochs * epoch + c.sweeps * sweep

    # -- progress
    @property
    def work(self) -> int:
        """Tokens to train on before the first score, and to score."""
        return self.cfg.data.seq_len * sum(map(len, self.batches)) + self.ledger.total

    @property
    def worked(self) -> int:
        return self.cfg.data.seq_len * sum(map(len, self.batches[: self.trained])) + self.scored

    @property
    def finished(self) -> bool:
        return self.chunk == len(self.chunks)

    def running_bpb(self) -> float:
        """Of the targets scored so far; NaN before the first."""
        return bits_per_byte(self._nats, self._bytes) if self._bytes else float("nan")

    def step(self) -> int:
        """The next batch of training, or the next chunk scored and perhaps adapted on. Returns the tokens done."""
        began = time.perf_counter()
        done = self._train_batch() if self.trained < len(self.batches) else self._chunk()
        self.seconds += time.perf_counter() - began
        stale = time.perf_counter() - self._saved > SAVE_EVERY_SECONDS
        if self.resume is not None and not self.finished and stale:
            self._save(self.resume)
        return done

    def _train_batch(self) -> int:
        adapter, batch = self.adapter, self.batches[self.trained]
        assert adapter is not None
        if self.trained == self.first_sweep:
            adapter.slots, adapter.steps = {}, 0
        self._steps(adapter, [batch], self.cfg.ttt.lr, -1)
        self.trained += 1
        if self.trained == len(self.batches):
            self.weights = adapter.folded()
        return len(batch) * self.cfg.data.seq_len

    def _chunk(self) -> int:
        rows = self.chunks[self.chunk]
        span = (int(rows[0, 2]), int(rows[-1, 1])) if len(rows) else (0, 0)
        old_tokens, old_nats, old_bytes = self._sums(*span)
        nats = self._scores(rows, self.look)
        if self.cfg.eval.ppm_weight:
            nats = [self._blend(row, n) for row, n in zip(rows, nats, strict=True)]
        self.ledger.record(rows, nats)
        tokens, total_nats, n_bytes = self._sums(*span)
        self.scored += tokens - old_tokens
        self._nats += total_nats - old_nats
        self._bytes += n_bytes - old_bytes
        if self.score_first and self.chunk < len(self.chunks) - 1:
            self.between()
        self.chunk += 1
        return tokens - old_tokens

    def _blend(self, row: np.ndarray, nats: np.ndarray) -> np.ndarray:
        previous, target = (ids[row[2] : row[1]] for ids in self.ledger.pairs())
        return self.ppm.blend(self.cfg.eval.ppm_weight, nats, previous, target)

    def _sums(self, start: int, stop: int) -> tuple[int, float, int]:
        """Targets, nats and bytes of the first scores among the positions [start, stop)."""
        nats = self.ledger.nats[start:stop]
        done = ~np.isnan(nats)
        return int(done.sum()), float(nats[done].sum(dtype=np.float64)), int(self._n_bytes[start:stop][done].sum())

    def _scores(self, rows: np.ndarray, look: Look | None = None) -> list[np.ndarray]:
        """Nats of every window; each rank scores a contiguous share and all learn all."""
        c, r = self.cfg, self.runtime
        edges = [len(rows) * k // r.world for k in (r.rank, r.rank + 1)]
        mine = score(
            self.net,
            self.weights,
            self.ledger,
            rows[slice(*edges)],
            c.data.seq_len,
            # where a document ends must not change the shape of a batch, and with it the rounding of what came before
            1 if c.ttt.reset == "document" else c.eval.batch_seqs,
            look,
        )
        if r.world == 1:
            return mine
        lengths = rows[:, 1] - rows[:, 2]
        starts = np.concatenate(([0], np.cumsum(lengths)))
        everyone = torch.zeros(int(starts[-1]), dtype=torch.float64, device=r.device)
        if mine:
            everyone[starts[edges[0]] : starts[edges[1]]] = torch.from_numpy(np.concatenate(mine)).to(everyone)
        together = all_reduce_sum(everyone).to(torch.float32).cpu().numpy()
        return np.split(together, starts[1:-1])

    # -- adaptation between chunks
    def between(self) -> None:
        """Reset or adapt, as the protocol has it, now that the present chunk is scored."""
        new_document = self.edges[self.chunk + 1] in self.documents
        if new_document or self.cfg.ttt.reset == "chunk":
            self.adapter = ttt.start(self.cfg, self.packed)
        assert self.adapter is not None
        if not new_document:
            self.adapt(self.adapter)
        self.weights = self.adapter.folded()

    def adapt(self, adapter: ttt.Adapter) -> None:
        """Train on the present chunk: on its whole rows, or on those that are hard among all so far."""
        c, t = self.cfg.ttt, self.cfg.data.seq_len
        begin, end = self.edges[self.chunk : self.chunk + 2]
        starts = np.arange(begin, end - t + 1, t)
        if c.top_fraction < 1 and len(starts):
            losses = [float(self.ledger.nats[s : s + t].mean()) for s in starts]
            self.row_nats += losses
            starts = starts[np.array(losses) > np.quantile(self.row_nats, 1 - c.top_fraction)]
        batches = [starts[at : at + c.batch_seqs] for at in range(0, len(starts), c.batch_seqs)]
        self._steps(adapter, c.epochs * batches, ttt.chunk_lr(c, self.chunk, len(self.chunks)), self.chunk)

    def _steps(self, adapter: ttt.Adapter, batches: list[np.ndarray], lr: float, chunk: int) -> None:
        for starts in batches:
            x, y = (z.to(self.runtime.device) for z in self.ledger.train(starts, self.cfg.data.seq_len))
            loss = ttt.step(self.cfg, self.net, adapter, x, y, lr, self.runtime)
            self.losses.setdefault(chunk, []).append(loss)

    # -- what comes of it
    def result(self, name: str, source: dict) -> EvalResult:
        ledger, again = self.ledger, self.ledger.again
        tokens, nats, n_bytes = self._sums(0, ledger.total)
        nats += sum(n for _, n in again)
        n_bytes += sum(int(self._n_bytes[p]) for p, _ in again)
        if self.resume is not None:
            self.resume.unlink(missing_ok=True)
        return EvalResult(
            protocol=name,
            legality=ledger.legality,
            nats=nats,
            tokens=tokens + len(again),
            bytes=n_bytes,
            bpb=bits_per_byte(nats, n_bytes),
            repeats=len(again),
            seconds=self.seconds,
            chunks=self._rows(),
            adapt_losses=self.losses.get(-1, []),
            coverage=self._coverage(),
            source=source,
            per_target=ledger.nats,
            adapted=self.adapter.folded() if self.adapter else None,
        )

    def _rows(self) -> list[dict]:
        """One row for each `span` of positions, with the losses of the adaptation steps of chunks that begin in it."""
        rows, total = [], self.ledger.total
        row_of = self.edges // self.span
        for row, start in enumerate(range(0, total, self.span)):
            stop = min(start + self.span, total)
            _, nats, n_bytes = self._sums(start, stop)
            own = range(*np.searchsorted(row_of, (row, row + 1)))
            steps = [loss for chunk in own for loss in self.losses.get(chunk, [])]
            rows.append(
                {"chunk": row, "start": start, "stop": stop, "nats": nats, "bytes": n_bytes, "adapt_losses": steps}
            )
        return rows

    def _coverage(self) -> dict:
        if self.adapter is None:
            return {}
        adapted, held = self.adapter.scope.sizes(self.adapter.weights)
        steps = sum(map(len, self.losses.values()))
        return {"ttt_adapted": adapted, "ttt_frozen": held, "ttt_steps": steps}

    # -- what a killed evaluation needs
    def _save(self, path: Path) -> None:
        if self.runtime.rank == 0:
            values = tensors.under("ledger", self.ledger.state())
            plain = {"trained": self.trained, "chunk": self.chunk, "seconds": self.seconds, "losses": self.losses}
            if a := self.adapter:
                moved = {name: t for name, t in flat(a.weights).items() if name in a.scope.names}
                values |= tensors.under("weights", moved) | tensors.under("slots", a.slots)
                plain |= {"steps": a.steps, "row_nats": self.row_nats}
            tensors.save(path, values, plain)
        self._saved = time.perf_counter()

    def _load(self, path: Path) -> None:
        values, plain = tensors.load(path, "an evaluation in progress")
        self.trained, self.chunk, self.seconds = plain["trained"], plain["chunk"], plain["seconds"]
        self.losses = {int(chunk): losses for chunk, losses in plain["losses"].items()}
        self.ledger.restore(tensors.part(values, "ledger"))
        if self.adapter is not None:
            moved, slots = tensors.part(values, "weights"), tensors.part(values, "slots")
            self.adapter = ttt.restored(self.cfg, self.packed, moved, slots, plain["steps"])
            self.row_nats = plain["row_nats"]
            if self.trained == len(self.batches):
                self.weights = self.adapter.folded()
        if self.cfg.eval.ppm_weight:
            self._blend(np.array([0, self.edges[self.chunk], 0]), np.zeros(self.edges[self.chunk]))


def _blended(look: Look, weight: float, ppm: Ppm, ledger: Ledger) -> Look:
    """`look`, shown the distributions that the scores are taken from: of the mixture."""

    def seen(rows: np.ndarray, logits: list[Tensor], weights: Weights) -> None:
        previous, target = ledger.pairs()
        mixed = []
        for (_, stop, score_from), found in zip(rows, logits, strict=True):
            at = slice(score_from, stop)
            p = ppm.blend_all(weight, torch.log_softmax(found, -1).cpu().numpy(), previous[at], target[at])
            mixed.append(torch.from_numpy(p))
        look(rows, mixed, weights)

    return seen
