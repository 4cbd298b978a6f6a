"""Give namespaces, links, containers and networks of an old snapshot new ids.

Inodes, ifindexes, pids and the ids of engines change when something restarts, when the host reboots, and from
host to host; names stay. With the new ids the two snapshots can be compared as if nothing had restarted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from core.model import (
    Container,
    Engine,
    Firewall,
    FirewallRule,
    Link,
    LinkKey,
    Namespace,
    NetState,
    Network,
    Route,
    Snapshot,
)
from core.topology import Topology

# Offsets of the ids of what only the old snapshot has, so that they equal no new one.
_GONE_NS, _GONE_LINK = 1 << 48, 1 << 32
# Names that engines make up for the host's ends of veth pairs; the other end identifies them.
_AUTOMATIC = re.compile(r"veth[0-9a-f]+|cali[0-9a-f]+|lxc[0-9a-z]+|vnet[0-9]+")


@dataclass(frozen=True, slots=True)
class Alignment:
    """Hold the old snapshot with new ids.

    `recreated` are the links that got another ifindex, or whose container was started again; `renamed` maps
    the names engines chose for links to those that they chose since."""

    snapshot: Snapshot
    recreated: frozenset[LinkKey]
    renamed: Mapping[str, str]


def align(old: Snapshot, new: Snapshot) -> Alignment:
    """Match items by name, and return the old snapshot with the new ids."""
    return _Aligner(old, new).result()


class _Aligner:
    def __init__(self, old: Snapshot, new: Snapshot) -> None:
        self.old, self.new = Topology(old), Topology(new)
        self.networks = _pairs(_networks(old), _networks(new))
        self.containers = _pairs(_containers(old), _containers(new))
        self.spaces = _match_namespaces(self.old, self.new)
        self.bridges = dict(self._renamed_bridges())
        self.links = self._match_links()
        self.renamed = self.bridges | dict(self._renamed_links())

    def result(self) -> Alignment:
        """Return the old snapshot with the new ids."""
        old = self.old.snapshot
        aligned = replace(
            old,
            host=replace(old.host, netns=self.ns(self.old.host)),
            namespaces={self.ns(ns): self._namespace(one) for ns, one in old.namespaces.items()},
            nets={self.ns(ns): self._net(net) for ns, net in old.nets.items()},
            firewalls={self.ns(ns): self._firewall(one) for ns, one in old.firewalls.items()},
            conntracks={}, storms=(), storm_guards=(), tuning={},
            engines={name: self._engine(one) for name, one in old.engines.items()},
            listeners={self.ns(ns): ports for ns, ports in old.listeners.items()},
        )  # fmt: skip
        # The kernel gives the inode of a namespace that is gone to the next one.
        known = set(map(_run, old.containers()))
        again = {one.netns for one in self.new.snapshot.containers() if _run(one) not in known}
        kept = {one.netns for one in self.new.snapshot.containers() if _run(one) in known} | {self.new.host}
        recreated = (new for was, new in self.links.items() if was != new or new.ns in again - kept)
        return Alignment(aligned, frozenset(recreated), self.renamed)

    def ns(self, inode: int) -> int:
        """Return the new inode of an old namespace."""
        return self.spaces.get(inode, inode + _GONE_NS)

    def key(self, ns: int, ifindex: int) -> LinkKey:
        """Return the new key of an old link."""
        gone = LinkKey(self.ns(ns), ifindex + _GONE_LINK)
        return self.links.get(LinkKey(ns, ifindex), gone)

    # ---- links

    def _renamed_bridges(self) -> Iterator[tuple[str, str]]:
        """Yield old and new name of the bridges of networks that were created again."""
        before = {network.id: network.bridge for network in _networks(self.old.snapshot).values()}
        for name, network in _networks(self.new.snapshot).items():
            was = before.get(next((old for old, now in self.networks.items() if now == network.id), ""), "")
            if name and was and network.bridge and was != network.bridge:
                yield was, network.bridge

    def _match_links(self) -> dict[LinkKey, LinkKey]:
        found: dict[LinkKey, LinkKey] = {}
        for old_ns, ns in self.spaces.items():
            before, after = self.old.snapshot.nets.get(old_ns), self.new.snapshot.nets.get(ns)
            if before is None or after is None:
                continue
            olds = {self._link_name(self.old, link, old=True): link for link in before.links.values()}
            news = {self._link_name(self.new, link, old=False): link for link in after.links.values()}
            for name in olds.keys() & news.keys():
                if olds[name].kind == news[name].kind:
                    found[olds[name].key] = news[name].key
        return found

    def _link_name(self, side: Topology, link: Link, old: bool) -> Hashable:
        """Return what identifies a link in its namespace: its name, or its peer's."""
        if link.kind == "veth" and _AUTOMATIC.fullmatch(link.name):
            peer = side.peer(link)
            ns = (self.spaces.get(peer.ns) if old else peer.ns) if peer else None
            if peer is not None and ns is not None and peer.ns != link.ns:
                return ns, peer.name
        return self.bridges.get(link.name, link.name) if old else link.name

    def _renamed_links(self) -> Iterator[tuple[str, str]]:
        for was, now in self.links.items():
            before, after = self.old.snapshot.link(was), self.new.snapshot.link(now)
            if before and after and before.name != after.name:
                yield before.name, after.name

    def _new_name(self, name: str) -> str:
        return self.renamed.get(name, name)

    # ---- the parts with new ids

    def _namespace(self, one: Namespace) -> Namespace:
        return replace(one, inode=self.ns(one.inode))

    def _net(self, net: NetState) -> NetState:
        ns = net.ns
        links = [self._link(link, net) for link in net.links.values()]
        return replace(
            net,
            ns=self.ns(ns),
            links={link.ifindex: link for link in links},
            routes=tuple(self._route(route, ns) for route in net.routes),
            rules=tuple(
                replace(rule, iif=self._new_name(rule.iif), oif=self._new_name(rule.oif))
                for rule in net.rules
            ),
            neighbours=tuple(
                replace(one, ifindex=self.key(ns, one.ifindex).ifindex) for one in net.neighbours
            ),
            fdb=tuple(
                replace(
                    one, port=self.key(ns, one.port).ifindex,
                    bridge=self.key(ns, one.bridge).ifindex if one.bridge else one.bridge,
                )
                for one in net.fdb
            ),
            nsids={nsid: self.ns(inode) for nsid, inode in net.nsids.items()},
            settings=tuple(
                replace(one, ifindex=self.key(ns, one.ifindex).ifindex) if one.ifindex else one
                for one in net.settings
            ),
        )  # fmt: skip

    def _link(self, link: Link, net: NetState) -> Link:
        key, lower = self.key(*link.key), link.lower
        peer = self.old.peers.get(link.key)
        if peer is not None:
            lower = self.key(*peer).ifindex
        elif lower is not None:
            ns = net.ns if link.lower_nsid is None else net.nsids.get(link.lower_nsid, 0)
            lower = self.key(ns, lower).ifindex if ns else lower
        master = link.master if link.master is None else self.key(link.ns, link.master).ifindex
        name = self.renamed.get(link.name, link.name)
        return replace(link, ns=key.ns, ifindex=key.ifindex, name=name, master=master, lower=lower)

    def _route(self, route: Route, ns: int) -> Route:
        hops = (
            hop if hop.ifindex is None else replace(hop, ifindex=self.key(ns, hop.ifindex).ifindex)
            for hop in route.nexthops
        )
        return replace(route, nexthops=tuple(hops))

    def _firewall(self, firewall: Firewall) -> Firewall:
        """Return the rules with new names of links, and ids that equal no new rule's."""
        names = "|".join(map(re.escape, sorted(self.renamed, key=len, reverse=True)))
        pattern = re.compile(rf"(?<![\w.-])({names})(?![\w.-])") if names else None
        rules = tuple(self._rule(rule, pattern) for rule in firewall.rules)
        return replace(firewall, ns=self.ns(firewall.ns), rules=rules)

    def _rule(self, rule: FirewallRule, pattern: re.Pattern[str] | None) -> FirewallRule:
        text = pattern.sub(lambda found: self.renamed[found[0]], rule.text) if pattern else rule.text
        return replace(rule, rule_id=f"old {rule.rule_id}", text=text)

    def _engine(self, engine: Engine) -> Engine:
        return replace(
            engine,
            containers=tuple(self._container(one) for one in engine.containers),
            networks=tuple(self._network(one) for one in engine.networks),
        )

    def _container(self, one: Container) -> Container:
        mode, _, target = one.network_mode.partition(":")
        if mode == "container" and target:
            mode = f"container:{self.containers.get(target, target)}"
        spaces = {kind: self.ns(ino) if kind == "net" else ino for kind, ino in one.namespaces.items()}
        ends = tuple(
            replace(end, network=self.networks.get(end.network, end.network)) for end in one.endpoints
        )
        return replace(
            one, id=self.containers.get(one.id, one.id), namespaces=spaces, endpoints=ends,
            network_mode=mode if target else self.networks.get(one.network_mode, one.network_mode),
        )  # fmt: skip

    def _network(self, one: Network) -> Network:
        ns = one.ns if one.ns is None else self.ns(one.ns)
        bridge = self.renamed.get(one.bridge, one.bridge)
        return replace(one, id=self.networks.get(one.id, one.id), ns=ns, bridge=bridge)


