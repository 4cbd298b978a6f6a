"""Find the links to capture on for a container, network, link, namespace or flow."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import numpy as np

from core.capture import CaptureError
from core.flows import ConntrackEntry, address_bytes, address_text, entry_of, flow_of, protocol_name
from core.model import Container, Link, LinkKey, Network, Ref, Snapshot, link_ref
from core.text import end_text, safe
from core.topology import Topology
from core.topology.index import names_in
from core.topology.related import entry_table, find_all_by_name

MOST_LINKS = 64
_END = r"(?:\[[0-9a-fA-F:.]+\]|[0-9.]+|[0-9a-fA-F:]*:[0-9a-fA-F:]*?)(?::\d+)?"
_FLOW = re.compile(rf"(?:(?P<proto>[a-z]+(?:v6)?)[:/ ]\s*)?(?P<src>{_END})\s*(?:->|→|-)\s*(?P<dst>{_END})")
_ENDS = re.compile(r"\[?(?P<address>[^\]]*?)\]?(?::(?P<port>\d+))?")
_PORT_OF = {
    "orig_src": "orig_sport", "orig_dst": "orig_dport",
    "reply_src": "reply_sport", "reply_dst": "reply_dport",
}  # fmt: skip
_NEAR = 3  # flows that are named instead of an unknown one
_FILTERED = frozenset({"tcp", "udp", "sctp", "icmp"})


@dataclass(frozen=True, slots=True)
class CaptureLink:
    """One link to capture on: `entry` is a path of its namespace.

    `name` is its name in the file ("web1/eth0", without a prefix on the host), `description` says what it
    belongs to; both are untrusted text. `promiscuous` is False for a bridge whose traffic that would change:
    with br_netfilter the host would route a copy of each bridged packet that DNAT has changed."""

    key: LinkKey
    entry: str
    name: str
    description: str
    is_loopback: bool = False
    promiscuous: bool = True


@dataclass(frozen=True, slots=True)
class Target:
    """What to capture: a title, its links, and a filter (pcap-filter(7)).

    `note` is a sentence about what isn't seen, or seen differently."""

    title: str
    links: tuple[CaptureLink, ...]
    filter: str = ""
    note: str = ""


def is_flow(text: str) -> bool:
    """Return whether text names a flow, which is looked up in conntrack tables."""
    return bool(_FLOW.fullmatch(text.strip()))


def find_target(topology: Topology, text: str, ports: bool = False) -> Target:
    """Find what a user names: "web1", "shop", "web1/eth0", or a flow's two ends.

    With `ports` a network stands for the ports of its bridge. Raises CaptureError."""
    if is_flow(text):
        return _of_flow(topology, *find_flow(topology, text))
    found = [*_links_by_path(topology, text), *find_all_by_name(topology, text)]
    if not found:
        raise CaptureError(_unknown(topology, text))
    first = found[0]
    if first.kind == "link" and first.key[0] != topology.host:
        _require_unique(topology, text, [ref for ref in found if ref.kind == "link"])
    return target_of(topology, first, ports)


def target_of(topology: Topology, ref: Ref, ports: bool = False, entry: Any = None) -> Target:
    """Return the target of an object; `entry` is a flow's conntrack row, if known.

    Raises CaptureError."""
    match ref.kind:
        case "link":
            link = topology.snapshot.link((int(ref.key[0]), int(ref.key[1])))
            return _target(topology, f"link {link.name}", [link]) if link else _gone("link")
        case "neighbour" | "fdb" | "vtep":
            return target_of(topology, Ref("link", ref.key[:2]))
        case "container":
            container = topology.containers.get(":".join(map(str, ref.key)))
            return _of_container(topology, container) if container else _gone("container")
        case "network":
            network = topology.network(str(ref.key[0]))
            return _of_network(topology, network, ports) if network else _gone("network")
        case "namespace":
            ns = int(ref.key[0])
            return _target(topology, f"namespace {topology.label(ns)}", _links_in(topology, ns))
        case "flow" | "conntrack":
            table = entry_table(topology, ref) if entry is None else None
            row = entry if table is None else table.entries[0]
            return _of_flow(topology, int(ref.key[0]), entry_of(row)) if row is not None else _gone("flow")
    raise CaptureError("can't capture this item: it has no links. Try: a link, container, network or flow")


