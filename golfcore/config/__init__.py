"""The configuration: presets and sizes in TOML, overrides, types, and plain values back and forth."""

import difflib
import json
import os
import re
import tomllib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

from golfcore.base import files
from golfcore.base.errors import UserError, shown
from golfcore.base.records import CONFIG, RunFolder
from golfcore.config.checks import contradictions
from golfcore.config.schema import (  # noqa: F401, what other rooms import from here
    AverageConfig,
    Config,
    DataConfig,
    EvalConfig,
    MetaConfig,
    ModelConfig,
    OptimConfig,
    QuantConfig,
    ScheduleConfig,
    TTTConfig,
)

# (section, field that was) -> (field now, its values)
SPELLED_BEFORE = {("model", "bigram_split"): ("bigram_layout", {True: "split", False: "shared"})}
PRESETS = Path(__file__).parent / "presets"
SIZES = Path(__file__).parent / "sizes"
MAX_LIST = 1024  # values of a field that is a list
SECTIONS: dict[str, type] = {name: type(section) for name, section in vars(Config()).items() if name != "name"}
TABLES = {"name?": str, "base?": str, "size?": {"*": dict}} | {f"{section}?": dict for section in SECTIONS}


# -- plain values


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested values (tuples become lists), as in JSON."""
    return json.loads(json.dumps(asdict(config)))


def from_dict(values: Mapping[str, Any], source: str) -> Config:
    """Inverse of `to_dict`; `source` names the file or preset in errors."""
    keys(values, ["name", *SECTIONS], source)
    files.check(dict(values), TABLES, f"{source}: expected a configuration")
    sections = {}
    for name, cls in SECTIONS.items():
        hints, given = {f.name: f.type for f in fields(cls)}, _today(name, values.get(name, {}))
        keys(given, list(hints), f"{source}, [{name}]")
        sections[name] = cls(**{k: coerce(v, hints[k], f"{source}, {name}.{k}") for k, v in given.items()})
    config = Config(name=values.get("name", source), **sections)
    for problem in contradictions(config):
        raise UserError(f"{source}: {problem}")
    return config


def _today(section: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a section as they are spelled now: files of earlier versions are read."""
    found = dict(given)
    for (place, old), (new, values) in SPELLED_BEFORE.items():
        if place == section and old in found and new not in found:
            value = found.pop(old)
            found[new] = values.get(value, value) if isinstance(value, bool) else value
    return found


def of_run(run: RunFolder) -> Config:
    """The configuration that a run was made with. UserError: none there, or values that cannot be."""
    return from_dict(run.record()["config"], str(run.file(CONFIG)))


def differences(a: Config, b: Config, most: int = 3) -> str:
    """The first few hashed fields in which two configurations differ, as "section.key 1 -> 2"."""
    found = differing(a, b)
    values = [(s, key, *(json.loads(json.dumps(getattr(getattr(c, s), key))) for c in (a, b))) for s, key in found]
    rows = [f"{s}.{key} {shown(old)} -> {shown(new)}" for s, key, old, new in values[:most]]
    return ", ".join(rows) + (f" and {len(found) - most} more" if len(found) > most else "")


def differing(a: Config, b: Config) -> list[tuple[str, str]]:
    """The hashed fields in which two configurations differ: section and key."""
    x, y = a.hashed(), b.hashed()
    return [(s, key) for s in x for key in x[s] | y[s] if x[s].get(key) != y[s].get(key)]


def keys(given: Iterable[str], known: list[str], where: str, kind: str = "key") -> None:
    """UserError, with a suggestion, for the first of `given` that is not `known`."""
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            raise UserError(f"{where}: unknown {kind} {shown(key)!r}; {hint}")


def coerce(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotated type, from TOML or from the text of an override."""
    if type(value) is hint and hint is not str:
        return value
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    text = hint is str or origin is Literal
    if isinstance(value, str) and not (text and value[:1] not in ("'", '"')):  # most values are spelled as they are
        spelt = parse_value(value)
        value = spelt if isinstance(spelt, str) or not text else value
    if type(value) is hint or (origin is Literal and value in args):
        return value
    found = repr(shown(value)) if isinstance(value, str) else shown(value)
    if origin is Literal:
        raise UserError(f"{where}: expected one of {', '.join(args)}, found {found}")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{where}: expected a list, found {found}")
        if len(value) > MAX_LIST:
            raise UserError(f"{where}: expected at most {MAX_LIST} values, found {len(value)}")
        return tuple(coerce(v, args[0], where) for v in value)
    if hint is float and type(value) is int and abs(value) < 1e300:
        return float(value)
    raise UserError(f"{where}: expected {'text' if hint is str else hint.__name__}, found {found}")


# -- overrides


def parse_value(text: str) -> Any:
    """The TOML value that `text` spells as a whole (`3`, `0.1`, `true`, `[1, 2]`), else the text itself."""
    try:
        found = tomllib.loads(f"v = [{text}]")
    except (ValueError, RecursionError):  # also integers of more digits than Python takes
        return text
    one = len(found) == 1 and len(found["v"]) == 1 and not text.rstrip().endswith(",")
    return found["v"][0] if one else text  # otherwise there was a second value, or a line with another key


PIECE = re.compile(  # of a text of overrides: a whole value in quotes or brackets, else up to where another may begin
    r"""(?: =\s*(?:"(?:\\.|[^"\\\n])*" | '[^'\n]*' | \[[^\]]*\]) | (?!,\s*\w+\.\w+\s*=)[^;\n] )+""", re.VERBOSE
)


