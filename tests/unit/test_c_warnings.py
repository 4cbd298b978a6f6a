"""The lint step for C: a warning fails it, and messages name file and line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bpf import build, layout
from bpf.build import reason_of
from tests.support import c_warnings

MUTATED = {
    "an unused variable": ("routes.c", "\tbool isolated = false;\n", "\tbool isolated = false, unused;\n"),
    "a comparison of signs": ("learning.c", "\tif (!learned)\n", "\tif (!learned || (int)now < zero)\n"),
    "an assignment as a condition": ("fastpath.c", "\tif (RARE(!now))\n", "\tif (now = NULL)\n"),
}


def mutated(part: str, old: str, new: str) -> tuple[str, str]:
    """Return the program with the first `old` of a part replaced, and its place."""
    path = build.HERE / "program" / part
    text = path.read_text()
    before, found, after = text.partition(old)
    assert found
    return build.source_text().replace(text, before + new + after), f"{path}:{before.count(chr(10)) + 1}:"


@pytest.mark.needs("clang", "bcc")
def test_the_program_has_no_warnings() -> None:
    assert c_warnings.warnings(build.source_text()) == ""
    assert c_warnings.warnings(build.part_text("drops.c"), build.drops_flags) == ""
    assert c_warnings.warnings(build.part_text("functions.c"), build.functions_flags) == ""


@pytest.mark.needs("clang", "bcc")
@pytest.mark.parametrize("mutation", MUTATED.values(), ids=MUTATED)
def test_a_warning_fails_the_step_and_names_the_line(
    mutation: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, place = mutated(*mutation)
    monkeypatch.setattr(c_warnings, "source_text", lambda: text)
    assert c_warnings.main() == 1
    assert place in capsys.readouterr().out


@pytest.mark.needs("clang", "bcc")
def test_a_structure_that_differs_from_its_dtype_is_found() -> None:
    check = next(line for line in layout.checks().splitlines() if "sizeof(struct young)" in line)
    text = build.source_text().replace(check, check.replace("== 8", "== 12"))
    assert "layout.checks()" in c_warnings.warnings(text)


@pytest.mark.parametrize(("required", "ends_with"), [("", 0), ("1", 1)])
def test_without_clang_it_is_skipped_unless_required(
    required: str, ends_with: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("VNET_REQUIRE_ROOT", required)
    assert c_warnings.main() == ends_with
    assert "Try: apt install clang" in capsys.readouterr().out


@pytest.mark.root
@pytest.mark.needs("fastpath")
def test_an_error_of_the_real_compile_names_the_line() -> None:
    text, place = mutated("maps.c", "\treturn key;\n", "\treturn absent;\n")
    words = [
        sys.executable,
        "-c",
        "import sys; from bpf import build; build.compile_fastpath(sys.stdin.read())",
    ]
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    assert done.returncode and reason_of(done.stderr).startswith(place)


def test_the_reason_of_a_failure_is_its_first_error() -> None:
    stderr = (
        "a.c:1:2: warning: w\na.c:3:4: error: e\n  3 | x\n1 error generated.\nException: Failed to compile\n"
    )
    assert reason_of(stderr) == "a.c:3:4: error: e"
    assert reason_of("Traceback\n\nOSError: why\n") == "OSError: why"
    assert reason_of("ModuleNotFoundError: No module named 'bcc'\n").startswith("BCC isn't installed")
    assert reason_of("Traceback\n\nbpf.btf.BtfError: no BTF\n") == "no BTF"
    assert reason_of("") == ""
