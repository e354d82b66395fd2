"""Reading the originals: what they said in keywords and names, and refusals of what golfcore lacks."""

import re
from dataclasses import replace

import pytest
import torch
from golden_cases import Options, model, state_of
from test_golden import COMMITTED, read
from torch import Tensor

from golfcore.base.errors import UserError
from golfcore.config import ModelConfig
from golfcore.interop import from_reference, matrix_names, reference_config, to_reference
from golfcore.model.weights import flat, matrix

KW = {
    "vocab_size": 64, "num_layers": 4, "model_dim": 32, "num_heads": 4, "num_kv_heads": 2, "mlp_mult": 3.0,
    "tie_embeddings": True, "tied_embed_init_std": 0.005, "logit_softcap": 30.0, "rope_base": 10000.0,
    "qk_gain_init": 1.5,
}  # fmt: skip


State = dict[str, Tensor]


def original(name: str) -> tuple[ModelConfig, State]:
    """The model of a recorded case, and its state as the original names it."""
    meta, arrays = read(COMMITTED / f"{name}.npz")
    options = Options(meta)
    config, _ = model(options, arrays)
    return config, {name: torch.from_numpy(value) for name, value in state_of(options, arrays).items()}


@pytest.fixture(scope="module")
def exp101() -> tuple[ModelConfig, State]:
    return original("b_fwd_exp101_A3_ntk")


def equal(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", ["b_fwd_exp101_A3_ntk", "b_fwd_pr294seed_A1", "b_fwd_pr398_A2_ntk", "memory"])
def test_there_and_back(name: str) -> None:
    cfg, state = original("b_fwd_pr398_A2_ntk" if name == "memory" else name)
    if name == "memory":
        cfg, state = replace(cfg, memory_tokens=6), {**state, "memory_tokens": torch.randn(1, 6, cfg.dim)}
    weights = from_reference(state, cfg)
    assert equal(to_reference(weights, cfg, {k: tuple(v.shape) for k, v in state.items()}), state)
    if "qo_bank" in state:  # all queries first there, pairs by block here
        assert torch.equal(state["qo_bank"][cfg.n_blocks + 1], matrix(weights.banks, "out", 1))
    else:
        assert torch.equal(state["blocks.1.attn.proj.weight"], matrix(weights.banks, "out", 1))


def test_train_only_vectors_of_exp106_have_no_place_and_do_no_harm(exp101: tuple[ModelConfig, State]) -> None:
    cfg, state = exp101
    assert from_reference({**state, "meta_sgd_qo": torch.ones(6)}, cfg) is not None


def test_families_differ_where_their_systems_do() -> None:
    configs = {f: reference_config(f, KW) for f in ("exp101", "pr398", "pr294v2")}
    configs["pr294seed"] = reference_config("pr294seed", {**KW, "num_unique_blocks": 3, "train_seq_len": 1024})
    assert [c.mlp for c in configs.values()] == ["leaky_relu2", "relu2", "relu2", "relu2"]
    assert [c.rope_ntk_len for c in configs.values()] == [1024, 1024, 0, 1024]
    assert [c.blocks for c in configs.values()] == [(0, 1, 2, 3)] * 3 + [(0, 1, 2, 0)]
    assert all(c.rope_dims == 8 for c in configs.values())  # absent: the whole head
    split = reference_config("exp101", {**KW, "bigram_vocab_size": 64, "poscond": True, "trigram": True})
    assert reference_config("pr398", {**KW, "num_memory_tokens": 6}).memory_tokens == 6
    assert split.bigram_layout == "split" and split.trigram and split.word_start_boost
    assert matrix_names(split)["block1.down"] == "blocks.1.mlp.proj.weight"


@pytest.mark.parametrize(
    ("family", "change", "sentence"),
    [
        ("exp102", {}, "reference family 'exp102': expected one of exp101"),
        ("exp101", {"gated_attention": True}, "'gated_attention': expected False, golfcore has no such part"),
        ("exp101", {"tie_embeddings": False}, "'tie_embeddings': expected True, golfcore has no such part"),
        ("exp101", {"dropout": 0.1}, "reference keyword 'dropout' of family 'exp101'"),
        ("exp101", {"num_unique_blocks": 2}, "'num_unique_blocks' of family 'exp101'"),  # it would be ignored
        ("pr294seed", {"bigram_vocab_size": 64}, "'bigram_vocab_size' of family 'pr294seed'"),
    ],
)
def test_what_golfcore_lacks_is_refused(family: str, change: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        reference_config(family, {**KW, **change})


def test_a_keyword_that_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="'rope_base' of family 'pr398': expected a value, found none"):
        reference_config("pr398", {k: v for k, v in KW.items() if k != "rope_base"})


def test_states_that_do_not_fit_are_refused(exp101: tuple[ModelConfig, State]) -> None:
    cfg, state = exp101
    with pytest.raises(UserError, match="'extra' has no place"):
        from_reference({**state, "extra": torch.ones(1)}, cfg)
    with pytest.raises(UserError, match="expected tensor 'smear.gate'"):
        from_reference({k: v for k, v in state.items() if k != "smear.gate"}, cfg)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mlp_up_bank", (3, 95, 32)),
        ("mlp_up_bank", (3, 32, 96)),  # as many elements, transposed
        ("kv_bank", (8, 16, 32)),  # of more layers than the configuration has
        ("bigram.proj.weight", (16, 32)),
        ("blocks.2.resid_mix", (32, 2)),
        ("tok_emb.weight", (32, 64)),
        ("blocks.1.attn.q_gain", (5,)),
    ],
)
def test_pieces_of_another_shape_are_refused(
    exp101: tuple[ModelConfig, State], name: str, shape: tuple[int, ...]
) -> None:
    cfg, state = exp101
    with pytest.raises(UserError, match=rf"'{name}' \(for \w+\) expected shape .*, found {re.escape(str(shape))}"):
        from_reference({**state, name: torch.ones(shape)}, cfg)


def test_axes_of_length_one_do_not_count(exp101: tuple[ModelConfig, State]) -> None:
    cfg, state = exp101
    rows = {name: t[None] if name == "smear.gate" or t.ndim == 0 else t for name, t in state.items()}
    assert equal(flat(from_reference(rows, cfg)), flat(from_reference(state, cfg)))
