"""The packed model: one file that needs nothing beside it, and what counts against the size limit.

    magic "GOLFCORE" | version u16 | header length u32 | file length u32 | header | payload | sha256 of all before

Little-endian. The header is JSON under zlib: the configuration, the caller's `extra`, and for each stream of the
payload its least symbol, its counts and its length in 32-bit words (`quant.codec` "ans"), or the numbers of its symbols
and of its bytes (the compressors). Streams lie in the order of their names. One named like a matrix or table holds its
codes; "scales" and "halves" hold all scales, and all tensors without codes, in the order of the parameter table, as the
high and the low bytes of float16.

Nothing of a file is trusted: sizes come from the parameter table and are bounded by the payload's, nothing is run.
"""

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from golfcore import config
from golfcore.base.errors import UserError
from golfcore.base.files import canonical_json, write_bytes
from golfcore.config import Config
from golfcore.model import params
from golfcore.model.weights import Weights
from golfcore.quant.codec import Codec, IntArray, Stream, decode, encode
from golfcore.quant.stored import Coded, Entry, Quantized, by_rows, dequantize_weights, entries

MAGIC, VERSION = b"GOLFCORE", 1
PREFIX = struct.Struct("<8sHII")
DIGEST = hashlib.sha256().digest_size
MAX_HEADER = 1 << 20  # bytes of JSON; exp101's has 23 thousand
MAX_SCALARS = 1 << 28  # of a model; ten times exp101's
FREE_SCALARS, DENSEST = 1 << 23, 16  # a file may hold so many weights, and so many more for each byte of its payload
PLANES = {"scales.high", "scales.low", "halves.high", "halves.low"}
WORD = 4  # bytes
READERS = ("golfcore.quant.artifact", "golfcore.evals.protocols")  # they read and score an artifact


class Malformed(Exception):
    """The fault of a file that is not a whole artifact; always turned into a UserError that names the file."""


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise UserError(f"{path}: expected a golfcore artifact, found no readable file ({e.strerror})") from None
    except Malformed as e:
        raise UserError(f"{path}: expected a golfcore artifact, found {e}") from None


def _require(holds: bool, found: str) -> None:
    if not holds:
        raise Malformed(found)


def write(path: Path, cfg: Config, quantized: Mapping[str, Entry], extra: dict[str, Any] | None = None) -> int:
    """Pack a quantized model with any JSON object; the size in bytes. Equal input gives equal bytes."""
    packed = _packed(cfg, quantized, extra or {}, str(path))
    write_bytes(path, packed)
    return len(packed)


def size(cfg: Config, quantized: Mapping[str, Entry]) -> int:
    """Bytes of the file that `write` would write, without `extra`."""
    return len(_packed(cfg, quantized, {}, "the artifact"))


