"""Laws of the analysis: frames survive a file, parts sum to the whole, intervals cover, counts equal a plain count."""

import contextlib
import tempfile
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_run import CHUNK, CODE_BYTES, log_training, make_result, make_run, make_text

from golfcore import cli
from golfcore.analysis import buckets, frames, runs, scores, sizes
from golfcore.analysis.frames import frame, one, only
from golfcore.analysis.text import Text
from golfcore.base import files
from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.config import load
from golfcore.evals import result as results
from golfcore.model.hashing import ngram_rows
from golfcore.quant.artifact import info
from golfcore.runs.folder import held, open_run

Made = tuple[RunFolder, Text]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_run(tmp_path_factory.mktemp("runs") / "made")


# -- frames

words = st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1).filter(lambda s: not spelled(s))
cells = st.sampled_from(
    [st.booleans(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False), words, st.just(None)]
).flatmap(lambda kind: st.lists(st.none() | kind, min_size=3, max_size=3))
columns = st.dictionaries(st.sampled_from(["a", "b,c", "run", "-"]), cells, min_size=1)


def spelled(text: str) -> bool:
    """Whether a column of this text alone would come back as numbers or booleans."""
    return not isinstance(frames._value(text), str)


@settings(max_examples=40)
@given(columns)
def test_a_frame_survives_its_file(columns: dict[str, list]) -> None:
    made = frame({name: values[i] for name, values in columns.items()} for i in range(3))
    numbers = [c for c in made if c in frames.IDS and not all(isinstance(v, str | None) for v in made[c])]
    made = made.drop(columns=numbers)  # ids are text
    if len(made.columns):
        with tempfile.TemporaryDirectory() as folder:
            frames.write_csv(Path(folder) / "t.csv", made)
            back = frames.read_csv(Path(folder) / "t.csv")
        pd.testing.assert_frame_equal(back, made)


@pytest.mark.parametrize("name", ["12e4567890123456", "0012", "1_000", "1.50", "True", "NaN", "+3", "0x1f"])
def test_names_that_look_like_numbers_stay_names(name: str, tmp_path: Path) -> None:
    frames.write_csv(tmp_path / "t.csv", frame([{"hash": name, "run": "42"}]))
    assert frames.one(frames.read_csv(tmp_path / "t.csv")) == {"hash": name, "run": "42"}
    with pytest.raises(ValueError, match="found numbers in code"):
        frames.write_csv(tmp_path / "t.csv", frame([{"role": "up", "code": 3}]))


def test_a_table_file_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with pytest.raises(UserError, match="t.csv: expected a table, found no such file"):
        frames.read_csv(path)
    for damaged in (b"a,b\n1,2,3\n1,2,3,4\n", b"", b"\xff\xfe\x00"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="t.csv: expected a table as CSV"):
            frames.read_csv(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="t.csv: expected a table as CSV"):
        frames.read_csv(path)


def test_a_frame_prints_every_value_and_cuts_hashes_short() -> None:
    made = frame([{"name": "a" * 64, "n": 12345}, {"name": "b", "x_y": 0.25}])
    assert frames.to_text(made).splitlines() == [
        "name           n     x y",
        "aaaaaaaa  12,345",
        "b                 0.2500",
    ]
    assert frames.to_text(made[:0]) == "" and list(frames.for_people(made)["n"]) == ["12,345", ""]


def test_only_and_one_select_rows_without_what_they_do_not_use() -> None:
    made = frame([{"kind": "a", "x": 1}, {"kind": "b", "y": np.int64(2), "z": float("nan")}])
    assert frames.one(made, kind="a") == {"kind": "a", "x": 1} and frames.one(made, y=2)["kind"] == "b"
    assert len(only(made, kind="c")) == 0 == len(only(made, nothing=1))
    pd.testing.assert_frame_equal(frame(made), made)
    with pytest.raises(ValueError, match="expected one row"):
        frames.one(made, kind="c")


# -- runs


