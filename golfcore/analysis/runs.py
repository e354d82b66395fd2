"""What run folders say about themselves: how training went, and which runs there are. Needs no torch."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from golfcore import config
from golfcore.analysis import frames
from golfcore.base.errors import UserError
from golfcore.base.records import CONFIG, ENVIRONMENT, METRICS, RESULTS, RunFolder
from golfcore.runs.folder import in_use, run_folders

TAIL = 4096  # bytes of a log that hold its last row of training
STEP = re.compile(rb'"kind":"train"[^\n]*?"step":(\d+)')
SMOOTHING = 40  # the smoothed loss is a mean over a window of the run's length / this, to either side
CURVES = "kind step tokens elapsed loss bpb bpb_smooth lr_multiplier momentum grad_norm meta_loss event".split()
SHOWN = "run preset config seed data step static sliding ttt legality bytes fits state stage".split()
STATES = ("running", "stopped", "done", "damaged")


def curves(run: RunFolder) -> pd.DataFrame:
    """Rows of kind train, val and event, as the run logged them: the CURVES that it has, loss in nats a token.

    Training rows get `bpb_smooth`; their bits per byte are their loss at the validation text's bytes a token.
    UserError: a run that has logged no training.
    """
    logged = run.metrics()
    rows = {kind: [row for row in logged if row["kind"] == kind] for kind in ("train", "val", "event")}
    if not (n := len(rows["train"])):
        raise UserError(f"{run.path}: expected a run that has trained, found no training rows")
    found = frames.frame(row for of_kind in rows.values() for row in of_kind)
    steps, bpb = (found[column][:n].to_numpy(float) for column in ("step", "bpb"))
    sums = np.concatenate(([0.0], np.cumsum(bpb)))
    half = max(1.0, steps[-1] / SMOOTHING)
    first, last = np.searchsorted(steps, steps - half, "left"), np.searchsorted(steps, steps + half, "right")
    found["bpb_smooth"] = pd.Series((sums[last] - sums[first]) / (last - first)).reindex(found.index)
    return found[[c for c in CURVES if c in found]]


def coverage(run: RunFolder) -> pd.DataFrame:
    """What every feature that is switched on really touched: feature, done, of, unit, note."""
    from golfcore.runs.results import last_stage  # imports torch, which a list of runs does without

    columns, found = ("done", "of", "unit", "note"), run.coverage_after(last_stage(config.of_run(run)))
    return frames.frame({"feature": name} | {c: row[c] for c in columns} for name, row in found.items())


report = RunFolder.results


def provenance(run: RunFolder) -> dict[str, Any]:
    """What identifies every number of a run: its id, preset, configuration hash, seed, data hash, code and ranks."""
    record, last = run.record(), (run.starts() or [{}])[-1]
    if not last and run.file(RESULTS).exists():
        raise UserError(f"{run.file(ENVIRONMENT)}: expected the starts of a finished run, found none")
    c = config.from_dict(record["config"], str(run.file(CONFIG)))
    found = {"run": run.id, "preset": c.name, "config": record["hash"], "seed": c.run.seed, "data": record["data_hash"]}
    return found | {name: last[key] for name, key in (("code", "golfcore"), ("world", "world")) if key in last}


def runs_table(folder: Path) -> pd.DataFrame:
    """One row for each run at any depth below `folder`: what it is, how far it got, its three numbers and its bytes.

    "run" is its path below `folder`; "state" one of STATES, "stage" what it did last; "step" of training; "started",
    "device" and "code" are of its last start. A run with a record that is not what it should be has only its state and
    a "stage" that says what is wrong. UserError: no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a folder of runs, found {'a file' if folder.exists() else 'none'}")
    found = {run: run.path.relative_to(folder).as_posix() for run in run_folders(folder)}
    return frames.frame(_run_row(run) | {"run": run.id if below == "." else below} for run, below in found.items())


def _run_row(run: RunFolder) -> dict[str, Any]:
    try:
        row, done = provenance(run), run.file(RESULTS).exists()
        row |= {key: last[key] for last in run.starts()[-1:] for key in ("started", "device") if key in last}
        report = run.results() if done else {}
        row |= {"done": done, "stage": "done" if done else _stage(run), "step": report.get("steps", _last_step(run))}
        row["state"] = "running" if in_use(run.path) else "done" if done else "stopped"
        return row | (_numbers(report) if done else {})
    except UserError as e:
        return {"run": run.id, "done": False, "state": "damaged", "stage": f"damaged: {e}"}


def _numbers(results: dict[str, Any]) -> dict[str, Any]:
    """What every run has, then the scores under other protocols. The legality is that of the three numbers."""
    scores = {name: m["bpb"] for name, m in results["measures"].items()}
    always = ("float", "static", "sliding", "ttt")
    legality = {results["measures"][name]["legality"] for name in always} - {"static"}
    return {
        **{name: scores.pop(name) for name in always},
        "context_gain": results["context_gain"],
        "ttt_gain": results["ttt_gain"],
        "baseline": results["baseline"]["bpb"],
        "legality": ", ".join(sorted(legality)) or "static",
        "bytes": results["artifact"]["total"],
        "fits": results["artifact"]["fits"],
        **scores,
    }


def _last_step(run: RunFolder) -> int:
    """Of the last row of training in the log; 0 if there is none. Only the end of the file is read."""
    path = run.file(METRICS)
    if not path.exists():
        return 0
    with path.open("rb") as f:
        f.seek(max(0, path.stat().st_size - TAIL))
        steps = STEP.findall(f.read())
    return int(steps[-1]) if steps else 0


def select(found: pd.DataFrame, where: Sequence[str] = (), sort: str = "") -> pd.DataFrame:
    """The runs with these values ("preset=demo"; of a hash its first digits; "ttt=": none), by a column ("-ttt" falls).

    UserError: no such column.
    """
    for condition in where:
        column, equals, value = condition.partition("=")
        if not equals:
            raise UserError(f"--where: expected COLUMN=VALUE, found {condition!r}")
        config.keys([column], list(found), "runs", "column")
        found = found[found[column].map(partial(_fits, value))]
    if sort:
        config.keys([sort.removeprefix("-")], list(found), "runs", "column")
        found = found.sort_values(sort.removeprefix("-"), ascending=sort[0] != "-", kind="stable", na_position="last")
    return found.reset_index(drop=True)


def _fits(wanted: str, value: object) -> bool:
    if not wanted:
        return bool(pd.isna(value))
    text = str(value)
    return text == wanted or (bool(frames.HASH.fullmatch(text)) and text.startswith(wanted))


def _stage(run: RunFolder) -> str:
    """What an unfinished run did last: a stage, or a step of training."""
    markers = sorted(run.file("stages").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    if markers:
        return f"after {markers[-1].stem}"
    rows = run.metrics("train")
    return f"train, step {rows[-1]['step']}" if rows else "not started"


def as_rows(found: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame as plain values, each without what it has no value for: what becomes JSON."""
    return [{str(k): v for k, v in row.items() if not pd.isna(v)} for row in found.to_dict("records")]


def as_text(found: pd.DataFrame) -> str:
    """The table of runs for a terminal: what tells runs apart, hashes cut short."""
    if found.empty:
        return "no runs"
    shown = found.reindex(columns=SHOWN)
    text = frames.to_text(shown.assign(seed=["" if pd.isna(v) else str(v) for v in shown["seed"]]))
    if (data := shown["data"].dropna()).nunique() > 1:
        text += f"\n\n{data.nunique()} different data: scores compare only where the data are the same"
    return text
