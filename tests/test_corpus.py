"""Laws of the datasets that are made from text, and of the embedded corpus."""

import io
import json
import random
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from sentencepiece import SentencePieceTrainer

from golfcore.base.errors import UserError
from golfcore.base.files import sha256_text
from golfcore.data import corpus, text
from golfcore.data.datasets import open_dataset, val_tokens
from golfcore.data.shards import open_shard
from golfcore.data.text import build, build_folder, cut, folder_documents, split_documents, train_tokenizer
from golfcore.data.tokens import load_tokenizer

VOCAB = 300


def make_documents(count: int = 120) -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices("a cat sat on the mat and said no".split(), k=20)) for _ in range(count)]


def decode(dataset, paths) -> list[str]:
    """The documents in the shards, in order."""
    tokenizer = load_tokenizer(dataset.tokenizer, VOCAB)
    tokens = np.concatenate([open_shard(path, VOCAB) for path in paths])
    starts = np.flatnonzero(tokens == tokenizer.bos_id())
    return [tokenizer.decode(part[1:].tolist()) for part in np.split(tokens, starts)[1:]]


# --- splits


@given(
    documents=st.lists(st.sampled_from("abcdefghijklmnop"), min_size=2, max_size=40).filter(lambda d: len(set(d)) > 1)
)
def test_equal_documents_never_straddle_the_split(documents):
    train, val = split_documents(documents, "here")
    assert train and val and not set(train) & set(val)
    assert sorted(train + val) == sorted(documents)
    backwards = split_documents(documents[::-1], "here")
    assert backwards == (train[::-1], val[::-1])


def test_the_split_depends_on_a_document_alone_and_gives_5_percent():
    documents = [str(i) for i in range(4000)]
    _, val = split_documents(documents, "here")
    assert 150 < len(val) < 250
    half = split_documents(documents[:2000], "here")[1]
    assert set(half) == set(val) & set(documents[:2000])
    with pytest.raises(UserError, match="here: expected at least two different documents to split, found 1"):
        split_documents(["same", "same"], "here")


# --- tokenizer


def test_a_tokenizer_is_a_function_of_the_set_of_documents(monkeypatch):
    documents = make_documents()
    monkeypatch.setattr(text, "SAMPLE_CHARS", sum(map(len, documents)) // 2)
    assert train_tokenizer(documents, VOCAB) == train_tokenizer(documents[::-1], VOCAB)
    assert train_tokenizer(documents, VOCAB) != train_tokenizer([d.upper() for d in documents], VOCAB)


@pytest.mark.parametrize("vocab_size", [1000, 64, 0, -1, 3, 65537, 10**12])
def test_a_vocabulary_that_does_not_suit_the_text_is_said_in_our_words(vocab_size):
    with pytest.raises(UserError, match=f"^vocab_size: expected [^\\n]*, found {vocab_size}$") as error:
        train_tokenizer(make_documents(), vocab_size)
    assert "INTERNAL" not in str(error.value) and ".cc" not in str(error.value)


def test_special_tokens_are_the_competitions(tmp_path):
    (tmp_path / "t.model").write_bytes(train_tokenizer(make_documents(), VOCAB))
    tokenizer = load_tokenizer(tmp_path / "t.model", VOCAB)
    assert [tokenizer.id_to_piece(i) for i in range(5)] == ["<pad>", "<s>", "</s>", "<unk>", "<0x00>"]
    assert tokenizer.decode(tokenizer.encode("日本 12")) == "日本 12"  # bytes where no piece fits
    assert tokenizer.encode("mat")[0] != tokenizer.encode(" and mat")[-1]  # no dummy prefix


# --- build


def test_a_built_dataset_holds_the_documents_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "SHARD_TOKENS", 100)
    monkeypatch.setattr(text, "BATCH_DOCUMENTS", 7)
    documents = make_documents()
    for name, docs in (("d", documents), ("same", documents), ("other", documents[1:])):
        build(docs, tmp_path / name, VOCAB, {"corpus": "test"})
    dataset, same, other = (open_dataset(tmp_path / name) for name in ("d", "same", "other"))
    assert dataset.data_hash == same.data_hash != other.data_hash
    train, val = split_documents(documents, "")
    assert decode(dataset, dataset.train) == train and decode(dataset, dataset.val) == val
    sizes = [len(open_shard(path, VOCAB)) for path in dataset.train]
    assert len(sizes) > 3 and set(sizes[:-1]) == {100} and 0 < sizes[-1] <= 100
    for split, texts, tokens in (("train", train, sum(sizes)), ("val", val, len(val_tokens(dataset, VOCAB)))):
        size = sum(len(t) for t in texts)  # ASCII with single spaces: charged bytes are the text's bytes
        expected = {"documents": len(texts), "tokens": tokens, "bytes": size, "text_bytes": size}
        assert dataset.manifest["splits"][split] == expected
    assert dataset.manifest["sources"] == {"corpus": "test"}


