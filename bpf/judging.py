"""Which firewall rules judge packets one by one, so that a flow that they let through once tells nothing of
its next packet.

Pure: rules come in as values (bpf/ruleset.py reads them). What is judged is an established connection's
plain packet, the only kind that the fast path forwards: it is followed through the chains of each hook
that forwarded packets pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

# Families and hooks that a forwarded or bridged packet passes.
FORWARDED = frozenset({"prerouting", "forward", "postrouting", "ingress", "egress"})
_DEPTH = 32

# (backend or family, table, chain): enough to tell chains apart.
ChainName = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, as far as it matters here.

    `judges` names what in it looks at single packets or changes them, "" where nothing does. `takes_part`
    is False where no established plain packet can match it. `always` is True where every such packet
    matches. `verdict` is "accept", "drop", "return", "jump", "goto" or "" for one that goes on; `targets`
    the chains it may jump to; where `always` is False the packet may also go on behind it. `marks` says
    that it reads or writes bits of the ct mark that are ours.
    """

    name: str
    judges: str = ""
    takes_part: bool = True
    always: bool = False
    verdict: str = ""
    targets: tuple[ChainName, ...] = ()
    marks: bool = False


@dataclass(frozen=True, slots=True)
class RuleSet:
    """Chains by name with their rules in order, and where packets enter: base chains with their hooks;
    those of type nat are left out, for only a connection's first packet passes them."""

    chains: Mapping[ChainName, Sequence[Rule]]
    hooks: Mapping[ChainName, str]

    def has_bridge_rules(self) -> bool:
        """Whether any rule has a say in frames that conntrack never sees: of the bridge family, or at an
        interface's ingress or egress."""
        return any(
            rules and (name[0] in ("bridge", "netdev") or self.hooks.get(name) in ("ingress", "egress"))
            for name, rules in self.chains.items()
        )


def hindrances(rules: RuleSet) -> list[str]:
    """The reasons why this rule set forbids the fast path, in words, without repetition."""
    found: dict[str, None] = {}
    for chain, hook in rules.hooks.items():
        if hook in FORWARDED:
            walk = _Walk(rules)
            walk.through(chain, 0)
            found |= dict.fromkeys(walk.reasons)
        if _is_late(chain, hook) and rules.chains.get(chain):
            found[f"{_where(chain)}: sees packets after all that the fast path takes into account"] = None
    return list(found)


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

    def __init__(self, rules: RuleSet) -> None:
        self.rules = rules
        self.reasons: list[str] = []
        self._known: dict[ChainName, bool] = {}

    def through(self, chain: ChainName, depth: int) -> bool:
        """Note what judges on the way; whether no packet comes back out of the chain."""
        if chain in self._known:
            return self._known[chain]
        self._known[chain] = False
        returns = False
        for rule in self.rules.chains.get(chain, ()) if depth < _DEPTH else ():
            ends, comes_back = self._rule(chain, rule, depth) if rule.takes_part else (False, False)
            returns |= comes_back
            if ends or (comes_back and rule.always):
                self._known[chain] = ends and not returns
                break
        return self._known[chain]

    def _rule(self, chain: ChainName, rule: Rule, depth: int) -> tuple[bool, bool]:
        """Whether no packet goes on behind this rule, and whether it lets some go back to where the chain was
        called."""
        if rule.judges:
            self.reasons.append(f"{_where(chain)}, {rule.name}: {rule.judges}")
        gone = [self.through(target, depth + 1) for target in rule.targets]
        if rule.verdict in ("accept", "drop"):
            return rule.always, False
        ended = bool(gone) and all(gone)
        if rule.verdict == "jump":
            return rule.always and ended, False
        if rule.verdict == "goto":
            return rule.always and ended, not ended
        return False, rule.verdict == "return"


def _where(chain: ChainName) -> str:
    return " ".join(chain)


# TCP flags as in the header's byte 13.
_FIN, _SYN, _RST, _ACK = 1, 2, 4, 16
_KNOWN_FLAGS = _FIN | _SYN | _RST | _ACK


