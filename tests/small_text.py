"""A small text for whole runs in tests: documents of a few words each, and a dataset of them by the command line."""

from pathlib import Path

import numpy as np

from golfcore import cli

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards brew strange golden potions quietly".split()


def dataset(folder: Path, documents: int = 40, tokenizer: Path | None = None) -> Path:
    """`golfcore data build` of documents of 300 words, vocabulary 320: the folder of tokenizer and shards."""
    text, out, rng = folder / "text", folder / "built", np.random.default_rng(0)
    text.mkdir()
    own = ["--tokenizer", str(tokenizer)] if tokenizer else []
    for i in range(documents):
        (text / f"{i}.txt").write_text(" ".join(rng.choice(WORDS, 300)) + f" end of document {i}.")
    assert cli.main(["data", "build", str(text), "--out", str(out), "--vocab-size", "320", *own]) == 0
    return out
