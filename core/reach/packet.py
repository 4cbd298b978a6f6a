"""Match one packet, all of whose fields are known, against firewall rules.

A rule may have matches that FirewallRule's fields can't hold; these are parsed from the rule's text as nft
and iptables-save print it. A match that stays unknown makes the result None instead of a guess.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from core.model import FirewallRule
from core.nat.packets import has_any, matches_address, matches_link, matches_ports, matches_protocol, split

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
parse_address = lru_cache(8192)(ipaddress.ip_address)


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a connection, or its answer (`is_reply`).

    `l4_proto` is "tcp", "udp", "icmp" or "icmpv6"; ports are 0 for ICMP and for an unknown source port.
    `states` are conntrack's as nft prints them ("new", "established", "untracked", with "dnat" and "snat" for
    a translated connection). `mark` and `ct_mark` are None if they aren't known; `zone` is conntrack's.
    `icmp` is the type as nft names it, "" for echo; `is_bound` is True if its connection passed the
    namespace's NAT rules before.
    """

    src: str
    dst: str
    l4_proto: str = "tcp"
    sport: int = 0
    dport: int = 0
    is_reply: bool = False
    states: frozenset[str] = frozenset()
    mark: int | None = 0
    ct_mark: int | None = 0
    icmp: str = ""
    is_bound: bool = False
    zone: int = 0

    @property
    def is_ipv6(self) -> bool:
        """Return whether it is a packet of IPv6."""
        return ":" in self.dst


@dataclass(frozen=True, slots=True)
class Hook:
    """Where a packet is evaluated.

    `iifs` and `oifs` are the names of its links there, empty if it has none; on a bridge the port's name and
    the bridge's. `is_local` is whether its destination is an address of the namespace, None if unknown;
    `bridged` whether br_netfilter passes it to the chains of IP. `sets` are the namespace's
    (core.model.Firewall).
    """

    name: str
    iifs: tuple[str, ...] = ()
    oifs: tuple[str, ...] = ()
    is_local: bool | None = None
    bridged: bool = False
    sets: Mapping[str, tuple[str, ...]] | None = None


def match(rule: FirewallRule, packet: Packet, hook: Hook) -> bool | None:
    """Return whether a rule matches a packet at a hook, None if that isn't known."""
    unsure = False
    for result in _results(rule, packet, hook):
        if result is False:
            return False
        unsure = unsure or result is None
    return None if unsure else True


def _results(rule: FirewallRule, packet: Packet, hook: Hook) -> Iterator[bool | None]:
    """Yield the results of a rule's matches, first those that most rules fail at."""
    if rule.l4_proto:
        yield matches_protocol(rule.l4_proto, packet.l4_proto)
    if rule.dport:
        yield _port(rule, rule.dport, packet, packet.dport, hook)
    if rule.dst:
        yield _address(rule, rule.dst, packet.dst, hook)
    if rule.src:
        yield _address(rule, rule.src, packet.src, hook)
    if rule.sport:
        yield _port(rule, rule.sport, packet, packet.sport, hook)
    yield matches_link(rule.iif, *hook.iifs)
    yield matches_link(rule.oif, *hook.oifs)
    yield not rule.ct_state or has_any(rule.ct_state, packet.states)
    if not rule.understood:
        yield from _of_text(rule, packet, hook)


def _elements(rule: FirewallRule, text: str, hook: Hook) -> str | None:
    """Replace a named set by its elements, None if they are unknown."""
    if "@" not in text:
        return text
    negated, members = split(text)
    found: list[str] = []
    for member in members:
        if not member.startswith("@"):
            found.append(member)
            continue
        key = f"{rule.family}/{rule.table}/{member[1:]}"
        if rule.backend != "nft" or hook.sets is None or key not in hook.sets:
            return None
        found += hook.sets[key]
    return "!" * negated + ",".join(found)


def _address(rule: FirewallRule, text: str, address: str, hook: Hook) -> bool | None:
    if not text:
        return True
    resolved = _elements(rule, text, hook)
    return None if resolved is None else matches_address(resolved, address)


def _port(rule: FirewallRule, text: str, packet: Packet, port: int, hook: Hook) -> bool | None:
    if not text:
        return True
    resolved = _elements(rule, text, hook)
    if resolved is None:
        return None
    if not port:
        return split(resolved)[0] if packet.l4_proto.startswith("icmp") else None
    return matches_ports(resolved, str(port))


