"""Laws of the figures: drawn from their table alone, the same bytes each time, legible, and with a known origin."""

import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text as Print
from matplotlib.transforms import Bbox
from synthetic_run import make_run, make_text

from golfcore import config
from golfcore.analysis import frames, scores, sizes
from golfcore.analysis.buckets import bucket_occupancy
from golfcore.analysis.frames import frame
from golfcore.analysis.text import Text
from golfcore.base import files
from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.config import load
from golfcore.evals.ledger import Legality
from golfcore.plots import figures, index, parts, style
from golfcore.plots import run as run_plots
from golfcore.plots.figures import FIGURES, Drawn, draw_run, redraw, tables_of
from golfcore.quant.artifact import info
from golfcore.runs.folder import open_run
from golfcore.runs.pipeline import MEASURES

RUN = list(run_plots.FIGURES)  # the figures of one run
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Text]:
    return make_run(tmp_path_factory.mktemp("runs") / "made")


@pytest.fixture(scope="module")
def drawn(made: tuple[RunFolder, Text], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Drawn]:
    run, text = made
    return draw_run(run, tmp_path_factory.mktemp("figures"), text)


def draw(name: str, table: pd.DataFrame) -> Figure:
    with style.drawing():
        return FIGURES[name][0](table)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# -- files


def test_every_figure_lies_beside_its_table(drawn: dict[str, Drawn]) -> None:
    assert list(drawn) == RUN
    for name, figure in drawn.items():
        svg, png, csv = figure.paths
        assert svg.read_text().startswith("<?xml") and png.read_bytes().startswith(b"\x89PNG")
        pd.testing.assert_frame_equal(frames.read_csv(csv), figure.table)
        assert csv.stem == name and figure.caption and figure._repr_png_() == png.read_bytes()


def test_a_page_says_of_every_figure_what_it_shows_and_leaves_a_page_of_ones_own_alone(
    drawn: dict[str, Drawn], tmp_path: Path
) -> None:
    page = (drawn["curves"].paths[0].parent / "README.md").read_text()
    for name, figure in drawn.items():
        assert f"## {name}" in page and figure.caption in page and f'src="{name}.svg"' in page
    assert "golfcore figures OUT/" in page and str(ROOT) not in page
    shutil.copytree(drawn["curves"].paths[0].parent, tmp_path / "copy")
    for text, kept in (("# Mine", True), (page + "changed", False)):
        (tmp_path / "copy/README.md").write_text(text)
        (tmp_path / "copy/more.md").write_text("")
        redraw(tmp_path / "copy")
        after = (tmp_path / "copy/README.md").read_text()
        assert (after == text) == kept and ("[more.md](more.md)" in after) != kept


def test_names_in_a_picture_do_not_hang_on_the_last_bits_of_a_number() -> None:
    """Clips and markers are named after a hash of their floats, whose last bits differ between processors."""
    picture = '<path clip-path="url(#p{0})"/><path id="m{1}"/><use xlink:href="#m{1}"/><clipPath id="p{0}"/>'
    one, other = (figures.numbered(picture.format(*ids)) for ids in (("0a1b2c3d4e", "1" * 10), ("f" * 10, "2a" * 5)))
    assert one == other and one.count("p2") == 2 and one.count("m1") == 2


def test_a_figure_drawn_from_its_table_file_is_the_same_to_the_byte(drawn: dict[str, Drawn]) -> None:
    folder = drawn["curves"].paths[0].parent
    before = contents(folder)
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.hashsalt": "mine"}):
        paths = redraw(folder)
    assert contents(folder) == before and len(paths) == 3 * len(RUN)


def test_figures_hang_on_no_clock_and_no_folder(made: tuple[RunFolder, Text], tmp_path: Path) -> None:
    """The same run on a slower machine, in a folder of another name, gives the same tables."""
    run, text = made
    slow = RunFolder(tmp_path / "elsewhere")
    shutil.copytree(run.path, slow.path)
    rows = [files.canonical_json({**row, "elapsed": row["elapsed"] * 3}) for row in run.metrics()]
    files.write_text(slow.file("metrics.jsonl"), "\n".join(rows) + "\n")
    slow.file("stages/train.json").unlink()  # which counted the rows as they were
    report = files.read_json(run.file("results.json"), "results")
    report["source"]["run"] = "elsewhere"
    for measure in report["measures"].values():
        measure["seconds"] *= 3
    files.write_json(slow.file("results.json"), report)
    for name, table in tables_of(slow, text).items():
        pd.testing.assert_frame_equal(table, tables_of(run, text)[name])


