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
KINDS = {"integer": "Int64", "floating": "float64", "mixed-integer-float": "float64", "boolean": "bool"}


def frame(rows: pd.DataFrame | Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A frame of rows, columns in the order of first use; whole numbers stay whole beside missing values."""
    if not isinstance(rows, pd.DataFrame):
        listed = list(rows)
        columns = dict.fromkeys(name for row in listed for name in row)
        rows = pd.DataFrame({name: pd.Series([row.get(name) for row in listed], dtype=object) for name in columns})
    return _typed(rows)


def _typed(found: pd.DataFrame) -> pd.DataFrame:
    """Columns as Int64, float64 or bool where all their values are such; text and mixtures stay objects."""
    found = found.astype(object).where(found.notna(), None).reset_index(drop=True)
    kinds = {name: KINDS.get(pd.api.types.infer_dtype(column)) for name, column in found.items()}
    return found.astype({c: k for c, k in kinds.items() if k and (k != "bool" or found[c].notna().all())})


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
    """Floats with every digit, booleans as true and false, nothing for a missing value.

    ValueError: numbers in a column of IDS, which is read back as text.
    """
    if wrong := [name for name in IDS & set(found) if pd.api.types.is_numeric_dtype(found[name].dtype)]:
        raise ValueError(f"{path}: expected text in the columns of identities, found numbers in {', '.join(wrong)}")
    spelled = found.map(lambda v: str(v).lower() if isinstance(v, bool | np.bool_) else v)
    files.write_text(path, spelled.to_csv(index=False, lineterminator="\n"))


def read_csv(path: Path) -> pd.DataFrame:
    """The frame in a file that `write_csv` wrote. UserError: no such file, or lines of different lengths."""
    try:
        found = pd.read_csv(io.StringIO(path.read_text()), dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"{path}: expected a table, found no such file") from None
    except (ValueError, OSError) as e:
        raise UserError(f"{path}: expected a table as CSV, found a file that does not read ({e})") from None
    columns = {}
    for name, cells in found.items():
        values = [cell if name in IDS else _value(cell) for cell in cells if cell]
        kinds = {type(value) for value in values}
        parse = _value if kinds == {bool} or kinds <= {int, float} else str
        columns[str(name)] = pd.Series([parse(cell) if cell else None for cell in cells], dtype=object)
    return _typed(pd.DataFrame(columns))


def _value(cell: str) -> Any:
    """The boolean or number that `write_csv` spells like this, or else the text itself."""
    if cell in ("true", "false"):
        return cell == "true"
    for kind in (int, float):
        try:
            if str(kind(cell)) == cell:
                return kind(cell)
        except ValueError:
            pass
    return cell


def show(value: Any) -> str:
    """A value for people: four decimals or three digits, thousands apart, hashes cut short."""
    if pd.isna(value):
        return ""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, float | np.floating):
        value = float(value)
        return f"{value:,.4f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.3g}"
    return HASH.sub(lambda m: m[0][:8], str(value))


def for_people(found: pd.DataFrame) -> pd.DataFrame:
    """The same with every cell as `show` spells it and spaces in column names, for a terminal or a notebook cell."""
    cells = {str(c).replace("_", " "): [show(v) for v in column] for c, column in found.items()}
    return pd.DataFrame(cells, index=found.index)


def to_text(found: pd.DataFrame) -> str:
    """Aligned columns under their names, numbers to the right; "" for a frame without rows."""
    columns = []
    for (name, cells), values in zip(for_people(found).items(), found.dtypes, strict=True):
        lines = [str(name), *cells]
        side = str.rjust if pd.api.types.is_numeric_dtype(values) else str.ljust
        columns.append([side(line, max(map(len, lines))) for line in lines])
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True)) if len(found) else ""
