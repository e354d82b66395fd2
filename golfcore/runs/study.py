"""A score taken apart: the same weights on the same text under every protocol and control, as cells of one study.

What was published as the gain of test-time training subtracts a score with little context from one with adaptation
and more context. Here (a) windows that do not overlap, (b) a sliding window and (c) sliding with adaptation stand side
by side, and each control changes one thing: the order of the text, how long adaptation lasts, how many passes it makes,
what adapts, the optimizer, the stride, the rounding of the weights.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from golfcore import config
from golfcore.base import files, tensors
from golfcore.base.errors import UserError
from golfcore.config import Config
from golfcore.evals import protocols
from golfcore.evals import result as results
from golfcore.evals.result import EvalResult
from golfcore.model.weights import Weights, to_device, unflat
from golfcore.runs.pipeline import ARTIFACT, FLOAT
from golfcore.runs.reopen import open_packed

ORDER_SEED = 0
EPOCHS = (0, 1, 4, 20)
ADAM_RATES = (1e-4, 1e-3)  # the chosen rate is one of SGD; a step of Adam moves every value by about its rate
ABC = {"a": "static", "b": "sliding", "c": "ttt"}


@dataclass(frozen=True)
class Cell:
    """One evaluation of a study. `reference`: the label of the cell that it is compared with."""

    label: str
    protocol: str
    group: str
    changes: Mapping[str, object] = field(default_factory=dict)  # dotted eval and ttt values
    weights: Literal["artifact", "float"] = "artifact"
    reference: str = ""
    shuffled: bool = False  # on the text with its chunks in another order


class Measured(NamedTuple):
    """A cell and what it gave: a result, its chunks in the order of the text, or a sentence why there is none."""

    cell: Cell
    result: EvalResult | None
    note: str = ""


def standard(cfg: Config) -> tuple[Cell, ...]:
    """The study of `cfg`: a, b, c; each control; each protocol that has a name."""
    t = cfg.ttt
    cells = [Cell(label, ABC[label], "abc", reference=ref) for label, ref in (("a", ""), ("b", "a"), ("c", "b"))]
    cells += [Cell(f"{label} float", p, "float", weights="float", reference=label) for label, p in ABC.items()]
    cells += [
        Cell("b shuffled", "sliding", "order", shuffled=True, reference="b"),
        Cell("c shuffled", "ttt", "order", shuffled=True, reference="b shuffled"),
    ]
    constant = {} if t.lr_horizon else {"ttt.lr_shape": "constant"}
    resets = {"chunk": {}, "document": constant}
    cells += [_control(f"reset per {at}", "reset", {"ttt.reset": at, **more}) for at, more in resets.items()]
    cells += [_control(f"epochs {n}", "epochs", {"ttt.epochs": n}) for n in EPOCHS]
    cells += [Cell(f"stride {s}", "sliding", "stride", {"eval.stride": s}, reference="a") for s in strides(cfg)]
    parts = ("all", "banks", "scalars", "mlps", "lora")
    cells += [_control(f"adapts {part}", "adapted", {"ttt.adapted": part}) for part in parts]
    adam = {f"adam {rate:g}": {"ttt.optimizer": "adam", "ttt.lr": rate} for rate in ADAM_RATES}
    cells += [_control(label, "optimizer", changes) for label, changes in adam.items()]
    others = [name for name in protocols.PROTOCOLS if name not in ABC.values()]
    label = {protocol: label for label, protocol in ABC.items()}
    return (*cells, *(Cell(n, n, "protocols", reference=label[protocols.reference_of(n, cfg)]) for n in others))


def _control(label: str, group: str, changes: Mapping[str, object]) -> Cell:
    return Cell(label, "ttt", group, changes, reference="b")


def strides(cfg: Config) -> list[int]:
    """From half a window halved again and again, to a 32nd of it or to half of the configured stride."""
    window, last = cfg.data.seq_len, max(cfg.data.seq_len // 32, cfg.eval.stride // 2, 1)
    halves = [window >> k for k in range(1, 6) if window % (1 << k) == 0]
    return [s for s in halves if s >= last and cfg.ttt.chunk_tokens % s == 0]


def select(cells: Sequence[Cell], names: str) -> tuple[Cell, ...]:
    """The cells whose label or group is among the comma-separated `names`, and all that they refer to.

    "" is all of them. UserError: a name that none of them has.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = list(dict.fromkeys(key for c in cells for key in (c.label, c.group)))
    config.keys(wanted, known, "cells")
    kept = {c.label for c in cells if not wanted or {c.label, c.group} & set(wanted)}
    for cell in reversed(cells):  # a reference comes before what refers to it
        kept |= {cell.reference} if cell.label in kept else set()
    return tuple(c for c in cells if c.label in kept)


# -- the text in another order