def flags_match(mask: int, value: int, negated: bool = False) -> str:
    """Whether a match on TCP flags holds for what the fast path forwards (ACK set; SYN, FIN and RST not):
    "always", "never", or "sometimes"."""
    differs = (value ^ _ACK) & mask & _KNOWN_FLAGS
    if differs or value & ~mask:
        return "always" if negated else "never"
    if mask & ~_KNOWN_FLAGS:
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
PLAIN_TARGETS = frozenset(
    {
        "ACCEPT", "DROP", "REJECT", "RETURN", "DNAT", "SNAT", "MASQUERADE", "REDIRECT", "NETMAP", "NOTRACK",
        "CT",
    }
)  # fmt: skip
# Both change or count packets, and neither a connection's middle: see _saved_rule.
_OPENING_TARGETS = frozenset({"TCPMSS"})


def saved_rule(text: str, ct_state: str, chains: frozenset[str], table: ChainName, mask: int) -> Rule:
    """One rule of iptables-legacy, as iptables-save prints it (`-A CHAIN ...`); `table` is (backend,
    table, "")."""
    words = text.split()
    matches = [words[at + 1] for at, word in enumerate(words[:-1]) if word in ("-m", "--match")]
    target = next((words[at + 1] for at, word in enumerate(words[:-1]) if word in ("-j", "-g")), "")
    judges = next((each for each in matches if each not in PLAIN_MATCHES), "")
    known = target in PLAIN_TARGETS or target in chains or not target
    if not judges and not known:
        judges = f"target {target}"
    opening = _needs_opening(words)
    if target in _OPENING_TARGETS and not opening:
        judges = f"target {target}"
    part = _state_takes_part(ct_state) and not opening
    simple = all(word in ("-m", "conntrack", "state") for word in _without_state(words[2:], target))
    jumps = "-g" in words or target in chains
    verdict = "jump" if jumps else {"ACCEPT": "accept", "DROP": "drop", "RETURN": "return"}.get(target, "")
    return Rule(
        text,
        judges,
        part,
        always=simple and part,
        verdict=verdict,
        targets=((*table[:2], target),) if target in chains else (),
        marks=("CONNMARK" in words or "connmark" in matches) and _uses(words, mask),
    )


def _needs_opening(words: Sequence[str]) -> bool:
    """Whether `--tcp-flags MASK COMP` or `--syn` leaves only packets that open or close."""
    if "--syn" in words:
        return words[words.index("--syn") - 1] != "!"
    if "--tcp-flags" not in words:
        return False
    at = words.index("--tcp-flags")
    numbers = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32, "ALL": 63, "NONE": 0}
    mask, value = (sum(numbers.get(each, 0) for each in word.split(",")) for word in words[at + 1 : at + 3])
    return flags_match(mask, value, words[at - 1] == "!") == "never"


def _state_takes_part(ct_state: str) -> bool:
    if not ct_state:
        return True
    named = "established" in ct_state.lstrip("!").split(",")
    return named != ct_state.startswith("!")


def _without_state(words: Sequence[str], target: str) -> Iterator[str]:
    """The words of a rule without its state, its comment and its target."""
    skip = 0
    for word in words:
        if skip:
            skip -= 1
        elif word in ("-j", "-g", "--ctstate", "--state"):
            skip = 1
        elif word in ("--comment",):
            return  # quoted words may follow: take it as a condition
        else:
            yield word


def _uses(words: Sequence[str], mask: int) -> bool:
    """Whether a mask written in the rule overlaps ours; one without a mask uses all bits."""
    for at, word in enumerate(words[:-1]):
        if word in ("--mark", "--set-mark", "--set-xmark", "--ctmask", "--mask"):
            _, slash, written = words[at + 1].partition("/")
            text = written if slash else words[at + 1] if word in ("--ctmask", "--mask") else ""
            try:
                return bool(int(text, 0) & mask) if text else True
            except ValueError:
                return True
    return True
