"""Desired state as a TOML file: read with every mistake named, and written for what exists."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from core.plan.requests import Attach, CreateContainer, CreateNetwork, Publish
from core.plan.tags import ours
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
