"""Find wrong MTUs, stale entries, duplicates and blocked tunnels of overlays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from core.diagnose.paths import advice_of
from core.model import Link, Neighbour, Ref, container_ref, link_ref, namespace_ref
from core.model.finding import Finding
from core.model.fix import Fix, FixFdb, FixLink, FixNeighbour
from core.model.link import ALL_ZERO
from core.model.overlay import ESTABLISHED
from core.overlay import Overlay, OverlayHost, host_ref, is_evpn, local_ends, overlays, usable
from core.reach.underlay import blocked_tunnel, underlay_of
from core.reach.why import index_of
from core.text import join_short, parse_tag, quoted
from core.topology import Topology

_LISTED = 5
# States of neighbour entries that were confirmed just now, or that a program keeps.
_CERTAIN = ("reachable", "permanent", "noarp")
# Programs that set the MTU of their links themselves.
_MANAGED = ("Docker Swarm", "flannel", "Calico", "Cilium")


def too_large_mtus(topology: Topology) -> Iterator[Finding]:
    """Find overlays whose packets don't fit into the underlay with the outer headers."""
    for overlay in overlays(topology):
        underlay = underlay_of(index_of(topology), overlay)
        most = underlay.mtu - overlay.overhead()
        if underlay.link is None or not 0 < most < overlay.link.mtu or not overlay.remotes:
            continue
        where = f"{underlay.link.name} with MTU {underlay.mtu}"
        sentence = (
            f"{overlay.name} has MTU {overlay.link.mtu}, but its tunnel leaves by {where}, of which the "
            f"outer headers take {overlay.overhead()} bytes: packets larger than {most} bytes are lost."
        )
        fix = None if overlay.owner in _MANAGED else _lower_mtu(topology, overlay, most)
        advice = fix.sentence if fix else f"set the MTU of {overlay.owner} to {most}"
        short = f"MTU {overlay.link.mtu}, underlay allows {most}"
        related = (host_ref(overlay, overlay.hosts[0]), link_ref(underlay.link.key))
        evidence = tuple(f"{one.name}: mtu {one.mtu}" for one in (overlay.link, underlay.link))
        yield Finding("mtu", link_ref(overlay.link.key), short, sentence, "bad", related, advice, evidence,
                      fix)  # fmt: skip


def _lower_mtu(topology: Topology, overlay: Overlay, most: int) -> Fix:
    """Return the repair that sets an MTU on this host, containers first."""
    ends = [link for pair in local_ends(topology, overlay.bridge, overlay.link) for link in reversed(pair)]
    links = [*ends, overlay.link, *([overlay.bridge] if overlay.bridge else [])]
    steps = tuple(FixLink(link.key, "mtu", str(most)) for link in links if link.mtu > most)
    return Fix(f"set the MTU of {overlay.name} to {most} on this host, then on the others", steps)


def left_out_hosts(topology: Topology) -> Iterator[Finding]:
    """Find hosts that have MACs, but aren't in the flood list: stale, or half joined."""
    for overlay in overlays(topology):
        for host in overlay.remotes if overlay.has_flood_list else ():
            if not host.flooded and host.macs:
                yield _left_out(topology, overlay, host)


def _left_out(topology: Topology, overlay: Overlay, host: OverlayHost) -> Finding:
    ref, related = link_ref(overlay.link.key), (host_ref(overlay, host), host_ref(overlay, overlay.hosts[0]))
    entries = [
        one
        for one in topology.snapshot.nets[overlay.link.ns].fdb
        if one.port == overlay.link.ifindex and one.dst == host.address
    ]
    evidence = tuple(
        f"{one.mac} dev {overlay.link.name} dst {one.dst} {one.state}" for one in entries[:_LISTED]
    )
    if host.source == "learned":
        sentence = (
            f"{host.address} sends packets of {overlay.name}, but isn't in its flood list on this host: "
            "broadcasts from here, such as ARP requests, don't reach it."
        )
        join = f"vnet-tui network join {quoted(overlay.name)} --remote {host.address}"
        append = f"bridge fdb append {ALL_ZERO} dev {quoted(overlay.link.name)} dst {host.address}"
        tag = parse_tag(overlay.bridge.alias) if overlay.bridge else None
        if tag and "etcd" in tag:
            join = "vnet-tui agent"  # it follows the hosts
        advice = (
            f"add it, or let {host.address} leave; run: {join if overlay.owner == 'vnet-tui' else append}"
        )
        return Finding("overlay", ref, f"{host.address} isn't in the flood list", sentence, "info", related,
                       advice, evidence)  # fmt: skip
    sentence = (
        f"{len(entries)} forwarding entries of {overlay.name} lead to {host.address}, which isn't in its "
        "flood list: they are left from a host that is gone."
    )
    fix = Fix(
        f"delete the forwarding entries to {host.address}",
        tuple(FixFdb(overlay.link.ns, one) for one in entries),
    )
    return Finding("overlay", ref, f"stale entries to {host.address}", sentence, "warn", related,
                   fix.sentence, evidence, fix)  # fmt: skip


