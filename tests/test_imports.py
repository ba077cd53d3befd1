"""Dependencies go one way, read from the source: cli → application → files → graphs → words."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENGINE = ROOT / "graphprune"
PASSES = ROOT / "passes"

# From the bottom up; what is not listed reads or changes graphs, and stands second.
WORDS = {"errors", "macs", "architecture"}
FILES = {
    "reading",
    "storage",
    "bundle",
    "inputs",
    "check",
    "session",
    "changed",
    "settings",
    "optimized",
    "starting",
    "ortformat",
    "mobile",
    "survey",
    "outcomes",
    "describe",
    "fileset",
    "copies",
    "tagging",
    "profiled",
    "profilercost",
    "kernels",
    "compiled",
    "genconfig",
    "ports",
    "language",
    "lane",
    "decodercall",
    "speculation",
    "speculator",
    "prompting",
}
APPLICATION = {
    "pipeline",
    "cachecheck",
    "sameness",
    "packaging_ort",
    "adapter",
    "play",
    "generator",
    "draftcosts",
    "draftsearch",
    "compare",
    "timing",
    "turns",
    "measuring",
    "intervals",
    "footprint",
    "exporter",
    "search",
    "report",
    "phases",
    "summing",
    "profiler",
    "roofline",
    "influence",
    "ranking",
    "tracing",
    "scoring",
    "data",
    "healing",
    "importance",
    "searching",
    "skipping",
    "exits",
}
PASS_MAY_IMPORT = {"prunepass", "architecture", "surgery", "errors", "gates"}
HEAVY = {"torch", "transformers", "optimum"}


def tier(module: str) -> int:
    """The height of a module of graphprune: it imports only from its own tier or below."""
    if module.startswith("cli") or module == "__main__":
        return 4
    listed = ((WORDS, 0), (FILES, 2), (APPLICATION, 3))
    return next((height for names, height in listed if module.partition(".")[0] in names), 1)


def modules() -> dict[str, Path]:
    """Every module of the engine by its dotted name below graphprune; the passes are apart."""
    found = {}
    for path in sorted(ENGINE.rglob("*.py")):
        parts = path.relative_to(ENGINE).with_suffix("").parts
        if parts[0] != "passes":
            found[".".join(part for part in parts if part != "__init__") or "__init__"] = path
    return found


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def statements(tree: ast.AST, *, typing: bool) -> Iterator[ast.AST]:
    """All nodes of a module, lazy imports inside functions too; without `typing`, not type-only ones."""
    for node in ast.iter_child_nodes(tree):
        if typing or not is_type_checking(node):
            yield node
            yield from statements(node, typing=typing)


def imports(path: Path, *, typing: bool) -> set[str]:
    """Dotted names that a file imports; `from a import b` counts as `a.b`."""
    found: set[str] = set()
    for node in statements(ast.parse(path.read_text()), typing=typing):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: imports are absolute here"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(path: Path, *, typing: bool) -> set[str]:
    """The modules of graphprune that a file imports, by their names below graphprune."""
    found = set()
    for name in imports(path, typing=typing):
        package, _, rest = name.partition(".")
        if package == "graphprune" and rest:
            parts = rest.split(".")
            known = modules() | {"passes": PASSES}
            found.add(next((m for m in (".".join(parts[:n]) for n in (2, 1)) if m in known), parts[0]))
    return found


@pytest.mark.parametrize("module", [m for m in modules() if m != "__init__"])
def test_engine_imports_only_downwards(module: str) -> None:
    above = {name for name in own(modules()[module], typing=True) if tier(name) > tier(module)}
    assert not above, f"graphprune.{module} imports {sorted(above)}, which stand above it"


def test_engine_has_no_import_cycle() -> None:
    graph = {name: own(path, typing=False) - {name} for name, path in modules().items() if name != "__init__"}
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_engine_and_passes_leave_tools_models_and_tests_alone() -> None:
    for path in (*modules().values(), *PASSES.glob("*.py")):
        top = {name.partition(".")[0] for name in imports(path, typing=True)}
        assert not top & {"models", "tools", "tests"}, path.name


def test_passes_import_little() -> None:
    files = [path for path in PASSES.glob("*.py") if path.name != "__init__.py"]
    for path in files:
        beyond = {name for name in own(path, typing=True) if name not in PASS_MAY_IMPORT}
        assert not {b for b in beyond if not b.startswith("passes")}, f"{path.name} imports {sorted(beyond)}"


def test_training_frameworks_only_in_the_exporter() -> None:
    for name, path in modules().items():
        heavy = {n.partition(".")[0] for n in imports(path, typing=True)} & HEAVY
        assert not heavy or name == "exporter", f"graphprune.{name} imports {sorted(heavy)}"


def test_only_the_cli_prints() -> None:
    for name, path in modules().items():
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        prints = [c.lineno for c in calls if ast.unparse(c.func) in {"print", "sys.stdout.write"}]
        assert not prints or name.startswith("cli"), f"{path.name}:{prints} prints"
