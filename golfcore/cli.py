"""The command line. Errors a user can cause are one sentence and exit code 2; anything else keeps its traceback."""

import argparse
import contextlib
import json
import os
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import golfcore as gc  # its functions import what they need when they are first used
from golfcore import config
from golfcore.base.errors import UserError, sentence
from golfcore.base.signals import Stopped, stoppable
from golfcore.config.options import (
    CELLS,
    CHANGES,
    CONFIGURED,
    CORPUS,
    DATASET,
    DRAWN,
    DRIVEN,
    EXPORT,
    JSON,
    LISTED,
    NOTEBOOK,
    PACKED,
    PIECES,
    PUBLISHED,
    REMAKE,
    RUNS,
    RUNS_DIR,
    SEED,
    SHARDS,
    SIZE,
    SWEEP,
    TOKENIZER,
    arg,
    out,
    protocol,
)

# Everything heavy is imported inside the commands that need it: `golfcore --help` is instant.


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of a command: 0, 2 for a mistake in its input, 1 for a condition of legality that does not hold."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed: it leads nowhere, instead of into the next file that is opened
            setattr(sys, name, open(os.devnull, mode))
    try:
        try:
            with stoppable():
                return execute(argv)
        finally:
            sys.stdout.flush()  # a pipe that is closed fails here, not at exit
    except UserError as e:
        return _ended(str(e), 2)
    except Stopped as e:  # as machines that are lent do it before they take themselves back
        return _ended(f"asked to end ({e}); the same command goes on from what is saved", 0)
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


def execute(argv: Sequence[str] | None) -> int:
    """The exit code of a command; what ends it otherwise is raised: for commands that run others."""
    args = _parser().parse_args(argv)
    return args.command(args) or 0


def _ended(text: str, code: int) -> int:
    """`code`, said why in one line on standard error, whatever `text` holds; nothing if nobody reads there."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    with contextlib.suppress(OSError):
        print(f"golfcore: {line}", file=sys.stderr, flush=True)
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` says what is expected")


def _parser() -> _Parser:
    parser = _Parser(prog="golfcore", description="The laboratory for Parameter Golf.")
    parser.add_argument("--version", action="version", version=gc.__version__)
    groups = {"": parser.add_subparsers(title="commands", required=True, metavar="COMMAND")}
    for words, (function, *arguments) in COMMANDS.items():
        group, _, name = words.rpartition(" ")
        if group not in groups:
            p = groups[""].add_parser(group, help=GROUPS[group], description=GROUPS[group])
            groups[group] = p.add_subparsers(required=True, metavar="ACTION")
        text = function.__doc__
        p = groups[group].add_parser(name, help=text, description=text, conflict_handler="resolve")
        p.set_defaults(command=function, parser=p)
        for flags, options in arguments:
            p.add_argument(*flags, **options)
    return parser


# -- commands; the first line of each is its help


def configured(args: Namespace) -> config.Config:
    return config.load(args.preset, dict(args.changes), args.size)


def show_params(args: Namespace) -> None:
    """Count a preset's parameters."""
    from golfcore.model import params

    summary = params.summary(configured(args).model)
    print(json.dumps(summary) if args.json else params.as_text(summary))


def show_config(args: Namespace) -> None:
    """Print a preset with everything it inherits."""
    found = configured(args)
    print(json.dumps({**config.to_dict(found), "hash": found.hash}, indent=1))


def run(args: Namespace) -> None:
    """Train, quantize, pack and evaluate; goes on if DIR holds the same configuration."""
    gc.run(configured(args), args.out)


def run_sweep(args: Namespace) -> None:
    """Run every arm and seed of a sweep file, held against its publication."""
    from golfcore import notebook
    from golfcore.analysis import claims, compare
    from golfcore.runs import cluster, sweep

    plan = sweep.load(args.file, args.size, dict(args.changes))
    out = args.out or sweep.default_out(plan)
    plan = plan.only(args.arm) if args.arm else plan
    seeds = args.seeds or plan.seeds
    jobs = sweep.jobs_of(plan.configs, seeds, out)
    if hours := plan.gpu_hours(len(seeds)):
        print(f"training: about {hours:.0f} H100 hours at the published step time of {plan.published_step_ms:g} ms")
    then = partial(notebook.page_of, plan.notebook) if plan.notebook else None
    if args.engine == "ray":
        cluster.run_jobs(jobs, plan.slots, print, then)
    else:
        sweep.run_arms(plan.configs, seeds, out, then=then)
    table = claims.suite(plan, compare.arms_of([job.folder for job in jobs]))
    print(f"\n{claims.as_text(plan, table)}\n\n{claims.summary(table)}")


