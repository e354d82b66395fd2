"""Laws of distances between what models compute."""

import pytest
import torch
from tiny import TINY, lively, tables

from golfcore.analysis import functional, symmetry
from golfcore.model.forward import Net, forward
from golfcore.model.weights import tree_map

NET = Net(TINY.model, tables())
X, Y = torch.randint(1024, (2, 4, 40), generator=torch.Generator().manual_seed(0))


def models() -> dict:
    a, b = (tree_map(torch.Tensor.detach, lively(TINY, seed)) for seed in (0, 1))
    return {"a": a, "copy": symmetry.permute_hidden(a, TINY.model, 0, torch.randperm(TINY.model.mlp_hidden)), "b": b}


def test_a_permuted_copy_computes_the_same_and_another_model_does_not() -> None:
    found = functional.predictions(NET, models(), X, Y, batch=3).set_index("models")
    same, other = found.loc["a vs copy"], found.loc["a vs b"]
    assert same["kl"] == pytest.approx(0, abs=1e-9) and same["agreement"] == 1
    assert same["correlation"] == pytest.approx(1) and same["nats_a"] == pytest.approx(same["nats_b"])
    assert other["kl"] > 0.01 and other["agreement"] < 0.9 and other["correlation"] < 0.99
    p, q = (forward(NET, models()[name], X).log_softmax(-1).double() for name in "ab")
    both = [torch.nn.functional.kl_div(v, u, reduction="sum", log_target=True) / X.numel() for u, v in ((p, q), (q, p))]
    assert other["kl"] == pytest.approx(float(sum(both)) / 2)


def test_representations_are_equal_up_to_rotation_and_scale() -> None:
    found = functional.representations(NET, models(), X).set_index(["models", "layer"])
    assert found.loc["a vs copy"].min().min() > 1 - 1e-6 and found.loc[("a vs b", 1), "cka"] < 0.9
    p = torch.randn(60, 8, dtype=torch.float64)
    p = p - p.mean(0)
    turned = 3 * p @ torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    stretched = p * torch.logspace(0, 2, 8, dtype=torch.float64)
    assert functional.cka(p, turned) == pytest.approx(1) and functional.cka(p, stretched) < 0.9
    assert functional._explained(p, stretched) == pytest.approx(1)
