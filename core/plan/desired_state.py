"""Read desired state from a TOML file, and compare it with the host."""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from core.model import Network
from core.plan.export import DOCKER_LABEL, tunnel_values
from core.plan.requests import (
    Attach,
    ChangeMtu,
    CreateContainer,
    CreateNetwork,
    Detach,
    Join,
    JoinOverlay,
    LeaveOverlay,
    Publish,
    RemoveContainer,
    RemoveNetwork,
    Request,
    Separate,
    Unpublish,
)
from core.plan.tags import VnetMember, VnetNetwork, VnetPort, VnetState, pair, port_id, vnet_state
from core.text import safe
from core.topology import Topology


@dataclass(frozen=True, slots=True)
class Desired:
    """The content of a file; `joined` holds pairs of network names."""

    networks: tuple[CreateNetwork, ...] = ()
    containers: tuple[CreateContainer, ...] = ()
    attachments: tuple[Attach, ...] = ()
    ports: tuple[Publish, ...] = ()
    joined: tuple[tuple[str, str], ...] = ()


class BadFile(Exception):
    """The file is invalid; `reasons` are sentences with line numbers."""

    def __init__(self, reasons: list[str]) -> None:
        self.reasons = tuple(reasons)
        super().__init__("; ".join(reasons))


# Each kind of table, and the class whose fields are its keys.
_NAMED: dict[str, type] = {"network": CreateNetwork, "container": CreateContainer}
_LISTED: dict[str, type] = {"attach": Attach, "publish": Publish}
# The networks of a container are [[attach]] tables.
_LEFT_OUT: dict[type, tuple[str, ...]] = {CreateContainer: ("network", "addresses")}
_KINDS: dict[str, type] = {"str": str, "int": int, "bool": bool, "tuple[str, ...]": list}
_TYPE_NAMES: dict[type, str] = {
    str: "text",
    int: "an integer",
    bool: "true or false",
    list: "a list of text",
}


def parse(text: str) -> Desired:
    """Parse the text of a file. Raises BadFile with all mistakes."""
    try:
        tables = tomllib.loads(text)
    except (
        ValueError,
        RecursionError,
    ) as error:  # ValueError: not TOML, or a number with thousands of digits
        raise BadFile([str(error)]) from error
    reader = _Reader(text)
    found = reader.read(tables)
    if reader.reasons:
        raise BadFile(reader.reasons)
    return found


