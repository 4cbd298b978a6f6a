"""Packet filter rules of one namespace, whichever tool made them."""

from __future__ import annotations

from dataclasses import dataclass

from core.model.problem import Problem


@dataclass(frozen=True, slots=True)
class Chain:
    """One chain; `hook` is "" for a chain that is only jumped to; `policy` "accept", "drop" or ""."""

    backend: str
    family: str
    table: str
    name: str
    hook: str = ""
    kind: str = ""
    priority: int = 0
    policy: str = ""


@dataclass(frozen=True, slots=True)
class Translation:
    """One element of a map by which a rule translates: what it matches, and the address and port it gives, in
    the form of FirewallRule's fields."""

    src: str = ""
    dst: str = ""
    l4_proto: str = ""
    sport: str = ""
    dport: str = ""
    to_address: str = ""
    to_port: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """One element of a verdict map: the value that it is for ("*" for every other one), in the form of
    FirewallRule's fields, and what the rule then does."""

    value: str
    verdict: str
    target: str = ""


@dataclass(frozen=True, slots=True)
class FirewallRule:
    """One rule. `backend` is "nft", "iptables-nft" or "iptables-legacy"; `family` "ip", "ip6", "inet", "arp",
    "bridge" or "netdev"; `rule_id` is unique and stable within its namespace. `text` is the rule as its own
    tool prints it (`nft -s list ruleset`, `iptables-save`), without the counters' values.

    Matches, where the rule has them: `iif`, `oif` names ("eth*": all that begin so), `src`, `dst` addresses
    or prefixes, `l4_proto`, `sport`, `dport` ("80", "8000-8010"), `ct_state` in lower case; several as
    "80,443", a named set as "@name"; a leading "!" negates. What the rule does is `verdict`: "accept",
    "drop", "reject", "return", "jump", "goto", "vmap", "masquerade", "snat", "dnat", "redirect", "notrack",
    "queue", "tproxy" or "" for one that only counts, marks or logs; `to_address` and `to_port` where it
    translates, or `translations` where a map tells; `target` the chain that it jumps to ("a,b" where a
    verdict map chooses; `choices` are its elements and `chosen_by` the field that they match, both empty
    where it matches several or none of the fields). `packets` and `bytes` are None where the rule carries no
    counter. `understood` is
    False where the rule holds a match that these fields do not tell: read `text` then.
    """

    backend: str
    family: str
    table: str
    chain: str
    rule_id: str
    text: str
    verdict: str = ""
    target: str = ""
    iif: str = ""
    oif: str = ""
    src: str = ""
    dst: str = ""
    l4_proto: str = ""
    sport: str = ""
    dport: str = ""
    ct_state: str = ""
    to_address: str = ""
    to_port: str = ""
    translations: tuple[Translation, ...] = ()
    chosen_by: str = ""
    choices: tuple[Choice, ...] = ()
    comment: str = ""
    packets: int | None = None
    bytes: int | None = None
    understood: bool = True


@dataclass(frozen=True, slots=True)
class Firewall:
    """All chains and rules of one namespace, in the order in which their tools list them."""

    ns: int
    chains: tuple[Chain, ...] = ()
    rules: tuple[FirewallRule, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class NatEntry:
    """One translation or forward filter, understood: "published port", "masquerade", "snat", "dnat",
    "redirect" or "filter" of `ns`.

    `name` is a short title ("web1 tcp 8080 -> 172.18.0.2:80"); `sentence` says what it does. `outside` and
    `inside` are the two sides in short: for what leads in "*:8080" (any address) and "172.18.0.2:80", for
    what leads out the address or link of the way out and the prefix or link it comes from, for a filter where
    to and where from ("" where anything goes). `networks` and `containers` are the ids ("runtime:id" for
    containers) of those whose address or link it carries, or whose packets it translates.

    `rules` are the ids of the rules behind it: those that do it (`doing`), then helpers (hairpin, accept of
    what was let in); the counters are sums over those that do it, None where none counts. Rules that
    translate count connections, not packets.
    """

    ns: int
    entry_id: str
    kind: str
    name: str
    sentence: str
    family: str
    l4_proto: str = ""
    outside: str = ""
    inside: str = ""
    verdict: str = ""
    packets: int | None = None
    bytes: int | None = None
    networks: tuple[str, ...] = ()
    containers: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    doing: tuple[str, ...] = ()
