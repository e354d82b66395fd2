"""Laws of shards, streams, byte accounting and datasets."""

import io
import random
import shutil
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from golfcore.base.errors import UserError
from golfcore.base.files import sha256_file
from golfcore.data import datasets, proofs, shards, tokens
from golfcore.data import stream as streams_module
from golfcore.data.contents import write_manifest
from golfcore.data.datasets import check_same, description, open_dataset, train_stream, val_tokens
from golfcore.data.proofs import MIN_TOKENS, check_disjoint
from golfcore.data.shards import open_shard, write_shard
from golfcore.data.stream import TokenStream
from golfcore.data.text import train_tokenizer
from golfcore.data.tokens import Tables, TokenClass, load_tables, load_tokenizer, proven_bytes, target_bytes
from golfcore.evals.bigram import fit_bigram

VOCAB = 320
WORDS = "a cat sat on the mat while naïve bats ate 37 cafés and ½ of 日本 said no".split()
SHARED_FOLDER = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    rng = random.Random(0)
    documents = [" ".join(rng.choices(WORDS, k=30)) for _ in range(60)]
    path = tmp_path_factory.mktemp("tokenizer") / "tiny.model"
    path.write_bytes(train_tokenizer(documents, VOCAB))
    return path


@pytest.fixture(scope="session")
def tokenizer(model):
    return load_tokenizer(model, VOCAB)


@pytest.fixture(scope="session")
def tables(model) -> Tables:
    return load_tables(model, VOCAB)


def make_shards(folder: Path, text: np.ndarray, cuts: list[int], name: str = "x_train_{:06d}.bin") -> list[Path]:
    edges = [0, *sorted(set(cuts)), len(text)]
    paths = [folder / name.format(i + 8) for i in range(len(edges) - 1)]  # the order of names, 9 before 10, matters
    for path, (start, stop) in zip(paths, pairwise(edges), strict=True):
        write_shard(path, text[start:stop])
    return paths


# --- shards


@SHARED_FOLDER
@given(ids=st.lists(st.integers(0, 65535), min_size=1, max_size=50))
def test_a_shard_reads_back_and_has_the_declared_size(tmp_path, ids):
    path = tmp_path / "s.bin"
    write_shard(path, np.array(ids))
    assert open_shard(path, 65536).tolist() == ids
    assert path.stat().st_size == 1024 + 2 * len(ids)
    header = np.fromfile(path, "<i4", 256)
    assert header[:3].tolist() == [20240520, 1, len(ids)] and not header[3:].any()


@pytest.mark.parametrize(
    ("offset", "data", "size", "message"),
    [
        (0, b"\x00", None, "magic number 20240520"),
        (4, b"\x02", None, "version 1, found 2"),
        (8, b"\x00", None, "at least one token"),
        (8, b"\xff\xff\xff\xff", None, "at least one token, found -1"),
        (0, b"", 1024 + 199, "found a truncated file of 1223"),
        (0, b"", 1024 + 202, "found a file with trailing data of 1226"),
        (0, b"", 1000, "header of 1024 bytes, found 1000"),
        (1024 + 2 * 70, b"\x40\x01", None, "below 320, found 320 at position 70"),
    ],
)
def test_every_damage_is_named_with_its_file(tmp_path, monkeypatch, offset, data, size, message):
    monkeypatch.setattr(shards, "CHECK_TOKENS", 16)
    path = tmp_path / "s.bin"
    write_shard(path, np.arange(100))
    with path.open("rb+") as f:
        f.seek(offset)
        f.write(data)
        f.truncate(size if size is not None else 1024 + 200)
    with pytest.raises(UserError, match=message) as error:
        open_shard(path, VOCAB)
    assert str(path) in str(error.value)


def test_ids_over_16_bits_are_refused(tmp_path):
    with pytest.raises(ValueError, match="uint16"):
        write_shard(tmp_path / "s.bin", np.array([1, 65536]))
    assert not (tmp_path / "s.bin").exists()


# --- stream

