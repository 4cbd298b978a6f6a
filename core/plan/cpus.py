"""Sets of CPUs, as the kernel lists them and as it writes them in masks."""

from __future__ import annotations

import re

_GROUP = 32  # bits between two commas
_MASK = re.compile(r"(?:0x)?[0-9a-fA-F]+(?:,[0-9a-fA-F]{8})*\Z")


def listed(text: str) -> int:
    """The CPUs of a list such as "0-3,8", a bit for each."""
    found = 0
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        for cpu in range(int(first), int(last or first) + 1):
            found |= 1 << cpu
    return found


def mask(text: str) -> int | None:
    """The CPUs of a hexadecimal mask such as "f", "0xf" or "1,00000000"; None where it is none."""
    return int(text.replace(",", ""), 16) if _MASK.match(text) else None


def written(cpus: int) -> str:
    """The mask of these CPUs as the kernel takes it."""
    groups = []
    while cpus >> _GROUP:
        groups.append(f"{cpus & (1 << _GROUP) - 1:08x}")
        cpus >>= _GROUP
    return ",".join([f"{cpus:x}", *reversed(groups)])
