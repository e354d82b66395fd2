"""Laws of schedules and averages; the recorded ones are in test_golden."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from golfcore.config import AverageConfig, ModelConfig, OptimConfig, ScheduleConfig
from golfcore.model.params import init
from golfcore.model.weights import Weights, flat, tree_map
from golfcore.optim import average
from golfcore.optim.schedule import Adaptive, Clock, lr_multiplier, momentum, update_adaptive


@pytest.mark.parametrize("shape", ["cosine", "linear"])
@pytest.mark.parametrize("cap", [0.0, 5.0])
def test_the_step_clock_reads_nothing_but_the_step(shape, cap):
    """A cap in seconds may stop such a run; it does not move its schedule."""
    cfg = ScheduleConfig(clock="steps", shape=shape, iterations=1000, warmdown_steps=200, max_seconds=cap)
    plain = ScheduleConfig(clock="wall", shape=shape, iterations=1000, warmdown_steps=200)
    for step in range(0, 1001, 50):
        expected = lr_multiplier(plain, Clock(step, 684.0 * step))  # without a cap, elapsed time cancels
        found = lr_multiplier(cfg, Clock(step, 1.0))
        assert found == lr_multiplier(cfg, Clock(step, 1e9)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("clock", ["steps", "wall"])
@pytest.mark.parametrize("p, scale", [(0, 1), (0.5, 0.5), (2 / 3, 0.25), (0.70483, 0.2), (1, 0)])
def test_cosine_milestones(clock, p, scale):
    cfg = ScheduleConfig(clock=clock, iterations=200_000, warmdown_steps=100_000, max_seconds=200)
    step = 100_000 + round(100_000 * p)  # at 1 ms a step the cap is at the last iteration
    assert lr_multiplier(cfg, Clock(step, float(step))) == pytest.approx(scale, abs=1e-5)


@given(
    st.sampled_from(["steps", "wall"]),
    st.sampled_from(["cosine", "linear"]),
    st.integers(0, 400),
    st.floats(0, 1e6),
    st.one_of(st.none(), st.floats(0, 400)),
    st.sampled_from([0, 1, 100, 500]),
)
def test_multiplier_is_a_fraction(clock, shape, step, elapsed, triggered, warmdown):
    cfg = ScheduleConfig(clock=clock, shape=shape, iterations=300, max_seconds=60, warmdown_steps=warmdown)
    assert 0 <= lr_multiplier(cfg, Clock(step, elapsed, triggered)) <= 1


@pytest.mark.parametrize("clock", ["steps", "wall"])
@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_multiplier_never_rises_and_ends_at_zero(clock, shape):
    cfg = ScheduleConfig(clock=clock, shape=shape, iterations=300, max_seconds=3, warmdown_steps=100)
    scales = [lr_multiplier(cfg, Clock(s, 10.0 * s)) for s in range(300)]
    assert scales == sorted(scales, reverse=True)
    assert scales[:200] == [1.0] * 200
    assert 0 < scales[-1] <= 0.0101


def test_a_trigger_starts_either_shape_at_once_on_either_clock():
    for shape in ("cosine", "linear"):
        wall = ScheduleConfig(clock="wall", shape=shape, max_seconds=10, warmdown_steps=10, guard_steps=0)
        assert [lr_multiplier(wall, Clock(50, e, 5000.0)) for e in (5000, 7500, 10_000)] == pytest.approx([1, 0.5, 0])
        steps = ScheduleConfig(shape=shape, iterations=1000, warmdown_steps=10, guard_steps=0)
        assert [lr_multiplier(steps, Clock(s, 0.0, 50.0)) for s in (50, 55, 60)] == pytest.approx([1, 0.5, 0])


def test_a_warmdown_longer_than_the_run_starts_at_once():
    """Half a cosine over the whole run; the line keeps its slope and is below 1 from the outset."""
    wall = {"clock": "wall", "max_seconds": 5, "warmdown_steps": 10, "guard_steps": 0}
    clock = Clock(2, 2000.0)  # at one second a step
    cosine = lr_multiplier(ScheduleConfig(**wall), clock)
    assert cosine == pytest.approx(0.5 * (1 + math.cos(math.pi * 2 / 5)))
    assert lr_multiplier(ScheduleConfig(shape="linear", **wall), clock) == pytest.approx((5 - 2) / 10)
    steps = {"iterations": 5, "warmdown_steps": 10, "guard_steps": 0}
    assert lr_multiplier(ScheduleConfig(**steps), clock) == pytest.approx(0.5 * (1 + math.cos(math.pi * 2 / 10)))
    assert lr_multiplier(ScheduleConfig(shape="linear", **steps), clock) == pytest.approx((5 - 2) / 10)


def test_the_guard_holds_the_cosine_at_one():
    cfg = ScheduleConfig(iterations=40, warmdown_steps=40, guard_steps=25)
    assert lr_multiplier(cfg, Clock(24, 0.0)) == 1 > lr_multiplier(cfg, Clock(25, 0.0))


def test_adaptive_fires_when_the_loss_is_less_than_its_margin_below_the_mean():
    """Falls of the mean are (1 - 0.99) (mean - loss), so the threshold 0.0005 is a loss 0.05 below the mean."""
    cfg = ScheduleConfig(adaptive=True)
    first = update_adaptive(cfg, Adaptive(), 2000, 7.0, 3.0)
    assert first == Adaptive(3.0, None)
    assert update_adaptive(cfg, first, 2100, 8.0, 2.94) == Adaptive(pytest.approx(2.9994), None)
    assert update_adaptive(cfg, first, 2100, 8.0, 2.96) == Adaptive(pytest.approx(2.9996), 2100.0)


def test_adaptive_records_the_time_of_its_clock_and_fires_once():
    wall = ScheduleConfig(adaptive=True, clock="wall", max_seconds=60)
    fired = update_adaptive(wall, Adaptive(3.0), 2100, 8.0, 3.0)
    assert fired.triggered == 8.0
    assert update_adaptive(wall, fired, 2200, 9.0, 9.0) == fired


def test_adaptive_looks_only_when_due():
    cfg = ScheduleConfig(adaptive=True)
    for step in (1900, 1999, 2001, 2150):
        assert update_adaptive(cfg, Adaptive(3.0), step, 0.0, 3.0) == Adaptive(3.0)
    assert update_adaptive(ScheduleConfig(adaptive=False), Adaptive(3.0), 2100, 0.0, 3.0) == Adaptive(3.0)


def test_momentum_without_a_warm_up_is_constant():
    assert momentum(OptimConfig(momentum_steps=0), 0) == 0.99


MODEL = ModelConfig(
    vocab_size=8, dim=8, n_heads=2, n_kv_heads=1, mlp_hidden=8, blocks=(0, 1), rope_dims=2, bigram_rows=4, bigram_dim=4
)


def walk(n: int) -> list[Weights]:
    """Weights after 0, 1, .. n steps of a random walk."""
    generator = torch.Generator().manual_seed(5)
    path = [init(MODEL, 1)]
    for _ in range(n):
        path.append(tree_map(lambda t: t + torch.randn(t.shape, generator=generator), path[-1]))
    return path


def averaged(cfg: AverageConfig, path: list[Weights], scales: list[float]) -> average.Average:
    state = average.start(cfg, path[0])
    for step, (weights, scale) in enumerate(zip(path[1:], scales, strict=True), 1):
        state = average.update(cfg, state, weights, step, scale)
    return state


@pytest.mark.parametrize(
    "cfg", [AverageConfig("swa", every=2, start_scale=0.5), AverageConfig("lawa", every=2, keep=3)], ids=["swa", "lawa"]
)
def test_an_average_is_the_mean_of_its_snapshots(cfg):
    """Of the late ones, of the last ones; at step 6 the multiplier is 0.5: not below."""
    path, scales = walk(12), [1 - step / 12 for step in range(1, 13)]
    want = tree_map(lambda *t: sum(t) / 3, *(path[s] for s in (8, 10, 12)))
    found = average.result(cfg, averaged(cfg, path, scales), path[-1])
    tree_map(lambda x, y: torch.testing.assert_close(x, y, rtol=0, atol=1e-5) or x, found, want)


KINDS = [
    AverageConfig("none"),
    AverageConfig("ema", decay=0.9, every=2),
    AverageConfig("swa", every=2, start_scale=0.9),
    AverageConfig("lawa", every=2, keep=2),
]


@pytest.mark.parametrize("cfg", KINDS, ids=lambda cfg: cfg.kind)
def test_averages_share_nothing_with_the_weights_and_are_float32(cfg):
    """EMA steps of 0.2% would be lost in bfloat16."""
    leaves = tree_map(lambda t: t.to(torch.bfloat16).requires_grad_(), walk(1)[1])
    state = average.start(cfg, leaves)
    for step in (2, 4, 6):
        state = average.update(cfg, state, leaves, step, 0.5)
    before, again = (average.result(cfg, state, leaves) for _ in range(2))
    with torch.no_grad():
        tree_map(lambda t: t.zero_(), leaves)
    tree_map(lambda t: t.fill_(7), again)
    after = average.result(cfg, state, leaves) if cfg.kind != "none" else before
    for x, y in zip(flat(before).values(), flat(after).values(), strict=True):
        assert x.dtype == torch.float32 and not x.requires_grad and torch.equal(x, y)
    assert flat(before)["tok_emb"].abs().sum() > 0


@pytest.mark.parametrize("cfg", KINDS[1:], ids=lambda cfg: cfg.kind)
def test_an_average_of_nothing_is_an_error(cfg):
    weights = walk(0)[0]
    state = average.start(cfg, weights)
    for step, scale in ((1, 0.5), (3, 0.5), *(((2, 1.0),) if cfg.kind == "swa" else ())):
        state = average.update(cfg, state, weights, step, scale)
    assert state.taken == 0
    with pytest.raises(RuntimeError, match=f"average.kind {cfg.kind}: expected at least one update"):
        average.result(cfg, state, weights)
