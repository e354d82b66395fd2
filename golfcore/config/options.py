"""What the commands take: arguments of the command line, by name."""

from functools import partial
from pathlib import Path
from typing import Any

from golfcore import config
from golfcore.base.errors import UserError


def arg(*flags: str, **options: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    return flags, options


def _data(folder: str) -> tuple[str, str]:
    if not folder:
        raise UserError("--data: expected a folder, found an empty name")
    return "data.path", folder


change = partial(arg, action="append", dest="changes")  # (section.key, value); the last of a key counts
out = partial(arg, "--out", type=Path, metavar="DIR")
protocol = partial(arg, "--protocol", metavar="NAME", help="`golfcore protocols` lists them (default: %(default)s)")
REMAKE = (
    arg("--remake", action="append", metavar="NAME", help="from nothing, in DIR; repeatable; all: every one"),
    arg("--size", default="", help="with --remake: the same studies at another size"),
    arg("--data", default="", metavar="DIR", help="with --remake: on another text"),
)
PUBLISHED = arg("--published", action="store_true", help="of the published logs and arithmetic alone")
SIZE = arg("--size", default="full", help=f"one of {', '.join(config.size_names())} (default: full)")
CHANGES = (
    change("--set", type=config.parse_override, default=[], metavar="a.b=v", help="override a value; repeatable"),
    change("--data", type=_data, metavar="DIR", help="same as --set data.path=DIR"),
)
PRESET = arg("preset", metavar="PRESET", help=f"one of {', '.join(config.preset_names())}, or a .toml file")
CONFIGURED = (PRESET, SIZE, *CHANGES)
JSON = arg("--json", action="store_true", help="print values as JSON, with every digit")
TARGET = arg("target", type=Path, metavar="RUN|ARTIFACT", help="a run's folder or id, or an artifact file")
PACKED = (TARGET, *CHANGES, JSON)
SEED = change("--seed", type=lambda n: ("run.seed", n), metavar="N", help="same as --set run.seed=N")
SWEEP = (
    arg("file", metavar="SWEEP", help="the name of a sweep that comes with golfcore, or a .toml file"),
    arg("--seed", type=int, action="append", metavar="N", dest="seeds", help="default: the file's"),
    arg("--arm", action="append", default=[], metavar="NAME", help="only these and their references"),
    arg("--engine", choices=("here", "ray"), default="here", help="one after another here, or on a Ray cluster"),
)
DRIVEN = (
    arg("--driven", type=int, default=0, metavar="N", help="prove N scores: the auditor drives, in a process apart"),
    arg("--seed", type=int, metavar="N", help="of what is drawn (default: a secret one, which the report tells)"),
    arg("--text", type=Path, metavar="FILE", help="text that you bring: is the scored text cheaper than it explains?"),
)
CELLS = arg("--cells", default="", metavar="A,B", help="only these cells or groups; default: all")
RUNS_DIR = arg("folder", type=Path, nargs="?", metavar="DIR", help="default: the project's papermill_runs")
LISTED = (
    arg("--where", action="append", default=[], metavar="COLUMN=VALUE", help="only these; repeatable"),
    arg("--sort", default="", metavar="COLUMN", help="by a column; --sort=-COLUMN: falling"),
    arg("--watch", type=float, default=0.0, metavar="SECONDS", help="list them again so often, while any is running"),
)
RUNS = arg("runs", type=Path, nargs="+", metavar="RUN", help="folders or ids; the first configuration is the reference")
DRAWN = arg("runs", type=Path, nargs="*", metavar="RUN", help="default: draw DIR again from its tables")
DATASET = (out(required=True, help="folder of the dataset; new or empty"), arg("folder", type=Path, metavar="FOLDER"))
PIECES = arg("--vocab-size", type=int, default=1024, metavar="N", help="of the tokenizer to train (default: 1024)")
TOKENIZER = arg("--tokenizer", type=Path, metavar="FILE", help="a SentencePiece model to use, none is trained")
SHARDS = arg("--train-shards", type=int, default=80, metavar="N", help="100M tokens each; default all 80")
CORPUS = arg("folder", nargs="?", metavar="FOLDER", help="default: the embedded corpus of the default preset")
NOTEBOOK = (
    arg("name", nargs="?", metavar="NAME", help="a notebook of the project, or one that comes with golfcore"),
    arg("-h", "--help", action="store_true", help="show this, or the parameters of NAME"),
    arg("-p", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="repeatable"),
)
EXPORT = (
    arg("runs", type=Path, nargs="*", metavar="RUN", help="finished runs that differ in their seed alone"),
    arg("--against", type=Path, action="append", default=[], metavar="RUN", help="a run of the baseline; repeatable"),
    arg("--author", default="", metavar="NAME"),
    arg("--github-id", default="", metavar="ID"),
    arg("--name", default="", metavar="NAME", help="default: the configuration's"),
    arg("--track", default="track_10min_16mb", metavar="NAME", help="default: %(default)s"),
    arg("--date", default="", metavar="YYYY-MM-DD", help="default: today"),
    arg("--check", type=Path, metavar="DIR", help="run this folder in an empty environment instead"),
    arg("--data", type=Path, metavar="DIR", dest="data_folder", help="for --check: shards and a tokenizer"),
)