def evaluate(args: Namespace) -> None:
    """Score a run's or an artifact's weights under one protocol."""
    from golfcore.evals import result

    found = gc.evaluate(args.target, args.protocol, dict(args.changes))
    print(json.dumps(result.as_dict(found)) if args.json else result.as_text(found))


def audit(args: Namespace) -> int:
    """Test a protocol's legality; exit code 1 if a condition does not pass. --driven: prove its score instead."""
    if args.driven:
        from golfcore.runs import audits, folder

        target = folder.find_target(args.target)
        found = audits.certify(target, args.protocol, dict(args.changes), args.driven, args.seed)
        print(json.dumps(found) if args.json else "\n".join(f"{key:12} {value}" for key, value in found.items()))
        return int(found["verdict"] != "proven")
    report = gc.audit(args.target, protocol=args.protocol, changes=dict(args.changes), seed=args.seed, text=args.text)
    print(json.dumps(report.as_dict()) if args.json else report.text())
    return 0 if report.passed else 1


def list_protocols(args: Namespace) -> None:
    """List the names of the evaluation protocols."""
    from golfcore.evals import protocols

    print("\n".join(f"{name:20}{protocol.text}" for name, protocol in protocols.PROTOCOLS.items()))


def run_study(args: Namespace) -> None:
    """Score under every protocol and control, held against a reference."""
    from golfcore.analysis import frames, protocols, runs
    from golfcore.runs import folder, reopen, study

    target, changes = folder.find_target(args.target), dict(args.changes)
    cells = study.select(study.standard(reopen.open_packed(target, changes).cfg), args.cells)
    say = partial(print, file=sys.stderr)
    table = protocols.table(study.measure(target, cells, changes=changes, out=args.out, say=say))
    print(json.dumps(runs.as_rows(table), indent=1) if args.json else frames.to_text(table[protocols.SHOWN]))


def list_runs(args: Namespace) -> None:
    """List run folders at any depth with their three numbers; --watch: again and again while any is running."""
    from golfcore.analysis import runs
    from golfcore.runs import folder

    while True:
        found = runs.select(runs.runs_table(args.folder or folder.runs_dir()), args.where, args.sort)
        text = json.dumps(runs.as_rows(found), indent=1) if args.json else runs.as_text(found)
        print("\033[2J\033[H" * (args.watch > 0 and sys.stdout.isatty()) + text, flush=True)  # on a clear screen
        if args.watch <= 0 or "state" not in found or "running" not in set(found["state"]):
            return
        time.sleep(args.watch)


def compare(args: Namespace) -> None:
    """Put runs side by side, with intervals over seeds and over text."""
    from golfcore.analysis import compare, runs

    arms = compare.arms_of(args.runs)
    table = compare.compare(arms)
    print(json.dumps(runs.as_rows(table), indent=1) if args.json else compare.as_text(arms, table))


def artifact_info(args: Namespace) -> None:
    """Show bytes by component, and the configuration inside."""
    from golfcore.quant import artifact

    info = artifact.info(args.file)
    print(json.dumps(info, indent=1) if args.json else artifact.as_text(info))


def data_build(args: Namespace) -> None:
    """Make tokenizer and shards of a folder of .txt, .md or .jsonl."""
    from golfcore.data import text

    text.build_folder(args.folder, args.out, args.vocab_size, args.tokenizer)
    data_info(Namespace(folder=str(args.out)))


def data_download(args: Namespace) -> None:
    """Fetch the competition's FineWeb export, resumable, hashes checked."""
    from golfcore.data import download

    download.download(args.out, train_shards=args.train_shards, endpoint=args.endpoint)


def data_info(args: Namespace, again: bool = False) -> None:
    """Show splits, tokens, documents, bytes, tokenizer and hash of a dataset."""
    from golfcore.data import datasets

    folder = args.folder or datasets.prepare_data(config.Config(), print).path
    print(datasets.description(datasets.open_dataset(folder, again=again)))


def data_check(args: Namespace) -> None:
    """Show the same, with every file read again and the whole text held against its tokenizer."""
    data_info(args, again=True)
    print("  intact: every file was read, and the bytes are those of the decoded text")


