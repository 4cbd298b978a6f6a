"""Build NAT entries: merge equal rules, attach helper rules to published ports."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from core.model import Container, FirewallRule, NatEntry, Network, Snapshot
from core.nat.packets import PlacedRule, Prefix, overlap, prefixes, split
from core.peers import resolve


@dataclass(slots=True)
class RawEntry:
    """A NatEntry before merging: entries with the same `key` are merged.

    `rules` translate or filter, `helper_ids` are the ids of rules that support them, `address` and `port` the
    destination of a published port.
    """

    key: tuple[str, ...]
    kind: str
    name: str
    sentence: str
    family: str
    rules: list[FirewallRule]
    entry_id: str
    l4_proto: str = ""
    outside: str = ""
    inside: str = ""
    networks: tuple[str, ...] = ()
    containers: tuple[str, ...] = ()
    address: str = ""
    port: str = ""
    helper_ids: list[str] = field(default_factory=list)

    def merge(self, other: RawEntry) -> None:
        """Add the rules of an entry with the same key."""
        self.rules += other.rules
        protos = dict.fromkeys((self.l4_proto, other.l4_proto))
        self.l4_proto = "" if "" in protos else ",".join(protos)

    def build(self, ns: int) -> NatEntry:
        """Return the finished entry."""
        return NatEntry(
            ns, self.entry_id, self.kind, self.name, self.sentence, self.family, self.l4_proto, self.outside,
            self.inside, self.rules[0].verdict,
            packets=_sum([rule.packets for rule in self.rules]),
            bytes=_sum([rule.bytes for rule in self.rules]),
            networks=self.networks, containers=self.containers,
            rules=tuple(dict.fromkeys([*(rule.rule_id for rule in self.rules), *self.helper_ids])),
            doing=tuple(dict.fromkeys(rule.rule_id for rule in self.rules)),
        )  # fmt: skip


def _sum(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def family_of(rule: FirewallRule, address: str) -> str:
    """Return "ip" or "ip6" if the address shows it, else the rule's family."""
    if rule.family != "inet" or not address or address.startswith("@"):
        return rule.family
    return "ip6" if ":" in address else "ip"


# A helper's kind, and the address, port and protocol of the published port.
Key = tuple[str, str, str, str]


def fold_helpers(placed: Iterable[PlacedRule], entries: Sequence[RawEntry]) -> frozenset[str]:
    """Attach helper rules to the published ports that they support; return their ids.

    If several ports forward to one destination, an engine makes a helper for each: they are distributed in
    order. If there are fewer helpers than ports, each port gets all of them.
    """
    groups: dict[Key, list[str]] = {}
    for one in placed:
        if key := _key(one):
            groups.setdefault(key, []).append(one.rule.rule_id)
    folded: set[str] = set()
    for key, rules in groups.items():
        helped = [entry for entry in entries if _is_for(key, entry)]
        if helped:
            _distribute(rules, helped)
            folded.update(rules)
    return frozenset(folded)


def _key(one: PlacedRule) -> Key | None:
    """Return the key of the published port that a rule supports, None for other rules."""
    rule = one.effective
    address = rule.dst.removesuffix("/32" if ":" not in rule.dst else "/128")
    if not address or address.startswith("!") or not rule.dport:
        return None
    if rule.verdict == "masquerade" and rule.src == rule.dst:
        return ("hairpin", address, rule.dport, rule.l4_proto)
    if rule.verdict == "accept" and not rule.src and not rule.ct_state and "forward" in one.hooks:
        return ("accept", address, rule.dport, rule.l4_proto)
    return None


def _is_for(key: Key, entry: RawEntry) -> bool:
    _, address, port, l4_proto = key
    return entry.kind == "published port" and (entry.address, entry.port, entry.l4_proto) == (
        address,
        port,
        l4_proto,
    )


def _distribute(rules: Sequence[str], entries: Sequence[RawEntry]) -> None:
    for number, entry in enumerate(entries):
        if len(rules) < len(entries):
            entry.helper_ids += rules
        else:
            entry.helper_ids += rules[number :: len(entries)]


# (namespace of the rules, address or link name) to container uids, in order.
_ByAddress = dict[tuple[int, str], dict[str, None]]


