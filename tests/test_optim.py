"""Laws of Muon and of the optimizers built from the parameter table; the recorded cases c at the bit."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import same
from torch import Tensor

from golfcore.base.runtime import multiplies_bfloat16
from golfcore.config import ModelConfig, OptimConfig
from golfcore.model.params import init, table
from golfcore.model.weights import Weights, flat, tree_map
from golfcore.optim.build import Optimizers, build, clip_, leaves, mask_frozen_skips, ns_dtype
from golfcore.optim.muon import Muon, newton_schulz

GOLDEN = np.load(Path(__file__).parent / "golden/c_newton_schulz_muon.npz")
META = json.loads(str(GOLDEN["meta"]))
BF16 = torch.bfloat16
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Relative Frobenius norms. bfloat16 Newton-Schulz is 3 to 4% off float32 and depends on the library. PR 398 differs
# from exp101 only in rounding, which these cover: b A + (c A) A, float32 momentum, and the scaled update rounded to
# bfloat16 (also in its float32 record). Without bfloat16 both are the same computation.
TOLERANCES = {"fp32": 2e-4, "bf16": 6e-2}


def recorded(key: str) -> Tensor:
    return torch.from_numpy(GOLDEN[key])


def rel_fro(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def replay(prefix: str, dtype: torch.dtype, momentum_dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Our parameters and momentum after each recorded Muon step, under the recorded names ("p1", "mom1", ...)."""
    group, name = prefix.split("/")
    case = next(c for c in META["muon2d" if group == "muon2d_pr398" else "muon"] if c["name"] == name)
    p = recorded(f"{prefix}/in/p0").clone().requires_grad_()
    group = {"params": [p], "momentum_dtype": momentum_dtype or dtype}
    muon = Muon([group], 0.0, 0.0, case["wd"], case["steps"], dtype)
    found = {}
    for i, (lr, momentum) in enumerate(zip(case["lr"], case["momentum"], strict=True), 1):
        p.grad = recorded(f"{prefix}/in/grad{i - 1}")
        muon.param_groups[0].update(lr=lr, momentum=momentum)
        muon.step()
        found |= {f"p{i}": p.detach().clone(), f"mom{i}": muon.state[p]["momentum"].clone()}
    return found


@pytest.mark.parametrize("shape", ["tall", "wide"])
def test_recorded_steps_agree_as_displacements_and_momentum_bit_for_bit(shape):
    """The parameters barely move, so they would agree to the tolerance above even without weight decay."""
    start = recorded(f"muon/{shape}/in/p0")
    exact, rounded = replay(f"muon/{shape}", torch.float32), replay(f"muon/{shape}", torch.bfloat16)
    for i in (1, 2, 3):
        assert rel_fro(exact[f"p{i}"] - start, recorded(f"muon/{shape}/out_fp32/p{i}") - start) < 2e-4
        assert torch.equal(rounded[f"mom{i}"].float(), recorded(f"muon/{shape}/out_bf16/mom{i}"))


def test_float32_momentum_under_bfloat16_newton_schulz_is_pr398s_bit_for_bit():
    (name,) = {k.split("/")[1] for k in GOLDEN.files if k.startswith("muon2d_pr398")}
    found = replay(f"muon2d_pr398/{name}", BF16, torch.float32)
    for i in (1, 2, 3):
        assert torch.equal(found[f"mom{i}"], recorded(f"muon2d_pr398/{name}/out_bf16/mom{i}"))


