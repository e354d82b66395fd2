"""Files that appear whole or not at all, and hashes of what is in them."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from golfcore.base.errors import UserError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; rename it into place only if the block succeeds.

    The data is flushed to disk before the rename, so that a power cut leaves the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with part.open("rb+") as f:
            os.fsync(f.fileno())
        mask = os.umask(0)
        os.umask(mask)
        part.chmod(0o666 & ~mask)
        part.replace(path)
    except OSError as e:
        if e.filename is None:
            e.filename = str(path)  # what the user knows the file by
        raise
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    with atomic_path(path) as part:
        part.write_bytes(data)


def same_file(source: Path, path: Path) -> None:
    """Make `path` another name of the file `source`, which must never be changed in place; a copy where links fail."""
    with atomic_path(path) as part:
        part.unlink()
        try:
            os.link(source, part)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, part)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def canonical_json(value: object) -> str:
    """One text for one value: sorted keys, no spaces, no NaN. What hashes are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def parse_json(text: str) -> dict:
    """The object that `text` spells. ValueError if it spells none."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found a {type(value).__name__}")
    return value


def read_json(path: Path, what: str) -> dict:
    """The JSON object in `path`; `what` names it in the error."""
    try:
        return parse_json(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: expected {what}, found no such file") from None
    except ValueError as e:
        raise UserError(f"{path}: expected {what} as a JSON object, found text that does not parse ({e})") from None


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path, progress: Callable[[int], object] | None = None) -> str:
    """Hex digest of a file read in 1 MiB pieces; `progress` is called with the bytes of each piece."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while piece := f.read(1 << 20):
            digest.update(piece)
            if progress:
                progress(len(piece))
    return digest.hexdigest()


def append_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """Append rows; one write, so that a kill leaves at most one torn last line (which `read_jsonl` drops)."""
    text = "".join(canonical_json(row) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as f:
        f.write(text)


def read_jsonl(path: Path) -> list[dict]:
    """All whole rows of a JSONL file ([] if there is none); a torn last line is dropped."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    whole = lines[:-1]  # what follows the last newline is empty or torn
    return [json.loads(line) for line in whole if line]
