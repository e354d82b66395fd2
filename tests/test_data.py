"""Laws of shards, streams, byte accounting and datasets."""

import random
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from golfcore.base.errors import UserError
from golfcore.base.files import sha256_file
from golfcore.data import datasets, shards, tokens
from golfcore.data.datasets import open_dataset, train_stream, val_tokens, write_manifest
from golfcore.data.shards import open_shard, shard_tokens, write_shard
from golfcore.data.stream import TokenStream
from golfcore.data.text import train_tokenizer
from golfcore.data.tokens import (
    Tables,
    TokenClass,
    count_bytes,
    load_tables,
    load_tokenizer,
    target_bytes,
    token_classes,
)

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


def test_a_missing_shard_and_ids_over_16_bits_are_refused(tmp_path):
    with pytest.raises(UserError, match="none.bin: expected a token shard, found no such file"):
        shard_tokens(tmp_path / "none.bin")
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
@given(layout=layouts, counts=st.lists(st.integers(0, 60), max_size=6))
def test_the_stream_is_the_text_over_and_over(tmp_path, layout, counts):
    stream, text = make_stream(tmp_path, layout)
    taken = np.concatenate([stream.take(n) for n in counts] or [text[:0]])
    assert taken.tolist() == np.resize(text, sum(counts)).tolist()
    assert stream.position == sum(counts)


@SHARED_FOLDER
@given(layout=layouts, before=st.integers(0, 90), after=st.integers(0, 90))
def test_a_resumed_stream_continues_exactly(tmp_path, layout, before, after):
    stream, _ = make_stream(tmp_path, layout)
    stream.take(before)
    resumed = TokenStream(stream.shards, 100, stream.reserve, position=stream.position)
    assert resumed.take(after).tolist() == stream.take(after).tolist()


def test_a_micro_batch_is_a_block_of_text_as_published(tmp_path):
    paths = make_shards(tmp_path, np.arange(1, 98), [10, 11, 60])
    rows, length = 2, 3
    plain, stream = TokenStream(paths, 100), TokenStream(paths, 100)
    for _ in range(30):  # goes round the text
        again = stream.rows(stream.position, rows, length)
        block, (x, y) = plain.take(rows * length + 1).tolist(), stream.batch(rows, length)
        assert x.dtype == y.dtype == torch.int64 and x.shape == y.shape == (rows, length)
        assert x.flatten().tolist() == block[:-1] and y.flatten().tolist() == block[1:]
        assert torch.equal(again[0], x) and torch.equal(again[1], y) and stream.position == plain.position


def test_the_reserve_is_the_end_of_the_text_and_never_streamed(tmp_path):
    text = np.arange(50)
    stream = TokenStream(make_shards(tmp_path, text, [20, 45]), 100, reserve=12)
    assert stream.tail(12).tolist() == text[-12:].tolist() and stream.tail(3).tolist() == [47, 48, 49]
    assert not set(stream.take(500)) & set(stream.tail(12))
    with pytest.raises(ValueError, match="only the last 12 are kept out of training"):
        stream.tail(13)


def test_a_stream_needs_shards_and_text_beyond_the_reserve(tmp_path):
    with pytest.raises(UserError, match="at least one training shard"):
        TokenStream([], 100)
    with pytest.raises(UserError, match="reserve: expected 0 to 49 tokens .* found 50"):
        TokenStream(make_shards(tmp_path, np.arange(50), []), 100, reserve=50)


# --- tokens


def test_the_tables_follow_the_kind_of_piece(model, tokenizer, tables):
    classes = token_classes(model, VOCAB)
    assert tables.base_bytes.dtype == torch.int16 and classes.dtype == torch.int8
    assert {len(column) for column in (*tables, classes)} == {VOCAB}
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
        assert tokenizer.id_to_piece(i) == piece
        found = (int(tables.base_bytes[i]), bool(tables.word_start[i]), bool(tables.boundary[i]), int(classes[i]))
        assert found == row, piece


@settings(deadline=None)
@given(text=st.text(max_size=60) | st.lists(st.sampled_from(WORDS)).map(" ".join))
def test_a_document_costs_the_bytes_of_its_normalized_text(tokenizer, tables, text):
    ids = torch.tensor([tokenizer.eos_id(), *tokenizer.encode(text, add_bos=True)])  # first, BOS itself is predicted
    cost = target_bytes(tables, ids[:-1], ids[1:])
    assert cost[0] == 0
    assert int(cost.sum()) == len(tokenizer.decode(ids.tolist()).encode())


@settings(deadline=None)
@given(words=st.lists(st.sampled_from([w for w in WORDS if w != "½"])))
def test_text_that_round_trips_costs_its_own_bytes(tokenizer, tables, words):
    text = " ".join(words)
    assert count_bytes(tables, np.array(tokenizer.encode(text, add_bos=True))) == len(text.encode())


def test_a_space_is_free_only_after_a_boundary(tokenizer, tables):
    word, at, byte = (tokenizer.piece_to_id(p) for p in ("\u2581and", "at", "<0x41>"))
    previous = torch.tensor([0, 1, 2, 3, byte, at, word])
    assert target_bytes(tables, previous, torch.full_like(previous, word)).tolist() == [3, 3, 3, 3, 4, 4, 4]


def test_counting_in_pieces_counts_every_target_once(tables, monkeypatch):
    ids = np.random.default_rng(0).integers(0, VOCAB, 100).astype(np.uint16)
    whole = count_bytes(tables, ids)
    for size in (1, 7, 33, 99):
        monkeypatch.setattr(tokens, "COUNT_TOKENS", size)
        assert count_bytes(tables, ids) == whole