def test_the_index_says_where_each_figure_comes_from(made: tuple[RunFolder, Text], drawn: dict[str, Drawn]) -> None:
    run, folder = made[0], drawn["curves"].paths[0].parent
    found = index.read_index(folder)
    assert list(found) == sorted(RUN)
    for name, entry in found.items():
        (source,) = entry["runs"]
        assert (source["run"], source["config_hash"], source["seed"]) == (run.id, config.of_run(run).hash, 42)
        assert (source["data"], source["data_source"]) == (run.data_hash(), "embedded corpus")
        assert config.from_dict(source["config"], name) == config.of_run(run)
        assert source["legality"]["ttt"] == "score-first"
        assert entry["train"] == "golfcore run smoke --out OUT/smoke"
        assert entry["draw"] == "golfcore figures OUT/smoke --out OUT/figures"
        assert entry["files"] == {path.name: files.sha256_file(path) for path in drawn[name].paths}
    assert str(ROOT) not in (folder / "index.json").read_text()


def test_recorded_commands_hold_every_value_and_no_folder_of_this_machine(tmp_path: Path) -> None:
    changes = {"run.seed": 7, "quant.clip_quantiles": [0.99, 1.0], "model.bigram_layout": "shared", "data.path": "/d"}
    run, _ = make_run(tmp_path / "run", config=load("smoke", changes))
    commands = index.by_run(config.of_run(run)), "golfcore figures OUT/smoke --out OUT/figures"
    index.write_index(tmp_path / "figures", {"curves": index.origin([run], *commands)})
    train, drawing = index.recorded(tmp_path / "figures", "curves", tmp_path / "new", tmp_path / "data")
    assert train[:3] == ["golfcore", "run", "smoke"] and drawing[2] == str(tmp_path / "new/smoke") == train[-1]
    pairs = dict(part.split("=", 1) for flag, part in zip(train, train[1:], strict=False) if flag == "--set")
    again = load("smoke", {**pairs, "data.path": train[train.index("--data") + 1]})
    assert replace(again, data=config.of_run(run).data) == config.of_run(run)
    with pytest.raises(UserError, match=f"curves: expected the folder of data {run.data_hash()}"):
        index.recorded(tmp_path / "figures", "curves", tmp_path / "new")
    with pytest.raises(UserError, match="unknown key 'curve'; did you mean 'curves'"):
        index.recorded(tmp_path / "figures", "curve", tmp_path / "new")


def test_the_index_keeps_the_figures_of_others(tmp_path: Path) -> None:
    index.write_index(tmp_path, {"a": {"run": "x"}, "b": {"run": "x"}})
    index.write_index(tmp_path, {"b": {"run": "y"}})
    assert index.read_index(tmp_path) == {"a": {"run": "x"}, "b": {"run": "y"}}


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/b", "..", "", ".hidden", "a\nb"])
def test_a_name_from_a_file_stays_in_its_folder(tmp_path: Path, drawn: dict[str, Drawn], name: str) -> None:
    folder = tmp_path / "inside"
    shutil.copytree(drawn["curves"].paths[0].parent, folder)
    before = contents(folder)
    shutil.copy(folder / "curves.csv", tmp_path / "outside.csv")
    known = files.read_json(folder / "index.json", "an index")
    files.write_json(folder / "index.json", known | {name: known["curves"]})
    with pytest.raises(UserError, match=r"index.json: expected names of letters, digits.*found"):
        redraw(folder)
    with pytest.raises(UserError, match="expected names of letters, digits"):
        figures.save_figure(name, drawn["curves"].table, folder)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["inside", "outside.csv"]
    assert {n: b for n, b in contents(folder).items() if n != "index.json"} == {
        n: b for n, b in before.items() if n != "index.json"
    }


@pytest.mark.parametrize("entry", [[], "curves", None])
def test_an_index_that_describes_no_figure_is_said(tmp_path: Path, entry: object) -> None:
    files.write_json(tmp_path / "index.json", {"curves": entry})
    with pytest.raises(UserError, match="index.json: expected an index of figures with 'curves' as an object"):
        redraw(tmp_path)


