"""What the publications say as tables, one frame each: the systems, their results, and their weight-space reports.

Nothing here was measured by golfcore; the tables of our own studies lie beside their figures.
"""

import json
import math
from collections.abc import Sequence

import pandas as pd

from golfcore import config
from golfcore.analysis import published
from golfcore.analysis.frames import frame
from golfcore.model import params

PRESETS = ("exp101", "exp105a", "exp106", "pr294-reptile", "pr398")
GROUPS = {"matrix": "Muon", "table": "AdamW", "scalar": "AdamW", "none": "none"}
RESULTS = (
    *("steps", "train_seconds", "step_ms", "peak_mib", "bpb_val_step3000", "bpb_val_step6000", "bpb_val_last"),
    *("bpb_post_ema", "bpb_int6_nonoverlap", "bpb_ttt", "ttt_seconds"),
    *("adaptive_warmdown_step", "late_qat_step", "swa_start_step"),
)
SIZES = ("artifact_bytes", "code_bytes", "total_bytes")
REPORTS = {  # table: its report in `weight_space`, the columns that name a row, and the quantities
    "deltas": ("delta", ("comparison", "tensor"), ("rel_l2", "cosine", "numel")),
    "rounding": ("quant_mse", ("comparison", "model", "tensor"), ("mse", "delta_mse", "n_slots_101_lower")),
    "spectra": ("spectral", ("comparison", "model", "tensor"), ("op_norm", "fro_norm", "stable_rank", "cond_number")),
    "overlaps": ("overlap", ("comparison", "tensor"), ("k", "avg_cosine", "frac_near_aligned", "frac_aligned")),
    "error-surface": (
        "error_surface",
        ("model", "tensor"),
        ("cond_number", "effective_rank", "top5_energy_frac", "spectral_gap", "hessian_trace_proxy"),
    ),
    "midpoints": (
        "midpoint",
        ("comparison", "tensor"),
        ("norm_a", "norm_b", "norm_mid", "mid_over_a", "midpoint_ratio"),
    ),
}


def tables() -> dict[str, pd.DataFrame]:
    """Every table by its name: architecture, settings, results, sizes, ablations, and the REPORTS."""
    return {
        "architecture": architecture(),
        "settings": settings(),
        "results": results(RESULTS),
        "sizes": sizes(),
        "ablations": ablations(),
        **{name: report(*spec) for name, spec in REPORTS.items()},
    }


def architecture(preset: str = "exp106") -> pd.DataFrame:
    """One row a tensor: shape, values, optimizer, how the artifact keeps it, and whether it does."""
    return frame(
        {"tensor": p.name, "shape": " x ".join(map(str, p.shape)) or "scalar", "values": math.prod(p.shape)}
        | {"optimizer": GROUPS[p.group], "stored_as": p.kind, "exported": p.exported}
        for p in params.table(config.load(preset).model)
    )


def settings(presets: Sequence[str] = PRESETS) -> pd.DataFrame:
    """Every setting that is not the same in all of the systems, one row each, a column a preset."""
    found = {name: config.to_dict(config.load(name)) for name in presets}
    sections = [key for key, value in found[presets[0]].items() if isinstance(value, dict)]
    rows = []
    for section in sections:
        for key in found[presets[0]][section]:
            values = {name: json.dumps(whole[section][key]) for name, whole in found.items()}
            if len(set(values.values())) > 1:
                rows.append({"setting": f"{section}.{key}"} | values)
    return frame(rows)


def results(quantities: Sequence[str]) -> pd.DataFrame:
    """Logged quantities of the reported runs: system, variant, seed, and a column each."""
    logged = published.table("results")
    rows = logged[(logged["basis"] == "log") & (logged["reported"] == 1) & logged["quantity"].isin(quantities)]
    return _wide(rows.astype({"seed": str}), ("system", "variant", "seed"), quantities, "value")


def sizes() -> pd.DataFrame:
    """Logged bytes of artifact, code and both, and what they leave of the limit (negative: over it)."""
    found = results(SIZES).dropna(subset=["total_bytes"])
    return frame(found.assign(headroom=config.load("exp101").quant.max_bytes - found["total_bytes"]))


def ablations() -> pd.DataFrame:
    """Every row of every table of prose: table, row, name, published_bpb, published_delta, delta_vs, extra, source."""
    kept = ["table", "row", "system", "name", "published_bpb", "published_delta", "delta_vs", "extra", "source", "line"]
    return frame(published.table("ablations")[kept])


def report(analysis: str, names: Sequence[str], quantities: Sequence[str]) -> pd.DataFrame:
    """A report of `weight_space`, its totals left out: a row for each of `names`, a column for each quantity."""
    known = published.table("weight_space")
    rows = known[(known["analysis"] == analysis) & (known["tensor"] != "") & (known["basis"] == "json")]
    found = _wide(rows.replace({"quantity": {"cond": "cond_number"}}), names, quantities, "number")
    if "k" in quantities:
        sizes_of = rows[rows["quantity"] == "avg_cosine"].set_index(list(names))["k"]
        found["k"] = [sizes_of[key] for key in zip(*(found[n] for n in names), strict=True)]
    return frame(found)


def _wide(rows: pd.DataFrame, names: Sequence[str], quantities: Sequence[str], value: str) -> pd.DataFrame:
    """`rows` in their order, one for each of `names`, with a column for each of the quantities that any has."""
    first = rows.drop_duplicates([*names, "quantity"])
    wide = first.pivot(index=list(names), columns="quantity", values=value)
    order = list(dict.fromkeys(zip(*(first[n] for n in names), strict=True)))
    found = wide.loc[order, [q for q in quantities if q in wide]].reset_index().rename_axis(columns=None)
    whole = [q for q in found.select_dtypes("number") if (found[q].dropna() % 1 == 0).all()]
    return found.astype(dict.fromkeys(whole, "Int64"))