def stale_neighbours(topology: Topology) -> Iterator[Finding]:
    """Find permanent neighbour entries whose MAC address is nowhere (moby#52661).

    An overlay with a flood list reaches such a MAC by flooding, so only those without one are checked, and
    entries for addresses that a container here has with another MAC.
    """
    for overlay in overlays(topology):
        net = topology.snapshot.nets[overlay.link.ns]
        own = {link.ifindex for link in (overlay.link, overlay.bridge) if link}
        permanent = [one for one in usable(net.neighbours) if one.state == "permanent" and one.ifindex in own]
        if not permanent:
            continue
        macs = {mac.mac for host in overlay.hosts for mac in host.macs}
        macs |= {one.mac for one in net.fdb if overlay.bridge and one.bridge == overlay.bridge.ifindex}
        here = {address: end for _, end in local_ends(topology, overlay.bridge, overlay.link)
                for address in _addresses(end)}  # fmt: skip
        for one in permanent:
            end = here.get(one.address)
            if end is not None and end.mac != one.mac:
                owner = topology.label(end.ns)
                what = f"{one.address} is {owner} on this host, with {end.mac}"
                yield _stale_neighbour(overlay, net.links[one.ifindex], one, what)
            elif one.mac not in macs and not overlay.has_flood_list:
                yield _stale_neighbour(overlay, net.links[one.ifindex], one, "no host has that MAC address")


def _addresses(link: Link) -> Iterator[str]:
    return (one.address for one in link.addresses if one.scope == "global")


def _stale_neighbour(overlay: Overlay, link: Link, one: Neighbour, why: str) -> Finding:
    sentence = (
        f"A permanent neighbour entry of {overlay.name} says that {one.address} is at {one.mac}, but {why}: "
        f"packets from this host to {one.address} are lost."
    )
    steps = (FixNeighbour(overlay.link.ns, one),)
    fix = Fix(f"delete the neighbour entry of {one.address} at {link.name}", steps)
    evidence = (f"{one.address} dev {link.name} lladdr {one.mac} PERMANENT",)
    return Finding("neighbour", link_ref(link.key), f"stale entry for {one.address}", sentence, "bad",
                   (host_ref(overlay, overlay.hosts[0]),), fix.sentence, evidence, fix)  # fmt: skip


def duplicates(topology: Topology) -> Iterator[Finding]:
    """Find MACs and addresses that a container here and another host both have."""
    for overlay in overlays(topology):
        remote = {mac.mac: host for host in overlay.remotes for mac in host.macs if not mac.is_gateway}
        ends = [end for _, end in local_ends(topology, overlay.bridge, overlay.link)]
        for end in ends:
            if end.mac in remote:
                yield _duplicate_mac(topology, overlay, end, remote[end.mac])
        yield from _duplicate_addresses(topology, overlay, ends)


