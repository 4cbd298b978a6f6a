"""Operations on addresses and routes (ip-address(8), ip-route(8))."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from core.ops.place import HOST, Place


@dataclass(frozen=True, slots=True)
class AddAddress:
    """Give a link an address with its prefix length ("10.9.0.1/24", "fd00::1/64", the latter without DAD)."""

    link: str
    address: str
    place: Place = HOST

    def command(self) -> str:
        return self.place.ip(_address_words("add", self.link, self.address))

    def inverse(self) -> tuple[DeleteAddress, ...]:
        return (DeleteAddress(self.link, self.address, self.place),)

    def describe(self) -> str:
        return f"give {self.link} in {self.place} the address {self.address}"


@dataclass(frozen=True, slots=True)
class DeleteAddress:
    """Take an address away from a link."""

    link: str
    address: str
    place: Place = HOST

    def command(self) -> str:
        return self.place.ip(f"addr del {self.address} dev {shlex.quote(self.link)}")

    def inverse(self) -> tuple[AddAddress, ...]:
        return (AddAddress(self.link, self.address, self.place),)

    def describe(self) -> str:
        return f"take the address {self.address} away from {self.link} in {self.place}"


def _address_words(verb: str, link: str, address: str) -> str:
    tentative = " nodad" if ":" in address else ""
    return f"addr {verb} {address} dev {shlex.quote(link)}{tentative}"


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
