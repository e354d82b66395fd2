"""Named tensors and plain values in one safetensors file: atomic, and unable to execute anything when read."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from golfcore.base import files
from golfcore.base.errors import UserError


def save(path: Path, tensors: Mapping[str, Tensor], plain: Mapping[str, object]) -> None:
    on_cpu = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    files.write_bytes(path, serialize(on_cpu, {"plain": files.canonical_json(dict(plain))}))


def load(path: Path, what: str, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict]:
    """What `save` wrote. UserError, naming `what` was expected, if the file is missing or damaged."""
    try:
        with safe_open(path, "pt", device=str(device)) as f:
            text = (f.metadata() or {}).get("plain", "{}")
            return {name: f.get_tensor(name) for name in f.keys()}, files.parse_json(text)  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: expected {what}, found no such file") from None
    except (SafetensorError, ValueError) as e:
        raise UserError(f"{path}: expected {what}, found a file that does not read ({e})") from None


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`/, without it."""
    return {name.removeprefix(prefix + "/"): t for name, t in tensors.items() if name.startswith(prefix + "/")}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `part`."""
    return {f"{prefix}/{name}": t for name, t in tensors.items()}
