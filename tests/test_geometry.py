"""Laws of the geometry of single matrices."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from golfcore.analysis import geometry
from golfcore.analysis.models import flat_map
from golfcore.base.errors import UserError
from golfcore.config import load
from golfcore.model import params
from golfcore.model.weights import Weights, matrices, tree_map

CFG = load("exp101", {}, "smoke").model


def weights(seed: int) -> Weights:
    g = torch.Generator().manual_seed(seed)
    return tree_map(lambda t: torch.randn(t.shape, generator=g), params.init(CFG, 0))


def test_principal_angles_are_those_that_were_planted() -> None:
    """The left spaces of a rotated matrix; an angle that no cosine could tell from 0 is still seen."""
    q, _ = torch.linalg.qr(torch.randn(40, 40).double())
    values = torch.diag(torch.linspace(9, 1, 12)).double()
    a, angles = q[:, :12] @ values, torch.tensor([1.2, 0.3, 1e-9, 0.0])
    turned = q[:, :4] * angles.cos() + q[:, 12:16] * angles.sin()
    found = geometry.principal_angles(a, torch.cat([turned, q[:, 4:12]], 1) @ values, 4)
    np.testing.assert_allclose(np.radians(found["left"]), [1.2, 0.3, 1e-9, 0], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(found["right"], 0, atol=1e-6)


def test_angles_are_those_of_scipy_to_the_accuracy_that_it_has() -> None:
    for k in (1, 4, 12):
        x, y, z = (torch.linalg.qr(torch.randn(20, k).double())[0] for _ in range(3))
        for other in (x, y, torch.linalg.qr(x + 1e-3 * z)[0]):
            theirs = subspace_angles(x.numpy(), other.numpy())
            np.testing.assert_allclose(geometry.subspace_angles(x, other), theirs, atol=1e-7)


def test_spectra_of_matrices_whose_values_are_known() -> None:
    """Zero, one of rank one, and a repeated spectrum."""
    w = weights(0)
    w.banks.qo[0], w.banks.qo[1] = 0, 2 * torch.eye(CFG.dim)
    w.banks.kv[0] = torch.outer(torch.ones(CFG.kv_dim), torch.ones(CFG.dim))
    found = geometry.spectra({"w": w}).set_index("matrix")
    ranks = found[["stable_rank", "effective_rank"]]
    assert ranks.loc["block0.query"].tolist() == [0, 0]
    assert ranks.loc["block0.out"].tolist() == pytest.approx([CFG.dim, CFG.dim], rel=1e-5)
    assert ranks.loc["block0.key"].tolist() == pytest.approx([1, 1], rel=1e-3)
    assert found.loc["block0.out", "condition"] == pytest.approx(1) and len(found) == 6 * CFG.n_blocks
    w.banks.up[0, 0, 0] = torch.nan
    with pytest.raises(UserError, match="block0.up: expected finite values"):
        geometry.spectra({"w": w})


def test_overlaps_are_one_for_a_copy_chance_for_noise_and_see_one_side_alone() -> None:
    a, noise = weights(0), weights(1)
    half = a._replace(
        banks=a.banks._replace(
            up=torch.stack([m @ torch.linalg.qr(torch.randn(CFG.dim, CFG.dim))[0] for m in a.banks.up])
        )
    )
    found = geometry.overlaps({"a": a, "copy": a, "noise": noise, "half": half}, [4, 8, 64])
    by = {pair: rows for pair, rows in found.groupby("models")}
    copy = by["a vs copy"]
    assert copy["overlap"].min() > 1 - 1e-5 and copy["energy"].min() > 1 - 1e-5 and copy["score"].min() > 1 - 1e-4
    z = (by["a vs noise"]["overlap"] - by["a vs noise"]["chance"]) / by["a vs noise"]["chance_sd"]
    assert abs(z.mean()) < 0.5 and z.abs().max() < 5
    up = by["a vs half"].query("role == 'up'").groupby("side")["score"].mean()
    assert up["left"] > 1 - 1e-4 and up["right"] < 0.3
    assert set(found["k"]) == {4, 8} and (found["k"] < found["of"]).all()


@pytest.mark.parametrize(("d", "k", "want"), [(22, 5, 0.407), (11, 2, 0.354), (512, 32, 0.212), (64, 16, 0.432)])
def test_chance_is_that_of_random_subspaces(d: int, k: int, want: float) -> None:
    mean, sd = geometry.chance(d, k)
    assert mean == pytest.approx(want, abs=4 * sd / geometry.DRAWS**0.5 + 1e-3)


def test_spectra_of_banks_are_of_slots_and_norms_are_what_they_are_made_of() -> None:
    w = weights(0)
    found = geometry.singular_values({"w": w})
    up = found[(found["role"] == "up") & found["block"].isna()]["value"]
    want = np.linalg.svd(w.banks.up.flatten(1).numpy(), compute_uv=False)
    np.testing.assert_allclose(up.astype(float), want, rtol=1e-5)
    key = found[(found["role"] == "key") & (found["block"] == 1)]
    np.testing.assert_allclose(
        key["value"].astype(float), np.linalg.svd(w.banks.kv[2].numpy(), compute_uv=False), rtol=1e-5
    )
    norms = geometry.slot_norms({"w": w}).set_index(["bank", "slot"])["norm"]
    assert norms["kv", 2] == pytest.approx(float((key["value"].astype(float) ** 2).sum()) ** 0.5, rel=1e-5)


def test_cosines_of_all_angles_are_scipys_and_of_noise_within_chance() -> None:
    a, b = weights(0), weights(1)
    found = geometry.angle_spectra({"a": a, "b": b, "copy": a}, 6)
    assert found[found["models"] == "a vs copy"]["cosine"].min() > 1 - 1e-5
    rows = found[(found["models"] == "a vs b") & (found["role"] == "up") & (found["block"] == 0)]
    spaces = [np.linalg.svd(w.banks.up[0].numpy())[0][:, :6] for w in (a, b)]
    np.testing.assert_allclose(rows["cosine"], np.sort(np.cos(subspace_angles(*spaces)))[::-1], atol=1e-5)
    noise = found[found["models"] == "a vs b"]
    assert noise["cosine"].between(noise["chance_low"], noise["chance_high"]).mean() > 0.8


def test_a_map_of_three_models_keeps_their_distances() -> None:
    models = {name: weights(seed) for seed, name in enumerate("abc")}
    found = flat_map(models)
    assert found["kept"].iloc[0] == pytest.approx(1)
    points = found[["x", "y"]].to_numpy()
    for (i, a), (j, b) in combinations(enumerate("abc"), 2):
        both = zip(matrices(models[a]), matrices(models[b]), strict=True)
        want = sum(float((m - n).square().sum()) for (_, m), (_, n) in both) ** 0.5
        assert np.linalg.norm(points[i] - points[j]) == pytest.approx(want, rel=1e-4)
    assert found["norm"].iloc[0] * 2**0.5 == pytest.approx(np.linalg.norm(points[0] - points[1]), rel=0.05)
