"""Laws of what rounding costs."""

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
