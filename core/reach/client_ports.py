"""Find whether a namespace has ports for new connections (ip_local_port_range)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from core.text import bounds

RANGE, RESERVED = "net.ipv4.ip_local_port_range", "net.ipv4.ip_local_reserved_ports"
NAMES = (RANGE, RESERVED)
_USUAL_RANGE = "32768 60999"
USUAL = 45678


def has_free(sysctls: Mapping[str, str]) -> bool:
    """Return whether a port of the range isn't reserved."""
    return first_free(sysctls) > 0


def first_free(sysctls: Mapping[str, str]) -> int:
    """Return a port that the kernel may choose for a client, 0 if there is none."""
    if RANGE not in sysctls and RESERVED not in sysctls:
        return USUAL
    return _first_free(sysctls.get(RANGE, _USUAL_RANGE), sysctls.get(RESERVED, ""))


@lru_cache(1024)
def _first_free(ports: str, reserved: str) -> int:
    low, high = map(int, ports.split())
    taken = sorted(bounds(one) for one in reserved.split(",") if one)
    port = USUAL if low <= USUAL <= high else low
    for first, last in taken:
        if first <= port <= last:
            port = last + 1
    if port <= high:
        return port
    port = low
    for first, last in taken:
        if first <= port <= last:
            port = last + 1
    return port if port <= high else 0
