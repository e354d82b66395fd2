"""Entropy coding of arrays of small integers: one categorical model a stream, asymmetric numeral systems (rANS).

The coder is the `constriction` package's (Bamler 2022). The model is the stream's own counts, kept beside it as
integers, so that decoding repeats the very same arithmetic.
"""

from typing import NamedTuple

import constriction
import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.integer]


class Stream(NamedTuple):
    least: int  # the smallest symbol
    counts: tuple[int, ...]  # how often each symbol from `least` on occurs; () for an empty array
    words: NDArray[np.uint32]  # compressed; empty if there is only one symbol

    @property
    def bytes(self) -> int:
        return self.words.nbytes


def encode(symbols: IntArray) -> Stream:
    """The symbols in row-major order; the shape is the caller's to remember. Symbols must span a small range."""
    flat = symbols.astype(np.int32).ravel()
    if not flat.size:
        return Stream(0, (), np.empty(0, np.uint32))
    least = int(flat.min())
    counts = np.bincount(flat - least)
    stream = Stream(least, tuple(counts.tolist()), np.empty(0, np.uint32))
    if len(counts) == 1:
        return stream
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(flat - least, _model(stream))
    return stream._replace(words=coder.get_compressed())


def decode(stream: Stream) -> NDArray[np.int32]:
    """The flat symbols; as many as the counts add up to."""
    size = sum(stream.counts)
    if len(stream.counts) <= 1:
        return np.full(size, stream.least, np.int32)
    return constriction.stream.stack.AnsCoder(stream.words).decode(_model(stream), size) + np.int32(stream.least)


def _model(stream: Stream) -> constriction.stream.model.Categorical:
    counts = np.array(stream.counts, np.float64)
    return constriction.stream.model.Categorical(counts / counts.sum(), perfect=False)


def split_halves(values: NDArray[np.float16]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The high and the low byte of each float16: sign, exponent and two bits of mantissa; the rest, mostly noise."""
    pairs = np.ascontiguousarray(values, "<f2").view(np.uint8).reshape(-1, 2)
    return pairs[:, 1], pairs[:, 0]


def join_halves(high: IntArray, low: IntArray) -> NDArray[np.float16]:
    """The inverse of `split_halves`, flat."""
    return np.stack((low, high), axis=-1).astype(np.uint8).view("<f2").ravel().astype(np.float16)
