"""Configurations: presets, overrides, refusals, the hash."""

import math
import re
from dataclasses import fields
from pathlib import Path

import pytest

from golfcore import config
from golfcore.base.errors import UserError
from golfcore.config import from_dict, load, override, to_dict


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
        ("data.path=/some/folder", "/some/folder"),
        ("schedule.shape=linear", "linear"),
        ("schedule.shape='linear'", "linear"),
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
        ({"model.blocks": []}, "model.blocks is empty, expected at least one value"),
        ({"model.frozen_skips": [5]}, "names no such skip row"),
        ({"model.mlp": "swiglu", "model.mlp_hidden": 1000}, "must divide by 3 for swiglu"),
        ({"eval.stride": 4096}, "eval.stride 4096: expected at most the windows' length 2048"),
        ({"eval.stride": 1025, "eval.seq_len": 1024}, "expected at most the windows' length 1024"),
        ({"schedule.max_seconds": 0}, "schedule.clock wall needs schedule.max_seconds > 0"),
        ({"optim.grad_accum": 5}, "optim.batch_tokens 786432 is not a multiple"),
        ({"model.ngram_trained": False, "model.smear": False, "model.bigram_rows": 0}, "nothing to leave untrained"),
        ({"model.memory_tokens": 1024}, "fills a half of data.seq_len 2048"),
        ({"quant.matrix_bits": 8}, "quant.stored_scale_codes false with 8-bit matrices needs quant.rounding nearest"),
        ({"ttt.lr_candidates": [0.1]}, "ttt.lr_candidates needs data.reserve_tokens"),
        ({"meta.freeze_blocks": 11}, "meta.freeze_blocks 11 of 11 blocks leaves nothing for an inner step"),
        ({"ttt.lr": "0.5\nschedule.iterations=999"}, "ttt.lr: expected float, found '0.5 schedule.iterations=999'"),
        ({"ttt.lr": "0.5, 3"}, "ttt.lr: expected float, found '0.5, 3'"),
        ({"run.seed": "9" * 5000}, "run.seed: expected int, found '9999"),
        ({"run.seed": 16**5000}, "run.seed: expected at least 0 and at most 4294967295, found a int too large"),
        ({"model.ve_layers": "[" * 5000}, "model.ve_layers: expected a list, found"),
        ({"model.ve_layers": [0] * 2000}, "model.ve_layers: expected at most 1024 values, found 2000"),
        ({"optim.matrix_lr": float("nan")}, "optim.matrix_lr: expected at least 0 and at most 1e30, found nan"),
        ({"data.path": 3}, "data.path: expected text, found 3"),
        ({"optim.matrix_lr": 1e300}, "optim.matrix_lr: expected at least 0 and at most 1e30, found 1e+300"),
    ],
)
def test_what_cannot_hold_is_refused_in_one_sentence(overrides: dict, sentence: str) -> None:
    with pytest.raises(UserError) as e:
        load("exp101", overrides)
    assert sentence in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('base = "mine.toml"\n', "base leads back to itself"),
        ('base = "parnt.toml"\n', "parnt.toml: expected a preset file, found no such file"),
        ("base = 3\n", "expected a preset with 'base' as text, found 3"),
        ("model = 3\n", r"expected a preset with 'model' as an object, found 3"),
        ("size = 3\n", "expected a preset with 'size' as an object, found 3"),
        ("[size]\ndemo = 3\n", "expected a preset with 'size.demo' as an object, found 3"),
        ("[size.dmo]\n", "unknown key 'dmo'; did you mean 'demo'"),
        ("not toml", "mine.toml: expected a preset file as TOML, found text that does not parse"),
        ("a = " + "[" * 9999, "mine.toml: expected a preset file as TOML, found text that does not parse"),
        ("a = " + "9" * 5000, "mine.toml: expected a preset file as TOML, found text that does not parse"),
        ("\udcff", "found bytes that are no UTF-8 text"),
    ],
)
def test_preset_files_that_are_none_are_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=said) as e:
        load(mine, size="demo")
    assert "\n" not in str(e.value) and len(str(e.value)) < 400


