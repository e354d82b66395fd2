"""Compression of arrays of small integers: by entropy coding, or as bytes by a general-purpose compressor.

"ans": asymmetric numeral systems (the `constriction` package's; Bamler 2022) under one categorical model a stream. The
model is the stream's own counts, kept beside it as integers, so that decoding repeats the very same arithmetic.
As published: zstandard level 22 (pr294, pr398), LZMA preset 9 (exp101), zlib level 9 (pr294).
"""

import lzma
import zlib
from typing import Literal, NamedTuple

import constriction
import numpy as np
import zstandard
from numpy.typing import NDArray

IntArray = NDArray[np.integer]
Codec = Literal["ans", "zstd", "lzma", "zlib"]
LZMA_MEMORY = 1 << 27  # bytes; preset 9 unpacks with 65 MiB, a file could ask for 4 GiB


class Stream(NamedTuple):
    least: int  # "ans": the smallest symbol
    counts: tuple[int, ...]  # "ans": how often each symbol from `least` on occurs; a compressor: (how many symbols,)
    payload: bytes  # empty for an array of nothing; "ans": of little-endian 32-bit words, also empty for equal symbols


def encode(symbols: IntArray, codec: Codec) -> Stream:
    """The symbols in row-major order; the shape is the caller's to remember.

    "ans": they must span a small range; the compressors: int8 or uint8.
    """
    if codec == "ans":
        return _encode_ans(symbols.astype(np.int32).ravel())
    if symbols.dtype.itemsize != 1:
        raise ValueError(f"expected symbols of one byte, found {symbols.dtype}")
    plain = symbols.tobytes()
    if codec == "zstd":
        packed = zstandard.ZstdCompressor(level=22).compress(plain)
    else:
        packed = lzma.compress(plain, preset=9) if codec == "lzma" else zlib.compress(plain, 9)
    return Stream(0, (symbols.size,), packed if plain else b"")


def decode(stream: Stream, codec: Codec) -> IntArray:
    """The flat symbols, as many as the counts add up to; those of compressors as uint8.

    ValueError: the payload is something else; no more was unpacked than the counts say.
    """
    if codec != "ans":
        return np.frombuffer(_decompress(stream, codec), np.uint8)
    size = sum(stream.counts)
    if len(stream.counts) <= 1:
        return np.full(size, stream.least, np.int32)
    coder = constriction.stream.stack.AnsCoder(np.frombuffer(stream.payload, "<u4").astype(np.uint32))
    return coder.decode(_model(stream.counts), size) + np.int32(stream.least)


def _encode_ans(symbols: NDArray[np.int32]) -> Stream:
    if not symbols.size:
        return Stream(0, (), b"")
    least = int(symbols.min())
    counts = tuple(np.bincount(symbols - least).tolist())
    coder = constriction.stream.stack.AnsCoder()
    if len(counts) > 1:
        coder.encode_reverse(symbols - least, _model(counts))
    return Stream(least, counts, coder.get_compressed().astype("<u4").tobytes())


def _model(counts: tuple[int, ...]) -> constriction.stream.model.Categorical:
    return constriction.stream.model.Categorical(np.array(counts, np.float64) / sum(counts), perfect=False)


def _decompress(stream: Stream, codec: Codec) -> bytes:
    (size,), packed = stream.counts, stream.payload
    if not size and not packed:
        return b""
    try:
        if codec == "zstd":
            if zstandard.frame_content_size(packed) != size:  # it is what will be allocated
                raise ValueError("another size")
            return zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False)
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, LZMA_MEMORY) if codec == "lzma" else zlib.decompressobj()
        plain = unpacker.decompress(packed, size + 1)
    except (zstandard.ZstdError, lzma.LZMAError, zlib.error, EOFError) as e:
        raise ValueError(str(e)) from None
    if len(plain) != size or not unpacker.eof or unpacker.unused_data:
        raise ValueError("another size, or bytes after the end")
    return plain
