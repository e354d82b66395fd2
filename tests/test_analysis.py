"""Laws of the analysis: tables survive a file, parts sum to the whole, intervals cover, counts equal a plain count."""

import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic_run import CHUNK, CODE_BYTES, log_training, make_result, make_run, make_text

from golfcore.analysis import buckets, readings, runs, scores, sizes
from golfcore.analysis.stats import Interval, block_length, paired_bootstrap
from golfcore.analysis.table import Table, from_csv, read_csv, to_csv, write_csv
from golfcore.analysis.text import Text
from golfcore.base import files
from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.config import load
from golfcore.evals import result as results
from golfcore.model.hashing import bigram_rows
from golfcore.quant.artifact import info
from golfcore.runs.folder import open_run

Made = tuple[RunFolder, Text]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_run(tmp_path_factory.mktemp("runs") / "made")


# -- tables

words = st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1).filter(
    lambda s: not spells_a_value(s)
)
values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words
tables = st.lists(st.fixed_dictionaries({}, optional={"a": values, "b,c": values, "": values}), min_size=1).map(Table)


def spells_a_value(text: str) -> bool:
    return type(from_csv(f'a\n"{text}"\n')[0]["a"]) is not str if '"' not in text else False


@given(tables)
def test_a_table_survives_its_file(table: Table) -> None:
    full = [{c: row.get(c) for c in table.columns} for row in table]
    back = from_csv(to_csv(table))
    assert back == full if table.columns else all(not row for row in back)
    assert [[type(v) for v in row.values()] for row in back] == [[type(v) for v in row.values()] for row in full]


@pytest.mark.parametrize("name", ["12e4567890123456", "0012", "1_000", "1.50", "True", "NaN", "+3", "0x1f"])
def test_names_that_look_like_numbers_stay_names(name: str) -> None:
    assert from_csv(to_csv(Table([{"hash": name}]))) == [{"hash": name}]


def test_a_table_file_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with pytest.raises(UserError, match="t.csv: expected a table, found no such file"):
        read_csv(path)
    path.write_text("a,b\n1\n")
    with pytest.raises(UserError, match="t.csv: expected a table as CSV"):
        read_csv(path)
    write_csv(path, Table([{"a": 1}]))
    assert read_csv(path) == [{"a": 1}]


def test_a_table_prints_every_value_and_escapes_what_html_would_run() -> None:
    table = Table([{"name": "<script>", "n": 12345}, {"name": "b", "x": 0.25}])
    assert str(table).splitlines() == [
        "name           n       x",
        "<script>  12,345",
        "b                 0.2500",
    ]
    assert "<script>" not in table._repr_html_() and "&lt;script&gt;" in table._repr_html_()


def test_only_and_one_select_rows() -> None:
    table = Table([{"kind": "a", "x": 1}, {"kind": "b", "y": 2}])
    assert table.only(kind="a") == [{"kind": "a", "x": 1}] and table.one(y=2)["kind"] == "b"
    assert table.only(kind="c") == [] and table.numbers("x") == [1.0]
    with pytest.raises(ValueError, match="expected one row"):
        table.one(kind="c")


# -- intervals


def test_the_estimate_is_the_weighted_mean_and_a_constant_has_no_spread() -> None:
    weights = np.array([1.0, 2.0, 3.0, 4.0])
    found = paired_bootstrap(np.array([4.0, 3.0, 2.0, 1.0]), weights, 2, seed=0)
    assert found.estimate == pytest.approx(2.0) and found.low <= 2.0 <= found.high
    assert paired_bootstrap(np.full(9, 0.5), np.arange(1.0, 10), 2, seed=0) == pytest.approx(Interval(0.5, 0.5, 0.5))


def test_intervals_move_with_their_differences() -> None:
    d, w = np.random.default_rng(0).standard_normal(20), np.random.default_rng(1).random(20) + 0.1
    a, b = paired_bootstrap(d, w, 3, seed=5), paired_bootstrap(1 - 2 * d, w, 3, seed=5)
    assert b.estimate == pytest.approx(1 - 2 * a.estimate)
    assert (b.low, b.high) == (pytest.approx(1 - 2 * a.high), pytest.approx(1 - 2 * a.low))


