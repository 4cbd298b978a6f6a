"""Firewall rules of nftables and iptables in one namespace, and NAT entries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from core.model.refs import Problem


@dataclass(frozen=True, slots=True)
class Chain:
    """One chain; `hook` is "" for a mere jump target.

    `policy` is "accept", "drop" or ""; `links` are the names of those that a chain of family netdev is on."""

    backend: str
    family: str
    table: str
    name: str
    hook: str = ""
    kind: str = ""
    priority: int = 0
    policy: str = ""
    links: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Return what identifies it in a namespace: backend, family, table and name."""
        return (self.backend, self.family, self.table, self.name)


@dataclass(frozen=True, slots=True)
class Translation:
    """One element of a NAT map: matches, new address and port, as in FirewallRule."""

    src: str = ""
    dst: str = ""
    l4_proto: str = ""
    sport: str = ""
    dport: str = ""
    to_address: str = ""
    to_port: str = ""


@dataclass(frozen=True, slots=True)
class VerdictCase:
    """One element of a verdict map: a value ("*" for any other) and its verdict."""

    value: str
    verdict: str
    target: str = ""


@dataclass(frozen=True, slots=True)
class FirewallRule:
    """One rule.

    `backend` is "nft", "iptables-nft" or "iptables-legacy"; `family` "ip", "ip6", "inet", "arp", "bridge" or
    "netdev"; `rule_id` is unique and stable within its namespace. `text` is the rule as its own tool prints
    it (`nft -s list ruleset`, `iptables-save`), without the counters' values.

    Matches, if the rule has them: `iif`, `oif` names ("eth*" is a prefix), `src`, `dst` addresses or
    prefixes, `l4_proto`, `sport`, `dport` ("80", "8000-8010"), `ct_state` in lower case; several as "80,443",
    a named set as "@name"; a leading "!" negates.

    `verdict` is "accept", "drop", "reject", "return", "jump", "goto", "vmap", "masquerade", "snat", "dnat",
    "redirect", "notrack", "queue", "tproxy" or "" for a rule that only counts, marks or logs. A NAT rule has
    `to_address` and `to_port`, or `translations` if it uses a map. `target` is the chain of a jump ("a,b" for
    a verdict map; `choices` are its elements and `chosen_by` the field that they match, both empty if that
    is none of the fields, or several). `packets` and `bytes` are None if the rule has no counter.
    `understood` is False if the rule has a match that these fields can't hold: see `text`.
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
    choices: tuple[VerdictCase, ...] = ()
    comment: str = ""
    packets: int | None = None
    bytes: int | None = None
    understood: bool = True


@dataclass(frozen=True, slots=True)
class Firewall:
    """All chains and rules of one namespace, in the order in which tools list them.

    `sets` are the elements of nftables' named sets and maps of one field, by "FAMILY/TABLE/NAME"; those of
    several fields are left out."""

    ns: int
    chains: tuple[Chain, ...] = ()
    rules: tuple[FirewallRule, ...] = ()
    problems: tuple[Problem, ...] = ()
    sets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NatEntry:
    """One translation or forward filter of `ns`, derived from one or more rules.

    `kind` is "published port", "masquerade", "snat", "dnat", "redirect" or "filter"; `name` a short title
    ("web1 tcp 8080 -> 172.18.0.2:80"); `sentence` a description. `outside` and `inside` are the two sides in
    short: for DNAT "*:8080" (any address) and "172.18.0.2:80", for SNAT the new address or outgoing link and
    the source prefix or link, for a filter destination and source ("" for any). `networks` and `containers`
    are the ids ("runtime:id" for containers) of those whose address or link it mentions, or whose packets it
    translates.

    `rules` are the ids of its rules: first those with the effect (`doing`), then helpers (hairpin, accept of
    translated packets); the counters are sums over `doing`, None if none of them counts. NAT rules count
    connections, not packets.
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
