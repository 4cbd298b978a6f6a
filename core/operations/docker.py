"""Operations that the Docker Engine does for us, through its API."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from core.text import joined

# What tells networks that were made by us, for Docker knows no tags.
LABELS = {"vnet": "1"}

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class DockerCreateNetwork:
    """Make a Docker network of the bridge driver; `subnets` and `gateways` in the same order, `ip_ranges` and
    `reserved` ("name=address") in any."""

    name: str
    subnets: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    internal: bool = False
    ipv6: bool = False
    mtu: int = 0
    bridge: str = ""
    driver_options: Pairs = ()
    labels: Pairs = tuple(LABELS.items())
    attachable: bool = False
    ipv4: bool = True
    ip_ranges: tuple[str, ...] = ()
    reserved: tuple[str, ...] = ()
    ipam: str = ""
    ipam_options: Pairs = ()

    def command(self) -> str:
        words = ["docker", "network", "create"]
        for subnet, gateway in zip(self.subnets, self.gateways, strict=True):
            words += ["--subnet", subnet, *(["--gateway", gateway] if gateway else [])]
        words += _each("--ip-range", self.ip_ranges) + _each("--aux-address", self.reserved)
        words += ["--internal"] if self.internal else []
        words += ["--attachable"] if self.attachable else []
        words += ["--ipv6"] if self.ipv6 else []
        words += [] if self.ipv4 else ["--ipv4=false"]
        words += ["--ipam-driver", self.ipam] if self.ipam else []
        words += _each("--ipam-opt", _assignments(self.ipam_options))
        words += _each("--opt", _assignments(tuple(self.options().items())))
        return joined([*words, *_each("--label", _assignments(self.labels)), self.name])

    def options(self) -> dict[str, str]:
        """The bridge driver's options."""
        options = {"com.docker.network.driver.mtu": str(self.mtu)} if self.mtu else {}
        options |= {"com.docker.network.bridge.name": self.bridge} if self.bridge else {}
        return options | dict(self.driver_options)

    def request(self) -> dict[str, Any]:
        """What is asked of Docker's API; what is left out is as usual, and unknown to older Docker."""
        return {
            "Name": self.name,
            "CheckDuplicate": True,
            "Driver": "bridge",
            "Internal": self.internal,
            "Attachable": self.attachable,
            "EnableIPv6": self.ipv6,
            **({} if self.ipv4 else {"EnableIPv4": False}),
            "IPAM": {
                "Driver": self.ipam or "default",
                "Options": dict(self.ipam_options),
                "Config": list(self._pools()),
            },
            "Options": self.options(),
            "Labels": dict(self.labels),
        }

    def _pools(self) -> Iterator[dict[str, Any]]:
        for subnet, gateway in zip(self.subnets, self.gateways, strict=True):
            ranges = [one for one in self.ip_ranges if _is_within(one, subnet)]
            reserved = [one.partition("=") for one in self.reserved]
            pool = {
                "Subnet": subnet,
                "Gateway": gateway,
                "IPRange": ranges[0] if ranges else "",
                "AuxiliaryAddresses": {name: at for name, _, at in reserved if _is_within(at, subnet)},
            }
            yield {key: value for key, value in pool.items() if value}

    def inverse(self) -> tuple[DockerRemoveNetwork, ...]:
        return (DockerRemoveNetwork(self),)

    def describe(self) -> str:
        return f"have Docker make the network {self.name}"


@dataclass(frozen=True, slots=True)
class DockerRemoveNetwork:
    """Remove a Docker network; `network` makes it anew."""

    network: DockerCreateNetwork

    def command(self) -> str:
        return joined(["docker", "network", "rm", self.network.name])

    def inverse(self) -> tuple[DockerCreateNetwork, ...]:
        return (self.network,)

    def describe(self) -> str:
        return f"have Docker remove the network {self.network.name}"


@dataclass(frozen=True, slots=True)
class DockerConnect:
    """Attach a container to a Docker network; addresses "" let Docker choose; `aliases` are its further names
    in Docker's DNS there.

    Where it does not `insist`, the addresses are those that it had: Docker is asked for those alone that
    somebody chose (`chosen`), and for the others only where it would choose differently and lets them be
    chosen: on networks whose subnet it chose itself it does not."""

    network: str
    container: str
    ipv4: str = ""
    ipv6: str = ""
    aliases: tuple[str, ...] = ()
    insist: bool = True
    chosen: tuple[str, ...] = ()
    link_local: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    driver_options: Pairs = ()
    gateway_priority: int = 0

    def command(self) -> str:
        words = ["docker", "network", "connect"]
        for option, address in (("--ip", self.ipv4), ("--ip6", self.ipv6)):
            words += [option, address] if address in self.demanded() else []
        words += _each("--alias", self.aliases) + _each("--link-local-ip", self.link_local)
        words += _each("--link", self.links) + _each("--driver-opt", _assignments(self.driver_options))
        words += ["--gw-priority", str(self.gateway_priority)] if self.gateway_priority else []
        return joined([*words, self.network, self.container])

    def demanded(self) -> tuple[str, ...]:
        """The addresses to ask Docker for."""
        every = tuple(one for one in (self.ipv4, self.ipv6) if one)
        return every if self.insist else tuple(one for one in every if one in self.chosen)

    def request(self) -> dict[str, Any]:
        """What is asked of Docker's API; older Docker passes over a gateway's priority."""
        demanded = self.demanded()
        addresses = {
            "IPv4Address": self.ipv4 if self.ipv4 in demanded else "",
            "IPv6Address": self.ipv6 if self.ipv6 in demanded else "",
            "LinkLocalIPs": list(self.link_local),
        }
        settings = {
            "IPAMConfig": {key: value for key, value in addresses.items() if value},
            "Aliases": list(self.aliases),
            "Links": list(self.links),
            "DriverOpts": dict(self.driver_options),
            "GwPriority": self.gateway_priority,
        }
        filled = {key: value for key, value in settings.items() if value}
        return {"Container": self.container, "EndpointConfig": filled}

    def inverse(self) -> tuple[DockerDisconnect, ...]:
        return (DockerDisconnect(self),)

    def describe(self) -> str:
        return f"have Docker attach {self.container} to {self.network}"


@dataclass(frozen=True, slots=True)
class DockerDisconnect:
    """Detach a container from a Docker network; `connection` attaches it anew."""

    connection: DockerConnect

    def command(self) -> str:
        return joined(["docker", "network", "disconnect", self.connection.network, self.connection.container])

    def inverse(self) -> tuple[DockerConnect, ...]:
        return (self.connection,)

    def describe(self) -> str:
        return f"have Docker detach {self.connection.container} from {self.connection.network}"


def _each(option: str, values: tuple[str, ...]) -> list[str]:
    return [word for value in values for word in (option, value)]


def _assignments(pairs: Pairs) -> tuple[str, ...]:
    return tuple(f"{key}={value}" for key, value in pairs)


def _is_within(address: str, subnet: str) -> bool:
    """Whether an address or a part of a subnet is in that subnet."""
    first = ipaddress.ip_network(address, strict=False).network_address
    return first in ipaddress.ip_network(subnet, strict=False)