layouts = st.tuples(
    st.integers(2, 40),  # length of the text
    st.lists(st.integers(1, 39), max_size=4),  # where it is cut into shards
    st.integers(0, 10),  # reserve
)


def make_stream(folder: Path, layout) -> tuple[TokenStream, np.ndarray]:
    length, cuts, reserve = layout
    reserve = min(reserve, length - 1)
    text = np.arange(1, length + 1)
    paths = make_shards(folder, text, [c for c in cuts if c < length])
    return TokenStream(paths, 100, reserve), text[: length - reserve]


@SHARED_FOLDER
@given(layout=layouts, position=st.integers(0, 90), count=st.integers(0, 90))
def test_the_stream_is_the_text_over_and_over(tmp_path, layout, position, count):
    stream, text = make_stream(tmp_path, layout)
    assert stream.read(position, count).tolist() == np.resize(text, position + count)[position:].tolist()


def test_rows_are_a_block_of_text_and_its_successor(tmp_path):
    stream = TokenStream(make_shards(tmp_path, np.arange(1, 98), [10, 11, 60]), 100)
    for position in range(0, 200, 7):  # goes round the text
        block = stream.read(position, 7).tolist()
        x, y = stream.rows(position, 2, 3)
        assert x.dtype == y.dtype == torch.int64 and x.shape == y.shape == (2, 3)
        assert x.flatten().tolist() == block[:-1] and y.flatten().tolist() == block[1:]
    assert stream.position == 0


def test_the_reserve_is_the_end_of_the_text_and_never_streamed(tmp_path):
    paths = make_shards(tmp_path, np.arange(50), [20, 45])
    stream = TokenStream(paths, 100, reserve=12)
    assert stream.tail().tolist() == list(range(38, 50)) and not set(stream.read(0, 500)) & set(stream.tail())
    with pytest.raises(UserError, match="reserve: expected 0 to 49 tokens .* found 50"):
        TokenStream(paths, 100, reserve=50)


@SHARED_FOLDER
@given(layout=layouts, size=st.integers(1, 50))
def test_the_pieces_of_a_pass_are_the_text_once(tmp_path, layout, size):
    text_stream, text = make_stream(tmp_path, layout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams_module, "PIECE_TOKENS", size)
        pieces = list(text_stream.pieces())
        assert max(map(len, pieces)) <= size and np.concatenate(pieces).tolist() == text.tolist()
    for position in range(text_stream.total):
        shard, at = text_stream.place(position)
        assert open_shard(shard, 100)[at] == text_stream.slice(position, position + 1)[0]


# --- tokens


def test_the_tables_follow_the_kind_of_piece(model, tokenizer, tables):
    classes = tokens.token_classes(tokenizer)
    assert tables.base_bytes.dtype == torch.int16 and classes.dtype == np.int8
    assert {len(column) for column in (*tables[:3], classes)} == {VOCAB}
    rows = {
        "<pad>": (0, False, True, TokenClass.CONTROL),
        "<s>": (0, False, True, TokenClass.CONTROL),
        "<unk>": (0, False, True, TokenClass.CONTROL),
        "<0x41>": (1, False, False, TokenClass.BYTE),
        "\u2581": (0, True, False, TokenClass.WORD_START),
        "\u2581and": (3, True, False, TokenClass.WORD_START),
        "at": (2, False, False, TokenClass.WITHIN_WORD),
        "é": (2, False, False, TokenClass.WITHIN_WORD),
        "日": (3, False, False, TokenClass.WITHIN_WORD),
    }
    for piece, row in rows.items():
        i = tokenizer.piece_to_id(piece)
        assert (*(column[i].item() for column in tables[:3]), classes[i]) == row, piece
    assert load_tables(model, VOCAB) is tables  # measured once a process


@settings(deadline=None)
@given(text=st.text(max_size=60) | st.lists(st.sampled_from(WORDS)).map(" ".join))
def test_a_document_costs_the_bytes_of_its_normalized_text(tokenizer, tables, text):
    ids = torch.tensor([tokenizer.eos_id(), *tokenizer.encode(text, add_bos=True)])  # first, BOS itself is predicted
    cost = target_bytes(tables, ids[:-1], ids[1:])
    assert cost[0] == 0
    assert int(cost.sum()) == len(tokenizer.decode(ids.tolist()).encode())


