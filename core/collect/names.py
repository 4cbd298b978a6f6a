"""iproute2's names of routing tables, protocols and scopes, including local ones."""

from __future__ import annotations

from functools import cache
from pathlib import Path

# In the order in which iproute2 reads them; later entries win.
_FOLDERS = ("/usr/share/iproute2", "/usr/lib/iproute2", "/etc/iproute2")
_TABLES = {253: "default", 254: "main", 255: "local"}
_PROTOCOLS = {
    0: "unspec", 1: "redirect", 2: "kernel", 3: "boot", 4: "static", 8: "gated", 9: "ra", 10: "mrt",
    11: "zebra", 12: "bird", 13: "dnrouted", 14: "xorp", 15: "ntk", 16: "dhcp", 18: "keepalived", 42: "babel",
    186: "bgp", 187: "isis", 188: "ospf", 189: "rip", 192: "eigrp",
}  # fmt: skip
_SCOPES = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}


def table(number: int) -> str:
    """Return the name of a routing table, or its number as text."""
    return _read_names("rt_tables").get(number) or str(number)


def protocol(number: int) -> str:
    """Return the name of a route's protocol, or its number as text."""
    return _read_names("rt_protos").get(number) or str(number)


def scope(number: int) -> str:
    """Return the name of a scope, or its number as text."""
    return _read_names("rt_scopes").get(number) or str(number)


def table_number(text: str) -> int:
    """Return the number of a routing table given by name or number; raises ValueError."""
    return _number("rt_tables", text)


def protocol_number(text: str) -> int:
    """Return the number of a protocol given by name or number; raises ValueError."""
    return _number("rt_protos", text)


def scope_number(text: str) -> int:
    """Return the number of a scope given by name or number; raises ValueError."""
    return _number("rt_scopes", text)


def _number(file: str, text: str) -> int:
    for number, name in _read_names(file).items():
        if name == text:
            return number
    return int(text, 0)


@cache
def _read_names(file: str) -> dict[int, str]:
    """Return built-in names by number, overridden by files `file` and `file.d/*.conf`."""
    names = dict({"rt_tables": _TABLES, "rt_protos": _PROTOCOLS, "rt_scopes": _SCOPES}[file])
    for folder in map(Path, _FOLDERS):
        for path in (folder / file, *sorted((folder / f"{file}.d").glob("*.conf"))):
            names |= _read_file(path)
    return names


def _read_file(path: Path) -> dict[int, str]:
    """Parse `NUMBER NAME` lines; numbers may be hexadecimal, `#` starts a comment."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        fields = line.split("#", 1)[0].split()
        try:
            found[int(fields[0], 0)] = fields[1]
        except (ValueError, IndexError):
            continue
    return found
