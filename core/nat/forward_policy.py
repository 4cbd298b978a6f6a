"""Whether others' rules let pass what a bridge's containers send and get, by kinds of packets."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from core.model import Chain, Choice, Firewall, FirewallRule
from core.nat.packets import (
    ChainKey,
    Kind,
    Packet,
    bounds,
    chain_key,
    families_of,
    split,
    takes_link,
    targets,
)
from core.tags import TABLE

_REFUSING = ("drop", "reject")
_DEEPEST = 16
_DNAT_PRIORITY, _CONNTRACK_PRIORITY = -100, -200


@dataclass(frozen=True, slots=True)
class Published:
    """A published port: the container's end, and the host's (`host_ip` "" for every address)."""

    address: str
    l4_proto: str
    ports: str
    host_ip: str = ""
    host_ports: str = ""


@dataclass(frozen=True, slots=True)
class ForwardPath:
    """Whose packets are judged: a bridge's, its `subnets` (none: any), the host's `uplink` ("" where it has
    none), the port that is `published`, and the bridge that it is joined `to`."""

    bridge: str
    uplink: str = ""
    subnets: tuple[str, ...] = ()
    published: Published | None = None
    to: str = ""


@dataclass(frozen=True, slots=True)
class DroppingChain:
    """A chain at a hook that drops a kind of packet, or may do so (not `certain`), of these families (IPv6 or
    not); `rule` is the first that does, None for the chain's policy; `where` the chain in which an accept
    put first lets them pass."""

    chain: Chain
    kind: Kind
    certain: bool
    families: tuple[bool, ...]
    rule: FirewallRule | None
    where: str


class PolicyEvaluator:
    """One firewall's rules, by chain; our own table is left out."""

    def __init__(self, firewall: Firewall) -> None:
        self.firewall = firewall

    def dropping(
        self, way: ForwardPath, kinds: Iterable[Kind], families: Collection[bool] = (False, True)
    ) -> Iterator[DroppingChain]:
        """Which of these kinds of packets of these families others' chains do not let pass."""
        kinds = tuple(kinds)
        for chain in self._deciding:
            for kind in kinds:
                packets = [one for one in _packets(kind, way, chain) if one.ipv6 in families]
                if found := self._judged(chain, kind, packets):
                    yield found

    @cached_property
    def _rules(self) -> dict[ChainKey, list[FirewallRule]]:
        found: dict[ChainKey, list[FirewallRule]] = {}
        for rule in self.firewall.rules:
            if rule.table != TABLE:
                found.setdefault(chain_key(rule), []).append(rule)
        return found

    @cached_property
    def _deciding(self) -> tuple[Chain, ...]:
        """The chains that forwarded packets come by and that drop anything at all."""
        return tuple(
            one
            for one in self.firewall.chains
            if is_on_the_way(one)
            and one.table != TABLE
            and (one.policy == "drop" or self._refuses(_key(one), set()))
        )

    def _refuses(self, key: ChainKey, seen: set[ChainKey]) -> bool:
        """Whether a rule drops in a chain, or in one that is reached from it."""
        seen.add(key)
        for rule in self._rules.get(key, ()):
            if rule.verdict in _REFUSING or rule.verdict == "queue" or _chosen_drop(rule):
                return True
            if any(one not in seen and self._refuses(one, seen) for one in targets(rule)):
                return True
        return False

    def _judged(self, chain: Chain, kind: Kind, packets: Sequence[Packet]) -> DroppingChain | None:
        walks = [(packet, self._walk(packet, chain)) for packet in packets]
        dropped = [(packet, walk) for packet, walk in walks if walk.drops]
        if not dropped:
            return None
        # One lost packet of such a connection is enough; of others all protocols count.
        whole = kind in ("published", "replies", "joined")
        certain = any(not walk.passes for _, walk in dropped) if whole else _all_of_a_family(walks)
        families = tuple(dict.fromkeys(packet.ipv6 for packet, _ in dropped))
        first = next((walk for _, walk in dropped if not walk.passes), dropped[0][1])
        where = self._where(chain, [packet for packet, _ in dropped])
        return DroppingChain(chain, kind, certain, families, first.rule, where)

    def _walk(self, packet: Packet, chain: Chain, passing: str = "") -> _Walk:
        walk = _Walk(self._rules, packet, passing and (*_key(chain)[:3], passing))
        walk.through(_key(chain), chain.policy)
        return walk

    def _where(self, chain: Chain, packets: Sequence[Packet]) -> str:
        """The chain for an accept: Docker leaves one for others' rules, where packets come there in time."""
        user = "DOCKER-USER"
        there = chain.backend != "nft" and (*_key(chain)[:3], user) in self._user_chains
        if there and all(not self._walk(packet, chain, user).drops for packet in packets):
            return user
        return chain.name

    @cached_property
    def _user_chains(self) -> set[ChainKey]:
        return {_key(one) for one in self.firewall.chains if one.name == "DOCKER-USER"}


