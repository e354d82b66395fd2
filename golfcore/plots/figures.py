"""Frames become figures in a folder, with an index that says where each comes from; and the same again from tables."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from golfcore import config
from golfcore.analysis import beside as facts_beside
from golfcore.analysis import buckets, frames, ledger, runs, scores, sizes
from golfcore.analysis import published as published_facts
from golfcore.analysis.text import Text, text_of
from golfcore.base import files
from golfcore.base.errors import UserError
from golfcore.base.records import RESULTS, RunFolder
from golfcore.plots import (
    beside,
    claims,
    depth,
    diagrams,
    geometry,
    index,
    learning,
    meta,
    pages,
    protocols,
    published,
    rates,
    rounding,
    style,
    suite,
    surface,
    tokens,
    weights,
)
from golfcore.plots import buckets as bucket_plots
from golfcore.plots import run as run_plots
from golfcore.runs.folder import find_run

Draw = Callable[[pd.DataFrame], Figure]
Say = Callable[[pd.DataFrame], str]
SUBJECTS: tuple = (run_plots, meta, depth, suite, protocols, tokens, bucket_plots, learning, weights, geometry)
SUBJECTS += (surface, rounding, rates, published, beside, claims, diagrams)
FIGURES: dict[str, tuple[Draw, Say]] = {name: both for subject in SUBJECTS for name, both in subject.FIGURES.items()}
BESIDE = {  # figure beside-NAME: its frame, and the figure here whose runs it shows
    "training": (facts_beside.training, "ablation-curves"),
    "adaptation": (facts_beside.adaptation, "ablation-chunks"),
    "banks": (facts_beside.banks, "weights-noise"),
    "costs": (facts_beside.costs, "ablation-costs"),
}
SUITE = "suite-"  # and the name of the sweep: a folder may hold those of several


class Caption(str):
    """Text that a notebook shows as Markdown."""

    def _repr_markdown_(self) -> str:
        return self


@dataclass(frozen=True)
class Drawn:
    """A figure on disk (what a notebook shows of it), the frame it draws, and the sentence that this says."""

    name: str
    table: pd.DataFrame = field(repr=False)
    caption: Caption
    paths: tuple[Path, ...]  # SVG, PNG, CSV

    def _repr_png_(self) -> bytes:
        return self.paths[1].read_bytes()


def draw_group(
    prefix: str, tables: Mapping[str, pd.DataFrame], folder: Path, about: Mapping[str, object]
) -> dict[str, Drawn]:
    """Draw each frame into `folder` as prefix + its name: .svg, .png, .csv, and an entry of index.json with `about`.

    A frame without rows is left out. UserError: a name that is no file's.
    """
    drawn = {}
    for name, rows in tables.items():
        if len(rows):
            table, full = frames.frame(rows), prefix + name
            drawn[name] = Drawn(full, table, Caption(_plot(full)[1](table)), save_figure(full, table, folder))
    found = {}
    for d in drawn.values():
        hashes = {path.name: files.sha256_file(path) for path in d.paths}
        found[d.name] = {**about, "caption": str(d.caption), "files": hashes}
    index.write_index(folder, found)
    return drawn


def draw_suite(table: pd.DataFrame, sweep: str, folder: Path, about: Mapping[str, object]) -> Drawn:
    """Draw the table of a sweep as suite-SWEEP."""
    return draw_group(SUITE, {sweep: table}, folder, about)[sweep]


def tables_of(run: RunFolder, text: Text) -> dict[str, pd.DataFrame]:
    """The frame of each figure of a finished run by the figure's name; "buckets" only if it has an n-gram table."""
    tables = {
        "curves": runs.curves(run).drop(columns="elapsed"),  # figures hang on no machine's speed
        "waterfall": scores.waterfall(run),
        "ttt": scores.ttt_gain(run),
        "losses": scores.loss_by_class(run, text),
        "sizes": sizes.run_bytes(run),
    }
    if n_rows := config.of_run(run).model.bigram_rows:
        tables["buckets"] = buckets.bucket_occupancy(text.train, text.tables, n_rows)
    return {name: tables[name] for name in run_plots.FIGURES if name in tables}


def draw_run(run: RunFolder, folder: Path, text: Text | None = None) -> dict[str, Drawn]:
    """`draw_group` of the figures of a run. `text`: what `text_of(run)` reads if it is not given.

    UserError: the run has not finished, or its data are gone.
    """
    if not run.file(RESULTS).exists():
        raise UserError(f"{run.path}: expected a finished run, found no {RESULTS}; its command would go on")
    cfg = config.of_run(run)
    drawing = f"golfcore figures {index.OUT}/{cfg.name} --out {index.OUT}/figures"
    return draw_group("", tables_of(run, text or text_of(run)), folder, index.origin([run], index.by_run(cfg), drawing))


