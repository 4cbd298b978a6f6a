"""What must change so that the host is as a file wants it: nothing, where it is."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

from core.model import Network
from core.plan.desired import DOCKER_LABEL, Desired
from core.plan.requests import (
    Attach,
    ChangeMtu,
    CreateNetwork,
    Detach,
    Join,
    Part,
    Publish,
    RemoveContainer,
    RemoveNetwork,
    Request,
    Unpublish,
)
from core.plan.tags import OurMember, OurNetwork, OurPort, Ours, ours, pair, port_id
from core.topology import Topology


def difference(desired: Desired, topology: Topology, prune: bool = False) -> tuple[Request, ...]:
    """The requests that lead from what is to what is desired, in an order that works. `prune` removes what
    is ours and not in the file as well; what is not ours stays in any case."""
    return tuple(_Comparison(desired, topology, prune).requests())


class _Comparison:
    def __init__(self, desired: Desired, topology: Topology, prune: bool) -> None:
        self.desired, self.topology, self.prune = desired, topology, prune
        self.ours: Ours = ours(topology.snapshot, topology.host)
        engine = topology.snapshot.engines.get("docker")
        self.docker = {network.name: network for network in engine.networks} if engine else {}
        self.wanted_networks = {one.name: one for one in desired.networks}
        self.replaced = {one.name for one in desired.networks if self._differs(one)}
        self.surplus = self._surplus() if prune else set()
        self.gone = set(self.ours.containers) - {one.name for one in desired.containers} if prune else set()

    def requests(self) -> Iterator[Request]:
        yield from self._remove_ports()
        yield from self._part()
        yield from self._detach()
        yield from (RemoveContainer(name) for name in sorted(self.gone))
        yield from (RemoveNetwork(name) for name in sorted(self.surplus | self.replaced))
        for network in self.desired.networks:
            if network.name in self.replaced or not self._there(network.name):
                yield network
        yield from self._resize()
        yield from self._containers()
        yield from self._attach()
        for port in self.desired.ports:
            if not self._published(port):
                yield port
        for names in sorted({pair(*names) for names in self.desired.joined}):
            if names not in self.ours.joined or self.replaced.intersection(names):
                yield Join(*names)

    # Networks

    def _there(self, name: str) -> bool:
        return name in self.ours.networks or name in self.docker

    def _surplus(self) -> set[str]:
        key, value = DOCKER_LABEL
        made = {one.name for one in self.docker.values() if one.labels.get(key) == value}
        return (set(self.ours.networks) | made) - set(self.wanted_networks)

    def _differs(self, wanted: CreateNetwork) -> bool:
        """Whether a network of that name is there and is another one."""
        if wanted.engine == "docker":
            there = self.docker.get(wanted.name)
            return there is not None and _docker_differs(wanted, there)
        found = self.ours.networks.get(wanted.name)
        return found is not None and _differs(wanted, found)

    def _resize(self) -> Iterator[Request]:
        for wanted in self.desired.networks:
            found = self.ours.networks.get(wanted.name)
            if found and wanted.name not in self.replaced and wanted.mtu not in (0, found.mtu):
                yield ChangeMtu(wanted.name, wanted.mtu)

    # Containers

    def _containers(self) -> Iterator[Request]:
        names = {name for space in self.topology.snapshot.namespaces.values() for name in space.names}
        for container in self.desired.containers:
            if container.name not in names:
                bare = container.model == "bridged"
                yield replace(container, model="closed") if bare else container

    def _uid(self, text: str) -> str:
        """The uid of the container that a text names; of a plain one of that name where it is not there."""
        return self._uids.get(text) or (text if ":" in text else f"netns:{text}")

    @cached_property
    def _uids(self) -> dict[str, str]:
        """The uid of each container by all that it may be called, the first one's where several are."""
        found: dict[str, str] = {}
        for one in self.topology.containers.values():
            for text in (one.uid, one.id, one.name, f"{one.runtime}:{one.name}"):
                found.setdefault(text, one.uid)
        return found

    # Attachments

    def _wanted_members(self) -> dict[tuple[str, str], Attach]:
        return {(self._uid(one.container), one.network): one for one in self.desired.attachments}

    def _detach(self) -> Iterator[Request]:
        wanted = self._wanted_members()
        for member in self.ours.members:
            name = member.container.removeprefix("netns:")
            if member.network in self.surplus | self.replaced or name in self.gone:
                continue  # goes with its network or its container
            asked = wanted.get((member.container, member.network))
            if (asked is None and self.prune) or (asked is not None and not _same_end(asked, member)):
                yield Detach(member.container, member.network)

    def _attach(self) -> Iterator[Request]:
        there = {(one.container, one.network): one for one in self.ours.members}
        for key, asked in self._wanted_members().items():
            member = there.get(key)
            if member is None and self._attached_by_docker(asked):
                continue
            if member is None or asked.network in self.replaced or not _same_end(asked, member):
                yield asked

    def _attached_by_docker(self, asked: Attach) -> bool:
        container = self.topology.containers.get(self._uid(asked.container))
        ends = container.endpoints if container and container.runtime == "docker" else ()
        return any(end.network == asked.network for end in ends) and asked.network not in self.replaced

    # Ports and pairs

    def _published(self, asked: Publish) -> bool:
        return any(self._same_port(asked, port) for port in self._lasting_ports())

    def _same_port(self, asked: Publish, port: OurPort) -> bool:
        inside = asked.container_ports or asked.host_ports
        return (
            _id_of(asked) == port.port_id
            and inside == port.container_ports
            and self._uid(asked.container) == port.container
        )

    def _lasting_ports(self) -> list[OurPort]:
        """The published ports whose network stays."""
        ends = {
            address.partition("/")[0]: member for member in self.ours.members for address in member.addresses
        }
        going = self.surplus | self.replaced
        return [
            port
            for port in self.ours.ports
            if port.address not in ends or ends[port.address].network not in going
        ]

    def _remove_ports(self) -> Iterator[Request]:
        wanted = {_id_of(asked): asked for asked in self.desired.ports}
        for port in {one.port_id: one for one in self._lasting_ports()}.values():
            asked = wanted.get(port.port_id)
            if (asked is None and self.prune) or (asked is not None and not self._same_port(asked, port)):
                yield Unpublish(port.host_ports, port.l4_proto, port.host_ip)

    def _part(self) -> Iterator[Request]:
        wanted = {pair(*names) for names in self.desired.joined}
        for names in sorted(self.ours.joined - wanted):
            if self.prune and not (self.surplus | self.replaced).intersection(names):
                yield Part(*names)


