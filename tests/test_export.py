"""Laws of a folder that can be sent: it holds what the runs say, and repeats them without this package."""

import ast
import json
import runpy
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.config import of_run, override
from golfcore.runs import bundle, export, pipeline
from golfcore.runs.export import Author
from golfcore.runs.results import ARTIFACT

AUTHOR = Author("A Name", "someone")


@pytest.fixture(scope="module")
def runs(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[RunFolder]:
    """The smallest run and the same with another seed."""
    cfg = override(of_run(RunFolder(small_run)), {"run.seed": 43}, "smoke")
    return [RunFolder(small_run), pipeline.run(cfg, tmp_path_factory.mktemp("seeds") / "other", lambda text: None)]


@pytest.fixture(scope="module")
def folder(runs: list[RunFolder], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export.export(runs, tmp_path_factory.mktemp("out"), AUTHOR, "tiny", "track_non_record_16mb", "2026-01-02")


def test_a_folder_says_what_the_runs_say(folder: Path, runs: list[RunFolder]) -> None:
    record = json.loads((folder / "submission.json").read_text())
    assert folder.parts[-3:] == ("records", "track_non_record_16mb", "2026-01-02_tiny")
    assert (record["author"], record["github_id"], record["seeds"]) == ("A Name", "someone", [42, 43])
    reports = {str(r["source"]["seed"]): r for r in (run.results() for run in runs)}
    for seed, row in record["seed_results"].items():
        found = reports[seed]["measures"]
        assert (row["val_bpb"], row["sliding"], row["no_overlap"]) == tuple(
            found[name]["bpb"] for name in ("ttt", "sliding", "static")
        )
        packed = (folder / f"artifact_seed{seed}.golf").stat().st_size
        assert row["bytes_total"] == packed + (folder / "train_gpt.py").stat().st_size
        assert f"bytes_total {row['bytes_total']}" in (folder / f"train_seed{seed}.log").read_text()
    assert record["bytes_code"] == (folder / "train_gpt.py").stat().st_size < 64_000
    assert record["val_bpb"] == pytest.approx(sum(r["measures"]["ttt"]["bpb"] for r in reports.values()) / 2)
    said = (folder / "README.md").read_text()
    assert f"**val_bpb {record['val_bpb']:.5f}**" in said and f"{record['bytes_total']:,}" in said
    assert "torch==" in (folder / "requirements.txt").read_text()


def test_a_folder_repeats_its_scores_and_first_losses_and_one_that_does_not_is_refused(
    folder: Path, small_run: Path, tmp_path: Path
) -> None:
    built = small_run.parent / "built"
    said: list[str] = []
    export.check(folder, built, Path(sys.executable), say=said.append)
    assert len(said) == 4 and all(line.startswith("seed ") for line in said)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    record = json.loads((copy / "submission.json").read_text())
    record["seed_results"]["42"]["val_bpb"] += 1e-12
    (copy / "submission.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"seed 42: expected \d\.\d+ again, found \d\.\d+"):
        export.check(copy, built, Path(sys.executable), say=said.append)


def test_the_readable_program_is_the_modules_as_they_stand_and_both_are_one_program(folder: Path) -> None:
    found = bundle.sources()
    assert {"golfcore.train.loop", "golfcore.quant.gptq", "golfcore.evals.protocols"} <= found.keys()
    assert not [name for name in found if name.split(".")[1:2] in (["plots"], ["analysis"], ["notebook"])]
    plain = (folder / "train_gpt_readable.py").read_text()
    assert all(source in plain for source in found.values() if "'''" not in source)
    for name in ("train_gpt.py", "train_gpt_readable.py"):
        done = subprocess.run([sys.executable, folder / name, "--help"], capture_output=True, text=True)
        assert done.returncode == 0 and "--evaluate" in done.stdout
    wrong = [sys.executable, folder / "train_gpt.py", "--evaluate", folder / "README.md"]
    done = subprocess.run(wrong, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout.strip().endswith("found a file of another kind")


def test_minified_code_is_the_same_code_without_words() -> None:
    source = '''"""Doc."""


def f(a: int, *, b: str = "x") -> str:
    """Says."""
    # why
    c: int = 3
    text = """two
    lines"""
    return f"{a}{b}{c}{text}"


class C:
    """Kept fields."""

    n: int = 1
'''
    small = bundle.minified(source)
    plain, after = {}, {}
    exec(source, plain)
    exec(small, after)
    assert plain["f"](1) == after["f"](1) and after["C"].__annotations__ == {"n": int}
    assert "Doc" not in small and "Says" not in small and "why" not in small and "-> str" not in small
    assert len(small) < 0.7 * len(source) and ast.parse(small)


@given(st.binary(max_size=40))
def test_bytes_are_spelled_so_that_a_file_in_latin_1_says_them_again(data: bytes) -> None:
    text = bundle.spelled(data)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "said.py"
        path.write_bytes(f'#coding:l1\nfound = "{text}".encode("l1")\n'.encode("latin-1"))
        assert runpy.run_path(str(path))["found"] == data
    assert len(text) <= len(data) + 3 * sum(data.count(bytes([b])) for b in b'\\"\0\n\r')


def test_runs_that_differ_otherwise_or_do_not_fit_make_no_folder(runs: list[RunFolder], tmp_path: Path) -> None:
    small = override(of_run(runs[0]), {"quant.max_bytes": 50_000}, "smoke")
    other = pipeline.run(small, tmp_path / "other", lambda text: None, tuple(runs))
    with pytest.raises(UserError, match="with another seed, found another run"):
        export.export([runs[0], other], tmp_path / "out", AUTHOR, "x", "t", "d")
    with pytest.raises(UserError, match=r"expected at most 50,000 bytes, found [\d,]+: [\d,]+ too many"):
        export.export([other], tmp_path / "out", AUTHOR, "x", "t", "d")
    assert not list((tmp_path / "out").rglob("*.py")) and other.file(ARTIFACT).exists()
    export.export(runs[:1], tmp_path / "out", AUTHOR, "x", "t", "d")
    with pytest.raises(UserError, match="--name: expected letters, digits"):
        export.export(runs[:1], tmp_path / "out", AUTHOR, "../../x", "t", "d")
    with pytest.raises(UserError, match="expected no folder yet"):
        export.export(runs[:1], tmp_path / "out", AUTHOR, "x", "t", "d")