class _Reader:
    """Read the tables of one file and collect all mistakes."""

    def __init__(self, text: str) -> None:
        self.lines = text.splitlines()
        self.reasons: list[str] = []

    def read(self, tables: Mapping[str, Any]) -> Desired:
        for key in tables:
            if key not in (*_NAMED, *_LISTED, "joined"):
                known = ", ".join((*_NAMED, *_LISTED, "joined"))
                self.add_mistake(f'unknown table "{safe(key)}". Try: {known}', _line(self.lines, "", key))
        return Desired(
            tuple(self._named("network", tables)),
            tuple(self._named("container", tables)),
            tuple(self._listed("attach", tables)),
            tuple(self._listed("publish", tables)),
            tuple(self._pairs(tables.get("joined", []))),
        )

    def add_mistake(self, reason: str, line: int) -> None:
        self.reasons.append(f"line {line}: {reason}" if line else reason)

    def _named(self, kind: str, file: Mapping[str, Any]) -> Iterator[Any]:
        tables = file.get(kind, {})
        if not isinstance(tables, dict):
            self.add_mistake(f"[{kind}.NAME] must be a table for each {kind}", _line(self.lines, "", kind))
            return
        for name, table in tables.items():
            parsed = self._parse_table(_NAMED[kind], table, f"{kind}.{name}", 0, {"name": name})
            if parsed is not None:
                yield parsed

    def _listed(self, kind: str, file: Mapping[str, Any]) -> Iterator[Any]:
        tables = file.get(kind, [])
        if not isinstance(tables, list):
            self.add_mistake(f"[[{kind}]] must be a list of tables", _line(self.lines, "", kind))
            return
        for number, table in enumerate(tables):
            parsed = self._parse_table(_LISTED[kind], table, kind, number, {})
            if parsed is not None:
                yield parsed

    def _parse_table(self, owner: type, table: Any, path: str, number: int, given: dict[str, Any]) -> Any:
        """Make an `owner` object of a table; None if the table is invalid."""
        if not isinstance(table, dict):
            self.add_mistake(f"{safe(path)} must be a table", _line(self.lines, "", path))
            return None
        before = len(self.reasons)
        types = {one.name: str(one.type) for one in fields(owner) if one.name not in _LEFT_OUT.get(owner, ())}
        values: dict[str, Any] = dict(given)
        for key, value in table.items():
            line = _line(self.lines, path, key, number)
            if key not in types or key in given:
                known = ", ".join(name for name in types if name not in given)
                self.add_mistake(f'unknown key "{safe(key)}" in [{safe(path)}]. Try: {known}', line)
                continue
            value = str(value) if key.endswith("_ports") and type(value) is int else value
            expected = _KINDS[types[key]]
            texts = type(value) is not list or all(type(one) is str for one in value)
            if type(value) is not expected or not texts:
                self.add_mistake(f'"{key}" in [{safe(path)}] must be {_TYPE_NAMES[expected]}', line)
                continue
            values[key] = tuple(value) if isinstance(value, list) else value
        if len(self.reasons) > before:
            return None
        try:
            return owner(**values)
        except TypeError:
            missing = [one.name for one in fields(owner)[:2] if one.name not in values]
            self.add_mistake(
                f"[{safe(path)}] needs {' and '.join(missing)}", _line(self.lines, path, "", number)
            )
            return None

    def _pairs(self, value: Any) -> Iterator[tuple[str, str]]:
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, list) and len(each) == 2 and all(type(name) is str for name in each):
                yield each[0], each[1]
            else:
                line = _line(self.lines, "", "joined")
                self.add_mistake('"joined" must be a list of pairs, [["one", "other"]]', line)


def _bare(path: str) -> str:
    """Return the path of a table without quotes and spaces."""
    return re.sub(r"[\s\"']", "", path)


_HEADER = re.compile(r"\s*\[\[?\s*(.+?)\s*\]\]?\s*(?:#.*)?$")


def _line(lines: list[str], path: str, key: str, number: int = 0) -> int:
    """Return the line of a key, or of the header for key "".

    Only the `number`th table of that path counts; the line is 0 where the file uses another notation.
    """
    pattern = re.compile(rf"""\s*["']?{re.escape(key)}["']?\s*[=.]""")
    here, seen = path == "", -1
    for at, line in enumerate(lines, 1):
        header = _HEADER.match(line)
        if header and "=" not in header[1]:
            name = _bare(header[1])
            seen += name == _bare(path)
            here = (name == _bare(path) and seen == number) or (not path and name.partition(".")[0] == key)
            if here and (not path or not key):
                return at
        elif here and key and pattern.match(line):
            return at
    return 0


def difference(desired: Desired, topology: Topology, prune: bool = False) -> tuple[Request, ...]:
    """Return the requests that lead from the current to the desired state, in order.

    `prune` also removes what vnet made and the file doesn't name; nothing else is ever removed.
    """
    return tuple(_Comparison(desired, topology, prune).requests())