@pytest.mark.parametrize("n", [8, 16, 64, 512])
def test_intervals_cover_the_truth_as_often_as_they_say(n: int) -> None:
    """The mean of autocorrelated differences, coefficient 0.3, is 0; 95 % intervals must hold it in 91 % to 100 %."""
    rng, held, times = np.random.default_rng(n), 0, 300
    for seed in range(times):
        noise, d = rng.standard_normal(n + 20), np.zeros(n + 20)
        for i in range(1, n + 20):
            d[i] = 0.3 * d[i - 1] + noise[i]
        found = paired_bootstrap(d[20:], rng.integers(200, 300, n), block_length(n), seed, draws=400)
        held += found.low <= 0 <= found.high
    assert 0.91 <= held / times


@pytest.mark.parametrize(("n", "block"), [(1, 1), (4, 0), (4, 5)])
def test_too_few_differences_have_no_interval(n: int, block: int) -> None:
    with pytest.raises(ValueError):
        paired_bootstrap(np.ones(n), np.ones(n), block, seed=0)


# -- runs


def test_curves_are_what_was_logged_with_a_mean_over_neighbours(made: Made) -> None:
    run, _ = made
    table = runs.curves(run)
    assert [len(table.only(kind=kind)) for kind in ("train", "val", "event")] == [20, 3, 2]
    train = table.only(kind="train")
    steps, bpb = train.numbers("step"), train.numbers("bpb")
    half = max(1.0, steps[-1] / runs.SMOOTHING)
    plain = [np.mean([b for s, b in zip(steps, bpb, strict=True) if abs(s - at) <= half]) for at in steps]
    assert train.numbers("bpb_smooth") == pytest.approx(plain)


def test_curves_need_training(tmp_path: Path) -> None:
    run = open_run(tmp_path / "fresh", load("smoke"), "d" * 64, {})
    with pytest.raises(UserError, match="expected a run that has trained"):
        runs.curves(run)


def test_the_table_of_runs_says_what_each_is_and_how_far_it_got(tmp_path: Path, made: Made) -> None:
    make_run(tmp_path / "b-done")
    log_training(open_run(tmp_path / "c-training", load("smoke", {"run.seed": 7}), "e" * 64, {}))
    open_run(tmp_path / "d-fresh", load("smoke"), "d" * 64, {})
    files.write_json(tmp_path / "e-old" / "config.json", {"config": {"name": "old", "gone": {}}, "data_hash": "d"})
    (tmp_path / "notebooks").mkdir()
    table = runs.runs_table(tmp_path)
    assert [(row["run"], row["done"]) for row in table] == [
        ("b-done", True),
        ("c-training", False),
        ("d-fresh", False),
        ("e-old", False),
    ]
    assert [row["stage"] for row in table[:3]] == ["done", "train, step 100", "not started"]
    assert str(table[3]["stage"]).startswith("unreadable: ") and table[1]["seed"] == 7
    done, report = table[0], runs.report(RunFolder(tmp_path / "b-done"))
    assert done["ttt"] == report["measures"]["ttt"]["bpb"] and done["legality"] == "score-first"
    assert done["bytes"] == report["artifact"]["total"] and done["config"] == load("smoke").hash
    assert len(runs.as_text(table).splitlines()) == 5 and runs.as_text(Table()) == "no runs"


def test_listing_runs_needs_no_torch() -> None:
    code = "import sys, golfcore.analysis.runs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0


# -- scores


def test_the_steps_of_the_waterfall_sum_to_the_whole_way(made: Made) -> None:
    table = scores.waterfall(made[0])
    assert [row["measure"] for row in table] == ["float", "static", "sliding", "ttt", "bigram"]
    bpb = {str(row["measure"]): row["bpb"] for row in table}
    assert sum(table.numbers("difference")) == pytest.approx(bpb["ttt"] - bpb["float"])
    for row in table[1:4]:
        assert row["low"] <= row["difference"] <= row["high"] and row["chunks"] == 12
    assert table[3]["high"] < 0 and table[2]["high"] < 0 < table[1]["low"]


def test_the_running_gain_ends_at_the_gain(made: Made) -> None:
    run, _ = made
    table = scores.ttt_gain(run)
    chunks, total = table.only(kind="chunk"), table.one(kind="total")
    gain = runs.report(run)["ttt_gain"]
    assert chunks[-1]["difference"] == total["difference"] == pytest.approx(gain)
    assert np.average(chunks.numbers("here"), weights=chunks.numbers("bytes")) == pytest.approx(gain)
    assert chunks[0]["here"] == chunks[0]["difference"] == 0
    assert total["low"] < gain < total["high"] < 0


