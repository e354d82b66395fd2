"""Curvature against full Hessians, barriers against what is planted."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import TINY, lively, tables

from golfcore.analysis import alignment, surface, symmetry
from golfcore.model.forward import Net
from golfcore.model.weights import Weights, tree_map

X, Y = torch.randint(1024, (2, 16, 24), generator=torch.Generator().manual_seed(0))


def softmax_regression() -> tuple[surface.Loss, dict, np.ndarray]:
    """Its loss, a point, and its Hessian in closed form: mean of (diag p - p p^T) times x x^T."""
    g = torch.Generator().manual_seed(1)
    x, labels = torch.randn(200, 6, generator=g, dtype=torch.float64), torch.randint(4, (200,), generator=g)
    point = {"w": torch.randn(4, 6, generator=g, dtype=torch.float64) / 3}
    p = (x @ point["w"].T).softmax(1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    full = torch.einsum("nab,ni,nj->aibj", inner, x, x).reshape(24, 24) / len(x)
    return lambda at: torch.nn.functional.cross_entropy(x @ at["w"].T, labels), point, full.numpy()


def tiny_model() -> tuple[surface.Loss, dict, np.ndarray]:
    """A model's loss by two of its tensors, and the Hessian column by column."""
    weights = tree_map(torch.Tensor.detach, lively(TINY))
    loss = surface.text_loss(Net(TINY.model, tables()), weights, X[:2], Y[:2])
    point = {name: weights.rest[name] for name in ("smear", "q_gain")}
    sizes, shapes = [t.numel() for t in point.values()], [t.shape for t in point.values()]

    def of_flat(v: torch.Tensor) -> torch.Tensor:
        return loss(dict(zip(point, (p.view(s) for p, s in zip(v.split(sizes), shapes, strict=True)), strict=True)))

    start = torch.cat([t.reshape(-1) for t in point.values()])
    return loss, point, torch.autograd.functional.hessian(of_flat, start).numpy()


@pytest.mark.parametrize("made", [softmax_regression, tiny_model])
def test_curvature_is_that_of_the_full_hessian(made) -> None:
    loss, point, full = made()
    full = (full + full.T).astype(np.float64) / 2
    operator, values = surface.hessian(loss, point), np.linalg.eigvalsh(full)
    scale = abs(values).max()
    v = np.random.default_rng(0).standard_normal(len(full))
    np.testing.assert_allclose(operator.matvec(v), full @ v, atol=1e-4 * scale * np.linalg.norm(v))
    np.testing.assert_allclose(surface.top_eigenvalues(operator, 3), values[::-1][:3], rtol=1e-3, atol=1e-4 * scale)
    estimate, error = surface.trace(operator, draws=60)
    assert abs(estimate - np.trace(full)) < 4 * error and error < scale
    found = surface.density(operator, steps=len(full), draws=6)
    assert found["weight"].sum() == pytest.approx(1, abs=1e-9)
    assert found["value"].min() == pytest.approx(values.min(), abs=2e-3 * scale)
    assert found["value"].max() == pytest.approx(values.max(), rel=1e-3)
    mean = (found["value"] * found["weight"]).sum()
    assert mean == pytest.approx(np.trace(full) / len(full), abs=0.4 * scale)


def test_a_quadratic_is_predicted_exactly_and_a_step_of_a_model_nearly() -> None:
    matrix = torch.tensor([[3.0, 1], [1, 2]], dtype=torch.float64)
    point, direction = {"w": torch.tensor([1.0, -1], dtype=torch.float64)}, {"w": torch.tensor([0.5, 2.0])}
    found = surface.along(lambda at: at["w"] @ matrix @ at["w"] / 2, point, direction, [0.0, 0.1, 3.0])
    np.testing.assert_allclose(found["change"], found["quadratic"], atol=1e-12)
    loss, point, _ = tiny_model()
    leaves = {n: t.clone().requires_grad_() for n, t in point.items()}
    gradient = dict(zip(leaves, torch.autograd.grad(loss(leaves), list(leaves.values())), strict=True))
    near = surface.along(loss, point, {n: -g for n, g in gradient.items()}, [0.01, 1.0])
    assert near["change"][0] == pytest.approx(near["quadratic"][0], rel=0.05, abs=2e-6) and near["linear"][0] < 0


def test_rows_that_are_held_are_no_part_of_the_point() -> None:
    """The gradient of the free rows is that of the whole tensor; a step moves those rows alone."""
    weights, net = tree_map(torch.Tensor.detach, lively(TINY)), Net(TINY.model, tables())
    masks = {"up": torch.tensor([True, False])}
    point = surface.free(weights, ["up", "smear"], masks)
    assert point["up"].shape == weights.banks.up[1:].shape
    found = surface.gradient(surface.text_loss(net, weights, X[:2], Y[:2], masks), point)
    whole = surface.gradient(surface.text_loss(net, weights, X[:2], Y[:2]), surface.free(weights, ["up", "smear"]))
    torch.testing.assert_close(found["up"][0], whole["up"][1])
    torch.testing.assert_close(found["smear"], whole["smear"])


