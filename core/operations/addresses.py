"""Change addresses, routes and neighbours.

The names and units are those of ip-address(8), ip-route(8) and ip-neighbour(8).
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from core.collect.routes import ROUTE_KINDS, protocol_number, scope_number, table_number
from core.model.link import LONG_AGO, METRICS, RTO_MIN
from core.operations.base import Operation
from core.operations.executor import Executor
from core.operations.values import HOST, NetnsTarget, recorded
from core.text import quoted

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
# include/uapi/linux/if_addr.h, rtnetlink.h
_IFA_F_NODAD, _IFA_F_NOPREFIXROUTE = 0x02, 0x200
_RTNH_F_ONLINK = 4
_FOR_EVER = 0xFFFFFFFF
_PREFERENCES = {"high": 1, "low": 3}
_METRIC_NUMBERS = {name: number for number, name in METRICS.items()}


@dataclass(frozen=True, slots=True)
class _AddressOperation(Operation):
    """Change an address of a link.

    The prefix length is that of the peer, if there is a peer. `broadcast`, `scope`, `label` and `metric` (of
    the prefix route) are those of ip-address(8), "" and 0 its defaults; `prefix_route` False is its
    "noprefixroute". `valid_until` and `preferred_until` are those of core.model.Address.
    """

    link: str
    address: str
    place: NetnsTarget = HOST
    broadcast: str = ""
    scope: str = ""
    prefix_route: bool = True
    peer: str = ""
    label: str = ""
    metric: int = 0
    valid_until: int = 0
    preferred_until: int = 0

    def _values(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def _address_words(self) -> str:
        """Return the address as ip-address(8) takes it."""
        host, _, length = self.address.partition("/")
        return f"{host} peer {self.peer}/{length}" if self.peer else self.address

    def affects(self) -> tuple[str, ...]:
        return (self.place.link(self.link),)

    def changed_link(self) -> tuple[str, NetnsTarget]:
        return self.link, self.place

    def comparable(self) -> Operation:
        return replace(self, valid_until=0, preferred_until=0)

    def _request(self, command: str, executor: Executor, **more: Any) -> None:
        host = ipaddress.ip_interface(self.address)
        index = executor.index(self.place, self.link)
        with executor.rtnetlink(self.place) as iproute:
            iproute.addr(
                command,
                index=index,
                family=_FAMILIES[host.version],
                local=str(host.ip),
                address=self.peer or str(host.ip),
                prefixlen=host.network.prefixlen,
                **more,
            )


@recorded()
class AddAddress(_AddressOperation):
    """Add an address to a link ("10.9.0.1/24", "fd00::1/64"); IPv6 ones without DAD."""

    __slots__ = ()

    def command(self) -> str:
        words = [f"addr add {self._address_words()}"]
        words += [f"broadcast {self.broadcast}"] if self.broadcast else []
        words += [f"label {quoted(self.label)}"] if self.label else []
        words += [f"dev {quoted(self.link)}"]
        words += [f"scope {self.scope}"] if self.scope else []
        words += [f"metric {self.metric}"] if self.metric else []
        for name, until in (("valid_lft", self.valid_until), ("preferred_lft", self.preferred_until)):
            words += [f"{name} {_left(until)}"] if until else []
        words += ["nodad"] if ":" in self.address else []
        words += [] if self.prefix_route else ["noprefixroute"]
        return self.place.ip(" ".join(words))

    def inverse(self) -> tuple[DeleteAddress, ...]:
        return (DeleteAddress(**self._values()),)

    def describe(self) -> str:
        return f"add the address {self.address} to {self.link} in {self.place}"

    def execute(self, executor: Executor) -> None:
        flags = 0 if self.prefix_route else _IFA_F_NOPREFIXROUTE
        flags |= _IFA_F_NODAD if ":" in self.address else 0
        more: dict[str, Any] = {"flags": flags} if flags else {}
        more |= {"broadcast": self.broadcast} if self.broadcast else {}
        more |= {"label": os.fsencode(self.label)} if self.label else {}
        more |= {"rt_priority": self.metric} if self.metric else {}
        if self.valid_until or self.preferred_until:
            more |= {"valid": _lifetime(self.valid_until, 1), "preferred": _lifetime(self.preferred_until, 0)}
        self._request("add", executor, scope=scope_number(self.scope or "global"), **more)


@recorded()
class DeleteAddress(_AddressOperation):
    """Remove an address from a link. The other fields serve its undo.

    With the primary address of a subnet the kernel removes the secondary ones: remove these first.
    """

    __slots__ = ()

    def command(self) -> str:
        return self.place.ip(f"addr del {self._address_words()} dev {quoted(self.link)}")

    def inverse(self) -> tuple[AddAddress, ...]:
        return (AddAddress(**self._values()),)

    def describe(self) -> str:
        return f"remove the address {self.address} from {self.link} in {self.place}"

    def execute(self, executor: Executor) -> None:
        self._request("delete", executor)


def _lifetime(until: int, least: int) -> int:
    """Return the seconds left until a time of an address, at least `least`."""
    if until == LONG_AGO:
        return 0
    return max(least, round(until - time.time())) if until else _FOR_EVER


def _left(until: int) -> str:
    """Return the seconds left until a time, as an expression for the shell."""
    return "0" if until == LONG_AGO else f"$(({until} - $(date +%s)))"


@recorded()
@dataclass(frozen=True, slots=True)
class Hop:
    """One of several next hops of a route."""

    link: str
    gateway: str = ""
    weight: int = 1
    onlink: bool = False


@recorded()
@dataclass(frozen=True, slots=True)
class AddRoute(Operation):
    """Add a route to `dst` ("default" or a prefix).

    It leads through `link` to `gateway` ("": directly), or to several `hops`; `link` and `gateway` are then
    "", as for a blackhole. `table`, `kind`, `protocol`, `scope` and `source` are those of ip-route(8), "" its
    defaults; each of `options` is a name and a value of ip-route(8) ("mtu lock 1400"). `valid_until` is in
    seconds since the epoch, 0 for ever. `beside` allows another route of the same destination and metric.
    """

    dst: str
    link: str
    gateway: str = ""
    place: NetnsTarget = HOST
    metric: int = 0
    source: str = ""
    protocol: str = ""
    scope: str = ""
    family: int = 4
    table: str = ""
    kind: str = ""
    onlink: bool = False
    options: tuple[str, ...] = ()
    hops: tuple[Hop, ...] = ()
    valid_until: int = 0
    beside: bool = False

    def command(self) -> str:
        return self.place.ip(self._words("append" if self.beside else "add"))

    def inverse(self) -> tuple[DeleteRoute, ...]:
        return (DeleteRoute(self),)

    def describe(self) -> str:
        return f"add {self._described()}"

    def _described(self) -> str:
        hops = " and ".join(
            f"via {hop.gateway} dev {hop.link}" if hop.gateway else f"dev {hop.link}"
            for hop in self.next_hops
        )
        table = f" in table {self.table}" if self.table else ""
        kind = f"{self.kind} " if self.kind else ""
        return f"the {kind}route {self.dst}{f' {hops}' if hops else ''}{table} in {self.place}"

    @property
    def next_hops(self) -> tuple[Hop, ...]:
        """The next hops of the route; none for a blackhole and the like."""
        alone = (Hop(self.link, self.gateway, onlink=self.onlink),) if self.link else ()
        return self.hops or alone

    def _words(self, verb: str) -> str:
        words = ["-6"] if self.family == 6 else []
        words += ["route", verb, *([self.kind] if self.kind else []), self.dst]
        if not self.hops and self.next_hops:
            words += self._hop_words(self.next_hops[0])
        named = (
            ("table", quoted(self.table) if self.table else ""),
            ("proto", self.protocol),
            ("scope", self.scope),
            ("src", self.source),
        )
        for name, value in named:
            words += [name, value] if value else []
        words += ["metric", str(self.metric)] if self.metric else []
        words += self.options
        words += ["expires", _left(self.valid_until)] if self.valid_until and verb != "del" else []
        for hop in self.hops:
            words += ["nexthop", *self._hop_words(hop), "weight", str(hop.weight)]
        return " ".join(words)

    def _hop_words(self, hop: Hop) -> list[str]:
        """Return a next hop as ip-route(8) takes it, without its weight."""
        crossing = ["inet6"] if self.family == 4 and ":" in hop.gateway else []
        words = ["via", *crossing, hop.gateway] if hop.gateway else []
        return [*words, "dev", quoted(hop.link), *(["onlink"] if hop.onlink else [])]

    def affects(self) -> tuple[str, ...]:
        links = tuple(self.place.link(hop.link) for hop in self.next_hops)
        return links or (f"the route {self.dst} in {self.place}",)

    def changed_link(self) -> tuple[str, NetnsTarget]:
        return self.link, self.place

    def comparable(self) -> Operation:
        return replace(self, valid_until=0)

    def execute(self, executor: Executor) -> None:
        from core.operations.rtnetlink import add_route

        header = self._header(self.protocol or "boot", self.scope or self._usual_scope())
        attributes = self._attributes(executor)
        with executor.rtnetlink(self.place) as iproute:
            add_route(iproute, header, attributes, self.beside)

    def _usual_scope(self) -> str:
        """Return the scope that ip-route(8) fills in.

        IPv4 routes without gateway have scope link.
        """
        if self.family == 4 and self.kind == "local":
            return "host"
        near = self.family == 4 and self.link and not self.gateway
        return "link" if near else "global"

    def _header(self, protocol: str, scope: str) -> dict[str, int]:
        """Return the fields of struct rtmsg."""
        table = self._table_number
        return {
            "family": _FAMILIES[self.family],
            "dst_len": 0 if self.dst == "default" else ipaddress.ip_network(self.dst, strict=False).prefixlen,
            "src_len": 0,
            "tos": int(self._options.get("tos", "0"), 0),
            "table": table if table < 256 else 0,
            "proto": protocol_number(protocol),
            "scope": scope_number(scope),
            "type": ROUTE_KINDS.index(self.kind or "unicast"),
            "flags": _RTNH_F_ONLINK if self.onlink else 0,
        }

    def _attributes(self, executor: Executor) -> list[tuple[str, Any]]:
        """Return the attributes RTA_*. Raises LookupError for a missing link."""
        table, options = self._table_number, self._options
        found: list[tuple[str, Any]] = []
        if self.dst != "default":
            found.append(("RTA_DST", str(ipaddress.ip_network(self.dst, strict=False).network_address)))
        found += self._next_hop_attributes(executor)
        found += [("RTA_TABLE", table)] if table > 255 else []
        found += [("RTA_PREFSRC", self.source)] if self.source else []
        found += [("RTA_PRIORITY", self.metric)] if self.metric else []
        found += [("RTA_PREF", _PREFERENCES[options["pref"]])] if "pref" in options else []
        if self.valid_until:  # pyroute2 takes it as bytes
            left = max(1, round(self.valid_until - time.time()))
            found.append(("RTA_EXPIRES", struct.pack("=I", left)))
        metrics = _metrics({name: value for name, value in options.items() if name not in ("tos", "pref")})
        return found + ([("RTA_METRICS", {"attrs": metrics})] if metrics else [])

    @property
    def _table_number(self) -> int:
        return table_number(self.table or "main")

    @property
    def _options(self) -> dict[str, str]:
        found = (text.partition(" ") for text in self.options)
        return {name: value for name, _, value in found}

    def _next_hop_attributes(self, executor: Executor) -> list[tuple[str, Any]]:
        if self.hops:
            return [("RTA_MULTIPATH", [self._multipath_hop(hop, executor) for hop in self.hops])]
        if not self.link:
            return []
        index = executor.index(self.place, self.link)
        return [("RTA_OIF", index), *self._gateway(self.gateway)]

    def _multipath_hop(self, hop: Hop, executor: Executor) -> dict[str, Any]:
        return {
            "oif": executor.index(self.place, hop.link),
            "flags": _RTNH_F_ONLINK if hop.onlink else 0,
            "hops": hop.weight - 1,
            "attrs": self._gateway(hop.gateway),
        }

    def _gateway(self, gateway: str) -> list[tuple[str, Any]]:
        if self.family == 4 and ":" in gateway:
            return [("RTA_VIA", {"family": socket.AF_INET6, "addr": gateway})]
        return [("RTA_GATEWAY", gateway)] if gateway else []


@recorded()
@dataclass(frozen=True, slots=True)
class DeleteRoute(Operation):
    """Remove a route."""

    route: AddRoute

    def command(self) -> str:
        return self.route.place.ip(self.route._words("del"))

    def inverse(self) -> tuple[AddRoute, ...]:
        return (self.route,)

    def describe(self) -> str:
        return f"remove {self.route._described()}"

    def affects(self) -> tuple[str, ...]:
        return self.route.affects()

    def changed_link(self) -> tuple[str, NetnsTarget]:
        return self.route.changed_link()

    def comparable(self) -> Operation:
        return DeleteRoute(replace(self.route, valid_until=0))

    def execute(self, executor: Executor) -> None:
        from core.operations.rtnetlink import delete_route

        gone = self.route
        header = gone._header(gone.protocol or "unspec", gone.scope or "nowhere")
        attributes = gone._attributes(executor)
        with executor.rtnetlink(gone.place) as iproute:
            delete_route(iproute, header, attributes)


def _metrics(options: dict[str, str]) -> list[tuple[str, Any]]:
    """Return the attributes of RTA_METRICS for words of ip-route(8).

    Raises KeyError for an unknown word.
    """
    found: list[tuple[str, Any]] = []
    locked = 0
    for name, words in options.items():
        number, value = _METRIC_NUMBERS[name], words.removeprefix("lock ")
        locked |= (value != words or number == RTO_MIN) << number
        found.append(_metric(name, value))
    return found + ([("RTAX_LOCK", locked)] if locked else [])


def _metric(name: str, value: str) -> tuple[str, Any]:
    if name == "congctl":
        return "RTAX_CC_ALGO", os.fsencode(value)
    return f"RTAX_{name.upper()}", 1 if (name, value) == ("features", "ecn") else int(value)


_EXTERN_LEARN = 0x10  # NTF_EXT_LEARNED of linux/neighbour.h


@recorded()
@dataclass(frozen=True, slots=True)
class AddNeighbour(Operation):
    """Set the MAC of a neighbour; `state` is "permanent", "reachable" or "stale".

    `extern_learn`: the kernel keeps an unused one, and still follows a changed MAC.
    """

    link: str
    address: str
    mac: str
    place: NetnsTarget = HOST
    state: str = "permanent"
    extern_learn: bool = False

    def command(self) -> str:
        words = f"neigh replace {self.address} lladdr {self.mac} dev {quoted(self.link)}"
        learned = " extern_learn" if self.extern_learn else ""
        return self.place.ip(f"{words} nud {self.state}{learned}")

    def inverse(self) -> tuple[DeleteNeighbour, ...]:
        return (DeleteNeighbour(self),)

    def describe(self) -> str:
        return f"add the neighbour {self.address} at {self.mac} to {self.link} in {self.place}"

    def affects(self) -> tuple[str, ...]:
        return (self.place.link(self.link),)

    def changed_link(self) -> tuple[str, NetnsTarget]:
        return self.link, self.place

    def comparable(self) -> None:
        return None  # neighbours come and go by the second

    def execute(self, executor: Executor) -> None:
        index = executor.index(self.place, self.link)
        with executor.rtnetlink(self.place) as iproute:
            iproute.neigh(
                "replace", ifindex=index, dst=self.address, lladdr=self.mac, state=self.state,
                flags=_EXTERN_LEARN * self.extern_learn,
            )  # fmt: skip


@recorded()
@dataclass(frozen=True, slots=True)
class DeleteNeighbour(Operation):
    """Remove a neighbour; `neighbour` is its undo."""

    neighbour: AddNeighbour

    def command(self) -> str:
        words = f"neigh del {self.neighbour.address} dev {quoted(self.neighbour.link)}"
        return self.neighbour.place.ip(words)

    def inverse(self) -> tuple[AddNeighbour, ...]:
        return (self.neighbour,) if self.neighbour.mac else ()  # the kernel asks for it again

    def describe(self) -> str:
        gone = self.neighbour
        return f"remove the neighbour {gone.address} from {gone.link} in {gone.place}"

    def affects(self) -> tuple[str, ...]:
        return self.neighbour.affects()

    def changed_link(self) -> tuple[str, NetnsTarget]:
        return self.neighbour.changed_link()

    def comparable(self) -> None:
        return None

    def execute(self, executor: Executor) -> None:
        gone = self.neighbour
        index = executor.index(gone.place, gone.link)
        with _may_be_gone(gone.extern_learn), executor.rtnetlink(gone.place) as iproute:
            iproute.neigh("delete", ifindex=index, dst=gone.address)


@contextmanager
def _may_be_gone(allowed: bool) -> Iterator[None]:
    """Ignore that the kernel has deleted a neighbour itself."""
    try:
        yield
    except OSError as error:
        if not allowed or error.errno != errno.ENOENT:
            raise
