"""Change Docker networks through the API of the Docker Engine."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, ClassVar
from urllib.parse import quote

from core.operations.base import Operation
from core.operations.executor import EngineError, Executor, engine_errors, post
from core.operations.values import recorded
from core.text import joined

# Seconds that an interrupted request may take until Docker has executed it.
_IN_FLIGHT = 1.0

# The label of the networks that vnet-tui creates: Docker has no tags.
LABELS = {"vnet": "1"}

Pairs = tuple[tuple[str, str], ...]


class _DockerOperation(Operation):
    __slots__ = ()

    survives_reboot: ClassVar[bool] = True
    by_docker: ClassVar[bool] = True


@recorded()
@dataclass(frozen=True, slots=True)
class DockerCreateNetwork(_DockerOperation):
    """Create a Docker network of the bridge driver.

    `gateways` are in the order of `subnets`; `ip_ranges` and `reserved` ("name=address") in any order.
    """

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
        """Return the options of the bridge driver."""
        options = {"com.docker.network.driver.mtu": str(self.mtu)} if self.mtu else {}
        options |= {"com.docker.network.bridge.name": self.bridge} if self.bridge else {}
        return options | dict(self.driver_options)

    def request(self) -> dict[str, Any]:
        """Return the request to Docker's API.

        It has no default values, because older versions don't know them.
        """
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
        return f"have Docker create the network {self.name}"

    def affects(self) -> tuple[str, ...]:
        return (f"Docker's network {self.name}",)

    def execute(self, executor: Executor) -> None:
        client = executor.docker()
        with engine_errors(already=[HTTPStatus.CONFLICT]):
            post(client, "/networks/create", self.request())

    def target_exists(self, executor: Executor) -> bool:
        return _network_named(self.name, executor) is not None

    def may_be_done(self, executor: Executor) -> bool:
        """Return whether Docker has the network and it carries its labels.

        Waits for a request in flight. Also True if Docker doesn't answer.
        """
        deadline = time.monotonic() + _IN_FLIGHT
        try:
            while (found := _network_named(self.name, executor)) is None and time.monotonic() < deadline:
                time.sleep(_IN_FLIGHT / 20)
        except EngineError:
            return True
        return found is not None and dict(self.labels).items() <= (found.get("Labels") or {}).items()


@recorded()
@dataclass(frozen=True, slots=True)
class DockerRemoveNetwork(_DockerOperation):
    """Remove a Docker network; `network` is its undo."""

    network: DockerCreateNetwork

    def command(self) -> str:
        return joined(["docker", "network", "rm", self.network.name])

    def inverse(self) -> tuple[DockerCreateNetwork, ...]:
        return (self.network,)

    def describe(self) -> str:
        return f"have Docker remove the network {self.network.name}"

    def affects(self) -> tuple[str, ...]:
        return self.network.affects()

    def execute(self, executor: Executor) -> None:
        client = executor.docker()
        with engine_errors(already=[HTTPStatus.NOT_FOUND]):
            client.remove_network(self.network.name)


@recorded()
@dataclass(frozen=True, slots=True)
class DockerConnect(_DockerOperation):
    """Attach a container to a Docker network; for an address "" Docker chooses one.

    `aliases` are its additional names in Docker's DNS. Without `insist` the addresses are those that the
    container had: only those that a user chose (`chosen`) are requested at first. The others are requested
    if Docker gives out different ones, which it refuses in subnets that it chose itself.
    """

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
            words += [option, address] if address in self.requested_addresses() else []
        words += _each("--alias", self.aliases) + _each("--link-local-ip", self.link_local)
        words += _each("--link", self.links) + _each("--driver-opt", _assignments(self.driver_options))
        words += ["--gw-priority", str(self.gateway_priority)] if self.gateway_priority else []
        return joined([*words, self.network, self.container])

    def requested_addresses(self) -> tuple[str, ...]:
        """Return the addresses to request from Docker."""
        every = tuple(one for one in (self.ipv4, self.ipv6) if one)
        return every if self.insist else tuple(one for one in every if one in self.chosen)

    def request(self) -> dict[str, Any]:
        """Return the request to Docker's API.

        Older versions ignore the priority of the gateway.
        """
        requested_addresses = self.requested_addresses()
        addresses = {
            "IPv4Address": self.ipv4 if self.ipv4 in requested_addresses else "",
            "IPv6Address": self.ipv6 if self.ipv6 in requested_addresses else "",
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

    def affects(self) -> tuple[str, ...]:
        return f"Docker's network {self.network}", f"Docker's container {self.container}"

    def execute(self, executor: Executor) -> None:
        try:
            self._connect(executor)
        except EngineError as error:
            error.already = error.answered and self.target_exists(executor)
            if error.already or self.insist or not error.answered or not self.requested_addresses():
                raise
            replace(self, chosen=())._connect(executor)
        if not self.insist and self._differs(executor):
            self._connect_as_before(executor)

    def target_exists(self, executor: Executor) -> bool:
        """Return whether the container is on the network. Raises EngineError."""
        return self._endpoint(executor) is not None

    def _connect(self, executor: Executor) -> None:
        client = executor.docker()
        with engine_errors():
            post(client, f"/networks/{quote(self.network, safe='')}/connect", self.request())

    def _differs(self, executor: Executor) -> bool:
        """Return whether a running container got other addresses than it had."""
        end = self._endpoint(executor) or {}
        now = {end.get("IPAddress"), end.get("GlobalIPv6Address")} - {None, ""}
        return bool(now) and not {self.ipv4, self.ipv6} - {""} <= now

    def _connect_as_before(self, executor: Executor) -> None:
        """Attach it again, with its earlier addresses if Docker allows that."""
        client = executor.docker()
        with engine_errors():
            client.disconnect_container_from_network(self.container, self.network)
        try:
            replace(self, insist=True)._connect(executor)
        except EngineError as error:
            if not error.answered:
                raise
            replace(self, chosen=())._connect(executor)

    def _endpoint(self, executor: Executor) -> dict[str, Any] | None:
        """Return Docker's description of the attachment, None without one.

        Raises EngineError.
        """
        client = executor.docker()
        try:
            with engine_errors(already=[HTTPStatus.NOT_FOUND]):
                answer = client.inspect_container(self.container)
        except EngineError as error:
            if error.already:
                return None
            raise
        found = (answer.get("NetworkSettings") or {}).get("Networks") or {}
        by_id = {end.get("NetworkID"): end for end in found.values()}
        return found.get(self.network) or by_id.get(self.network)


@recorded()
@dataclass(frozen=True, slots=True)
class DockerDisconnect(_DockerOperation):
    """Detach a container from a Docker network; `connection` is its undo."""

    connection: DockerConnect

    def command(self) -> str:
        return joined(["docker", "network", "disconnect", self.connection.network, self.connection.container])

    def inverse(self) -> tuple[DockerConnect, ...]:
        return (self.connection,)

    def describe(self) -> str:
        return f"have Docker detach {self.connection.container} from {self.connection.network}"

    def affects(self) -> tuple[str, ...]:
        return self.connection.affects()

    def execute(self, executor: Executor) -> None:
        client = executor.docker()
        try:
            with engine_errors(already=[HTTPStatus.NOT_FOUND]):
                client.disconnect_container_from_network(self.connection.container, self.connection.network)
        except EngineError as error:
            # The status for "is not connected" differs between versions of Docker: ask for the endpoint.
            error.already |= error.answered and not self.connection.target_exists(executor)
            raise


def _network_named(name: str, executor: Executor) -> dict[str, Any] | None:
    """Return Docker's description of the network of that name, None without one.

    Raises EngineError.
    """
    client = executor.docker()
    with engine_errors():
        return next((dict(one) for one in client.networks(names=[name]) if one["Name"] == name), None)


def _each(option: str, values: tuple[str, ...]) -> list[str]:
    return [word for value in values for word in (option, value)]


def _assignments(pairs: Pairs) -> tuple[str, ...]:
    return tuple(f"{key}={value}" for key, value in pairs)


def _is_within(address: str, subnet: str) -> bool:
    """Return whether an address or a range is in that subnet."""
    first = ipaddress.ip_network(address, strict=False).network_address
    return first in ipaddress.ip_network(subnet, strict=False)
