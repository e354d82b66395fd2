"""Laws of the packed file: it comes back bit for bit, in any process, or is refused with one sentence."""

import copy
import hashlib
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_quant import random_weights, small

from golfcore import config
from golfcore.base.errors import UserError
from golfcore.config import Config
from golfcore.model.params import table
from golfcore.model.weights import flat
from golfcore.quant import artifact
from golfcore.quant.codec import encode
from golfcore.quant.quantize import quantize_weights
from golfcore.quant.stored import Coded, Quantized, dequantize_weights

SETTINGS = {"model.vocab_size": 40, "model.blocks": [0, 1], "model.ve_layers": [1], "quant.fp16_max_numel": 256}


def model(overrides: dict[str, object] | None = None, spread: float = 0.2) -> tuple[Config, Quantized]:
    cfg = small(**{**SETTINGS, **(overrides or {})})
    return cfg, quantize_weights(cfg, random_weights(cfg, spread=spread), None)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    cfg, quantized = model()
    artifact.write(tmp_path / "model.golf", cfg, quantized, {"run": "tiny"})
    return tmp_path / "model.golf"


def fingerprint(tensors: dict[str, torch.Tensor]) -> str:
    parts = [name.encode() + str(tuple(t.shape)).encode() + t.numpy().tobytes() for name, t in sorted(tensors.items())]
    return hashlib.sha256(b"".join(parts)).hexdigest()


# ---- round trip


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"quant.fp16_max_numel": 0, "quant.floor": False},
        {"quant.fp16_max_numel": 1_000_000},  # no codes and no scales at all
        {"model.bigram_rows": 0, "model.ve_layers": [], "model.smear": False, "model.mlp": "swiglu"},
        {"quant.matrix_bits": 3, "quant.table_bits": 4},
        {"model.memory_tokens": 5},
        {"quant.codec": "zstd"},
        {"quant.codec": "lzma", "quant.fp16_max_numel": 1_000_000},
        {"quant.codec": "zlib", "quant.fp16_max_numel": 0},
    ],
)
@pytest.mark.parametrize("spread", [0.0, 0.2])  # 0: an untrained model, in part of zeros
def test_what_is_written_is_read_bit_for_bit(tmp_path, overrides, spread):
    cfg, quantized = model(overrides, spread)
    path = tmp_path / "model.golf"
    size = artifact.write(path, cfg, quantized)
    assert size == path.stat().st_size
    found_cfg, found = artifact.read(path)
    want = flat(dequantize_weights(cfg.model, quantized))
    assert found_cfg == cfg and list(flat(found)) == list(want)
    assert all(torch.equal(tensor, want[name]) for name, tensor in flat(found).items())
    _, stored = artifact.read_quantized(path)
    for name, entry in quantized.items():
        pairs = zip(entry, stored[name], strict=True) if isinstance(entry, Coded) else [(entry, stored[name])]
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs), name


def test_every_float16_comes_back(tmp_path):
    cfg, quantized = model({"model.vocab_size": 4096, "quant.fp16_max_numel": 1_000_000})
    patterns = np.arange(1 << 16, dtype=np.uint16).view(np.int16).reshape(4096, 16)
    quantized["tok_emb"] = torch.from_numpy(patterns).view(torch.float16)
    artifact.write(tmp_path / "model.golf", cfg, quantized)
    found = artifact.read_quantized(tmp_path / "model.golf")[1]["tok_emb"]
    assert np.array_equal(found.view(torch.int16).numpy(), patterns)


def test_equal_models_give_equal_bytes(packed, tmp_path):
    cfg, quantized = model()
    artifact.write(tmp_path / "again.golf", cfg, dict(reversed(quantized.items())), {"run": "tiny"})
    assert (tmp_path / "again.golf").read_bytes() == packed.read_bytes()