KINDS = {
    "pieces across spaces": {"split_by_whitespace": False},
    "spaces at the end of pieces": {"treat_whitespace_as_suffix": True},
    "spaces at the end, one added": {"treat_whitespace_as_suffix": True, "add_dummy_prefix": True},
    "a space added in front": {"add_dummy_prefix": True},
    "white space kept": {"remove_extra_whitespaces": False, "normalization_rule_name": "identity"},
    "white space kept, one added": {"remove_extra_whitespaces": False, "add_dummy_prefix": True},
    "pieces of white space": {"remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True},
    "no bytes to fall back to": {"byte_fallback": False},
    "unigram": {"model_type": "unigram"},
    "characters": {"model_type": "char"},
    "words": {"model_type": "word", "add_dummy_prefix": True},
    "symbols of the user": {"user_defined_symbols": ["<sep>", "  ", "\t"], "control_symbols": ["<ctl>"]},
    "no start of document": {"bos_id": -1},
}


def other_tokenizer(**options: object) -> bytes:
    rng = random.Random(1)
    lines = [" ".join(rng.choices(WORDS, k=12)) + f"\n\treturn  {i} of the people" for i in range(200)]
    out = io.BytesIO()
    given = {
        "model_type": "bpe", "vocab_size": VOCAB, "byte_fallback": True, "add_dummy_prefix": False, "pad_id": 0,
        "bos_id": 1, "eos_id": 2, "unk_id": 3, "hard_vocab_limit": False, "minloglevel": 2,
    }  # fmt: skip
    SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=out, **{**given, **options})
    return out.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_those_of_the_decoded_text_for_every_kind_of_tokenizer(tmp_path, kind):
    path = tmp_path / "t.model"
    path.write_bytes(other_tokenizer(**KINDS[kind]))
    processor = SentencePieceProcessor(model_file=str(path))
    measured = load_tables(path, processor.vocab_size())
    ids, decoded = [processor.eos_id()], 0
    for document in ("the cat  sat\n\ton the mat", "  naïve <sep> cafés<sep>", "日本 \u2581 \u3000 x ", "", " ", "of"):
        encoded = processor.encode(document, add_bos=processor.bos_id() >= 0, add_eos=True)
        ids += encoded
        decoded += len(processor.decode(encoded).encode())
    for cut in range(1, len(ids)):
        assert proven_bytes(path, measured, [np.array(ids[:cut]), np.array(ids[cut:])]) == decoded


def test_a_tokenizer_that_rewrites_what_it_decodes_is_refused(tmp_path):
    (tmp_path / "rules.tsv").write_text("61 62\t63\n")  # "ab" is decoded as "c"
    path = tmp_path / "t.model"
    path.write_bytes(other_tokenizer(model_type="char", denormalization_rule_tsv=str(tmp_path / "rules.tsv")))
    with pytest.raises(UserError, match="t.model: expected a tokenizer that decodes its pieces as they are"):
        load_tables(path, SentencePieceProcessor(model_file=str(path)).vocab_size())


def test_a_text_whose_bytes_depend_on_more_than_the_token_before_is_refused(model, tokenizer, tables):
    space, word = tokenizer.piece_to_id("\u2581"), tokenizer.piece_to_id("\u2581and")
    with pytest.raises(UserError, match="tiny.model: .* found 4 bytes counted where the decoded text has 3"):
        proven_bytes(model, tables, [np.array([1, space, word])])


def test_a_wrong_tokenizer_is_named(model, tmp_path):
    with pytest.raises(UserError, match="tiny.model: expected a tokenizer of 1024 pieces, found 320"):
        load_tables(model, 1024)
    for content in (b"no model at all", b""):
        (tmp_path / "bad.model").write_bytes(content)
        with pytest.raises(UserError, match="bad.model: expected a SentencePiece model, found a file that is none"):
            load_tables(tmp_path / "bad.model", VOCAB)


