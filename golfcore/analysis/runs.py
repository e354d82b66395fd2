"""What run folders say about themselves: how training went, and which runs there are. Needs no torch."""

from pathlib import Path

import numpy as np

from golfcore import config
from golfcore.analysis.table import Row, Table, to_text
from golfcore.base import files
from golfcore.base.errors import UserError
from golfcore.base.records import RESULTS, RunFolder

SMOOTHING = 40  # the smoothed loss is a mean over a window of the run's length / this, to either side


def curves(run: RunFolder) -> Table:
    """Rows of kind train, val and event, as the run logged them. Training rows get `bpb_smooth`.

    The bits per byte of training rows are their loss at the validation text's bytes a token. UserError: a run that
    has logged nothing.
    """
    train, val, events = (run.metrics(kind) for kind in ("train", "val", "event"))
    if not train:
        raise UserError(f"{run.path}: expected a run that has trained, found no training rows")
    steps, bpb = np.array([r["step"] for r in train]), np.array([r["bpb"] for r in train])
    smooth = moving_mean(steps, bpb, max(1.0, steps[-1] / SMOOTHING))
    columns = "kind step tokens elapsed loss bpb bpb_smooth lr_multiplier momentum grad_norm meta_loss event".split()
    rows = [{**r, "bpb_smooth": float(s)} for r, s in zip(train, smooth, strict=True)] + val + events
    return Table({c: row[c] for c in columns if c in row} for row in rows)


def moving_mean(x: np.ndarray, y: np.ndarray, half: float) -> np.ndarray:
    """At each x (ascending) the mean of the y within `half` to either side."""
    sums = np.concatenate(([0.0], np.cumsum(y, dtype=np.float64)))
    first, last = np.searchsorted(x, x - half, "left"), np.searchsorted(x, x + half, "right")
    return (sums[last] - sums[first]) / (last - first)


def coverage(run: RunFolder) -> Table:
    """What every feature that is switched on really touched."""
    return Table({"feature": feature, **row} for feature, row in run.coverage().items())


def report(run: RunFolder) -> dict:
    """The numbers that the run ended with (UserError if it has not ended)."""
    return files.read_json(run.file(RESULTS), "the results of a finished run")


def provenance(run: RunFolder) -> dict[str, str | int]:
    """Run id, preset, configuration hash, seed and data hash: what identifies every number of a run."""
    c = config.of_run(run)
    return {"run": run.id, "preset": c.name, "config": run.config_hash(), "seed": c.run.seed, "data": run.data_hash()}


def run_folders(folder: Path) -> list[RunFolder]:
    """The run folders right below `folder`, by name."""
    return [RunFolder(path.parent) for path in sorted(folder.glob("*/config.json"))]


def runs_table(folder: Path) -> Table:
    """One row for each run folder below `folder`: what it is, how far it got, its three numbers and its bytes."""
    return Table(_run_row(run) for run in run_folders(folder))


def _run_row(run: RunFolder) -> Row:
    try:
        row: Row = dict(provenance(run))
    except (UserError, KeyError) as e:
        return {"run": run.id, "done": False, "stage": f"unreadable: {e}"}
    done = run.file(RESULTS).exists()
    row |= {"done": done, "stage": "done" if done else _stage(run)}
    return row | (_numbers(report(run)) if done else {})


def _numbers(results: dict) -> Row:
    """What every run has, then the scores under other protocols. The legality is that of the three numbers."""
    measures, packed = dict(results["measures"]), results["artifact"]
    always = {name: measures.pop(name) for name in ("float", "static", "sliding", "ttt")}
    legality = {m["legality"] for m in always.values()} - {"static"}
    return {
        **{name: m["bpb"] for name, m in always.items()},
        "context_gain": results["context_gain"],
        "ttt_gain": results["ttt_gain"],
        "baseline": results["baseline"]["bpb"],
        "legality": ", ".join(sorted(legality)) or "static",
        "bytes": packed["total"],
        "fits": packed["fits"],
        **{name: m["bpb"] for name, m in measures.items()},
    }


def _stage(run: RunFolder) -> str:
    """What an unfinished run did last: a stage, or a step of training."""
    markers = sorted(run.file("stages").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    if markers:
        return f"after {markers[-1].stem}"
    rows = run.metrics("train")
    return f"train, step {rows[-1]['step']}" if rows else "not started"


def as_text(rows: Table) -> str:
    """The table of runs for a terminal: what tells runs apart, hashes cut short."""
    columns = "run preset config seed data static sliding ttt legality bytes fits stage".split()
    short = {"config": 8, "data": 8, "seed": None}
    shown = Table({c: str(row.get(c, ""))[: short[c]] if c in short else row.get(c) for c in columns} for row in rows)
    return to_text(shown) if rows else "no runs"
