"""A folder that can be sent: finished runs as the competition takes them, and the proof that the folder repeats them.

    records/TRACK/DATE_NAME/  README.md, submission.json, train_gpt.py, train_gpt_readable.py, requirements.txt,
                              and for each seed train_seedS.log and artifact_seedS.golf

`train_gpt.py` is what counts: the packed form of `golfcore.runs.bundle`, beside the readable one.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from golfcore import config
from golfcore.base import files
from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.runs import bundle
from golfcore.runs.results import ARTIFACT, measured, table

PROGRAM, READABLE, SUBMISSION = "train_gpt.py", "train_gpt_readable.py", "submission.json"
LEGAL = ("static", "score-first")  # of the ledger
FIRST = 3  # steps whose losses a copy must repeat bit for bit
SCHEMA = {"val_bpb": float, "seeds": [int], "seed_results": {"*": {"val_bpb": float, "legality": str}}}


class Author(NamedTuple):
    author: str
    github_id: str


def export(
    runs: Sequence[RunFolder], out: Path, author: Author, name: str, track: str, date: str, against: str = ""
) -> Path:
    """The folder of finished runs that differ in their seed alone. `against`: a sentence on a baseline, for README.md.

    UserError: runs that differ otherwise, that have not finished, or do not fit; a folder that is there.
    """
    first, reports = config.of_run(runs[0]), {config.of_run(run).run.seed: run.results() for run in runs}
    for run in runs[1:]:
        other = config.override(config.of_run(run), {"run.seed": first.run.seed}, first.name)
        if other.hash != first.hash or run.data_hash() != runs[0].data_hash() or len(reports) < len(runs):
            raise UserError(f"{run.path}: expected the run {runs[0].path} with another seed, found another run")
    for what, text in (("name", name), ("track", track), ("date", date)):
        if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", text):
            raise UserError(f"--{what}: expected letters, digits, '.', '_', '+' and '-', found {text!r}")
    folder = out / "records" / track / f"{date}_{name}"
    if folder.exists():
        raise UserError(f"{folder}: expected no folder yet, found one; remove it or choose another --name")
    found = bundle.sources()
    program = bundle.packed(first, found)
    code, limit = len(program), first.quant.max_bytes
    sizes = {config.of_run(run).run.seed: run.file(ARTIFACT).stat().st_size + code for run in runs}
    if (largest := max(sizes.values())) > limit:
        raise UserError(f"{folder}: expected at most {limit:,} bytes, found {largest:,}: {largest - limit:,} too many")
    texts = {READABLE: bundle.readable(first, found)}
    texts["requirements.txt"] = "\n".join(bundle.requirements(found)) + "\n"
    texts |= {f"train_seed{config.of_run(run).run.seed}.log": log(run, code) for run in runs}
    record = submission(reports, sizes, code, author, name, track, date)
    texts["README.md"] = readme(record, runs, len(texts[READABLE].encode()), limit, against)
    with tempfile.TemporaryDirectory(dir=_made(folder.parent)) as place:  # whole or not at all
        part = Path(place) / "folder"
        files.write_bytes(part / PROGRAM, program)
        for file, text in texts.items():
            files.write_text(part / file, text)
        for run in runs:
            files.same_file(run.file(ARTIFACT), part / f"artifact_seed{config.of_run(run).run.seed}.golf")
        files.write_json(part / SUBMISSION, record)
        part.rename(folder)
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def submission(
    reports: dict[int, dict[str, Any]],
    sizes: dict[int, int],
    code: int,
    author: Author,
    name: str,
    track: str,
    date: str,
) -> dict[str, Any]:
    """What submission.json holds; val_bpb is the mean over seeds of (c), or of (b) where (c) is not legal."""
    results: dict[str, dict[str, Any]] = {}
    for seed, report in sorted(reports.items()):
        m = report["measures"]
        headline = m["ttt" if m["ttt"]["legality"] in LEGAL else "sliding"]
        results[str(seed)] = {
            "val_bpb": headline["bpb"],
            "val_loss": headline["loss"],
            "no_overlap": m["static"]["bpb"],
            "sliding": m["sliding"]["bpb"],
            "ttt": m["ttt"]["bpb"],
            "legality": m["ttt"]["legality"],
            "bytes_total": sizes[seed],
        }

    def mean(key: str) -> float:
        return float(np.mean([row[key] for row in results.values()]))

    source = next(iter(reports.values()))["source"]
    return {
        **author._asdict(),
        "name": name,
        "track": track,
        "date": date,
        "val_bpb": mean("val_bpb"),
        "val_loss": mean("val_loss"),
        "bytes_total": max(sizes.values()),
        "bytes_code": code,
        "seeds": sorted(reports),
        "seed_results": results,
        "scores": {"no_overlap": mean("no_overlap"), "sliding": mean("sliding"), "ttt": mean("ttt")},
        "legality": sorted({row["legality"] for row in results.values()}),
        "config": source["config"],
        "data": source["data"],
        "golfcore": source.get("code", ""),
    }


def log(run: RunFolder, code: int) -> str:
    """What a run logged, one line a row, then its table; the bytes of the code are those of the folder."""
    lines = [json.dumps(row, sort_keys=True) for row in run.metrics() if row["kind"] in ("train", "val", "event")]
    report = run.results()
    a = report["artifact"]
    total = a["bytes"] + code
    a |= {"code_bytes": code, "total": total, "fits": total <= a["max_bytes"]}
    return "\n".join([*lines, "", table(report), f"bytes_total {total}", ""])


def readme(record: dict[str, Any], runs: Sequence[RunFolder], plain: int, limit: int, against: str) -> str:
    """The page of the folder: scores, legality, bytes counted four ways, where the numbers come from, how to repeat.

    `plain`: bytes of the readable program.
    """
    rows = [
        "| seed | (a) no overlap | (b) sliding | (c) sliding + TTT | legality of (c) | bytes |",
        "|---|---|---|---|---|---|",
    ]
    for seed, row in record["seed_results"].items():
        scores = " | ".join(f"{row[k]:.5f}" for k in ("no_overlap", "sliding", "ttt"))
        rows.append(f"| {seed} | {scores} | {row['legality']} | {row['bytes_total']:,} |")
    values = [row["val_bpb"] for row in record["seed_results"].values()]
    spread = f", standard deviation {np.std(values, ddof=1):.5f} over {len(values)} seeds" if len(values) > 1 else ""
    tokenizer = _tokenizer_bytes(runs[0])
    legal = set(record["legality"]) <= set(LEGAL)
    headline = "(c), legal test-time training" if legal else "(b), because (c) is not legal"
    packed = record["bytes_code"]
    weights = record["bytes_total"] - packed
    counted = {"packed": weights + packed, "packed, with the tokenizer": weights + packed + tokenizer}
    counted |= {"readable": weights + plain, "readable, with the tokenizer": weights + plain + tokenizer}
    also = [f"| {p} | {runs[0].results()['measures'][p]['bpb']:.5f} |" for p in measured(runs[0].results())]
    return "\n".join(
        [
            f"# {record['name']}",
            "",
            f"{record['author']} (GitHub: {record['github_id']}), {record['date']}, track {record['track']}.",
            "",
            f"**val_bpb {record['val_bpb']:.5f}**: {headline}{spread}.",
            *(["", against] if against else []),
            "",
            *rows,
            "",
            "Every measure of the first seed:",
            "",
            "| protocol | bits per byte |",
            "|---|---|",
            *also,
            "",
            f"Bytes of the largest artifact with code, of {limit:,}:",
            "",
            "| code | bytes |",
            "|---|---|",
            *(f"| {label} | {n:,} |" for label, n in counted.items()),
            "",
            f"Configuration {record['config']}, data {record['data']}, made by golfcore {record['golfcore']}; runs "
            f"{', '.join(run.id for run in runs)}.",
            "",
            "```",
            "pip install -r requirements.txt",
            f"python {PROGRAM} --data DATA --seed {record['seeds'][0]}",
            f"python {PROGRAM} --data DATA --evaluate artifact_seed{record['seeds'][0]}.golf",
            "```",
            "",
        ]
    )


def _tokenizer_bytes(run: RunFolder) -> int:
    from golfcore.data.datasets import prepare_data

    return prepare_data(config.of_run(run), lambda text: None).tokenizer.stat().st_size


def check(
    folder: Path, data: Path | None = None, python: Path | None = None, say: Callable[[str], object] = print
) -> None:
    """Run a folder on its own: in an empty environment with its requirements, or by `python`, outside of this package.

    Every artifact must score what submission.json says, to the digit, and the training command must begin with the
    losses that are logged, bit for bit. UserError: one that does not, or a folder that lacks something.
    """
    record = files.read_json(folder / SUBMISSION, "a submission", SCHEMA)
    given = ["--data", str(data.resolve())] if data else []
    with tempfile.TemporaryDirectory() as place:
        python = python or _environment(Path(place), folder, say)
        for seed, row in record["seed_results"].items():
            began = time.monotonic()
            packed = folder.resolve() / f"artifact_seed{seed}.golf"
            protocol = "ttt" if row["legality"] in LEGAL else "sliding"  # whichever val_bpb is of
            found = _run(python, folder, place, ["--evaluate", str(packed), "--protocol", protocol, *given])
            scored = json.loads(found.splitlines()[-1])
            if scored["bpb"] != row["val_bpb"]:
                raise UserError(f"{folder}, seed {seed}: expected {row['val_bpb']} again, found {scored['bpb']}")
            say(f"seed {seed}: {scored['bpb']} again, in {time.monotonic() - began:.0f} s")
            losses = _run(python, folder, place, ["--steps", str(FIRST), "--seed", seed, *given]).split()[-FIRST:]
            lines = (folder / f"train_seed{seed}.log").read_text().splitlines()
            logged = [json.loads(line) for line in lines if line[:1] == "{"]
            wanted = [float(row["loss"]).hex() for row in logged if row["kind"] == "train"][:FIRST]
            if not wanted or losses[: len(wanted)] != wanted:
                raise UserError(f"{folder}, seed {seed}: expected the first losses {wanted}, found {losses}")
            say(f"seed {seed}: the losses of the first {len(wanted)} steps again, bit for bit")


def _environment(place: Path, folder: Path, say: Callable[[str], object]) -> Path:
    """The Python of a new environment in `place` that holds the folder's requirements and nothing else."""
    say("installing the requirements into an empty environment")
    venv.create(place / "env", with_pip=True)
    python = place / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    command = [str(python), "-m", "pip", "install", "--quiet", "-r", str((folder / "requirements.txt").resolve())]
    if (done := subprocess.run(command, capture_output=True, text=True)).returncode:
        raise UserError(f"{folder / 'requirements.txt'}: expected to be installed, found {done.stderr.strip()[-200:]}")
    return python


def _run(python: Path, folder: Path, place: str, arguments: Sequence[str]) -> str:
    command = [str(python), str(folder.resolve() / PROGRAM), *arguments]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()[-1:]
        raise UserError(f"{folder / PROGRAM}: expected it to run, found exit status {done.returncode}: {said}")
    return done.stdout