def test_the_loss_around_what_ttt_adapts_in_numbers() -> None:
    weights = tree_map(torch.Tensor.detach, lively(TINY))
    found = surface.adaptation(TINY, Net(TINY.model, tables()), weights, X[:2, :12], Y[:2, :12], 0.01)
    facts = found["facts"].iloc[0]
    assert facts["tokens"] == 24 and found["density"]["weight"].sum() == pytest.approx(1)
    assert found["eigenvalues"]["value"].is_monotonic_decreasing
    assert facts["curvature_along"] <= found["eigenvalues"]["value"][0] * 1.001
    assert found["step"]["change"][0] == pytest.approx(found["step"]["quadratic"][0], rel=0.05)


def test_lines_and_planes_between_models_and_a_planted_copy() -> None:
    """Between a model and its permuted copy lies a barrier; after alignment there is none."""
    weights = tree_map(lambda t: t.detach(), lively(TINY))
    weights = weights._replace(banks=weights.banks._replace(up=3 * weights.banks.up, down=3 * weights.banks.down))
    copy = weights
    for block in range(TINY.model.n_blocks):
        copy = symmetry.permute_hidden(copy, TINY.model, block, torch.randperm(TINY.model.mlp_hidden))
    score = surface.row_scores(Net(TINY.model, tables()), X, Y)
    found = surface.line(score, weights, copy, points=5)
    assert found["excess"].abs().max() > 1e-3 and found["excess"].iloc[[0, -1]].abs().max() < 1e-6
    assert (found["low"] <= found["excess"] + 1e-9).all() and (found["excess"] <= found["high"] + 1e-9).all()
    aligned = alignment.align(TINY.model, weights, copy)
    assert surface.line(score, weights, aligned, points=5)["excess"].abs().max() < 1e-5
    corners = surface.plane(score, weights, copy, aligned, points=3, margin=0.0).set_index(["u", "v"])["nats"]
    ends = found["nats"].iloc[[0, -1]].tolist()
    assert [corners[0.0, 0.0], corners[1.0, 0.0]] == pytest.approx(ends, abs=1e-6)


def test_a_matrix_of_an_aligned_copy_stands_in_and_another_does_not() -> None:
    weights, other = (tree_map(torch.Tensor.detach, lively(TINY, seed)) for seed in (0, 1))
    copy = symmetry.permute_hidden(weights, TINY.model, 0, torch.randperm(TINY.model.mlp_hidden))
    score = surface.row_scores(Net(TINY.model, tables()), X, Y)
    found = surface.swaps(score, weights, alignment.align(TINY.model, weights, copy)).set_index("matrix")
    assert found["difference"].abs().max() < 1e-5 and len(found) == 6 * TINY.model.n_blocks
    raw = surface.swaps(score, weights, copy).set_index("matrix")["difference"]
    assert abs(raw["block0.up"]) > 1e-4 and abs(raw["block1.up"]) < 1e-6
    whole, part = surface.swaps(score, weights, other), surface.swaps(score, weights, other, k=TINY.model.dim)
    np.testing.assert_allclose(part["difference"], whole["difference"], atol=1e-4)


def test_the_published_midpoint_ratio_is_a_function_of_the_cosine() -> None:
    """Spec F5: 0.7071, 0.7314 and 0.8860 for cosines of 0, 0.07 and 0.57."""
    assert [surface.midpoint_ratio(c) for c in (0, 0.07, 0.57)] == pytest.approx([0.7071, 0.7314, 0.8860], abs=5e-5)
    a, b = torch.randn(2, 500, dtype=torch.float64)
    ratio = surface.midpoint_ratio(float(torch.cosine_similarity(a, b, 0)), float(b.norm() / a.norm()))
    assert ratio == pytest.approx(float((a + b).norm() / 2 / a.norm()))


def test_the_noise_scale_of_gradients_with_known_noise() -> None:
    """Signal of norm 2 in 50 dimensions, noise of variance 9 a token in each: 450 / 4 tokens."""
    g = torch.Generator().manual_seed(0)
    signal = torch.full((50,), 2 / 50**0.5)
    small = [{"w": signal + 3 * torch.randn(50, generator=g) / 64**0.5} for _ in range(400)]
    assert surface.noise_scale(small, 64) == pytest.approx(450 / 4, rel=0.1)
    assert np.isnan(surface.noise_scale([{"w": torch.ones(1)}, {"w": -torch.ones(1)}], 1))


def test_kept_scores_are_not_computed_again_and_outlive_a_kill(tmp_path: Path) -> None:
    weights, copy = (tree_map(torch.Tensor.detach, lively(TINY, seed)) for seed in (0, 1))
    score, calls, path = surface.row_scores(Net(TINY.model, tables()), X, Y), [], tmp_path / "deep" / "scores.jsonl"

    def counted(w: Weights) -> np.ndarray:
        calls.append(w)
        return score(w)

    first = surface.line(surface.kept(counted, path), weights, copy, points=5)
    path.write_text(path.read_text()[:-7])  # a kill within the last line
    again = surface.line(surface.kept(counted, path), weights, copy, points=5)
    assert len(calls) == 6 and again.equals(first) and path.read_text().count("\n") == 5
    table = pd.concat([first.assign(models="a to b", aligned=False), first.assign(models="a to c", aligned=False)])
    top = surface.barriers(table)
    assert top["barrier"].tolist() == [first["excess"].max()] * 2 and len(top) == 2
