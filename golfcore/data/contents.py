"""The files of a dataset: where they are, and SHA-256 digests of their contents that are remembered between processes.

A digest stays valid while path, size, times and inode stay; `golfcore data check` reads everything again.
"""

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from golfcore.base import runtime
from golfcore.base.errors import UserError
from golfcore.base.files import canonical_json, read_json, sha256_file, sha256_text, write_json
from golfcore.base.progress import bar

SETTLED_SECONDS = 2.0  # a file changed more recently could change again within one tick of the file system's clock
SHOWN_BYTES = 1 << 28  # hashing less than this needs no bar
READERS = 4


def files_below(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """The files below `folder` with one of `suffixes`, in the order of their paths.

    Links are followed; what begins with a dot (checkpoints of editors, staging folders) is left out.
    UserError: a folder that cannot be read, a link to nothing.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=_cannot_list):
        place = os.path.realpath(root)
        folders[:] = [] if place in seen else sorted(name for name in folders if not name.startswith("."))
        if place not in seen:
            found += [Path(root, name) for name in names if not name.startswith(".") and Path(name).suffix in suffixes]
        seen.add(place)
    for path in found:
        if not path.exists():
            raise UserError(f"{path}: cannot read, it is a link to a file that is not there")
    return sorted(found)


def read(path: Path, what: str) -> bytes:
    """The bytes of a file; `what` names it in the error. UserError: not there, a folder, not readable."""
    if path.is_dir():
        raise UserError(f"{path}: expected {what}, found a folder")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: expected {what}, found no such file") from None
    except OSError as e:
        raise UserError(f"{path}: cannot read {what} ({e.strerror})") from None


def digests(paths: Iterable[Path], again: bool = False) -> dict[Path, str]:
    """The SHA-256 of each file's content, read only if it is not remembered or `again` is set.

    UserError: a file that cannot be read.
    """
    paths = list(paths)
    known = {} if again else {path: digest for path in paths if (digest := _remembered(path))}
    missing = [path for path in paths if path not in known]
    size = sum(path.stat().st_size for path in missing)
    with bar(size, "hash", "B", show=size >= SHOWN_BYTES) as progress, ThreadPoolExecutor(READERS) as pool:
        known |= zip(missing, pool.map(lambda path: _hash(path, progress.update), missing), strict=True)
    return {path: known[path] for path in paths}


def _hash(path: Path, progress: Callable[[int], object]) -> str:
    try:
        before = _state(path)
        digest = sha256_file(path, progress)
    except OSError as e:
        raise UserError(f"{path}: cannot read ({e.strerror})") from None
    changed = max(path.stat().st_mtime, path.stat().st_ctime)
    if before == _state(path) and time.time() - changed > SETTLED_SECONDS:
        remember("digests", _key(path), {"file": before, "sha256": digest})
    return digest


def remember(kind: str, key: str, value: dict) -> None:
    """Keep a value in the cache; a cache that cannot be written costs time later, and nothing else."""
    with suppress(UserError, OSError, RuntimeError):  # RuntimeError: no home folder to keep it in
        write_json(_cached(kind, key), value)


def recall(kind: str, key: str) -> dict:
    """What was kept in the cache; {} if there is nothing, or nothing that can be read."""
    with suppress(UserError, OSError, RuntimeError):
        return read_json(_cached(kind, key), "a remembered value")
    return {}


def _cached(kind: str, key: str) -> Path:
    return runtime.cache_dir() / kind / f"{key}.json"


def _remembered(path: Path) -> str:
    entry = recall("digests", _key(path))
    found = entry.get("sha256")
    return found if isinstance(found, str) and entry.get("file") == _state(path) else ""


def _key(path: Path) -> str:
    return sha256_text(os.path.realpath(path))[:32]


def _state(path: Path) -> str:
    s = path.stat()
    return canonical_json([os.path.realpath(path), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino])


def _cannot_list(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot read this folder ({error.strerror})")
