"""Runs side by side: what is equal differs by nothing, what differs is found, chance is not, and unlike is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from golfcore import cli
from golfcore.analysis import compare
from golfcore.analysis.seeds import detectable, mean_interval, welch
from golfcore.analysis.table import number
from golfcore.base import files
from golfcore.base.errors import UserError
from golfcore.config import load
from golfcore.evals import result as results
from golfcore.evals.ledger import Legality
from golfcore.evals.result import EvalResult
from golfcore.evals.score import bits_per_byte
from golfcore.runs.folder import open_run

N_CHUNKS, CHUNK_TOKENS, CHUNK_BYTES = 24, 100, 250
LEVELS = {"static": 2.0, "sliding": 1.9, "ttt": 1.8}  # bits per byte
Change = Callable[[str], np.ndarray | float]  # of an evaluation, what to add to its chunks


def make_run(
    path: Path,
    preset: str,
    seed: int,
    change: Change = lambda name: 0.0,
    data: str = "d" * 64,
    n_chunks: int = N_CHUNKS,
) -> Path:
    """A finished run whose chunks score `LEVELS`, plus a difficulty that all runs share, plus `change`."""
    config = load(preset, {"run.seed": seed})
    run = open_run(path, config, data, {})
    difficulty = np.random.default_rng(0).normal(0, 0.2, n_chunks)
    measures = {}
    for name, level in LEVELS.items():
        bpb = level + difficulty + change(name)
        nats = bpb * np.log(2) * CHUNK_BYTES
        rows = [
            {
                "chunk": i,
                "start": CHUNK_TOKENS * i,
                "stop": CHUNK_TOKENS * (i + 1),
                "nats": float(x),
                "bytes": CHUNK_BYTES,
            }
            for i, x in enumerate(nats)
        ]
        tokens, n_bytes, total = n_chunks * CHUNK_TOKENS, n_chunks * CHUNK_BYTES, float(nats.sum())
        score = bits_per_byte(total, n_bytes)
        found = EvalResult(name, Legality("static"), total, tokens, n_bytes, score, 0, 1.0, rows)
        results.save(found, run.file(f"eval/{name}.json"))
        measures[name] = {"bpb": score, "tokens": tokens}
    files.write_json(run.file("results.json"), {"measures": measures})
    return path


def noise(seed: int, spread: float) -> Change:
    """A change of the whole run, the same for all its evaluations."""
    value = np.random.default_rng(seed).normal(0, spread)
    return lambda name: value


def table(*paths: Path):
    return compare.compare(compare.arms_of(paths))


# -- laws of the difference


def test_identical_arms_differ_by_nothing(tmp_path: Path) -> None:
    paths = [
        make_run(tmp_path / f"{p}{s}", p, s, noise(s, 0.01)) for p in ("meta-none", "meta-exp101") for s in (1, 2, 3)
    ]
    rows = [row for row in table(*paths) if row["arm"] == "meta-exp101"]
    assert [row["measure"] for row in rows] == list(compare.MEASURES)
    for row in rows:
        for column in ("difference", "paired", "chunks_low", "chunks_high"):
            assert number(row, column) == pytest.approx(0, abs=1e-12)
        assert number(row, "p") == pytest.approx(1) and number(row, "seeds_low") <= 0 <= number(row, "seeds_high")


def test_a_known_shift_of_one_score_is_found_there_and_in_its_gain(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)

    def shifted(seed: int) -> Change:
        def change(name: str) -> np.ndarray:
            return noise(seed, 0.001)(name) + (
                -0.03 + rng.normal(0, 0.01, N_CHUNKS) if name == "ttt" else np.zeros(N_CHUNKS)
            )

        return change

    none = [make_run(tmp_path / f"n{s}", "meta-none", s, noise(s, 0.001)) for s in (1, 2, 3)]
    moved = [make_run(tmp_path / f"m{s}", "meta-exp101", s, shifted(s)) for s in (1, 2, 3)]
    found = table(*none, *moved)
    for name in ("ttt", "ttt_gain", "total_gain"):
        row = found.one(measure=name, arm="meta-exp101")
        assert number(row, "difference") == pytest.approx(-0.03, abs=0.005)
        for over in ("seeds", "chunks"):
            assert number(row, f"{over}_low") <= number(row, "difference") <= number(row, f"{over}_high") < 0
    for name in ("static", "sliding", "context_gain"):
        row = found.one(measure=name, arm="meta-exp101")
        assert number(row, "difference") == pytest.approx(0, abs=1e-12)


def test_gains_are_differences_of_scores_and_chunks_add_up(tmp_path: Path) -> None:
    chunky = np.random.default_rng(1).normal(0, 0.1, N_CHUNKS)
    paths = [make_run(tmp_path / "a", "meta-none", 1), make_run(tmp_path / "b", "meta-exp101", 1, lambda n: chunky)]
    arms = compare.arms_of(paths)
    for measure in compare.MEASURES.values():
        run = arms[1].runs[0]
        assert np.average(run.by_chunk(measure), weights=run.weights) == pytest.approx(run.total(measure))
    found = {row["measure"]: number(row, "mean") for row in table(*paths) if row["arm"] == "meta-none"}
    assert found["context_gain"] == pytest.approx(found["sliding"] - found["static"])
    assert found["ttt_gain"] == pytest.approx(found["ttt"] - found["sliding"])
    assert found["total_gain"] == pytest.approx(found["context_gain"] + found["ttt_gain"])


def test_what_all_runs_share_does_not_widen_the_interval(tmp_path: Path) -> None:
    """Chunks differ by 0.2 bits per byte, the arms by 0.001 on each: pairing leaves the 0.001."""
    paths = [make_run(tmp_path / "a", "meta-none", 1), make_run(tmp_path / "b", "meta-exp101", 1, lambda n: 0.001)]
    row = table(*paths).one(measure="ttt", arm="meta-exp101")
    assert number(row, "chunks_low") == pytest.approx(0.001) and number(row, "chunks_high") == pytest.approx(0.001)
    assert number(row, "mde_chunks") == pytest.approx(0, abs=1e-9) and "p" not in row


def test_arms_are_configurations_and_seeds_pair(tmp_path: Path) -> None:
    def shifted(seed: int, by: float) -> Change:
        return lambda name: seed + by

    none = [make_run(tmp_path / f"n{s}", "meta-none", s, shifted(s, 0)) for s in (1, 2, 3)]
    meta = [make_run(tmp_path / f"m{s}", "meta-exp101", s, shifted(s, 0.5)) for s in (2, 3, 9)]
    arms = compare.arms_of([none[2], meta[0], none[0], meta[2], none[1], meta[1]])
    assert [(arm.label, arm.seeds) for arm in arms] == [("meta-none", (1, 2, 3)), ("meta-exp101", (2, 3, 9))]
    row = compare.compare(arms).one(measure="ttt", arm="meta-exp101")
    assert (row["runs"], row["pairs"]) == (3, 2)
    assert number(row, "paired") == pytest.approx(0.5)  # over the seeds 2 and 3 that both have
    assert number(row, "difference") == pytest.approx((2 + 3 + 9) / 3 + 0.5 - 2)


# -- laws of the statistics


def test_welch_is_scipys() -> None:
    rng = np.random.default_rng(2)
    for sizes in ((2, 2), (3, 5), (10, 4)):
        first, second = rng.normal(0, 1, sizes[0]), rng.normal(1, 3, sizes[1])
        ours, theirs = welch(first, second), stats.ttest_ind(second, first, equal_var=False)
        interval = theirs.confidence_interval(0.95)
        assert (ours.t, ours.p, ours.df) == pytest.approx((theirs.statistic, theirs.pvalue, theirs.df))
        assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high))
        assert mean_interval(first) == pytest.approx(stats.ttest_1samp(first, 0).confidence_interval(0.95))


def test_groups_without_spread_differ_for_certain_or_not_at_all() -> None:
    assert welch([1.0, 1.0], [1.0, 1.0])[3:] == (None, 1.0, 0.0, 0.0)
    assert welch([1.0, 1.0], [1.5, 1.5])[3:] == (None, 0.0, 0.5, 0.5)
    with pytest.raises(ValueError):
        welch([1.0], [1.0, 2.0])


def test_intervals_over_seeds_hold_the_truth_19_times_out_of_20() -> None:
    rng = np.random.default_rng(3)
    groups = rng.normal(0, 1, (1500, 6))
    held = [w.low <= 0.0 <= w.high for w in (welch(g[:3], g[3:]) for g in groups)]
    assert 0.93 <= np.mean(held) <= 0.98  # Welch's is a little wide for 3 and 3


def test_intervals_over_chunks_hold_the_truth_19_times_out_of_20(tmp_path: Path) -> None:
    """Many runs on other text: neighbouring chunks are alike, the arms' true difference is 0.01."""
    rng, held = np.random.default_rng(4), []
    reference = compare.arms_of([make_run(tmp_path / "a", "meta-none", 1, n_chunks=60)])[0]
    other = compare.arms_of([make_run(tmp_path / "b", "meta-exp101", 1, n_chunks=60)])[0]
    for _ in range(150):
        drawn = rng.normal(0, 0.05, 61)
        chunks = [
            {**c, "nats": c["nats"] + (0.01 + (drawn[i] + drawn[i + 1]) / 2) * np.log(2) * c["bytes"]}
            for i, c in enumerate(reference.runs[0].chunks["ttt"])
        ]
        run = replace(other.runs[0], chunks={**other.runs[0].chunks, "ttt": chunks})
        row = compare.contrast(reference, replace(other, runs=(run,)), compare.MEASURES["ttt"])
        held.append(number(row, "chunks_low") <= 0.01 <= number(row, "chunks_high"))
    assert 0.88 <= np.mean(held) <= 0.99


