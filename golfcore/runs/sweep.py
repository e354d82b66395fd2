"""Sweeps: a file names arms of one preset and what was published of each; every arm is run with every seed.

```toml
title = "..."                     # the question
base = "smoke"                    # preset of all arms
seeds = [42, 43]
source = "..."                    # the publication
measure = "ttt"                   # which of a run's numbers the published ones are: static, sliding or ttt
published_sd = 0.0008             # of published runs over seeds, if known
published_steps = 7020            # of the optimizer in the published runs, if known
published_step_ms = 664.0         # of each of these steps, on
published_gpus = 1                # H100s
slots = { cpus = 4, gpus = 1 }    # of a cluster, for each run; 1 CPU and, where there are any, 1 GPU unless given
notebook = "08_token_losses"      # executed on every run that is done, with its folder as the parameter `run`
all = { eval.tail = "exact" }     # overrides of every arm
[size.demo]                       # the same at one size, over `all`
ttt.epochs = 5
[arms.base]                       # the first arm is the reference of all that name no other
label = "..."
published = 1.1213
published_note = "seed 1337"
[arms.slow]
on = "base"                       # an arm above, whose overrides this one adds to, and which it is compared with
set = { optim.matrix_lr = 0.01 }
size.demo = { optim.matrix_lr = 0.02 }  # in place of `set` where they name the same
unknown = ["..."]                 # what the publication does not say, and we chose
note = "..."
```
"""

import re
import time
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from golfcore import config
from golfcore.base.errors import UserError
from golfcore.base.records import RESULTS, RunFolder
from golfcore.config import Config
from golfcore.runs.folder import identity, run_folders, runs_dir

if TYPE_CHECKING:
    import pandas as pd

SWEEPS = Path(__file__).parent / "sweeps"
Measure = Literal["static", "sliding", "ttt"]
TEXTS = dict.fromkeys(("title", "base", "source", "on", "label", "published_note", "note", "notebook"), str)
KINDS: dict[str, Any] = TEXTS | dict.fromkeys(("all", "size", "arms", "set"), dict)
KINDS |= dict.fromkeys(("published", "published_sd", "published_step_ms"), float)
KINDS |= {"published_steps": int, "published_gpus": int, "measure": Measure}
KINDS |= {"seeds": tuple[int, ...], "unknown": tuple[str, ...], "slots": dict}
FILE = "title base seeds source measure published_sd published_steps published_step_ms published_gpus".split()
FILE += "slots notebook all size arms".split()
ARM = "on label published published_note unknown set size note".split()


@dataclass(frozen=True)
class ArmPlan:
    """One arm at one size."""

    name: str
    on: str  # the arm that it is compared with; "" for the reference
    overrides: dict[str, object]  # of the preset, those of all arms included
    config: Config  # with the preset's seed; named as the arm
    label: str
    published: float | None = None  # bits per byte
    published_note: str = ""
    unknown: tuple[str, ...] = ()
    note: str = ""


class Slots(NamedTuple):
    """What each run takes of a cluster."""

    cpus: float = 1
    gpus: float | None = None  # None: one, where the cluster has any


class Job(NamedTuple):
    """One run of a sweep."""

    label: str
    seed: int
    config: Config
    folder: Path


@dataclass(frozen=True)
class Sweep:
    """A sweep file at one size. The first arm is the reference."""

    name: str
    size: str
    arms: dict[str, ArmPlan]
    base: str  # preset of all arms
    title: str
    seeds: tuple[int, ...]
    source: str = ""
    measure: Measure = "ttt"
    published_sd: float | None = None
    published_steps: int | None = None
    published_step_ms: float | None = None
    published_gpus: int = 1
    slots: Slots = Slots()
    notebook: str = ""

    @property
    def reference(self) -> ArmPlan:
        return next(iter(self.arms.values()))

    @property
    def configs(self) -> dict[str, Config]:
        return {name: arm.config for name, arm in self.arms.items()}

    def gpu_hours(self, seeds: int) -> float | None:
        """Of H100s, to train with so many seeds at full size at the published step time; None: another size, unknown.

        Arms that train alike train once. Adaptation and evaluation come on top.
        """
        if self.size != "full" or not self.published_step_ms:
            return None
        trained = {cfg.training_hash: cfg.schedule for cfg in self.configs.values()}.values()
        seconds = 0.0
        for schedule in trained:
            steps = schedule.iterations * self.published_step_ms / 1000
            seconds += min(steps, schedule.max_seconds or steps) if schedule.clock == "wall" else steps
        return seconds * seeds * self.published_gpus / 3600

    def changes(self) -> "pd.DataFrame":
        """One row an arm: what it is compared with, and what it changes of that."""
        return changes(self.configs, {name: arm.on for name, arm in self.arms.items()})

    def only(self, names: Sequence[str]) -> "Sweep":
        """The arms named, in the file's order, with those that they are compared with. UserError: no such arm."""
        config.keys(names, list(self.arms), f"sweep {self.name}, arms")
        wanted = set(names)
        for name, arm in reversed(self.arms.items()):  # what an arm is on stands above it
            wanted |= {arm.on} if name in wanted else set()
        return replace(self, arms={name: arm for name, arm in self.arms.items() if name in wanted})


