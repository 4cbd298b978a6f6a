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
_UNCHECKED = ("tests/unit/test_prose.py",)  # has the words as examples
TESTS = [path for path in _files("tests/**/*.py") if not str(path.relative_to(_ROOT)).startswith(_UNCHECKED)]
C = _files("bpf/**/*.[ch]")
PAGES = _files("*.md", "docs/*.md")


# Errors: "can't VERB OBJECT: REASON. Try: COMMAND".

# Classes and functions whose text reaches users as it is; of problems and failed tools that is `what`.
WHOLE = {
    "Busy", "CaptureError", "CommandError", "FunctionsUnavailable", "GuardError", "MetricsError", "OutOfTime",
    "ProbeError", "Problem", "ReaderGone", "StateError", "Stopped", "ToolFailed", "ToolMissing",
    "UnknownEndpoint", "UnknownNamespace", "_NotRunning", "failure", "refusal",
}  # fmt: skip
# Classes whose text is only a reason, and where "can't VERB OBJECT: " is written before it.
FRAMED = {
    "_NoAnswer": "core/apply/run.py _sentence",
    "_NotSetUp": "core/apply/run.py _sentence",
    "AlreadyRunning": "bpf/supervisor.py _print_error",
    "BadFile": "tui/cli/files.py _read",
    "BtfError": "tui/cli/fastpath_session.py _start",
    "BuildError": "core/lab/lab.py LabError",
    "CannotPlan": "core/plan/__init__.py plan_all",
    "CompileError": "tui/cli/fastpath_session.py _start",
    "CorruptFile": "tui/command.py load_with_fast_flows",
    "DropsUnavailable": "core/watch/drops.py poll",
    "EngineError": "core/apply/run.py _sentence",
    "EtcdError": "core/apply/run.py _sentence",
    "Exhausted": "core/plan/__init__.py plan_all",
    "FaultError": "core/lab/lab.py change_faults",
    "LabError": "core/lab/lab.py LabError",
    "LimitExceeded": "core/collect/namespaces.py problems",
    "LostAnswer": "core/apply/run.py _sentence",
    "NamespaceGone": "core/apply/run.py _sentence",
    "NotNative": "bpf/storm_guard.py main",
    "NotRunning": "tui/cli/fastpath_session.py ask",
    "NftError": "core/apply/run.py _sentence",
    "RefusedByEngine": "core/collect/engines.py _malformed",
    "Rejected": "bpf/handlers.py _reload",
    "TooLarge": "tui/command.py load_with_fast_flows",
    "UnpackError": "tui/command.py load_with_fast_flows",
    "UnknownFault": "tui/cli/dashboard.py _settings",
    "Unreachable": "core/collect/engine_http.py _stopped",
    "WriteError": "core/files.py WriteError",
    "WrongValue": "tui/command.py load_with_fast_flows",
    "_Unanswered": "core/apply/run.py _sentence",
    "_Malformed": "core/collect/conntrack.py _ignored_problem",
}
_STYLE = re.compile(r"(cannot|can not|unable to|failed to|could not|couldn't)\b", re.IGNORECASE)
_EMPTY_REMEDY = re.compile(r"\bTry:(?!\s+\S)")
_BUILTIN = re.compile(r"\w*(Error|Exception)")
_REASONS = ("require", "when")  # functions that get reasons for CannotPlan
_PLACES = {"Problem": 1, "when": 1, "WriteError": 1, "failure": 2}  # of the text among the arguments, else 0

type Values = dict[str, list[ast.expr]]


def _values(tree: ast.Module | ast.FunctionDef) -> Values:
    """Return the values of names assigned in a function or file, and of functions ("name()")."""
    found: Values = {}
    nodes = ast.walk(tree) if isinstance(tree, ast.FunctionDef) else iter(tree.body)
    for node in nodes:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                for name, value in _assigned(target, node.value):
                    found.setdefault(name, []).append(value)
        elif isinstance(node, ast.FunctionDef):
            returned = [each.value for each in ast.walk(node) if isinstance(each, ast.Return) and each.value]
            found.setdefault(f"{node.name}()", []).extend(returned)
    return found


