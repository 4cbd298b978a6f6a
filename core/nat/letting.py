"""Whether others' forward chains let pass what a bridge's containers send and get, by kinds of packets."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from core.model import Chain, Firewall, FirewallRule
from core.nat.match import covers, split, takes_link
from core.nat.paths import ChainKey, chain_key, targets
from core.tags import TABLE
from core.text import quoted as quote
from core.text import safe

# "out" opens a connection from the bridge to elsewhere, "answers" belong to one that is known, "published"
# opens one from outside by a translated address, "same" one between two ports of the bridge.
Kind = Literal["out", "answers", "published", "same"]
# What may become of a packet in a chain; "on" leaves it to whoever called the chain, or to the policy.
_ENDS = {"accept": "accept", "drop": "drop", "reject": "drop"}
_DNAT = re.compile(r"ct status dnat\b|--ct(?:status|state) DNAT\b", re.IGNORECASE)
_DEEPEST = 16
_WORDS: Mapping[Kind, str] = {
    "out": "new connections out of {bridge}",
    "answers": "answers to {bridge}",
    "published": "new connections to published ports on {bridge}",
    "same": "new connections between containers on {bridge} (br_netfilter is on)",
}

type _Rules = Mapping[ChainKey, Sequence[FirewallRule]]


@dataclass(frozen=True, slots=True)
class Dropping:
    """A chain that drops a kind of packet, or may do so (not `certain`)."""

    chain: Chain
    kind: Kind
    certain: bool


@dataclass(frozen=True, slots=True)
class _Packet:
    """`iif` and `oif` are "" for a link that is not known, other than the bridge."""

    kind: Kind
    bridge: str
    iif: str
    oif: str
    subnet: str


def dropping(
    firewall: Firewall, bridge: str, kinds: Sequence[Kind], uplink: str = "", subnets: Sequence[str] = ()
) -> Iterator[Dropping]:
    """Which of these kinds are not let pass by others' forward chains whose policy is to drop."""
    rules: dict[ChainKey, list[FirewallRule]] = {}
    for rule in firewall.rules:
        rules.setdefault(chain_key(rule), []).append(rule)
    for chain in firewall.chains:
        if chain.hook != "forward" or chain.policy != "drop" or chain.table == TABLE:
            continue
        key = (chain.backend, chain.family, chain.table, chain.name)
        for kind in kinds:
            ends = [_walk(packet, key, rules) for packet in _packets(kind, chain, bridge, uplink, subnets)]
            dropped = [end for end in ends if end & {"drop", "on"}]
            if dropped:
                yield Dropping(chain, kind, any("accept" not in end for end in dropped))


def by_chain(found: Iterable[Dropping]) -> list[tuple[Chain, list[Dropping]]]:
    """What each chain drops."""
    groups: dict[Chain, list[Dropping]] = {}
    for one in found:
        groups.setdefault(one.chain, []).append(one)
    return list(groups.items())


def drop_words(firewall: Firewall, chain: Chain, found: Sequence[Dropping], bridge: str) -> str:
    """What a chain drops, as the beginning of a sentence."""
    which = {"ip": " (IPv4)", "ip6": " (IPv6)"}.get(chain.family, "")
    docker = chain.backend != "nft" and _has_docker(firewall)
    certain = any(one.certain for one in found)
    told = [one for one in found if one.certain == certain]
    verb = ("drop" if docker else "drops") if certain else "may drop"
    who = "Docker's rules" if docker else f"table {safe(chain.table)}"
    what = ", ".join(_WORDS[one.kind].format(bridge=bridge) for one in told)
    return f"{who} {verb} {what}{which}"


