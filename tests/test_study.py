"""Laws of a study: cells are measured once, pair by text, and add up; what no model can have is said."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_text import dataset
from test_plots import check_legible, draw

from golfcore import config
from golfcore.analysis import decomposition, study_readings
from golfcore.analysis.table import Table, number
from golfcore.base.errors import UserError
from golfcore.evals import protocols
from golfcore.evals.ledger import Legality
from golfcore.plots.figures import GROUPS, PLOTS, draw_group, redraw
from golfcore.runs import pipeline, study
from golfcore.runs.pipeline import ARTIFACT
from golfcore.runs.reopen import Packed
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
}
CELLS = "abc,float,order,epochs 0,epochs 4,stride,adam 0.001"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    cfg = config.load("smoke", CHANGES | {"data.path": str(dataset(folder))})
    return pipeline.run(cfg, folder / "run", say=lambda text: None).path


@pytest.fixture(scope="module")
def cells(run: Path) -> tuple[Cell, ...]:
    return study.select(study.standard(config.of_run(pipeline.RunFolder(run))), CELLS)


@pytest.fixture(scope="module")
def measured(run: Path, cells: tuple[Cell, ...]) -> list[Measured]:
    return study.measure(run, cells, out=run / "study", say=lambda text: None)


# -- cells


@pytest.mark.parametrize("preset", ["smoke", "demo", "exp101"])
def test_every_cell_of_the_standard_study_is_one_that_the_configuration_can_have(preset: str) -> None:
    cfg = config.load(preset)
    cells = study.standard(cfg)
    labels = [cell.label for cell in cells]
    assert len(set(labels)) == len(labels) and labels[:3] == ["a", "b", "c"]
    for number_, cell in enumerate(cells):
        assert cell.reference in ("", *labels[:number_]), "a reference comes before what refers to it"
        assert cell.protocol in protocols.PROTOCOLS
        protocols.configure(cell.protocol, cfg, cell.changes)
    assert {cell.protocol for cell in cells} == set(protocols.PROTOCOLS)


def test_strides_divide_the_window_and_reach_the_published_range() -> None:
    assert study.strides(config.load("exp101")) == [1024, 512, 256, 128, 64]
    for preset in ("smoke", "demo"):
        cfg = config.load(preset)
        found = study.strides(cfg)
        assert cfg.eval.stride in found and all(cfg.data.seq_len % s == 0 for s in found)


def test_a_protocol_is_held_against_the_same_windows_without_adaptation() -> None:
    cfg = config.load("smoke")
    reference = {cell.protocol: cell.reference for cell in study.standard(cfg) if cell.group == "protocols"}
    for name, label in reference.items():
        windows = [protocols.configure(p, cfg).eval.stride for p in (name, study.ABC[label])]
        assert windows[0] == windows[1]
    assert set(reference.values()) == {"a", "b"}


def test_a_selection_holds_all_that_it_refers_to() -> None:
    cells = study.standard(config.load("smoke"))
    assert study.select(cells, "") == cells
    assert [c.label for c in study.select(cells, "c shuffled")] == ["a", "b", "b shuffled", "c shuffled"]
    assert [c.label for c in study.select(cells, "stride")] == ["a", "stride 32", "stride 16"]
    with pytest.raises(UserError, match="cells: unknown key 'epoch'; did you mean 'epochs'"):
        study.select(cells, "abc, epoch")


# -- the shuffled text


@given(st.integers(2, 300), st.integers(1, 40), st.integers(0, 5))
def test_a_shuffled_text_has_the_same_targets_in_whole_chunks(n: int, chunk: int, seed: int) -> None:
    tokens = np.arange(n)
    mixed = study.shuffled(tokens, chunk, seed)
    assert mixed[0] == tokens[0] and sorted(mixed) == sorted(tokens)
    order = study.chunk_order(n - 1, chunk, seed)
    for place, block in enumerate(order):
        assert list(mixed[1:][place * chunk : (place + 1) * chunk]) == list(
            tokens[1:][block * chunk : (block + 1) * chunk]
        )
    assert (n - 1) % chunk == 0 or order[-1] == len(order) - 1
    assert np.array_equal(mixed, study.shuffled(tokens, chunk, seed))


def test_results_of_a_shuffled_text_come_back_to_their_place(run: Path) -> None:
    """Scores that are the token's own number must be those of the text as it was."""
    packed = study.open_packed(run, {})
    found = protocols.evaluate("sliding", packed.cfg, packed.weights, packed.val, packed.tables)
    tokens = np.arange(len(packed.val))
    own = replace(found, per_target=study.shuffled(tokens, 64)[1:].astype(np.float32))
    sums = [own.per_target[c["start"] : c["stop"]].sum() for c in own.chunks]
    own = replace(own, chunks=[c | {"nats": float(s)} for c, s in zip(own.chunks, sums, strict=True)])
    back = study.in_text_order(own, 64)
    assert np.array_equal(back.per_target, tokens[1:])
    for chunk in back.chunks:
        assert chunk["nats"] == back.per_target[chunk["start"] : chunk["stop"]].sum()
    assert [c["start"] for c in back.chunks] == [c["start"] for c in found.chunks]


