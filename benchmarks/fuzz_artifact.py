"""Damaged and forged artifacts under a good checksum, for so many seconds: the reader refuses or reads, nothing else.

    python benchmarks/fuzz_artifact.py [--seconds 600] [--seed 0] [--guided]

Each file is a small packed model whose header has lost, gained or changed something, or whose payload has changed, or
both. Counted are the reader's own refusals; anything else that is raised ends the program with the file kept beside
it. A refusal may take a second, and memory of eight times the payload and 64 MiB.
"""

import argparse
import copy
import hashlib
import json
import os
import random
import resource
import shutil
import tempfile
import time
import types
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import golfcore.quant.codec
import golfcore.quant.stored
from golfcore.base.errors import UserError
from golfcore.config import load
from golfcore.model import params
from golfcore.quant import artifact
from golfcore.quant.quantize import quantize_weights

VALUES = (
    0,
    -1,
    1,
    2**31,
    2**63,
    10**400,
    0.5,
    1e308,
    float("nan"),
    "",
    "9" * 5000,
    "ans",
    None,
    True,
    [],
    {},
    [0] * 5000,
)
CODECS = ("ans", "zstd", "lzma", "zlib")


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a tree of JSON."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, value in items for place in [(tree, key), *places(value)]]


def mutated(rng: random.Random, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
    """A header and a payload with one to four changes."""
    header = copy.deepcopy(header)
    for _ in range(rng.randint(1, 4)):
        where, key = rng.choice(places(header))
        match rng.randrange(5):
            case 0 if isinstance(where[key], int) and not isinstance(where[key], bool):
                where[key] += rng.choice((-1, 1, 1000))
            case 1:
                del where[key]
            case 2 if isinstance(where, dict):
                where[rng.choice(("x", "tok_emb", "smear", "halves.low"))] = copy.deepcopy(where[key])
            case 3 if payload:
                at = rng.randrange(len(payload))
                payload = payload[:at] + rng.randbytes(rng.randint(0, 8)) + payload[at + rng.randint(0, 8) :]
            case _:
                where[key] = copy.deepcopy(rng.choice(VALUES))
        if not places(header):
            break
    return header, payload


def sealed(header: dict[str, Any], payload: bytes) -> bytes:
    packed = zlib.compress(json.dumps(header).encode())
    size = artifact.PREFIX.size + len(packed) + len(payload) + artifact.DIGEST
    body = artifact.PREFIX.pack(artifact.MAGIC, artifact.VERSION, len(packed), size) + packed + payload
    return body + hashlib.sha256(body).digest()


def seeds(folder: Path) -> list[tuple[dict[str, Any], bytes]]:
    """Header and payload of a small model under every coder."""
    found = []
    for codec in CODECS:
        cfg = load("smoke", {"quant.codec": codec})
        path = folder / f"{codec}.golf"
        artifact.write(path, cfg, quantize_weights(cfg, params.init(cfg.model, 0), None))
        packed, payload = artifact._frame(path)
        found.append((json.loads(zlib.decompress(packed)), payload))
    return found


class Choices(random.Random):
    """Random choices read from the bytes that a fuzzer brings, so that what it changes in them changes one choice."""

    def __init__(self, data: Any) -> None:
        super().__init__(0)
        self.data = data

    def getrandbits(self, k: int) -> int:
        return self.data.ConsumeIntInRange(0, 2 ** min(k, 62) - 1)

    def _randbelow(self, n: int) -> int:
        return self.data.ConsumeIntInRange(0, n - 1)

    def randbytes(self, n: int) -> bytes:
        return self.data.ConsumeBytes(n).ljust(n, b"\0")


class Reader:
    """Reads forged files and counts what came of it; whatever is raised but a refusal ends the program."""

    def __init__(self, folder: Path) -> None:
        self.known, self.path = seeds(folder), folder / "forged.golf"
        self.counts, self.slowest, self.largest = Counter[str](), 0.0, 0

    def read(self, rng: random.Random) -> None:
        payload = (chosen := rng.choice(self.known))[1]
        self.path.write_bytes(sealed(*mutated(rng, *chosen)))
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        try:
            artifact.read(self.path)
            self.counts["read"] += 1
        except UserError:
            self.counts["refused"] += 1
            self.slowest = max(self.slowest, time.process_time() - start)
            grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
            self.largest = max(self.largest, grown - 8 * len(payload))
        except BaseException:
            kept = Path("forged.golf")
            kept.write_bytes(self.path.read_bytes())
            print(f"kept in {kept}; file {self.counts.total() + 1}")
            raise

    def said(self) -> str:
        c = self.counts
        memory = max(self.largest, 0) / 2**20
        return (
            f"{c.total():,} files: {c['refused']:,} refused, {c['read']:,} read, nothing else\n"
            f"slowest refusal {self.slowest:.2f} s; largest memory beyond eight payloads {memory:.0f} MiB"
        )


def guided(reader: Reader, seconds: float, seed: int) -> None:
    """Atheris drives: what it changes follows the branches that the reader takes (extra `fuzz`)."""
    import atheris

    for module in (artifact, golfcore.quant.codec, golfcore.quant.stored):
        for name, function in vars(module).items():
            if isinstance(function, types.FunctionType) and function.__module__ == module.__name__:
                setattr(module, name, atheris.instrument_func(function))
    began = time.process_time()

    def one(data: bytes) -> None:
        reader.read(Choices(atheris.FuzzedDataProvider(data)))
        if time.process_time() - began > seconds:
            print(reader.said(), flush=True)
            shutil.rmtree(reader.path.parent)
            os._exit(0)  # the fuzzer would end without a word

    atheris.Setup([__file__, f"-seed={seed + 1}", "-max_len=512", "-rss_limit_mb=4096", "-verbosity=0"], one)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guided", action="store_true", help="by the branches taken: pip install -e '.[fuzz]'")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        reader = Reader(Path(name))
        if args.guided:
            guided(reader, args.seconds, args.seed)
            return
        rng, began = random.Random(args.seed), time.process_time()
        while time.process_time() - began < args.seconds:
            reader.read(rng)
    print(reader.said())


if __name__ == "__main__":
    main()
