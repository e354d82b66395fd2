"""Text becomes a dataset: a tokenizer trained on it, token shards, and a manifest that says what is inside.

The tokenizer is of the competition's kind: SentencePiece BPE with byte fallback, pad 0, bos 1, eos 2, unk 3, no dummy
prefix, digits apart. Its default normalization (NFKC, runs of white space become one space) is part of the format.
"""

import io
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from sentencepiece import SentencePieceProcessor
from tqdm import tqdm

from golfcore.base.errors import UserError
from golfcore.base.files import sha256_file, sha256_text, write_bytes
from golfcore.data.datasets import MANIFEST, write_manifest
from golfcore.data.shards import open_shard, write_shard
from golfcore.data.tokens import count_bytes, load_tables, load_tokenizer

VAL_ONE_IN = 20  # about 5% of documents, chosen by their hash
SHARD_TOKENS = 10_000_000
SAMPLE_CHARS = 8_000_000  # the tokenizer is trained on at most this much
PIECE_CHARS = 1 << 14  # a longer text file is cut at the first blank line after this much
BATCH_DOCUMENTS = 256


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
    return ([t for digest, t in hashed if digest not in chosen], [t for digest, t in hashed if digest in chosen])


def train_tokenizer(documents: Sequence[str], vocab_size: int) -> bytes:
    """A SentencePiece BPE model trained on up to 8M characters of `documents`, taken in the order of their hashes.

    The same documents give the same bytes. UserError: the text is too small or the vocabulary too small for it.
    """
    sample, size = [], 0
    for text in sorted(documents, key=sha256_text):
        sample.append(text)
        size += len(text)
        if size >= SAMPLE_CHARS:
            break
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample), model_writer=model, model_type="bpe", vocab_size=vocab_size,
            byte_fallback=True, split_digits=True, add_dummy_prefix=False, pad_id=0, bos_id=1, eos_id=2, unk_id=3,
            max_sentence_length=1 << 30, minloglevel=2,
        )  # fmt: skip
    except RuntimeError as e:
        if "ocabulary size" not in str(e):
            raise
        reason = str(e).rsplit("] ", 1)[-1].rstrip(".")
        raise UserError(f"vocab_size: expected a size that suits the text, found {vocab_size} ({reason})") from None
    return model.getvalue()


def build(
    documents: Iterable[str],
    out: Path,
    vocab_size: int,
    sources: Mapping[str, object],
    tokenizer: Path | None = None,
) -> None:
    """Make the dataset folder `out`: `tokenizer.model`, `train_*.bin`, `val_*.bin` and, last, `manifest.json`.

    Each document is BOS and its tokens; documents follow one another and may span shards. The folder is made beside
    its place and renamed, so a killed build leaves no half of one. All text is held in memory. `sources` says where
    the documents come from and goes into the manifest; `tokenizer` is used instead of training one.
    UserError: `out` exists with something in it; too few documents; a tokenizer that does not fit.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: expected a folder that is new or empty, found something there")
    train, val = split_documents(documents, str(out))
    proto = _existing_tokenizer(tokenizer, vocab_size) if tokenizer else train_tokenizer(train, vocab_size)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as holder:
        part = Path(holder) / out.name
        model = part / "tokenizer.model"
        write_bytes(model, proto)
        with tqdm(total=len(train) + len(val), desc="encode", unit="doc", disable=None) as bar:
            splits = {
                split: _write_split(part, split, texts, model, vocab_size, bar)
                for split, texts in (("train", train), ("val", val))
            }
        write_manifest(
            part, {path.name: sha256_file(path) for path in sorted(part.iterdir())}, splits=splits,
            sources=dict(sources), vocab_size=vocab_size, sentencepiece=sentencepiece.__version__,
        )  # fmt: skip
        try:
            part.rename(out)
        except OSError:
            if not (out / MANIFEST).is_file():  # otherwise another process has just finished the same build
                raise


def build_folder(folder: Path, out: Path, vocab_size: int = 1024, tokenizer: Path | None = None) -> None:
    """Make a dataset of all .txt, .md and .jsonl files below `folder`, in the order of their paths.

    UserError: what `folder_documents` and `build` raise.
    """
    build(folder_documents(folder), out, vocab_size, {"corpus": "folder", "name": folder.resolve().name}, tokenizer)


def folder_documents(folder: Path) -> list[str]:
    """The documents of a folder: every line of a .jsonl file (its "text"), every .txt or .md file.

    Text files longer than 16 Ki characters are cut at blank lines. Documents of white space only are dropped.
    UserError: no such folder, no such files, bytes that are not UTF-8, a line without a JSON object with "text".
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a folder of .txt, .md or .jsonl files, found no such folder")
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".txt", ".md", ".jsonl") and path.is_file())
    if not paths:
        raise UserError(f"{folder}: expected .txt, .md or .jsonl files, found none")
    documents: list[str] = []
    for path in tqdm(paths, desc="read", unit="file", disable=None):
        text = _read_utf8(path)
        documents += _json_texts(path, text) if path.suffix == ".jsonl" else cut(text)
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


