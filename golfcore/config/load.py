"""Configurations: TOML presets with `base`, dotted overrides, type checks, plain values back and forth."""

import difflib
import os
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from golfcore.base import files
from golfcore.base.errors import UserError, shown
from golfcore.base.records import CONFIG, RunFolder
from golfcore.config.bounds import is_hashed
from golfcore.config.checks import contradictions
from golfcore.config.schema import Config

PRESETS = Path(__file__).parent / "presets"
SIZES = Path(__file__).parent / "sizes"
MAX_LIST = 1024  # values of a field that is a list
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


@cache
def hints(section: str) -> dict[str, Any]:
    """The type of each field of a section."""
    return typing.get_type_hints(SECTIONS[section])


def from_dict(values: Mapping[str, Any], source: str) -> Config:
    """Inverse of `to_dict`; `source` names the file or preset in errors."""
    keys(values, ["name", *SECTIONS], source)
    sections = {}
    for name, cls in SECTIONS.items():
        given = values.get(name, {})
        if not isinstance(given, Mapping):
            raise UserError(f"{source}: expected [{name}] to be a table, found {shown(given)}")
        keys(given, [f.name for f in fields(cls)], f"{source}, [{name}]")
        typed = hints(name)
        sections[name] = cls(**{k: coerce(v, typed[k], f"{source}, {name}.{k}") for k, v in given.items()})
    config = Config(name=str(values.get("name", source)), **sections)
    for problem in contradictions(config):
        raise UserError(f"{source}: {problem}")
    return config


def keys(given: Iterable[str], known: list[str], where: str) -> None:
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
            raise UserError(f"{where}: unknown key {shown(key)!r}{hint}")


def coerce(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotated type, from TOML or from the text of an override."""
    if typing.get_origin(hint) is Literal or hint is str:
        value = _unquoted(value)
    if typing.get_origin(hint) is Literal:
        if value not in typing.get_args(hint):
            raise UserError(f"{where}: expected one of {', '.join(typing.get_args(hint))}, found {shown(value)!r}")
        return value
    if typing.get_origin(hint) is tuple:
        if isinstance(value, str) and value.strip().startswith("["):
            value = parse_value(value)
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where}: expected a list, found {shown(value)}")
        if len(value) > MAX_LIST:
            raise UserError(f"{where}: expected at most {MAX_LIST} values, found {len(value)}")
        return tuple(coerce(v, typing.get_args(hint)[0], where) for v in value)
    if isinstance(value, str) and hint is not str:
        value = parse_value(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1e300:
        value = float(value)
    if hint is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if type(value) is not hint:
        found = repr(shown(value)) if isinstance(value, str) else shown(value)
        raise UserError(f"{where}: expected {'text' if hint is str else hint.__name__}, found {found}")
    return value


def _unquoted(value: Any) -> Any:
    """Text without the quotes that TOML would have around it."""
    if isinstance(value, str) and len(value) > 1 and value[0] in "\"'" and isinstance(parse_value(value), str):
        return parse_value(value)
    return value


def parse_value(text: str) -> Any:
    """The TOML value that `text` spells as a whole (`3`, `0.1`, `true`, `[1, 2]`), else the text itself."""
    try:
        found = tomllib.loads(f"v = [{text}]")
    except (ValueError, RecursionError):  # also integers of more digits than Python takes
        return text
    one = len(found) == 1 and len(found["v"]) == 1 and not text.rstrip().endswith(",")
    return found["v"][0] if one else text  # otherwise there was a second value, or a line with another key


PAIR = re.compile(
    r"""\s* (?P<key>[^=;\n]*?) \s*=\s*
    (?P<value> "(?:\\.|[^"\\\n])*" | '[^'\n]*' | \[[^\]]*\] | (?:(?!,\s*\w+\.\w+\s*=)[^;\n])*? )
    \s*? (?:[;\n] | ,(?=\s*\w+\.\w+\s*=) | \Z)""",
    re.VERBOSE,
)


def parse_overrides(text: str, where: str = "overrides") -> dict[str, str]:
    """ "a.b=1, c.d=[2, 3]" as pairs; between them a semicolon, a new line, or a comma before the next section.key=.

    UserError (`where` names the text): a piece without "=".
    """
    pairs: dict[str, str] = {}
    at = 0
    while text[at:].strip("; \t\n"):
        found = PAIR.match(text, at)
        if not found:
            piece = re.split(r"[;\n]", text[at:].strip("; \t\n"))[0]
            raise UserError(f"{where}: expected section.key=value, found {shown(piece)!r}")
        if not re.fullmatch(r"\w+(\.\w+)?", found["key"]):
            raise UserError(f"{where}: expected section.key=value, found {shown(found['key'])!r} before '='")
        pairs[found["key"]] = found["value"].strip()
        at = found.end()
    return pairs


def parse_override(text: str) -> tuple[str, str]:
    """The only pair in the text of one `--set`. UserError: none, or anything after its value."""
    if "=" not in text:
        raise UserError(f"--set {shown(text)}: expected section.key=value, found no '='")
    pairs = parse_overrides(text, f"--set {shown(text)}")
    if len(pairs) != 1:
        raise UserError(
            f"--set {shown(text)}: expected one section.key=value, found {len(pairs)} ({', '.join(pairs)}); "
            "give --set once for each"
        )
    return next(iter(pairs.items()))


def preset_names() -> list[str]:
    return sorted(p.stem for p in PRESETS.glob("*.toml"))


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The values in a TOML file; `what` names it in errors. UserError: no file, one that cannot be read, or no TOML."""
    text = files.read_text(path, what)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as e:
        reason = "nested too deep" if isinstance(e, RecursionError) else shown(str(e))
        raise UserError(f"{path}: expected {what} as TOML, found text that does not parse ({reason})") from None


