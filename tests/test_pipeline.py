"""The whole job in fresh processes: its numbers, its resume after kill -9, its artifact read by another process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from golfcore import artifact
from golfcore.analysis import runs
from golfcore.config import load
from golfcore.records import RunFolder

GOLF = [sys.executable, "-m", "golfcore"]
SETTINGS = ["--set", "run.val_every=0"]


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
    report = json.loads(run.file("results.json").read_text())
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
    config = load("smoke", {"run.val_every": 0})
    assert report["source"] | {"run": ""} == {
        "run": "", "config": config.hash, "preset": "smoke", "seed": 42, "data": run.data_hash()
    }  # fmt: skip
    assert report["ttt"]["lr"] in config.ttt.lr_candidates and len(report["ttt"]["rows"]) == 2
    a = report["artifact"]
    assert a["bytes"] == run.file("artifact.golf").stat().st_size and a["total"] == a["bytes"] + artifact.code_bytes()


def test_everything_switched_on_reports_what_it_touched(whole: tuple[RunFolder, str]) -> None:
    coverage = whole[0].coverage()
    assert coverage["ema"]["done"] == 12 and coverage["ttt_steps"]["done"] > 0
    assert coverage["stored as int6"]["done"] > 0 and coverage["stored as int8"]["done"] > 0


def test_a_second_run_reuses_every_stage_and_says_so(environment, whole) -> None:
    run, _ = whole
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*") if p.name != "results.json"}
    printed = golf(environment, "run", "smoke", *SETTINGS, "--out", run.path)
    assert printed.count(": reused") == 1 + len(run.stages()) and "corpus: reused" in printed
    assert before == {p: p.stat().st_mtime_ns for p in run.path.rglob("*") if p.name != "results.json"}


def trained_some(run: RunFolder) -> bool:
    return run.file("checkpoint.safetensors").exists() and len(run.metrics("train")) >= 6


def in_ttt(run: RunFolder) -> bool:
    return run.file("stages/eval-sliding.json").exists()


@pytest.mark.parametrize("moment", [trained_some, in_ttt], ids=["training", "ttt"])
def test_kill_9_and_the_same_command_end_in_the_same_numbers(
    moment: Callable[[RunFolder], bool], environment, whole, tmp_path: Path
) -> None:
    run, command = RunFolder(tmp_path / "run"), [*GOLF, "run", "smoke", *SETTINGS, "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not moment(run):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not run.file("results.json").exists()
    golf(environment, *command[3:])
    assert numbers(run) == numbers(whole[0])
    assert run.file("artifact.golf").read_bytes() == whole[0].file("artifact.golf").read_bytes()


def test_the_artifact_alone_scores_the_same_in_a_fresh_process(environment, whole, tmp_path: Path) -> None:
    run, _ = whole
    copy = tmp_path / "elsewhere.golf"
    copy.write_bytes(run.file("artifact.golf").read_bytes())
    found = json.loads(golf(environment, "eval", copy, "--protocol", "sliding", "--json"))
    want = numbers(run)["measures"]["sliding"]
    assert (found["bpb"], found["tokens"], found["bytes"]) == (want["bpb"], want["tokens"], want["bytes"])


def test_two_processes_end_where_one_does(environment, tmp_path: Path) -> None:
    """Data-parallel training and evaluation over gloo: equal to one process within rounding."""
    settings = ["--set", "optim.grad_accum=2", "--set", "schedule.iterations=6", "--set", "run.val_every=0"]
    golf(environment, "run", "smoke", *settings, "--out", tmp_path / "one")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "golfcore"]
    command = [*launch, "run", "smoke", *settings, "--out", str(tmp_path / "two")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (numbers(RunFolder(tmp_path / name))["measures"] for name in ("one", "two"))
    for name in one:
        assert two[name]["bpb"] == pytest.approx(one[name]["bpb"], abs=2e-3)
        assert (two[name]["tokens"], two[name]["legality"]) == (one[name]["tokens"], one[name]["legality"])
    first = [[r["loss"] for r in RunFolder(tmp_path / name).metrics("train")] for name in ("one", "two")]
    assert first[1] == pytest.approx(first[0], abs=1e-4)


def test_runs_are_listed(whole: tuple[RunFolder, str]) -> None:
    (row,) = [r for r in runs.runs_table(whole[0].path.parent) if r["run"] == "whole"]
    assert row["config"] == whole[0].config().hash
