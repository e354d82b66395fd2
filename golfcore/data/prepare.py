"""The dataset that a configuration asks for."""

from collections.abc import Callable

from golfcore.base import runtime
from golfcore.config import Config
from golfcore.data.corpus import pydocs
from golfcore.data.datasets import Dataset, open_dataset


def prepare_data(cfg: Config, say: Callable[[str], object]) -> Dataset:
    """The dataset of a configuration: its folder, or the embedded corpus, built into the cache if it is not there."""
    if cfg.data.path:
        return open_dataset(cfg.data.path)
    folder, built = pydocs(runtime.cache_dir(), cfg.data.packages, cfg.model.vocab_size)
    say(f"corpus: {'built' if built else 'reused'} {folder}")
    return open_dataset(folder)