_VALUE = r"((?:!= )?(?:\{[^}]*\}|\"[^\"]*\"|[^\s]+))"
type _Check = Callable[[str, FirewallRule, Packet, Hook], bool | None]


def _plain(value: str) -> str:
    """Return a value of nft in the notation of FirewallRule: "!a,b"."""
    negated = value.startswith("!= ")
    inner = value.removeprefix("!= ").strip("{} ").replace('"', "")
    return "!" * negated + ",".join(part.strip() for part in inner.split(","))


def _status(value: str, rule: FirewallRule, packet: Packet, hook: Hook) -> bool | None:
    status = _plain(value).lower()
    known = {"dnat", "snat", "confirmed", "assured", "seen-reply"}
    if not known.issuperset(split(status)[1]):
        return None
    own = packet.states & {"dnat", "snat"}
    if packet.is_reply:
        own |= {"confirmed", "seen-reply"}
    return has_any(status, own)


def _local(value: str, rule: FirewallRule, packet: Packet, hook: Hook) -> bool | None:
    local = _plain(value).lower()
    negated, members = split(local)
    if hook.is_local is None or not set(members) <= {"local", "unicast"}:
        kinds = {"broadcast", "multicast", "anycast", "blackhole", "unreachable", "prohibit"}
        return negated if set(members) <= kinds else None
    return has_any(local, {"local" if hook.is_local else "unicast"})


def _family(value: str, rule: FirewallRule, packet: Packet, hook: Hook) -> bool | None:
    return has_any(_plain(value), {"ipv6", "ip6"} if packet.is_ipv6 else {"ipv4", "ip"})


def _mark(value: str, rule: FirewallRule, packet: Packet, hook: Hook) -> bool | None:
    return _has_mark(value, packet.mark)


def _ct_mark(value: str, rule: FirewallRule, packet: Packet, hook: Hook) -> bool | None:
    return _has_mark(value, packet.ct_mark)


def _has_mark(value: str, own: int | None) -> bool | None:
    """Match "0x1", "!= 0x1", "0x1/0xff" (iptables) or "& 0xff == 0x1" (nft)."""
    masked = re.fullmatch(r"& (0x[0-9a-f]+|\d+) (==|!=) (0x[0-9a-f]+|\d+)", value)
    found = re.fullmatch(r"(!= ?|! )?(0x[0-9a-f]+|\d+)(?:/(0x[0-9a-f]+))?", value)
    if own is None:
        return None
    if masked:
        return (own & int(masked[1], 0) == int(masked[3], 0)) == (masked[2] == "==")
    if found:
        mask = int(found[3], 16) if found[3] else 0xFFFFFFFF
        return (own & mask == int(found[2], 0)) != bool(found[1])
    negated, members = split(_plain(value))
    if not all(re.fullmatch(r"0x[0-9a-f]+|\d+", one) for one in members):
        return None
    return (own in {int(one, 0) for one in members}) != negated


def _direction(value: str, rule: FirewallRule, packet: Packet, hook: Hook) -> bool | None:
    return has_any(_plain(value).lower(), {"reply" if packet.is_reply else "original"})


def _icmp(value: str, rule: FirewallRule, packet: Packet, hook: Hook) -> bool | None:
    if not packet.l4_proto.startswith("icmp"):
        return False
    ipv6 = packet.l4_proto == "icmpv6"
    if packet.icmp:
        return has_any(_plain(value).lower(), {packet.icmp, *_ND_NUMBERS[packet.icmp]})
    own = (
        {"echo-reply", "129" if ipv6 else "0"}
        if packet.is_reply
        else {"echo-request", "128" if ipv6 else "8"}
    )
    return has_any(_plain(value).lower(), own)


# Numbers and ip6tables' names of the messages of neighbour discovery (RFC 4861).
_ND_NUMBERS = {
    "nd-neighbor-solicit": ("135", "neighbour-solicitation", "neighbor-solicitation"),
    "nd-neighbor-advert": ("136", "neighbour-advertisement", "neighbor-advertisement"),
}


