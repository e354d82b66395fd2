"""The index of a folder of figures: for each figure its runs, the commands that make it from nothing, and its files.

Runs stand whole in a file beside it, each once.

Commands name no path of the machine that ran them: OUT stands for a folder that is made, DATA for the folder of the
data whose hash the runs state. Runs on the embedded corpus need none.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from golfcore import config
from golfcore.analysis.runs import provenance, report
from golfcore.base import files
from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.config import Config

NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
OUT, DATA = "OUT", "DATA"
RUNS = "runs.json"  # by a name and a hash: the runs of a folder's figures
ENTRIES: files.Schema = {"*": {"files?": {"*": str}, "runs?": [str], "caption?": str}}
PAGE, OURS = "README.md", "<!-- Written from index.json by golfcore: changes made here are lost. -->"
ABOUT = f"""Each figure is a `NAME.svg` and a `NAME.png` beside `NAME.csv`, the table that it draws: anything it shows
can be read as a number. `index.json` says of which runs it is, the commands that make it from nothing, and the hashes
of its files; `runs.json` holds the runs, with their full configuration, seed, data hash, code version and the legality
of their scores. In the commands {OUT} stands for any folder, and {DATA} for the folder of a text other than the
embedded corpus; `golfcore.plots.index.recorded` spells them for a folder of yours. `golfcore figures` draws all again
from their tables."""


def read_index(folder: Path) -> dict[str, dict]:
    """What is known of each figure in `folder` ({} if there is no index), with its runs whole.

    UserError: an entry that is none, or that names a run which RUNS does not have.
    """
    path, beside = folder / "index.json", folder / RUNS
    index = files.read_json(path, "an index of figures", ENTRIES) if path.exists() else {}
    known = files.read_json(beside, "the runs of figures", {"*": dict}) if beside.exists() else {}
    for name, entry in index.items():
        checked_name(name, str(path))
        if "runs" in entry:
            config.keys(entry["runs"], list(known), f"{path}, {name}", "run")
            entry["runs"] = [known[key] for key in entry["runs"]]
    return index


def write_index(folder: Path, entries: Mapping[str, Mapping]) -> None:
    """Add or replace entries of the folder's index, by name of figure; their runs go into RUNS, each once."""
    index, known = dict[str, dict](), dict[str, object]()
    for name, entry in (read_index(folder) | dict(entries)).items():
        index[name] = dict(entry)
        if "runs" in entry:
            keyed = {f"{run['run']}-{files.sha256_json(run)[:8]}": run for run in entry["runs"]}
            index[name]["runs"], known = list(keyed), known | keyed
    files.write_json(folder / RUNS, known)  # first: an index names only what is there
    files.write_json(folder / "index.json", index)
    there = folder / PAGE
    if not there.exists() or OURS in files.read_text(there, "a page of figures"):
        beside = [path.name for path in sorted(folder.glob("*.md")) if path != there]
        files.write_text(there, page(index, beside))


def page(index: Mapping[str, Mapping], beside: Sequence[str] = ()) -> str:
    """What an index lists, for people: each figure small, what it says, the runs behind it and its commands.

    `beside`: further texts of the folder.
    """
    links = ", ".join(f"[{name}]({name})" for name in beside)
    parts = ["# Figures", OURS, ABOUT, f"What they say together: {links}." if links else ""]
    for name, entry in sorted(index.items()):
        runs = [str(key).rpartition("-")[0] for key in entry.get("runs", [])]
        commands = dict.fromkeys(str(entry[key]) for key in ("train", "draw") if entry.get(key))
        parts += [f"## {name}", f'<img src="{name}.svg" width="560" alt="{name}">', str(entry.get("caption", ""))]
        parts += [f"[Table]({name}.csv). " + (f"Runs: {', '.join(runs)}." if runs else "Of no run.")]
        parts += ["```sh\n" + "\n".join(commands) + "\n```"] if commands else []
    return "\n\n".join(part for part in parts if part) + "\n"


def checked_name(name: str, where: str) -> str:
    """The name, if it can only be a file right in its folder (UserError otherwise)."""
    if not NAME.fullmatch(name):
        raise UserError(f"{where}: expected names of letters, digits, '.', '_', '+' and '-', found {name!r}")
    return name


# -- where figures come from


def origin(runs: Sequence[RunFolder], train: str, draw: str = "") -> dict[str, object]:
    """An entry's `runs`, `train` and `draw`: every run whole, and commands as `by_run` and `by_notebook` spell them.

    Without `draw`, `train` also draws. UserError: a run that has not finished.
    """
    return {"runs": [_run(run) for run in runs], "train": train, "draw": draw or train}


