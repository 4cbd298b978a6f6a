"""Compute the lines that change vnet-tui's part of FRRouting's configuration.

Its part is the peer group `vnet-tui`, and `advertise-all-vni`, which is only set where nothing else uses
EVPN. If there is no BGP instance, one is created; the group's description records that, so that it can be
removed again. An existing instance keeps its AS number, router id, neighbors and address families.

The lines are typed into the running configuration and never saved: `write memory` would also save what
others have typed and not saved. Like links, they are gone after a restart, and must be typed again.

What FRRouting 10.3 does with them, as tests/kernel/test_frr.py shows:
- It announces the MACs that bridge ports know, except permanent ("local") ones, and the neighbour entries of
  the bridge for these MACs (IPv4, IPv6; permanent ones too, but none with `extern_learn`), within 0.1 s.
- It writes remote MACs into the FDB and remote neighbours to the bridge, both with `extern_learn`, and the
  flood list (FDB entries of the MAC 00:00:00:00:00:00).
- The bridge's own MAC and addresses are not announced, so that all hosts may have the same gateway.
- An IPv6 address of a VXLAN link is ignored; sessions over IPv6 work.
- If bgpd dies, zebra removes all remote entries. If zebra dies, they stay, and nothing removes them later.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from core.model.overlay import BgpConfig, EvpnGroup, Frr

GROUP = "vnet-tui"
DEFAULT_ASN = 65000  # private (RFC 6996)
_OLDEST = (8, 0)
# Older versions ignore an IPv6 address of a VXLAN link, and announce the router id as the tunnel's end.
_IPV6_TUNNELS = (10, 6)
_CREATED = "created by vnet-tui with its BGP instance"
_STATIC = "static VXLAN, with --remote and the address of each other host"
# `bgp default` activates new neighbors in these, so that they would exchange foreign routes.
_UNICAST = ("ipv4 unicast", "ipv6 unicast")

_INSTANCE = re.compile(r"router bgp ([\d.]+)(?: as-notation \S+)?")
_NEIGHBOR = re.compile(r"(?:no )?neighbor (\S+) ")
_MEMBER = re.compile(rf"neighbor ([\d.]+|[\da-fA-F]*:[\da-fA-F:.]+) peer-group {GROUP}")


def parse_config(running: str) -> BgpConfig:
    """Parse the output of `show running-config`."""
    asn, own, members, others, evpn = 0, list[str](), set[str](), list[str](), list[str]()
    for context, line in _placed(running):
        start = _INSTANCE.fullmatch(context[0] if context else line)
        if not start:  # another VRF, or no BGP
            evpn += [f"{line} in {context[0]}"] if context and line == "advertise-all-vni" else []
            continue
        asn = _number(start[1])
        if not context:
            continue
        if member := _MEMBER.fullmatch(line):
            members.add(member[1])
        if member or line.removeprefix("no ").startswith(f"neighbor {GROUP} "):
            own.append(line)
            continue
        others.append(line)
        if context[-1] == "address-family l2vpn evpn" or line == "bgp default l2vpn-evpn":
            evpn.append(line)
    group = _group(asn, own, members, others)
    foreign = [line for line in evpn if not _is_own(line, members) or not group]
    names = {match[1] for line in others if (match := _NEIGHBOR.match(line))} - members
    return BgpConfig(asn, group, tuple(sorted(names)), tuple(foreign))


def _placed(running: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield each line with the lines that it is indented below."""
    blocks: list[tuple[int, str]] = []
    for raw in running.splitlines():
        line = raw.strip()
        if not line or line == "!" or line.startswith("exit"):
            continue
        depth = len(raw) - len(raw.lstrip())
        blocks = [block for block in blocks if block[0] < depth]
        yield tuple(text for _, text in blocks), line
        blocks.append((depth, line))


def _number(asn: str) -> int:
    high, _, low = asn.rpartition(".")
    return (int(high or 0) << 16) + int(low)


def _is_own(line: str, members: set[str]) -> bool:
    match = _NEIGHBOR.match(line)
    return line == "advertise-all-vni" or bool(match and match[1] in members)


def _group(asn: int, own: list[str], members: set[str], others: list[str]) -> EvpnGroup | None:
    if f"neighbor {GROUP} peer-group" not in own:
        return None
    start = f"neighbor {GROUP} update-source "
    source = next((line.removeprefix(start) for line in own if line.startswith(start)), "")
    created = f"neighbor {GROUP} description {_CREATED}" in own
    router_id = next((line.split()[-1] for line in others if line.startswith("bgp router-id ")), "")
    expected = {f"bgp router-id {router_id}", "advertise-all-vni"}
    expected |= {line for line in others if line.startswith("address-family ") or _is_own(line, members)}
    return EvpnGroup(
        asn, source, sorted_peers(members), f"neighbor {GROUP} route-reflector-client" in own,
        router_id if created and set(others) <= expected else "",
    )  # fmt: skip


def sorted_peers(addresses: Iterable[str]) -> tuple[str, ...]:
    """Sort the addresses of peers as FRR does, each in its usual form."""
    hosts = {ipaddress.ip_address(each) for each in addresses}
    return tuple(str(host) for host in sorted(hosts, key=lambda host: (host.version, int(host))))