# --- datasets


def make_dataset(folder: Path, model: Path, shards_at: str = "", model_at: str = "t.model") -> Path:
    text = np.random.default_rng(1).integers(0, VOCAB, 90).astype(np.uint16)
    make_shards(folder / shards_at, text[:70], [30, 40], "fineweb_train_{:06d}.bin")
    make_shards(folder / shards_at, text[70:], [5], "fineweb_val_{:06d}.bin")
    (folder / model_at).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(model, folder / model_at)
    return folder


def declare(folder: Path, **facts: object) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    hashes = {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}
    write_manifest(folder, hashes, vocab_size=VOCAB, **facts)


@pytest.mark.parametrize("below", [("", ""), ("datasets/fineweb10B_sp1024", "tokenizers")])
def test_a_dataset_opens_in_every_layout(tmp_path, model, below):
    make_dataset(tmp_path, model, below[0], f"{below[1]}/fineweb_1024_bpe.model".lstrip("/"))
    (tmp_path / "reserved.bin").write_bytes(b"something else")
    (tmp_path / "manifest.json").write_text('{"files": {"of": "another schema"}}')
    dataset = open_dataset(tmp_path)
    assert [p.name for p in dataset.train] == [f"fineweb_train_{i:06d}.bin" for i in (8, 9, 10)]
    assert dataset.manifest == {} and dataset.tokenizer.parent == tmp_path / below[1]
    train, val = (np.concatenate([open_shard(p, VOCAB) for p in s]).tolist() for s in (dataset.train, dataset.val))
    found = val_tokens(dataset, VOCAB)
    assert found.dtype == np.uint16 and found.tolist() == val and val_tokens(dataset, VOCAB, 7).tolist() == val[:8]
    stream = train_stream(dataset, VOCAB, reserve=6)
    assert stream.read(0, 64).tolist() == train[:64] and stream.tail().tolist() == train[64:]


def test_the_data_hash_is_of_the_content_alone(tmp_path, model):
    first = open_dataset(make_dataset(tmp_path / "a", model))
    other = make_dataset(tmp_path / "b", model, "deep/down", "x/y.model")
    for shard in (other / "deep/down").iterdir():
        shard.rename(shard.with_name(shard.name.replace("fineweb_", "").replace("0000", "")))
    assert open_dataset(other).data_hash == first.data_hash
    hashes = {first.data_hash}
    for position in (0, 5, 9):  # the first, the middle and the last token
        changed = np.array(open_shard(first.train[1], VOCAB))
        changed[position] = (changed[position] + 1) % VOCAB
        write_shard(first.train[1], changed)
        hashes.add(open_dataset(first.path).data_hash)
    first.train[2].unlink()
    hashes.add(open_dataset(first.path).data_hash)
    first.val[0].rename(first.path / "fineweb_val_000010.bin")  # the same text in another order
    hashes.add(open_dataset(first.path).data_hash)
    first.tokenizer.write_bytes(other_tokenizer())
    hashes.add(open_dataset(first.path).data_hash)
    assert len(hashes) == 7


def refused(folder: Path, message: str, again: bool = False) -> None:
    with pytest.raises(UserError, match=message):
        open_dataset(folder, again)


def test_our_manifest_is_the_identity_and_the_list_of_files(tmp_path, model):
    folder = make_dataset(tmp_path, model)
    assert "no manifest of golfcore's" in description(open_dataset(folder))
    declare(folder)
    dataset = open_dataset(folder)
    assert "no manifest" not in description(dataset)
    assert dataset.data_hash == dataset.manifest["data_hash"] and dataset.manifest["vocab_size"] == VOCAB
    for name, found in (("11", "expected only files"), ("09", "expected the content")):
        write_shard(folder / f"fineweb_train_0000{name}.bin", np.arange(4))
        refused(folder, f"{name}.bin: {found} that manifest.json lists")
        (folder / f"fineweb_train_0000{name}.bin").unlink()
    refused(folder, "000009.bin: expected this file, which manifest.json lists")


