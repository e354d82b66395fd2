"""Frames become figures in a folder, with an index that says where each comes from; and the same again from tables."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from golfcore import config
from golfcore.analysis import buckets, frames, runs, scores, sizes
from golfcore.analysis.text import Text, text_of
from golfcore.base import files
from golfcore.base.errors import UserError
from golfcore.base.records import RESULTS, RunFolder
from golfcore.plots import depth, index, meta, protocols, style, suite, tokens
from golfcore.plots import run as run_plots

Draw = Callable[[pd.DataFrame], Figure]
Say = Callable[[pd.DataFrame], str]
SUBJECTS = (run_plots, meta, depth, suite, protocols, tokens)
FIGURES: dict[str, tuple[Draw, Say]] = {name: both for subject in SUBJECTS for name, both in subject.FIGURES.items()}


class Caption(str):
    """Text that a notebook shows as Markdown."""

    def _repr_markdown_(self) -> str:
        return self


@dataclass(frozen=True)
class Drawn:
    """A figure on disk (what a notebook shows of it), the frame it draws, and the sentence that this says."""

    name: str
    table: pd.DataFrame
    caption: Caption
    paths: tuple[Path, ...]  # SVG, PNG, CSV

    def _repr_png_(self) -> bytes:
        return next(path for path in self.paths if path.suffix == ".png").read_bytes()


def draw_figures(
    tables: Mapping[str, pd.DataFrame], folder: Path, about: Mapping[str, object], plot: str = ""
) -> dict[str, Drawn]:
    """Draw each frame, by the name of its figure, into `folder`: NAME.svg, NAME.png, NAME.csv, and index.json.

    The index holds `about` (`index.origin`) for each. A frame without rows is left out. `plot` names another figure
    as which they are drawn, if their names are not in FIGURES.
    """
    drawn = {}
    for name, table in tables.items():
        if len(table):
            table = frames.frame(table)
            say = FIGURES[plot or name][1]
            drawn[name] = Drawn(name, table, Caption(say(table)), _draw(name, plot or name, table, folder))
    more = {"plot": plot} if plot else {}
    index.write_index(folder, {n: {**about, **more, "files": _hashes(found.paths)} for n, found in drawn.items()})
    return drawn


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


def draw_run(
    run: RunFolder, folder: Path, text: Text | None = None, about: Mapping[str, object] | None = None
) -> dict[str, Drawn]:
    """Draw a finished run into `folder`: for each figure name.svg, name.png and name.csv, and index.json.

    `text` is what `text_of(run)` reads if it is not given; `about` what the index says if another command than
    `golfcore run` and `golfcore figures` makes them. UserError: the run has not finished, or its data are gone.
    """
    if not run.file(RESULTS).exists():
        raise UserError(f"{run.path}: expected a finished run, found no {RESULTS}; its command would go on")
    if about is None:
        cfg = config.of_run(run)
        drawing = f"golfcore figures {index.OUT}/{cfg.name} --out {index.OUT}/figures"
        about = index.origin([run], index.by_run(cfg), drawing)
    return draw_figures(tables_of(run, text or text_of(run)), folder, about)


def draw_group(
    prefix: str, tables: Mapping[str, pd.DataFrame], folder: Path, about: Mapping[str, object]
) -> dict[str, Drawn]:
    """`draw_figures` of tables that are named without the prefix of their figures, as are the results."""
    drawn = draw_figures({prefix + name: table for name, table in tables.items()}, folder, about)
    return {name.removeprefix(prefix): figure for name, figure in drawn.items()}


def draw_suite(table: pd.DataFrame, sweep: str, folder: Path, about: Mapping[str, object]) -> Drawn:
    """Draw the table of a sweep as suite-SWEEP: a folder may hold those of several."""
    name = f"suite-{sweep}"
    return draw_figures({name: table}, folder, about, "ablation-suite")[name]


def redraw(folder: Path) -> list[Path]:
    """Draw every figure in the index of `folder` again from its CSV.

    UserError: no index, no such plot, or a table that is not the one listed and cannot be drawn.
    """
    found, where = index.read_index(folder), folder / "index.json"
    if not found:
        raise UserError(f"{folder}: expected an index.json of figures, found none; golfcore figures RUN makes one")
    plots = {name: str(entry.get("plot", name)) for name, entry in found.items()}
    for plot in plots.values():
        if plot not in FIGURES:
            raise UserError(f"{where}: expected figures among {', '.join(FIGURES)}, found {plot!r}")
    tables = {name: frames.read_csv(folder / f"{name}.csv") for name in plots}
    drawn = list[Path]()
    for name, plot in plots.items():
        try:
            drawn += _draw(name, plot, tables[name], folder)
        except Exception as e:
            csv = folder / f"{name}.csv"
            if files.sha256_file(csv) == found[name].get("files", {}).get(csv.name):
                raise
            raise UserError(f"{csv}: expected the table of a figure {plot}, found another table ({e!r})") from e
    return drawn


def save_figure(fig: Figure, table: pd.DataFrame, folder: Path, name: str) -> tuple[Path, ...]:
    """`name`.svg and `name`.png beside `name`.csv, the table that they draw. Equal tables give equal files."""
    index.checked_name(name, str(folder))
    out = tuple(folder / f"{name}{suffix}" for suffix in (".svg", ".png", ".csv"))
    with style.drawing():
        for path, metadata in ((out[0], {"Date": None}), (out[1], {"Software": None})):
            with files.atomic_path(path) as part:
                fig.savefig(part, format=path.suffix[1:], metadata=metadata)
    frames.write_csv(out[2], table)
    return out


def _draw(name: str, plot: str, table: pd.DataFrame, folder: Path) -> tuple[Path, ...]:
    with style.drawing():
        return save_figure(FIGURES[plot][0](table), table, folder, name)


def _hashes(paths: tuple[Path, ...]) -> dict[str, str]:
    return {path.name: files.sha256_file(path) for path in paths}
