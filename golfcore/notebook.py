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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from golfcore import config
from golfcore.base import files
from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.config import Config
from golfcore.config import parse_overrides as split_overrides
from golfcore.runs.folder import default_out, find_run, project_dir, runs_dir

MARKER = "done.json"
NOTEBOOK_SCHEMA = {"cells": [{"cell_type": str, "source": (str, [str]), "metadata": {"tags?": [str]}}]}
TYPES = (str, int, float, bool)  # of parameters


class NotebookFailed(Exception):
    """A cell raised, or the kernel died: says where, with the cell's own traceback."""


# -- executing


def run_notebook(name: str, parameters: Mapping[str, object], out: Path | None = None) -> Path:
    """Execute notebook `name` in the current folder; the executed copy, OUT/notebooks/NAME-HASH/NAME.ipynb.

    OUT is the project's papermill_runs if `out` is None; the hash is of all parameters. What the cells print appears
    here as they run. The marker `done.json` beside the copy is written last. UserError: an unknown notebook or
    parameter, a value of another type, a UserError in a cell, no papermill. NotebookFailed: a cell failed otherwise.
    """
    source, began = find_notebook(name), time.monotonic()
    values = checked(parameters, defaults(source), f"notebook {source.stem}")
    hashed = files.sha256_text(files.canonical_json(values))[:8]
    folder = (out or runs_dir()) / "notebooks" / f"{source.stem}-{hashed}"
    executed, marker = folder / source.name, folder / MARKER
    _execute(source, executed, marker, values)
    record = {"notebook": source.stem, "parameters": values, "seconds": time.monotonic() - began}
    files.write_json(marker, record | {"sha256": files.sha256_file(executed)})
    return executed


def find_notebook(name: str) -> Path:
    """The notebook `name` of the project, else beside or in the package. UserError if there is none."""
    package, stem = Path(__file__).parent, name.removesuffix(".ipynb")
    places = [place / "notebooks" for place in (project_dir(), package.parent, package)]
    folder = next((place for place in places if place.is_dir()), places[0])
    config.keys([stem], sorted(path.stem for path in folder.glob("*.ipynb")), str(folder), "notebook")
    return folder / f"{stem}.ipynb"


def parameters_of(notebook: Path) -> dict[str, tuple[Any, str]]:
    """Default and comment of each parameter: lines `name: type = default  # comment` of the cell tagged "parameters".

    ValueError: no such cell, or something else in it. papermill's own reader drops a line in silence if it finds a
    second "=" in it, be it in a comment.
    """
    cells = files.read_json(notebook, "a notebook", NOTEBOOK_SCHEMA)["cells"]
    tagged = ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(f"{notebook}: expected one cell tagged parameters, found {len(tagged)}")
    tokens = tokenize.generate_tokens(io.StringIO(tagged[0]).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    found = {}
    for line in ast.parse(tagged[0]).body:
        match line:
            case ast.Assign([ast.Name(name)], value) | ast.AnnAssign(ast.Name(name), _, ast.expr() as value):
                default, hint = ast.literal_eval(value), getattr(line, "annotation", None)
            case _:
                raise ValueError(f"{notebook}: expected names set to literals as parameters, found {ast.unparse(line)}")
        if type(default) not in TYPES or hint and ast.unparse(hint) != type(default).__name__:
            raise ValueError(f"{notebook}: expected text, a number or bool of its type, found {ast.unparse(line)}")
        found[name] = default, comments.get(line.end_lineno or 0, "")
    return found


def defaults(notebook: Path) -> dict[str, Any]:
    return {name: default for name, (default, _) in parameters_of(notebook).items()}


def describe(name: str) -> str:
    """What `golfcore notebook NAME --help` prints: each parameter with its type, default and comment."""
    source = find_notebook(name)
    found = parameters_of(source)
    typed = {name: f"{name}: {type(default).__name__} = {default!r}" for name, (default, _) in found.items()}
    width = min(max(map(len, typed.values()), default=0), 48)
    lines = [f"  {typed[name]:{width}}  {comment}".rstrip() for name, (_, comment) in found.items()]
    return "\n".join([f"usage: golfcore notebook {source.stem} [-p KEY VALUE] [--out DIR]", "", "parameters:", *lines])


def checked(given: Mapping[str, object], known: Mapping[str, Any], where: str) -> dict[str, Any]:
    """All parameters: those given, as the type of their default, and the other defaults.

    UserError: an unknown name, or a value of another type. What a value may be is said by the cell that uses it.
    """
    config.keys(given, list(known), where, "parameter")
    return {**known, **{k: config.coerce(v, type(known[k]), f"{where}, {k}") for k, v in given.items()}}


def _execute(source: Path, executed: Path, marker: Path, values: dict[str, Any]) -> None:
    try:
        import ipykernel  # noqa: F401
        import papermill
        from jupyter_client.kernelspec import KernelSpecManager
        from jupyter_client.manager import AsyncKernelManager
    except ImportError as e:
        raise UserError(f'notebooks need the extra nb, found no {e.name}: pip install "golfcore[nb]"') from None

    class OwnKernel(AsyncKernelManager):
        def _kernel_spec_manager_default(self) -> KernelSpecManager:
            # Without folders to search there is only ipykernel's own specification, which names sys.executable.
            return KernelSpecManager(parent=self, kernel_dirs=[])

    executed.parent.mkdir(parents=True, exist_ok=True)
    marker.unlink(missing_ok=True)
    kernel: dict[str, Any] = {"kernel_name": "python3", "kernel_manager_class": OwnKernel}
    # or each run warns of Jupyter's usual transport, and one that is asked to end shows how its kernel lost a socket
    kernel["extra_arguments"] = ["--IPKernelApp.log_level=CRITICAL"]
    printing = {"progress_bar": False, "coalesce_streams": True, "stdout_file": sys.stdout, "stderr_file": sys.stderr}
    try:
        papermill.execute_notebook(str(source), str(executed), values, **kernel, **printing)
    except papermill.PapermillExecutionError as e:
        if e.ename == UserError.__name__:
            raise UserError(e.evalue) from None
        if e.ename == KeyboardInterrupt.__name__:
            raise KeyboardInterrupt from None
        raise NotebookFailed(f"{executed}: {e}") from None
    except RuntimeError as e:  # the kernel did not start, or died: nbclient's errors
        raise NotebookFailed(f"{executed}: {e} (was it out of memory, or killed?)") from e


def page_of(name: str, run: Path) -> Path:
    """Execute notebook `name` on a finished run, whose folder then holds the page; one that is there stays.

    UserError: a notebook that takes no run, and as `run_notebook`.
    """
    known = defaults(find_notebook(name))
    if "run" not in known:
        raise UserError(f"notebook {name}: expected one with a parameter run, found {', '.join(known)}")
    given = {"run": str(run.resolve())}
    made = [p for p in (run / "notebooks").glob(f"{name}-*/{MARKER}") if _parameters(p) == {**known, **given}]
    return made[0].parent / f"{name}.ipynb" if made else run_notebook(name, given, run)


def _parameters(marker: Path) -> dict[str, Any]:
    return files.read_json(marker, "the record of a notebook").get("parameters", {})


# -- inside a notebook


def configure(preset: str, seed: int, overrides: str = "", data_path: str = "") -> Config:
    """The configuration that a notebook's parameters spell. `overrides`: "a.b=v; c.d=w". Errors as `config.load`."""
    pairs = {**split_overrides(overrides), "run.seed": seed}
    return config.load(preset, pairs | ({"data.path": data_path} if data_path else {}))


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
