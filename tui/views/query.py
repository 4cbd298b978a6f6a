"""Parse and match the filter language of `/`.

A filter has words, `key:value` terms, and `!` to invert. Text is searched in columns of addresses without
converting these to text: octets and hextets are looked up in tables of those whose text matches.
"""

from __future__ import annotations

import ipaddress
import math
import re
import string
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from core.flows import address_bytes
from tui.views.formatting import NOT_EQUAL
from tui.views.rows import Column, Row

Addresses = np.ndarray
_HEX = frozenset(string.hexdigits)
_FITS: dict[tuple[bool, bool], Callable[[Addresses, bytes], Addresses]] = {
    (True, True): np.equal,
    (True, False): np.strings.startswith,
    (False, True): np.strings.endswith,
    (False, False): lambda texts, piece: np.strings.find(texts, piece) >= 0,
}


def matching(addresses: Addresses, value: str) -> Addresses | None:
    """Return a mask of addresses equal to `value`, in that prefix, or beginning so.

    None if `value` is no part of an address.
    """
    if value.endswith("::") and value != "::":
        value = f"{value}/{16 * value.removesuffix('::').count(':') + 16}"
    if "/" in value:
        return _in_network(addresses, value)
    try:
        return _in_network(addresses, str(ipaddress.ip_address(value)))
    except ValueError:
        pass
    pieces = value.split(".")
    if all(piece.isdecimal() or not piece for piece in pieces) and len(pieces) <= 4 and pieces[0]:
        return _in_ipv4(addresses, pieces, at_start=True)
    if ":" in value and set(value) <= _HEX | {":"}:
        return _in_ipv6(addresses, value, at_start=True)
    return None


def containing(addresses: Addresses, fragment: str) -> Addresses:
    """Return a mask of the addresses whose text contains the fragment."""
    found = np.zeros(len(addresses), bool)
    pieces = fragment.split(".")
    if all(piece.isdecimal() or not piece for piece in pieces) and len(pieces) <= 4:
        found |= _in_ipv4(addresses, pieces)
    if set(fragment) <= _HEX | {":"}:
        found |= _in_ipv6(addresses, fragment)
    return found


def ending(addresses: Addresses, fragment: str) -> Addresses:
    """Return a mask of the IPv4 addresses that end with the fragment.

    A port follows the fragment.
    """
    pieces = fragment.split(".")
    if not all(piece.isdecimal() or not piece for piece in pieces) or len(pieces) > 4:
        return np.zeros(len(addresses), bool)
    return _in_ipv4(addresses, pieces, at_end=True)


def numbers(values: Addresses, piece: str, whole_start: bool = False) -> Addresses:
    """Return a mask of the 16-bit numbers whose decimal text contains the piece.

    With `whole_start` it begins with the piece.
    """
    return np.asarray(_table("d", 65536, piece, whole_start, False)[values])


def is_ipv4(addresses: Addresses) -> Addresses:
    """Return a mask of the IPv4 addresses, which are mapped into 16 bytes."""
    return np.asarray((addresses[:, 0] == 0) & (addresses[:, 1] >> np.uint64(32) == 0xFFFF))


def _in_network(addresses: Addresses, value: str) -> Addresses | None:
    """Return a mask of the addresses in a network, None if it isn't one."""
    try:
        network = ipaddress.ip_network(value, strict=False)
    except ValueError:
        return None
    length = network.prefixlen + (96 if network.version == 4 else 0)
    mask = (1 << 128) - (1 << 128 - length)
    wanted = int.from_bytes(address_bytes(str(network.network_address)))
    found = np.ones(len(addresses), bool)
    for half, shift in enumerate((64, 0)):
        bits, part = (np.uint64(number >> shift & 0xFFFF_FFFF_FFFF_FFFF) for number in (mask, wanted))
        found &= addresses[:, half] & bits == part
    return found


def _octets(addresses: Addresses) -> list[Addresses]:
    lower = addresses[:, 1].astype(np.uint32)
    return [(lower >> np.uint32(shift)).astype(np.uint8) for shift in (24, 16, 8, 0)]


def _hextets(addresses: Addresses) -> list[Addresses]:
    shifts = (48, 32, 16, 0)
    return [(addresses[:, half] >> np.uint64(shift)).astype(np.uint16) for half in (0, 1) for shift in shifts]