def test_the_shuffled_text_has_the_same_targets_to_score(measured: list[Measured]) -> None:
    found = study.by_label(measured)
    plain, mixed = found["b"], found["b shuffled"]
    assert plain.tokens == mixed.tokens and mixed.per_target is None
    assert abs(plain.bytes - mixed.bytes) <= len(plain.chunks)
    assert mixed.bpb != plain.bpb


# -- measuring


def test_the_three_numbers_are_the_runs_own(run: Path, measured: list[Measured]) -> None:
    """So the study pairs with what the run reported, its chosen rate included."""
    final = pipeline.RunFolder(run)
    found = study.by_label(measured)
    for label, name in study.ABC.items():
        there = pipeline.results.load(final.file(f"eval/{name}.json"))
        assert found[label].bpb == there.bpb and np.array_equal(found[label].per_target, there.per_target)
    float_there = pipeline.results.load(final.file("eval/float.json"))
    assert found["a float"].bpb == float_there.bpb


def test_no_epochs_are_a_sliding_window_to_the_bit(measured: list[Measured]) -> None:
    found = study.by_label(measured)
    assert found["epochs 0"].nats == found["b"].nats
    assert found["epochs 0"].legality == Legality.STATIC and found["epochs 4"].legality == Legality.SCORE_FIRST
    assert found["epochs 4"].nats != found["c"].nats


def test_measured_cells_are_reused_and_killed_ones_go_on(
    run: Path, cells: tuple[Cell, ...], measured: list[Measured], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p: p.stat().st_mtime_ns for p in (run / "study").iterdir()}
    assert not [p for p in before if p.suffix == ".part"]
    missing = next(p for p in before if p.name.startswith("ttt") and p.suffix == ".json")
    missing.unlink()
    evaluated: list[str] = []
    real = protocols.evaluate

    def count(name: str, *args: object, **options: object) -> object:
        evaluated.append(name)
        return real(name, *args, **options)

    monkeypatch.setattr(protocols, "evaluate", count)
    again = study.measure(run, cells, out=run / "study", say=lambda text: None)
    assert evaluated == ["ttt"]
    assert {p: p.stat().st_mtime_ns for p in before if p.stem != missing.stem} == {
        p: t for p, t in before.items() if p.stem != missing.stem
    }
    for one, other in zip(measured, again, strict=True):
        assert one.result is not None and other.result is not None
        assert one.cell == other.cell and one.result.nats == other.result.nats


def test_the_same_cell_under_two_labels_is_evaluated_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[str] = []
    real = protocols.evaluate
    monkeypatch.setattr(protocols, "evaluate", lambda name, *a, **k: evaluated.append(name) or real(name, *a, **k))
    twice = [Cell("one", "sliding", "x"), Cell("two", "sliding", "y", {"eval.stride": 32})]
    found = study.measure(run, twice, say=lambda text: None)
    assert evaluated == ["sliding"] and found[0].result is found[1].result


