"""Check rules of the source tree that linters can't: import cycles, file sizes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("core", "bpf", "tui")
_MOST_LINES = 500


def _module_name(path: Path) -> str:
    return ".".join(path.relative_to(_ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_module_name(path): path for package in _PACKAGES for path in (_ROOT / package).rglob("*.py")}


def imported_modules(source: str, modules: dict[str, Path]) -> set[str]:
    """Return the modules that a source imports anywhere.

    Also in functions and for the type checker.
    """
    return {name for node in ast.walk(ast.parse(source)) for name in _names(node, modules)}


def _names(node: ast.AST, modules: dict[str, Path]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in modules)
    elif isinstance(node, ast.ImportFrom) and node.module:
        for alias in node.names:
            module = f"{node.module}.{alias.name}"
            if module in modules:
                yield module
            elif node.module in modules:
                yield node.module


def find_cycle(imports: dict[str, set[str]]) -> list[str]:
    """Return the modules of one import cycle, the first again at the end.

    Empty if there is none.
    """
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_import_cycle() -> None:
    imports = {name: imported_modules(path.read_text(), MODULES) for name, path in MODULES.items()}
    assert sum(map(len, imports.values())) > len(MODULES), "the imports were not found"
    assert find_cycle(imports) == []


@pytest.mark.parametrize(
    "back",
    [
        "from core.a import thing",
        "import core.a",
        "from core import a",
        "if TYPE_CHECKING:\n    from core.a import thing",
        "def later():\n    from core.a import thing",
    ],
)
def test_a_cycle_is_found(back: str) -> None:
    modules = {"core": _ROOT, "core.a": _ROOT, "core.b": _ROOT}
    imports = {
        "core.a": imported_modules("from core import b", modules),
        "core.b": imported_modules(back, modules),
    }
    assert set(find_cycle(imports)) == {"core.a", "core.b"}


def test_no_file_is_huge() -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name: count for name, count in lines.items() if count > _MOST_LINES} == {}