def test_what_makes_no_dataset_is_said(tmp_path, model):
    refused(tmp_path / "d", "expected a dataset folder, found no such folder")
    folder = make_dataset(tmp_path / "d", model)
    for read in (val_tokens, train_stream):
        with pytest.raises(UserError, match="expected a tokenizer of 1024 pieces, found 320"):
            read(open_dataset(folder), 1024)
    shutil.copy(model, folder / "second.model")
    refused(folder, r"expected one tokenizer \(\*.model\), found second.model, t.model")
    for path in folder.glob("*.model"):
        path.unlink()
    refused(folder, "expected one tokenizer .* found none")
    shutil.copy(model, folder)
    (folder / "fineweb_val_000008.bin").write_bytes(b"short")
    refused(folder, "val_000008.bin: expected a shard header")
    (folder / "sub").mkdir()
    (folder / "fineweb_val_000008.bin").rename(folder / "sub" / "fineweb_val_000008.bin")
    refused(folder, "expected the shards of one dataset, found shards in ., sub")
    for path in folder.rglob("*val*.bin"):
        path.unlink()
    refused(folder, r"expected val shards \(NAME_val_000000.bin\), found fineweb_train_000008.bin, .*")


def test_a_changed_bit_anywhere_is_refused_naming_the_file(tmp_path, model):
    folder = make_dataset(tmp_path, model)
    declare(folder)
    known = open_dataset(folder).data_hash
    rng = random.Random(0)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for at in [0, len(content) - 1, *(rng.randrange(len(content)) for _ in range(20))]:
            bit = rng.randrange(8)
            if path.name == "manifest.json" and content[at : at + 1] == b"\n" and at == len(content) - 1:
                continue  # white space after the value
            path.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
            refused(folder, f"^{path}")
        path.write_bytes(content)
    assert open_dataset(folder).data_hash == known


def test_contents_are_hashed_and_proven_once_and_again_only_when_asked(tmp_path, model, monkeypatch):
    folder = make_dataset(tmp_path, model)
    declare(folder)
    done: list[str] = []
    hashed, proven = datasets.sha256_file, datasets.prove
    monkeypatch.setattr(datasets, "sha256_file", lambda path: done.append(path.name) or hashed(path))
    monkeypatch.setattr(datasets, "prove", lambda *a, whole: done.append("proof") or proven(*a, whole=whole))
    open_dataset(folder)
    assert len(done) == 7
    open_dataset(folder)
    assert len(done) == 14  # files that have just changed could change again unseen
    monkeypatch.setattr(datasets, "SETTLED_SECONDS", -1.0)
    facts = [open_dataset(folder).facts for _ in range(2)]
    assert len(done) == 21 and facts[0] == facts[1]
    damaged = folder / "fineweb_train_000009.bin"
    times = damaged.stat()
    kept = datasets._kept
    before = kept([folder / "t.model"])
    monkeypatch.setattr(datasets, "_kept", lambda files: before)
    open_dataset(folder, again=True)
    damaged.write_bytes(damaged.read_bytes()[:-2] + b"\7\0")  # and its size, times and inode say nothing
    assert damaged.stat().st_size == times.st_size
    open_dataset(folder)
    refused(folder, "train_000009.bin: expected the content that manifest.json lists", again=True)


def test_without_a_cache_data_open_all_the_same(tmp_path, model, monkeypatch):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", ""):
        monkeypatch.setenv("GOLFCORE_CACHE", str(place))
        assert open_dataset(make_dataset(tmp_path / "d", model)).data_hash
        monkeypatch.setattr(Path, "home", lambda: Path("~nobody-at-all").expanduser())


def small_dataset(folder: Path, model: Path, train: str, val: str) -> Path:
    folder.mkdir()
    shutil.copy(model, folder / "t.model")
    write_shard(folder / train, np.arange(10, 60))
    write_shard(folder / val, np.arange(100, 120))
    return folder


