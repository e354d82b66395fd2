"""The competition's shard format: a header of 256 little-endian int32, then the tokens as uint16.

Header words: 0 the magic number, 1 the version, 2 the number of tokens N, the rest 0. A file is 1024 + 2N bytes.
"""

from pathlib import Path

import numpy as np

from golfcore.base.errors import UserError
from golfcore.base.files import atomic_path

MAGIC, VERSION = 20240520, 1
HEADER_BYTES = 1024
CHECK_TOKENS = 1 << 24  # ids are checked in pieces of 32 MiB


def write_shard(path: Path, tokens: np.ndarray) -> None:
    """Write 1-D `tokens` (any integer type, ids below 65,536) to `path`, which appears whole or not at all."""
    if len(tokens) and not (0 <= int(tokens.min()) and int(tokens.max()) < 1 << 16):
        raise ValueError(f"token ids must fit in uint16, found {int(tokens.min())} .. {int(tokens.max())}")
    header = np.zeros(HEADER_BYTES // 4, "<i4")
    header[:3] = MAGIC, VERSION, len(tokens)
    with atomic_path(path) as part, part.open("wb") as f:
        f.write(header.tobytes())
        f.write(np.ascontiguousarray(tokens, "<u2").data)


def is_shard(path: Path) -> bool:
    """Whether a file begins with the magic number of a shard."""
    with path.open("rb") as f:
        return f.read(4) == MAGIC.to_bytes(4, "little")


def shard_tokens(path: Path) -> int:
    """The number of tokens in a shard, from its header; reads no token.

    UserError: wrong magic number, wrong version, no tokens, or a size other than 1024 + 2N bytes.
    """
    with path.open("rb") as f:
        head = f.read(HEADER_BYTES)
    if len(head) < HEADER_BYTES:
        raise UserError(f"{path}: expected a shard header of {HEADER_BYTES} bytes, found {len(head)} bytes in all")
    magic, version, count = np.frombuffer(head, "<i4", 3).tolist()
    if magic != MAGIC:
        raise UserError(f"{path}: expected the magic number {MAGIC} of a token shard, found {magic}")
    if version != VERSION:
        raise UserError(f"{path}: expected shard version {VERSION}, found {version}")
    if count < 1:
        raise UserError(f"{path}: expected at least one token, found {count} in the header")
    expected, found = HEADER_BYTES + 2 * count, path.stat().st_size
    if found != expected:
        what = "a truncated file" if found < expected else "a file with trailing data"
        raise UserError(f"{path}: expected {expected} bytes for {count} tokens, found {what} of {found} bytes")
    return count


def open_shard(path: Path, vocab_size: int) -> np.memmap:
    """The tokens of a shard as a read-only (N,) uint16 map of the file; every id is checked once, here.

    UserError: what `shard_tokens` raises, or an id that is not below `vocab_size`.
    """
    count = shard_tokens(path)
    tokens = np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(count,))
    for start in range(0, count, CHECK_TOKENS):
        piece = tokens[start : start + CHECK_TOKENS]
        if (top := int(piece.max())) >= vocab_size:
            where = start + int(piece.argmax())
            raise UserError(f"{path}: expected token ids below {vocab_size}, found {top} at position {where}")
    return tokens
