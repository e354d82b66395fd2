"""Laws of the one forward: weights are an argument, taps observe, caches and backends change nothing."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from golfcore.config import ModelConfig, load
from golfcore.data.tokens import Tables
from golfcore.model import params
from golfcore.model.attention import (
    Attend,
    Cache,
    Compute,
    attend_blocks,
    attend_reference,
    attend_sdpa,
    rope_angles,
    rope_base,
)
from golfcore.model.forward import Net, forward, nll, rms, training_loss
from golfcore.model.generate import generate
from golfcore.model.params import init
from golfcore.model.weights import ROLES, Banks, Weights, flat, map_matrices, matrices, matrix, tree_map, unflat

SMALL = replace(load("smoke").model, vocab_size=64, blocks=(0, 1, 2, 3), xsa_last_n=2, ve_layers=(1, 3), trigram=True)
SHARED = replace(SMALL, blocks=(0, 1, 0, 1), ve_layers=())
SWIGLU = replace(SMALL, mlp="swiglu")
PLAIN = replace(SMALL, bigram_rows=0, trigram=False, ve_layers=(), xsa_last_n=0, smear=False, mlp="relu2")
NTK = replace(SMALL, rope_ntk_len=8)
MEMORY = replace(SMALL, memory_tokens=6)
CONFIGS = {"small": SMALL, "shared": SHARED, "swiglu": SWIGLU, "plain": PLAIN, "ntk": NTK, "memory": MEMORY}
every_config = pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)


def random_weights(cfg: ModelConfig, seed: int = 0) -> Weights:
    """Weights with no tensor at a special value (outputs start at 0, gains at 1)."""
    generator = torch.Generator().manual_seed(seed)
    return tree_map(lambda t: t + 0.2 * torch.randn(t.shape, generator=generator), init(cfg, seed))


def tables(cfg: ModelConfig) -> Tables:
    starts = torch.arange(cfg.vocab_size) % 3 == 0
    return Tables(torch.ones(cfg.vocab_size, dtype=torch.int16), starts, torch.zeros_like(starts))


def some_tokens(cfg: ModelConfig, *shape: int) -> Tensor:
    return torch.randint(cfg.vocab_size, shape, generator=torch.Generator().manual_seed(1))


@every_config
def test_parameter_table_covers_every_tensor_once(cfg: ModelConfig) -> None:
    weights, rows = init(cfg, 0), params.table(cfg)
    assert [p.name for p in rows] == list(flat(weights))
    assert all(tuple(flat(weights)[p.name].shape) == p.shape for p in rows)


@every_config
def test_every_tensor_reaches_the_logits(cfg: ModelConfig) -> None:
    leaves = tree_map(lambda t: t.requires_grad_(), random_weights(cfg))
    forward(Net(cfg, tables(cfg)), leaves, some_tokens(cfg, 2, 12)).square().sum().backward()
    assert {name for name, t in flat(leaves).items() if t.grad is None or not t.grad.any()} == set()


def test_published_parameter_counts() -> None:
    assert params.summary(load("exp101").model)["total"] == 26_960_991
    assert params.summary(load("exp105a").model)["exported"] == 26_960_991
    assert params.summary(load("pr398").model)["total"] == 26_829_913
    assert params.summary(load("pr294-error-guided").model)["total"] == 26_829_913
    assert params.summary(load("pr294-recurrent").model)["total"] == 13_214_244
    reptile = params.summary(load("pr294-reptile").model)
    assert reptile["total"] == reptile["exported"] == 27_092_057
    assert reptile["groups"]["none"] == 4096 * 128 + 128 * 512 + 1 + 512  # the n-gram embedding and SmearGate
    assert params.summary(load("pr398", {"model.memory_tokens": 64}).model)["exported"] == 26_829_913 + 64 * 512


def test_swiglu_has_as_many_parameters() -> None:
    assert params.summary(SWIGLU)["total"] == params.summary(SMALL)["total"]


@every_config
def test_the_forward_is_causal(cfg: ModelConfig) -> None:
    weights, x = random_weights(cfg), some_tokens(cfg, 1, 12)
    before = forward(Net(cfg, tables(cfg)), weights, x)
    x[:, 7:] = (x[:, 7:] + 1) % cfg.vocab_size
    after = forward(Net(cfg, tables(cfg)), weights, x)
    assert torch.equal(before[:, :7], after[:, :7]) and not torch.equal(before[:, 7:], after[:, 7:])


def test_rows_of_a_batch_do_not_meet() -> None:
    weights, x = random_weights(SMALL), some_tokens(SMALL, 3, 10)
    together = forward(Net(SMALL, tables(SMALL)), weights, x)
    alone = torch.cat([forward(Net(SMALL, tables(SMALL)), weights, row[None]) for row in x])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@every_config
def test_a_tap_changes_nothing_and_sees_every_matrix(cfg: ModelConfig) -> None:
    weights, x, seen = random_weights(cfg), some_tokens(cfg, 1, 6), {}
    tapped = forward(Net(cfg, tables(cfg)), weights, x, tap=lambda name, t: seen.setdefault(name, t.shape))
    assert torch.equal(tapped, forward(Net(cfg, tables(cfg)), weights, x))
    assert {name for name, _ in matrices(weights)} <= set(seen)
    assert all(seen[name][-1] == m.shape[1] for name, m in matrices(weights))


@every_config
@pytest.mark.parametrize("pieces", [(1,) * 12, (5, 7), (4, 1, 1, 6)], ids=str)
def test_cached_logits_equal_uncached_at_the_final_length(cfg: ModelConfig, pieces: tuple[int, ...]) -> None:
    """Also when the length is beyond the one at which the rotary base starts to grow."""
    weights, x = random_weights(cfg), some_tokens(cfg, 2, 12)
    cache = Cache(cfg, 2, 12, Compute(), x.device)
    parts = [forward(Net(cfg, tables(cfg)), weights, part, cache=cache) for part in x.split(list(pieces), dim=1)]
    torch.testing.assert_close(
        torch.cat(parts, dim=1), forward(Net(cfg, tables(cfg)), weights, x), atol=2e-5, rtol=1e-5
    )


def test_generation_samples_from_the_uncached_distribution() -> None:
    weights, prompt = random_weights(NTK), some_tokens(NTK, 2, 3)
    text = generate(Net(NTK, tables(NTK)), weights, prompt, 16, torch.Generator().manual_seed(5), temperature=0.7)
    again, generator = prompt, torch.Generator().manual_seed(5)
    for t in range(3, 16):
        padded = torch.nn.functional.pad(again, (0, 16 - t))  # the final length fixes the rotary base
        logits = forward(Net(NTK, tables(NTK)), weights, padded)[:, t - 1]
        new = torch.multinomial((logits / 0.7).softmax(-1), 1, generator=generator)
        again = torch.cat((again, new), dim=1)
    assert torch.equal(text, again)


def test_last_gives_the_last_positions_only() -> None:
    weights, x = random_weights(SMALL), some_tokens(SMALL, 2, 9)
    whole = forward(Net(SMALL, tables(SMALL)), weights, x)
    torch.testing.assert_close(forward(Net(SMALL, tables(SMALL)), weights, x, last=4), whole[:, 5:], atol=1e-6, rtol=0)


@pytest.mark.parametrize("attend", [attend_sdpa, attend_blocks, partial(attend_blocks, rows=4)])
@pytest.mark.parametrize("lengths", [(6, 6), (1, 6), (3, 6)], ids=str)
def test_attention_backends_agree(lengths: tuple[int, int], attend: Attend) -> None:
    g = torch.Generator().manual_seed(0)
    q = torch.randn(2, lengths[0], 4, 8, generator=g)
    k, v = (torch.randn(2, lengths[1], 2, 8, generator=g) for _ in range(2))
    torch.testing.assert_close(attend(q, k, v), attend_reference(q, k, v))


def test_rotary_angles_follow_the_ntk_rule_and_the_quirk() -> None:
    """The base at 2048 is the one measured in the original (22,081.790); bfloat16 merges neighbouring positions."""
    exp101 = load("exp101").model
    assert rope_base(exp101, 1024) == 10_000 and abs(rope_base(exp101, 2048) - 22_081.790) < 1e-2
    cos, _ = rope_angles(replace(exp101, rope_angles="float32"), 0, 1024, 1024, torch.device("cpu"))
    merged, _ = rope_angles(exp101, 0, 1024, 1024, torch.device("cpu"))
    assert len(cos[:, 0].unique()) > 1000 and len(merged[:, 0].unique()) <= 513
    long = [
        rope_angles(c, 0, 2048, 2048, torch.device("cpu"))[0] for c in (exp101, replace(exp101, rope_angles="float32"))
    ]
    assert torch.equal(*long)


def test_compiled_equals_eager_for_own_other_and_adapted_weights() -> None:
    """`functional_call` under `torch.compile` once kept the first weights silently; a pure function must not."""

    def loss(weights: Weights, x: Tensor) -> Tensor:
        return nll(forward(Net(cfg, tables(cfg)), weights, x), x).mean()

    cfg = replace(SMALL, blocks=(0, 1), ve_layers=(1,), xsa_last_n=1)
    compiled = torch.compile(loss, backend="eager", dynamic=False, fullgraph=True)
    x = some_tokens(cfg, 2, 8)
    own = tree_map(lambda t: t.requires_grad_(), random_weights(cfg))
    gradients = torch.autograd.grad(loss(own, x), list(own.banks))
    adapted = own._replace(banks=Banks(*(b - 0.1 * g for b, g in zip(own.banks, gradients, strict=True))))
    for weights in (own, random_weights(cfg, seed=9), adapted):
        torch.testing.assert_close(compiled(weights, x), loss(weights, x), atol=1e-6, rtol=1e-6)


def test_banks_hold_pairs_of_slots_by_block() -> None:
    weights = random_weights(SMALL)
    assert torch.equal(matrix(weights.banks, "out", 2), weights.banks.qo[5])
    assert torch.equal(matrix(weights.banks, "key", 3), weights.banks.kv[6])
    assert len(list(matrices(weights))) == len(ROLES) * 4
    same = map_matrices(lambda name, m: m, weights)
    assert all(torch.equal(a, b) for a, b in zip(same.banks, weights.banks, strict=True))
    assert all(
        torch.equal(a, b) for a, b in zip(flat(unflat(flat(weights))).values(), flat(weights).values(), strict=True)
    )


def test_initial_values() -> None:
    cfg = load("exp101", {"model.dim": 64, "model.n_heads": 8, "model.mlp_hidden": 96, "model.rope_dims": 8}).model
    w = init(cfg, 3)
    eye = torch.eye(64)
    torch.testing.assert_close(w.banks.qo[0] @ w.banks.qo[0].T, eye, atol=0.02, rtol=0)  # bfloat16 rounding
    assert not w.banks.qo[1::2].any() and not w.banks.down.any() and not w.rest["bigram"].any()
    assert not w.rest["skip"][3:5].any() and w.rest["skip"][:3].eq(1).all()
    assert float(w.rest["attn_scale"][0, 0]) == 0.10009765625 and w.rest["attn_scale"][1:].eq(1).all()
    assert all(torch.equal(a, b) for a, b in zip(flat(w).values(), flat(init(cfg, 3)).values(), strict=True))


def test_frozen_rows_of_exp101_are_the_published_count() -> None:
    """Freezing two blocks froze 4,112 scalars in the published TTT; with their matrices it is 4,722,704."""
    cfg = load("exp101").model
    scalars = params.frozen(cfg, 2, ("control",))
    assert params.frozen_count(cfg, scalars) == 4_112
    assert params.frozen_count(cfg, params.frozen(cfg, 2, ("matrix", "control"))) == 4_112 + 4_718_592
    assert params.frozen(cfg, 0, ("matrix",)) == {}


def test_a_shared_block_owns_the_rows_of_all_its_layers() -> None:
    masks = params.frozen(SHARED, 1, ("control", "matrix"))
    assert masks["attn_scale"].tolist() == [True, False, True, False]
    assert masks["qo"].tolist() == [True, True, False, False] and masks["up"].tolist() == [True, False]


# ---- initial values of the other systems


def test_uniform_matrices_fill_their_bound_and_outputs_start_at_zero() -> None:
    cfg = replace(SMALL, linear_init="uniform", mlp_hidden=128)
    w = init(cfg, 0)
    drawn = {role: torch.stack([matrix(w.banks, role, b) for b in range(4)]) for role in ROLES}
    assert not drawn["out"].any() and not drawn["down"].any()
    for role in ("query", "key", "value", "up"):
        bound = cfg.dim**-0.5
        assert 0.98 * bound < drawn[role].abs().max() <= bound, role
        assert float(drawn[role].std()) == pytest.approx(bound / 3**0.5, rel=0.05), role


def test_the_overtone_spectrum_falls_with_the_root_of_its_index() -> None:
    """Largest singular value and singular vectors are those of the normal sample."""
    cfg = replace(SMALL, embed_init="overtone")
    table, sample = init(cfg, 0).rest["tok_emb"], init(SMALL, 0).rest["tok_emb"]
    found = torch.linalg.svdvals(table.double())
    want = torch.linalg.svdvals(sample.double())[0] * torch.arange(1, cfg.dim + 1).double() ** -0.5
    torch.testing.assert_close(found, want, rtol=1e-4, atol=0)
    product = sample.double().T @ table.double()
    torch.testing.assert_close(product, product.T, rtol=0, atol=1e-6 * float(product.max()))


def test_the_mix_of_twelve_layers_goes_from_the_embedding_to_the_stream() -> None:
    phases = "0.18243 0.22666 0.27797 0.33586 0.39913 0.46596 0.53404 0.60087 0.66414 0.72203 0.77334 0.81757"
    mix = init(replace(PLAIN, blocks=(0, 1, 2) * 4, mix_init="phase"), 0).rest["resid_mix"]
    want = torch.tensor([float(x) for x in phases.split()])[:, None].expand(12, PLAIN.dim)
    torch.testing.assert_close(mix[:, 0], want, rtol=0, atol=5e-6)
    torch.testing.assert_close(mix.sum(1), torch.ones(12, PLAIN.dim))
    assert init(replace(PLAIN, blocks=(0,), mix_init="phase"), 0).rest["resid_mix"].isfinite().all()


def test_the_bigram_projection_starts_as_its_system_has_it() -> None:
    """Orthonormal columns (exp101), by 1/sqrt(2 layers) = 0.2132 of eleven (pr398), or nothing (pr294)."""
    eleven = replace(SMALL, blocks=tuple(range(11)), trigram=False)
    for rule, gain in (("orthogonal", 1.0), ("scaled", 0.21320072), ("zeros", 0.0)):
        p = init(replace(eleven, bigram_proj_init=rule), 0).rest["bigram_proj"]
        torch.testing.assert_close(p.T @ p, gain**2 * torch.eye(SMALL.bigram_dim), rtol=0, atol=1e-6)


# ---- memory tokens and the training loss


def test_memory_tokens_stand_where_the_first_embeddings_would() -> None:
    """With those very embeddings nothing changes; with others the first real tokens do not matter."""
    cfg, x = replace(PLAIN, memory_tokens=3), some_tokens(PLAIN, 2, 9)
    x[:, :3] = x[0, :3]
    plain, memory = random_weights(PLAIN), random_weights(cfg)
    first = rms(plain.rest["tok_emb"][x[0, :3]])
    same = plain._replace(rest={**plain.rest, "memory": first})
    assert torch.equal(forward(Net(cfg), same, x), forward(Net(PLAIN), plain, x))
    other = x.clone()
    other[:, :3] = (x[:, :3] + 1) % cfg.vocab_size
    assert torch.equal(forward(Net(cfg), memory, x), forward(Net(cfg), memory, other))
    moved = memory._replace(rest={**memory.rest, "memory": memory.rest["memory"] + 1})
    assert (forward(Net(cfg), memory, x) != forward(Net(cfg), moved, x)).any(-1).all()
    short = forward(Net(cfg), memory, x[:, :2])  # a row within the memory
    torch.testing.assert_close(short, forward(Net(cfg), memory, x)[:, :2], atol=1e-5, rtol=0)


def test_targets_in_place_of_memory_tokens_are_no_part_of_the_training_loss() -> None:
    logits, y = torch.randn(2, 10, 64), some_tokens(SMALL, 2, 10)
    loss = training_loss(MEMORY, logits, y)
    assert float(loss) == pytest.approx(float(nll(logits, y)[:, 6:].mean()))
    y[:, :6] = 0
    assert torch.equal(loss, training_loss(MEMORY, logits, y))
    assert torch.equal(training_loss(SMALL, logits, y), nll(logits, y).mean())


def test_z_loss_adds_its_gradient_and_leaves_the_value() -> None:
    """d/dz_v of w mean(logsumexp(z)^2) is 2 w logsumexp(z) softmax(z)_v over the number of positions."""
    z, y, w = torch.randn(2, 3, 8, requires_grad=True), torch.randint(8, (2, 3)), 0.1
    plain, with_z = training_loss(SMALL, z, y), training_loss(SMALL, z, y, w)
    assert torch.equal(plain, with_z)
    (g,), (g_z,) = torch.autograd.grad(plain, z), torch.autograd.grad(with_z, z)
    want = 2 * w * z.logsumexp(-1, keepdim=True) * z.softmax(-1) / 6
    torch.testing.assert_close(g_z - g, want.detach())
    compiled = torch.compile(lambda z: training_loss(SMALL, z, y, w), backend="eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(z), z)[0], g_z)
