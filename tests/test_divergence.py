"""Laws of weights that were kept on the way: how runs part, what a layout of the table does while models learn."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import BELONGS, TINY, lively, tables, with_

from golfcore import config
from golfcore.analysis import contention, divergence
from golfcore.base import tensors
from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.config import Config
from golfcore.data.tokens import Tables
from golfcore.model import params
from golfcore.model.forward import Net, forward, nll
from golfcore.model.hashing import ngram_rows
from golfcore.model.weights import Weights, flat, tree_map
from golfcore.runs import sweep
from golfcore.runs.folder import open_run

PLAN = sweep.load("muon-adamw", "smoke")


def kept(folder: Path, cfg: Config, by_step: dict[int, Weights]) -> RunFolder:
    """A run folder that kept these weights."""
    run = open_run(folder, cfg, "0" * 64, {})
    for step, weights in by_step.items():
        tensors.save(folder / f"steps/{step:06}.safetensors", flat(weights), {"step": step}, BELONGS)
    return run


def test_a_course_is_the_distance_and_the_cosine_of_what_was_kept(tmp_path: Path) -> None:
    """b moves twice as far as a along the same way, then a right angle away."""
    start = params.init(TINY.model, TINY.run.seed)
    way, other = (tree_map(torch.Tensor.detach, lively(TINY, seed)) for seed in (1, 2))

    def moved(first: float, second: float) -> Weights:
        return tree_map(lambda s, w, o: s + first * w + second * o, start, way, other)

    a = kept(tmp_path / "a", TINY, {2: moved(1, 0), 4: moved(1, 0), 6: start})
    b = kept(tmp_path / "b", TINY, {2: moved(2, 0), 4: moved(1, 1)})
    found = divergence.course(a, b).set_index(["part", "step"])
    assert sorted(set(found.index.get_level_values("step"))) == [0, 2, 4]
    assert found.loc[("all", 0), "l2"] == 0 and np.isnan(found.loc[("all", 0), "moved_cosine"])
    assert found.loc[("all", 2), "moved_cosine"] == pytest.approx(1, abs=1e-6)
    size = torch.cat([t.flatten() for t in flat(other).values()]).norm()
    assert found.loc[("all", 4), "l2"] == pytest.approx(float(size), rel=1e-5)
    assert found.loc[("all", 4), "moved_cosine"] < 0.99
    with pytest.raises(UserError, match="weights kept on the way"):
        divergence.kept(open_run(tmp_path / "c", TINY, "0" * 64, {}))


def test_pairs_of_a_sweep_are_arms_with_what_they_are_on_and_seeds_of_that(tmp_path: Path) -> None:
    plan, runs = PLAN.only(["muon", "muon-rerun", "adamw"]), []
    for number, (name, arm) in enumerate(plan.configs.items()):
        for seed in (1, 2):
            cfg = config.override(arm, {"run.seed": seed}, name)
            weights = tree_map(torch.Tensor.detach, lively(cfg, 10 * number + seed))
            runs.append(kept(tmp_path / f"{name}-s{seed}", cfg, {2: weights}))
    found = divergence.of_sweep(plan, runs)
    assert set(found["pair"]) == {
        "muon-s1 vs muon-rerun-s1",
        "muon-s2 vs muon-rerun-s2",
        "muon-s1 vs adamw-s1",
        "muon-s2 vs adamw-s2",
        "muon-s1 vs muon-s2",
    }
    last = divergence.last(found).set_index("change")
    assert last["pairs"].to_dict() == {"muon-rerun": 2, "adamw": 2, "other seed": 1}
    rows = found[(found["change"] == "muon-rerun") & (found["part"] == "matrices") & (found["step"] == 2)]
    assert last.loc["muon-rerun", "cosine"] == pytest.approx(rows["cosine"].mean())


STARTS = torch.arange(1024) % 3 == 0
FACTS = Tables(torch.ones(1024, dtype=torch.int16), STARTS, torch.zeros(1024, dtype=torch.bool))


def test_the_layout_of_the_published_table() -> None:
    """325 pieces of the competition's tokenizer begin a word: 163 and 350 pairs a row when split, 256 when not."""
    starts = torch.arange(1024) < 325
    found = contention.layout(Tables(FACTS.base_bytes, starts, FACTS.boundary), 4096).set_index("part")
    assert found["pairs_per_row"].round().tolist() == [256, 163, 350]
    assert found.loc["within word", ["first", "last", "rows"]].tolist() == [2047, 4093, 2047]


