"""Configurations: TOML presets with `base`, dotted overrides, type checks, plain values back and forth."""

import difflib
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from golfcore.base import files
from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.config.checks import contradictions
from golfcore.config.schema import Config

PRESETS = Path(__file__).parent / "presets"
SIZES = Path(__file__).parent / "sizes"
SECTIONS: dict[str, type] = {
    f.name: typing.cast(type, f.default_factory) for f in fields(Config) if is_dataclass(f.default_factory)
}


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested values (tuples become lists), as in JSON."""
    nested = asdict(config)
    return {
        k: {n: list(x) if isinstance(x, tuple) else x for n, x in v.items()} if isinstance(v, dict) else v
        for k, v in nested.items()
    }


def from_dict(values: Mapping[str, Any], source: str) -> Config:
    """Inverse of `to_dict`; `source` names the file or preset in errors."""
    keys(values, ["name", *SECTIONS], source)
    sections = {}
    for name, cls in SECTIONS.items():
        given = values.get(name, {})
        if not isinstance(given, Mapping):
            raise UserError(f"{source}: expected [{name}] to be a table, found {given!r}")
        keys(given, [f.name for f in fields(cls)], f"{source}, [{name}]")
        hints = typing.get_type_hints(cls)
        sections[name] = cls(**{k: coerce(v, hints[k], f"{source}, {name}.{k}") for k, v in given.items()})
    config = Config(name=str(values.get("name", source)), **sections)
    for problem in contradictions(config):
        raise UserError(f"{source}: {problem}")
    return config


def keys(given: Iterable[str], known: list[str], where: str) -> None:
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
            raise UserError(f"{where}: unknown key {key!r}{hint}")


def coerce(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotated type, from TOML or from the text of an override."""
    if typing.get_origin(hint) is Literal:
        if value not in typing.get_args(hint):
            raise UserError(f"{where}: expected one of {', '.join(typing.get_args(hint))}, found {value!r}")
        return value
    if typing.get_origin(hint) is tuple:
        if isinstance(value, str) and value.strip().startswith("["):
            value = parse_value(value)
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where}: expected a list, found {value!r}")
        return tuple(coerce(v, typing.get_args(hint)[0], where) for v in value)
    if isinstance(value, str) and hint is not str:
        value = parse_value(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if hint is str and not isinstance(value, str):
        value = str(value)
    if type(value) is not hint:
        raise UserError(f"{where}: expected {hint.__name__}, found {value!r}")
    return value


def parse_value(text: str) -> Any:
    """The TOML value that `text` spells (`3`, `0.1`, `true`, `[1, 2]`), else the text itself."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def preset_names() -> list[str]:
    return sorted(p.stem for p in PRESETS.glob("*.toml"))


def read_preset(preset: str | Path, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """The nested values of a preset over those of its `base`, if it names one."""
    path = Path(preset) if str(preset).endswith(".toml") else PRESETS / f"{preset}.toml"
    if not path.exists():
        if path.parent != PRESETS:
            raise UserError(f"{path}: expected a preset file, found no such file")
        close = difflib.get_close_matches(str(preset), preset_names(), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(preset_names())}"
        raise UserError(f"unknown preset {str(preset)!r}; {hint}")
    if str(path) in seen:
        raise UserError(f"{path}: base leads back to itself")
    try:
        values = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: expected TOML, found text that does not parse ({e})") from None
    base = values.pop("base", None)
    merged = read_preset(base, (*seen, str(path))) if base else {}
    return {**_over(merged, values), "name": path.stem}


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with the values of `above` in place of its own, table by table."""
    merged = dict(below)
    for name, value in above.items():
        merged[name] = _over(merged.get(name, {}), value) if isinstance(value, dict) else value
    return merged


def size_names() -> list[str]:
    return ["full", *sorted(p.stem for p in SIZES.glob("*.toml"))]


def load(
    preset: str | Path, overrides: Mapping[str, object] = types.MappingProxyType({}), size: str = "full"
) -> Config:
    """The configuration of a preset (name, or path of a .toml file) with dotted overrides applied.

    `size`: another size than the preset's own, for a smaller machine: `sizes/SIZE.toml` over the preset, and
    over that the preset's own table [size.SIZE].
    Raises UserError for an unknown preset, size or key (with a suggestion), a wrong type, or values that contradict.
    """
    if size not in size_names():
        raise UserError(f"size {size!r}: expected one of {', '.join(size_names())}")
    values = read_preset(preset)
    own = values.pop("size", {})
    keys(own, size_names()[1:], f"{preset}, [size]")
    if size != "full":
        common = tomllib.loads((SIZES / f"{size}.toml").read_text())
        values = {**_over(_over(values, common), own.get(size, {})), "name": f"{values['name']}-{size}"}
    return from_dict(_changed(values, overrides), str(preset))


def override(cfg: Config, overrides: Mapping[str, object], source: str) -> Config:
    """`cfg` with dotted overrides applied; errors as `load`."""
    return from_dict(_changed(to_dict(cfg), overrides), source)


def _changed(values: dict[str, Any], overrides: Mapping[str, object]) -> dict[str, Any]:
    for dotted, value in overrides.items():
        section, _, key = dotted.partition(".")
        keys([section], list(SECTIONS), f"override {dotted!r}")
        if not key:
            raise UserError(f"override {dotted!r}: expected section.key, found a section alone")
        values = {**values, section: {**values.get(section, {}), key: value}}
    return values


def of_run(run: RunFolder) -> Config:
    """The configuration that a run was made with. UserError: none there, or values that cannot be."""
    where = run.file("config.json")
    return from_dict(files.read_json(where, "a run's configuration")["config"], str(where))


def differences(a: Config, b: Config, most: int = 3) -> str:
    """The first few fields in which two configurations differ, as "section.key 1 -> 2"."""
    x, y = to_dict(a), to_dict(b)
    rows = [
        f"{section}.{key} {x[section][key]} -> {y[section][key]}"
        for section in x
        if section != "name"
        for key in x[section]
        if x[section][key] != y[section][key]
    ]
    return ", ".join(rows[:most]) + (f" and {len(rows) - most} more" if len(rows) > most else "")