def run_notebook(args: Namespace) -> None:
    """Execute a notebook with papermill; refuses unknown parameters. `NAME --help` lists a notebook's."""
    from golfcore import notebook

    if args.name:
        said = notebook.describe(args.name) if args.help else notebook.run_notebook(args.name, dict(args.p), args.out)
        print(said)
    elif args.help:
        args.parser.print_help()
    else:
        args.parser.error("the following arguments are required: NAME")


def doctor(args: Namespace) -> int:
    """See what this machine has, and whether the fast paths agree with the plain ones here; exit code 1 if not."""
    from golfcore.runs import doctor

    found = []
    for one in doctor.examine(config.load(args.preset, dict(args.changes), size=args.size)):
        print(doctor.as_text(one), flush=True)
        found.append(one)
    return int(any(one.ok is False for one in found))


def export(args: Namespace) -> None:
    """Write finished runs as a folder that the competition takes; --check DIR runs such a folder on its own."""
    from golfcore.analysis import claims
    from golfcore.runs import export, folder

    if args.check:
        export.check(args.check, args.data_folder)
        return
    for option in ("out", "author", "github_id"):
        if not getattr(args, option):
            raise UserError(f"export: expected --{option.replace('_', '-')}, found none")
    runs = [folder.find_run(path) for path in args.runs]
    if not runs:
        raise UserError("export: expected finished runs, found none")
    name, date = args.name or config.of_run(runs[0]).name, args.date or time.strftime("%Y-%m-%d", time.gmtime())
    against = claims.against(runs, [folder.find_run(path) for path in args.against]) if args.against else ""
    who = export.Author(args.author, args.github_id)
    print(export.export(runs, args.out, who, name, args.track, date, against))


def figures(args: Namespace) -> int:
    """Draw a run's figures beside their tables; --remake makes those of the project from nothing, in DIR."""
    from golfcore.plots.figures import draw_published, draw_runs
    from golfcore.plots.remake import remake
    from golfcore.runs import folder

    listed = folder.project_dir() / "figures"
    if args.remake:
        place = args.out or folder.runs_dir() / "remade"
        return remake(args.remake, listed, place, execute, args.size, args.data)
    if args.size or args.data:
        raise UserError("figures: expected --size and --data beside --remake alone, found them without it")
    place = args.out or listed
    if args.published and args.runs:
        raise UserError(f"figures --published: expected no runs beside it, found {args.runs[0]}")
    for path in draw_published(place) if args.published else draw_runs(args.runs, place):
        print(path)
    return 0


# -- what they take


GROUPS = {"artifact": "Look into an artifact.", "data": "Make, fetch or inspect a dataset."}
COMMANDS: dict[str, tuple[Any, ...]] = {
    "params": (show_params, *CONFIGURED, JSON),
    "config": (show_config, *CONFIGURED),
    "run": (run, *CONFIGURED, SEED, out(help="default: papermill_runs/PRESET-HASH")),
    "sweep": (run_sweep, SIZE, *CHANGES, *SWEEP, out(help="default: papermill_runs/SWEEP-SIZE-HASH")),
    "eval": (evaluate, *PACKED, protocol(default="static")),
    "audit": (audit, *PACKED, *DRIVEN, protocol(default="ttt")),
    "protocols": (list_protocols,),
    "study": (run_study, *PACKED, CELLS, out(help="keeps what is measured, so that the same command goes on")),
    "runs": (list_runs, RUNS_DIR, *LISTED, JSON),
    "compare": (compare, RUNS, JSON),
    "artifact info": (artifact_info, arg("file", type=Path, metavar="ARTIFACT"), JSON),
    "data build": (data_build, *DATASET, PIECES, TOKENIZER),
    "data download": (data_download, DATASET[0], SHARDS, arg("--endpoint", metavar="URL", help="another hub")),
    "data info": (data_info, CORPUS),
    "data check": (data_check, CORPUS),
    "notebook": (run_notebook, *NOTEBOOK, out(help="default: the project's papermill_runs")),
    "doctor": (doctor, arg("preset", nargs="?", default="demo", metavar="PRESET"), SIZE, *CHANGES),
    "export": (export, *EXPORT, out(help="folder that gets records/TRACK/DATE_NAME")),
    "figures": (figures, DRAWN, PUBLISHED, *REMAKE, out(help="default: the project's figures")),
}
