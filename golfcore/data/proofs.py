"""What is proven of a dataset's content, once for each content: no shared documents, and bytes that can be counted."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sentencepiece import SentencePieceProcessor

from golfcore.base.errors import UserError
from golfcore.data.contents import recall, remember
from golfcore.data.stream import TokenStream
from golfcore.data.tokens import load_tables, load_tokenizer, proven_bytes

RULES = 2  # raised when a proof changes, so that what was proven before is proven again
SAMPLE_TOKENS = 1 << 18  # the bytes of so many tokens of each split are proven whenever new content is opened
MIN_TOKENS = 64  # shorter documents are not compared: notices and stubs are equal without anybody's fault
BASE, INVERSE = 0x9E3779B97F4A7C15, pow(0x9E3779B97F4A7C15, -1, 1 << 64)


class Facts(NamedTuple):
    documents: dict[str, int]  # split -> documents
    bytes: dict[str, int]  # split -> bytes of its text; {} until the whole text was counted


class Documents(NamedTuple):
    """Documents of a text, without the tokens that separate them."""

    start: np.ndarray  # (D,) int64: position of the first token
    length: np.ndarray  # (D,) int64
    fingerprint: np.ndarray  # (D,) uint64: of the tokens


def prove(model: Path, train: Sequence[Path], val: Sequence[Path], data_hash: str, whole: bool) -> Facts:
    """The facts of a dataset, from the cache if they were proven of this `data_hash` before.

    `whole` proves again, and the bytes on the whole text. UserError: token ids that are not the tokenizer's; a
    tokenizer whose tables do not count the bytes of the decoded text; a document in both splits.
    """
    known = {} if whole else recall("datasets", data_hash, {"rules": int, "documents": dict, "bytes": dict})
    if known.get("rules") == RULES:
        return Facts(known["documents"], known["bytes"])
    tokenizer = load_tokenizer(model)
    vocab_size = tokenizer.vocab_size()
    tables = load_tables(model, vocab_size)
    texts = {"train": TokenStream(train, vocab_size), "val": TokenStream(val, vocab_size)}
    counted = {
        split: proven_bytes(model, tables, text.pieces(None if whole else SAMPLE_TOKENS))
        for split, text in texts.items()
    }
    documents = check_disjoint(texts["train"], texts["val"], _separator(tokenizer, texts["val"]))
    facts = Facts(documents, counted if whole else {})
    remember("datasets", data_hash, {"rules": RULES, **facts._asdict()})
    return facts


def check_disjoint(train: TokenStream, val: TokenStream, separator: int) -> dict[str, int]:
    """The number of documents in each split. UserError: one of at least 64 tokens is in both, token for token."""
    held_out = Documents(*map(np.concatenate, zip(*documents_of(val, separator), strict=True)))
    compared = held_out.fingerprint[held_out.length >= MIN_TOKENS]
    number = 0
    shared: list[tuple[int, int]] = []
    for part in documents_of(train, separator):
        number += int((part.length > 0).sum())
        found = (part.length >= MIN_TOKENS) & np.isin(part.fingerprint, compared)
        shared += zip(part.start[found].tolist(), part.fingerprint[found].tolist(), strict=True)
    if shared:
        position, fingerprint = shared[0]
        same = held_out.start[held_out.fingerprint == fingerprint][0]
        (shard, at), (val_shard, val_at) = train.place(position), val.place(int(same))
        raise UserError(
            f"{shard}: expected training text without the validation documents, found {len(shared):,} of them (of "
            f"{MIN_TOKENS} tokens or more), the first at token {at}, which is also at token {val_at} of {val_shard}"
        )
    return {"train": number, "val": int((held_out.length > 0).sum())}


def documents_of(text: TokenStream, separator: int) -> Iterator[Documents]:
    """All documents of a text in order, a million tokens at a time: what lies between tokens `separator`.

    The fingerprint is a polynomial in BASE modulo 2**64 whose coefficients are random numbers for the token ids, taken
    from the difference of two prefix sums: of a document of any length only one piece is in memory.
    """
    values = np.random.default_rng(0).integers(0, 1 << 64, 1 << 16, np.uint64)
    values[separator] = 0
    start, before, scale = np.zeros(1, np.int64), np.zeros(1, np.uint64), np.ones(1, np.uint64)
    at, total = 0, np.uint64(0)
    for ids in text.pieces():
        sums = np.cumsum(values[ids] * _powers(BASE, at, len(ids)), dtype=np.uint64) + total
        found = np.flatnonzero(ids == separator)
        start = np.concatenate([start[-1:], found + at + 1])
        before = np.concatenate([before[-1:], sums[found]])
        scale = np.concatenate([scale[-1:], _powers(INVERSE, at + 1, len(ids))[found]])
        yield Documents(start[:-1], np.diff(start) - 1, np.diff(before) * scale[:-1])
        at, total = at + len(ids), sums[-1]
    yield Documents(start[-1:], text.total - start[-1:], (total - before[-1:]) * scale[-1:])


def _powers(base: int, first: int, count: int) -> np.ndarray:
    """`base` to the powers from `first` on, modulo 2**64: (count,) uint64."""
    factors = np.full(count, base, np.uint64)
    factors[0] = pow(base, first, 1 << 64)
    return np.cumprod(factors, dtype=np.uint64)


def _separator(tokenizer: SentencePieceProcessor, text: TokenStream) -> int:
    """The token between documents: the start of a document, else its end; -1 for a text that has neither."""
    sample = text.slice(0, min(SAMPLE_TOKENS, text.total))
    ends = (tokenizer.bos_id(), tokenizer.eos_id())
    return next((token for token in ends if token >= 0 and (sample == token).any()), -1)
