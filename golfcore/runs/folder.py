"""A run folder with its configuration: made, opened again, found by its path or id. And where results go."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from golfcore.base import files
from golfcore.base.errors import UserError
from golfcore.base.records import CONFIG, COVERAGE, ENVIRONMENT, METRICS, RunFolder
from golfcore.config import Config, differences, from_dict, to_dict

RUNS = "papermill_runs"
LOCK = ".lock"
BEGUN = {ENVIRONMENT, METRICS, COVERAGE}  # what a start that was cut short may have left


def project_dir() -> Path:
    """The project that the working directory lies in, as a relative path; the working directory if in none.

    It is the nearest folder upwards that holds papermill_runs/ or golfcore's own pyproject.toml.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        try:
            ours = (folder / RUNS).is_dir() or 'name = "golfcore"' in (folder / "pyproject.toml").read_text()
        except (OSError, UnicodeDecodeError):
            ours = False
        if ours:
            return Path(os.path.relpath(folder, here))
    return Path()


def runs_dir() -> Path:
    """The project's folder of runs."""
    return project_dir() / RUNS


def identity(cfg: Config) -> str:
    """16 hex digits that tell configurations and their data apart: the configuration's hash, and that of its data."""
    if not cfg.data.path:
        return cfg.hash
    from golfcore.data.datasets import open_dataset  # imports torch, which a list of runs does without

    return files.sha256_text(cfg.hash + open_dataset(cfg.data.path).data_hash)[:16]


def default_out(cfg: Config) -> Path:
    """The usual folder of a run: papermill_runs/PRESET-HASH. UserError: no data in `data.path`."""
    return runs_dir() / f"{cfg.name}-{identity(cfg)[:8]}"


def open_run(path: Path, config: Config, data_hash: str, environment: Mapping[str, object]) -> RunFolder:
    """Create a run folder, or open one made with the same configuration and data (UserError if it was another).

    `environment`: facts of this start, added to those of earlier ones. What is recorded of a configuration but
    changes no number (where its data lie, how often it logs) becomes what it is now.
    """
    run = RunFolder(path)
    where = run.file(CONFIG)
    if where.exists():
        found = run.record()
        theirs, on = from_dict(found["config"], str(where)), found["data_hash"]
        if theirs.hash != config.hash:
            raise UserError(
                f"{path}: expected a run of configuration {config.hash} ({config.name}), found {theirs.hash} "
                f"({theirs.name}; {differences(theirs, config)}); choose another --out"
            )
        if on != data_hash:
            raise UserError(f"{path}: expected data {data_hash[:12]}, found a run on {on[:12]}; choose another --out")
        files.sweep_parts(path)
        if theirs != config:
            files.write_record(where, found | {"config": to_dict(config)})
    else:
        _check_free(path)
        for name in (METRICS, COVERAGE):
            run.file(name).unlink(missing_ok=True)
        files.write_record(where, {"config": to_dict(config), "hash": config.hash, "data_hash": data_hash})
    run.started(environment)
    return run


def _check_free(path: Path) -> None:
    """UserError unless nothing is at `path`, or only what golfcore or an editor leaves."""
    for folder in (path, *path.parents):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: expected a folder or none yet, found a file; choose another --out")
    names = {p.name for p in path.iterdir() if not p.name.startswith(".")} if path.exists() else set()
    if others := ", ".join(sorted(names - BEGUN)[:3]):
        raise UserError(f"{path}: expected a run folder or an empty one, found {others}; choose another --out")


@contextmanager
def held(path: Path) -> Iterator[None]:
    """The run folder at `path`, there or not yet, for this process alone; a process that has died holds nothing.

    UserError: another process works on it, or what is there is no run folder.
    """
    if not (path / CONFIG).exists():
        _check_free(path)
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        wanted = "expected a run folder that no other process works on"
        raise UserError(f"{path}: {wanted}, found one in use; wait, or choose another --out") from None
    try:
        yield
    finally:
        lock.release()


def in_use(path: Path) -> bool:
    """Whether a process that lives works in the run folder."""
    if not (path / LOCK).exists():
        return False
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def find_run(path: Path) -> RunFolder:
    """The run folder at `path`, or below papermill_runs at that path or of that id (UserError: none, or several)."""
    for place in (path, runs_dir() / path):
        if (place / CONFIG).exists():
            return RunFolder(place)
    if path.exists():
        what = "a folder without config.json" if path.is_dir() else "a file"
        raise UserError(f"{path}: expected a run folder, found {what}")
    found = [run for run in run_folders(runs_dir()) if run.id == str(path)]
    if len(found) != 1:
        some = f"{len(found)} of that id ({', '.join(str(run.path) for run in found[:4])})" if found else "neither"
        raise UserError(f"{path}: expected a run folder or a file of this name, or the id of one run, found {some}")
    return found[0]


def find_target(path: Path) -> Path:
    """`path` if it exists, else the folder of the run of that id; for what takes runs and files. UserError: neither."""
    return path if path.exists() else find_run(path).path


def run_folders(folder: Path) -> list[RunFolder]:
    """The run folders at any depth below `folder`, by path; nothing is looked for inside of one."""
    found = []
    for here, below, names in os.walk(folder):
        if CONFIG in names or CONFIG in below:
            found.append(RunFolder(Path(here)))
            below.clear()
        below[:] = [name for name in below if not name.startswith(".")]
    return sorted(found, key=lambda run: run.path)