def _duplicate_mac(topology: Topology, overlay: Overlay, end: Link, host: OverlayHost) -> Finding:
    entry = next(
        one for one in topology.snapshot.nets[overlay.link.ns].fdb
        if one.port == overlay.link.ifindex and one.mac == end.mac and one.dst == host.address
    )  # fmt: skip
    name = f"{end.name} of {topology.label(end.ns)}"
    evidence = (f"{entry.mac} dev {overlay.link.name} dst {entry.dst} {entry.state}",)
    related = (link_ref(overlay.link.key), *_owner(topology, end), host_ref(overlay, host))
    if entry.state != "learned" or entry.flags != ("self",):
        fix = Fix(f"delete the forwarding entry of {end.mac} to {host.address}",
                  (FixFdb(overlay.link.ns, entry),))  # fmt: skip
        sentence = (
            f"A forwarding entry of {overlay.name} says that {end.mac} is behind {host.address}, "
            f"but {name} has it."
        )
        return Finding("overlay", link_ref(end.key), "stale forwarding entry", sentence, "warn", related,
                       fix.sentence, evidence, fix)  # fmt: skip
    sentence = (
        f"{name} has the MAC address {end.mac}, from which {host.address} has sent packets of {overlay.name} "
        "as well: two containers have it, or one moved here within the last minutes."
    )
    advice = "give one of them another MAC address"
    return Finding("address", link_ref(end.key), "duplicate MAC", sentence, "warn", related, advice, evidence)


def _duplicate_addresses(topology: Topology, overlay: Overlay, ends: list[Link]) -> Iterator[Finding]:
    """Find addresses that were seen at two MACs.

    One that moved leaves no confirmed entry.
    """
    owners = {address: end for end in ends for address in _addresses(end)}
    found: dict[str, dict[str, Link]] = {}
    for link in (*ends, *((overlay.bridge,) if overlay.bridge else ())):
        net = topology.snapshot.nets.get(link.ns)
        for one in usable(net.neighbours) if net else ():
            if one.ifindex == link.ifindex and one.state in _CERTAIN and not one.address.startswith("fe80:"):
                found.setdefault(one.address, {})[one.mac] = link
    for address, macs in found.items():
        owner = owners.get(address)
        if overlay.bridge is not None and any(one.address == address for one in overlay.bridge.addresses):
            continue  # the gateway, which each host has
        everywhere = [
            *([owner.mac] if owner else []),
            *(mac for mac in macs if not owner or mac != owner.mac),
        ]
        if len(everywhere) < 2:
            continue
        at = " and ".join(_mac_text(topology, overlay, mac, ends) for mac in everywhere)
        sentence = f"The address {address} of {overlay.name} is used twice: at {at}."
        link = owner or next(iter(macs.values()))
        evidence = tuple(f"{address} dev {seen.name} lladdr {mac} in {topology.label(seen.ns)}"
                         for mac, seen in macs.items())  # fmt: skip
        related = (link_ref(overlay.link.key), *_owner(topology, link))
        advice = f"give one of them another address, or remove it; run: ip neigh show {address}"
        yield Finding("address", link_ref(link.key), f"duplicate address {address}", sentence, "bad",
                      related, advice, evidence)  # fmt: skip


def _mac_text(topology: Topology, overlay: Overlay, mac: str, ends: Iterable[Link]) -> str:
    """Name the place of a MAC address: a container here, or another host."""
    end = next((one for one in ends if one.mac == mac), None)
    host = next((one for one in overlay.remotes if any(each.mac == mac for each in one.macs)), None)
    place = topology.label(end.ns) if end else f"behind {host.address}" if host else "unknown place"
    return f"{mac} ({place})"


def _owner(topology: Topology, end: Link) -> tuple[Ref, ...]:
    container = topology.container_of(end.ns)
    return (container_ref(container.runtime, container.id),) if container else ()


def equal_vnis(topology: Topology) -> Iterator[Finding]:
    """Find overlays with the same VNI on the same underlay, kept apart by ports only."""
    groups: dict[tuple[int | None, int], list[Overlay]] = {}
    for one in overlays(topology):
        if one.vni:
            groups.setdefault((one.underlay_ns, one.vni), []).append(one)
    for (_, vni), same in groups.items():
        if len(same) > 1:
            names = [
                f"{one.link.name}{f' ({one.owner})' if one.owner else ''}, UDP {one.port}" for one in same
            ]
            sentence = (
                f"{' and '.join(names)} have the same VNI {vni}: a host that uses the other port by mistake "
                "gets packets of the wrong network."
            )
            related = tuple(link_ref(one.link.key) for one in same[1:])
            advice = "give one of them another VNI, or the same port, so that the kernel refuses equal VNIs"
            yield Finding("overlay", link_ref(same[0].link.key), f"VNI {vni} is used twice", sentence, "info",
                          related, advice)  # fmt: skip


