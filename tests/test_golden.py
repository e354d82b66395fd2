"""Parity with the original systems, in numbers: `pytest tests/test_golden.py --golden FOLDER`.

Every file is dispatched by the case letter and family in its `meta`, never by its name. Tolerances are about 30 times
the originals' own float32-against-float64 noise, as stated in the files.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_cases import CASES, Arrays, run

from golfcore.base.errors import UserError

COMMITTED = Path(__file__).parent / "golden"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "path" in metafunc.fixturenames:
        found = sorted(metafunc.config.getoption("--golden").glob("*.npz"))
        metafunc.parametrize("path", found, ids=[p.stem for p in found])


def read(path: Path) -> tuple[dict, Arrays]:
    with np.load(path, allow_pickle=False) as data:
        return json.loads(str(data["meta"])), {k: data[k] for k in data.files if k != "meta"}


def test_case(path: Path) -> None:
    """Every output of the file that this version computes is within its tolerance, and every option is known."""
    meta, arrays = read(path)
    assert meta["case"] in CASES, f"{path}: case letter {meta['case']!r} is unknown"
    checked, wrong = run(meta, arrays)
    assert checked > 0, f"{path}: nothing was compared"
    assert not wrong, f"{path}: {len(wrong)} of {checked} outputs differ: {wrong[:5]}"


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("a_hash", "cases.0"),
        ("b_fwd_exp101_A5_nolut", "cfg"),
        ("b_fwd_exp101_A5_nolut", "cfg.kw"),
        ("c_newton_schulz_muon", "ns.1"),
        ("c_newton_schulz_muon", "muon.0"),
        ("d_quantizers", "gptq.3"),
        ("d_quantizers", "perrow.0"),
        ("e_fomaml_exp101", ""),
        ("e_fomaml_exp101", "cfg.args"),
        ("e_fomaml_exp101", "state"),
        ("g_schedules", "cfg.momentum"),
        ("g_schedules", "cfg.exp101.1"),
    ],
)
def test_an_option_that_is_not_known_fails_the_case(name: str, level: str) -> None:
    """A case with a switch that this version would ignore is another case: it must not pass."""
    meta, arrays = read(COMMITTED / f"{name}.npz")
    target: Any = meta
    for key in level.split(".") if level else ():
        target = target[int(key) if key.isdecimal() else key]
    target["surprise"] = True
    try:
        _, wrong = run(meta, arrays)
    except UserError as e:
        wrong = [str(e)]
    (sentence,) = wrong
    assert "surprise" in sentence and "golfcore does not know" in sentence


@pytest.mark.parametrize("name", ["a_hash", "c_newton_schulz_muon", "d_quantizers", "g_schedules"])
def test_every_recorded_output_is_compared(name: str) -> None:
    """One that no case function reads fails the case."""
    meta, arrays = read(COMMITTED / f"{name}.npz")
    _, wrong = run(meta, {**arrays, "out/surprise": np.zeros(1)})
    assert wrong == ["out/surprise: a recorded output that was not compared"]


def test_committed_cases_are_complete_and_small() -> None:
    """The committed folder has every letter that this version implements, in at most 8 MB."""
    found = list(COMMITTED.glob("*.npz"))
    letters = {p.name[0] for p in found}
    assert letters >= set(CASES)
    assert sum(p.stat().st_size for p in found) <= 8_000_000


def test_torch_is_deterministic_here() -> None:
    """The comparisons above are of one arithmetic: float32 without TF32 tricks."""
    assert torch.get_float32_matmul_precision() == "highest"