def letting_words(firewall: Firewall, chain: Chain, found: Sequence[Dropping], bridge: str) -> str:
    """How to let that pass; rules of others are not edited."""
    kinds = {one.kind for one in found}
    name, table = quote(bridge), f"{chain.family} {quote(chain.table)} {quote(chain.name)}"
    if chain.backend != "nft":
        tool = "ip6tables" if chain.family == "ip6" else "iptables"
        where = "DOCKER-USER" if _has_docker(firewall) else quote(chain.name)
        ways = [f"{tool} -I {where} -i {name} -j ACCEPT"] if kinds & {"out", "same"} else []
        ways += [f"{tool} -I {where} -o {name} -j ACCEPT"] if kinds & {"answers", "published"} else []
    else:
        ways = [f"iifname {name} accept"] if kinds & {"out", "same"} else []
        ways += [f"oifname {name} ct state established,related accept"] if "answers" in kinds else []
        ways += [f"oifname {name} ct status dnat accept"] if "published" in kinds else []
        ways = [f"nft insert rule {table} {way}" for way in ways]
    return f"vnet edits no rules of others; to let it pass: {'; '.join(ways)}"


def _has_docker(firewall: Firewall) -> bool:
    return any(chain.name == "DOCKER-USER" for chain in firewall.chains)


def _packets(kind: Kind, chain: Chain, bridge: str, uplink: str, subnets: Sequence[str]) -> Iterator[_Packet]:
    iif = bridge if kind in ("out", "same") else uplink
    oif = uplink if kind == "out" else bridge
    families = {"ip": (False,), "ip6": (True,)}.get(chain.family, (False, True))
    for subnet in subnets or ("",):
        if not subnet or (":" in subnet) in families:
            yield _Packet(kind, bridge, iif, oif, subnet)


def _walk(packet: _Packet, chain: ChainKey, rules: _Rules, depth: int = 0) -> set[str]:
    """All that may become of a packet in a chain."""
    found: set[str] = set()
    for rule in rules.get(chain, ()) if depth < _DEEPEST else ():
        met = _meets(rule, packet)
        if met is False:
            continue
        ends = _ends(rule, packet, rules, depth)
        found |= ends - {"next"}
        if met and "next" not in ends:
            return found
    return found | {"on"}


def _ends(rule: FirewallRule, packet: _Packet, rules: _Rules, depth: int) -> set[str]:
    """All that may become of a packet that the rule matches; "next" where the next rule may get it."""
    if rule.verdict in _ENDS:
        return {_ENDS[rule.verdict]}
    if rule.verdict == "return":
        return {"on"}
    if rule.verdict == "queue":
        return {"accept", "drop"}
    ends: set[str] = set() if targets(rule) else {"next"}
    for key in targets(rule):
        ends |= _walk(packet, key, rules, depth + 1)
    if rule.verdict == "vmap":
        ends |= {"next", "accept"}  # where no element of the map fits, and what one may say
    if "on" in ends and rule.verdict != "goto":
        ends = ends - {"on"} | {"next"}
    return ends


def _meets(rule: FirewallRule, packet: _Packet) -> bool | None:
    """Whether the rule matches such packets: all of them, none, or some (None)."""
    told = [
        _is_link(rule.iif, packet.iif, packet.bridge),
        _is_link(rule.oif, packet.oif, packet.bridge),
        _is_state(rule, packet),
        _is_address(rule.src, packet.subnet if packet.kind in ("out", "same") else ""),
        _is_address(rule.dst, packet.subnet if packet.kind != "out" else ""),
        None if rule.l4_proto or rule.sport or rule.dport else True,
    ]
    if False in told:
        return False
    return None if None in told else True


def _is_link(text: str, name: str, bridge: str) -> bool | None:
    if not text:
        return True
    if name:
        return takes_link(text, name)
    negated, members = split(text)
    return negated if members == (bridge,) else None


def _is_state(rule: FirewallRule, packet: _Packet) -> bool | None:
    translated = _DNAT.search(rule.text) is not None
    if not rule.ct_state:
        if translated:
            return packet.kind == "published" or (None if packet.kind == "answers" else False)
        return True if rule.understood else None
    negated, states = split(rule.ct_state)
    own = {"established"} if packet.kind == "answers" else {"new"}
    own |= {"dnat"} if packet.kind == "published" else set()
    fits = bool(own & set(states)) != negated
    # A further match beside the state may not hold.
    return fits if not fits or rule.understood or translated else None


def _is_address(text: str, subnet: str) -> bool | None:
    if not text:
        return True
    return covers(text, ipaddress.ip_network(subnet, strict=False)) if subnet else None
