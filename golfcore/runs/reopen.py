"""Artifacts opened for scoring again: weights from one file, validation text from the data it names."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from golfcore.base import files, runtime
from golfcore.base.errors import UserError
from golfcore.base.runtime import Runtime
from golfcore.config import Config, override
from golfcore.data.datasets import val_tokens
from golfcore.data.tokens import Tables, load_tables
from golfcore.evals.protocols import evaluate
from golfcore.evals.result import EvalResult
from golfcore.model.weights import Weights, to_device
from golfcore.quant import artifact
from golfcore.runs.folder import find_run
from golfcore.runs.pipeline import ARTIFACT, prepare_data


class Packed(NamedTuple):
    """An artifact, and the validation text that its configuration names."""

    cfg: Config
    weights: Weights
    val: np.ndarray
    tables: Tables
    runtime: Runtime
    source: dict
    changes: dict[str, object]  # those of the overrides that stand above a protocol's own settings


def open_packed(target: Path, changes: dict[str, object]) -> Packed:
    """The artifact of a run folder, or an artifact file; `changes` override data, eval, ttt and run values.

    A run folder comes with the TTT rate that it chose.
    UserError: neither a run nor an artifact, or a change to what the weights were trained with.
    """
    path = target / ARTIFACT if target.is_dir() else target
    if target.is_dir():
        find_run(target)
    stored, weights = artifact.read(path)
    chosen = target / "ttt.json"
    if chosen.exists():
        lr = files.read_json(chosen, "the chosen TTT settings")["lr"]
        stored = replace(stored, ttt=replace(stored.ttt, lr=lr))
    for dotted in changes:
        if dotted.split(".")[0] not in ("data", "eval", "ttt", "run"):
            raise UserError(
                f"override {dotted!r}: expected a data, eval, ttt or run value, the weights are what they are"
            )
    cfg = override(stored, changes, str(path))
    rt = runtime.start(cfg.run.dtype, cfg.run.seed)
    dataset = prepare_data(cfg, lambda text: None)
    val = val_tokens(dataset, cfg.model.vocab_size, cfg.data.val_tokens)
    tables = load_tables(dataset.tokenizer, cfg.model.vocab_size)
    source = {"artifact": str(path), "config": cfg.hash, "data": dataset.data_hash}
    own = {key: value for key, value in changes.items() if key.partition(".")[0] in ("eval", "ttt")}
    return Packed(cfg, to_device(weights, rt.device), val, tables, rt, source, own)


def evaluate_again(target: Path, protocol: str, changes: dict[str, object]) -> EvalResult:
    """The score of what `open_packed` opens under a protocol; nothing is written. UserError as there."""
    p = open_packed(target, changes)
    return evaluate(protocol, p.cfg, p.weights, p.val, p.tables, changes=p.changes, runtime=p.runtime, source=p.source)
