"""Laws of the tree: who may import whom, how large things get, what is forbidden, and that its lists agree."""

import ast
import dataclasses
import json
import os
import re
import subprocess
import sys
import tomllib
import typing
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import golfcore

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "golfcore"

# The rooms of the house and the modules right below golfcore/, from the bottom up. A module imports from rooms below
# its own, and within its room no module imports itself through others.
LEVELS = """
base config data model optim quant evals train runs analysis plots
interop notebook api __init__ cli __main__
""".split()
MAX_PACKAGE_LINES = 21_250
MAX_ROOT_MODULES = 6
MAX_MODULE_LINES = 350
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 7
HEAVY = "torch numpy pandas scipy matplotlib papermill sentencepiece safetensors constriction zstandard tqdm".split()
OPTIONAL_BACKENDS = {"flash_attn_interface", "triton"}  # built on the box; a part of torch where there is CUDA
UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
PICKLING_TORCH = {"torch.load", "torch.save", "torch.package"}
ENVIRONMENT = {"environ", "environb", "getenv", "putenv", "unsetenv"}
ENVIRONMENT_ONLY = {"python", "pip", "make", "cxx-compiler"}  # conda packages that pyproject.toml cannot name


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name below golfcore ("model.forward"; packages as "model.__init__")."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {".".join(p.relative_to(PACKAGE).with_suffix("").parts): ast.parse(p.read_text(), str(p)) for p in paths}


def unit(module: str) -> str:
    return module.split(".")[0]


def level(module: str) -> int:
    assert unit(module) in LEVELS, f"golfcore/{unit(module)}: expected in LEVELS of {__file__}"
    return LEVELS.index(unit(module))


@dataclasses.dataclass(frozen=True)
class Import:
    module: str  # that imports
    target: str  # absolute dotted name, with the imported name: "golfcore.model.forward.init"
    line: int
    lazy: bool  # inside a function

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"

    @property
    def top(self) -> str:
        return self.target.split(".")[0]


