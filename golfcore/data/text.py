"""Text becomes a dataset: a tokenizer trained on it, token shards, and a manifest that says what is inside.

The tokenizer is of the competition's kind: SentencePiece BPE with byte fallback, pad 0, bos 1, eos 2, unk 3, no dummy
prefix, digits apart. Its default normalization (NFKC, runs of white space become one space) is part of the format.
"""

import io
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path

import numpy as np
import sentencepiece
from sentencepiece import SentencePieceProcessor
from tqdm import tqdm

from golfcore.base.errors import UserError, shown
from golfcore.base.files import read_jsonl, read_text, sha256_file, sha256_text, write_bytes
from golfcore.data.contents import MANIFEST, files_below, write_manifest
from golfcore.data.proofs import MIN_TOKENS, prove
from golfcore.data.shards import write_shard
from golfcore.data.tokens import load_tokenizer

VAL_ONE_IN = 20  # about 5% of documents, chosen by their hash
SHARD_TOKENS = 10_000_000
SAMPLE_CHARS = 8_000_000  # the tokenizer is trained on at most this much
PIECE_CHARS = 1 << 14  # a longer text file is cut at the first blank line after this much
BATCH_DOCUMENTS = 256
MAX_VOCAB = 1 << 16  # a shard holds ids of 16 bits
HALF_PAIR = re.compile("[\ud800-\udfff]")  # escapes in JSON and Python can leave half of a surrogate pair


def split_documents(documents: Iterable[str], name: str) -> tuple[list[str], list[str]]:
    """Documents for training and for validation, in the given order; equal ones land on the same side.

    If the hashes leave a side empty, validation is the document with the lowest hash. UserError, beginning with
    `name`: fewer than two different documents.
    """
    hashed = [(sha256_text(text), text) for text in documents]
    distinct = {digest for digest, _ in hashed}
    if len(distinct) < 2:
        raise UserError(f"{name}: expected at least two different documents to split, found {len(distinct)}")
    chosen = {digest for digest in distinct if int(digest, 16) % VAL_ONE_IN == 0}
    if chosen in (set(), distinct):
        chosen = {min(distinct)}
    train, val = ([text for digest, text in hashed if (digest in chosen) is held] for held in (False, True))
    return train, val


def train_tokenizer(documents: Sequence[str], vocab_size: int) -> bytes:
    """A SentencePiece BPE model trained on up to 8M characters of `documents`, taken in the order of their hashes.

    The same documents give the same bytes. UserError: the text is too small or the vocabulary too small for it.
    """
    if not 1 <= vocab_size <= MAX_VOCAB:
        raise UserError(f"vocab_size: expected 1 to {MAX_VOCAB}, found {vocab_size}")
    ordered = sorted(documents, key=sha256_text)
    enough = np.searchsorted(np.cumsum([len(text) for text in ordered]), SAMPLE_CHARS) + 1
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(ordered[:enough]), model_writer=model, model_type="bpe", vocab_size=vocab_size,
            byte_fallback=True, split_digits=True, add_dummy_prefix=False, pad_id=0, bos_id=1, eos_id=2, unk_id=3,
            max_sentence_length=1 << 30, minloglevel=2,
        )  # fmt: skip
    except RuntimeError as e:
        most = re.search(r"<= (\d+)", str(e))
        size_wanted = f"at most {most[1]} for this text" if most else "more pieces for this text"
        raise UserError(f"vocab_size: expected {size_wanted}, found {vocab_size}") from None
    return model.getvalue()


