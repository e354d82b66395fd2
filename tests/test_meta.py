"""Laws of meta-learning: the objective's gradients, what is recorded, exp106 to the end."""

import json
import math
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import generated
from tiny import RUNTIME, lively, steps, tables, train, with_
from torch import Tensor

from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.config import Config, MetaConfig, load, override
from golfcore.data.stream import TokenStream
from golfcore.evals import adapt as ttt
from golfcore.interop import from_reference, reference_config, to_reference
from golfcore.model import params
from golfcore.model.attention import Compute, attend_reference
from golfcore.model.forward import Net, forward, nll
from golfcore.model.weights import Banks, Weights, flat, unflat
from golfcore.optim.inner import loss_function
from golfcore.quant import artifact
from golfcore.quant.quantize import quantize_weights
from golfcore.runs import pipeline
from golfcore.runs.reopen import evaluate_again
from golfcore.train import meta
from golfcore.train.meta import add_gradient
from golfcore.train.step import meta_data, plan

SMOKE = load("smoke", {"meta.enabled": True, "meta.inner_lr": 0.1})
RATES = load("smoke", {"meta.enabled": True, "meta.split": "batch", "meta.delta_weight": 0.3, "model.meta_sgd": True})
V = SMOKE.model.vocab_size


def batch(rows: int, length: int = 16, seed: int = 1) -> meta.Batch:
    x, y = torch.randint(V, (2, rows, length), generator=torch.Generator().manual_seed(seed))
    return x, y


def loss_of(cfg: Config) -> meta.Loss:
    return meta.model_loss(Net(cfg.model, tables()), cfg.meta)


def gradients(cfg: Config, weights: Weights, x: Tensor, y: Tensor, ahead: meta.Batch | None = None) -> dict:
    return flat(outcome(cfg, weights, meta.split(cfg.meta, x, y, ahead)).gradients)


def outcome(cfg: Config, weights: Weights, data: tuple[meta.Batch, meta.Batch]) -> meta.Outcome:
    return meta.evaluate(cfg.meta, loss_of(cfg), weights, data, meta.freeze_masks(cfg.model, cfg.meta))


