"""Every file of a run folder and of a dataset damaged, in every way: what reads it says so, or gives the same numbers.

    python benchmarks/damage.py [--every 1]

A small run is trained once. Then each file, one at a time, is bent (a bit at its beginning, middle and end, half of it
gone, emptied, ending in zeros, JSON of another shape or with another number, removed, a folder in its place), and every
command that reads it is run. Right is exit code 2 with one sentence, or the numbers of the whole; all else is shown.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from golfcore import cli
from golfcore.analysis import compare
from golfcore.plots import figures
from golfcore.runs import audits, pipeline

LOADED = (compare, figures, audits, pipeline)  # before the processes of the commands part, not in each

SETTINGS = {
    "model.vocab_size": 320,
    "schedule.iterations": 3,
    "schedule.warmdown_steps": 1,
    "data.reserve_tokens": 300,
    "ttt.chunk_tokens": 128,
    "data.val_tokens": 1100,
    "quant.calib_seqs": 1,
    "run.checkpoint_every": 2,
}
TIMES = {"seconds", "elapsed", "started", "code"}  # what need not be the same: times, the version of the code
WORDS = "the quick brown fox jumps over the lazy dog while seven wizards brew strange golden potions quietly".split()
Damage = Callable[[bytes], bytes]


def bit(share: float) -> Damage:
    def bend(content: bytes) -> bytes:
        at = min(int(share * len(content)), len(content) - 1)
        return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]

    return bend


def another_number(content: bytes) -> bytes:
    """The last whole digit that stands in it is another one."""
    digits = list(re.finditer(rb"\d", content))
    at = digits[-1].start() if digits else 0
    return content[:at] + (b"%d" % ((content[at] + 1) % 10)) + content[at + 1 :]


DAMAGES: dict[str, Damage | None] = {
    "first bit": bit(0.0),
    "a bit in the middle": bit(0.5),
    "a bit near the end": bit(0.97),
    "half of it": lambda content: content[: len(content) // 2],
    "nothing": lambda content: b"",
    "ends in zeros": lambda content: content[: -min(64, len(content))] + bytes(min(64, len(content))),
    "{}": lambda content: b"{}",
    "[]": lambda content: b"[]",
    "another number": another_number,
    "gone": None,
    "a folder": None,
}


def made(place: Path) -> tuple[Path, Path, list[str]]:
    """A dataset and a finished run on it, and the command of the run."""
    text, data, out, rng = place / "text", place / "data", place / "runs" / "one", np.random.default_rng(0)
    text.mkdir(parents=True)
    for i in range(60):
        (text / f"{i}.txt").write_text(" ".join(rng.choice(WORDS, 300)) + f" end of document {i}.")
    command = ["run", "smoke", "--data", str(data), "--out", str(out)]
    command += [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    for argv in (["data", "build", str(text), "--out", str(data), "--vocab-size", "320"], command):
        code, said = told(argv)
        assert code == 0, said
    return data, out, command


def told(argv: list[str]) -> tuple[int, str]:
    """Exit code and output of a command, in a process of its own; 70 with a traceback for what is not caught."""
    with tempfile.TemporaryDirectory() as name:
        said, warned = Path(name, "said"), Path(name, "warned")
        if not (child := os.fork()):
            with said.open("w") as f, warned.open("w") as g, redirect_stdout(f), redirect_stderr(g):
                try:
                    code = cli.main(argv)
                except SystemExit as e:
                    code = int(e.code or 0)
                except BaseException:
                    traceback.print_exc()
                    code = 70
            os._exit(code)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), said.read_text() + warned.read_text()


def plain(value: Any) -> Any:
    """A record without times."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items() if key not in TIMES}
    return [plain(v) for v in value] if isinstance(value, list) else value


def numbers(out: Path) -> dict[str, Any]:
    """What a run ends with."""
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return {
        "artifact": (out / "artifact.golf").read_bytes(),
        "results": plain(json.loads((out / "results.json").read_text())["measures"]),
        "metrics": [plain(json.loads(line)) for line in lines],
    }


def readings(place: Path, out: Path, command: list[str]) -> Iterator[tuple[str, int, str, Any]]:
    """Of every command that reads a run or a dataset: name, exit code, what it said, and its numbers."""
    code, said = told(["runs", str(out.parent), "--json"])
    yield "runs", code, said, [row for row in plain(json.loads(said)) if row["state"] == "done"] if code == 0 else None
    for argv in (
        ["eval", str(out), "--protocol", "static", "--json"],
        ["artifact", "info", str(out / "artifact.golf")],
    ):
        code, said = told(argv)
        start = said.find("{")
        yield (
            argv[0],
            code,
            said,
            plain(json.JSONDecoder().raw_decode(said[max(start, 0) :])[0]) if start >= 0 else said,
        )
    drawn = place / "figures"
    code, said = told(["figures", str(out), "--out", str(drawn)])
    yield "figures", code, said, {p.name: p.read_bytes() for p in sorted(drawn.glob("*.csv"))} if code == 0 else None
    shutil.rmtree(drawn, ignore_errors=True)
    code, said = told(["compare", str(out), str(out)])
    yield "compare", code, said, None
    code, said = told(["data", "check", command[3]])
    yield "data check", code, said, [] if "no manifest of golfcore's" in said else said if code == 0 else None
    code, said = told(command)
    yield "run", code, said, numbers(out) if code == 0 else None


def fault(code: int, said: str, found: Any, want: tuple[int, Any]) -> str:
    """What is wrong with the answer of a command; "" if nothing is."""
    if code == 2:
        lines = [line for line in said.splitlines() if line.startswith("golfcore: ")]
        return "" if len(lines) == 1 and "Traceback" not in said else f"no one sentence: {said[-200:]}"
    if code != want[0]:
        return f"exit code {code}: {' '.join(said.split())[-300:]}"
    return "" if found in (want[1], []) else "other numbers, in silence"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="only every so many-th case")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        data, out, command = made(place / "made")
        want = {reading: (code, found) for reading, code, _, found in readings(place, out, command)}
        whole = place / "whole"
        shutil.copytree(place / "made", whole, symlinks=True)
        files = [p.relative_to(place / "made") for root in (out, data) for p in sorted(root.rglob("*")) if p.is_file()]
        cases = [(file, damage) for file in files for damage in DAMAGES][:: args.every]
        seen: Counter[str] = Counter()
        for file, damage in cases:
            shutil.rmtree(place / "made")
            shutil.copytree(whole, place / "made", symlinks=True)
            path, bend = place / "made" / file, DAMAGES[damage]
            content = path.read_bytes()
            path.unlink()
            if bend is not None:
                path.write_bytes(bend(content) if content else b"x")
            elif damage == "a folder":
                path.mkdir()
            for reading, code, said, found in readings(place, out, command):
                wrong = fault(code, said, found, want[reading])
                seen["wrong" if wrong else "refused" if code == 2 else "same"] += 1
                if wrong:
                    print(f"{file}, {damage}, {reading}: {wrong}", flush=True)
    print(f"{len(cases)} cases of {len(files)} files: {dict(seen)}")
    return int(seen["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main())