def _in_ipv4(
    addresses: Addresses, pieces: Sequence[str], at_start: bool = False, at_end: bool = False
) -> Addresses:
    """Return a mask of the IPv4 addresses that match the pieces between dots.

    They contain the pieces, begin or end with them.
    """
    found = _aligned(_octets(addresses), pieces, "d", at_start, at_end)
    return np.asarray(found & is_ipv4(addresses))


def _in_ipv6(addresses: Addresses, fragment: str, at_start: bool = False) -> Addresses:
    """Return a mask of the IPv6 addresses that contain or begin with the fragment.

    They match compressed or not.
    """
    found = np.zeros(len(addresses), bool)
    rows = np.flatnonzero(~is_ipv4(addresses))
    if rows.size:
        units = _hextets(addresses[rows])
        if "::" in fragment:
            left, _, right = fragment.partition("::")
            found[rows] = _around_zeros(units, left, right, at_start)
        else:
            found[rows] = _aligned(units, fragment.split(":"), "x", at_start=at_start)
    return found


def _around_zeros(units: list[Addresses], left: str, right: str, at_start: bool) -> Addresses:
    """Return a mask of the addresses that match the texts on both sides of "::".

    Between them lie two or more zero hextets.
    """
    found = np.zeros(len(units[0]), bool)
    for start in range(7):
        if at_start and start != (len(left.split(":")) if left else 0):
            continue
        zeros = units[start] == 0
        if left:
            zeros &= _fits_beside(units[:start], left, at_end=True, at_start=at_start)
        for end in range(start + 2, 9):
            zeros &= units[end - 1] == 0
            found |= zeros & _fits_beside(units[end:], right, at_start=True) if right else zeros
    return found


def _fits_beside(
    units: list[Addresses], text: str, at_start: bool = False, at_end: bool = False
) -> Addresses | bool:
    """Return a mask of the addresses whose hextets beside zeros match the text.

    False if there are no hextets.
    """
    return _aligned(units, text.split(":"), "x", at_start, at_end) if units else False


def _aligned(
    units: Sequence[Addresses], pieces: Sequence[str], base: str, at_start: bool = False, at_end: bool = False
) -> Addresses:
    """Return a mask of the addresses with consecutive units that match the pieces.

    The units are written in that base.

    Pieces in between match whole units; the first matches the end of its unit and the last the beginning, or
    both the whole if they must be `at_start` or `at_end`.
    """
    last = len(pieces) - 1
    found = np.zeros(len(units[0]) if units else 0, bool)
    for place in range(len(units) - last):
        if (at_start and place) or (at_end and place + last + 1 < len(units)):
            continue
        here = np.ones(len(found), bool)
        for number, piece in enumerate(pieces):
            whole_start, whole_end = number > 0 or at_start, number < last or at_end
            fits = _table(base, np.iinfo(units[0].dtype).max + 1, piece, whole_start, whole_end)
            here &= fits[units[place + number]]
        found |= here
    return found


@lru_cache(maxsize=64)
def _table(base: str, count: int, piece: str, whole_start: bool, whole_end: bool) -> Addresses:
    """Return a mask of the numbers below `count` that match a piece in that base."""
    return _FITS[whole_start, whole_end](_texts(base, count), piece.encode())


@lru_cache
def _texts(base: str, count: int) -> Addresses:
    """Return the numbers up to `count` as text."""
    return np.array([format(number, base) for number in range(count)], "S")


# Terms that are numbers, or ranges of them: port 80 is not port 8080.
PORT_KEYS = frozenset({"port", "sport", "dport"})
# Terms that are addresses, where a value with a "/" is a prefix that they lie in.
ADDRESS_KEYS = frozenset({"addr", "src", "dst"})

HELP = (
    ("word", "any cell contains the word"),
    ("key:value", "that column or term contains the value: ns:web, state:up"),
    ("title:value", "the same by the column's title; a hyphen joins words: other-end:eth0"),
    ("key:=value", "exactly this value"),
    ("key:>10k", "a number above that, or <10 below it"),
    ("port:80-90", "a port, or a range of them"),
    ("addr:10.0.0.0/8", "an address in this prefix"),
    ("!word", "the opposite; also !key:value"),
    ('"two words"', "a value with spaces"),
    ("a b", "both must match"),
)

