"""The published tables as a page for people, beside their CSV files."""

from pathlib import Path

import pandas as pd

from golfcore.analysis import tables
from golfcore.analysis.frames import for_people, write_csv
from golfcore.base import files

PREFIX = "table-"
SHOWN = 40  # rows of a table; the rest is in its CSV
TITLES = {
    "architecture": "The tensors of exp106 (those of exp101 and exp105a, and 66 rates that are not exported)",
    "settings": "Settings in which the systems differ",
    "results": "What the reported runs logged",
    "sizes": "Bytes, and what they leave of the limit of 16,000,000",
    "ablations": "Every row of every published ablation",
    "deltas": "Distances and cosines between published models, by tensor",
    "rounding": "Errors of rounding to six bits, by bank",
    "spectra": "Norms, stable ranks and conditions, by bank",
    "overlaps": "Overlaps of leading subspaces, by tensor",
    "error-surface": "What was called the error surface, by bank",
    "midpoints": "Norms of midpoints",
}
INTRODUCTION = """As logged or printed by the publications, or read from the presets that reproduce them. None of it was
measured here; what was stands beside the figures in [README.md](README.md)."""


def write_tables(folder: Path) -> list[Path]:
    """Write `table-NAME.csv` for every published table, and tables.md with all of them; returns the paths."""
    found = tables.tables()
    paths = [folder / f"{PREFIX}{name}.csv" for name in found]
    for path, rows in zip(paths, found.values(), strict=True):
        write_csv(path, rows)
    parts = ["# Published tables", INTRODUCTION]
    for name, rows in found.items():
        parts += [f"## {TITLES[name]}", markdown(rows[:SHOWN])]
        more = f"{len(rows) - SHOWN} more rows in " if len(rows) > SHOWN else "All digits: "
        parts.append(f"{more}[{PREFIX}{name}.csv]({PREFIX}{name}.csv).")
    files.write_text(folder / "tables.md", "\n\n".join(parts) + "\n")
    return [*paths, folder / "tables.md"]


def markdown(rows: pd.DataFrame) -> str:
    """A table for people in Markdown; numbers to the right."""
    sides = ["--:" if pd.api.types.is_numeric_dtype(rows[c]) else ":--" for c in rows]
    spelled = for_people(rows)
    lines = [list(spelled), sides, *spelled.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
