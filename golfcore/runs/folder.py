"""A run folder with its configuration: made, opened again, found."""

from collections.abc import Mapping
from pathlib import Path

from golfcore.base import files
from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.config import Config, differences, from_dict, to_dict


def open_run(path: Path, config: Config, data_hash: str, environment: Mapping[str, object]) -> RunFolder:
    """Create a run folder, or open one made with the same configuration and data (UserError if it was another)."""
    run = RunFolder(path)
    wanted = {"config": to_dict(config), "hash": config.hash, "data_hash": data_hash}
    where = run.file("config.json")
    if where.exists():
        found = files.read_json(where, "a run's configuration")
        theirs = from_dict(found["config"], str(where))
        if theirs.hash != config.hash:
            raise UserError(
                f"{path}: expected a run of configuration {config.hash} ({config.name}), found {theirs.hash} "
                f"({theirs.name}; {differences(theirs, config)}); choose another --out"
            )
        if found["data_hash"] != data_hash:
            raise UserError(f"{path}: expected a run on data {data_hash[:12]}, found {found['data_hash'][:12]}")
        return run
    if path.exists() and any(path.iterdir()):
        raise UserError(f"{path}: expected a run folder or an empty one, found other files; choose another --out")
    files.write_json(run.file("env.json"), dict(environment))
    files.write_json(where, wanted)
    return run


def find_run(path: Path) -> RunFolder:
    """The run folder at `path` (UserError if it is none)."""
    if not (path / "config.json").exists():
        raise UserError(f"{path}: expected a run folder, found no config.json in it")
    return RunFolder(path)