def _assigned(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(target, ast.Name):
        yield target.id, value
    elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        pairs = zip(target.elts, value.elts, strict=True)
        yield from ((one.id, each) for one, each in pairs if isinstance(one, ast.Name))


def _texts(node: ast.expr, values: Values, depth: int = 4) -> Iterator[str]:
    """Yield the texts that an expression may have, with {} for what isn't known."""
    parts: list[ast.expr] = []
    match node:
        case ast.Constant(str(text)):
            yield text
        case ast.JoinedStr():
            yield _flat(node)
        case ast.List() | ast.Tuple():
            parts = node.elts
        case ast.IfExp():
            parts = [node.body, node.orelse]
        case ast.BinOp():
            parts = [node.left]
        case ast.Name(name):
            parts = values.get(name, [])
        case ast.Call(ast.Name(name)):
            parts = values.get(f"{name}()", [])
    for part in parts if depth else ():
        yield from _texts(part, values, depth - 1)


def _flat(node: ast.JoinedStr) -> str:
    return "".join(str(one.value) if isinstance(one, ast.Constant) else "{}" for one in node.values)


def message_faults(source: str) -> Iterator[str]:
    """Yield "LINE: TEXT (WHY)" for each error message that isn't in the form of errors."""
    tree = ast.parse(source)
    outer = _values(tree)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    seen: set[int] = set()
    # From the inside: a name is what the nearest function assigns to it.
    for scope in (*reversed(functions), tree):
        for node in ast.walk(scope):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and id(node) not in seen:
                seen.add(id(node))
                yield from _call_faults(node, node.func.id, outer | _values(scope))
    yield from _remedy_faults(tree)


def _call_faults(call: ast.Call, name: str, values: Values) -> Iterator[str]:
    is_message = name in WHOLE or name in FRAMED or name in _REASONS or _BUILTIN.fullmatch(name)
    place = _PLACES.get(name, 0)
    if name not in WHOLE | FRAMED.keys() | set(_REASONS) and len(call.args) > 1:
        place = 1  # OSError(errno, text)
    arguments = call.args if name == "require" else call.args[place : place + 1]
    # What `when` gets is checked as such.
    given = [one for one in arguments if is_message and not (name == "require" and isinstance(one, ast.Call))]
    for text in (text for one in given for text in _texts(one, values)):
        if _STYLE.match(text):
            yield f"{call.lineno}: {text!r} (write can't, or only the reason)"
        elif name in WHOLE and not text.startswith("can't "):
            yield f"{call.lineno}: {text!r} (begin with can't VERB OBJECT)"
        elif name in {*FRAMED, *_REASONS} and text.startswith("can't "):
            yield f"{call.lineno}: {text!r} (write only the reason)"


def _remedy_faults(tree: ast.AST) -> Iterator[str]:
    inside = {id(one) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for one in node.values}
    for node in ast.walk(tree):
        if id(node) in inside or not isinstance(node, ast.Constant | ast.JoinedStr):
            continue
        for text in _texts(node, {}):
            if _EMPTY_REMEDY.search(text):
                yield f"{node.lineno}: {text!r} (Try: needs a remedy)"


def unknown_errors(source: str) -> Iterator[str]:
    """Yield the exception classes of a file that are in neither of the two tables."""
    known = {*WHOLE, *FRAMED}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and node.name not in known:
            bases = {one.id for one in node.bases if isinstance(one, ast.Name)}
            if bases & known or any(map(_BUILTIN.fullmatch, bases)):
                yield f"{node.lineno}: {node.name}"


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


def test_avoided_words_are_found() -> None:
    code = (
        '"""Read it, which\ntells all."""\nx = f"can\'t be told {1}"  # Whoever\ny = {"told": "in  words"}\n'
    )
    found = [fault.partition(" (")[0] for fault in faults(python_texts(code))]
    assert found == ["2: 'tells'", "3: 'told'", "3: 'Whoever'", "4: 'in  words'"]
    assert len(list(faults(c_texts("int told; /* tells */ // anew\n")))) == 2
    assert len(list(faults(page_texts("It is\nof ours.\n\n```\ntold\n```\n`told` by the kernel\n")))) == 1
    assert list(long_summaries(f'"""{"long " * 20}"""\n')) and not list(long_summaries('"""Short."""\n'))


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(_ROOT)))
def test_error_messages(path: Path) -> None:
    source = path.read_text()
    assert [*message_faults(source), *unknown_errors(source)] == []


@pytest.mark.parametrize("name", FRAMED)
def test_reasons_are_framed(name: str) -> None:
    file, function = FRAMED[name].split()
    (found,) = [
        node
        for node in ast.walk(ast.parse((_ROOT / file).read_text()))
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == function
    ]
    assert "can't " in ast.unparse(found), "it writes what can't be done"


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ('raise StateError("the disk is full")', "begin with"),
        ('raise StateError(f"{path}: the disk is full")', "begin with"),
        ('def f():\n    why = "no rights"\n    raise Busy(why if a else "can\'t wait")', "begin with"),
        ('def reason(): return f"nothing {x}"\nraise StateError(reason(x))', "begin with"),
        ('raise StateError("cannot read it")', "write can't"),
        ('raise ValueError("Unable to read it")', "write can't"),
        ('raise OSError(5, f"failed to read {it}")', "write can't"),
        ('what, why = "links weren\'t read", "no rights"\nProblem("links", what, why)', "begin with"),
        ('raise CannotPlan(["can\'t attach it: it is gone"])', "only the reason"),
        ('require(when(x, f"can\'t attach {x}"))', "only the reason"),
        ('raise ValueError("it is wrong. Try:")', "needs a remedy"),
        ('text = f"it is {wrong}. Try:{remedy}"', "needs a remedy"),
    ],
)
def test_messages_that_are_found(code: str, why: str) -> None:
    (fault,) = message_faults(code)
    assert why in fault


def test_messages_that_pass() -> None:
    code = """
def read(path):
    what, why = f"can't read {path}", "no rights"
    Problem("links", what, why, "run it as root")
    require(when(not why, f"{path} is gone"), "it is busy. Try: again")
    raise StateError(f"can't read {path}: {why}. Try: sudo") from OSError(5, why)
"""
    assert list(message_faults(code)) == []
    assert list(
        unknown_errors("class Odd(Exception): ...\nclass Plain: ...\nclass Gone(StateError): ...\n")
    ) == [
        "1: Odd",
        "3: Gone",
    ]


def test_files_are_found() -> None:
    assert len(PYTHON) > 100 and len(TESTS) > 100 and len(C) > 10 and len(PAGES) > 10
