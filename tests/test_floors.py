"""The house keeps its shape: imports point down, the core needs torch alone, files and functions stay small."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent
PACKAGES = ("etr", "toy_envs")

FLOORS: dict[int, tuple[str, ...]] = {  # a package stands for everything in it that is not named itself
    7: ("etr.cli", "etr.__main__"),
    6: (
        "etr.plots",
        "etr.report",
        "etr.bench",
        "etr.reproduce",
        "etr.adapters",
        "etr.promote",
        "etr.plan",
        "etr.replays",
        "etr.new",
        "etr.validate",
    ),
    5: ("etr.toy", "etr.llm"),
    4: (
        "etr.systems",
        "etr.recipe",
        "etr.references",
        "etr.recorded",
        "etr.recording",
        "etr.update",
        "etr.runs",
        "etr.files",
        "etr.board",
        "etr.environment",
        "etr.provenance",
        "etr.uses",
    ),
    3: ("etr", "etr.objectives", "etr.laws", "etr.probe", "toy_envs"),
    2: (
        "etr.objective",
        "etr.shaping",
        "etr.listwise",
        "etr.unified",
        "etr.replay",
        "etr.sampling",
        "etr.registry",
        "etr.loss",
        "etr.diagnostics",
        "etr.observatory",
        "etr.exact",
        "etr.oracles",
        "etr.stats",
    ),
    1: (
        "etr.ratios",
        "etr.regions",
        "etr.surrogates",
        "etr.aggregation",
        "etr.regularizers",
        "etr.advantages",
        "etr.samplers",
        "etr.controllers",
        "etr.corrections",
        "etr.fields",
        "etr.distributions",
        "etr.checks",
        "etr.divergences",
        "etr.masked",
        "etr.turns",
        "etr.difficulty",
        "etr.selection",
        "etr.within",
        "etr.alike",
        "etr.baselines",
        "etr.bundles",
        "etr.sequences",
        "etr.hashing",
        "etr.plugins",
    ),
    0: ("etr.errors", "etr.batch", "etr.outputs", "etr.groups", "etr._version"),
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names}
TORCH_ONLY = 3  # up to this floor `etr` needs torch and the standard library
MOST_LINES = {"etr/llm/train.py": 350, "etr/toy/train.py": 150}


def module_name(path: Path) -> str:
    parts = path.relative_to(HOUSE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for package in PACKAGES for path in sorted((HOUSE / package).rglob("*.py"))}


def floor(module: str) -> int | None:
    """The floor of a module or of the nearest package around it; None if only the table's whole `etr` is around it."""
    name = module
    while name not in FLOOR:
        name = name.rpartition(".")[0]
    return None if name == "etr" != module else FLOOR[name]


def statements(module: str) -> Iterator[ast.stmt]:
    """Import statements. Of `etr/__init__.py` only those that run on import: its recipe part is loaded on first use."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    for node in tree.body if module == "etr" else ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node


def imports(module: str) -> set[str]:
    """Full names of the imported modules; `from etr import laws` is etr.laws, `from etr import get` is etr."""
    found: set[str] = set()
    for node in statements(module):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module}: write the full name instead of a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in names}
    return found


def own(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] in PACKAGES}


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module: str) -> None:
    height = floor(module)
    assert height is not None, f"{module} has no floor; give it one in the table of this test"
    for name in own(imports(module)):
        below = floor(name)
        assert below is not None and below <= height, f"{module} (floor {height}) imports {name} (floor {below})"


def test_no_import_goes_round_in_circles() -> None:
    graph = {module: own(imports(module)) - {module} for module in FILES}
    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", [m for m in FILES if m.startswith("etr") and (floor(m) or 0) <= TORCH_ONLY])
def test_the_core_needs_torch_alone(module: str) -> None:
    foreign = {name.split(".")[0] for name in imports(module)} - {"etr", "torch"} - set(sys.stdlib_module_names)
    assert not foreign, f"{module} imports {foreign}"


@pytest.mark.parametrize("module", [m for m in FILES if m.startswith("toy_envs")])
def test_toy_envs_know_nothing_of_etr(module: str) -> None:
    assert not {name for name in imports(module) if name.split(".")[0] == "etr"}


def loaded_by(statement: str) -> set[str]:
    """Top-level names of the modules in a fresh interpreter after that statement."""
    code = f"{statement}; import sys; print(*(name.partition('.')[0] for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=HOUSE, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_core_loads_nothing_heavy() -> None:
    heavy = {"transformers", "vllm", "gymnasium", "matplotlib", "yaml", "seaborn", "rich", "tyro", "toy_envs"}
    loaded = loaded_by("import etr")
    assert "torch" in loaded and not heavy & loaded
    assert "etr" not in loaded_by("import toy_envs")


def test_the_table_is_up_to_date() -> None:
    """Names of the table that are not built yet are part of the plan, but no floor of it is empty."""
    assert {FLOOR[name] for name in FLOOR if name in FILES} == set(FLOORS)


@pytest.mark.parametrize("module", FILES)
def test_files_and_functions_are_small(module: str) -> None:
    """At most 200 lines to a file (trainers 350) and 40 to a function, its docstring not counted."""
    path = FILES[module]
    text = path.read_text(encoding="utf-8")
    usual = 120 if path.parent.name == "objectives" else 200
    lines, most = len(text.splitlines()), MOST_LINES.get(path.relative_to(HOUSE).as_posix(), usual)
    assert lines <= most, f"{path.name} has {lines} lines; split it at {most}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            docstring = 0 if ast.get_docstring(node) is None else (first.end_lineno or 0) - first.lineno + 1
            length = (node.end_lineno or 0) - node.lineno + 1 - docstring
            assert length <= 40, f"{path.name}: {node.name} has {length} lines without its docstring"
