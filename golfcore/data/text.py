"""Text becomes a dataset: a tokenizer trained on it, token shards, and a manifest that says what is inside.

The tokenizer is of the competition's kind: SentencePiece BPE with byte fallback, pad 0, bos 1, eos 2, unk 3, no dummy
prefix, digits apart. Its default normalization (NFKC, runs of white space become one space) is part of the format.
"""

import hashlib
import io
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from sentencepiece import SentencePieceProcessor
from tqdm import tqdm

from golfcore.base.errors import UserError, shown
from golfcore.base.files import sha256_file, sha256_text, write_bytes
from golfcore.data.contents import files_below, read
from golfcore.data.documents import MIN_TOKENS
from golfcore.data.manifest import MANIFEST, data_hash, write_manifest
from golfcore.data.proofs import prove
from golfcore.data.shards import write_shard
from golfcore.data.tokens import load_tokenizer

VAL_ONE_IN = 20  # about 5% of documents, chosen by their hash
SHARD_TOKENS = 10_000_000
SAMPLE_CHARS = 8_000_000  # the tokenizer is trained on at most this much
PIECE_CHARS = 1 << 14  # a longer text file is cut at the first blank line after this much
BATCH_DOCUMENTS = 256
MAX_VOCAB = 1 << 16  # a shard holds ids of 16 bits


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
    if not 1 <= vocab_size <= MAX_VOCAB:
        raise UserError(f"vocab_size: expected 1 to {MAX_VOCAB}, found {vocab_size}")
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
        most, least = re.search(r"<= (\d+)", str(e)), re.search(r"(\d+) vs (\d+)", str(e))
        bound = f" (at most {most[1]})" if most else f" (more than {least[2]})" if least else ""
        raise UserError(f"vocab_size: expected a size that suits the text, found {vocab_size}{bound}") from None
    return model.getvalue()


def build(
    documents: Iterable[str],
    out: Path,
    vocab_size: int,
    sources: Mapping[str, object],
    tokenizer: Path | None = None,
) -> None:
    """Make the dataset folder `out`: `tokenizer.model`, `train_*.bin`, `val_*.bin` and, last, `manifest.json`.

    Each document is BOS and its tokens; documents follow one another and may span shards. A training document that is
    token for token a validation document (texts may differ in what the tokenizer normalizes) is left out. The bytes
    of the whole text are counted and held against decoding it. The folder is made beside its place and renamed, so a
    killed build leaves no half of one. All text is held in memory. `sources` says where the documents come from and
    goes into the manifest; `tokenizer` is used instead of training one.
    UserError: `out` exists with something in it; too few documents; a tokenizer that does not fit, does not cover the
    text, or whose bytes cannot be counted.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: expected a folder that is new or empty, found something there")
    if blocked := [parent for parent in out.parents if parent.exists() and not parent.is_dir()]:
        raise UserError(f"{out}: expected a place for a new folder, found the file {blocked[0]} above it")
    train, val = split_documents(documents, str(out))
    proto = _existing_tokenizer(tokenizer, vocab_size) if tokenizer else train_tokenizer(train, vocab_size)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as holder:
        part = Path(holder) / out.name
        model = part / "tokenizer.model"
        write_bytes(model, proto)
        with tqdm(total=len(train) + len(val), desc="encode", unit="doc", disable=None) as bar:
            writer = _Writer(part, load_tokenizer(model, vocab_size), bar)
            splits = {"val": writer.write("val", val), "train": writer.write("train", train)}
        hashes = {path.name: sha256_file(path) for path in sorted(part.iterdir())}
        shards = {split: sorted(part.glob(f"{split}_*.bin")) for split in splits}
        facts = prove(model, shards["train"], shards["val"], data_hash(hashes), whole=True)
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


def build_folder(folder: Path, out: Path, vocab_size: int = 1024, tokenizer: Path | None = None) -> None:
    """Make a dataset of all .txt, .md and .jsonl files below `folder`, in the order of their paths.

    UserError: what `folder_documents` and `build` raise.
    """
    build(folder_documents(folder), out, vocab_size, {"corpus": "folder", "name": folder.resolve().name}, tokenizer)


def folder_documents(folder: Path) -> list[str]:
    """The documents of a folder: every line of a .jsonl file (its "text"), every .txt or .md file.

    Text files longer than 16 Ki characters are cut at blank lines. Documents of white space only are dropped; hidden
    files and folders are not read.
    UserError: no such folder, no such files, bytes that are not UTF-8, a line without a JSON object with "text".
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: expected a folder of .txt, .md or .jsonl files, found {found}")
    paths = [path for path in files_below(folder, (".txt", ".md", ".jsonl")) if path.is_file()]
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
    data = read(path, "text")
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
        except RecursionError:
            raise UserError(f"{path}, line {number}: expected a JSON object, found one nested too deeply") from None
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str):
            found = f"the object {shown(row)}" if isinstance(row, dict) else f"a {type(row).__name__}"
            raise UserError(f'{path}, line {number}: expected an object with a string "text", found {found}')
        if not is_unicode(text):
            raise UserError(f"{path}, line {number}: expected Unicode text, found half of a surrogate pair")
        yield text


def _existing_tokenizer(path: Path, vocab_size: int) -> bytes:
    if load_tokenizer(path, vocab_size).bos_id() < 0:
        raise UserError(f"{path}: expected a tokenizer with a start-of-document token, found none")
    return read(path, "a SentencePiece model")


class _Writer:
    """Writes the shards of splits; what was written before is left out of the next."""

    def __init__(self, folder: Path, tokenizer: SentencePieceProcessor, bar: tqdm) -> None:
        self.folder, self.tokenizer, self.bar = folder, tokenizer, bar
        self.written: set[bytes] = set()  # digests of the documents of earlier splits
        self.unknown = [i for i in range(tokenizer.vocab_size()) if tokenizer.is_unknown(i)]

    def write(self, split: str, documents: Sequence[str]) -> dict[str, int]:
        """Write the shards of one split and return its documents, tokens and bytes of text."""
        counts = {"documents": 0, "tokens": 0, "text_bytes": 0}
        digests: set[bytes] = set()
        for index, piece in enumerate(_regroup(self._encode(documents, counts, digests), SHARD_TOKENS)):
            write_shard(self.folder / f"{split}_{index:06d}.bin", piece)
        self.written |= digests
        return counts

    def _encode(self, documents: Sequence[str], counts: dict[str, int], digests: set[bytes]) -> Iterator[np.ndarray]:
        for start in range(0, len(documents), BATCH_DOCUMENTS):
            batch = list(documents[start : start + BATCH_DOCUMENTS])
            for text, ids in zip(batch, self.tokenizer.encode(batch, add_bos=True), strict=True):
                tokens = np.array(ids, np.uint16)
                if np.isin(tokens, self.unknown).any():
                    raise UserError(
                        f"tokenizer: expected one that has pieces or bytes for all of the text, found none for a part "
                        f"of the document that begins {text[:40]!r}"
                    )
                digest = hashlib.sha256(tokens.tobytes()).digest()
                digests.add(digest)
                if digest in self.written and len(tokens) > MIN_TOKENS:
                    continue
                counts["documents"] += 1
                counts["tokens"] += len(tokens)
                counts["text_bytes"] += len(text.encode())
                yield tokens
            self.bar.update(len(batch))


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