_ADDRESS = re.compile(r"[0-9a-f:]+")
_UNITS = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_WORD = re.compile(r'(!?)(?:([A-Za-z][\w-]*):)?((?:"[^"]*(?:"|$)|[^\s"])*)')


@dataclass(frozen=True, slots=True)
class Term:
    """One condition: `key` in lower case ("" for a word), `value` casefolded.

    `inverted` by a "!".
    """

    key: str
    value: str
    inverted: bool = False

    @property
    def text(self) -> str:
        """The term as a word: the meaning of `key:value` if the key is unknown.

        An address or a MAC contains colons.
        """
        return f"{self.key}:{self.value}" if self.key else self.value


@lru_cache(maxsize=64)
def parse(text: str) -> tuple[Term, ...]:
    """Parse a filter. It never fails: an incomplete term is left out."""
    terms = []
    for inverted, key, value in _WORD.findall(text):
        value = value.replace('"', "").casefold()
        if value:
            terms.append(Term(key.lower(), value, bool(inverted)))
    return tuple(terms)


def term(key: str, name: str) -> str:
    """Return the filter term that matches exactly this name."""
    name = name.replace('"', "")
    return f'{key}:="{name}"' if re.search(r"\s", name) else f"{key}:={name}"


def fits(value: str, text: str) -> bool:
    """Return whether a text contains a value, or with "=" equals it."""
    text = text.casefold()
    return text.replace('"', "") == value[1:] if value.startswith("=") else value in text


def port_range(value: str) -> range | None:
    """Return the ports of "80" or "80-90", None if it is neither."""
    first, _, last = value.partition("-")
    if not first.isdecimal() or not (last or first).isdecimal():
        return None
    return range(int(first), int(last or first) + 1) or None