class Owners:
    """Index of the owners in one snapshot. `ns` is always the namespace of the rules."""

    def __init__(self, snapshot: Snapshot, networks: Sequence[Network]) -> None:
        self.host = host_netns(snapshot)
        self.networks = {network.id: network for network in networks}
        self.containers = {container.uid: container for container in snapshot.containers()}
        self._at: _ByAddress = {}
        self._behind: _ByAddress = {}
        self._subnets: dict[int, list[tuple[Prefix, str]]] = {}
        self._bridges: dict[tuple[int, str], str] = {}
        for network in networks:
            self._add_network(network)
        self._add_links(snapshot)
        for container in self.containers.values():
            self._add_endpoints(container)

    def _add_network(self, network: Network) -> None:
        ns = network.ns or self.host
        if network.bridge:
            self._bridges[ns, network.bridge] = network.id
        of_ns = self._subnets.setdefault(ns, [])
        of_ns += [(prefix, network.id) for subnet in network.subnets for prefix in prefixes(subnet) or ()]

    def _add_links(self, snapshot: Snapshot) -> None:
        """Add the containers at the peers of veth pairs, and their addresses."""
        members, uplinks = self._members(), _uplinks(snapshot)
        for inner_key, outer_key in resolve(snapshot.nets).items():
            inner, outer = snapshot.link(inner_key), snapshot.link(outer_key)
            uids = dict.fromkeys(members.get(inner_key.ns, ()))
            if not (inner and outer and uids) or inner.ns in (outer.ns, self.host):
                continue
            if (outer.ns, outer.ifindex) not in uplinks:
                self._behind.setdefault((outer.ns, outer.name), {}).update(uids)
            for address in inner.addresses:
                self._at.setdefault((outer.ns, address.address), {}).update(uids)

    def _members(self) -> Mapping[int, list[str]]:
        """Return the containers in each namespace; those that joined another's come last."""
        members: dict[int, list[str]] = {}
        for container in sorted(self.containers.values(), key=_is_joined):
            if container.netns is not None:
                members.setdefault(container.netns, []).append(container.uid)
        return members

    def _add_endpoints(self, container: Container) -> None:
        """Add the engine's endpoints, for links whose peer isn't visible."""
        by_name = {
            name: network.ns or self.host
            for network in self.networks.values() if network.engine == container.runtime
            for name in (network.name, network.id)
        }  # fmt: skip
        for endpoint in container.endpoints:
            for address in (endpoint.ipv4, endpoint.ipv6):
                key = (by_name.get(endpoint.network, self.host), address.partition("/")[0])
                if address:
                    self._at.setdefault(key, {})[container.uid] = None

    def containers_at(self, ns: int, address: str) -> tuple[str, ...]:
        """Return the uids of the containers at an address."""
        return tuple(self._at.get((ns, address.partition("/")[0]), ()))

    def containers_behind(self, ns: int, links: str) -> tuple[str, ...]:
        """Return the uids of the containers behind the links of a match."""
        return tuple(uid for name in split(links)[1] for uid in self._behind.get((ns, name), ()))

    def network_at(self, ns: int, address: str) -> str | None:
        """Return the id of the network of an address, by the longest prefix."""
        target = (prefixes(address) or (None,))[0]
        inside = [(prefix.prefixlen, network) for prefix, network in self._overlapping(ns, target)]
        return max(inside, key=lambda one: one[0])[1] if inside else None

    def _overlapping(self, ns: int, prefix: Prefix | None) -> Iterator[tuple[Prefix, str]]:
        """Return the subnets that overlap a prefix."""
        overlapping = self._subnets.get(ns, ()) if prefix and prefix.prefixlen else ()
        return ((one, network) for one, network in overlapping if prefix and overlap(one, prefix))

    def networks_behind(self, ns: int, links: str) -> tuple[str, ...]:
        """Return the ids of the networks whose bridges a match names, negated or not."""
        keys = ((ns, name) for name in split(links)[1])
        return tuple(self._bridges[key] for key in keys if key in self._bridges)

    def translated_networks(self, ns: int, links: str) -> tuple[str, ...]:
        """Return the ids of the "nat" networks whose packets leave by a match's links."""
        return tuple(
            network.id
            for network in self.networks.values()
            if network.kind == "nat" and (network.ns or self.host) == ns and links != network.bridge
        )

    def networks_in(self, ns: int, addresses: str) -> tuple[str, ...]:
        """Return the ids of the networks that overlap an address match.

        If there are networks of exactly that prefix, only those; none for a match of all addresses.
        """
        overlapping = [
            (prefix == one, network)
            for prefix in prefixes(addresses) or ()
            for one, network in self._overlapping(ns, prefix)
        ]
        exact = any(same for same, _ in overlapping)
        return tuple(dict.fromkeys(network for same, network in overlapping if same or not exact))


def _uplinks(snapshot: Snapshot) -> frozenset[tuple[int, int]]:
    """Return the links of default routes.

    Outside addresses are behind them, not one container.
    """
    return frozenset(
        (ns, hop.ifindex)
        for ns, net in snapshot.nets.items()
        for route in net.routes
        if route.dst == "default" and route.table == "main"
        for hop in route.nexthops
        if hop.ifindex
    )


def host_netns(snapshot: Snapshot) -> int:
    """Return the inode of the host namespace, 0 if it isn't known yet."""
    marked = (space.inode for space in snapshot.namespaces.values() if space.is_host)
    return snapshot.host.netns or next(marked, 0)


def _is_joined(container: Container) -> bool:
    return container.network_mode.startswith("container:")
