"""The claims ledger: rules give every verdict that they can, closed forms are derived another way, tables are read."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from golfcore.analysis import arithmetic, beside, ledger, published, stats
from golfcore.analysis.claims import CONFIRMED, OPEN, OPPOSITE, REFUTED, SAME
from golfcore.analysis.frames import read_csv, write_csv
from golfcore.analysis.ledger import CONFOUNDED, Evidence
from golfcore.base.errors import UserError
from golfcore.plots import index

FIGURES = Path(__file__).resolve().parents[1] / "figures"
NUMBER = {"value": 0.5, "low": 0.4, "high": 0.6}


def interval(low: float, high: float) -> dict[str, float]:
    return {"value": (low + high) / 2, "low": low, "high": high}


@pytest.mark.parametrize(
    "by, found, verdict",
    [
        ({"rule": "sign", "claimed": 1.0}, interval(0.1, 0.3), SAME),
        ({"rule": "sign", "claimed": -1.0}, interval(0.1, 0.3), OPPOSITE),
        ({"rule": "sign", "claimed": 1.0}, interval(-0.1, 0.3), OPEN),
        ({"rule": "sign", "claimed": 1.0, "form": "best_seed"}, interval(0.1, 0.3), CONFIRMED),
        ({"rule": "band", "band": (0.0, 1.0)}, NUMBER, SAME),
        ({"rule": "band", "band": (0.7, 1.0)}, NUMBER, OPPOSITE),
        ({"rule": "band", "band": (0.5, 1.0)}, NUMBER, OPEN),
        ({"rule": "band", "band": (0.7, 1.0), "form": "best_seed"}, NUMBER, REFUTED),
        ({"rule": "confounded", "claimed": 1.0}, NUMBER, CONFOUNDED),
        ({"rule": "confounded", "claimed": 1.0}, interval(-0.1, 0.3), OPEN),
        ({"rule": "confounded", "claimed": -1.0}, NUMBER, OPEN),
        ({"rule": "null"}, interval(-0.1, 0.3), CONFOUNDED),
        ({"rule": "null"}, interval(0.1, 0.3), SAME),
        ({"rule": "null"}, interval(-0.3, -0.1), OPPOSITE),
        ({"rule": "null"}, {"value": 0.5, "low": None, "high": None}, OPEN),
        ({"rule": "exact", "claimed": 0.45, "tolerance": 0.1}, NUMBER, CONFIRMED),
        ({"rule": "exact", "claimed": 0.45, "tolerance": 0.01}, NUMBER, REFUTED),
        ({"rule": "exact", "claimed": 0.5, "confounds": True}, NUMBER, CONFOUNDED),
        ({"rule": "exact", "claimed": 0.7, "confounds": True}, NUMBER, OPEN),
        ({"rule": "is", "claimed": "score-first"}, {"said": "score-first"}, CONFIRMED),
        ({"rule": "is", "claimed": "score-first"}, {"said": "score-first, train-first"}, REFUTED),
        ({"rule": "open"}, NUMBER, OPEN),
    ],
)
def test_a_rule_gives_the_verdict_of_the_number(by: dict, found: dict, verdict: str) -> None:
    assert ledger.judge(Evidence(how="", **by), found) == verdict


# -- closed forms, each derived from what the publications print elsewhere


def test_pairs_of_a_row_are_the_published_counts() -> None:
    rows = published.ablation("bucket_split").set_index("name")
    for part, name in (("word start", "word-start"), ("within word", "within-word")):
        pairs = float(rows.loc[f"{name} pairs in all", "pairs"])
        usable = float(rows.loc[f"{name} pairs per bucket", "buckets_to"]) - float(
            rows.loc[f"{name} pairs per bucket", "buckets_from"]
        )
        assert arithmetic.pairs_per_row(part) == pytest.approx(pairs / usable)


def test_bytes_are_those_of_the_log() -> None:
    assert arithmetic.headroom("exp101") == 16_000_000 - (15_689_152 + 115_044)
    assert arithmetic.headroom("exp106", "int7mix") == 16_000_000 - (16_672_060 + 123_310) < -18_154
    assert arithmetic.stated_over("pr294") == pytest.approx(2.77e6)
    assert arithmetic.rate_bytes() == (22 + 22 + 11 + 11) * 16 and arithmetic.unexported("exp106") == 66


def test_rows_of_a_text_hang_on_no_later_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the check finds a table that looks ahead."""
    assert arithmetic.later_rows_changed() == 0
    honest = arithmetic.ngram_rows
    monkeypatch.setattr(arithmetic, "ngram_rows", lambda t, *rest: honest(t.roll(-1, -1), *rest))
    assert arithmetic.later_rows_changed() > 0


