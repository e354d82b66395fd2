"""What a token is worth in bytes, read from the SentencePiece model: the denominator of bits per byte.

A space belongs to the piece that follows it, and is charged as one byte unless the token before is a boundary (start
of document, padding, unknown). Formula and table: the competition's evaluation. The bytes are those of the text as
the tokenizer normalizes it (NFKC, single spaces); where it changes nothing they are the bytes of the UTF-8 text.
"""

from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from golfcore.base.errors import UserError

SPACE = "\u2581"  # how SentencePiece writes a space
COUNT_TOKENS = 1 << 22


class Tables(NamedTuple):
    """Facts about each of V token ids."""

    base_bytes: Tensor  # (V,) int16: bytes of the piece without its leading space
    word_start: Tensor | None  # (V,) bool: the piece begins with a space
    boundary: Tensor  # (V,) bool: control, unknown or unused; a space after it costs nothing

    def to(self, device: torch.device | str) -> "Tables":
        return Tables(*(t if t is None else t.to(device) for t in self))  # type: ignore[arg-type]


class TokenClass(IntEnum):
    """Kinds of token that a loss is broken down by."""

    CONTROL = 0
    BYTE = 1
    WORD_START = 2
    WITHIN_WORD = 3


def load_tokenizer(path: Path, vocab_size: int) -> SentencePieceProcessor:
    """The SentencePiece model in `path`. UserError: not there, not such a model, or not of `vocab_size` pieces."""
    if not path.is_file():
        raise UserError(f"{path}: expected a SentencePiece model, found no such file")
    try:
        tokenizer = SentencePieceProcessor(model_file=str(path))
    except RuntimeError:
        raise UserError(f"{path}: expected a SentencePiece model, found a file that is none") from None
    if tokenizer.vocab_size() != vocab_size:
        raise UserError(f"{path}: expected a tokenizer of {vocab_size} pieces, found {tokenizer.vocab_size()}")
    return tokenizer


def token_classes(path: Path, vocab_size: int) -> Tensor:
    """The `TokenClass` of every token id, (V,) int8. UserError as `load_tokenizer`."""
    return _classes(load_tokenizer(path, vocab_size))


def load_tables(path: Path, vocab_size: int) -> Tables:
    """The byte tables of the SentencePiece model in `path`. UserError as `load_tokenizer`."""
    tokenizer = load_tokenizer(path, vocab_size)
    classes = _classes(tokenizer)
    base = [len(tokenizer.id_to_piece(i).removeprefix(SPACE).encode()) for i in range(vocab_size)]
    base_bytes = torch.tensor(base, dtype=torch.int16)
    base_bytes[classes == TokenClass.CONTROL] = 0
    base_bytes[classes == TokenClass.BYTE] = 1
    return Tables(base_bytes, classes == TokenClass.WORD_START, classes == TokenClass.CONTROL)


def target_bytes(tables: Tables, previous: Tensor, target: Tensor) -> Tensor:
    """Bytes charged to each prediction of `target` after `previous`, int64; all three have the same shape.

    base_bytes[target], plus one for its space unless `previous` is a boundary.
    """
    if tables.word_start is None:
        raise ValueError("tables without word_start cannot account for spaces")
    space = tables.word_start[target] & ~tables.boundary[previous]
    return tables.base_bytes[target].to(torch.int64) + space


def count_bytes(tables: Tables, tokens: np.ndarray) -> int:
    """Bytes of all targets in a text: tokens[1:], each after its predecessor. `tokens`: (N,), any integer type."""
    total = 0
    for start in range(0, len(tokens) - 1, COUNT_TOKENS):
        piece = torch.from_numpy(tokens[start : start + COUNT_TOKENS + 1].astype(np.int64))
        total += int(target_bytes(tables, piece[:-1], piece[1:]).sum())
    return total


def _classes(tokenizer: SentencePieceProcessor) -> Tensor:
    def kind(token: int) -> TokenClass:
        if tokenizer.is_control(token) or tokenizer.is_unknown(token) or tokenizer.is_unused(token):
            return TokenClass.CONTROL
        if tokenizer.is_byte(token):
            return TokenClass.BYTE
        return TokenClass.WORD_START if tokenizer.id_to_piece(token).startswith(SPACE) else TokenClass.WITHIN_WORD

    return torch.tensor([kind(i) for i in range(tokenizer.vocab_size())], dtype=torch.int8)
