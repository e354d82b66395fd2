"""What an analysis returns: rows of plain values, which print themselves and survive a CSV file.

Rows of several kinds may share a table (a column `kind` says which); a row has no value in the columns of the others.
"""

import csv
import html
import io
import re
from collections.abc import Iterable
from pathlib import Path

from golfcore.base import files
from golfcore.base.errors import UserError

Value = str | int | float | bool | None
Row = dict[str, Value]

_INT = re.compile(r"-?(0|[1-9]\d*)")
_WORDS: dict[str, Value] = {"": None, "true": True, "false": False}


class Table(list[Row]):
    """A list of rows, column name -> value. A missing value and None are the same."""

    @property
    def columns(self) -> list[str]:
        """Every column, in the order of first use."""
        return list(dict.fromkeys(name for row in self for name in row))

    def only(self, **wanted: Value) -> "Table":
        """The rows that have these values, without the columns that none of them uses."""
        rows = [row for row in self if all(row.get(k) == v for k, v in wanted.items())]
        used = {name for row in rows for name, value in row.items() if value is not None}
        return Table({k: v for k, v in row.items() if k in used} for row in rows)

    def select(self, *columns: str) -> "Table":
        """These columns of every row, in this order."""
        return Table({name: row.get(name) for name in columns} for row in self)

    def one(self, **wanted: Value) -> Row:
        """The only row that has these values (ValueError if there are none or several)."""
        rows = self.only(**wanted)
        if len(rows) != 1:
            raise ValueError(f"expected one row with {wanted}, found {len(rows)}")
        return rows[0]

    def numbers(self, column: str) -> list[float]:
        """A column without its missing values, as floats."""
        return [number(row, column) for row in self if row.get(column) is not None]

    def __str__(self) -> str:
        return to_text(self)

    def _repr_html_(self) -> str:
        return to_html(self)


def number(row: Row, column: str) -> float:
    """A value that must be a number (ValueError if it is not)."""
    value = row.get(column)
    if not isinstance(value, int | float):
        raise ValueError(f"{column}: expected a number, found {value!r}")
    return float(value)


def show(value: Value) -> str:
    """A value for people: four decimals or three digits, thousands apart."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.3g}"
    return value


def to_text(table: Table) -> str:
    """Aligned columns under their names, numbers to the right."""
    columns = table.columns
    cells = [[name.replace("_", " ") for name in columns], *([show(row.get(c)) for c in columns] for row in table)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    right = [_is_numeric(table, c) for c in columns]
    lines = [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)).rstrip()
        for line in cells
    ]
    return "\n".join(lines)


def to_html(table: Table) -> str:
    """An HTML table, as a notebook shows it."""
    columns = table.columns
    side = {c: "right" if _is_numeric(table, c) else "left" for c in columns}

    def line(tag: str, cells: dict[str, str]) -> str:
        inner = "".join(f'<{tag} style="text-align:{side[c]}">{html.escape(cells[c])}</{tag}>' for c in columns)
        return f"<tr>{inner}</tr>"

    head = line("th", {c: c.replace("_", " ") for c in columns})
    body = "".join(line("td", {c: show(row.get(c)) for c in columns}) for row in table)
    return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"


def _is_numeric(table: Table, column: str) -> bool:
    return all(not isinstance(row.get(column), str) for row in table)


def to_csv(table: Table) -> str:
    """One line of column names, then the rows; floats with every digit, so that nothing is lost."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([_spell(row.get(c)) for c in table.columns] for row in table)
    return out.getvalue()


def _spell(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else repr(value)


def from_csv(text: str) -> Table:
    """Inverse of `to_csv`, but that text which spells a number, a bool or nothing comes back as that."""
    lines = list(csv.reader(io.StringIO(text, newline="")))
    columns = lines[0] if lines else []
    return Table({c: _parse(cell) for c, cell in zip(columns, line, strict=True)} for line in lines[1:])


def _parse(cell: str) -> Value:
    if cell in _WORDS:
        return _WORDS[cell]
    if _INT.fullmatch(cell):
        return int(cell)
    try:
        value = float(cell)
    except ValueError:
        return cell
    return value if repr(value) == cell else cell  # "12e4567" and "0001.5" are names, not numbers


def write_csv(path: Path, table: Table) -> None:
    files.write_text(path, to_csv(table))


def read_csv(path: Path) -> Table:
    """The table in a file that `write_csv` wrote (UserError if there is none, or if a line has other columns)."""
    try:
        return from_csv(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: expected a table, found no such file") from None
    except (ValueError, csv.Error) as e:
        raise UserError(f"{path}: expected a table as CSV, found text that does not parse ({e})") from None


def concat(*tables: Iterable[Row]) -> Table:
    return Table(row for table in tables for row in table)