def test_what_cannot_be_measured_is_said_and_the_rest_goes_on(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.golf"
    alone.write_bytes((run / ARTIFACT).read_bytes())
    said: list[str] = []
    wanted = [Cell("f", "static", "float", weights="float"), Cell("bad", "ttt", "x", {"ttt.chunk_tokens": 7})]
    found = study.measure(alone, [*wanted, Cell("a", "static", "abc")], say=said.append)
    assert [m.result is None for m in found] == [True, True, False]
    assert "expected the float weights of a run folder" in found[0].note
    assert "not a multiple of eval.stride" in found[1].note
    assert sum("not measured" in text for text in said) == 2
    rows = decomposition.table(found)
    assert [row.get("note") for row in rows] == [m.note or None for m in found]
    assert "bad: not measured" in decomposition.as_text(rows)


def test_no_document_boundary_means_no_reset_at_one(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = study.open_packed

    def without(*args: object) -> Packed:
        packed = real(*args)
        return packed._replace(tables=packed.tables._replace(boundary=packed.tables.boundary & False))

    monkeypatch.setattr(study, "open_packed", without)
    cells = [c for c in study.standard(config.of_run(pipeline.RunFolder(run))) if c.label == "reset per document"]
    found = study.measure(run, cells, say=lambda text: None)
    assert "expected document boundaries" in found[0].note


# -- tables


def test_every_row_has_its_source_and_its_interval_holds_the_difference(measured: list[Measured]) -> None:
    rows = decomposition.table(measured)
    assert [row["label"] for row in rows] == [m.cell.label for m in measured]
    for row in rows:
        assert len(str(row["artifact"])) == 64 and row["config"] and row["data"] and row["seed"] == 42
        if row["label"] == "a":
            assert row.get("difference") is None
        else:
            assert number(row, "low") <= number(row, "difference") <= number(row, "high")
    weights = {row["weights"]: row["artifact"] for row in rows}
    assert len(set(weights.values())) == 2
    assert len(decomposition.as_text(rows).splitlines()) == len(rows) + 1


def test_gains_add_up(measured: list[Measured]) -> None:
    gains = decomposition.gains(measured)
    value = {str(row["gain"]): number(row, "value") for row in gains}
    assert value["context"] + value["adaptation"] == pytest.approx(value["both"], abs=1e-12)
    shares = [number(row, "share") for row in gains if row.get("share") is not None]
    assert sum(shares) == pytest.approx(1)
    assert value["order"] == pytest.approx(value["adaptation"] - value["adaptation, shuffled"], abs=1e-12)
    assert value["rounding"] == pytest.approx(value["adaptation"] - value["adaptation, float"], abs=1e-12)
    assert all(number(row, "low") <= number(row, "value") <= number(row, "high") for row in gains.only(kind="gain"))


def test_positions_hold_every_target_and_the_whole_gain(measured: list[Measured]) -> None:
    found = study.by_label(measured)
    rows = decomposition.positions(measured, 64)
    assert sum(rows.numbers("targets")) == found["a"].tokens
    assert [row["start"] for row in rows[1:]] == [row["stop"] for row in rows[:-1]] and rows[-1]["stop"] == 64
    for label, column in (("a", "static"), ("b", "sliding")):
        bits = sum(number(row, column) * number(row, "targets") for row in rows)
        assert bits * np.log(2) == pytest.approx(found[label].nats, rel=1e-6)
    assert sum(rows.numbers("share")) == pytest.approx(1) and number(rows[-1], "so_far") == pytest.approx(1)
    late = [row for row in rows if number(row, "start") >= 32]
    assert all(abs(number(row, "change")) < 1e-5 for row in late), "from a stride on (a) and (b) see the same windows"


def test_the_course_along_the_text_ends_at_the_difference(measured: list[Measured]) -> None:
    rows = decomposition.along(measured)
    table = decomposition.table(measured)
    assert {row["label"] for row in rows} == {"c"}
    last = rows[-1]
    assert number(last, "difference") == pytest.approx(number(table.one(label="c"), "difference"), abs=1e-9)
    assert number(last, "low") <= number(last, "difference") <= number(last, "high")
    assert abs(number(rows[0], "here")) < 1e-6, "the first chunk is scored before any adaptation"


# -- figures


NAMES = [name for name in PLOTS if name.startswith("protocols-")]


def test_the_figures_of_a_study_are_drawn_from_their_tables_again(measured: list[Measured], tmp_path: Path) -> None:
    tables = decomposition.tables(measured, 64)
    assert ["protocols-" + name for name in tables] == NAMES
    drawn = draw_group("protocols-", tables, tmp_path, {"notebook": "x"})
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    redraw(tmp_path)
    assert before == {p: p.read_bytes() for p in tmp_path.iterdir()}
    assert all(figure.reading for figure in drawn.values())
    assert study_readings.gains(decomposition.gains(measured))
    for name, table in tables.items():
        check_legible(draw("protocols-" + name, table))
        assert {type(v) for row in table for v in row.values()} <= {str, int, float, bool, type(None)}


def test_every_figure_of_a_group_has_a_reading() -> None:
    for prefix in ("protocols-", "tokens-"):
        module = GROUPS[prefix]
        names = [n.removeprefix(prefix).replace("-", "_") for n in PLOTS if n.startswith(prefix)]
        assert names and all(hasattr(module, name) for name in names)


@pytest.mark.parametrize("spread", [0.0, 1e-5, 0.5])
def test_many_protocols_stay_legible(spread: float) -> None:
    """Twelve protocols of all legalities, with and without intervals."""
    rows = Table()
    for i, legality in enumerate([*Legality] * 4):
        row = {"label": f"protocol-number-{i}", "group": "protocols", "bpb": 1.1 + i * spread, "reference": "b"}
        row |= {"difference": i * spread, "legality": str(legality)}
        rows.append(row | ({"low": -0.1 * spread, "high": i * spread + 0.1} if i % 2 else {}))
    for name in ("protocols-scores", "protocols-controls"):
        check_legible(draw(name, rows))
    assert study_readings.scores(rows) and study_readings.controls(rows)


def test_few_cells_and_chunks_have_tables_without_intervals(run: Path) -> None:
    few = study.measure(
        run,
        study.select(study.standard(config.load("smoke")), "b"),
        changes={"data.val_tokens": 200},
        say=lambda t: None,
    )
    tables = decomposition.tables(few, 64)
    assert set(tables) == {"waterfall", "scores", "positions"}
    assert tables["waterfall"][1].get("low") is None
    for name, table in tables.items():
        check_legible(draw("protocols-" + name, table))
