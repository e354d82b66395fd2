"""The training text as one endless token stream whose position is a plain number.

The shards follow one another in order, and again after the last: no shuffling, no alignment to documents. All that
the stream knows of the past is `position`, so a run that saves that number and sets it again continues exactly.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from golfcore.base.errors import UserError
from golfcore.data.shards import open_shard, shard_tokens

PIECE_TOKENS = 1 << 20


class TokenStream:
    """An endless reader of `shards`; the last `reserve` tokens of the text are never streamed.

    `length` is the number of tokens in one pass, `total` that of the whole text with the reserve; `position` counts
    the tokens consumed, and may be set.
    UserError: a damaged shard (its ids are checked when it is first read), or a reserve as large as the text.
    """

    def __init__(self, shards: Sequence[Path], vocab_size: int, reserve: int = 0) -> None:
        self.shards, self.vocab_size, self.position = tuple(shards), vocab_size, 0
        self._starts = np.cumsum([0, *map(shard_tokens, self.shards)])
        self._open: dict[int, np.memmap] = {}
        self.total = int(self._starts[-1])
        if not 0 <= reserve < self.total:
            where = self.shards[0].parent
            raise UserError(f"reserve: expected 0 to {self.total - 1} tokens of {where}, found {reserve}")
        self.length = self.total - reserve

    def read(self, position: int, count: int) -> np.ndarray:
        """The `count` tokens from `position` on, (count,) uint16; moves nothing."""
        pieces = [np.empty(0, np.uint16)]
        while count > 0:
            start = position % self.length
            pieces.append(self.slice(start, min(start + count, self.length)))
            position, count = position + len(pieces[-1]), count - len(pieces[-1])
        return np.concatenate(pieces)

    def rows(self, position: int, rows: int, seq_len: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, each (rows, seq_len) int64, of the block of text from token `position` on; moves nothing.

        The block has one token more than the inputs, and as published the next block begins after it.
        """
        tokens = torch.from_numpy(self.read(position, rows * seq_len + 1).astype(np.int64))
        return tokens[:-1].view(rows, seq_len), tokens[1:].view(rows, seq_len)

    def tail(self) -> np.ndarray:
        """The reserve, (reserve,) uint16: a development slice never trained on."""
        return self.slice(self.length, self.total)

    def pieces(self, stop: int | None = None) -> Iterator[np.ndarray]:
        """The tokens of one pass, or those before `stop`, in pieces of at most a million: (n,) uint16 each."""
        stop = self.length if stop is None else min(stop, self.total)
        for start in range(0, stop, PIECE_TOKENS):
            yield self.slice(start, min(start + PIECE_TOKENS, stop))

    def place(self, position: int) -> tuple[Path, int]:
        """The shard that holds a position of the text, and where in the shard's tokens it is."""
        index = int(np.searchsorted(self._starts, position, side="right")) - 1
        return self.shards[index], position - int(self._starts[index])

    def slice(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of the text, 0 <= start < stop <= total, across shard boundaries."""
        first, last = np.searchsorted(self._starts, [start, stop - 1], side="right") - 1
        pieces = []
        for index in range(first, last + 1):
            if index not in self._open:
                self._open[index] = open_shard(self.shards[index], self.vocab_size)
            base = int(self._starts[index])
            pieces.append(self._open[index][max(start - base, 0) : stop - base])
        return np.concatenate(pieces)