def group_for(
    frr: Frr, source: str, peers: Iterable[str], asn: int = 0, reflector: bool = False
) -> EvpnGroup | str:
    """Return the peer group that joins this host to the others, or why it can't exist.

    `source` is this host's end of tunnels and sessions. `asn` 0 means that of the existing instance, else
    65000. The reason is a sentence with a remedy.
    """
    config = frr.config
    wanted = sorted_peers(peers)
    if reason := _unusable(frr, source) or _conflict(config, source, wanted, asn):
        return f"{reason}, or use {_STATIC}"
    created = not config.asn or bool(config.group and config.group.router_id)
    group = EvpnGroup(config.asn or asn or DEFAULT_ASN, source, wanted, reflector)
    return replace(group, router_id=router_id_for(source)) if created else group


def _unusable(frr: Frr, source: str) -> str:
    if not frr.installed:
        return "FRRouting isn't installed. Try: apt install frr"
    absent = [name for name in ("zebra", "bgpd") if name not in frr.daemons]
    if absent:
        start = "systemctl restart frr" + (", after bgpd=yes in /etc/frr/daemons" if "bgpd" in absent else "")
        return f"FRRouting's {' and '.join(absent)} can't be reached. Try: {start}"
    version = version_of(frr)
    if version < _OLDEST:
        return f"FRRouting {frr.version} is too old. Try: version {_OLDEST[0]} or newer"
    if ":" in source and version < _IPV6_TUNNELS:
        newer = ".".join(map(str, _IPV6_TUNNELS))
        return f"FRRouting {frr.version} has no IPv6 tunnels. Try: an IPv4 address, version {newer}"
    return ""


def version_of(frr: Frr) -> tuple[int, ...]:
    """Return the version as numbers; (0,) if it is unknown."""
    return tuple(map(int, re.findall(r"\d+", frr.version)[:2])) or (0,)


def _conflict(config: BgpConfig, source: str, peers: tuple[str, ...], asn: int) -> str:
    look = "Try: vtysh -c 'show running-config' to see who manages it"
    if config.evpn:
        return f"FRRouting already manages EVPN for others ({config.evpn[0]}). {look}"
    if asn and config.asn not in (0, asn):
        return f"this host is in AS {config.asn}, not {asn}. Try: without an AS number"
    if taken := [peer for peer in peers if peer in config.neighbors]:
        return f"FRRouting already has a BGP neighbor {taken[0]}. {look}"
    if config.group and config.group.source != source:
        return f"its sessions use the address {config.group.source}. Try: this address"
    return ""


def router_id_for(address: str) -> str:
    """Return a BGP router id: the IPv4 address itself, or 4 bytes derived from IPv6.

    Derived ones are below 127.0.0.0.
    """
    host = ipaddress.ip_address(address)
    if host.version == 4:
        return str(host)
    digest = int.from_bytes(hashlib.sha256(host.packed).digest()[:4])
    return str(ipaddress.IPv4Address((1 << 24) + digest % (126 << 24)))


def lines(before: EvpnGroup | None, after: EvpnGroup | None) -> tuple[str, ...]:
    """Return what to type in `configure terminal` to replace one group by another."""
    if before == after:
        return ()
    if before and after:
        return (f"router bgp {after.asn}", *_differences(before, after))
    if after:
        return tuple(_creation(after))
    assert before
    if before.router_id:
        return (f"no router bgp {before.asn}",)
    removal = (f"no neighbor {GROUP} peer-group", "address-family l2vpn evpn", "no advertise-all-vni")
    return (f"router bgp {before.asn}", *removal, "exit-address-family")


def _creation(group: EvpnGroup) -> Iterator[str]:
    yield f"router bgp {group.asn}"
    yield f"neighbor {GROUP} peer-group"
    if group.router_id:
        yield f"neighbor {GROUP} description {_CREATED}"
        yield f"bgp router-id {group.router_id}"
    yield f"neighbor {GROUP} remote-as internal"
    yield f"neighbor {GROUP} update-source {group.source}"
    # A host that disappears is noticed within 9 s instead of 180, and one that returns within 5 s.
    yield f"neighbor {GROUP} timers 3 9"
    yield f"neighbor {GROUP} timers connect 5"
    for family in _UNICAST:
        yield from (f"address-family {family}", f"no neighbor {GROUP} activate", "exit-address-family")
    yield from ("address-family l2vpn evpn", f"neighbor {GROUP} activate")
    if group.reflector:
        yield f"neighbor {GROUP} route-reflector-client"
    yield from ("advertise-all-vni", "exit-address-family")
    yield from (f"neighbor {peer} peer-group {GROUP}" for peer in group.peers)


def _differences(before: EvpnGroup, after: EvpnGroup) -> Iterator[str]:
    if before.source != after.source:
        yield f"neighbor {GROUP} update-source {after.source}"
    yield from (f"no neighbor {peer}" for peer in before.peers if peer not in after.peers)
    if before.reflector != after.reflector:
        yield "address-family l2vpn evpn"
        yield f"{'' if after.reflector else 'no '}neighbor {GROUP} route-reflector-client"
        yield "exit-address-family"
    yield from (f"neighbor {peer} peer-group {GROUP}" for peer in after.peers if peer not in before.peers)