def is_unicode(text: str) -> bool:
    """Whether a string can be written as UTF-8: escapes in JSON and Python can leave half of a surrogate pair."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _read_utf8(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        raise UserError(f"{path}, line {line}: expected UTF-8 text, found the byte 0x{data[e.start]:02x}") from None


def _json_texts(path: Path, content: str) -> Iterator[str]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as e:
            raise UserError(f"{path}, line {number}: expected a JSON object, found invalid JSON ({e})") from None
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str):
            found = f"the keys {sorted(row)}" if isinstance(row, dict) else f"a {type(row).__name__}"
            raise UserError(f'{path}, line {number}: expected an object with a string "text", found {found}')
        if not is_unicode(text):
            raise UserError(f"{path}, line {number}: expected Unicode text, found half of a surrogate pair")
        yield text


def _existing_tokenizer(path: Path, vocab_size: int) -> bytes:
    if load_tokenizer(path, vocab_size).bos_id() < 0:
        raise UserError(f"{path}: expected a tokenizer with a start-of-document token, found none")
    return path.read_bytes()


def _write_split(
    folder: Path, split: str, documents: Sequence[str], model: Path, vocab_size: int, bar: tqdm
) -> dict[str, int]:
    """Write the shards of one split and return its counts; `bytes` is what an evaluation charges for its tokens."""
    encoded = _encode(documents, load_tokenizer(model, vocab_size), bar)
    paths = []
    for index, piece in enumerate(_regroup(encoded, SHARD_TOKENS)):
        paths.append(folder / f"{split}_{index:06d}.bin")
        write_shard(paths[-1], piece)
    tokens = np.concatenate([open_shard(path, vocab_size) for path in paths])
    return {
        "documents": len(documents),
        "tokens": len(tokens),
        "bytes": count_bytes(load_tables(model, vocab_size), tokens),
        "text_bytes": sum(len(text.encode()) for text in documents),
    }


def _encode(documents: Sequence[str], processor: SentencePieceProcessor, bar: tqdm) -> Iterator[np.ndarray]:
    for start in range(0, len(documents), BATCH_DOCUMENTS):
        batch = list(documents[start : start + BATCH_DOCUMENTS])
        for tokens in processor.encode(batch, add_bos=True):
            yield np.array(tokens, np.uint16)
        bar.update(len(batch))


def _regroup(arrays: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same tokens in arrays of `size`, the last one shorter."""
    pending: list[np.ndarray] = []
    count = 0
    for array in arrays:
        pending.append(array)
        count += len(array)
        while count >= size:
            joined = np.concatenate(pending)
            yield joined[:size]
            pending, count = [joined[size:]], count - size
    if count:
        yield np.concatenate(pending)
