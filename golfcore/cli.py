"""The command line. Errors a user can cause are one sentence and exit code 2; anything else keeps its traceback."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from golfcore import __version__
from golfcore.base import streams
from golfcore.base.errors import UserError, sentence

if TYPE_CHECKING:
    from golfcore.config import Config

# Everything heavy is imported inside the commands that need it: `golfcore --help` is instant.

CLOSED_PIPE = 141  # as a program that the signal SIGPIPE ended


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of a command: 0, 2 for a mistake in its input, 1 for a condition of legality that does not hold."""
    streams.open_closed()
    try:
        with streams.flushed():
            return _run(argv)
    except BrokenPipeError:  # `| head`: who reads has seen enough
        streams.discard()
        return CLOSED_PIPE
    except OSError as e:  # what was printed could not be written
        streams.discard()
        return _refused(e)


def _run(argv: Sequence[str] | None) -> int:
    try:
        args = _parser().parse_args(argv)
        return args.command(args) or 0
    except BrokenPipeError:
        raise
    except (UserError, OSError) as e:
        return _refused(e)
    except KeyboardInterrupt:
        streams.complain("golfcore: interrupted; the same command goes on from the last checkpoint")
        return 130


def _refused(e: UserError | OSError) -> int:
    """Say what is wrong in one sentence; an error of the system that is no user's is raised again."""
    said = sentence(e) if isinstance(e, OSError) else str(e)
    if said is None:
        raise e
    streams.complain(f"golfcore: {said}")
    return 2


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


