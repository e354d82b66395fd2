"""A dataset is a folder: training and validation shards, one SentencePiece model, and perhaps our manifest.

Folders that golfcore made carry a `manifest.json` of schema `golfcore-data-1`, written last: its presence says that
the folder is complete. Other folders in the competition's format (its FineWeb export, say) open just as well.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from golfcore.base.errors import UserError
from golfcore.base.files import canonical_json, read_json, sha256_file, sha256_text, write_json
from golfcore.data.shards import open_shard, shard_tokens
from golfcore.data.stream import TokenStream
from golfcore.data.tokens import load_tokenizer

SCHEMA = "golfcore-data-1"
MANIFEST = "manifest.json"
SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True)
class Dataset:
    path: Path
    train: tuple[Path, ...]  # in the order of their names, which is the order of the text
    val: tuple[Path, ...]
    tokenizer: Path
    data_hash: str  # runs with different values saw different data
    manifest: dict  # ours, or {} where the folder has none


def write_manifest(folder: Path, hashes: Mapping[str, str], **facts: object) -> None:
    """Declare `folder` complete: `hashes` maps each file's path below it to its SHA-256, `facts` is added as it is."""
    files = {name: {"sha256": digest, "bytes": (folder / name).stat().st_size} for name, digest in hashes.items()}
    data_hash = sha256_text(canonical_json(dict(hashes)))
    write_json(folder / MANIFEST, {"schema": SCHEMA, "data_hash": data_hash, "files": files, **facts})


def read_manifest(folder: Path) -> dict:
    """The manifest that golfcore wrote into `folder`; {} if there is none or it is of another schema."""
    path = folder / MANIFEST
    manifest = read_json(path, "a manifest") if path.exists() else {}
    return manifest if manifest.get("schema") == SCHEMA else {}


def open_dataset(path: str | Path) -> Dataset:
    """Find the shards and the tokenizer anywhere below `path`, check headers and sizes, and identify the data.

    `data_hash` comes from our manifest. Without one it is a hash of the tokenizer and of each shard's name, size, and
    first and last MiB: cheap for an export of 16 GB, and any shard added, dropped or exchanged changes it.
    UserError: no such folder; no shards of a split, or shards of several datasets; no tokenizer or several; a damaged
    shard; files that differ from what our manifest lists.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: expected a dataset folder, found no such folder")
    train, val = _shards(path, "train"), _shards(path, "val")
    models = sorted(path.rglob("*.model"))
    if len(models) != 1:
        raise UserError(f"{path}: expected one tokenizer (*.model), found {_listing(path, models)}")
    folders = sorted({shard.parent for shard in train + val})
    if len(folders) != 1:
        raise UserError(f"{path}: expected the shards of one dataset, found shards in {_listing(path, folders)}")
    manifest = read_manifest(path)
    if manifest:
        _check_listed(path, manifest["files"], [*train, *val, models[0]])
    for shard in train + val:
        shard_tokens(shard)
    data_hash = manifest["data_hash"] if manifest else _sampled_hash(models[0], train + val)
    return Dataset(path, train, val, models[0], data_hash, manifest)


def val_tokens(dataset: Dataset, vocab_size: int, targets: int = 0) -> np.ndarray:
    """The validation tokens in order, (N,) uint16; with `targets`, those of the first so many targets.

    UserError: damaged shards, or a tokenizer of another size.
    """
    load_tokenizer(dataset.tokenizer, vocab_size)
    shards = [open_shard(shard, vocab_size) for shard in dataset.val]
    tokens = np.concatenate(shards)
    return tokens[: targets + 1] if targets else tokens


def train_stream(dataset: Dataset, vocab_size: int, reserve: int = 0) -> TokenStream:
    """The training text without its last `reserve` tokens, as a stream at position 0. UserError as `val_tokens`."""
    load_tokenizer(dataset.tokenizer, vocab_size)
    return TokenStream(dataset.train, vocab_size, reserve)


def _shards(path: Path, split: str) -> tuple[Path, ...]:
    shards = sorted(path.rglob(f"*{split}*.bin"), key=lambda shard: shard.name)
    if not shards:
        others = sorted(path.rglob("*.bin"))
        raise UserError(f"{path}: expected {split} shards (*{split}*.bin), found {_listing(path, others)}")
    return tuple(shards)


def _listing(path: Path, found: list[Path]) -> str:
    names = [str(item.relative_to(path)) for item in found[:4]] + ["..."] * (len(found) > 4)
    return ", ".join(names) or "none"


def _check_listed(path: Path, listed: Mapping[str, Mapping], found: list[Path]) -> None:
    names = {item.relative_to(path).as_posix() for item in found}
    for name in sorted(names - set(listed)):
        raise UserError(f"{path / name}: expected only files that {MANIFEST} lists, found this one besides")
    for name, facts in listed.items():
        if name not in names:
            raise UserError(f"{path / name}: expected this file, which {MANIFEST} lists, found no such file")
        size = (path / name).stat().st_size
        if size != facts["bytes"]:
            raise UserError(f"{path / name}: expected {facts['bytes']} bytes as {MANIFEST} lists, found {size}")


def _sampled_hash(tokenizer: Path, shards: tuple[Path, ...]) -> str:
    samples = []
    for shard in shards:
        size = shard.stat().st_size
        with shard.open("rb") as f:
            digest = hashlib.sha256(f.read(SAMPLE_BYTES))
            f.seek(max(size - SAMPLE_BYTES, 0))
            digest.update(f.read())
        samples.append([shard.name, size, digest.hexdigest()])
    return sha256_text(canonical_json([sha256_file(tokenizer), samples]))
