"""One Python file made of the package's own modules: a submission's train_gpt.py, readable and packed.

Modules are found by what the program imports, directly or not; nothing else is in the file. Readable: their sources as
they stand. Packed, which is what counts: without comments, docstrings and annotations of functions, compressed by LZMA,
spelled in base85, and unpacked by two lines.
"""

import ast
import base64
import json
import lzma
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

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


def packed(cfg: Config, found: Mapping[str, str]) -> str:
    """The same, as small as it gets: what counts against the limit."""
    small = {name: minified(source) for name, source in found.items()}
    program = f"SOURCES={small!r}\nFILE=__file__\nCONFIG={_config(cfg)!r}\n{minified(LOADER)}"
    raw = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}
    text = base64.b85encode(lzma.compress(program.encode(), lzma.FORMAT_RAW, filters=[raw])).decode()
    unpack = 'exec(l.decompress(b.b85decode("%s"),3,filters=[{"id":33,"preset":9,"lc":4,"lp":0,"pb":0}]))'
    return "import lzma as l,base64 as b\n" + unpack % text + "\n"


def _config(cfg: Config) -> dict[str, Any]:
    """Its values but for where the data lie."""
    values: dict[str, Any] = json.loads(json.dumps(to_dict(cfg)))
    values["data"]["path"] = ""
    return values


class _Smaller(ast.NodeTransformer):
    def visit(self, node: ast.AST) -> ast.AST:
        node = super().generic_visit(node)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or ([] if isinstance(node, ast.Module) else [ast.Pass()])
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
        return node


def minified(source: str) -> str:
    """The same program without comments, docstrings and annotations of functions, indented by single spaces."""
    text = ast.unparse(_Smaller().visit(ast.parse(source)))
    out, inside = [], False
    for line in text.split("\n"):
        out.append(line if inside else re.sub(r"^( {4})+", lambda m: " " * (len(m[0]) // 4), line))
        inside ^= line.count('"""') % 2 == 1  # a text of several lines keeps its spaces
    return "\n".join(out)


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