def test_curves_are_what_was_logged_with_a_mean_over_neighbours(made: Made) -> None:
    run, _ = made
    table = runs.curves(run)
    assert [len(frames.only(table, kind=kind)) for kind in ("train", "val", "event")] == [20, 3, 2]
    train = frames.only(table, kind="train")
    steps, bpb = list(train["step"]), list(train["bpb"])
    half = max(1.0, steps[-1] / runs.SMOOTHING)
    plain = [np.mean([b for s, b in zip(steps, bpb, strict=True) if abs(s - at) <= half]) for at in steps]
    assert list(train["bpb_smooth"]) == pytest.approx(plain)


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
    assert list(table["run"]) == ["b-done", "c-training", "d-fresh", "e-old"]
    assert list(table["done"]) == [True, False, False, False]
    assert list(table["stage"][:3]) == ["done", "train, step 100", "not started"]
    assert table["stage"][3].startswith("damaged: ") and table["seed"][1] == 7
    done, report = table.loc[0], runs.report(RunFolder(tmp_path / "b-done"))
    assert done["ttt"] == report["measures"]["ttt"]["bpb"] and done["legality"] == "score-first"
    assert done["bytes"] == report["artifact"]["total"] and done["config"] == load("smoke").hash
    text = runs.as_text(table).splitlines()
    assert len(text) == 7 and "2 different data" in text[-1] and runs.as_text(table[:0]) == "no runs"
    assert runs.as_rows(table)[3].keys() == {"run", "done", "state", "stage"}
    assert list(table["state"]) == ["done", "stopped", "stopped", "damaged"] and list(table["step"][:3])[1:] == [100, 0]
    with held(tmp_path / "c-training"):
        assert runs.runs_table(tmp_path)["state"][1] == "running"
    assert list(runs.select(table, ["state=stopped", "preset=smoke"], "-step")["run"]) == ["c-training", "d-fresh"]
    assert list(runs.select(table, ["ttt="])["run"]) == ["c-training", "d-fresh", "e-old"]  # those without one
    for wrong in ({"where": ["state"]}, {"where": ["stat=done"]}, {"sort": "-bpp"}):
        with pytest.raises(UserError, match="expected COLUMN=VALUE|unknown column"):
            runs.select(table, **wrong)


def test_the_table_is_shown_again_while_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log_training(open_run(tmp_path / "one", load("smoke"), "e" * 64, {}))
    waited = list[float]()
    with contextlib.ExitStack() as stack:
        stack.enter_context(held(tmp_path / "one"))
        monkeypatch.setattr("time.sleep", lambda seconds: (waited.append(seconds), stack.close()))
        assert cli.main(["runs", str(tmp_path), "--watch", "7"]) == 0
    text = capsys.readouterr().out
    assert waited == [7] and text.count("train, step 100") == 2 and text.index("running") < text.index("stopped")
    assert cli.main(["runs", str(tmp_path)]) == 0 and waited == [7]


# -- scores


def test_the_steps_of_the_waterfall_sum_to_the_whole_way(made: Made) -> None:
    table = scores.waterfall(made[0])
    assert list(table["measure"]) == ["float", "static", "sliding", "ttt", "bigram"]
    bpb = table.set_index("measure")["bpb"]
    assert table["difference"].sum() == pytest.approx(bpb["ttt"] - bpb["float"])
    steps = table[1:4]
    assert (steps["low"] <= steps["difference"]).all() and (steps["difference"] <= steps["high"]).all()
    assert (steps["chunks"] == 12).all() and steps["high"][3] < 0 and steps["high"][2] < 0 < steps["low"][1]


def test_context_is_not_sold_as_adaptation(tmp_path: Path) -> None:
    """A protocol is held against the one that scores the same windows without adapting; repeats count nowhere."""
    run, text = make_run(tmp_path / "run")
    report = runs.report(run)
    for name, nats in (("window-ttt", 4.0), ("ppm", 5.0)):
        found = make_result("ttt", np.full(len(text.val) - 1, nats, np.float32), text)
        repeated = replace(found, bpb=found.bpb * 1.5, repeats=100)
        results.save(repeated, run.file(f"eval/{name}.json"))
        report["measures"][name] = {**report["measures"]["ttt"], "bpb": repeated.bpb}
    files.write_json(run.file("results.json"), report)
    table = scores.waterfall(run).set_index("measure")
    for name, nats, windows in (("window-ttt", 4.0, "static"), ("ppm", 5.0, "sliding")):
        first = make_result("ttt", np.full(len(text.val) - 1, nats, np.float32), text).bpb
        assert table["difference"][name] == pytest.approx(first - table["bpb"][windows])


def test_the_running_gain_ends_at_the_gain(made: Made) -> None:
    run, _ = made
    table = scores.ttt_gain(run)
    chunks, total = only(table, kind="chunk"), one(table, kind="total")
    gain = runs.report(run)["ttt_gain"]
    assert chunks["difference"].iloc[-1] == total["difference"] == pytest.approx(gain)
    assert np.average(chunks["here"], weights=chunks["bytes"].astype(int)) == pytest.approx(gain)
    assert chunks["here"][0] == chunks["difference"][0] == 0
    assert total["low"] < gain < total["high"] < 0


