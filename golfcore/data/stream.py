"""The training text as one endless token stream whose position is a plain number.

The stream concatenates the shards in order and starts again after the last (spec: no shuffling, no alignment to
documents). All it knows of the past is `position`, the number of tokens consumed since the start of training, so a
run that saves that number and sets it again continues with exactly the tokens it would have seen.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from golfcore.base.errors import UserError
from golfcore.data.shards import open_shard, shard_tokens


class TokenStream:
    """An endless reader of `shards`; the last `reserve` tokens of the text are never streamed.

    `length` is the number of tokens in one pass; `position` may be read, saved and set at any time.
    UserError: no shards, a damaged shard (its ids are checked when it is first read), or a reserve as large as the
    text.
    """

    def __init__(self, shards: Sequence[Path], vocab_size: int, reserve: int = 0, position: int = 0) -> None:
        if not shards:
            raise UserError("shards: expected at least one training shard, found none")
        self.shards = tuple(shards)
        self.vocab_size = vocab_size
        self.reserve = reserve
        self.position = position
        self._starts = np.cumsum([0, *(shard_tokens(path) for path in self.shards)])
        self._open: dict[int, np.memmap] = {}
        total = int(self._starts[-1])
        if not 0 <= reserve < total:
            raise UserError(f"reserve: expected 0 to {total - 1} tokens of {self.shards[0].parent}, found {reserve}")
        self.length = total - reserve

    def read(self, position: int, count: int) -> np.ndarray:
        """The `count` tokens from `position` on, (count,) uint16; moves nothing."""
        pieces = []
        while count > 0:
            start = position % self.length
            stop = min(start + count, self.length)
            pieces.append(self._slice(start, stop))
            position, count = position + stop - start, count - (stop - start)
        return np.concatenate(pieces) if pieces else np.empty(0, np.uint16)

    def take(self, count: int) -> np.ndarray:
        """The next `count` tokens, (count,) uint16; moves on by as many."""
        tokens = self.read(self.position, count)
        self.position += count
        return tokens

    def batch(self, rows: int, seq_len: int) -> tuple[Tensor, Tensor]:
        """The next micro-batch: inputs and targets, each (rows, seq_len) int64; moves on by rows * seq_len + 1 tokens.

        Of that block of text the first tokens are the inputs and the last the targets. So one token in each block is
        never an input, as published.
        """
        found = self.rows(self.position, rows, seq_len)
        self.position += rows * seq_len + 1
        return found

    def rows(self, position: int, rows: int, seq_len: int) -> tuple[Tensor, Tensor]:
        """The inputs and targets of the `rows` rows of text from token `position` on; moves nothing."""
        tokens = torch.from_numpy(self.read(position, rows * seq_len + 1).astype(np.int64))
        return tokens[:-1].view(rows, seq_len), tokens[1:].view(rows, seq_len)

    def tail(self, count: int) -> np.ndarray:
        """The last `count` tokens of the whole text, (count,) uint16: a development slice never trained on."""
        if not 0 < count <= self.reserve:
            raise ValueError(f"tail of {count} tokens, but only the last {self.reserve} are kept out of training")
        total = self.length + self.reserve
        return self._slice(total - count, total)

    def _slice(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of the text, 0 <= start < stop <= total, across shard boundaries."""
        first, last = np.searchsorted(self._starts, [start, stop - 1], side="right") - 1
        pieces = []
        for index in range(first, last + 1):
            base = int(self._starts[index])
            pieces.append(self._shard(index)[max(start - base, 0) : stop - base])
        return np.concatenate(pieces)

    def _shard(self, index: int) -> np.memmap:
        if index not in self._open:
            self._open[index] = open_shard(self.shards[index], self.vocab_size)
        return self._open[index]
