"""Which firewall rules judge packets one by one, so that a flow that they let through once tells nothing of
its next packet.

Pure: rules come in as values (bpf/ruleset.py reads them). What is judged is an established connection's
plain packet, the only kind that the fast path forwards: it is followed through the chains of each hook
that forwarded packets pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

# Hooks that a forwarded or bridged packet passes.
FORWARDED = frozenset({"prerouting", "forward", "postrouting", "ingress", "egress"})
# What a bridge hands to the host to be routed passes the bridge family's input.
_ROUTED_BY_BRIDGE = ("bridge", "input")
_ROUTED_FAMILIES = ("ip", "ip6", "inet", "iptables-legacy ip", "iptables-legacy ip6")
_DEPTH = 32

# (backend or family, table, chain): enough to tell chains apart.
ChainName = tuple[str, str, str]
SetName = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, as far as it matters here.

    `judges` names what in it looks at single packets or changes them, "" where nothing does. `takes_part`
    is False where no established plain packet can match it. `always` is True where every such packet
    matches. `verdict` is "accept", "drop", "return", "jump", "goto" or "" for one that goes on; `targets`
    the chains it may jump to; where `always` is False the packet may also go on behind it. `marks` says
    that it reads or writes bits of the ct mark that are ours, `reads_mark` that it reads any; `sets` are
    those that it looks up. `link_in` and `link_out` are names of the only links that it matches, with a "*"
    at the end for all that begin so, or "#" and an index; "" for any. `reads_mac`: it looks at link-layer
    addresses, which are known of containers alone. `reads_invalid`: it is about packets that conntrack calls
    invalid, whether or not it takes part otherwise.
    """

    name: str
    judges: str = ""
    takes_part: bool = True
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

    def may_meet(self, links: Links | None) -> bool:
        """Whether a packet that comes in and leaves by some of these links can match; None: by any."""
        if links is None:
            return True
        return _meets(self.link_in, links.come_in) and _meets(self.link_out, links.leave)


@dataclass(frozen=True, slots=True)
class Links:
    """The links that accelerated packets come in by, as rules see them, and may leave by: names, and indexes
    as "#7". `bridges` are those among the former that lead to containers."""

    come_in: frozenset[str]
    leave: frozenset[str]
    bridges: frozenset[str]


def _meets(pattern: str, links: frozenset[str]) -> bool:
    if pattern.endswith("*"):
        return any(name.startswith(pattern[:-1]) for name in links)
    return not pattern or pattern in links


@dataclass(frozen=True, slots=True)
class RuleSet:
    """Chains by name with their rules in order, and where packets enter: base chains with their hooks;
    those of type nat are left out, for only a connection's first packet passes them. `behind_marks` are
    those whose priority puts them behind the chain that writes our marks, `maps` sets that hold verdicts or
    data, `expiring` those whose elements time out."""

    chains: Mapping[ChainName, Sequence[Rule]]
    hooks: Mapping[ChainName, str]
    behind_marks: frozenset[ChainName] = frozenset()
    maps: frozenset[SetName] = frozenset()
    expiring: frozenset[SetName] = frozenset()

    def has_bridge_rules(self) -> bool:
        """Whether any rule has a say in frames that conntrack never sees: of the bridge family, or at an
        interface's ingress or egress."""
        return any(
            rules and (name[0] in ("bridge", "netdev") or self.hooks.get(name) in ("ingress", "egress"))
            for name, rules in self.chains.items()
        )


@dataclass(frozen=True, slots=True)
class Judged:
    """Of a rule set: the `reasons` why it forbids the fast path, in words, without repetition, the sets that
    packets of established connections are looked up in, whether a rule reads their ct mark, and the rules,
    in words, that are about packets which conntrack calls invalid."""

    reasons: tuple[str, ...]
    sets: frozenset[SetName]
    reads_marks: bool = False
    invalid: tuple[str, ...] = ()