def test_the_detectable_difference_is_detected_4_times_out_of_5() -> None:
    rng, n = np.random.default_rng(6), 4
    shift = detectable((2 / n) ** 0.5, 2 * n - 2)
    groups = rng.normal(0, 1, (2000, 2 * n))
    p = stats.ttest_ind(groups[:, :n] + shift, groups[:, n:], axis=1).pvalue
    assert np.mean(p < 0.05) == pytest.approx(0.8, abs=0.03)
    critical = stats.t.ppf(0.975, 6)
    assert stats.nct.sf(critical, 6, detectable(1.0, 6)) == pytest.approx(0.8, abs=1e-3)
    assert detectable(0.0, 4) == 0


# -- refusals and the command


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"data": "e" * 64}, "expected data dddddddddddd as in"),
        ({"n_chunks": 12}, "expected 2,400 validation targets as in"),
        ({"preset": "meta-none"}, "expected one run of each configuration and seed, found"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, capsys, other: dict, sentence: str) -> None:
    first = make_run(tmp_path / "a", "meta-none", 1)
    second = make_run(tmp_path / "b", **{"preset": "meta-exp101", "seed": 1, **other})
    assert cli.main(["compare", str(first), str(second)]) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err and str(second) in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_other_chunks_of_the_same_text_do_not_pair(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / "a", "meta-none", 1), make_run(tmp_path / "b", "meta-exp101", 1)]
    for name in LEVELS:
        where = paths[1] / f"eval/{name}.json"
        whole = files.read_json(where, "chunks")
        last = whole["chunks"][-1]
        files.write_json(where, {**whole, "chunks": [{**last, "start": 0, "chunk": 0}]})
    with pytest.raises(UserError, match=f"{paths[1]}: expected 24 chunks as in .*, found 1, which do not pair"):
        compare.arms_of(paths)


