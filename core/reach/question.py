"""Resolve the names of a question: containers, namespaces, addresses, the host."""

from __future__ import annotations

import ipaddress
import re
from difflib import get_close_matches

from core.model import Container, Ref
from core.reach.answer import Endpoint, Question
from core.reach.fixes import OUTSIDE_ADDRESS
from core.text import failure_sentence, safe
from core.topology import Topology

OUTSIDE = "outside"
PROTOCOLS = ("tcp", "udp", "icmp")


class UnknownEndpoint(Exception):
    """A name of a question is unknown, or the question makes no sense."""


def resolve(topology: Topology, text: str) -> Endpoint:
    """Find an end by its name or address. Raises UnknownEndpoint with suggestions.

    "host" is this host, "outside" any host beyond its default route.
    """
    if text in (OUTSIDE, "internet") and not _named(topology, text):
        return Endpoint(text)
    if text in ("host", "localhost", topology.snapshot.host.hostname):
        return Endpoint("host", topology.host)
    if (ns := _named(topology, text)) is not None:
        return Endpoint(text, ns)
    if (address := _address(text)) is not None:
        return _at(topology, address)
    raise UnknownEndpoint(_unknown(topology, text))


def _named(topology: Topology, text: str) -> int | None:
    """Return the namespace of a container or namespace with that name."""
    found: list[Container] = [
        one
        for one in topology.containers.values()
        if text in (one.name, one.uid, one.id, topology.title(one))
    ]
    running = [one for one in found if one.netns is not None]
    if running:
        return min(running, key=lambda one: one.network_mode.startswith("container:")).netns
    for ns, namespace in topology.snapshot.namespaces.items():
        if text in (topology.label(ns), *namespace.names) and ns != topology.host:
            return ns
    if found:
        state = found[0].state
        raise UnknownEndpoint(
            failure_sentence(
                f'can\'t ask about "{safe(text)}"', f"it isn't running ({state})", f"start {safe(text)}"
            )
        )
    return None


def _address(text: str) -> str | None:
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        return None


def _at(topology: Topology, address: str) -> Endpoint:
    """Return the end with an address: a container, the host, or a host outside."""
    container = topology.container_at(topology.host, address)
    if container is not None and container.netns is not None:
        return Endpoint(container.name, container.netns, address)
    for ns, net in topology.snapshot.nets.items():
        for link in net.links.values():
            if any(one.address == address for one in link.addresses) and link.kind != "loopback":
                return Endpoint(topology.label(ns), ns, address)
    return Endpoint(address, None, address)


def _unknown(topology: Topology, text: str) -> str:
    names = {one.name for one in topology.containers.values()} | {"host", OUTSIDE}
    names |= {topology.label(ns) for ns in topology.snapshot.namespaces}
    if (known_as := _other_kind(topology, text)) is not None:
        return known_as
    near = get_close_matches(text, sorted(names), n=3, cutoff=0.5)
    known = near or sorted(names)[:8]
    return failure_sentence(
        f'can\'t find "{safe(text)}"', "no container, namespace or address has that name",
        ", ".join(map(safe, known)),
    )  # fmt: skip


def _other_kind(topology: Topology, text: str) -> str | None:
    """Return the error for a network, link, host name or wrong address.

    None for other texts.
    """
    what = f'can\'t find "{safe(text)}"'
    for network in topology.networks:
        if text in (network.name, network.bridge):
            bridge = topology.bridge_link(network)
            own = [one.address for one in bridge.addresses if one.scope == "global"] if bridge else []
            kind = "network" if text == network.name != network.bridge else "bridge"
            ask_for = f"its address {own[0]}" if own else "a container on it"
            return failure_sentence(what, f"it is a {kind}, which is no end of packets", ask_for)
    for link in topology.snapshot.links():
        if text == link.name and link.ns == topology.host and link.kind != "loopback":
            return failure_sentence(what, "it is a link of the host", "one of its addresses, or a container")
    if re.fullmatch(r"[\d.]+|[\da-fA-F]*:[\da-fA-F:.]*", text):
        return failure_sentence(what, "it isn't an IPv4 or IPv6 address", "172.18.0.2, 2001:db8::2")
    if re.fullmatch(r"[\w-]+(\.[\w-]+)+\.?", text):
        command = f"its address, as of getent ahosts {text}"
        return failure_sentence(what, "names of other hosts aren't resolved", command)
    return None


