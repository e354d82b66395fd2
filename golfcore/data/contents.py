"""The files of a dataset folder, their digests, which are remembered between processes, and the list of both.

`manifest.json` is what golfcore says of a folder that it made. Written last, its presence says that all is there.
"""

import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from golfcore.base import runtime
from golfcore.base.errors import UserError
from golfcore.base.files import Schema, canonical_json, check, read_json, sha256_file, sha256_text, write_json
from golfcore.base.progress import bar

SETTLED_SECONDS = 2.0  # a file changed more recently could change again within one tick of the file system's clock
SHOWN_BYTES = 1 << 28  # hashing less than this needs no bar
READERS = 4

MANIFEST = "manifest.json"
SCHEMA = "golfcore-data-1"
LISTED = {"data_hash": str, "files": {"*": {"sha256": str}}}
FIRST_KEYS = {"schema", "data_hash", "files", "splits", "sources", "vocab_size", "sentencepiece"}


def files_below(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """The files below `folder` with one of `suffixes`, in the order of their paths.

    Links are followed; what begins with a dot (checkpoints of editors, staging folders) is left out.
    OSError: a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    found: list[Path] = []
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        place = os.path.realpath(root)
        folders[:] = [] if place in seen else sorted(name for name in folders if not name.startswith("."))
        if place not in seen:
            found += [Path(root, name) for name in names if not name.startswith(".") and Path(name).suffix in suffixes]
        seen.add(place)
    return sorted(found)


# -- digests


def digests(paths: Iterable[Path], again: bool = False) -> dict[Path, str]:
    """The SHA-256 of each file's content, read only if it is not remembered or `again` is set.

    OSError: a file that cannot be read.
    """
    found = {path: {} if again else recall("digests", _state(path), {"sha256": str}) for path in paths}
    missing = [path for path, entry in found.items() if not entry]
    size = sum(path.stat().st_size for path in missing)
    with bar(size, "hash", "B", show=size >= SHOWN_BYTES) as progress, ThreadPoolExecutor(READERS) as pool:
        found |= zip(missing, pool.map(lambda path: _hash(path, progress), missing), strict=True)
    return {path: entry["sha256"] for path, entry in found.items()}


def _hash(path: Path, progress: tqdm) -> dict[str, str]:
    before = _state(path)
    entry = {"sha256": sha256_file(path, progress.update)}
    changed = max(path.stat().st_mtime, path.stat().st_ctime)
    if before == _state(path) and time.time() - changed > SETTLED_SECONDS:
        remember("digests", before, entry)
    return entry


def _state(path: Path) -> str:
    """What stays while the content of a file stays."""
    s = path.stat()
    return canonical_json([os.path.realpath(path), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino])


def remember(kind: str, key: str, value: dict) -> None:
    """Keep a value in the cache; a cache that cannot be written costs time later, and nothing else."""
    with suppress(UserError, OSError, RuntimeError):  # RuntimeError: no home folder to keep it in
        write_json(_cached(kind, key), value)


def recall(kind: str, key: str, schema: Schema) -> dict:
    """What was kept in the cache; {} if there is nothing, or something else than `schema` says."""
    with suppress(UserError, OSError, RuntimeError):
        return read_json(_cached(kind, key), "a remembered value", schema)
    return {}


def _cached(kind: str, key: str) -> Path:
    return runtime.cache_dir() / kind / f"{sha256_text(key)[:32]}.json"


# -- the manifest


def data_hash(hashes: Mapping[str, str]) -> str:
    """The identity of a folder with a manifest: of each file's path below it and the SHA-256 of its content."""
    return sha256_text(canonical_json(dict(hashes)))


def write_manifest(folder: Path, hashes: Mapping[str, str], **facts: object) -> None:
    """Declare `folder` complete: `hashes` maps each file's path below it to its SHA-256, `facts` is added as it is."""
    files = {name: {"sha256": digest, "bytes": (folder / name).stat().st_size} for name, digest in hashes.items()}
    manifest = {"schema": SCHEMA, "data_hash": data_hash(hashes), "files": files, **facts}
    write_json(folder / MANIFEST, manifest | {"digest": _digest(manifest)})


def read_manifest(folder: Path) -> dict:
    """The manifest that golfcore wrote into `folder`; {} if there is none or it is somebody else's.

    UserError: it is ours and not as it was written.
    """
    path = folder / MANIFEST
    manifest = read_json(path, "a manifest") if path.exists() else {}
    if manifest.get("schema") != SCHEMA and not {"data_hash", "digest"} & manifest.keys():
        return {}
    without_digest = manifest.keys() <= FIRST_KEYS and manifest.get("schema") == SCHEMA  # as version 0.1.0 wrote it
    if not without_digest and manifest.get("digest") != _digest(manifest):
        raise UserError(f"{path}: expected a manifest as golfcore wrote it, found other content than its digest says")
    check(manifest, LISTED, f"{path}: expected a manifest")
    return manifest


def check_contents(folder: Path, manifest: Mapping, found: Mapping[Path, str]) -> None:
    """Hold the digests of the files `found` against the manifest. UserError: another file, one less, other content."""
    listed = {folder / name: facts["sha256"] for name, facts in manifest["files"].items()}
    for path in sorted(listed.keys() | found.keys()):
        if path not in listed:
            raise UserError(f"{path}: expected only files that {MANIFEST} lists, found this one besides")
        if path not in found:
            raise UserError(f"{path}: expected this file, which {MANIFEST} lists, found no such file")
        if found[path] != listed[path]:
            raise UserError(
                f"{path}: expected the content that {MANIFEST} lists (sha256 {listed[path][:12]}), "
                f"found {found[path][:12]}"
            )


def _digest(manifest: Mapping) -> str:
    return sha256_text(canonical_json({key: value for key, value in manifest.items() if key != "digest"}))
