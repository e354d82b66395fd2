"""Laws of saved tensors: what was written is read, and damage, additions and mistaken identity are refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from golfcore.base import tensors
from golfcore.base.errors import UserError
from golfcore.base.runtime import code_version

VALUES = {
    "a": torch.arange(6.0).view(2, 3),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "none": torch.zeros(0, 4),
    "count": torch.tensor(7),
    "flags": torch.tensor([True, False]),
}
PLAIN = {"step": 3, "losses": {"0": [1.5]}}
BELONGS = {"config": "c0ffee", "data": "da7a"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tensors.save(tmp_path / "s.safetensors", VALUES, PLAIN, BELONGS)
    return tmp_path / "s.safetensors"


def test_what_was_saved_is_loaded(path: Path) -> None:
    for belongs in (BELONGS, None):
        values, plain = tensors.load(path, "a state", belongs)
        assert plain == PLAIN and values.keys() == VALUES.keys()
        assert all(values[n].dtype == t.dtype and torch.equal(values[n], t) for n, t in VALUES.items())
    with safe_open(path, "pt") as f:
        assert json.loads(f.metadata()["record"])["version"] == code_version()
    whole = path.read_bytes()
    tensors.save(path, VALUES, PLAIN, BELONGS)
    assert path.read_bytes() == whole  # one content, one file


def test_a_flipped_bit_or_a_missing_end_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged if at else whole[:-3])
        with pytest.raises(UserError, match="s.safetensors: expected a state, found a file that does not read"):
            tensors.load(path, "a state")


CHANGES = {
    "missing": lambda values, texts: values.pop("a"),
    "extra": lambda values, texts: values.update(b=torch.ones(1)),
    "shape": lambda values, texts: values.update(a=values["a"].view(3, 2)),
    "dtype": lambda values, texts: values.update(a=values["a"].view(torch.int32)),
    "plain": lambda values, texts: texts.update(record=texts["record"].replace('"step":3', '"step":-5')),
    "no digest": lambda values, texts: texts.update(record=texts["record"].replace('"digest"', '"digits"')),
    "other text": lambda values, texts: texts.update(more=""),
    "no record": lambda values, texts: texts.pop("record"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_is_refused(change: str, path: Path) -> None:
    with safe_open(path, "pt") as f:
        values, texts = dict(VALUES), dict(f.metadata())
    CHANGES[change](values, texts)
    save_file(values, path, texts)
    with pytest.raises(UserError, match="s.safetensors: expected a state, found a file that does not read"):
        tensors.load(path, "a state")


@pytest.mark.parametrize("other", [{"config": "c0ffee", "data": "0ther"}, {"config": "c0ffee"}, {}])
def test_state_of_something_else_is_refused(other: dict, path: Path) -> None:
    with pytest.raises(
        UserError, match=r"expected a state of data (0ther|\(none\)), found that of data da7a|of config"
    ):
        tensors.load(path, "a state", other)