def test_times_and_steps_are_those_of_the_log() -> None:
    assert arithmetic.steps_lost("exp101", "exp105a") == 7226 - 7020
    assert arithmetic.steps_lost("exp106", "exp101") == 7020 - 6686
    assert arithmetic.step_ms("exp105a") == pytest.approx(4800e3 / 7226, rel=0.01)  # the clock over the steps
    assert arithmetic.steps_bought() == pytest.approx(600 / 0.08097 - 600 / 0.08237, rel=0.01)
    assert arithmetic.logged("pr398", "ttt_seconds") == pytest.approx((291.9 + 290.9 + 291.5) / 3)


def test_the_learning_rate_at_late_qat_is_the_logged_one() -> None:
    """The only multiplier that was logged: 0.2498 where exp101 began late QAT."""
    logged = published.table("training")
    for system, run in (("exp101", "launch4"), ("exp105a", "launch2"), ("exp106", "launch1")):
        own = logged[(logged["system"] == system) & (logged["run"] == run)]
        event = own[own["event"] == "late_qat"].iloc[0]
        timed = own[own["kind"] == "train"].sort_values("step")
        at = float(np.interp(float(event["step"]), timed["step"].astype(float), timed["seconds"]))
        assert beside.multiplier(logged, system, run)(int(event["step"]), at) == pytest.approx(
            event["lr_scale"], abs=0.001
        )
    assert arithmetic.rate_lead("exp105a", "exp101") > 0


def test_measures_that_are_functions_of_norms() -> None:
    """The error of rounding to a step is that of a uniform number; noise of equal norms has all ranks; midpoints."""
    step, generator = 1 / 31, np.random.default_rng(0)
    weights = generator.normal(0, 0.3, 400_000).clip(-1, 1)
    assert np.mean((weights - step * np.round(weights / step)) ** 2) == pytest.approx(
        arithmetic.floor_error(), rel=0.01
    )
    assert arithmetic.noise_rank(22) == pytest.approx(22, abs=0.01)
    a, b = generator.normal(size=(2, 10_000))
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    ratio = np.linalg.norm((a + b) / 2) / np.linalg.norm(a)
    assert ratio == pytest.approx(math.sqrt((1 + cosine) / 2), abs=0.02) and arithmetic.midpoint_error() < 0.015
    assert arithmetic.distance_spread() == pytest.approx((2356.415 - 2323.959) / 2356.415, abs=1e-6)
    assert arithmetic.gap_share() == pytest.approx(1.168762 / 79.760849)


def test_counts_of_parameters_and_losses() -> None:
    assert arithmetic.parameters("pr294-recurrent") == 13_214_244 and arithmetic.parameters("exp101") == 26_960_991
    banks = 2 * 11 * 512 * 512 + 2 * 11 * 256 * 512 + 2 * 11 * 1536 * 512
    assert arithmetic.adapted_share("exp101") == pytest.approx(100 * banks / 26_960_991)
    assert arithmetic.tail_share() == pytest.approx(100 * (7 * 1.7e6 + 3 * 135e3) / (1.97 * 61.9e6))
    assert arithmetic.falling_epochs() == 1 and arithmetic.best_seed() == 1.12126612
    mean = arithmetic.logged("pr398", "bpb_ttt")
    assert mean == pytest.approx((1.12126612 + 1.122112 + 1.122828) / 3, abs=1e-6)
    assert arithmetic.overlap_alone() == pytest.approx(mean - 1.145336, abs=1e-5)
    assert arithmetic.settings_between("exp101", "exp105a") == 1
    assert arithmetic.frozen_rate() == pytest.approx(
        0.373, abs=0.0005
    )  # at the full rate all along: 0.999^1083 = 0.338
    assert arithmetic.windows_a_second() == pytest.approx(62_021_632 / 64 / 600)


def test_as_many_pairs_as_a_difference_needs() -> None:
    """Of simulated pairs of runs, four out of five tests find a difference that the count is for."""
    rng, sd, true = np.random.default_rng(0), 0.001, 0.001
    pairs = stats.pairs_needed(true, sd)
    drawn = rng.normal(true, math.sqrt(2) * sd, (4000, pairs))
    z = drawn.mean(1) / (math.sqrt(2) * sd / math.sqrt(pairs))
    assert np.mean(np.abs(z) > 1.96) == pytest.approx(0.8, abs=0.03) and stats.pairs_needed(1.0, sd) == 3