def test_preset_files(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('base = "smoke"\n[model]\nsmear = false\n')
    c = load(mine)
    assert c.name == "mine" and not c.model.smear and c.model.dim == load("smoke").model.dim
    (tmp_path / "dir.toml").mkdir()
    for name, found in (("dir", "a folder"), ("absent", "no such file")):
        with pytest.raises(UserError, match=f"{name}.toml: expected a preset file, found {found}"):
            load(tmp_path / f"{name}.toml")
    with pytest.raises(UserError, match="unknown preset 'exp101x'; did you mean 'exp101'"):
        load("exp101x")


FIELDS = {f"{section}.{f.name}": f for section, cls in config.SECTIONS.items() for f in fields(cls)}


def test_every_number_has_bounds_and_is_refused_beyond_them() -> None:
    """Also one in a list, and one that is no number."""
    for dotted, field in FIELDS.items():
        if not re.search(r"\b(int|float)\b", str(field.type)):
            continue
        interval = field.metadata["interval"]
        low, high = map(float, interval[1:-1].split(", "))
        ends = (low if interval[0] == "(" else math.nan, high if interval[-1] == ")" else 2 * high + 1)
        for end in (low - 1, *ends):
            wrong = int(end) if "int" in str(field.type) and math.isfinite(end) else end
            with pytest.raises(UserError, match=f"{dotted}: expected .*, found") as e:
                load("smoke", {dotted: [wrong] if isinstance(field.default, tuple) else wrong})
            assert "\n" not in str(e.value)


def test_bounds_are_those_of_the_quantity() -> None:
    refused = {"quant.clip_quantiles": [99.9], "quant.calib_len": 1, "average.decay": 2.0, "run.seed": 2**32}
    refused |= {"optim.momentum": 1.0, "optim.beta2": 1.0, "ttt.top_fraction": 1.5, "quant.matrix_bits": 9}
    for dotted, value in {**refused, "model.vocab_size": 65_537, "model.blocks": [0, 10**15]}.items():
        with pytest.raises(UserError, match=f"{dotted}: expected .*, found"):
            load("exp101", {dotted: value})


# -- identity


def test_the_hash_leaves_out_what_changes_no_number() -> None:
    base = load("smoke")
    changes = {
        "data.path": "/d",
        "run.log_every": 99,
        "run.checkpoint_every": 99,
        "run.keep_every": 99,
        "run.val_every": 99,
        "run.graphs": "never",
    }
    assert {dotted for dotted, f in FIELDS.items() if not f.metadata.get("hashed", True)} == changes.keys()
    other = load("smoke", changes)
    assert other != base and (other.hash, other.training_hash) == (base.hash, base.training_hash)
    assert config.differences(base, other) == ""
    assert config.differences(base, load("smoke", changes | {"run.seed": 7})) == "run.seed 42 -> 7"


def test_an_option_that_came_later_changes_the_hash_only_where_it_is_used() -> None:
    base, later = load("smoke"), [dotted for dotted, f in FIELDS.items() if f.metadata.get("added")]
    assert {"optim.pieces", "optim.matrix_optimizer"} <= set(later)
    assert not any(key in base.hashed()[section] for section, key in (dotted.split(".") for dotted in later))
    used = load("smoke", {"optim.pieces": 2})
    assert used.hash != base.hash and used.training_hash != base.training_hash
    assert config.differences(base, used) == "optim.pieces 1 -> 2" and config.differences(used, base).endswith("2 -> 1")


def test_one_folder_has_one_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths start from the working directory; in a file, from the file's folder."""
    monkeypatch.chdir(tmp_path)
    paths = ("ds", "ds/", "./ds", "'ds'", tmp_path / "ds", "x/../ds")
    assert {load("smoke", {"data.path": path}).data.path for path in paths} == {str(tmp_path / "ds")}
    assert load("smoke", {"data.path": ""}).data.path == ""
    (tmp_path / "confs").mkdir()
    (tmp_path / "confs" / "parent.toml").write_text('base = "smoke"\n[data]\npath = "../ds"\n')
    (tmp_path / "confs" / "child.toml").write_text('base = "parent.toml"\n[model]\nsmear = false\n')
    child = load("confs/child.toml")
    assert child.data.path == str(tmp_path / "ds") and not child.model.smear
    assert override(child, {"ttt.epochs": 0}, "here").data.path == child.data.path


# -- one parser of overrides


def test_overrides_are_split_where_a_new_one_begins() -> None:
    expected = {"quant.clip_quantiles": "[0.9, 1.0]", "model.dim": "64", "data.path": "a,b=c"}
    text = " quant.clip_quantiles=[0.9, 1.0] ,model.dim = 64;\n data.path=a,b=c; "
    assert config.parse_overrides(text) == expected
    assert config.parse_overrides("") == config.parse_overrides(" ;\n") == {}
    assert config.parse_overrides('data.path="a; b=c", model.dim=1') == {"data.path": '"a; b=c"', "model.dim": "1"}
    with pytest.raises(UserError, match="overrides: expected section.key=value, found 'model.dim'"):
        config.parse_overrides("model.dim; quant.block=1")


@pytest.mark.parametrize("end", ["\nschedule.iterations=999", ";ttt.epochs=1", ", ttt.epochs=1", "\n\n ttt.epochs = 1"])
def test_one_set_holds_one_value(end: str) -> None:
    assert config.parse_override("ttt.lr = 0.5\n") == ("ttt.lr", "0.5")
    assert config.parse_override("quant.clip_quantiles=[0.9, 1.0]") == ("quant.clip_quantiles", "[0.9, 1.0]")
    with pytest.raises(UserError, match="--set .*: expected one section.key=value, found 2"):
        config.parse_override(f"ttt.lr=0.5{end}")
