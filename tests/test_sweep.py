"""Sweeps: what trains alike trains once and nothing else does, and a file says what its arms are."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from golfcore import cli, config, files, runtime, sweep
from golfcore.config import Config
from golfcore.data.datasets import open_dataset, train_stream, val_tokens
from golfcore.data.tokens import load_tables
from golfcore.records import RunFolder, open_run
from golfcore.train import loop

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards brew strange golden potions quietly".split()
SMALL = {
    "model.vocab_size": 320,
    "schedule.iterations": 8,
    "schedule.warmdown_steps": 4,
    "data.reserve_tokens": 0,
    "data.val_tokens": 640,
    "ttt.lr_candidates": [],
    "ttt.chunk_tokens": 64,
    "run.val_every": 4,
    "run.checkpoint_every": 4,
}


def quiet(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    for i in range(40):
        files.write_text(folder / "text" / f"{i}.txt", " ".join(rng.choice(WORDS, 300)) + f" end of document {i}.")
    out = folder / "data"
    assert cli.main(["data", "build", str(folder / "text"), "--out", str(out), "--vocab-size", "320"]) == 0
    return out


def small(data: Path, **more: object) -> Config:
    return config.load("smoke", SMALL | {"data.path": str(data)} | {k.replace("__", "."): v for k, v in more.items()})


# -- what training depends on


def changed(value: Any) -> Any:
    """Another value; whether it makes sense is nothing to a hash."""
    if isinstance(value, bool):
        return not value
    return value + (("x",) if isinstance(value, tuple) else "x" if isinstance(value, str) else 1)


def test_every_value_but_those_of_the_test_time_sections_is_in_the_training_hash() -> None:
    """A section or field that is added is in it unless somebody takes it out."""
    base, apart = Config(), set()
    for section in dataclasses.fields(Config):
        values = getattr(base, section.name)
        for field in dataclasses.fields(values) if section.name != "name" else ():
            other = dataclasses.replace(values, **{field.name: changed(getattr(values, field.name))})
            found = dataclasses.replace(base, **{section.name: other})
            assert found.hash != base.hash
            if found.training_hash == base.training_hash:
                apart.add(f"{section.name}.{field.name}")
    read = {"quant.guided_high", "quant.guided_low"}  # either asks training for a record
    names = {f"{s}.{f.name}" for s in ("eval", "ttt", "quant") for f in dataclasses.fields(getattr(base, s))}
    assert apart == names - read
    assert dataclasses.replace(base, name="x").training_hash == base.training_hash


def test_the_quantizer_counts_where_training_reads_it() -> None:
    def same(first: dict[str, object], second: dict[str, object]) -> bool:
        return config.load("smoke", first).training_hash == config.load("smoke", second).training_hash

    assert same({"quant.matrix_bits": 5}, {})
    assert not same({"quant.matrix_bits": 5, "optim.qat": "matrices"}, {"optim.qat": "matrices"})
    assert same({"quant.guided_high": 0.1}, {"quant.guided_high": 0.2, "quant.guided_low": 0.1})
    assert not same({"quant.guided_high": 0.1}, {"quant.guided_high": 0.1, "quant.guided_scale": 0.1})


class Forbidden:
    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"training reads a test-time value, {name}")


def test_training_reads_no_test_time_section(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ttt and eval taken away it trains to the same bits; validation, which only logs, is left out."""
    monkeypatch.setattr(loop._Loop, "_validate", lambda self: None)
    monkeypatch.setattr(loop._Loop, "_warm_up", lambda self: None)
    dataset, rt = open_dataset(data), runtime.start("float32", 1)
    tables = load_tables(dataset.tokenizer, 320)
    stream, val = train_stream(dataset, 320, 0), val_tokens(dataset, 320, 64)
    ends = []
    for cfg in (small(data), dataclasses.replace(small(data), ttt=Forbidden(), eval=Forbidden(), quant=Forbidden())):
        run = open_run(tmp_path / str(len(ends)), small(data), "data", {})
        ends.append(loop.train(cfg, run, stream, val, tables, rt, 2.0))
    assert all(bool((a == b).all()) for a, b in zip(ends[0].banks, ends[1].banks, strict=True))


