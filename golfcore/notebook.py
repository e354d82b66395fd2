"""Notebooks in batch: parameters are checked, the kernel is this Python, and done means that everything ran.

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
from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.config import Config
from golfcore.runs import sweep
from golfcore.runs.folder import default_out, find_run, identity, project_dir, runs_dir

MARKER = "done.json"
NOTEBOOK_SCHEMA = {"cells": [{"cell_type": str, "source": (str, [str]), "metadata": {"tags?": [str]}}]}
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
    """Execute notebook `name` in the current folder; the executed copy, OUT/notebooks/NAME-HASH/NAME.ipynb.

    OUT is the project's papermill_runs if `out` is None; the hash is of all parameters. What the cells print appears
    here as they run. The marker `done.json` beside the copy is written last. UserError: an unknown notebook or
    parameter, a value that cannot be, a UserError in a cell, no papermill. NotebookFailed: a cell failed otherwise.
    """
    source = find_notebook(name, notebooks)
    values = checked(parameters, defaults(source), f"notebook {source.stem}")
    papermill, began = _papermill(), time.monotonic()
    hashed = files.sha256_text(files.canonical_json(values))[:8]
    folder = (out or runs_dir()) / "notebooks" / f"{source.stem}-{hashed}"
    executed, marker = folder / source.name, folder / MARKER
    folder.mkdir(parents=True, exist_ok=True)
    marker.unlink(missing_ok=True)
    _execute(papermill, source, executed, values)
    record = {"notebook": source.stem, "parameters": values, "seconds": time.monotonic() - began}
    files.write_json(marker, record | {"sha256": files.sha256_file(executed)})
    return executed


def find_notebook(name: str, notebooks: Path | None = None) -> Path:
    """The notebook `name` in the given folder, else in the project's notebooks/, else beside or in the package.

    UserError if there is none.
    """
    package, stem = Path(__file__).parent, name.removesuffix(".ipynb")
    usual = [place / "notebooks" for place in (project_dir(), package.parent, package)]
    folder = next((place for place in ([notebooks] if notebooks else usual) if place.is_dir()), None)
    if folder is None:
        raise UserError(f"{notebooks or usual[0]}: expected a folder of notebooks, found none")
    config.keys([stem], sorted(path.stem for path in folder.glob("*.ipynb")), str(folder), "notebook")
    return folder / f"{stem}.ipynb"


def parameters_of(notebook: Path) -> list[Parameter]:
    """The parameters of a notebook: names set to literals in its cell tagged "parameters" (ValueError otherwise).

    Not by papermill's own reader, which drops a line in silence if it finds a second "=" in it, be it in a comment.
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
    config.keys(given, list(known), where, "parameter")
    values = {**known, **{k: config.coerce(v, type(known[k]), f"{where}, {k}") for k, v in given.items()}}
    for name, value in values.items():
        if name in VALID and (value != "" or known[name] != ""):  # text that may be left out is empty by default
            try:
                VALID[name](value)
            except UserError as e:
                raise UserError(f"{where}, {name}: {str(e).removeprefix(f'{name}: ')}") from None
    if {"preset", "seed", "overrides"} <= values.keys() and not values.get("run"):
        configure(*(values.get(name, "") for name in ("preset", "seed", "overrides", "data_path")))
    if {"sweep", "size", "arms", "overrides"} <= values.keys():
        plan = sweep.load(values["sweep"], values["size"], config.parse_overrides(values["overrides"]))
        plan.only(sweep.names_in(values["arms"], list(plan.arms)))
    return values


def _at_least(low: int) -> Callable[[int], object]:
    def check(value: int) -> None:
        if value < low:
            raise UserError(f"expected at least {low}, found {value}")

    return check


VALID: dict[str, Callable[[Any], object]] = {  # what a parameter of this name may be, in every notebook
    "preset": config.load,
    "size": lambda value: config.keys([value], config.size_names(), "sizes", "size"),
    "seeds": sweep.seeds_in,
    "arms": lambda value: sweep.names_in(value, ["all"]),
    "cells": lambda value: sweep.names_in(value, ["all"], "cells"),
    "overrides": config.parse_overrides,
    "changes": config.parse_overrides,
    "run": lambda value: find_run(Path(value)),
    "data_path": lambda value: identity(config.load("smoke", {"data.path": value})),
    "clock": lambda value: config.keys([value], ["steps", "wall"], "clocks", "clock"),
    "processes": _at_least(1),
    "most": _at_least(1),
    "val_tokens": _at_least(0),
    "repeats": _at_least(0),
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


split_overrides = config.parse_overrides  # the pairs in a notebook's text of overrides


def finished_run(run: str, preset: str, seed: int, overrides: str, data_path: str, out: str) -> RunFolder:
    """The finished run at `run`; "" is that of `preset` in `out` (or its usual folder), which is done if need be.

    Prints its table. UserError: no run there, one that has not finished, and as `configure` and `pipeline.run`.
    """
    from golfcore.runs import pipeline

    if not run:
        cfg = configure(preset, seed, overrides, data_path)
        return pipeline.run(cfg, Path(out) if out else default_out(cfg))
    found = find_run(Path(run))
    print(pipeline.table(found.results()))
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
