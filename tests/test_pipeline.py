"""The whole job in fresh processes: its numbers, its resume after kill -9, its artifact read by another process."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_text import dataset

from golfcore import cli, config
from golfcore.analysis import runs, scores
from golfcore.analysis.frames import one
from golfcore.base import runtime, tensors
from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.config import load
from golfcore.data.datasets import open_dataset
from golfcore.model.weights import flat
from golfcore.quant import artifact
from golfcore.runs import pipeline
from golfcore.runs import results as report
from golfcore.runs.folder import held

GOLF = [sys.executable, "-m", "golfcore"]
CHANGES = {"run.val_every": 0, "reptile.share": 0.25}
SETTINGS = [part for key, value in CHANGES.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A cache of its own for the embedded corpus, shared by the runs of this file; one thread, so that bits repeat."""
    return {**os.environ, "GOLFCORE_CACHE": str(tmp_path_factory.mktemp("cache")), "OMP_NUM_THREADS": "1"}


def golf(environment: dict[str, str], *args: object) -> str:
    done = subprocess.run([*GOLF, *map(str, args)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def whole(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, str]:
    """An uninterrupted run, and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return RunFolder(out), golf(environment, "run", "smoke", *SETTINGS, "--out", out)


def numbers(run: RunFolder) -> dict:
    """Everything of a report but what is a time or a name."""
    report = run.results()
    measures = {k: {n: v for n, v in m.items() if n != "seconds"} for k, m in report["measures"].items()}
    source = {k: v for k, v in report["source"].items() if k != "run"}
    return {**report, "measures": measures, "source": source}


def test_the_three_numbers_stand_side_by_side_with_their_source(whole: tuple[RunFolder, str]) -> None:
    run, printed = whole
    report = json.loads(run.file("results.json").read_text())
    m = {k: v["bpb"] for k, v in report["measures"].items()}
    assert report["context_gain"] == m["sliding"] - m["static"] and report["ttt_gain"] == m["ttt"] - m["sliding"]
    assert [report["measures"][k]["legality"] for k in ("static", "sliding", "ttt")] == [
        "static",
        "static",
        "score-first",
    ]
    assert len({v["tokens"] for v in report["measures"].values()}) == 1
    for words in ("(a) artifact", "(b) artifact, sliding", "(c) artifact, sliding window + TTT", "interpolated bigram",
                  "context gain b - a", "of 16,000,000 (fits)"):  # fmt: skip
        assert words in printed
    config = load("smoke", CHANGES)
    made = {"code": runtime.code_version(), "world": 1, "device": runtime.describe()["device"]}
    assert report["source"] | {"run": ""} == {
        "run": "", "config": config.hash, "preset": "smoke", "seed": 42, "data": run.data_hash(), **made
    }  # fmt: skip
    assert all(stage["made"] == made for stage in run.stages().values())
    assert one(runs.runs_table(run.path.parent), run="whole")["config"] == config.hash
    assert report["ttt"]["lr"] in config.ttt.lr_candidates and len(report["ttt"]["rows"]) == 2
    a = report["artifact"]
    assert a["bytes"] == run.file("artifact.golf").stat().st_size and a["total"] == a["bytes"] + artifact.code_bytes()
    coverage = run.coverage()
    assert coverage["ema"]["done"] == 9 and coverage["reptile"]["done"] > 0 and coverage["ttt_steps"]["done"] > 0
    assert coverage["stored as int6"]["done"] > 0 and coverage["stored as int8"]["done"] > 0


def times(run: RunFolder) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in run.path.rglob("*") if p.name not in ("results.json", "env.json")}


def test_a_second_run_reuses_every_stage_and_says_so(environment, whole, capsys, monkeypatch) -> None:
    monkeypatch.setenv("GOLFCORE_CACHE", environment["GOLFCORE_CACHE"])
    run, before = whole[0], times(whole[0])
    printed = golf_here(capsys, "run", "smoke", *SETTINGS, "--out", run.path)[1]
    assert printed.count(": reused") == 1 + len(run.stages()) and "corpus: reused" in printed
    assert before == times(run)


def trained_some(run: RunFolder) -> bool:
    return run.file("checkpoint.safetensors").exists() and len(run.metrics("train")) >= 6


def in_ttt(run: RunFolder) -> bool:
    return run.file("stages/eval-sliding.json").exists()


def kill_when(moment: Callable[[RunFolder], bool], run: RunFolder, command: list[str], environment) -> None:
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not moment(run):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not run.file("results.json").exists()


def test_kill_9_and_the_same_command_end_in_the_same_numbers(environment, whole, tmp_path: Path) -> None:
    """Killed in training, when it goes on in the Reptile phase, and then in TTT."""
    run, command = RunFolder(tmp_path / "run"), [*GOLF, "run", "smoke", *SETTINGS, "--out", str(tmp_path / "run")]
    for moment in (trained_some, lambda run: bool(run.metrics("reptile")), in_ttt):
        kill_when(moment, run, command, environment)
    golf(environment, *command[3:])
    assert numbers(run) == numbers(whole[0])
    assert run.file("artifact.golf").read_bytes() == whole[0].file("artifact.golf").read_bytes()
    assert not run.file("reptile.safetensors").exists()


def test_a_run_that_is_asked_to_end_saves_its_step_and_goes_on_from_there(environment, whole, tmp_path) -> None:
    run, steady = RunFolder(tmp_path / "run"), whole[0]
    command = [*GOLF, "run", "smoke", *SETTINGS, "--set", "run.checkpoint_every=1000000", "--out", str(run.path)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    while len(run.metrics("train")) < 3:
        assert process.poll() is None
        time.sleep(0.002)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1]
    assert process.returncode == 0 and time.monotonic() - began < 5
    assert "asked to end (" in said and "the same command goes on" in said
    _, plain = tensors.load(run.file("checkpoint.safetensors"), "a checkpoint")
    assert plain["step"] == run.metrics("train")[-1]["step"] > 0  # though no checkpoint was due
    golf(environment, "run", "smoke", *SETTINGS, "--out", run.path)  # an artifact names every setting
    assert numbers(run) == numbers(steady)


def test_two_processes_do_not_work_in_one_folder(small_run: Path, tmp_path: Path) -> None:
    shutil.copytree(small_run, out := tmp_path / "run")
    with held(out), pytest.raises(UserError, match="no other process works on, found one in use"):
        pipeline.run(config.of_run(RunFolder(out)), out, lambda text: None)
    pipeline.run(config.of_run(RunFolder(out)), out, lambda text: None)  # and free again
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.tex").touch()
    with pytest.raises(UserError, match="found thesis.tex"), held(strange):
        pass
    assert [p.name for p in strange.iterdir()] == ["thesis.tex"]


def test_a_run_of_other_stages_leaves_what_they_made(environment, tmp_path: Path, monkeypatch) -> None:
    """Guided bits, no calibration; and without TTT (c) is (b), which the table says."""
    monkeypatch.setenv("GOLFCORE_CACHE", environment["GOLFCORE_CACHE"])
    guided = {"quant.guided_high": 0.2, "quant.guided_low": 0.2, "quant.rounding": "nearest", "ttt.epochs": 0}
    said = list[str]()
    run = pipeline.run(load("smoke", CHANGES | guided), tmp_path / "run", said.append)
    assert set(run.stages()["train"]["outputs"]) == {"weights.safetensors", "sensitivity.json"}
    coverage, found = run.coverage(), json.loads(run.file("sensitivity.json").read_text())
    assert found["steps"] == coverage["guided_bits"]["done"] > 0 and len(found["mean_square"]) == 12
    assert all(coverage[f"stored as int{bits}"]["done"] > 0 for bits in (5, 6, 7)) and "ttt_steps" not in coverage
    measures = numbers(run)["measures"]
    assert measures["ttt"]["legality"] == "static" and measures["ttt"]["bpb"] == measures["sliding"]["bpb"]
    assert "(c) as (b): nothing was adapted" in said[-1]
    assert "adaptation gain c - b: +0.0000    (nothing was adapted)" in said[-1]


def test_a_score_that_trained_first_is_called_no_valid_score(whole: tuple[RunFolder, str]) -> None:
    found = json.loads(whole[0].file("results.json").read_text())
    assert f"c - b: {found['ttt_gain']:+.4f}    (TTT rate" in report.table(found)
    found["measures"]["ttt"]["legality"] = "train-first"
    assert f"c - b: {found['ttt_gain']:+.4f} (train-first: not a valid score)    (TTT rate" in report.table(found)


def test_protocols_beside_the_three_stand_in_every_table(environment, tmp_path: Path, monkeypatch) -> None:
    """Under their names' own settings; the chosen TTT rate is for those that bring none."""
    monkeypatch.setenv("GOLFCORE_CACHE", environment["GOLFCORE_CACHE"])
    real, rates = pipeline.evaluate, {}

    def evaluate(name, cfg, *args, **kwargs):
        rates[kwargs["label"]] = pipeline.configure(name, cfg).ttt.lr
        return real(name, cfg, *args, **kwargs)

    monkeypatch.setattr(pipeline, "evaluate", evaluate)
    changes = {"eval.also": ["ppm", "window-ttt", "sliding"], "schedule.iterations": 4, "quant.rounding": "nearest"}
    cfg, said = load("smoke", changes), list[str]()
    run = pipeline.run(cfg, tmp_path / "run", said.append)
    measures = numbers(run)["measures"]
    assert list(report.measures(cfg)) == ["float", "static", "sliding", "ttt", "ppm", "window-ttt"]
    assert measures.keys() == report.measures(cfg).keys()
    assert measures["ppm"]["weights"] == "artifact.golf" and measures["ppm"]["bpb"] != measures["sliding"]["bpb"]
    assert rates["window-ttt"] == 0.01 and rates["ttt"] in cfg.ttt.lr_candidates
    labels = [line[:50].strip() for line in said[-1].splitlines()]
    assert labels.index("artifact, ppm") == labels.index("(c) artifact, sliding window + TTT") + 1
    listed = one(runs.runs_table(tmp_path))
    assert listed["ppm"] == measures["ppm"]["bpb"] and listed["legality"] == "score-first"
    table = scores.waterfall(run)
    assert list(table["measure"]) == [*report.measures(cfg), "bigram"]
    for row, name, still in ((4, "ppm", "sliding"), (5, "window-ttt", "static")):  # the same windows
        assert table["difference"][row] == pytest.approx(measures[name]["bpb"] - measures[still]["bpb"])


def test_the_artifact_alone_scores_the_same_in_a_fresh_process(environment, whole, tmp_path: Path) -> None:
    """One file in an empty folder gives (c) to the last digit: the chosen rate is in it."""
    run, copy = whole[0], tmp_path / "elsewhere.golf"
    copy.write_bytes(run.file("artifact.golf").read_bytes())
    found = json.loads(golf(environment, "eval", copy, "--protocol", "ttt", "--json"))
    want = numbers(run)["measures"]["ttt"]
    assert all(found[k] == want[k] for k in ("bpb", "tokens", "bytes", "legality", "bpb_first"))
    assert found["source"]["data"] == run.data_hash() and found["source"]["code"] == runtime.code_version()


def golf_here(capsys: pytest.CaptureFixture, *args: object) -> tuple[int, str]:
    """Exit code and what was printed, out and error."""
    capsys.readouterr()
    code = cli.main([str(arg) for arg in args])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def test_a_rate_that_diverges_is_skipped_and_named(small_run: Path, capsys, tmp_path: Path) -> None:
    """Of the candidates 1e30 and 0.02; if all diverge the run fails, and a score at such a rate is none."""
    rows = json.loads((small_run / "ttt.json").read_text())["rows"]
    assert "diverged" in rows[0] and "bpb" not in rows[0] and rows[1]["bpb"] > 0
    assert json.loads((small_run / "results.json").read_text())["ttt"]["lr"] == 0.02
    code, said = golf_here(capsys, "eval", small_run, "--protocol", "window-ttt", "--set", "ttt.lr=1e30")
    assert code == 2 and "protocol window-ttt: adaptation at rate 1e+30 diverged" in said
    cfg = config.override(config.of_run(RunFolder(small_run)), {"ttt.lr_candidates": [1e29, 1e30]}, "test")
    with pytest.raises(UserError, match=r"ttt.lr_candidates \[1e\+29, 1e\+30\]: expected a rate that adapts"):
        pipeline.run(cfg, tmp_path / "run", lambda text: None)


def test_text_of_another_kind_is_refused_and_other_text_must_be_named(small_run: Path, capsys, tmp_path: Path) -> None:
    artifact_file, data = small_run / "artifact.golf", small_run.parent / "built"
    code, said = golf_here(capsys, "eval", artifact_file)
    assert code == 0 and f"data {RunFolder(small_run).data_hash()[:12]}, legality static" in said
    other = dataset(tmp_path, documents=50)
    assert cli.main(["eval", str(artifact_file), "--data", str(other)]) == 2  # trained on other text: another tokenizer
    assert "expected the tokenizer of" in capsys.readouterr().err
    for name in ("text", "built"):
        (tmp_path / name).rename(tmp_path / f"{name}-before")
    same = dataset(tmp_path, documents=50, tokenizer=next(data.glob("*.model")))
    code, said = golf_here(capsys, "eval", artifact_file, "--data", same)
    assert code == 0 and f"data {open_dataset(same).data_hash[:12]}" in said
    moved = data.rename(tmp_path / "moved")
    try:
        same.rename(data)  # other text where the run's was
        code, said = golf_here(capsys, "eval", artifact_file)
        assert code == 2 and "expected data" in said
        assert golf_here(capsys, "audit", artifact_file)[0] == 2
        data.rename(same)
    finally:
        moved.rename(data)


def test_work_of_another_version_is_reused_and_named(small_run: Path, tmp_path: Path, monkeypatch) -> None:
    """And the same weights have one name, whatever version the file that holds them says."""
    cfg, said = config.of_run(RunFolder(small_run)), list[str]()
    version, values = runtime.code_version(), tensors.load(small_run / report.FLOAT, "weights")[0]
    for module in (runtime, tensors):
        monkeypatch.setattr(module, "code_version", lambda: "9.9.9")
    pipeline.run(cfg, small_run, said.append)
    reused = [line for line in said if ": reused" in line]
    assert all(f"made by golfcore {version} and not 9.9.9" in line for line in reused) and len(reused) == 9
    tensors.save(tmp_path / report.FLOAT, values, {})
    again = flat(report.load_weights(tmp_path / report.FLOAT))
    assert (tmp_path / report.FLOAT).read_bytes() != (small_run / report.FLOAT).read_bytes()
    assert tensors.digest(again) == json.loads((small_run / "eval/float.json").read_text())["source"]["weights"]


def test_a_coverage_record_that_is_not_what_was_written_is_refused(small_run: Path, tmp_path: Path) -> None:
    """Also where every stage is done."""
    run = RunFolder(shutil.copytree(small_run, tmp_path / "run"))
    cfg, covered = config.of_run(run), run.coverage()
    for damaged in ({}, covered | {"ema": covered["ema"] | {"done": 1}}, covered | {"ema": 1}):
        run.file("coverage.json").write_text(json.dumps(damaged))
        with pytest.raises(UserError, match=r"coverage.json: expected .*ema"):
            pipeline.run(cfg, run.path, lambda text: None)


def test_a_run_whose_numbers_are_not_whole_fails(small_run: Path, tmp_path: Path) -> None:
    cfg, copy = config.of_run(RunFolder(small_run)), tmp_path / "run"
    shutil.copytree(small_run, copy)
    with pytest.raises(RuntimeError, match="float: 600 of 601 targets were scored"):
        report.build(cfg, RunFolder(copy), {}, 601)
    found = json.loads((copy / "eval/ttt.json").read_text())
    for key, value in (("bpb", float("nan")), ("nats", None), ("chunks", {}), ("legality", "fine"), ("bytes", 0)):
        (copy / "eval/ttt.json").write_text(json.dumps(found | {key: value}))
        with pytest.raises(UserError, match=r"ttt.json: expected an evaluation result|ttt.json: expected scores"):
            report.build(cfg, RunFolder(copy), {}, 600)


def test_two_processes_end_where_one_does(environment, tmp_path: Path) -> None:
    """Data-parallel training, a Reptile phase, evaluation over gloo: equal to one process within rounding."""
    settings = [*SETTINGS, "--set", "optim.grad_accum=2", "--set", "schedule.iterations=8"]
    golf(environment, "run", "smoke", *settings, "--out", tmp_path / "one")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "golfcore"]
    command = [*launch, "run", "smoke", *settings, "--out", str(tmp_path / "two")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (numbers(RunFolder(tmp_path / name))["measures"] for name in ("one", "two"))
    for name in one:
        assert two[name]["bpb"] == pytest.approx(one[name]["bpb"], abs=2e-3)
        assert (two[name]["tokens"], two[name]["legality"]) == (one[name]["tokens"], one[name]["legality"])
    for kind, n in (("train", 6), ("reptile", 10)):
        losses = [[r["loss"] for r in RunFolder(tmp_path / name).metrics(kind)] for name in ("one", "two")]
        assert losses[1] == pytest.approx(losses[0], abs=1e-4) and len(losses[0]) == n