class _Comparison:
    def __init__(self, desired: Desired, topology: Topology, prune: bool) -> None:
        self.desired, self.topology, self.prune = desired, topology, prune
        self.vnet: VnetState = vnet_state(topology.snapshot, topology.host)
        engine = topology.snapshot.engines.get("docker")
        self.docker = {network.name: network for network in engine.networks} if engine else {}
        self.desired_networks = {one.name: one for one in desired.networks}
        self.replaced = {one.name for one in desired.networks if self._differs(one)}
        self.surplus = self._surplus() if prune else set()
        self.removed_containers = (
            set(self.vnet.containers) - {one.name for one in desired.containers} if prune else set()
        )

    def requests(self) -> Iterator[Request]:
        yield from self._remove_ports()
        yield from self._part()
        yield from self._detach()
        yield from (RemoveContainer(name) for name in sorted(self.removed_containers))
        yield from (RemoveNetwork(name) for name in sorted(self.surplus | self.replaced))
        for network in self.desired.networks:
            if network.name in self.replaced or not self._exists(network.name):
                yield network
        yield from self._remotes()
        yield from self._resize()
        yield from self._containers()
        yield from self._attach()
        for port in self.desired.ports:
            if not self._published(port):
                yield port
        for names in sorted({pair(*names) for names in self.desired.joined}):
            if names not in self.vnet.joined or self.replaced.intersection(names):
                yield Join(*names)

    # Networks

    def _exists(self, name: str) -> bool:
        return name in self.vnet.networks or name in self.docker

    def _surplus(self) -> set[str]:
        key, value = DOCKER_LABEL
        created = {one.name for one in self.docker.values() if one.labels.get(key) == value}
        return (set(self.vnet.networks) | created) - set(self.desired_networks)

    def _differs(self, network: CreateNetwork) -> bool:
        """Return whether a network of that name exists with other settings."""
        if network.engine == "docker":
            existing = self.docker.get(network.name)
            return existing is not None and _docker_differs(network, existing)
        found = self.vnet.networks.get(network.name)
        return found is not None and _differs(network, found, self.topology)

    def _remotes(self) -> Iterator[Request]:
        """Yield requests for the remote hosts of overlays that exist."""
        for network in self.desired.networks:
            found = self.vnet.networks.get(network.name)
            desired = network.peers if found and found.evpn else network.remotes
            if found is None or found.etcd or network.name in self.replaced or not desired:
                continue
            kind = "peers" if found.evpn else "remotes"
            existing = tunnel_values(found, self.topology).get(kind, ())
            if missing := tuple(one for one in desired if one not in existing):
                remotes, peers = ((), missing) if found.evpn else (missing, ())
                yield JoinOverlay(CreateNetwork(network.name, "overlay", remotes=remotes, peers=peers))
            if surplus := tuple(one for one in existing if one not in desired):
                remotes, peers = ((), surplus) if found.evpn else (surplus, ())
                yield LeaveOverlay(network.name, remotes, peers)

    def _resize(self) -> Iterator[Request]:
        for network in self.desired.networks:
            found = self.vnet.networks.get(network.name)
            if found and network.name not in self.replaced and network.mtu not in (0, found.mtu):
                yield ChangeMtu(network.name, network.mtu)

    # Containers

    def _containers(self) -> Iterator[Request]:
        names = {name for space in self.topology.snapshot.namespaces.values() for name in space.names}
        for container in self.desired.containers:
            if container.name not in names:
                bare = container.model == "bridged"
                yield replace(container, model="closed") if bare else container

    def _uid(self, text: str) -> str:
        """Return a container's uid; for an unknown name that of an unmanaged container."""
        return self._uids.get(text) or (text if ":" in text else f"netns:{text}")

    @cached_property
    def _uids(self) -> dict[str, str]:
        """Map every name, id and uid to a container's uid.

        If several containers have the same, the first counts.
        """
        found: dict[str, str] = {}
        for one in self.topology.containers.values():
            for text in (one.uid, one.id, one.name, f"{one.runtime}:{one.name}"):
                found.setdefault(text, one.uid)
        return found

    # Attachments

    def _desired_members(self) -> dict[tuple[str, str], Attach]:
        return {(self._uid(one.container), one.network): one for one in self.desired.attachments}

    def _detach(self) -> Iterator[Request]:
        desired = self._desired_members()
        for member in self.vnet.members:
            name = member.container.removeprefix("netns:")
            if member.network in self.surplus | self.replaced or name in self.removed_containers:
                continue  # removed with its network or container
            request = desired.get((member.container, member.network))
            if (request is None and self.prune) or (request is not None and not _same_end(request, member)):
                yield Detach(member.container, member.network)

    def _attach(self) -> Iterator[Request]:
        existing = {(one.container, one.network): one for one in self.vnet.members}
        for key, request in self._desired_members().items():
            member = existing.get(key)
            if member is None and self._attached_by_docker(request):
                continue
            if member is None or request.network in self.replaced or not _same_end(request, member):
                yield request

    def _attached_by_docker(self, request: Attach) -> bool:
        container = self.topology.containers.get(self._uid(request.container))
        ends = container.endpoints if container and container.runtime == "docker" else ()
        return any(end.network == request.network for end in ends) and request.network not in self.replaced

    # Ports and pairs

    def _published(self, request: Publish) -> bool:
        return any(self._same_port(request, port) for port in self._remaining_ports())

    def _same_port(self, request: Publish, port: VnetPort) -> bool:
        inside = request.container_ports or request.host_ports
        return (
            _port_id(request) == port.port_id
            and inside == port.container_ports
            and self._uid(request.container) == port.container
        )

    def _remaining_ports(self) -> list[VnetPort]:
        """Return the published ports whose network isn't removed."""
        ends = {
            address.partition("/")[0]: member for member in self.vnet.members for address in member.addresses
        }
        removed = self.surplus | self.replaced
        return [
            port
            for port in self.vnet.ports
            if port.address not in ends or ends[port.address].network not in removed
        ]

    def _remove_ports(self) -> Iterator[Request]:
        desired = {_port_id(request): request for request in self.desired.ports}
        for port in {one.port_id: one for one in self._remaining_ports()}.values():
            request = desired.get(port.port_id)
            if (request is None and self.prune) or (
                request is not None and not self._same_port(request, port)
            ):
                yield Unpublish(port.host_ports, port.l4_proto, port.host_ip)

    def _part(self) -> Iterator[Request]:
        desired = {pair(*names) for names in self.desired.joined}
        for names in sorted(self.vnet.joined - desired):
            if self.prune and not (self.surplus | self.replaced).intersection(names):
                yield Separate(*names)


