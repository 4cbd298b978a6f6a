"""Make untrusted text (names, labels, comments) safe to print; check addresses."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_address, ip_interface, ip_network
from urllib.parse import quote, unquote

# Characters that act on a terminal or are invisible: controls (C0, DEL, C1), line and paragraph separators,
# lone surrogates, every format character (Unicode category Cf: bidi overrides and isolates, zero-width ones,
# tags) and the other default-ignorable code points (fillers, variation selectors).
_UNSAFE = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f\xad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5"
    "\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0"
    "\ufff0-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff"
    "]"
)
# Names of links that firewall rules can have without quotes or escapes.
PLAIN_LINK = re.compile(r"[A-Za-z0-9_.:@-]{1,15}")
# A sentence that ends with commands to run.
_WITH_COMMANDS = re.compile(r"(.*\brun(?: \([^)]*\))?:) (.+)", re.DOTALL)
_SPECIAL = re.compile(rf"{_UNSAFE.pattern}|[\\']")  # in bash's $'...'
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _escaped(match: re.Match[str]) -> str:
    """Escape a character as a Python literal does, a surrogate (PEP 383) as its byte."""
    char = match.group()
    if char in _SHORT:
        return _SHORT[char]
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code > 0xFFFF:
        return f"\\U{code:08x}"
    return f"\\u{code:04x}" if code > 0xFF else f"\\x{code:02x}"


def safe(text: str) -> str:
    r"""Escape characters that are invisible or act on a terminal (`\n`, `\x1b`).

    Ordinary letters of every script stay as they are. The result can always be encoded as UTF-8 and fits on
    one line. Cheap for plain ASCII: it may be called for every cell.
    """
    if text.isascii() and text.isprintable():
        return text
    return _UNSAFE.sub(_escaped, text)


def failure_sentence(what: str, why: str, remedy: str) -> str:
    """Return "WHAT: WHY. Try: REMEDY" without the empty parts.

    `what` is "can't VERB OBJECT".
    """
    reason = f"{what}: {why}" if why else what
    return f"{reason}. Try: {remedy}" if remedy else reason


def quoted(word: str) -> str:
    r"""Quote text as one word for a shell, on one line and safe to print.

    bash, zsh and ksh understand `$'\x1b'`."""
    if not _UNSAFE.search(word):
        return shlex.quote(word)
    return f"$'{_SPECIAL.sub(_shell_escaped, word)}'"


def split_commands(text: str) -> tuple[str, tuple[str, ...]]:
    """Split the commands off a sentence that ends with them ("..., run: A; B")."""
    found = _WITH_COMMANDS.fullmatch(text)
    return (found[1], tuple(found[2].split("; "))) if found else (text, ())


def joined(words: Iterable[str]) -> str:
    """Quote and join words as a command for a shell."""
    return " ".join(map(quoted, words))


def join_short(words: Sequence[str], most: int = 3) -> str:
    """Join words for a sentence; of many only the first ones: "a, b, c and 5 more"."""
    text = ", ".join(words[:most])
    return text if len(words) <= most else f"{text} and {len(words) - most} more"


def _shell_escaped(match: re.Match[str]) -> str:
    char = match.group()
    if char in "\\'":
        return f"\\{char}"
    try:
        octets = char.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that isn't an escaped byte
        octets = char.encode("utf-8", "surrogatepass")
    return "".join(f"\\x{octet:02x}" for octet in octets)


def end_text(address: str, port: int | str | None) -> str:
    """Format an address with its port, if any: "10.0.0.1:80", "[fd00::1]:80".

    None and "" are no port."""
    if port is None or port == "":
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def bounds(text: str) -> tuple[int, int]:
    """Return the first and last number of "80" or "80-82".

    Raises ValueError for other text."""
    first, _, last = text.partition("-")
    return int(first), int(last or first)


def range_text(first: int, last: int) -> str:
    """Format a range of numbers: "80-82", or "80" if it has only one."""
    return str(first) if first == last else f"{first}-{last}"


def is_address(text: str) -> bool:
    """Return whether the text is an IPv4 or IPv6 address."""
    return _parses(ip_address, text)


def is_interface(text: str) -> bool:
    """Return whether the text is an address, with or without a prefix length."""
    return _parses(ip_interface, text)


def is_prefix(text: str) -> bool:
    """Return whether the text is a prefix; host bits may be set."""
    return _parses(lambda prefix: ip_network(prefix, strict=False), text)


def _parses(parse: Callable[[str], object], text: str) -> bool:
    try:
        parse(text)
    except ValueError:
        return False
    return True


PREFIX = "vnet:"
# vnet's nftables table, of family inet.
TABLE = "vnet"
# vnet's table in containers whose packets aren't tracked, of family netdev.
UNTRACKED_TABLE = "vnet_untracked"
# The beginning of the names of tables that trace a probe, of families inet and bridge.
TRACE_TABLE = "vnet-trace-"
_UNESCAPED = "/:,[]*"

TagValues = Mapping[str, tuple[str, ...]]


def escape(text: str) -> str:
    """Escape text to one word without spaces, quotes, "=" or control characters."""
    return quote(text, safe=_UNESCAPED, errors="surrogateescape")


def unescape(word: str) -> str:
    """Return the text that `escape` was given."""
    return unquote(word, errors="surrogateescape")


def format_tag(words: Iterable[tuple[str, str]]) -> str:
    """Format a tag of keys and values as an alias."""
    return PREFIX + " ".join(f"{key}={escape(value)}" for key, value in words)


def parse_tag(alias: str) -> TagValues | None:
    """Parse a tag: each key's values in order; None if the alias isn't a tag of vnet."""
    if not alias.startswith(PREFIX):
        return None
    found: dict[str, tuple[str, ...]] = {}
    for word in alias.removeprefix(PREFIX).split():
        key, _, value = word.partition("=")
        found[key] = (*found.get(key, ()), unescape(value))
    return found
