"""Laws of the papermill driver: parameters are checked, the kernel is this Python, and done means done."""

import json
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from synthetic_run import make_run

from golfcore import cli, config, notebook
from golfcore.base import files
from golfcore.base.errors import UserError
from golfcore.notebook import MARKER, NotebookFailed, checked, defaults, find_notebook, run_notebook
from golfcore.plots import index as figure_index
from golfcore.plots.run import FIGURES
from golfcore.runs.folder import RUNS

PARAMETERS = 'text: str = "a"  # a = b, as "k=v"\ncount = 1\nrate: float = 0.5  # a day\nflag = False\nfolder = ""'


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project, in which the test runs."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, *cells: str, parameters: str = PARAMETERS) -> Path:
    """A notebook with a parameters cell and these code cells."""
    tagged = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    nb = nbformat.v4.new_notebook(cells=[tagged, *map(nbformat.v4.new_code_cell, cells)])
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nb, f"notebooks/{name}.ipynb")
    return Path(f"notebooks/{name}.ipynb")


def printed(executed: Path) -> str:
    nb: NotebookNode = nbformat.read(executed, as_version=4)
    return "".join(o.text for c in nb.cells for o in c.get("outputs", []) if o.output_type == "stream")


# -- parameters


def test_parameters_are_read_whatever_their_comments_hold() -> None:
    assert defaults(write("a")) == {"text": "a", "count": 1, "rate": 0.5, "flag": False, "folder": ""}


@pytest.mark.parametrize(
    "cell",
    ["import os", "x = 1 + y", "x, y = 1, 2", "x: int = 'a'", "x: list = []", "x: int", "x += 1", "x.y = 1"],
)
def test_a_parameters_cell_holds_nothing_but_names_set_to_literals(cell: str) -> None:
    with pytest.raises(ValueError):
        defaults(write("a", parameters=cell))