def parse_overrides(text: str, where: str = "overrides") -> dict[str, str]:
    """ "a.b=1, c.d=[2, 3]" as pairs; between them a semicolon, a new line, or a comma before the next section.key=.

    UserError (`where` names the text): a piece that is no such pair.
    """
    pairs = {}
    for piece in filter(str.strip, PIECE.findall(text)):
        key, equals, value = map(str.strip, piece.lstrip(",").partition("="))
        if not equals or not re.fullmatch(r"\w+(\.\w+)?", key):
            raise UserError(f"{where}: expected section.key=value, found {shown(piece)!r}")
        pairs[key] = value
    return pairs


def parse_override(text: str) -> tuple[str, str]:
    """The only pair in the text of one `--set`. UserError: none, or anything after its value."""
    where = f"--set {shown(text)}"
    pairs = parse_overrides(text, where)
    if len(pairs) != 1:
        raise UserError(f"{where}: expected one section.key=value, found {len(pairs)}; give --set once for each")
    return next(iter(pairs.items()))


def _changed(values: dict[str, Any], overrides: Mapping[str, object]) -> dict[str, Any]:
    for dotted, value in overrides.items():
        section, _, key = dotted.partition(".")
        keys([section], list(SECTIONS), f"override {dotted!r}")
        if not key:
            raise UserError(f"override {dotted!r}: expected section.key, found a section alone")
        value = absolute(coerce(value, str, dotted)) if dotted == "data.path" else value
        values = _over(values, {section: {key: value}})
    return values


def override(cfg: Config, overrides: Mapping[str, object], source: str) -> Config:
    """`cfg` with dotted overrides applied; errors as `load`."""
    return from_dict(_changed(to_dict(cfg), overrides), source)


# -- presets


def preset_names() -> list[str]:
    return sorted(p.stem for p in PRESETS.glob("*.toml"))


def size_names() -> list[str]:
    return ["full", *sorted(p.stem for p in SIZES.glob("*.toml"))]


def load(preset: str | Path, overrides: Mapping[str, object] = {}, size: str = "full") -> Config:
    """The configuration of a preset (name, or path of a .toml file), with dotted overrides applied: {"run.seed": 1}.

    `size`: another size than the preset's own, for a smaller machine: `sizes/SIZE.toml` over the preset, and
    over that the preset's own table [size.SIZE].
    UserError: an unknown preset, size or key (with a suggestion), a wrong type, or values that contradict.
    """
    keys([size], size_names(), "sizes", "size")
    values = read_preset(preset)
    own = values.pop("size", {})
    keys(own, size_names()[1:], f"{preset}, [size]")
    if size != "full":
        common = read_toml(SIZES / f"{size}.toml", "a size")
        values = {**_over(_over(values, common), own.get(size, {})), "name": f"{values['name']}-{size}"}
    return from_dict(_changed(values, overrides), str(preset))


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
    if not str(preset).endswith(".toml"):
        keys([str(preset)], preset_names(), "presets", "preset")
    here = os.path.abspath(path)
    if here in seen:
        raise UserError(f"{path}: base leads back to itself")
    values = read_toml(path, "a preset file")
    files.check(values, TABLES, f"{path}: expected a preset")
    data, base = values.get("data", {}), values.pop("base", "")
    if isinstance(data.get("path"), str):
        data["path"] = absolute(data["path"], path.parent)
    below = read_preset(path.parent / base if base.endswith(".toml") else base, (*seen, here)) if base else {}
    return {**_over(below, values), "name": path.stem}


def absolute(path: str, start: Path = Path()) -> str:
    """One spelling of one folder: the absolute path of `path`, which if relative starts from `start`; "" stays."""
    if "\0" in path:
        raise UserError(f"data.path: expected the path of a folder, found {path!r}")
    return os.path.abspath(start / path) if path else ""


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with the values of `above` in place of its own, table by table."""
    both = [name for name, value in above.items() if isinstance(value, dict) and isinstance(below.get(name), dict)]
    return {**below, **above, **{name: _over(below[name], above[name]) for name in both}}