def _tcp_flags(value: str, rule: FirewallRule, packet: Packet, hook: Hook) -> bool | None:
    if packet.l4_proto != "tcp":
        return False
    own = {"syn", "ack"} if packet.is_reply else {"syn"}
    iptables = re.fullmatch(r"(!)?\s*([A-Z,]+) ([A-Z,]+)", value)
    if iptables:
        mask, wanted = ({one.lower() for one in iptables[n].split(",")} for n in (2, 3))
        wanted -= {"none"}
        return (own & mask == wanted) != bool(iptables[1])
    masked = re.fullmatch(r"(?:& \(([a-z |]+)\) (==|!=) ([a-z |]+)|([a-z]+) / ([a-z,]+))", value)
    if masked and masked[1]:
        mask, wanted = ({one.strip() for one in masked[n].split("|")} for n in (1, 3))
        return (own & mask == wanted) == (masked[2] == "==")
    if masked:
        return own & set(masked[5].split(",")) == {masked[4]}
    return has_any(_plain(value), own)


def _limit(value: str, rule: FirewallRule, packet: Packet, hook: Hook) -> bool | None:
    return "over " not in value  # a single packet stays below any limit


def _never(value: str, rule: FirewallRule, packet: Packet, hook: Hook) -> bool | None:
    return value.startswith("!")


def _reverse_path(value: str, rule: FirewallRule, packet: Packet, hook: Hook) -> bool | None:
    return "--invert" not in value  # the packet has passed, or will pass, the kernel's own check


def _bridged(value: str, rule: FirewallRule, packet: Packet, hook: Hook) -> bool | None:
    return hook.bridged != value.startswith("!")


def _port_in(value: str, rule: FirewallRule, packet: Packet, hook: Hook) -> bool | None:
    return (
        matches_link(_plain(value).replace("+", "*"), *hook.iifs) if hook.bridged else value.startswith("!")
    )


def _port_out(value: str, rule: FirewallRule, packet: Packet, hook: Hook) -> bool | None:
    return (
        matches_link(_plain(value).replace("+", "*"), *hook.oifs) if hook.bridged else value.startswith("!")
    )


def _links_in(value: str, rule: FirewallRule, packet: Packet, hook: Hook) -> bool | None:
    return matches_link(_plain(value), *hook.iifs)


def _links_out(value: str, rule: FirewallRule, packet: Packet, hook: Hook) -> bool | None:
    return matches_link(_plain(value), *hook.oifs)


def _source(value: str, rule: FirewallRule, packet: Packet, hook: Hook) -> bool | None:
    return _address(rule, _plain(value), packet.src, hook)


def _destination(value: str, rule: FirewallRule, packet: Packet, hook: Hook) -> bool | None:
    return _address(rule, _plain(value), packet.dst, hook)


def _sport(value: str, rule: FirewallRule, packet: Packet, hook: Hook) -> bool | None:
    return _port(rule, _plain(value), packet, packet.sport, hook)


def _dport(value: str, rule: FirewallRule, packet: Packet, hook: Hook) -> bool | None:
    return _port(rule, _plain(value), packet, packet.dport, hook)


def _l4(value: str, rule: FirewallRule, packet: Packet, hook: Hook) -> bool | None:
    return matches_protocol(_plain(value), packet.l4_proto)


def _ct_state(value: str, rule: FirewallRule, packet: Packet, hook: Hook) -> bool | None:
    return has_any(_plain(value), packet.states)


def _known(value: str, rule: FirewallRule, packet: Packet, hook: Hook) -> bool | None:
    return True  # evaluated by its field, or no match


