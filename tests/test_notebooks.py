"""Every notebook runs to its end on the smallest preset, shows its figures, and leaves the tree as it was."""

import ast
import json
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import pytest

from golfcore.analysis import runs
from golfcore.base.records import RunFolder
from golfcore.notebook import MARKER, defaults, run_notebook
from golfcore.plots import index

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


FIGURES = {
    "03_bucket_contention": 7,
    "04_weight_space": 16,
    "05_error_surface": 3,
    "06_quantization": 8,
    "10_ablation_suite": 1,
    "11_claims_and_figures": 10,
    "12_conditioning": 1,
}  # at least; of the others 6
READING = {"11_claims_and_figures"}  # trains nothing: reads the project's figures
MOST = 30_000  # characters that one output holds: more is read by nobody


@cache
def commands() -> dict[str, dict[str, str]]:
    """The parameters with which `make notebooks` executes each notebook."""
    printed = subprocess.run(["make", "-n", "notebooks"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = [shlex.split(line) for line in printed.splitlines() if "golfcore notebook " in line]
    return {argv[2]: {key: value for _, key, value in batched(argv[3:])} for argv in found}


def batched(parts: list[str]) -> list[tuple[str, str, str]]:
    return list(zip(parts[::3], parts[1::3], parts[2::3], strict=True))


def test_make_notebooks_executes_every_notebook() -> None:
    assert sorted(commands()) == [path.stem for path in NOTEBOOKS]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all notebooks, and a folder for what they make."""
    return tmp_path_factory.mktemp("notebooks")


def tree() -> set[Path]:
    return {p for name in ("papermill_runs", "figures", "notebooks") for p in (ROOT / name).rglob("*")}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_on_the_smallest_preset(
    path: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GOLFCORE_CACHE", str(place / "cache"))
    monkeypatch.chdir(ROOT)
    before, out = tree(), place / path.stem
    given = commands()[path.stem] | ({"out": str(out)} if "out" in defaults(path) else {})
    executed = run_notebook(path.stem, given, place)
    assert (executed.parent / MARKER).exists() and tree() == before
    cells = json.loads(executed.read_text())["cells"]
    outputs = [o for cell in cells for o in cell.get("outputs", [])]
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code")
    texts = [(kind, part) for o in outputs for kind, part in [("text", o.get("text", "")), *o.get("data", {}).items()]]
    assert max(len("".join(part)) for kind, part in texts if kind != "image/png") < MOST
    figures = index.read_index(out / "figures")
    shown = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    opened = path.stem in READING  # shows a figure of the project, too
    assert len(shown) == len(set(shown)) == len(figures) + opened >= FIGURES.get(path.stem, 6)
    screen, reports = capsys.readouterr().out, list(out.rglob(runs.RESULTS))
    assert bool(reports) != opened
    for measures in [runs.report(RunFolder(report.parent))["measures"] for report in reports]:
        assert all(f"{row['bpb']:.4f}" in screen for row in measures.values())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_asks_and_calls_and_does_little_itself(path: Path) -> None:
    """Prose asks; cells call golfcore, so they define nothing and draw nothing; ids are stable names."""
    cells = json.loads(path.read_text())["cells"]
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    assert not {type(node) for node in ast.walk(ast.parse(code))} & {ast.FunctionDef, ast.ClassDef, ast.While}
    assert "matplotlib" not in code
    assert all(len(c["source"]) <= 20 for c in cells if c["cell_type"] == "code")
    assert "?" in "".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    ids = [c["id"] for c in cells]
    assert len(set(ids)) == len(ids) and all(re.fullmatch("[a-z][a-z0-9-]*", name) for name in ids)
