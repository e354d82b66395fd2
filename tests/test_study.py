"""Laws of a study: cells are measured once, pair by text, and add up; what no model can have is said."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_text import dataset
from test_plots import check_legible, draw

from golfcore import config
from golfcore.analysis import protocols as analysis
from golfcore.analysis.frames import frame, one, read_csv, write_csv
from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.evals import protocols
from golfcore.evals import result as results
from golfcore.evals.ledger import Legality
from golfcore.evals.result import EvalResult
from golfcore.plots import protocols as plots
from golfcore.runs import pipeline, study
from golfcore.runs.reopen import Packed
from golfcore.runs.results import ARTIFACT
from golfcore.runs.study import Cell, Measured

CHANGES = {
    "model.vocab_size": 320,
    "schedule.iterations": 10,
    "data.reserve_tokens": 0,
    "data.val_tokens": 1050,
    "ttt.lr_candidates": [],
    "ttt.chunk_tokens": 64,
    "ttt.lr": 0.02,
    "run.val_every": 5,
    "eval.also": ["window-ttt"],
}
CELLS = "abc,float,order,epochs 0,epochs 4,stride,adam 0.001,grid,window-ttt"
REPORTED = {"a float": "float", "a": "static", "b": "sliding", "c": "ttt", "window-ttt": "window-ttt"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    cfg = config.load("smoke", CHANGES | {"data.path": str(dataset(folder))})
    return pipeline.run(cfg, folder / "run", say=lambda text: None).path


@pytest.fixture(scope="module")
def cells(run: Path) -> tuple[Cell, ...]:
    return study.select(study.standard(config.of_run(RunFolder(run))), CELLS)


@pytest.fixture(scope="module")
def measured(run: Path, cells: tuple[Cell, ...]) -> list[Measured]:
    return study.measure(run, cells, out=run / "study", say=lambda text: None)


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The labels of the cells that are evaluated from here on."""
    labels, real = [], protocols.evaluate

    def count(*args: object, label: str = "", **options: object) -> EvalResult:
        labels.append(label)
        return real(*args, label=label, **options)

    monkeypatch.setattr(protocols, "evaluate", count)
    return labels


def same(some: list[Measured], others: list[Measured]) -> bool:
    return [(m.cell, m.result.nats) for m in some] == [(m.cell, m.result.nats) for m in others]


# -- cells


@pytest.mark.parametrize("preset", ["smoke", "demo", "exp101"])
def test_every_cell_of_the_standard_study_is_one_that_the_configuration_can_have(preset: str) -> None:
    cfg = config.load(preset)
    cells = study.standard(cfg)
    labels = [cell.label for cell in cells]
    assert len(set(labels)) == len(labels) and labels[:3] == ["a", "b", "c"]
    for number, cell in enumerate(cells):
        assert cell.reference in ("", *labels[:number]), "a reference comes before what refers to it"
        protocols.configure(cell.protocol, cfg, cell.changes)
    assert {cell.protocol for cell in cells} == set(protocols.PROTOCOLS)


def test_strides_reach_the_published_range_and_any_window_has_some() -> None:
    assert study.strides(config.load("exp101")) == [1024, 512, 256, 128, 64]
    smoke = config.load("smoke")
    assert study.strides(smoke) == [32, 16] and smoke.eval.stride in study.strides(smoke)
    odd = replace(smoke, data=replace(smoke.data, seq_len=63), eval=replace(smoke.eval, stride=9))
    assert study.strides(odd) == [31, 15, 7]


def test_the_grid_of_chunks_and_passes_lets_the_rate_fall_over_as_much_text() -> None:
    cfg = config.load("demo")
    cells = {
        c.label: protocols.configure(c.protocol, cfg, c.changes).ttt for c in study.standard(cfg) if c.group == "grid"
    }
    assert {(t.chunk_tokens, t.epochs) for t in cells.values()} == {(n, e) for n in (2048, 8192, 32768) for e in (1, 4)}
    assert {t.chunk_tokens * t.lr_horizon for t in cells.values()} == {8192 * 12}
    smoke = config.load("smoke")
    assert all(size["ttt.chunk_tokens"] >= smoke.data.seq_len for size in study.grid(smoke).values())


def test_a_selection_holds_all_that_it_refers_to() -> None:
    cells = study.standard(config.load("smoke"))
    assert study.select(cells, "") == cells
    assert [c.label for c in study.select(cells, "c shuffled")] == ["a", "b", "b shuffled", "c shuffled"]
    assert [c.label for c in study.select(cells, "stride")] == ["a", "stride 32", "stride 16"]


