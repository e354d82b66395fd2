"""The command line. Errors a user can cause are one sentence and exit code 2; anything else keeps its traceback."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from golfcore import __version__
from golfcore.base.errors import UserError, sentence

if TYPE_CHECKING:
    from golfcore.config import Config

# Everything heavy is imported inside the commands that need it: `golfcore --help` is instant.


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of a command: 0, 2 for a mistake in its input, 1 for a condition of legality that does not hold."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed: it leads nowhere, instead of into the next file that is opened
            setattr(sys, name, open(os.devnull, mode))
    try:
        try:
            args = _parser().parse_args(argv)
            return args.command(args) or 0
        finally:
            sys.stdout.flush()  # a pipe that is closed fails here, not at exit
    except UserError as e:
        return _ended(str(e), 2)
    except KeyboardInterrupt:
        return _ended("interrupted; the same command goes on from the last checkpoint", 130)
    except OSError as e:
        with contextlib.suppress(OSError, ValueError):  # nothing that is still to be printed is written at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(e, BrokenPipeError):  # `| head` has seen enough: as a program that SIGPIPE ended
            return 141
        if (said := sentence(e)) is None:
            raise
        return _ended(said, 2)


def _ended(text: str, code: int) -> int:
    """`code`, said why in one line on standard error, whatever `text` holds; nothing if nobody reads there."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    with contextlib.suppress(OSError):
        print(f"golfcore: {line}", file=sys.stderr, flush=True)
    return code


