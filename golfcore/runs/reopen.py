"""Artifacts opened again, to be scored: weights and the chosen rate from one file, text from its data."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from golfcore.base import runtime, tensors
from golfcore.base.errors import UserError
from golfcore.config import Config, override
from golfcore.data.datasets import check_same, prepare_data, val_tokens
from golfcore.data.tokens import load_tables
from golfcore.evals import protocols
from golfcore.evals.evaluation import Subject
from golfcore.evals.result import EvalResult
from golfcore.model.weights import flat, to_device
from golfcore.quant import artifact
from golfcore.runs.folder import find_run
from golfcore.runs.results import ARTIFACT, packed_facts

TEXTS = {"data.path", "data.packages"}  # values that name another text


class Packed(NamedTuple):
    """An artifact and the validation text that its configuration, or an override, names."""

    cfg: Config  # with the TTT rate that was chosen
    subject: Subject
    source: dict
    changes: dict[str, object]  # those of the overrides that stand above a protocol's own settings
    tokenizer: Path  # of the text


def open_packed(target: Path, changes: dict[str, object]) -> Packed:
    """The artifact of a run folder, or an artifact file; `changes` override data, eval, ttt and run values.

    UserError: neither a run nor an artifact; a change to what the weights were trained with; text in another
    tokenizer, or other text than the run's that no change names.
    """
    path = find_run(target).file(ARTIFACT) if target.is_dir() else target
    stored, weights = artifact.read(path)
    facts = packed_facts(path)
    for dotted in changes:
        if dotted.split(".")[0] not in ("data", "eval", "ttt", "run"):
            raise UserError(
                f"override {dotted!r}: expected a data, eval, ttt or run value, the weights are what they are"
            )
    cfg = override(facts.chosen(stored), changes, str(path))
    rt = runtime.start(cfg.run.dtype, cfg.run.seed, cfg.run.graphs)
    dataset = prepare_data(cfg, lambda text: None)
    if facts.data:
        data = None if TEXTS & changes.keys() else facts.data  # other text is scored if it is named
        check_same(dataset, data, facts.tokenizer, f"{path} (other text: --data DIR)")
    tokens = np.asarray(val_tokens(dataset, cfg.model.vocab_size, cfg.data.val_tokens))
    tables = load_tables(dataset.tokenizer, cfg.model.vocab_size)
    source = {"artifact": str(path), "config": cfg.hash, "data": dataset.data_hash, "code": runtime.code_version()}
    source["weights"] = tensors.digest(flat(weights))
    own = {key: value for key, value in changes.items() if key.partition(".")[0] in ("eval", "ttt")}
    return Packed(cfg, Subject(to_device(weights, rt.device), tokens, tables, rt), source, own, dataset.tokenizer)


def evaluate_again(target: Path, protocol: str, changes: dict[str, object]) -> EvalResult:
    """Score what `open_packed` opens under a protocol; nothing is written. UserError as there."""
    p = open_packed(target, changes)
    return protocols.evaluate(protocol, p.cfg, p.subject, changes=p.changes, source=p.source)
