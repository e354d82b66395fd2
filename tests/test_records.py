"""Laws of run folders and records: content is identity, debris is nobody's, and a record is what it should be."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_run import make_run

from golfcore.analysis import runs
from golfcore.base import files, progress
from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.config import load, of_run
from golfcore.evals import result as results
from golfcore.runs.folder import find_run, open_run, project_dir, run_folders

DATA = "d" * 64


# -- run folders


def test_a_run_goes_on_where_its_data_were_moved_and_its_logging_changed(tmp_path: Path) -> None:
    run = open_run(tmp_path / "r", load("smoke", {"data.path": "here"}), DATA, {"device": "a"})
    moved = load("smoke", {"data.path": "there", "run.log_every": 7})
    assert open_run(tmp_path / "r", moved, DATA, {"device": "b"}) == run and of_run(run) == moved
    assert [start["device"] for start in run.starts()] == ["a", "b"]
    with pytest.raises(UserError, match=r"optim.ns_steps 5 -> 4\); choose another --out"):
        open_run(tmp_path / "r", load("smoke", {"optim.ns_steps": 4, "data.path": "x"}), DATA, {})
    with pytest.raises(UserError, match="expected data eeee"):
        open_run(tmp_path / "r", moved, "e" * 64, {})


@pytest.mark.parametrize("left", ["env.json", ".x.part", ".DS_Store", ".ipynb_checkpoints/a.txt", "metrics.jsonl"])
def test_what_a_start_that_was_cut_short_or_an_editor_left_is_nobodys(tmp_path: Path, left: str) -> None:
    files.write_text(tmp_path / "r" / left, '{"starts": []}')
    run = open_run(tmp_path / "r", load("smoke"), DATA, {})
    assert run.data_hash() == DATA and run.metrics() == []


def test_what_somebody_wrote_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="found thesis.tex; choose another --out"):
        open_run(tmp_path, load("smoke"), DATA, {})
    for path in (tmp_path / "thesis.tex", tmp_path / "thesis.tex" / "below"):
        with pytest.raises(UserError, match="thesis.tex: expected a folder or none yet, found a file"):
            open_run(path, load("smoke"), DATA, {})
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_temporary_files_that_nobody_writes_any_more_are_swept(tmp_path: Path) -> None:
    with files.atomic_path(tmp_path / "a") as dead, files.atomic_path(tmp_path / "b") as living:
        for path in (dead, living):
            path.touch()
        os.utime(dead, (1, 1))
        files.sweep_parts(tmp_path)
        assert living.exists() and not dead.exists()
        dead.touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_who_goes_on_with_a_run_sweeps_what_a_killed_process_left_a_moment_ago(tmp_path: Path) -> None:
    run = open_run(tmp_path / "r", load("smoke"), DATA, {})
    lines = "import os, sys; from golfcore.base import files; from pathlib import Path\n"
    lines += "for name in sys.argv[1:]:\n    files.atomic_path(Path(name)).__enter__().touch()\nos._exit(137)"
    names = [str(run.file(name)) for name in ("a", "eval/b", "figures/c")]
    assert subprocess.run([sys.executable, "-c", lines, *names]).returncode == 137
    with files.atomic_path(run.file("study/d")) as living:  # another process may be writing there
        living.touch()
        assert len(list(run.path.rglob(".*.part"))) == 4
        open_run(tmp_path / "r", load("smoke"), DATA, {})
        assert list(run.path.rglob(".*.part")) == [living]


def test_runs_are_found_at_any_depth_and_by_their_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a folder below the project, too: that is where notebooks run."""
    top = tmp_path / "papermill_runs"
    for name in ("a-1", "sweep/b-1", "sweep/c-1", "other/c-1"):
        open_run(top / name, load("smoke"), DATA, {})
    (tmp_path / "notebooks").mkdir()
    for here, up in ((tmp_path, "."), (tmp_path / "notebooks", "..")):
        monkeypatch.chdir(here)
        assert project_dir() == Path(up)
        expected = ["a-1", "other/c-1", "sweep/b-1", "sweep/c-1"]
        below = Path(up) / "papermill_runs"
        assert [run.path.relative_to(below).as_posix() for run in run_folders(Path(up))] == expected
        assert list(runs.runs_table(below)["run"]) == expected
        for given, name in (("b-1", "sweep/b-1"), ("sweep/c-1", "sweep/c-1"), (top / "a-1", "a-1")):
            assert find_run(Path(given)).path.resolve() == (top / name).resolve()
        with pytest.raises(UserError, match="the id of one run, found 2 of that id"):
            find_run(Path("c-1"))
        with pytest.raises(UserError, match="or the id of one run, found neither"):
            find_run(Path("d-1"))
    monkeypatch.chdir("/")
    assert project_dir() == Path()


