"""Sweeps: a file names arms of one preset and what was published of each; every arm is run with every seed.

```toml
title = "..."                     # the question
base = "smoke"                    # preset of all arms
seeds = [42, 43]
source = "..."                    # the publication
measure = "ttt"                   # which of a run's numbers the published ones are: static, sliding or ttt
published_sd = 0.0008             # of published runs over seeds, if known
published_steps = 7020            # of the optimizer in the published runs, if known
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
from typing import TYPE_CHECKING, Any, Literal

from golfcore import config
from golfcore.base.errors import UserError
from golfcore.base.records import RESULTS, RunFolder
from golfcore.config import Config
from golfcore.runs.folder import identity, run_folders, runs_dir

if TYPE_CHECKING:
    import pandas as pd

SWEEPS = Path(__file__).parent / "sweeps"
Measure = Literal["static", "sliding", "ttt"]
FILE: dict[str, Any] = {  # keys and what they hold; those of an arm below
    **dict.fromkeys(("title", "base", "source"), str),
    **{"seeds": tuple[int, ...], "measure": Measure, "published_sd": float, "published_steps": int},
    **dict.fromkeys(("all", "size", "arms"), dict),
}
ARM: dict[str, Any] = {
    **dict.fromkeys(("on", "label", "published_note", "note"), str),
    **{"published": float, "unknown": tuple[str, ...], "set": dict, "size": dict},
}


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

    @property
    def reference(self) -> ArmPlan:
        return next(iter(self.arms.values()))

    @property
    def configs(self) -> dict[str, Config]:
        return {name: arm.config for name, arm in self.arms.items()}

    def changes(self) -> "pd.DataFrame":
        """One row an arm: what it is compared with, and what it changes of that."""
        on = {name: self.arms[arm.on].config for name, arm in self.arms.items() if arm.on}
        return changes(self.configs, on)

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
    path = Path(file) if str(file).endswith(".toml") else SWEEPS / f"{file}.toml"
    if path.parent == SWEEPS:
        config.keys([path.stem], sweep_names(), "sweeps")
    config.keys([size], config.size_names(), "size")
    where = str(file)
    values = _checked(config.read_toml(path, "a sweep"), FILE, where)
    for key in ("base", "arms"):
        if not values.get(key):
            raise UserError(f"{where}: expected {key}, found none")
    common = {**_overrides(values, "all", size, where), **overrides}
    arms: dict[str, ArmPlan] = {}
    for name, given in _table(values.pop("arms"), f"{where}, arms").items():
        at = f"{where}, [arms.{name}]"
        arms[name] = _arm(name, _checked(given, ARM, at), arms, (values["base"], size, common), at)
    known: dict[str, Any] = {"title": path.stem, "seeds": (next(iter(arms.values())).config.run.seed,)}
    known |= {k: v for k, v in values.items() if k not in ("all", "size")}
    return Sweep(path.stem, size, arms, **known)


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: expected a table, found {value!r}")
    return value


def _checked(values: Any, known: Mapping[str, Any], where: str) -> dict[str, Any]:
    config.keys(_table(values, where), list(known), where)
    return {k: v if known[k] is dict else config.coerce(v, known[k], f"{where}, {k}") for k, v in values.items()}


def _arm(
    name: str,
    values: dict[str, Any],
    above: Mapping[str, ArmPlan],
    plan: tuple[str, str, dict[str, object]],
    where: str,
) -> ArmPlan:
    """An arm, of what its table holds; `plan`: preset, size and overrides of all arms."""
    base, size, common = plan
    on = values.pop("on", next(iter(above), ""))
    if on not in above and (above or on):
        raise UserError(f"{where}, on: expected an arm above it ({', '.join(above) or 'there is none'}), found {on!r}")
    overrides = (above[on].overrides if on else common) | _overrides(values, "set", size, where)
    try:
        found = replace(config.load(base, overrides, size=size), name=name)
    except UserError as e:
        raise UserError(f"{where}: {e}") from None
    for other in above.values():
        if other.config.hash == found.hash:
            raise UserError(f"{where}: expected an arm that differs from {other.name} at size {size}, found the same")
    texts = {k: v for k, v in values.items() if k not in ("set", "size")}
    return ArmPlan(name, on, overrides, found, **{"label": name, **texts})


def _overrides(values: Mapping[str, Any], key: str, size: str, where: str) -> dict[str, object]:
    """The overrides in `values[key]` with those of the size over them, as dotted names."""
    sizes = _table(values.get("size", {}), f"{where}, size")
    config.keys(sizes, config.size_names(), f"{where}, size")
    found: dict[str, object] = {}
    for place, table in ((key, values.get(key, {})), (f"size.{size}", sizes.get(size, {}))):
        for name, value in _table(table, f"{where}, {place}").items():
            found |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {name: value}
    return found


# -- running


def seeds_in(text: str, default: Sequence[int] = ()) -> tuple[int, ...]:
    """The seeds in "1, 2, 3"; `default` if there is nothing. UserError: none at all, one twice, or one that is none."""
    try:
        found = tuple(int(part) for part in text.split(",")) if text.strip() else tuple(default)
    except ValueError:
        found = ()
    if not found or len(set(found)) < len(found) or not all(0 <= seed < 2**32 for seed in found):
        raise UserError(f"seeds: expected different whole numbers with commas between them, found {text!r}")
    return found


def names_in(text: str, default: Sequence[str] = (), what: str = "arms") -> tuple[str, ...]:
    """The names in "a, b"; `default` if there is nothing. UserError: none at all, an empty name, or one twice."""
    found = tuple(part.strip() for part in text.split(",")) if text.strip() else tuple(default)
    if not all(found) or not found or len(set(found)) < len(found):
        raise UserError(f"{what}: expected different names with commas between them, found {text!r}")
    return found


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
    from golfcore.runs import pipeline  # brings torch, which reading a file does not need

    if not arms or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"sweep: expected arms and different seeds, found {len(arms)} arms and seeds {list(seeds)}")
    for label in arms:
        if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", label):
            raise UserError(f"sweep: expected arms named with letters, digits, '.', '_', '+' and '-', found {label!r}")
    folders: list[RunFolder] = []
    spent: list[float] = []
    jobs = [(n, config.override(arm, {"run.seed": seed}, n), seed) for seed in seeds for n, arm in arms.items()]
    for number, (label, arm, seed) in enumerate(jobs, 1):
        folder = out / f"{label}-s{seed}"
        say(f"run {number} of {len(jobs)}: {label}, seed {seed}{time_left(spent, len(jobs) - number + 1)}")
        began, fresh = time.monotonic(), not (folder / RESULTS).exists()
        others = tuple(run_folders(out))
        folders.append(pipeline.run(arm, folder, say, others))
        if fresh:
            spent.append(time.monotonic() - began)
    return folders


def changes(configs: Mapping[str, Config], on: Mapping[str, Config] | None = None) -> "pd.DataFrame":
    """One row an arm: `on`, the arm that it is held against (the first, if none is given), and what `changes` of it."""
    import pandas as pd  # a third of a second, which the command line's help does not need

    first = next(iter(configs.values()))
    rows = []
    for name, cfg in configs.items():
        other = on.get(name) if on is not None else None if cfg is first else first
        change = config.differences(other, cfg, most=20) if other else ""
        rows.append({"arm": name, "on": other.name if other else "", "changes": change})
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
