"""Check that our Python processes don't import from the current directory."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("core", "bpf", "tui") for path in (ROOT / folder).rglob("*.py"))
SAFE = ("-P", "-I")
# Functions that use the interpreter's path without running it with arguments.
NOT_STARTED = {
    ("core/lab/containers.py", "_exec_container"): "the program of execve(2); its arguments have -I",
    ("tui/cli/agent.py", "render"): "what the unit must be able to read",
    ("tui/cli/agent.py", "_program"): "where the installed program lies",
}


def uses(text: str) -> Iterator[tuple[str, bool]]:
    """Yield each use of sys.executable: function, and whether -P or -I follows."""
    tree = ast.parse(text)
    safe = {
        id(one)
        for listed in ast.walk(tree)
        if isinstance(listed, ast.List | ast.Tuple)
        for one, after in pairwise(listed.elts)
        if isinstance(after, ast.Constant) and after.value in SAFE
    }
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for one in ast.walk(function):
                if isinstance(one, ast.Attribute) and ast.unparse(one) == "sys.executable":
                    yield function.name, id(one) in safe


def test_our_own_python_runs_without_the_current_directory() -> None:
    unsafe = set()
    for path in SOURCES:
        text, name = path.read_text(), str(path.relative_to(ROOT))
        if "executable" in text:
            unsafe |= {(name, function) for function, safe in uses(text) if not safe}
            assert text.count("sys.executable") == len(list(uses(text))), f"{name}: not in a function"
        assert "runpy" not in text
    assert unsafe == NOT_STARTED.keys()


def test_a_use_without_it_is_found() -> None:
    source = (
        'def start():\n    run([sys.executable, "-m", "x"])\n    run([sys.executable, "-P", "-m", "x"])\n'
    )
    assert list(uses(source)) == [("start", False), ("start", True)]