def build(
    documents: Iterable[str], out: Path, vocab_size: int, sources: Mapping[str, object], tokenizer: Path | None = None
) -> None:
    """Make the dataset folder `out`: `tokenizer.model`, `train_*.bin`, `val_*.bin` and, last, `manifest.json`.

    Each document is BOS and its tokens; documents follow one another and may span shards. A training document that is
    token for token a validation document (texts may differ in what the tokenizer normalizes) is left out. The folder
    is made beside its place and renamed, so a killed build leaves no half of one. `sources` says where the documents
    come from; `tokenizer` is used instead of training one.
    UserError: `out` exists with something in it; too few documents; a tokenizer that does not fit, does not cover the
    text, or whose bytes cannot be counted.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: expected a folder that is new or empty, found something there")
    train, val = split_documents(documents, str(out))
    if tokenizer and load_tokenizer(tokenizer, vocab_size).bos_id() < 0:
        raise UserError(f"{tokenizer}: expected a tokenizer with a start-of-document token, found none")
    proto = tokenizer.read_bytes() if tokenizer else train_tokenizer(train, vocab_size)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as holder:
        part = Path(holder) / out.name
        model = part / "tokenizer.model"
        write_bytes(model, proto)
        encoder = load_tokenizer(model, vocab_size)
        splits: dict[str, dict[str, int]] = {}
        splits["val"], held_out = _pack(part, "val", encoder, val, set())
        splits["train"], _ = _pack(part, "train", encoder, train, held_out)
        hashes = {path.name: sha256_file(path) for path in sorted(part.iterdir())}
        train_shards, val_shards = (sorted(part.glob(f"{split}_*.bin")) for split in ("train", "val"))
        facts = prove(model, train_shards, val_shards, whole=True)
        for split, counted in facts.bytes.items():
            splits[split]["bytes"] = counted
        write_manifest(
            part, hashes, splits=splits, sources=dict(sources), vocab_size=vocab_size,
            sentencepiece=sentencepiece.__version__,
        )  # fmt: skip
        try:
            part.rename(out)
        except OSError:
            if not (out / MANIFEST).is_file():  # otherwise another process has just finished the same build
                raise


def _pack(
    folder: Path, split: str, tokenizer: SentencePieceProcessor, documents: Sequence[str], left_out: Set[bytes]
) -> tuple[dict[str, int], set[bytes]]:
    """Write the shards of a split, without longer documents of tokens in `left_out`. Its sizes and documents."""
    kept, size = [], 0
    for start in tqdm(range(0, len(documents), BATCH_DOCUMENTS), f"encode {split}", unit="batch", disable=None):
        batch = list(documents[start : start + BATCH_DOCUMENTS])
        for text, ids in zip(batch, tokenizer.encode(batch, add_bos=True), strict=True):
            if tokenizer.unk_id() in ids:
                raise UserError(
                    f"tokenizer: expected one that has pieces or bytes for all of the text, found none for a part "
                    f"of the document that begins {text[:40]!r}"
                )
            tokens = np.array(ids, np.uint16)
            if len(tokens) <= MIN_TOKENS or tokens.tobytes() not in left_out:
                kept.append(tokens)
                size += len(text.encode())
    if not kept:
        raise UserError(f"{split}: expected documents that validation does not hold as well, found none")
    whole = np.concatenate(kept)
    for index, start in enumerate(range(0, len(whole), SHARD_TOKENS)):
        write_shard(folder / f"{split}_{index:06d}.bin", whole[start : start + SHARD_TOKENS])
    sizes = {"documents": len(kept), "tokens": len(whole), "text_bytes": size}
    return sizes, {tokens.tobytes() for tokens in kept}


# -- folders of text


def build_folder(folder: Path, out: Path, vocab_size: int, tokenizer: Path | None = None) -> None:
    """Make a dataset of the `folder_documents`, as `build`."""
    build(folder_documents(folder), out, vocab_size, {"corpus": "folder", "name": folder.resolve().name}, tokenizer)


def folder_documents(folder: Path) -> list[str]:
    """The documents below a folder in the order of their paths: the "text" of .jsonl lines, .txt and .md files.

    Text files are `cut`; documents of white space only are dropped.
    UserError: no such folder, no such files, bytes that are not UTF-8, a line without a JSON object with "text".
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: expected a folder of .txt, .md or .jsonl files, found {found}")
    paths = files_below(folder, (".txt", ".md", ".jsonl"))
    if not paths:
        raise UserError(f"{folder}: expected .txt, .md or .jsonl files, found none")
    documents: list[str] = []
    for path in tqdm(paths, desc="read", unit="file", disable=None):
        if path.suffix != ".jsonl":
            documents += cut(read_text(path, "text"))
            continue
        texts = [row["text"] for row in read_jsonl(path, "a document", {"text": str})]
        if broken := next(filter(HALF_PAIR.search, texts), ""):
            raise UserError(f"{path}: expected Unicode text, found half of a surrogate pair in {shown(ascii(broken))}")
        documents += texts
    return [text for text in documents if text.strip()]


def cut(text: str) -> list[str]:
    """Cut a text after the first blank line that follows each 16 Ki characters; the pieces joined are the text."""
    pieces: list[str] = []
    start = end = 0
    for line in text.splitlines(keepends=True):
        end += len(line)
        if end - start >= PIECE_CHARS and not line.strip():
            pieces.append(text[start:end])
            start = end
    return [*pieces, text[start:]]