def test_a_fresh_process_needs_nothing_but_the_file(packed):
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); import test_artifact as t\n"
        "cfg, weights = t.artifact.read(t.Path(sys.argv[1])); print(cfg.hash, t.fingerprint(t.flat(weights)))"
    )
    command = [sys.executable, "-c", code, packed.name, str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONPATH": str(Path(artifact.__file__).parents[1])}
    found = subprocess.run(command, cwd=packed.parent, env=environment, capture_output=True, text=True, check=True)
    cfg, weights = artifact.read(packed)
    assert found.stdout.split() == [cfg.hash, fingerprint(flat(weights))]


def test_info_accounts_for_every_byte(packed):
    found = artifact.info(packed)
    assert found["bytes"] == packed.stat().st_size == sum(found["components"].values())
    assert found["hash"] == artifact.read(packed)[0].hash and found["extra"] == {"run": "tiny"}
    assert found["streams"]["block0.up"] > 0 and "block0.query" not in found["streams"]
    assert artifact.as_text(found).splitlines()[-1].split() == ["total", f"{found['bytes']:,}", "100.0%"]


# ---- damage


def test_every_damaged_byte_is_noticed(packed):
    whole = packed.read_bytes()
    with packed.open("r+b", buffering=0) as file:
        for position, byte in enumerate(whole):
            os.pwrite(file.fileno(), bytes([byte ^ (1 + position % 255)]), position)
            with pytest.raises(UserError, match=r"model\.golf: expected a golfcore artifact, found "):
                artifact.read(packed)
            os.pwrite(file.fileno(), bytes([byte]), position)
    artifact.read(packed)


def test_every_truncation_is_noticed(packed):
    for length in reversed(range(packed.stat().st_size)):
        os.truncate(packed, length)
        with pytest.raises(UserError, match="found no more than"):
            artifact.read(packed)


def test_each_kind_of_wrong_file_has_its_own_sentence(packed, tmp_path):
    whole = packed.read_bytes()
    cases = {
        b"PK\x03\x04 a zip archive": "found a file of another kind",
        whole[:8] + b"\x02\x00" + whole[10:]: "found version 2 where this program reads version 1",
        whole + b"\n": "found 1 bytes after its end",
        whole[:-1] + bytes([whole[-1] ^ 1]): "found one whose checksum does not match its contents",
    }
    for data, sentence in cases.items():
        packed.write_bytes(data)
        with pytest.raises(UserError, match=sentence):
            artifact.info(packed)
    for missing in (tmp_path / "none.golf", tmp_path):
        with pytest.raises(UserError, match="found no readable file"):
            artifact.read(missing)


def test_a_file_of_an_earlier_version_is_read_to_the_bit():
    """Written before `model.bigram_layout` took the place of `bigram_split`."""
    cfg, weights = artifact.read(Path(__file__).parent / "golden" / "artifact-0.1.golf")
    assert cfg.model.bigram_layout == "split" and cfg.model.vocab_size == 64
    tensors = {name: t for name, t in sorted(flat(weights).items())}
    total = hashlib.sha256(b"".join(name.encode() + t.numpy().tobytes() for name, t in tensors.items())).hexdigest()
    assert total == "d856f2632f428db981217369b2c18c740c296a39559cb00e4f7c82d4b9ae02b5"
    values = config.to_dict(cfg)
    with pytest.raises(UserError, match="model.bigram_layout: expected one of split, shared, frequent, found 7"):
        config.from_dict(values | {"model": {"bigram_split": 7}}, "old")


# ---- lies under a good checksum


def forge(path: Path, change: Callable[[dict[str, Any]], object], payload: Callable[[bytes], bytes] = bytes) -> None:
    """Rewrite an artifact with a changed header and a matching checksum."""
    data = path.read_bytes()
    _, _, n, _ = artifact.PREFIX.unpack(data[: artifact.PREFIX.size])
    end = artifact.PREFIX.size + n
    header = copy.deepcopy(json.loads(zlib.decompress(data[artifact.PREFIX.size : end])))
    change(header)
    seal(path, zlib.compress(json.dumps(header).encode()), payload(data[end : -artifact.DIGEST]))


def seal(path: Path, packed_header: bytes, payload: bytes = b"") -> None:
    size = artifact.PREFIX.size + len(packed_header) + len(payload) + artifact.DIGEST
    body = artifact.PREFIX.pack(artifact.MAGIC, artifact.VERSION, len(packed_header), size) + packed_header + payload
    path.write_bytes(body + hashlib.sha256(body).digest())


def describe(name: str, index: int, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda header: header["streams"][name].__setitem__(index, value)


LIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "huge model": (
        lambda h: h["config"]["model"].update(vocab_size=65536, dim=8192),
        r"more than \d+ weights in \d+ bytes",
    ),
    "empty model": (
        lambda h: h["config"]["model"].update(vocab_size=-1),
        "model.vocab_size: expected at least 1",
    ),
    "unknown key": (lambda h: h["config"]["model"].update(vocab=1), "unknown key 'vocab'"),
    "other model": (lambda h: h["config"]["model"].update(vocab_size=41), "where the model has"),
    "no config": (lambda h: h.pop("config"), "another header"),
    "list": (lambda h: h.update(streams=[]), "another header"),
    "missing stream": (lambda h: h["streams"].pop("halves.low"), "bytes that no stream describes"),
    "strange stream": (lambda h: h["streams"].update(smear=[0, [], 0]), "streams of another model"),
    "short description": (lambda h: h["streams"].update(tok_emb=[1]), "no description of the stream tok_emb"),
    "no description": (lambda h: h["streams"].update(tok_emb=None), "no description of the stream tok_emb"),
    "words past the end": (describe("tok_emb", 2, 10**9), "longer than the file"),
    "negative words": (describe("tok_emb", 2, -1), "no counts of tok_emb"),
    "fractional counts": (describe("tok_emb", 1, [640.0]), "no counts of tok_emb"),
    "many symbols": (describe("tok_emb", 1, [10**12]), "values of tok_emb where the model has 640"),
    "negative counts": (describe("tok_emb", 1, [641, -1]), "no counts of tok_emb"),
    "wide symbols": (describe("tok_emb", 1, [320, *[0] * 300, 320]), "do not fit a byte"),
    "far symbols": (describe("tok_emb", 0, 10**6), "do not fit a byte"),
}


BLOB_LIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no description": (lambda h: h["streams"].update(tok_emb=None), "no description of the stream tok_emb"),
    "another codec's": (lambda h: h["streams"].update(tok_emb=[0, [640], 9]), "no description of the stream tok_emb"),
    "other codec": (lambda h: h["config"]["quant"].update(codec="ans"), "no description of the stream"),
    "bytes past the end": (describe("tok_emb", 1, 10**9), "longer than the file"),
    "negative bytes": (describe("tok_emb", 1, -1), "no counts of tok_emb"),
    "fractional size": (describe("tok_emb", 0, 640.0), "no counts of tok_emb"),
    "many symbols": (describe("tok_emb", 0, 10**12), "values of tok_emb where the model has 640"),
    "fewer bytes": (describe("tok_emb", 1, 0), "bytes that no stream describes"),
    "unknown codec": (lambda h: h["config"]["quant"].update(codec="arj"), "expected one of ans, zstd, lzma, zlib"),
}


