"""Every notebook runs to its end on the smallest preset, shows its figures, and leaves the tree as it was."""

import json
from pathlib import Path

import pytest

from golfcore.analysis import runs
from golfcore.notebook import defaults, is_complete, run_notebook
from golfcore.plots.draw import PLOTS
from golfcore.records import RunFolder

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run folder for all notebooks: the first does the run, the others find it done."""
    return tmp_path_factory.mktemp("notebooks")


def tree() -> set[Path]:
    return {p for name in ("papermill_runs", "figures", "notebooks") for p in (ROOT / name).rglob("*")}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_on_the_smallest_preset(
    path: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GOLFCORE_CACHE", str(place / "cache"))
    monkeypatch.chdir(ROOT)
    before = tree()
    given = {"preset": "smoke", "out": str(place / "run")}
    executed = run_notebook(path.stem, {k: v for k, v in given.items() if k in defaults(path)}, place)
    assert is_complete(executed.parent) and tree() == before
    cells = json.loads(executed.read_text())["cells"]
    outputs = [o for cell in cells for o in cell.get("outputs", [])]
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code")
    assert len([o for o in outputs if "image/png" in o.get("data", {})]) == len(PLOTS)
    screen = capsys.readouterr().out
    for name, row in runs.report(RunFolder(place / "run"))["measures"].items():
        assert f"{row['bpb']:.4f}" in screen, name
    assert len(list((place / "run" / "figures").glob("*.svg"))) == len(PLOTS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_asks_and_calls_and_does_little_itself(path: Path) -> None:
    """Each figure has its question in prose before it; a cell is a few lines; cells have ids that say what they do."""
    cells = json.loads(path.read_text())["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    body = [text for text in code if not text.startswith(("from", "import", "preset"))]
    assert all(len(text.splitlines()) <= 5 for text in body)
    assert not [text for text in body if "def " in text or "plt." in text]
    prose = "".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    assert prose.count("?") >= len(PLOTS)
    assert len({c["id"] for c in cells}) == len(cells) and all(len(c["id"]) < 30 for c in cells)
