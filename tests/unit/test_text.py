"""What `safe` lets through: letters of every script, and nothing that acts on a terminal or hides in it."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.text import safe

ACTING = ("Cc", "Cf", "Cs", "Zl", "Zp")
ANY_TEXT = st.text(st.characters())
ACTING_TEXT = st.text(st.characters(categories=ACTING), min_size=1)


@given(ANY_TEXT | ACTING_TEXT)
def test_nothing_acts(text: str) -> None:
    shown = safe(text)
    assert not [char for char in shown if unicodedata.category(char) in ACTING]
    assert safe(shown) == shown


@given(ANY_TEXT | ACTING_TEXT)
def test_always_encodable_and_one_line(text: str) -> None:
    assert safe(text).encode("utf-8")[:0] == b""
    assert len(safe(text).splitlines()) == (1 if text else 0)


@given(ACTING_TEXT)
def test_what_is_taken_out_stays_visible(text: str) -> None:
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
