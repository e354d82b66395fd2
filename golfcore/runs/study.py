"""A score taken apart: the same weights on the same text under every protocol and control, as cells of one study.

(a) windows that do not overlap, (b) a sliding window and (c) sliding with adaptation stand side by side, and each
control changes one thing: the order of the text, how long adaptation lasts, its passes, what adapts, the optimizer, the
stride, the rounding of the weights; a grid changes two, the length of a chunk and the passes over it.
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
from golfcore.model.weights import Weights, flat
from golfcore.runs.reopen import open_packed
from golfcore.runs.results import ARTIFACT, FLOAT, MEASURES, eval_inputs, load_weights, measured, measures, packed_facts
from golfcore.runs.sweep import names_in, time_left

ORDER_SEED = 0
EPOCHS = (0, 1, 4, 20)
ADAPTED = ("all", "banks", "scalars", "mlps", "lora")
RANKS = (1, 32)  # of low-rank adapters, beside the configured one
RATES = {  # the chosen rate is one of SGD
    "adam": (1e-4, 1e-3),  # a step moves every value by about its rate
    "muon": (1e-4, 1e-3),  # of the banks: every singular value
    "lars": (1e-4, 1e-3),  # of the banks: every matrix by that share of its norm
}
GRID = (1, 4)  # passes over chunks of a quarter, of the whole and of four times the configured length
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
    """A cell and what it gave: a result, its chunks in the order of the text, or none, and a sentence why or on it."""

    cell: Cell
    result: EvalResult | None
    note: str = ""


def standard(cfg: Config) -> tuple[Cell, ...]:
    """The study of `cfg`: a, b, c; each control; each protocol that has a name. A reference comes first."""

    def controls(group: str, changes: Mapping[str, Mapping[str, object]]) -> list[Cell]:
        return [Cell(label, "ttt", group, changed, reference="b") for label, changed in changes.items()]

    constant = {} if cfg.ttt.lr_horizon else {"ttt.lr_shape": "constant"}
    resets = {"chunk": {"ttt.reset": "chunk"}, "document": {"ttt.reset": "document", **constant}}
    banks: dict[str, object] = {"ttt.adapted": "banks"}
    optimizers = {
        f"{name} {rate:g}": {"ttt.optimizer": name, "ttt.lr": rate} | (banks if name != "adam" else {})
        for name, rates in RATES.items()
        for rate in rates
    }
    adapted: dict[str, dict[str, object]] = {f"adapts {part}": {"ttt.adapted": part} for part in ADAPTED}
    adapted |= {f"lora rank {rank}": {"ttt.adapted": "lora", "ttt.lora_rank": rank} for rank in RANKS}
    label = {protocol: label for label, protocol in ABC.items()}
    others = [name for name in protocols.PROTOCOLS if name not in label]
    return (
        *(Cell(name, ABC[name], "abc", reference=other) for name, other in (("a", ""), ("b", "a"), ("c", "b"))),
        *(Cell(f"{name} float", p, "float", weights="float", reference=name) for name, p in ABC.items()),
        Cell("b shuffled", "sliding", "order", shuffled=True, reference="b"),
        Cell("c shuffled", "ttt", "order", shuffled=True, reference="b shuffled"),
        *controls("reset", {f"reset per {at}": changes for at, changes in resets.items()}),
        *controls("epochs", {f"epochs {n}": {"ttt.epochs": n} for n in EPOCHS}),
        *(Cell(f"stride {s}", "sliding", "stride", {"eval.stride": s}, reference="a") for s in strides(cfg)),
        *controls("adapted", adapted),
        *controls("optimizer", optimizers),
        *controls("grid", grid(cfg)),
        *(Cell(n, n, "protocols", reference=label[protocols.reference_of(n, cfg)]) for n in others),
    )


def grid(cfg: Config) -> dict[str, dict[str, object]]:
    """Lengths of a chunk against passes over it; the rate falls over as much text whatever the length."""
    c, found = cfg.ttt, dict[str, dict[str, object]]()
    for length in (c.chunk_tokens // 4, c.chunk_tokens, 4 * c.chunk_tokens):
        if length >= cfg.data.seq_len:
            horizon = max(1, round(c.lr_horizon * c.chunk_tokens / length)) if c.lr_horizon else 0
            fixed: dict[str, object] = {"ttt.chunk_tokens": length, "ttt.lr_horizon": horizon, "ttt.lr_candidates": ()}
            found |= {f"chunks of {length}, epochs {n}": fixed | {"ttt.epochs": n} for n in GRID}
    return found


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
    for cell in reversed(cells):
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
    found = measured(run.results())
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
    return np.concatenate([tokens[:1], *(tokens[1 + i * chunk : 1 + (i + 1) * chunk] for i in order)])


def in_text_order(chunks: Sequence[dict], chunk: int) -> list[dict]:
    """The rows of sums of a shuffled stream, each at its place in the text."""
    back = np.argsort(chunk_order(chunks[-1]["stop"], chunk))
    sums = [{k: chunks[j][k] for k in ("nats", "bytes", "adapt_losses")} for j in back]
    return [place | own for place, own in zip(chunks, sums, strict=True)]


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
    study = _Study(target, dict(changes or {}), RunFolder(out) if out else None, say)
    cells = standard(study.cfg) if cells is None else cells
    found: list[Measured] = []
    for number, cell in enumerate(cells, 1):
        say(f"cell {number} of {len(cells)}: {cell.label}{time_left(study.spent, len(cells) - number + 1)}")
        try:
            found.append(study.measured(cell))
        except UserError as e:
            found.append(Measured(cell, None, str(e)))
            say(f"  not measured: {e}")
    return found


class _Study:
    """One opened target, and the results so far by the hash of what they belong to."""

    def __init__(
        self, target: Path, changes: dict[str, object], folder: RunFolder | None, say: Callable[[str], object]
    ) -> None:
        self.cfg, self.subject, self.source, *_ = open_packed(target, changes)
        self.target, self.folder, self.say = target, folder, say
        self.loaded = {"artifact": (self.subject.weights, self.source["weights"])}
        self.own: dict[tuple, tuple[RunFolder, Config, str]] = {}  # the run's evaluations: run, its configuration, name
        if target.is_dir():
            run, cfg = RunFolder(target), config.of_run(RunFolder(target))
            packed = packed_facts(run.file(ARTIFACT)).chosen(cfg)
            for name, (file, protocol) in measures(cfg).items():
                own = protocols.configure(protocol, packed)
                self.own[protocol, own.hash, file, run.data_hash(), cfg.ttt.chunk_tokens] = run, cfg, name
        self.done = dict[str, EvalResult]()
        self.spent: list[float] = []  # seconds of the cells that were evaluated
        self.versions = {self.source["code"]}  # of the code that measured what is reused, once it was said

    def measured(self, cell: Cell) -> Measured:
        """The cell with the run's result, one from earlier, or one evaluated now. UserError: it cannot have one."""
        cfg, chunk = protocols.configure(cell.protocol, self.cfg, cell.changes), self.cfg.ttt.chunk_tokens
        by_document, tables = cfg.ttt.reset == "document", self.subject.tables
        if by_document and not tables.boundary.cpu().numpy()[self.subject.tokens].any():
            raise UserError(f"cell {cell.label}: expected document boundaries in the validation text, found none")
        source = self.source | {"weights": self.weights(cell)[1], "config": cfg.hash, "seed": cfg.run.seed}
        # `chunks`: what sums are kept of, whatever it adapts on
        belongs = {"protocol": cell.protocol, "order": ORDER_SEED if cell.shuffled else None, "chunks": chunk}
        belongs |= {k: source[k] for k in ("weights", "config", "data")}
        key = files.sha256_text(files.canonical_json(belongs))
        if key not in self.done:
            file, name = FILES[cell.weights], f"{cell.protocol}-{key[:16]}"
            places: list[tuple[RunFolder, str, dict, str]] = []
            own = self.own.get((cell.protocol, cfg.hash, file, source["data"], chunk))
            if own and not cell.shuffled:
                run, trained, of = own
                places.append((run, f"eval-{of}", eval_inputs(run, trained, file), f"eval/{of}.json"))
            if self.folder:
                places.append((self.folder, name, belongs, f"{name}.json"))
            kept = next((found for place in places if (found := self._kept(*place))), None)
            if kept:
                self.done[key] = replace(kept, source=source | {"code": kept.source.get("code")})
            else:
                self.done[key] = self._evaluate(cell, name, belongs, source)
        steps, note = self.done[key].coverage.get("ttt_steps"), ""
        if steps and not steps["of"]:
            short = f"no document is longer than a chunk of {cfg.ttt.chunk_tokens} tokens, each ends before a step"
            note = f"nothing was adapted: {short if by_document else steps['note']}"
        return Measured(cell, self.done[key], note)

    def weights(self, cell: Cell) -> tuple[Weights, str]:
        """What a cell scores, and the hash of its contents. UserError: an artifact has no float weights."""
        if cell.weights not in self.loaded:
            if not self.target.is_dir():
                raise UserError(f"{self.target}: expected the {cell.weights} weights of a run folder, found none")
            found = load_weights(self.target / FLOAT, self.subject.runtime.device)
            self.loaded[cell.weights] = found, tensors.digest(flat(found))
        return self.loaded[cell.weights]

    def _kept(self, folder: RunFolder, stage: str, inputs: dict, file: str) -> EvalResult | None:
        """A result as its stage left it, if it is whole and of these inputs; says once if other code measured it."""
        path = folder.file(file)
        try:
            if not folder.finished(stage, inputs):
                if path.exists():
                    self.say(
                        f"  {path}: expected the result of this cell as it was saved, found another; measured again"
                    )
                return None
            found = results.load(path)
        except UserError as e:
            self.say(f"  {e}; measured again")
            return None
        if (code := found.source.get("code")) not in self.versions:
            self.say(f"  reused: measured by golfcore {code}; this is {self.source['code']}")
            self.versions.add(code)
        return found

    def _evaluate(self, cell: Cell, name: str, belongs: dict, source: dict) -> EvalResult:
        """Measured now, and saved; nats of every target are kept of a, b and c as the configuration has them."""
        began, chunk = time.monotonic(), self.cfg.ttt.chunk_tokens
        subject = self.subject._replace(weights=self.weights(cell)[0])
        if cell.shuffled:
            subject = subject._replace(tokens=shuffled(subject.tokens, chunk))
        found = protocols.evaluate(
            cell.protocol,
            self.cfg,
            subject,
            changes=cell.changes,
            resume=self.folder.file(f"{name}.part") if self.folder else None,
            source=source,
            label=cell.label,
        )
        own = source["config"] == protocols.configure(cell.protocol, self.cfg).hash
        if cell.shuffled or not own or cell.protocol not in ABC.values():
            found = replace(found, per_target=None)
        chunks = in_text_order(found.chunks, chunk) if cell.shuffled else found.chunks
        found = replace(found, adapted=None, chunks=chunks)
        self.spent.append(time.monotonic() - began)
        if self.folder:
            results.save(found, self.folder.file(f"{name}.json"))
            outputs = [f"{name}.json"] + ([f"{name}.npy"] if found.per_target is not None else [])
            self.folder.finish(name, belongs, outputs, self.spent[-1])
        return found


def by_label(measured: Iterable[Measured]) -> dict[str, EvalResult]:
    """The results of the cells that have one."""
    return {m.cell.label: m.result for m in measured if m.result is not None}
