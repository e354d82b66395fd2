"""What every test gets: two threads, seeded generators, reproducible hypothesis, and the option --golden."""

import random
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

# No deadline: a law holds or fails whatever else the machine is doing. Derandomized: the same examples on every run.
hypothesis.settings.register_profile("golfcore", deadline=None, derandomize=True)
hypothesis.settings.load_profile("golfcore")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=Path(__file__).parent / "golden",
        metavar="FOLDER",
        help="folder of recorded cases that tests/test_golden.py compares with (default: %(default)s)",
    )


def pytest_configure(config: pytest.Config) -> None:
    golden: Path = config.getoption("--golden")
    if not golden.is_dir():
        raise pytest.UsageError(f"--golden: expected a folder of recorded cases, found none at {golden}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture(autouse=True, scope="session")
def two_threads() -> None:
    """The suite is sized for two cores; more threads on a larger machine only oversubscribe small tensors."""
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests remember of their files is not left in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOLFCORE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def seeded() -> None:
    """A test that draws without a seed of its own draws the same numbers in any order of the tests."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
