"""The model card: how a container is connected, whom it shares its namespaces with, and why we say so."""

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

# Links that the kernel itself puts into every new namespace once a tunnel module is loaded
# (net.core.fb_tunnels_only_for_init_net): they connect nothing.
_FALLBACK_TUNNELS = frozenset(
    {"tunl0", "sit0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6tnl0", "ip6gre0"}
)


def cards(snapshot: Snapshot, peers: Mapping[LinkKey, LinkKey] | None = None) -> dict[str, ModelCard]:
    """The card of every container by its uid; `peers` are core.peers.resolve's, where known already."""
    maker = _Cards(snapshot, resolve(snapshot.nets) if peers is None else peers)
    return {container.uid: maker.card(container) for container in maker.containers}


class _Cards:
    """All containers of one snapshot, by what they may be looked up with."""

    def __init__(self, snapshot: Snapshot, peers: Mapping[LinkKey, LinkKey]) -> None:
        self.snapshot = snapshot
        self.peers = peers
        self.containers: tuple[Container, ...] = tuple(snapshot.containers())
        self._hosts = {**snapshot.host.namespaces, "net": snapshot.host.netns}
        self._inside: dict[tuple[str, int], list[Container]] = {}
        self._named: dict[str, list[Container]] = {}
        for container in self.containers:
            for kind, inode in container.namespaces.items():
                self._inside.setdefault((kind, inode), []).append(container)
            for word in {container.id, container.name}:
                self._named.setdefault(word, []).append(container)

    def card(self, container: Container) -> ModelCard:
        """The container's card."""
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
        """The uids of the others in the container's namespace of that kind."""
        inside = self._inside.get((kind, container.namespaces.get(kind, 0)), ())
        return tuple(other.uid for other in inside if other.uid != container.uid)

    def _model(self, container: Container) -> tuple[str, str, bool]:
        """The model, why it is that, and whether what was joined is dead."""
        if container.netns is None:
            return "unknown", self._without_namespace(container), False
        if container.netns == self._hosts["net"]:
            return (
                "open",
                "It uses the host's own network namespace: nothing separates it from the host.",
                False,
            )
        if container.network_mode.startswith(_JOIN):
            fault = self._fault(container)
            return "joined", fault or self._joined_by_name(container), bool(fault)
        others = self._joined_unasked(container)
        if others:
            return "joined", f"It lives in one network namespace with {_listed(others)}.", False
        return (*self._by_links(container), False)

    def _without_namespace(self, container: Container) -> str:
        if container.state in _RUNNING:
            return "It runs, but its namespaces cannot be seen from here."
        mode = container.network_mode
        joins = mode.removeprefix(_JOIN) if mode.startswith(_JOIN) else ""
        target = self._target(container) if joins else None
        would = (
            f"it would join {target.name if target else _short(joins) + ', which is gone'}"
            if joins
            else f'its network mode is "{mode}"'
        )
        return f"It is not running ({container.state}), so it has no namespaces" + (
            f"; {would}." if mode else "."
        )

    def _target(self, container: Container) -> Container | None:
        """Whom a container asked to join: of its own runtime first, running ones before others."""
        word = container.network_mode.removeprefix(_JOIN)
        found = [other for other in self._named.get(word, ()) if other.uid != container.uid]
        return min(
            found,
            key=lambda other: (other.runtime != container.runtime, other.state not in _RUNNING),
            default=None,
        )

    def _fault(self, container: Container) -> str:
        """What is wrong with what a container joined; "" where nothing is."""
        target = self._target(container)
        cut_off = "so it has no network."
        if target is None:
            gone = _short(container.network_mode.removeprefix(_JOIN))
            return f"It joined the container {gone}, which no longer exists, {cut_off}"
        if target.state not in _RUNNING:
            return f"It joined {target.name}, which is not running ({target.state}), {cut_off}"
        if target.netns is not None and target.netns != container.netns:
            return (
                f"It joined {target.name} before that was restarted with another network namespace, {cut_off}"
            )
        return ""

    def _joined_by_name(self, container: Container) -> str:
        target = self._target(container)
        name = target.name if target else ""
        return f"It was made to join {name} and lives in the same network namespace."

    def _joined_unasked(self, container: Container) -> list[Container]:
        """The others in its namespace, unless the namespace is its own and they came to it: it asked for a
        network, another one asked to join it, or the namespace bears its name alone."""
        inside = self._inside.get(("net", container.netns or 0), ())
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
            return "unknown", "The links in its network namespace could not be read."
        links = [link for link in net.links.values() if _connects(link)]
        if not links:
            return "closed", "Its network namespace has no link but loopback: nothing leads in or out."
        model = "routed" if all(map(self._is_bare_wire, links)) else "bridged"
        return model, " ".join(self._says(link) for link in links[:4])

    def _is_bare_wire(self, link: Link) -> bool:
        """Whether a link's other end is in sight and in no bridge."""
        peer = self.snapshot.link(self.peers[link.key]) if link.key in self.peers else None
        return peer is not None and peer.master is None

    def _says(self, link: Link) -> str:
        """What a link connects a container to, in a sentence."""
        peer = self.snapshot.link(self.peers[link.key]) if link.key in self.peers else None
        if peer is not None:
            return f"{link.name} is a {link.kind}{self._other_end(peer)}."
        parent = self._parent(link)
        on = f" on {parent.name} {self._where(parent.ns)}" if parent else ""
        return f"{link.name} is a {link.kind} link{on}."

    def _other_end(self, peer: Link) -> str:
        bridge = self.snapshot.link((peer.ns, peer.master)) if peer.master is not None else None
        where = self._where(peer.ns)
        if bridge is None:
            return f" to {peer.name} {where}, which is in no bridge: traffic is routed there"
        return f" into the {bridge.kind} {bridge.name} {where}, by its port {peer.name}"

    def _parent(self, link: Link) -> Link | None:
        """The link that a macvlan, vlan or the like sits on, where it is in sight."""
        net = self.snapshot.nets.get(link.ns)
        if link.lower is None or net is None:
            return None
        ns = link.ns if link.lower_nsid is None else net.nsids.get(link.lower_nsid)
        return self.snapshot.link((ns, link.lower)) if ns is not None else None

    def _where(self, ns: int) -> str:
        if ns == self._hosts["net"]:
            return "of the host"
        inside = self._inside.get(("net", ns), ())
        space = self.snapshot.namespaces.get(ns)
        names = [other.name for other in inside] or list(space.names if space else ())
        return f"of {names[0]}" if names else f"of namespace {ns}"


def _connects(link: Link) -> bool:
    return link.kind != "loopback" and link.name not in _FALLBACK_TUNNELS


def _listed(containers: Sequence[Container]) -> str:
    names = [container.name for container in containers]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _short(word: str) -> str:
    """A container's id as the engines' tools shorten it; a name as it is."""
    return word[:12] if _ID.fullmatch(word) else word[:64]
