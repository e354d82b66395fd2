"""Notebooks in batch, and what they need inside: parameters that are checked, a kernel that is this Python, a marker
that is only there when everything ran.

papermill alone would run on with an unknown parameter, take whatever kernel is called "python3" on the machine, and
leave a cell that timed out or was killed marked "completed".
"""

import ast
import io
import shlex
import subprocess
import sys
import time
import tokenize
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

from golfcore import config
from golfcore.base import files
from golfcore.base.errors import UserError, shown
from golfcore.base.records import RunFolder
from golfcore.config import Config
from golfcore.runs import sweep
from golfcore.runs.folder import default_out, find_run, project_dir, runs_dir

MARKER = "done.json"
MARKER_SCHEMA = {"notebook": str, "parameters": dict, "seconds": float, "sha256": str}
CELL_SCHEMA = {"cell_type": str, "source": (str, [str]), "metadata": {"tags?": [str]}}
NOTEBOOK_SCHEMA = {"cells": [CELL_SCHEMA]}
TYPES = {"str": str, "int": int, "float": float, "bool": bool}  # of parameters
NOTHING: Mapping[str, object] = MappingProxyType({})


class Parameter(NamedTuple):
    """A parameter of a notebook, from a line `name: type = default  # comment`."""

    name: str
    default: Any
    comment: str


class NotebookFailed(Exception):
    """A cell raised, or the kernel died: says where, with the cell's own traceback."""


# -- executing


def run_notebook(
    name: str, parameters: Mapping[str, object] = NOTHING, out: Path | None = None, notebooks: Path | None = None
) -> Path:
    """Execute notebook `name` and return the executed copy, OUT/notebooks/NAME-HASH/NAME.ipynb.

    OUT is the project's papermill_runs if `out` is None; the hash is of all parameters. What the cells print appears
    here as they run; they run in the current folder. The marker `done.json` beside the copy is written last. Raises
    UserError for an unknown notebook or parameter, a value that cannot be, a UserError in a cell, or papermill not
    being installed; NotebookFailed if a cell failed otherwise.
    """
    source = find_notebook(name, notebooks)
    values = checked(parameters, defaults(source), f"notebook {source.stem}")
    papermill = _papermill()
    hashed = files.sha256_text(files.canonical_json(values))[:8]
    folder = (out or runs_dir()) / "notebooks" / f"{source.stem}-{hashed}"
    executed, marker = folder / source.name, folder / MARKER
    folder.mkdir(parents=True, exist_ok=True)
    marker.unlink(missing_ok=True)
    began = time.monotonic()
    _execute(papermill, source, executed, values)
    record = {"notebook": source.stem, "parameters": values, "seconds": time.monotonic() - began}
    files.write_json(marker, record | {"sha256": files.sha256_file(executed)})
    return executed


def is_complete(folder: Path) -> bool:
    """Whether a notebook ran to its end in `folder` and its executed copy is as it was then."""
    marker = folder / MARKER
    if not marker.exists():
        return False
    record = files.read_json(marker, "a completion marker", MARKER_SCHEMA)
    executed = files.below(folder, f"{record['notebook']}.ipynb", str(marker))
    return executed.exists() and files.sha256_file(executed) == record["sha256"]


def find_notebook(name: str, notebooks: Path | None = None) -> Path:
    """The notebook `name` in the given folder, else in the project's notebooks/, else beside or in the package.

    UserError if there is none.
    """
    package = Path(__file__).parent
    places = [notebooks] if notebooks else [project_dir() / "notebooks", package.parent / "notebooks"]
    folder = next((place for place in (*places, package / "notebooks") if place.is_dir()), None)
    if folder is None or (notebooks and folder != notebooks):
        raise UserError(f"{places[0]}: expected a folder of notebooks, found none")
    config.keys([name.removesuffix(".ipynb")], sorted(path.stem for path in folder.glob("*.ipynb")), str(folder))
    return folder / f"{name.removesuffix('.ipynb')}.ipynb"


