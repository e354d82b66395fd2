"""What a user types: `import golfcore as gc`, then `gc.run(gc.load("demo"))`. Runs and artifacts show themselves."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from torch import Tensor

from golfcore import config
from golfcore.analysis import compare as comparison
from golfcore.analysis import frames, scores, sizes, text
from golfcore.analysis import geometry as geometries
from golfcore.analysis import models as several
from golfcore.analysis import runs as reports
from golfcore.analysis.buckets import Buckets
from golfcore.base import tensors
from golfcore.base.errors import UserError
from golfcore.base.records import RESULTS, RunFolder
from golfcore.config import Config, load  # noqa: F401, which is gc.load
from golfcore.data.datasets import prepare_data
from golfcore.data.tokens import Tables
from golfcore.evals import audit as audits
from golfcore.evals.result import EvalResult
from golfcore.model.forward import Net
from golfcore.model.weights import Weights, fingerprint, unflat
from golfcore.quant import artifact as packed
from golfcore.runs import audits as run_audits
from golfcore.runs import pipeline, reopen
from golfcore.runs.folder import default_out, find_run, find_target
from golfcore.runs.results import ARTIFACT, FLOAT, table

Changes: TypeAlias = Mapping[str, object]  # "section.key" -> value
BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Artifact:
    """A packed model. `weights` are float32, as scoring reads them."""

    path: Path

    @cached_property
    def _read(self) -> tuple[Config, Weights]:
        return packed.read(self.path)

    @property
    def config(self) -> Config:
        return self._read[0]

    @property
    def weights(self) -> Weights:
        return self._read[1]

    @property
    def bytes(self) -> pd.DataFrame:
        """Bytes by component with the code that reads and scores it: `analysis.sizes.bytes_by_component`."""
        return sizes.bytes_by_component(packed.info(self.path), packed.code_bytes(), self.config.quant.max_bytes)

    def __repr__(self) -> str:
        return f"artifact {self.path}: {self.config.name}, {self.path.stat().st_size:,} bytes"


@dataclass(frozen=True)
class Run:
    """A run folder and what is in it, as pandas frames. Frames of scores need a finished run (UserError if it is not).

    In a notebook or at a prompt it shows its numbers, their legality, its bytes and its curve.
    """

    folder: RunFolder

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def id(self) -> str:
        return self.folder.id

    @cached_property
    def config(self) -> Config:
        return config.of_run(self.folder)

    @property
    def scores(self) -> pd.DataFrame:
        """One row a measure, with its difference to the one before: `analysis.scores.waterfall`."""
        return scores.waterfall(self.folder)

    @property
    def metrics(self) -> pd.DataFrame:
        """Every row that training logged; `kind` is train, val, event, ..."""
        return frames.frame({"kind": row["kind"], "step": row["step"], **row} for row in self.folder.metrics())

    @property
    def targets(self) -> pd.DataFrame:
        """One row a validation target: `token`, the one `before` it, its `piece`, `class`, nats of each measure."""
        return scores.targets(self.folder)

    @property
    def bytes(self) -> pd.DataFrame:
        """Bytes by component, with the code bytes that the run stated: `analysis.sizes.bytes_by_component`."""
        return sizes.run_bytes(self.folder)

    @property
    def coverage(self) -> pd.DataFrame:
        """What every feature that is switched on really touched."""
        return reports.coverage(self.folder)

    @property
    def weights(self) -> Weights:
        """The averaged float weights, before rounding, on the CPU."""
        return unflat(tensors.load(self.folder.file(FLOAT), "trained weights")[0])

    @property
    def artifact(self) -> Artifact:
        return open_artifact(self.folder.file(ARTIFACT))

    def rows(self, n: int) -> tuple[Net, Tensor, Tensor]:
        """The network without weights, and inputs and targets (n, T) of the first rows of the validation text."""
        return several.rows_of(self.folder, n)

    def __repr__(self) -> str:
        finished = self.folder.file(RESULTS).exists()
        said = table(self.folder.results()) if finished else f"run {self.id}: {self.config.name}, not finished"
        return f"{said}\n{self._curve()}".rstrip()

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    def _curve(self) -> str:
        """Training in one line: first and last smoothed score with the course between, and the last validation."""
        train, val = self.folder.metrics("train"), self.folder.metrics("val")
        if not train:
            return ""
        parts = np.array_split([row["bpb"] for row in train], min(40, len(train)))
        means = np.array([part.mean() for part in parts])
        heights = np.interp(means, (means.min(), means.max()), (0, len(BLOCKS) - 1)).round().astype(int)
        drawn = "".join(BLOCKS[height] for height in heights)
        course = f"training: {means[0]:.3f} {drawn} {means[-1]:.3f} bpb after {train[-1]['step']:,} steps"
        return course + (f", validation {val[-1]['bpb']:.4f} (current weights)" if val else "")


Target: TypeAlias = Run | Artifact | str | Path


def run(cfg: Config, out: str | Path | None = None) -> Run:
    """The run of `cfg`, done: train, average, quantize, pack, score. What is done in `out` is reused, and goes on."""
    return Run(pipeline.run(cfg, Path(out) if out else default_out(cfg)))


def open_run(where: str | Path) -> Run:
    """The run in a folder, or of an id below papermill_runs (UserError if there is none)."""
    return Run(find_run(Path(where)))


def open_artifact(file: str | Path) -> Artifact:
    """An artifact file (UserError if there is none; what is in it is checked when it is read)."""
    if not Path(file).is_file():
        raise UserError(f"{file}: expected an artifact, found no such file")
    return Artifact(Path(file))


def evaluate(target: Target, protocol: str = "ttt", changes: Changes | None = None) -> EvalResult:
    """The score of a run's or an artifact's packed weights under a protocol, with dotted data, eval and ttt changes."""
    return reopen.evaluate_again(_where(target), protocol, dict(changes or {}))


def audit(
    target: Target | audits.Scorer,
    tokens: np.ndarray | None = None,
    protocol: str = "ttt",
    changes: Changes | None = None,
    **settings: Any,
) -> audits.Report:
    """The legality audit: one verdict a condition. Of a run or an artifact under a protocol; or of any scorer.

    A scorer needs `tokens`, its stream, and what `evals.audit.audit` asks for (`vocab_size`, `chunk`, ...). Both take
    `seed`, of what is drawn.
    """
    if isinstance(target, Target):
        return run_audits.audit_packed(_where(target), protocol, dict(changes or {}), **settings)
    if tokens is None:
        raise UserError("audit: expected the tokens that the scorer is to score, found none")
    return audits.audit(target, tokens, **settings)


def buckets(
    source: Target | np.ndarray, tables: Tables | None = None, rows: int = 0, pieces: Sequence[str] | None = None
) -> Buckets:
    """The n-gram table of a run or an artifact on its training text, or of tokens (N,): `analysis.buckets.Buckets`.

    `.row(17)`, `.pair(" the", "re")`, `.predicts(17)`, `.rows`, `.pairs`, `.occupancy`, `.collisions()`. Tokens need
    `tables`, which tell word starts; `rows` are those of the table (of a model: its own, unless given).
    """
    if isinstance(source, np.ndarray):
        if tables is None:
            raise UserError("buckets: expected tables of the tokenizer beside tokens, found none")
        return Buckets(source, tables, rows, pieces=pieces)
    where, scored = _where(source), None
    if where.is_dir():
        run = open_run(where)
        cfg, weights, its = run.config, run.weights, text.text_of(run.folder)
        if run.folder.file(RESULTS).exists():
            scored = its.val, np.asarray(scores.evaluation(run.folder, "static").per_target)
    else:
        packed_one = reopen.open_packed(where, {})
        cfg, weights = packed_one.cfg, packed_one.subject.weights
        its = text.text_for(cfg, prepare_data(cfg, lambda message: None))
    own, layout = rows or cfg.model.bigram_rows, cfg.model.bigram_layout
    theirs = weights if own == cfg.model.bigram_rows else None
    return Buckets(its.train, its.tables, own, layout, text.pieces_for(cfg), theirs, scored)


def geometry(*models: Target | Weights, dimensions: Sequence[int] = geometries.DIMENSIONS) -> pd.DataFrame:
    """Leading subspaces of every block matrix between every two models: `analysis.geometry.overlaps`.

    Models are runs, artifacts, or weights; they are named by run id or file, weights by their place, and what each is
    (hash of its weights, configuration) is printed.
    """
    named: dict[str, Weights] = {}
    for place, model in enumerate(models, 1):
        if isinstance(model, Weights):
            label, weights, origin = f"model {place}", model, ""
        else:
            where = _where(model)
            opened = open_run(where) if where.is_dir() else open_artifact(where)
            label, weights = where.name, opened.weights
            origin = f", {opened.config.name}, configuration {opened.config.hash}"
        label = label if label not in named else f"{label} ({place})"
        print(f"{label}: weights {fingerprint(weights)[:12]}{origin}")
        named[label] = weights
    return geometries.overlaps(named, dimensions)


def compare(runs: Sequence[Run | str | Path]) -> pd.DataFrame:
    """Runs side by side, the first configuration the reference: one row for each measure and arm."""
    return comparison.compare(comparison.arms_of([_where(one) for one in runs]))


def _where(target: Target) -> Path:
    return target.path if isinstance(target, Run | Artifact) else find_target(Path(target))