def _pairs[Item: (Container, Network)](
    old: Mapping[Hashable, Item], new: Mapping[Hashable, Item]
) -> dict[str, str]:
    """Map the ids of old items to new ones: the same id, or else the same name."""
    ids = {one.id for one in new.values()}
    found = {one.id: one.id for one in old.values() if one.id in ids}
    taken = set(found)
    for key, one in old.items():
        if one.id not in found and key in new and new[key].id not in taken:
            found[one.id] = new[key].id
            taken.add(new[key].id)
    return found


def _run(one: Container) -> tuple[str, int | None]:
    """Identify a run of a container; a named namespace outlives its processes."""
    return one.id, None if one.runtime == "netns" else one.pid


def _containers(snapshot: Snapshot) -> dict[Hashable, Container]:
    return {(one.runtime, one.name): one for one in snapshot.containers()}


def _networks(snapshot: Snapshot) -> dict[Hashable, Network]:
    return {(one.engine, one.name): one for each in snapshot.engines.values() for one in each.networks}


def _match_namespaces(old: Topology, new: Topology) -> dict[int, int]:
    """Map the inodes of namespaces: by name, and then by what else stayed."""
    found = {old.host: new.host} if old.host and new.host else {}
    for names in (_names, _commands):
        before, after = _unique(old, names, found), _unique(new, names, found.values())
        for key, inode in before.items():
            now = after.get(key)
            if now is not None and inode not in found and now not in found.values():
                found[inode] = now
    for inode in old.snapshot.namespaces.keys() & new.snapshot.namespaces.keys():
        if inode not in found and inode not in found.values() and _same_links(old, new, inode):
            found[inode] = inode
    return found


