"""Published courses and tables beside ours: one frame for both, told apart by the column `source`.

`published` rows are facts of logs; `here` rows come from the tables of figures in a folder, and are of another size and
text, so that only directions and shapes compare. Every function works without a folder, on the publications alone.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from golfcore import config
from golfcore.analysis import published
from golfcore.analysis.frames import frame, only, read_csv
from golfcore.analysis.weight_space import BANKS
from golfcore.base.errors import UserError
from golfcore.optim import schedule
from golfcore.optim.schedule import Clock

PUBLISHED, HERE = "published", "here"
REFERENCE = "exp105a"  # the system without meta-learning
PAIRS = {  # pairs of runs here -> what differs
    "muon-s1_vs_muon-rerun-s1": "rerun",
    "muon-s1_vs_muon-flag-s1": "one flag",
    "muon-s1_vs_muon-s2": "other seed",
}
COSTS = {"step_ms": "ms a step", "peak_mib": "peak memory, MiB", "steps": "steps under the clock"}


def training(folder: Path | None = None) -> pd.DataFrame:
    """Courses of training: source, system, run, kind ("train": nats a token; "val": bits a byte), step, share of the
    steps, seconds, value, and of published runs the `lr_multiplier` as their schedule computes it.

    Here: validation of the meta-learning arms.
    """
    logged = published.table("training")
    rows = logged[(logged["reported"] == 1) & logged["kind"].isin(("train", "val")) & (logged["step"] >= 100)]
    found, runs = [], rows.groupby(["system", "run"])["step"].max().to_dict()
    rates = {key: multiplier(logged, *key) for key in runs}
    for row in rows.to_dict("records"):
        key = row["system"], row["run"]
        value = row["bpb"] if row["kind"] == "val" else row["loss"]
        head = {"source": PUBLISHED, "system": row["system"], "run": row["run"], "kind": row["kind"]}
        head |= {"step": row["step"], "share": row["step"] / runs[key], "seconds": row["seconds"], "value": value}
        found.append(head | {"lr_multiplier": rates[key](row["step"], row["seconds"])})
    for row in _table(folder, "ablation-curves", kind="val").to_dict("records"):
        head = {"source": HERE, "system": row["arm"], "run": f"seed {row['seed']}", "kind": "val", "step": row["step"]}
        found.append(head | {"value": row["bpb"]})
    ours = [row["step"] for row in found if row["source"] == HERE]
    return frame(row | ({"share": row["step"] / max(ours)} if row["source"] == HERE else {}) for row in found)


def multiplier(logged: pd.DataFrame, system: str, run: str) -> Callable[[int, float], float]:
    """The multiplier of the learning rate of a published run after a step and its seconds, by its preset's schedule.

    exp101's family triggers its warmdown at a logged step, whose time is interpolated between the steps of `logged`,
    the published table "training".
    """
    own = logged[(logged["system"] == system) & (logged["run"] == run)]
    events = own.loc[own["event"] == "adaptive_warmdown", "step"]
    timed = own[own["kind"] == "train"].sort_values("step")
    start, cfg = None, config.load(system).schedule
    if len(events):
        start = 1000 * float(np.interp(float(events.iloc[0]), timed["step"].astype(float), timed["seconds"]))
    return lambda step, seconds: schedule.lr_multiplier(cfg, Clock(int(step), 1000 * float(seconds), start))


def courses(points: int = 240) -> pd.DataFrame:
    """The schedules of the published runs over their time: system, seconds, step, quantity, value.

    quantity: "learning rate" (multiplier) and "momentum" (Muon's), at the published pace.
    """
    found, logged = [], published.table("training")
    for system, rows in published.step_times().groupby("system"):
        cfg, run = config.load(system), sorted(set(rows["run"]))[-1]
        last = logged[(logged["system"] == system) & (logged["run"] == run) & logged["seconds"].notna()].iloc[-1]
        rate = multiplier(logged, str(system), run)
        for share in np.linspace(0, 1, points):
            step, seconds = int(share * last["step"]), float(share * last["seconds"])
            head = {"system": system, "seconds": seconds, "step": step}
            found.append(head | {"quantity": "learning rate", "value": rate(step, seconds)})
            found.append(head | {"quantity": "momentum", "value": schedule.momentum(cfg.optim, step)})
    return frame(found)


def adaptation(folder: Path | None = None) -> pd.DataFrame:
    """Running scores while adapting: source, system, share of the text, bpb, and the `difference` to the system without
    meta-learning at the same place; here the difference alone, with its interval.
    """
    logged = published.table("ttt")
    rows = logged[(logged["kind"] == "chunk") & (logged["reported"] == 1) & logged["running_bpb"].notna()]
    rows = rows.assign(name=rows["system"] + " " + rows["variant"].replace("int6", ""))
    base = rows[rows["system"] == REFERENCE].set_index("chunk")["running_bpb"]
    found: list[dict[str, Any]] = []
    for row in rows.to_dict("records"):
        head = {"source": PUBLISHED, "system": row["name"].strip(), "share": row["chunk"] / row["chunks_total"]}
        less = row["running_bpb"] - base[row["chunk"]] if row["chunk"] in base.index else None
        found.append(head | {"bpb": row["running_bpb"], "difference": less})
    ours = _table(folder, "ablation-chunks")
    for row in ours.to_dict("records"):
        head = {"source": HERE, "system": row["arm"], "share": row["stop"] / ours["stop"].max()}
        found.append(head | {name: row.get(name) for name in ("difference", "low", "high")})
    return frame(found)


def banks(folder: Path | None = None) -> pd.DataFrame:
    """Overlaps and cosines of banks: source, pair, bank, overlap, cosine; here with the range of independent noise."""
    known = published.table("weight_space")
    known = known[known["comparison"].str.startswith("three-way:") & known["tensor"].isin(BANKS)]
    found: list[dict[str, Any]] = []
    for (pair, bank), rows in known.groupby(["comparison", "tensor"], sort=False):
        overlap, cosine = (
            rows.loc[(rows["analysis"] == a) & (rows["quantity"] == q), "number"]
            for a, q in (("overlap", "avg_cosine"), ("delta", "cosine"))
        )
        row = {"source": PUBLISHED, "pair": pair.removeprefix("three-way:").replace("_vs_", " / "), "bank": bank}
        found.append(row | {"overlap": float(overlap.iloc[0]), "cosine": float(cosine.iloc[0])})
    noise, middles = (_table(folder, name) for name in ("weights-noise", "weights-midpoint"))
    for row in noise.to_dict("records"):
        if row["models"] in PAIRS:
            cosine = only(middles, models=row["models"], tensor=row["bank"])["cosine"].iloc[0]
            head = {"source": HERE, "pair": PAIRS[row["models"]], "bank": row["bank"]}
            found.append(head | {c: row[c] for c in ("overlap", "noise_low", "noise_high")} | {"cosine": cosine})
    return frame(found)


def costs(folder: Path | None = None) -> pd.DataFrame:
    """What a system costs: source, system, quantity, value: of the logs, and here micro-batches over those of none.

    Counted at the published cadence of meta calls.
    """
    results = published.table("results")
    rows = results[results["quantity"].isin(COSTS) & (results["basis"] == "log") & (results["reported"] == 1)]
    means = rows.groupby(["quantity", "system"], sort=False)["value"].mean()
    found = [{"source": PUBLISHED, "system": s, "quantity": COSTS[q], "value": v} for (q, s), v in means.items()]
    for row in _table(folder, "ablation-costs").to_dict("records"):
        head = {"source": HERE, "system": row["arm"], "quantity": "micro-batches"}
        found.append(head | {"value": 1 + row["published_overhead"]})
    return frame(found)


def scores() -> pd.DataFrame:
    """Steps and scores of published runs: system, run, steps, protocol, bpb; one row a logged score."""
    results = published.table("results")
    logged = results[(results["basis"] == "log") & (results["reported"] == 1)]
    steps = logged[logged["quantity"] == "steps"].groupby(["system", "seed"])["value"].first()
    kinds = {"bpb_post_ema": "float, no overlap", "bpb_int6_nonoverlap": "packed, no overlap", "bpb_ttt": "adapted"}
    rows = logged[logged["quantity"].isin(kinds)].to_dict("records")
    return frame(
        {"system": r["system"], "variant": r["variant"], "seed": r["seed"], "steps": int(steps[r["system"], r["seed"]])}
        | {"protocol": kinds[r["quantity"]], "bpb": r["value"]}
        for r in rows
        if (r["system"], r["seed"]) in steps.index
    )


def _table(folder: Path | None, name: str, **wanted: object) -> pd.DataFrame:
    """A figure's table in `folder`, or an empty one if there is none."""
    if folder is None:
        return pd.DataFrame()
    try:
        found = read_csv(folder / f"{name}.csv")
    except UserError:
        return pd.DataFrame()
    return only(found, **wanted) if wanted else found
