"""Validate input: each function returns the reason why it is wrong, or ""."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping

from core.plan.ipam import Address, Prefix, overlap
from core.plan.requests import KINDS, MODELS, PROTOCOLS
from core.text import bounds, safe

NAME_BYTES = 15
LEAST_MTU = {4: 68, 6: 1280}
MOST_MTU = 65535
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")
_LINK = re.compile(r"[A-Za-z0-9_.@+-]+\Z")
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?\Z")
_RESERVED_FROM = int(ipaddress.IPv4Address("240.0.0.0"))
_MOST_PORTS = 1000
_RESERVED = {"lo", "all", "default", "host", "none", "bridge"}


def name(text: str, what: str = "name") -> str:
    """Check the name of a new network, container or bridge.

    It becomes the name of a link or a file.
    """
    size = len(text.encode(errors="surrogatepass"))
    if not text:
        return f"the {what} is empty"
    if size > NAME_BYTES:
        return f"the {what} {_shown(text)} has {size} bytes (the kernel allows {NAME_BYTES})"
    if text in (".", ".."):
        return f"the {what} can't be {text}: that is a directory"
    if text.startswith("-"):
        return f"the {what} {_shown(text)} begins with a dash: commands would read it as an option"
    if text in _RESERVED:
        return f"the {what} can't be {text}: that word is reserved"
    if not _NAME.match(text):
        bad = next((char for char in text if not re.match(r"[A-Za-z0-9_.-]", char)), text[0])
        return (
            f"the {what} {_shown(text)} contains {_shown(bad)}. Try: letters, digits, - _ and . (not first)"
        )
    return ""


def link_name(text: str) -> str:
    """Check the new name of a link by the rules of the kernel and ip(8)."""
    if not text or len(text.encode(errors="surrogatepass")) > NAME_BYTES or text in (".", ".."):
        return name(text, "link name")
    if text.startswith("-") or not _LINK.match(text):
        return name(text, "link name") or f"the link name {_shown(text)} can't be used"
    return ""


def kind(text: str) -> str:
    """Check the kind of a network."""
    return "" if text in KINDS else f"unknown kind of network {_shown(text)}. Try: {_choice(KINDS)}"


def model(text: str) -> str:
    """Check the network model of a container."""
    return "" if text in MODELS else f"unknown model {_shown(text)}. Try: {_choice(MODELS)}"


def protocol(text: str) -> str:
    """Check a protocol that has ports."""
    return "" if text in PROTOCOLS else f"unknown protocol {_shown(text)}. Try: {_choice(PROTOCOLS)}"


def subnet(text: str, taken: Mapping[Prefix, str] | None = None) -> str:
    """Check the subnet of a new network; `taken` from `ipam.taken_prefixes`."""
    shown = _shown(text)
    try:
        given = ipaddress.ip_interface(text)
    except ValueError:
        return f"{shown} isn't a subnet. Try: one such as 10.9.0.0/24 or fd00:9::/64"
    if "/" not in text:
        return f"{shown} has no prefix length. Try: {text}/{24 if given.version == 4 else 64}"
    if "%" in text:
        return f"{shown} has a zone (%): subnets have none"
    if isinstance(given, ipaddress.IPv6Interface) and given.ip.ipv4_mapped is not None:
        return f"{shown} is an IPv4-mapped address. Try: the IPv4 subnet"
    prefix = given.network
    problem = _special(prefix, shown) or _size(prefix, shown)
    if problem:
        return problem
    if given.ip != prefix.network_address:
        return f"{shown} has host bits set. Try: {prefix}"
    who = overlap(prefix, dict(taken or {}))
    return f"{shown} overlaps with {safe(who)}" if who else ""


def _special(prefix: Prefix, shown: str) -> str:
    first = prefix.network_address
    if prefix.prefixlen == 0:
        return f"{shown} contains every address"
    if first.is_multicast:
        return f"{shown} is multicast: hosts have no such address"
    if first.is_link_local:
        return f"{shown} is link-local: each link has it already"
    if first.is_loopback:
        return f"{shown} is loopback: it is only valid inside a host"
    if first.is_unspecified or (prefix.version == 4 and int(first) >= _RESERVED_FROM):
        return f"{shown} is reserved"
    return ""


def _size(prefix: Prefix, shown: str) -> str:
    if prefix.prefixlen == prefix.max_prefixlen:
        return f"{shown} is a single address: too small for a gateway and a container"
    if prefix.version == 6 and prefix.prefixlen > 126:
        return f"{shown} is too small for a gateway and a container"
    if prefix.prefixlen < 8:
        return f"{shown} is too large. Try: /8 or longer"
    return ""


def address(text: str, subnets: Collection[str], used: Collection[str] = ()) -> str:
    """Check an address for a container or gateway in these subnets.

    `used` from `ipam.used_addresses`.
    """
    shown = _shown(text)
    found = parse_address(text)
    if found is None:
        return f"{shown} isn't an address. Try: one such as 10.9.0.5, without prefix length"
    found_subnet = next((one for one in map(ipaddress.ip_network, subnets) if found in one), None)
    if found_subnet is None:
        return f"{shown} is not in {' or '.join(subnets) or 'any subnet: the network has none'}"
    if found_subnet.num_addresses > 2 and found == found_subnet.network_address:
        return f"{shown} is the network address of {found_subnet}"
    if (
        found_subnet.version == 4
        and found_subnet.num_addresses > 2
        and found == found_subnet.broadcast_address
    ):
        return f"{shown} is the broadcast address of {found_subnet}"
    return f"{shown} is in use" if str(found) in used else ""


def parse_address(text: str) -> Address | None:
    """Parse an address; None for other text and for an address with a zone."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return None if isinstance(found, ipaddress.IPv6Address) and found.scope_id else found


def mtu(value: int, ipv6: bool = False) -> str:
    """Check the MTU of a link or a network."""
    least = LEAST_MTU[6 if ipv6 else 4]
    if least <= value <= MOST_MTU:
        return ""
    return f"the MTU {value} is out of range ({least} to {MOST_MTU}{' with IPv6' if ipv6 else ''})"


def mtu_of_path(value: int, link: str, most: int) -> str:
    """Check an MTU against the MTU `most` of the link that the packets leave by."""
    if not most or value <= most:
        return ""
    return (
        f"the MTU {value} is above that of {safe(link)} ({most}), where packets leave: larger ones are lost"
    )


def ports(text: str) -> str:
    """Check a port "8080" or a range "8000-8010"."""
    shown = _shown(text)
    found = _RANGE.match(text) if text.isascii() else None
    if not found:
        return f"{shown} isn't a port. Try: one such as 8080 or 8000-8010"
    first, last = bounds(text)
    if not 1 <= first <= 65535 or not 1 <= last <= 65535:
        return f"{shown} is out of range (1 to 65535)"
    if last < first:
        return f"{shown} is in reverse order. Try: {last}-{first}"
    if last - first >= _MOST_PORTS:
        return f"{shown} is {last - first + 1} ports: {_MOST_PORTS} at most"
    return ""


def ports_shape(text: str) -> str:
    """Check that a text is a port or a range, of any size."""
    return "" if text.isascii() and _RANGE.match(text) else f"{_shown(text)} isn't a port"


def _choice(options: tuple[str, ...]) -> str:
    return f"{', '.join(options[:-1])} or {options[-1]}"


def _shown(text: str) -> str:
    """Quote the user's text, shortened to 40 characters, without control characters."""
    cut = text if len(text) <= 40 else text[:39] + "…"
    return f'"{safe(cut)}"'
