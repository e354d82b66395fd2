"""Damaged and forged artifacts under a good checksum, for so many seconds: the reader refuses or reads, nothing else.

    python benchmarks/fuzz_artifact.py [--seconds 600] [--seed 0]

Each file is a small packed model whose header has lost, gained or changed something, or whose payload has changed, or
both. Counted are the reader's own refusals; anything else that is raised ends the program with the file kept beside
it. A refusal may take a second, and memory of eight times the payload and 64 MiB.
"""

import argparse
import copy
import hashlib
import json
import random
import resource
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, counts, slowest, largest = random.Random(args.seed), Counter[str](), 0.0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        known, path = seeds(folder), folder / "forged.golf"
        began = time.process_time()
        while time.process_time() - began < args.seconds:
            payload = (chosen := rng.choice(known))[1]
            path.write_bytes(sealed(*mutated(rng, *chosen)))
            before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
            try:
                artifact.read(path)
                counts["read"] += 1
            except UserError:
                counts["refused"] += 1
                slowest = max(slowest, time.process_time() - start)
                grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
                largest = max(largest, grown - 8 * len(payload))
            except BaseException:
                kept = Path("forged.golf")
                kept.write_bytes(path.read_bytes())
                print(f"kept in {kept}; seed {args.seed}, file {counts.total() + 1}")
                raise
    print(f"{counts.total():,} files: {counts['refused']:,} refused, {counts['read']:,} read, nothing else")
    print(f"slowest refusal {slowest:.2f} s; largest memory beyond eight payloads {max(largest, 0) / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
