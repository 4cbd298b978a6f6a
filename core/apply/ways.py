"""The messages of routes for rtnetlink(7): their ways, metrics and rarer properties."""

from __future__ import annotations

import ipaddress
import os
import struct
import time
from collections.abc import Callable, Iterator

from core.apply.route import FAMILIES, packed, u32_attribute
from core.collect import names
from core.collect.routes import ROUTE_KINDS
from core.model.link import METRICS, RTO_MIN
from core.netlink.client import attribute
from core.operations import AddRoute, Hop

# linux/rtnetlink.h
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_METRICS = 1, 4, 5, 6, 7, 8
_RTA_MULTIPATH, _RTA_TABLE, _RTA_VIA, _RTA_PREF, _RTA_EXPIRES = 9, 15, 18, 20, 23
_RTAX_LOCK, _RTNH_F_ONLINK = 1, 4
_NUMBERS = {name: number for number, name in METRICS.items()}
_PREFERENCES = {"high": 1, "low": 3}

_ROUTE = struct.Struct("=BBBBBBBBI")
_NEXTHOP = struct.Struct("=HBBi")


def body(wanted: AddRoute, index: Callable[[str], int], protocol: int, scope: int) -> bytes:
    """The route as RTM_NEWROUTE and RTM_DELROUTE take it; `index` finds a link's ifindex by its name."""
    prefix, length = b"", 0
    if wanted.dst != "default":
        network = ipaddress.ip_network(wanted.dst, strict=False)
        prefix, length = attribute(_RTA_DST, network.network_address.packed), network.prefixlen
    table, options = names.table_number(wanted.table or "main"), dict(map(_option, wanted.options))
    numbers = (
        FAMILIES[wanted.family], length, 0, int(options.pop("tos", "0"), 0), table if table < 256 else 0,
        protocol, scope, ROUTE_KINDS.index(wanted.kind or "unicast"),
        _RTNH_F_ONLINK if wanted.onlink else 0,
    )  # fmt: skip
    found = [_ROUTE.pack(*numbers), prefix, *_ways(wanted, index)]
    found += [u32_attribute(_RTA_TABLE, table)] if table > 255 else []
    found += [attribute(_RTA_PREFSRC, packed(wanted.source))] if wanted.source else []
    found += [u32_attribute(_RTA_PRIORITY, wanted.metric)] if wanted.metric else []
    if "pref" in options:
        found.append(attribute(_RTA_PREF, bytes([_PREFERENCES[options.pop("pref")]])))
    if wanted.valid_until:
        found.append(u32_attribute(_RTA_EXPIRES, max(1, round(wanted.valid_until - time.time()))))
    return b"".join([*found, _metrics(options)])


def _option(text: str) -> tuple[str, str]:
    name, _, value = text.partition(" ")
    return name, value


def _ways(wanted: AddRoute, index: Callable[[str], int]) -> Iterator[bytes]:
    if not wanted.hops:
        yield u32_attribute(_RTA_OIF, index(wanted.link)) + _gateway(wanted.family, wanted.gateway)
        return
    hops = b""
    for hop in wanted.hops:
        hops += _hop(hop, index(hop.link), _gateway(wanted.family, hop.gateway))
    yield attribute(_RTA_MULTIPATH, hops)


def _hop(hop: Hop, ifindex: int, gateway: bytes) -> bytes:
    flags = _RTNH_F_ONLINK if hop.onlink else 0
    return _NEXTHOP.pack(_NEXTHOP.size + len(gateway), flags, hop.weight - 1, ifindex) + gateway


def _gateway(family: int, gateway: str) -> bytes:
    if not gateway:
        return b""
    if family == 4 and ":" in gateway:
        return attribute(_RTA_VIA, struct.pack("=H", FAMILIES[6]) + packed(gateway))
    return attribute(_RTA_GATEWAY, packed(gateway))


def _metrics(options: dict[str, str]) -> bytes:
    """RTA_METRICS from ip-route(8)'s words. Raises KeyError for a word that is none of its metrics."""
    found, locked = b"", 0
    for name, words in options.items():
        number, value = _NUMBERS[name], words.removeprefix("lock ")
        locked |= (value != words or number == RTO_MIN) << number
        found += _metric(number, name, value)
    found += u32_attribute(_RTAX_LOCK, locked) if locked else b""
    return attribute(_RTA_METRICS, found) if found else b""


def _metric(number: int, name: str, value: str) -> bytes:
    if name == "congctl":
        return attribute(number, os.fsencode(value) + b"\0")
    return u32_attribute(number, 1 if (name, value) == ("features", "ecn") else int(value))
