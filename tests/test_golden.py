"""Parity with the original systems, in numbers: `pytest tests/test_golden.py --golden FOLDER`.

Every file is dispatched by the case letter and family in its `meta`, never by its name. Tolerances are about 30 times
the originals' own float32-against-float64 noise, as stated in the files.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_cases import CASES, LATER

COMMITTED = Path(__file__).parent / "golden"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "path" in metafunc.fixturenames:
        found = sorted(metafunc.config.getoption("--golden").glob("*.npz"))
        metafunc.parametrize("path", found, ids=[p.stem for p in found])


def test_case(path: Path) -> None:
    """Every output of the file that this version computes is within its tolerance."""
    with np.load(path, allow_pickle=False) as data:
        arrays = {k: data[k] for k in data.files if k != "meta"}
        meta = json.loads(str(data["meta"]))
    outcome = CASES[meta["case"]](meta, arrays) if meta["case"] in CASES else None
    if outcome is None:
        assert meta["case"] in LATER, f"{path}: case letter {meta['case']!r} is unknown"
        pytest.skip(f"case {meta['case']!r}: {LATER[meta['case']]}")
    checked, wrong = outcome
    assert checked > 0, f"{path}: nothing was compared"
    assert not wrong, f"{path}: {len(wrong)} of {checked} outputs differ: {wrong[:5]}"


def test_committed_cases_are_complete_and_small() -> None:
    """The committed folder has every letter that this version implements, in at most 8 MB."""
    found = list(COMMITTED.glob("*.npz"))
    letters = {p.name[0] for p in found}
    assert letters >= set(CASES)
    assert sum(p.stat().st_size for p in found) <= 8_000_000


def test_torch_is_deterministic_here() -> None:
    """The comparisons above are of one arithmetic: float32 without TF32 tricks."""
    assert torch.get_float32_matmul_precision() == "highest"
