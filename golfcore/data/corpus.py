"""The embedded corpus `pydocs`: the docstrings of packages that are installed anyway, read without importing them.

It is real technical English, is the same on every machine with the same package versions, and needs no network. It
is good for watching mechanisms; scores on it are not comparable with scores on FineWeb.
"""

import ast
import gc
import platform
import sysconfig
import warnings
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

from golfcore.base.errors import UserError
from golfcore.base.files import sha256_json, sha256_text
from golfcore.data.contents import MANIFEST, SCHEMA
from golfcore.data.text import HALF_PAIR, build

STDLIB = "stdlib"
# Names that stand for several packages. "large" is what the core dependencies bring along: about 9M tokens.
LISTS = {"large": (STDLIB, "numpy", "scipy", "matplotlib", "pandas", "torch", "sympy", "networkx")}
MIN_CHARS = 200
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)  # expressions are most of a tree and hold no docstring


def pydocs(cache_dir: Path, packages: Sequence[str], vocab_size: int = 1024) -> tuple[Path, bool]:
    """The dataset folder of the docstrings of `packages`, and whether it was built now (else it was in the cache).

    A package may be the name of one of `LISTS`. The folder is `cache_dir/pydocs-<key>`; the key stands for the
    packages' and Python's versions and the settings.
    UserError: a package that is not installed, or too little text for the vocabulary.
    """
    packages = [name for given in packages for name in LISTS.get(given, (given,))]
    sources = {
        "corpus": "pydocs",
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in packages},
        "min_chars": MIN_CHARS,
    }
    out = Path(cache_dir) / f"pydocs-{sha256_json([SCHEMA, sources, vocab_size])[:12]}"
    if (out / MANIFEST).is_file():
        return out, False
    build(documents(packages), out, vocab_size, sources)
    return out, True


def documents(packages: Sequence[str]) -> list[str]:
    """All different docstrings of at least 200 characters, ordered by their hash.

    So neither the order of `packages` nor that of the file system matters, and topics are mixed.
    UserError: a package that is not installed.
    """
    files = [path for name in packages for path in package_files(name)]
    found: set[str] = set()
    gc.disable()  # syntax trees have no cycles, and walking them again and again doubles the time
    try:
        for path in tqdm(files, desc="docstrings", unit="file", disable=None):
            found.update(text for text in docstrings(path.read_bytes()) if len(text) >= MIN_CHARS)
    finally:
        gc.enable()
    return sorted(found, key=sha256_text)


def docstrings(source: bytes) -> list[str]:
    """The cleaned docstrings of a module and of its classes and functions; [] if it does not parse."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's invalid escape sequences
        try:
            nodes: list[ast.AST] = [ast.parse(source)]
        except (SyntaxError, ValueError):
            return []
    for node in nodes:  # which grows on the way
        nodes += [child for child in ast.iter_child_nodes(node) if isinstance(child, STATEMENTS)]
    found = (ast.get_docstring(node) for node in nodes if isinstance(node, DOCUMENTED))
    return [text.strip() for text in found if text and not HALF_PAIR.search(text)]


def package_version(name: str) -> str:
    """The installed version of the distribution that provides a top-level package. UserError if there is none."""
    if name == STDLIB:
        return platform.python_version()
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        providers = metadata.packages_distributions().get(name)  # sklearn comes from scikit-learn; slow to ask
    if not providers:
        raise UserError(f"packages: expected {STDLIB!r} or installed packages, found {name!r}, which is not installed")
    return metadata.version(providers[0])


def package_files(name: str) -> list[Path]:
    """The .py files of a package or module, without its tests. UserError if it is not installed."""
    if name == STDLIB:
        roots = [sysconfig.get_path("stdlib")]
    else:
        spec = find_spec(name) if name.isidentifier() else None  # a dotted name would import its parent
        if spec is None:
            raise UserError(f"packages: expected {STDLIB!r} or top-level packages, found {name!r}")
        if spec.submodule_search_locations is None:
            return [Path(spec.origin)] if spec.origin and spec.origin.endswith(".py") else []
        roots = list(spec.submodule_search_locations)
    files = [(path, path.relative_to(root)) for root in roots for path in Path(root).rglob("*.py")]
    return [path for path, below in files if not SKIPPED_FOLDERS.intersection(below.parts[:-1])]