COMPRESSORS = ("zstd", "lzma", "zlib")


@pytest.mark.parametrize(
    ("codec", "lie"), [("ans", lie) for lie in LIES] + [(codec, lie) for codec in COMPRESSORS for lie in BLOB_LIES]
)
def test_a_lying_header_is_refused(tmp_path, codec, lie):
    path = tmp_path / "model.golf"
    artifact.write(path, *model({"quant.codec": codec}))
    change, sentence = (LIES if codec == "ans" else BLOB_LIES)[lie]
    forge(path, change)
    with pytest.raises(UserError, match=sentence):
        artifact.read(path)


def test_a_model_of_equal_weights_takes_no_more_memory_than_its_file_allows(tmp_path):
    """67 million weights that are all 0, in streams without a byte."""
    path = tmp_path / "model.golf"
    artifact.write(path, *model())

    def grown(header: dict[str, Any]) -> None:
        header["config"]["model"].update(vocab_size=65536)
        header["streams"]["tok_emb"] = [0, [65536 * header["config"]["model"]["dim"] * 64], 0]
        header["config"]["model"].update(dim=1024, n_heads=8, n_kv_heads=4)

    forge(path, grown)
    with pytest.raises(UserError, match=r"a model of more than 8\d{6} weights in \d+ bytes"):
        artifact.read(path)


LEAVES = st.one_of(st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5), st.none(), st.booleans())
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_other_value_anywhere_in_a_header_is_refused_or_read(packed, data):
    path = packed.with_name("forged.golf")
    path.write_bytes(packed.read_bytes())

    def changed(header: dict[str, Any]) -> None:
        where: Any = header
        while True:
            key = data.draw(st.sampled_from(sorted(where) if isinstance(where, dict) else range(len(where))))
            inner = where[key]
            if not (isinstance(inner, dict | list) and inner) or data.draw(st.booleans()):
                where[key] = data.draw(TREES)
                return
            where = inner

    forge(path, changed)
    try:
        cfg, weights = artifact.read(path)
    except UserError as e:
        assert str(path) in str(e)
        return
    assert {n: t.shape for n, t in flat(weights).items()} == {p.name: p.shape for p in table(cfg.model) if p.exported}


