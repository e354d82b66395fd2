"""All figures of a run into a folder, with an index that says where each comes from; and the same again from tables."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from golfcore import config
from golfcore.analysis import (
    ablation_readings,
    buckets,
    depth_readings,
    readings,
    runs,
    scores,
    sizes,
    study_readings,
    suite,
    token_readings,
)
from golfcore.analysis.readings import Reading
from golfcore.analysis.table import Table, read_csv
from golfcore.analysis.text import Text, text_of
from golfcore.base import files
from golfcore.base.errors import UserError
from golfcore.base.records import RESULTS, RunFolder
from golfcore.plots import ablation, depth, protocols, style, tokens
from golfcore.plots import run as plots
from golfcore.plots import suite as suite_plots

PLOTS: dict[str, Callable[[Table], Figure]] = {
    "curves": plots.curves,
    "waterfall": plots.waterfall,
    "ttt": plots.ttt,
    "buckets": plots.buckets,
    "losses": plots.losses,
    "sizes": plots.sizes,
    "ablation-curves": ablation.curves,
    "ablation-differences": ablation.differences,
    "ablation-gains": ablation.gains,
    "ablation-chunks": ablation.chunks,
    "ablation-meta-sgd": ablation.meta_sgd,
    "ablation-interventions": ablation.interventions,
    "ablation-costs": ablation.costs,
    "ablation-suite": suite_plots.suite,
    "protocols-waterfall": protocols.waterfall,
    "protocols-scores": protocols.scores,
    "protocols-controls": protocols.controls,
    "protocols-strides": protocols.strides,
    "protocols-positions": protocols.positions,
    "protocols-stream": protocols.stream,
    "tokens-histogram": tokens.histogram,
    "tokens-exceedance": tokens.exceedance,
    "tokens-concentration": tokens.concentration,
    "tokens-classes": tokens.classes,
    "tokens-frequency": tokens.frequency,
    "tokens-pieces": tokens.pieces,
    "depth-sizes": depth.sizes,
    "depth-tradeoff": depth.tradeoff,
    "depth-differences": depth.differences,
    "depth-curves": depth.curves,
    "depth-scales": depth.scales,
    "depth-specialisation": depth.specialisation,
}
ABLATION, DEPTH = "ablation-", "depth-"
GROUPS = {  # not of one run
    ABLATION: ablation_readings,
    DEPTH: depth_readings,
    "protocols-": study_readings,
    "tokens-": token_readings,
}


@dataclass(frozen=True)
class Drawn:
    """A figure on disk (what a notebook shows of it), its table, and what the table says."""

    name: str
    table: Table
    reading: Reading
    paths: tuple[Path, ...]  # SVG, PNG, CSV

    def _repr_png_(self) -> bytes:
        return next(path for path in self.paths if path.suffix == ".png").read_bytes()


def tables_of(run: RunFolder, text: Text) -> dict[str, Table]:
    """The table of each figure of a finished run by the figure's name; "buckets" only if it has an n-gram table."""
    tables = {
        "curves": Table(runs.as_rows(runs.curves(run))),
        "waterfall": scores.waterfall(run),
        "ttt": scores.ttt_gain(run),
        "losses": scores.loss_by_class(run, text),
        "sizes": sizes.run_bytes(run),
    }
    if n_rows := config.of_run(run).model.bigram_rows:
        tables["buckets"] = buckets.bucket_occupancy(text.train, text.tables, n_rows)
    return {name: tables[name] for name in PLOTS if name in tables}


def draw_run(run: RunFolder, folder: Path, text: Text | None = None) -> dict[str, Drawn]:
    """Draw a finished run into `folder`: for each figure name.svg, name.png and name.csv, and index.json.

    `text` is what `text_of(run)` reads if it is not given. UserError: the run has not finished, or its data are gone.
    """
    if not run.file(RESULTS).exists():
        raise UserError(f"{run.path}: expected a finished run, found no {RESULTS}; its command would go on")
    found = tables_of(run, text or text_of(run))
    command = f"golfcore figures {_spell(run.path)} --out {_spell(folder)}"
    texts = {name: getattr(readings, name)(table) for name, table in found.items()}
    return draw_tables(found, texts, folder, runs.provenance(run) | {"command": command})


def draw_ablation(tables: Mapping[str, Table], folder: Path, about: Mapping[str, object]) -> dict[str, Drawn]:
    """`draw_group` of an ablation's tables."""
    return draw_group(ABLATION, tables, folder, about)


def draw_group(prefix: str, tables: Mapping[str, Table], folder: Path, about: Mapping[str, object]) -> dict[str, Drawn]:
    """Draw the tables of one of GROUPS, named as their plots without `prefix`; one without rows is left out."""
    found = {prefix + name: table for name, table in tables.items() if table}
    said = {n: getattr(GROUPS[prefix], n.removeprefix(prefix).replace("-", "_"))(table) for n, table in found.items()}
    drawn = draw_tables(found, said, folder, about)
    return {name.removeprefix(prefix): figure for name, figure in drawn.items()}


def draw_suite(table: Table, sweep: str, folder: Path, about: Mapping[str, object]) -> Drawn:
    """Draw the table of a sweep as suite-SWEEP: a folder may hold those of several."""
    name = f"suite-{sweep}"
    return draw_tables({name: table}, {name: suite.reading(table)}, folder, {**about, "plot": "ablation-suite"})[name]


def draw_tables(
    tables: Mapping[str, Table], texts: Mapping[str, Reading], folder: Path, about: Mapping[str, object]
) -> dict[str, Drawn]:
    """Draw each table into `folder`; the index says `about` of each, and its files' hashes.

    The plot is the one of the table's name, unless `about` names another as "plot".
    """
    drawn = {
        n: Drawn(n, table, texts[n], tuple(_draw(n, table, folder, str(about.get("plot", n)))))
        for n, table in tables.items()
    }
    style.write_index(folder, {n: {**about, "files": _hashes(figure.paths)} for n, figure in drawn.items()})
    return drawn


def redraw(folder: Path) -> list[Path]:
    """Draw every figure in the index of `folder` again from its CSV (UserError: no index, or no such plot)."""
    index, paths = style.read_index(folder), []
    if not index:
        raise UserError(f"{folder}: expected an index.json of figures, found none; golfcore figures RUN makes one")
    for name, entry in index.items():
        plot = entry.get("plot", name)
        if plot not in PLOTS:
            raise UserError(f"{folder / 'index.json'}: expected figures among {', '.join(PLOTS)}, found {plot!r}")
        paths += _draw(name, read_csv(folder / f"{name}.csv"), folder, plot)
    return paths


def _draw(name: str, table: Table, folder: Path, plot: str) -> list[Path]:
    with style.drawing():
        return style.save_figure(PLOTS[plot](table), table, folder, name)


def _hashes(paths: tuple[Path, ...]) -> Mapping[str, str]:
    return {path.name: files.sha256_file(path) for path in paths}


def _spell(path: Path) -> str:
    """The path as seen from the current folder, if it is below it."""
    absolute, here = path.resolve(), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(path)
