"""Several runs, one after another; what is finished is reused, what was interrupted goes on."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from golfcore import pipeline
from golfcore.config import Config
from golfcore.errors import UserError
from golfcore.records import RunFolder


def run_arms(
    arms: Mapping[str, Config], seeds: Sequence[int], out: Path, say: Callable[[str], object] = print
) -> list[RunFolder]:
    """Run every configuration with every seed into out/LABEL-sSEED; the folders, in the order of the runs.

    All arms of a seed come before the next seed, so that an interrupted sweep has whole comparisons. What a run prints
    goes through `say`, and before each run where the sweep is and how long the rest should take. UserError: no arms or
    seeds, a seed twice, a label that is no name for a folder, or a folder that holds another configuration or data.
    """
    if not arms or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"sweep: expected arms and different seeds, found {len(arms)} arms and seeds {list(seeds)}")
    for label in arms:
        if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", label):
            raise UserError(f"sweep: expected arms named with letters, digits, '.', '_', '+' and '-', found {label!r}")
    folders: list[RunFolder] = []
    spent: list[float] = []
    jobs = [(label, config, seed) for seed in seeds for label, config in arms.items()]
    for number, (label, config, seed) in enumerate(jobs, 1):
        folder = out / f"{label}-s{seed}"
        left = f", about {_minutes(sum(spent) / len(spent) * (len(jobs) - number + 1))} left" if spent else ""
        say(f"run {number} of {len(jobs)}: {label}, seed {seed}{left}")
        began, fresh = time.monotonic(), not (folder / pipeline.RESULTS).exists()
        folders.append(pipeline.run(replace(config, run=replace(config.run, seed=seed)), folder, say))
        if fresh:
            spent.append(time.monotonic() - began)
    return folders


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
