"""Desired state as a TOML file: read with every mistake named, and written for what exists."""

from __future__ import annotations

import ipaddress
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from core.model import Network
from core.plan.requests import (
    Attach,
    ChangeMtu,
    CreateContainer,
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
from core.text import safe
from core.topology import Topology

# The label of Docker networks that vnet had Docker make.
DOCKER_LABEL = ("vnet", "1")


@dataclass(frozen=True, slots=True)
class Desired:
    """What a file asks for; `joined` holds pairs of network names."""

    networks: tuple[CreateNetwork, ...] = ()
    containers: tuple[CreateContainer, ...] = ()
    attachments: tuple[Attach, ...] = ()
    ports: tuple[Publish, ...] = ()
    joined: tuple[tuple[str, str], ...] = ()


class BadFile(Exception):
    """The file cannot be taken; `reasons` are sentences, each with its line."""

    def __init__(self, reasons: list[str]) -> None:
        self.reasons = tuple(reasons)
        super().__init__("; ".join(reasons))


# Each kind of table, and the class that its keys are fields of.
_NAMED: dict[str, type] = {"network": CreateNetwork, "container": CreateContainer}
_LISTED: dict[str, type] = {"attach": Attach, "publish": Publish}
# A container's networks are its [[attach]] tables.
_LEFT_OUT: dict[type, tuple[str, ...]] = {CreateContainer: ("network", "addresses")}
_KINDS: dict[str, type] = {"str": str, "int": int, "bool": bool, "tuple[str, ...]": list}
_WORDS: dict[type, str] = {
    str: "a text",
    int: "a whole number",
    bool: "true or false",
    list: "a list of texts",
}


def parse(text: str) -> Desired:
    """The desired state that a file's text asks for. Raises BadFile."""
    try:
        told = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: no TOML, or a number of thousands of digits
        raise BadFile([str(error)]) from error
    reader = _Reader(text)
    found = reader.read(told)
    if reader.reasons:
        raise BadFile(reader.reasons)
    return found


class _Reader:
    """Reads one file's tables and collects what is wrong with them."""

    def __init__(self, text: str) -> None:
        self.lines = text.splitlines()
        self.reasons: list[str] = []

    def read(self, told: Mapping[str, Any]) -> Desired:
        for key in told:
            if key not in (*_NAMED, *_LISTED, "joined"):
                known = ", ".join((*_NAMED, *_LISTED, "joined"))
                self.wrong(f'"{safe(key)}" is not known here: {known}', _line(self.lines, "", key))
        return Desired(
            tuple(self._named("network", told)),
            tuple(self._named("container", told)),
            tuple(self._listed("attach", told)),
            tuple(self._listed("publish", told)),
            tuple(self._pairs(told.get("joined", []))),
        )

    def wrong(self, reason: str, line: int) -> None:
        self.reasons.append(f"line {line}: {reason}" if line else reason)

    def _named(self, kind: str, told: Mapping[str, Any]) -> Iterator[Any]:
        tables = told.get(kind, {})
        if not isinstance(tables, dict):
            self.wrong(f"[{kind}.NAME] should be a table for each {kind}", _line(self.lines, "", kind))
            return
        for name, table in tables.items():
            made = self._made(_NAMED[kind], table, f"{kind}.{name}", 0, {"name": name})
            if made is not None:
                yield made

    def _listed(self, kind: str, told: Mapping[str, Any]) -> Iterator[Any]:
        tables = told.get(kind, [])
        if not isinstance(tables, list):
            self.wrong(f"[[{kind}]] should be a list of tables", _line(self.lines, "", kind))
            return
        for number, table in enumerate(tables):
            made = self._made(_LISTED[kind], table, kind, number, {})
            if made is not None:
                yield made

    def _made(self, owner: type, table: Any, path: str, number: int, given: dict[str, Any]) -> Any:
        """One object from one table; None where the table is wrong."""
        if not isinstance(table, dict):
            self.wrong(f"{safe(path)} should be a table", _line(self.lines, "", path))
            return None
        before = len(self.reasons)
        types = {one.name: str(one.type) for one in fields(owner) if one.name not in _LEFT_OUT.get(owner, ())}
        values: dict[str, Any] = dict(given)
        for key, value in table.items():
            line = _line(self.lines, path, key, number)
            if key not in types or key in given:
                known = ", ".join(name for name in types if name not in given)
                self.wrong(f'"{safe(key)}" is not known in [{safe(path)}]: {known}', line)
                continue
            value = str(value) if key.endswith("_ports") and type(value) is int else value
            wanted = _KINDS[types[key]]
            texts = type(value) is not list or all(type(one) is str for one in value)
            if type(value) is not wanted or not texts:
                self.wrong(f'"{key}" in [{safe(path)}] should be {_WORDS[wanted]}', line)
                continue
            values[key] = tuple(value) if isinstance(value, list) else value
        if len(self.reasons) > before:
            return None
        try:
            return owner(**values)
        except TypeError:
            missing = [one.name for one in fields(owner)[:2] if one.name not in values]
            self.wrong(f"[{safe(path)}] lacks {' and '.join(missing)}", _line(self.lines, path, "", number))
            return None

    def _pairs(self, told: Any) -> Iterator[tuple[str, str]]:
        for each in told if isinstance(told, list) else [told]:
            if isinstance(each, list) and len(each) == 2 and all(type(name) is str for name in each):
                yield each[0], each[1]
            else:
                line = _line(self.lines, "", "joined")
                self.wrong('"joined" should be a list of pairs, [["one", "other"]]', line)


def _bare(path: str) -> str:
    """A table's path without the quotes and spaces that it may be written with."""
    return re.sub(r"[\s\"']", "", path)


_HEADER = re.compile(r"\s*\[\[?\s*(.+?)\s*\]\]?\s*(?:#.*)?$")


def _line(lines: list[str], path: str, key: str, number: int = 0) -> int:
    """The line of a key (or, where it is "", of the header) in the table of that path, the `number`th of its
    name; 0 where the file is written in another way."""
    wanted = re.compile(rf"""\s*["']?{re.escape(key)}["']?\s*[=.]""")
    here, seen = path == "", -1
    for at, line in enumerate(lines, 1):
        header = _HEADER.match(line)
        if header and "=" not in header[1]:
            name = _bare(header[1])
            seen += name == _bare(path)
            here = (name == _bare(path) and seen == number) or (not path and name.partition(".")[0] == key)
            if here and (not path or not key):
                return at
        elif here and key and wanted.match(line):
            return at
    return 0


def export(topology: Topology) -> str:
    """The file for what is ours on this host: read again, it asks for nothing that is not there."""
    mine = ours(topology.snapshot, topology.host)
    parts = []
    for network in sorted(mine.networks.values(), key=lambda one: one.name):
        values: dict[str, Any] = {
            "kind": network.kind, "subnets": network.subnets, "gateways": network.gateways,
            "mtu": network.mtu, "bridge": network.bridge, "uplink": network.uplink,
            "nat66": network.nat66, "vlan_filtering": _filters(network.bridge, topology),
        }  # fmt: skip
        parts.append(_table(f"[network.{_key(network.name)}]", values))
    parts += _docker_networks(topology)
    for name, ns in sorted(mine.containers.items()):
        parts.append(_table(f"[container.{_key(name)}]", _container(name, ns, topology)))
    for member in mine.members:
        plain = tuple(one.partition("/")[0] for one in member.addresses)
        container = topology.containers.get(member.container)
        named = f"{container.runtime}:{container.name}" if container else member.container
        values = {"container": named, "network": member.network, "addresses": plain, "link": member.link}
        parts.append(_table("[[attach]]", values))
    for port in {one.port_id: one for one in mine.ports}.values():
        container = topology.containers.get(port.container)
        named = f"{container.runtime}:{container.name}" if container else port.container
        values = {
            "container": named, "host_ports": port.host_ports, "container_ports": port.container_ports,
            "l4_proto": port.l4_proto, "host_ip": port.host_ip,
        }  # fmt: skip
        parts.append(_table("[[publish]]", values))
    pairs = [list(names) for names in sorted(mine.joined)]
    return "\n".join([*([f"joined = {toml_value(pairs)}\n"] if pairs else []), *parts])


def _filters(bridge: str, topology: Topology) -> bool:
    """Whether a bridge of the host is VLAN-aware."""
    net = topology.snapshot.nets[topology.host]
    return any(one.bridge.vlan_filtering for one in net.links.values() if one.name == bridge and one.bridge)


def _container(name: str, ns: int, topology: Topology) -> dict[str, Any]:
    if ns == topology.host:
        return {"model": "open"}
    space = topology.snapshot.namespaces.get(ns)
    first = space.names[0] if space and space.names else name
    return {"model": "closed"} if first == name else {"model": "joined", "joined_with": f"netns:{first}"}


def _docker_networks(topology: Topology) -> Iterator[str]:
    engine = topology.snapshot.engines.get("docker")
    for network in engine.networks if engine else ():
        if network.labels.get(DOCKER_LABEL[0]) == DOCKER_LABEL[1]:
            values = {
                "engine": "docker", "kind": "internal" if network.internal else "nat",
                "subnets": network.subnets, "gateways": network.gateways,
            }  # fmt: skip
            yield _table(f"[network.{_key(network.name)}]", values)


def _table(header: str, values: Mapping[str, Any]) -> str:
    """One table; what is empty or off is left out."""
    lines = [f"{key} = {toml_value(value)}" for key, value in values.items() if value]
    return "\n".join([header, *lines, ""])


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_value(name)


def toml_value(value: Any) -> str:
    """A value as TOML: as JSON, but TOML has no escapes for surrogates (an emoji is two in JSON), and wants
    DEL escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


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