def test_a_build_that_dies_leaves_nothing(tmp_path, monkeypatch):
    def die(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(text, "write_manifest", die)
    with pytest.raises(KeyboardInterrupt):
        build(make_documents(), tmp_path / "d", VOCAB, {})
    assert list(tmp_path.iterdir()) == []


def test_a_build_never_writes_into_a_used_folder(tmp_path):
    (tmp_path / "note").touch()
    with pytest.raises(UserError, match="expected a folder that is new or empty"):
        build(make_documents(), tmp_path, VOCAB, {})
    with pytest.raises(OSError, match="note"):
        build(make_documents(), tmp_path / "note" / "d", VOCAB, {})
    assert [p.name for p in tmp_path.iterdir()] == ["note"]


def test_of_two_builds_at_once_the_first_wins(tmp_path, monkeypatch):
    write_manifest = text.write_manifest

    def meanwhile(*args, **kwargs):
        monkeypatch.setattr(text, "write_manifest", write_manifest)
        build(make_documents(), tmp_path / "d", VOCAB, {"by": "the other"})
        write_manifest(*args, **kwargs)

    monkeypatch.setattr(text, "write_manifest", meanwhile)
    build(make_documents(), tmp_path / "d", VOCAB, {"by": "us"})
    assert open_dataset(tmp_path / "d").manifest["sources"] == {"by": "the other"}
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_documents_that_are_equal_once_normalized_stay_on_one_side(tmp_path):
    documents = [" ".join(four) for four in zip(*[iter(make_documents())] * 4, strict=True)]
    spaced = [text.replace(" ", "   ") for text in documents]
    train, val = split_documents(documents + spaced, "")
    straddling = [text for text in train if " ".join(text.split()) in {" ".join(v.split()) for v in val}]
    assert straddling
    build(documents + spaced, tmp_path / "d", VOCAB, {})
    dataset = open_dataset(tmp_path / "d", again=True)
    assert decode(dataset, dataset.train) == [" ".join(text.split()) for text in train if text not in straddling]
    assert dataset.manifest["splits"]["train"]["documents"] == len(train) - len(straddling)


def test_a_given_tokenizer_is_used_as_it_is_if_it_has_pieces_for_the_text(tmp_path):
    content, given = io.BytesIO(), tmp_path / "t.model"
    SentencePieceTrainer.train(
        sentence_iterator=iter(make_documents()), model_writer=content, model_type="char", vocab_size=30, pad_id=0,
        bos_id=1, eos_id=2, unk_id=3, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    given.write_bytes(content.getvalue())
    size = load_tokenizer(given).vocab_size()
    build(make_documents(), tmp_path / "d", size, {}, given)
    assert (tmp_path / "d" / "tokenizer.model").read_bytes() == content.getvalue()
    with pytest.raises(UserError, match="tokenizer: expected one that has pieces .* document that begins '日本 12'"):
        build([*make_documents(), "日本 12"], tmp_path / "e", size, {}, given)
    with pytest.raises(UserError, match=f"t.model: expected a tokenizer of 512 pieces, found {size}"):
        build(make_documents(), tmp_path / "e", 512, {}, given)
    assert not (tmp_path / "e").exists()


# --- folders


def test_a_folder_of_text_becomes_a_dataset(tmp_path):
    documents = make_documents()
    source = tmp_path / "src"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "b.jsonl").write_text("\n".join(json.dumps({"text": d, "id": 1}) for d in documents) + "\n\n")
    (source / "a.txt").write_text("first file\n")
    (source / "c.md").write_text("# last file\n")
    (source / "empty.txt").write_text(" \n")
    (source / "ignored.rst").write_text("not read")
    assert folder_documents(source) == ["first file\n", "# last file\n", *documents]
    build_folder(source, tmp_path / "d", VOCAB)
    dataset = open_dataset(tmp_path / "d")
    assert len(decode(dataset, dataset.train)) + len(decode(dataset, dataset.val)) == len(documents) + 2
    assert dataset.manifest["sources"] == {"corpus": "folder", "name": "src"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"one\ntwo \xff", "a.txt: expected text, found bytes that are no UTF-8 text .line 2: 0xff"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "a.jsonl, line 2: expected a document as a JSON object, found text"),
        ("a.jsonl", b'\n{"txt": "x"}', "a.jsonl, line 2: expected a document with 'text', found no such key"),
        ("a.jsonl", b'{"text": 3}', "a.jsonl, line 1: expected a document with 'text' as text, found 3"),
        ("a.jsonl", b"[1]", "a.jsonl, line 1: expected a document as a JSON object, .* found a list"),
        ("a.jsonl", b'{"text": "\\ud800"}', "a.jsonl: expected Unicode text, found half of a surrogate pair in '.ud8"),
        ("a.pdf", b"", "expected .txt, .md or .jsonl files, found none"),
        ("a", None, "a: expected a folder of .*, found a file"),
        ("b", None, "b: expected a folder .* found no such folder"),
    ],
)
def test_bad_input_is_named_with_file_and_line(tmp_path, name, content, message):
    (tmp_path / ("a" if content is None else name)).write_bytes(content or b"")
    with pytest.raises(UserError, match=message):
        folder_documents(tmp_path / name if content is None else tmp_path)