def test_few_chunks_have_no_interval(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path / "short", n_chunks=7)
    assert "low" not in scores.ttt_gain(run).one(kind="total")
    assert "low" not in scores.waterfall(run).columns


def test_results_over_other_chunks_do_not_pair(tmp_path: Path) -> None:
    run, text = make_run(tmp_path / "odd", n_chunks=3)
    longer = make_text(CHUNK * 4)
    results.save(make_result("ttt", np.ones(CHUNK * 4, np.float32), longer), run.file("eval/ttt.json"))
    with pytest.raises(ValueError, match="do not pair"):
        scores.ttt_gain(run)
    with pytest.raises(ValueError, match="expected scores of"):
        scores.loss_by_class(run, text)


def test_classes_sum_to_the_score(made: Made) -> None:
    run, text = made
    table = scores.loss_by_class(run, text)
    report = runs.report(run)
    for name in ("static", "sliding", "ttt"):
        rows = table.only(measure=name)
        assert {row["class"] for row in rows} == set(scores.CLASS_NAMES.values())
        assert sum(rows.numbers("bpb")) == pytest.approx(report["measures"][name]["bpb"])
        assert sum(rows.numbers("share")) == pytest.approx(1) == sum(rows.numbers("share_of_loss"))
        assert sum(rows.numbers("targets")) == len(text.val) - 1
    assert sum(table.only(measure="sliding").numbers("change")) == pytest.approx(report["context_gain"])
    assert sum(table.only(measure="ttt").numbers("change")) == pytest.approx(report["ttt_gain"])
    assert table.only(measure="static").numbers("change") == []


def test_targets_that_were_not_scored_count_nowhere(tmp_path: Path) -> None:
    run, text = make_run(tmp_path / "tail", n_chunks=2)
    nats = np.ones(2 * CHUNK, np.float32)
    nats[-30:] = np.nan
    result = make_result("static", nats, text)
    results.save(result, run.file("eval/static.json"))
    rows = scores.loss_by_class(run, text).only(measure="static")
    assert sum(rows.numbers("targets")) == 2 * CHUNK - 30
    assert sum(rows.numbers("bpb")) == pytest.approx(result.bpb)


# -- the n-gram table


@pytest.mark.parametrize("n_rows", [16, 257, 4096])
def test_occupancy_is_a_plain_count(n_rows: int) -> None:
    text = make_text(10, n_train=3000, vocab=64)
    table = buckets.bucket_occupancy(text.train, text.tables, n_rows)
    starts = text.tables.word_start
    assert starts is not None
    for hashing in ("shared", "split"):
        rows = bigram_rows(torch.from_numpy(text.train), starts if hashing == "split" else None, n_rows, True)[
            1:
        ].tolist()
        pairs = list(zip(text.train[:-1].tolist(), text.train[1:].tolist(), strict=True))
        expected = plain_summary(pairs, rows, starts.tolist(), n_rows - 1)
        found = table.one(kind="summary", hashing=hashing, part="all")
        assert {k: found[k] for k in expected} == pytest.approx(expected)


def plain_summary(pairs: list, rows: list, starts: list, frequent: int) -> dict:
    times, held = Counter(pairs), defaultdict(set)
    for pair, row in zip(pairs, rows, strict=True):
        held[row].add(pair)
    order = sorted(times, key=lambda pair: (-times[pair], pair))[:frequent]
    wanted = Counter(next(r for p, r in zip(pairs, rows, strict=True) if p == pair) for pair in order)
    top = {row: max(inside, key=lambda p: (times[p], p)) for row, inside in held.items()}
    n = len(pairs)
    return {
        "used": len(held),
        "pairs": len(times),
        "occurrences": n,
        "contended": sum(wanted[r] >= 2 for r in rows) / n,
        "not_own": 1 - sum(times[top[r]] for r in held) / n,
        "other_class": sum(starts[p[1]] != starts[top[r][1]] for p, r in zip(pairs, rows, strict=True)) / n,
    }


def test_split_halves_never_meet_and_hold_everything() -> None:
    text = make_text(10)
    table = buckets.bucket_occupancy(text.train, text.tables, 128)
    halves = [table.one(kind="summary", hashing="split", part=part) for part in ("word start", "within word")]
    whole = table.one(kind="summary", hashing="split", part="all")
    for column in ("pairs", "occurrences", "share", "used", "rows"):
        assert sum(half[column] for half in halves) == pytest.approx(whole[column])
    assert whole["other_class"] == 0 == halves[0]["other_class"]
    assert table.one(kind="summary", hashing="shared", part="all")["other_class"] > 0