def parameters_of(notebook: Path) -> list[Parameter]:
    """The parameters of a notebook, in order.

    Its cell tagged "parameters" must hold nothing but names set to literals, each perhaps with its type (ValueError
    otherwise). It is parsed here because papermill's own reader drops a line without failing when it finds a second
    "=" in it, be it in a comment.
    """
    cells = files.read_json(notebook, "a notebook", NOTEBOOK_SCHEMA)["cells"]
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(f"{notebook}: expected one cell tagged parameters, found {len(tagged)}")
    code, found = "".join(tagged[0]["source"]), []
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    for line in ast.parse(code).body:
        target = line.target if isinstance(line, ast.AnnAssign) else getattr(line, "targets", [None])[0]
        if not (isinstance(line, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name) and line.value):
            raise ValueError(f"{notebook}: expected assignments in the parameters cell, found {ast.unparse(line)}")
        default = ast.literal_eval(line.value)
        if isinstance(line, ast.AnnAssign):
            hint = TYPES.get(ast.unparse(line.annotation))
            default = float(default) if hint is float and type(default) is int else default
            if type(default) is not hint:
                raise ValueError(f"{notebook}: expected a value of its type, one of {list(TYPES)}: {ast.unparse(line)}")
        found.append(Parameter(target.id, default, comments.get(line.end_lineno or 0, "")))
    return found


def defaults(notebook: Path) -> dict[str, Any]:
    """The parameters of a notebook with their default values; errors as `parameters_of`."""
    return {p.name: p.default for p in parameters_of(notebook)}


def describe(name: str, notebooks: Path | None = None) -> str:
    """What `golfcore notebook NAME --help` prints: each parameter with its type, default and comment."""
    source = find_notebook(name, notebooks)
    found = parameters_of(source)
    typed = [f"{p.name}: {type(p.default).__name__} = {p.default!r}" for p in found]
    width = min(max(map(len, typed), default=0), 48)
    lines = [f"  {left:{width}}  {p.comment}".rstrip() for left, p in zip(typed, found, strict=True)]
    usage = f"usage: golfcore notebook {source.stem} [-p KEY VALUE] [--out DIR]"
    return "\n".join([usage, "", "parameters:", *lines])


def checked(given: Mapping[str, object], known: Mapping[str, Any], where: str) -> dict[str, Any]:
    """All parameters: those given, as the type of their default, and the other defaults.

    UserError: an unknown name, a value of another type, or one that no cell could use (VALID).
    """
    config.keys(given, list(known), where)
    values = {**known, **{k: config.coerce(v, type(known[k]), f"{where}, {k}") for k, v in given.items()}}
    for name, value in values.items():
        if name in VALID and (value != "" or known[name] != ""):  # text that may be left out is empty by default
            try:
                VALID[name](value)
            except UserError as e:
                raise UserError(f"{where}, {name}: {e}") from None
    if {"preset", "seed", "overrides"} <= values.keys() and not values.get("run"):
        configure(*(values.get(name, "") for name in ("preset", "seed", "overrides", "data_path")))
    if {"sweep", "size", "arms", "overrides"} <= values.keys():
        plan = sweep.load(values["sweep"], values["size"], config.parse_overrides(values["overrides"]))
        plan.only(names_of(values["arms"]) if values["arms"] else ())
    return values


