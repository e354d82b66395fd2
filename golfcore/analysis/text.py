"""The text of a run, for analyses that look at tokens."""

from typing import NamedTuple

import numpy as np

from golfcore.analysis import runs
from golfcore.data.datasets import train_stream, val_tokens
from golfcore.data.tokens import Tables, load_tables, token_classes
from golfcore.errors import UserError
from golfcore.pipeline import prepare_data
from golfcore.records import RunFolder

TRAIN_TOKENS = 10_000_000  # enough to count pairs of 1,024 tokens


class Text(NamedTuple):
    val: np.ndarray  # (N + 1,) int64: the N validation targets of the run's scores, each after its predecessor
    train: np.ndarray  # (M,) int64: the first tokens that it was trained on, at most TRAIN_TOKENS
    tables: Tables
    classes: np.ndarray  # (V,) `TokenClass` of every id


def text_of(run: RunFolder) -> Text:
    """The text that a run was trained and scored on. UserError if the data are not there, or are no longer the same."""
    cfg = run.config()
    dataset = prepare_data(cfg, lambda message: None)
    if dataset.data_hash != run.data_hash():
        raise UserError(
            f"{dataset.path}: expected data {run.data_hash()[:12]} of {run.path}, found {dataset.data_hash[:12]}"
        )
    vocab, rows = cfg.model.vocab_size, runs.curves(run).only(kind="train")
    stream = train_stream(dataset, vocab, cfg.data.reserve_tokens)
    trained = int(max(rows.numbers("tokens")))
    return Text(
        val=val_tokens(dataset, vocab, cfg.data.val_tokens),
        train=stream.read(0, min(trained, stream.length, TRAIN_TOKENS)).astype(np.int64),
        tables=load_tables(dataset.tokenizer, vocab),
        classes=np.asarray(token_classes(dataset.tokenizer, vocab)),
    )
