"""Commands at the end of warnings and findings are on separate lines."""

from __future__ import annotations

from core.diagnose import Finding
from core.model import namespace_ref
from tui.screens.dialogs import NOT_BEGUN, change_lines, lines_of

ADVICE = "to allow it, run: iptables -I FORWARD 1; iptables -I FORWARD 2"


def texts(lines: list[list[tuple[str, str]]]) -> list[str]:
    return ["".join(text for text, _ in line) for line in lines]


def test_commands_in_a_preview() -> None:
    shown = texts(change_lines("make x", (), (), (f"ufw's rules drop it; {ADVICE}",), NOT_BEGUN, 60))
    assert shown[-4:-2] == ["$ iptables -I FORWARD 1", "$ iptables -I FORWARD 2"]


def test_commands_among_the_findings() -> None:
    finding = Finding("forward", namespace_ref(1), "no default route", "It drops.", "bad", (), ADVICE)
    shown = texts([line for line, _ in lines_of([finding], [], "", 80)])
    assert (
        shown[0].startswith("bad  It drops.")
        and shown[1].startswith("     Try: to allow it")
        and "; iptables" not in " ".join(shown)
    )
    assert "     iptables -I FORWARD 1" in shown and "     iptables -I FORWARD 2" in shown