def test_a_figure_that_cannot_be_saved_leaves_the_old_one(
    tmp_path: Path, drawn: dict[str, Drawn], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(Figure, "savefig", broken)
    (tmp_path / "curves.svg").write_text("old")
    with pytest.raises(OSError):
        figures.save_figure("curves", drawn["curves"].table, tmp_path)
    assert contents(tmp_path) == {"curves.svg": b"old"}


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    run = open_run(tmp_path / "fresh", load("smoke"), "d" * 64, {})
    with pytest.raises(UserError, match="expected a finished run, found no results.json"):
        draw_run(run, tmp_path / "out")
    with pytest.raises(UserError, match="expected an index.json of figures, found none"):
        redraw(tmp_path / "out")
    index.write_index(tmp_path / "out", {"strange": {}})
    with pytest.raises(UserError, match="index.json: unknown key 'strange'; known: curves"):
        redraw(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.svg"))


def test_a_model_without_a_bigram_table_has_no_figure_of_it(tmp_path: Path) -> None:
    base = load("smoke")
    run, text = make_run(tmp_path / "plain", config=replace(base, model=replace(base.model, bigram_rows=0)))
    assert list(tables_of(run, text)) == [name for name in RUN if name != "buckets"]


def test_a_long_log_is_drawn_whole(made: tuple[RunFolder, Text]) -> None:
    """Every one of 20,000 logged rows is in the frame and in the figure."""
    table = tables_of(*made)["curves"]
    row = frames.only(table, kind="train").iloc[-1].to_dict()
    long = frame([*table.to_dict("records"), *({**row, "step": row["step"] + i} for i in range(1, 20_001))])
    lines = draw("curves", long).axes[0].lines
    assert max(len(line.get_xdata()) for line in lines) == 20_020


# -- captions


def caption(name: str, table: pd.DataFrame) -> str:
    return FIGURES[name][1](table)


@pytest.mark.parametrize("ttt", [-0.3, 0.3])
def test_captions_follow_the_numbers(tmp_path: Path, ttt: float) -> None:
    run, text = make_run(tmp_path / "run", ttt=ttt)
    tables = tables_of(run, text)
    gain = frames.one(tables["ttt"], kind="total")["difference"]
    said = {name: caption(name, table) for name, table in tables.items()}
    assert f"adaptation (c \u2212 b) {gain:+.5f} (95 % over text" in said["waterfall"]
    assert f"helped on {11 if ttt < 0 else 0} of the 11 chunks" in said["ttt"]
    assert "below an interpolated bigram" in said["waterfall"]
    assert said["curves"].endswith("; warmdown at step 60; qat at step 65.")
    assert f"{run.file('artifact.golf').stat().st_size + 5000:,} of 16,000,000" in said["sizes"]


def test_captions_doubt_what_an_interval_does_not_exclude(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path / "none", ttt=0.0)
    assert "which includes no change" in caption("ttt", scores.ttt_gain(run))
    short, _ = make_run(tmp_path / "short", n_chunks=2)
    assert "too few chunks for an interval" in caption("ttt", scores.ttt_gain(short))
    single, _ = make_run(tmp_path / "single", n_chunks=1)
    assert "nothing to compare" in caption("ttt", scores.ttt_gain(single))


def test_captions_warn_of_bytes_over_the_limit(made: tuple[RunFolder, Text]) -> None:
    found = info(made[0].file("artifact.golf"))
    table = sizes.bytes_by_component(found, 5000, max_bytes=1000)
    assert f"{found['bytes'] + 4000:,} bytes TOO MANY" in caption("sizes", table)


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


def check_figure(name: str, table: pd.DataFrame, folder: Path) -> Figure:
    """The table survives its file, the figure that is drawn from it is legible, its caption is one sentence."""
    frames.write_csv(folder / "t.csv", frame(table))
    found = frames.read_csv(folder / "t.csv")
    pd.testing.assert_frame_equal(found, frame(table))
    said = FIGURES[name][1](found)
    assert said.endswith(".") and ". " not in said, said
    fig = draw(name, found)
    check_legible(fig)
    return fig


@pytest.mark.parametrize("name", RUN)
def test_no_print_overlaps_or_leaves_the_figure(drawn: dict[str, Drawn], tmp_path: Path, name: str) -> None:
    assert check_figure(name, drawn[name].table, tmp_path).axes


@pytest.mark.parametrize(("n_chunks", "ttt"), [(1, 0.4), (2, -2.0), (30, 0.0), (30, 0.4)])
def test_score_figures_stay_legible_for_other_numbers(tmp_path: Path, ttt: float, n_chunks: int) -> None:
    run, text = make_run(tmp_path / "run", n_chunks=n_chunks, ttt=ttt)
    tables = {
        "waterfall": scores.waterfall(run),
        "ttt": scores.ttt_gain(run),
        "losses": scores.loss_by_class(run, text),
    }
    assert all(check_figure(name, table, tmp_path).axes for name, table in tables.items())


def test_the_waterfall_stays_legible_with_other_protocols(made: tuple[RunFolder, Text]) -> None:
    """Each by its own name, its bar from the level of (b); one has no interval."""
    table = scores.waterfall(made[0])
    b = frames.one(table, measure="sliding")["bpb"]
    changes = {"error-guided-legal": -0.3, "ppm": 0.01, "train-then-score": 0.2}
    others = [
        {"measure": name, "bpb": b + d, "difference": d, "legality": "train-first"} for name, d in changes.items()
    ]
    others[0] |= {"low": -0.31, "high": -0.29}
    rows = table.to_dict("records")
    fig = draw("waterfall", frame([*rows[:-1], *others, rows[-1]]))
    check_legible(fig)
    texts = [text for text, _ in prints(fig)]
    assert all(f"{b + d:.4f}" in texts and any(name in t for t in texts) for name, d in changes.items())
    bars = [p for p in fig.axes[0].patches if p.get_height() == 0.5]
    assert [p.get_x() for p in bars[4:]] == pytest.approx([b] * 3)


@pytest.mark.parametrize("n_rows", [16, 1024, 65536])
def test_the_figure_of_buckets_stays_legible_for_other_sizes(n_rows: int) -> None:
    text = make_text(10, n_train=20_000)
    fig = draw("buckets", bucket_occupancy(text.train, text.tables, n_rows))
    check_legible(fig)
    assert len(fig.axes) == 2


def test_the_bigram_is_marked_where_it_is(made: tuple[RunFolder, Text]) -> None:
    """Beyond either end of the scale by an arrow, within it by a point; its number is printed in each case."""
    table = scores.waterfall(made[0])
    middle = frames.only(table, legality="static")["bpb"].mean()
    for bpb, off in ((0.5, True), (9.0, True), (middle, False)):
        moved = frame([*table.to_dict("records")[:-1], {"measure": "bigram", "bpb": bpb}])
        fig = draw("waterfall", moved)
        check_legible(fig)
        texts = [text for text, _ in prints(fig)]
        assert ("off the scale" in texts) == off and f"{bpb:.4f}" in texts


# -- parts


def forest(values: list[float | None]) -> Figure:
    rows = frame([{"difference": v, "low": v and v - 0.01, "high": v and v + 0.01} for v in values])
    with style.drawing():
        fig = style.figure(2.5)
        ax = fig.subplots()
        parts.forest(ax, rows, [parts.Mark(style.BLUE, "o", "legal")] * len(values))
        parts.rows_axis(ax, [f"row {i}" for i in range(len(values))])
        parts.scores(ax, rows.assign(bpb=1.2345).to_dict("records"))
        parts.legend_above(ax)
    return fig


def test_one_outlier_does_not_flatten_a_forest() -> None:
    fig = forest([-0.02, 0.03, None, 5.0])
    check_legible(fig)
    assert fig.axes[0].get_xlim()[1] < 0.1 and "+5.0000, off the scale" in [text for text, _ in prints(fig)]


def test_a_forest_without_outlier_shows_every_interval() -> None:
    fig = forest([-0.02, 0.03, 0.08])
    low, high = fig.axes[0].get_xlim()
    assert low < -0.03 and high > 0.09 and not [t for t, _ in prints(fig) if "off the scale" in t]


# -- names


def test_what_is_drawn_is_what_is_analysed() -> None:
    assert list(style.MEASURES) == [*MEASURES, "bigram"]
    assert list(style.CLASSES) == list(scores.CLASS_NAMES.values())
    assert set(run_plots.GROUPS) == {*sizes.GROUPS, "the rest of the file"}
    assert set(style.LEGALITY) == set(Legality)
    assert [label.split(" (")[0] for label, *_ in style.LEGALITY.values()] == ["legal", "legal", "not legal"]


@pytest.mark.parametrize("text", ["junk\n1\n", "", "step,bpb\n", "step,bpb\n1,a\n"])
def test_a_table_that_is_not_the_one_drawn_is_said(tmp_path: Path, drawn: dict[str, Drawn], text: str) -> None:
    folder = tmp_path / "figures"
    shutil.copytree(drawn["curves"].paths[0].parent, folder)
    (folder / "curves.csv").write_text(text)
    with pytest.raises(UserError, match=r"curves\.csv: expected (the table of a figure curves|a table)"):
        redraw(folder)


def test_plots_and_listing_runs_need_no_torch() -> None:
    loaded = "bool({'torch', 'matplotlib.pyplot'} & {*sys.modules})"
    code = f"import sys, golfcore.plots.run, golfcore.analysis.runs; sys.exit({loaded})"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