def test_a_selection_that_leaves_nothing_is_one_sentence() -> None:
    """Also a group that exists for other configurations only."""
    cells = [cell for cell in study.standard(config.load("smoke")) if cell.group != "stride"]
    hints = {"abc, epoch": "unknown key 'epoch'; did you mean 'epochs'", "stride": "unknown key 'stride'"}
    hints |= {" , ": "expected different names with commas between them, found ' , '"}
    for names, hint in hints.items():
        with pytest.raises(UserError, match=f"cells: {hint}"):
            study.select(cells, names)


# -- the shuffled text


@given(st.integers(2, 300), st.integers(1, 40), st.integers(0, 5))
def test_a_shuffled_text_has_the_same_targets_in_whole_chunks(n: int, chunk: int, seed: int) -> None:
    tokens = np.arange(n)
    mixed = study.shuffled(tokens, chunk, seed)
    assert mixed[0] == tokens[0] and sorted(mixed) == sorted(tokens)
    order = study.chunk_order(n - 1, chunk, seed)
    for place, block in enumerate(order):
        here, there = (t[1:][i * chunk : (i + 1) * chunk] for t, i in ((mixed, place), (tokens, block)))
        assert list(here) == list(there)
    assert (n - 1) % chunk == 0 or order[-1] == len(order) - 1
    assert np.array_equal(mixed, study.shuffled(tokens, chunk, seed))


def test_the_shuffled_text_has_the_same_targets_and_its_sums_come_back_to_their_place(measured: list[Measured]) -> None:
    """Sums of scores that are the token's own number must be those of the text as it was."""
    found = study.by_label(measured)
    plain, mixed = found["b"], found["b shuffled"]
    assert plain.tokens == mixed.tokens and mixed.per_target is None and mixed.bpb != plain.bpb
    assert abs(plain.bytes - mixed.bytes) <= len(plain.chunks)
    tokens = np.arange(plain.chunks[-1]["stop"] + 1)
    moved = study.shuffled(tokens, 64)[1:]
    sums = [c | {"nats": float(moved[c["start"] : c["stop"]].sum())} for c in plain.chunks]
    for chunk, before in zip(study.in_text_order(sums, 64), plain.chunks, strict=True):
        assert (chunk["start"], chunk["stop"]) == (before["start"], before["stop"])
        assert chunk["nats"] == tokens[1:][chunk["start"] : chunk["stop"]].sum()


# -- measuring


def test_what_the_run_measured_itself_is_taken_from_it(
    run: Path, cells: tuple[Cell, ...], measured: list[Measured], evaluated: list[str]
) -> None:
    found = study.by_label(measured)
    for label, name in REPORTED.items():
        there = results.load(run / f"eval/{name}.json")
        assert found[label].bpb == there.bpb and np.array_equal(found[label].per_target, there.per_target)
    assert {path.stem.split("-")[0] for path in (run / "study").glob("*.json")} == {"sliding", "ttt"}
    study.measure(run, [c for c in cells if c.label in (*REPORTED, "stride 32")], say=lambda text: None)
    assert evaluated == [], "stride 32 is the configuration's own, so it is (b)"
    again = [c for c in cells if c.label in ("a", "b", "stride 32")]
    study.measure(run, again, changes={"data.val_tokens": 500}, say=lambda text: None)
    assert evaluated == ["a", "b"], "scores of other text are not the run's; the same cell is evaluated once"


def test_a_runs_own_scores_are_a_study_of_its_steps(run: Path, measured: list[Measured]) -> None:
    """From float weights over rounding and context to adaptation; further protocols against the same windows."""
    own = analysis.table(study.reported(RunFolder(run)))
    assert list(own["label"]) == list(REPORTED)
    assert list(own["reference"].fillna("")) == ["", "a float", "a", "b", "a"]
    there = analysis.table(measured).set_index("label")
    for label in ("b", "c", "window-ttt"):
        assert one(own, label=label)["difference"] == there.loc[label, "difference"]
    assert one(own, label="a")["difference"] == -there.loc["a float", "difference"]


def test_a_runs_score_that_was_changed_is_measured_again(run: Path, cells: tuple[Cell, ...], evaluated: list) -> None:
    path = run / "eval/sliding.json"
    whole = path.read_text()
    path.write_text(whole.replace('"bytes": ', '"bytes": 1', 1))
    try:
        again = study.measure(run, cells[:2], say=lambda text: None)
    finally:
        path.write_text(whole)
    assert evaluated == ["b"] and again[1].result.bpb == results.load(path).bpb