def _parser() -> _Parser:
    parser = _Parser(prog="golfcore", description="The laboratory for Parameter Golf.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _model_commands(commands)
    _score_commands(commands)
    _data_commands(commands)
    _notebook_commands(commands)
    return parser


def _add(commands: Commands, name: str, command: Callable[[argparse.Namespace], int | None], text: str) -> _Parser:
    parser = commands.add_parser(name, help=text, description=text, formatter_class=_Help)
    parser.set_defaults(command=command)
    return parser


def _group(commands: Commands, name: str, text: str) -> Commands:
    return commands.add_parser(name, help=text, description=text).add_subparsers(required=True, metavar="ACTION")


def _json(parser: _Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print values as JSON, with every digit")


def _changes(parser: _Parser, which: str = "a value") -> None:
    parser.add_argument("--set", action="append", default=[], metavar="a.b=v", help=f"override {which}; repeatable")
    parser.add_argument("--data", metavar="DIR", help="same as --set data.path=DIR")


def _size(parser: _Parser) -> None:
    parser.add_argument("--size", default="full", help="one of SIZES")


def _preset(parser: _Parser) -> None:
    parser.add_argument("preset", metavar="PRESET", help="one of PRESETS, or a .toml file")
    _size(parser)
    _changes(parser)


def _model_commands(commands: Commands) -> None:
    p = _add(commands, "params", show_params, "count a preset's parameters")
    _preset(p)
    _json(p)

    p = _add(commands, "config", show_config, "print a preset with everything it inherits")
    _preset(p)

    p = _add(commands, "run", run, "train, quantize, pack and evaluate; goes on if DIR holds the same configuration")
    _preset(p)
    p.add_argument("--seed", type=int, metavar="N", help="same as --set run.seed=N")
    p.add_argument("--out", type=Path, metavar="DIR", help="default: papermill_runs/PRESET-HASH")

    p = _add(commands, "sweep", run_sweep, "run every arm and seed of a sweep file, held against its publication")
    p.add_argument("file", metavar="SWEEP", help="the name of a sweep that comes with golfcore, or a .toml file")
    _size(p)
    p.add_argument("--seed", type=int, action="append", metavar="N", dest="seeds", help="default: the file's")
    p.add_argument("--arm", action="append", default=[], metavar="NAME", help="only these and their references")
    _changes(p, "a value that no arm sets")
    p.add_argument("--out", type=Path, metavar="DIR", help="default: papermill_runs/SWEEP-SIZE-HASH")


def _score_commands(commands: Commands) -> None:
    for name, command, protocol, text in (
        ("eval", evaluate, "static", "score a run's or an artifact's weights under one protocol"),
        ("audit", audit, "ttt", "test a protocol's legality; exit code 1 if a condition does not pass"),
    ):
        p = _add(commands, name, command, text)
        p.add_argument("target", type=Path, metavar="RUN|ARTIFACT", help="a run's folder or id, or an artifact file")
        p.add_argument("--protocol", default=protocol, metavar="NAME", help="`golfcore protocols` lists them")
        _changes(p, "a data, eval or ttt value")
        _json(p)

    p = _add(commands, "protocols", list_protocols, "the names of the evaluation protocols")

    p = _add(commands, "runs", list_runs, "list run folders at any depth with their three numbers")
    p.add_argument("folder", type=Path, nargs="?", metavar="DIR", help="default: the project's papermill_runs")
    _json(p)

    p = _add(commands, "compare", compare, "runs side by side, with intervals over seeds and over text")
    text = "folders or ids; the first configuration is the reference"
    p.add_argument("runs", type=Path, nargs="+", metavar="RUN", help=text)
    _json(p)

    artifact = _group(commands, "artifact", "look into an artifact")
    p = _add(artifact, "info", artifact_info, "bytes by component, and the configuration inside")
    p.add_argument("file", type=Path, metavar="ARTIFACT")
    _json(p)


def _data_commands(commands: Commands) -> None:
    data = _group(commands, "data", "make, fetch or inspect a dataset")
    p = _add(data, "build", data_build, "a folder of .txt, .md or .jsonl becomes tokenizer + shards")
    p.add_argument("folder", type=Path, metavar="FOLDER")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the dataset; new or empty")
    p.add_argument("--vocab-size", type=int, default=1024, metavar="N", help="pieces of the tokenizer to train")
    p.add_argument("--tokenizer", type=Path, metavar="FILE", help="a SentencePiece model to use, none is trained")

    p = _add(data, "download", data_download, "the competition's FineWeb export, resumable, hashes checked")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the dataset")
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
    p.add_argument("--out", type=Path, metavar="DIR", help="default: the project's papermill_runs")

    p = _add(commands, "figures", figures, "draw a run's figures beside their tables")
    p.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="default: draw DIR again from its tables")
    p.add_argument("--out", type=Path, metavar="DIR", help="default: the project's figures")


# -- commands


def overrides(args: argparse.Namespace) -> dict[str, object]:
    """`--set a.b=v` pairs, and the options that stand for one."""
    from golfcore import config

    pairs: dict[str, object] = dict(map(config.parse_override, args.set))
    if getattr(args, "seed", None) is not None:
        pairs["run.seed"] = args.seed
    if getattr(args, "data", None) is not None:
        if not args.data:
            raise UserError("--data: expected a folder, found an empty name")
        pairs["data.path"] = args.data
    return pairs


def configured(args: argparse.Namespace) -> "Config":
    """The configuration that PRESET, --size and the overrides spell."""
    from golfcore import config

    return config.load(args.preset, overrides(args), args.size)


def show_params(args: argparse.Namespace) -> None:
    from golfcore.model import params

    summary = params.summary(configured(args).model)
    print(json.dumps(summary) if args.json else params.as_text(summary))


def show_config(args: argparse.Namespace) -> None:
    from golfcore import config

    c = configured(args)
    print(json.dumps({**config.to_dict(c), "hash": c.hash}, indent=1))


def run(args: argparse.Namespace) -> None:
    from golfcore.runs import folder, pipeline

    c = configured(args)
    pipeline.run(c, args.out or folder.default_out(c))


def run_sweep(args: argparse.Namespace) -> None:
    from golfcore.analysis import claims, compare
    from golfcore.runs import sweep

    plan = sweep.load(args.file, args.size, overrides(args))
    out = args.out or sweep.default_out(plan)
    plan = plan.only(args.arm) if args.arm else plan
    runs = sweep.run_arms(plan.configs, args.seeds or plan.seeds, out)
    table = claims.suite(plan, compare.arms_of([run.path for run in runs]))
    print(f"\n{claims.as_text(plan, table)}\n\n{claims.summary(table)}")


def evaluate(args: argparse.Namespace) -> None:
    from golfcore import api
    from golfcore.evals import result

    found = api.evaluate(args.target, args.protocol, overrides(args))
    print(json.dumps(result.as_dict(found)) if args.json else result.as_text(found))


def list_protocols(args: argparse.Namespace) -> None:
    from golfcore.evals import protocols

    print("\n".join(f"{name:20}{protocol.text}" for name, protocol in protocols.PROTOCOLS.items()))


def audit(args: argparse.Namespace) -> int:
    from golfcore import api

    report = api.audit(args.target, protocol=args.protocol, changes=overrides(args))
    print(json.dumps(report.as_dict()) if args.json else report.text())
    return 0 if report.passed else 1


def list_runs(args: argparse.Namespace) -> None:
    from golfcore.analysis import runs
    from golfcore.runs import folder

    found = runs.runs_table(args.folder or folder.runs_dir())
    print(json.dumps(runs.as_rows(found), indent=1) if args.json else runs.as_text(found))


def compare(args: argparse.Namespace) -> None:
    from golfcore.analysis import compare

    arms = compare.arms_of(args.runs)
    table = compare.compare(arms)
    print(table.to_json(orient="records", indent=1) if args.json else compare.as_text(arms, table))


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
    from golfcore.data import datasets, prepare

    folder = args.folder or prepare.prepare_data(config.Config(), print).path
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
