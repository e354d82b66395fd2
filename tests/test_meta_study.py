"""The study of meta-learning: arms that differ in it only, frames that add up, verdicts that follow from numbers."""

from pathlib import Path

import pandas as pd
import pytest
from small_text import dataset

from golfcore.analysis import claims, compare, meta
from golfcore.analysis.claims import CONFIRMED, OPEN, OPPOSITE, REFUTED, SAME
from golfcore.analysis.compare import Arm
from golfcore.analysis.frames import one, only, read_csv
from golfcore.base.errors import UserError
from golfcore.plots import figures as draw
from golfcore.plots import meta as plots
from golfcore.runs import pipeline, sweep

ARMS = ["meta-none", "meta-placebo", "meta-exp101", "meta-exp106"]
CHANGES = {
    "model.vocab_size": 320,
    "data.reserve_tokens": 0,
    "data.val_tokens": 1024,
    "eval.tail": "exact",
    "ttt.chunk_tokens": 64,
    "run.val_every": 6,
    "meta.log_rates_every": 5,
    "meta.log_pre_every": 1,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four arms with two seeds on a small text, run by the sweep."""
    folder = tmp_path_factory.mktemp("ablation")
    plan = sweep.load("meta-ttt", "smoke", CHANGES | {"data.path": str(dataset(folder))}).only(ARMS)
    return [run.path for run in sweep.run_arms(plan.configs, [1, 2], folder / "runs", say=lambda text: None)]


@pytest.fixture(scope="module")
def arms(runs: list[Path]) -> list[Arm]:
    return compare.arms_of(runs)


def made(arms: list[Arm]) -> dict[str, pd.DataFrame]:
    return {
        "curves": meta.learning_curves(arms),
        "differences": compare.compare(arms),
        "gains": meta.gains(arms),
        "chunks": meta.chunk_differences(arms),
        "meta-sgd": meta.meta_sgd(arms),
        "interventions": meta.interventions(arms),
        "costs": meta.costs(arms),
    }


@pytest.fixture(scope="module")
def tables(arms: list[Arm]) -> dict[str, pd.DataFrame]:
    return made(arms)


# -- sweeps


def test_a_sweep_runs_whole_seeds_and_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(pipeline, "run", lambda cfg, out, say, donors: (out.name, cfg.run.seed))
    configs = sweep.load("meta-ttt", "smoke").only(["meta-exp101"]).configs
    done = sweep.run_arms(configs, [7, 3], tmp_path, said.append)
    assert done == [("meta-none-s7", 7), ("meta-exp101-s7", 7), ("meta-none-s3", 3), ("meta-exp101-s3", 3)]
    assert said[0] == "run 1 of 4: meta-none, seed 7"
    assert said[3].startswith("run 4 of 4: meta-exp101, seed 3")
    assert [sweep.time_left(spent, 10) for spent in ([], [2.0, 4.0], [60.0])] == [
        "",
        ", about 30 s left",
        ", about 10 min left",
    ]
    for wrong in ([], [1, 1]):
        with pytest.raises(UserError, match="expected arms and different seeds"):
            sweep.run_arms(configs, wrong, tmp_path, said.append)
    with pytest.raises(UserError, match="meta-none: run.seed: expected at least 0 and at most 4294967295, found -1"):
        sweep.run_arms(configs, [1, -1], tmp_path, said.append)
    assert len(said) == 4
    with pytest.raises(UserError, match="found '../x'"):
        sweep.run_arms({"../x": configs["meta-none"]}, [1], tmp_path, said.append)


def test_a_finished_sweep_is_reused(runs: list[Path], arms: list[Arm]) -> None:
    before = {p: p.stat().st_mtime_ns for path in runs for p in (path / "stages").glob("*.json")}
    configs = {arm.label: arm.config for arm in arms}
    again = sweep.run_arms(configs, [1, 2], runs[0].parent, say=lambda text: None)
    assert [run.path for run in again] == runs
    assert before == {p: p.stat().st_mtime_ns for path in runs for p in (path / "stages").glob("*.json")}


# -- frames of real runs


def test_rates_of_frozen_slots_decay_as_predicted_and_others_move(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["meta-sgd"]
    assert set(table["arm"]) == {"meta-exp106"} and set(table["step"]) == {5, 10, 12}
    frozen, free = table[table["frozen"]], table[~table["frozen"]]
    assert len(frozen) == len(free)  # one of two blocks is frozen
    predicted = frozen["predicted"].astype(float)
    assert (frozen["rate"] - predicted).abs().max() < 1e-6 and predicted.between(0.99, 1, inclusive="neither").all()
    assert (free[free["step"] == 12]["rate"] - predicted.iloc[-1]).abs().max() > 1e-4


def test_an_intervention_is_what_the_meta_calls_logged(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["interventions"]
    assert list(table["arm"].unique()) == ARMS[1:] and table["cosine"].between(-1, 1).all()
    assert (table["gained"] - (table["loss_pre"] - table["loss_post"])).abs().max() < 1e-12
    placebo, exp101 = (table[table["arm"] == arm] for arm in ("meta-placebo", "meta-exp101"))
    assert not placebo["gained"].any() and not placebo["displacement"].any() and exp101["displacement"].min() > 0


def test_costs_are_counted(tables: dict[str, pd.DataFrame]) -> None:
    """Half a micro-batch outside for the placebo, half inside more for exp101, a second loss outside for exp106."""
    table = tables["costs"].set_index("arm")
    assert list(table["micro"]) == [0, 0.5, 1.0, 1.5] and table["calls"]["meta-none"] == 0
    assert table["published_overhead"]["meta-exp101"] == pytest.approx(1141 / 7020 / 8)
    row = table.loc["meta-exp101"]
    assert row["overhead"] == pytest.approx(row["calls"] / row["steps"])  # steps of one micro-batch


def test_differences_along_the_text_end_in_the_total(tables: dict[str, pd.DataFrame]) -> None:
    for arm in ARMS[1:]:
        last, total = only(tables["chunks"], arm=arm).iloc[-1], one(tables["differences"], measure="ttt", arm=arm)
        for name in ("difference", "low", "high"):
            assert last[name] == pytest.approx(total[name], abs=1e-9)


def test_curves_are_held_against_one_another_at_steps_that_both_logged(arms: list[Arm], tables: dict) -> None:
    table = tables["curves"]
    assert {(r.arm, r.seed) for r in table.itertuples()} == {(arm, seed) for arm in ARMS for seed in (1, 2)}
    assert table[table["arm"] == "meta-none"]["difference"].isna().all()
    rows = table[table["kind"] == "val"].set_index(["arm", "seed", "step"])
    for arm, seed, step in rows.index:
        other = rows["bpb"]["meta-none", seed, step]
        if arm != "meta-none":
            assert rows["difference"][arm, seed, step] == pytest.approx(rows["bpb"][arm, seed, step] - other)
    run = arms[1].runs[0].run
    run.log(
        {"kind": "train", "step": 13, "bpb": 1.0, "loss": 1.0, "elapsed": 1.0, "tokens": 1}
    )  # a step that the reference never logged
    later = meta.learning_curves(arms).query("step == 13")
    assert len(later) == 1 and later["difference"].isna().all()


def test_every_frame_is_drawn_and_said(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    drawn = draw.draw_group("ablation-", tables | {"nothing": pd.DataFrame()}, tmp_path, {})
    assert drawn.keys() == tables.keys() and {f"ablation-{name}" for name in tables} == set(plots.FIGURES)
    assert all(len(found.caption) > 40 and found.caption.endswith(".") for found in drawn.values())
    for name, figure in drawn.items():
        again = read_csv(tmp_path / f"ablation-{name}.csv")
        assert len(again) == len(figure.table)
        assert draw.FIGURES[f"ablation-{name}"][1](again) == figure.caption


def test_one_arm_is_drawn_too(arms: list[Arm], tmp_path: Path) -> None:
    alone = made([Arm(arms[0].label, arms[0].config, arms[0].runs[:1])])
    assert draw.draw_group("ablation-", alone, tmp_path, {}).keys() == {"curves", "differences", "gains", "costs"}


# -- claims


def test_every_claim_has_a_row_with_its_scale(arms: list[Arm], tables: dict[str, pd.DataFrame]) -> None:
    found = claims.meta_claims(arms, tables["meta-sgd"], tables["costs"])
    assert len(found) == 10 and set(found["verdict"]) <= {REFUTED, CONFIRMED, SAME, OPPOSITE, OPEN}
    measured = found[found["unit"] == "bpb"]
    assert (
        measured[["parameters", "artifact_bytes", "train_tokens", "seeds", "chunks", "detectable"]]
        .notna()
        .all(axis=None)
    )
    assert not set(measured["verdict"]) & {CONFIRMED, REFUTED}  # half a million bytes settle nothing about 16 million
    cost = one(found, statement="exp101 costs more")
    assert cost["ratio"] == pytest.approx(cost["value"] / cost["published"]) and cost["verdict"] == SAME


def test_arms_that_were_not_run_leave_claims_open(arms: list[Arm]) -> None:
    alone = [arms[0]]
    found = claims.meta_claims(alone, meta.meta_sgd(alone), meta.costs(alone))
    assert set(found[found["value"].isna()]["verdict"]) == {OPEN} and found["value"].notna().sum() == 1


def rates(calls: int, frozen: float, free: float, predicted: float) -> pd.DataFrame:
    row = {"arm": "meta-exp106", "seed": 1, "step": 4 * calls, "bank": "qo", "calls": calls}
    slots = [{"slot": 0, "rate": frozen, "frozen": True, "predicted": predicted}]
    return pd.DataFrame([row | slot for slot in [*slots, {"slot": 2, "rate": free, "frozen": False}]])


def test_rates_are_judged_after_as_many_calls_as_were_published(arms: list[Arm]) -> None:
    def verdicts(table: pd.DataFrame) -> tuple:
        found = claims.meta_claims(arms, table, meta.costs(arms))
        return tuple(found[found["unit"] == "rate"]["verdict"])

    decayed = 0.999**30
    assert verdicts(rates(30, decayed, 1.02, decayed)) == (REFUTED, OPEN)  # a closed form knows no scale
    assert verdicts(rates(30, 1.0, 1.02, 1.0)) == (CONFIRMED, OPEN)
    assert verdicts(rates(30, decayed, 1.2, 0.9)) == (OPEN, OPPOSITE)  # not what weight decay predicts
    assert verdicts(rates(1083, 0.373, 1.02, 0.373)) == (REFUTED, SAME)
    assert verdicts(pd.DataFrame()) == (OPEN, OPEN)
