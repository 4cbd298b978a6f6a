"""What is wrong with an input, in words: each function returns "" for a good one."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping

from core.plan.ipam import Address, Prefix, overlap
from core.plan.requests import KINDS, MODELS, PROTOCOLS
from core.text import safe

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
    """A new network's, container's or bridge's name; it becomes a link's or a file's name."""
    size = len(text.encode(errors="surrogatepass"))
    if not text:
        return f"the {what} is empty"
    if size > NAME_BYTES:
        return f"the {what} {_shown(text)} has {size} bytes: the kernel takes {NAME_BYTES} at most"
    if text in (".", ".."):
        return f"the {what} cannot be {text}: that is a directory"
    if text.startswith("-"):
        return f"the {what} {_shown(text)} begins with a dash: commands would take it for an option"
    if text in _RESERVED:
        return f"the {what} cannot be {text}: that word is taken"
    if not _NAME.match(text):
        bad = next((sign for sign in text if not re.match(r"[A-Za-z0-9_.-]", sign)), text[0])
        return f"the {what} {_shown(text)} holds {_shown(bad)}: letters, digits, - _ and . only, no dot first"
    return ""


def link_name(text: str) -> str:
    """A new name for a link that exists or is made inside a container: what the kernel and ip(8) take."""
    if not text or len(text.encode(errors="surrogatepass")) > NAME_BYTES or text in (".", ".."):
        return name(text, "link name")
    if text.startswith("-") or not _LINK.match(text):
        return name(text, "link name") or f"the link name {_shown(text)} cannot be used"
    return ""


def kind(text: str) -> str:
    """A network's kind."""
    return "" if text in KINDS else f"there is no kind of network {_shown(text)}: {_choice(KINDS)}"


def model(text: str) -> str:
    """A container's network model."""
    return "" if text in MODELS else f"there is no model {_shown(text)}: {_choice(MODELS)}"


def protocol(text: str) -> str:
    """A protocol that has ports."""
    return "" if text in PROTOCOLS else f"there is no protocol {_shown(text)}: {_choice(PROTOCOLS)}"


def subnet(text: str, taken: Mapping[Prefix, str] | None = None) -> str:
    """A new network's subnet; `taken` from `ipam.taken_prefixes`."""
    shown = _shown(text)
    try:
        given = ipaddress.ip_interface(text)
    except ValueError:
        return f"{shown} is no subnet: write it as 10.9.0.0/24 or fd00:9::/64"
    if "/" not in text:
        return f"{shown} has no prefix length: write {text}/{24 if given.version == 4 else 64}"
    if "%" in text:
        return f"{shown} has a zone (%): a subnet has none"
    if isinstance(given, ipaddress.IPv6Interface) and given.ip.ipv4_mapped is not None:
        return f"{shown} is an IPv4 address in IPv6's dress: write the IPv4 subnet"
    prefix = given.network
    problem = _special(prefix, shown) or _size(prefix, shown)
    if problem:
        return problem
    if given.ip != prefix.network_address:
        return f"{shown} has host bits set: the subnet is {prefix}"
    who = overlap(prefix, dict(taken or {}))
    return f"{shown} overlaps with {safe(who)}" if who else ""


def _special(prefix: Prefix, shown: str) -> str:
    first = prefix.network_address
    if prefix.prefixlen == 0:
        return f"{shown} is every address there is"
    if first.is_multicast:
        return f"{shown} is multicast: no host has such an address"
    if first.is_link_local:
        return f"{shown} is link-local: each link has it already"
    if first.is_loopback:
        return f"{shown} is loopback: it never leaves a host"
    if first.is_unspecified or (prefix.version == 4 and int(first) >= _RESERVED_FROM):
        return f"{shown} is reserved"
    return ""


def _size(prefix: Prefix, shown: str) -> str:
    if prefix.prefixlen == prefix.max_prefixlen:
        return f"{shown} is a single address: there is no room for a gateway and a container"
    if prefix.version == 6 and prefix.prefixlen > 126:
        return f"{shown} has no room for a gateway and a container"
    if prefix.prefixlen < 8:
        return f"{shown} is larger than any network should be: take /8 or longer"
    return ""


def address(text: str, subnets: Collection[str], used: Collection[str] = ()) -> str:
    """An address for a container or a gateway in one of these subnets; `used` from `ipam.used_addresses`."""
    shown = _shown(text)
    found = parse_address(text)
    if found is None:
        return f"{shown} is no address: write it as 10.9.0.5, without prefix length"
    home = next((one for one in map(ipaddress.ip_network, subnets) if found in one), None)
    if home is None:
        return f"{shown} is not in {' or '.join(subnets) or 'any subnet: the network has none'}"
    if home.num_addresses > 2 and found == home.network_address:
        return f"{shown} is the address of the network {home} itself"
    if home.version == 4 and home.num_addresses > 2 and found == home.broadcast_address:
        return f"{shown} is the broadcast address of {home}"
    return f"{shown} is in use" if str(found) in used else ""


def parse_address(text: str) -> Address | None:
    """The address, None for what is none or has a zone."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return None if isinstance(found, ipaddress.IPv6Address) and found.scope_id else found


def mtu(value: int, ipv6: bool = False) -> str:
    """A link's or a network's MTU."""
    least = LEAST_MTU[6 if ipv6 else 4]
    if least <= value <= MOST_MTU:
        return ""
    return f"the MTU {value} is out of range: {least} to {MOST_MTU}{' with IPv6' if ipv6 else ''}"


def mtu_of_path(value: int, way: str, most: int) -> str:
    """An MTU against that of the link `way` that the packets leave by."""
    if not most or value <= most:
        return ""
    return (
        f"the MTU {value} is over that of the way out, {safe(way)} ({most}): larger packets are cut or lost"
    )


def ports(text: str) -> str:
    """A port "8080" or a range "8000-8010"."""
    shown = _shown(text)
    found = _RANGE.match(text) if text.isascii() else None
    if not found:
        return f"{shown} is no port: write it as 8080 or 8000-8010"
    first, last = port_range(text)
    if not 1 <= first <= 65535 or not 1 <= last <= 65535:
        return f"{shown} is out of range: ports are 1 to 65535"
    if last < first:
        return f"{shown} runs backwards: write {last}-{first}"
    if last - first >= _MOST_PORTS:
        return f"{shown} is {last - first + 1} ports: at most {_MOST_PORTS} at once"
    return ""


def ports_shape(text: str) -> str:
    """Whether a text reads as a port or a range at all, of any size."""
    return "" if text.isascii() and _RANGE.match(text) else f"{_shown(text)} is no port"


def port_range(text: str) -> tuple[int, int]:
    """First and last port of a text that `ports` found good."""
    first, _, last = text.partition("-")
    return int(first), int(last or first)


def _choice(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _shown(text: str) -> str:
    """Text from a person, fit for a sentence."""
    cut = text if len(text) <= 40 else text[:39] + "…"
    return f'"{safe(cut)}"'
