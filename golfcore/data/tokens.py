"""What a token is worth in bytes, measured on the SentencePiece model: the denominator of bits per byte.

A token costs what it adds to the decoded text. A space that SentencePiece writes at the beginning of a piece costs
nothing after a boundary (start of document, padding, unknown) where the model drops it there, as the competition's
evaluation has it. The bytes are those of the text as the tokenizer normalizes it (NFKC and single spaces, usually).
"""

import io
from collections.abc import Iterable
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from golfcore.base.errors import UserError

SPACE = "\u2581"  # how SentencePiece writes a space
DENORMALIZER, CHARACTER_MAP = 5, 2  # fields of sentencepiece_model.proto: ModelProto.denormalizer_spec, its map


class Tables(NamedTuple):
    """Facts about each of V token ids."""

    base_bytes: Tensor  # (V,) int16: bytes of the piece without its leading space
    word_start: Tensor | None  # (V,) bool: the piece begins with a space
    boundary: Tensor  # (V,) bool: begins or ends a document, unknown or unused
    strips: bool = True  # a leading space after a boundary costs nothing

    def to(self, device: torch.device | str) -> "Tables":
        starts = None if self.word_start is None else self.word_start.to(device)
        return Tables(self.base_bytes.to(device), starts, self.boundary.to(device), self.strips)


class TokenClass(IntEnum):
    """Kinds of token that a loss is broken down by."""

    CONTROL = 0
    BYTE = 1
    WORD_START = 2
    WITHIN_WORD = 3


def load_tokenizer(path: Path, vocab_size: int | None = None) -> SentencePieceProcessor:
    """The SentencePiece model in `path`, one object for each content. UserError: no model, or of another vocabulary."""
    try:
        tokenizer = _processor(path.read_bytes() or b"none")  # b"" would be taken for no model
    except RuntimeError:
        raise UserError(f"{path}: expected a SentencePiece model, found a file that is none") from None
    if vocab_size not in (None, tokenizer.vocab_size()):
        raise UserError(f"{path}: expected a tokenizer of {vocab_size} pieces, found {tokenizer.vocab_size()}")
    return tokenizer


@lru_cache(maxsize=8)
def _processor(content: bytes) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_proto=content)


@lru_cache(maxsize=8)
def token_classes(tokenizer: SentencePieceProcessor) -> np.ndarray:
    """The `TokenClass` of every token id, (V,) int8."""

    def kind(token: int) -> TokenClass:
        if tokenizer.is_control(token) or tokenizer.is_unknown(token) or tokenizer.is_unused(token):
            return TokenClass.CONTROL
        if tokenizer.is_byte(token):
            return TokenClass.BYTE
        return TokenClass.WORD_START if tokenizer.id_to_piece(token).startswith(SPACE) else TokenClass.WITHIN_WORD

    return np.array([kind(i) for i in range(tokenizer.vocab_size())], np.int8)


def load_tables(path: Path, vocab_size: int) -> Tables:
    """The byte tables of the SentencePiece model in `path`, measured by decoding every piece in both contexts.

    UserError: as `load_tokenizer`; a model whose decoded text is not the sum of what its pieces add.
    """
    return _measure(path, load_tokenizer(path, vocab_size))


@lru_cache(maxsize=8)
def _measure(path: Path, tokenizer: SentencePieceProcessor) -> Tables:
    ids, classes, anchor = range(tokenizer.vocab_size()), token_classes(tokenizer), _anchor(tokenizer)
    before = tokenizer.decode([anchor])
    alone, inside = (tokenizer.decode([[*lead, i] for i in ids]) for lead in ([], [anchor]))
    rewrites = bool(_field(_field(tokenizer.serialized_model_proto(), DENORMALIZER), CHARACTER_MAP))
    for i in ids:
        if classes[i] == TokenClass.BYTE:
            alone[i], inside[i] = "?", before + "?"
        elif classes[i] != TokenClass.CONTROL:
            rewrites |= inside[i] != before + tokenizer.id_to_piece(i).replace(SPACE, " ")
    if rewrites:
        wanted = "expected a tokenizer that decodes its pieces as they are"
        raise UserError(f"{path}: {wanted}, found one that rewrites the decoded text")
    boundary = np.array([_is_boundary(tokenizer, i) for i in ids])
    first, later = (np.where(boundary, 0, [len(text.encode()) for text in texts]) for texts in (alone, inside))
    later -= np.where(boundary, 0, len(before.encode()))  # bytes that a token adds within a document
    starts = classes == TokenClass.WORD_START
    base, dropped = later - starts, (later - first)[starts]
    strips = bool((dropped == 1).all())
    if not strips and dropped.any() or (later != first)[~starts].any() or base.min() < 0:
        raise UserError(f"{path}: expected pieces that add the same bytes to any document, found some that do not")
    return Tables(torch.tensor(base, dtype=torch.int16), torch.tensor(starts), torch.tensor(boundary), strips)


