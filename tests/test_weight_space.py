"""Weight space as published: what noise with the published norms gives, and what damaged input says."""

from pathlib import Path

import numpy as np
import pytest
import torch

from golfcore.analysis import compare, models, weight_space
from golfcore.analysis.compare import Arm
from golfcore.analysis.published import table
from golfcore.analysis.published_measures import decompose, spectrum
from golfcore.base.errors import UserError
from golfcore.config import load
from golfcore.interop import to_reference
from golfcore.model import params
from golfcore.model.weights import matrices
from golfcore.runs.results import FLOAT, load_weights

SHAPES = {"qo_bank": (22, 512, 512), "mlp_up_bank": (11, 1536, 512)}


def published_norms(bank: str) -> np.ndarray:
    """exp105a's singular values as printed: the ten largest and five smallest, those between evenly spaced."""
    rows = table("weight_space").query(f"analysis == 'error_surface' and model == 'exp105a' and tensor == '{bank}'")
    top, low = (rows[rows["quantity"] == f"{q}_singular_value"].sort_values("index") for q in ("top10", "bottom5"))
    slots = SHAPES[bank][0]
    between = np.linspace(top["number"].iloc[-1], low["number"].iloc[0], max(slots - 15, 0) + 2)[1:-1]
    return np.concatenate([top["number"], between, low["number"].tail(slots - 10 - len(between))])


def test_noise_with_the_published_norms_has_the_published_ranks_and_conditions_and_overlaps() -> None:
    """Spec F1: no shared function is needed for any of them."""
    generator = torch.Generator().manual_seed(0)

    def drawn(bank: str) -> torch.Tensor:
        rows, columns = SHAPES[bank][1:]
        scale = torch.from_numpy(published_norms(bank) / (rows * columns) ** 0.5).float()
        return torch.randn(SHAPES[bank], generator=generator) * scale.view(-1, 1, 1)

    models = {name: {bank: drawn(bank) for bank in SHAPES} for name in ("exp101", "exp105a")}
    found = weight_space.noise(models, repeats=50).set_index("bank")
    assert found["noise_effective_rank"].tolist() == pytest.approx([21.963, 10.999], abs=2e-3)
    assert found["noise_cond_number"].tolist() == pytest.approx([1.300, 1.039], abs=5e-3)
    assert found.loc["qo_bank", "noise_overlap"] > 0.95  # published between real models: 0.58 to 0.83
    assert found.loc["mlp_up_bank", "noise_low"] < 0.95 < found.loc["mlp_up_bank", "noise_high"]  # published: 0.949


def test_every_published_number_of_the_reports_has_its_place_beside_ours() -> None:
    cfg = load("exp101", {}, "smoke")
    models = {
        n: to_reference(params.init(cfg.model, i), cfg.model) for i, n in enumerate(("exp101", "exp105a", "exp106"))
    }
    found = weight_space.beside_published(models, least=256)
    assert found["published"].notna().sum() > 300 and not found.duplicated(["report", "path"]).any()
    row = found[found["path"] == "analysis_8_triangle.bank_avg_cosines.exp101_vs_exp105a"]
    assert row["published"].item() == pytest.approx(0.0490, abs=1e-4) and abs(row["here"].item()) < 0.1


def test_zeros_and_what_is_not_finite() -> None:
    assert spectrum(decompose({"w": torch.zeros(3, 4)}, ["w"])["w"])["stable_rank"] == 0
    with pytest.raises(UserError, match="w: expected finite values"):
        decompose({"w": torch.full((2, 2), torch.nan)}, ["w"])


def test_tables_of_banks_and_midpoints_that_their_cosine_gives() -> None:
    cfg = load("exp101", {}, "smoke")
    models = {n: to_reference(params.init(cfg.model, i), cfg.model) for i, n in enumerate("ab")}
    found = weight_space.tables(models)
    middle = found["midpoints"]
    assert set(middle["tensor"]) == {*weight_space.BANKS, "all"} and middle["mid_over_a"].notna().sum() >= 4
    known = middle.dropna()
    assert known["mid_over_a"].tolist() == pytest.approx(known["predicted"].tolist(), rel=1e-6)
    row = found["deltas"].set_index("tensor").loc["qo_bank"]
    apart = models["a"]["qo_bank"] - models["b"]["qo_bank"]
    assert row["l2"] == pytest.approx(float(apart.norm()), rel=1e-5)
    theirs = weight_space.published_midpoints()
    assert len(theirs) >= 8 and (theirs["mid_over_a"] - theirs["predicted"]).abs().max() < 0.05


def test_the_condition_of_an_arm_is_that_of_its_runs_matrices(small_run: Path) -> None:
    arm = compare.arms_of([small_run])[0]
    found = models.conditioning([arm, Arm("again", arm.config, arm.runs)]).set_index(["measure", "arm"])
    weights = load_weights(small_run / FLOAT)
    values = [torch.linalg.svdvals(m.double()) for _, m in matrices(weights)]
    want = np.exp(np.mean([float(torch.log(s[0] / s[-1])) for s in values]))
    assert found.loc[("condition", arm.label), "mean"] == pytest.approx(want, rel=1e-4)
    assert found.loc[("condition", "again"), "difference"] == 0 and found.loc[("sliding", "again"), "difference"] == 0
