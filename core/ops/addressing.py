"""Operations on addresses, routes and neighbours (ip-address(8), ip-route(8), ip-neighbour(8))."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from core.ops.place import HOST, Place


@dataclass(frozen=True, slots=True)
class AddAddress:
    """Give a link an address with its prefix length ("10.9.0.1/24", "fd00::1/64", the latter without DAD).

    `broadcast` and `scope` "" are ip-address(8)'s defaults; `prefix_route` False is its "noprefixroute".
    """

    link: str
    address: str
    place: Place = HOST
    broadcast: str = ""
    scope: str = ""
    prefix_route: bool = True

    def command(self) -> str:
        words = [f"addr add {self.address}"]
        words += [f"broadcast {self.broadcast}"] if self.broadcast else []
        words += [f"dev {shlex.quote(self.link)}"]
        words += [f"scope {self.scope}"] if self.scope else []
        words += ["nodad"] if ":" in self.address else []
        words += [] if self.prefix_route else ["noprefixroute"]
        return self.place.ip(" ".join(words))

    def inverse(self) -> tuple[DeleteAddress, ...]:
        more = (self.broadcast, self.scope, self.prefix_route)
        return (DeleteAddress(self.link, self.address, self.place, *more),)

    def describe(self) -> str:
        return f"give {self.link} in {self.place} the address {self.address}"


@dataclass(frozen=True, slots=True)
class DeleteAddress:
    """Take an address away from a link; `broadcast`, `scope` and `prefix_route` make it anew (AddAddress).

    The kernel deletes the secondary addresses of a subnet with its primary one: delete these before.
    """

    link: str
    address: str
    place: Place = HOST
    broadcast: str = ""
    scope: str = ""
    prefix_route: bool = True

    def command(self) -> str:
        return self.place.ip(f"addr del {self.address} dev {shlex.quote(self.link)}")

    def inverse(self) -> tuple[AddAddress, ...]:
        more = (self.broadcast, self.scope, self.prefix_route)
        return (AddAddress(self.link, self.address, self.place, *more),)

    def describe(self) -> str:
        return f"take the address {self.address} away from {self.link} in {self.place}"


@dataclass(frozen=True, slots=True)
class AddRoute:
    """Add a route of the main table: `dst` "default" or a prefix, by `gateway` ("" on the link itself).

    `protocol`, `scope` and `source` as ip-route(8) has them, "" for its own defaults.
    """

    dst: str
    link: str
    gateway: str = ""
    place: Place = HOST
    metric: int = 0
    source: str = ""
    protocol: str = ""
    scope: str = ""
    family: int = 4

    def command(self) -> str:
        return self.place.ip(self._words("add"))

    def inverse(self) -> tuple[DeleteRoute, ...]:
        return (DeleteRoute(self),)

    def describe(self) -> str:
        way = f" by {self.gateway}" if self.gateway else ""
        return f"route {self.dst}{way} over {self.link} in {self.place}"

    def _words(self, verb: str) -> str:
        words = ["-6"] if self.family == 6 else []
        words += ["route", verb, self.dst]
        words += ["via", self.gateway] if self.gateway else []
        words += ["dev", shlex.quote(self.link)]
        for name, value in (("proto", self.protocol), ("scope", self.scope), ("src", self.source)):
            words += [name, value] if value else []
        words += ["metric", str(self.metric)] if self.metric else []
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class DeleteRoute:
    """Take a route away."""

    route: AddRoute

    def command(self) -> str:
        return self.route.place.ip(self.route._words("del"))

    def inverse(self) -> tuple[AddRoute, ...]:
        return (self.route,)

    def describe(self) -> str:
        return f"take away the route to {self.route.dst} over {self.route.link} in {self.route.place}"


@dataclass(frozen=True, slots=True)
class AddNeighbour:
    """Tell a link the MAC of a neighbour; `state` is "permanent", "reachable" or "stale"."""

    link: str
    address: str
    mac: str
    place: Place = HOST
    state: str = "permanent"

    def command(self) -> str:
        words = f"neigh replace {self.address} lladdr {self.mac} dev {shlex.quote(self.link)}"
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
        words = f"neigh del {self.neighbour.address} dev {shlex.quote(self.neighbour.link)}"
        return self.neighbour.place.ip(words)

    def inverse(self) -> tuple[AddNeighbour, ...]:
        return (self.neighbour,)

    def describe(self) -> str:
        return f"let {self.neighbour.link} in {self.neighbour.place} forget {self.neighbour.address}"