def endpoint_of(topology: Topology, ref: Ref) -> Endpoint | None:
    """Return the end that an object of the dashboard stands for, None if it is none."""
    if ref.kind == "container":
        container = topology.containers.get(":".join(map(str, ref.key)))
        if container is None or container.netns is None:
            return None
        return Endpoint(topology.title(container), container.netns)
    if ref.kind in ("namespace", "link"):
        ns = int(ref.key[0])
        return Endpoint(topology.label(ns), ns) if ns in topology.snapshot.nets else None
    return None


def port_of(text: str) -> tuple[str, int]:
    """Parse "443", "443/tcp", "53/udp" or "icmp". Raises UnknownEndpoint."""
    number, _, l4_proto = text.lower().partition("/")
    if number == "icmp" and not l4_proto:
        return "icmp", 0
    l4_proto = l4_proto or "tcp"
    if not number.isdigit() or not 0 < int(number) < 65536 or l4_proto not in ("tcp", "udp"):
        raise UnknownEndpoint(
            failure_sentence(
                f'can\'t use the port "{safe(text)}"', "it isn't a port", "443/tcp, 53/udp or icmp"
            )
        )
    return l4_proto, int(number)


def ask(topology: Topology, source: str, target: str, port: str = "") -> Question:
    """Make a question of the texts of a command. Raises UnknownEndpoint."""
    l4_proto, number = port_of(port) if port else ("icmp", 0)
    return check(Question(resolve(topology, source), resolve(topology, target), l4_proto, number))


def check(question: Question) -> Question:
    """Return the question. Raises UnknownEndpoint if both ends are outside this host."""
    if question.source.is_outside and question.target.is_outside:
        raise UnknownEndpoint(
            failure_sentence(
                f"can't follow packets from {safe(question.source.name)} to {safe(question.target.name)}",
                "both are outside this host", "name a container or `host` as one end",
            )
        )  # fmt: skip
    return question


def addresses(topology: Topology, question: Question) -> tuple[str, str]:
    """Choose the addresses of both ends, "" for a source that the route decides.

    The target's is one on a network that both are on, else its first; IPv4 comes first.
    """
    source, target = question.source, question.target
    if target.is_outside:
        ipv6 = ":" in (target.address or source.address)
        return source.address, target.address or OUTSIDE_ADDRESS[ipv6]
    if target.address:
        return source.address or (_outside_for(target.address) if source.is_outside else ""), target.address
    own = _addresses_of(topology, target.ns)
    if source.ns == target.ns:
        return source.address, next(iter(own), "127.0.0.1")
    subnets = _subnets_of(topology, source.ns) if source.ns is not None else []
    wanted = [one for one in own if not source.address or (":" in one) == (":" in source.address)] or own
    near = [one for one in wanted if any(ipaddress.ip_address(one) in subnet for subnet in subnets)]
    chosen = next(iter((*near, *wanted)), "")
    return source.address or (_outside_for(chosen) if source.is_outside else ""), chosen


def _outside_for(address: str) -> str:
    return OUTSIDE_ADDRESS[":" in address]


def _addresses_of(topology: Topology, ns: int | None) -> list[str]:
    net = topology.snapshot.nets.get(ns or 0)
    uplink = topology.uplink(ns or 0)
    links = sorted(net.links.values(), key=lambda one: not uplink or one.key != uplink[0].key) if net else []
    found = [
        one for link in links if link.kind != "loopback" for one in link.addresses if one.scope == "global"
    ]
    return [one.address for one in sorted(found, key=lambda one: one.family)]


def _subnets_of(topology: Topology, ns: int) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    net = topology.snapshot.nets.get(ns)
    links = net.links.values() if net else ()
    own = (
        one for link in links if link.kind != "loopback" for one in link.addresses if one.scope == "global"
    )
    return [ipaddress.ip_network(str(one), strict=False) for one in own]
