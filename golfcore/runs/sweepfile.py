"""Sweeps as files: arms of one preset, what was published of each, and what the publication does not say.

```toml
title = "..."                     # the question
base = "smoke"                    # preset of all arms
seeds = [42, 43]
source = "..."                    # the publication
measure = "ttt"                   # which of a run's numbers the published ones are: static, sliding or ttt
published_sd = 0.0008             # of published runs over seeds, if known
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

import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from golfcore import config
from golfcore.base.errors import UserError
from golfcore.config import Config

SWEEPS = Path(__file__).parent / "sweeps"
Measure = Literal["static", "sliding", "ttt"]
FILE: dict[str, Any] = {  # keys and what they hold; those of an arm below
    "title": str,
    "base": str,
    "seeds": tuple[int, ...],
    "source": str,
    "measure": Measure,
    "published_sd": float,
    "all": dict,
    "size": dict,
    "arms": dict,
}
ARM: dict[str, Any] = {
    "on": str,
    "label": str,
    "published": float,
    "published_note": str,
    "unknown": tuple[str, ...],
    "note": str,
    "set": dict,
    "size": dict,
}


@dataclass(frozen=True)
class ArmPlan:
    """One arm at one size."""

    name: str
    label: str
    on: str  # the arm that it is compared with; "" for the reference
    overrides: dict[str, object]  # of the preset, those of all arms included
    config: Config  # with the preset's seed; named as the arm
    published: float | None  # bits per byte
    published_note: str
    unknown: tuple[str, ...]
    note: str


@dataclass(frozen=True)
class Sweep:
    """A sweep file at one size. The first arm is the reference."""

    name: str
    title: str
    source: str
    size: str
    seeds: tuple[int, ...]
    measure: Measure
    published_sd: float | None
    arms: dict[str, ArmPlan]

    @property
    def reference(self) -> ArmPlan:
        return next(iter(self.arms.values()))

    @property
    def configs(self) -> dict[str, Config]:
        return {name: arm.config for name, arm in self.arms.items()}

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
    where = str(file)
    values = _checked(_read(path), FILE, where)
    for key in ("base", "arms"):
        if not values.get(key):
            raise UserError(f"{where}: expected {key}, found none")
    if not isinstance(values["arms"], Mapping):
        raise UserError(f"{where}: expected arms to be a table, found {values['arms']!r}")
    common = {**_overrides(values, "all", size, where), **overrides}
    arms: dict[str, ArmPlan] = {}
    for name, given in values["arms"].items():
        arms[name] = _arm(name, given, values["base"], common, size, arms, f"{where}, [arms.{name}]")
    return Sweep(
        path.stem,
        values.get("title", path.stem),
        values.get("source", ""),
        size,
        values.get("seeds") or (next(iter(arms.values())).config.run.seed,),
        values.get("measure", "ttt"),
        values.get("published_sd"),
        arms,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: expected a sweep, found no such file") from None
    except tomllib.TOMLDecodeError as e:
        raise UserError(f"{path}: expected TOML, found text that does not parse ({e})") from None


def _checked(values: Mapping[str, Any], known: Mapping[str, Any], where: str) -> dict[str, Any]:
    config.keys(values, list(known), where)
    return {k: v if known[k] is dict else config.coerce(v, known[k], f"{where}, {k}") for k, v in values.items()}


def _arm(
    name: str,
    given: Mapping[str, Any],
    base: str,
    common: Mapping[str, object],
    size: str,
    above: Mapping[str, ArmPlan],
    where: str,
) -> ArmPlan:
    if not isinstance(given, Mapping):
        raise UserError(f"{where}: expected a table, found {given!r}")
    values = _checked(given, ARM, where)
    on = values.get("on", next(iter(above), ""))
    if on not in above and (above or on):
        raise UserError(f"{where}, on: expected an arm above it ({', '.join(above) or 'there is none'}), found {on!r}")
    below = above[on].overrides if on else common
    overrides = {**below, **_overrides(values, "set", size, where)}
    try:
        found = replace(config.load(base, overrides, size=size), name=name)
    except UserError as e:
        raise UserError(f"{where}: {e}") from None
    for other in above.values():
        if other.config.hash == found.hash:
            raise UserError(f"{where}: expected an arm that differs from {other.name} at size {size}, found the same")
    return ArmPlan(
        name,
        values.get("label", name),
        on,
        overrides,
        found,
        values.get("published"),
        values.get("published_note", ""),
        values.get("unknown", ()),
        values.get("note", ""),
    )


def _overrides(values: Mapping[str, Any], key: str, size: str, where: str) -> dict[str, object]:
    """The overrides in `values[key]` with those of the size over them."""
    sizes = values.get("size", {})
    if not isinstance(sizes, Mapping):
        raise UserError(f"{where}, size: expected a table, found {sizes!r}")
    config.keys([size], config.size_names(), "size")
    config.keys(sizes, config.size_names(), f"{where}, size")
    return _flat(values.get(key, {}), f"{where}, {key}") | _flat(sizes.get(size, {}), f"{where}, size.{size}")


def _flat(table: Any, where: str) -> dict[str, object]:
    """Overrides as dotted names, from sections with keys in them or from dotted names."""
    if not isinstance(table, Mapping):
        raise UserError(f"{where}: expected overrides, found {table!r}")
    found: dict[str, object] = {}
    for name, value in table.items():
        found |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, Mapping) else {name: value}
    return found
