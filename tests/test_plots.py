"""Laws of the figures: drawn from their table alone, the same bytes each time, legible, and with a known origin."""

import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import matplotlib
import pytest
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text as Print
from matplotlib.transforms import Bbox
from synthetic_run import make_run, make_text

from golfcore import config
from golfcore.analysis import readings, scores, sizes
from golfcore.analysis.buckets import bucket_occupancy
from golfcore.analysis.table import Table, number, read_csv
from golfcore.analysis.text import Text
from golfcore.base import files
from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.config import load
from golfcore.plots import style
from golfcore.plots.figures import GROUPS, PLOTS, Drawn, draw_run, redraw, tables_of
from golfcore.runs.folder import open_run
from golfcore.runs.pipeline import MEASURES

RUN = [name for name in PLOTS if not name.startswith(tuple(GROUPS))]  # the figures of one run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Text]:
    return make_run(tmp_path_factory.mktemp("runs") / "made")


@pytest.fixture(scope="module")
def drawn(made: tuple[RunFolder, Text], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Drawn]:
    run, text = made
    return draw_run(run, tmp_path_factory.mktemp("figures"), text)


def draw(name: str, table: Table) -> Figure:
    with style.drawing():
        return PLOTS[name](table)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# -- files


def test_every_figure_lies_beside_its_table(drawn: dict[str, Drawn]) -> None:
    assert list(drawn) == RUN
    for name, figure in drawn.items():
        svg, png, csv = figure.paths
        assert svg.read_text().startswith("<?xml") and png.read_bytes().startswith(b"\x89PNG")
        full = [{c: row.get(c) for c in figure.table.columns} for row in figure.table]
        assert read_csv(csv) == full and csv.stem == name
        assert figure.reading and figure._repr_png_() == png.read_bytes()


def test_a_figure_drawn_from_its_table_file_is_the_same_to_the_byte(drawn: dict[str, Drawn]) -> None:
    folder = drawn["curves"].paths[0].parent
    before = contents(folder)
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.hashsalt": "mine"}):
        paths = redraw(folder)
    assert contents(folder) == before and len(paths) == 3 * len(RUN)


def test_the_index_says_where_each_figure_comes_from(made: tuple[RunFolder, Text], drawn: dict[str, Drawn]) -> None:
    run, folder = made[0], drawn["curves"].paths[0].parent
    index = style.read_index(folder)
    assert list(index) == sorted(RUN)
    for name, entry in index.items():
        assert (entry["run"], entry["config"], entry["seed"]) == (run.id, config.of_run(run).hash, 42)
        assert (entry["data"], entry["preset"]) == (run.data_hash(), "smoke")
        assert entry["command"] == f"golfcore figures {run.path} --out {folder}"
        assert entry["files"] == {path.name: files.sha256_file(path) for path in drawn[name].paths}


def test_the_index_keeps_the_figures_of_others(tmp_path: Path) -> None:
    style.write_index(tmp_path, {"a": {"run": "x"}, "b": {"run": "x"}})
    style.write_index(tmp_path, {"b": {"run": "y"}})
    assert style.read_index(tmp_path) == {"a": {"run": "x"}, "b": {"run": "y"}}