def _gone(what: str) -> Target:
    raise CaptureError(f"can't capture the {what}: it no longer exists")


def _links_by_path(topology: Topology, text: str) -> Iterator[Ref]:
    """Yield the link of "NAMESPACE/LINK"."""
    place, slash, name = text.rpartition("/")
    for ns, net in topology.snapshot.nets.items() if slash else ():
        names = {topology.label(ns), *(one.name for one in topology.containers_in(ns))}
        if ns == topology.host:
            names = {"host"}
        if place in names:
            yield from (link_ref(link.key) for link in net.links.values() if link.name == name)


def _require_unique(topology: Topology, text: str, refs: list[Ref]) -> None:
    """Refuse a link's name that several namespaces have, but not the host."""
    labels = [safe(topology.label(int(ref.key[0]))) for ref in refs]
    if len(refs) > 1:
        where = ", ".join(labels[:5]) + (" and others" if len(labels) > 5 else "")
        name = safe(text)
        raise CaptureError(f"can't capture {name}: {where} have a link of that name. Try: {labels[0]}/{name}")


def _unknown(topology: Topology, text: str) -> str:
    names = [
        *(one.name for one in topology.containers.values()),
        *(one.name for one in topology.networks),
        *(link.name for link in topology.snapshot.links()),
        *(topology.label(ns) for ns in topology.snapshot.namespaces),
    ]
    near = get_close_matches(text, dict.fromkeys(names), n=3, cutoff=0.6)
    hint = " or ".join(map(safe, near)) if near else "vnet-tui show containers, vnet-tui show links"
    return f"can't capture {safe(text)}: no container, network, link or namespace has that name. Try: {hint}"


def _of_container(topology: Topology, container: Container) -> Target:
    """Return the links in a container's namespace; loopback if there is no other."""
    if container.netns is None or container.netns not in topology.snapshot.nets:
        raise CaptureError(
            f"can't capture {safe(container.name)}: it isn't running. Try: vnet-tui show containers"
        )
    return _target(topology, f"container {container.name}", _links_in(topology, container.netns))


def _of_network(topology: Topology, network: Network, ports: bool) -> Target:
    bridge = topology.bridge_link(network) or topology.parent_link(network)
    if bridge is None:
        raise CaptureError(f"can't capture {safe(network.name)}: this network has no link on this host")
    title, found = f"network {network.name}", list(topology.ports_of(bridge.key))
    if not found or not (ports or filters_bridged(topology, bridge)):
        return _target(topology, title, [bridge])
    target = _target(topology, title, found)
    return target if ports else replace(target, note=f"{_FILTERED_BRIDGE}, so its ports are captured instead")


def _links_in(topology: Topology, ns: int) -> list[Link]:
    net = topology.snapshot.nets.get(ns)
    links = list(net.links.values()) if net else []
    return [link for link in links if link.kind != "loopback"] or links


def _target(topology: Topology, title: str, links: Iterable[Link], filter_text: str = "") -> Target:
    chosen = list(links)
    if not chosen:
        raise CaptureError(f"can't capture {safe(title)}: it has no links")
    if len(chosen) > MOST_LINKS:
        raise CaptureError(
            f"can't capture {safe(title)}: it has {len(chosen)} links, and {MOST_LINKS} is the limit. "
            "Try: one link or container"
        )
    captured = tuple(_capture_link(topology, link) for link in chosen)
    if all(link.promiscuous for link in captured):
        return Target(title, captured, filter_text)
    note = f"{_FILTERED_BRIDGE}; packets between its ports aren't seen. Try: capture a network or container"
    return Target(title, captured, filter_text, note)


