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
from golfcore.notebook import NotebookFailed, checked, defaults, find_notebook, is_complete, run_notebook
from golfcore.plots.figures import draw_runs
from golfcore.plots.run import FIGURES
from golfcore.runs.folder import RUNS

PARAMETERS = 'text: str = "a"  # a = b, as "k=v"\ncount = 1\nrate: float = 0.5  # a day\nflag = False\nfolder = ""'


@pytest.fixture
def notebooks(tmp_path: Path) -> Path:
    (tmp_path / "notebooks").mkdir()
    return tmp_path / "notebooks"


def write(folder: Path, name: str, *cells: str, parameters: str = PARAMETERS) -> Path:
    """A notebook with a parameters cell and these code cells."""
    tagged = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    nb = nbformat.v4.new_notebook(cells=[tagged, *map(nbformat.v4.new_code_cell, cells)])
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nb, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


def printed(executed: Path) -> str:
    nb: NotebookNode = nbformat.read(executed, as_version=4)
    return "".join(o.text for c in nb.cells for o in c.get("outputs", []) if o.output_type == "stream")


# -- parameters


def test_parameters_are_read_whatever_their_comments_hold(notebooks: Path) -> None:
    found = defaults(write(notebooks, "a"))
    assert found == {"text": "a", "count": 1, "rate": 0.5, "flag": False, "folder": ""}


@pytest.mark.parametrize(
    "cell",
    ["import os", "x = 1 + y", "x, y = 1, 2", "x: int = 'a'", "x: list = []", "x: int", "x += 1", "x.y = 1"],
)
def test_a_parameters_cell_holds_nothing_but_names_set_to_literals(notebooks: Path, cell: str) -> None:
    with pytest.raises(ValueError):
        defaults(write(notebooks, "a", parameters=cell))


