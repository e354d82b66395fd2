"""What the published systems logged or printed, as frames: facts, each with the place that it was read at.

The tables are described in ../published/README.md. `line` is the line of `source` that a value was read on; the table
`sources` has its full path, commit and git blob. Whole numbers are Int64, other numbers float64 (NaN: not logged),
everything else is text ("" where there is none).
"""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from golfcore import config
from golfcore.analysis.frames import frame
from golfcore.model.attention import rope_angles

FOLDER = Path(__file__).parents[1] / "published"
NUMBERS = {  # columns of whole numbers, columns of other numbers
    "training": (
        "reported seed step planned_steps ema_every line",
        "seconds step_avg_ms loss bpb lr_scale loss_ema improvement ema_decay eval_seconds",
    ),
    "ttt": (
        "reported seed chunk chunks_total epoch epochs_total line",
        "running_bpb percent eta_seconds seconds_est seconds_est_err loss seconds",
    ),
    "results": ("reported seed line", "value"),
    "weight_space": ("k index line", ""),
    "ablations": ("row steps line", "published_bpb published_delta derived_delta"),
    "claims": ("tier", ""),
    "sources": ("bytes lines", ""),
}


def table(name: str) -> pd.DataFrame:
    """One of the tables in NUMBERS, its columns typed. UserError: no such table.

    weight_space: `value` is as printed, a word or perhaps with "~", "<" or ">" in front; `number` is without these.
    """
    config.keys([name], list(NUMBERS), "published tables")
    whole, real = (columns.split() for columns in NUMBERS[name])
    kinds = dict.fromkeys(whole, "Int64") | dict.fromkeys(real, "float64")
    found = pd.read_csv(FOLDER / f"{name}.csv", dtype="str", keep_default_na=False)
    found = found.assign(**{c: pd.to_numeric(found[c].replace("", None)).astype(kind) for c, kind in kinds.items()})
    if name == "weight_space":
        number = found["value"].str.extract(r"^[~<>]?(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)$", expand=False)
        found["number"] = number.astype("float64")
    return found


def ablation(name: str) -> pd.DataFrame:
    """One published table of the kind "arms against a reference", `extra` spread out: its keys become columns of text.

    UserError: no such table. Bits a byte; `delta_sign` "change" is new minus reference, "gain" is positive if better.
    """
    found = table("ablations")
    config.keys([name], list(found["table"].unique()), "published ablations")
    found = found[found["table"] == name].reset_index(drop=True)
    extra = pd.DataFrame([json.loads(text) if text else {} for text in found["extra"]], dtype=object)
    return pd.concat([found.drop(columns=["table", "extra"]), extra], axis="columns")


def token_losses() -> pd.DataFrame:
    """pr294's distribution of losses: threshold (nats), targets above it, their share, and their share of the loss."""
    found = ablation("pr294_token_losses").dropna(subset=["tokens"])
    targets = found["tokens"].replace({"M": "e6", "K": "e3"}, regex=True)
    return pd.DataFrame(
        {
            "threshold": found["threshold_nats"].astype(float),
            "targets": targets.astype(float).round().astype("Int64"),
            "share": found["percent_of_tokens"].astype(float) / 100,
            "share_of_loss": found["percent_of_loss_approx"].astype(float) / 100,
        }
    )


def step_times() -> pd.DataFrame:
    """Milliseconds a step between two logged steps of a published run: system, run, step (the later), ms, lr_scale."""
    logged = table("training")
    rows = logged[(logged["kind"] == "train") & (logged["step"] >= 100)].sort_values(["system", "run", "step"])
    passed = rows.groupby(["system", "run"])[["seconds", "step"]].diff()
    found = rows.assign(ms=1000 * passed["seconds"] / passed["step"].astype(float))
    return frame(found.loc[found["ms"] > 0, ["system", "run", "step", "ms", "lr_scale"]])


def angle_errors(preset: str = "exp101") -> pd.DataFrame:
    """How far bfloat16 positions and frequencies move the rotary angles of a preset: position, frequency, degrees.

    `frequency` counts from 0, the fastest. The errors are those of arithmetic, not measured on a model.
    """
    cfg = config.load(preset).model
    length, device = cfg.rope_ntk_len, torch.device("cpu")
    exact, rounded = (
        rope_angles(replace(cfg, rope_angles=kind), 0, length, length, device) for kind in ("float32", "bfloat16")
    )
    turned = torch.atan2(rounded[1] * exact[0] - rounded[0] * exact[1], rounded[0] * exact[0] + rounded[1] * exact[1])
    return frame(
        {"position": p, "frequency": f, "degrees": abs(float(torch.rad2deg(turned[p, f])))}
        for f in range(turned.shape[1])
        for p in range(0, length, 3)  # odd ones among them: bfloat16 holds multiples of four up to 1,024
    )
