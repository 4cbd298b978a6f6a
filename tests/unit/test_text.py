"""`safe` keeps letters of every script and escapes unsafe characters."""

from __future__ import annotations

import os
import subprocess
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.operations import CreateNamespace, NetnsTarget, SetLink, SetSteering, SetSysctl
from core.text import join_short, joined, quoted, safe, split_commands

UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
ANY_TEXT = st.text(st.characters())
UNSAFE_TEXT = st.text(st.characters(categories=UNSAFE), min_size=1)


@given(ANY_TEXT | UNSAFE_TEXT)
def test_no_control_characters_remain(text: str) -> None:
    shown = safe(text)
    assert not [char for char in shown if unicodedata.category(char) in UNSAFE]
    assert safe(shown) == shown


@given(ANY_TEXT | UNSAFE_TEXT)
def test_always_encodable_and_one_line(text: str) -> None:
    assert safe(text).encode("utf-8")[:0] == b""
    assert len(safe(text).splitlines()) == (1 if text else 0)


@given(UNSAFE_TEXT)
def test_escaped_characters_stay_visible(text: str) -> None:
    assert len(safe(text)) >= 2 * len(text)


@given(st.binary())
def test_undecodable_bytes_are_shown_as_bytes(raw: bytes) -> None:
    shown = safe(raw.decode("ascii", "surrogateescape"))
    assert shown.count("\\x") >= sum(byte > 0x7F for byte in raw)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("veth0 [b]x[/b] 100% \\n", "veth0 [b]x[/b] 100% \\n"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("\x9b31m\x7f", "\\x9b31m\\x7f"),
        ("\u202ereversed\u2066", "\\u202ereversed\\u2066"),
        ("zero\u200bwidth\ufeff\u2028", "zero\\u200bwidth\\ufeff\\u2028"),
        ("\U000e0041tag", "\\U000e0041tag"),
        ("byte\udcff lone\ud800", "byte\\xff lone\\ud800"),
        ("Zürich שלום 東京 🐳", "Zürich שלום 東京 🐳"),
    ],
)
def test_examples(text: str, shown: str) -> None:
    assert safe(text) == shown


def bytes_of(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def printed_by_bash(command: str) -> bytes:
    script = 'ip() { printf "%s\\0" "$@"; }\n' + command
    return subprocess.run(["bash", "-c", bytes_of(script)], capture_output=True, check=True).stdout


WORDS = [
    "a b", "x\x1b[31my", "new\nline", "q'uo\\te\x07", os.fsdecode(b"caf\xe9\x1bff"), "\u202eevil'", "плюс",
    "$(id) `id`", "", "-n", "\x1baa", "tab\there", "!x\r",
]  # fmt: skip


def test_quoted_words_are_equal_in_bash_and_safe_on_a_terminal() -> None:
    command = joined(["ip", *WORDS])
    assert command == safe(command)
    assert printed_by_bash(command) == b"".join(bytes_of(word) + b"\0" for word in WORDS)


@given(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=40))
@settings(max_examples=30, deadline=None)
def test_any_word_is_quoted_for_a_shell(word: str) -> None:
    assert quoted(word) == safe(quoted(word))
    assert printed_by_bash(f"ip {quoted(word)}") == bytes_of(word) + b"\0"


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\nb", os.fsdecode(b"caf\xe9")])
def test_commands_with_odd_names_are_complete(name: str) -> None:
    place = NetnsTarget(name=name)
    link = SetLink(name, "mtu", "1400", "1500", place)
    more = (SetSteering(name, 0, "f", "0"), SetSteering(name, 0, "f", "0", place))
    for step in (CreateNamespace(name), link, SetSysctl(f"net.{name}", "1", "0", place), *more):
        command = step.command()
        assert command == safe(command), command
        subprocess.run(["bash", "-n", "-c", bytes_of(command)], check=True)
    assert bytes_of(name) + b"\0" in printed_by_bash(link.command())


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("all is well", ("all is well", ())),
        ("to allow it, run: a b", ("to allow it, run:", ("a b",))),
        ("rules: x; to allow it, run (again whenever Docker starts): a; b", (
            "rules: x; to allow it, run (again whenever Docker starts):", ("a", "b"))),
        ("it ran: x", ("it ran: x", ())),
    ],
)  # fmt: skip
def test_commands_at_the_end_of_a_sentence(text: str, parts: tuple[str, tuple[str, ...]]) -> None:
    assert split_commands(text) == parts


def test_long_lists_are_shortened() -> None:
    assert join_short([]) == "" and join_short(["a", "b", "c"]) == "a, b, c"
    assert join_short("abcde") == "a, b, c and 2 more" and join_short("abcde", 4) == "a, b, c, d and 1 more"
