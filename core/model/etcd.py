"""What etcd holds for an overlay: its definition, hosts and leased addresses."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

_ROOT = "/vnet-tui/1/networks"
_PORT = 2379
_MOST_BYTES = 4096  # of a value
_MOST_VNI, _MOST_MTU, _MOST_ASN = 2**24 - 1, 65535, 2**32 - 1


@dataclass(frozen=True, slots=True)
class Definition:
    """What all hosts of an overlay agree on; `gateways` are in the order of `subnets`."""

    vni: int
    subnets: tuple[str, ...]
    gateways: tuple[str, ...]
    mtu: int
    evpn: bool = False
    asn: int = 0

    def to_json(self) -> str:
        """Return the value of its key, the same for equal definitions."""
        return to_json(asdict(self))


@dataclass(frozen=True, slots=True)
class EtcdNetwork:
    """An overlay as read from etcd.

    `host` is this host's tunnel address if it has joined, and `hostname` what it has stored as its name.
    `stored` is the text of the definition, `hosts` the addresses of all hosts, `leased` maps addresses to
    the host that has leased them ("" if that is unreadable). `problem` is why it couldn't be read, `remedy`
    what to try; `stored` is then the text that this host has joined by.
    `seconds` is how long the leases of a host last without an agent that renews them; `has_agent`: one runs.
    """

    endpoints: str
    host: str = ""
    hostname: str = ""
    definition: Definition | None = None
    stored: str = ""
    hosts: tuple[str, ...] = ()
    leased: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""
    remedy: str = ""
    seconds: int = 120
    has_agent: bool = True


def prefix_of(network: str) -> str:
    """Return the beginning of all keys of a network."""
    return f"{_ROOT}/{network}/"


def definition_key(network: str) -> str:
    """Return the key of a network's definition."""
    return f"{prefix_of(network)}definition"


def host_key(network: str, host: str = "") -> str:
    """Return the key of a host, or the beginning of those of all hosts."""
    return f"{prefix_of(network)}hosts/{host}"


def address_key(network: str, address: str = "") -> str:
    """Return the key of an address, or the beginning of those of all addresses."""
    return f"{prefix_of(network)}addresses/{address}"


def to_json(values: Mapping[str, Any]) -> str:
    """Return JSON that is the same for equal values."""
    return json.dumps(values, sort_keys=True)


def parse_definition(text: str) -> Definition:
    """Parse a definition. Raises ValueError with what is wrong."""
    found = _object(text)
    vni, mtu, asn = (
        _number(found, *each)
        for each in (("vni", 1, _MOST_VNI), ("mtu", 68, _MOST_MTU), ("asn", 0, _MOST_ASN))
    )
    subnets, gateways = _texts(found, "subnets"), _texts(found, "gateways")
    prefixes = [ipaddress.ip_network(one) for one in subnets]
    if len(prefixes) not in (1, 2) or len({one.version for one in prefixes}) != len(prefixes):
        raise ValueError("it needs one subnet, or one of each address family")
    inside = [ipaddress.ip_address(one) in prefix for one, prefix in zip(gateways, prefixes, strict=False)]
    if len(gateways) != len(subnets) or not all(inside):
        raise ValueError("it needs a gateway in each subnet")
    if type(found.get("evpn", False)) is not bool:
        raise ValueError('"evpn" must be true or false')
    return Definition(
        vni, tuple(map(str, prefixes)), tuple(str(ipaddress.ip_address(one)) for one in gateways), mtu,
        found.get("evpn", False), asn,
    )  # fmt: skip


def host_of(value: str) -> str:
    """Return the host in the value of an address's key, "" if it is unreadable."""
    try:
        host = _object(value).get("host")
    except ValueError:
        return ""
    return host if isinstance(host, str) and is_host(host) else ""


def parse_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Parse an address in its usual form; return None for other text."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return found if str(found) == text else None


def is_host(text: str) -> bool:
    """Return whether a text is an address of a host in its usual form."""
    found = parse_address(text)
    if found is None or "%" in text:
        return False
    return not (found.is_multicast or found.is_loopback or found.is_unspecified)


def normal_endpoints(text: str) -> str:
    """Return URLs of etcd, separated by commas, in their usual form.

    Raises ValueError with what is wrong.
    """
    return ",".join(_normal(one.strip()) for one in text.split(","))


def hosts_and_ports(endpoints: str) -> Iterator[tuple[str, str, int]]:
    """Yield scheme, host and port of each URL."""
    for one in endpoints.split(","):
        parts = urlsplit(one)
        yield parts.scheme, parts.hostname or "", parts.port or _PORT


def _normal(url: str) -> str:
    parts = urlsplit(url)
    if any(one.isspace() for one in url):
        raise ValueError("it has a space; several are separated by commas")
    try:
        port = parts.port or _PORT
    except ValueError:
        raise ValueError("its port isn't a number up to 65535") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it isn't a URL such as http://192.0.2.9:2379")
    if not url.isascii() or not url.isprintable():
        raise ValueError("it contains characters that a URL can't have")
    if parts.username or parts.password:
        raise ValueError("it contains a user name: every user of this host could read it")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("it has more than scheme, host and port")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port}"


def _object(text: str) -> dict[str, Any]:
    """Parse a JSON object. Raises ValueError."""
    if len(text) > _MOST_BYTES:
        raise ValueError(f"it is larger than {_MOST_BYTES} bytes")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("it isn't JSON") from None
    if not isinstance(found, dict):
        raise ValueError("it isn't a JSON object")
    return found


def _number(found: Mapping[str, Any], key: str, least: int, most: int) -> int:
    value = found.get(key, 0)  # only "asn" may be 0
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f'"{key}" must be a number from {least} to {most}')
    return value


def _texts(found: Mapping[str, Any], key: str) -> list[str]:
    value = found.get(key)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f'"{key}" must be a list of text')
    return value