def test_few_chunks_have_no_interval(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path / "short", n_chunks=7)
    assert "low" not in scores.ttt_gain(run) and "low" not in scores.waterfall(run)


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
    sums = table.groupby("measure").sum(numeric_only=True)
    for name in ("static", "sliding", "ttt"):
        assert set(only(table, measure=name)["class"]) == set(scores.CLASS_NAMES.values())
        assert sums["bpb"][name] == pytest.approx(report["measures"][name]["bpb"])
        assert sums["share"][name] == pytest.approx(1) == sums["share_of_loss"][name]
        assert sums["targets"][name] == len(text.val) - 1
    assert sums["change"]["sliding"] == pytest.approx(report["context_gain"])
    assert sums["change"]["ttt"] == pytest.approx(report["ttt_gain"])
    assert "change" not in only(table, measure="static")


def test_targets_that_were_not_scored_count_nowhere(tmp_path: Path) -> None:
    run, text = make_run(tmp_path / "tail", n_chunks=2)
    nats = np.ones(2 * CHUNK, np.float32)
    nats[-30:] = np.nan
    result = replace(make_result("static", nats, text), dropped=30)
    results.save(result, run.file("eval/static.json"))
    rows = only(scores.loss_by_class(run, text), measure="static")
    assert rows["targets"].sum() == 2 * CHUNK - 30 and rows["bpb"].sum() == pytest.approx(result.bpb)


def test_tokens_of_one_spelling_keep_two_names() -> None:
    assert scores._distinct(["a", " b", "a"]) == ["a (0)", " b", "a (2)"]


# -- the n-gram table


@pytest.mark.parametrize("n_rows", [16, 257, 4096])
def test_occupancy_is_a_plain_count(n_rows: int) -> None:
    text = make_text(10, n_train=3000, vocab=64)
    table = buckets.bucket_occupancy(text.train, text.tables, n_rows)
    starts = text.tables.word_start
    assert starts is not None
    for hashing in ("shared", "split"):
        rows = ngram_rows(torch.from_numpy(text.train), starts if hashing == "split" else None, n_rows, True)[
            1:
        ].tolist()
        pairs = list(zip(text.train[:-1].tolist(), text.train[1:].tolist(), strict=True))
        expected = plain_summary(pairs, rows, starts.tolist(), n_rows - 1)
        found = one(table, kind="summary", hashing=hashing, part="all")
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
    halves = [one(table, kind="summary", hashing="split", part=part) for part in ("word start", "within word")]
    whole = one(table, kind="summary", hashing="split", part="all")
    for column in ("pairs", "occurrences", "share", "used", "rows"):
        assert sum(half[column] for half in halves) == pytest.approx(whole[column])
    assert whole["other_class"] == 0 == halves[0]["other_class"]
    assert one(table, kind="summary", hashing="shared", part="all")["other_class"] > 0


def test_the_profile_falls_from_the_fullest_row_to_the_last() -> None:
    text = make_text(10)
    table = buckets.bucket_occupancy(text.train, text.tables, 128)
    rows = only(table, kind="row", hashing="shared", part="all")
    where = ngram_rows(torch.from_numpy(text.train), None, 128, False)[1:]
    load_of = torch.bincount(where, minlength=128)[:127].sort(descending=True).values
    assert list(rows["occurrences"]) == [int(load_of[rank - 1]) for rank in rows["rank"]]
    assert rows["rank"].iloc[0] == 1 and rows["rank"].iloc[-1] == 127


def test_a_text_of_one_class_leaves_the_other_half_empty() -> None:
    text = make_text(10)
    only_starts = np.flatnonzero(text.tables.word_start.numpy())[:5].repeat(3)
    table = buckets.bucket_occupancy(only_starts, text.tables, 64)
    empty = one(table, kind="summary", hashing="split", part="within word")
    assert (empty["pairs"], empty["used"], empty["share"], empty["contended"]) == (0, 0, 0, 0)


# -- bytes


def test_components_are_the_whole_file_and_the_code(made: Made) -> None:
    run, _ = made
    table = sizes.run_bytes(run)
    parts, total = only(table, kind="component"), one(table, kind="total")
    assert parts["bytes"].sum() == total["bytes"] == run.file("artifact.golf").stat().st_size + CODE_BYTES
    assert parts["share"].sum() == pytest.approx(1) and parts["bytes"].is_monotonic_decreasing
    assert set(parts["component"]) == set(sizes.LABELS) and total["limit"] == 16_000_000


def test_bytes_that_no_component_explains_are_an_error(made: Made) -> None:
    found = info(made[0].file("artifact.golf"))
    with pytest.raises(ValueError, match="components of"):
        sizes.bytes_by_component(found | {"bytes": found["bytes"] + 1}, 0, 16_000_000)


def test_a_smaller_model_has_no_rows_for_what_it_lacks(tmp_path: Path) -> None:
    base = load("smoke")
    plain = replace(base, model=replace(base.model, bigram_rows=0, ve_layers=()))
    run, _ = make_run(tmp_path / "plain", config=plain)
    names = set(only(sizes.run_bytes(run), kind="component")["component"])
    assert names == set(sizes.LABELS) - {"bigram", "ve"}
