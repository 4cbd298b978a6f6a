"""Whether texts from outside are addresses, which the whole program relies on."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address, ip_interface, ip_network


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
