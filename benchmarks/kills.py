"""What is killed, at its file operations or at random moments, and gone on with must end in the same numbers.

    python benchmarks/kills.py [--every 1] [--preset smoke]
    python benchmarks/kills.py --random 50 [--seed 0]

A run is counted once; then every so many-th operation (a file opened for writing, renamed, linked, removed, a folder
made) ends the process before it happens, as kill -9 would, and the same command runs to its end. At random: a run with
Reptile and GPTQ, a sweep, a notebook and one of two ranks, in turn, each killed at a moment that is drawn.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHILD = """
import os, sys
out, last, counter = sys.argv[1], int(sys.argv[2]), [0]

def watch(event, args):
    path = str(args[0]) if args else ""
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
    if (writes or event in ("os.rename", "os.link", "os.remove", "os.mkdir")) and path.startswith(out):
        counter[0] += 1
        if counter[0] == last:
            os._exit(137)

sys.addaudithook(watch)
from golfcore.cli import main
code = main(["run", sys.argv[3], "--set", "reptile.share=0.25", "--out", out])
print(counter[0])
sys.exit(code)
"""
GOLF = [sys.executable, "-m", "golfcore"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "golfcore"]
SWEEP = ["sweep", "conditioning", "--size", "smoke", "--seed", "1", "--arm", "conditioned-weak"]
RANKS = "one of two ranks"
RANDOM = {  # a command without its last word, the folder
    "run": [*GOLF, "run", "smoke", "--set", "reptile.share=0.25", "--out"],
    "sweep": [*GOLF, *SWEEP, "--out"],
    "notebook": [*GOLF, "notebook", "01_one_run", "-p", "preset", "smoke", "-p", "out"],
    RANKS: [*TORCHRUN, "run", "smoke", "--out"],
}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(out: Path, last: int, preset: str) -> tuple[int, str]:
    command = [sys.executable, "-c", CHILD, str(out), str(last), preset]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    return done.returncode, done.stderr + done.stdout  # the count is the last word


def result(out: Path) -> dict[str, object]:
    """What must be the same: artifacts' bytes, every score, every row of metrics but the seconds; and no debris."""
    found: dict[str, object] = {"debris": [str(p) for p in out.rglob(".*.part")]}
    timed = ("elapsed", "seconds")
    for path in sorted(out.rglob("results.json")):
        place, rows = path.parent, (path.parent / "metrics.jsonl").read_text().splitlines()
        measures = json.loads(path.read_text())["measures"]
        found |= {
            f"{place.name} artifact": (place / "artifact.golf").read_bytes(),
            f"{place.name} scores": {name: m["bpb"] for name, m in measures.items()},
            f"{place.name} metrics": [{k: v for k, v in json.loads(r).items() if k not in timed} for r in rows],
        }
    return found


def differing(found: dict[str, object], want: dict[str, object]) -> list[str]:
    return [key for key in found.keys() | want.keys() if found.get(key) != want.get(key)]


def killed(command: list[str], after: float, one_rank: bool) -> None:
    """Start the command and end it, or one of its ranks, by SIGKILL so many seconds later."""
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": ENVIRONMENT}
    process = subprocess.Popen(command, start_new_session=True, **silent)  # type: ignore[call-overload]
    time.sleep(after)
    if one_rank:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        ranks = children.read_text().split() if children.exists() else []
        for rank in ranks[-1:]:
            os.kill(int(rank), signal.SIGKILL)
        process.wait()
    elif process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def at_operations(place: Path, every: int, preset: str) -> int:
    code, said = run(place / "whole" / "cut", 0, preset)
    assert code == 0, said
    total, want, wrong = int(said.split()[-1]), result(place / "whole"), 0
    for last in range(1, total + 1, every):
        out = place / "killed" / "cut"
        code, said = run(out, last, preset)
        assert code == 137, (last, code, said)
        code, said = run(out, 0, preset)
        if code or (other := differing(result(out.parent), want)):
            wrong += 1
            print(f"operation {last}: exit code {code}, other {other}: {said.strip().splitlines()[-1:]}", flush=True)
        shutil.rmtree(out.parent)
    print(f"{len(range(1, total + 1, every))} of {total} file operations: {wrong} with another end")
    return wrong


def at_random(place: Path, times: int, seed: int) -> int:
    drawn, wrong, whole = random.Random(seed), 0, dict[str, tuple[float, dict[str, object]]]()
    for name, command in RANDOM.items():
        began, out = time.perf_counter(), place / "whole" / name
        subprocess.run([*command, str(out / "cut")], check=True, capture_output=True, env=ENVIRONMENT)
        whole[name] = time.perf_counter() - began, result(out)
    for number in range(times):
        name = list(RANDOM)[number % len(RANDOM)]
        (seconds, want), out = whole[name], place / "killed"
        after, command = drawn.uniform(0, seconds), [*RANDOM[name], str(out / "cut")]
        killed(command, after, name == RANKS)
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
        other = differing(result(out), want)
        if done.returncode or other:
            wrong += 1
            said = done.stderr.strip().splitlines()[-1:]
            print(
                f"{name}, {after:.2f} of {seconds:.1f} s: exit code {done.returncode}, other {other}: {said}",
                flush=True,
            )
        shutil.rmtree(out)
    print(f"{times} kills at random of {', '.join(RANDOM)}: {wrong} with another end")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--preset", default="smoke")
    parser.add_argument("--random", type=int, default=0, help="so many kills at random moments instead")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        wrong = (
            at_random(place, args.random, args.seed) if args.random else at_operations(place, args.every, args.preset)
        )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