@cache
def imports() -> list[Import]:
    """All imports of all modules, relative ones made absolute."""

    def walk(module: str, node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(module, alias.name, node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ["golfcore", *module.split(".")[: -node.level]] if node.level else []
            prefix = ".".join([*package, *([node.module] if node.module else [])])
            yield from (Import(module, f"{prefix}.{alias.name}", node.lineno, lazy) for alias in node.names)
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from walk(module, child, inside)

    return [found for module, tree in modules().items() for found in walk(module, tree, False)]


def resolve(target: str) -> str | None:
    """The module below golfcore that is imported, or that an imported name is in; None for other packages."""
    top, _, name = target.partition(".")
    if top != "golfcore":
        return None
    parent = name.rpartition(".")[0]
    candidates = [c.lstrip(".") for c in (name, f"{name}.__init__", parent, f"{parent}.__init__")]
    found = [c for c in candidates if c in modules()]
    assert found, f"{target} is imported and is no module of golfcore"
    return found[0]


def spelled(problems: list[str]) -> str:
    return "\n" + "\n".join(problems)


def test_imports_go_down_the_levels():
    own = {imp: target for imp in imports() if (target := resolve(imp.target))}
    problems = [f"{imp}, which is above it" for imp, target in own.items() if level(target) > level(imp.module)]
    assert not problems, spelled(problems)


def test_no_module_or_folder_imports_itself_through_others():
    """At any depth; a CycleError names the ring."""
    edges = {(i.module, target) for i in imports() if (target := resolve(i.target))}
    for depth in range(1, 2 + max(m.count(".") for m in modules())):
        graph: dict[str, set[str]] = {}
        for pair in edges:
            module, target = (".".join(m.split(".")[:depth]) for m in pair)
            graph.setdefault(module, set()).update({target} - {module})
        order = list(TopologicalSorter(graph).static_order())  # raises where there is a ring
        assert sorted(order) == sorted(graph.keys() | set().union(*graph.values()))


def test_figures_are_drawn_only_in_plots_and_without_torch():
    wrong = [i for i in imports() if i.top == ("torch" if unit(i.module) == "plots" else "matplotlib")]
    problems = [f"{imp}; only plots/ draws, tables without torch" for imp in wrong]
    assert not problems, spelled(problems)


LIGHT = ["import golfcore as gc; dir(gc); gc.load('demo').hash", "from golfcore import cli; cli.main(['--help'])"]


@pytest.mark.parametrize("code", LIGHT)
def test_start_up_imports_nothing_heavy(code):
    """Reading help or a configuration waits for no library."""
    report = f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    program = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\n{report}"
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert found.stderr.strip() == "[]"


def test_third_parties_are_declared_and_extras_are_lazy():
    """`golfcore run` needs only the core: an extra is imported inside functions."""
    extras = declared("nb", "widgets", "hub", "cluster", "fuzz") | OPTIONAL_BACKENDS
    core = {name.replace("-", "_") for name in declared("core")}
    others = [i for i in imports() if i.top not in {*sys.stdlib_module_names, "golfcore", *core}]
    problems = [f"{imp}, which pyproject.toml does not declare" for imp in others if imp.top not in extras]
    top = [i for i in others if not i.lazy and i.module != "model.kernels"]  # itself imported only where Triton is
    problems += [f"{imp}, an extra, at the top: import it inside the function" for imp in top]
    assert not problems, spelled(problems)


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for module, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{module}.{node.name}", node


def test_the_package_its_modules_and_its_functions_stay_small():
    lines = {str(p.relative_to(PACKAGE)): len(p.read_text().splitlines()) for p in PACKAGE.rglob("*.py")}
    assert sum(lines.values()) <= MAX_PACKAGE_LINES
    assert len(list(PACKAGE.glob("*.py"))) <= MAX_ROOT_MODULES
    problems = [f"{name}: {n} lines, at most {MAX_MODULE_LINES}" for name, n in lines.items() if n > MAX_MODULE_LINES]
    for name, node in functions():
        if (n := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES:
            problems.append(f"{name}: {n} lines, at most {MAX_FUNCTION_LINES}")
    assert not problems, spelled(problems)


def test_values_that_travel_together_travel_as_one():
    """No function takes more than seven parameters, self and cls aside; what a GPU runs has one for every pointer."""
    problems = []
    for name, node in [(n, f) for n, f in functions() if "triton.jit" not in map(ast.unparse, f.decorator_list)]:
        given = {a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)} - {"self", "cls"}
        if len(given) > MAX_PARAMETERS:
            problems.append(f"{name}: {len(given)} parameters, at most {MAX_PARAMETERS}")
    assert not problems, spelled(problems)


def nodes() -> Iterator[tuple[str, ast.AST]]:
    """Every node of every module, with its place."""
    for module, tree in modules().items():
        yield from ((f"{module}:{getattr(node, 'lineno', 0)}", node) for node in ast.walk(tree))


def test_only_runtime_reads_the_environment():
    problems = [str(imp) for imp in imports() if imp.target.removeprefix("os.") in ENVIRONMENT]
    for place, node in nodes():
        if isinstance(node, ast.Attribute) and node.attr in ENVIRONMENT:
            problems.append(f"{place} uses {ast.unparse(node)}; only base/runtime.py does")
    problems = [text for text in problems if not text.startswith("base.runtime:")]
    assert not problems, spelled(problems)


def test_nothing_we_load_can_run_code():
    problems = [str(imp) for imp in imports() if imp.top in UNPICKLERS or imp.target in PICKLING_TORCH]
    for place, node in nodes():
        if isinstance(node, ast.Attribute) and f"torch.{node.attr}" in PICKLING_TORCH:
            if ast.unparse(node) in PICKLING_TORCH:
                problems.append(f"{place} uses {ast.unparse(node)}, which pickles")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"eval", "exec"}:
            problems.append(f"{place} calls {node.func.id}")
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            problems.append(f"{place} allow_pickle={ast.unparse(node.value)}")
    assert not problems, spelled(problems)


def test_no_file_names_a_machine():
    globs = "* .ci/* golfcore/**/* tests/*.py benchmarks/* notebooks/* figures/* papermill_runs/*.md".split()
    suffixes = {".py", ".toml", ".md", ".txt", ".yml", ".ipynb", ".csv", ".json", ".svg", ""}
    machine = re.compile(r"(?<![\w.])/(work|root|tmp|home)/|\.\./shared")
    problems = []
    found = {p for g in globs for p in ROOT.glob(g) if p.is_file() and p.suffix in suffixes and p.name != ".git"}
    for path in sorted(found):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if named := machine.search(line):
                problems.append(f"{path.relative_to(ROOT)}:{number} names {named.group()}")
    assert not problems, spelled(problems)


def test_every_config_field_is_read_somewhere():
    from golfcore.config import SECTIONS

    read = {
        node.attr
        for place, node in nodes()
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and unit(place) != "config"
    }
    fields = {f"{name}.{field.name}": field.name for name, cls in SECTIONS.items() for field in dataclasses.fields(cls)}
    problems = [f"{dotted} is read nowhere outside config" for dotted, name in fields.items() if name not in read]
    assert not problems, spelled(problems)


def test_notebooks_are_listed_and_committed_clean_with_one_cell_of_parameters():
    problems, paths = [], sorted((ROOT / "notebooks").glob("*.ipynb"))
    for path in paths:
        cells = json.loads(path.read_text())["cells"]
        tagged = [c["cell_type"] for c in cells if "parameters" in c.get("metadata", {}).get("tags", [])]
        if tagged != ["code"]:
            problems.append(f"{path.name}: expected one code cell tagged parameters, found {tagged}")
        if dirty := [c for c in cells if c.get("outputs") or c.get("execution_count") is not None]:
            problems.append(f"{path.name}: {len(dirty)} cells carry outputs or execution counts")
        if not re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem):
            problems.append(f"{path.name}: expected a name like 01_one_run.ipynb")
    assert not problems, spelled(problems)
    listed = re.findall(r"^- `(\w+)`", (ROOT / "notebooks/README.md").read_text(), re.MULTILINE)
    assert listed == [path.stem for path in paths]


