"""Analyse which firewall rules match single packets instead of connections.

A flow that such a rule accepted once says nothing about its next packet. Pure: rules are values
(bpf/ruleset.py reads them). The analysis follows a plain packet of an established connection, the only kind
that the fast path forwards, through the chains of each hook that forwarded packets pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

# Hooks that a forwarded or bridged packet passes.
FORWARDED = frozenset({"prerouting", "forward", "postrouting", "ingress", "egress"})
# Packets that a bridge passes to the host to be routed go through the bridge family's input.
_ROUTED_BY_BRIDGE = ("bridge", "input")
_TUNNEL_HOOKS = ("prerouting", "input", "output", "postrouting")
_OUTER_FAMILIES = ("ip", "inet", "iptables-legacy ip")
_ROUTED_FAMILIES = ("ip", "ip6", "inet", "iptables-legacy ip", "iptables-legacy ip6")
_DEPTH = 32

# Backend or family, table, and name of the chain or set.
ChainName = tuple[str, str, str]
SetName = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Rule:
    """Describe one rule, as far as it matters here.

    - `per_packet`: what in it matches single packets or changes them, or ""
    - `can_match`: an established plain packet can match
    - `always`: every such packet matches; otherwise some continue behind the rule
    - `verdict`: "accept", "drop", "return", "jump", "goto", or "" if it continues
    - `targets`: chains it may jump to
    - `marks`: it reads or writes our bits of the ct mark; `reads_mark`: it reads any bits
    - `sets`: those that it looks up
    - `link_in`, `link_out`: the only links that it matches, with "*" at the end for a prefix, or "#" and an
      index; "" for any
    - `reads_mac`: it matches link-layer addresses, which are known of containers only
    - `reads_invalid`: it is about packets that conntrack calls invalid
    - `excludes_udp`: no UDP packet matches
    """

    name: str
    per_packet: str = ""
    can_match: bool = True
    always: bool = False
    verdict: str = ""
    targets: tuple[ChainName, ...] = ()
    marks: bool = False
    sets: tuple[SetName, ...] = ()
    reads_mark: bool = False
    link_in: str = ""
    link_out: str = ""
    reads_mac: bool = False
    reads_invalid: bool = False
    excludes_udp: bool = False

    def may_match(self, links: PacketLinks | None) -> bool:
        """Return whether a packet that enters and leaves by some of these links can match.

        None: any links.
        """
        if links is None:
            return True
        return _matches(self.link_in, links.inputs) and _matches(self.link_out, links.outputs)


@dataclass(frozen=True, slots=True)
class PacketLinks:
    """Hold the links that accelerated packets enter and leave by, as rules see them.

    Names, and indexes as "#7". `bridges`: those among the inputs that lead to containers.
    """

    inputs: frozenset[str]
    outputs: frozenset[str]
    bridges: frozenset[str]


def _matches(pattern: str, links: frozenset[str]) -> bool:
    if pattern.endswith("*"):
        return any(name.startswith(pattern[:-1]) for name in links)
    return not pattern or pattern in links


@dataclass(frozen=True, slots=True)
class RuleSet:
    """Hold chains by name with their rules in order, and base chains with their hooks.

    Base chains of type nat are left out, as only a connection's first packet passes them. `late`: chains
    whose priority is after the chain that writes our marks. `maps`: sets that hold verdicts or data.
    `expiring`: sets whose elements time out.
    """

    chains: Mapping[ChainName, Sequence[Rule]]
    hooks: Mapping[ChainName, str]
    late: frozenset[ChainName] = frozenset()
    maps: frozenset[SetName] = frozenset()
    expiring: frozenset[SetName] = frozenset()

    def has_bridge_rules(self) -> bool:
        """Return whether rules filter frames that conntrack never sees.

        That is in the bridge family, or at an interface's ingress or egress.
        """
        return any(
            rules and (name[0] in ("bridge", "netdev") or self.hooks.get(name) in ("ingress", "egress"))
            for name, rules in self.chains.items()
        )


@dataclass(frozen=True, slots=True)
class RuleAnalysis:
    """Hold the result of an analysis.

    `reasons`: why the rules forbid the fast path, without repetition. `sets`: those that packets of
    established connections are looked up in. `reads_marks`: a rule matches their ct mark. `invalid`: rules
    about packets that conntrack calls invalid. `of_tunnels`: why the kernel has to write and remove the outer
    headers of each packet of a tunnel.
    """

    reasons: tuple[str, ...]
    sets: frozenset[SetName]
    reads_marks: bool = False
    invalid: tuple[str, ...] = ()
    of_tunnels: tuple[str, ...] = ()


def analyse(rules: RuleSet, links: PacketLinks | None = None) -> RuleAnalysis:
    """Follow an established packet through every hook that it may pass.

    It enters and leaves by some of these links (None: any).
    """
    found: dict[str, None] = {}
    invalid: dict[str, None] = {}
    sets: set[SetName] = set()
    reads_marks = False
    for chain, hook in rules.hooks.items():
        if hook in FORWARDED or (chain[0], hook) == _ROUTED_BY_BRIDGE:
            # Elsewhere the links are ports of bridges, which come and go.
            is_routed = chain[0] in _ROUTED_FAMILIES and hook not in ("ingress", "egress")
            walk = _ChainWalk(rules, links if is_routed else None)
            walk.follow(chain, 0)
            found |= dict.fromkeys(walk.reasons)
            sets |= walk.sets
            invalid |= dict.fromkeys(_invalid_rules(rules, chain, links if is_routed else None))
            reads_marks |= walk.reads_marks
        if (_is_late(chain, hook) or chain in rules.late) and rules.chains.get(chain):
            found[f"{_chain_text(chain)}: processes packets after the chain of the fast path"] = None
    return RuleAnalysis(
        tuple(found), frozenset(sets), reads_marks, tuple(invalid), tuple(_tunnel_reasons(rules, links))
    )


def _tunnel_reasons(rules: RuleSet, links: PacketLinks | None) -> Iterator[str]:
    """Yield the rules that may match single packets of a tunnel.

    The host sends and receives these itself, each in one direction of a connection that is never established.
    """
    for base, hook in rules.hooks.items():
        if hook in _TUNNEL_HOOKS and base[0] in _OUTER_FAMILIES:
            for chain, rule in _reachable(rules, base, links):
                if rule.per_packet and not rule.excludes_udp:
                    yield f"{_chain_text(chain)}, {rule.name}: {rule.per_packet}"


def _reachable(
    rules: RuleSet, base: ChainName, links: PacketLinks | None
) -> Iterator[tuple[ChainName, Rule]]:
    """Yield the rules in all chains reachable from a base chain, with their chains."""
    chains = [base]
    for chain in chains:
        for rule in rules.chains.get(chain, ()):
            if rule.may_match(links):
                chains += [target for target in rule.targets if target not in chains]
                yield chain, rule


def _invalid_rules(rules: RuleSet, base: ChainName, links: PacketLinks | None) -> Iterator[str]:
    """Yield the rules about invalid packets in all chains reachable from a base chain.

    Such packets pass by rules that accept established ones.
    """
    for chain, rule in _reachable(rules, base, links):
        if rule.reads_invalid:
            yield f"{_chain_text(chain)}, {rule.name}"


def _is_late(chain: ChainName, hook: str) -> bool:
    """Return whether packets already have their mark when they come to that chain.

    So it is at an interface's egress, and where routed packets enter a bridge.
    """
    return hook == "egress" or (chain[0] == "bridge" and hook in ("output", "postrouting"))


def mark_users(rules: RuleSet) -> list[str]:
    """Return the rules in any chain that use our bits of the ct mark."""
    return [
        f"{_chain_text(chain)}, {rule.name}"
        for chain, chain_rules in rules.chains.items()
        for rule in chain_rules
        if rule.marks
    ]


class _ChainWalk:
    """Follow an established packet from one base chain on."""

    def __init__(self, rules: RuleSet, links: PacketLinks | None) -> None:
        self.rules, self._links = rules, links
        self.reasons: list[str] = []
        self.sets: set[SetName] = set()
        self.reads_marks = False
        self._ends: dict[ChainName, bool] = {}

    def follow(self, chain: ChainName, depth: int) -> bool:
        """Collect what matches single packets; return whether no packet leaves the chain."""
        if chain in self._ends:
            return self._ends[chain]
        self._ends[chain] = False
        returns = False
        if depth >= _DEPTH:
            self.reasons.append(f"{_chain_text(chain)}: jumps are nested deeper than {_DEPTH} chains")
        for rule in self.rules.chains.get(chain, ()) if depth < _DEPTH else ():
            applies = rule.can_match and rule.may_match(self._links)
            ends, comes_back = self._rule(chain, rule, depth) if applies else (False, False)
            returns |= comes_back
            if ends or (comes_back and applies and rule.always):
                self._ends[chain] = ends and not returns
                break
        return self._ends[chain]

    def _rule(self, chain: ChainName, rule: Rule, depth: int) -> tuple[bool, bool]:
        """Return whether no packet continues behind this rule, and whether some return.

        Return: to the chain that called this one.
        """
        self.sets.update(rule.sets)
        self.reads_marks |= rule.reads_mark
        per_packet = rule.per_packet or self._uplink_mac_reason(rule)
        if per_packet:
            self.reasons.append(f"{_chain_text(chain)}, {rule.name}: {per_packet}")
        ended_in = [self.follow(target, depth + 1) for target in rule.targets]
        if rule.verdict in ("accept", "drop"):
            return rule.always, False
        ended = bool(ended_in) and all(ended_in)
        if rule.verdict == "jump":
            return rule.always and ended, False
        if rule.verdict == "goto":
            return rule.always and ended, not ended
        return False, rule.verdict == "return"

    def _uplink_mac_reason(self, rule: Rule) -> str:
        """Return a reason if the rule matches MAC addresses of packets from an uplink.

        Each of their packets may have another sender, for example if there are two routers.
        """
        if not rule.reads_mac or self._links is None:
            return ""
        others = self._links.inputs - self._links.bridges
        return (
            "matches MAC addresses of packets from an uplink"
            if _matches(rule.link_in, others) and others
            else ""
        )


def _chain_text(chain: ChainName) -> str:
    return " ".join(chain)


# TCP flags, as in byte 13 of the header.
_FIN, _SYN, _RST, _ACK = 1, 2, 4, 16
# IPS_* that never change once a connection is admitted: expected, answered, confirmed, translated.
FIXED_STATUS = 0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x80 | 0x100
KNOWN_FLAGS = _FIN | _SYN | _RST | _ACK


def flags_match(mask: int, value: int, negated: bool = False) -> str:
    """Return whether a match on TCP flags holds for what the fast path forwards.

    Such packets have ACK set, and SYN, FIN and RST cleared. Returns "always", "never" or "sometimes".
    """
    differs = (value ^ _ACK) & mask & KNOWN_FLAGS
    if differs or value & ~mask:
        return "always" if negated else "never"
    if mask & ~KNOWN_FLAGS:
        return "sometimes"
    return "never" if negated else "always"


# What these extensions of iptables match is the same for all packets of a connection.
PLAIN_MATCHES = frozenset(
    {
        "comment", "conntrack", "state", "tcp", "udp", "udplite", "sctp", "icmp", "icmp6", "icmpv6",
        "addrtype", "multiport", "mark", "physdev", "iprange", "mac", "policy", "rpfilter", "helper",
        "devgroup",
    }
)  # fmt: skip
# Matches of IPv6 headers that no plain packet has: the fast path leaves all extension headers to the kernel
# except the jumbo header, which has hop-by-hop options (`hbh`).
ABSENT_MATCHES = frozenset({"rt", "frag", "dst", "mh", "ah"})
PLAIN_TARGETS = frozenset(
    {
        "ACCEPT", "DROP", "REJECT", "RETURN", "DNAT", "SNAT", "MASQUERADE", "REDIRECT", "NETMAP", "NOTRACK",
        "CT",
    }
)  # fmt: skip


ALL_BITS = 0xFFFFFFFF
INVALID, ESTABLISHED = 1, 2  # NF_CT_STATE_INVALID_BIT, NF_CT_STATE_BIT(IP_CT_ESTABLISHED)


class RuleBuilder:
    """Collect the properties of a rule; the fields are those of Rule.

    `looks_up_state`: the ct state is matched in a way that isn't evaluated here. `conditional`: not every
    packet matches.
    """

    def __init__(self, chain: ChainName, mask: int) -> None:
        self.chain, self.mask = chain, mask
        self.per_packet = ""
        self.can_match = True
        self.conditional = False
        self.verdict, self.targets = "", list[str]()
        self.looked_up = list[str]()
        self.reads_mark = False
        self.links = {"in": "", "out": ""}
        self.reads_mac = False
        self.reads_invalid = self.looks_up_state = False
        self.marks = False
        self.excludes_udp = False

    def rule(self, name: str) -> Rule:
        """Build the rule."""
        targets = tuple((*self.chain[:2], target) for target in dict.fromkeys(self.targets))
        return Rule(
            name,
            self.per_packet,
            self.can_match,
            not self.conditional,
            self.verdict,
            targets,
            self.marks,
            tuple((*self.chain[:2], name) for name in self.looked_up),
            self.reads_mark,
            self.links["in"],
            self.links["out"],
            self.reads_mac,
            self.reads_invalid or (self.looks_up_state and self.verdict != "accept"),
            self.excludes_udp,
        )

    def note_per_packet(self, what: str) -> None:
        """Note that it matches single packets or changes them; the first reason counts."""
        self.per_packet = self.per_packet or what

    def use_mark(self, used: int) -> None:
        """Note that it uses these bits of the ct mark."""
        if used & self.mask:
            self.marks = True

    def compare_state(self, number: int, negated: bool, mask: int = ALL_BITS, inverted: int = 0) -> None:
        """Note a comparison of the ct state.

        A list of states is matched by `(state & mask) != 0`, a single one by `state == number`.
        """
        established, invalid = (each & mask ^ inverted for each in (ESTABLISHED, INVALID))
        if (established == number) == negated:
            self.can_match = False
            self.reads_invalid |= (invalid == number) != negated

    def use_status(self, mask: int) -> None:
        """Note that it matches these bits of the ct status."""
        if mask & ~FIXED_STATUS:
            self.note_per_packet("matches changing bits of the connection's status (ct status)")

    def compare_flags(self, mask: int, number: int, negated: bool) -> None:
        """Note that it compares these TCP flags with a number."""
        found = flags_match(mask, number, negated)
        if found == "never":
            self.can_match = False
        elif found == "sometimes":
            self.note_per_packet("matches TCP flags")