class _Walk:
    """One walk of packets through a chain at a hook: whether some pass, whether some are dropped, and by
    which rule first. At the head of the chain `passing` stands a rule that accepts them."""

    def __init__(
        self, rules: dict[ChainKey, list[FirewallRule]], packet: Packet, passing: ChainKey | str = ""
    ) -> None:
        self.passes = self.drops = False
        self.rule: FirewallRule | None = None
        self._rules = rules
        self._packet = packet
        self._passing = passing

    def through(self, base: ChainKey, policy: str) -> None:
        if self._chain(base, False, 0):
            self._end("drop" if policy == "drop" else "accept", None, False)

    def _end(self, verdict: str, rule: FirewallRule | None, narrow: bool) -> None:
        if verdict == "accept":
            self.passes = True
        elif not narrow:
            self.rule = self.rule if self.drops else rule
            self.drops = True

    def _chain(self, key: ChainKey, narrow: bool, depth: int) -> bool:
        """Go through a chain; whether some of them come out of it again."""
        if key == self._passing:
            self._end("accept", None, narrow)
            return False
        left = False
        for rule in self._rules.get(key, ()) if depth < _DEEPEST else ():
            own_narrow = self._packet.is_narrow(rule)
            # A long list of addresses to refuse is passed over without looking at each.
            met = False if own_narrow and rule.verdict in _REFUSING else self._packet.meets(rule)
            if met is False:
                continue
            returned, goes_on = self._rule(rule, narrow or own_narrow, depth)
            left |= returned
            if met and not goes_on:
                return left
        return True

    def _rule(self, rule: FirewallRule, narrow: bool, depth: int) -> tuple[bool, bool]:
        """What a rule does with those that it matches: whether some leave the chain, and whether some come to
        the next rule."""
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
        """The same of a verdict map: by the element for these packets, by any where that isn't known."""
        chosen, certain = _chosen(rule, self._packet)
        returned, goes_on = False, not certain
        for one in chosen:
            single = replace(rule, verdict=one.verdict, target=one.target, choices=())
            ways = self._rule(single, narrow, depth) if one.verdict != "continue" else (False, True)
            returned, goes_on = returned or ways[0], goes_on or ways[1]
        return returned, goes_on


def _chosen(rule: FirewallRule, packet: Packet) -> tuple[Sequence[Choice], bool]:
    """The elements of a verdict map that packets may take, and whether they surely take one of them."""
    if not rule.chosen_by:
        # Which chain is not known, nor whether an element accepts.
        jumps = [Choice("", "jump", target) for target in rule.target.split(",") if target]
        return [*jumps, Choice("", "accept")], False
    if rule.chosen_by == "ct_state":
        known = [one for one in rule.choices if packet.states & set(split(one.value)[1])]
        return known[:1], bool(known)
    own, link = packet.of(rule.chosen_by), rule.chosen_by in ("iif", "oif")
    if own:
        fit = [one for one in rule.choices if _fits(one.value, own, link)]
        rest = [one for one in rule.choices if one.value == "*"]
        return (fit[:1] or rest), bool(fit or rest)
    if link:
        # Another link than the bridge: those of bridges that are not this one may still be meant.
        return [one for one in rule.choices if one.value != packet.bridge], False
    return rule.choices, False