@cache
def pyproject() -> dict[str, typing.Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(group: str) -> list[Requirement]:
    """The requirements of "core" or of an extra."""
    lines = pyproject()["dependencies"] if group == "core" else pyproject()["optional-dependencies"][group]
    return [Requirement(line) for line in lines]


def declared(*groups: str) -> set[str]:
    return {r.name for group in groups for r in requirements(group)}


@cache
def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def test_constraints_pin_every_dependency_within_its_range():
    problems = []
    groups = ("core", "nb", "widgets", "hub", "cluster", "fuzz", "dev")
    for requirement in [r for group in groups for r in requirements(group)]:
        pin = pins().get(canonicalize_name(requirement.name))
        if pin is None or pin not in requirement.specifier:
            problems.append(f"constraints.txt: expected a version for {requirement}, found {pin}")
    assert not problems, spelled(problems)


def test_conda_and_pip_agree():
    """conda brings what is not Python's; everything else is installed by pip, as `make setup` does, by one list."""
    spec = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [d for d in spec["dependencies"] if isinstance(d, str)]
    (pip,) = [d["pip"] for d in spec["dependencies"] if isinstance(d, dict)]
    assert spec["channels"] == ["conda-forge"] and {d.split("=")[0] for d in conda} == ENVIRONMENT_ONLY
    assert pip[0] == "-c constraints.txt" and len(pip) == 2
    extras = set(re.fullmatch(r"-e \.\[([\w,]+)\]", pip[1])[1].split(","))
    assert {"nb"} <= extras <= set(pyproject()["optional-dependencies"])
    python = next(d.split("=")[1] for d in conda if d.startswith("python="))
    assert python in SpecifierSet(pyproject()["requires-python"])


def test_a_wheel_has_everything_that_the_package_reads():
    """The package folder is taken whole, and the notebooks beside it go into it, where `find_notebook` looks."""
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert built == {"packages": ["golfcore"], "force-include": {"notebooks": "golfcore/notebooks"}}
    for pattern in ("config/presets/*.toml", "config/sizes/*.toml", "runs/sweeps/*.toml", "published/*.csv"):
        assert list(PACKAGE.glob(pattern)), pattern
    ignored = subprocess.run(["git", "check-ignore", "golfcore/published/claims.csv"], cwd=ROOT, capture_output=True)
    assert ignored.stdout == b""  # hatchling leaves out what git ignores


def test_project_metadata_is_complete_and_the_changelog_knows_the_version():
    known = pyproject()
    assert {"description", "readme", "license", "authors", "keywords", "classifiers", "requires-python"} <= known.keys()
    python = "Programming Language :: Python :: "
    versions = {c.removeprefix(python) for c in known["classifiers"] if c.startswith(f"{python}3.")}
    assert versions == {"3.11", "3.12", "3.13"} and all(v in SpecifierSet(known["requires-python"]) for v in versions)

    assert f"\n## {golfcore.__version__} (" in (ROOT / "CHANGELOG.md").read_text()


def test_the_top_level_is_laid_out():
    files = "README.md CONTRIBUTING.md LICENSE CHANGELOG.md Makefile pyproject.toml constraints.txt environment.yml"
    readmes = ".gitignore .ci/run figures/README.md notebooks/README.md papermill_runs/README.md benchmarks/README.md"
    assert not [name for name in f"{files} {readmes}".split() if not (ROOT / name).is_file()]


def test_make_explains_every_target():
    targets = set(re.findall(r"^([a-z]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets == set("help setup demo test check notebooks figures writeup bench clean".split())
    helped = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[1] for line in helped.splitlines() if line.startswith("  make ")} == targets


def test_ci_runs_what_the_readme_says():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert {"make check", "make test"} <= set(script.read_text().splitlines())
    assert "make test" in (ROOT / "README.md").read_text()
