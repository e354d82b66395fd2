"""The claims ledger: each published claim beside what golfcore measured of it, and the verdict that follows from that.

`evidence.toml` says of a claim by which number it is judged and by which rule; no verdict stands in a file. A number is
either read from the table of a figure, which has its runs and commands in the index, or computed by a function of
`arithmetic` at full size. Rules:

    sign         the interval lies on the side of `claimed`, or on the other one
    band         the interval lies within `band`, or outside of it
    confounded   by its sign, another cause is there that the claim's number cannot be told apart from
    null         the interval is of the distance to what chance or a rerun gives: confounded if it includes 0
    exact        the number is `claimed` within `tolerance`: confirmed, otherwise refuted; where it `confounds`,
                 an equal number shows that the claim's measure says nothing of what it is said to say
    is           the text of the column is `claimed`
    open         the number says nothing for or against the claim at this scale
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from golfcore import config
from golfcore.analysis import arithmetic, published, stats
from golfcore.analysis.claims import CONFIRMED, OPEN, REFUTED, SAME, by_band, by_sign
from golfcore.analysis.frames import frame, read_csv
from golfcore.base.errors import UserError
from golfcore.runs.stacks import exported

FILE = Path(__file__).with_name("evidence.toml")
CONFOUNDED = "confounded"
FULL = "full size"
LAST = "last"  # of a column: its largest value, as the last step
SEED_SD = 0.00078  # bits per byte, of pr398's three seeds: the only spread over seeds that was published
H100_HOURS = {  # of one run at full size with its adaptation, from the published clocks
    "exp101": (4800 + 2250) / 3600,
    "exp105a": (4800 + 2250) / 3600,
    "exp106": (4800 + 2250) / 3600,
    "pr294": 8 * (600 + 255) / 3600,
    "pr398": 8 * (600 + 384) / 3600,
}
ARITHMETIC = "python -m pytest tests/test_ledger.py"
Rule = Literal["sign", "band", "confounded", "null", "exact", "is", "open"]


@dataclass(frozen=True)
class Evidence:
    """What one claim is judged by."""

    how: str  # in a sentence
    rule: Rule
    table: str = ""  # NAME of figures/NAME.csv
    of: str = ""  # the figure whose index entry says how to make it; "": the one named as the table
    where: dict[str, object] = field(default_factory=dict)  # the rows of the table; a list: any of its values; or LAST
    less: dict[str, object] = field(default_factory=dict)  # other values of `where`: their rows are subtracted
    column: str = "difference"  # or a sum or ratio of columns, as "meta_norm / main_norm"
    by: str = ""  # rows of one value of this column count as one: their mean
    low: str = "low"  # of one row, its interval, as columns or sums of columns; "": the table has none of this number
    high: str = "high"
    form: str = ""  # a function of `arithmetic`, in place of a table
    given: tuple[object, ...] = ()  # its arguments
    claimed: float | str = 0.0
    tolerance: float = 0.0
    band: tuple[float, float] = (0.0, 0.0)
    confounds: bool = False
    unit: str = "bpb"
    settles: str = ""  # what would settle it where this does not
    runs: int = 0  # at full size, that it takes; 0: as many as the claimed difference needs


def evidence(path: Path = FILE) -> dict[str, Evidence]:
    """What each claim is judged by. UserError: a key that is none, a claim that was not published."""
    found = config.read_toml(path, "the evidence of claims")
    config.keys(found, list(published.table("claims")["id"]), str(path), "claim")
    names = list(Evidence.__dataclass_fields__)
    for name, values in found.items():
        config.keys(values, names, f"{path}, {name}")
    tuples = ("given", "band")
    made: dict[str, dict[str, Any]] = {
        n: {k: tuple(v) if k in tuples else v for k, v in row.items()} for n, row in found.items()
    }
    return {n: Evidence(**row) for n, row in made.items()}


def ledger(folder: Path, index: Mapping[str, Mapping], given: Mapping[str, Evidence] | None = None) -> pd.DataFrame:
    """One row for each claim that has evidence, in the order of publication.

    id, tier, system, kind, statement; `published` values with their labels and unit; `source` and `line`; `how`, `test`
    (a figure or a function) and `command` that makes it; `scale` and `n` (runs or pairs; `chunks` of text) of the
    measured `value` with `low`, `high`, `detectable` and `unit`; the `verdict`; what `settles` it and `h100_hours`.
    `folder`, `index`: of the figures. UserError: a table or an entry that is missing.
    """
    known = evidence() if given is None else given
    claims = published.table("claims").to_dict("records")
    return frame(_row(claim, known[claim["id"]], folder, index) for claim in claims if claim["id"] in known)


def _row(claim: Mapping[str, Any], by: Evidence, folder: Path, index: Mapping[str, Mapping]) -> dict[str, Any]:
    found = _computed(by) if by.form else _read(by, folder)
    entry = index.get(by.of or by.table, {})
    if not by.form and not entry:
        raise UserError(f"{claim['id']}: expected a figure {by.of or by.table} in the index, found none")
    verdict = judge(by, found)
    row: dict[str, Any] = {c: claim[c] for c in ("id", "tier", "system", "kind", "statement")}
    row |= {"published": _published(claim), "source": claim["source"], "line": str(claim["line"]), "how": by.how}
    row |= {"test": f"arithmetic.{by.form}" if by.form else f"figures/{by.table}.csv"}
    commands = dict.fromkeys(str(entry[key]) for key in ("train", "draw") if entry.get(key))
    row |= {"command": " && ".join(commands) or ARITHMETIC, "scale": _scale(entry), **found, "unit": by.unit}
    return row | {"verdict": verdict, **_settling(str(claim["system"]), by, verdict)}


def judge(by: Evidence, found: Mapping[str, Any]) -> str:
    """The verdict of a rule on a measured number."""
    decides = bool(by.form)
    match by.rule:
        case "sign":
            return by_sign(found, float(by.claimed), decides)
        case "band":
            return by_band(found, by.band, decides)
        case "confounded":
            return CONFOUNDED if by_sign(found, float(by.claimed), decides=False) == SAME else OPEN
        case "null":
            beside = by_sign(found, 1.0, decides=False)
            return CONFOUNDED if beside == OPEN and found["low"] is not None else beside
        case "exact":
            holds = abs(found["value"] - float(by.claimed)) <= by.tolerance
            return (CONFOUNDED if holds else OPEN) if by.confounds else (CONFIRMED if holds else REFUTED)
        case "is":
            return CONFIRMED if found["said"] == by.claimed else REFUTED
    return OPEN


def _computed(by: Evidence) -> dict[str, Any]:
    value = float(getattr(arithmetic, by.form)(*by.given))
    return {"n": 1, "chunks": None, "value": value, "low": value, "high": value, "detectable": None, "said": None}


def _read(by: Evidence, folder: Path) -> dict[str, Any]:
    """The number of the rows `where`, less that of the rows `less`: one row as it stands, of several their mean."""
    name, table = f"figures/{by.table}.csv", read_csv(folder / f"{by.table}.csv")
    rows = _rows(table, by.where, name)
    if by.rule == "is":
        said = ", ".join(sorted(set(rows[by.column])))
        n = int(rows["targets"].sum()) if "targets" in rows else len(rows)
        return {"n": n, "chunks": None, "value": float(len(rows)), "said": said}
    values = _values(rows, by, by.column, name)
    if by.less:
        other = _values(_rows(table, by.where | by.less, name), by, by.column, name)
        if len(other) != len(values):
            raise UserError(f"{name}: expected {len(values)} rows with {by.less}, found {len(other)}")
        values = values - other
    if len(values) > 1 or by.less:
        return {"n": len(values), "chunks": None, **stats.over_seeds(values), "said": None}
    row, known = rows.iloc[0], by.low in rows or by.low not in ("", "low")
    counts = {c: int(row[c]) for c in ("pairs", "seeds", "chunks") if c in row and not pd.isna(row[c]) and row[c]}
    interval = [_numbers(rows, by, c, name)[0] for c in (by.low, by.high)] if known else [np.nan, np.nan]
    low, high = (None if np.isnan(end) else float(end) for end in interval)  # too few seeds or chunks for one
    found = {
        "n": counts.get("pairs", counts.get("seeds", 1)),
        "chunks": counts.get("chunks"),
        "value": float(values[0]),
    }
    seen = row["detectable"] if known and "detectable" in row else None
    return found | {"low": low, "high": high, "detectable": seen, "said": None}


def _rows(table: pd.DataFrame, where: Mapping[str, Any], name: str) -> pd.DataFrame:
    for column, wanted in where.items():
        if column not in table:
            raise UserError(f"{name}: expected a column {column}, found {', '.join(table)}")
        found = table[column].max() if wanted == LAST else wanted
        table = table[table[column].isin(found if isinstance(found, list) else [found])]
    if table.empty:
        raise UserError(f"{name}: expected rows with {dict(where)}, found none")
    return table.reset_index(drop=True)


def _values(rows: pd.DataFrame, by: Evidence, column: str, name: str) -> np.ndarray:
    """The same numbers. UserError: one is missing."""
    found = _numbers(rows, by, column, name)
    if np.isnan(found).any():
        raise UserError(f"{name}: expected numbers in {column}, found gaps")
    return found


def _numbers(rows: pd.DataFrame, by: Evidence, column: str, name: str) -> np.ndarray:
    """A column, or a sum or ratio of columns, as floats; rows of one value of `by.by` as their mean."""
    try:
        found = rows.astype({c: float for c in rows.select_dtypes("number")}).eval(column).astype(float)
    except (pd.errors.UndefinedVariableError, ValueError, TypeError) as e:
        raise UserError(f"{name}: expected numbers in {column}, found none ({e})") from e
    return (found.groupby(rows[by.by]).mean() if by.by else found).to_numpy()


def _published(claim: Mapping[str, Any]) -> str:
    """The published values in words: "delta -0.0010"."""
    values, labels = (str(claim[c]).split(";") for c in ("values", "value_labels"))
    units = dict.fromkeys(u.strip() for u in str(claim["unit"]).split(";"))
    pairs = ", ".join(f"{label.replace('_', ' ')} {value}" for label, value in zip(labels, values, strict=False))
    return f"{pairs.strip()} ({', '.join(units)})" if claim["values"] else ""


def _scale(entry: Mapping[str, Any]) -> str:
    """Size of the figure's runs: parameters and training tokens; FULL for what is of no run."""
    runs = entry.get("runs") or []
    if not runs:
        return FULL
    configs = [config.from_dict(run["config"], f"the index, run {run['run']}") for run in runs]
    models = {exported(cfg.model) for cfg in configs}
    tokens = {cfg.schedule.iterations * cfg.optim.batch_tokens for cfg in configs}
    spans = [f"{min(v):,}" if min(v) == max(v) else f"{min(v):,} to {max(v):,}" for v in (models, tokens)]
    return f"{spans[0]} parameters, {spans[1]} tokens"


def _settling(system: str, by: Evidence, verdict: str) -> dict[str, Any]:
    """What would settle a claim that is not settled, and its cost in hours of one H100."""
    if verdict in (CONFIRMED, REFUTED):
        return {"settles": None, "h100_hours": None}
    runs, text = by.runs, by.settles
    if not runs and by.rule == "sign" and by.unit == "bpb" and by.claimed:
        pairs = stats.pairs_needed(float(by.claimed), SEED_SD)
        runs, text = 2 * pairs, text or f"{pairs} pairs of runs at full size, the same seeds and steps"
    hours = H100_HOURS.get(system, H100_HOURS["exp101"])
    text = text or (f"{runs} runs at full size" if runs else "no run: the measure cannot tell")
    return {"settles": text, "h100_hours": round(runs * hours, 1) if runs else None}
