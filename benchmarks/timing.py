"""The one way to measure: sides that do the same work take turns in one process; a table is printed, JSON written.

A benchmark is a module with rows, each a name and what every side of it calls. Each call is timed in process CPU
seconds and wall seconds; the table shows the fastest of the repetitions, the JSON all of them. With `--against TREE`
the same program of another checkout takes its turns in a process of its own, with the golfcore of that checkout.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

import golfcore
from golfcore.base import runtime

OURS, OTHER = "golfcore", "golfcore of TREE"
RESULTS = Path(__file__).parent / "results"


class Row(NamedTuple):
    name: str
    sides: dict[str, Callable[[], object]]  # "plain", "golfcore"; a call each
    tokens: int = 0  # that a call works through; 0: it is not counted in tokens


Rows = Callable[[argparse.Namespace], Iterable[Row]]  # made one after another, so that only one set-up is in memory
Times = dict[str, list[dict[str, float]]]  # by side: {"cpu": seconds, "wall": seconds} of each repetition


def arguments(doc: str, **defaults: Any) -> argparse.ArgumentParser:
    """What every benchmark understands."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="the same in seconds, on a model that says nothing")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls of each side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", metavar="TEXT", help="only what has TEXT in its name")
    parser.add_argument("--out", type=Path, help="the JSON file (default: benchmarks/results/NAME.json)")
    parser.set_defaults(**defaults)
    return parser


def sided(doc: str, **defaults: Any) -> argparse.ArgumentParser:
    """`arguments`, and those of benchmarks that compare sides."""
    parser = arguments(doc)
    parser.add_argument("--warm", type=int, default=1, help="calls of each side before those, which are not counted")
    parser.add_argument("--against", type=Path, metavar="TREE", help="another checkout to take turns with")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)  # what --against starts over there
    parser.set_defaults(**defaults)
    return parser


def once(work: Callable[[], object]) -> dict[str, float]:
    """CPU and wall seconds of a call, when all that was asked of the device is done."""
    synchronize()
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    synchronize()
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(row: Row, args: argparse.Namespace, other: "Other | None" = None) -> Times:
    """`args.repeats` timed calls of every side in turn, after `args.warm` rounds that are not counted."""
    calls: dict[str, Callable[[], dict[str, float]]] = {s: lambda w=w: once(w) for s, w in row.sides.items()}
    if other is not None:
        calls[OTHER] = lambda: other.call(row.name)
    rounds = [{side: call() for side, call in calls.items()} for _ in range(args.warm + args.repeats)]
    return {side: [found[side] for found in rounds[args.warm :]] for side in calls}


def main(name: str, args: argparse.Namespace, check: Callable[[argparse.Namespace], dict], rows: Rows) -> None:
    """Compare the sides with `check`, which fails if they do not do the same work; then measure, print and write."""
    torch.set_num_threads(args.threads)
    runtime.keep_memory()  # as every run does
    if args.serve:
        serve(rows(args))
        return
    print(f"{name}: {processor()}, {args.threads} thread(s), torch {torch.__version__}, {runtime.code_version()}")
    checked = check(args)
    for what, found in checked.items():
        print(f"  same: {what}: {found}")
    other = Other(name, args) if args.against else None
    print(heading := f"{'CPU seconds, fastest of ' + str(args.repeats):46}", end="")
    print("".join(f"{side:>18}" for side in ("plain", OURS, *([OTHER] if other else []))) + "   ratio")
    print("-" * (len(heading) + 18 * (3 if other else 2) + 8))
    record = {"name": name, "arguments": settings(args), "machine": machine(), "same": checked, "rows": []}
    if other:
        record["against"] = other.version
    for row in rows(args):
        if args.only in row.name:
            times = measure(row, args, other)
            print(line(row, times), flush=True)
            record["rows"].append({"name": row.name, "tokens": row.tokens, "seconds": times})
            write(args.out or RESULTS / f"{name}.json", record)  # what there is so far outlives a broken run


def line(row: Row, times: Times) -> str:
    """A line of the table; the ratios say how many times faster golfcore is than each other side."""
    best = {side: min(t["cpu"] for t in found) for side, found in times.items()}
    sides = ("plain", OURS, *([OTHER] if OTHER in best else []))
    cells = "".join(f"{best[s]:16.3f} s" if s in best else f"{'':18}" for s in sides)
    ratios = ", ".join(f"{best[s] / best[OURS]:.2f}" for s in sides if s in best and s != OURS)
    return f"{row.name:46}{cells}   {ratios}"


def settings(args: argparse.Namespace) -> dict[str, object]:
    """The arguments, without those that name places."""
    return {k: v for k, v in vars(args).items() if not isinstance(v, Path) and k != "serve"}


def machine() -> dict[str, object]:
    known = runtime.describe()
    kept = {key: known[key] for key in ("golfcore", "python", "torch", "cuda", "cpus", "threads")}
    return {**kept, "processor": processor(), "capability": torch.backends.cpu.get_cpu_capability()}


def processor() -> str:
    """The processor's name as Linux knows it, with what it has for bfloat16."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return str(runtime.describe()["device"])
    known = dict(map(str.strip, text.split(":", 1)) for text in lines if ":" in text)
    flags = [f for f in ("avx512_bf16", "amx_bf16") if f in known.get("flags", "").split()]
    family = f"family {known.get('cpu family')} model {known.get('model')}"
    return f"{known.get('model name', 'unknown processor')} ({', '.join([family, *flags])})"


def write(path: Path, record: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, default=str) + "\n")


# -- another checkout


class Other:
    """The same program of another checkout, in a process that waits for its turns."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        tree = args.against.resolve()
        script = tree / "benchmarks" / f"{name}.py"
        if not script.is_file():
            sys.exit(f"--against {args.against}: expected a checkout with benchmarks/{name}.py, found none")
        command = [sys.executable, str(script), "--serve", "--threads", str(args.threads), "--only", args.only]
        command += ["--small"] if args.small else []
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(args.threads)}
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        hello = self._hear()
        if Path(hello["tree"]) != tree:
            sys.exit(f"--against {args.against}: expected its own golfcore, found that of another checkout")
        self.version = hello["version"]

    def call(self, name: str) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        return self._hear()

    def _hear(self) -> dict:
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        if not text:
            sys.exit("--against: the other checkout's benchmark ended before it was done")
        return json.loads(text)


def serve(rows: Iterable[Row]) -> None:
    """Call golfcore's side of the row named on each line of standard input; a line of seconds for each."""
    out, sys.stdout = sys.stdout, sys.stderr
    say = lambda found: print(json.dumps(found), file=out, flush=True)  # noqa: E731
    say({"tree": str(Path(golfcore.__file__).resolve().parents[1]), "version": runtime.code_version()})
    coming: Iterator[Row] = iter(rows)
    row = Row("", {})
    for text in sys.stdin:
        while row.name != text.strip():
            row = next(coming)
        say(once(row.sides[OURS]))


# -- checks


def below(error: float, most: float) -> str:
    """The error in words. SystemExit: it is more than `most`, or no number."""
    if not error <= most:
        sys.exit(f"not the same work: {error:.1e} apart, expected at most {most:g}")
    return f"{error:.1e}"


def near(found: float, expected: float, relative: float) -> str:
    """A sentence for the log. SystemExit: the two differ by more than `relative`."""
    return f"{found:.6g} and {expected:.6g} ({below(abs(found - expected) / abs(expected), relative)} apart)"
