"""Sweeps: what trains alike trains once and nothing else does, and a file says what its arms are."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from small_text import dataset
from tiny import logged

from golfcore import cli, config
from golfcore.analysis import claims, compare
from golfcore.analysis.claims import CONFIRMED, OPEN, OPPOSITE, REFUTED, SAME, UNPUBLISHED
from golfcore.analysis.frames import one, read_csv
from golfcore.base import files, runtime
from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.config import Config
from golfcore.data.datasets import open_dataset, train_stream, val_tokens
from golfcore.data.tokens import load_tables
from golfcore.plots import figures as draw
from golfcore.runs import pipeline, sweep
from golfcore.runs.folder import open_run
from golfcore.runs.sweep import Sweep
from golfcore.train import loop
from golfcore.train.state import TrainingData

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


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("text"))


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
            assert (found.hash == base.hash) == (not field.metadata.get("hashed", True))
            if found.training_hash == base.training_hash:
                apart.add(f"{section.name}.{field.name}")
    read = {"quant.guided_high", "quant.guided_low"}  # either asks training for a record
    names = {f"{s}.{f.name}" for s in ("eval", "ttt", "quant") for f in dataclasses.fields(getattr(base, s))}
    unhashed = {
        "data.path",
        "run.graphs",
        "run.val_every",
        "run.log_every",
        "run.checkpoint_every",
        "run.keep_every",
    }  # they change no number
    assert apart == names - read | unhashed
    assert dataclasses.replace(base, name="x").training_hash == base.training_hash


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({"quant.matrix_bits": 5}, {}, True),
        ({"quant.matrix_bits": 5, "optim.qat": "matrices"}, {"optim.qat": "matrices"}, False),
        ({"quant.guided_high": 0.1}, {"quant.guided_high": 0.2, "quant.guided_low": 0.1}, True),
        ({"quant.guided_high": 0.1}, {"quant.guided_high": 0.1, "quant.guided_scale": 0.1}, False),
    ],
)
def test_the_quantizer_counts_where_training_reads_it(first: dict, second: dict, same: bool) -> None:
    assert (config.load("smoke", first).training_hash == config.load("smoke", second).training_hash) == same


class Forbidden:
    """A section of which only `known` may be read."""

    def __init__(self, **known: object) -> None:
        vars(self).update(known)

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
    quant = Forbidden(guided_high=0.0, guided_low=0.0)  # whether to record for guided bits is in the training hash
    for cfg in (small(data), dataclasses.replace(small(data), ttt=Forbidden(), eval=Forbidden(), quant=quant)):
        run = open_run(tmp_path / str(len(ends)), small(data), "data", {})
        ends.append(loop.train(cfg, run, TrainingData(stream, val, tables, 2.0, {}), rt))
    assert all(bool((a == b).all()) for a, b in zip(ends[0].banks, ends[1].banks, strict=True))


# -- shared training

FILE = """
title = "What is a test for?"
base = "smoke"
seeds = [1, 2]
published_sd = 0.001
all = { SMALL }
[arms.base]
published = 1.2
[arms.ttt]
label = "two epochs"
set = { ttt.epochs = 2 }
published = 1.1
[arms.bits]
set = { quant.matrix_bits = 5 }
published_note = "killed"
[arms.lr]
on = "ttt"
set = { optim.matrix_lr = 0.01 }
published = 1.1005
unknown = ["its momentum"]
"""


@pytest.fixture(scope="module")
def file(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweep") / "four.toml"
    settings = ", ".join(f"{key} = {value}" for key, value in SMALL.items())
    files.write_text(path, FILE.replace("SMALL", f"{settings}, data.path = '{data}'"))
    return path


class Done(NamedTuple):
    plan: Sweep
    runs: dict[str, RunFolder]
    said: list[str]
    table: pd.DataFrame


@pytest.fixture(scope="module")
def done(file: Path) -> Done:
    said: list[str] = []
    plan = sweep.load(file)
    runs = sweep.run_arms(plan.configs, plan.seeds, file.parent / "runs", said.append)
    table = claims.suite(plan, compare.arms_of([run.path for run in runs]))
    return Done(plan, {run.id: run for run in runs}, said, table)


def test_arms_that_differ_at_test_time_train_once_and_others_anew(done: Done) -> None:
    runs = done.runs
    taken = [line for line in done.said if line.startswith("train: from")]
    assert taken == [f"train: from base-s{seed}" for seed in (1, 1, 2, 2)]
    sha = {name: files.sha256_file(run.file("weights.safetensors")) for name, run in runs.items()}
    assert sha["base-s1"] == sha["ttt-s1"] == sha["bits-s1"] and sha["base-s2"] == sha["ttt-s2"]
    assert len({sha["base-s1"], sha["base-s2"], sha["lr-s1"], sha["lr-s2"]}) == 4
    base = runs["base-s1"]
    assert "from" not in base.stages()["train"] and "from" not in runs["lr-s1"].stages()["train"]
    for other in (runs["ttt-s1"], runs["bits-s1"]):  # nothing of the donor's own later stages came along
        first = other.stages()["train"]
        assert first["from"] == "base-s1" and first["coverage"] == base.stages()["train"]["coverage"]
        assert "ttt_steps" not in first["coverage"] and "ttt_steps" in base.coverage()
        assert other.metrics() == base.metrics() != [] and len(other.stages()) == len(base.stages())
    assert runs["ttt-s1"].coverage()["ttt_steps"]["done"] == 2 * base.coverage()["ttt_steps"]["done"]


def test_a_run_with_taken_weights_is_the_run_that_trains_itself(done: Done, tmp_path: Path) -> None:
    taken = done.runs["ttt-s1"]
    alone = sweep.run_arms({"ttt": done.plan.configs["ttt"]}, [1], tmp_path, lambda text: None)[0]
    assert logged(alone.path) == logged(taken.path) and alone.coverage() == taken.coverage()
    bpb = [{m: row["bpb"] for m, row in run.results()["measures"].items()} for run in (alone, taken)]
    assert bpb[0] == bpb[1]


def test_a_run_that_keeps_weights_on_the_way_trains_itself(done: Done, tmp_path: Path) -> None:
    """Another run that trains alike has none to give: its weights would come without those of the steps."""
    kept = config.override(done.plan.configs["base"], {"run.keep_every": 4, "run.seed": 1}, "kept")
    assert kept.training_hash == config.of_run(done.runs["base-s1"]).training_hash
    run = pipeline.run(kept, tmp_path / "kept", lambda text: None, tuple(done.runs.values()))
    assert "from" not in run.stages()["train"] and len(list(run.path.glob("steps/*"))) == 2
    assert logged(run.path) == logged(done.runs["base-s1"].path)


def test_training_is_taken_from_whole_runs_on_the_same_data_only(tmp_path: Path) -> None:
    inputs = {"training": "t", "data": "d"}
    donor = open_run(tmp_path / "donor", Config(), "d", {})
    files.write_text(donor.file("weights"), "w")
    donor.log({"kind": "train", "step": 1, "loss": 1.0, "bpb": 1.0, "elapsed": 1.0, "tokens": 1})
    donor.cover("qat", 1, 1, "values")
    donor.finish("train", inputs, ["weights"], 3.0)
    donor.log({"kind": "later", "step": 1})
    donor.cover("ttt", 1, 1, "values")

    def adopted(name: str, wanted: dict[str, object]) -> str | None:
        return open_run(tmp_path / name, Config(), "d", {}).adopt("train", wanted, (RunFolder(tmp_path / name), donor))

    assert adopted("other-data", {**inputs, "data": "e"}) is None
    assert adopted("other-training", {**inputs, "training": "u"}) is None
    assert adopted("same", inputs) == "donor" and adopted("same", inputs) is None  # it has its own now
    same = RunFolder(tmp_path / "same")
    assert same.finished("train", inputs) and same.metrics() == donor.metrics()[:1] and list(same.coverage()) == ["qat"]
    third = open_run(tmp_path / "third", Config(), "d", {})
    assert third.adopt("train", inputs, (same,)) == "donor" == third.stages()["train"]["from"]  # who did the work
    files.write_text(same.file("weights"), "other")
    assert donor.file("weights").read_text() == "w" and not same.finished("train", inputs)
    files.write_text(donor.file("weights"), "damaged")
    assert adopted("late", inputs) is None


# -- files


def test_every_sweep_that_comes_along_loads_at_every_size() -> None:
    for name in sweep.sweep_names():
        arms = {size: sweep.load(name, size).arms for size in config.size_names()}
        assert len({tuple(found) for found in arms.values()}) == 1
        assert all(arm.published is not None or arm.published_note for arm in arms["full"].values() if arm.unknown)


def test_hours_count_each_training_once_at_the_published_step_time() -> None:
    assert sweep.load("ttt-protocols").gpu_hours(3) == pytest.approx(3 * 7020 * 0.664 / 3600)  # all arms train alike
    assert sweep.load("bucket-layouts").gpu_hours(3) == pytest.approx(5 * 3 * 7020 * 0.664 / 3600)
    plan = sweep.load("pr398-ablation")
    trained = {cfg.training_hash for cfg in plan.configs.values()}
    assert plan.gpu_hours(3) == pytest.approx(3 * len(trained) * 600 * 8 / 3600)  # on eight GPUs, by the clock
    assert sweep.load("ttt-protocols", "demo").gpu_hours(3) is None


def test_an_arm_adds_to_the_one_it_is_on(file: Path, data: Path) -> None:
    plan = sweep.load(file)
    said = plan.changes().set_index("arm")
    assert list(said["on"]) == ["", "base", "base", "ttt"] and said["changes"]["ttt"] == "ttt.epochs 1 -> 2"
    assert "epochs" not in said["changes"]["lr"]
    assert plan.reference.name == "base" and [arm.on for arm in plan.arms.values()] == ["", "base", "base", "ttt"]
    assert plan.arms["lr"].config.hash == small(data, ttt__epochs=2, optim__matrix_lr=0.01).hash
    assert list(plan.only(["lr"]).arms) == ["base", "ttt", "lr"] and list(plan.only(["bits"]).arms) == ["base", "bits"]
    assert sweep.load(file, overrides={"optim.matrix_lr": 0.5}).arms["lr"].config.optim.matrix_lr == 0.01
    assert sweep.default_out(plan) == sweep.default_out(plan.only(["bits"]))


def test_a_size_goes_over_what_all_sizes_have(tmp_path: Path) -> None:
    arms = "[arms.a]\n[arms.b]\nset = { ttt.lr = 1.0, ttt.epochs = 7 }\nsize.demo = { ttt.lr = 2.0 }\n"
    path = tmp_path / "s.toml"
    path.write_text("base = 'smoke'\nall = { ttt.batch_seqs = 4 }\n[size.demo]\n'ttt.batch_seqs' = 2\n" + arms)
    full, demo = (sweep.load(path, size).configs["b"] for size in ("full", "demo"))
    assert (full.ttt.lr, full.ttt.epochs, full.ttt.batch_seqs) == (1.0, 7, 4)
    assert (demo.ttt.lr, demo.ttt.epochs, demo.ttt.batch_seqs) == (2.0, 7, 2)
    assert full.name == demo.name == "b" and demo.data.seq_len == 256


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[arms.a]", "expected base, found none"),
        ("base = 'smoke'\nseed = [1]\n[arms.a]", "unknown key 'seed'; did you mean 'seeds'?"),
        ("base = 'smoke'\nseeds = ['x']\n[arms.a]", "seeds: expected int, found 'x'"),
        ("base = 'smokey'\n[arms.a]", "unknown preset 'smokey'"),
        ("base = 'smoke'\narms = 3", "arms: expected a table, found 3"),
        ("base = 'smoke'\n[arms.a]\nlable = 'x'", r"[arms.a]: unknown key 'lable'; did you mean 'label'?"),
        ("base = 'smoke'\n[arms.a]\nset = { ttt.epoch = 1 }", "unknown key 'epoch'; did you mean 'epochs'?"),
        ("base = 'smoke'\n[arms.a]\nset = 3", "set: expected a table, found 3"),
        ("base = 'smoke'\n[arms.a]\nsize.dmo = {}", "unknown key 'dmo'; did you mean 'demo'?"),
        ("base = 'smoke'\n[arms.a]\non = 'b'", "on: expected an arm above it (there is none), found 'b'"),
        ("base = 'smoke'\n[arms.a]\n[arms.b]\non = 'c'", "on: expected an arm above it (a), found 'c'"),
        ("base = 'smoke'\n[arms.a]\n[arms.b]", "[arms.b]: expected an arm that differs from a at size full"),
        ("base = 'smoke'\n[arms.a", "expected a sweep as TOML, found text that does not parse"),
    ],
)
def test_a_mistake_in_a_file_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(UserError) as e:
        sweep.load(path)
    assert said in str(e.value) and "wrong.toml" in str(e.value) and "\n" not in str(e.value)


def test_a_sweep_that_is_not_there_is_refused(tmp_path: Path) -> None:
    wanted = {"pr398-ablatoin": "did you mean 'pr398-ablation'", tmp_path / "gone.toml": "a sweep, found no such file"}
    for name, said in wanted.items():
        with pytest.raises(UserError, match=said):
            sweep.load(name)
    with pytest.raises(UserError, match=f"sweeps: unknown sweep ''; known: {', '.join(sweep.sweep_names())}"):
        sweep.load("")


@pytest.mark.parametrize("text", ["1, x", "1,1", ",", "1,,2"])
def test_seeds_and_arms_that_are_none_are_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match="seeds: expected different whole numbers with commas between them"):
        sweep.seeds_in(text)
    with pytest.raises(UserError, match="expected different names with commas between them"):
        sweep.names_in(text.replace("x", "1"))
    with pytest.raises(UserError, match="seeds: expected"):
        sweep.seeds_in("")
    assert sweep.seeds_in("", (4, 5)) == (4, 5) and sweep.seeds_in(" 3, 1") == (3, 1)
    assert sweep.names_in("", ["a"]) == ("a",) and sweep.names_in("a, b") == ("a", "b")


META = {  # arm -> what it is with exp101's objective
    "meta-placebo": "meta.inner_steps 1 -> 0",
    "meta-exp106": "model.meta_sgd False -> True, meta.split time -> batch, meta.delta_weight 0.0 -> 0.3",
    "meta-next-chunk": "meta.split time -> next-chunk",
    "meta-second-order": "meta.order first -> second",
}


def test_the_meta_arms_are_the_published_systems() -> None:
    plan = sweep.load("meta-ttt")
    for arm, preset in (("meta-none", "exp105a"), ("meta-exp101", "exp101"), ("meta-exp106", "exp106")):
        ours, theirs = plan.configs[arm], config.load(preset)
        assert ours.model == theirs.model and ours.meta == theirs.meta and ours.ttt == theirs.ttt
    for size in config.size_names():
        arms = sweep.load("meta-ttt", size).configs
        same = {dataclasses.replace(c, name="", meta=Config().meta, model=Config().model).hash for c in arms.values()}
        assert len(same) == 1 and all(c.schedule.clock == "steps" for c in arms.values())
        base, exp101 = arms["meta-none"], arms["meta-exp101"]
        assert not base.meta.enabled and config.differences(base, exp101) == "meta.enabled False -> True"
        for arm, change in META.items():
            assert config.differences(exp101, arms[arm], most=20) == change


# -- against the publication


def test_the_table_holds_published_and_measured_differences(done: Done) -> None:
    bpb = {i: run.results()["measures"] for i, run in done.runs.items()}
    base, ttt, bits, lr = done.table.to_dict("records")
    assert [row["verdict"] for row in (base, bits)] == [claims.REFERENCE, UNPUBLISHED]
    assert ttt["published_difference"] == pytest.approx(-0.1) and ttt["noise"] == pytest.approx(0.00277, 1e-2)
    paired = [bpb[f"lr-s{s}"]["ttt"]["bpb"] - bpb[f"ttt-s{s}"]["ttt"]["bpb"] for s in (1, 2)]
    assert lr["difference"] == pytest.approx(np.mean(paired)) and lr["pairs"] == 2 and lr["over"] == "seeds and text"
    assert lr["low"] < lr["difference"] < lr["high"] and lr["ratio"] == pytest.approx(lr["difference"] / 0.0005)
    assert ttt["sliding_difference"] == ttt["sliding_low"] == ttt["sliding_high"] == 0  # the same weights
    assert base["bpb"] == np.mean([base["bpb_1"], base["bpb_2"]]) == base["score_first"]
    assert base["legality"] == "score-first" and claims.is_legal(base)
    assert ttt["trained_in"] == "base-s1 base-s2" and lr["runs"] == lr["trained_in"] == "lr-s1 lr-s2"
    assert base["parameters"] > 0 and base["train_tokens"] == 8 * done.plan.reference.config.optim.batch_tokens
    text = claims.as_text(done.plan, done.table)
    assert "bits: killed" in text and "lr: not published: its momentum" in text


def test_compare_and_the_suite_say_the_same(done: Done) -> None:
    arms = compare.arms_of([run.path for i, run in done.runs.items() if i[:-3] in ("base", "ttt")])
    row = one(compare.compare(arms), measure="ttt", arm="ttt")
    theirs = one(done.table, arm="ttt")
    assert all(row[name] == theirs[name] for name in ("difference", "low", "high", "p", "detectable"))


def test_the_legal_score_is_of_one_protocol_named_beforehand() -> None:
    legal, other = {"bpb": 2.0, "legality": "score-first"}, {"bpb": 1.9, "legality": "score-first"}
    assert claims._legal({"ttt": {"bpb": 1.0, "legality": "train-first"}, "score-first": legal, "lora": other}) == 2.0
    assert claims._legal({"ttt": legal, "lora": other}) == 2.0
    assert claims._legal({"ttt": {"bpb": 1.0, "legality": "train-first"}, "lora": other}) is None


@pytest.mark.parametrize(
    ("claimed", "low", "high", "here", "decided"),
    [
        (-0.1, -0.3, -0.2, SAME, CONFIRMED), (-0.1, 0.2, 0.3, OPPOSITE, REFUTED), (0.1, 0.2, 0.3, SAME, CONFIRMED),
        (0.1, -0.3, -0.2, OPPOSITE, REFUTED), (0.1, -0.1, 0.3, OPEN, OPEN), (0.1, 0.0, 0.3, OPEN, OPEN),
        (0.1, -0.05, 0.05, OPEN, REFUTED),  # nothing as large as what was claimed
        (0.0, 0.2, 0.3, OPEN, OPEN), (0.1, None, None, OPEN, OPEN),
        ((-1, 1), -0.5, 0.5, SAME, CONFIRMED), ((-1, 1), 0.5, 1.5, OPEN, OPEN), ((-1, 1), 1.5, 2.0, OPPOSITE, REFUTED),
        ((-1, 1), -3.0, 3.0, OPEN, OPEN), ((-1, 1), -3.0, -2.0, OPPOSITE, REFUTED), ((-1, 1), None, None, OPEN, OPEN),
    ],
)  # fmt: skip
def test_only_the_published_scale_confirms_or_refutes(
    claimed: Any, low: float | None, high: float | None, here: str, decided: str
) -> None:
    """A claimed difference by its sign, a claimed band by whether it holds the interval."""
    verdict = claims.by_band if isinstance(claimed, tuple) else claims.by_sign
    found = {"low": low, "high": high}
    assert (verdict(found, claimed, False), verdict(found, claimed, True)) == (here, decided)


def test_a_small_model_is_never_at_the_published_scale(done: Done) -> None:
    arm = compare.arms_of([done.runs["base-s1"].path])[0]
    assert not any(claims.at_published_scale(arm, preset, steps) for preset, steps in (("exp105a", 8), ("smoke", 8)))
    assert not set(done.table["verdict"]) & {CONFIRMED, REFUTED}


def test_one_seed_is_judged_by_the_text_alone_and_says_so(done: Done) -> None:
    alone = claims.suite(done.plan, compare.arms_of([r.path for i, r in done.runs.items() if i.endswith("-s1")]))
    assert set(alone["over"].dropna()) == {"text"}


def test_the_figure_lies_beside_its_table(done: Done, tmp_path: Path) -> None:
    drawn = draw.draw_suite(done.table, done.plan.name, tmp_path, {})
    assert drawn.name == "suite-four" and len(drawn.caption) > 40
    assert list(read_csv(tmp_path / "suite-four.csv")["arm"]) == list(done.table["arm"])
    assert draw.draw_suite(done.table.query("arm == 'base'"), "one", tmp_path, {}).paths


def test_the_command_runs_a_file_and_reuses_what_is_there(
    file: Path, done: Done, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(file.parent / "runs")
    assert cli.main(["sweep", str(file), "--arm", "ttt", "--seed", "1", "--out", out]) == 0
    printed = capsys.readouterr().out
    assert "run 2 of 2: ttt, seed 1" in printed and "train: done" not in printed and "eval-ttt: reused" in printed
    assert claims.RULE in printed and "Of 1 published differences" in printed
    assert cli.main(["sweep", str(file), "--arm", "tt"]) == 2
    assert "did you mean 'ttt'" in capsys.readouterr().err


def test_a_file_may_name_a_notebook_for_every_run(file: Path, done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    """The page lies in the run's folder, is made once, and must be of a notebook that takes a run."""
    out, paged = str(file.parent / "runs"), file.parent / "paged.toml"
    command = ["sweep", str(paged), "--arm", "base", "--seed", "1", "--out", out]
    paged.write_text('notebook = "08_token_losses"\n' + file.read_text())
    assert cli.main(command) == 0
    (page,) = (file.parent / "runs/base-s1/notebooks").glob("08_token_losses-*/08_token_losses.ipynb")
    written = page.stat().st_mtime_ns
    assert "image/png" in page.read_text() and cli.main(command) == 0 and page.stat().st_mtime_ns == written
    paged.write_text('notebook = "01_one_run"\n' + file.read_text())
    capsys.readouterr()
    assert cli.main(command) == 2 and "expected one with a parameter run" in capsys.readouterr().err