def test_a_wrong_tokenizer_is_named(model, tmp_path):
    (tmp_path / "bad.model").write_text("no model at all")
    (tmp_path / "empty.model").touch()
    with pytest.raises(UserError, match="tiny.model: expected a tokenizer of 1024 pieces, found 320"):
        load_tables(model, 1024)
    for name, found in (("bad", "is none"), ("empty", "is none"), ("missing", "no such file")):
        with pytest.raises(UserError, match=f"{name}.model: expected a SentencePiece model, found .*{found}"):
            load_tables(tmp_path / f"{name}.model", VOCAB)


# --- datasets


def make_dataset(folder: Path, model: Path, shards_at: str = "", model_at: str = "t.model") -> Path:
    text = np.random.default_rng(1).integers(0, VOCAB, 90).astype(np.uint16)
    make_shards(folder / shards_at, text[:70], [30, 40], "fineweb_train_{:06d}.bin")
    make_shards(folder / shards_at, text[70:], [5], "fineweb_val_{:06d}.bin")
    (folder / model_at).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(model, folder / model_at)
    return folder


def declare(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    write_manifest(folder, {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}, vocab_size=VOCAB)


@pytest.mark.parametrize(
    ("shards_at", "model_at"),
    [
        ("", "tokenizer.model"),
        ("shards", "tokenizer/fineweb_1024_bpe.model"),
        ("datasets/fineweb10B_sp1024", "tokenizers/fineweb_1024_bpe.model"),
    ],
)
def test_a_dataset_opens_in_every_layout(tmp_path, model, shards_at, model_at):
    make_dataset(tmp_path, model, shards_at, model_at)
    (tmp_path / "reserved.bin").write_bytes(b"something else")
    (tmp_path / "manifest.json").write_text('{"files": {"of": "another schema"}}')
    dataset = open_dataset(tmp_path)
    assert [p.name for p in dataset.train] == [f"fineweb_train_{i:06d}.bin" for i in (8, 9, 10)]
    assert dataset.manifest == {} and dataset.tokenizer == tmp_path / model_at
    val = val_tokens(dataset, VOCAB)
    whole = np.concatenate([open_shard(p, VOCAB) for p in dataset.val])
    assert val.dtype == np.uint16 and len(val) == 20 and val.tolist() == whole.tolist()
    whole = np.concatenate([open_shard(p, VOCAB) for p in dataset.train])
    stream = train_stream(dataset, VOCAB, reserve=6)
    assert stream.take(64).tolist() == whole[:64].tolist() and stream.tail(6).tolist() == whole[64:].tolist()


def test_the_data_hash_is_of_the_content_alone(tmp_path, model, monkeypatch):
    monkeypatch.setattr(datasets, "SAMPLE_BYTES", 1026)  # the header and one token
    first = open_dataset(make_dataset(tmp_path / "a", model))
    assert open_dataset(make_dataset(tmp_path / "b", model, "deep/down", "x/y.model")).data_hash == first.data_hash
    hashes = {first.data_hash}
    changed = np.array(open_shard(first.train[1], VOCAB))
    changed[-1] = (changed[-1] + 1) % VOCAB
    write_shard(first.train[1], changed)
    hashes.add(open_dataset(first.path).data_hash)
    first.train[2].unlink()
    hashes.add(open_dataset(first.path).data_hash)
    first.val[1].rename(first.path / "other_val_000009.bin")
    hashes.add(open_dataset(first.path).data_hash)
    first.tokenizer.write_bytes(b"another")
    hashes.add(open_dataset(first.path).data_hash)
    assert len(hashes) == 5


def test_our_manifest_is_the_identity_and_the_list_of_files(tmp_path, model):
    folder = make_dataset(tmp_path, model)
    declare(folder)
    dataset = open_dataset(folder)
    assert dataset.data_hash == dataset.manifest["data_hash"] and dataset.manifest["vocab_size"] == VOCAB
    write_shard(folder / "fineweb_train_000011.bin", np.arange(4))
    with pytest.raises(UserError, match="000011.bin: expected only files that manifest.json lists"):
        open_dataset(folder)
    (folder / "fineweb_train_000011.bin").unlink()
    write_shard(folder / "fineweb_train_000009.bin", np.arange(4))
    with pytest.raises(UserError, match="000009.bin: expected 1044 bytes as manifest.json lists, found 1032"):
        open_dataset(folder)
    (folder / "fineweb_train_000009.bin").unlink()
    with pytest.raises(UserError, match="000009.bin: expected this file, which manifest.json lists"):
        open_dataset(folder)


def test_what_makes_no_dataset_is_said(tmp_path, model):
    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            open_dataset(tmp_path / "d")

    refused("expected a dataset folder, found no such folder")
    folder = make_dataset(tmp_path / "d", model)
    with pytest.raises(UserError, match="expected a tokenizer of 1024 pieces, found 320"):
        val_tokens(open_dataset(folder), 1024)
    with pytest.raises(UserError, match="expected a tokenizer of 1024 pieces, found 320"):
        train_stream(open_dataset(folder), 1024)
    shutil.copy(model, folder / "second.model")
    refused(r"expected one tokenizer \(\*.model\), found second.model, t.model")
    for path in folder.glob("*.model"):
        path.unlink()
    refused("expected one tokenizer .* found none")
    shutil.copy(model, folder)
    (folder / "fineweb_val_000008.bin").write_bytes(b"short")
    refused("val_000008.bin: expected a shard header")
    (folder / "sub").mkdir()
    (folder / "fineweb_val_000008.bin").rename(folder / "sub" / "fineweb_val_000008.bin")
    refused("expected the shards of one dataset, found shards in ., sub")
    for path in folder.rglob("*val*.bin"):
        path.unlink()
    refused(r"expected val shards \(\*val\*.bin\), found fineweb_train_000008.bin, .*")