def judge(rules: RuleSet, links: Links | None = None) -> Judged:
    """Follow an established packet through every hook that it may pass, coming in and leaving by some of
    these links (None: by any)."""
    found: dict[str, None] = {}
    invalid: dict[str, None] = {}
    sets: set[SetName] = set()
    reads_marks = False
    for chain, hook in rules.hooks.items():
        if hook in FORWARDED or (chain[0], hook) == _ROUTED_BY_BRIDGE:
            # Elsewhere the links are those of bridges' ports, which come and go.
            is_routed = chain[0] in _ROUTED_FAMILIES and hook not in ("ingress", "egress")
            walk = _Walk(rules, links if is_routed else None)
            walk.through(chain, 0)
            found |= dict.fromkeys(walk.reasons)
            sets |= walk.sets
            invalid |= dict.fromkeys(_about_invalid(rules, chain, links if is_routed else None))
            reads_marks |= walk.reads_marks
        if (_is_late(chain, hook) or chain in rules.behind_marks) and rules.chains.get(chain):
            found[f"{_where(chain)}: sees packets after all that the fast path takes into account"] = None
    return Judged(tuple(found), frozenset(sets), reads_marks, tuple(invalid))


def _about_invalid(rules: RuleSet, base: ChainName, links: Links | None) -> Iterator[str]:
    """The rules about packets that conntrack calls invalid, in all chains that may be come to from a base
    chain: such packets pass by what lets established ones through."""
    chains = [base]
    for chain in chains:
        for rule in rules.chains.get(chain, ()):
            if rule.may_meet(links):
                chains += [target for target in rule.targets if target not in chains]
                if rule.reads_invalid:
                    yield f"{_where(chain)}, {rule.name}"


def _is_late(chain: ChainName, hook: str) -> bool:
    """Whether packets have got their mark when they come to that chain: at an interface's egress, and where
    what was routed goes into a bridge."""
    return hook == "egress" or (chain[0] == "bridge" and hook in ("output", "postrouting"))


def mark_users(rules: RuleSet) -> list[str]:
    """The rules that use bits of the ct mark that are ours, wherever they stand."""
    return [
        f"{_where(chain)}, {rule.name}" for chain, held in rules.chains.items() for rule in held if rule.marks
    ]


class _Walk:
    """The way of an established packet from one base chain on."""

    def __init__(self, rules: RuleSet, links: Links | None) -> None:
        self.rules, self._links = rules, links
        self.reasons: list[str] = []
        self.sets: set[SetName] = set()
        self.reads_marks = False
        self._known: dict[ChainName, bool] = {}

    def through(self, chain: ChainName, depth: int) -> bool:
        """Note what judges on the way; whether no packet comes back out of the chain."""
        if chain in self._known:
            return self._known[chain]
        self._known[chain] = False
        returns = False
        if depth >= _DEPTH:
            self.reasons.append(f"{_where(chain)}: more than {_DEPTH} chains lead to it, one from the other")
        for rule in self.rules.chains.get(chain, ()) if depth < _DEPTH else ():
            is_passed = rule.takes_part and rule.may_meet(self._links)
            ends, comes_back = self._rule(chain, rule, depth) if is_passed else (False, False)
            returns |= comes_back
            if ends or (comes_back and is_passed and rule.always):
                self._known[chain] = ends and not returns
                break
        return self._known[chain]

    def _rule(self, chain: ChainName, rule: Rule, depth: int) -> tuple[bool, bool]:
        """Whether no packet goes on behind this rule, and whether it lets some go back to where the chain was
        called."""
        self.sets.update(rule.sets)
        self.reads_marks |= rule.reads_mark
        judges = rule.judges or self._mac_of_an_uplink(rule)
        if judges:
            self.reasons.append(f"{_where(chain)}, {rule.name}: {judges}")
        gone = [self.through(target, depth + 1) for target in rule.targets]
        if rule.verdict in ("accept", "drop"):
            return rule.always, False
        ended = bool(gone) and all(gone)
        if rule.verdict == "jump":
            return rule.always and ended, False
        if rule.verdict == "goto":
            return rule.always and ended, not ended
        return False, rule.verdict == "return"

    def _mac_of_an_uplink(self, rule: Rule) -> str:
        """What comes in by an uplink may have another sender with each packet, of two routers for example."""
        if not rule.reads_mac or self._links is None:
            return ""
        others = self._links.come_in - self._links.bridges
        return (
            "it looks at MAC addresses of what comes in by an uplink"
            if _meets(rule.link_in, others) and others
            else ""
        )


