"""Operations on addresses, routes and neighbours (ip-address(8), ip-route(8), ip-neighbour(8))."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from core.model.link import LONG_AGO
from core.operations.target import HOST, NetnsTarget
from core.text import quoted


@dataclass(frozen=True, slots=True)
class _OfAddress:
    """A link's address with its prefix length, which is the peer's where there is one.

    `broadcast`, `scope`, `label` and `metric` (the prefix route's) as ip-address(8) has them, "" and 0 for
    its own defaults; `prefix_route` False is its "noprefixroute". `valid_until` and `preferred_until` are as
    in the model's Address.
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

    def _which(self) -> str:
        """The address as ip-address(8) takes it."""
        host, _, length = self.address.partition("/")
        return f"{host} peer {self.peer}/{length}" if self.peer else self.address


class AddAddress(_OfAddress):
    """Give a link an address ("10.9.0.1/24", "fd00::1/64", the latter without DAD)."""

    __slots__ = ()

    def command(self) -> str:
        words = [f"addr add {self._which()}"]
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
        return f"give {self.link} in {self.place} the address {self.address}"


class DeleteAddress(_OfAddress):
    """Take an address away from a link; all but the address itself serves to make it anew.

    The kernel deletes the secondary addresses of a subnet with its primary one: delete these before.
    """

    __slots__ = ()

    def command(self) -> str:
        return self.place.ip(f"addr del {self._which()} dev {quoted(self.link)}")

    def inverse(self) -> tuple[AddAddress, ...]:
        return (AddAddress(**self._values()),)

    def describe(self) -> str:
        return f"take the address {self.address} away from {self.link} in {self.place}"


def _left(until: int) -> str:
    """The seconds left until a time, which a shell counts when it gets there."""
    return "0" if until == LONG_AGO else f"$(({until} - $(date +%s)))"


@dataclass(frozen=True, slots=True)
class Hop:
    """One of several ways of a route."""

    link: str
    gateway: str = ""
    weight: int = 1
    onlink: bool = False


@dataclass(frozen=True, slots=True)
class AddRoute:
    """Add a route: `dst` "default" or a prefix, by `gateway` ("" on the link itself), or by several `hops`,
    without link and gateway of its own.

    `table`, `kind`, `protocol`, `scope` and `source` as ip-route(8) has them, "" for its own defaults;
    `options` in its words, each a name and a value ("mtu lock 1400"); `valid_until` in seconds since the
    epoch, 0 for ever. `beside` where it may stand beside another of the same destination and metric.
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
        ways = " and ".join(
            f"by {hop.gateway} over {hop.link}" if hop.gateway else f"over {hop.link}" for hop in self.ways
        )
        table = f" of table {self.table}" if self.table else ""
        return f"route {self.dst}{table} {ways} in {self.place}"

    @property
    def ways(self) -> tuple[Hop, ...]:
        """The ways of the route, also where it has but one."""
        return self.hops or (Hop(self.link, self.gateway, onlink=self.onlink),)

    def _words(self, verb: str) -> str:
        words = ["-6"] if self.family == 6 else []
        words += ["route", verb, *([self.kind] if self.kind else []), self.dst]
        if not self.hops:
            words += self._way(self.ways[0])
        told = (
            ("table", quoted(self.table) if self.table else ""),
            ("proto", self.protocol),
            ("scope", self.scope),
            ("src", self.source),
        )
        for name, value in told:
            words += [name, value] if value else []
        words += ["metric", str(self.metric)] if self.metric else []
        words += self.options
        words += ["expires", _left(self.valid_until)] if self.valid_until and verb != "del" else []
        for hop in self.hops:
            words += ["nexthop", *self._way(hop), "weight", str(hop.weight)]
        return " ".join(words)

    def _way(self, hop: Hop) -> list[str]:
        """A way as ip-route(8) takes it, less the weight."""
        crossing = ["inet6"] if self.family == 4 and ":" in hop.gateway else []
        words = ["via", *crossing, hop.gateway] if hop.gateway else []
        return [*words, "dev", quoted(hop.link), *(["onlink"] if hop.onlink else [])]


@dataclass(frozen=True, slots=True)
class DeleteRoute:
    """Take a route away."""

    route: AddRoute

    def command(self) -> str:
        return self.route.place.ip(self.route._words("del"))

    def inverse(self) -> tuple[AddRoute, ...]:
        return (self.route,)

    def describe(self) -> str:
        return f"take away the {self.route.describe()}"


@dataclass(frozen=True, slots=True)
class AddNeighbour:
    """Tell a link the MAC of a neighbour; `state` is "permanent", "reachable" or "stale"."""

    link: str
    address: str
    mac: str
    place: NetnsTarget = HOST
    state: str = "permanent"

    def command(self) -> str:
        words = f"neigh replace {self.address} lladdr {self.mac} dev {quoted(self.link)}"
        return self.place.ip(f"{words} nud {self.state}")

    def inverse(self) -> tuple[DeleteNeighbour, ...]:
        return (DeleteNeighbour(self),)

    def describe(self) -> str:
        return f"tell {self.link} in {self.place} that {self.address} is at {self.mac}"


@dataclass(frozen=True, slots=True)
class DeleteNeighbour:
    """Let a link forget a neighbour; `neighbour` tells it anew."""

    neighbour: AddNeighbour

    def command(self) -> str:
        words = f"neigh del {self.neighbour.address} dev {quoted(self.neighbour.link)}"
        return self.neighbour.place.ip(words)

    def inverse(self) -> tuple[AddNeighbour, ...]:
        return (self.neighbour,)

    def describe(self) -> str:
        return f"let {self.neighbour.link} in {self.neighbour.place} forget {self.neighbour.address}"