def prefix(value: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """Return the prefix of text like "10.0.0.0/8", None if it isn't one."""
    try:
        return ipaddress.ip_network(value, strict=False) if "/" in value else None
    except ValueError:
        return None


def bounds(value: str) -> tuple[float, float]:
    """Return the minimum and maximum of a range: ">1M", "5-20".

    A bare number is the minimum.

    If it is no range, nothing is in it.
    """
    try:
        if value[:1] in ("<", ">"):
            figure, inclusive = _figure(value[1:].lstrip("=")), value[1:2] == "="
            if value[0] == ">":
                return (figure if inclusive else math.nextafter(figure, math.inf)), math.inf
            return -math.inf, (figure if inclusive else math.nextafter(figure, -math.inf))
        first, dash, last = value.partition("-")
        return _figure(first.lstrip("=")), _figure(last) if dash else math.inf
    except ValueError:
        return math.inf, -math.inf


def is_range(value: str) -> bool:
    """Return whether the value is a number or a range: ">1M", "5-20"."""
    least, most = bounds(value)
    return least <= most


def _figure(text: str) -> float:
    unit = _UNITS.get(text[-1:].lower())
    return float(text[:-1]) * unit if unit else float(text)


# Former titles of columns by title: filters may still use them.
_FORMER_TITLES = {
    "uplink": "way-out", "dev": "by-link", "owner": "lies-in", "NAT": "seen-as", "timeout": "left",
    "total": "in-all", "meaning": "what-became-of-them", "found": "what-was-found", "action": "what",
    "details": "what",
}  # fmt: skip


def titles(columns: Iterable[Column]) -> dict[str, str]:
    """Return the column names by title.

    Sides of a "/" are separate, words joined by "-".
    """
    found: dict[str, str] = {}
    for column in columns:
        for part in column.title.casefold().split("/"):
            title = re.sub(r"\W+", "-", part).strip("-")
            if len(title) > 1:
                found.setdefault(title, column.name)
        if column.title in _FORMER_TITLES:
            found.setdefault(_FORMER_TITLES[column.title], column.name)
    return found


def by_name(terms: Iterable[Term], columns: Iterable[Column], known: Collection[str]) -> tuple[Term, ...]:
    """Return the terms, with columns' names instead of their titles."""
    names = titles(columns)
    return tuple(
        replace(each, key=names[each.key]) if each.key not in known and each.key in names else each
        for each in terms
    )


def remarks(text: str, known: Collection[str], inverted: bool = False) -> Iterator[str]:
    """Yield the mistakes of a filter as error messages; `known` are the existing keys.

    Only its `inverted` terms are checked if others match rows.
    """
    for each in parse(text):
        if inverted and not each.inverted:
            continue
        if each.key and each.key not in known and not _ADDRESS.fullmatch(each.text):
            yield f"can't filter by {each.key}: there is no such column. Try: {', '.join(sorted(known))}"
        elif each.key and each.value[0] in "<>" and not is_range(each.value):
            yield f"can't filter by {each.text}: it isn't a number or a range. Try: {each.key}:>10k"
        elif each.key in PORT_KEYS and port_range(each.value) is None:
            yield f"can't filter by {each.text}: it isn't a port or a range. Try: {each.key}:8000-8010"
        elif each.key in ADDRESS_KEYS and "/" in each.value and prefix(each.value) is None:
            yield f"can't filter by {each.text}: it isn't a prefix. Try: {each.key}:10.0.0.0/8"


def remarks_of_none(text: str, names: Collection[str]) -> Iterator[str]:
    """Yield mistakes of a filter that no row matches; `names` are those of owners.

    An address may be given by the name of its owner.
    """
    if text.count('"') % 2:
        yield f"can't filter by {text}: a quote isn't closed. Try: {text}\""
    for each in parse(text):
        value = each.value.lstrip("=")
        is_name = any(value in name.casefold() for name in names)
        if each.key in ADDRESS_KEYS and not is_name and not _may_be_address(value):
            remedy = f"{each.key}:10.0.0"
            yield f"can't filter by {each.text}: it is no address and no known name. Try: {remedy}"


def _may_be_address(value: str) -> bool:
    """Return whether the value can be a part of an address, or a prefix."""
    return "/" in value or value.replace(".", "").isdecimal() or bool(_ADDRESS.fullmatch(value))


def matches(terms: Iterable[Term], row: Row, columns: Sequence[Column]) -> bool:
    """Return whether the row matches every term."""
    return all(_matches_term(term, row, columns) is not term.inverted for term in terms)


def _matches_term(term: Term, row: Row, columns: Sequence[Column]) -> bool:
    if term.key and term.value[0] in "<>":
        figures = _figures(term.key, row, columns)
        least, most = bounds(term.value)
        if figures:
            return any(least <= figure <= most for figure in figures)
    if term.key:
        texts = _values(term.key, row, columns)
        if texts:
            return any(_has(term, text) for text in texts)
    if any(term.text in cell.text.casefold() for cell in row.cells):
        return True
    return any(term.text in text.casefold() for text in row.terms.values())


def _has(term: Term, text: str) -> bool:
    """Return whether a row's value of the term's key matches."""
    if term.key in PORT_KEYS:
        wanted = port_range(term.value) or ()
        return any(word.isdecimal() and int(word) in wanted for word in text.split())
    network = prefix(term.value) if term.key in ADDRESS_KEYS else None
    if network is not None and any(_lies_in(word, network) for word in text.split()):
        return True
    return fits(term.value, text) or any(term.value == f"={word}" for word in text.casefold().split())


def _lies_in(word: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    try:
        address = ipaddress.ip_interface(word.rstrip(",")).ip
    except ValueError:
        return False
    return address in network


def _figures(key: str, row: Row, columns: Sequence[Column]) -> list[float]:
    """Return the figures of a column: its sort value, or the number in its text."""
    found = (cell for column, cell in zip(columns, row.cells, strict=False) if column.name == key)
    figures = (cell.sort if cell.sort is not None else _number(cell.text) for cell in found)
    return [float(one) for one in figures if one is not None]


def _number(text: str) -> float | None:
    try:
        return _figure(text.strip())
    except ValueError:
        return None


def _values(key: str, row: Row, columns: Sequence[Column]) -> list[str]:
    """Values of a key: the row's term, its column, or both."""
    texts = [
        f"{cell.text} differs" if NOT_EQUAL in cell.text else cell.text
        for column, cell in zip(columns, row.cells, strict=False)
        if column.name == key
    ]
    return [*texts, row.terms[key]] if key in row.terms else texts
