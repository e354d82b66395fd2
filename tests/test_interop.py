"""Reading the originals: what they said in keywords and names, and refusals of what golfcore lacks."""

import re

import pytest
import torch
from test_model import MEMORY, SHARED, SMALL, random_weights

from golfcore.base.errors import UserError
from golfcore.config import ModelConfig
from golfcore.interop import from_reference, matrix_names, reference_config, to_reference
from golfcore.model.weights import flat, matrix

KW = {
    "vocab_size": 64, "num_layers": 4, "model_dim": 32, "num_heads": 4, "num_kv_heads": 2, "mlp_mult": 3.0,
    "tie_embeddings": True, "tied_embed_init_std": 0.005, "logit_softcap": 30.0, "rope_base": 10000.0,
    "qk_gain_init": 1.5,
}  # fmt: skip


def reference_shapes(cfg: ModelConfig, banked: bool) -> dict[str, tuple[int, ...]]:
    """Every tensor of an original with this configuration, by its name there."""
    u, n, d = cfg.n_blocks, cfg.n_layers, cfg.dim
    shapes: dict[str, tuple[int, ...]] = {"tok_emb.weight": (cfg.vocab_size, d), "skip_weights": (cfg.n_skips, d)}
    shapes |= {"smear.gate": (d,), "bigram.embed.weight": (cfg.bigram_rows, cfg.bigram_dim), "bigram.scale": ()}
    shapes |= {"bigram.proj.weight": (d, cfg.bigram_dim), "word_start_boost": ()}
    if cfg.memory_tokens:
        shapes |= {"memory_tokens": (1, cfg.memory_tokens, d)}
    if cfg.ve_layers:
        shapes |= {"ve_shared.embed.weight": (cfg.vocab_size, cfg.ve_dim), "ve_shared.scale": ()}
        shapes |= {"ve_shared.proj.weight": (cfg.kv_dim, cfg.ve_dim)}
        shapes |= {f"ve_layer_scales.{j}": (1,) for j in range(len(cfg.ve_layers))}
    shapes |= {f"blocks.{b}.attn.q_gain": (cfg.n_heads,) for b in range(u)}
    if banked:
        shapes |= {"qo_bank": (2 * u, d, d), "kv_bank": (2 * u, cfg.kv_dim, d)}
        shapes |= {"mlp_up_bank": (u, cfg.mlp_hidden, d), "mlp_down_bank": (u, d, cfg.mlp_hidden)}
        names = "blocks.{}.attn_scale", "blocks.{}.mlp_scale", "blocks.{}.resid_mix"
    else:
        for b in range(u):
            shapes |= {f"blocks.{b}.attn.{m}.weight": (d, d) for m in ("c_q", "proj")}
            shapes |= {f"blocks.{b}.attn.{m}.weight": (cfg.kv_dim, d) for m in ("c_k", "c_v")}
            shapes |= {
                f"blocks.{b}.mlp.fc.weight": (cfg.mlp_hidden, d),
                f"blocks.{b}.mlp.proj.weight": (d, cfg.mlp_hidden),
            }
        names = "iter_attn_scales.{}", "iter_mlp_scales.{}", "iter_resid_mixes.{}"
    for name, shape in zip(names, ((d,), (d,), (2, d)), strict=True):
        shapes |= {name.format(i): shape for i in range(n)}
    return shapes


@pytest.mark.parametrize(
    ("cfg", "banked"), [(SMALL, True), (SHARED, False), (MEMORY, True)], ids=["banks", "shared blocks", "memory"]
)
def test_there_and_back(cfg: ModelConfig, banked: bool) -> None:
    weights = random_weights(cfg)
    state = to_reference(weights, cfg, reference_shapes(cfg, banked))
    assert {k: tuple(v.shape) for k, v in state.items()} == reference_shapes(cfg, banked)
    back = from_reference(state, cfg)
    assert all(torch.equal(a, b) for a, b in zip(flat(weights).values(), flat(back).values(), strict=True))
    if banked:  # all queries first there, pairs by block here
        assert torch.equal(state["qo_bank"][cfg.n_blocks + 1], matrix(weights.banks, "out", 1))
    else:
        assert torch.equal(state["blocks.1.attn.proj.weight"], matrix(weights.banks, "out", 1))


def test_train_only_vectors_of_exp106_have_no_place_and_do_no_harm() -> None:
    state = to_reference(random_weights(SMALL), SMALL, reference_shapes(SMALL, True))
    assert from_reference({**state, "meta_sgd_qo": torch.ones(8)}, SMALL) is not None


def test_families_differ_where_their_systems_do() -> None:
    configs = {f: reference_config(f, KW) for f in ("exp101", "pr398", "pr294v2")}
    configs["pr294seed"] = reference_config("pr294seed", {**KW, "num_unique_blocks": 3, "train_seq_len": 1024})
    assert [c.mlp for c in configs.values()] == ["leaky_relu2", "relu2", "relu2", "relu2"]
    assert [c.rope_ntk_len for c in configs.values()] == [1024, 1024, 0, 1024]
    assert [c.blocks for c in configs.values()] == [(0, 1, 2, 3)] * 3 + [(0, 1, 2, 0)]
    assert all(c.rope_dims == 8 for c in configs.values())  # absent: the whole head
    split = reference_config("exp101", {**KW, "bigram_vocab_size": 64, "poscond": True, "trigram": True})
    assert reference_config("pr398", {**KW, "num_memory_tokens": 6}).memory_tokens == 6
    assert split.bigram_split and split.trigram and split.word_start_boost
    assert matrix_names(SMALL)["block1.down"] == "blocks.1.mlp.proj.weight"


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


def test_states_that_do_not_fit_are_refused() -> None:
    state = to_reference(random_weights(SMALL), SMALL, reference_shapes(SMALL, True))
    with pytest.raises(UserError, match="'extra' has no place"):
        from_reference({**state, "extra": torch.ones(1)}, SMALL)
    with pytest.raises(UserError, match="expected tensor 'smear.gate'"):
        from_reference({k: v for k, v in state.items() if k != "smear.gate"}, SMALL)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mlp_up_bank", (4, 95, 32)),
        ("mlp_up_bank", (4, 32, 96)),  # as many elements, transposed
        ("kv_bank", (10, 16, 32)),  # of more layers than the configuration has
        ("bigram.proj.weight", (12, 32)),
        ("blocks.2.resid_mix", (32, 2)),
        ("tok_emb.weight", (32, 64)),
        ("blocks.1.attn.q_gain", (5,)),
    ],
)
def test_pieces_of_another_shape_are_refused(name: str, shape: tuple[int, ...]) -> None:
    state = to_reference(random_weights(SMALL), SMALL, reference_shapes(SMALL, True))
    assert tuple(state[name].shape) != shape
    with pytest.raises(UserError, match=rf"'{name}' \(for \w+\) expected shape .*, found {re.escape(str(shape))}"):
        from_reference({**state, name: torch.ones(shape)}, SMALL)


def test_axes_of_length_one_do_not_count() -> None:
    state = to_reference(random_weights(SMALL), SMALL, reference_shapes(SMALL, True))
    rows = {name: t[None] if name == "smear.gate" or t.ndim == 0 else t for name, t in state.items()}
    for a, b in zip(
        flat(from_reference(rows, SMALL)).values(), flat(from_reference(state, SMALL)).values(), strict=True
    ):
        assert torch.equal(a, b)
