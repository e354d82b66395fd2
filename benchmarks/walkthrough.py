"""The README's walk from an empty box to the figures, each of its commands at smoke scale in a fresh clone.

    python benchmarks/walkthrough.py [--keep DIR]

Commands are read from the README's section "For H100 boxes". What is made smaller: presets, sizes, seeds, the number of
processes; and the download, in whose place the embedded corpus stands, which needs no network. Ends with exit code 1 at
the first command that fails, and says how long each took.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMALLER = (  # what a command says, what is run
    (r"^golfcore data download --out data$", "golfcore data info"),
    (r" --data data\b", ""),
    (r"\bexp101\b", "smoke"),
    (r"--nproc-per-node 8", "--nproc-per-node 2"),
    (r"^(golfcore sweep .*)$", r"\1 --size smoke --seed 1"),
    (r"\bmake setup\b", f"make setup PYTHON={sys.executable}"),
)


def commands(readme: str) -> list[str]:
    """The lines of the section's first block, without their comments."""
    section = readme.split("\n## For H100 boxes\n", 1)[1].split("\n## ", 1)[0]
    block = re.search(r"```sh\n(.*?)```", section, re.S)
    if block is None:
        raise SystemExit("README.md, For H100 boxes: expected a block of commands, found none")
    lines = (line.split(" #", 1)[0].strip() for line in block[1].splitlines())
    return [line for line in lines if line]


def smaller(command: str) -> str:
    for pattern, instead in SMALLER:
        command = re.sub(pattern, instead, command)
    return command


def walk(place: Path) -> None:
    clone = place / "golfcore"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    path = f"{clone / '.venv' / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "GOLFCORE_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1"}
    for command in commands((clone / "README.md").read_text()):
        if command.startswith(("git clone", "conda", ". ")):
            continue  # done above; `make setup` makes the same environment
        began, shown = time.monotonic(), smaller(command)
        done = subprocess.run(["bash", "-c", shown], cwd=clone, env=environment, capture_output=True, text=True)
        print(f"{time.monotonic() - began:6.1f} s  exit {done.returncode}  {shown}", flush=True)
        if done.returncode:
            raise SystemExit(f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a new folder for the clone; default: a temporary one")
    args = parser.parse_args()
    if args.keep:
        args.keep.mkdir(parents=True)
        walk(args.keep)
        return
    with tempfile.TemporaryDirectory() as place:
        walk(Path(place))


if __name__ == "__main__":
    main()