# -- records

DAMAGES: dict[bytes | None, str] = {
    b"{}": "found no such key",
    b"[]": "expected a JSON object, found a list",
    b"": "found text that does not parse",
    b"\xff\xfe{}": "found bytes that are no UTF-8 text (line 1: 0xff)",
    b"[" * 100_000: "nested too deep",
    None: "found a folder",
}


@pytest.mark.parametrize("name", ["config.json", "results.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_record_that_is_none_is_one_sentence(tmp_path: Path, name: str, damage: bytes | None) -> None:
    """The list of runs shows the run as damaged, and the others."""
    run, _ = make_run(tmp_path / "a")
    open_run(tmp_path / "b", load("smoke"), DATA, {})
    run.file(name).unlink()
    if damage is None:
        run.file(name).mkdir()
    else:
        run.file(name).write_bytes(damage)
    with pytest.raises(UserError, match=name) as e:
        run.record()
        run.results()
    assert DAMAGES[damage] in str(e.value) and "\n" not in str(e.value)
    table = runs.runs_table(tmp_path)
    assert list(table["run"]) == ["a", "b"] and table["stage"][1] == "not started"
    assert table["stage"][0] == f"damaged: {e.value}"


CHANGED = {  # in a file of a finished run: what reads it, and what it says
    "results.json": (lambda run: run.results(), "values that were changed since"),
    "config.json": (lambda run: run.record(), "values that were changed since"),
    "coverage.json": (runs.coverage, "values that were changed since"),
    "eval/static.json": (lambda run: results.load(run.file("eval/static.json")), "values that were changed since"),
    "eval/static.npy": (lambda run: results.load(run.file("eval/static.json")), "content that was changed since"),
    "metrics.jsonl": (lambda run: run.metrics(), "found others; bring it back, or choose another --out"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_value_that_was_changed_is_one_sentence(small_run: Path, tmp_path: Path, name: str) -> None:
    """The last digit of a record, the last byte of an array: neither is a number that was measured."""
    run = RunFolder(shutil.copytree(small_run, tmp_path / "run"))
    path, (read, said) = run.file(name), CHANGED[name]
    read(run)
    content = path.read_bytes()
    at = [m.start() for m in re.finditer(rb"(?<=[.: ])\d", content)][-1] if path.suffix != ".npy" else len(content) - 1
    path.write_bytes(content[:at] + (b"7" if content[at : at + 1] != b"7" else b"6") + content[at + 1 :])
    with pytest.raises(UserError, match=path.name) as e:
        read(run)
    assert said in str(e.value)


def test_coverage_that_was_emptied_is_not_that_of_the_run(small_run: Path, tmp_path: Path) -> None:
    run = RunFolder(shutil.copytree(small_run, tmp_path / "run"))
    run.file("coverage.json").write_text("{}")
    with pytest.raises(UserError, match="coverage.json: expected 'ema' as stages/eval-ttt.json has it"):
        runs.coverage(run)


@pytest.mark.parametrize("key", ["measures.ttt", "measures.ttt.bpb", "artifact.fits", "source", "baseline.bpb"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    run, _ = make_run(tmp_path / "a")
    inner = record = run.results()
    *parents, last = key.split(".")
    for parent in parents:
        inner = inner[parent]
    del inner[last]
    files.write_json(run.file("results.json"), record)
    with pytest.raises(UserError, match=f"results.json: expected .* with '{key}', found no such key"):
        run.results()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{}", "line 1: expected a row of metrics with 'kind', found no such key"),
        ("[]", "line 1: expected a row of metrics as a JSON object"),
        ("\0\0", "line 1: expected a row of metrics as a JSON object"),
        ('{"kind": "train", "step": 1}', "row 1: expected a row of metrics with 'loss', found no such key"),
        ('{"kind": "train", "step": true}', "line 1: expected a row of metrics with 'step' as an integer, found True"),
        ('{"kind": "meta", "step": 1, "cosine": "a"}', "with 'cosine' as a number or null, found 'a'"),
        ('{"kind": "val", "step": 1, "loss": NaN, "bpb": 1}', "with 'loss' as a number, found nan"),
    ],
)
def test_a_row_of_metrics_that_is_none_names_its_line(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match="metrics.jsonl") as e:
        RunFolder(tmp_path).metrics()
    assert said in str(e.value)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", "a\\b"])
def test_names_in_records_stay_below_their_folder(tmp_path: Path, name: str) -> None:
    stage = {"inputs": "", "outputs": {name: "0"}, "seconds": 1.0, "metrics": 0, "coverage": {}}
    files.write_json(tmp_path / "stages" / "train.json", stage)
    with pytest.raises(UserError, match="train.json: expected names of files below"):
        RunFolder(tmp_path).finished("train", {})


@pytest.mark.parametrize(
    ("value", "schema", "said"),
    [
        ({"a": 1}, {"a": str}, "r with 'a' as text, found 1"),
        ({"a": {"b": []}}, {"a": {"b": {"c": int}}}, "r with 'a.b' as an object, found []"),
        ({"a": [1, "x"]}, {"a": [int]}, "r with 'a[1]' as an integer, found 'x'"),
        ({"a": True}, {"a": (int, float)}, "r with 'a' as an integer or a number, found True"),
        ({"a": float("inf")}, {"a": float}, "r with 'a' as a number, found inf"),
        ({"x": 1, "y": "z"}, {"*": int}, "r with 'y' as an integer, found 'z'"),
        ({"a": 1}, {"a?": str}, "r with 'a' as text, found 1"),
        ({"a": None}, {"a": (None, int), "b?": str, "*": None}, ""),
        ({"a": 3, "more": 1}, {"a": float}, ""),
    ],
)
def test_a_schema_says_the_first_key_that_does_not_fit(value: object, schema: object, said: str) -> None:
    if not said:
        files.check(value, schema, "r")
        return
    with pytest.raises(UserError) as e:
        files.check(value, schema, "r")
    assert str(e.value) == said


# -- progress


def test_a_log_gets_one_line_a_stage(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Inner bars say nothing; a long stage says where it is now and then."""
    with progress.bar(3000, "train", "tok", initial=1000) as outer:
        for _ in range(20):
            outer.update(100)
            outer.set_postfix_str("loss 3.1", refresh=False)
            with progress.bar(5, "val", "tok") as inner:
                inner.update(5)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train: 2,000 tok in ") and line.endswith(" s, loss 3.1")
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    with progress.bar(10, "audit", "test") as outer:
        outer.update(5)
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("audit: 50% of 10 test, ") and first.endswith(" left")
    assert last.startswith("audit: 5 of 10 test in ")
    with progress.bar(10, "hidden", "test", show=False) as outer:
        outer.update(10)
    monkeypatch.setattr("sys.stderr", None)
    with progress.bar(10, "closed", "test") as outer:
        outer.update(10)
    assert capsys.readouterr().err == ""