def sweep_names() -> list[str]:
    return sorted(path.stem for path in SWEEPS.glob("*.toml"))


def load(file: str | Path, size: str = "full", overrides: Mapping[str, object] = types.MappingProxyType({})) -> Sweep:
    """The sweep in a file (the name of one that comes with golfcore, or a path of a .toml file) at a size.

    `overrides` are of all arms; what an arm sets goes over them. UserError: no such file, an unknown key, a value of
    another type, an arm `on` one that does not stand above it, or two arms of one configuration.
    """
    where, path = str(file), Path(file)
    if path.suffix != ".toml":
        config.keys([where], sweep_names(), "sweeps", "sweep")
        path = SWEEPS / f"{file}.toml"
    config.keys([size], config.size_names(), "size")
    values = _checked(config.read_toml(path, "a sweep"), FILE, where)
    for key in ("base", "arms"):
        if not values.get(key):
            raise UserError(f"{where}: expected {key}, found none")
    common = {**_overrides(values, "all", size, where), **overrides}
    arms: dict[str, ArmPlan] = {}
    for name, given in values.pop("arms").items():
        at = f"{where}, [arms.{name}]"
        own = _checked(given, ARM, at)
        on = own.pop("on", next(iter(arms), ""))
        if on not in arms and (arms or on):
            raise UserError(f"{at}, on: expected an arm above it ({', '.join(arms) or 'there is none'}), found {on!r}")
        changed = (arms[on].overrides if on else common) | _overrides(own, "set", size, at)
        try:
            cfg = replace(config.load(values["base"], changed, size=size), name=name)
        except UserError as e:
            raise UserError(f"{at}: {e}") from None
        if same := [other.name for other in arms.values() if other.config.hash == cfg.hash]:
            raise UserError(f"{at}: expected an arm that differs from {same[0]} at size {size}, found the same")
        own = {"label": name} | {k: v for k, v in own.items() if KINDS[k] is not dict}
        arms[name] = ArmPlan(name, on, changed, cfg, **own)
    known: dict[str, Any] = {"title": path.stem, "seeds": (next(iter(arms.values())).config.run.seed,)}
    known["slots"] = _slots(values.get("slots", {}), f"{where}, slots")
    return Sweep(path.stem, size, arms, **known | {k: v for k, v in values.items() if KINDS[k] is not dict})


def _slots(values: Mapping[str, Any], where: str) -> Slots:
    config.keys(values, list(Slots._fields), where)
    found = Slots(**{k: config.coerce(v, float, f"{where}, {k}") for k, v in values.items()})
    if found.cpus < 0 or (found.gpus or 0) < 0 or not found.cpus + (found.gpus or 0):
        raise UserError(f"{where}: expected CPUs or GPUs, found {found.cpus:g} and {found.gpus or 0:g}")
    return found


def _checked(values: Any, known: list[str], where: str) -> dict[str, Any]:
    """The table `values`, its values as their KINDS. UserError: no table, an unknown key, a value of another kind."""
    config.keys(_table(values, where), known, where)
    return {
        k: dict(_table(v, f"{where}, {k}")) if KINDS[k] is dict else config.coerce(v, KINDS[k], f"{where}, {k}")
        for k, v in values.items()
    }


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: expected a table, found {value!r}")
    return value


def _overrides(values: Mapping[str, Any], key: str, size: str, where: str) -> dict[str, object]:
    """The overrides in `values[key]` with those of the size over them, as dotted names."""
    sizes, found = values.get("size", {}), dict[str, object]()
    config.keys(sizes, config.size_names(), f"{where}, size")
    for table in (values.get(key, {}), _table(sizes.get(size, {}), f"{where}, size.{size}")):
        for name, value in table.items():
            found |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {name: value}
    return found


