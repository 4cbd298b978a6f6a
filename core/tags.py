"""Format and parse tags: a link's alias of "vnet:" and key=value words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import quote, unquote

PREFIX = "vnet:"
# vnet's nftables table, of family inet.
TABLE = "vnet"
# vnet's table in containers whose packets aren't tracked, of family netdev.
UNTRACKED_TABLE = "vnet_untracked"
_UNESCAPED = "/:,[]*"

Words = Mapping[str, tuple[str, ...]]


def escape(text: str) -> str:
    """Escape text to one word without spaces, quotes, "=" or control characters."""
    return quote(text, safe=_UNESCAPED, errors="surrogateescape")


def unescape(word: str) -> str:
    """Return the text that `escape` was given."""
    return unquote(word, errors="surrogateescape")


def tag(words: Iterable[tuple[str, str]]) -> str:
    """Format a tag of keys and values as an alias."""
    return PREFIX + " ".join(f"{key}={escape(value)}" for key, value in words)


def words_of(alias: str) -> Words | None:
    """Parse a tag: each key's values in order; None if the alias isn't a tag of vnet."""
    if not alias.startswith(PREFIX):
        return None
    found: dict[str, tuple[str, ...]] = {}
    for word in alias.removeprefix(PREFIX).split():
        key, _, value = word.partition("=")
        found[key] = (*found.get(key, ()), unescape(value))
    return found
