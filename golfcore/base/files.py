"""Files that appear whole or not at all, records that are what they should be, and hashes of what is in them."""

import hashlib
import json
import math
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from golfcore.base.errors import USERS, UserError, shown

PART = re.compile(r"\.(?P<name>.*)\.(?P<host>[^.]*)-(?P<pid>\d+)\.[^.]*\.part")

# -- writing


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; flush it to disk and rename it into place only if the block succeeds.

    It is named after this machine and process, so that `sweep_parts` can tell what a killed one left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name[:80]}.{_host()}-{os.getpid()}."
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=".part", dir=path.parent)
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
        if e.filename in (None, str(part)):
            e.filename, e.filename2 = str(path), None  # what the user knows the file by
        raise
    finally:
        part.unlink(missing_ok=True)


def sweep_parts(folder: Path) -> None:
    """Delete the temporary files below `folder` whose process, one of this machine, is gone."""
    for path in folder.rglob(".*.part"):
        found = PART.fullmatch(path.name)
        if found and found["host"] == _host() and not _alive(int(found["pid"])):
            path.unlink(missing_ok=True)


def _host() -> str:
    return platform.node().replace(".", "_")[:40]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError, PermissionError) as e:
        return isinstance(e, PermissionError)  # somebody else's process
    return True


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


def append_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """Append rows; one write, so that a kill leaves at most one torn last line (which `read_jsonl` drops)."""
    text = "".join(canonical_json(row) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as f:
        f.write(text)


# -- reading

# What a record must hold. A type: a value of it (float: any finite number). {key: schema}: an object with these keys,
# others besides; a key with "?" may be missing; the key "*" stands for all others. [schema]: a list of such.
# (schema, schema): one of them. None: null.
Schema = Any
WORDS: dict[type | None, str] = {dict: "an object", list: "a list", str: "text", int: "an integer", float: "a number"}
WORDS |= {bool: "true or false", None: "null"}


def read_text(path: Path, what: str) -> str:
    """The text in `path`; `what` names it in the error. UserError: no such file, none that can be read, or no text."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        found = "no such file"
    except IsADirectoryError:
        found = "a folder"
    except UnicodeDecodeError as e:
        found = f"bytes that are no UTF-8 text ({e.reason})"
    except OSError as e:
        if e.errno not in USERS:
            raise
        found = f"a file that cannot be read ({e.strerror})"
    raise UserError(f"{path}: expected {what}, found {found}")


def parse_json(text: str) -> dict:
    """The object that `text` spells. ValueError if it spells none."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found a {type(value).__name__}")
    return value


def read_json(path: Path, what: str, schema: Schema = dict) -> dict:
    """The JSON object in `path`, which must hold what `schema` says; `what` names it in the error.

    UserError: as `read_text`, text that is no JSON object, or the first key that is missing or holds something else.
    """
    return _record(read_text(path, what), schema, str(path), what)


def read_jsonl(path: Path, what: str = "rows", schema: Schema = dict) -> list[dict]:
    """All whole rows of a JSONL file ([] if there is none), each as `schema` says; a torn last line is dropped.

    UserError: as `read_json`, naming the line.
    """
    if not path.exists():
        return []
    lines = read_text(path, what).split("\n")[:-1]  # what follows the last newline is empty or torn
    return [_record(line, schema, f"{path}, line {number}", what) for number, line in enumerate(lines, 1) if line]


def _record(text: str, schema: Schema, where: str, what: str) -> dict:
    try:
        value = parse_json(text)
    except ValueError as e:
        reason = shown(str(e))
        raise UserError(
            f"{where}: expected {what} as a JSON object, found text that does not parse ({reason})"
        ) from None
    check(value, schema, f"{where}: expected {what}")
    return value


def check(value: object, schema: Schema, where: str, key: str = "") -> None:
    """UserError, a sentence that begins with `where`, unless `value` is what `schema` (above) says."""
    options = schema if isinstance(schema, tuple) else (schema,)
    fitting = [option for option in options if _is(value, _kind(option))]
    if not fitting:
        wanted = " or ".join(WORDS[_kind(option)] for option in options)
        found = repr(shown(value)) if isinstance(value, str) else shown(value)
        raise UserError(f"{where}{f' with {key!r}' if key else ''} as {wanted}, found {found}")
    if isinstance(value, list) and isinstance(fitting[0], list):
        for i, item in enumerate(value):
            check(item, fitting[0][0], where, f"{key}[{i}]")
    elif isinstance(value, dict) and isinstance(fitting[0], dict):
        known = {name.removesuffix("?"): inner for name, inner in fitting[0].items()}
        names = [name for name in fitting[0] if name != "*" and not name.endswith("?")]
        for name in dict.fromkeys([*names, *value]):
            path = f"{key}.{name}" if key else name
            if name not in value:
                raise UserError(f"{where} with {path!r}, found no such key")
            if name in known or "*" in known:
                check(value[name], known.get(name, known.get("*")), where, path)


def _kind(schema: Schema) -> type | None:
    return type(schema) if isinstance(schema, (dict, list)) else schema


def _is(value: object, kind: type | None) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and type(value) is not bool and -math.inf < value < math.inf
    return value is None if kind is None else type(value) is kind


def below(folder: Path, name: str, where: str) -> Path:
    """folder/name for a `name` read from a record. UserError (`where` names the record) if that lies outside."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name or "\\" in name:
        raise UserError(f"{where}: expected names of files below {folder}, found {shown(name)!r}")
    return folder / name


# -- hashes


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
