"""The filter language."""

from __future__ import annotations

import pytest

from core.model import Ref
from tui.views.lists import ListRows
from tui.views.query import Term, parse, remarks, term
from tui.views.rows import Cell, Column, Row

COLUMNS = (
    Column("name", "name", 10),
    Column("state", "state", 6),
    Column("mac", "mac", 17),
    Column("mtu", "mtu", 9),
)


def row(name: str, state: str, mac: str = "", **terms: str) -> Row:
    mtu = Cell("1500≠1400" if name == "db" else "1500")
    return Row(Ref("link", (name,)), (Cell(name), Cell(state), Cell(mac), mtu), terms)


ROWS = ListRows(
    [
        row("web1", "up", "02:42:ac:11:00:02", port="80 8080", ns="front end", addr="fe80::1"),
        row("Web2", "down", "02:42:ac:11:00:03", port="8080", ns="front"),
        row("db", "up", port="5432", ns="back", addr="172.18.0.2/16 10.1.2.3/24"),
    ],
    COLUMNS,
)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ["web1", "Web2", "db"]),
        ("web", ["web1", "Web2"]),
        ("WEB2", ["Web2"]),
        ("web up", ["web1"]),
        ("!web", ["db"]),
        ("state:up", ["web1", "db"]),
        ("!state:up", ["Web2"]),
        ("port:80", ["web1"]),
        ("!port:80", ["Web2", "db"]),
        ('ns:"front end"', ["web1"]),
        ('"front end"', ["web1"]),
        ("name:web !ns:end", ["Web2"]),
        ("fe80::1", ["web1"]),
        ("ac:11:00:03", ["Web2"]),
        ("nothing:there", []),
        ("!nothing:there", ["web1", "Web2", "db"]),
        ("state:", ["web1", "Web2", "db"]),
        ("!", ["web1", "Web2", "db"]),
        ('ns:"fro', ["web1", "Web2"]),
        ("name:=web1", ["web1"]),
        ("ns:=front", ["web1", "Web2"]),
        ('ns:="front end"', ["web1"]),
        ("port:8000-9000", ["web1", "Web2"]),
        ("port:90-80", []),
        ("addr:fe80::/10", ["web1"]),
        ("addr:10.0.0.0/8", ["db"]),
        ("mtu:differs", ["db"]),
    ],
)
def test_rows_that_match_a_filter(text: str, names: list[str]) -> None:
    assert [row.cells[0].text for row in ROWS.matching(text)] == names


@pytest.mark.parametrize("name", ["web", "two words", "it's: 8080 -> [::1]:80"])
def test_a_term_for_a_name_matches_only_this_name(name: str) -> None:
    rows = ListRows([row(name, "up"), row(f"{name}2", "up")], COLUMNS)
    assert [each.cells[0].text for each in rows.matching(term("name", name))] == [name]


def test_invalid_terms_are_reported() -> None:
    known = ROWS.keys()
    assert {"name", "state", "mac", "mtu", "port", "ns", "addr"} == known
    assert list(remarks("web name:x fe80::1 02:42 ac:11:00:03 port:80-90 addr:10.0.0.0/8", known)) == []
    assert len(list(remarks("foo:bar !bar:foo port:x addr:10.0.0.0/99", known))) == 4


def test_parsing_of_terms() -> None:
    assert parse('ns:Web !state:up "a b" !"c d"') == (
        Term("ns", "web"), Term("state", "up", True), Term("", "a b"), Term("", "c d", True),
    )  # fmt: skip


@pytest.mark.parametrize("text", ['"', "!!", ":", '::"', 'a"b', "\x1b[31m", "key:" * 500, "[red]"])
def test_any_text_is_accepted(text: str) -> None:
    assert len(ROWS.matching(text)) <= len(ROWS)
