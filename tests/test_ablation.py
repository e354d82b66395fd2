"""The ablation: arms that differ in meta-learning only, tables that add up, verdicts that follow from the numbers."""

from pathlib import Path

import pytest
from small_text import dataset

from golfcore import config
from golfcore.analysis import ablation, ablation_readings, claims, compare
from golfcore.analysis.claims import OPEN, REFUTED, REPRODUCED
from golfcore.analysis.compare import Arm
from golfcore.analysis.stats import Interval
from golfcore.analysis.table import Table, number, read_csv
from golfcore.base.errors import UserError
from golfcore.plots import figures as draw
from golfcore.runs import pipeline, sweep

ARMS = ["meta-none", "meta-placebo", "meta-exp101", "meta-exp106"]
CHANGES = {
    "model.vocab_size": 320,
    "schedule.iterations": 10,
    "data.reserve_tokens": 0,
    "data.val_tokens": 1024,
    "ttt.lr_candidates": [],
    "ttt.chunk_tokens": 64,
    "run.val_every": 5,
    "meta.log_rates_every": 5,
    "meta.log_pre_every": 1,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four arms with two seeds on a small text, run by the sweep."""
    folder = tmp_path_factory.mktemp("ablation")
    arms = sweep.meta_arms("smoke", ARMS, CHANGES | {"data.path": str(dataset(folder))})
    return [run.path for run in sweep.run_arms(arms, [1, 2], folder / "runs", say=lambda text: None)]


@pytest.fixture(scope="module")
def arms(runs: list[Path]) -> list[Arm]:
    return compare.arms_of(runs)


# -- arms and sweeps


def test_arms_differ_in_meta_learning_only() -> None:
    found = sweep.meta_arms("smoke", ARMS, {})
    for name, arm in found.items():
        assert arm.name == name and arm.model.dim == config.load("smoke").model.dim
        assert sweep._without_meta(arm).hash == sweep._without_meta(found["meta-none"]).hash
        assert arm.meta.freeze_blocks == config.load("smoke").meta.freeze_blocks
    assert not found["meta-none"].meta.enabled and found["meta-exp106"].model.meta_sgd
    on_full_model = sweep.meta_arms("exp105a", ["meta-none", "meta-exp106"], {})
    assert on_full_model["meta-none"].hash == config.load("exp105a").hash
    assert on_full_model["meta-exp106"].hash == config.load("exp106").hash


def test_arms_that_differ_in_more_are_refused() -> None:
    with pytest.raises(UserError, match="expected exp101 to differ from meta-none in meta-learning only, found model"):
        sweep.meta_arms("smoke", ["meta-none", "exp101"], {})
    with pytest.raises(UserError, match="expected different presets, found meta-none, meta-none"):
        sweep.meta_arms("smoke", ["meta-none", "meta-none"], {})


def test_a_budget_keeps_the_shape_of_the_schedule() -> None:
    s = config.load("demo", sweep.budget("demo", 200, "steps", 0.0)).schedule
    assert (s.iterations, s.warmdown_steps, s.clock) == (200, 120, "steps")
    s = config.load("demo", sweep.budget("demo", 0, "wall", 60.0)).schedule
    assert (s.iterations, s.warmdown_steps, s.clock, s.max_seconds) == (300, 180, "wall", 60.0)


def test_a_sweep_runs_whole_seeds_and_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(pipeline, "run", lambda cfg, out, say, donors: (out.name, cfg.run.seed))
    arms = sweep.meta_arms("smoke", ["meta-none", "meta-exp101"], {})
    done = sweep.run_arms(arms, [7, 3], tmp_path, said.append)
    assert done == [("meta-none-s7", 7), ("meta-exp101-s7", 7), ("meta-none-s3", 3), ("meta-exp101-s3", 3)]
    assert said[0] == "run 1 of 4: meta-none, seed 7" and said[3].startswith(
        "run 4 of 4: meta-exp101, seed 3, about 0 s"
    )
    for wrong in ([], [1, 1]):
        with pytest.raises(UserError, match="expected arms and different seeds"):
            sweep.run_arms(arms, wrong, tmp_path, said.append)
    with pytest.raises(UserError, match="found '../x'"):
        sweep.run_arms({"../x": arms["meta-none"]}, [1], tmp_path, said.append)


def test_a_finished_sweep_is_reused(runs: list[Path], arms: list[Arm]) -> None:
    before = {p: p.stat().st_mtime_ns for path in runs for p in (path / "stages").glob("*.json")}
    configs = {arm.label: arm.config for arm in arms}
    again = sweep.run_arms(configs, [1, 2], runs[0].parent, say=lambda text: None)
    assert [run.path for run in again] == runs
    assert before == {p: p.stat().st_mtime_ns for path in runs for p in (path / "stages").glob("*.json")}


# -- tables of real runs


def test_rates_of_frozen_slots_decay_as_predicted_and_others_move(arms: list[Arm]) -> None:
    table = ablation.meta_sgd(arms)
    assert {row["arm"] for row in table} == {"meta-exp106"} and {row["step"] for row in table} == {5, 10}
    frozen, free = (Table(row for row in table if row["frozen"] is kind) for kind in (True, False))
    assert len(frozen) == len(free)  # one of two blocks is frozen
    assert all(number(r, "rate") == pytest.approx(number(r, "predicted"), abs=1e-6) for r in frozen)
    assert all(0.99 < number(r, "predicted") < 1 for r in frozen)
    assert any(abs(number(r, "rate") - number(frozen[-1], "predicted")) > 1e-4 for r in free if r["step"] == 10)


def test_an_intervention_is_what_the_meta_calls_logged(arms: list[Arm]) -> None:
    table = ablation.interventions(arms)
    assert list(dict.fromkeys(row["arm"] for row in table)) == ARMS[1:]
    for row in table:
        assert number(row, "gained") == pytest.approx(number(row, "loss_pre") - number(row, "loss_post"))
        assert -1 <= number(row, "cosine") <= 1
    placebo = table.only(arm="meta-placebo")
    assert set(placebo.numbers("gained")) == {0.0} and set(placebo.numbers("displacement")) == {0.0}
    assert min(table.only(arm="meta-exp101").numbers("displacement")) > 0


def test_costs_add_up_to_the_time_of_training(arms: list[Arm]) -> None:
    table = ablation.costs(arms)
    for row in table.only(kind="run"):
        spent = number(row, "steps") * number(row, "step_seconds") + number(row, "calls") * number(row, "call_seconds")
        assert spent == pytest.approx(number(row, "seconds"))
        assert (row["calls"] == 0) == (row["arm"] == "meta-none") == (row["micro"] == 0)
    assert table.one(kind="arm", arm="meta-exp106")["calls"] == 2


def test_differences_along_the_text_end_in_the_total(arms: list[Arm]) -> None:
    along, table = ablation.chunk_differences(arms), compare.compare(arms)
    for arm in ARMS[1:]:
        last, total = along.only(arm=arm)[-1], table.one(measure="ttt", arm=arm)
        assert number(last, "difference") == pytest.approx(number(total, "difference"), abs=1e-9)
        assert (last["low"], last["high"]) == pytest.approx((total["chunks_low"], total["chunks_high"]), abs=1e-9)
    curves = ablation.learning_curves(arms)
    assert not [row for row in curves if row["arm"] == "meta-none" and "difference" in row]
    assert {(row["arm"], row["seed"]) for row in curves} == {(arm, seed) for arm in ARMS for seed in (1, 2)}


def test_every_table_is_drawn_and_read(arms: list[Arm], tmp_path: Path) -> None:
    tables = {
        "curves": ablation.learning_curves(arms),
        "differences": compare.compare(arms),
        "gains": ablation.gains(arms),
        "chunks": ablation.chunk_differences(arms),
        "meta-sgd": ablation.meta_sgd(arms),
        "interventions": ablation.interventions(arms),
        "costs": ablation.costs(arms),
    }
    drawn = draw.draw_ablation(tables | {"nothing": Table()}, tmp_path, {"notebook": "a test"})
    assert drawn.keys() == tables.keys() and all(len(d.reading) > 40 for d in drawn.values())
    for name, figure in drawn.items():
        again = read_csv(tmp_path / f"ablation-{name}.csv")
        assert again == [{c: row.get(c) for c in figure.table.columns} for row in figure.table]
        assert draw.PLOTS[f"ablation-{name}"](again).axes
    found = claims.claims(arms, tables["meta-sgd"], tables["costs"])
    assert {row["verdict"] for row in found} <= {REPRODUCED, REFUTED, OPEN} and "10 claims" in ablation_readings.claims(
        found
    )


def test_one_arm_and_one_seed_leave_claims_unresolved(arms: list[Arm]) -> None:
    alone = [Arm(arms[0].label, arms[0].config, arms[0].runs[:1])]
    found = claims.claims(alone, Table(), ablation.costs(alone))
    assert {row["verdict"] for row in found} == {OPEN}


# -- verdicts


@pytest.mark.parametrize(
    ("low", "high", "claimed", "verdict"),
    [
        (-0.003, -0.001, -0.002, REPRODUCED),
        (-0.003, 0.001, -0.002, OPEN),
        (-0.001, 0.001, -0.002, REFUTED),
        (0.001, 0.003, -0.002, REFUTED),
        (0.001, 0.003, 0.002, REPRODUCED),
        (-0.001, 0.001, 0.002, REFUTED),
    ],
)
def test_a_claimed_effect_is_judged_by_its_sign_and_size(low: float, high: float, claimed: float, verdict: str) -> None:
    assert claims.sign_verdict(Interval((low + high) / 2, low, high), claimed) == verdict
    assert claims.sign_verdict(None, claimed) == OPEN


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.5, 0.5, REPRODUCED), (0.5, 1.5, OPEN), (1.5, 2.0, REFUTED), (-3.0, 3.0, OPEN), (-3.0, -2.0, REFUTED)],
)
def test_a_claimed_band_holds_the_interval_or_does_not(low: float, high: float, verdict: str) -> None:
    assert claims.band_verdict(Interval(0.0, low, high), -1.0, 1.0) == verdict
    assert claims.band_verdict(None, -1.0, 1.0) == OPEN


def rates(calls: int, frozen: float, free: float, predicted: float) -> Table:
    row = {"arm": "meta-exp106", "seed": 1, "step": 4 * calls, "bank": "qo", "calls": calls}
    return Table(
        [
            {**row, "slot": 0, "rate": frozen, "frozen": True, "predicted": predicted},
            {**row, "slot": 2, "rate": free, "frozen": False, "predicted": None},
        ]
    )


def test_rates_are_judged_after_as_many_calls_as_were_published() -> None:
    def verdicts(table: Table) -> tuple:
        return claims._frozen_rates(table)["verdict"], claims._free_rates(table)["verdict"]

    decayed = 0.999**30
    assert verdicts(rates(30, decayed, 1.02, decayed)) == (REFUTED, OPEN)
    assert verdicts(rates(30, 1.0, 1.02, 1.0)) == (REPRODUCED, OPEN)
    assert verdicts(rates(30, decayed, 1.2, 0.9)) == (OPEN, REFUTED)  # not what weight decay predicts
    assert verdicts(rates(1083, 0.373, 1.02, 0.373)) == (REFUTED, REPRODUCED)
    assert verdicts(Table()) == (OPEN, OPEN)
