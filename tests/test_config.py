"""Configurations: presets, overrides, refusals, the hash."""

from pathlib import Path

import pytest

from golfcore import config
from golfcore.base.errors import UserError
from golfcore.config import from_dict, load, to_dict


@pytest.mark.parametrize("name", config.preset_names())
def test_every_preset_loads_and_survives_a_round_trip(name: str) -> None:
    c = load(name)
    again = from_dict(to_dict(c), name)
    assert again == c and again.hash == c.hash and c.name == name


@pytest.mark.parametrize("name", ["exp101", "pr398", "pr294-recurrent", "pr294-reptile", "pr294-error-guided"])
def test_every_system_fits_every_size(name: str) -> None:
    """A scaled system keeps its part of the blocks frozen and its rotary base where the published one has it."""
    full = load(name)
    for size in config.size_names()[1:]:
        c = load(name, size=size)
        assert c.name == f"{name}-{size}" and c.model.dim < full.model.dim
        assert not c.ttt.epochs or c.ttt.freeze_blocks < c.model.n_blocks
        assert c.reptile.freeze_blocks < c.model.n_blocks
        assert (c.model.rope_dims == c.model.head_dim) == (full.model.rope_dims == full.model.head_dim)
        grows = [x.data.seq_len / x.model.rope_ntk_len for x in (c, full)]
        assert grows[0] == grows[1]
        assert not c.quant.fp16_max_numel  # the published limit is larger than every matrix here
        assert (c.ttt.chunk_tokens == c.data.seq_len) == (full.ttt.chunk_tokens == full.data.seq_len)


def test_exp105a_is_exp101_with_one_field_changed() -> None:
    a, b = to_dict(load("exp101")), to_dict(load("exp105a"))
    changed = [(s, k) for s in config.SECTIONS for k in a[s] if a[s][k] != b[s][k]]
    assert changed == [("meta", "enabled")]


def test_the_hash_is_of_the_values_and_not_of_the_name() -> None:
    plain = load("exp105a")
    same = load("exp101", {"meta.enabled": False})
    assert plain.name != same.name and plain.hash == same.hash
    assert load("exp101", {"run.seed": 7}).hash != load("exp101").hash


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("model.dim=256", 256),
        ("optim.grad_clip=1", 1.0),
        ("model.smear=false", False),
        ("model.ve_layers=[1, 2]", (1, 2)),
        ("data.path=some/folder", "some/folder"),
        ("schedule.shape=linear", "linear"),
    ],
)
def test_overrides_take_the_type_of_their_field(text: str, value: object) -> None:
    dotted, _, given = text.partition("=")
    section, key = dotted.split(".")
    found = getattr(getattr(load("exp101", {dotted: given}), section), key)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"model.dimm": 3}, "unknown key 'dimm'; did you mean 'dim'"),
        ({"modle.dim": 3}, "unknown key 'modle'; did you mean 'model'"),
        ({"model": 3}, "expected section.key, found a section alone"),
        ({"model.dim": "wide"}, "model.dim: expected int, found 'wide'"),
        ({"model.smear": 1}, "model.smear: expected bool, found 1"),
        ({"model.ve_layers": 3}, "expected a list, found 3"),
        ({"schedule.shape": "square"}, "expected one of cosine, linear, found 'square'"),
        ({"model.n_heads": 7}, "model.dim 512 is not a multiple of model.n_heads 7"),
        ({"model.blocks": [0, 2]}, "must use every block number from 0 to its largest"),
        ({"model.blocks": []}, "model.blocks is empty"),
        ({"model.frozen_skips": [5]}, "names no such skip row"),
        ({"model.mlp": "swiglu", "model.mlp_hidden": 1000}, "must divide by 3 for swiglu"),
        ({"ttt.chunk_tokens": 65_600 - 7}, "a scored span would straddle two chunks"),
        ({"schedule.max_seconds": 0}, "schedule.clock wall needs schedule.max_seconds > 0"),
        ({"optim.grad_accum": 5}, "optim.batch_tokens 786432 is not a multiple"),
        ({"model.ngram_trained": False, "model.smear": False, "model.bigram_rows": 0}, "nothing to leave untrained"),
        ({"model.memory_tokens": 1024}, "fills a half of data.seq_len 2048"),
        ({"quant.matrix_bits": 8}, "quant.stored_scale_codes false with 8-bit matrices needs quant.rounding nearest"),
        ({"ttt.lr_candidates": [0.1]}, "ttt.lr_candidates needs data.reserve_tokens"),
    ],
)
def test_what_cannot_hold_is_refused_in_one_sentence(overrides: dict, sentence: str) -> None:
    with pytest.raises(UserError) as e:
        load("exp101", overrides)
    assert sentence in str(e.value) and "\n" not in str(e.value)


def test_unknown_presets_get_a_suggestion() -> None:
    with pytest.raises(UserError, match="unknown preset 'exp101x'; did you mean 'exp101'"):
        load("exp101x")


def test_preset_files(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('base = "smoke"\n[model]\nsmear = false\n')
    c = load(mine)
    assert c.name == "mine" and not c.model.smear and c.model.dim == load("smoke").model.dim
    mine.write_text(f'base = "{mine}"\n')
    with pytest.raises(UserError, match="base leads back to itself"):
        load(mine)
    mine.write_text("model = 3\n")
    with pytest.raises(UserError, match=r"expected \[model\] to be a table"):
        load(mine)
    mine.write_text("not toml")
    with pytest.raises(UserError, match=r"mine.toml: expected TOML"):
        load(mine)
    with pytest.raises(UserError, match=r"absent.toml: expected a preset file, found no such file"):
        load(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("dotted", "value"), [("model.n_heads", 0), ("model.n_kv_heads", 0), ("optim.matrix_lr", -0.1), ("eval.stride", 0)]
)
def test_numbers_out_of_range_are_refused(dotted: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{dotted}: expected (more than|a number of at least) 0, found {value}"):
        load("exp101", {dotted: value})


def test_a_hostile_block_number_does_not_exhaust_memory() -> None:
    with pytest.raises(UserError, match="must use every block number"):
        load("exp101", {"model.blocks": [0, 10**15]})