def test_hidden_files_are_no_documents_and_links_are_followed(tmp_path):
    source, elsewhere = tmp_path / "src", tmp_path / "elsewhere"
    for folder, name in ((source / ".ipynb_checkpoints", "a.txt"), (source, ".b.txt"), (source, "a"), (elsewhere, "b")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).with_suffix(".txt").write_text(name)
    (source / "linked").symlink_to(elsewhere)
    (source / "z.txt").symlink_to(elsewhere / "b.txt")
    (source / "round").symlink_to(source)
    (source / "folder.txt").mkdir()
    assert folder_documents(source) == ["a", "b", "b"]
    (source / "gone.txt").symlink_to(tmp_path / "nothing")
    with pytest.raises(UserError, match="gone.txt: expected text, found no such file"):
        folder_documents(source)


def test_long_text_is_cut_at_blank_lines_and_nothing_is_lost():
    paragraph = "word " * 500 + "\n"
    pieces = cut((paragraph + " \n") * 30)
    assert "".join(pieces) == (paragraph + " \n") * 30 and len(pieces) == 5
    assert all(text.PIECE_CHARS <= len(piece) < text.PIECE_CHARS + 2600 for piece in pieces[:-1])
    assert all(piece.endswith("\n \n") for piece in pieces)
    assert cut(paragraph * 30) == [paragraph * 30]  # no blank line: one document


# --- the embedded corpus

SOURCE = '''"""Module docstring."""
raise RuntimeError("imported")
class A:
    """Class
        docstring."""
    if True:
        async def f(self):
            """Function."""
            "not a docstring"
    else:
        try:
            pass
        except OSError:
            def g(): "Deep."
def h():
    x = """just a string"""
def broken(): "\\ud800 half a pair"
'''


