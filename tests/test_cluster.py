"""A sweep on a Ray cluster: what is lost is done again, what is done is not; the numbers are those of one process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from small_text import dataset

from golfcore.base import files
from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.runs import cluster, sweep
from golfcore.runs.folder import in_use
from golfcore.runs.results import ARTIFACT
from golfcore.runs.sweep import Job, Slots

SWEEP = """
base = "smoke"
seeds = [1]
measure = "static"
slots = {{ cpus = 1 }}
[all]
"data.path" = {data!r}
"model.vocab_size" = 320
"schedule.iterations" = 400
"schedule.warmdown_steps" = 100
"data.reserve_tokens" = 0
"data.val_tokens" = 640
"ttt.chunk_tokens" = 64
"ttt.lr_candidates" = []
"run.val_every" = 0
"run.checkpoint_every" = 20
[arms.base]
[arms.adapts]
set = {{ ttt.epochs = 2 }}
[arms.longer]
set = {{ optim.matrix_lr = 0.011 }}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cluster")
    path = made / "three.toml"
    path.write_text(SWEEP.format(data=str(dataset(made))))
    return path


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Cluster]:
    nodes = started_nodes(cluster.STARTS)
    yield nodes
    nodes.shutdown()


def started_nodes(tries: int) -> Cluster:
    """Two nodes; Ray gives each half a minute, which a busy machine may not have."""
    nodes = Cluster()
    try:
        nodes.add_node(num_cpus=1, include_dashboard=False)
        nodes.add_node(num_cpus=1)
        return nodes
    except Exception as e:
        nodes.shutdown()
        if tries == 1 or "timed out" not in str(e):
            raise
        return started_nodes(tries - 1)


def until(found: Callable[[], object], what: str, seconds: float = 240) -> object:
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, f"no {what} in {seconds} s"
        time.sleep(0.05)
    return value


def workers(name: str) -> list[int]:
    """The processes that work on a task; Ray names them after it."""
    lines = {int(path.name): path for path in Path("/proc").iterdir() if path.name.isdigit()}
    found = []
    for pid, path in lines.items():
        try:
            if (path / "cmdline").read_bytes().startswith(f"ray::{name}".encode()):
                found.append(pid)
        except OSError:
            continue  # it has ended meanwhile
    return found


def test_a_worker_and_a_driver_are_killed_and_every_run_is_done_once(
    file: Path, two_nodes: Cluster, tmp_path: Path
) -> None:
    """On two nodes, as sequentially: artifacts and scores equal to the last bit."""
    environment = {**os.environ, "RAY_ADDRESS": two_nodes.address, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "golfcore", "sweep", str(file), "--size", "smoke", "--engine", "ray"]
    command += ["--out", str(tmp_path / "ray")]
    logs = tmp_path / "ray" / cluster.LOGS
    first = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    until((tmp_path / "ray/base-s1/checkpoint.safetensors").exists, "checkpoint")
    for pid in workers("base-s1"):
        os.kill(pid, signal.SIGKILL)
    until((logs / "base-s1.try2.log").exists, "second try")
    until(lambda: "val" in (logs / "base-s1.try2.log").read_text() or workers("base-s1"), "work on it")
    first.kill()
    first.wait()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ray: 2 nodes with 2 CPU" in done.stdout and "3 of 3" in done.stdout

    plan = sweep.load(file, "smoke")
    alone = sweep.run_arms(plan.configs, plan.seeds, tmp_path / "here", lambda text: None)
    for run in alone:
        other = RunFolder(tmp_path / "ray" / run.path.name)
        assert files.sha256_file(other.file(ARTIFACT)) == files.sha256_file(run.file(ARTIFACT))
        bits = [[m["bpb"] for m in r.results()["measures"].values()] for r in (run, other)]
        assert bits[0] == bits[1]
        losses = [[(row["step"], row["loss"]) for row in r.metrics("train")] for r in (run, other)]
        assert losses[0] == losses[1]
    assert "train: from " in (logs / "adapts-s1.try1.log").read_text() + (
        (logs / "adapts-s1.try2.log").read_text() if (logs / "adapts-s1.try2.log").exists() else ""
    )
    tries = {path.name for path in logs.iterdir()}
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert "3 of 3 runs have finished before" in again.stdout and {path.name for path in logs.iterdir()} == tries


def test_a_sweep_that_is_asked_to_end_ends_its_workers_and_goes_on_from_what_they_saved(
    file: Path, two_nodes: Cluster, tmp_path: Path
) -> None:
    environment = {**os.environ, "RAY_ADDRESS": two_nodes.address, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "golfcore", "sweep", str(file), "--size", "smoke", "--engine", "ray"]
    command += ["--out", str(tmp_path), "--set", "schedule.iterations=100000"]
    running = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    until((tmp_path / "base-s1/checkpoint.safetensors").exists, "checkpoint")
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=100)
    assert running.returncode == 0 and "the same command goes on from what is saved" in said
    until(lambda: not workers("base-s1"), "end of its worker")
    assert (tmp_path / "base-s1/checkpoint.safetensors").exists() and not in_use(tmp_path / "base-s1")


def test_a_run_that_is_refused_says_so_and_the_others_are_done(
    file: Path, two_nodes: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", two_nodes.address)
    plan = sweep.load(file, "smoke", {"schedule.iterations": 4, "schedule.warmdown_steps": 2}).only(["longer"])
    jobs = sweep.jobs_of(plan.configs, [1], tmp_path)
    jobs[0].folder.mkdir()
    (jobs[0].folder / "mine.txt").write_text("not a run")
    said: list[str] = []
    with pytest.raises(UserError, match="expected a run folder or an empty one, found mine.txt"):
        cluster.run_jobs(jobs, Slots(), said.append)
    assert not ray.is_initialized() and cluster.finished(jobs[1]) and not cluster.finished(jobs[0])
    assert f"base-s1: failed; see {tmp_path / cluster.LOGS}" in said


@pytest.mark.parametrize(("late", "said"), [(2, ""), (3, "expected a node that starts"), (-1, "no port is free")])
def test_a_node_that_starts_late_is_asked_again(late: int, said: str) -> None:
    """Other failures of Ray's are its own."""
    tried, ended = list[int](), list[int]()

    class Late:
        @staticmethod
        def init(**options: object) -> None:
            tried.append(1)
            if late < 0:
                raise RuntimeError("no port is free")
            if len(tried) <= late:
                raise Exception("The current node timed out during startup. This could happen because")

        @staticmethod
        def shutdown() -> None:
            ended.append(1)

    if said:
        with pytest.raises(UserError if late > 0 else RuntimeError, match=said):
            cluster._start(Late)
    else:
        cluster._start(Late)
    assert len(tried) == (3 if late > 0 else 1) and len(ended) == len(tried) - (not said)


def test_slots_are_checked_and_without_ray_one_sentence_says_so(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sweep.load(file, "smoke").slots == Slots(1, None)
    for slots, said in (("cpu = 1", "cpu"), ("cpus = -1", "expected CPUs or GPUs"), ('gpus = "x"', "gpus")):
        wrong = tmp_path / "wrong.toml"
        wrong.write_text(file.read_text().replace("cpus = 1", slots))
        with pytest.raises(UserError, match=said):
            sweep.load(wrong, "smoke")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"expected Ray, found none; pip install 'golfcore\[cluster\]'"):
        cluster.run_jobs(list[Job](), Slots(), print)