def test_a_run_that_has_not_finished_is_refused(tmp_path: Path, capsys) -> None:
    first, second = make_run(tmp_path / "a", "meta-none", 1), make_run(tmp_path / "b", "meta-exp101", 1)
    (second / "results.json").unlink()
    assert cli.main(["compare", str(first), str(second)]) == 2
    assert f"{second / 'results.json'}: expected the results of a finished run" in capsys.readouterr().err
    assert cli.main(["compare", str(tmp_path / "absent")]) == 2
    assert "expected a run folder" in capsys.readouterr().err


def test_the_command_prints_what_it_says_as_json(tmp_path: Path, capsys) -> None:
    paths = [make_run(tmp_path / f"{p}{s}", p, s, noise(s, 0.01)) for p in ("meta-none", "meta-exp106") for s in (1, 2)]
    assert cli.main(["compare", *map(str, paths), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == table(*paths)
    assert cli.main(["compare", *map(str, paths)]) == 0
    printed = capsys.readouterr().out
    assert "meta-none: seeds 1, 2; reference" in printed and "meta.split time -> batch" in printed
    assert sum(line.startswith(("ttt  ", "ttt gain")) for line in printed.splitlines()) == 4


def test_two_arms_of_one_preset_are_told_apart(tmp_path: Path) -> None:
    changed = tmp_path / "meta-none.toml"
    changed.write_text('base = "meta-none"\n[optim]\nmatrix_lr = 0.5\n')
    arms = compare.arms_of([make_run(tmp_path / "a", "meta-none", 1), make_run(tmp_path / "b", str(changed), 1)])
    labels = [arm.label for arm in arms]
    assert len(set(labels)) == 2 and all(label.startswith("meta-none-") for label in labels)