# Matches of nft's text, each with its check; what is left of the text afterwards is unknown.
_NFT: tuple[tuple[re.Pattern[str], _Check], ...] = tuple(
    (re.compile(pattern), check)
    for pattern, check in (
        (r"comment (\"[^\"]*\")", _known),
        (r"(tcp|udp|sctp) [sd]port vmap (?:@\S+|\{.*\})", _l4),
        (
            r"(?:ct state|[io]ifname|[io]if|(?:meta )?(?:l4proto|mark)|ip6? \S+|th \S+|\S+) "
            r"vmap (@\S+|\{.*\})",
            _known,
        ),
        (r"log(?: (?:prefix \"[^\"]*\"|(?:level|group|flags|snaplen|queue-threshold) \S+))*()", _known),
        (r"limit (rate (?:over )?\d+/\w+(?: burst \d+ \w+)?)", _limit),
        (r"ct status " + _VALUE, _status),
        (r"ct direction " + _VALUE, _direction),
        (r"ct state " + _VALUE, _ct_state),
        (r"fib daddr type " + _VALUE, _local),
        (r"fib saddr (?:\. (?:mark|iif) )*oif (missing)", _never),
        (r"(?:ct |meta )?(?:mark) set ((?:ct |meta )?\S+(?: (?:and|or|xor|&|\|) \S+)*)", _known),
        (r"ct (?:original |reply )?zone set (\d+)", _known),
        (r"ct mark (& \S+ [!=]= \S+)", _ct_mark),
        (r"ct mark " + _VALUE, _ct_mark),
        (r"(?:meta )?mark (& \S+ [!=]= \S+)", _mark),
        (r"(?<!ct )(?:meta )?mark " + _VALUE, _mark),
        (r"meta (?:nfproto|protocol) " + _VALUE, _family),
        (r"ether type " + _VALUE, _family),
        (r"meta l4proto " + _VALUE, _l4),
        (r"ip6? (?:protocol|nexthdr) " + _VALUE, _l4),
        (r"(?:meta )?(?:iifname|iif|ibrname) " + _VALUE, _links_in),
        (r"(?:meta )?(?:oifname|oif|obrname) " + _VALUE, _links_out),
        (r"ip6? saddr " + _VALUE, _source),
        (r"ip6? daddr " + _VALUE, _destination),
        (r"(?:tcp|udp|th|sctp) sport " + _VALUE, _sport),
        (r"(?:tcp|udp|th|sctp) dport " + _VALUE, _dport),
        (r"icmp(?:v6)? type " + _VALUE, _icmp),
        (r"tcp flags ((?:& \([a-z |]+\) [=!]= [a-z |]+?(?= [a-z]+\b|$))|[a-z]+ / [a-z,]+|\S+)", _tcp_flags),
        (r"counter(?: packets \d+ bytes \d+| name \"[^\"]*\")?()", _known),
        (r"(?:reject(?: with .*)?|(?:jump|goto) \S+|accept|drop|return|continue|notrack|masquerade.*"
         r"|(?:dnat|snat)(?: ip6?)? to .*|redirect.*|queue.*)()$", _known),
    )
)  # fmt: skip
# The same for options of iptables-save.
_IPTABLES: tuple[tuple[re.Pattern[str], _Check], ...] = tuple(
    (re.compile(pattern), check)
    for pattern, check in (
        (r"^-A \S+()", _known),
        (r"-m comment --comment (\"(?:[^\"\\]|\\.)*\"|\S+)", _known),
        (r"(?:! )?-[sdiop] (\S+)", _known),
        (
            r"(?:! )?--(?:src-range|dst-range|sports?|dports?|ctstate|state|match-set) (\S+(?: src| dst)?)",
            _known,
        ),
        (r"((?:! )?--(?:src-type) (?:BROADCAST|MULTICAST|ANYCAST))", _never),
        (r"--ctstatus (\S+)", _status),
        (r"--ctdir (\S+)", _direction),
        (r"--dst-type (\S+)", _local),
        (r"--mark (\S+)", _mark),
        (r"--icmp(?:v6)?-type (\S+)", _icmp),
        (r"--tcp-flags (\S+ \S+)", _tcp_flags),
        (r"--limit (\S+)(?: --limit-burst \d+)?", _limit),
        (r"((?:! )?)--physdev-is-bridged", _bridged),
        (r"--physdev-in (\S+)", _port_in),
        (r"--physdev-out (\S+)", _port_out),
        (r"-m rpfilter((?: --\S+)*)", _reverse_path),
        (
            r"-m (?:tcp|udp|sctp|multiport|conntrack|state|iprange|set|addrtype|mark|icmp6?|limit|physdev)()",
            _known,
        ),
        (r"-[jg] \S+.*()$", _known),
    )
)


@lru_cache(8192)
def _parse(backend: str, text: str) -> tuple[tuple[tuple[_Check, str], ...], bool]:
    """Return the checks of a rule's text, and whether these are all."""
    found: list[tuple[_Check, str]] = []
    rest = text
    for pattern, check in _NFT if backend == "nft" else _IPTABLES:
        for one in pattern.finditer(rest):
            negated = backend != "nft" and rest[max(0, one.start() - 2) : one.start()] == "! "
            found.append((check, ("! " if negated else "") + one[1]))
        rest = pattern.sub(" ", rest).strip()
    return tuple(found), not rest.replace("!", "").strip()


def _of_text(rule: FirewallRule, packet: Packet, hook: Hook) -> Iterator[bool | None]:
    """Yield the results of the matches in a rule's text."""
    checks, complete = _parse(rule.backend, rule.text)
    for check, value in checks:
        if check is not _known:
            negated = value.startswith("! ")
            result = check(value.removeprefix("! "), rule, packet, hook)
            yield not result if negated and result is not None else result
    if not complete:
        yield None