def published_figures(folder: Path, studies: Path) -> dict[str, Drawn]:
    """Draw what the publications alone say, and what their arithmetic alone settles; each figure is marked so.

    Where the folder `studies` has tables of our studies, they stand beside in the figures beside-*, with their runs.
    """
    tables = {"steps": published_facts.step_times(), "angles": published_facts.angle_errors()}
    tables |= {"schedules": facts_beside.courses(), "scores": facts_beside.scores(), "wiring": diagrams.wiring()}
    command = f"golfcore figures --published --out {index.OUT}/figures"
    alone = {"runs": [], "train": command, "draw": command}
    drawn, known = draw_group("published-", tables, folder, alone), index.read_index(studies)
    for name, (make, study) in BESIDE.items():
        about = alone | {key: known[study][key] for key in ("runs", "train") if study in known}
        drawn |= draw_group("beside-", {name: make(studies)}, folder, about)
    return drawn


def draw_published(folder: Path) -> list[Path]:
    """`published_figures` beside the studies in `folder`, and the published tables as a page."""
    drawn = published_figures(folder, folder).values()
    return [path for figure in drawn for path in figure.paths] + pages.write_tables(folder)


def draw_claims(studies: Path, folder: Path) -> Drawn:
    """Judge the published claims by the tables in the folder `studies`; the ledger and its figure, in `folder`."""
    known = index.read_index(studies)
    command = index.by_notebook("11_claims_and_figures", {})
    runs = {json.dumps(run, sort_keys=True): run for entry in known.values() for run in entry.get("runs", [])}
    about = {"runs": list(runs.values()), "train": command, "draw": command}
    return draw_group("claims-", {"ledger": ledger.ledger(studies, known)}, folder, about)["ledger"]


def kept(folder: Path, name: str) -> Drawn:
    """A figure of the index in `folder` as it lies there. UserError: there is none."""
    known = index.read_index(folder)
    config.keys([name], list(known), str(folder / "index.json"))
    paths = tuple(folder / f"{name}.{suffix}" for suffix in ("svg", "png", "csv"))
    return Drawn(name, frames.read_csv(paths[2]), Caption(known[name].get("caption", "")), paths)


def draw_runs(paths: Sequence[Path], out: Path) -> list[Path]:
    """Draw finished runs, one into `out`, several each below it; without any, draw `out` again from its tables."""
    if not paths:
        return redraw(out)
    found = [find_run(path) for path in paths]
    drawn = [draw_run(run, out if len(found) == 1 else out / run.id) for run in found]
    return [path for figures in drawn for figure in figures.values() for path in figure.paths]


def redraw(folder: Path) -> list[Path]:
    """Draw every figure in the index of `folder` again from its CSV.

    UserError: no index, no such figure, or a table that is not the one listed and cannot be drawn.
    """
    found = index.read_index(folder)
    if not found:
        raise UserError(f"{folder}: expected an index.json of figures, found none; golfcore figures RUN makes one")
    config.keys([name for name in found if not name.startswith(SUITE)], list(FIGURES), str(folder / "index.json"))
    tables = {name: frames.read_csv(folder / f"{name}.csv") for name in found}
    drawn = list[Path]()
    for name, table in tables.items():
        try:
            drawn += save_figure(name, table, folder)
        except Exception as e:
            csv = folder / f"{name}.csv"
            if files.sha256_file(csv) == found[name].get("files", {}).get(csv.name):
                raise
            raise UserError(f"{csv}: expected the table of a figure {name}, found another table ({e!r})") from e
    made = {path.name: files.sha256_file(path) for path in drawn if path.suffix != ".csv"}  # tables are what they were
    for name, entry in found.items():
        entry["caption"] = _plot(name)[1](tables[name])
        entry["files"] = {file: made.get(file, sha) for file, sha in entry.get("files", {}).items()}
    index.write_index(folder, found)
    return drawn


def save_figure(name: str, table: pd.DataFrame, folder: Path) -> tuple[Path, ...]:
    """`name`.svg and `name`.png beside `name`.csv, the table that they draw. Equal tables give equal files."""
    index.checked_name(name, str(folder))
    svg, png, csv = (folder / f"{name}.{suffix}" for suffix in ("svg", "png", "csv"))
    with style.drawing():
        fig = _plot(name)[0](table)
        for path, metadata in ((svg, {"Date": None}), (png, {"Software": None})):
            with files.atomic_path(path) as part:
                fig.savefig(part, format=path.suffix[1:], metadata=metadata)
                if path == svg:
                    part.write_text(numbered(part.read_text()))
    frames.write_csv(csv, table)
    return svg, png, csv


def numbered(svg: str) -> str:
    """The same picture with matplotlib's hashed names numbered: the hashes hang on the last bits of the processor."""
    names = re.findall(r'id="([a-z][0-9a-f]{10})"', svg)
    known = {name: f"{name[0]}{i}" for i, name in enumerate(dict.fromkeys(names), 1)}
    return re.sub(r"\b[a-z][0-9a-f]{10}\b", lambda found: known.get(found[0], found[0]), svg)


def _plot(name: str) -> tuple[Draw, Say]:
    return FIGURES["ablation-suite" if name.startswith(SUITE) else name]
