"""Runs side by side: what is equal differs by nothing, what differs is found, chance is not, and unlike is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_run import make_report

from golfcore import cli
from golfcore.analysis import compare
from golfcore.analysis.frames import one
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
    found = {}
    for name, level in LEVELS.items():
        nats = (level + difficulty + change(name)) * np.log(2) * CHUNK_BYTES
        rows = [
            {"chunk": i, "start": CHUNK_TOKENS * i, "stop": CHUNK_TOKENS * (i + 1), "nats": x, "bytes": CHUNK_BYTES}
            for i, x in enumerate(nats.tolist())
        ]
        tokens, n_bytes, total = n_chunks * CHUNK_TOKENS, n_chunks * CHUNK_BYTES, float(nats.sum())
        score = bits_per_byte(total, n_bytes)
        found[name] = EvalResult(name, Legality("static"), total, tokens, n_bytes, score, 0, 1.0, rows)
        results.save(found[name], run.file(f"eval/{name}.json"))
    files.write_json(run.file("results.json"), make_report(run, config, {"float": found["static"], **found}, 1))
    return path


def noise(seed: int, spread: float) -> Change:
    """A change of the whole run, the same for all its evaluations."""
    value = np.random.default_rng(seed).normal(0, spread)
    return lambda name: value


def table(*paths: Path) -> pd.DataFrame:
    return compare.compare(compare.arms_of(paths))


NONE, META = "smoke", "demo"  # two presets; nothing of a run is trained here


# -- laws of the difference


def test_identical_arms_differ_by_nothing(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / f"{p}{s}", p, s, noise(s, 0.01)) for p in (NONE, META) for s in (1, 2, 3)]
    rows = table(*paths).query("arm == @META")
    assert list(rows["measure"]) == list(compare.MEASURES)
    assert rows[["difference", "low", "high"]].abs().to_numpy().max() < 1e-12 and rows["p"].min() > 0.9


def test_a_known_shift_of_one_score_is_found_there_and_in_its_gain(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)

    def shifted(seed: int) -> Change:
        still, moved = np.zeros(N_CHUNKS), -0.03 + rng.normal(0, 0.01, N_CHUNKS)
        return lambda name: noise(seed, 0.001)(name) + (moved if name == "ttt" else still)

    none = [make_run(tmp_path / f"n{s}", NONE, s, noise(s, 0.001)) for s in (1, 2, 3)]
    found = table(*none, *[make_run(tmp_path / f"m{s}", META, s, shifted(s)) for s in (1, 2, 3)])
    for name in compare.MEASURES:
        row = one(found, measure=name, arm=META)
        if name in ("ttt", "ttt_gain", "total_gain"):
            assert row["low"] <= row["difference"] == pytest.approx(-0.03, abs=0.005) and row["high"] < 0
            assert row["p"] < 0.05 and row["over"] == "seeds and text"
        else:
            assert row["difference"] == pytest.approx(0, abs=1e-12)


def test_gains_are_differences_of_scores_and_chunks_add_up(tmp_path: Path) -> None:
    chunky = np.random.default_rng(1).normal(0, 0.1, N_CHUNKS)
    paths = [make_run(tmp_path / "a", NONE, 1), make_run(tmp_path / "b", META, 1, lambda n: chunky)]
    run = compare.arms_of(paths)[1].runs[0]
    for measure in compare.MEASURES:
        assert np.average(run.chunks[measure], weights=run.chunks["bytes"]) == pytest.approx(run.totals[measure])
    means = table(*paths).query("arm == @NONE").set_index("measure")["mean"]
    assert means["context_gain"] == pytest.approx(means["sliding"] - means["static"])
    assert means["ttt_gain"] == pytest.approx(means["ttt"] - means["sliding"])
    assert means["total_gain"] == pytest.approx(means["context_gain"] + means["ttt_gain"])


def test_what_all_runs_share_does_not_widen_the_interval(tmp_path: Path) -> None:
    """Chunks differ by 0.2 bits per byte, the arms by 0.001 on each: pairing leaves the 0.001. One seed says so."""
    paths = [make_run(tmp_path / "a", NONE, 1), make_run(tmp_path / "b", META, 1, lambda n: 0.001)]
    row = one(table(*paths), measure="ttt", arm=META)
    assert (row["low"], row["high"]) == pytest.approx((0.001, 0.001))
    assert row["detectable"] == pytest.approx(0, abs=1e-9) and row["over"] == "text"


def test_arms_are_configurations_and_seeds_pair(tmp_path: Path) -> None:
    def shifted(seed: int, by: float) -> Change:
        return lambda name: seed + by

    none = [make_run(tmp_path / f"n{s}", NONE, s, shifted(s, 0)) for s in (1, 2, 3)]
    meta = [make_run(tmp_path / f"m{s}", META, s, shifted(s, 0.5)) for s in (2, 3, 9)]
    arms = compare.arms_of([none[2], meta[0], none[0], meta[2], none[1], meta[1]])
    assert [(arm.label, arm.seeds) for arm in arms] == [(NONE, (1, 2, 3)), (META, (2, 3, 9))]
    row = one(compare.compare(arms), measure="ttt", arm=META)
    assert (row["seeds"], row["pairs"]) == (3, 2) and row["difference"] == pytest.approx(0.5)  # over the seeds 2 and 3
    assert row["high"] == pytest.approx(0.5)


def test_without_seeds_in_common_the_means_are_held_against_one_another(tmp_path: Path) -> None:
    none = [make_run(tmp_path / f"n{s}", NONE, s, noise(s, 0.01)) for s in (1, 2, 3)]
    meta = [make_run(tmp_path / f"m{s}", META, s, noise(s, 0.01)) for s in (7, 8)]
    row = one(table(*none, *meta), measure="ttt", arm=META)
    means = table(*none, *meta).query("measure == 'ttt'")["mean"]
    assert row["pairs"] == 0 and row["difference"] == pytest.approx(means.iloc[1] - means.iloc[0])
    assert row["over"] == "seeds and text" and 1 <= row["df"] <= 3


def test_little_text_gives_no_interval(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / f"{p}{s}", p, s, noise(s, 0.01), n_chunks=7) for p in (NONE, META) for s in (1, 2)]
    row = one(table(*paths), measure="ttt", arm=META)
    assert row["chunks"] == 7 and not {"low", "high", "p"} & row.keys()


# -- refusals and the command


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"data": "e" * 64}, "expected data dddddddddddd as in"),
        ({"n_chunks": 12}, "expected 2,400 validation targets as in"),
        ({"preset": NONE}, "expected one run of each configuration and seed, found"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, capsys, other: dict, sentence: str) -> None:
    first = make_run(tmp_path / "a", NONE, 1)
    second = make_run(tmp_path / "b", **{"preset": META, "seed": 1, **other})
    assert cli.main(["compare", str(first), str(second)]) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err and str(second) in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_other_chunks_of_the_same_text_do_not_pair(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / "a", NONE, 1), make_run(tmp_path / "b", META, 1)]
    for name in LEVELS:
        where = paths[1] / f"eval/{name}.json"
        whole = files.read_json(where, "chunks")
        last = whole["chunks"][-1]
        files.write_json(where, {**whole, "chunks": [{**last, "start": 0, "chunk": 0}]})
    with pytest.raises(UserError, match=f"{paths[1]}: expected 24 chunks as in .*, found 1, which do not pair"):
        compare.arms_of(paths)


def test_a_run_that_has_not_finished_is_refused(tmp_path: Path, capsys) -> None:
    first, second = make_run(tmp_path / "a", NONE, 1), make_run(tmp_path / "b", META, 1)
    (second / "results.json").unlink()
    assert cli.main(["compare", str(first), str(second)]) == 2
    assert f"{second / 'results.json'}: expected the results of a finished run" in capsys.readouterr().err
    assert cli.main(["compare", str(tmp_path / "absent")]) == 2
    assert "expected a run folder" in capsys.readouterr().err


def test_the_command_prints_what_it_says_as_json(tmp_path: Path, capsys) -> None:
    paths = [make_run(tmp_path / f"{p}{s}", p, s, noise(s, 0.01)) for p in (NONE, META) for s in (1, 2)]
    assert cli.main(["compare", *map(str, paths), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(table(*paths)) == 12
    assert cli.main(["compare", *map(str, paths)]) == 0
    printed = capsys.readouterr().out
    assert "smoke: seeds 1, 2; reference" in printed and "other versions" not in printed
    assert sum(line.startswith(("ttt  ", "ttt_gain", "ttt gain")) for line in printed.splitlines()) == 4


def test_other_versions_of_the_code_are_named(tmp_path: Path, capsys) -> None:
    paths = [make_run(tmp_path / "a", NONE, 1), make_run(tmp_path / "b", META, 1)]
    for path, code in zip(paths, ("1.0", "2.0"), strict=True):
        found = files.read_json(path / "results.json", "results")
        found["measures"]["static"]["code"] = code
        files.write_json(path / "results.json", found)
    assert cli.main(["compare", *map(str, paths)]) == 0
    assert "made by other versions of the code: 1.0 (a); 2.0 (b)" in capsys.readouterr().out


def test_two_arms_of_one_preset_are_told_apart(tmp_path: Path) -> None:
    changed = tmp_path / "smoke.toml"
    changed.write_text('base = "smoke"\n[optim]\nmatrix_lr = 0.5\n')
    arms = compare.arms_of([make_run(tmp_path / "a", NONE, 1), make_run(tmp_path / "b", str(changed), 1)])
    labels = [arm.label for arm in arms]
    assert len(set(labels)) == 2 and all(label.startswith("smoke-") for label in labels)
