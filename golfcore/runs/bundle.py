"""One Python file made of the package's own modules: a submission's train_gpt.py, readable and packed.

Modules are found by what the program imports, directly or not; nothing else is in the file. Readable: their sources as
they stand. Packed, which is what counts: minified by python-minifier (no comments, docstrings and annotations of
functions, short names of what is local), compressed by LZMA, a character of Latin-1 for each byte, and unpacked by two
lines.
"""

import ast
import json
import lzma
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from python_minifier import RemoveAnnotationsOptions, minify

from golfcore.config import Config, to_dict
from golfcore.quant.artifact import package_files

PROGRAM = "golfcore.runs.submission"
PACKAGE = Path(__file__).parents[1]
LOADER = '''
import importlib.abc, importlib.util, sys
from pathlib import Path


class Modules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The modules below, importable by their names."""

    def find_spec(self, name, path=None, target=None):
        if name not in SOURCES:
            return None
        package = any(other.startswith(name + ".") for other in SOURCES)
        return importlib.util.spec_from_loader(name, self, is_package=package)

    def exec_module(self, module):
        module.__file__ = str(Path(__file__).resolve().parent / (module.__name__.replace(".", "/") + ".py"))
        module.BUNDLE = FILE
        exec(compile(SOURCES[module.__name__], module.__name__, "exec"), module.__dict__)


sys.meta_path.insert(0, Modules())
if __name__ == "__main__":
    from golfcore.runs.submission import main

    sys.exit(main(CONFIG))
'''


def sources() -> dict[str, str]:
    """The source of every module that the program takes, by name."""
    found = {}
    for file in package_files(PROGRAM):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file.read_text()
    return found


def readable(cfg: Config, found: Mapping[str, str]) -> str:
    """The whole program as one file that people read: every module under its name."""
    parts = [f"SOURCES = {{}}\nFILE = __file__\nCONFIG = {_config(cfg)!r}\n"]
    for name, source in found.items():
        quoted = f"r'''{source}'''" if "'''" not in source and not source.endswith("'") else repr(source)
        parts.append(f"# ---- {name}\n\nSOURCES[{name!r}] = {quoted}\n")
    return "\n".join([f'"""{cfg.name}: the program of this submission in one file."""\n', *parts, LOADER.lstrip()])


def packed(cfg: Config, found: Mapping[str, str]) -> bytes:
    """The same as the bytes of a file, as small as it gets: what counts against the limit."""
    parts = [f"FILE=__file__\nCONFIG={_config(cfg)!r}\n{minified(LOADER)}"]
    for name, source in found.items():
        parts += [name, minified(source)]
    raw = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}
    text = spelled(lzma.compress("\0".join(parts).encode(), lzma.FORMAT_RAW, filters=[raw]))
    unpack = f'l.decompress("{text}".encode("l1"),{lzma.FORMAT_RAW},filters=[{raw}]).decode().split("\\0")'
    run = f"P,*S={unpack}\nSOURCES=dict(zip(S[::2],S[1::2]))\nexec(P)"
    return f"#coding:l1\nimport lzma as l\n{run}\n".encode("latin-1")


def _config(cfg: Config) -> dict[str, Any]:
    """Its values but for where the data lie."""
    values: dict[str, Any] = json.loads(json.dumps(to_dict(cfg)))
    values["data"]["path"] = ""
    return values


def minified(source: str) -> str:
    """The same program without comments, docstrings and annotations of functions, its locals named by a letter or two.

    Names of modules stay, by which they import each other, and annotations of fields, which are read.
    """
    gone = RemoveAnnotationsOptions(remove_class_attribute_annotations=False)
    return minify(source, remove_annotations=gone, remove_literal_statements=True, hoist_literals=False)


def spelled(data: bytes) -> str:
    """Characters which, between double quotes in a Python file of Latin-1, stand for these bytes; most for one each."""
    escapes = {"\\": "\\\\", '"': '\\"', "\0": "\\0", "\n": "\\n", "\r": "\\r"}  # a reader of files changes line ends
    text = data.decode("latin-1").translate({ord(c): escape for c, escape in escapes.items()})
    return re.sub(r"\\0(?=[0-7])", r"\\x00", text)


def requirements(found: Mapping[str, str]) -> list[str]:
    """The installed versions of what the modules import from outside, one "name==version" each."""
    names = set[str]()
    for source in found.values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    outside = names - set(sys.stdlib_module_names) - {"golfcore"}
    distributions = metadata.packages_distributions()
    known = sorted({distributions[name][0] for name in outside if name in distributions})
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in known]
