"""Notebooks in batch, and what they need inside: parameters that are checked, a kernel that is this Python, a marker
that is only there when everything ran.

papermill alone would run on with an unknown parameter, take whatever kernel is called "python3" on the machine, and
leave a cell that timed out or was killed marked "completed".
"""

import ast
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from golfcore import config
from golfcore.base import files
from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.config import Config
from golfcore.runs.folder import find_run

RUNS = Path("papermill_runs")
MARKER = "done.json"
NOTHING: Mapping[str, object] = MappingProxyType({})


class NotebookFailed(Exception):
    """A cell raised, or the kernel died: says where, with the cell's own traceback."""


# -- executing


def run_notebook(
    name: str, parameters: Mapping[str, object] = NOTHING, out: Path = RUNS, notebooks: Path | None = None
) -> Path:
    """Execute notebook `name` and return the executed copy, out/notebooks/NAME-HASH/NAME.ipynb.

    The hash is of all parameters. What the cells print appears here as they run; they run in the current folder. The
    marker `done.json` beside the copy is written last. Raises UserError for an unknown notebook or parameter, a value
    of another type, a UserError in a cell, or papermill not being installed; NotebookFailed if a cell failed
    otherwise.
    """
    papermill = _papermill()
    source = find_notebook(name, notebooks)
    values = checked(parameters, defaults(source), f"notebook {source.stem}")
    folder = out / "notebooks" / f"{source.stem}-{files.sha256_text(files.canonical_json(values))[:8]}"
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
    record = files.read_json(marker, "a completion marker")
    executed = folder / f"{record['notebook']}.ipynb"
    return executed.exists() and files.sha256_file(executed) == record["sha256"]


def find_notebook(name: str, notebooks: Path | None = None) -> Path:
    """The notebook `name` in the given folder, else in ./notebooks, else beside the package (UserError if none)."""
    places = [notebooks] if notebooks else [Path("notebooks"), Path(__file__).parents[1] / "notebooks"]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        raise UserError(f"{places[0]}: expected a folder of notebooks, found none")
    config.keys([name.removesuffix(".ipynb")], sorted(path.stem for path in folder.glob("*.ipynb")), str(folder))
    return folder / f"{name.removesuffix('.ipynb')}.ipynb"


def defaults(notebook: Path) -> dict[str, Any]:
    """The parameters of a notebook with their default values.

    Its cell tagged "parameters" must hold nothing but names set to literals (ValueError otherwise). It is parsed here
    because papermill's own reader drops a line without failing when it finds a second "=" in it, be it in a comment.
    """
    cells = files.read_json(notebook, "a notebook")["cells"]
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(f"{notebook}: expected one cell tagged parameters, found {len(tagged)}")
    found = {}
    for statement in ast.parse("".join(tagged[0]["source"])).body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        value = getattr(statement, "value", None)
        if not (isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name) and value):
            raise ValueError(f"{notebook}: expected assignments in the parameters cell, found {ast.unparse(statement)}")
        found[target.id] = ast.literal_eval(value)
    return found


def checked(given: Mapping[str, object], known: Mapping[str, Any], where: str) -> dict[str, Any]:
    """All parameters: those given, as the type of their default, and the other defaults (UserError if one is wrong)."""
    config.keys(given, list(known), where)
    return {**known, **{k: config.coerce(v, type(known[k]), f"{where}, {k}") for k, v in given.items()}}


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
    """ "a.b=1, c.d=[2, 3]" as pairs; between them a semicolon, a new line, or a comma before the next section.key=."""
    pairs = {}
    for piece in re.split(r"[;\n]|,(?=\s*\w+\.\w+\s*=)", text):
        key, equals, value = (part.strip() for part in piece.partition("="))
        if piece.strip() and not equals:
            raise UserError(f"overrides: expected section.key=value, found {piece.strip()!r}")
        if equals:
            pairs[key] = value
    return pairs


def finished_run(run: str, preset: str, seed: int, overrides: str, data_path: str, out: str) -> RunFolder:
    """The finished run at `run`; "" is that of `preset` in `out` (or its usual folder), which is done first if need be.

    Prints its table. UserError: no run there, or one that has not finished, and as `configure` and `pipeline.run`.
    """
    from golfcore.analysis.runs import report
    from golfcore.runs import pipeline

    if not run:
        cfg = configure(preset, seed, overrides, data_path)
        return pipeline.run(cfg, Path(out) if out else pipeline.default_out(cfg))
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
