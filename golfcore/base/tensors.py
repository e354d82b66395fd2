"""Named tensors and plain values in one safetensors file, which is written whole and cannot execute anything.

It carries what the values belong to (the configuration, the data, ... they were made from), the version of the code
that wrote it, and a SHA-256 digest of all of these, so that damage and mistaken identity are noticed.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from golfcore.base import files
from golfcore.base.errors import UserError
from golfcore.base.runtime import code_version

RECORD = {"belongs", "plain", "version", "digest"}  # one JSON text, since a file with several has no fixed order


class Damaged(UserError):
    """A file that `save` did not write, or that was changed since."""


def save(
    path: Path, tensors: Mapping[str, Tensor], plain: Mapping[str, object], belongs: Mapping[str, str] | None = None
) -> None:
    """Write `tensors` and the JSON values `plain`. `belongs`: what they are only good for, by the words of an error."""
    on_cpu = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    record = {"plain": dict(plain), "belongs": dict(belongs or {}), "version": code_version()}
    record["digest"] = digest(on_cpu, record)
    files.write_bytes(path, serialize(on_cpu, {"record": files.canonical_json(record)}))


def load(
    path: Path, what: str, belongs: Mapping[str, str] | None = None, device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], dict]:
    """(tensors, plain values) that `save` wrote for `belongs`; None: whatever they belong to.

    UserError, naming the file and `what` was expected, if it is missing, belongs to something else, or is Damaged.
    """
    try:
        with safe_open(path, "pt") as f:
            texts = f.metadata() or {}
            values = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        record = files.parse_json(texts.pop("record", "{}"))
        if texts or record.keys() != RECORD:
            raise ValueError(f"expected a record of {', '.join(sorted(RECORD))}, found {', '.join(record) or 'none'}")
        if record.pop("digest") != digest(values, record):
            raise ValueError("its contents do not match its digest: it was damaged or changed after it was written")
    except FileNotFoundError:
        raise UserError(f"{path}: expected {what}, found no such file") from None
    except (SafetensorError, ValueError, OSError) as e:
        raise Damaged(f"{path}: expected {what}, found a file that does not read ({e})") from None
    owner, wanted = record["belongs"], record["belongs"] if belongs is None else belongs
    for key in sorted(owner.keys() | wanted.keys()):
        if owner.get(key) != wanted.get(key):
            raise UserError(
                f"{path}: expected {what} of {key} {wanted.get(key, '(none)')}, found that of {key} "
                f"{owner.get(key, '(none)')}, written by golfcore {record['version']}"
            )
    return {name: t.to(device) for name, t in values.items()}, record["plain"]


def digest(tensors: Mapping[str, Tensor], record: Mapping[str, object] = MappingProxyType({})) -> str:
    """SHA-256 over `record` and names, dtypes, shapes and bytes: 64 hex digits that say which values these are."""
    shapes = {name: [str(t.dtype), list(t.shape)] for name, t in tensors.items()}
    total = hashlib.sha256(files.canonical_json([shapes, dict(record)]).encode())
    for name in sorted(tensors):
        total.update(tensors[name].detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def previous(path: Path) -> Path:
    """Where the state that stood in `path` before its last `save_next` is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def save_next(
    path: Path, tensors: Mapping[str, Tensor], plain: Mapping[str, object], belongs: Mapping[str, str]
) -> None:
    """`save` a later state, and keep the one before it in `previous(path)`."""
    if path.exists():
        files.same_file(path, previous(path))
    save(path, tensors, plain, belongs)


def load_last(
    path: Path, what: str, belongs: Mapping[str, str], say: Callable[[str], object]
) -> tuple[dict[str, Tensor], dict]:
    """The last state that `save_next` wrote. If that is damaged: the one before it, which takes its place; says so."""
    try:
        return load(path, what, belongs)
    except Damaged as e:
        older = previous(path)
        if not older.exists():
            raise
        found = load(older, what, belongs)
        files.same_file(older, path)
        say(f"{e}; going on from {older.name} instead")
        return found


def expect(found: Mapping[str, Tensor], like: Mapping[str, Tensor], what: str) -> None:
    """UserError unless `found` has the names of `like` and, under each, its shape and dtype."""
    kinds = [{name: f"{t.dtype} of shape {tuple(t.shape)}" for name, t in x.items()} for x in (like, found)]
    for name in sorted(like.keys() | found.keys()):
        wanted, given = (kind.get(name, "none") for kind in kinds)
        if wanted != given:
            raise UserError(f"{what}: expected a tensor {name!r} as {wanted}, found {given}")


def number(plain: Mapping[str, object], key: str, low: float, high: float, what: str, whole: bool = False) -> float:
    """The finite number `plain[key]` from `low` to `high`, if `whole` an int. UserError naming `what` otherwise."""
    value = plain.get(key)
    files.check(value, int if whole else float, f"{what}, {key}: expected it")
    assert isinstance(value, (int, float))
    if not low <= value <= high:
        raise UserError(f"{what}, {key}: expected a number from {low} to {high}, found {value!r}")
    return value


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`/, without it."""
    return {name.removeprefix(prefix + "/"): t for name, t in tensors.items() if name.startswith(prefix + "/")}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `part`."""
    return {f"{prefix}/{name}": t for name, t in tensors.items()}