# -- reading tables


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        {"arm": a, "seed": s, "x": v, "y": 2.0}
        for a, s, v in (("a", 1, 1.0), ("a", 2, 3.0), ("b", 1, 0.0), ("b", 2, 1.0))
    ]
    write_csv(tmp_path / "t.csv", pd.DataFrame(rows))
    one = {"arm": "a", "difference": 0.1, "low": 0.05, "high": 0.15, "detectable": 0.07, "pairs": 3, "chunks": 12}
    few = {"arm": "few", "difference": 0.1, "seeds": 3, "chunks": 4}  # of a text too short for an interval
    write_csv(tmp_path / "u.csv", pd.DataFrame([one, few]))
    return tmp_path


def row(folder: Path, by: Evidence) -> dict:
    claim = published.table("claims").to_dict("records")[0]
    entry = {"train": "golfcore run smoke --out OUT/smoke", "draw": "golfcore figures OUT/smoke --out OUT/figures"}
    return ledger.ledger(folder, {"t": entry, "u": entry}, {claim["id"]: by}).iloc[0].to_dict()


def test_numbers_are_read_as_the_table_states_them(folder: Path) -> None:
    mean = row(folder, Evidence("", "open", table="t", where={"arm": "a"}, column="x"))
    assert mean["value"] == 2 and mean["n"] == 2 and mean["low"] == pytest.approx(2 - 12.706, abs=1e-3)
    less = row(folder, Evidence("", "open", table="t", where={"arm": "a"}, less={"arm": "b"}, column="x"))
    assert less["value"] == 1.5 and less["n"] == 2
    ratio = row(folder, Evidence("", "open", table="t", where={"arm": ["a", "b"]}, column="x / y", by="arm"))
    assert ratio["value"] == pytest.approx((1.0 + 0.25) / 2) and ratio["n"] == 2
    stated = row(folder, Evidence("", "sign", table="u", where={"arm": "a"}, claimed=0.001))
    assert (stated["n"], stated["chunks"], stated["low"], stated["high"]) == (3, 12, 0.05, 0.15)
    assert (
        stated["verdict"] == SAME and stated["command"].startswith("golfcore run smoke") and stated["h100_hours"] > 20
    )
    without = row(folder, Evidence("", "sign", table="u", where={"arm": "few"}, claimed=0.001))
    assert without["value"] == 0.1 and pd.isna(without["low"]) and without["verdict"] == OPEN


def test_what_is_missing_is_named(folder: Path) -> None:
    for by, said in (
        (Evidence("", "open", table="v"), "v.csv: expected a table"),
        (Evidence("", "open", table="t", where={"arm": "c"}), "expected rows with {'arm': 'c'}"),
        (Evidence("", "open", table="t", where={"step": 3}), "expected a column step"),
        (Evidence("", "open", table="t", column="z"), "expected numbers in z"),
        (Evidence("", "open", table="t", of="w", column="x"), "expected a figure w in the index"),
    ):
        with pytest.raises(UserError, match=said.replace("{", r"\{").replace("}", r"\}")):
            row(folder, by)
    wrong = folder / "evidence.toml"
    wrong.write_text('[C001]\nhow = "x"\nrules = "open"\n')
    with pytest.raises(UserError, match="C001.*rules"):
        ledger.evidence(wrong)


# -- the ledger of the project


def test_the_ledger_judges_what_was_published() -> None:
    """Every claim of the first rank has evidence; what the folder states follows from its tables again."""
    claims, known = published.table("claims"), ledger.evidence()
    assert set(claims.loc[claims["tier"] == 1, "id"]) <= set(known) and len(known) >= 80
    found = ledger.ledger(FIGURES, index.read_index(FIGURES))
    assert len(found) == len(known) and found["n"].notna().all() and found["value"].notna().all()
    assert found["command"].str.len().min() > 0 and found.loc[found["verdict"] == OPEN, "settles"].notna().all()
    kept = read_csv(FIGURES / "claims-ledger.csv")
    assert list(kept["id"]) == list(found["id"]) and list(kept["verdict"]) == list(found["verdict"])
    assert kept["value"].to_numpy(float) == pytest.approx(found["value"].to_numpy(float), rel=1e-9)
