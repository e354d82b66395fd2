"""Named tensors and plain values in one safetensors file: atomic, unable to execute anything, and sure of itself.

Beside the values a file carries what they belong to (the configuration, the data, ... they were made from), the version
of the code that wrote it, and a SHA-256 digest of all of these, so that damage and mistaken identity are noticed.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from golfcore.base import files
from golfcore.base.errors import UserError
from golfcore.base.runtime import code_version

RECORD = {"belongs", "plain", "version", "digest"}  # one JSON text, since a file with several has no fixed order


def save(
    path: Path, tensors: Mapping[str, Tensor], plain: Mapping[str, object], belongs: Mapping[str, str] | None = None
) -> None:
    """Write `tensors` and the JSON values `plain`. `belongs`: what they are only good for, by the words of an error."""
    on_cpu = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    record = {"plain": dict(plain), "belongs": dict(belongs or {}), "version": code_version()}
    record["digest"] = _digest(on_cpu, record)
    files.write_bytes(path, serialize(on_cpu, {"record": files.canonical_json(record)}))


def load(
    path: Path, what: str, belongs: Mapping[str, str] | None = None, device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], dict]:
    """(tensors, plain values) that `save` wrote for `belongs`; None: whatever they belong to.

    UserError, naming the file and `what` was expected, if it is missing, damaged, or belongs to something else.
    """
    try:
        with safe_open(path, "pt") as f:
            texts = f.metadata() or {}
            values = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        if belongs is None and texts.keys() == {"plain"}:  # weights that version 0.1.0 wrote, without a digest
            return {name: t.to(device) for name, t in values.items()}, files.parse_json(texts["plain"])
        record = _checked(values, texts)
    except FileNotFoundError:
        raise UserError(f"{path}: expected {what}, found no such file") from None
    except (SafetensorError, ValueError, OSError) as e:
        raise UserError(f"{path}: expected {what}, found a file that does not read ({e})") from None
    owner = record["belongs"]
    if belongs is not None and owner != dict(belongs):
        key = min(k for k in owner.keys() | belongs.keys() if owner.get(k) != belongs.get(k))
        raise UserError(
            f"{path}: expected {what} of {key} {belongs.get(key, '(none)')}, found that of {key} "
            f"{owner.get(key, '(none)')}, written by golfcore {record['version']}"
        )
    return {name: t.to(device) for name, t in values.items()}, record["plain"]


def written_by(path: Path) -> str:
    """The version of the code that wrote a file that `load` accepts."""
    with safe_open(path, "pt") as f:
        return files.parse_json(f.metadata().get("record", "{}")).get("version", "0.1.0")


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`/, without it."""
    return {name.removeprefix(prefix + "/"): t for name, t in tensors.items() if name.startswith(prefix + "/")}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `part`."""
    return {f"{prefix}/{name}": t for name, t in tensors.items()}


def _checked(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> dict:
    """The record in a file's metadata `texts`. ValueError unless it is complete and its digest that of the contents."""
    record = files.parse_json(texts.get("record", "{}"))
    if wrong := record.keys() ^ RECORD or texts.keys() - {"record"}:
        raise ValueError(f"expected a record of {', '.join(sorted(RECORD))}, found {min(wrong)!r} unpaired")
    if record.pop("digest") != _digest(tensors, record):
        raise ValueError("its contents do not match its digest: it was damaged or changed after it was written")
    return record


def _digest(tensors: Mapping[str, Tensor], record: Mapping[str, object]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the tensors (on CPU), and over `record` without a digest."""
    shapes = {name: [str(t.dtype), list(t.shape)] for name, t in tensors.items()}
    digest = hashlib.sha256(files.canonical_json([shapes, dict(record)]).encode())
    for name in sorted(tensors):
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