_FILTERED_BRIDGE = "br_netfilter is on, with which promiscuous mode of a bridge would disturb DNAT"
_CALLS = ("net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables")


def filters_bridged(topology: Topology, link: Link) -> bool:
    """Return whether IP rules may apply to bridged packets (br_netfilter).

    In other namespaces it isn't known, so it is assumed wherever the module is loaded."""
    if link.kind != "bridge":
        return False
    settings, sysctls = link.bridge, topology.snapshot.host.sysctls
    if settings is not None and (settings.nf_call_iptables or settings.nf_call_ip6tables):
        return True
    if link.ns != topology.host:
        return any(name in sysctls for name in _CALLS)
    return any(sysctls.get(name, "0") != "0" for name in _CALLS)


def _capture_link(topology: Topology, link: Link) -> CaptureLink:
    snapshot: Snapshot = topology.snapshot
    namespace = snapshot.namespaces.get(link.ns)
    entry = namespace.entry if namespace else ""
    is_host = link.ns == topology.host
    name = link.name if is_host else f"{topology.label(link.ns)}/{link.name}"
    promiscuous = not filters_bridged(topology, link)
    description = _description(topology, link)
    return CaptureLink(link.key, entry, name, description, link.kind == "loopback", promiscuous)


def _description(topology: Topology, link: Link) -> str:
    """Describe a link: its kind, container, peer and network."""
    owner, peer, network = topology.container_of(link.ns), topology.peer(link), topology.network_of(link)
    words = [link.kind]
    words += [f"of container {owner.name}"] if owner else []
    if peer is not None:
        where = topology.label(peer.ns)
        words += [f"to {where}/{peer.name}" if peer.ns != link.ns else f"to {peer.name}"]
    words += [f"on network {network.name}"] if network else []
    return " ".join(words)


def find_flow(topology: Topology, text: str, verb: str = "capture") -> tuple[int, ConntrackEntry]:
    """Look up "PROTO:ADDRESS:PORT-ADDRESS:PORT"; return namespace and entry.

    The host's entry comes before those of other namespaces. Raises CaptureError."""
    words = _FLOW.fullmatch(text.strip())
    try:
        if words is None:
            raise ValueError
        src, dst = (_end(words[name]) for name in ("src", "dst"))
    except ValueError:
        raise CaptureError(
            f"can't {verb} {safe(text)}: it isn't a flow. Try: 10.0.0.2:4000-10.0.0.3:80"
        ) from None
    proto, near = words["proto"] or "", list[ConntrackEntry]()
    tables = sorted(topology.snapshot.conntracks.values(), key=lambda one: one.ns != topology.host)
    for table in tables:
        by_src, by_dst = _rows(table.entries, src), _rows(table.entries, dst)
        for row in table.entries[by_src & by_dst]:
            if not proto or protocol_name(int(row["l4_proto"])) == proto:
                return table.ns, entry_of(row)
        near += map(entry_of, table.entries[by_src][:_NEAR])
        near += map(entry_of, table.entries[by_dst][:_NEAR])
    hint = " or ".join(dict.fromkeys(map(flow_name, near[:_NEAR]))) or "vnet-tui flows"
    raise CaptureError(f"can't {verb} the flow {safe(text)}: conntrack has no such entry. Try: {hint}")


def flow_name(entry: ConntrackEntry) -> str:
    """Return a flow as `find_flow` takes it: "tcp:10.0.0.2:4000-10.0.0.3:80"."""
    ports = (entry.orig_sport, entry.orig_dport) if entry.has_ports else (None, None)
    ends = zip((entry.orig_src, entry.orig_dst), ports, strict=True)
    return (
        f"{protocol_name(entry.l4_proto)}:{'-'.join(end_text(address_text(raw), port) for raw, port in ends)}"
    )


