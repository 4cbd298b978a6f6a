"""The text of a tag in a link's alias: "vnet:" and words of the form key=value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import quote, unquote

PREFIX = "vnet:"
# Our nftables table, of family inet.
TABLE = "vnet"
# Our table in containers whose packets are left untracked, of family netdev.
UNTRACKED_TABLE = "vnet_untracked"
_PLAIN = "/:,[]*"

Words = Mapping[str, tuple[str, ...]]


def escape(text: str) -> str:
    """Text as one word without spaces, quotes, "=" or control characters."""
    return quote(text, safe=_PLAIN, errors="surrogateescape")


def unescape(word: str) -> str:
    """The text that `escape` took."""
    return unquote(word, errors="surrogateescape")


def tag(words: Iterable[tuple[str, str]]) -> str:
    """The alias that says so."""
    return PREFIX + " ".join(f"{key}={escape(value)}" for key, value in words)


def words_of(alias: str) -> Words | None:
    """What a tag says, a key's values in order; None for an alias that is no tag of ours."""
    if not alias.startswith(PREFIX):
        return None
    found: dict[str, tuple[str, ...]] = {}
    for word in alias.removeprefix(PREFIX).split():
        key, _, value = word.partition("=")
        found[key] = (*found.get(key, ()), unescape(value))
    return found
