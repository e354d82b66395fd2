"""A score taken apart: the same weights on the same text under every protocol and control, as cells of one study.

(a) windows that do not overlap, (b) a sliding window and (c) sliding with adaptation stand side by side, and each
control changes one thing: the order of the text, how long adaptation lasts, its passes, what adapts, the optimizer, the
stride, the rounding of the weights.
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
from golfcore.base.records import RESULTS, RunFolder
from golfcore.config import Config
from golfcore.evals import protocols
from golfcore.evals import result as results
from golfcore.evals.result import EvalResult
from golfcore.evals.windows import window_length
from golfcore.model.weights import to_device, unflat
from golfcore.runs.reopen import open_packed
from golfcore.runs.results import ARTIFACT, FLOAT, MEASURES, measures
from golfcore.runs.results import measured as results_of
from golfcore.runs.sweep import names_in, time_left

ORDER_SEED = 0
EPOCHS = (0, 1, 4, 20)
ADAPTED = ("all", "banks", "scalars", "mlps", "lora")
ADAM_RATES = (1e-4, 1e-3)  # the chosen rate is one of SGD; a step of Adam moves every value by about its rate
ABC = {"a": "static", "b": "sliding", "c": "ttt"}
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
    cells = [Cell(label, ABC[label], "abc", reference=ref) for label, ref in (("a", ""), ("b", "a"), ("c", "b"))]
    cells += [Cell(f"{label} float", p, "float", weights="float", reference=label) for label, p in ABC.items()]
    cells += [
        Cell("b shuffled", "sliding", "order", shuffled=True, reference="b"),
        Cell("c shuffled", "ttt", "order", shuffled=True, reference="b shuffled"),
    ]
    constant = {} if cfg.ttt.lr_horizon else {"ttt.lr_shape": "constant"}
    controls: dict[str, tuple[str, dict[str, object]]] = {  # label -> group, what it changes of c
        "reset per chunk": ("reset", {"ttt.reset": "chunk"}),
        "reset per document": ("reset", {"ttt.reset": "document", **constant}),
        **{f"epochs {n}": ("epochs", {"ttt.epochs": n}) for n in EPOCHS},
    }
    cells += [Cell(label, "ttt", *control, reference="b") for label, control in controls.items()]
    cells += [Cell(f"stride {s}", "sliding", "stride", {"eval.stride": s}, reference="a") for s in strides(cfg)]
    controls = {f"adapts {part}": ("adapted", {"ttt.adapted": part}) for part in ADAPTED}
    controls |= {f"adam {r:g}": ("optimizer", {"ttt.optimizer": "adam", "ttt.lr": r}) for r in ADAM_RATES}
    cells += [Cell(label, "ttt", *control, reference="b") for label, control in controls.items()]
    label = {protocol: label for label, protocol in ABC.items()}
    others = [name for name in protocols.PROTOCOLS if name not in label]
    return (*cells, *(Cell(n, n, "protocols", reference=label[protocols.reference_of(n, cfg)]) for n in others))


def strides(cfg: Config) -> list[int]:
    """From half a window halved again and again, to a 32nd of it or to half of the configured stride."""
    window = window_length(cfg)
    last = max(window // 32, cfg.eval.stride // 2, 1)
    return [window >> k for k in range(1, 6) if window >> k >= last]


def select(cells: Sequence[Cell], names: str) -> tuple[Cell, ...]:
    """The cells whose label or group is among the comma-separated `names` ("": all), and all that they refer to.

    UserError: a name that none of them has, or as `names_in`.
    """
    known = list(dict.fromkeys([c.group for c in cells] + [c.label for c in cells]))
    wanted = names_in(names, known, "cells")
    config.keys(wanted, known, "cells")
    kept = {c.label for c in cells if {c.label, c.group} & set(wanted)}
    for cell in reversed(cells):  # a reference comes before what refers to it
        kept |= {cell.reference} if cell.label in kept else set()
    return tuple(c for c in cells if c.label in kept)


def reported(run: RunFolder) -> list[Measured]:
    """What a finished run measured itself, as cells: its four scores, each compared with the one before; then others.

    UserError: a run that has not finished, or whose scores are not there.
    """
    named = {cell.label: cell for cell in standard(config.of_run(run))}
    labels, reference = dict(zip(MEASURES, ("a float", *ABC), strict=True)), ""
    for label in labels.values():
        named[label], reference = replace(named[label], reference=reference), label
    found = results_of(files.read_json(run.file(RESULTS), "the results of a finished run"))
    return [Measured(named[labels.get(n, n)], results.load(run.file(f"eval/{n}.json"))) for n in found]


# -- the text in another order


def chunk_order(total: int, chunk: int, seed: int = ORDER_SEED) -> np.ndarray:
    """Which chunk of the text stands at each place. A last, shorter one stays, so that all others keep their length."""
    whole = total // chunk
    order = np.arange(-(-total // chunk))
    order[:whole] = np.random.default_rng(seed).permutation(whole)
    return order


def shuffled(tokens: np.ndarray, chunk: int, seed: int = ORDER_SEED) -> np.ndarray:
    """The stream (N + 1,) with its chunks of `chunk` targets in another order; the same targets, each once.

    The first token, never a target, stays first. After a seam the context is another block's, and a leading space may
    cost a byte more or less.
    """
    order = chunk_order(len(tokens) - 1, chunk, seed)
    blocks = [tokens[1 + i * chunk : 1 + (i + 1) * chunk] for i in order]
    return np.concatenate([tokens[:1], *blocks])


def in_text_order(result: EvalResult, chunk: int, seed: int = ORDER_SEED) -> EvalResult:
    """The result of a shuffled stream with each chunk's sums, and each target's nats, at its place in the text."""
    back = np.argsort(chunk_order(result.chunks[-1]["stop"], chunk, seed))
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

    `changes` override data, eval and ttt values of all cells; what a protocol or a cell sets stands above them. Cells
    that are the run's own scores are taken from it, others are kept in `out` and not measured again, unless they are
    damaged or belong to something else; a killed cell goes on. A cell that this model, text or configuration cannot
    have gets a sentence in place of a result. UserError as `open_packed`.
    """
    study = _Study(target, dict(changes or {}), out, say)
    cells = standard(study.packed.cfg) if cells is None else cells
    found: list[Measured] = []
    for number, cell in enumerate(cells, 1):
        say(f"cell {number} of {len(cells)}: {cell.label}{time_left(study.spent, len(cells) - number + 1)}")
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
        self.packed, self.target, self.say = open_packed(target, changes), target, say
        self.run = RunFolder(target) if target.is_dir() else None
        self.own = open_packed(target, {}).cfg if changes else self.packed.cfg  # what the run measured under
        self.folder = RunFolder(out) if out else None
        paths = {weights: target / name for weights, name in FILES.items()} if self.run else {"artifact": target}
        self.shas = {weights: files.sha256_file(path) for weights, path in paths.items() if path.exists()}
        self.done = dict[str, EvalResult]()
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
        p = self.packed
        if cell.weights not in self.shas:
            raise UserError(f"{self.target}: expected the {cell.weights} weights of a run folder, found none")
        cfg = protocols.configure(cell.protocol, p.cfg, cell.changes)
        if cfg.ttt.reset == "document" and not p.subject.tables.boundary.cpu().numpy()[p.subject.tokens].any():
            raise UserError(f"cell {cell.label}: expected document boundaries in the validation text, found none")
        return p.source | {"weights": self.shas[cell.weights], "config": cfg.hash, "seed": cfg.run.seed}

    def _reported(self, cell: Cell, source: dict) -> EvalResult | None:
        """The run's own evaluation, if it is whole and of the same weights, configuration and text."""
        made = (FILES[cell.weights], cell.protocol)
        name = next((name for name, own in measures(self.own).items() if own == made and not cell.shuffled), "")
        if not (self.run and name) or self.packed.cfg.ttt.chunk_tokens != self.own.ttt.chunk_tokens:
            return None
        if source["config"] != protocols.configure(cell.protocol, self.own).hash:
            return None
        outputs = self.run.stages().get(f"eval-{name}", {}).get("outputs", {})
        kept = {self.run.file(output): sha for output, sha in outputs.items()}
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
        if self.folder is None:
            return self._evaluate(cell, None, source)
        path = self.folder.file(f"{name}.json")
        try:
            if self.folder.finished(name, belongs):
                return self._reused(results.load(path))
            if path.exists():
                self.say(f"  {path}: expected the result of this cell as it was saved, found another; measured again")
        except UserError as e:
            self.say(f"  {e}; measured again")
        path.parent.mkdir(parents=True, exist_ok=True)
        found = self._evaluate(cell, path.with_suffix(".part"), source)
        results.save(found, path)
        outputs = [path.name] if found.per_target is None else [path.name, f"{name}.npy"]
        self.folder.finish(name, belongs, outputs, self.spent[-1])
        return found

    def _evaluate(self, cell: Cell, resume: Path | None, source: dict) -> EvalResult:
        """Measured now; nats of every target are kept of a, b and c as the configuration has them."""
        began, p, chunk = time.monotonic(), self.packed, self.packed.cfg.ttt.chunk_tokens
        subject = p.subject
        if cell.weights == "float":
            stored = unflat(tensors.load(self.target / FLOAT, "trained weights")[0])
            subject = subject._replace(weights=to_device(stored, subject.runtime.device))
        if cell.shuffled:
            subject = subject._replace(tokens=shuffled(subject.tokens, chunk))
        found = protocols.evaluate(
            cell.protocol,
            p.cfg,
            subject,
            changes=cell.changes,
            resume=resume,
            source=source,
            label=cell.label,
        )
        found = in_text_order(found, chunk) if cell.shuffled else found
        own = source["config"] == protocols.configure(cell.protocol, p.cfg).hash
        plain = own and cell.protocol in ABC.values() and not cell.shuffled
        self.spent.append(time.monotonic() - began)
        return replace(found, adapted=None, per_target=found.per_target if plain else None)


def by_label(measured: Iterable[Measured]) -> dict[str, EvalResult]:
    """The results of the cells that have one."""
    return {m.cell.label: m.result for m in measured if m.result is not None}