def test_the_profile_falls_from_the_fullest_row_to_the_last() -> None:
    text = make_text(10)
    table = buckets.bucket_occupancy(text.train, text.tables, 128)
    rows = table.only(kind="row", hashing="shared", part="all")
    where = bigram_rows(torch.from_numpy(text.train), None, 128, False)[1:]
    load_of = torch.bincount(where, minlength=128)[:127].sort(descending=True).values
    assert rows.numbers("occurrences") == [float(load_of[int(rank) - 1]) for rank in rows.numbers("rank")]
    assert rows[0]["rank"] == 1 and rows[-1]["rank"] == 127


def test_a_text_of_one_class_leaves_the_other_half_empty() -> None:
    text = make_text(10)
    only_starts = np.flatnonzero(text.tables.word_start.numpy())[:5].repeat(3)
    table = buckets.bucket_occupancy(only_starts, text.tables, 64)
    empty = table.one(kind="summary", hashing="split", part="within word")
    assert (empty["pairs"], empty["used"], empty["share"], empty["contended"]) == (0, 0, 0, 0)


# -- bytes


def test_components_are_the_whole_file_and_the_code(made: Made) -> None:
    run, _ = made
    table = sizes.run_bytes(run)
    parts, total = table.only(kind="component"), table.one(kind="total")
    assert sum(parts.numbers("bytes")) == total["bytes"] == run.file("artifact.golf").stat().st_size + CODE_BYTES
    assert sum(parts.numbers("share")) == pytest.approx(1)
    assert parts.numbers("bytes") == sorted(parts.numbers("bytes"), reverse=True)
    names = {row["component"] for row in parts}
    assert names == set(sizes.LABELS) and total["limit"] == 16_000_000


def test_bytes_that_no_component_explains_are_an_error(made: Made) -> None:
    found = info(made[0].file("artifact.golf"))
    with pytest.raises(ValueError, match="components of"):
        sizes.bytes_by_component(found | {"bytes": found["bytes"] + 1}, 0, 16_000_000)


# -- readings


@pytest.mark.parametrize(("ttt", "verb"), [(-0.3, "lowers"), (0.3, "raises")])
def test_readings_follow_the_numbers(tmp_path: Path, ttt: float, verb: str) -> None:
    run, text = make_run(tmp_path / "run", ttt=ttt)
    gain = abs(runs.report(run)["ttt_gain"])
    sentence = f"adaptation (c - b) {verb} the score by {gain:.4f}"
    assert sentence in readings.waterfall(scores.waterfall(run))
    assert f"helped on {11 if ttt < 0 else 0} of the 11 chunks" in readings.ttt(scores.ttt_gain(run))
    assert "below an interpolated bigram" in readings.waterfall(scores.waterfall(run))
    assert "Events: warmdown at step 60, qat at step 65." in readings.curves(runs.curves(run))
    assert f"{CODE_BYTES + run.file('artifact.golf').stat().st_size:,} of 16,000,000" in readings.sizes(
        sizes.run_bytes(run)
    )


def test_readings_doubt_what_an_interval_does_not_exclude(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path / "none", ttt=0.0)
    assert "which includes no change" in readings.ttt(scores.ttt_gain(run))
    short, _ = make_run(tmp_path / "short", n_chunks=2)
    assert "too few chunks for an interval" in readings.ttt(scores.ttt_gain(short))
    single, _ = make_run(tmp_path / "single", n_chunks=1)
    assert "nothing to compare" in readings.ttt(scores.ttt_gain(single))


def test_readings_warn_of_bytes_over_the_limit(made: Made) -> None:
    found = info(made[0].file("artifact.golf"))
    table = sizes.bytes_by_component(found, CODE_BYTES, max_bytes=1000)
    assert f"{found['bytes'] + CODE_BYTES - 1000:,} bytes TOO MANY" in readings.sizes(table)


def test_a_smaller_model_has_no_rows_for_what_it_lacks(tmp_path: Path) -> None:
    base = load("smoke")
    plain = replace(base, model=replace(base.model, bigram_rows=0, ve_layers=()))
    run, _ = make_run(tmp_path / "plain", config=plain)
    names = {row["component"] for row in sizes.run_bytes(run).only(kind="component")}
    assert names == set(sizes.LABELS) - {"bigram", "ve"}
