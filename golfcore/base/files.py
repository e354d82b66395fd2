"""Files that appear whole or not at all, records that are what they should be, and hashes of what is in them."""

import hashlib
import json
import math
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from golfcore.base.errors import USERS, UserError, shown

SEAL = "seal"  # the key of a record's own hash
PART = re.compile(r"\.([0-9a-f]{8})-(\d{1,9})-[0-9a-f]{8}\.part$")  # machine and process that write it
DEAD_SECONDS = 3600.0  # nobody writes any more to a temporary file that has not changed for so long

# -- writing


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` to be written; flush it and rename it into place if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name[:40]}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        yield part
        with part.open("rb+") as f:
            os.fsync(f.fileno())
        part.replace(path)
    except OSError as e:
        if e.filename in (None, str(part)):
            e.filename, e.filename2 = str(path), None  # what the user knows the file by
        raise
    finally:
        part.unlink(missing_ok=True)


def sweep_parts(folder: Path) -> None:
    """Delete the temporary files below `folder` that a killed process left: of this machine at once, others in time."""
    for path in folder.rglob(".*.part"):
        if path.is_file() and (_left(path) or time.time() - path.stat().st_mtime > DEAD_SECONDS):
            path.unlink(missing_ok=True)


def _machine() -> str:
    return sha256_text(platform.node())[:8]


def _left(part: Path) -> bool:
    """Whether the process of this machine that wrote the temporary file is no more."""
    named = PART.search(part.name)
    if not named or named[1] != _machine():
        return False
    try:
        os.kill(int(named[2]), 0)
    except OSError as e:
        return isinstance(e, ProcessLookupError)  # else it lives and is somebody else's
    return False


def write_bytes(path: Path, data: bytes) -> None:
    with atomic_path(path) as part:
        part.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def write_record(path: Path, value: dict) -> None:
    """JSON that carries its own hash, which `read_json` holds against what it finds."""
    plain = json.loads(json.dumps(value))
    write_json(path, plain | {SEAL: sha256_json(plain)})


def same_file(source: Path, path: Path) -> None:
    """Make `path` another name of the file `source`, which must never be changed in place; a copy where links fail."""
    with atomic_path(path) as part:
        try:
            os.link(source, part)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, part)


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
        return path.read_bytes().decode()
    except UnicodeDecodeError as e:
        line = e.object.count(b"\n", 0, e.start) + 1
        found = f"bytes that are no UTF-8 text (line {line}: 0x{e.object[e.start]:02x})"
    except OSError as e:
        if e.errno not in USERS:
            raise
        words = {FileNotFoundError: "no such file", IsADirectoryError: "a folder"}
        found = words.get(type(e), f"a file that cannot be read ({e.strerror})")
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

    UserError: as `read_text`, text that is no JSON object, the first key that is missing or holds something else, or
    values that were changed since `write_record` wrote them.
    """
    found = _record(read_text(path, what), dict, str(path), what)
    seal = found.pop(SEAL, None)
    check(found, schema, f"{path}: expected {what}")
    if seal not in (None, sha256_json(found)):
        raise UserError(f"{path}: expected {what} as it was written, found values that were changed since")
    return found


def read_jsonl(path: Path, what: str, schema: Schema = dict, torn: bool = False) -> list[dict]:
    """The rows of a JSONL file, each as `schema` says; `torn`: without what follows the last end of a line.

    UserError: as `read_json`, naming the line.
    """
    lines = read_text(path, what).split("\n")
    rows = enumerate(lines[:-1] if torn else lines, 1)
    return [_record(line, schema, f"{path}, line {number}", what) for number, line in rows if line.strip()]


def _record(text: str, schema: Schema, where: str, what: str) -> dict:
    try:
        value = parse_json(text)
    except ValueError as e:
        found = f"text that does not parse ({shown(str(e))})"
        raise UserError(f"{where}: expected {what} as a JSON object, found {found}") from None
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


# -- hashes


def canonical_json(value: object) -> str:
    """One text for one value: sorted keys, no spaces, no NaN. What hashes are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_json(value: object) -> str:
    return sha256_text(canonical_json(value))


def sha256_file(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