def assert_close(found: dict[str, Tensor], want: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    """`tolerance`: of the largest entry of each tensor."""
    assert found.keys() == want.keys()
    for name, t in want.items():
        most = tolerance * float(t.detach().abs().max()) + 1e-10
        difference = float((found[name].detach() - t.detach()).abs().max())
        assert difference <= most, f"{name}: {difference} of {most}"


# -- the first-order objective, against its definition written out


def by_hand(cfg: Config, weights: Weights, inner: meta.Batch, outer: meta.Batch) -> dict[str, Tensor]:
    """The published rules with leaves and copies: k steps, SAM, rates, delta; one graph a term, no sharing of code."""
    m, loss = cfg.meta, loss_of(cfg)
    constant = {n: t.detach().clone() for n, t in flat(weights).items()}
    rate = {n: constant.get("meta_sgd_" + n, torch.ones(len(constant[n]))).view(-1, 1, 1) for n in Banks._fields}

    def bank_gradient(banks: dict[str, Tensor]) -> dict[str, Tensor]:
        leaves = {n: t.clone().requires_grad_() for n, t in banks.items()}
        found = torch.autograd.grad(loss(unflat({**constant, **leaves}), *inner), list(leaves.values()))
        per_block = {"qo": 2, "kv": 2, "up": 1, "down": 1}
        for name, g in zip(leaves, found, strict=True):
            g[: per_block[name] * m.freeze_blocks] = 0
        return dict(zip(leaves, found, strict=True))

    start = {n: constant[n] for n in Banks._fields}
    here, moved, velocity = start, {n: torch.zeros_like(t) for n, t in start.items()}, {}
    for _ in range(m.inner_steps):
        g = bank_gradient(here)
        if m.sam_rho:
            norm = math.sqrt(sum(float(t.square().sum()) for t in g.values()))
            g = bank_gradient({n: t + m.sam_rho * g[n] / norm for n, t in here.items()})
        norm = math.sqrt(sum(float(t.square().sum()) for t in g.values()))
        scale = min(1.0, m.inner_clip / norm) if m.inner_clip else 1.0
        velocity = {n: m.inner_momentum * velocity.get(n, 0) + scale * t for n, t in g.items()}
        moved = {n: moved[n] + m.inner_lr * v for n, v in velocity.items()}
        here = {n: start[n] - rate[n] * moved[n] for n in start}

    def outer_gradient(banks: dict[str, Tensor]) -> dict[str, Tensor]:
        leaves = {n: t.clone().requires_grad_() for n, t in {**constant, **banks}.items()}
        found = torch.autograd.grad(loss(unflat(leaves), *outer), list(leaves.values()), allow_unused=True)
        return {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(leaves.items(), found, strict=True)}

    post, pre = outer_gradient(here), outer_gradient({})
    weight = m.loss_weight + m.delta_weight
    out = {n: weight * post[n] - m.delta_weight * pre[n] for n in constant}
    for n in Banks._fields if cfg.model.meta_sgd else ():
        out["meta_sgd_" + n] = -weight * (moved[n] * post[n]).sum((1, 2))
    return out


OBJECTIVES = {
    "exp101": {},
    "delta": {"meta": {"delta_weight": 0.3}},
    "rates": {"model": {"meta_sgd": True}},
    "exp106": {"model": {"meta_sgd": True}, "meta": {"split": "batch", "delta_weight": 0.3}},
    "exp107": {"meta": {"split": "batch", "delta_weight": 0.3, "sam_rho": 0.05}},
    "next-chunk": {"meta": {"split": "next-chunk"}},
    "four steps": {"meta": {"inner_steps": 4, "inner_momentum": 0.9, "inner_clip": 0.05}, "model": {"meta_sgd": True}},
    "nothing frozen": {"meta": {"freeze_blocks": 0}},
    "no inner rate": {"meta": {"inner_lr": 0.0}},
}


@pytest.mark.parametrize("changes", OBJECTIVES.values(), ids=OBJECTIVES)
def test_gradients_are_those_of_the_rules_written_out(changes: dict) -> None:
    cfg = with_(SMOKE, **changes)
    weights, (x, y), ahead = lively(cfg), batch(4), batch(4, seed=2)
    inner, outer = {
        "time": ((x[:, :8], y[:, :8]), (x[:, 8:], y[:, 8:])),
        "batch": ((x[:2], y[:2]), (x[2:], y[2:])),
        "next-chunk": ((x, y), ahead),
    }[cfg.meta.split]
    found = gradients(cfg, weights, x, y, ahead)
    assert_close(found, by_hand(cfg, weights, inner, outer))
    assert all(t.grad is None for t in flat(weights).values())  # nothing is accumulated behind the caller's back
    for name in ("meta_sgd_qo", "meta_sgd_kv", "meta_sgd_up", "meta_sgd_down") if cfg.model.meta_sgd else ():
        n = cfg.meta.freeze_blocks * (2 if name[-2:] in ("qo", "kv") else 1)
        assert (found[name][:n] == 0).all() and (found[name][n:] != 0).all()


def test_a_batch_of_one_falls_back_to_time_and_an_odd_one_gives_the_outer_part_more() -> None:
    cfg = with_(SMOKE, meta={"split": "batch"})
    x, y = batch(1)
    time = with_(SMOKE, meta={"split": "time"})
    assert_close(gradients(cfg, lively(cfg), x, y), gradients(time, lively(cfg), x, y), 0)
    x, y = batch(5, 7)
    (xi, yi), (xo, yo) = meta.split(cfg.meta, x, y)
    assert (len(xi), len(yi), len(xo), len(yo)) == (2, 2, 3, 3) and torch.equal(torch.cat((xi, xo)), x)
    (xi, _), (xo, _) = meta.split(time.meta, x, y)
    assert (xi.shape, xo.shape) == ((5, 3), (5, 4)) and torch.equal(torch.cat((xi, xo), 1), x)


def test_the_placebo_is_the_plain_outer_gradient() -> None:
    cfg = with_(SMOKE, meta={"inner_steps": 0})
    weights, (x, y) = lively(cfg), batch(3)
    outer = 0.5 * nll(forward(Net(cfg.model, tables()), weights, x[:, 8:]), y[:, 8:]).mean()
    want = torch.autograd.grad(outer, list(flat(weights).values()))
    assert_close(gradients(cfg, weights, x, y), dict(zip(flat(weights), want, strict=True)), 0)
    frozen = with_(SMOKE, meta={"freeze_blocks": 2})  # freezing everything leaves it, too
    assert_close(gradients(frozen, weights, x, y), gradients(cfg, weights, x, y), 0)


def test_inner_steps_on_everything_are_those_of_test_time_training() -> None:
    """The inner loop of preset meta-ttt walks where `evals.ttt.step` does on the same rows."""
    changes = {"adapted": "all", "inner_lr": 1.0, "inner_steps": 3, "inner_momentum": 0.9, "inner_clip": 0.2}
    cfg = with_(SMOKE, meta=changes, ttt={"epochs": 3, "momentum": 0.9, "clip": 0.2, "freeze_blocks": 1})
    weights, (x, y) = lively(cfg), batch(4)
    moved = meta.inner_steps(cfg.meta, loss_of(cfg), weights, (x, y), meta.freeze_masks(cfg.model, cfg.meta))
    adapter = ttt.start(cfg, weights)
    for _ in range(3):
        ttt.step(cfg, Net(cfg.model, tables()), adapter, x, y, 1.0, RUNTIME)
    steps = {n: t.detach() - flat(adapter.weights)[n].detach() for n, t in flat(weights).items()}
    assert_close(moved, steps, 1e-3)  # a difference of nearly equal numbers
    assert all(float(s.abs().max()) > 0 for s in steps.values())


# -- second order


def two_parameters(a: float, b: float) -> Weights:
    idle = torch.zeros(1, 1, 1)
    return Weights(Banks(torch.full((1, 1, 1), a), idle, idle, idle), {"b": torch.tensor(b)})


def toy(weights: Weights, x: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (weights.banks.qo[0].squeeze() * weights.rest["b"] * x - y).square()


@pytest.mark.parametrize(("order", "da", "db"), [("first", 3.3, 1.87), ("second", 0.33, -0.44)])
def test_two_parameters_worked_out_by_hand(order: str, da: float, db: float) -> None:
    """L(a, b; y) = (ab - y)^2 / 2, of which a is adapted: a = 2, b = 3, inner y = 5, outer y = 4, rate 0.1.

    g = (ab - 5) b = 3, a' = 2 - 0.1 * 3 = 1.7, r = a'b - 4 = 1.1, L(a', b; 4) = 0.605.
    First order:  dL/da = r b = 3.3                            dL/db = r a' = 1.87
    Second order: da'/da = 1 - 0.1 b^2 = 0.1                   da'/db = -0.1 (2ab - 5) = -0.7
                  dL/da = 3.3 * 0.1 = 0.33                     dL/db = 1.87 + 3.3 * -0.7 = -0.44
    """
    cfg = MetaConfig(inner_lr=0.1, loss_weight=1.0, order=order)
    one = torch.tensor(1.0)
    inner, outer = (one, torch.tensor(5.0)), (one, torch.tensor(4.0))
    found = meta.evaluate(cfg, toy, two_parameters(2, 3), (inner, outer), {})
    assert float(found.loss_post) == pytest.approx(0.605, rel=1e-6)
    assert found.loss_pre is None
    watched = meta.evaluate(replace(cfg, delta_weight=0.5), toy, two_parameters(2, 3), (inner, outer), {})
    assert float(watched.loss_pre) == pytest.approx(2.0)
    assert float(found.moved["qo"]) == pytest.approx(0.3, rel=1e-6)
    assert float(found.gradients.banks.qo) == pytest.approx(da, rel=1e-5)
    assert float(found.gradients.rest["b"]) == pytest.approx(db, rel=1e-5)


def test_second_order_is_the_slope_of_the_whole_objective() -> None:
    """Along a random direction, against differences of the objective's value; first order misses it."""
    cfg = with_(RATES, meta={"order": "second", "inner_lr": 2.0, "inner_steps": 2, "inner_momentum": 0.9})
    weights, (x, y) = lively(cfg), batch(4)
    inner, outer = meta.split(cfg.meta, x, y)
    loss, masks = loss_of(cfg), meta.freeze_masks(cfg.model, cfg.meta)
    g = torch.Generator().manual_seed(5)
    direction = {n: torch.randn(t.shape, generator=g) for n, t in flat(weights).items()}

    def value(step: float) -> float:
        there = unflat({n: t.detach() + step * direction[n] for n, t in flat(weights).items()})
        moved = meta.inner_steps(replace(cfg.meta, order="first"), loss, there, inner, masks)
        return float(0.8 * loss(meta.displaced(there, moved), *outer) - 0.3 * loss(there, *outer))

    want = (value(2e-3) - value(-2e-3)) / 4e-3
    for order, agrees in (("second", True), ("first", False)):
        found = gradients(with_(cfg, meta={"order": order}), weights, x, y)
        slope = sum(float((t * direction[n]).sum()) for n, t in found.items())
        assert (slope == pytest.approx(want, rel=0.01 if agrees else 0.05)) == agrees


# -- how it is computed


class Kept:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def peak_bytes(work) -> int:
    """Most bytes that graphs kept for their backward passes at one time."""
    alive, sizes = weakref.WeakSet[Kept](), [0]

    def pack(tensor: Tensor) -> Kept:
        alive.add(kept := Kept(tensor))
        sizes.append(sum(k.tensor.nbytes for k in alive))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        work()
    return max(sizes)


def test_the_delta_objective_holds_one_graph_at_a_time() -> None:
    """At most 1.15 times the memory without the delta; the published order, with both graphs alive, needs far more."""
    weights, (x, y) = lively(RATES), batch(16, 128)
    data, loss = meta.split(RATES.meta, x, y), loss_of(RATES)

    def both() -> None:
        moved = meta.inner_steps(RATES.meta, loss, weights, data[0], meta.freeze_masks(RATES.model, RATES.meta))
        total = 0.8 * loss(meta.displaced(weights, moved), *data[1]) - 0.3 * loss(weights, *data[1])
        torch.autograd.grad(total, list(flat(weights).values()))

    without = peak_bytes(lambda: outcome(with_(RATES, meta={"delta_weight": 0.0}), weights, data))
    assert peak_bytes(lambda: outcome(RATES, weights, data)) <= 1.15 * without
    assert peak_bytes(both) > 1.5 * without


def test_compiled_losses_give_the_eager_gradients() -> None:
    """Training hands its compiled loss to the meta call: stacks, slices and adapted weights must all trace."""
    weights, data, masks = lively(RATES), meta.split(RATES.meta, *batch(4)), meta.freeze_masks(RATES.model, RATES.meta)
    traced = torch.compile(loss_of(RATES), backend="eager", dynamic=False, fullgraph=True)
    found = meta.evaluate(RATES.meta, traced, weights, data, masks)
    assert_close(flat(found.gradients), flat(outcome(RATES, weights, data).gradients), 1e-5)


@pytest.mark.parametrize("dtype", ["float32", "compute"])
def test_a_small_step_survives_in_float32_and_not_in_the_compute_dtype(dtype: str) -> None:
    """In bfloat16 the published inner step is lost in rounding: what the forward sees is another displacement."""
    cfg = with_(SMOKE, meta={"inner_lr": 2e-4, "dtype": dtype})
    weights, (x, y) = lively(cfg), batch(4)
    data, net = meta.split(cfg.meta, x, y), Net(cfg.model, tables(), Compute(torch.bfloat16, attend_reference))
    report = add_gradient(cfg, net, weights, 0, data, loss_function(net, cfg.optim.z_loss))
    assert report["displacement"] > 0
    if dtype == "float32":
        assert report["realised"] == pytest.approx(1, abs=0.05) and report["realised_cosine"] > 0.99
        assert report["loss_post"] == pytest.approx(float(outcome(cfg, weights, data).loss_post), abs=1e-6)
    else:
        assert report["realised"] > 3 and report["realised_cosine"] < 0.5


# -- within training


def test_next_chunk_reads_the_text_that_the_next_step_trains_on(stream: TokenStream) -> None:
    cfg = with_(SMOKE, meta={"split": "next-chunk"})
    for world in (1, 2, 4):
        stream.position = 7
        inner, outer = meta_data(cfg, plan(cfg, world), stream, torch.device("cpu"))
        assert stream.position == 7
        last, ahead = (stream.rows(7 + i * (16 * 64 + 1), 16, 64) for i in (0, 1))
        assert all(torch.equal(a, b) for a, b in zip((*inner, *outer), (*last, *ahead), strict=True))


def test_rates_of_frozen_slots_only_decay(stream: TokenStream) -> None:
    """Their gradient is exactly 0, so AdamW only shrinks them, at meta steps: s = product of 1 - lr wd scale."""
    cfg = with_(RATES, meta={"every": 2})
    s, reports = steps(cfg, stream, 5)
    o = cfg.optim
    want = math.prod(1 - o.scalar_lr * o.adam_wd * r.lr_multiplier for r in reports if r.meta is not None)
    assert [r.meta is not None for r in reports] == [True, False, True, False, True]
    for name, n in (("qo", 2), ("kv", 2), ("up", 1), ("down", 1)):
        rates = s.weights.rest["meta_sgd_" + name].detach()
        torch.testing.assert_close(rates[:n], torch.full((n,), want), rtol=1e-6, atol=0)
        assert (rates[n:] != rates[0]).all()


def test_the_metrics_hold_every_meta_call_and_the_rates(stream: TokenStream, tmp_path: Path) -> None:
    cfg = with_(RATES, meta={"every": 2, "inner_lr": 0.05, "log_rates_every": 5}, run={"val_every": 0})
    train(cfg, tmp_path / "run", stream)
    run = RunFolder(tmp_path / "run")
    calls, rates, coverage = run.metrics("meta"), run.metrics("meta_sgd"), run.coverage()
    assert [r["step"] for r in calls] == [1, 3, 5, 7, 9] and [r["step"] for r in rates] == [5, 10, 12]
    assert [len(rates[0][bank]) for bank in Banks._fields] == [4, 4, 2, 2]
    for r in calls[1:]:
        assert all(-1 <= r[f"cosine_{bank}"] <= 1 for bank in Banks._fields) and -1 <= r["cosine"] <= 1
        assert r["main_norm"] > r["meta_norm"] > 0
        assert r["loss_pre"] - r["loss_post"] == pytest.approx(r["predicted_gain"], rel=0.3, abs=2e-6)
        assert r["displacement"] > 0 and r["realised"] == pytest.approx(1, abs=0.1)
    assert all(r["instrument_seconds"] > 0 and r["seconds"] > 0 and r["lr_multiplier"] > 0.5 for r in calls)
    assert coverage["meta"]["done"] == 5 and coverage["meta_adapted"]["done"] * 2 == coverage["meta_adapted"]["of"]


def test_the_placebo_is_logged_as_one_and_adds_no_row_of_training(stream: TokenStream, tmp_path: Path) -> None:
    changes = {"inner_steps": 0, "every": 1, "min_scale": 0.0}
    placebo = with_(SMOKE, meta=changes, run={"val_every": 0, "log_every": 100}, schedule={"iterations": 11})
    train(placebo, tmp_path, stream)
    run = RunFolder(tmp_path)
    assert (len(run.metrics("train")), len(run.metrics("meta"))) == (10, 11)  # the steps that every arm logs
    first = run.metrics("meta")[0]
    assert first["loss_pre"] == first["loss_post"] and first["realised"] is None
    assert "placebo" in run.coverage()["meta_adapted"]["note"]


def test_without_a_delta_the_loss_before_is_looked_at_now_and_then(stream: TokenStream) -> None:
    _, reports = steps(with_(SMOKE, meta={"every": 1, "log_pre_every": 2}), stream, 4)
    assert [r.meta["loss_pre"] is not None for r in reports] == [True, False, True, False]


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, 1.0),
        ({"split": "next-chunk"}, 2.0),
        ({"delta_weight": 0.3}, 1.5),
        ({"delta_weight": 0.3, "sam_rho": 0.1, "split": "batch"}, 2.0),
        ({"inner_steps": 3}, 2.0),
        ({"inner_steps": 0}, 0.5),
    ],
)
def test_the_counted_cost_is_that_of_the_passes_made(changes: dict, passes: float, stream: TokenStream) -> None:
    cfg, tokens = with_(SMOKE, meta=changes), []

    def counted(weights: Weights, x: Tensor, y: Tensor) -> Tensor:
        tokens.append(x.numel())
        return loss_of(cfg)(weights, x, y)

    data = meta_data(cfg, plan(cfg, 1), stream, torch.device("cpu"))
    meta.evaluate(cfg.meta, counted, lively(cfg), data, meta.freeze_masks(cfg.model, cfg.meta))
    assert sum(tokens) / cfg.optim.batch_tokens == meta.counted_cost(cfg) == passes
    watched = not changes.get("delta_weight") and changes.get("inner_steps", 1) > 0
    assert meta.instrument_cost(cfg) == pytest.approx(data[1][0].numel() / cfg.optim.batch_tokens / 3 * watched)


