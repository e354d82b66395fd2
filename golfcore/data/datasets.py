"""A dataset is a folder: training and validation shards, one SentencePiece model, and perhaps our manifest.

Folders of others in the competition's format (its FineWeb export, say) open just as well. A shard is named
`train_000000.bin`, `val_000000.bin`, or `NAME_train_000000.bin`, `NAME_val_000000.bin` with one NAME.
"""

import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from golfcore.base import runtime
from golfcore.base.errors import UserError
from golfcore.base.files import read_json, sha256_file, sha256_json, write_json
from golfcore.config import Config
from golfcore.data.contents import check_contents, files_below, read_manifest
from golfcore.data.corpus import pydocs
from golfcore.data.proofs import MIN_TOKENS, RULES, Facts, prove
from golfcore.data.shards import is_shard, open_shard, shard_tokens
from golfcore.data.stream import TokenStream
from golfcore.data.tokens import load_tokenizer

SHARD_NAME = re.compile(r"((?P<name>.+)_)?(?P<split>train|val)_(?P<number>\d+)\.bin")
KNOWN = {"sha256": [str], "documents": {"*": int}, "bytes": {"*": int}}
SETTLED_SECONDS = 2.0  # a file changed more recently could change again within one tick of the file system's clock


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
    order. Contents are hashed, and what follows from them proven, once: it is remembered by the state of the files.
    `again` does both, and proves on the whole text, not on its beginning.
    UserError: the files of no dataset, or of several; a damaged shard; contents that differ from our manifest; text
    that training and validation share; a tokenizer whose bytes cannot be counted.
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
    files = [*models, *train, *val]
    kept, known = _kept(files), {}
    with suppress(UserError, OSError):  # a cache that cannot be used costs time, and nothing else
        known = {} if again else read_json(runtime.cache_dir() / kept, "what is known of files", KNOWN)
    found = dict(zip(files, known.get("sha256") or _hashes(files), strict=True))
    if manifest := read_manifest(path):
        check_contents(path, manifest, found)
    trained = {found[shard]: shard.name for shard in train}
    for shard in val:
        if same := trained.get(found[shard]):
            raise UserError(f"{shard}: expected text that is not trained on, found the same content as {same}")
    contents = [found[models[0]], [found[shard] for shard in train], [found[shard] for shard in val]]
    data_hash = manifest["data_hash"] if manifest else sha256_json(contents)
    facts = Facts(known["documents"], known["bytes"]) if known else prove(models[0], train, val, whole=again)
    newest = max(max(path.stat().st_mtime, path.stat().st_ctime) for path in files)
    with suppress(UserError, OSError):
        if not known and kept == _kept(files) and time.time() - newest > SETTLED_SECONDS:
            write_json(runtime.cache_dir() / kept, {"sha256": list(found.values()), **facts._asdict()})
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
    facts, whose = dataset.facts, "" if dataset.manifest else " (a hash of its contents: no manifest of golfcore's)"
    lines = [f"{dataset.path}: data {dataset.data_hash[:12]}{whose}"]
    lines.append(f"  tokenizer: {dataset.tokenizer.name}, sha256 {dataset.tokenizer_hash[:12]}")
    for split, shards in (("train", dataset.train), ("val", dataset.val)):
        made = dataset.manifest.get("splits", {}).get(split, {})
        size = facts.bytes.get(split, made.get("bytes"))
        counted = "bytes not counted yet (golfcore data check)" if size is None else f"{size:,} bytes decoded"
        if source := made.get("text_bytes"):
            counted += f" ({source:,} before the tokenizer's normalization)"
        tokens = f"{sum(map(shard_tokens, shards)):,} tokens in {len(shards)} shards"
        lines.append(f"  {split}: {tokens}, {facts.documents[split]:,} documents, {counted}")
    return "\n".join([*lines, f"  overlap: no document of {MIN_TOKENS} tokens or more is in both"])


def _kept(files: Sequence[Path]) -> str:
    """Where in the cache what is known of `files` is kept: a name that lasts while they and the proofs are the same."""
    states = [(os.path.realpath(path), path.stat()) for path in files]
    key = [RULES, *([place, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for place, s in states)]
    return f"datasets/{sha256_json(key)[:32]}.json"


def _hashes(files: Sequence[Path]) -> list[str]:
    with ThreadPoolExecutor(4) as pool:
        return list(tqdm(pool.map(sha256_file, files), "hash", len(files), delay=2, disable=None))


def _splits(path: Path, files: list[Path]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The shards of training and validation in order, by their exact names; files that are no shards are left out."""
    named = [(file, match) for file in files if (match := SHARD_NAME.fullmatch(file.name))]
    for file in set(files) - {file for file, _ in named}:
        if is_shard(file):
            wanted = "expected a shard named NAME_train_000000.bin or NAME_val_000000.bin"
            raise UserError(f"{file}: {wanted}, found another name")
    found = []
    for split in ("train", "val"):
        numbers = {file: int(match["number"]) for file, match in named if match["split"] == split}
        found.append(tuple(sorted(numbers, key=numbers.__getitem__)))
        if not numbers:
            raise UserError(f"{path}: expected {split} shards (NAME_{split}_000000.bin), found {_listing(path, files)}")
    folders = sorted({file.parent for file, _ in named})
    if len(folders) > 1:
        raise UserError(f"{path}: expected the shards of one dataset, found shards in {_listing(path, folders)}")
    names = sorted({match["name"] or "" for _, match in named})
    if len(names) > 1:
        listed = ", ".join(map(repr, names))
        raise UserError(f"{path}: expected the shards of one dataset, found shards of the names {listed}")
    return found[0], found[1]


def _listing(path: Path, found: list[Path]) -> str:
    names = [str(item.relative_to(path)) for item in found[:4]] + ["..."] * (len(found) > 4)
    return ", ".join(names) or "none"
