"""What every test gets: two threads, seeded generators, reproducible hypothesis, and the option --golden."""

import random
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from small_text import dataset
from tiny import TINY, TOKENS

from golfcore import cli
from golfcore.data.shards import write_shard
from golfcore.data.stream import TokenStream

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


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps on a few hundred lines, with its data beside it in `built`; nobody changes it."""
    made = tmp_path_factory.mktemp("small")
    data, out = dataset(made, documents=60), made / "run"
    changes = ["model.vocab_size=320", "schedule.iterations=2", "schedule.warmdown_steps=1", "data.reserve_tokens=300"]
    changes += ["ttt.chunk_tokens=128", "ttt.lr_candidates=[1e30, 0.02]", "data.val_tokens=600", "quant.calib_seqs=1"]
    sets = [x for change in changes for x in ("--set", change)]
    assert cli.main(["run", "smoke", *sets, "--data", str(data), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def stream(tmp_path_factory: pytest.TempPathFactory) -> TokenStream:
    """`tiny.TOKENS` as training text; who reads it sets its position first."""
    shard = tmp_path_factory.mktemp("stream") / "train_000000.bin"
    write_shard(shard, TOKENS)
    return TokenStream([shard], TINY.model.vocab_size)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """A test that draws without a seed of its own draws the same numbers in any order of the tests."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