def test_no_epochs_are_a_sliding_window_to_the_bit(measured: list[Measured]) -> None:
    found = study.by_label(measured)
    assert found["epochs 0"].nats == found["b"].nats
    assert found["epochs 0"].legality == Legality.STATIC and found["epochs 4"].legality == Legality.SCORE_FIRST
    assert found["epochs 4"].nats != found["c"].nats


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "gone": lambda path, other: path.unlink(),
    "torn": lambda path, other: path.write_text(path.read_text()[:100]),
    "a digit": lambda path, other: path.write_text(path.read_text().replace('"nats": ', '"nats": 1', 1)),
    "of another cell": lambda path, other: path.write_text(other.read_text()),
    "a torn record": lambda path, other: (path.parent / f"stages/{path.name}").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_kept_cell_is_reused_and_a_damaged_or_foreign_one_measured_again(
    run: Path, cells: tuple[Cell, ...], measured: list[Measured], evaluated: list[str], damage: str
) -> None:
    kept = sorted((run / "study").glob("*.json"))
    assert not list((run / "study").glob("*.part"))
    before = {path: path.stat().st_mtime_ns for path in kept}
    target, other = (next(p for p in kept if p.name.startswith(name)) for name in ("ttt", "sliding"))
    DAMAGES[damage](target, other)
    said: list[str] = []
    again = study.measure(run, cells, out=run / "study", say=said.append)
    assert len(evaluated) == 1 and same(measured, again)
    assert sum("measured again" in text for text in said) == (damage != "gone")
    assert {p for p in kept if p.stat().st_mtime_ns != before[p]} == {target}
    assert study.measure(run, cells, out=run / "study", say=said.append) and len(evaluated) == 1


