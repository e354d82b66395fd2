"""The command line. Errors a user can cause are one sentence and exit code 2; anything else keeps its traceback."""

import argparse
import errno
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from golfcore import __version__, config
from golfcore.base.errors import UserError
from golfcore.runs import sweep

# torch, papermill and matplotlib are imported inside the commands that need them: `golfcore --help` is instant.

DISK = {errno.ENOSPC: "no space left on the device", errno.EDQUOT: "disk quota exceeded", errno.EROFS: "read-only disk"}


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        return args.command(args) or 0
    except UserError as e:
        print(f"golfcore: {e}", file=sys.stderr)
        return 2
    except OSError as e:
        if e.errno not in DISK and not isinstance(e, PermissionError):
            raise
        where = f"{e.filename}: " if e.filename else ""
        print(f"golfcore: {where}cannot write, {DISK.get(e.errno or 0, 'permission denied')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("golfcore: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="golfcore", description="The laboratory for Parameter Golf.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _model_commands(commands)
    _data_commands(commands)
    _notebook_commands(commands)
    return parser


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _add(
    commands: Commands, name: str, command: Callable[[argparse.Namespace], int | None], text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(command=command)
    return parser


def _with_preset(parser: argparse.ArgumentParser) -> None:
    names = ", ".join(config.preset_names())
    parser.add_argument("preset", metavar="PRESET", help=f"one of {names}, or a .toml file")
    parser.add_argument("--size", default="full", help=f"its size: {', '.join(config.size_names())}")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=v", help="override a configuration value")


def _model_commands(commands: Commands) -> None:
    p = _add(commands, "params", show_params, "count a preset's parameters")
    _with_preset(p)
    p.add_argument("--json", action="store_true")

    p = _add(commands, "config", show_config, "print a preset with everything it inherits")
    _with_preset(p)

    p = _add(commands, "run", run, "train, quantize, pack and evaluate; goes on if DIR holds the same configuration")
    _with_preset(p)
    p.add_argument("--seed", type=int, help="same as --set run.seed=N")
    p.add_argument("--data", metavar="DIR", help="same as --set data.path=DIR")
    p.add_argument("--out", type=Path, metavar="DIR", help="default: papermill_runs/PRESET-HASH")

    p = _add(
        commands, "sweep", run_sweep, "run every arm and seed of a sweep file, and hold them against its publication"
    )
    p.add_argument("file", metavar="SWEEP", help=f"one of {', '.join(sweep.sweep_names())}, or a .toml file")
    p.add_argument("--size", default="full", help=f"its size: {', '.join(config.size_names())}")
    p.add_argument("--seed", type=int, action="append", metavar="N", dest="seeds", help="default: the file's")
    p.add_argument(
        "--arm", action="append", default=[], metavar="NAME", help="only these, and what they are compared to"
    )
    p.add_argument("--set", action="append", default=[], metavar="a.b=v", help="override a value that no arm sets")
    p.add_argument("--data", metavar="DIR", help="same as --set data.path=DIR")
    p.add_argument("--out", type=Path, metavar="DIR", help="default: papermill_runs/SWEEP-SIZE-HASH")

    p = _add(commands, "eval", evaluate, "score a run's or an artifact's weights under one protocol")
    p.add_argument("target", type=Path, metavar="RUN|ARTIFACT")
    p.add_argument("--protocol", default="static", metavar="NAME", help="`golfcore protocols` lists them")
    p.add_argument("--set", action="append", default=[], metavar="a.b=v", help="override a data, eval or ttt value")
    p.add_argument("--data", metavar="DIR", help="same as --set data.path=DIR")
    p.add_argument("--json", action="store_true")

    p = _add(commands, "protocols", list_protocols, "the names of the evaluation protocols")

    p = _add(commands, "audit", audit, "test a protocol's legality; exit code 1 if a condition does not pass")
    p.add_argument("target", type=Path, metavar="RUN|ARTIFACT")
    p.add_argument("--protocol", default="ttt", metavar="NAME", help="`golfcore protocols` lists them")
    p.add_argument("--set", action="append", default=[], metavar="a.b=v", help="override a data, eval or ttt value")
    p.add_argument("--data", metavar="DIR", help="same as --set data.path=DIR")
    p.add_argument("--json", action="store_true")

    p = _add(commands, "runs", list_runs, "list run folders with their three numbers")
    p.add_argument("folder", type=Path, nargs="?", default=Path("papermill_runs"))
    p.add_argument("--json", action="store_true")

    p = _add(commands, "compare", compare, "runs side by side, with intervals over seeds and over text")
    p.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folders; the first configuration is the reference"
    )
    p.add_argument("--json", action="store_true")

    artifact = commands.add_parser("artifact", help="look into an artifact").add_subparsers(
        required=True, metavar="ACTION"
    )
    p = _add(artifact, "info", artifact_info, "bytes by component, and the configuration inside")
    p.add_argument("file", type=Path)
    p.add_argument("--json", action="store_true")


def _data_commands(commands: Commands) -> None:
    data = commands.add_parser("data", help="make, fetch or inspect a dataset").add_subparsers(
        required=True, metavar="ACTION"
    )
    p = _add(data, "build", data_build, "a folder of .txt, .md or .jsonl becomes tokenizer + shards")
    p.add_argument("folder", type=Path)
    p.add_argument("--out", type=Path, required=True, metavar="DIR")
    p.add_argument("--vocab-size", type=int, default=1024)
    p.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="use this SentencePiece model instead of training one"
    )

    p = _add(data, "download", data_download, "the competition's FineWeb export, resumable, hashes checked")
    p.add_argument("--out", type=Path, required=True, metavar="DIR")
    p.add_argument("--train-shards", type=int, default=80, help="100M tokens each; default all 80")
    p.add_argument("--endpoint", metavar="URL", help="another hub")

    p = _add(data, "info", data_info, "splits, tokens, bytes and hash of a dataset")
    p.add_argument("folder", nargs="?", help="default: the embedded corpus of the default configuration")