class _Help(argparse.HelpFormatter):
    """Says the default of every option that has one, and the names that there are for PRESETS and SIZES."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, silent = action.help or "", action.default in (None, False, argparse.SUPPRESS) or action.default == []
        if "PRESETS" in text or "SIZES" in text:
            from golfcore import config

            text = text.replace("PRESETS", ", ".join(config.preset_names()))
            text = text.replace("SIZES", ", ".join(config.size_names()))
        return text if silent or "default" in text else f"{text} (default: %(default)s)".lstrip()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` says what is expected")


Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"


def _pair(text: str) -> tuple[str, str]:
    from golfcore import config

    return config.parse_override(text)


def _data(folder: str) -> tuple[str, str]:
    if not folder:
        raise UserError("--data: expected a folder, found an empty name")
    return "data.path", folder


CHANGE: dict[str, Any] = {"action": "append", "dest": "changes"}  # (section.key, value); the last of a key counts
ARGUMENTS: dict[str, dict[str, Any]] = {  # that several commands take
    "preset": {"metavar": "PRESET", "help": "one of PRESETS, or a .toml file"},
    "--size": {"default": "full", "help": "one of SIZES"},
    "--set": {"type": _pair, "default": [], "metavar": "a.b=v", "help": "override a value; repeatable", **CHANGE},
    "--data": {"type": _data, "metavar": "DIR", "help": "same as --set data.path=DIR", **CHANGE},
    "target": {"type": Path, "metavar": "RUN|ARTIFACT", "help": "a run's folder or id, or an artifact file"},
    "--json": {"action": "store_true", "help": "print values as JSON, with every digit"},
}


def _parser() -> _Parser:
    parser = _Parser(prog="golfcore", description="The laboratory for Parameter Golf.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (_model_commands, _score_commands, _data_commands, _notebook_commands):
        add(commands)
    return parser


def _add(
    commands: Commands, name: str, command: Callable[[argparse.Namespace], int | None], text: str, arguments: str = ""
) -> _Parser:
    """The parser of a command with these of the ARGUMENTS."""
    parser = commands.add_parser(name, help=text, description=text, formatter_class=_Help)
    parser.set_defaults(command=command)
    for argument in arguments.split():
        parser.add_argument(argument, **ARGUMENTS[argument])
    return parser


def _group(commands: Commands, name: str, text: str) -> Commands:
    return commands.add_parser(name, help=text, description=text).add_subparsers(required=True, metavar="ACTION")


def _out(parser: _Parser, text: str, required: bool = False) -> None:
    parser.add_argument("--out", type=Path, metavar="DIR", help=text, required=required)


def _model_commands(commands: Commands) -> None:
    configured = "preset --size --set --data"
    _add(commands, "params", show_params, "count a preset's parameters", f"{configured} --json")
    _add(commands, "config", show_config, "print a preset with everything it inherits", configured)

    text = "train, quantize, pack and evaluate; goes on if DIR holds the same configuration"
    p = _add(commands, "run", run, text, configured)
    p.add_argument("--seed", type=lambda n: ("run.seed", n), metavar="N", help="same as --set run.seed=N", **CHANGE)
    _out(p, "default: papermill_runs/PRESET-HASH")

    text = "run every arm and seed of a sweep file, held against its publication"
    p = _add(commands, "sweep", run_sweep, text, "--size --set --data")
    p.add_argument("file", metavar="SWEEP", help="the name of a sweep that comes with golfcore, or a .toml file")
    p.add_argument("--seed", type=int, action="append", metavar="N", dest="seeds", help="default: the file's")
    p.add_argument("--arm", action="append", default=[], metavar="NAME", help="only these and their references")
    _out(p, "default: papermill_runs/SWEEP-SIZE-HASH")


def _score_commands(commands: Commands) -> None:
    packed = "target --set --data --json"
    p = _add(commands, "eval", evaluate, "score a run's or an artifact's weights under one protocol", packed)
    p.add_argument("--protocol", default="static", metavar="NAME", help="`golfcore protocols` lists them")
    p = _add(commands, "audit", audit, "test a protocol's legality; exit code 1 if a condition does not pass", packed)
    p.add_argument("--protocol", default="ttt", metavar="NAME", help="`golfcore protocols` lists them")
    _add(commands, "protocols", list_protocols, "the names of the evaluation protocols")

    p = _add(commands, "study", run_study, "score under every protocol and control, held against a reference", packed)
    p.add_argument("--cells", default="", metavar="A,B", help="only these cells or groups; default: all")
    _out(p, "keeps what is measured, so that the same command goes on")

    p = _add(commands, "runs", list_runs, "list run folders at any depth with their three numbers", "--json")
    p.add_argument("folder", type=Path, nargs="?", metavar="DIR", help="default: the project's papermill_runs")

    p = _add(commands, "compare", compare, "runs side by side, with intervals over seeds and over text", "--json")
    text = "folders or ids; the first configuration is the reference"
    p.add_argument("runs", type=Path, nargs="+", metavar="RUN", help=text)

    artifact = _group(commands, "artifact", "look into an artifact")
    p = _add(artifact, "info", artifact_info, "bytes by component, and the configuration inside", "--json")
    p.add_argument("file", type=Path, metavar="ARTIFACT")


def _data_commands(commands: Commands) -> None:
    data = _group(commands, "data", "make, fetch or inspect a dataset")
    p = _add(data, "build", data_build, "a folder of .txt, .md or .jsonl becomes tokenizer + shards")
    p.add_argument("folder", type=Path, metavar="FOLDER")
    _out(p, "folder of the dataset; new or empty", required=True)
    p.add_argument("--vocab-size", type=int, default=1024, metavar="N", help="pieces of the tokenizer to train")
    p.add_argument("--tokenizer", type=Path, metavar="FILE", help="a SentencePiece model to use, none is trained")

    p = _add(data, "download", data_download, "the competition's FineWeb export, resumable, hashes checked")
    _out(p, "folder of the dataset", required=True)
    p.add_argument("--train-shards", type=int, default=80, metavar="N", help="100M tokens each; default all 80")
    p.add_argument("--endpoint", metavar="URL", help="another hub")

    for name, text in (
        ("info", "splits, tokens, documents, bytes, tokenizer and hash of a dataset"),
        ("check", "the same, with every file read again and the whole text held against its tokenizer"),
    ):
        p = _add(data, name, data_info, text)
        p.set_defaults(again=name == "check")
        p.add_argument("folder", nargs="?", metavar="FOLDER", help="default: the embedded corpus of the default preset")


def _notebook_commands(commands: Commands) -> None:
    p = commands.add_parser("notebook", help="execute a notebook with papermill", add_help=False, formatter_class=_Help)
    p.description = "Execute a notebook with papermill; refuses unknown parameters. `NAME --help` lists a notebook's."
    p.set_defaults(command=run_notebook, parser=p)
    p.add_argument("name", nargs="?", metavar="NAME", help="a notebook of the project, or one that comes with golfcore")
    p.add_argument("-h", "--help", action="store_true", help="show this, or the parameters of NAME")
    pair = ("KEY", "VALUE")
    p.add_argument("-p", nargs=2, action="append", default=[], metavar=pair, dest="parameters", help="repeatable")
    _out(p, "default: the project's papermill_runs")

    p = _add(commands, "figures", figures, "draw a run's figures beside their tables")
    p.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="default: draw DIR again from its tables")
    _out(p, "default: the project's figures")


# -- commands


def configured(args: argparse.Namespace) -> "Config":
    """The configuration that PRESET, --size and the overrides spell."""
    from golfcore import config

    return config.load(args.preset, dict(args.changes), args.size)


def show_params(args: argparse.Namespace) -> None:
    from golfcore.model import params

    summary = params.summary(configured(args).model)
    print(json.dumps(summary) if args.json else params.as_text(summary))


def show_config(args: argparse.Namespace) -> None:
    from golfcore import config

    found = configured(args)
    print(json.dumps({**config.to_dict(found), "hash": found.hash}, indent=1))


def run(args: argparse.Namespace) -> None:
    from golfcore import api

    api.run(configured(args), args.out)


def run_sweep(args: argparse.Namespace) -> None:
    from golfcore.analysis import claims, compare
    from golfcore.runs import sweep

    plan = sweep.load(args.file, args.size, dict(args.changes))
    out = args.out or sweep.default_out(plan)
    plan = plan.only(args.arm) if args.arm else plan
    runs = sweep.run_arms(plan.configs, args.seeds or plan.seeds, out)
    table = claims.suite(plan, compare.arms_of([run.path for run in runs]))
    print(f"\n{claims.as_text(plan, table)}\n\n{claims.summary(table)}")


def evaluate(args: argparse.Namespace) -> None:
    from golfcore import api
    from golfcore.evals import result

    found = api.evaluate(args.target, args.protocol, dict(args.changes))
    print(json.dumps(result.as_dict(found)) if args.json else result.as_text(found))


def list_protocols(args: argparse.Namespace) -> None:
    from golfcore.evals import protocols

    print("\n".join(f"{name:20}{protocol.text}" for name, protocol in protocols.PROTOCOLS.items()))


def audit(args: argparse.Namespace) -> int:
    from golfcore import api

    report = api.audit(args.target, protocol=args.protocol, changes=dict(args.changes))
    print(json.dumps(report.as_dict()) if args.json else report.text())
    return 0 if report.passed else 1


def run_study(args: argparse.Namespace) -> None:
    from golfcore.analysis import frames, protocols, runs
    from golfcore.runs import folder, reopen, study

    target, changes = folder.find_target(args.target), dict(args.changes)
    cells = study.select(study.standard(reopen.open_packed(target, changes).cfg), args.cells)
    say = partial(print, file=sys.stderr)
    table = protocols.table(study.measure(target, cells, changes=changes, out=args.out, say=say))
    print(json.dumps(runs.as_rows(table), indent=1) if args.json else frames.to_text(table[protocols.SHOWN]))


def list_runs(args: argparse.Namespace) -> None:
    from golfcore.analysis import runs
    from golfcore.runs import folder

    found = runs.runs_table(args.folder or folder.runs_dir())
    print(json.dumps(runs.as_rows(found), indent=1) if args.json else runs.as_text(found))


def compare(args: argparse.Namespace) -> None:
    from golfcore.analysis import compare, runs

    arms = compare.arms_of(args.runs)
    table = compare.compare(arms)
    print(json.dumps(runs.as_rows(table), indent=1) if args.json else compare.as_text(arms, table))


def artifact_info(args: argparse.Namespace) -> None:
    from golfcore.quant import artifact

    info = artifact.info(args.file)
    print(json.dumps(info, indent=1) if args.json else artifact.as_text(info))


def data_build(args: argparse.Namespace) -> None:
    from golfcore.data import text

    text.build_folder(args.folder, args.out, args.vocab_size, args.tokenizer)
    data_info(argparse.Namespace(folder=str(args.out), again=False))


def data_download(args: argparse.Namespace) -> None:
    from golfcore.data import download

    download.download(args.out, train_shards=args.train_shards, endpoint=args.endpoint)


def data_info(args: argparse.Namespace) -> None:
    from golfcore import config
    from golfcore.data import datasets

    folder = args.folder or datasets.prepare_data(config.Config(), print).path
    print(datasets.description(datasets.open_dataset(folder, again=args.again)))
    if args.again:
        print("  intact: every file was read, and the bytes are those of the decoded text")


def run_notebook(args: argparse.Namespace) -> None:
    from golfcore import notebook

    if args.name and args.help:
        print(notebook.describe(args.name))
    elif args.help:
        args.parser.print_help()
        args.parser.exit()
    elif not args.name:
        args.parser.error("the following arguments are required: NAME")
    else:
        print(notebook.run_notebook(args.name, dict(args.parameters), args.out))


def figures(args: argparse.Namespace) -> None:
    from golfcore.plots.figures import draw_runs
    from golfcore.runs import folder

    for path in draw_runs(args.runs, args.out or folder.project_dir() / "figures"):
        print(path)
