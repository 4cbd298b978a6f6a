"""The filter language of `/`: words that must all hold, `key:value` terms, `!` to invert."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tui.present.rows import Column, Row

# Terms that must match a whole word: port 80 is not port 8080.
EXACT_KEYS = frozenset({"port"})

HELP = (
    ("word", "any cell holds the word"),
    ("key:value", "that column or term holds the value, such as ns:web or state:up"),
    ("port:80", "exactly this port"),
    ("!word", "the opposite; also !key:value"),
    ('"two words"', "a value with spaces"),
    ("a b", "both must hold"),
)

_WORD = re.compile(r'(!?)(?:([A-Za-z][\w-]*):)?((?:"[^"]*(?:"|$)|[^\s"])*)')


@dataclass(frozen=True, slots=True)
class Term:
    """One condition: `key` in lower case ("" for a free word), `value` casefolded, `inverted` by a "!"."""

    key: str
    value: str
    inverted: bool = False

    @property
    def text(self) -> str:
        """The term as a free word: what `key:value` means where no such key exists (an address, a MAC)."""
        return f"{self.key}:{self.value}" if self.key else self.value


@lru_cache(maxsize=64)
def parse(text: str) -> tuple[Term, ...]:
    """The terms of a filter line. Never fails: a term that is still being typed counts as absent."""
    terms = []
    for inverted, key, value in _WORD.findall(text):
        value = value.replace('"', "").casefold()
        if value:
            terms.append(Term(key.lower(), value, bool(inverted)))
    return tuple(terms)


def matches(terms: Iterable[Term], row: Row, columns: Sequence[Column]) -> bool:
    """Whether every term lets the row through."""
    return all(_holds(term, row, columns) is not term.inverted for term in terms)


def _holds(term: Term, row: Row, columns: Sequence[Column]) -> bool:
    if term.key:
        texts = _values(term.key, row, columns)
        if texts and term.key in EXACT_KEYS:
            return any(term.value in text.casefold().split() for text in texts)
        if texts:
            return any(term.value in text.casefold() for text in texts)
    if any(term.text in cell.text.casefold() for cell in row.cells):
        return True
    return any(term.text in text.casefold() for text in row.terms.values())


def _values(key: str, row: Row, columns: Sequence[Column]) -> list[str]:
    """What the row says under that key: its term, its column, or both."""
    texts = [cell.text for column, cell in zip(columns, row.cells, strict=False) if column.name == key]
    return [*texts, row.terms[key]] if key in row.terms else texts
