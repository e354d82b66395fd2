"""Documents of a token text, and those that the training text shares with the validation text."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from golfcore.data.stream import TokenStream

MIN_TOKENS = 64  # shorter documents are not compared: notices and stubs are equal without anybody's fault
HEAD_TOKENS = 8
PIECE_TOKENS = 1 << 22


class Spans(NamedTuple):
    """Documents of a text, without the tokens that separate them."""

    start: np.ndarray  # (D,) int64: position of the first token
    length: np.ndarray  # (D,) int64
    head: np.ndarray  # (D,) uint64: a mix of the first 8 tokens; of no meaning for shorter documents


class Overlap(NamedTuple):
    documents: int  # documents of the training text that are in the validation text as well
    train_at: int  # where the first of them begins in the training text
    val_at: int  # where it begins in the validation text


def spans(text: TokenStream, separator: int) -> Iterator[Spans]:
    """All documents of a text in order, a few million tokens at a time: what lies between tokens `separator`.

    Only one piece of the text is in memory, however long a document is.
    """
    begun = np.zeros(1, np.int64), _heads(text.slice(0, min(HEAD_TOKENS, text.total)), np.zeros(1, np.int64))
    for at in range(0, text.total, PIECE_TOKENS):
        window = text.slice(at, min(at + PIECE_TOKENS + HEAD_TOKENS + 1, text.total))
        found = np.flatnonzero(window[:PIECE_TOKENS] == separator)
        start = np.concatenate([begun[0], found + at + 1])
        head = np.concatenate([begun[1], _heads(window, found + 1)])
        yield Spans(start[:-1], np.diff(start) - 1, head[:-1])
        begun = start[-1:], head[-1:]
    yield Spans(begun[0], text.total - begun[0], begun[1])


def find_overlap(train: TokenStream, val: TokenStream, separator: int) -> tuple[Overlap, dict[str, int]]:
    """The documents of at least 64 tokens that both texts have, token for token; and the documents of each split.

    Lengths and heads choose candidates among the training documents; only those are compared in full.
    """
    documents = {"train": 0, "val": 0}
    known: dict[bytes, int] = {}
    keys = [np.empty(0, np.uint64)]
    for part in spans(val, separator):
        documents["val"] += int((part.length > 0).sum())
        long = part.length >= MIN_TOKENS
        keys.append(_keys(part)[long])
        for start, length in zip(part.start[long].tolist(), part.length[long].tolist(), strict=True):
            known.setdefault(_content(val, start, length), start)
    wanted = np.unique(np.concatenate(keys))
    count, first = 0, (-1, -1)
    for part in spans(train, separator):
        documents["train"] += int((part.length > 0).sum())
        maybe = np.flatnonzero((part.length >= MIN_TOKENS) & np.isin(_keys(part), wanted))
        for start, length in zip(part.start[maybe].tolist(), part.length[maybe].tolist(), strict=True):
            at = known.get(_content(train, start, length))
            if at is not None:
                first = first if count else (start, at)
                count += 1
    return Overlap(count, *first), documents


def _heads(window: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """A mix of the tokens from each start in the window on; those beyond its end count as 0."""
    padded = np.concatenate([window, np.zeros(HEAD_TOKENS + 1, window.dtype)])
    mixed = np.zeros(len(starts), np.uint64)
    for i in range(HEAD_TOKENS):
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + padded[starts + i]
    return mixed


def _keys(part: Spans) -> np.ndarray:
    return part.head ^ (part.length.astype(np.uint64) * np.uint64(0xD6E8FEB86659FD93))


def _content(text: TokenStream, start: int, length: int) -> bytes:
    digest = hashlib.sha256()
    for at in range(start, start + length, PIECE_TOKENS):
        digest.update(text.slice(at, min(at + PIECE_TOKENS, start + length)).tobytes())
    return digest.digest()