def unreachable_hosts(topology: Topology) -> Iterator[Finding]:
    """Find hosts of overlays to which there is no route, or that don't answer ARP."""
    for overlay in overlays(topology):
        underlay = underlay_of(index_of(topology), overlay)
        if missing := underlay.unreachable:
            yield _unreachable(overlay, missing, "no route", "this host has no route to them", "ip route get")
        if silent := underlay.silent:
            yield _unreachable(overlay, silent, "no answer", "they don't answer ARP", "ip neigh show")


def _unreachable(overlay: Overlay, hosts: tuple[str, ...], short: str, why: str, command: str) -> Finding:
    listed = join_short(hosts, _LISTED)
    sentence = f"Packets of {overlay.name} can't reach {listed}: {why}."
    refs = tuple(host_ref(overlay, one) for one in overlay.remotes if one.address in hosts)
    own = host_ref(overlay, overlay.hosts[0])
    advice = f"check the underlay, and whether the host is up; run: {command} {hosts[0]}"
    return Finding("overlay", link_ref(overlay.link.key), f"{short}: {listed}", sentence, "bad", (*refs, own),
                   advice)  # fmt: skip


def blocked_tunnels(topology: Topology) -> Iterator[Finding]:
    """Find overlays whose tunnel packets the firewall of this host drops."""
    for overlay in overlays(topology):
        found = blocked_tunnel(index_of(topology), overlay)
        if found is None:
            continue
        hop, hosts = found
        sentence = (
            f"{hop.text[:1].upper()}{hop.text[1:]}: {overlay.name} loses UDP {overlay.port} "
            f"from or to {', '.join(hosts[:_LISTED])}{' and others' if len(hosts) > _LISTED else ''}."
        )
        own = host_ref(overlay, overlay.hosts[0])
        refs = (*((hop.ref,) if hop.ref else ()), own)
        short = f"UDP {overlay.port} is blocked"
        yield Finding("overlay", link_ref(overlay.link.key), short, sentence, "bad", refs,
                      advice_of(hop.fix), hop.evidence, hop.fix)  # fmt: skip


def lost_sessions(topology: Topology) -> Iterator[Finding]:
    """Find BGP sessions with other hosts of overlays that aren't established."""
    hosts: dict[str, list[tuple[Overlay, OverlayHost]]] = {}
    for overlay in overlays(topology):
        for host in overlay.remotes:
            if host.session is not None and host.session.state != ESTABLISHED:
                hosts.setdefault(host.address, []).append((overlay, host))
    for address, found in hosts.items():
        session = found[0][1].session
        assert session is not None
        error = f", last closed by: {session.error}" if session.error else ""
        names = ", ".join(dict.fromkeys(overlay.name for overlay, _ in found))
        sentence = (
            f"The BGP session with {address} isn't established ({session.state}{error}): "
            f"nothing is learned of its containers on {names}."
        )
        related = tuple(host_ref(overlay, host) for overlay, host in found)
        advice = f"check whether the host and its bgpd are up; run: vtysh -c 'show bgp neighbors {address}'"
        ref, short = namespace_ref(topology.host), f"no BGP session with {address}"
        yield Finding("overlay", ref, short, sentence, "bad", related, advice)


def unannounced_addresses(topology: Topology) -> Iterator[Finding]:
    """Find addresses here that FRRouting doesn't announce, as it misses their MAC."""
    frr = topology.snapshot.frr
    for overlay in overlays(topology):
        ends = {end.mac: (port, end) for port, end in local_ends(topology, overlay.bridge, overlay.link)}
        for one in frr.neighbors if is_evpn(topology, overlay.link) else ():
            if one.vni != overlay.vni or one.vtep or one.active or one.mac not in ends:
                continue
            port, end = ends[one.mac]
            sentence = (
                f"FRRouting doesn't announce {one.address} of {topology.label(end.ns)} on {overlay.name}: "
                f"zebra doesn't know its MAC address {one.mac}, so other hosts can't reach it."
            )
            command = f"bridge fdb replace {one.mac} dev {quoted(port.name)} master extern_learn"
            related = (host_ref(overlay, overlay.hosts[0]), *_owner(topology, end))
            yield Finding("overlay", link_ref(port.key), f"{one.address} isn't announced", sentence, "bad",
                          related, f"report the MAC address again; run: {command}")  # fmt: skip
