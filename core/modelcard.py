"""Derive model cards: how containers are connected, and who shares namespaces."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from core.model import (
    NAMESPACE_KINDS,
    Container,
    Link,
    LinkKey,
    ModelCard,
    NamespaceUse,
    Snapshot,
)
from core.peers import resolve

_JOIN = "container:"
_ID = re.compile(r"[0-9a-f]{64}")
_RUNNING = ("running", "paused", "restarting", "stopping")

# Links that the kernel creates in every namespace once a tunnel module is loaded
# (net.core.fb_tunnels_only_for_init_net): they connect nothing.
_FALLBACK_TUNNELS = frozenset(
    {"tunl0", "sit0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6tnl0", "ip6gre0"}
)


def cards(snapshot: Snapshot, peers: Mapping[LinkKey, LinkKey] | None = None) -> dict[str, ModelCard]:
    """Derive the cards of all containers by uid; `peers` is of core.peers.resolve."""
    builder = _CardBuilder(snapshot, resolve(snapshot.nets) if peers is None else peers)
    return {container.uid: builder.card(container) for container in builder.containers}


class _CardBuilder:
    """Derives the cards of one snapshot, with indexes of its containers."""

    def __init__(self, snapshot: Snapshot, peers: Mapping[LinkKey, LinkKey]) -> None:
        self.snapshot = snapshot
        self.peers = peers
        self.containers: tuple[Container, ...] = tuple(snapshot.containers())
        self._hosts = {**snapshot.host.namespaces, "net": snapshot.host.netns}
        self._ovs = {
            LinkKey(snapshot.host.netns, one.ifindex): bridge.name
            for bridge in snapshot.ovs for port in bridge.ports for one in port.interfaces if one.ifindex
        }  # fmt: skip
        self._by_namespace: dict[tuple[str, int], list[Container]] = {}
        self._by_name: dict[str, list[Container]] = {}
        for container in self.containers:
            for kind, inode in container.namespaces.items():
                self._by_namespace.setdefault((kind, inode), []).append(container)
            for name in {container.id, container.name}:
                self._by_name.setdefault(name, []).append(container)

    def card(self, container: Container) -> ModelCard:
        """Derive the container's card."""
        model, why, dead = self._model(container)
        return ModelCard(
            container.uid,
            model,
            why,
            joined_with=() if model == "open" else self._sharers(container, "net"),
            joined_dead=dead,
            namespaces=tuple(self._use(container, kind) for kind in NAMESPACE_KINDS),
        )

    def _use(self, container: Container, kind: str) -> NamespaceUse:
        inode = container.namespaces.get(kind, 0)
        with_host = inode != 0 and inode == self._hosts.get(kind)
        return NamespaceUse(kind, inode, with_host, () if with_host else self._sharers(container, kind))

    def _sharers(self, container: Container, kind: str) -> tuple[str, ...]:
        """Return the uids of the others in the container's namespace of that kind."""
        inside = self._by_namespace.get((kind, container.namespaces.get(kind, 0)), ())
        return tuple(other.uid for other in inside if other.uid != container.uid)

    def _model(self, container: Container) -> tuple[str, str, bool]:
        """Return the model, the reason, and whether the joined container is gone."""
        if container.netns is None:
            return "unknown", self._without_namespace(container), False
        if container.netns == self._hosts["net"]:
            return "open", "It uses the host's network namespace: it isn't isolated from the host.", False
        if container.network_mode.startswith(_JOIN):
            fault = self._fault(container)
            return "joined", fault or self._joined_by_name(container), bool(fault)
        others = self._joined_implicitly(container)
        if others:
            return "joined", f"It shares a network namespace with {_listed(others)}.", False
        return (*self._by_links(container), False)

    def _without_namespace(self, container: Container) -> str:
        if container.state in _RUNNING:
            return "It runs, but its namespaces can't be read."
        mode = container.network_mode
        joins = mode.removeprefix(_JOIN) if mode.startswith(_JOIN) else ""
        target = self._target(container) if joins else None
        would = (
            f"it joins {target.name if target else _short(joins) + ', which no longer exists'}"
            if joins
            else f'its network mode is "{mode}"'
        )
        return f"It isn't running ({container.state}), so it has no namespaces" + (
            f"; {would}." if mode else "."
        )

    def _target(self, container: Container) -> Container | None:
        """Return the container that another is to join: first of its runtime, and running."""
        name = container.network_mode.removeprefix(_JOIN)
        found = [other for other in self._by_name.get(name, ()) if other.uid != container.uid]
        return min(
            found,
            key=lambda other: (other.runtime != container.runtime, other.state not in _RUNNING),
            default=None,
        )

    def _fault(self, container: Container) -> str:
        """Return why the joined namespace is dead, "" if it isn't."""
        target = self._target(container)
        if target is None:
            gone = _short(container.network_mode.removeprefix(_JOIN))
            return (
                f"It shares the network namespace of the container {gone}, which no longer exists, "
                f"so it has no network."
            )
        if target.state not in _RUNNING:
            return (
                f"It shares the network namespace of {target.name}, which isn't running ({target.state}), "
                f"so it has no network."
            )
        if target.netns is not None and target.netns != container.netns:
            return (
                f"It shares an old network namespace of {target.name}, which was restarted with a new one, "
                f"so it has no network."
            )
        return ""

    def _joined_by_name(self, container: Container) -> str:
        target = self._target(container)
        return f"It shares the network namespace of {target.name if target else ''}, as configured."

    def _joined_implicitly(self, container: Container) -> list[Container]:
        """Return the others in its namespace, unless the namespace is its own.

        It is if it requested a network, if another container joins it by name, or if it is a named namespace
        with nothing but processes inside."""
        inside = self._by_namespace.get(("net", container.netns or 0), ())
        others = [other for other in inside if other.uid != container.uid]
        owns = (
            container.network_mode != ""
            or any(self._joins(other, container) for other in others)
            or (container.runtime == "netns" and all(other.runtime == "process" for other in others))
        )
        return [] if owns else others

    def _joins(self, other: Container, container: Container) -> bool:
        return other.network_mode.startswith(_JOIN) and self._target(other) is container

    def _by_links(self, container: Container) -> tuple[str, str]:
        net = self.snapshot.nets.get(container.netns or 0)
        if net is None or not net.links:  # even an empty namespace has its loopback
            return "unknown", "The links in its network namespace couldn't be read."
        links = [link for link in net.links.values() if _connects(link)]
        if not links:
            return "closed", "Its network namespace has no link except loopback, so it has no network."
        model = "routed" if all(map(self._is_routed, links)) else "bridged"
        return model, " ".join(self._connection(link) for link in links[:4])

    def _is_routed(self, link: Link) -> bool:
        """Return whether a link's peer is known and isn't a bridge port."""
        peer = self.snapshot.link(self.peers[link.key]) if link.key in self.peers else None
        return peer is not None and peer.master is None and peer.key not in self._ovs

    def _connection(self, link: Link) -> str:
        """Describe in a sentence what a link connects a container to."""
        peer = self.snapshot.link(self.peers[link.key]) if link.key in self.peers else None
        if peer is not None:
            return f"{link.name} is a {link.kind} {self._peer_end(peer)}."
        parent = self._parent(link)
        on = f" with parent {parent.name} {self._location(parent.ns)}" if parent else ""
        return f"{link.name} is a {link.kind} link{on}."

    def _peer_end(self, peer: Link) -> str:
        bridge = self.snapshot.link((peer.ns, peer.master)) if peer.master is not None else None
        where = self._location(peer.ns)
        if peer.key in self._ovs:
            return f"to port {peer.name} of the Open vSwitch bridge {self._ovs[peer.key]} {where}"
        if bridge is None:
            return f"to {peer.name} {where}, which isn't a bridge port: traffic is routed there"
        return f"to port {peer.name} of {bridge.kind} {bridge.name} {where}"

    def _parent(self, link: Link) -> Link | None:
        """Return the lower link of a macvlan, vlan or the like, if it is known."""
        net = self.snapshot.nets.get(link.ns)
        if link.lower is None or net is None:
            return None
        ns = link.ns if link.lower_nsid is None else net.nsids.get(link.lower_nsid)
        return self.snapshot.link((ns, link.lower)) if ns is not None else None

    def _location(self, ns: int) -> str:
        if ns == self._hosts["net"]:
            return "on the host"
        inside = self._by_namespace.get(("net", ns), ())
        namespace = self.snapshot.namespaces.get(ns)
        names = [other.name for other in inside] or list(namespace.names if namespace else ())
        return f"in {names[0]}" if names else f"in namespace {ns}"


def _connects(link: Link) -> bool:
    return link.kind != "loopback" and link.name not in _FALLBACK_TUNNELS


def _listed(containers: Sequence[Container]) -> str:
    names = [container.name for container in containers]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _short(name: str) -> str:
    """Shorten a container id as engines do; leave a name."""
    return name[:12] if _ID.fullmatch(name) else name[:64]
