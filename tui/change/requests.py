"""From a command's words to the requests that it makes."""

from __future__ import annotations

import argparse

from core.model import LinkKey, Ref
from core.plan.requests import (
    PROTOCOLS,
    Attach,
    ChangeBridge,
    ChangeLink,
    ChangePort,
    CreateContainer,
    CreateNetwork,
    Delete,
    Detach,
    Join,
    Move,
    Part,
    Publish,
    RemoveContainer,
    RemoveNetwork,
    Request,
    Tune,
    Unpublish,
)
from core.text import safe
from core.topology import Topology
from tui.command import CommandError


def request_of(options: argparse.Namespace, topology: Topology) -> Request:
    """The request that a command line makes, on the host as it is now. Raises CommandError."""
    match options.command:
        case "network":
            return _network(options)
        case "container":
            return _container(options)
        case "publish" | "unpublish":
            return _port(options)
        case "link" | "bridge" | "port":
            return _link(options, topology)
        case "tune":
            return _tune(options, topology)
        case "attach":
            return Attach(options.container, options.network, tuple(options.address), options.link)
        case "detach":
            return Detach(options.container, options.network)
        case _:
            return Move(options.container, options.network, options.to, tuple(options.address))


def _network(options: argparse.Namespace) -> Request:
    match options.action:
        case "create":
            return CreateNetwork(
                options.name, options.kind, tuple(options.subnet), tuple(options.gateway), options.ipv6,
                options.mtu, options.bridge, options.uplink, options.nat66, options.vlan_filtering,
                options.engine,
            )  # fmt: skip
        case "join":
            return Join(options.network, options.other)
        case "part":
            return Part(options.network, options.other)
        case _:
            return RemoveNetwork(options.name)


def _container(options: argparse.Namespace) -> Request:
    if options.action == "rm":
        return RemoveContainer(options.name)
    given = "joined" if options.joined_with else "bridged" if options.network else "closed"
    model = options.model or given
    return CreateContainer(options.name, model, options.network, tuple(options.address), options.joined_with)


def _port(options: argparse.Namespace) -> Request:
    host_ip, host_ports, container_ports, l4_proto = ports_of(options.ports)
    if options.command == "unpublish":
        return Unpublish(host_ports, l4_proto, host_ip)
    return Publish(options.container, host_ports, container_ports, l4_proto, host_ip, options.network)


def ports_of(text: str) -> tuple[str, str, str, str]:
    """Host address, host ports, container ports ("" as on the host) and protocol of a text as `docker run -p`
    takes it, "[HOST_IP:]HOST_PORTS[:CONTAINER_PORTS][/PROTO]", or as we print it, "PROTO/[HOST_IP:]PORTS".

    What is not well-formed stays as it is, for the plan to refuse. Raises CommandError for too many parts.
    """
    first, slash, rest = text.partition("/")
    if slash and first in PROTOCOLS:
        where, l4_proto = rest, first
    else:
        where, l4_proto = first, rest if slash else PROTOCOLS[0]
    host_ip = ""
    if where.startswith("["):
        host_ip, closed, where = where[1:].partition("]:")
        if not closed:
            raise CommandError(f'"{safe(text)}" is no port: write an IPv6 address as [ADDRESS]:PORT')
    parts = where.split(":")
    if not host_ip and (len(parts) == 3 or (len(parts) == 2 and "." in parts[0])):
        host_ip, *parts = parts
    if len(parts) > 2:
        raise CommandError(
            f'"{safe(text)}" has too many parts: [HOST_IP:]HOST_PORTS[:CONTAINER_PORTS][/PROTO]'
        )
    return host_ip, parts[0], parts[1] if len(parts) == 2 else "", l4_proto


def _link(options: argparse.Namespace, topology: Topology) -> Request:
    key = _key(options, topology)
    match options.command, options.action:
        case "link", "set":
            return ChangeLink(key, options.up, options.mtu, options.name, options.alias)
        case "bridge", _:
            return ChangeBridge(key, options.setting, options.value)
        case "port", _:
            return ChangePort(key, options.flag, options.state == "on")
        case _:
            return Delete(Ref("link", tuple(key)))


def _tune(options: argparse.Namespace, topology: Topology) -> Request:
    given = (options.big_tcp, options.offloads, options.br_netfilter, options.rps, options.no_track_dns)
    if all(one is None for one in given):
        raise CommandError("say what to tune: --big-tcp, --offloads, --br-netfilter, --rps or --no-track-dns")
    if options.only and options.no_track_dns is None:
        raise CommandError("--only is about --no-track-dns: the other options are about the whole bridge")
    switched = {"on": True, "off": False, None: None}
    return Tune(
        _bridge(options.network, topology),
        options.big_tcp,
        switched[options.offloads],
        switched[options.br_netfilter],
        options.rps,
        switched[options.no_track_dns],
        tuple(options.only),
    )


def _bridge(text: str, topology: Topology) -> LinkKey:
    """The host's bridge of that name, or that of the network of that name or id."""
    net = topology.snapshot.nets.get(topology.host)
    for link in net.links.values() if net else ():
        if link.kind == "bridge" and text in (link.name, *link.altnames):
            return link.key
    named = (one for one in topology.networks if text in (one.name, one.id))
    found = {bridge.key for one in named if (bridge := topology.bridge_link(one))}
    if len(found) == 1:
        return found.pop()
    why = f'there is no bridge or network of the host "{safe(text)}"'
    raise CommandError(f'"{safe(text)}" is several networks: name the bridge' if found else why)


def _key(options: argparse.Namespace, topology: Topology) -> LinkKey:
    ns = topology.host if options.ns is None else _namespace(options.ns, topology)
    net = topology.snapshot.nets.get(ns)
    for link in net.links.values() if net else ():
        if options.link in (link.name, *link.altnames):
            return link.key
    raise CommandError(f'there is no link "{safe(options.link)}" in {safe(topology.label(ns))}')


def _namespace(text: str, topology: Topology) -> int:
    """The namespace that a person means: its name, inode or container."""
    for inode, space in topology.snapshot.namespaces.items():
        if text in (topology.label(inode), str(inode), *space.names):
            return inode
    named = {one.netns for one in topology.containers.values() if text in (one.name, one.id, one.uid)} - {
        None
    }
    if len(named) == 1:
        return next(ns for ns in named if ns is not None)
    raise CommandError(f'there is no namespace "{safe(text)}"' if not named else f'"{safe(text)}" is several')