def target_bytes(tables: Tables, previous: Tensor, target: Tensor) -> Tensor:
    """Bytes charged to each prediction of `target` after `previous`, int64; all three have the same shape.

    base_bytes[target], plus one for its space unless `previous` is a boundary.
    """
    if tables.word_start is None:
        raise ValueError("tables without word_start cannot account for spaces")
    space = tables.word_start[target]
    if tables.strips:
        space = space & ~tables.boundary[previous]
    return tables.base_bytes[target].to(torch.int64) + space


def proven_bytes(path: Path, tables: Tables, pieces: Iterable[np.ndarray]) -> int:
    """Bytes of a text that comes in `pieces`, (n,) ids each, counted by the tables and held against decoding it.

    A text that begins within a document counts from its second token. A byte token is one byte wherever it stands.
    UserError, naming the tokenizer in `path`: the tables count other bytes than the decoded text has.
    """
    tokenizer = load_tokenizer(path)
    anchor, letter = _anchor(tokenizer), tokenizer.piece_to_id("<0x41>")
    is_byte, boundary = token_classes(tokenizer) == TokenClass.BYTE, tables.boundary.numpy()
    before, total = np.empty(0, np.int64), 0
    for piece in pieces:
        ids = np.concatenate([before, piece.astype(np.int64)])
        counted = int(target_bytes(tables, torch.from_numpy(ids[:-1]), torch.from_numpy(ids[1:])).sum())
        ids[is_byte[ids]] = letter  # a run of bytes may be cut here; one letter is as long as one byte
        first, *documents = (part.tolist() for part in np.split(ids, np.flatnonzero(boundary[ids])))
        texts = [[anchor, *first], [anchor, *first[:1]], *(document[1:] for document in documents)]
        sizes = [len(text.encode()) for text in tokenizer.decode(texts)]
        decoded = sizes[0] - sizes[1] + sum(sizes[2:])
        if counted != decoded:
            raise UserError(
                f"{path}: expected a tokenizer whose bytes can be counted token by token, found {counted:,} bytes "
                f"counted where the decoded text has {decoded:,}"
            )
        before, total = ids[-1:], total + counted
    return total


def _field(message: bytes, number: int) -> bytes:
    """The content of a field of a protobuf message of varints, bytes and other messages; b"" if it is not there."""
    rest, found = io.BytesIO(message), b""

    def varint() -> int:
        byte = rest.read(1)[0]
        return byte if byte < 128 else byte - 128 + (varint() << 7)

    while rest.tell() < len(message):
        key, value = varint(), varint()
        content = rest.read(value) if key & 7 == 2 else b""
        found = content if key >> 3 == number else found
    return found


def _is_boundary(tokenizer: SentencePieceProcessor, token: int) -> bool:
    """Whether a token ends one document or begins the next; text never holds it.

    Where the vocabulary has no bytes to fall back to, the unknown token stands in the text and decodes to a sign.
    """
    if tokenizer.is_unknown(token):
        return TokenClass.BYTE in token_classes(tokenizer)
    ends = (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id())
    return token in ends or tokenizer.is_unused(token)


def _anchor(tokenizer: SentencePieceProcessor) -> int:
    """A token of ordinary text: what follows it does not begin a document."""
    ordinary = np.flatnonzero(token_classes(tokenizer) >= TokenClass.WORD_START).tolist()
    return next((i for i in ordinary if tokenizer.decode([i]).strip()), tokenizer.piece_to_id("<0x41>"))
