"""Every claimed symmetry leaves the logits alone; what is planted is found again."""

import pytest
import torch
from tiny import lively, tables
from torch import Tensor

from golfcore.analysis import alignment, symmetry
from golfcore.config import Config, load
from golfcore.model.forward import Net, forward
from golfcore.model.weights import Weights, tree_map

SYSTEMS = ["exp101", "pr398", "pr294-recurrent", "swiglu"]


def system(name: str) -> Config:
    """Two key/value heads of two query heads each, so that there is something to exchange."""
    heads = {"model.n_heads": 4, "model.n_kv_heads": 2, "model.rope_dims": 4}
    extra = {"model.mlp": "swiglu", "model.mlp_hidden": 48} if name == "swiglu" else {}
    return load("exp101" if name == "swiglu" else name, heads | extra, "smoke")


def logits(cfg: Config, w: Weights) -> Tensor:
    x = torch.randint(cfg.model.vocab_size, (2, 24), generator=torch.Generator().manual_seed(3))
    return forward(Net(cfg.model, tables(cfg)), tree_map(lambda t: t.double(), w), x)


def rotation(n: int) -> Tensor:
    return torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0]


def hidden(cfg: Config) -> int:
    return lively(cfg).banks.down.shape[2]


def planted(cfg: Config, w: Weights, block: int) -> dict[str, Weights]:
    """`w` moved by each symmetry of a block, and by all of them."""
    m, free = cfg.model, block in symmetry.free_blocks(cfg.model)
    moves = {
        "hidden": lambda x: symmetry.permute_hidden(x, m, block, torch.randperm(hidden(cfg))),
        "scales": lambda x: symmetry.scale_hidden(
            x, m, block, torch.exp(torch.randn(hidden(cfg)).clamp(-1, 1)).double()
        ),
        "queries": lambda x: symmetry.permute_queries(x, m, block, torch.tensor([1, 0, 3, 2])),
        "rotary": lambda x: symmetry.rotate_queries(x, m, block, 1, rotation(m.head_dim - m.rope_dims)),
    }
    if free:
        moves["groups"] = lambda x: symmetry.permute_groups(x, m, block, torch.tensor([1, 0]))
        moves["values"] = lambda x: symmetry.rotate_values(x, m, block, 0, rotation(m.head_dim))
    found = {name: move(w) for name, move in moves.items()}
    together = w
    for move in moves.values():
        together = move(together)
    return found | {"all": together}


def weights_of(cfg: Config, seed: int = 0) -> Weights:
    return tree_map(lambda t: t.detach().double(), lively(cfg, seed))


@pytest.mark.parametrize("name", SYSTEMS)
def test_no_symmetry_changes_a_logit_and_each_changes_weights(name: str) -> None:
    cfg = system(name)
    w = weights_of(cfg)
    before = logits(cfg, w)
    for block in range(cfg.model.n_blocks):
        for kind, moved in planted(cfg, w, block).items():
            torch.testing.assert_close(logits(cfg, moved), before, rtol=0, atol=2e-5, msg=f"{kind} of block {block}")
            assert not all(torch.equal(a, b) for a, b in zip(moved.banks, w.banks, strict=True)), kind
    order, signs = torch.randperm(cfg.model.dim), torch.randint(2, (cfg.model.dim,)).double() * 2 - 1
    torch.testing.assert_close(logits(cfg, symmetry.permute_stream(w, order, signs)), before, rtol=0, atol=2e-5)


def test_what_is_no_symmetry_is_refused_or_changes_logits() -> None:
    """Values under a value embedding; query heads out of their group; a rotation of rotary dimensions."""
    cfg = system("exp101")
    m, w = cfg.model, weights_of(system("exp101"))
    (bound,) = set(range(m.n_blocks)) - set(symmetry.free_blocks(m))
    for move in (symmetry.permute_groups, lambda *a: symmetry.rotate_values(*a[:3], 0, torch.eye(m.head_dim))):
        with pytest.raises(ValueError, match="the value embedding enters its values"):
            move(w, m, bound, torch.tensor([1, 0]))
    with pytest.raises(ValueError, match="stay in it"):
        symmetry.permute_queries(w, m, 0, torch.tensor([2, 1, 0, 3]))
    everywhere = symmetry.copied(w)
    rows = everywhere.banks.kv[0].unflatten(0, (-1, m.head_dim))
    turn = rotation(m.head_dim)
    rows[0] = turn @ rows[0]
    for h in symmetry.query_heads(m, 0):
        everywhere.banks.qo[0].unflatten(0, (-1, m.head_dim))[h].copy_(
            turn @ w.banks.qo[0].unflatten(0, (-1, m.head_dim))[h]
        )
    assert (logits(cfg, everywhere) - logits(cfg, w)).abs().max() > 1e-2


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_planted_copy_is_found_again(name: str, stream: bool) -> None:
    """Permutations, rotations, scales and signed channels of every block at once: the copy becomes the model itself."""
    cfg = system(name)
    w = copy = weights_of(cfg)
    for block in range(cfg.model.n_blocks):
        copy = planted(cfg, copy, block)["all"]
    if stream:
        signs = torch.randint(2, (cfg.model.dim,)).double() * 2 - 1
        copy = symmetry.permute_stream(copy, torch.randperm(cfg.model.dim), signs)
    found = alignment.align(cfg.model, w, copy, stream)
    table = alignment.distances({"w": w, "copy": copy, "aligned": found}, "w").set_index(["model", "tensor"])
    assert table.loc[("copy", "matrices"), "cosine"] < 0.5
    assert table.loc[("aligned", "all"), "relative"] < 1e-6
    torch.testing.assert_close(logits(cfg, found), logits(cfg, w), rtol=0, atol=2e-5)


def test_units_are_found_by_what_they_do_on_tokens() -> None:
    cfg = system("exp101")
    w, order = weights_of(cfg), torch.randperm(hidden(cfg))
    copy = symmetry.permute_hidden(w, cfg.model, 0, order)
    activity = torch.randn(50, hidden(cfg))
    own = {0: activity, 1: activity}
    found = alignment.align(cfg.model, w, copy, activations=(own, {0: activity[:, order], 1: activity}))
    assert alignment.distances({"w": w, "found": found}, "w")["relative"].max() < 1e-6


def test_distances_are_true_ones() -> None:
    cfg = system("exp101")
    a, b = weights_of(cfg), weights_of(cfg, 1)
    found = alignment.distances({"a": a, "b": b}, "a").set_index("tensor")
    x, y = (torch.cat([t.flatten() for t in (*w.banks, *w.rest.values())]) for w in (a, b))
    assert found.loc["all", "l2"] == pytest.approx(float((x - y).norm()))
    assert found.loc["all", "cosine"] == pytest.approx(float(torch.cosine_similarity(x, y, dim=0)))
