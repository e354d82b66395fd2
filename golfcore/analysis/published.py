"""What the published systems logged or printed, as frames: facts, each with the place that it was read at.

The tables are described in ../published/README.md. `line` is the line of `source` that a value was read on; the table
`sources` has its full path, commit and git blob. Whole numbers are Int64, other numbers float64 (NaN: not logged),
everything else is text ("" where there is none).
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pandas as pd

from golfcore.base.errors import UserError

FOLDER = Path(__file__).parents[1] / "published"
NUMBERS: Mapping[str, tuple[str, str]] = {  # columns of whole numbers, columns of other numbers
    "training": (
        "reported seed step planned_steps ema_every line",
        "seconds step_avg_ms loss bpb lr_scale loss_ema improvement ema_decay eval_seconds",
    ),
    "ttt": (
        "reported seed chunk chunks_total epoch epochs_total line",
        "running_bpb percent eta_seconds seconds_est seconds_est_err loss seconds",
    ),
    "results": ("reported seed line", "value"),
    "weight_space": ("k index line", "number"),
    "ablations": ("row steps line", "published_bpb published_delta derived_delta"),
    "claims": ("tier", ""),
    "sources": ("bytes lines", ""),
}


def names() -> list[str]:
    """The tables by name."""
    return sorted(NUMBERS)


def table(name: str) -> pd.DataFrame:
    """A copy of the table `name`, its columns typed. UserError: a name that is not one of `names()`.

    weight_space: `value` is as printed, a word or perhaps with "~", "<" or ">" in front; `number` is without these.
    """
    if name not in NUMBERS:
        raise UserError(f"published table {name!r}: expected one of {', '.join(names())}")
    return _read(name).copy()


@cache
def _read(name: str) -> pd.DataFrame:
    found = pd.read_csv(FOLDER / f"{name}.csv", dtype=str, keep_default_na=False)
    if name == "weight_space":
        found["number"] = found["value"].str.extract(r"^[~<>]?(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)$", expand=False)
    whole, real = (columns.split() for columns in NUMBERS[name])
    for column in whole:
        found[column] = pd.to_numeric(found[column].replace("", None)).astype("Int64")
    for column in real:
        found[column] = pd.to_numeric(found[column].replace("", None)).astype("float64")
    return found


def training_curve(system: str) -> pd.DataFrame:
    """Losses of the launch, or the seeds, that a system's scores come from, by step.

    Columns: seed; kind ("train": one step's batch, "val": windows without overlap on raw weights); step (completed);
    seconds (training clock, validation excluded); loss (nats a token); bpb (bits a byte, in validation); source; line.
    """
    found = _of(table("training"), system)
    found = found[(found["reported"] == 1) & found["kind"].isin(["train", "val"])]
    return found[["seed", "kind", "step", "seconds", "loss", "bpb", "source", "line"]].reset_index(drop=True)


def ttt_course(system: str) -> pd.DataFrame:
    """Adaptation of a system over the validation stream, by chunk; of pr398, which trains first, by epoch.

    Columns: variant (which weights: int6, float, ...); reported; seed; chunk (from 1); chunks_total; running_bpb (of
    all tokens scored so far); seconds_est (derived from the logged estimate of what is left); epoch; epochs_total;
    loss (nats, mean over the epoch); seconds (logged); source; line.
    """
    found = _of(table("ttt"), system)
    columns = ["variant", "reported", "seed", "chunk", "chunks_total", "running_bpb", "seconds_est", "epoch"]
    columns += ["epochs_total", "loss", "seconds", "source", "line"]
    return found[found["kind"] != "final"][columns].reset_index(drop=True)


def ablation(name: str) -> pd.DataFrame:
    """One published table of the kind "arms against a reference", `extra` spread out: its keys become columns of text.

    UserError: an unknown name. Bits a byte; `delta_sign` "change" is new minus reference, "gain" is positive if better.
    """
    found = table("ablations")
    known = sorted(found["table"].unique())
    if name not in known:
        raise UserError(f"published ablation {name!r}: expected one of {', '.join(known)}")
    found = found[found["table"] == name].reset_index(drop=True)
    extra = pd.DataFrame([json.loads(text) if text else {} for text in found["extra"]], dtype=object)
    return pd.concat([found.drop(columns=["table", "extra"]), extra], axis="columns")


def claims(system: str | None = None) -> pd.DataFrame:
    """What the systems' authors found, one row a value: the claim's columns with `label`, `value` and `unit` of each.

    A claim without a number is one row with NaN. `tier` 1: the main findings.
    """
    found = table("claims") if system is None else _of(table("claims"), system)
    rows = []
    for claim in found.to_dict("records"):
        values, labels, units = (str(claim.pop(key)).split(";") for key in ("values", "value_labels", "unit"))
        units = units if len(units) == len(values) else units * len(values)
        for value, label, unit in zip(values, labels, units, strict=True):
            rows.append({**claim, "label": label.strip(), "value": value.strip(), "unit": unit.strip()})
    out = pd.DataFrame(rows)
    out["value"] = pd.to_numeric(out["value"].replace("", None)).astype("float64")
    return out


def fact(system: str, quantity: str, **where: object) -> float:
    """One number of `results` that a log holds for the launch behind the published scores.

    `where`: further columns, as seed=1337 or variant="int6". UserError: none such, or several.
    """
    found = _of(table("results"), system)
    found = found[(found["basis"] == "log") & (found["reported"] == 1) & (found["quantity"] == quantity)]
    for column, value in where.items():
        found = found[found[column] == value]
    if len(found) != 1:
        raise UserError(f"published {quantity} of {system} {where or ''}: expected one row, found {len(found)}")
    return float(found["value"].iloc[0])


def token_losses() -> pd.DataFrame:
    """pr294's distribution of losses: threshold (nats), targets above it, their share, and their share of the loss."""
    found = ablation("pr294_token_losses").dropna(subset=["tokens"])
    factor = found["tokens"].str[-1].map({"M": 1e6, "K": 1e3})
    return pd.DataFrame(
        {
            "threshold": found["threshold_nats"].astype(float),
            "targets": (found["tokens"].str[:-1].astype(float) * factor).round().astype("Int64"),
            "share": found["percent_of_tokens"].astype(float) / 100,
            "share_of_loss": found["percent_of_loss_approx"].astype(float) / 100,
        }
    )


def _of(found: pd.DataFrame, system: str) -> pd.DataFrame:
    known = sorted(found["system"].unique())
    if system not in known:
        raise UserError(f"published system {system!r}: expected one of {', '.join(known)}")
    return found[found["system"] == system]
