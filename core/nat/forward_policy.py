"""Evaluate whether firewall rules drop packets from and to a bridge's containers.

Packets are evaluated by kind (core.nat.packets.Kind).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from core.model import Chain, Firewall, FirewallRule, VerdictCase
from core.nat.packets import (
    ChainKey,
    Kind,
    Packet,
    chain_key,
    families_of,
    has_any,
    matches_link,
    matches_ports,
    targets,
)
from core.text import TABLE

_DROPS = ("drop", "reject")
_DEEPEST = 16
_DNAT_PRIORITY, _CONNTRACK_PRIORITY = -100, -200


@dataclass(frozen=True, slots=True)
class Published:
    """A published port: addresses and ports of the container and of the host.

    `host_ip` "" is every address of the host.
    """

    address: str
    l4_proto: str
    ports: str
    host_ip: str = ""
    host_ports: str = ""


@dataclass(frozen=True, slots=True)
class ForwardPath:
    """The path of the packets to evaluate, from and to a bridge's containers.

    `subnets` are the bridge's (none: any), `uplink` is the host's link ("" for none), `published` the
    published port, and `to` the bridge that this one is joined with.
    """

    bridge: str
    uplink: str = ""
    subnets: tuple[str, ...] = ()
    published: Published | None = None
    to: str = ""


@dataclass(frozen=True, slots=True)
class DroppingChain:
    """A base chain that drops a kind of packet, or may do so (not `certain`).

    `families`: True is IPv6. `rule` is the first that drops, None for the chain's policy; an accept as the
    first rule of `accept_chain` allows the packets. `last_rule` drops what others before it have left, None
    for the policy.
    """

    chain: Chain
    kind: Kind
    certain: bool
    families: tuple[bool, ...]
    rule: FirewallRule | None
    accept_chain: str
    last_rule: FirewallRule | None = None


class PolicyEvaluator:
    """Evaluate the rules of one firewall, except those of vnet's own table."""

    def __init__(self, firewall: Firewall) -> None:
        self.firewall = firewall

    def dropping(
        self, path: ForwardPath, kinds: Iterable[Kind], families: Collection[bool] = (False, True)
    ) -> Iterator[DroppingChain]:
        """Yield the chains that drop packets of these kinds and families (True: IPv6)."""
        kinds = tuple(kinds)
        for chain in self._dropping_chains:
            for kind in kinds:
                packets = [one for one in _packets(kind, path, chain) if one.ipv6 in families]
                if found := self._evaluate(chain, kind, packets):
                    yield found

    @cached_property
    def _rules(self) -> dict[ChainKey, list[FirewallRule]]:
        found: dict[ChainKey, list[FirewallRule]] = {}
        for rule in self.firewall.rules:
            if rule.table != TABLE:
                found.setdefault(chain_key(rule), []).append(rule)
        return found

    @cached_property
    def _dropping_chains(self) -> tuple[Chain, ...]:
        """Return the base chains for forwarded packets that can drop anything."""
        return tuple(
            one
            for one in self.firewall.chains
            if is_forward_chain(one)
            and one.table != TABLE
            and (one.policy == "drop" or self._may_drop(one.key, set()))
        )

    def _may_drop(self, key: ChainKey, seen: set[ChainKey]) -> bool:
        """Return whether a rule of a chain, or of a chain that it jumps to, drops."""
        seen.add(key)
        for rule in self._rules.get(key, ()):
            if rule.verdict in _DROPS or rule.verdict == "queue" or _chosen_drop(rule):
                return True
            if any(one not in seen and self._may_drop(one, seen) for one in targets(rule)):
                return True
        return False

    def _evaluate(self, chain: Chain, kind: Kind, packets: Sequence[Packet]) -> DroppingChain | None:
        walks = [(packet, self._walk(packet, chain)) for packet in packets]
        dropped = [(packet, walk) for packet, walk in walks if walk.drops]
        if not dropped:
            return None
        # One dropped packet breaks such a connection; for the other kinds all protocols must be dropped.
        one_connection = kind in ("published", "replies", "joined")
        certain = (
            any(not walk.passes for _, walk in dropped) if one_connection else _drops_whole_family(walks)
        )
        families = tuple(dict.fromkeys(packet.ipv6 for packet, _ in dropped))
        first = next((walk for _, walk in dropped if not walk.passes), dropped[0][1])
        accept_chain = self._accept_chain(chain, [packet for packet, _ in dropped])
        return DroppingChain(chain, kind, certain, families, first.rule, accept_chain, first.last_rule)

    def _walk(self, packet: Packet, chain: Chain, accept_at: str = "") -> _Walk:
        walk = _Walk(self._rules, packet, accept_at and (*chain.key[:3], accept_at))
        walk.run(chain.key, chain.policy)
        return walk

    def _accept_chain(self, chain: Chain, packets: Sequence[Packet]) -> str:
        """Return the chain for an accept: DOCKER-USER if the packets pass it early enough."""
        user = "DOCKER-USER"
        has_user_chain = chain.backend != "nft" and (*chain.key[:3], user) in self._user_chains
        if has_user_chain and all(not self._walk(packet, chain, user).drops for packet in packets):
            return user
        return chain.name

    @cached_property
    def _user_chains(self) -> set[ChainKey]:
        return {one.key for one in self.firewall.chains if one.name == "DOCKER-USER"}