@pytest.mark.parametrize("name", ["", "fineweb_", "pretrain_", "medieval_", "train_", "val_", "x_train_0_"])
def test_the_exact_name_decides_what_is_trained_on_and_the_number_when(tmp_path, model, name):
    train, val = f"{name}train_000000.bin", f"{name}val_0.bin"
    folder = small_dataset(tmp_path / "d", model, train, val)
    for number in (10, 9):
        write_shard(folder / f"{name}train_{number}.bin", np.arange(30, 70 + number))
    dataset = open_dataset(folder)
    assert [p.name for p in dataset.train] == [train, f"{name}train_9.bin", f"{name}train_10.bin"]
    assert [p.name for p in dataset.val] == [val]


@pytest.mark.parametrize("other", ["x_train.bin", "x_train_0_copy.bin", "x_test_0.bin", "xval_0.bin", "train0.bin"])
def test_a_shard_of_no_such_name_is_refused_and_other_files_are_ignored(tmp_path, model, other):
    folder = small_dataset(tmp_path / "d", model, "x_train_0.bin", "x_val_0.bin")
    (folder / other).write_bytes(b"something else")
    assert len(open_dataset(folder).train) == 1
    write_shard(folder / other, np.arange(9))
    refused(folder, f"{other}: expected a shard named NAME_train_000000.bin .* found another name")


def test_shards_of_two_datasets_and_a_file_in_both_sets_are_refused(tmp_path, model):
    folder = small_dataset(tmp_path / "d", model, "x_train_0.bin", "x_val_0.bin")
    shutil.copy(folder / "x_val_0.bin", folder / "x_train_1.bin")
    refused(folder, "x_val_0.bin: expected text that is not trained on, .* content as x_train_1.bin")
    (folder / "x_train_1.bin").rename(folder / "y_train_1.bin")
    refused(folder, "expected the shards of one dataset, found shards of the names 'x', 'y'")
    (folder / "y_train_1.bin").unlink()
    assert len(open_dataset(folder).train) == 1


def test_links_are_followed_and_hidden_files_left_out(tmp_path, model):
    folder = small_dataset(tmp_path / "d", model, "train_0.bin", "val_0.bin")
    shutil.copytree(folder, folder / ".ipynb_checkpoints")
    (folder / "._train_1.bin").write_bytes(b"left by a file manager")
    (folder / "round").symlink_to(folder)
    expected = open_dataset(folder).data_hash
    for name in ("around", "files"):
        (tmp_path / name).mkdir()
    (tmp_path / "linked").symlink_to(folder)
    (tmp_path / "around" / "inner").symlink_to(folder)
    for name in ("t.model", "train_0.bin", "val_0.bin"):
        (tmp_path / "files" / name).symlink_to(folder / name)
    assert {open_dataset(tmp_path / name).data_hash for name in ("linked", "around", "files")} == {expected}
    (folder / "val_0.bin").unlink()
    with pytest.raises(FileNotFoundError, match="files/val_0.bin"):
        open_dataset(tmp_path / "files")


def test_what_was_made_with_other_data_is_said(tmp_path, model):
    dataset = open_dataset(small_dataset(tmp_path / "d", model, "train_0.bin", "val_0.bin"))
    check_same(dataset, dataset.data_hash, dataset.tokenizer_hash, "a.golf")
    check_same(dataset, None, dataset.tokenizer_hash, "a.golf")
    with pytest.raises(UserError, match="d: expected data 111 of a.golf, found [0-9a-f]{12}"):
        check_same(dataset, "111", dataset.tokenizer_hash, "a.golf")
    for data_hash in (None, dataset.data_hash):
        with pytest.raises(UserError, match=r"t.model: expected the tokenizer of a.golf \(sha256 222\), found another"):
            check_same(dataset, data_hash, "222", "a.golf")