def install(folder: Path, name: str, version: str, files: dict[str, str]) -> None:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    info = folder / f"{name.replace(chr(45), chr(95))}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "top_level.txt").write_text("\n".join({path.split("/")[0].removesuffix(".py") for path in files}))


def documented(texts: list[str]) -> str:
    return "\n".join(f'def f{i}():\n    """{text}"""' for i, text in enumerate(texts))


@pytest.fixture
def packages(tmp_path, monkeypatch) -> Path:
    """Two installed packages and a module; some docstrings are in both packages."""
    folder = tmp_path / "site"
    documents = [d * 4 for d in make_documents(60)]
    shared = documented(documents[20:40])
    install(folder, "alpha", "1.0", {
        "alpha/__init__.py": 'raise RuntimeError("imported")',
        "alpha/one.py": documented(documents[:20]),
        "alpha/sub/two.py": shared,
        "alpha/tests/test_one.py": documented(["never " * 60]),
        "alpha/broken.py": "def (",
        "alpha/short.py": '"""Too short to be a document."""',
    })  # fmt: skip
    install(folder, "beta-dist", "2.5", {"betamod/__init__.py": shared, "betamod/b.py": documented(documents[40:])})
    install(folder, "gamma", "3", {"gamma.py": documented(["module " * 60])})
    monkeypatch.syspath_prepend(str(folder))
    return tmp_path


def test_docstrings_are_found_and_cleaned_without_running_anything():
    found = corpus.docstrings(SOURCE.encode())
    assert sorted(found) == ["Class\ndocstring.", "Deep.", "Function.", "Module docstring."]
    assert corpus.docstrings(b"def (") == [] and corpus.docstrings(b"\x00") == []


def test_documents_are_distinct_long_and_in_the_order_of_their_hashes(packages):
    found = corpus.documents(("alpha", "betamod", "gamma"))
    assert len(found) == len(set(found)) == 61 and min(map(len, found)) >= corpus.MIN_CHARS
    assert found == sorted(found, key=sha256_text) == corpus.documents(("gamma", "betamod", "alpha"))
    assert not any("never" in text for text in found)
    assert not {"alpha", "betamod", "gamma"} & set(sys.modules)


def test_the_corpus_is_built_once_for_each_set_of_versions_and_a_list_stands_for_its_packages(packages, monkeypatch):
    monkeypatch.setattr(corpus, "LISTS", {"both": ("alpha", "betamod")})
    cache = packages / "cache"
    folder, built = corpus.pydocs(cache, ("both",), VOCAB)
    assert built and corpus.pydocs(cache, ("alpha", "betamod"), VOCAB) == (folder, False)
    dataset = open_dataset(folder)
    assert dataset.manifest["sources"]["packages"] == {"alpha": "1.0", "betamod": "2.5"}
    found = decode(dataset, dataset.train) + decode(dataset, dataset.val)
    assert sorted(found) == sorted(corpus.documents(("alpha", "betamod")))
    info = packages / "site" / "alpha-1.0.dist-info" / "METADATA"
    info.write_text(info.read_text().replace("Version: 1.0", "Version: 1.1"))
    other, built = corpus.pydocs(cache, ("alpha", "betamod"), VOCAB)
    assert built and other != folder


def test_the_large_list_is_installed_with_the_core():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    core = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    brought = {canonicalize_name(Requirement(text).name) for text in metadata.requires("torch") or []}
    assert set(corpus.LISTS["large"]) <= {corpus.STDLIB} | core | brought


def test_the_standard_library_is_a_package_without_its_tests(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda name: str(tmp_path))
    for name in ("argparse.py", "json/a.py", "test/b.py", "json/tests/c.py", "site-packages/d.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert sorted(path.name for path in corpus.package_files("stdlib")) == ["a.py", "argparse.py"]


@pytest.mark.parametrize("name", ["no_such_package", "os.path"])
def test_a_package_that_is_not_installed_is_named(tmp_path, name):
    with pytest.raises(UserError, match=f"packages: expected .* found '{name}'"):
        corpus.pydocs(tmp_path, ("stdlib", name))
