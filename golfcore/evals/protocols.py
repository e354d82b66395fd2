"""Evaluation protocols: how windows cover the stream, and whether weights adapt between chunks.

static   windows that do not overlap
sliding  a window every `eval.stride` tokens, each scoring what the one before did not
ttt      the same windows; after a chunk is scored, adapt on it (score-first; exp101's "legal TTT")

All three run the same loop: score a chunk, record it in the ledger, then perhaps adapt.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from golfcore import params, tensors
from golfcore.config import Config, override
from golfcore.data.tokens import Tables
from golfcore.errors import UserError
from golfcore.evals import ttt
from golfcore.evals.ledger import Ledger
from golfcore.evals.result import EvalResult
from golfcore.evals.score import Look, bits_per_byte, bytes_of, score
from golfcore.evals.windows import by_chunk, windows
from golfcore.model.attention import Compute, choose_compute
from golfcore.progress import bar
from golfcore.runtime import Runtime, all_reduce_sum
from golfcore.weights import Weights, count, flat

SAVE_EVERY_SECONDS = 20.0


@dataclass(frozen=True)
class Plan:
    """A named protocol, resolved: its stride and whether it adapts."""

    stride: int
    adapts: bool


def names() -> dict[str, str]:
    """Every protocol that `evaluate` knows, in one line each."""
    return {
        "static": "windows that do not overlap",
        "sliding": "a window every eval.stride tokens",
        "ttt": "sliding; after a chunk is scored, adapt on it",
    }


def plan(name: str, cfg: Config) -> Plan:
    plans = {
        "static": Plan(cfg.data.seq_len, False),
        "sliding": Plan(cfg.eval.stride, False),
        "ttt": Plan(cfg.eval.stride, cfg.ttt.epochs > 0),
    }
    if name not in plans:
        raise UserError(f"unknown protocol {name!r}; known: {', '.join(plans)}")
    return plans[name]


def evaluate(
    name: str,
    cfg: Config,
    weights: Weights,
    tokens: np.ndarray,
    tables: Tables,
    *,
    changes: Mapping[str, object] | None = None,
    runtime: Runtime | None = None,
    compute: Compute | None = None,
    resume: Path | None = None,
    source: dict | None = None,
    label: str = "",
) -> EvalResult:
    """Score the stream `tokens` (total + 1,) ids under protocol `name`. The weights are not changed.

    `resume`: a file for the state between chunks; an evaluation killed at any moment goes on from it to the same
    result, and it is gone when done. `changes`: dotted overrides of eval and ttt values. Raises UserError for an
    unknown protocol or a chunk that windows would straddle.
    """
    cfg = override(cfg, changes or {}, f"changes of protocol {name}")
    walk = begin(name, cfg, weights, tokens, tables, runtime=runtime, compute=compute, resume=resume)
    with bar(walk.ledger.total, label or name, "tok", walk.scored, walk.runtime.is_main) as progress:
        while walk.chunk < len(walk.chunks):
            progress.update(walk.step())
            progress.set_postfix_str(f"bpb {walk.running_bpb():.4f}", refresh=False)
    return walk.result(name, source or {})


def begin(
    name: str,
    cfg: Config,
    weights: Weights,
    tokens: np.ndarray,
    tables: Tables,
    *,
    runtime: Runtime | None = None,
    compute: Compute | None = None,
    resume: Path | None = None,
    look: Look | None = None,
) -> "Walk":
    """An evaluation that nothing was scored in yet (or what `resume` holds); arguments and errors as `evaluate`."""
    runtime = runtime or Runtime(weights.rest["tok_emb"].device, 0, 1, 0, torch.float32)
    compute = compute or choose_compute(runtime.device, runtime.dtype)
    chosen, ledger = plan(name, cfg), Ledger(tokens, rescore=cfg.eval.tail != "exact")
    if ledger.total < 1:
        raise UserError(f"protocol {name}: expected at least 2 validation tokens, found {len(tokens)}")
    return Walk(cfg, chosen, ledger, weights, tables, runtime, compute, resume, look)


class Walk:
    """An evaluation in progress: the next chunk, the ledger, the adapted weights."""

    def __init__(
        self,
        cfg: Config,
        chosen: Plan,
        ledger: Ledger,
        weights: Weights,
        tables: Tables,
        runtime: Runtime,
        compute: Compute,
        resume: Path | None,
        look: Look | None,
    ) -> None:
        self.cfg, self.plan, self.ledger, self.tables = cfg, chosen, ledger, tables.to(runtime.device)
        self.runtime, self.compute, self.resume, self.look = runtime, compute, resume, look
        rows = windows(ledger.total, cfg.data.seq_len, chosen.stride, cfg.eval.tail)
        size = cfg.ttt.chunk_tokens
        # without adaptation a chunk is only a unit of work, so it may grow to hold whole windows
        self.chunk_size = size if chosen.adapts else -(-size // chosen.stride) * chosen.stride
        self.chunks = by_chunk(rows, ledger.total, self.chunk_size)
        self.adapter = ttt.start(weights) if chosen.adapts else None
        self.weights = self.adapter.weights if self.adapter else weights
        self.masks = ttt.freeze_masks(cfg) if chosen.adapts else {}
        self.chunk, self.seconds = 0, 0.0
        self.losses: dict[int, list[float]] = {}  # of every adaptation step, by chunk
        self._n_bytes = bytes_of(tables.to("cpu"), *ledger.pairs())
        self._saved = time.perf_counter()
        if resume is not None and resume.exists():
            self._load(resume)
        self.scored, self._nats, self._bytes = self._sums(0, ledger.total)  # first scores so far

    def _sums(self, start: int, stop: int) -> tuple[int, float, int]:
        """Targets, nats and bytes of the first scores among the positions [start, stop)."""
        nats = self.ledger.nats[start:stop]
        done = ~np.isnan(nats)
        return int(done.sum()), float(nats[done].sum(dtype=np.float64)), int(self._n_bytes[start:stop][done].sum())

    def step(self) -> int:
        """Score the next chunk and, unless it is the last, adapt on it. Returns the targets scored."""
        began, rows = time.perf_counter(), self.chunks[self.chunk]
        span = (int(rows[0, 2]), int(rows[-1, 1])) if len(rows) else (0, 0)
        old_tokens, old_nats, old_bytes = self._sums(*span)
        self.ledger.record(rows, self._scores(rows))
        tokens, nats, n_bytes = self._sums(*span)
        new = tokens - old_tokens
        self.scored += new
        self._nats += nats - old_nats
        self._bytes += n_bytes - old_bytes
        last = self.chunk == len(self.chunks) - 1
        if self.adapter is not None and not last:
            self.adapt(self.adapter)
        self.chunk += 1
        self.seconds += time.perf_counter() - began
        if self.resume is not None and not last and time.perf_counter() - self._saved > SAVE_EVERY_SECONDS:
            self._save(self.resume)
        return new

    def _scores(self, rows: np.ndarray) -> list[np.ndarray]:
        """Nats of every window; each rank scores a contiguous share and all learn all."""
        c, r = self.cfg, self.runtime
        edges = [len(rows) * k // r.world for k in (r.rank, r.rank + 1)]
        mine = score(
            c.model,
            self.weights,
            self.ledger,
            rows[slice(*edges)],
            c.data.seq_len,
            c.eval.batch_seqs,
            self.tables,
            self.compute,
            self.look,
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

    def adapt(self, adapter: ttt.Adapter) -> None:
        """Train on the present chunk."""
        c, t = self.cfg, self.cfg.data.seq_len
        begin = self.chunk * self.chunk_size
        n_rows = (min(begin + self.chunk_size, self.ledger.total) - begin) // t
        x, y = (z.to(self.runtime.device) for z in self.ledger.train(begin, begin + n_rows * t, t))
        lr = ttt.chunk_lr(c.ttt, self.chunk, len(self.chunks))
        self.losses[self.chunk] = ttt.adapt(c, adapter, x, y, lr, self.masks, self.tables, self.compute, self.runtime)

    def running_bpb(self) -> float:
        return bits_per_byte(self._nats, self._bytes)

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
            coverage=self._coverage(),
            source=source,
            per_target=ledger.nats,
            adapted=self.adapter.weights if self.adapter else None,
        )

    def _rows(self) -> list[dict]:
        """One row for each span of `ttt.chunk_tokens`, by position: the same for every protocol, so that they pair."""
        size, total = self.cfg.ttt.chunk_tokens, self.ledger.total
        rows = []
        for chunk, start in enumerate(range(0, total, size)):
            stop = min(start + size, total)
            _, nats, n_bytes = self._sums(start, stop)
            steps = self.losses.get(chunk, [])
            rows.append(
                {"chunk": chunk, "start": start, "stop": stop, "nats": nats, "bytes": n_bytes, "adapt_losses": steps}
            )
        return rows

    def _coverage(self) -> dict:
        if self.adapter is None:
            return {}
        total, frozen = count(self.weights), params.frozen_count(self.cfg.model, self.masks)
        return {"ttt_adapted": total - frozen, "ttt_frozen": frozen, "ttt_steps": sum(map(len, self.losses.values()))}

    # -- what a killed evaluation needs
    def _save(self, path: Path) -> None:
        if self.runtime.rank == 0:
            values = tensors.under("ledger", self.ledger.state())
            for name, tree in self.adapter._asdict().items() if self.adapter else ():
                values |= tensors.under(name, flat(tree))
            tensors.save(path, values, {"chunk": self.chunk, "seconds": self.seconds, "losses": self.losses})
        self._saved = time.perf_counter()

    def _load(self, path: Path) -> None:
        values, plain = tensors.load(path, "an evaluation in progress")
        self.chunk, self.seconds = plain["chunk"], plain["seconds"]
        self.losses = {int(chunk): losses for chunk, losses in plain["losses"].items()}
        self.ledger.restore(tensors.part(values, "ledger"))
        with torch.no_grad():
            for name, tree in self.adapter._asdict().items() if self.adapter else ():
                saved = tensors.part(values, name)
                for key, tensor in flat(tree).items():
                    tensor.copy_(saved[key])
