"""What a trained model must beat: an interpolated bigram model of the same training text."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Bigram(NamedTuple):
    """Witten-Bell: p(b|a) = (c(a,b) + k(a) p(b)) / (c(a) + k(a)), k(a) = different tokens seen after a."""

    log_prob: np.ndarray  # (V, V) float64 nats, [previous, target]

    def nats(self, tokens: np.ndarray) -> np.ndarray:
        """(N,) ids -> (N - 1,) nats of every target given its predecessor."""
        return -self.log_prob[tokens[:-1], tokens[1:]]


def fit_bigram(pieces: Iterable[np.ndarray], vocab_size: int) -> Bigram:
    """The model of a text that comes in `pieces`, (n,) ids each and not empty; only one is widened at a time.

    The unigram has one added to every count, so every target has a probability.
    """
    pairs = np.zeros(vocab_size**2, np.int64)
    unigram = np.ones(vocab_size)
    before = np.empty(0, np.int64)
    for piece in pieces:
        ids = np.concatenate([before, piece.astype(np.int64)])
        pairs += np.bincount(ids[:-1] * vocab_size + ids[1:], minlength=vocab_size**2)
        unigram += np.bincount(ids[len(before) :], minlength=vocab_size)
        before = ids[-1:]
    unigram /= unigram.sum()
    counts = pairs.reshape(vocab_size, vocab_size)
    distinct = np.maximum((counts > 0).sum(axis=1, keepdims=True), 1)
    return Bigram(np.log((counts + distinct * unigram) / (counts.sum(axis=1, keepdims=True) + distinct)))