def test_the_meta_gradient_weighs_as_one_of_the_steps_micro_batches() -> None:
    cfg, (x, y) = with_(SMOKE, optim={"grad_accum": 4}), batch(4)
    weights, net = lively(cfg), Net(cfg.model, tables())
    add_gradient(cfg, net, weights, 0, meta.split(cfg.meta, x, y), loss_function(net))
    want = {n: g / 4 for n, g in gradients(cfg, weights, x, y).items()}
    assert_close({n: t.grad for n, t in flat(weights).items()}, want, 1e-6)


# -- configuration, export, the whole job


def test_learned_rates_are_train_only(tmp_path: Path) -> None:
    cfg = load("exp106")
    counts = params.summary(cfg.model)
    assert (counts["total"], counts["exported"]) == (26_961_057, 26_960_991)
    weights = params.init(RATES.model, 0)
    artifact.write(tmp_path / "a.golf", RATES, quantize_weights(RATES, weights, None))
    read_cfg, read = artifact.read(tmp_path / "a.golf")
    assert read_cfg == RATES and flat(weights).keys() - flat(read).keys() == {"meta_sgd_" + b for b in Banks._fields}
    forward(Net(read_cfg.model, tables()), read, batch(1)[0])


def test_rates_of_the_original_come_in_our_order_or_not_at_all() -> None:
    with np.load(Path(__file__).parent / "golden/e_fomaml_exp106_batch_delta_sgd.npz", allow_pickle=False) as data:
        recorded = json.loads(str(data["meta"]))
    cfg = reference_config("exp106", recorded["cfg"]["kw"] | {"poscond": True}, meta_sgd=True)
    state_dict = {name: torch.from_numpy(value) for name, value in generated(recorded["state"]).items()}
    theirs, weights = state_dict["meta_sgd_qo"], from_reference(state_dict, cfg)
    ours = weights.rest["meta_sgd_qo"]
    assert torch.equal(torch.cat((ours[::2], ours[1::2])), theirs)  # all queries, then all outputs
    assert torch.equal(to_reference(weights, cfg, {"meta_sgd_qo": (8,)})["meta_sgd_qo"], theirs)
    exported = {name: t for name, t in state_dict.items() if not name.startswith(params.RATES)}
    plain = replace(cfg, meta_sgd=False)
    for left_out in (from_reference(exported, cfg), from_reference(state_dict, plain)):
        assert flat(weights).keys() - flat(left_out).keys() == {params.RATES + bank for bank in Banks._fields}


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"model.meta_sgd": True}, "model.meta_sgd needs meta.enabled and meta.inner_steps > 0"),
        ({"model.meta_sgd": True, "meta.enabled": True, "meta.inner_steps": 0}, "nothing else trains the inner rates"),
        ({"meta.enabled": True, "meta.inner_steps": 0, "meta.sam_rho": 0.1}, "but meta.sam_rho is set"),
        ({"meta.split": "rows"}, "meta.split: expected one of time, batch, next-chunk, found 'rows'"),
    ],
)
def test_switches_that_would_do_nothing_are_refused(overrides: dict, sentence: str) -> None:
    with pytest.raises(UserError) as e:
        load("demo", overrides)
    assert sentence in str(e.value)