def read_preset(preset: str | Path, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """The nested values of a preset over those of its `base`, if it names one.

    A `base` or `data.path` that is a relative path starts from the folder of the file that says it.
    """
    path = Path(preset) if str(preset).endswith(".toml") else PRESETS / f"{preset}.toml"
    if path.parent == PRESETS and path.stem not in preset_names():
        close = difflib.get_close_matches(str(preset), preset_names(), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(preset_names())}"
        raise UserError(f"unknown preset {shown(str(preset))!r}; {hint}")
    if os.path.abspath(path) in seen:
        raise UserError(f"{path}: base leads back to itself")
    values = read_toml(path, "a preset file")
    base = values.pop("base", None)
    if base is not None and not isinstance(base, str):
        raise UserError(f"{path}, base: expected a preset's name or a .toml file, found {shown(base)}")
    for name, table in values.items():
        inner = table.values() if name == "size" and isinstance(table, dict) else ()
        for found in (table, *inner):
            if name in (*SECTIONS, "size") and not isinstance(found, dict):
                raise UserError(f"{path}: expected [{name}] to be a table, found {shown(found)}")
    data = values.get("data", {})
    if isinstance(data.get("path"), str) and data["path"]:
        values["data"] = {**data, "path": absolute(data["path"], path.parent)}
    below: dict[str, Any] = {}
    if base:
        nested = path.parent / base if base.endswith(".toml") else base
        below = read_preset(nested, (*seen, os.path.abspath(path)))
    return {**_over(below, values), "name": path.stem}


def absolute(path: str, start: Path = Path()) -> str:
    """One spelling for one folder: the absolute path of `path`, which if relative starts from `start`."""
    if "\0" in path:
        raise UserError(f"data.path: expected the path of a folder, found {path!r}")
    return os.path.abspath(start / path)


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
        raise UserError(f"size {shown(size)!r}: expected one of {', '.join(size_names())}")
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
        if dotted == "data.path" and isinstance(value, str | os.PathLike) and value != "":
            value = absolute(_unquoted(os.fspath(value)))
        section, _, key = dotted.partition(".")
        keys([section], list(SECTIONS), f"override {dotted!r}")
        if not key:
            raise UserError(f"override {dotted!r}: expected section.key, found a section alone")
        values = {**values, section: {**values.get(section, {}), key: value}}
    return values


def of_run(run: RunFolder) -> Config:
    """The configuration that a run was made with. UserError: none there, or values that cannot be."""
    return from_dict(run.record()["config"], str(run.file(CONFIG)))


def differences(a: Config, b: Config, most: int = 3) -> str:
    """The first few fields in which two configurations differ, as "section.key 1 -> 2"; those that are hashed."""
    x, y = to_dict(a), to_dict(b)
    rows = [
        f"{section}.{f.name} {shown(x[section][f.name])} -> {shown(y[section][f.name])}"
        for section, cls in SECTIONS.items()
        for f in fields(cls)
        if is_hashed(f) and x[section][f.name] != y[section][f.name]
    ]
    return ", ".join(rows[:most]) + (f" and {len(rows) - most} more" if len(rows) > most else "")