@pytest.mark.parametrize("codec", COMPRESSORS)
def test_compressed_bytes_of_something_else_are_refused(tmp_path, codec):
    """Under a good checksum: noise, a stream that holds more than the model has, and the bytes of another codec."""
    path = tmp_path / "model.golf"
    cfg, quantized = model({"quant.codec": codec})
    other = {"zstd": "zlib", "lzma": "zstd", "zlib": "lzma"}[codec]
    artifact.write(path, cfg, quantized)
    names = sorted(artifact.info(path)["streams"])
    for packed in (
        b"noise" * 3,
        *(encode(np.zeros(n, np.int8), c).payload for n, c in ((9999, codec), (640, other))),
    ):
        artifact.write(path, cfg, quantized)

        def cut(payload: bytes, packed: bytes = packed) -> bytes:
            sizes = artifact.info(path)["streams"]
            start = sum(sizes[n] for n in names[: names.index("tok_emb")])
            return payload[:start] + packed + payload[start + sizes["tok_emb"] :]

        forge(path, describe("tok_emb", 1, len(packed)), cut)
        with pytest.raises(UserError, match="a stream tok_emb that does not decode"):
            artifact.read(path)


def test_an_artifact_from_before_there_was_a_choice_opens(packed):
    """Its configuration names no codec, and none of the fields of the other systems."""
    want = artifact.read(packed)

    def forget(header: dict[str, Any]) -> None:
        for section, keys in {"quant": ("codec", "rounding", "lowest", "float16"), "model": ("memory_tokens",)}.items():
            for key in keys:
                del header["config"][section][key]

    forge(packed, forget)
    cfg, found = artifact.read(packed)
    assert cfg == want[0] and all(torch.equal(a, b) for a, b in zip(found.banks, want[1].banks, strict=True))


def test_words_that_are_no_code_are_refused_or_give_symbols_of_the_model(packed):
    forge(packed, lambda h: None, payload=lambda words: bytes(len(words)))
    with pytest.raises(UserError, match="does not decode"):
        artifact.read(packed)
    forge(packed, lambda h: None, payload=lambda words: b"\x7f" * len(words))
    _, found = artifact.read_quantized(packed)
    assert isinstance(found["tok_emb"], Coded) and found["tok_emb"].codes.shape == (40, 16)


@pytest.mark.parametrize("text", [b"[" * 900_000, b"{", b"\xff", b"[]", b"1" * 10_000])
def test_a_header_that_is_a_trap_is_refused(packed, text):
    seal(packed, zlib.compress(text))
    with pytest.raises(UserError, match="header"):
        artifact.read(packed)


def test_no_more_of_a_header_is_unpacked_than_its_limit(packed):
    forge(packed, lambda header: header["extra"].update(text="x" * artifact.MAX_HEADER))
    with pytest.raises(UserError, match="header"):
        artifact.read(packed)


def test_too_large_an_extra_is_refused(tmp_path):
    with pytest.raises(UserError, match="expected a header of at most"):
        artifact.write(tmp_path / "model.golf", *model(), {"text": "x" * artifact.MAX_HEADER})
    assert not list(tmp_path.iterdir())


# ---- the limit


def test_the_code_that_counts_is_what_a_reading_process_imports():
    """The files found by their import statements include every module of ours that importing the readers loads."""
    readers = ", ".join(artifact.READERS)
    code = (
        f"import sys, {readers}; print([m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'golfcore'])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {Path(file) for file in eval(found.stdout)}
    files = artifact.package_files(*artifact.READERS)
    assert loaded <= set(files)
    assert {file.name for file in files} >= {"artifact.py", "codec.py", "forward.py", "schema.py"}
    assert {file.name for file in files}.isdisjoint({"gptq.py", "build.py", "loop.py"})
    assert artifact.code_bytes() == sum(len(file.read_bytes()) for file in files)


def test_the_limit_is_inclusive():
    assert artifact.fits(15_000_000, 1_000_000, 16_000_000)
    assert not artifact.fits(15_000_000, 1_000_001, 16_000_000)