def test_a_figure_that_cannot_be_saved_leaves_the_old_one(tmp_path: Path, drawn: dict[str, Drawn]) -> None:
    class Broken(Figure):
        def savefig(self, *_: object, **__: object) -> None:
            raise OSError("no space")

    (tmp_path / "curves.svg").write_text("old")
    with pytest.raises(OSError):
        style.save_figure(Broken(), drawn["curves"].table, tmp_path, "curves")
    assert contents(tmp_path) == {"curves.svg": b"old"}


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    run = open_run(tmp_path / "fresh", load("smoke"), "d" * 64, {})
    with pytest.raises(UserError, match="expected a finished run, found no results.json"):
        draw_run(run, tmp_path / "out")
    with pytest.raises(UserError, match="expected an index.json of figures, found none"):
        redraw(tmp_path / "out")
    style.write_index(tmp_path / "out", {"strange": {}})
    with pytest.raises(UserError, match="index.json: expected figures among curves.*found 'strange'"):
        redraw(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.svg"))


def test_a_model_without_a_bigram_table_has_no_figure_of_it(tmp_path: Path) -> None:
    base = load("smoke")
    run, text = make_run(tmp_path / "plain", config=replace(base, model=replace(base.model, bigram_rows=0)))
    assert list(tables_of(run, text)) == [name for name in RUN if name != "buckets"]


# -- legibility


def prints(fig: Figure) -> list[tuple[str, Bbox]]:
    """Every text of a figure as it is drawn, with its box in pixels."""
    found, draw_text = {}, Print.draw

    def record(self: Print, renderer: RendererBase) -> None:
        draw_text(self, renderer)
        if self.get_visible() and self.get_text().strip():
            found[self] = (self.get_text(), Print.get_window_extent(self, renderer))

    with pytest.MonkeyPatch.context() as patch, style.drawing():
        patch.setattr(Print, "draw", record)
        FigureCanvasAgg(fig).draw()
    return list(found.values())


def check_legible(fig: Figure) -> None:
    found, size = prints(fig), fig.bbox
    assert len(found) > 5
    for text, box in found:
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= size.x1 + 1 and box.y1 <= size.y1 + 1
        assert inside, f"{text!r} leaves the figure"
    for (a, box_a), (b, box_b) in combinations(found, 2):
        width = min(box_a.x1, box_b.x1) - max(box_a.x0, box_b.x0)
        height = min(box_a.y1, box_b.y1) - max(box_a.y0, box_b.y0)
        assert width <= 1 or height <= 1, f"{a!r} lies over {b!r}"


@pytest.mark.parametrize("name", RUN)
def test_no_print_overlaps_or_leaves_the_figure(drawn: dict[str, Drawn], name: str) -> None:
    check_legible(draw(name, drawn[name].table))


@pytest.mark.parametrize("ttt", [-2.0, 0.0, 0.4])
@pytest.mark.parametrize("n_chunks", [1, 2, 30])
def test_score_figures_stay_legible_for_other_numbers(tmp_path: Path, ttt: float, n_chunks: int) -> None:
    run, text = make_run(tmp_path / "run", n_chunks=n_chunks, ttt=ttt)
    check_legible(draw("waterfall", scores.waterfall(run)))
    check_legible(draw("ttt", scores.ttt_gain(run)))
    check_legible(draw("losses", scores.loss_by_class(run, text)))


def test_the_waterfall_stays_legible_with_other_protocols(made: tuple[RunFolder, Text]) -> None:
    """Each by its own name, its bar from the level of (b); one has no interval."""
    table = scores.waterfall(made[0])
    b = number(table.one(measure="sliding"), "bpb")
    changes = {"error-guided-legal": -0.3, "ppm": 0.01, "train-then-score": 0.2}
    others = [
        {"measure": name, "bpb": b + d, "difference": d, "legality": "train-first"} for name, d in changes.items()
    ]
    others[0] |= {"low": -0.31, "high": -0.29}
    fig = draw("waterfall", Table([*table[:-1], *others, table[-1]]))
    check_legible(fig)
    texts = [text for text, _ in prints(fig)]
    assert all(f"{b + d:.4f}" in texts and any(name in t for t in texts) for name, d in changes.items())
    bars = [p for p in fig.axes[0].patches if p.get_height() == 0.5]
    assert [p.get_x() for p in bars[4:]] == pytest.approx([b] * 3)


@pytest.mark.parametrize("n_rows", [16, 1024, 65536])
def test_the_figure_of_buckets_stays_legible_for_other_sizes(n_rows: int) -> None:
    text = make_text(10, n_train=20_000)
    check_legible(draw("buckets", bucket_occupancy(text.train, text.tables, n_rows)))


def test_the_bigram_is_marked_where_it_is(made: tuple[RunFolder, Text]) -> None:
    """Beyond either end of the scale by an arrow, within it by a point; its number is printed in each case."""
    table = scores.waterfall(made[0])
    middle = sum(table.only(legality="static").numbers("bpb")) / 3
    for bpb, off in ((0.5, True), (9.0, True), (middle, False)):
        moved = Table([*table[:-1], {"measure": "bigram", "bpb": bpb}])
        fig = draw("waterfall", moved)
        check_legible(fig)
        texts = [text for text, _ in prints(fig)]
        assert ("off the scale" in texts) == off and f"{bpb:.4f}" in texts


# -- names


def test_what_is_drawn_is_what_is_analysed() -> None:
    assert list(style.MEASURES) == [*MEASURES, "bigram"]
    assert style.CLASSES == list(scores.CLASS_NAMES.values())
    assert set(style.GROUPS) == {*sizes.GROUPS, "the rest of the file"}
    assert all(hasattr(readings, name) for name in RUN)


def test_plots_need_no_torch() -> None:
    code = "import sys, golfcore.plots.run; sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