def test_an_arm_differs_from_exp101_in_what_it_says() -> None:
    common = {"meta.split": "batch", "meta.delta_weight": 0.3}
    for name, own in (("exp106", {"model.meta_sgd": True}), ("exp107", {"meta.sam_rho": 0.05})):
        assert load(name).hash == load("exp101", common | own).hash


def test_exp106_trains_packs_and_adapts_from_its_artifact_alone(small_run: Path, tmp_path: Path) -> None:
    """The published run ended in a crash: its loader met the learned rates."""
    small = {"data.path": str(small_run.parent / "built"), "data.val_tokens": 600, "data.reserve_tokens": 300}
    small |= {"model.vocab_size": 320, "ttt.chunk_tokens": 128, "ttt.lr_candidates": [0.02], "run.val_every": 0}
    cfg = override(RATES, {**small, "schedule.iterations": 2, "quant.calib_seqs": 1}, "a small exp106")
    run = pipeline.run(cfg, tmp_path / "run", lambda text: None)
    assert len(run.metrics("meta")) == 1 and len(run.metrics("meta_sgd")) == 1
    report = json.loads(run.file("results.json").read_text())
    alone = tmp_path / "elsewhere.golf"
    alone.write_bytes(run.file("artifact.golf").read_bytes())
    found = evaluate_again(alone, "ttt", {"ttt.lr": report["ttt"]["lr"]})
    assert (found.bpb, found.legality) == (report["measures"]["ttt"]["bpb"], "score-first")
