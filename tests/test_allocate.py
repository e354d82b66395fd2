"""Laws of steps: the coder sets the bits, the measured ones move them where they count, the file fits what there is."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from test_quant import problem, weighted_error
from tiny import TINY, lively, tables, with_

from golfcore.analysis import rates, spending
from golfcore.analysis.rounding import entropy
from golfcore.base.errors import UserError
from golfcore.config import Config
from golfcore.model.forward import Net
from golfcore.model.weights import flat, tree_map
from golfcore.quant import allocate, artifact, gptq
from golfcore.quant.calibrate import collect
from golfcore.quant.grid import WIDE, quantize, sigma_scale
from golfcore.quant.stored import Coded, dequantize_weights

TOKENS = torch.randint(1024, (6, 40), generator=torch.Generator().manual_seed(3))
WEIGHTS = tree_map(torch.Tensor.detach, lively(TINY))


def stepped(**values: object) -> Config:
    return with_(TINY, quant={"steps": "sigma", "step": 0.25, **values})


def hessians(cfg: Config) -> dict[str, torch.Tensor]:
    return collect(Net(cfg.model, tables()), WEIGHTS, TOKENS, cfg.quant.damping, head=cfg.quant.table_gptq)


def made(cfg: Config, **more: object) -> tuple[dict, dict[str, float]]:
    net = Net(cfg.model, tables())
    return allocate.allocated(cfg, net, WEIGHTS, hessians(cfg), TOKENS, **more)


@pytest.mark.parametrize("step", [0.15, 0.35, 0.7])
def test_codes_of_normal_weights_hold_the_bits_of_the_formula(step: float) -> None:
    weight = 0.3 * torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    scale = sigma_scale(weight, step, by_row=False)
    found = entropy(quantize(weight, scale.expand(256), WIDE))
    assert scale.shape == (1,) and found == pytest.approx(allocate.GAUSSIAN - math.log2(step), rel=0.015)
    rows = sigma_scale(weight * torch.arange(1, 257)[:, None], step, by_row=True)
    assert rows.shape == (256,) and float(rows[255] / rows[0]) == pytest.approx(256, rel=0.2)
    spiked = weight.clone()
    spiked[0, 0] = 1e3
    assert int(quantize(spiked, sigma_scale(spiked, step, False).expand(256), WIDE).max()) == 127  # and nothing wraps


def test_rounding_aware_of_the_coder_is_shorter_and_at_equal_length_closer() -> None:
    """Against plain GPTQ with steps of its own; both errors through the inputs, at the same entropy."""
    weight, h = problem(0, rows=96, columns=64)
    plain, aware = {}, {}
    for step in np.geomspace(0.3, 1.2, 9):
        scale = sigma_scale(weight, float(step), False)
        for found, rate in ((plain, 0.0), (aware, 1.0)):
            codes, kept = gptq.solve_all({"w": (weight, h)}, WIDE, given=gptq.Given({"w": scale}, rate))["w"]
            assert kept is scale
            error = weighted_error(weight, codes, scale.expand(96), h).sum()
            found[entropy(codes)] = float(error)
        assert list(aware)[-1] < list(plain)[-1]
    bits = np.linspace(2.2, 3.2, 5)
    log_error = [np.interp(bits, sorted(f), [math.log(f[b]) for b in sorted(f)]) for f in (plain, aware)]
    assert (log_error[1] < log_error[0] - 0.01).all()


def test_no_rate_gives_the_codes_of_plain_gptq() -> None:
    weight, h = problem(1)
    scale = sigma_scale(weight, 0.4, False)
    given = gptq.solve_all({"w": (weight, h)}, WIDE, given=gptq.Given({"w": scale}))["w"][0]
    lengths = torch.zeros(1, 24, 256)
    order, upper, dead = gptq.factor(h[None], 0.01, ["w"])
    columns = weight[:, order[0]].T[None].contiguous()
    codes, _ = gptq._feed_back(columns, scale.float().expand(1, 24), upper, WIDE, 128, lengths)
    assert torch.equal(given[:, order[0]], codes[0].T)


def test_measured_steps_are_fine_where_the_predictions_move_and_keep_the_bits() -> None:
    cfg = stepped(steps="measured")
    moved = allocate.divergences(cfg, Net(cfg.model, tables()), WEIGHTS, hessians(cfg), TOKENS)
    sizes = {n: math.prod(s.shape) for n, s in allocate.coded(cfg).items()}
    assert moved.keys() == sizes.keys() and min(moved.values()) >= 0
    planted = dict.fromkeys(moved, 1e-4) | {"tok_emb": 1e-2}
    found = allocate.relative_steps(cfg, planted)
    assert sum(sizes[n] * math.log(k) for n, k in found.items()) == pytest.approx(0, abs=1e-6 * sum(sizes.values()))
    assert found["tok_emb"] == min(found.values())
    one, other = "block0.up", "block1.up"  # of one size, moved alike
    assert found[one] == pytest.approx(found[other])
    free = [n for n, k in found.items() if 1.01 / allocate.REACH < k < 0.99 * allocate.REACH]
    shares = [planted[n] * found[n] ** 2 / sizes[n] for n in free]
    assert max(shares) == pytest.approx(min(shares), rel=1e-6) and len(free) > 2


@pytest.mark.parametrize(
    "values", [{}, {"steps": "measured", "rate": 1.0}, {"rounding": "nearest"}, {"table_gptq": True}]
)
def test_what_is_rounded_by_steps_is_stored_and_read_bit_for_bit(values: dict, tmp_path: Path) -> None:
    cfg = stepped(**values)
    quantized, steps = made(cfg)
    written = artifact.write(tmp_path / "a.golf", cfg, quantized)
    assert written == artifact.size(cfg, quantized) and steps.keys() == allocate.coded(cfg).keys()
    found_cfg, found = artifact.read(tmp_path / "a.golf")
    want = flat(dequantize_weights(cfg.model, quantized))
    assert found_cfg == cfg and all(torch.equal(t, want[n]) for n, t in flat(found).items())
    assert {len(e.scale) for n, e in quantized.items() if isinstance(e, Coded) and n.startswith("block")} == {1}
    assert len(quantized["tok_emb"].scale) == 1024


def test_step_0_is_the_finest_that_fits_and_too_little_room_says_how_much() -> None:
    whole = artifact.size(stepped(), made(stepped())[0])
    room = whole + artifact.code_bytes() + allocate.EXTRA
    cfg = stepped(step=0.0, max_bytes=room)
    quantized, steps = made(cfg)
    size = artifact.size(cfg, quantized)
    assert size <= whole and size > 0.98 * whole
    assert max(steps.values()) == min(steps.values()) == pytest.approx(0.25, rel=0.05)
    free = made(stepped(step=0.0))[1]
    assert set(free.values()) == {allocate.FINEST}
    with pytest.raises(UserError, match=r"quant.max_bytes: expected room at steps of 4, found [\d,]+ bytes too few"):
        made(stepped(step=0.0, max_bytes=artifact.code_bytes() + 2048))


def test_curves_of_rate_and_distortion_fall_and_are_read_between_their_points() -> None:
    net = Net(TINY.model, tables())
    x, y = torch.randint(1024, (2, 9, 24), generator=torch.Generator().manual_seed(0))
    found = rates.curve(TINY, net, WEIGHTS, TOKENS, x, y, steps=(0.2, 0.8))
    assert found["rule"].value_counts().to_dict() == {
        "published": 1,
        "floor": 4,
        "clip": 3,
        **dict.fromkeys(rates.RULES, 2),
    }
    for rule in rates.RULES:
        rows = found[found["rule"] == rule]
        assert rows["bits"].is_monotonic_decreasing and rows["bits"].iloc[0] > rows["entropy_bits"].iloc[0]
    floors = found[found["rule"] == "floor"]
    assert (1 / floors["step"]).round().tolist() == [15, 31, 63, 127] and floors["bits"].is_monotonic_increasing
    line = found[found["rule"].isin(("published", "sigma"))].copy()
    line.loc[line["rule"] == "sigma", ["bits", "difference"]] = [[5.0, 0.01], [3.0, 0.04]]
    line.loc[line["rule"] == "published", ["bits", "difference"]] = [4.0, 0.04]
    assert rates.at_equal(line, "sigma") == pytest.approx(0.02) and rates.at_equal(
        line, "sigma", "bits"
    ) == pytest.approx(3)
    assert np.isnan(rates.at_equal(line, "sigma", at=6.0))
    assert np.isnan(rates.at_equal(line, "sigma", "bits", at=-1e-9)), "a rule that costs nothing has no equal"
    line.loc[line["rule"] == "sigma", "difference"] = -1e-9
    assert np.isnan(rates.at_equal(line, "sigma")) and np.isnan(rates.at_equal(line, "sigma", "bits"))
    table = rates.widths(TINY, net, WEIGHTS, TOKENS)
    assert set(table["role"]) >= {"query", "up", "tok_emb", "bigram"} and (table["relative"] > 0).all()


def test_a_correction_of_a_white_error_takes_away_less_than_its_bits_do_in_finer_steps() -> None:
    """The arithmetic of `spending`, and corrections of full rank that leave nothing but their own rounding."""
    g, rank, (rows, columns) = torch.Generator().manual_seed(0), 4, (96, 160)
    white = torch.rand(rows, columns, generator=g) - 0.5
    values = torch.linalg.svdvals(white).square()
    taken, bits = float(values[:rank].sum() / values.sum()), 8 * rank * (rows + columns) / (rows * columns)
    assert taken <= rank * (rows**0.5 + columns**0.5) ** 2 / (rows * columns) < 1 - 4.0**-bits
    rounded = tree_map(lambda t: (t * 8).round() / 8, WEIGHTS)
    errors = []
    for r in (0, 2, 8, 32):
        fixed = spending.corrected(WEIGHTS, rounded, r) if r else rounded
        errors.append(float((WEIGHTS.banks.up - fixed.banks.up).square().sum()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-3 * errors[0]


def test_what_else_bytes_buy_is_held_against_finer_steps() -> None:
    net = Net(TINY.model, tables())
    x, y = torch.randint(1024, (2, 9, 24), generator=torch.Generator().manual_seed(0))
    found = spending.spending(TINY, net, WEIGHTS, TOKENS, x, y)
    sizes = {what: rows["bytes"].tolist() for what, rows in found.groupby("what")}
    assert sizes["finer steps"] == sorted(sizes["finer steps"], reverse=True)
    assert sizes["low rank"] == sorted(sizes["low rank"]) and sizes["low rank"][0] > sizes["finer steps"][-1]
    for what in ("pruned, as published", "pruned, by error"):
        assert sizes["finer steps"][0] > sizes[what][0] > sizes[what][1]
    own, others = (found[(found["what"] == "finer steps") == same] for same in (True, False))
    inside = others["bytes"].between(own["bytes"].min(), own["bytes"].max())
    assert inside.any() and (others["over_finer"].notna() == inside).all() and own["over_finer"].isna().all()
    held = others[inside].iloc[0]  # by hand: between the costs of the two nearest steps
    cost = np.interp(held["bytes"], own["bytes"][::-1], own["difference"][::-1].astype(float))
    assert held["over_finer"] == pytest.approx(held["difference"] - cost, abs=1e-9)
    assert held["finer_low"] < held["over_finer"] < held["finer_high"]
