"""Rows of the n-gram table: hashed (exp101; the plain mode is also pr294's and pr398's), or listed.

    bigram  = (36313 t_p) xor (27191 t_{p-1})
    trigram = bigram xor (51497 t_{p-2})

in wrapping int32 arithmetic, reduced by a non-negative remainder. The last row is the sentinel of positions that have
no predecessor. Split mode keeps one half of the other rows for tokens that start a word and one for the rest.
"""

import numpy as np
import torch
from torch import Tensor

MULTIPLIERS = (36313, 27191, 51497)


def ngram_rows(tokens: Tensor, word_start: Tensor | None, n_rows: int, split: bool, order: int = 2) -> Tensor:
    """(..., T) token ids -> (..., T) int64 rows of their bigrams (`order` 2) or trigrams (3).

    `word_start` (V,) bool: without it `split` does nothing.
    """
    length, lead = tokens.shape[-1], order - 1
    rows = torch.full(tokens.shape, n_rows - 1, dtype=torch.int64, device=tokens.device)
    if length <= lead:
        return rows
    ids = tokens.to(torch.int32)
    mixed = MULTIPLIERS[0] * ids[..., lead:]
    for back in range(1, order):
        mixed = mixed ^ (MULTIPLIERS[back] * ids[..., lead - back : length - back])
    if split and word_start is not None:
        half = (n_rows - 1) // 2
        rows[..., lead:] = mixed % half + torch.where(word_start[tokens[..., lead:]], 0, half)
    else:
        rows[..., lead:] = mixed % (n_rows - 1)
    return rows


def listed_rows(tokens: Tensor, pairs: Tensor, vocab_size: int) -> Tensor:
    """(..., T) token ids -> (..., T) int64 rows of a table without collisions; what is not listed shares the last.

    `pairs` (rows - 1, 2): the ids of each row's pair, in the order of `frequent_pairs`.
    """
    ids, last = pairs.to(torch.int64), len(pairs)
    codes = (ids[:, 0] * vocab_size + ids[:, 1]).contiguous()
    asked = tokens[..., :-1] * vocab_size + tokens[..., 1:]
    found = torch.searchsorted(codes, asked).clamp(max=last - 1)
    rows = torch.full(tokens.shape, last, dtype=torch.int64, device=tokens.device)
    rows[..., 1:] = torch.where(codes[found] == asked, found, last)
    return rows


def frequent_pairs(tokens: np.ndarray, vocab_size: int, most: int) -> np.ndarray:
    """The `most` most frequent pairs of neighbours in `tokens` (N,), rising by previous * V + current: (most, 2) int64.

    Of equally frequent ones those of lower code; a text with fewer pairs leaves the last rows to pairs it lacks.
    """
    code = tokens[:-1].astype(np.int64) * vocab_size + tokens[1:]
    counts = np.bincount(code, minlength=vocab_size**2)
    kept = np.sort(np.argsort(-counts, kind="stable")[:most])
    return np.stack([kept // vocab_size, kept % vocab_size], axis=1)