class _Walk:
    """Evaluate a base chain: whether some packets pass, and whether some are dropped.

    `rule` is the first that drops, `last_rule` the last one. The chain `accept_at` is evaluated as if its
    first rule accepted the packets.
    """

    def __init__(
        self, rules: dict[ChainKey, list[FirewallRule]], packet: Packet, accept_at: ChainKey | str = ""
    ) -> None:
        self.passes = self.drops = False
        self.rule: FirewallRule | None = None
        self.last_rule: FirewallRule | None = None
        self._rules = rules
        self._packet = packet
        self._accept_at = accept_at

    def run(self, base: ChainKey, policy: str) -> None:
        if self._chain(base, False, 0):
            self._end("drop" if policy == "drop" else "accept", None, False)

    def _end(self, verdict: str, rule: FirewallRule | None, narrow: bool) -> None:
        if verdict == "accept":
            self.passes = True
        elif not narrow:
            self.rule = self.rule if self.drops else rule
            self.last_rule = rule
            self.drops = True

    def _chain(self, key: ChainKey, narrow: bool, depth: int) -> bool:
        """Evaluate a chain, and return whether some packets return from it."""
        if key == self._accept_at:
            self._end("accept", None, narrow)
            return False
        left = False
        for rule in self._rules.get(key, ()) if depth < _DEEPEST else ():
            own_narrow = self._packet.is_narrow(rule)
            # Drops of single remote addresses are skipped: there may be very many.
            matched = False if own_narrow and rule.verdict in _DROPS else self._packet.match(rule)
            if matched is False:
                continue
            returned, goes_on = self._rule(rule, narrow or own_narrow, depth)
            left |= returned
            if matched and not goes_on:
                return left
        return True

    def _rule(self, rule: FirewallRule, narrow: bool, depth: int) -> tuple[bool, bool]:
        """Apply a rule that matches.

        Returns whether some packets leave the chain, and whether some reach the next rule.
        """
        match rule.verdict:
            case "accept" | "drop" | "reject":
                self._end(rule.verdict, rule, narrow)
                return False, False
            case "return":
                return True, False
            case "queue":
                self._end("accept", rule, narrow)
                self._end("drop", rule, narrow)
                return False, False
            case "jump" | "goto":
                (key,) = targets(rule) or (("", "", "", ""),)
                out = self._chain(key, narrow, depth + 1)
                return (False, out) if rule.verdict == "jump" else (out, False)
            case "vmap":
                return self._choose(rule, narrow, depth)
        return False, True

    def _choose(self, rule: FirewallRule, narrow: bool, depth: int) -> tuple[bool, bool]:
        """Apply the element of a verdict map for these packets; all elements if unknown."""
        chosen, certain = _chosen(rule, self._packet)
        returned, goes_on = False, not certain
        for one in chosen:
            single = replace(rule, verdict=one.verdict, target=one.target, choices=())
            left, stayed = self._rule(single, narrow, depth) if one.verdict != "continue" else (False, True)
            returned, goes_on = returned or left, goes_on or stayed
        return returned, goes_on


def _chosen(rule: FirewallRule, packet: Packet) -> tuple[Sequence[VerdictCase], bool]:
    """Return the elements of a verdict map that may match, and whether one must."""
    if not rule.chosen_by:
        # Neither the chain nor the verdict of an element is known.
        jumps = [VerdictCase("", "jump", target) for target in rule.target.split(",") if target]
        return [*jumps, VerdictCase("", "accept")], False
    if rule.chosen_by == "ct_state":
        known = [one for one in rule.choices if has_any(one.value, packet.states)]
        return known[:1], bool(known)
    own, link = packet.get(rule.chosen_by), rule.chosen_by in ("iif", "oif")
    if own:
        fit = [one for one in rule.choices if _fits(one.value, own, link)]
        rest = [one for one in rule.choices if one.value == "*"]
        return (fit[:1] or rest), bool(fit or rest)
    if link:
        # Any link but the bridge: elements of other bridges may match.
        return [one for one in rule.choices if one.value != packet.bridge], False
    return rule.choices, False