def _names(side: Topology, one: Namespace) -> Iterator[Hashable]:
    """Yield the names of a namespace that outlive a restart."""
    for container in side.containers_in(one.inode):
        if container.runtime != "process":
            yield "container", container.runtime, container.name
    yield from (("netns", name) for name in one.names)


def _commands(_side: Topology, one: Namespace) -> Iterator[Hashable]:
    """Yield what identifies a namespace without a name."""
    if one.unit:
        yield "unit", one.unit
    elif one.command:
        yield "command", one.command


def _unique(side: Topology, names: object, taken: Iterable[int]) -> dict[Hashable, int]:
    """Map names to inodes, of the names that only one of the namespaces has."""
    assert callable(names)
    done = set(taken)
    spaces = [one for one in side.snapshot.namespaces.values() if one.inode not in done]
    keys = [(key, one.inode) for one in spaces for key in names(side, one)]
    counts = Counter(key for key, _ in keys)
    return {key: inode for key, inode in keys if counts[key] == 1}


def _same_links(old: Topology, new: Topology, inode: int) -> bool:
    """Return whether both namespaces have a MAC address in common, or no link."""
    before, after = (_macs(side.snapshot.nets.get(inode)) for side in (old, new))
    same_host = old.snapshot.host.hostname == new.snapshot.host.hostname
    return same_host and (bool(before & after) or not (before or after))


def _macs(net: NetState | None) -> set[str]:
    links = net.links.values() if net else ()
    return {link.mac for link in links if link.mac and link.kind != "loopback"}
