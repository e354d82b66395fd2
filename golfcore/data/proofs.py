"""What is proven of a dataset's content: no shared documents, and bytes that can be counted."""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np

from golfcore.base.errors import UserError
from golfcore.data.stream import TokenStream
from golfcore.data.tokens import load_tables, load_tokenizer, proven_bytes

RULES = 3  # raised when a proof changes, so that what was proven before is proven again
SAMPLE_TOKENS = 1 << 18  # the bytes of so many tokens of each split are proven when content is new
MIN_TOKENS = 64  # shorter documents are not compared: notices and stubs are equal without anybody's fault


class Facts(NamedTuple):
    documents: dict[str, int]  # split -> documents
    bytes: dict[str, int]  # split -> bytes of its text; {} until the whole text was counted


def prove(model: Path, train: Sequence[Path], val: Sequence[Path], whole: bool) -> Facts:
    """The facts of a dataset, with the bytes if those of the `whole` text are to be counted, not of its beginning.

    UserError: token ids that are not the tokenizer's; a tokenizer whose tables do not count the bytes of the decoded
    text; a document in both splits.
    """
    tokenizer = load_tokenizer(model)
    vocab_size = tokenizer.vocab_size()
    tables = load_tables(model, vocab_size)
    texts = {"train": TokenStream(train, vocab_size), "val": TokenStream(val, vocab_size)}
    most = None if whole else SAMPLE_TOKENS
    counted = {split: proven_bytes(model, tables, text.pieces(most)) for split, text in texts.items()}
    # What separates documents: their start, else their end, whichever the validation text has; -1: nothing does.
    beginning = texts["val"].slice(0, min(SAMPLE_TOKENS, texts["val"].total))
    separators = (tokenizer.bos_id(), tokenizer.eos_id())
    separator = next((token for token in separators if token >= 0 and (beginning == token).any()), -1)
    return Facts(check_disjoint(texts["train"], texts["val"], separator), counted if whole else {})


def check_disjoint(train: TokenStream, val: TokenStream, separator: int) -> dict[str, int]:
    """The number of documents in each split. UserError: one of at least 64 tokens is in both, token for token."""
    number = {"train": 0, "val": 0}
    held_out: dict[bytes, int] = {}
    for start, length, digest in documents_of(val, separator):
        number["val"] += length > 0
        if length >= MIN_TOKENS:
            held_out.setdefault(digest, start)
    shared: list[tuple[int, int]] = []
    for start, length, digest in documents_of(train, separator):
        number["train"] += length > 0
        if length >= MIN_TOKENS and digest in held_out:
            shared.append((start, held_out[digest]))
    if shared:
        (shard, at), (val_shard, val_at) = train.place(shared[0][0]), val.place(shared[0][1])
        raise UserError(
            f"{shard}: expected training text without the validation documents, found {len(shared):,} of them (of "
            f"{MIN_TOKENS} tokens or more), the first at token {at}, which is also at token {val_at} of {val_shard}"
        )
    return number


def documents_of(text: TokenStream, separator: int) -> Iterator[tuple[int, int, bytes]]:
    """(position of the first token, tokens, digest of these) of each document: what lies between tokens `separator`."""
    at, start, digest = 0, 0, blake2b(digest_size=16)
    for ids in text.pieces():
        begin = 0
        for end in np.flatnonzero(ids == separator).tolist():
            digest.update(ids[begin:end].data)
            yield start, at + end - start, digest.digest()
            start, begin, digest = at + end + 1, end + 1, blake2b(digest_size=16)
        digest.update(ids[begin:].data)
        at += len(ids)
    yield start, at - start, digest.digest()
