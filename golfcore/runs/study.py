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
from golfcore.base.records import RunFolder
from golfcore.config import Config
from golfcore.evals import protocols
from golfcore.evals import result as results
from golfcore.evals.result import EvalResult
from golfcore.evals.windows import window_length
from golfcore.model.weights import Weights, to_device, unflat
from golfcore.runs.pipeline import ARTIFACT, FLOAT
from golfcore.runs.reopen import open_packed
from golfcore.runs.results import MEASURES, measures

ORDER_SEED = 0
EPOCHS = (0, 1, 4, 20)
ADAM_RATES = (1e-4, 1e-3)  # the chosen rate is one of SGD; a step of Adam moves every value by about its rate
ABC = {"a": "static", "b": "sliding", "c": "ttt"}
GROUPS = ("abc", "float", "order", "reset", "epochs", "stride", "adapted", "optimizer", "protocols")
FILES = {"artifact": ARTIFACT, "float": FLOAT}


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
    window = window_length(cfg)
    last = max(window // 32, cfg.eval.stride // 2, 1)
    return [window >> k for k in range(1, 6) if window >> k >= last]


def select(cells: Sequence[Cell], names: str) -> tuple[Cell, ...]:
    """The cells whose label or group is among the comma-separated `names`, and all that they refer to.

    "" is all of them. UserError: a name that none of them has, also if it is a group of other configurations, or
    nothing between the commas.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if names and not wanted:
        raise UserError(f"cells: expected labels or groups separated by commas, found {names!r}")
    config.keys(wanted, list(dict.fromkeys([*GROUPS, *(c.label for c in cells)])), "cells")
    for name in wanted:
        if not any(name in (c.label, c.group) for c in cells):
            there = ", ".join(dict.fromkeys(c.group for c in cells))
            raise UserError(f"cells: expected a group that this configuration has ({there}), found {name!r}")
    kept = {c.label for c in cells if not wanted or {c.label, c.group} & set(wanted)}
    for cell in reversed(cells):  # a reference comes before what refers to it
        kept |= {cell.reference} if cell.label in kept else set()
    return tuple(c for c in cells if c.label in kept)


def reported(run: RunFolder) -> list[Measured]:
    """What a finished run measured itself, as cells of a study: its four scores, then its further protocols.

    Each of the four is compared with the one before it, from the float weights on. UserError: a score is missing.
    """
    cfg = config.of_run(run)
    cells = {_measure(cell, cfg): cell for cell in standard(cfg)}
    names, reference = measures(cfg), ""
    for name in MEASURES:
        cells[name], reference = replace(cells[name], reference=reference), cells[name].label
    return [Measured(cells[name], results.load(run.file(f"eval/{name}.json"))) for name in names]


def _measure(cell: Cell, cfg: Config) -> str:
    """The name of a cell among the evaluations that a run of `cfg` makes itself; "" if it is none of them."""
    if cell.shuffled or cell.changes:
        return ""
    made = (FILES[cell.weights], cell.protocol)
    return next((name for name, own in measures(cfg).items() if own == made), "")


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
    protocol or a cell sets itself stands above both. Cells that are the run's own scores are taken from it. The others
    are kept in `out` with the weights, configuration, protocol and data that they belong to: those that are there are
    not measured again, those that are damaged or belong to something else are, and a killed cell goes on. Nats of
    every target are kept for a, b and c only. A cell that this model, text or configuration cannot have gets a sentence
    in place of a result. UserError as `open_packed`.
    """
    study = _Study(target, dict(changes or {}), out, say)
    cells = standard(study.packed.cfg) if cells is None else cells
    found: list[Measured] = []
    for number, cell in enumerate(cells, 1):
        left = np.mean(study.spent) * (len(cells) - number + 1) if study.spent else 0.0
        say(f"cell {number} of {len(cells)}: {cell.label}" + (f", at most {left:.0f} s left" if left >= 1 else ""))
        try:
            found.append(Measured(cell, study.result(cell)))
        except UserError as e:
            found.append(Measured(cell, None, str(e)))
            say(f"  not measured: {e}")
    return found


class _Study:
    """One opened target, and the results so far by the hash of what they belong to."""

    def __init__(
        self, target: Path, changes: dict[str, object], out: Path | None, say: Callable[[str], object]
    ) -> None:
        self.packed, self.say = open_packed(target, changes), say
        self.run = RunFolder(target) if target.is_dir() else None
        self.own = open_packed(target, {}).cfg if changes else self.packed.cfg  # what the run measured under
        self.folder = RunFolder(out) if out else None
        self.done = dict[str, EvalResult]()
        self.target, self.paths = target, {"artifact": target}
        if self.run:
            self.paths = {weights: target / name for weights, name in FILES.items()}
        self.shas: dict[str, str] = {}
        self.loaded: dict[str, Weights] = {"artifact": self.packed.subject.weights}
        self.spent: list[float] = []  # seconds of the cells that were evaluated
        self.versions = set[str]()  # of the code that measured what is reused, once it was said

    def result(self, cell: Cell) -> EvalResult:
        """The cell's result: the run's, one from earlier, or evaluated now. UserError: there is none."""
        source = self._source(cell)
        belongs = {"protocol": cell.protocol, "order": ORDER_SEED if cell.shuffled else None}
        belongs |= {"chunks": self.packed.cfg.ttt.chunk_tokens}  # what sums are kept of, whatever it adapts on
        belongs |= {k: source[k] for k in ("weights", "config", "data")}
        key = files.sha256_text(files.canonical_json(belongs))
        if key not in self.done:
            found = self._reported(cell, source) or self._saved(cell, f"{cell.protocol}-{key[:16]}", belongs, source)
            self.done[key] = found
        return self.done[key]

    def _source(self, cell: Cell) -> dict:
        """What identifies the numbers of a cell. UserError: a cell that this model, text or target cannot have."""
        p, path = self.packed, self.paths.get(cell.weights)
        if path is None or not path.exists():
            raise UserError(f"{self.target}: expected the {cell.weights} weights of a run folder, found none")
        cfg = protocols.configure(cell.protocol, p.cfg, cell.changes)
        if cfg.ttt.reset == "document" and not p.subject.tables.boundary.cpu().numpy()[p.subject.tokens].any():
            raise UserError(f"cell {cell.label}: expected document boundaries in the validation text, found none")
        if cell.weights not in self.shas:
            self.shas[cell.weights] = files.sha256_file(path)
        return p.source | {"weights": self.shas[cell.weights], "config": cfg.hash, "seed": cfg.run.seed}

    def _reported(self, cell: Cell, source: dict) -> EvalResult | None:
        """The run's own evaluation, if it is whole and of the same weights, configuration and text."""
        name = _measure(cell, self.own)
        if not (self.run and name) or self.packed.cfg.ttt.chunk_tokens != self.own.ttt.chunk_tokens:
            return None
        if source["config"] != protocols.configure(cell.protocol, self.own).hash:
            return None
        record = self.run.stages().get(f"eval-{name}", {})
        kept = {self.run.file(output): sha for output, sha in record.get("outputs", {}).items()}
        if not kept or not all(path.exists() and files.sha256_file(path) == sha for path, sha in kept.items()):
            return None
        found = results.load(self.run.file(f"eval/{name}.json"))
        same = all(found.source.get(k) == source[k] for k in ("weights", "data"))
        return self._reused(replace(found, source=source | {"code": found.source.get("code")})) if same else None

    def _reused(self, found: EvalResult) -> EvalResult:
        """The same; says once if other code than this measured it."""
        code, here = str(found.source.get("code")), str(self.packed.source["code"])
        if code != here and code not in self.versions:
            self.say(f"  reused: measured by golfcore {code}; this is {here}")
            self.versions.add(code)
        return found

    def _saved(self, cell: Cell, name: str, belongs: dict, source: dict) -> EvalResult:
        """The result that `out` holds, or else evaluated now and saved there."""
        path = self.folder.file(f"{name}.json") if self.folder else None
        if path is not None and self._is_kept(name, belongs, path):
            return self._reused(results.load(path))
        part = path.with_suffix(".part") if path else None
        if part is not None:
            part.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        found = replace(self._evaluate(cell, part, source), adapted=None)
        self.spent.append(time.monotonic() - began)
        own = protocols.configure(cell.protocol, self.packed.cfg)
        plain = source["config"] == own.hash and cell.protocol in ABC.values() and not cell.shuffled
        found = found if plain else replace(found, per_target=None)
        if self.folder is not None and path is not None:
            results.save(found, path)
            outputs = [path.name, *([f"{name}.npy"] if plain else [])]
            self.folder.finish(name, belongs, outputs, self.spent[-1])
        return found

    def _is_kept(self, name: str, belongs: dict, path: Path) -> bool:
        """Whether `path` holds what was measured; says so if there is something else."""
        assert self.folder is not None
        try:
            kept = self.folder.finished(name, belongs)
        except UserError as e:
            self.say(f"  {e}; measured again")
            return False
        if path.exists() and not kept:
            self.say(f"  {path}: expected the result of this cell as it was saved, found another; measured again")
        return kept

    def _evaluate(self, cell: Cell, resume: Path | None, source: dict) -> EvalResult:
        subject, chunk = self.packed.subject, self.packed.cfg.ttt.chunk_tokens
        if cell.weights not in self.loaded:
            stored = unflat(tensors.load(self.paths[cell.weights], "trained weights")[0])
            self.loaded[cell.weights] = to_device(stored, subject.runtime.device)
        tokens = shuffled(subject.tokens, chunk) if cell.shuffled else subject.tokens
        found = protocols.evaluate(
            cell.protocol,
            self.packed.cfg,
            subject._replace(weights=self.loaded[cell.weights], tokens=tokens),
            changes=cell.changes,
            resume=resume,
            source=source,
            label=cell.label,
        )
        return in_text_order(found, chunk) if cell.shuffled else found


def by_label(measured: Iterable[Measured]) -> dict[str, EvalResult]:
    """The results of the cells that have one."""
    return {m.cell.label: m.result for m in measured if m.result is not None}