def _notebook_commands(commands: Commands) -> None:
    p = _add(commands, "notebook", run_notebook, "execute a notebook with papermill; refuses unknown parameters")
    p.add_argument("name")
    p.add_argument("-p", action="append", nargs=2, default=[], metavar=("KEY", "VALUE"), dest="parameters")
    p.add_argument("--out", type=Path, default=Path("papermill_runs"), metavar="DIR")

    p = _add(commands, "figures", figures, "draw a run's figures beside their tables")
    p.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="default: draw DIR again from its tables")
    p.add_argument("--out", type=Path, default=Path("figures"), metavar="DIR")


# -- commands


def overrides(args: argparse.Namespace) -> dict[str, object]:
    """`--set a.b=v` pairs, and the options that stand for one."""
    pairs: dict[str, object] = {}
    for text in args.set:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: expected section.key=value, found no '='")
        pairs[key.strip()] = value.strip()
    if getattr(args, "seed", None) is not None:
        pairs["run.seed"] = args.seed
    if getattr(args, "data", None):
        pairs["data.path"] = args.data
    return pairs


def show_params(args: argparse.Namespace) -> None:
    from golfcore.model import params

    summary = params.summary(config.load(args.preset, overrides(args), args.size).model)
    if args.json:
        print(json.dumps(summary))
        return
    for name, value in summary.items():
        print(f"{name}: {value:,}" if isinstance(value, int) else f"{name}:")
        for key, part in value.items() if isinstance(value, dict) else ():
            print(f"  {key:18} {part}")


def show_config(args: argparse.Namespace) -> None:
    c = config.load(args.preset, overrides(args), args.size)
    print(json.dumps({**config.to_dict(c), "hash": c.hash}, indent=1))


def run(args: argparse.Namespace) -> None:
    from golfcore.runs import pipeline

    c = config.load(args.preset, overrides(args), args.size)
    pipeline.run(c, args.out or pipeline.default_out(c))


def run_sweep(args: argparse.Namespace) -> None:
    from golfcore.analysis import claims, compare

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

    for name, protocol in protocols.PROTOCOLS.items():
        print(f"{name:20}{protocol.text}")


def audit(args: argparse.Namespace) -> int:
    from golfcore import api

    report = api.audit(args.target, protocol=args.protocol, changes=overrides(args))
    print(json.dumps(report.as_dict()) if args.json else report.text())
    return 0 if report.passed else 1


def list_runs(args: argparse.Namespace) -> None:
    from golfcore.analysis import runs

    rows = runs.runs_table(args.folder)
    print(json.dumps(rows, indent=1) if args.json else runs.as_text(rows))


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
    data_info(argparse.Namespace(folder=str(args.out)))


def data_download(args: argparse.Namespace) -> None:
    from golfcore.data import download

    download.download(args.out, train_shards=args.train_shards, endpoint=args.endpoint)


def data_info(args: argparse.Namespace) -> None:
    from golfcore.data import datasets, shards
    from golfcore.runs import pipeline

    dataset = datasets.open_dataset(args.folder) if args.folder else pipeline.prepare_data(config.Config(), print)
    print(f"{dataset.path}: data {dataset.data_hash[:12]}, tokenizer {dataset.tokenizer.name}")
    for split, paths in (("train", dataset.train), ("val", dataset.val)):
        print(f"  {split}: {sum(map(shards.shard_tokens, paths)):,} tokens in {len(paths)} shards")


def run_notebook(args: argparse.Namespace) -> None:
    from golfcore import notebook

    print(notebook.run_notebook(args.name, dict(args.parameters), args.out))


def figures(args: argparse.Namespace) -> None:
    from golfcore import notebook

    for path in notebook.draw_runs(args.runs, args.out):
        print(path)
