"""iproute2's words for routing tables, protocols and scopes, with this machine's own additions."""

from __future__ import annotations

from functools import cache
from pathlib import Path

# In the order in which iproute2 reads them; what comes later wins.
_FOLDERS = ("/usr/share/iproute2", "/usr/lib/iproute2", "/etc/iproute2")
_TABLES = {253: "default", 254: "main", 255: "local"}
_PROTOCOLS = {
    0: "unspec", 1: "redirect", 2: "kernel", 3: "boot", 4: "static", 8: "gated", 9: "ra", 10: "mrt",
    11: "zebra", 12: "bird", 13: "dnrouted", 14: "xorp", 15: "ntk", 16: "dhcp", 18: "keepalived", 42: "babel",
    186: "bgp", 187: "isis", 188: "ospf", 189: "rip", 192: "eigrp",
}  # fmt: skip
_SCOPES = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}


def table(number: int) -> str:
    """The name of a routing table, else its number as text."""
    return _words("rt_tables").get(number) or str(number)


def protocol(number: int) -> str:
    """Who made a route, else the number as text."""
    return _words("rt_protos").get(number) or str(number)


def scope(number: int) -> str:
    """The scope of an address or a route, else the number as text."""
    return _words("rt_scopes").get(number) or str(number)


def table_number(word: str) -> int:
    """The number of a routing table from its name or number. Raises ValueError."""
    return _number("rt_tables", word)


def protocol_number(word: str) -> int:
    """The same of who made a route."""
    return _number("rt_protos", word)


def scope_number(word: str) -> int:
    """The same of a scope."""
    return _number("rt_scopes", word)


def _number(file: str, word: str) -> int:
    for number, name in _words(file).items():
        if name == word:
            return number
    return int(word, 0)


@cache
def _words(file: str) -> dict[int, str]:
    """Numbers and names in the files of that name and in the folders `FILE.d`, over the built-in ones."""
    words = dict({"rt_tables": _TABLES, "rt_protos": _PROTOCOLS, "rt_scopes": _SCOPES}[file])
    for folder in map(Path, _FOLDERS):
        for path in (folder / file, *sorted((folder / f"{file}.d").glob("*.conf"))):
            words |= _read(path)
    return words


def _read(path: Path) -> dict[int, str]:
    """The `NUMBER NAME` lines of one file; numbers may be hexadecimal, `#` begins a comment."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        words = line.split("#", 1)[0].split()
        try:
            found[int(words[0], 0)] = words[1]
        except (ValueError, IndexError):
            continue
    return found
