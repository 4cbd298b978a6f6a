"""Finds what a person typed in columns of addresses without making text of them: octets and hextets are
looked up in tables of those whose text fits."""

from __future__ import annotations

import ipaddress
import string
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from core.flows import address_bytes

Column = np.ndarray
_HEX = frozenset(string.hexdigits)
_FITS: dict[tuple[bool, bool], Callable[[Column, bytes], Column]] = {
    (True, True): np.equal,
    (True, False): np.strings.startswith,
    (False, True): np.strings.endswith,
    (False, False): lambda texts, piece: np.strings.find(texts, piece) >= 0,
}


def matching(addresses: Column, value: str) -> Column | None:
    """Where an address is `value`, lies in it (a CIDR prefix), or begins with it ("172.18", "fd00::"); None
    where `value` is nothing of an address."""
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


def containing(addresses: Column, fragment: str) -> Column:
    """Where an address's text contains the fragment."""
    found = np.zeros(len(addresses), bool)
    pieces = fragment.split(".")
    if all(piece.isdecimal() or not piece for piece in pieces) and len(pieces) <= 4:
        found |= _in_ipv4(addresses, pieces)
    if set(fragment) <= _HEX | {":"}:
        found |= _in_ipv6(addresses, fragment)
    return found


def ending(addresses: Column, fragment: str) -> Column:
    """Where an IPv4 address's text ends with the fragment: what stands before a port."""
    pieces = fragment.split(".")
    if not all(piece.isdecimal() or not piece for piece in pieces) or len(pieces) > 4:
        return np.zeros(len(addresses), bool)
    return _in_ipv4(addresses, pieces, at_end=True)


def numbers(values: Column, piece: str, whole_start: bool = False) -> Column:
    """Where a 16-bit number's decimal text contains the piece, or begins with it."""
    return np.asarray(_table("d", 65536, piece, whole_start, False)[values])


def is_ipv4(addresses: Column) -> Column:
    """Where an address is IPv4, mapped into 16 bytes."""
    return np.asarray((addresses[:, 0] == 0) & (addresses[:, 1] >> np.uint64(32) == 0xFFFF))


def _in_network(addresses: Column, value: str) -> Column | None:
    """Where an address lies in a network."""
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


def _octets(addresses: Column) -> list[Column]:
    lower = addresses[:, 1].astype(np.uint32)
    return [(lower >> np.uint32(shift)).astype(np.uint8) for shift in (24, 16, 8, 0)]


def _hextets(addresses: Column) -> list[Column]:
    shifts = (48, 32, 16, 0)
    return [(addresses[:, half] >> np.uint64(shift)).astype(np.uint16) for half in (0, 1) for shift in shifts]


def _in_ipv4(
    addresses: Column, pieces: Sequence[str], at_start: bool = False, at_end: bool = False
) -> Column:
    """Where an IPv4 address's text contains the pieces between dots, begins or ends with them."""
    found = _aligned(_octets(addresses), pieces, "d", at_start, at_end)
    return np.asarray(found & is_ipv4(addresses))


def _in_ipv6(addresses: Column, fragment: str, at_start: bool = False) -> Column:
    """Where an IPv6 address's text, zeros written out or not, contains the fragment or begins with it."""
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


def _around_zeros(units: list[Column], left: str, right: str, at_start: bool) -> Column:
    """Where at least two hextets of zero lie between what is left and what is right of "::"."""
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
    units: list[Column], text: str, at_start: bool = False, at_end: bool = False
) -> Column | bool:
    """Where the hextets beside a run of zeros are those of the text; never where there are none."""
    return _aligned(units, text.split(":"), "x", at_start, at_end) if units else False


def _aligned(
    units: Sequence[Column], pieces: Sequence[str], base: str, at_start: bool = False, at_end: bool = False
) -> Column:
    """Where consecutive units, written in that base, are the pieces: those between wholly, the first by its
    end and the last by its beginning, or wholly where they must stand `at_start` or `at_end`."""
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
def _table(base: str, count: int, piece: str, whole_start: bool, whole_end: bool) -> Column:
    """Which of `count` numbers, written in that base, fit a piece."""
    return _FITS[whole_start, whole_end](_texts(base, count), piece.encode())


@lru_cache
def _texts(base: str, count: int) -> Column:
    """The numbers up to `count` in text."""
    return np.array([format(number, base) for number in range(count)], "S")