def test_given_parameters_take_the_type_of_their_default() -> None:
    known = {"text": "a", "count": 1, "rate": 0.5, "flag": False}
    given = {"text": "12", "count": "3", "rate": "2", "flag": "true"}
    assert checked(given, known, "n") == {"text": "12", "count": 3, "rate": 2.0, "flag": True}
    assert [type(v) for v in checked(given, known, "n").values()] == [str, int, float, bool]
    assert checked({}, known, "n") == known


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"cuont": 1}, "unknown parameter 'cuont'; did you mean 'count'?"),
        ({"zzz": 1}, "unknown parameter 'zzz'; known: text, count, rate, flag, folder"),
        ({"count": "many"}, "notebook a, count: expected int, found 'many'"),
        ({"count": 1.5}, "notebook a, count: expected int, found 1.5"),
        ({"count": True}, "notebook a, count: expected int, found True"),
        ({"rate": "fast"}, "notebook a, rate: expected float, found 'fast'"),
        ({"flag": "1"}, "notebook a, flag: expected bool, found 1"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_is_written(project: Path, given: dict, said: str) -> None:
    write("a")
    with pytest.raises(UserError) as e:
        run_notebook("a", given)
    assert said in str(e.value) and [path.name for path in project.iterdir()] == ["notebooks"]


def test_notebooks_are_found_from_anywhere_in_the_project_and_beside_the_package(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = write("mine")
    assert find_notebook("mine.ipynb").resolve() == project / mine
    with pytest.raises(UserError, match="unknown notebook 'mime'; did you mean 'mine'"):
        run_notebook("mime", {})
    monkeypatch.chdir(project / "notebooks")
    assert find_notebook("01_one_run").is_file()


def test_without_jupyter_there_is_one_sentence(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("a")
    monkeypatch.setitem(sys.modules, "papermill", None)
    said = r'notebooks need the extra nb, found no papermill: pip install "golfcore\[nb\]"'
    with pytest.raises(UserError, match=said):
        run_notebook("a", {})
    assert [path.name for path in project.iterdir()] == ["notebooks"]


# -- executing

LOOK = "import os, sys; print(sys.executable, os.getcwd(), text, count, rate, flag, sep='|')"
MARKED = "import glob; print(bool(glob.glob(f'{folder}/notebooks/*/done.json')))"


def test_a_notebook_runs_in_this_python_and_is_marked_while_it_is_done(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even where the machine's kernel named python3 is another program; run again, it is not done before its end."""
    kernel = project / "jupyter" / "kernels" / "python3" / "kernel.json"
    files.write_json(kernel, {"argv": ["/nowhere", "{connection_file}"], "display_name": "x", "language": "python"})
    monkeypatch.setenv("JUPYTER_PATH", str(kernel.parents[2]))
    values = {"text": "b", "count": 7, "rate": 0.5, "flag": False, "folder": "out"}
    folder = Path("out/notebooks") / f"a-{files.sha256_text(files.canonical_json(values))[:8]}"
    write("a", LOOK, MARKED, "if os.path.exists('stop'): raise RuntimeError('stopped')")
    given = {"count": "7", "text": "b", "folder": "out"}
    executed = run_notebook("a", given, Path("out"))
    expected = f"{sys.executable}|{project}|b|7|0.5|False\nFalse\n"
    assert printed(executed) == expected and capsys.readouterr().out == expected
    assert executed == folder / "a.ipynb"
    record = json.loads((folder / MARKER).read_text())
    assert record["parameters"] == values and record["seconds"] > 0
    assert record["sha256"] == files.sha256_file(executed)
    Path("stop").touch()
    with pytest.raises(NotebookFailed) as e:
        run_notebook("a", given, Path("out"))
    assert "RuntimeError: stopped" in str(e.value) and str(executed) in str(e.value) and "\x1b" not in str(e.value)
    assert not (folder / MARKER).exists()


@pytest.mark.parametrize(
    ("cell", "error", "said"),
    [
        ("from golfcore import config; config.load('nonsense')", UserError, "^presets: unknown preset 'nonsense'"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", NotebookFailed, "Kernel died.*or killed"),
        ("raise KeyboardInterrupt", KeyboardInterrupt, None),
    ],
    ids=["a user's mistake", "killed", "interrupted"],
)
def test_what_ends_a_cell_ends_the_driver(project: Path, cell: str, error: type, said: str | None) -> None:
    write("a", cell, "print('after')")
    with pytest.raises(error, match=said):
        run_notebook("a", {})
    assert not list(project.rglob(MARKER))


# -- inside a notebook


def test_the_command_for_several_gpus_does_the_same_run() -> None:
    settings = "model.blocks=[0, 1]; schedule.iterations=20, ttt.lr=0.001"
    cfg = notebook.configure("smoke", 3, settings, "my data")
    command = notebook.torchrun("smoke", 3, settings, "my data", Path("out"), 8)
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert command[command.index("--nproc-per-node") + 1] == "8"
    args = cli._parser().parse_args(command[command.index("golfcore") + 1 :])
    assert config.load(args.preset, dict(args.changes)).hash == cfg.hash and args.out == Path("out")
    assert (cfg.run.seed, Path(cfg.data.path).name, cfg.schedule.iterations) == (3, "my data", 20)


def test_a_launched_command_prints_as_it_goes_and_fails_loudly(capsys: pytest.CaptureFixture[str]) -> None:
    notebook.launch([sys.executable, "-c", "print('one\\rtwo\\n\\nthree')"])
    assert capsys.readouterr().out.splitlines()[1:] == ["one", "two", "three"]
    with pytest.raises(UserError, match="found exit status 3"):
        notebook.launch([sys.executable, "-c", "raise SystemExit(3)"])


# -- figures of runs


def test_figures_of_one_run_lie_in_the_folder_and_of_several_below(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {name: make_run(Path(RUNS, name)) for name in ("one", "two")}
    monkeypatch.setattr("golfcore.plots.figures.text_of", lambda run: made[run.id][1])
    monkeypatch.setattr("golfcore.plots.run.FIGURES", {"ttt": FIGURES["ttt"]})

    def drawn(*args: str) -> list[Path]:
        assert cli.main(["figures", *args]) == 0
        return [Path(line) for line in capsys.readouterr().out.splitlines()]

    alone = drawn("two", "--out", "alone")
    assert {path.parent for path in alone} == {Path("alone")} and len(alone) == 3
    assert figure_index.read_index(Path("alone"))["ttt"]["runs"][0]["run"] == "two"
    before = {path: path.read_bytes() for path in alone}
    assert drawn("--out", "alone") == alone and before == {path: path.read_bytes() for path in alone}
    assert {path.parent for path in drawn("one", "two", "--out", "all")} == {Path("all/one"), Path("all/two")}
    index = json.loads(Path("all/one/index.json").read_text())
    assert index["ttt"]["draw"] == "golfcore figures OUT/smoke --out OUT/figures"
