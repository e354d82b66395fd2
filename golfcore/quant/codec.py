"""Compression of arrays of small integers: by entropy coding, or as bytes by a general-purpose compressor.

Entropy coding: one categorical model a stream, asymmetric numeral systems (rANS). The coder is the `constriction`
package's (Bamler 2022). The model is the stream's own counts, kept beside it as integers, so that decoding repeats the
very same arithmetic.

General-purpose, as published: zstandard level 22 (pr294, pr398), LZMA preset 9 (exp101), zlib level 9 (pr294).
"""

import lzma
import zlib
from typing import Any, Literal, NamedTuple

import constriction
import numpy as np
import zstandard
from numpy.typing import NDArray

IntArray = NDArray[np.integer]
Compressor = Literal["zstd", "lzma", "zlib"]
LZMA_MEMORY = 1 << 27  # bytes; preset 9 unpacks with 65 MiB, a file could ask for 4 GiB


class Stream(NamedTuple):
    least: int  # the smallest symbol
    counts: tuple[int, ...]  # how often each symbol from `least` on occurs; () for an empty array
    words: NDArray[np.uint32]  # compressed; empty if there is only one symbol

    @property
    def payload(self) -> bytes:
        return self.words.astype("<u4").tobytes()

    @property
    def size(self) -> int:
        return sum(self.counts)

    @property
    def described(self) -> list[Any]:
        """What a header says of it: enough, with the payload, to have it again."""
        return [self.least, self.counts, len(self.words)]


class Blob(NamedTuple):
    size: int  # how many symbols
    payload: bytes  # one a byte, compressed

    @property
    def described(self) -> list[Any]:
        return [self.size, len(self.payload)]


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
    if len(stream.counts) <= 1:
        return np.full(stream.size, stream.least, np.int32)
    coder = constriction.stream.stack.AnsCoder(stream.words)
    return coder.decode(_model(stream), stream.size) + np.int32(stream.least)


def _model(stream: Stream) -> constriction.stream.model.Categorical:
    counts = np.array(stream.counts, np.float64)
    return constriction.stream.model.Categorical(counts / counts.sum(), perfect=False)


def compress(symbols: IntArray, compressor: Compressor) -> Blob:
    """The symbols (int8 or uint8) in row-major order; the shape is the caller's to remember."""
    if symbols.dtype.itemsize != 1:
        raise ValueError(f"expected symbols of one byte, found {symbols.dtype}")
    if not symbols.size:
        return Blob(0, b"")
    plain = symbols.tobytes()
    if compressor == "zstd":
        return Blob(symbols.size, zstandard.ZstdCompressor(level=22).compress(plain))
    if compressor == "lzma":
        return Blob(symbols.size, lzma.compress(plain, preset=9))
    return Blob(symbols.size, zlib.compress(plain, 9))


def decompress(blob: Blob, compressor: Compressor) -> bytes:
    """One byte a symbol, exactly `blob.size` of them. ValueError: it is something else, and no more was unpacked."""
    if not blob.size:
        if blob.payload:
            raise ValueError("bytes of an empty array")
        return b""
    try:
        if compressor == "zstd":
            if zstandard.frame_content_size(blob.payload) != blob.size:  # it is what will be allocated
                raise ValueError("another size")
            return zstandard.ZstdDecompressor().decompress(blob.payload, allow_extra_data=False)
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, LZMA_MEMORY) if compressor == "lzma" else zlib.decompressobj()
        plain = unpacker.decompress(blob.payload, blob.size + 1)
    except (zstandard.ZstdError, lzma.LZMAError, zlib.error, EOFError) as e:
        raise ValueError(str(e)) from None
    if len(plain) != blob.size or not unpacker.eof or unpacker.unused_data:
        raise ValueError("another size, or bytes after the end")
    return plain


def split_halves(values: NDArray[np.float16]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The high and the low byte of each float16: sign, exponent and two bits of mantissa; the rest, mostly noise."""
    pairs = np.ascontiguousarray(values, "<f2").view(np.uint8).reshape(-1, 2)
    return pairs[:, 1], pairs[:, 0]


def join_halves(high: IntArray, low: IntArray) -> NDArray[np.float16]:
    """The inverse of `split_halves`, flat."""
    return np.stack((low, high), axis=-1).astype(np.uint8).view("<f2").ravel().astype(np.float16)