def _fits(value: str, own: str, link: bool) -> bool:
    if value == "*":
        return False
    if link:
        return takes_link(value, own)
    if value.replace("-", "").isdigit() and own.replace("-", "").isdigit():
        low, high = bounds(value)
        return low <= bounds(own)[0] and bounds(own)[1] <= high
    return own in split(value)[1]


def _chosen_drop(rule: FirewallRule) -> bool:
    return any(one.verdict in _REFUSING for one in rule.choices)


def is_on_the_way(chain: Chain) -> bool:
    """Whether what the host forwards comes by a chain that may drop it."""
    return (
        chain.hook in ("forward", "prerouting")
        and chain.family in ("ip", "ip6", "inet")
        and chain.kind in ("", "filter")
    )


def _all_of_a_family(walks: Sequence[tuple[Packet, _Walk]]) -> bool:
    """Whether all that is judged of IPv4, or all of IPv6, is surely dropped."""
    families = {packet.ipv6 for packet, _ in walks}
    return any(
        all(walk.drops and not walk.passes for packet, walk in walks if packet.ipv6 == family)
        for family in families
    )


def _packets(kind: Kind, way: ForwardPath, chain: Chain) -> Iterator[Packet]:
    """The packets of a kind as they come by a chain."""
    for ipv6 in families_of(chain.family):
        if chain.hook == "forward":
            yield from _forwarded(kind, way, ipv6)
        else:
            yield from _received(kind, way, chain.priority, ipv6)


def _forwarded(kind: Kind, way: ForwardPath, ipv6: bool) -> Iterator[Packet]:
    port = way.published
    if port is None:
        yield from _of_networks(kind, way, ipv6)
    elif kind == "published" and (":" in port.address) == ipv6:
        towards = Packet(
            kind, way.bridge, ipv6, way.uplink, way.bridge, "", port.address, port.l4_proto, "", port.ports
        )
        for state in ("new", "established"):
            yield replace(towards, states=frozenset((state, "dnat")))
    elif kind == "replies" and (":" in port.address) == ipv6:
        states = frozenset(("established", "dnat"))
        back = Packet(kind, way.bridge, ipv6, way.bridge, way.uplink, port.address, "", port.l4_proto)
        yield replace(back, sport=port.ports, states=states)


def _of_networks(kind: Kind, way: ForwardPath, ipv6: bool) -> Iterator[Packet]:
    subnets = [one for one in way.subnets if (":" in one) == ipv6]
    bridge, uplink = way.bridge, way.to or way.uplink
    for subnet in subnets if way.subnets else ("",):
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


def _received(kind: Kind, way: ForwardPath, priority: int, ipv6: bool) -> Iterator[Packet]:
    """The same before the host has decided where they go: what comes to a published port is still addressed
    to the host, until the addresses are translated."""
    port = way.published
    early = priority < _CONNTRACK_PRIORITY
    # Before conntrack has seen a packet its state is said to be invalid.
    new, known = (frozenset((state if not early else "invalid",)) for state in ("new", "established"))
    if port is None:
        for packet in _of_networks(kind, way, ipv6) if kind == "out" else ():
            yield replace(packet, oif="", states=new)
    elif (":" in port.address) != ipv6:
        return
    elif kind == "published":
        late = priority > _DNAT_PRIORITY
        address, ports = (port.address, port.ports) if late else (port.host_ip, port.host_ports)
        packet = Packet(kind, way.bridge, ipv6, way.uplink, "", "", address, port.l4_proto, "", ports)
        yield replace(packet, states=new | {"dnat"} if late else new)
    elif kind == "replies":
        yield Packet(
            kind, way.bridge, ipv6, way.bridge, "", port.address, "", port.l4_proto, port.ports, "", known
        )


def by_chain(found: Iterable[DroppingChain]) -> list[tuple[Chain, list[DroppingChain]]]:
    """What each chain drops."""
    groups: dict[Chain, list[DroppingChain]] = {}
    for one in found:
        groups.setdefault(one.chain, []).append(one)
    return list(groups.items())


def _key(chain: Chain) -> ChainKey:
    return (chain.backend, chain.family, chain.table, chain.name)