def _run(run: RunFolder) -> dict[str, object]:
    """What the run's results state of their source, its whole configuration, and the legality of each score.

    The configuration is without the folder of its data: their hash identifies them wherever they lie.
    """
    found, cfg = report(run), config.of_run(run)
    whole = config.to_dict(replace(cfg, data=replace(cfg.data, path="")))
    return {
        **provenance(run),
        **found["source"],
        "config_hash": cfg.hash,
        "config": whole,
        "data_source": "another folder of shards and a tokenizer" if cfg.data.path else "embedded corpus",
        "legality": {name: measure["legality"] for name, measure in found["measures"].items()},
    }


def by_run(cfg: Config) -> str:
    """`golfcore run` into OUT/NAME: the nearest preset, and every value of `cfg` that it does not have."""
    changes = {name: _changes(config.load(name), cfg) for name in config.preset_names()}
    preset = min(changes, key=lambda name: (len(changes[name]), name != cfg.name))
    options = [part for change in changes[preset] for part in ("--set", change)]
    data = ["--data", DATA] if cfg.data.path else []
    return shlex.join(["golfcore", "run", preset, *options, *data, "--out", f"{OUT}/{cfg.name}"])


def _changes(preset: Config, cfg: Config) -> list[str]:
    """ "section.key=value" for each value of `cfg` that the preset does not have, but for the folder of the data."""
    theirs, ours = (config.to_dict(replace(c, name="", data=replace(c.data, path=""))) for c in (preset, cfg))
    return [
        f"{section}.{key}={value if isinstance(value, str) else json.dumps(value)}"
        for section, values in ours.items()
        if isinstance(values, dict)
        for key, value in values.items()
        if value != theirs[section][key]
    ]


def by_notebook(name: str, parameters: Mapping[str, object]) -> str:
    """`golfcore notebook NAME` with these parameters; those that are folders become OUT/runs, OUT/figures and DATA."""
    folders = {"out": f"{OUT}/runs", "figures": f"{OUT}/figures"}
    values = {k: v for k, v in parameters.items() if k not in (*folders, "data_path")} | folders
    values |= {"data_path": DATA} if parameters.get("data_path") else {}
    given = [part for k, v in values.items() for part in ("-p", k, str(v))]
    return shlex.join(["golfcore", "notebook", name, *given, "--out", OUT])


def recorded(folder: Path, name: str, out: Path, data: Path | None = None) -> list[list[str]]:
    """The commands that make the figure `name` of the index in `folder` from nothing, as argv, all below `out`.

    The figure then lies in out/figures. Runs of one name that are made by other commands lie apart, below a hash.
    UserError: no such figure, an entry without commands, or one whose runs read other text than the embedded corpus and
    no `data`.
    """
    index = read_index(folder)
    config.keys([name], list(index), str(folder / "index.json"))
    commands = list(dict.fromkeys(str(index[name].get(key, "")) for key in ("train", "draw")))
    if not all(commands):
        raise UserError(f"{folder / 'index.json'}: expected the commands 'train' and 'draw' of {name}, found none")
    found = [shlex.split(command) for command in commands]
    if data is None and any(DATA in argv for argv in found):
        hashes = {run.get("data") for run in index[name].get("runs", [])}
        raise UserError(f"{name}: expected the folder of data {', '.join(map(str, hashes))}, found none given")
    placed = [[_placed(part, out, data) for part in argv] for argv in found]
    trained = {str(entry.get("train", "")) for entry in index.values()} | {commands[0]}
    own = _made(commands[0])
    if not own or sum(_made(command) == own for command in trained) == 1:
        return placed
    there, apart = _placed(own, out, data), str(out / files.sha256_text(commands[0])[:8] / Path(own).name)
    return [[apart if part == there else part for part in argv] for argv in placed]


def _made(command: str) -> str:
    """The folder that `golfcore run ... --out FOLDER` makes; "" of another command."""
    argv = shlex.split(command)
    return argv[argv.index("--out") + 1] if argv[1:2] == ["run"] else ""


def others(folder: Path, names: Sequence[str], made: Path) -> list[str]:
    """The files of figures of the index in `folder` that in the folder `made` are missing or others."""
    listed = read_index(folder)
    known = {file: sha for name in names for file, sha in listed[name].get("files", {}).items()}
    return [f for f, sha in known.items() if not (made / f).exists() or files.sha256_file(made / f) != sha]


def _placed(part: str, out: Path, data: Path | None) -> str:
    if part == OUT or part.startswith(f"{OUT}/"):
        return str(out) + part.removeprefix(OUT)
    return str(data) if part == DATA else part