def test_routes_are_those_of_the_most_frequent_pairs_under_plain_hashing() -> None:
    rng = np.random.default_rng(0)
    tokens, rows = rng.zipf(1.3, 20_000) % 1024, 65
    found = contention.routes_of(tokens, FACTS, rows)
    code, times = np.unique(tokens[:-1] * 1024 + tokens[1:], return_counts=True)
    hot = code[np.argsort(-times, kind="stable")[: rows - 1]]
    assert (found < 2).sum() == rows - 1 and times[np.isin(code, np.flatnonzero(found < 2))].min() >= min(
        times[np.isin(code, hot)]
    )
    both = torch.from_numpy(np.stack([np.flatnonzero(found < 2) // 1024, np.flatnonzero(found < 2) % 1024], 1))
    places = ngram_rows(both, STARTS, rows, False)[:, 1]
    shared = (places[:, None] == places).sum(1) > 1
    assert (found[found < 2] == shared.numpy()).all()


def test_losses_by_route_are_those_of_the_forward_and_add_up() -> None:
    weights = tree_map(torch.Tensor.detach, lively(TINY))
    x, y = torch.randint(1024, (2, 5, 30), generator=torch.Generator().manual_seed(0))
    net, routes = Net(TINY.model, tables()), np.arange(1024**2).astype(np.int8) % 3
    found = contention._by_route(net, weights, x, y, routes)
    nats = nll(forward(net, weights, x), y)[:, 1:].double()
    assert found["targets"].sum() == nats.numel()
    assert (found["nats"] * found["targets"]).sum() == pytest.approx(float(nats.sum()), rel=1e-6)
    starts = tables().word_start[x[:, 1:]]
    cold = torch.from_numpy(routes)[x[:, :-1] * 1024 + x[:, 1:]] == 2
    row = found[(found["route"] == "cold") & found["word_start"]].iloc[0]
    assert row["nats"] == pytest.approx(float(nats[starts & cold].mean()), rel=1e-6) and row["norm"] > 0
    said = contention.word_starts(net, weights, x, y)
    assert (said["share"].sum(), said["loss"].sum()) == (pytest.approx(1), pytest.approx(1))
    plain = with_(TINY, model={"bigram_rows": 0})
    without = tree_map(torch.Tensor.detach, lively(plain))
    assert contention._by_route(Net(plain.model, tables()), without, x, y, routes)["norm"].isna().all()


def test_gains_are_differences_to_an_arm_on_the_same_targets() -> None:
    rows = [
        {"arm": arm, "seed": seed, "step": 5, "word_start": start, "route": "cold", "targets": n, "nats": nats}
        for arm, seed, start, n, nats in (
            ("plain", 1, True, 10, 2.0),
            ("plain", 1, False, 30, 4.0),
            ("other", 1, True, 10, 1.0),
            ("other", 1, False, 30, 4.0),
            ("plain", 2, True, 10, 2.0),
            ("other", 2, True, 10, 2.5),
        )
    ]
    found = contention.gains(pd.DataFrame(rows), "plain").iloc[0]
    assert (found["arm"], found["seeds"]) == ("other", 2) and found["difference"] == pytest.approx((-0.25 + 0.5) / 2)


def test_a_recommendation_needs_an_interval_that_excludes_nothing_gained() -> None:
    columns = ["arm", "difference", "low", "high", "detectable", "over", "seeds"]
    plain, sure = ("plain", None, None, None, None, None, 3), ("b", -0.02, -0.03, -0.01, 0.01, "seeds and text", 3)
    unsure, blind = ("c", -0.05, -0.11, 0.01, 0.08, "text", 3), ("d", -0.5, None, None, None, None, 1)
    tables_of = ([plain, sure, unsure], [plain, unsure], [plain, blind])
    say = [contention.recommendation(pd.DataFrame(rows, columns=columns)) for rows in tables_of]
    assert say[0].startswith("Take b: -0.0200") and say[1].startswith("Keep plain") and "0.0800" in say[1]
    assert say[2].startswith("Too little text")