def _end(text: str) -> tuple[bytes, int | None]:
    found = _ENDS.fullmatch(text) if "[" in text or text.count(":") < 2 else None
    address, port = (found["address"], found["port"]) if found else (text, None)
    return address_bytes(address), int(port) if port else None


def _rows(entries: np.ndarray[Any, Any], end: tuple[bytes, int | None]) -> np.ndarray[Any, Any]:
    """Return a mask of the entries with that end, in either direction's tuple."""
    address, port = np.frombuffer(end[0], np.uint8), end[1]
    found = np.zeros(len(entries), bool)
    for side in _PORT_OF:
        is_here = (entries[side] == address).all(axis=1)
        if port is not None:
            is_here &= entries[_PORT_OF[side]] == port
        found |= is_here
    return found


def _of_flow(topology: Topology, ns: int, entry: ConntrackEntry) -> Target:
    """Return the links that a flow's packets pass, and its tuples as a filter.

    The links are those of the containers at its ends; an end outside is seen at the uplink."""
    flow = flow_of(entry, names_in(topology, ns))
    links: dict[LinkKey, Link] = {}
    for address in (entry.orig_src, entry.reply_src):
        for link in _links_of_end(topology, ns, address_text(address)):
            links[link.key] = link
    title = f"flow {flow.origin} to {flow.responder}"
    chosen = list(links.values()) or _links_in(topology, ns)
    return _target(topology, title, chosen, flow_filter(entry))


def _links_of_end(topology: Topology, ns: int, address: str) -> list[Link]:
    owner = topology.container_at(ns, address)
    links = topology.links_of(owner) if owner else ()
    own = [link for link in links if any(one.address == address for one in link.addresses)]
    if own or links:
        return own or list(links)
    net = topology.snapshot.nets.get(ns)
    here = [
        link
        for link in (net.links.values() if net else ())
        if any(one.address == address for one in link.addresses)
    ]
    uplink = topology.uplink(ns)
    return here or ([uplink[0]] if uplink else [])


def flow_filter(entry: ConntrackEntry) -> str:
    """Return a filter of a flow's packets before, between and after translation."""
    origin, seen_as = (entry.orig_src, entry.orig_sport), (entry.reply_dst, entry.reply_dport)
    asked, responder = (entry.orig_dst, entry.orig_dport), (entry.reply_src, entry.reply_sport)
    name = protocol_name(entry.l4_proto)
    proto = name if name in _FILTERED else "icmp6" if name == "icmpv6" else f"ip proto {entry.l4_proto}"
    if proto.startswith("ip proto") and entry.family == 6:
        proto = f"ip6 proto {entry.l4_proto}"
    pairs = dict.fromkeys(
        _pair(entry, one, other)
        for one, other in ((origin, asked), (origin, responder), (seen_as, responder), (seen_as, asked))
    )
    return f"{proto} and ({' or '.join(pairs)})"


def _pair(entry: ConntrackEntry, one: tuple[bytes, int], other: tuple[bytes, int]) -> str:
    """Return a filter of packets between two ends, in both directions."""
    hosts = [f"host {address_text(address)}" for address, _ in (one, other)]
    ports = [f"port {port}" for _, port in (one, other)] if entry.has_ports else []
    return f"({' and '.join((*hosts, *ports))})"


def addresses_behind(topology: Topology, target: Target) -> tuple[str, ...]:
    """Return the addresses of the containers whose packets pass the links of a target."""
    found: dict[str, None] = {}
    for captured in target.links:
        link = topology.snapshot.link(captured.key)
        for container in _containers_behind(topology, link) if link else ():
            found |= dict.fromkeys(topology.addresses_of(container))
    return tuple(found)


def _containers_behind(topology: Topology, link: Link) -> Iterator[Container]:
    peer, network = topology.peer(link), topology.network_of(link)
    for ns in {link.ns, peer.ns if peer else link.ns} - {topology.host}:
        yield from topology.containers_in(ns)
    if network is not None and topology.is_bridge(link):
        yield from topology.members(network)