def test_results_of_another_version_are_reused_and_named(
    run: Path, cells: tuple[Cell, ...], measured: list[Measured], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, said = study.open_packed, list[str]()
    later = {"code": "9.9"}
    monkeypatch.setattr(study, "open_packed", lambda *a: (p := real(*a))._replace(source=p.source | later))
    assert same(measured, study.measure(run, cells, out=run / "study", say=said.append))
    assert len([text for text in said if "this is 9.9" in text]) == 1


def test_what_cannot_be_measured_is_said_and_the_rest_goes_on(run: Path, tmp_path: Path) -> None:
    alone, said = tmp_path / "alone.golf", list[str]()
    alone.write_bytes((run / ARTIFACT).read_bytes())
    wanted = [Cell("f", "static", "float", weights="float"), Cell("bad", "ttt", "x", {"ttt.adapted": "none"})]
    found = study.measure(alone, [*wanted, Cell("a", "static", "abc")], say=said.append)
    assert [m.result is None for m in found] == [True, True, False]
    assert "expected the float weights of a run folder" in found[0].note and "ttt.adapted" in found[1].note
    assert sum("not measured" in text for text in said) == 2
    assert list(analysis.table(found)["note"].fillna("")) == [m.note for m in found]


def test_no_document_boundary_means_no_reset_at_one(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = study.open_packed

    def without(*args: object) -> Packed:
        packed = real(*args)
        tables = packed.subject.tables
        tables = tables._replace(boundary=tables.boundary & False)
        return packed._replace(subject=packed.subject._replace(tables=tables))

    monkeypatch.setattr(study, "open_packed", without)
    cells = [c for c in study.standard(config.of_run(RunFolder(run))) if c.label == "reset per document"]
    assert "expected document boundaries" in study.measure(run, cells, say=lambda text: None)[0].note


def test_a_cell_that_adapts_nothing_says_why_beside_its_score(run: Path) -> None:
    cells = [c for c in study.standard(config.of_run(RunFolder(run))) if c.group == "reset"]
    table = analysis.table(study.measure(run, cells, changes={"ttt.chunk_tokens": 2048}, say=lambda text: None))
    chunk, document = table["note"]
    assert "the text is too short" in chunk and "no document is longer than a chunk of 2048 tokens" in document
    assert table["bpb"].notna().all() and not table["steps"].any() and "note" in analysis.SHOWN


# -- frames


def test_every_row_has_its_source_and_its_interval_holds_the_difference(measured: list[Measured]) -> None:
    rows = analysis.table(measured)
    assert list(rows.columns) == analysis.COLUMNS and list(rows["label"]) == [m.cell.label for m in measured]
    assert (rows["artifact"].str.len() == 64).all() and rows[["config", "data"]].notna().all(axis=None)
    assert (rows["seed"] == 42).all() and rows.groupby("weights")["artifact"].nunique().eq(1).all()
    compared = rows[rows["label"] != "a"]
    assert compared["difference"].between(compared["low"], compared["high"]).all()
    assert compared["p"].between(0, 1).all() and (compared["detectable"] >= 0).all()
    assert pd.isna(one(rows, label="a").get("difference"))


def test_a_difference_counts_first_scores_only(measured: list[Measured]) -> None:
    """What a published tail scores again enters the score, not the difference nor its interval."""
    found = study.by_label(measured)
    again = replace(found["b"], nats=found["b"].nats + 500, bytes=found["b"].bytes + 90, bpb=9.0, repeats=64)
    cells = [Measured(Cell("a", "static", "abc"), found["a"])]
    cells += [Measured(Cell(n, "sliding", "abc", reference="a"), r) for n, r in (("b", found["b"]), ("r", again))]
    rows = analysis.table(cells).set_index("label")
    assert rows.loc["r", "bpb"] == 9.0 and rows.loc["r", "repeats"] == 64
    for column in ("difference", "low", "high"):
        assert rows.loc["r", column] == pytest.approx(rows.loc["b", column], abs=1e-12)


def test_gains_add_up(measured: list[Measured]) -> None:
    gains = analysis.gains(measured)
    value = dict(zip(gains["gain"], gains["value"], strict=True))
    assert value["context"] + value["adaptation"] == pytest.approx(value["both"], abs=1e-12)
    assert gains["share"].sum() == pytest.approx(1)
    assert value["order"] == pytest.approx(value["adaptation"] - value["adaptation, shuffled"], abs=1e-12)
    assert value["rounding"] == pytest.approx(value["adaptation"] - value["adaptation, float"], abs=1e-12)
    own = gains[gains["kind"] == "gain"]
    assert own["value"].between(own["low"], own["high"]).all()
    assert plots.say_gains(gains).count("95 % over text") == len(gains)
    assert "no gain to state" in plots.say_gains(analysis.gains(measured[:1]))


def test_positions_hold_every_target_and_the_whole_gain(measured: list[Measured]) -> None:
    found, rows = study.by_label(measured), analysis.positions(measured, 64)
    assert rows["targets"].sum() == found["a"].tokens
    assert list(rows["start"][1:]) == list(rows["stop"][:-1]) and rows["stop"].iloc[-1] == 64
    for label, column in (("a", "static"), ("b", "sliding")):
        assert (rows[column] * rows["targets"]).sum() * np.log(2) == pytest.approx(found[label].nats, rel=1e-6)
    assert rows["share"].sum() == pytest.approx(1) and rows["so_far"].iloc[-1] == pytest.approx(1)
    late = rows[rows["start"] >= 32]
    assert (late["change"].abs() < 1e-5).all(), "from a stride on (a) and (b) see the same windows"


def test_the_course_along_the_text_ends_at_the_difference(measured: list[Measured]) -> None:
    rows = analysis.along(measured)
    assert list(rows["label"].unique()) == ["c"]
    last = rows.iloc[-1]
    assert last["difference"] == pytest.approx(one(analysis.table(measured), label="c")["difference"], abs=1e-9)
    assert last["low"] <= last["difference"] <= last["high"]
    assert abs(rows["here"].iloc[0]) < 1e-6, "the first chunk is scored before any adaptation"


# -- figures


def test_the_figures_of_a_study_are_legible(measured: list[Measured], tmp_path: Path) -> None:
    """Drawn from their table files, as they are again."""
    tables = analysis.tables(measured, 64)
    assert ["protocols-" + name for name in tables] == list(plots.FIGURES)
    for name, made in tables.items():
        write_csv(tmp_path / f"{name}.csv", made)
        table = read_csv(tmp_path / f"{name}.csv")
        assert 1 <= plots.FIGURES["protocols-" + name][1](table).count(". ") + 1 <= 2
        assert not {"seconds", "tokens_per_second"} & set(table.columns), "a figure hangs on no clock"
        check_legible(draw("protocols-" + name, table))


@pytest.mark.parametrize("spread", [0.0, 1e-5, 0.5])
def test_many_protocols_stay_legible(spread: float) -> None:
    """Twelve protocols of all legalities, with and without intervals."""
    rows = []
    for i, legality in enumerate([*Legality] * 4):
        row = {"label": f"protocol-number-{i}", "group": "protocols", "bpb": 1.1 + i * spread, "reference": "b"}
        row |= {"difference": i * spread, "legality": str(legality)}
        rows.append(row | ({"low": -0.1 * spread, "high": i * spread + 0.1} if i % 2 else {}))
    for name in ("protocols-scores", "protocols-controls"):
        check_legible(draw(name, frame(rows)))
        assert plots.FIGURES[name][1](frame(rows))


def test_few_cells_and_chunks_have_tables_without_intervals(run: Path) -> None:
    wanted = study.select(study.standard(config.load("smoke")), "b")
    few = study.measure(run, wanted, changes={"data.val_tokens": 200}, say=lambda text: None)
    tables = analysis.tables(few, 64)
    assert set(tables) == {"waterfall", "scores", "positions"} and tables["waterfall"]["low"].isna().all()
    for name, table in tables.items():
        check_legible(draw("protocols-" + name, table))
        assert plots.FIGURES["protocols-" + name][1](table)
    still = replace(few[1].result, per_target=few[0].result.per_target)
    even = analysis.positions([few[0], few[1]._replace(result=still)], 64)
    assert len(draw("protocols-positions", even).axes) == 1, "no gain to share, so no empty panel"
    assert plots.say_positions(even)