# -- running


def seeds_in(text: str, default: Sequence[int] = ()) -> tuple[int, ...]:
    """The seeds in "1, 2, 3"; `default` if there is nothing. UserError: none at all, one twice, or one that is none."""
    names = names_in(text, list(map(str, default)), "seeds", "whole numbers")
    if not all(name.isdecimal() and int(name) < 2**32 for name in names) or len(set(map(int, names))) < len(names):
        raise UserError(f"seeds: expected different whole numbers with commas between them, found {text!r}")
    return tuple(map(int, names))


def names_in(text: str, default: Sequence[str] = (), what: str = "arms", kind: str = "names") -> tuple[str, ...]:
    """The names in "a, b"; `default` if there is nothing. UserError: none at all, an empty name, or one twice."""
    found = tuple(part.strip() for part in text.split(",")) if text.strip() else tuple(default)
    if not all(found) or not found or len(set(found)) < len(found):
        raise UserError(f"{what}: expected different {kind} with commas between them, found {text!r}")
    return found


def jobs_of(arms: Mapping[str, Config], seeds: Sequence[int], out: Path) -> list[Job]:
    """Every configuration with every seed, into out/LABEL-sSEED: all arms of a seed before the next seed.

    So an interrupted sweep has whole comparisons. UserError: no arms or seeds, a seed twice, or a label that is no
    name for a folder.
    """
    if not arms or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"sweep: expected arms and different seeds, found {len(arms)} arms and seeds {list(seeds)}")
    for label in arms:
        if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", label):
            raise UserError(f"sweep: expected arms named with letters, digits, '.', '_', '+' and '-', found {label!r}")
    return [
        Job(label, seed, config.override(arm, {"run.seed": seed}, label), out / f"{label}-s{seed}")
        for seed in seeds
        for label, arm in arms.items()
    ]


def run_arms(
    arms: Mapping[str, Config],
    seeds: Sequence[int],
    out: Path,
    say: Callable[[str], object] = print,
    then: Callable[[Path], object] | None = None,
) -> list[RunFolder]:
    """Do `jobs_of` these one after another in this process; the folders, in the order of the runs.

    What trains alike trains once: a run takes its weights from any run in `out` that has the same
    `Config.training_hash` and data. What a run prints goes through `say`, and before each run where the sweep is and
    how long the rest should take. `then` is called with the folder of each run that is done. UserError: as `jobs_of`,
    or a folder that holds another configuration or data.
    """
    from golfcore.runs import pipeline  # brings torch, which reading a file does not need

    folders, spent, jobs = list[RunFolder](), list[float](), jobs_of(arms, seeds, out)
    for number, (label, seed, arm, folder) in enumerate(jobs, 1):
        say(f"run {number} of {len(jobs)}: {label}, seed {seed}{time_left(spent, len(jobs) - number + 1)}")
        began, fresh = time.monotonic(), not (folder / RESULTS).exists()
        folders.append(pipeline.run(arm, folder, say, tuple(run_folders(out))))
        if then:
            then(folder)
        if fresh:
            spent.append(time.monotonic() - began)
    return folders


def changes(configs: Mapping[str, Config], on: Mapping[str, str] = types.MappingProxyType({})) -> "pd.DataFrame":
    """One row an arm: `on`, the arm that it is held against (the first, unless given), and what `changes` of it."""
    import pandas as pd  # a third of a second, which the command line's help does not need

    first, rows = next(iter(configs)), []
    for name, cfg in configs.items():
        other = "" if name == first else on.get(name, first)
        change = config.differences(configs[other], cfg, most=20) if other else ""
        rows.append({"arm": name, "on": other, "changes": change})
    return pd.DataFrame(rows)


def default_out(plan: Sweep) -> Path:
    """The folder of a sweep's runs: the same whatever arms and seeds are chosen, so that they add up."""
    return out_of(f"{plan.name}-{plan.size}", plan.reference.config)


def out_of(name: str, reference: Config) -> Path:
    """The usual folder of a study's runs, told apart by the configuration of its reference."""
    return runs_dir() / f"{name}-{identity(reference)[:8]}"


def time_left(spent: Sequence[float], jobs: int) -> str:
    """What `jobs` more should take, by the mean of the seconds `spent` on each so far; "" before the first."""
    seconds = sum(spent) / len(spent) * jobs if spent else 0.0
    if seconds < 1:
        return ""
    return f", about {seconds:.0f} s left" if seconds < 90 else f", about {seconds / 60:.0f} min left"