def test_newton_schulz_of_a_worked_example():
    found = newton_schulz(torch.tensor([[3.0, 1, 0], [0, 2, 1]]), 5, torch.float32)
    expected = torch.tensor([[0.979092, 0.323775, -0.001294], [-0.003882, 0.657903, 0.329599]])
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_newton_schulz_is_the_quintic_of_every_singular_value():
    g = torch.randn(24, 40)
    u, s, vh = torch.linalg.svd(g / g.norm(), full_matrices=False)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(newton_schulz(g, 5, torch.float32), u @ torch.diag(s) @ vh, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize("shape", [(4, 96, 32), (4, 32, 96)])
@pytest.mark.parametrize(("quintics", "least", "most"), [("muon", 0.65, 1.2), ("polar-express", 0.85, 1.15)])
def test_updates_are_nearly_orthogonal(shape, dtype, quintics, least, most):
    values = torch.linalg.svdvals(newton_schulz(torch.randn(shape), 5, dtype, quintics).float())
    assert values.min() > least and values.max() < most


def test_polar_express_lifts_small_singular_values_twice_as_fast():
    """Its quintics multiply a small value by 8.16 4.04 3.89 3.29 2.35 / 1.02, Muon's by 3.44^5."""
    g = torch.diag(torch.tensor([1.0, 1e-5, 0.0]))[:2]
    found = {q: float(newton_schulz(g, 5, torch.float32, q)[1, 1]) for q in ("muon", "polar-express")}
    assert found == pytest.approx({"muon": 1e-5 * 3.4445**5, "polar-express": 1e-5 * 989.47 / 1.02}, rel=1e-3)


def test_equal_rows_orthogonalise_rows_of_unequal_size():
    """MuonEq-R: momentum rows of norms 1 to 1e-3 leave singular values as near to 1 as if they were equal."""
    rows, values = torch.logspace(-3, 0, 32)[:, None], {}
    for equal in (False, True):
        p = torch.zeros(32, 96, requires_grad=True)
        torch.manual_seed(0)
        p.grad = rows * torch.randn(32, 96)
        Muon([{"params": [p], "equal_rows": equal}], 1.0, 0.9, 0.0, dtype=torch.float32).step()
        values[equal] = torch.linalg.svdvals(p.detach())
    assert values[True].min() > 0.65 and values[False].min() < 0.3


@pytest.mark.parametrize("shape", [(3, 24, 16), (16, 24)])
def test_conditioning_moves_singular_values_to_their_root_mean_square(shape):
    p = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    before = torch.linalg.svdvals(p.detach())
    p.grad, mean_square = torch.zeros(shape), before.square().mean(-1, keepdim=True)
    Muon([{"params": [p], "conditioning": 2.0}], 0.05, 0.9, 0.0, dtype=torch.float32).step()
    after = torch.linalg.svdvals(p.detach())
    want = before - 0.1 * before * (before.square() / mean_square - 1)
    torch.testing.assert_close(after, want.sort(descending=True).values, rtol=1e-4, atol=1e-4)
    assert (after[..., 0] / after[..., -1] < before[..., 0] / before[..., -1]).all()


@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize("shape", [(5, 24, 16), (5, 16, 24), (5, 16, 16), (2, 3, 24, 16)])
def test_a_batch_is_its_matrices_one_at_a_time(shape, dtype):
    g = torch.randn(shape) * torch.logspace(-4, 4, shape[0]).view(-1, *[1] * (len(shape) - 1))  # norms are per matrix
    one = [newton_schulz(m, 5, dtype) for m in g.reshape(-1, *shape[-2:])]
    assert rel_fro(newton_schulz(g, 5, dtype), torch.stack(one).view(shape)) < (
        1e-5 if dtype == torch.float32 else 5e-2
    )


def test_newton_schulz_commutes_with_transposing_and_ignores_scale():
    g = torch.randn(3, 24, 16)
    expected = newton_schulz(g, 5, torch.float32)
    torch.testing.assert_close(newton_schulz(g.mT, 5, torch.float32).mT, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(newton_schulz(1000 * g, 5, torch.float32), expected, rtol=0, atol=1e-4)


def test_a_zero_matrix_stays_zero_and_spoils_no_other():
    g = torch.randn(2, 16, 24)
    g[0] = 0
    found = newton_schulz(g, 5, torch.float32)
    assert not found[0].any()
    torch.testing.assert_close(found[1], newton_schulz(g[1], 5, torch.float32), rtol=0, atol=1e-5)


def gradients(shape: tuple[int, ...], n: int) -> list[Tensor]:
    return [torch.randn(shape) for _ in range(n)]


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [(3, 48, 20), (3, 20, 48), (3, 24, 24)])
def test_muon_is_torchs_slice_by_slice(shape, nesterov):
    """torch's keeps (1 - momentum) times our momentum, which Newton-Schulz cancels; it takes 2-D parameters only.

    Large rates, so that decay before or after the update, and its factor, would show.
    """
    given = {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.6, "nesterov": nesterov}
    ours = torch.randn(shape).requires_grad_()
    theirs = [m.detach().clone().requires_grad_() for m in ours]
    muon = Muon([ours], **given)
    reference = torch.optim.Muon(theirs, adjust_lr_fn="original", **given)
    for g in gradients(shape, 3):
        ours.grad = g
        for m, slot in zip(theirs, g, strict=True):
            m.grad = slot.clone()
        muon.step()
        reference.step()
    assert rel_fro(ours.detach(), torch.stack(theirs).detach()) < TOLERANCES["bf16"]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("shape", [(2, 24, 6), (2, 6, 24), (6, 24)])
def test_muon_is_its_formula(shape, after):
    """Two steps of W <- (1 - lr wd) W - lr sqrt(max(1, rows / cols)) NS(g + mu m), written out; pr294 decays last."""
    lr, mu, wd = 0.5, 0.9, 0.6
    w, (g1, g2) = torch.randn(shape), gradients(shape, 2)
    p = w.clone().requires_grad_()
    muon = Muon([{"params": [p], "decay_after": after}], lr, mu, wd, dtype=torch.float32)
    for p.grad in (g1, g2):
        muon.step()
    kappa = (shape[-2] / shape[-1]) ** 0.5 if shape[-2] > shape[-1] else 1.0
    for u in (g1 + mu * g1, g2 + mu * (mu * g1 + g2)):
        update = lr * kappa * newton_schulz(u, 5, torch.float32)
        w = (1 - lr * wd) * (w - update) if after else (1 - lr * wd) * w - update
    torch.testing.assert_close(p.detach(), w, rtol=0, atol=1e-4)


def test_muon_takes_matrices_only():
    with pytest.raises(ValueError, match="rows, cols"):
        Muon([torch.ones(3)], 0.1, 0.9, 0.0)


SHAPES = [(5, 12, 8), (1, 8, 12), (4, 8, 8), (6, 10)]  # shares of two ranks: 3 + 2 and padding, 1 + padding, 2 + 2, one


def three_steps(dtype: torch.dtype) -> dict[str, Tensor]:
    """Parameters and momentum after three steps of Muon on SHAPES; test_train.py takes them on two ranks."""
    generator = torch.Generator().manual_seed(8)
    params = [torch.randn(s, generator=generator).requires_grad_() for s in SHAPES]
    muon = Muon(params, 0.1, 0.9, 0.1, dtype=dtype)
    for _ in range(3):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        muon.step()
    moments = [muon.state[p]["momentum"].clone() for p in params]
    return {f"{kind}{i}": t.detach() for kind, ts in (("p", params), ("m", moments)) for i, t in enumerate(ts)}


MODEL = ModelConfig(
    vocab_size=16,
    dim=8,
    n_heads=2,
    n_kv_heads=1,
    mlp_hidden=12,
    blocks=(0, 1, 2, 3),
    frozen_skips=(1,),
    rope_dims=2,
    bigram_rows=8,
    bigram_dim=4,
    ve_layers=(3,),
    ve_dim=2,
)
OPTIM = OptimConfig(table_dtype="compute")


def begin(dtype: torch.dtype = BF16, model: ModelConfig = MODEL) -> tuple[Weights, Optimizers]:
    weights = leaves(model, OPTIM, init(model, 1), dtype, "cpu")
    return weights, build(model, OPTIM, weights, dtype)


def set_gradients(weights: Weights, step: int, skip: tuple[str, ...] = ()) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for name, t in flat(weights).items():
        g = torch.randn(t.shape, generator=generator).to(t.dtype)
        t.grad = None if name in skip else g


def train(weights: Weights, optimizers: Optimizers, steps: range) -> None:
    for step in steps:
        set_gradients(weights, step, skip=("smear",) if step % 2 else ())  # one tensor's step count lags
        optimizers.step(1 - step / 10, momentum=0.9 + step / 100)
        optimizers.zero_grad()


def test_tables_train_in_the_compute_dtype_only_if_asked():
    for table_dtype, low in (("compute", BF16), ("float32", torch.float32)):
        source = init(MODEL, 1)
        weights = leaves(MODEL, OptimConfig(table_dtype=table_dtype), source, BF16, "cpu")
        for p in table(MODEL):
            leaf = flat(weights)[p.name]
            assert leaf.is_leaf and leaf.requires_grad
            assert leaf.dtype == (low if p.group == "table" else torch.float32)
            assert leaf.data_ptr() != flat(source)[p.name].data_ptr()
            assert torch.equal(leaf.float(), flat(source)[p.name].to(leaf.dtype).float())


def adamw(w: Tensor, gradients: list[Tensor], lrs: list[float], b1: float, b2: float, eps: float, wd: float) -> Tensor:
    """Decoupled weight decay and bias-corrected moments (Loshchilov and Hutter, 2019), written out."""
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t, (g, lr) in enumerate(zip(gradients, lrs, strict=True), 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        w = (1 - lr * wd) * w - lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps)
    return w


@pytest.mark.parametrize("native", [False, True])
def test_newton_schulz_is_bfloat16_where_it_is_native(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    cpu = torch.device("cpu")
    assert ns_dtype(OptimConfig(), cpu) == (BF16 if native else torch.float32)
    assert ns_dtype(OptimConfig(ns_dtype="float32"), torch.device("meta")) == torch.float32


@pytest.mark.parametrize("matrices", ["muon", "adamw"])
def test_every_tensor_moves_by_the_rule_of_its_group(matrices: str):
    cfg = OptimConfig(
        matrix_optimizer=matrices,
        table_lr=0.5,
        scalar_lr=0.25,
        matrix_lr=0.125,
        adam_wd=0.1,
        matrix_wd=0.2,
        beta1=0.6,
        beta2=0.8,
        eps=1e-3,
        ns_dtype="float32",
    )
    weights = leaves(MODEL, cfg, init(MODEL, 1), torch.float32, "cpu")
    expected = {name: t.detach().clone() for name, t in flat(weights).items()}
    optimizers, scales, momenta = build(MODEL, cfg, weights, torch.float32), [0.5, 0.25], [0.7, 0.3]
    gradients: dict[str, list[Tensor]] = {name: [] for name in expected}
    for step, (scale, momentum) in enumerate(zip(scales, momenta, strict=True)):
        set_gradients(weights, step)
        for name, t in flat(weights).items():
            gradients[name].append(t.grad.clone())
        optimizers.step(scale, momentum)
    for p in table(MODEL):
        w, (g1, g2) = expected[p.name], gradients[p.name]
        lrs = [{"table": 0.5, "scalar": 0.25, "matrix": 0.125}[p.group] * scale for scale in scales]
        if p.group == "matrix" and matrices == "muon":
            kappa = max(1.0, p.shape[-2] / p.shape[-1]) ** 0.5
            for lr, u in zip(lrs, (1.7 * g1, g2 + 0.3 * (0.3 * g1 + g2)), strict=True):
                w = (1 - lr * 0.2) * w - lr * kappa * newton_schulz(u, 5, torch.float32)
        else:
            w = adamw(w, [g1, g2], lrs, 0.6, 0.8, 1e-3, 0.2 if p.group == "matrix" else 0.1)
        found = flat(weights)[p.name].detach()
        torch.testing.assert_close(found, w, rtol=0, atol=1e-4, msg=lambda m, p=p: f"{p.name}: {m}")


def test_the_configuration_reaches_muon():
    native = BF16 if multiplies_bfloat16(torch.device("cpu")) else torch.float32
    for cfg, want in (
        (OptimConfig(matrix_decay="after", momentum_dtype="float32"), (True, torch.float32, native)),
        (OPTIM, (False, BF16, native)),
        (dataclasses.replace(OPTIM, ns_dtype="bfloat16"), (False, BF16, BF16)),
    ):
        weights = leaves(MODEL, cfg, init(MODEL, 1), BF16, "cpu")
        optimizers = build(MODEL, cfg, weights, BF16)
        (group,) = optimizers.muon.param_groups
        assert (group["decay_after"], group["momentum_dtype"], group["dtype"]) == want
        assert optimizers.state_tensors()["muon/qo/momentum"].dtype == want[1]


def test_the_bigram_projection_is_in_the_group_it_is_configured_for():
    for group, kind in (("scalar", "adam"), ("matrix", "muon")):
        weights, optimizers = begin(torch.float32, dataclasses.replace(MODEL, bigram_proj_group=group))
        train(weights, optimizers, range(1))
        assert [k.split("/")[0] for k in optimizers.state_tensors() if "/bigram_proj/" in k][0] == kind


def test_what_is_in_no_optimizer_takes_no_gradient_and_never_moves():
    cfg = dataclasses.replace(MODEL, ngram_trained=False)
    names = {"smear", "bigram", "bigram_scale", "bigram_proj", "word_start_boost"}
    weights, optimizers = begin(model=cfg)
    assert {name for name, t in flat(weights).items() if not t.requires_grad} == names
    before = {name: t.detach().clone() for name, t in flat(weights).items()}
    train(weights, optimizers, range(1))
    still = {name for name, t in flat(weights).items() if torch.equal(t, before[name])}
    assert still == names and not any(key.split("/")[1] in names for key in optimizers.state_tensors())


def test_what_has_no_gradient_is_left_alone():
    """No update, no decay, no step counted."""
    weights, optimizers = begin()
    before = {name: flat(weights)[name].detach().clone() for name in ("tok_emb", "qo")}
    set_gradients(weights, 0, skip=("tok_emb", "qo"))
    optimizers.step(1.0, 0.9)
    assert all(torch.equal(flat(weights)[name].detach(), t) for name, t in before.items())
    state = optimizers.state_tensors()
    assert state["adam/tok_emb/step"] == 0 < state["adam/smear/step"] and not state["muon/qo/momentum"].any()


def test_the_state_is_there_from_the_start_and_is_all_that_an_optimizer_keeps():
    """Three steps, all of it copied into a fresh one, and three more are six; moments have their parameter's dtype."""
    straight, its = begin()
    train(straight, its, range(6))
    half, optimizers = begin()
    train(half, optimizers, range(3))
    saved = optimizers.state_tensors()
    assert saved["adam/smear/step"] == 2 and saved["adam/tok_emb/step"] == 3
    assert saved["adam/tok_emb/exp_avg"].dtype == saved["muon/qo/momentum"].dtype == BF16
    resumed = tree_map(lambda t: t.detach().clone().requires_grad_(t.requires_grad), half)
    fresh = build(MODEL, OPTIM, resumed, BF16)
    assert {k: (t.shape, t.dtype) for k, t in fresh.state_tensors().items()} == {
        k: (t.shape, t.dtype) for k, t in saved.items()
    }
    for key, place in fresh.state_tensors().items():
        place.copy_(saved[key])
    train(resumed, fresh, range(3, 6))
    assert same(flat(straight), flat(resumed)) and same(its.state_tensors(), fresh.state_tensors())


def test_weights_that_the_table_does_not_cover_are_refused():
    weights, _ = begin()
    with pytest.raises(ValueError, match="extra"):
        build(MODEL, OPTIM, weights._replace(rest={**weights.rest, "extra": torch.zeros(2)}), BF16)


@pytest.mark.parametrize("max_norm", [0.0, 0.3, 1e6])
def test_clipping_scales_every_gradient_alike(max_norm):
    weights, _ = begin(torch.float32)
    set_gradients(weights, 0, skip=("smear",))
    before = {name: t.grad.clone() for name, t in flat(weights).items() if t.grad is not None}
    norm = clip_(weights, max_norm)
    assert float(norm) == pytest.approx(float(torch.cat([g.flatten() for g in before.values()]).norm()), rel=1e-5)
    factor = min(1.0, max_norm / (float(norm) + 1e-6)) if max_norm else 1.0
    for name, g in before.items():
        torch.testing.assert_close(flat(weights)[name].grad, g * factor, rtol=1e-5, atol=0)
    assert weights.rest["smear"].grad is None


def test_clipping_takes_gradients_of_both_dtypes():
    weights, _ = begin()
    set_gradients(weights, 0)
    norm = float(torch.cat([t.grad.float().flatten() for t in flat(weights).values()]).norm())
    assert float(clip_(weights, 0.3)) == pytest.approx(norm, rel=1e-2)  # torch rounds a bfloat16 tensor's norm
    assert float(clip_(weights, 0.0)) == pytest.approx(0.3, rel=1e-2)


def test_frozen_skips_stay_where_they_are():
    weights, optimizers = begin(torch.float32)
    for step in range(3):
        set_gradients(weights, step)
        other = weights.rest["skip"].grad[0].clone()
        mask_frozen_skips(MODEL, weights)
        assert torch.equal(weights.rest["skip"].grad[0], other)
        optimizers.step(1.0, 0.9)
    assert not weights.rest["skip"][1].any()
    assert weights.rest["skip"][0].all()
    weights.rest["skip"].grad = None
    mask_frozen_skips(MODEL, weights)  # nothing to mask
    set_gradients(weights, 0)
    mask_frozen_skips(dataclasses.replace(MODEL, frozen_skips=()), weights)
    assert weights.rest["skip"].grad.all()
