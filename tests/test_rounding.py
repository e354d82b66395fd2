"""Laws of what rounding costs."""

import numpy as np
import pytest
import torch
from tiny import TINY, lively, tables, with_

from golfcore.analysis import rounding
from golfcore.model.forward import Net
from golfcore.model.weights import tree_map

X, Y = torch.randint(1024, (2, 8, 40), generator=torch.Generator().manual_seed(0))


def test_gptq_beats_rounding_through_the_inputs_and_the_floor_is_a_constant() -> None:
    """Small weights, as in the published models: the floor decides their error, and the codes hold few bits."""
    cfg = with_(TINY, quant={"matrix_bits": 6})
    weights = tree_map(lambda t: t.detach(), lively(cfg))
    found = rounding.by_matrix(cfg.quant, Net(cfg.model, tables()), weights, X, Y)
    assert len(found) == 4 * (6 * cfg.model.n_blocks + 1)
    by = found.set_index(["floor", "rule", "matrix"]).sort_index()
    for floor in (True, False):
        assert (by.loc[floor, "gptq"]["weighted"] <= by.loc[floor, "nearest"]["weighted"] * 1.001).all()
        assert (by.loc[floor, "nearest"]["mse"] <= by.loc[floor, "gptq"]["mse"] * 1.001).all()
    assert rounding.floor_error(31) == pytest.approx(8.67e-5, rel=1e-3)
    rows = found[(found["matrix"] != "all") & (found["rule"] == "nearest") & found["floor"]]
    assert rows["mse"].between(0.8 * 8.67e-5, 1.3 * 8.67e-5).mean() > 0.5
    assert (by.loc[True, "nearest"]["bits"] <= by.loc[False, "nearest"]["bits"] + 0.05).all()
    near = found[found["matrix"] != "all"]
    assert ((near["bits"] - near["gaussian_bits"]).abs() < 0.6).all()


def test_codes_and_spreads_are_those_of_the_published_rule() -> None:
    cfg = with_(TINY, quant={"matrix_bits": 6})
    weights = tree_map(lambda t: 0.1 * torch.randn(t.shape), lively(cfg))
    found = rounding.codes(cfg.quant, weights)
    assert found.groupby(["role", "floor"])["share"].sum().tolist() == pytest.approx([1] * 12)
    up = found[(found["role"] == "up") & found["floor"]].set_index("magnitude")["share"]
    magnitudes = (weights.banks.up * 31).round().abs()  # scales are at the floor, but for rounding to float16
    assert up[3] == pytest.approx(float((magnitudes == 3).double().mean()), abs=5e-3)
    spreads = rounding.spreads(cfg.quant, weights, points=6)
    line = spreads[spreads["source"] == "normal"]
    assert line["bits"].is_monotonic_increasing and (spreads["lzma_bits"] > spreads["bits"]).all()
    wide = line[line["rms"].between(0.05, 0.2)]
    want = np.log2(wide["rms"] * 31) + 0.5 * np.log2(2 * np.pi * np.e)
    assert wide["bits"].tolist() == pytest.approx(want.tolist(), abs=0.1)
