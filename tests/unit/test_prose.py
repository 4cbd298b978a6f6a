"""Check that code and pages are in plain English, without words of a list.

CONTRIBUTING.md describes the style; docs/glossary.md lists the terms.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_LITERALS = (tokenize.STRING, tokenize.FSTRING_MIDDLE)
_SUMMARY = 80  # characters of a docstring's first line

# Each with what to write instead.
AVOIDED = {
    r"\b(told|tells?)\b": "say, show, report, know",
    r"\banew\b": "again",
    r"\b(whoever|whomever)\b": "name it: the caller, another process, the user",
    r"\bnobody\b(?!:)": "no process, no program, no one",
    r"\bof (ours|others)\b": "our, other programs'",
    r"\bin words\b": "as text",
    r"\bof late\b": "recently",
    r"\bin whatever way\b": "however",
    r"\bby hand before\b": "say when",
    r"\bmakes? it true\b": "creates what it describes",
    r"\ball is so already\b": "nothing differs",
}


def python_texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield comments and strings of Python code with their line numbers.

    Strings that only name something, such as a key of a JSON object, have no space and are left out.
    """
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT or (token.type in _LITERALS and " " in token.string):
            yield token.start[0], token.string


def c_texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield the comments of C code, each with its line number."""
    for found in re.finditer(r"//[^\n]*|/\*.*?\*/", source, re.DOTALL):
        yield source.count("\n", 0, found.start()) + 1, found.group()


def page_texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield the paragraphs of a Markdown page, without code, with line numbers."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", _blank, source, flags=re.DOTALL)
    for found in re.finditer(r"(?:[^\n]+\n?)+", prose):
        yield prose.count("\n", 0, found.start()) + 1, found.group()


def _blank(code: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", code.group())


def faults(texts: Iterator[tuple[int, str]]) -> Iterator[str]:
    """Yield "LINE: WORD (INSTEAD)" for each avoided word, also across lines."""
    for line, text in texts:
        for pattern, instead in AVOIDED.items():
            for found in re.finditer(pattern.replace(" ", r"\s+"), text, re.IGNORECASE):
                yield f"{line + text.count('\n', 0, found.start())}: {found.group()!r} ({instead})"


def long_summaries(source: str) -> Iterator[str]:
    """Yield "LINE: SUMMARY" for each docstring whose first line is too long to be one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            summary = (ast.get_docstring(node) or "").partition("\n")[0]
            if len(summary) > _SUMMARY:
                yield f"{getattr(node, 'lineno', 1)}: {summary}"


def _files(*patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in _ROOT.glob(pattern))


PYTHON = _files("core/**/*.py", "bpf/**/*.py", "tui/**/*.py")
_UNCHECKED = ("tests/ui/", "tests/unit/test_prose.py")  # still to be rewritten; has the words as examples
TESTS = [path for path in _files("tests/**/*.py") if not str(path.relative_to(_ROOT)).startswith(_UNCHECKED)]
C = _files("bpf/**/*.[ch]")
PAGES = _files("*.md", "docs/*.md")


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(_ROOT)))
def test_python(path: Path) -> None:
    source = path.read_text()
    assert [*faults(python_texts(source)), *long_summaries(source)] == []


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(_ROOT)))
def test_tests(path: Path) -> None:
    assert list(faults(python_texts(path.read_text()))) == []


@pytest.mark.parametrize("path", C, ids=lambda path: str(path.relative_to(_ROOT)))
def test_c(path: Path) -> None:
    assert list(faults(c_texts(path.read_text()))) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(_ROOT)))
def test_pages(path: Path) -> None:
    assert list(faults(page_texts(path.read_text()))) == []


def test_what_is_found() -> None:
    code = (
        '"""Read it, which\ntells all."""\nx = f"can\'t be told {1}"  # Whoever\ny = {"told": "in  words"}\n'
    )
    found = [fault.partition(" (")[0] for fault in faults(python_texts(code))]
    assert found == ["2: 'tells'", "3: 'told'", "3: 'Whoever'", "4: 'in  words'"]
    assert len(list(faults(c_texts("int told; /* tells */ // anew\n")))) == 2
    assert len(list(faults(page_texts("It is\nof ours.\n\n```\ntold\n```\n`told` by the kernel\n")))) == 1
    assert list(long_summaries(f'"""{"long " * 20}"""\n')) and not list(long_summaries('"""Short."""\n'))


def test_files_are_found() -> None:
    assert len(PYTHON) > 100 and len(TESTS) > 100 and len(C) > 10 and len(PAGES) > 10