def _fits(value: str, own: str, link: bool) -> bool:
    if value == "*":
        return False
    if link:
        return matches_link(value, own)
    if value.replace("-", "").isdigit() and own.replace("-", "").isdigit():
        return matches_ports(value, own) is True
    return has_any(value, {own})


def _chosen_drop(rule: FirewallRule) -> bool:
    return any(one.verdict in _DROPS for one in rule.choices)


def is_forward_chain(chain: Chain) -> bool:
    """Return whether a base chain can drop forwarded packets."""
    return (
        chain.hook in ("forward", "prerouting")
        and chain.family in ("ip", "ip6", "inet")
        and chain.kind in ("", "filter")
    )


def _drops_whole_family(walks: Sequence[tuple[Packet, _Walk]]) -> bool:
    """Return whether all packets of IPv4, or all of IPv6, are certainly dropped."""
    families = {packet.ipv6 for packet, _ in walks}
    return any(
        all(walk.drops and not walk.passes for packet, walk in walks if packet.ipv6 == family)
        for family in families
    )


def _packets(kind: Kind, path: ForwardPath, chain: Chain) -> Iterator[Packet]:
    """Yield the packets of a kind as they pass a base chain."""
    for ipv6 in families_of(chain.family):
        if chain.hook == "forward":
            yield from _forwarded(kind, path, ipv6)
        else:
            yield from _received(kind, path, chain.priority, ipv6)


def _forwarded(kind: Kind, path: ForwardPath, ipv6: bool) -> Iterator[Packet]:
    port = path.published
    if port is None:
        yield from _network_packets(kind, path, ipv6)
    elif kind == "published" and (":" in port.address) == ipv6:
        inbound = Packet(
            kind, path.bridge, ipv6, path.uplink, path.bridge, "", port.address, port.l4_proto, "", port.ports
        )
        for state in ("new", "established"):
            yield replace(inbound, states=frozenset((state, "dnat")))
    elif kind == "replies" and (":" in port.address) == ipv6:
        states = frozenset(("established", "dnat"))
        back = Packet(kind, path.bridge, ipv6, path.bridge, path.uplink, port.address, "", port.l4_proto)
        yield replace(back, sport=port.ports, states=states)


def _network_packets(kind: Kind, path: ForwardPath, ipv6: bool) -> Iterator[Packet]:
    subnets = [one for one in path.subnets if (":" in one) == ipv6]
    bridge, uplink = path.bridge, path.to or path.uplink
    for subnet in subnets if path.subnets else ("",):
        for l4_proto in ("tcp", "udp"):
            packet = Packet(kind, bridge, ipv6, bridge, uplink, subnet, "", l4_proto)
            if kind == "out":
                yield replace(packet, states=frozenset(("new",)))
            elif kind == "answers":
                back = replace(packet, iif=uplink, oif=bridge, src="", dst=subnet)
                yield replace(back, states=frozenset(("established",)))
            elif kind == "same":
                yield replace(packet, oif=bridge, dst=subnet, states=frozenset(("new",)))
            elif kind == "joined":
                yield replace(packet, states=frozenset(("new",)))
                yield replace(packet, states=frozenset(("established",)))


def _received(kind: Kind, path: ForwardPath, priority: int, ipv6: bool) -> Iterator[Packet]:
    """Yield the packets before routing.

    Until DNAT, those to a published port are addressed to the host.
    """
    port = path.published
    early = priority < _CONNTRACK_PRIORITY
    # Before conntrack a packet's state is invalid.
    new, known = (frozenset((state if not early else "invalid",)) for state in ("new", "established"))
    if port is None:
        for packet in _network_packets(kind, path, ipv6) if kind == "out" else ():
            yield replace(packet, oif="", states=new)
    elif (":" in port.address) != ipv6:
        return
    elif kind == "published":
        late = priority > _DNAT_PRIORITY
        address, ports = (port.address, port.ports) if late else (port.host_ip, port.host_ports)
        packet = Packet(kind, path.bridge, ipv6, path.uplink, "", "", address, port.l4_proto, "", ports)
        yield replace(packet, states=new | {"dnat"} if late else new)
    elif kind == "replies":
        yield Packet(
            kind, path.bridge, ipv6, path.bridge, "", port.address, "", port.l4_proto, port.ports, "", known
        )


def by_chain(found: Iterable[DroppingChain]) -> list[tuple[Chain, list[DroppingChain]]]:
    """Group the results by chain."""
    groups: dict[Chain, list[DroppingChain]] = {}
    for one in found:
        groups.setdefault(one.chain, []).append(one)
    return list(groups.items())