def _where(chain: ChainName) -> str:
    return " ".join(chain)


# TCP flags as in the header's byte 13.
_FIN, _SYN, _RST, _ACK = 1, 2, 4, 16
# IPS_* that stay as they are once a connection is admitted: expected, answered, confirmed, translated.
FIXED_STATUS = 0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x80 | 0x100
KNOWN_FLAGS = _FIN | _SYN | _RST | _ACK


def flags_match(mask: int, value: int, negated: bool = False) -> str:
    """Whether a match on TCP flags holds for what the fast path forwards (ACK set; SYN, FIN and RST not):
    "always", "never", or "sometimes"."""
    differs = (value ^ _ACK) & mask & KNOWN_FLAGS
    if differs or value & ~mask:
        return "always" if negated else "never"
    if mask & ~KNOWN_FLAGS:
        return "sometimes"
    return "never" if negated else "always"


# What iptables' extensions look at stays the same for all packets of a connection.
PLAIN_MATCHES = frozenset(
    {
        "comment", "conntrack", "state", "tcp", "udp", "udplite", "sctp", "icmp", "icmp6", "icmpv6",
        "addrtype", "multiport", "mark", "physdev", "iprange", "mac", "policy", "rpfilter", "helper",
        "devgroup",
    }
)  # fmt: skip
# Matches of IPv6 headers that no plain packet has: the fast path leaves all extension headers to the kernel
# but the jumbo header, which is of hop-by-hop options (`hbh`).
ABSENT_MATCHES = frozenset({"rt", "frag", "dst", "mh", "ah"})
PLAIN_TARGETS = frozenset(
    {
        "ACCEPT", "DROP", "REJECT", "RETURN", "DNAT", "SNAT", "MASQUERADE", "REDIRECT", "NETMAP", "NOTRACK",
        "CT",
    }
)  # fmt: skip


ALL_BITS = 0xFFFFFFFF
INVALID, ESTABLISHED = 1, 2  # NF_CT_STATE_INVALID_BIT, NF_CT_STATE_BIT(IP_CT_ESTABLISHED)


class RuleFacts:
    """A rule in the making; the fields are those of Rule. `looks_up_state`: the ct state was asked
    for in a way that isn't worked out. `conditional`: not every packet matches."""

    def __init__(self, chain: ChainName, mask: int) -> None:
        self.chain, self.mask = chain, mask
        self.judges = ""
        self.takes_part = True
        self.conditional = False
        self.verdict, self.targets = "", list[str]()
        self.looked_up = list[str]()
        self.reads_mark = False
        self.links = {"in": "", "out": ""}
        self.reads_mac = False
        self.reads_invalid = self.looks_up_state = False
        self.marks = False

    def rule(self, name: str) -> Rule:
        """What was found."""
        targets = tuple((*self.chain[:2], target) for target in dict.fromkeys(self.targets))
        return Rule(
            name,
            self.judges,
            self.takes_part,
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
        )

    def judge(self, what: str) -> None:
        """It looks at single packets, or changes them; the first reason counts."""
        self.judges = self.judges or what

    def take_mark(self, used: int) -> None:
        """It uses these bits of the ct mark."""
        if used & self.mask:
            self.marks = True

    def compare_state(self, number: int, negated: bool, mask: int = ALL_BITS, inverted: int = 0) -> None:
        """`(state & mask) != 0` is how a list of states is asked for, `state == number` one of them."""
        established, invalid = (each & mask ^ inverted for each in (ESTABLISHED, INVALID))
        if (established == number) == negated:
            self.takes_part = False
            self.reads_invalid |= (invalid == number) != negated

    def look_at_status(self, mask: int) -> None:
        """It looks at these bits of the ct status."""
        if mask & ~FIXED_STATUS:
            self.judge("it looks at what becomes of connections (ct status)")

    def compare_flags(self, mask: int, number: int, negated: bool) -> None:
        """It asks whether these TCP flags are, or are not, that number."""
        found = flags_match(mask, number, negated)
        if found == "never":
            self.takes_part = False
        elif found == "sometimes":
            self.judge("it looks at TCP flags")
