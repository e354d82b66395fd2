"""A dataset is a folder: training and validation shards, one SentencePiece model, and perhaps our manifest.

Folders of others in the competition's format (its FineWeb export, say) open just as well. A shard is named
`train_000000.bin`, `val_000000.bin`, or `NAME_train_000000.bin`, `NAME_val_000000.bin` with one NAME.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from golfcore.base import runtime
from golfcore.base.errors import UserError
from golfcore.base.files import canonical_json, sha256_text
from golfcore.config import Config
from golfcore.data.contents import check_contents, digests, files_below, read_manifest
from golfcore.data.corpus import pydocs
from golfcore.data.proofs import MIN_TOKENS, Facts, prove
from golfcore.data.shards import is_shard, open_shard, shard_tokens
from golfcore.data.stream import TokenStream
from golfcore.data.tokens import load_tokenizer

SHARD_NAME = re.compile(r"((?P<name>.+)_)?(?P<split>train|val)_(?P<number>\d+)\.bin")


@dataclass(frozen=True)
class Dataset:
    path: Path
    train: tuple[Path, ...]  # in the order of their numbers, which is the order of the text
    val: tuple[Path, ...]
    tokenizer: Path
    data_hash: str  # of the contents: runs with different values saw different data
    tokenizer_hash: str  # of the content of the SentencePiece model
    manifest: dict  # ours, or {} where the folder has none
    facts: Facts  # what was proven of this content


def prepare_data(cfg: Config, say: Callable[[str], object]) -> Dataset:
    """The dataset of a configuration: its folder, or the embedded corpus, built into the cache if it is not there."""
    if cfg.data.path:
        return open_dataset(cfg.data.path)
    folder, built = pydocs(runtime.cache_dir(), cfg.data.packages, cfg.model.vocab_size)
    say(f"corpus: {'built' if built else 'reused'} {folder}")
    return open_dataset(folder)


def open_dataset(path: str | Path, again: bool = False) -> Dataset:
    """Find the shards and the tokenizer below `path`, and hold them against their manifest and each other.

    `data_hash` comes from our manifest; without one it is a hash of the contents of the tokenizer and of all shards in
    order. Contents are hashed, and what follows from them proven, once; `again` does both, and proves on the whole
    text, not on its beginning.
    UserError: no such folder; no shards of a split, shards of other names or of several datasets; no tokenizer or
    several; a damaged shard; contents that differ from our manifest; text that training and validation share; a
    tokenizer whose bytes cannot be counted.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: expected a dataset folder, found {'a file' if path.exists() else 'no such folder'}")
    files = files_below(path, (".bin", ".model"))
    train, val = _splits(path, [file for file in files if file.suffix == ".bin"])
    models = [file for file in files if file.suffix == ".model"]
    if len(models) != 1:
        raise UserError(f"{path}: expected one tokenizer (*.model), found {_listing(path, models)}")
    for shard in train + val:
        shard_tokens(shard)
    found = digests([models[0], *train, *val], again)
    manifest = read_manifest(path)
    if manifest:
        check_contents(path, manifest, found)
    trained = {found[shard]: shard.name for shard in train}
    for shard in val:
        if same := trained.get(found[shard]):
            raise UserError(f"{shard}: expected text that is not trained on, found the same content as {same}")
    contents = [found[models[0]], [found[shard] for shard in train], [found[shard] for shard in val]]
    data_hash = manifest["data_hash"] if manifest else sha256_text(canonical_json(contents))
    facts = prove(models[0], train, val, data_hash, whole=again)
    return Dataset(path, train, val, models[0], data_hash, found[models[0]], manifest, facts)


def check_same(dataset: Dataset, data_hash: str | None, tokenizer_hash: str, where: str) -> None:
    """Hold a dataset against what something in `where` was made with; `data_hash` None accepts any text.

    UserError: another tokenizer, whose token ids mean something else; another text.
    """
    if dataset.tokenizer_hash != tokenizer_hash:
        raise UserError(
            f"{dataset.tokenizer}: expected the tokenizer of {where} (sha256 {tokenizer_hash[:12]}), "
            f"found another one ({dataset.tokenizer_hash[:12]})"
        )
    if data_hash is not None and dataset.data_hash != data_hash:
        raise UserError(f"{dataset.path}: expected data {data_hash[:12]} of {where}, found {dataset.data_hash[:12]}")


def val_tokens(dataset: Dataset, vocab_size: int, targets: int = 0) -> np.ndarray:
    """The validation tokens in order, (N,) uint16; with `targets`, those of the first so many targets.

    UserError: damaged shards, or a tokenizer of another size.
    """
    load_tokenizer(dataset.tokenizer, vocab_size)
    tokens = np.concatenate([open_shard(shard, vocab_size) for shard in dataset.val])
    return tokens[: targets + 1] if targets else tokens


def train_stream(dataset: Dataset, vocab_size: int, reserve: int = 0) -> TokenStream:
    """The training text without its last `reserve` tokens, as a stream at position 0. UserError as `val_tokens`."""
    load_tokenizer(dataset.tokenizer, vocab_size)
    return TokenStream(dataset.train, vocab_size, reserve)


def description(dataset: Dataset) -> str:
    """Lines for people: hash, tokenizer, and the tokens, documents and bytes of each split."""
    facts, lines = dataset.facts, [f"{dataset.path}: data {dataset.data_hash[:12]}"]
    lines.append(f"  tokenizer: {dataset.tokenizer.name}, sha256 {dataset.tokenizer_hash[:12]}")
    for split, shards in (("train", dataset.train), ("val", dataset.val)):
        size = facts.bytes.get(split)
        counted = "bytes not counted yet (golfcore data check)" if size is None else f"{size:,} bytes decoded"
        if source := dataset.manifest.get("splits", {}).get(split, {}).get("text_bytes"):
            counted += f" ({source:,} before the tokenizer's normalization)"
        tokens = sum(map(shard_tokens, shards))
        lines.append(
            f"  {split}: {tokens:,} tokens in {len(shards)} shards, {facts.documents[split]:,} documents, {counted}"
        )
    return "\n".join([*lines, f"  overlap: no document of {MIN_TOKENS} tokens or more is in both"])


def _splits(path: Path, files: list[Path]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The shards of training and validation in order, by their exact names; files that are no shards are left out."""
    shards: dict[str, dict[Path, int]] = {"train": {}, "val": {}}
    names = set()
    for file in files:
        if named := SHARD_NAME.fullmatch(file.name):
            shards[named["split"]][file] = int(named["number"])
            names.add(named["name"] or "")
        elif is_shard(file):
            raise UserError(
                f"{file}: expected a shard named NAME_train_000000.bin or NAME_val_000000.bin, found another name"
            )
    for split, found in shards.items():
        if not found:
            raise UserError(f"{path}: expected {split} shards (NAME_{split}_000000.bin), found {_listing(path, files)}")
    folders = sorted({file.parent for found in shards.values() for file in found})
    if len(folders) > 1:
        raise UserError(f"{path}: expected the shards of one dataset, found shards in {_listing(path, folders)}")
    if len(names) > 1:
        listed = ", ".join(map(repr, sorted(names)))
        raise UserError(f"{path}: expected the shards of one dataset, found shards of the names {listed}")
    train, val = (tuple(sorted(found, key=found.__getitem__)) for found in shards.values())
    return train, val


def _listing(path: Path, found: list[Path]) -> str:
    names = [str(item.relative_to(path)) for item in found[:4]] + ["..."] * (len(found) > 4)
    return ", ".join(names) or "none"