def _differs(network: CreateNetwork, found: VnetNetwork, topology: Topology) -> bool:
    """Return whether a network must be created again.

    Values that the file leaves out don't matter; remote hosts change in place, and the MTU too, except with
    NIC-bridged networks.
    """
    tunnel = tunnel_values(found, topology)
    desired = {
        "kind": network.kind,
        "subnets": tuple(sorted(map(_prefix, network.subnets))),
        "mtu": network.mtu if found.kind == "nic-bridged" else 0,
        "bridge": network.bridge,
        "uplink": network.uplink,
        "vni": network.vni,
        "local": network.local,
        "ranges": network.ranges,
        "evpn": network.evpn,
        "etcd": bool(network.etcd),
    }
    existing = {
        "kind": found.kind,
        "subnets": tuple(sorted(found.subnets)),
        "mtu": found.mtu,
        "bridge": found.bridge,
        "uplink": found.uplink,
        "vni": found.vni,
        "local": tunnel.get("local", ""),
        "ranges": found.ranges,
        "evpn": found.evpn,
        "etcd": found.etcd,
    }
    other = any(value and value != existing[key] for key, value in desired.items())
    gateways = {str(ipaddress.ip_address(one)) for one in network.gateways}
    translated = network.nat66 != found.nat66 and found.kind != "overlay"
    other = other or network.datapath.replace("system", "") != found.datapath
    return other or translated or not gateways <= set(found.gateways)


def _docker_differs(network: CreateNetwork, existing: Network) -> bool:
    subnets = bool(network.subnets) and set(map(_prefix, network.subnets)) != set(existing.subnets)
    return subnets or (network.kind == "internal") != existing.internal


def _prefix(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        return text  # the planner refuses it, with the reason


def _same_end(request: Attach, member: VnetMember) -> bool:
    plain = {one.partition("/")[0] for one in member.addresses}
    desired = {str(ipaddress.ip_address(one)) for one in request.addresses}
    return desired <= plain and request.link in ("", member.link) and request.vlan == member.vlan


def _port_id(request: Publish) -> str:
    host_ip = str(ipaddress.ip_address(request.host_ip)) if request.host_ip else ""
    return port_id(request.l4_proto, host_ip, request.host_ports)
