"""Several runs, one after another; what is finished is reused, what was interrupted goes on."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from golfcore import config
from golfcore.base.errors import UserError
from golfcore.base.records import RESULTS, RunFolder
from golfcore.config import Config, MetaConfig, differences
from golfcore.runs import pipeline
from golfcore.runs.folder import identity, run_folders, runs_dir
from golfcore.runs.sweepfile import Sweep


def meta_arms(preset: str, names: Sequence[str], changes: Mapping[str, object]) -> dict[str, Config]:
    """The meta-learning of each preset in `names` put onto `preset`, with dotted `changes` on top.

    What a preset in `names` leaves at its default (but whether there is meta-learning) stays as `preset` has it.
    UserError: an unknown preset or key, a preset twice, or presets that differ in more than meta-learning, which
    would be lost.
    """
    if not names or len(set(names)) < len(names):
        raise UserError(f"arms: expected different presets, found {', '.join(names) or 'none'}")
    presets = {name: config.load(name) for name in names}
    first = _without_meta(presets[names[0]])
    for name, found in presets.items():
        if _without_meta(found).hash != first.hash:
            more = differences(first, _without_meta(found))
            raise UserError(f"arms: expected {name} to differ from {names[0]} in meta-learning only, found {more}")
    return {name: replace(config.load(preset, _meta_of(c) | dict(changes)), name=name) for name, c in presets.items()}


def _meta_of(c: Config) -> dict[str, object]:
    default = asdict(MetaConfig())
    found: dict[str, object] = {f"meta.{k}": v for k, v in asdict(c.meta).items() if k == "enabled" or v != default[k]}
    return found | {"model.meta_sgd": c.model.meta_sgd}


def _without_meta(c: Config) -> Config:
    return replace(c, meta=MetaConfig(), model=replace(c.model, meta_sgd=False))


def budget(preset: str, steps: int, clock: str, seconds: float) -> dict[str, object]:
    """Overrides for runs of equal length. 0 leaves what the preset has.

    `clock` "steps": `steps` optimizer steps, the warmdown in proportion. "wall", as published: `seconds` of training,
    and at most `steps` steps.
    """
    schedule = config.load(preset).schedule
    found: dict[str, object] = {"schedule.clock": clock}
    if steps:
        warmdown = round(schedule.warmdown_steps * steps / schedule.iterations)
        found |= {"schedule.iterations": steps, "schedule.warmdown_steps": warmdown}
    return found | ({"schedule.max_seconds": seconds} if seconds else {})


def run_arms(
    arms: Mapping[str, Config], seeds: Sequence[int], out: Path, say: Callable[[str], object] = print
) -> list[RunFolder]:
    """Run every configuration with every seed into out/LABEL-sSEED; the folders, in the order of the runs.

    What trains alike trains once: a run takes its weights from any run in `out` that has the same
    `Config.training_hash` and data. All arms of a seed come before the next seed, so that an interrupted sweep has
    whole comparisons. What a run prints goes through `say`, and before each run where the sweep is and how long the
    rest should take. UserError: no arms or seeds, a seed twice, a label that is no name for a folder, or a folder that
    holds another configuration or data.
    """
    if not arms or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"sweep: expected arms and different seeds, found {len(arms)} arms and seeds {list(seeds)}")
    for label in arms:
        if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", label):
            raise UserError(f"sweep: expected arms named with letters, digits, '.', '_', '+' and '-', found {label!r}")
    folders: list[RunFolder] = []
    spent: list[float] = []
    jobs = [(label, arm, seed) for seed in seeds for label, arm in arms.items()]
    for number, (label, arm, seed) in enumerate(jobs, 1):
        folder = out / f"{label}-s{seed}"
        left = f", about {_minutes(sum(spent) / len(spent) * (len(jobs) - number + 1))} left" if spent else ""
        say(f"run {number} of {len(jobs)}: {label}, seed {seed}{left}")
        began, fresh = time.monotonic(), not (folder / RESULTS).exists()
        others = tuple(run_folders(out))
        folders.append(pipeline.run(replace(arm, run=replace(arm.run, seed=seed)), folder, say, others))
        if fresh:
            spent.append(time.monotonic() - began)
    return folders


def default_out(plan: Sweep) -> Path:
    """The folder of a sweep's runs: the same whatever arms and seeds are chosen, so that they add up."""
    return runs_dir() / f"{plan.name}-{plan.size}-{identity(plan.reference.config)[:8]}"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