def test_the_description_counts_tokens_documents_and_bytes(tmp_path, model, tokenizer):
    folder = small_dataset(tmp_path / "d", model, "train_0.bin", "val_0.bin")
    write_shard(folder / "val_0.bin", np.array(tokenizer.encode(["a cat sat", "on"], add_bos=True)[0] + [1, 310]))
    assert "bytes not counted yet" in description(open_dataset(folder))
    lines = description(open_dataset(folder, again=True)).splitlines()
    bytes_of_val = len("a cat sat") + len(tokenizer.decode([310]).encode())
    assert f"2 documents, {bytes_of_val} bytes decoded" in lines[3] and "overlap: no" in lines[4]


# --- documents

texts = st.lists(st.integers(1, 4), min_size=1, max_size=60)  # 1 separates


def split_at_ones(text: list[int]) -> dict[int, tuple[int, ...]]:
    """The documents by the positions of their first tokens, one token at a time."""
    found: dict[int, tuple[int, ...]] = {0: ()}
    start = 0
    for position, token in enumerate(text):
        if token == 1:
            start = position + 1
        found[start] = () if token == 1 else (*found[start], token)
    return found


@SHARED_FOLDER
@given(train=texts, val=texts, cuts=st.lists(st.integers(1, 59), max_size=3), size=st.integers(1, 30))
def test_shared_documents_are_those_of_a_plain_comparison(tmp_path, train, val, cuts, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams_module, "PIECE_TOKENS", size)
        patch.setattr(proofs, "MIN_TOKENS", 2)
        given = {
            name: TokenStream(make_shards(tmp_path / name, np.array(text), [c for c in cuts if c < len(text)]), 5)
            for name, text in (("train", train), ("val", val))
        }
        known = {document: start for start, document in reversed(split_at_ones(val).items()) if len(document) > 1}
        shared = [(start, known[document]) for start, document in split_at_ones(train).items() if document in known]
        if shared:
            places = [stream.place(at)[1] for stream, at in zip(given.values(), shared[0], strict=True)]
            with pytest.raises(UserError, match=f"found {len(shared)} of .* {places[0]}, .* token {places[1]} of"):
                check_disjoint(given["train"], given["val"], 1)
        else:
            counts = [sum(map(bool, split_at_ones(text).values())) for text in (train, val)]
            assert list(check_disjoint(given["train"], given["val"], 1).values()) == counts


def test_no_more_than_a_piece_of_the_training_text_is_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(streams_module, "PIECE_TOKENS", 1 << 14)
    text = np.random.default_rng(0).integers(0, 100, 2_000_000).astype(np.uint16)  # 4 MB; 16 MB as int64
    paths = make_shards(tmp_path, text, [700_000, 700_001])
    train, val = TokenStream(paths, VOCAB), TokenStream(paths[:1], VOCAB)
    del text
    tracemalloc.start()
    try:
        assert check_disjoint(train, val, 200) == {"train": 1, "val": 1}  # nothing separates: one document of 2M tokens
        fit_bigram(train.pieces(), 100)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_500_000


@pytest.mark.parametrize(("length", "shared"), [(MIN_TOKENS, True), (MIN_TOKENS - 1, False)])
def test_a_validation_document_in_the_training_text_is_refused(tmp_path, model, length, shared):
    rng = np.random.default_rng(0)
    letters = np.flatnonzero(tokens.token_classes(load_tokenizer(model)) == TokenClass.WITHIN_WORD)
    docs = [np.append(1, rng.choice(letters, n)) for n in (90, length, 70, 80)]
    folder = small_dataset(tmp_path / "d", model, "train_0.bin", "val_0.bin")
    write_shard(folder / "train_0.bin", np.concatenate(docs[:2])[:100])  # the document spans two shards
    write_shard(folder / "train_1.bin", np.append(np.concatenate(docs[:2])[100:], docs[2]))
    write_shard(folder / "val_0.bin", np.append(docs[3], docs[1]))
    declare(folder)
    if not shared:
        assert open_dataset(folder).facts.documents == {"train": 3, "val": 2}
        return
    message = "train_0.bin: .* found 1 of them .of 64 tokens or more., the first at token 92, .* token 82 of .*val_0"
    for again in (False, False, True):
        refused(folder, message, again)
