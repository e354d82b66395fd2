"""A run killed at its file operations, each time gone on with: it must end in the same artifact and numbers.

    python benchmarks/kills.py [--every 1] [--preset smoke]

The run is counted once; then every so many-th operation (a file opened for writing, renamed, linked, removed, a folder
made) ends the process before it happens, as kill -9 would, and the same command runs to its end.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
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


def run(out: Path, last: int, preset: str) -> tuple[int, str]:
    command = [sys.executable, "-c", CHILD, str(out), str(last), preset]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return done.returncode, done.stderr + done.stdout  # the count is the last word


def result(out: Path) -> dict[str, object]:
    """What must be the same: the artifact's bytes, every score, every row of metrics but the seconds."""
    report = json.loads((out / "results.json").read_text())
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    timed = ("elapsed", "seconds")
    return {
        "artifact": (out / "artifact.golf").read_bytes(),
        "scores": {name: m["bpb"] for name, m in report["measures"].items()},
        "metrics": [{k: v for k, v in row.items() if k not in timed} for row in rows],
        "parts": [str(p) for p in out.rglob(".*.part")],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--preset", default="smoke")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        code, said = run(place / "whole", 0, args.preset)
        assert code == 0, said
        total, want, wrong = int(said.split()[-1]), result(place / "whole"), 0
        for last in range(1, total + 1, args.every):
            out = place / "cut"
            code, said = run(out, last, args.preset)
            assert code == 137, (last, code, said)
            code, said = run(out, 0, args.preset)
            found = result(out) if code == 0 else {}
            differing = [key for key in ("artifact", "scores", "metrics") if found.get(key) != want[key]]
            if code or differing:
                wrong += 1
                print(
                    f"operation {last}: exit code {code}, other {differing}: {said.strip().splitlines()[-1:]}",
                    flush=True,
                )
            shutil.rmtree(out)
    print(f"{len(range(1, total + 1, args.every))} of {total} file operations: {wrong} with another end")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
