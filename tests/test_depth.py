"""Depth recurrence: arms are equal in what they claim, compute is counted by hand, scales are those of the weights."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from synthetic_run import make_run
from test_plots import check_legible

from golfcore import config
from golfcore.analysis import compare, depth
from golfcore.analysis.compare import Arm
from golfcore.analysis.frames import one, only
from golfcore.base import files, tensors
from golfcore.base.errors import UserError
from golfcore.config import Config, load
from golfcore.model import params
from golfcore.model.weights import flat
from golfcore.plots import depth as plots
from golfcore.plots import style
from golfcore.runs import stacks
from golfcore.runs.results import FLOAT
from golfcore.runs.stacks import applied, exported, flops_per_token

BASES = [
    ("demo", {}, "full", 2),
    ("demo", {"model.blocks": [0, 1, 0, 1, 0, 1]}, "full", 0),
    ("demo", {"model.mlp": "swiglu"}, "full", 3),
    ("demo", {"model.blocks": [0, 1], "model.ve_layers": [1], "model.bigram_rows": 0}, "full", 3),
    ("exp101", {}, "demo", 2),
    ("exp106", {}, "full", 2),
]


@pytest.fixture(params=BASES, ids=lambda base: f"{base[0]}-{base[2]}-{base[3]}-{len(base[1])}")
def arms(request: pytest.FixtureRequest) -> dict[str, Config]:
    return stacks.arms(*request.param)


# -- arms


def test_arms_are_equal_in_what_they_claim(arms: dict[str, Config]) -> None:
    assert list(arms) == list(stacks.ARMS) and all(cfg.name == name for name, cfg in arms.items())
    shared, unique, shallow, long, narrow = (cfg.model for cfg in arms.values())
    assert flops_per_token(arms["shared"]) == flops_per_token(arms["unique"])
    assert (
        shared.n_layers == unique.n_layers == narrow.n_layers and shared.dim == unique.dim == shallow.dim > narrow.dim
    )
    assert shallow.n_blocks == shallow.n_layers == shared.n_blocks < unique.n_blocks == narrow.n_blocks
    assert long == shallow
    trained = {name: flops_per_token(cfg) * cfg.schedule.iterations for name, cfg in arms.items()}
    assert (
        trained["shallow-long"] == pytest.approx(trained["shared"], rel=0.01) and trained["shallow"] < trained["shared"]
    )
    assert abs(exported(narrow) / exported(shared) - 1) < 0.01
    assert abs(exported(shallow) / exported(shared) - 1) < 0.02  # the scales and skips of the layers it lacks
    assert narrow.head_dim == shared.head_dim


def test_sharing_saves_the_matrices_of_the_blocks_that_are_not_there(arms: dict[str, Config]) -> None:
    shared, unique = (params.summary(arms[name].model)["kinds"]["matrix"] for name in ("shared", "unique"))
    assert unique * arms["shared"].model.n_blocks == shared * arms["shared"].model.n_layers


def test_arms_differ_in_nothing_but_the_stack(arms: dict[str, Config]) -> None:
    """All else of the configuration is equal, but for what counts blocks."""

    def rest(cfg: Config) -> dict:
        values = config.to_dict(cfg)
        of_model = ("blocks", "ve_layers", "xsa_last_n", "frozen_skips", "dim", "n_heads", "n_kv_heads", "mlp_hidden")
        for section, keys in (("model", of_model), *((s, ("freeze_blocks",)) for s in ("meta", "ttt", "reptile"))):
            values[section] = {k: v for k, v in values[section].items() if k not in keys}
        return values | {"name": "", "schedule": {**values["schedule"], "iterations": 0, "warmdown_steps": 0}}

    assert all(rest(cfg) == rest(arms["shared"]) for cfg in arms.values())
    same = [cfg.schedule for name, cfg in arms.items() if name != "shallow-long"]
    assert set(same) == {same[0]}


def test_what_names_layers_follows_the_stack() -> None:
    base = load("exp101", {"model.xsa_last_n": 4, "ttt.freeze_blocks": 4})
    longer = stacks.restack(base, tuple(range(22)))
    assert longer.model.ve_layers == (18, 19, 20, 21) and longer.model.xsa_last_n == 4
    assert longer.model.frozen_skips == (3, 4) and longer.ttt.freeze_blocks == 8
    shorter = stacks.restack(base, (0, 1, 2))
    assert shorter.model.ve_layers == (0, 1, 2) and shorter.model.xsa_last_n == 3
    assert shorter.model.frozen_skips == () and shorter.ttt.freeze_blocks == 1
    assert stacks.restack(load("exp101"), tuple(range(22))).model.xsa_last_n == 22  # all stays all
    assert stacks.restack(base, base.model.blocks) == base
    assert stacks.restack(load("demo", {"model.ve_layers": [0]}), (0, 1)).model.ve_layers == (1,)
    assert stacks.restack(load("demo", {"model.ve_layers": []}), (0, 1)).model.ve_layers == ()


def test_steps_keep_the_shape_of_the_schedule() -> None:
    found = stacks.lasting(load("demo"), 100).schedule
    assert (found.iterations, found.warmdown_steps) == (100, 60)


def test_a_preset_that_repeats_no_block_applies_each_twice() -> None:
    assert stacks.arms("demo", {})["shared"].model.blocks == (0, 1, 2, 3, 0, 1, 2, 3)
    assert (
        stacks.arms("pr294-recurrent", {}, "smoke")["shared"].model.blocks
        == load("pr294-recurrent", {}, "smoke").model.blocks
    )


def test_what_is_no_comparison_is_refused() -> None:
    with pytest.raises(UserError, match="repeats: expected 0 or 2 and more, found 1, which shares no block"):
        stacks.arms("demo", {}, repeats=1)
    for names, repeats in ((["unique", "shared"], 2), ([], 2), (["shared", "shared"], 2), (["shared"], -1)):
        with pytest.raises(UserError, match="expected shared and then different others, and repeats from 0 on, found"):
            stacks.arms("demo", {}, repeats=repeats, names=names)
    with pytest.raises(UserError, match="arms: unknown key 'uniqe'; did you mean 'unique'"):
        stacks.arms("demo", {}, repeats=2, names=["shared", "uniqe"])


# -- compute


def test_compute_by_hand() -> None:
    small = {"model.dim": 8, "model.n_heads": 2, "model.n_kv_heads": 1, "model.mlp_hidden": 10, "model.blocks": [0, 0]}
    small |= {"model.vocab_size": 300, "model.bigram_rows": 16, "model.bigram_dim": 4, "model.ve_layers": [1]}
    small |= {"model.ve_dim": 6, "model.rope_dims": 2, "data.seq_len": 64}
    cfg = load("smoke", small)
    block = 2 * 8 * 8 + 2 * 4 * 8 + 2 * 10 * 8
    weights = 2 * block + 300 * 8 + 8 * 4 + 4 * 6  # two applications, head, both projections
    assert applied(cfg.model) == weights
    assert flops_per_token(cfg) == 6 * weights + 12 * 2 * 8 * 64


# -- tables of runs


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> list[Arm]:
    """The arms of the smallest preset with two seeds, without training; scores and weights are random."""
    folder, found = tmp_path_factory.mktemp("depth"), []
    for name, cfg in stacks.arms("smoke", {}, repeats=3).items():
        for seed in (1, 2):
            seeded = config.override(cfg, {"run.seed": seed}, name)
            run, _ = make_run(folder / f"{name}-s{seed}", config=seeded)
            _shift(run.path, 0.01 * seed - 0.2 * (name == "unique"))
            weights, generator = flat(params.init(cfg.model, seed)), torch.Generator().manual_seed(seed)
            for tensor in ("attn_scale", "mlp_scale", "resid_mix", "skip"):
                weights[tensor] = weights[tensor] + 0.1 * torch.randn(weights[tensor].shape, generator=generator)
            tensors.save(run.file(FLOAT), weights, {})
            run.log({"kind": "val", "step": 102, "loss": 5.0, "bpb": 2.0, "elapsed": 10.2})  # no training row of it
            found.append(run.path)
    return compare.arms_of(found)


def _shift(run: Path, by: float) -> None:
    """Change every score of a run by `by` bits per byte."""
    report = files.read_json(run / "results.json", "results")
    for name in compare.EVALUATIONS:
        path = run / f"eval/{name}.json"
        result = files.read_json(path, "a result")
        for chunk in result["chunks"]:
            chunk["nats"] += by * np.log(2) * chunk["bytes"]
        files.write_json(path, result)
        report["measures"][name]["bpb"] += by
    files.write_json(run / "results.json", report)


def made(groups: list[Arm]) -> dict[str, pd.DataFrame]:
    return {
        "sizes": depth.sizes(groups),
        "tradeoff": depth.summary(groups),
        "differences": depth.differences(groups),
        "curves": depth.curves(groups),
        "scales": depth.scales(groups),
        "specialisation": depth.specialisation(groups),
    }


Tables = dict[str, pd.DataFrame]


@pytest.fixture(scope="module")
def tables(groups: list[Arm]) -> Tables:
    return made(groups)


def test_every_row_says_where_it_is_from(groups: list[Arm], tables: Tables) -> None:
    configs = {run.run.id: run.run.config_hash() for arm in groups for run in arm.runs}
    of_arm = {arm.label: arm.config.hash for arm in groups}
    for row in [row for table in tables.values() for row in table.to_dict("records")]:
        assert row["data"] == "d" * 64
        if isinstance(row.get("run"), str):
            assert row["config"] == configs[row["run"]] and row["run"] == f"{row['arm']}-s{row['seed']}"
        else:
            assert row["runs"] == f"{row['arm']}-s1 {row['arm']}-s2" and row["seeds"] == "1 2"
            assert row["config"] == of_arm[row["arm"]]
    assert all(r["other_runs"] == f"{r['other']}-s1 {r['other']}-s2" for r in tables["differences"].to_dict("records"))


def test_sizes_and_compute_add_up(groups: list[Arm], tables: Tables) -> None:
    for arm in groups:
        row, runs = (
            one(tables["tradeoff"], kind="arm", arm=arm.label),
            only(tables["tradeoff"], kind="run", arm=arm.label),
        )
        parts = only(tables["sizes"], arm=arm.label).set_index("part")
        assert parts["parameters"].sum() == row["parameters"] == exported(arm.config.model)
        assert parts["bytes"].sum() == pytest.approx(row["bytes"])
        assert parts["bytes"]["matrices"] == pytest.approx(row["matrix_bytes"])
        assert row["bits_per_parameter"] == pytest.approx(8 * row["bytes"] / row["parameters"])
        assert row["flops"] == flops_per_token(arm.config) * 102 * arm.config.optim.batch_tokens
        assert row["ttt"] == pytest.approx(runs["ttt"].mean())


def test_differences_are_shared_less_the_other(tables: Tables) -> None:
    means, table = only(tables["tradeoff"], kind="arm").set_index("arm"), tables["differences"]
    for row in table[table["measure"] != "ttt_gain"].to_dict("records"):
        ours, theirs = (means[row["measure"]][row[side]] for side in ("arm", "other"))
        assert row["difference"] == pytest.approx(ours - theirs)
    rows = only(table, measure="ttt").set_index("other")
    assert rows["flops_ratio"]["unique"] == 1 and rows["bytes_ratio"]["unique"] < 1
    assert 0.9 < rows["bytes_ratio"]["shallow"] < 1.2 and rows["flops_ratio"]["shallow"] > 1.5


def test_a_difference_is_said_to_be_one_only_if_its_interval_excludes_0(tables: Tables) -> None:
    parts = plots.differences_caption(tables["differences"]).split(": ", 1)[1].split("; ")
    said = {part.split(" ")[0]: part for part in parts}
    assert "+0.2000" in said["unique"] and "shared is worse" in said["unique"]
    assert "not resolved" in said["shallow"] and "not resolved" in said["unique-narrow"]
    bare = plots.differences_caption(tables["differences"].drop(columns=["low", "high"]))
    assert bare.count("too little text for an interval") == 4
    assert "one arm" in plots.differences_caption(pd.DataFrame())


def test_without_adaptation_there_is_no_panel_of_it(groups: list[Arm]) -> None:
    def still(run: compare.Scored) -> compare.Scored:
        chunks = compare.with_gains(run.chunks.assign(ttt=run.chunks["sliding"]))
        return dataclasses.replace(run, totals=run.totals | {"ttt_gain": 0.0}, chunks=chunks)

    none = [Arm(arm.label, arm.config, tuple(map(still, arm.runs))) for arm in groups]
    table = depth.differences(none)
    assert set(table["measure"]) == {"static", "sliding"}
    with style.drawing():
        assert len(plots.differences(table).axes) == 2
    assert plots.differences_caption(table).startswith("(b)")


def test_an_arm_that_is_no_larger_no_dearer_and_better_is_named() -> None:
    rows = [("small", 1, 1, 3.0), ("large", 2, 1, 3.1), ("good", 2, 2, 2.9)]
    table = pd.DataFrame(rows, columns=["arm", "bytes", "flops", "ttt"]).assign(kind="arm")
    assert plots.tradeoff_caption(table).endswith("by the mean better: small than large.")


def test_curves_count_the_compute_of_their_arm(groups: list[Arm], tables: Tables) -> None:
    for arm in groups:
        rows = only(tables["curves"], arm=arm.label, seed=1)
        per_step = flops_per_token(arm.config) * arm.config.optim.batch_tokens
        assert list(rows["flops"]) == [step * per_step for step in rows["step"]]


# -- scales


def test_scales_are_those_of_the_weights(groups: list[Arm], tables: Tables) -> None:
    weights = tensors.load(groups[0].runs[0].run.file(FLOAT), "weights")[0]
    rows = only(tables["scales"], arm="shared", seed=1)
    assert len(rows) == 4 * 6 + 3
    for row in only(rows, kind="layer").to_dict("records"):
        layer, name = row["layer"], row["name"]
        assert (row["block"], row["application"]) == (layer % 2, layer // 2)
        tensor = weights["resid_mix"][:, int(name[-1] == "0")] if name.startswith("mix") else weights[name]
        assert row["mean"] == pytest.approx(float(tensor[layer].mean()))
        assert row["spread"] == pytest.approx(float(tensor[layer].std(correction=0)))
    assert list(only(rows, name="mix_x0")["start"]) == [0.0] * 6
    assert list(only(rows, name="attn_scale")["start"]) == pytest.approx([0.1, 1, 1, 1, 1, 1])
    skips = only(rows, kind="skip")
    assert skips[["from_layer", "layer", "block"]].to_numpy().tolist() == [[2, 3, 1], [1, 4, 0], [0, 5, 1]]
    assert list(skips["mean"]) == pytest.approx([float(row.mean()) for row in weights["skip"]])


def test_shares_of_variance_are_those_of_what_made_it() -> None:
    generator = torch.Generator().manual_seed(0)
    channels, own = (torch.randn(shape, generator=generator) for shape in ((1, 4000), (4, 4000)))
    levels = torch.tensor([[-1.0], [0], [1], [2]])
    assert depth.variances(channels.expand(4, -1))["common"] == pytest.approx(1)
    assert depth.variances(levels.expand(-1, 9))["level"] == pytest.approx(1)
    unrelated = depth.variances(own)
    assert unrelated["common"] == pytest.approx(0.25, abs=0.02) and unrelated["pattern"] == pytest.approx(
        0.75, abs=0.02
    )
    mixed = depth.variances(channels + levels + own)
    assert mixed["level"] + mixed["common"] + mixed["pattern"] == pytest.approx(1)
    assert mixed["between"] == pytest.approx(1.25, rel=0.1) and mixed["within"] == pytest.approx(2, rel=0.1)
    assert mixed["ratio"] == pytest.approx(mixed["between"] / mixed["within"])
    assert "ratio" not in depth.variances(torch.ones(2, 3))


def test_applications_are_grouped_by_the_shared_blocks_in_every_arm_as_deep(tables: Tables) -> None:
    table = tables["specialisation"]
    shares = table.groupby("arm")["shares"].first()
    assert shares.to_dict() == {"shared": True, "unique": False, "unique-narrow": False}
    assert set(table["applications"]) == {3} and len(table) == 3 * 2 * 4 * 2  # arms, seeds, scales, blocks


# -- figures


@pytest.mark.parametrize("n", [1, 2, 5])
def test_frames_of_any_number_of_arms_are_drawn_said_and_legible(groups: list[Arm], tables: Tables, n: int) -> None:
    few = [Arm(arm.label, arm.config, arm.runs[:1]) for arm in groups[:n]]
    found = tables if n == len(groups) else made(few)
    assert {f"depth-{name}" for name in found} == set(plots.FIGURES)
    assert len(found["differences"]) == 4 * (n - 1)
    for name, table in found.items():
        figure, caption = plots.FIGURES[f"depth-{name}"]
        if len(table):
            with style.drawing():
                check_legible(figure(table))
            assert len(caption(table)) > 40
