"""What is proven of a dataset's content, once for each content: no shared documents, and bytes that can be counted."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sentencepiece import SentencePieceProcessor

from golfcore.data.contents import recall, remember
from golfcore.data.documents import MIN_TOKENS, Overlap, find_overlap
from golfcore.data.stream import TokenStream
from golfcore.data.tokens import load_tables, open_tokenizer, proven_bytes

RULES = 1  # raised when a proof changes, so that what was proven before is proven again
SAMPLE_TOKENS = 1 << 18  # the bytes of so many tokens of each split are proven whenever new content is opened


class Facts(NamedTuple):
    documents: dict[str, int]  # split -> documents
    overlap: Overlap
    bytes: dict[str, int]  # split -> bytes of its text; {} until the whole text was counted
    min_tokens: int = MIN_TOKENS

    def places(self, train: Sequence[Path], val: Sequence[Path]) -> tuple[tuple[Path, int], tuple[Path, int]]:
        """Shard and position of the first shared document, in training and in validation."""
        ids = 1 << 16
        return TokenStream(train, ids).place(self.overlap.train_at), TokenStream(val, ids).place(self.overlap.val_at)


def prove(model: Path, train: Sequence[Path], val: Sequence[Path], data_hash: str, whole: bool) -> Facts:
    """The facts of a dataset, from the cache if they were proven of this `data_hash` before.

    `whole` proves again, and the bytes on the whole text. UserError: token ids that are not the tokenizer's; a
    tokenizer whose tables do not count the bytes of the decoded text.
    """
    known = {} if whole else recall("datasets", data_hash)
    if known.get("rules") == RULES:
        return Facts(known["documents"], Overlap(*known["overlap"]), known["bytes"])
    tokenizer = open_tokenizer(model)
    vocab_size = tokenizer.vocab_size()
    tables = load_tables(model, vocab_size)
    texts = {"train": TokenStream(train, vocab_size), "val": TokenStream(val, vocab_size)}
    counted = {
        split: proven_bytes(model, tables, text.pieces(None if whole else SAMPLE_TOKENS))
        for split, text in texts.items()
    }
    overlap, documents = find_overlap(texts["train"], texts["val"], _separator(tokenizer, texts["val"]))
    facts = Facts(documents, overlap, counted if whole else {})
    remember(
        "datasets", data_hash, {"rules": RULES, "documents": documents, "overlap": list(overlap), "bytes": facts.bytes}
    )
    return facts


def _separator(tokenizer: SentencePieceProcessor, text: TokenStream) -> int:
    """The token between documents: the start of a document, else its end; -1 for a text that has neither."""
    sample = text.slice(0, min(SAMPLE_TOKENS, text.total))
    ends = (tokenizer.bos_id(), tokenizer.eos_id())
    return next((token for token in ends if token >= 0 and (sample == token).any()), -1)