def test_given_parameters_take_the_type_of_their_default() -> None:
    known = {"text": "a", "count": 1, "rate": 0.5, "flag": False}
    given = {"text": "12", "count": "3", "rate": "2", "flag": "true"}
    assert checked(given, known, "n") == {"text": "12", "count": 3, "rate": 2.0, "flag": True}
    assert [type(v) for v in checked(given, known, "n").values()] == [str, int, float, bool]
    assert checked({}, known, "n") == known


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"cuont": 1}, "unknown key 'cuont'; did you mean 'count'?"),
        ({"zzz": 1}, "unknown key 'zzz'; known: text, count, rate, flag, folder"),
        ({"count": "many"}, "notebook a, count: expected int, found 'many'"),
        ({"count": 1.5}, "notebook a, count: expected int, found 1.5"),
        ({"count": True}, "notebook a, count: expected int, found True"),
        ({"rate": "fast"}, "notebook a, rate: expected float, found 'fast'"),
        ({"flag": "1"}, "notebook a, flag: expected bool, found 1"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_is_written(notebooks: Path, given: dict, said: str) -> None:
    write(notebooks, "a")
    with pytest.raises(UserError) as e:
        run_notebook("a", given, notebooks.parent / "out", notebooks)
    assert said in str(e.value) and not (notebooks.parent / "out").exists()


def test_an_unknown_notebook_is_refused_with_a_suggestion(notebooks: Path) -> None:
    write(notebooks, "01_one_run")
    with pytest.raises(UserError, match="unknown key '01_one_rum'; did you mean '01_one_run'"):
        run_notebook("01_one_rum", {}, notebooks.parent / "out", notebooks)
    with pytest.raises(UserError, match="nowhere: expected a folder of notebooks"):
        find_notebook("01_one_run", notebooks / "nowhere")


def test_notebooks_are_found_here_and_beside_the_package(notebooks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(notebooks)
    assert find_notebook("01_one_run").is_file()
    mine = write(notebooks, "mine")
    monkeypatch.chdir(notebooks.parent)
    assert find_notebook("mine.ipynb").resolve() == mine


def test_without_jupyter_there_is_one_sentence(notebooks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(notebooks, "a")
    monkeypatch.setitem(sys.modules, "papermill", None)
    with pytest.raises(
        UserError, match=r'notebooks need the extra nb, found no papermill: pip install "golfcore\[nb\]"'
    ):
        run_notebook("a", {}, notebooks.parent / "out", notebooks)


# -- executing

LOOK = "import os, sys; print(sys.executable, os.getcwd(), text, count, rate, flag, sep='|')"
MARKED = "print(os.path.exists(os.path.join(folder, 'done.json')))"


def test_a_notebook_runs_in_this_python_and_is_marked_when_it_is_done(
    notebooks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even where the machine's kernel named python3 is another program."""
    kernel = notebooks.parent / "jupyter" / "kernels" / "python3" / "kernel.json"
    files.write_json(kernel, {"argv": ["/nowhere", "{connection_file}"], "display_name": "x", "language": "python"})
    monkeypatch.setenv("JUPYTER_PATH", str(kernel.parents[2]))
    monkeypatch.chdir(notebooks.parent)
    write(notebooks, "a", LOOK, MARKED)
    given = {"count": "7", "text": "b", "folder": "elsewhere"}
    executed = run_notebook("a", given, Path("out"))
    expected = f"{sys.executable}|{notebooks.parent}|b|7|0.5|False\nFalse\n"
    assert printed(executed) == expected and capsys.readouterr().out == expected
    folder = executed.parent
    assert folder.parent == Path("out/notebooks") and folder.name.startswith("a-")
    record = json.loads((folder / "done.json").read_text())
    assert record["parameters"] == {"text": "b", "count": 7, "rate": 0.5, "flag": False, "folder": "elsewhere"}
    assert record["sha256"] == files.sha256_file(executed) and record["seconds"] > 0
    assert is_complete(folder)
    executed.write_text(executed.read_text() + "\n")
    assert not is_complete(folder)


def test_while_a_notebook_runs_again_it_is_not_complete(notebooks: Path) -> None:
    write(notebooks, "a", "import os", MARKED, "if os.path.exists(folder + '/stop'): raise RuntimeError('stopped')")
    out = notebooks.parent / "out"
    values = files.canonical_json(defaults(notebooks / "a.ipynb") | {"folder": str(out)})
    executed = run_notebook("a", {"folder": str(out)}, out, notebooks)
    folder = executed.parent
    assert folder.name == f"a-{files.sha256_text(values)[:8]}" and is_complete(folder)
    (out / "stop").touch()
    with pytest.raises(NotebookFailed) as e:
        run_notebook("a", {"folder": str(out)}, out, notebooks)
    assert "RuntimeError: stopped" in str(e.value) and str(executed) in str(e.value) and "\x1b" not in str(e.value)
    assert not (folder / "done.json").exists() and not is_complete(folder)


def test_a_mistake_that_a_cell_reports_is_one_sentence_here_too(notebooks: Path) -> None:
    write(notebooks, "a", "from golfcore import config; config.load('nonsense')")
    with pytest.raises(UserError, match="^unknown preset 'nonsense'"):
        run_notebook("a", {}, notebooks.parent / "out", notebooks)


def test_a_kernel_that_is_killed_does_not_look_done(notebooks: Path) -> None:
    write(notebooks, "a", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "print('after')")
    with pytest.raises(NotebookFailed, match="Kernel died.*out of memory, or killed"):
        run_notebook("a", {}, notebooks.parent / "out", notebooks)
    assert not any(is_complete(folder) for folder in (notebooks.parent / "out" / "notebooks").iterdir())


def test_an_interrupted_cell_interrupts_the_driver(notebooks: Path) -> None:
    write(notebooks, "a", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        run_notebook("a", {}, notebooks.parent / "out", notebooks)


# -- inside a notebook


def test_the_command_for_several_gpus_does_the_same_run() -> None:
    settings = "model.blocks=[0, 1]; schedule.iterations=20, ttt.lr=0.001"
    cfg = notebook.configure("smoke", 3, settings, "my data")
    command = notebook.torchrun("smoke", 3, settings, "my data", Path("out"), 8)
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert command[command.index("--nproc-per-node") + 1] == "8"
    args = cli._parser().parse_args(command[command.index("golfcore") + 1 :])
    assert config.load(args.preset, cli.overrides(args)).hash == cfg.hash and args.out == Path("out")
    assert (cfg.run.seed, Path(cfg.data.path).name, cfg.schedule.iterations) == (3, "my data", 20)


def test_a_launched_command_prints_as_it_goes_and_fails_loudly(capsys: pytest.CaptureFixture[str]) -> None:
    notebook.launch([sys.executable, "-c", "print('one\\rtwo\\n\\nthree')"])
    assert capsys.readouterr().out.splitlines()[1:] == ["one", "two", "three"]
    with pytest.raises(UserError, match="found exit status 3"):
        notebook.launch([sys.executable, "-c", "raise SystemExit(3)"])


# -- figures of runs


def test_figures_of_one_run_lie_in_the_folder_and_of_several_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {name: make_run(tmp_path / RUNS / name) for name in ("one", "two")}
    monkeypatch.setattr("golfcore.plots.figures.text_of", lambda run: made[run.id][1])
    monkeypatch.setattr("golfcore.plots.run.FIGURES", {name: FIGURES[name] for name in ("curves", "ttt")})
    monkeypatch.chdir(tmp_path)
    alone = draw_runs([Path(RUNS) / "two"], Path("alone"))
    assert {path.parent for path in alone} == {Path("alone")} and len(alone) == 3 * 2
    assert json.loads(Path("alone/index.json").read_text())["curves"]["runs"][0]["run"] == "two"
    before = {path: path.read_bytes() for path in alone}
    assert draw_runs([], Path("alone")) == alone and before == {path: path.read_bytes() for path in alone}
    several = draw_runs([Path(RUNS) / name for name in made], Path("all"))
    assert {path.parent for path in several} == {Path("all/one"), Path("all/two")}
    index = json.loads(Path("all/one/index.json").read_text())
    assert index["ttt"]["draw"] == "golfcore figures OUT/smoke --out OUT/figures"
    with pytest.raises(UserError, match="gone: expected a run folder"):
        draw_runs([Path("gone")], Path("all"))