# -- shared training


def test_arms_that_differ_at_test_time_train_once_and_others_anew(data: Path, tmp_path: Path) -> None:
    arms = {
        "base": small(data),
        "ttt": small(data, ttt__epochs=2),
        "bits": small(data, quant__matrix_bits=5),
        "lr": small(data, optim__matrix_lr=0.01),
    }
    said: list[str] = []
    runs = {run.id: run for run in sweep.run_arms(arms, [1, 2], tmp_path, said.append)}
    assert [line for line in said if line.startswith("train: from")] == [
        "train: from base-s1",
        "train: from base-s1",
        "train: from base-s2",
        "train: from base-s2",
    ]
    sha = {name: files.sha256_file(run.file("weights.safetensors")) for name, run in runs.items()}
    assert sha["base-s1"] == sha["ttt-s1"] == sha["bits-s1"] and sha["base-s2"] == sha["ttt-s2"]
    assert len({sha["base-s1"], sha["base-s2"], sha["lr-s1"], sha["lr-s2"]}) == 4
    base, ttt, bits = (runs[f"{name}-s1"] for name in ("base", "ttt", "bits"))
    assert ttt.stages()["train"]["from"] == "base-s1" and "from" not in base.stages()["train"]
    assert ttt.metrics() == base.metrics() != []
    assert ttt.coverage()["ttt_steps"]["done"] == 2 * base.coverage()["ttt_steps"]["done"]
    assert sum(v["done"] for k, v in bits.coverage().items() if k.startswith("stored as")) == sum(
        v["done"] for k, v in base.coverage().items() if k.startswith("stored as")
    )
    for other in (ttt, bits):  # nothing of the donor's own later stages came along
        first = other.stages()["train"]
        assert first["coverage"] == base.stages()["train"]["coverage"] and "ttt_steps" not in first["coverage"]
        assert len(other.stages()) == len(base.stages())
    alone = sweep.run_arms({"ttt": arms["ttt"]}, [1], tmp_path / "alone", quiet)[0]
    wall = {"elapsed", "seconds"}
    rows = [[{k: v for k, v in row.items() if k not in wall} for row in run.metrics()] for run in (alone, ttt)]
    assert rows[0] == rows[1] and alone.coverage() == ttt.coverage()
    measures = [files.read_json(run.file("results.json"), "")["measures"] for run in (alone, ttt)]
    assert all(measures[0][m]["bpb"] == measures[1][m]["bpb"] for m in measures[0])


def test_training_is_taken_from_whole_runs_on_the_same_data_only(tmp_path: Path) -> None:
    inputs = {"training": "t", "data": "d"}
    donor = open_run(tmp_path / "donor", Config(), "d", {})
    files.write_text(donor.file("weights"), "w")
    donor.log({"kind": "train", "step": 1})
    donor.cover("qat", 1, 1, "values")
    donor.finish("train", inputs, ["weights"], 3.0)
    donor.log({"kind": "later", "step": 1})
    donor.cover("ttt", 1, 1, "values")

    def adopted(name: str, wanted: dict[str, object]) -> RunFolder | None:
        return open_run(tmp_path / name, Config(), "d", {}).adopt("train", wanted, [RunFolder(tmp_path / name), donor])

    assert adopted("other-data", {**inputs, "data": "e"}) is None
    assert adopted("other-training", {**inputs, "training": "u"}) is None
    assert adopted("same", inputs) == donor and adopted("same", inputs) is None  # it has its own now
    same = RunFolder(tmp_path / "same")
    assert same.finished("train", inputs) and same.metrics() == donor.metrics()[:1] and list(same.coverage()) == ["qat"]
    files.write_text(same.file("weights"), "other")
    assert donor.file("weights").read_text() == "w" and not same.finished("train", inputs)
    files.write_text(donor.file("weights"), "damaged")
    assert adopted("late", inputs) is None
