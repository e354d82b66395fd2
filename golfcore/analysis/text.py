"""The text of a run, for analyses that look at tokens."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from golfcore import config
from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.config import Config
from golfcore.data.datasets import Dataset, check_same, prepare_data, train_stream, val_tokens
from golfcore.data.tokens import SPACE, Tables, load_tables, load_tokenizer, token_classes

TRAIN_TOKENS = 10_000_000  # enough to count pairs of 1,024 tokens
_BYTE = re.compile("<0x([0-9A-F]{2})>")


class Text(NamedTuple):
    val: np.ndarray  # (N + 1,) int64: the N validation targets of the run's scores, each after its predecessor
    train: np.ndarray  # (M,) int64: the first tokens that it was trained on, at most TRAIN_TOKENS
    tables: Tables
    classes: np.ndarray  # (V,) `TokenClass` of every id


def text_of(run: RunFolder) -> Text:
    """The text that a run was trained and scored on. UserError if the data are not there, or are no longer the same."""
    cfg = config.of_run(run)
    dataset = prepare_data(cfg, lambda message: None)
    check_same(dataset, run.data_hash(), dataset.tokenizer_hash, str(run.path))
    trained = max((row["tokens"] for row in run.metrics("train")), default=0)
    if not trained:
        raise UserError(f"{run.path}: expected a run that has trained, found no training rows")
    return text_for(cfg, dataset, trained)


def text_for(cfg: Config, dataset: Dataset, trained: int = TRAIN_TOKENS) -> Text:
    """The validation text of a configuration, and the first `trained` tokens of its training text."""
    vocab = cfg.model.vocab_size
    stream = train_stream(dataset, vocab, cfg.data.reserve_tokens)
    return Text(
        val=val_tokens(dataset, vocab, cfg.data.val_tokens),
        train=stream.read(0, min(trained, stream.length, TRAIN_TOKENS)).astype(np.int64),
        tables=load_tables(dataset.tokenizer, vocab),
        classes=token_classes(load_tokenizer(dataset.tokenizer, vocab)),
    )


def pieces_of(run: RunFolder) -> list[str]:
    """`pieces_for` of a run's configuration."""
    return pieces_for(config.of_run(run))


def pieces_for(cfg: Config) -> list[str]:
    """The piece of every id of a configuration's tokenizer, with plain spaces. UserError: its data are not there."""
    tokenizer = load_tokenizer(prepare_data(cfg, lambda message: None).tokenizer, cfg.model.vocab_size)
    return [tokenizer.id_to_piece(i).replace(SPACE, " ") for i in range(tokenizer.vocab_size())]


def render(pieces: Sequence[str], ids: Iterable[int]) -> str:
    """The text that ids stand for; byte pieces in a row are decoded together, what is no UTF-8 stays as \\xNN."""
    out, pending = "", bytearray()
    for piece in (*(pieces[int(i)] for i in ids), ""):
        byte = _BYTE.fullmatch(piece)
        if byte:
            pending.append(int(byte[1], 16))
            continue
        out += pending.decode(errors="backslashreplace") + piece
        pending.clear()
    return out


def legible(text: str) -> str:
    """One line of print: what is neither a letter, a mark nor a plain space is written as in a Python string.

    Letters beyond Cyrillic are, too: the font of the figures has not all of them.
    """
    plain = {*range(0x20, 0x7F), *range(0xA1, 0x530), *range(0x2010, 0x2028)} - {0xAD}
    return "".join(c if ord(c) in plain else c.encode("unicode_escape").decode() for c in text)