def chunk_order(total: int, chunk: int, seed: int = ORDER_SEED) -> np.ndarray:
    """Which chunk of the text stands at each place. A last, shorter one stays, so that all others keep their length."""
    whole = total // chunk
    order = np.arange(-(-total // chunk))
    order[:whole] = np.random.default_rng(seed).permutation(whole)
    return order


def shuffled(tokens: np.ndarray, chunk: int, seed: int = ORDER_SEED) -> np.ndarray:
    """The stream (N + 1,) with its chunks of `chunk` targets in another order; the same targets, each once.

    A chunk is a block of targets: block i is tokens[i chunk + 1 : (i + 1) chunk + 1]. The first token stays first, it
    is never a target. At a seam the first target of a block follows the last token of another block: its context is
    another text's, until the window has passed the seam, and its leading space may cost a byte more or less.
    """
    order = chunk_order(len(tokens) - 1, chunk, seed)
    blocks = [tokens[1 + i * chunk : 1 + (i + 1) * chunk] for i in order]
    return np.concatenate([tokens[:1], *blocks])


def in_text_order(result: EvalResult, chunk: int, seed: int = ORDER_SEED) -> EvalResult:
    """The result of a shuffled stream with each chunk's sums, and each target's nats, at its place in the text."""
    total = result.chunks[-1]["stop"]
    back = np.argsort(chunk_order(total, chunk, seed))
    sums = [{k: result.chunks[j][k] for k in ("nats", "bytes", "adapt_losses")} for j in back]
    chunks = [row | {k: at[k] for k in ("chunk", "start", "stop")} for row, at in zip(sums, result.chunks, strict=True)]
    nats = result.per_target
    if nats is not None:
        nats = np.concatenate([nats[j * chunk : (j + 1) * chunk] for j in back])
    return replace(result, chunks=chunks, per_target=nats)


# -- measuring


def measure(
    target: Path,
    cells: Sequence[Cell] | None = None,
    *,
    changes: Mapping[str, object] | None = None,
    out: Path | None = None,
    say: Callable[[str], object] = print,
) -> list[Measured]:
    """Evaluate every cell (default: the standard study) on a run folder or an artifact.

    `changes` override data, eval and ttt values of all cells, and a run comes with the TTT rate that it chose; what a
    protocol or a cell sets itself stands above both. Results are saved in `out` under a hash of the weights,
    configuration, protocol and data: those that are there are not measured again, and a killed cell goes on. Nats of
    every target are kept for a, b and c only. A cell that this model, text or configuration cannot have gets a sentence
    in place of a result. UserError as `open_packed`.
    """
    study = _Study(target, dict(changes or {}), out)
    cells = standard(study.packed.cfg) if cells is None else cells
    found: list[Measured] = []
    spent: list[float] = []
    for number, cell in enumerate(cells, 1):
        left = sum(spent) / len(spent) * (len(cells) - number + 1) if spent else 0.0
        say(f"cell {number} of {len(cells)}: {cell.label}" + (f", about {left:.0f} s left" if left >= 1 else ""))
        began = time.monotonic()
        try:
            found.append(Measured(cell, study.result(cell)))
        except UserError as e:
            found.append(Measured(cell, None, str(e)))
            say(f"  not measured: {e}")
        spent.append(time.monotonic() - began)
    return found


class _Study:
    """One opened target, and the results so far by key."""

    def __init__(self, target: Path, changes: dict[str, object], out: Path | None) -> None:
        self.packed = open_packed(target, changes)
        self.out, self.done = out, dict[str, EvalResult]()
        self.paths = {"artifact": target / ARTIFACT if target.is_dir() else target, "float": target / FLOAT}
        self.shas: dict[str, str] = {}
        self.loaded: dict[str, Weights] = {"artifact": self.packed.subject.weights}

    def result(self, cell: Cell) -> EvalResult:
        """The cell's result, saved before, evaluated earlier in this study, or evaluated now. UserError: none."""
        p, path = self.packed, self.paths[cell.weights]
        if not path.exists():
            raise UserError(f"{path}: expected the float weights of a run folder, found no such file")
        cfg = protocols.configure(cell.protocol, p.cfg, cell.changes)
        if cfg.ttt.reset == "document" and not p.subject.tables.boundary.cpu().numpy()[p.subject.tokens].any():
            raise UserError(f"cell {cell.label}: expected document boundaries in the validation text, found none")
        if cell.weights not in self.shas:
            self.shas[cell.weights] = files.sha256_file(path)
        source = p.source | {"weights": self.shas[cell.weights], "config": cfg.hash, "seed": cfg.run.seed}
        facts = {"protocol": cell.protocol, "order": ORDER_SEED if cell.shuffled else None}
        facts |= {"chunks": p.cfg.ttt.chunk_tokens}  # what sums are kept of, whatever the protocol adapts on
        key = files.sha256_text(
            files.canonical_json({**facts, **{k: source[k] for k in ("weights", "config", "data")}})
        )
        if key not in self.done:
            self.done[key] = self._saved(cell, f"{cell.protocol}-{key[:16]}", source)
        return self.done[key]

    def _saved(self, cell: Cell, name: str, source: dict) -> EvalResult:
        path = self.out / f"{name}.json" if self.out else None
        if path is not None and path.exists():
            return results.load(path)
        part = path.with_suffix(".part") if path else None
        if part is not None:
            part.parent.mkdir(parents=True, exist_ok=True)
        found = replace(self._evaluate(cell, part, source), adapted=None)
        own = protocols.configure(cell.protocol, self.packed.cfg)
        plain = source["config"] == own.hash and cell.protocol in ABC.values()
        found = found if plain and not cell.shuffled else replace(found, per_target=None)
        if path is not None:
            results.save(found, path)
        return found

    def _evaluate(self, cell: Cell, resume: Path | None, source: dict) -> EvalResult:
        p, chunk = self.packed, self.packed.cfg.ttt.chunk_tokens
        if cell.weights not in self.loaded:
            stored = unflat(tensors.load(self.paths[cell.weights], "trained weights")[0])
            self.loaded[cell.weights] = to_device(stored, p.subject.runtime.device)
        tokens = p.subject.tokens
        text = shuffled(tokens, chunk) if cell.shuffled else tokens
        found = protocols.evaluate(
            cell.protocol,
            p.cfg,
            p.subject._replace(weights=self.loaded[cell.weights], tokens=text),
            changes=cell.changes,
            resume=resume,
            source=source,
            label=cell.label,
        )
        return in_text_order(found, chunk) if cell.shuffled else found


def by_label(measured: Iterable[Measured]) -> dict[str, EvalResult]:
    """The results of the cells that have one."""
    return {m.cell.label: m.result for m in measured if m.result is not None}