def names_of(text: str) -> list[str]:
    """ "a, b" as names. UserError: none, or one twice."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found or len(set(found)) < len(found):
        raise UserError(f"expected different names separated by commas, found {shown(text)!r}")
    return found


def seeds_of(text: str) -> list[int]:
    """ "1, 2" as seeds. UserError: none, one twice, or one that is no seed."""
    try:
        found = [int(seed) for seed in text.split(",")]
    except ValueError:
        found = []
    if not found or len(set(found)) < len(found) or not all(0 <= seed < 2**32 for seed in found):
        raise UserError(f"expected different seeds of 0 to {2**32 - 1} separated by commas, found {shown(text)!r}")
    return found


def _open_data(folder: str) -> object:
    from golfcore.data.datasets import open_dataset  # imports torch, which most commands here do without

    return open_dataset(folder)


def _one_of(names: Callable[[], Sequence[str]]) -> Callable[[str], object]:
    return lambda value: config.keys([value], list(names()), "it")


def _at_least(low: int) -> Callable[[int], object]:
    def check(value: int) -> None:
        if value < low:
            raise UserError(f"expected at least {low}, found {value}")

    return check


VALID: dict[str, Callable[[Any], object]] = {  # what a parameter of this name may be, in every notebook
    "preset": config.load,
    "size": _one_of(config.size_names),
    "seeds": seeds_of,
    "arms": names_of,
    "cells": names_of,
    "overrides": config.parse_overrides,
    "changes": config.parse_overrides,
    "run": lambda value: find_run(Path(value)),
    "data_path": _open_data,
    "processes": _at_least(1),
    "most": _at_least(1),
    "val_tokens": _at_least(0),
    "repeats": _at_least(0),
    "clock": _one_of(lambda: ["steps", "wall"]),
}


def _papermill() -> ModuleType:
    try:
        import ipykernel  # noqa: F401
        import papermill
    except ImportError as e:
        raise UserError(f'notebooks need the extra nb, found no {e.name}: pip install "golfcore[nb]"') from None
    return papermill


def _execute(papermill: ModuleType, source: Path, executed: Path, values: dict[str, Any]) -> None:
    try:
        papermill.execute_notebook(
            str(source),
            str(executed),
            parameters=values,
            kernel_name="python3",
            kernel_manager_class=_own_kernel(),
            extra_arguments=["--IPKernelApp.log_level=ERROR"],  # or each run warns of Jupyter's usual transport
            progress_bar=False,
            coalesce_streams=True,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
        )
    except papermill.PapermillExecutionError as e:
        if e.ename == UserError.__name__:
            raise UserError(e.evalue) from None
        if e.ename == KeyboardInterrupt.__name__:
            raise KeyboardInterrupt from None
        raise NotebookFailed(f"{executed}: {e}") from None
    except RuntimeError as e:  # the kernel did not start, or died: nbclient's errors
        raise NotebookFailed(f"{executed}: {e} (was it out of memory, or killed?)") from e


def _own_kernel() -> type:
    """A kernel manager that starts this interpreter, whatever the machine's kernel named python3 is."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    class OwnKernel(AsyncKernelManager):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            # Without folders to search there is only ipykernel's own specification, which names sys.executable.
            self.kernel_spec_manager = KernelSpecManager(parent=self, kernel_dirs=[])

    return OwnKernel


# -- inside a notebook


def configure(preset: str, seed: int, overrides: str = "", data_path: str = "") -> Config:
    """The configuration that a notebook's parameters spell. `overrides`: "a.b=v; c.d=w". Errors as `config.load`."""
    pairs: dict[str, object] = {**split_overrides(overrides), "run.seed": seed}
    return config.load(preset, pairs | ({"data.path": data_path} if data_path else {}))


def split_overrides(text: str) -> dict[str, str]:
    """The pairs in a notebook's text of overrides; errors as `config.parse_overrides`."""
    return config.parse_overrides(text)


def finished_run(run: str, preset: str, seed: int, overrides: str, data_path: str, out: str) -> RunFolder:
    """The finished run at `run`; "" is that of `preset` in `out` (or its usual folder), which is done first if need be.

    Prints its table. UserError: no run there, or one that has not finished, and as `configure` and `pipeline.run`.
    """
    from golfcore.analysis.runs import report
    from golfcore.runs import pipeline

    if not run:
        cfg = configure(preset, seed, overrides, data_path)
        return pipeline.run(cfg, Path(out) if out else default_out(cfg))
    found = find_run(Path(run))
    print(pipeline.table(report(found)))
    return found


def torchrun(preset: str, seed: int, overrides: str, data_path: str, out: Path, processes: int) -> list[str]:
    """The command that does the same run on several GPUs of this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    options = [part for k, v in split_overrides(overrides).items() for part in ("--set", f"{k}={v}")]
    data = ["--data", data_path] if data_path else []
    return [*launcher, "-m", "golfcore", "run", preset, "--seed", str(seed), *options, *data, "--out", str(out)]


def launch(command: Sequence[str]) -> None:
    """Run a command and print what it prints. UserError if it fails."""
    print("$", shlex.join(command), flush=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():  # also split where a progress bar returns to the start of its line
            if line.strip():
                print(line, end="", flush=True)
    if process.returncode:
        raise UserError(f"{shlex.join(command)}: expected it to succeed, found exit status {process.returncode}")


# -- figures of runs


def draw_runs(runs: Sequence[Path], out: Path) -> list[Path]:
    """Draw finished runs, one into `out`, several each below it; without any, draw `out` again from its tables."""
    from golfcore.plots.figures import draw_run, redraw

    if not runs:
        return redraw(out)
    found = [find_run(path) for path in runs]
    folders = [out] if len(found) == 1 else [out / run.id for run in found]
    drawn = [draw_run(run, folder) for run, folder in zip(found, folders, strict=True)]
    return [path for figures in drawn for figure in figures.values() for path in figure.paths]