def _differs(wanted: CreateNetwork, found: OurNetwork) -> bool:
    """Whether a network has to be made again to be as the file says; what it leaves open is as it is, and
    an MTU changes in place, unless the card's goes with it."""
    asked = {
        "kind": wanted.kind,
        "subnets": tuple(sorted(map(_prefix, wanted.subnets))),
        "mtu": wanted.mtu if found.kind == "nic-bridged" else 0,
        "bridge": wanted.bridge,
        "uplink": wanted.uplink,
    }
    there = {
        "kind": found.kind,
        "subnets": tuple(sorted(found.subnets)),
        "mtu": found.mtu,
        "bridge": found.bridge,
        "uplink": found.uplink,
    }
    other = any(value and value != there[key] for key, value in asked.items())
    gateways = {str(ipaddress.ip_address(one)) for one in wanted.gateways}
    return other or wanted.nat66 != found.nat66 or not gateways <= set(found.gateways)


def _docker_differs(wanted: CreateNetwork, there: Network) -> bool:
    subnets = bool(wanted.subnets) and set(map(_prefix, wanted.subnets)) != set(there.subnets)
    return subnets or (wanted.kind == "internal") != there.internal


def _prefix(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        return text  # planning says what is wrong with it


def _same_end(asked: Attach, member: OurMember) -> bool:
    plain = {one.partition("/")[0] for one in member.addresses}
    wanted = {str(ipaddress.ip_address(one)) for one in asked.addresses}
    return wanted <= plain and asked.link in ("", member.link)


def _id_of(asked: Publish) -> str:
    host_ip = str(ipaddress.ip_address(asked.host_ip)) if asked.host_ip else ""
    return port_id(asked.l4_proto, host_ip, asked.host_ports)
