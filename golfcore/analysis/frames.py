"""Tables as pandas frames: made from rows, kept in CSV with every digit, spelled for people."""

import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from golfcore.base import files
from golfcore.base.errors import UserError

IDS = {"run", "runs", "config", "configs", "data", "weights", "artifact", "code", "trained_in"}  # always text
HASH = re.compile(r"[0-9a-f]{16,64}")
INT = re.compile(r"-?(0|[1-9]\d*)")


def frame(rows: pd.DataFrame | Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A frame of rows, columns in the order of first use; whole numbers stay whole beside missing values."""
    if isinstance(rows, pd.DataFrame):
        return rows
    listed = [dict(row) for row in rows]
    columns = list(dict.fromkeys(name for row in listed for name in row))
    return _typed(pd.DataFrame({c: pd.Series([_plain(row.get(c)) for row in listed], dtype=object) for c in columns}))


def _plain(value: Any) -> Any:
    """numpy's scalars as Python's, any missing value as None."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if value is pd.NA or value != value else value


def _typed(found: pd.DataFrame) -> pd.DataFrame:
    """Columns of objects as Int64, float64 or bool where all their values are such; text and mixtures stay objects."""
    out = {}
    for name, column in found.items():
        kinds = {type(v) for v in column if v is not None}
        if kinds == {bool} and column.notna().all():
            out[name] = column.astype(bool)
        elif kinds and all(issubclass(k, int) and k is not bool for k in kinds):
            out[name] = column.astype("Int64")
        elif kinds and all(issubclass(k, (int, float)) and k is not bool for k in kinds):
            out[name] = column.astype("float64")
        else:
            out[name] = column
    return pd.DataFrame(out)


def only(found: pd.DataFrame, **wanted: object) -> pd.DataFrame:
    """The rows with these values, numbered anew, without the columns that none of them uses."""
    for name, value in wanted.items():
        found = found[found[name] == value] if name in found else found[:0]
    return found.dropna(axis="columns", how="all").reset_index(drop=True)


def one(found: pd.DataFrame, **wanted: object) -> dict[str, Any]:
    """The only row with these values, without what it has no value for (ValueError if there are none or several)."""
    rows = only(found, **wanted)
    if len(rows) != 1:
        raise ValueError(f"expected one row with {wanted}, found {len(rows)}")
    return rows.iloc[0].to_dict()


def write_csv(path: Path, found: pd.DataFrame) -> None:
    """Floats with every digit, booleans as true and false, nothing for a missing value."""
    spelled = found.map(lambda v: str(v).lower() if isinstance(v, bool | np.bool_) else v)
    files.write_text(path, spelled.to_csv(index=False, lineterminator="\n"))


def read_csv(path: Path) -> pd.DataFrame:
    """The frame in a file that `write_csv` wrote. UserError: no such file, or lines of different lengths."""
    try:
        text = path.read_text()
        found = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"{path}: expected a table, found no such file") from None
    except (ValueError, OSError) as e:
        raise UserError(f"{path}: expected a table as CSV, found a file that does not read ({e})") from None
    return _typed(pd.DataFrame({c: _parsed(str(c), column) for c, column in found.items()}))


def _parsed(name: str, column: pd.Series) -> pd.Series:
    """A column of text as numbers or booleans, if it is spelled as such throughout and holds no ids."""
    cells = [c for c in column if c]
    parse: Any = str
    if name not in IDS:
        if all(c in ("true", "false") for c in cells):
            parse = "true".__eq__
        elif all(INT.fullmatch(c) for c in cells):
            parse = int
        elif all(_is_float(c) for c in cells):
            parse = float
    return pd.Series([parse(c) if c else None for c in column], dtype=object)


def _is_float(cell: str) -> bool:
    try:
        return repr(float(cell)) == cell or bool(INT.fullmatch(cell))
    except ValueError:
        return False


def show(value: Any) -> str:
    """A value for people: four decimals or three digits, thousands apart, hashes cut short."""
    value = _plain(value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.3g}"
    return HASH.sub(lambda m: m[0][:8], str(value))


def for_people(found: pd.DataFrame) -> pd.DataFrame:
    """The same with every cell as `show` spells it and spaces in column names, for a terminal or a notebook cell."""
    cells = {str(c).replace("_", " "): [show(v) for v in column] for c, column in found.items()}
    return pd.DataFrame(cells, index=found.index)


def to_text(found: pd.DataFrame) -> str:
    """Aligned columns under their names, numbers to the right; "" for a frame without rows."""
    if found.empty:
        return ""
    numeric = {str(c).replace("_", " "): pd.api.types.is_numeric_dtype(found[c]) for c in found}
    lines = for_people(found)
    pad = {c: max(map(len, (c, *lines[c]))) for c in lines}
    rows = [{c: c for c in lines}, *lines.to_dict("records")]
    return "\n".join(
        "  ".join(row[c].rjust(pad[c]) if numeric[c] else row[c].ljust(pad[c]) for c in lines).rstrip() for row in rows
    )