def _packed(cfg: Config, quantized: Mapping[str, Entry], extra: dict[str, Any], where: str) -> bytes:
    codec = cfg.quant.codec
    streams = {name: encode(symbols, codec) for name, symbols in sorted(_symbols(cfg, quantized).items())}
    described: dict[str, list] = {}
    for name, s in streams.items():
        ans = [s.least, s.counts, len(s.payload) // WORD]
        described[name] = ans if codec == "ans" else [*s.counts, len(s.payload)]
    header = canonical_json({"config": config.to_dict(cfg), "extra": extra, "streams": described}).encode()
    if len(header) > MAX_HEADER:
        raise UserError(f"{where}: expected a header of at most {MAX_HEADER} bytes, found {len(header)}")
    packed = zlib.compress(header, 9)
    payload = b"".join(stream.payload for stream in streams.values())
    n_bytes = PREFIX.size + len(packed) + len(payload) + DIGEST
    body = PREFIX.pack(MAGIC, VERSION, len(packed), n_bytes) + packed + payload
    return body + hashlib.sha256(body).digest()


def _symbols(cfg: Config, quantized: Mapping[str, Entry]) -> dict[str, IntArray]:
    """The integers of each stream by its name."""
    kept = {name: quantized[name] for name in entries(cfg.model)}
    out: dict[str, IntArray] = {name: e.codes.numpy() for name, e in kept.items() if isinstance(e, Coded)}
    scales = [e.scale for e in kept.values() if isinstance(e, Coded)]
    halves = [e.flatten() for e in kept.values() if isinstance(e, Tensor)]
    for kind, parts in (("scales", scales), ("halves", halves)):
        values = torch.cat([torch.empty(0, dtype=torch.float16), *parts]).numpy().astype("<f2")
        out[f"{kind}.low"], out[f"{kind}.high"] = values.view(np.uint8).reshape(-1, 2).T
    return out


def read(path: Path) -> tuple[Config, Weights]:
    """The configuration and the float32 weights, on the CPU. UserError: no file, no artifact, or not a whole one."""
    cfg, quantized = read_quantized(path)
    return cfg, dequantize_weights(cfg.model, quantized)


def read_quantized(path: Path) -> tuple[Config, Quantized]:
    """As `read`, but the codes and scales as they are stored."""
    with _naming(path):
        contents = _open(path)
        return contents.cfg, _unpack(contents)


def info(path: Path) -> dict[str, Any]:
    """What is in an artifact and what each part costs in bytes. Errors as `read`."""
    with _naming(path):
        contents = _open(path)
    specs = entries(contents.cfg.model)
    sizes = {name: len(stream.payload) for name, stream in contents.streams.items()}
    parts = {"header": contents.header_bytes, "matrix": 0, "table": 0, "scales": 0, "halves": 0}
    for name, size in sizes.items():
        parts[specs[name].kind if name in specs else name.partition(".")[0]] += size
    frame = PREFIX.size + DIGEST
    return {
        "bytes": sum(parts.values()) + frame,
        "version": VERSION,
        "config": config.to_dict(contents.cfg),
        "hash": contents.cfg.hash,
        "extra": contents.extra,
        "components": {**parts, "frame": frame},
        "streams": sizes,
    }


def as_text(found: dict[str, Any]) -> str:
    """`info` for people: bytes of each part, their share, and the total."""
    parts = {**found["components"], "total": found["bytes"]}
    lines = [f"{name:<10}{n:>14,}{n / found['bytes']:>8.1%}" for name, n in parts.items()]
    return "\n".join([f"{found['config']['name']} ({found['hash']}), bytes", *lines])


class Contents(NamedTuple):
    """A file whose frame and header are in order; the streams are not decoded yet."""

    cfg: Config
    extra: dict[str, Any]
    streams: dict[str, Stream]
    header_bytes: int


def _open(path: Path) -> Contents:
    packed, payload = _frame(path)
    header = _header(packed)
    cfg = config.from_dict(header["config"], str(path))
    shapes = [p.shape for p in params.table(cfg.model)]
    most = min(MAX_SCALARS, FREE_SCALARS + DENSEST * len(payload))  # equal weights take no bytes, but memory
    _require(sum(map(math.prod, shapes)) <= most, f"a model of more than {most} weights in {len(payload)} bytes")
    streams: dict[str, Stream] = {}
    for name, description in sorted(header["streams"].items()):  # each is cut off the front of what is left
        streams[name] = _stream(name, description, payload, cfg.quant.codec)
        payload = payload[len(streams[name].payload) :]
    _require(not payload, f"{len(payload)} bytes that no stream describes")
    codable = {name for name, spec in entries(cfg.model).items() if spec.kind in ("matrix", "table")}
    _require(PLANES <= streams.keys() <= codable | PLANES, "streams of another model")
    return Contents(cfg, header["extra"], streams, len(packed))


def _frame(path: Path) -> tuple[bytes, bytes]:
    """The packed header and the payload of a whole file."""
    with path.open("rb") as f:
        start = f.read(PREFIX.size)
        _require(start[: len(MAGIC)] == MAGIC[: len(start)], "a file of another kind")
        _require(len(start) == PREFIX.size, f"no more than its first {len(start)} bytes")
        _, version, header_bytes, size = PREFIX.unpack(start)
        _require(version == VERSION, f"version {version} where this program reads version {VERSION}")
        actual = path.stat().st_size
        _require(actual >= size, f"no more than {actual} of its {size} bytes")
        _require(actual == size, f"{actual - size} bytes after its end")
        body = start + f.read(size)
    body, digest = body[:-DIGEST], body[-DIGEST:]
    _require(hashlib.sha256(body).digest() == digest, "one whose checksum does not match its contents")
    end = PREFIX.size + header_bytes
    _require(end <= len(body), "a header longer than the file")
    return body[PREFIX.size : end], body[end:]


def _header(packed: bytes) -> dict[str, Any]:
    unpacker = zlib.decompressobj()
    try:
        header = json.loads(unpacker.decompress(packed, MAX_HEADER))
    except (zlib.error, ValueError, RecursionError):
        raise Malformed("a header that does not parse") from None
    whole = unpacker.eof and isinstance(header, dict) and header.keys() == {"config", "extra", "streams"}
    _require(whole and all(isinstance(part, dict) for part in header.values()), "another header")
    return header


def _stream(name: str, description: Any, payload: bytes, codec: Codec) -> Stream:
    """The stream at the front of `payload`."""
    try:
        if codec == "ans":
            least, counts, length = description
        else:
            (size, length), least = description, 0
            counts = [size]
        whole = all(type(n) is int for n in (least, *counts, length)) and min([*counts, length]) >= 0
    except (TypeError, ValueError):
        raise Malformed(f"no description of the stream {name}") from None
    _require(whole, f"no counts of {name}")
    n_bytes = length * WORD if codec == "ans" else length
    _require(n_bytes <= len(payload), f"a stream {name} longer than the file")
    return Stream(least, tuple(counts), payload[:n_bytes])


def _unpack(contents: Contents) -> Quantized:
    specs, streams, codec = entries(contents.cfg.model), contents.streams, contents.cfg.quant.codec

    def decoded(name: str, size: int, dtype: type[np.int8] | type[np.uint8]) -> IntArray:
        """The `size` symbols of a stream, all within `dtype`."""
        stream, lowest = streams[name], np.iinfo(dtype).min
        n = sum(stream.counts)
        _require(n == size, f"{n} values of {name} where the model has {size}")
        within = lowest <= stream.least and stream.least + len(stream.counts) <= lowest + 256
        _require(within, f"values of {name} that do not fit a byte")
        try:
            return decode(stream, codec).astype(dtype)
        except ValueError:
            raise Malformed(f"a stream {name} that does not decode") from None

    def floats(kind: str, sizes: list[int]) -> Iterator[Tensor]:
        """float16 vectors of these sizes, from their two planes."""
        low, high = (decoded(f"{kind}.{plane}", sum(sizes), np.uint8) for plane in ("low", "high"))
        values = np.stack((low, high), axis=-1).view("<f2").ravel().astype(np.float16)
        return iter(torch.from_numpy(values).split(sizes))

    each = contents.cfg.quant.steps == "clip"  # row has a scale; otherwise those of tables alone
    sizes = [spec.shape[0] if each or by_rows(spec) else 1 for name, spec in specs.items() if name in streams]
    scales = floats("scales", sizes)
    halves = floats("halves", [math.prod(spec.shape) for name, spec in specs.items() if name not in streams])
    out: Quantized = {}
    for name, spec in specs.items():
        if name in streams:
            codes = torch.from_numpy(decoded(name, math.prod(spec.shape), np.int8))
            out[name] = Coded(codes.view(spec.shape), next(scales))
        else:
            out[name] = next(halves).view(spec.shape)
    return out


def code_bytes() -> int:
    """UTF-8 bytes of the package's modules that reading and scoring an artifact takes, uncompressed.

    In a submission's single file: the bytes of that file.
    """
    bundle = globals().get("BUNDLE")
    return Path(bundle).stat().st_size if bundle else sum(f.stat().st_size for f in package_files(*READERS))


def package_files(*roots: str) -> list[Path]:
    """The modules of this package that the modules `roots` import, directly or not."""
    finder = _Own([str(Path(__file__).parents[2])])
    for root in roots:
        finder.import_hook(root)
    return sorted(Path(str(vars(module)["__file__"])) for module in finder.modules.values())


class _Own(ModuleFinder):
    """Finds this package's modules; all others count as missing."""

    def find_module(self, name: str, path: Any, parent: Any = None) -> Any:
        if path is None and name != "golfcore":
            raise ImportError(name)
        return super().find_module(name, path, parent)


def fits(artifact_bytes: int, code_bytes: int, max_bytes: int) -> bool:
    """Whether weights and code together stay within the limit."""
    return artifact_bytes + code_bytes <= max_bytes
