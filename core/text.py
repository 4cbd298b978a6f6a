"""Text from outside (names, labels, comments) made fit to print."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable
from ipaddress import ip_address, ip_interface, ip_network

# Whatever a terminal would act on or not show at all: controls (C0, DEL, C1), line and paragraph separators,
# lone surrogates, every format character (Unicode category Cf: bidi overrides and isolates, zero-width ones,
# tags) and the other default-ignorable code points (fillers, variation selectors).
_UNFIT = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f\xad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5"
    "\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0"
    "\ufff0-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff"
    "]"
)
# A sentence that ends with commands to run.
_WITH_COMMANDS = re.compile(r"(.*\brun(?: \([^)]*\))?:) (.+)", re.DOTALL)
_SPECIAL = re.compile(rf"{_UNFIT.pattern}|[\\']")  # in bash's $'...'
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _escaped(match: re.Match[str]) -> str:
    """One unfit character as a Python literal has it; an undecodable byte (PEP 383) as that byte."""
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
    r"""The text with all that could act on a terminal, or hide there, written out (`\n`, `\x1b`, `\u202e`).

    Ordinary letters of every script stay as they are. What comes back can always be encoded as UTF-8 and fits
    on one line. Cheap for plain ASCII: it may be called for every cell.
    """
    if text.isascii() and text.isprintable():
        return text
    return _UNFIT.sub(_escaped, text)


def quoted(word: str) -> str:
    r"""The text as one word for a shell, in one line and with nothing that acts on a terminal: bash, zsh and
    ksh understand `$'\x1b'`."""
    if not _UNFIT.search(word):
        return shlex.quote(word)
    return f"$'{_SPECIAL.sub(_shell_escaped, word)}'"


def split_commands(text: str) -> tuple[str, tuple[str, ...]]:
    """A sentence up to the commands that it ends with ("..., run: A; B"), and these, for a line each."""
    found = _WITH_COMMANDS.fullmatch(text)
    return (found[1], tuple(found[2].split("; "))) if found else (text, ())


def joined(words: Iterable[str]) -> str:
    """The words as a command for a shell."""
    return " ".join(map(quoted, words))


def _shell_escaped(match: re.Match[str]) -> str:
    char = match.group()
    if char in "\\'":
        return f"\\{char}"
    try:
        octets = char.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte
        octets = char.encode("utf-8", "surrogatepass")
    return "".join(f"\\x{octet:02x}" for octet in octets)


def is_address(text: str) -> bool:
    """Whether it is an IPv4 or IPv6 address."""
    return _parses(ip_address, text)


def is_interface(text: str) -> bool:
    """Whether it is an address with its prefix length, or without."""
    return _parses(ip_interface, text)


def is_prefix(text: str) -> bool:
    """Whether it is a prefix, or that of an address with its prefix length."""
    return _parses(lambda prefix: ip_network(prefix, strict=False), text)


def _parses(parse: Callable[[str], object], text: str) -> bool:
    try:
        parse(text)
    except ValueError:
        return False
    return True
