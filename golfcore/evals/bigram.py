"""What a trained model must beat: an interpolated bigram model of the same training text."""

from typing import NamedTuple

import numpy as np


class Bigram(NamedTuple):
    """Witten-Bell: p(b|a) = (c(a,b) + k(a) p(b)) / (c(a) + k(a)), k(a) = different tokens seen after a."""

    log_prob: np.ndarray  # (V, V) float64 nats, [previous, target]

    def nats(self, tokens: np.ndarray) -> np.ndarray:
        """(N,) ids -> (N - 1,) nats of every target given its predecessor."""
        return -self.log_prob[tokens[:-1], tokens[1:]]


def fit_bigram(tokens: np.ndarray, vocab_size: int) -> Bigram:
    """`tokens` (N,) ids; the unigram has one added to every count, so every target has a probability."""
    ids = np.asarray(tokens).astype(np.int64)
    pairs = np.bincount(ids[:-1] * vocab_size + ids[1:], minlength=vocab_size**2).reshape(vocab_size, vocab_size)
    unigram = np.bincount(ids, minlength=vocab_size) + 1.0
    unigram /= unigram.sum()
    distinct = np.maximum((pairs > 0).sum(axis=1, keepdims=True), 1)
    return Bigram(np.log((pairs + distinct * unigram) / (pairs.sum(axis=1, keepdims=True) + distinct)))
