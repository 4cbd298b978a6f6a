"""Compute the contents of the maps from the state of the links.

That is: which links are accelerated, who may send from which address, and behind which port a MAC is.
"""

from __future__ import annotations

import ipaddress
import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from bpf import layout
from bpf.link_state import LinkState, PeerKey
from bpf.rule_analysis import PacketLinks
from core.model import Link

_AF = {4: 2, 6: 10}
# The same structures as the dtypes of bpf/layout.py.
_LINK = struct.Struct("=III6sH8x")
OWNER_KEY = struct.Struct("=II16s")
_MAC_KEY = struct.Struct("=I8s")
_MAC_VALUE = struct.Struct("=IHH")
_TUNNEL_KEY = struct.Struct(">IHxx")
_INDEX = struct.Struct("=I")
_EGRESS_KINDS = ("tun", "wireguard", "dummy")
_MAC_LETTERS = 17
_UNSAFE_EGRESS = (
    "a program or filter at its egress may match more than the packet: the kernel sends its packets"
)
_ETHERNET = ("physical", "veth", "vlan", "bond", "team", "tun", "vxlan", "geneve", "gretap", "ip6gretap")


@dataclass(frozen=True, slots=True)
class LinkRow:
    """Describe a link that the program runs on.

    It is a row of the map `links`, without its slot.
    """

    ifindex: int
    name: str
    l3_ifindex: int
    flags: int
    mac: str
    mtu: int = 0


@dataclass(slots=True)
class MapContents:
    """Hold what the maps are to contain, keys and values in bytes.

    `links` and `egress` are by ifindex; packets may leave by the latter, but the program doesn't run there.
    `tunnels`: VXLAN links of accelerated bridges, by VNI and port.
    `refused`: links by name that should be accelerated and aren't, with the reason. `port_macs`: ports with
    the MACs behind them.
    """

    links: dict[int, LinkRow] = field(default_factory=dict)
    egress: dict[int, LinkRow] = field(default_factory=dict)
    tunnels: dict[bytes, bytes] = field(default_factory=dict)
    owners: dict[bytes, bytes] = field(default_factory=dict)
    macs: dict[bytes, bytes] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    port_macs: list[tuple[int, bytes]] = field(default_factory=list)


def peer_key(link: Link) -> PeerKey | None:
    """Return the namespace and ifindex of a veth's peer, None if unknown."""
    return (link.lower_nsid, link.lower) if link.kind == "veth" and link.lower else None


def map_contents(link_state: LinkState, bridges: Collection[int], l2_allowed: bool = True) -> MapContents:
    """Compute the maps' contents for these bridges and the host's uplinks.

    `l2_allowed`: no rules of the bridge family exist.
    """
    contents = MapContents()
    for bridge in sorted(bridges):
        if bridge in link_state.links:
            _add_bridge(contents, link_state, link_state.links[bridge], l2_allowed)
    for link in link_state.links.values() if contents.links else ():
        if link.master not in bridges and link.ifindex not in bridges:
            _add_uplink(contents, link_state, link)
    _add_egress(contents, link_state)
    _add_tunnels(contents, link_state)
    return contents


def _add_bridge(contents: MapContents, link_state: LinkState, bridge: Link, l2_allowed: bool) -> None:
    why = _bridge_refused(link_state, bridge)
    if why:
        contents.refused[bridge.name] = why
        return
    flags = layout.LINK_BRIDGED | _bridged_by(link_state, bridge, l2_allowed)
    for port in link_state.links.values():
        if port.master != bridge.ifindex:
            continue
        why = _port_refused(link_state, port)
        if why:
            contents.refused[port.name] = why
            continue
        own = layout.LINK_TUNNEL if port.kind == "vxlan" else 0 if _is_card(port) else layout.LINK_CONTAINER
        own |= layout.LINK_ISOLATED if port.port and port.port.isolated else 0
        contents.links[port.ifindex] = LinkRow(
            port.ifindex, port.name, bridge.ifindex, flags | own, bridge.mac
        )
        _add_container(contents, link_state, bridge, port)
    contents.macs = {key: value for key, value in contents.macs.items() if value}


def _bridge_refused(link_state: LinkState, bridge: Link) -> str:
    if bridge.kind != "bridge" or not bridge.bridge:
        return "it isn't a Linux bridge"
    if bridge.bridge.vlan_filtering:
        return "it filters VLANs"
    if bridge.master:
        return "it belongs to a VRF"
    if bridge.ifindex in link_state.filters.ingress:
        return "another program or filter is attached to its ingress"
    return "" if bridge.admin_up else "it is down"


def _port_refused(link_state: LinkState, port: Link) -> str:
    if port.ifindex in link_state.filters.ingress:
        return "another program or filter is attached to its ingress"
    if not port.admin_up:
        return "it is down"
    if port.port and port.port.state not in ("forwarding", ""):
        return f"its port state is {port.port.state}"
    if port.port and port.port.locked:
        return "its port is locked: the bridge checks each source address"
    return "" if len(port.mac) == 17 else "it isn't an Ethernet link"


def _bridged_by(link_state: LinkState, bridge: Link, l2_allowed: bool) -> int:
    """Return who filters frames between ports: br_netfilter, by family, or nothing."""
    own = bridge.bridge
    asked = 0
    if link_state.call_iptables or (own and own.nf_call_iptables):
        asked |= layout.LINK_IPTABLES
    if link_state.call_ip6tables or (own and own.nf_call_ip6tables):
        asked |= layout.LINK_IP6TABLES
    return asked or (layout.LINK_L2 if l2_allowed else 0)


def _add_container(contents: MapContents, link_state: LinkState, bridge: Link, port: Link) -> None:
    """Add what is behind a port: addresses it may send from, and its MAC."""
    remote = peer_key(port)
    peer = link_state.peers.get(remote) if remote else None
    if remote is None or peer is None:
        return
    for each in peer.addresses:
        contents.owners[_owner_key(port.ifindex, each)] = _mac(peer.mac)
    if (
        not peer.up
        or not port.carrier
        or bridge.ifindex in link_state.filters.egress
        or bridge.qdisc != "noqueue"
    ):
        return
    if port.ifindex in link_state.filters.unsafe:
        contents.refused[port.name] = _UNSAFE_EGRESS
        return
    if port.port and not (port.port.learning and port.port.flood):
        return  # only the forwarding table decides which frames go there
    flags = layout.MAC_ISOLATED if port.port and port.port.isolated else 0
    plain = port.qdisc == "noqueue" and port.ifindex not in link_state.filters.egress and not peer.has_xdp
    if remote[0] is not None and plain:
        flags |= layout.MAC_PEER
    mtu = min(bridge.mtu, port.mtu, peer.mtu, 0xFFFF)
    key = _MAC_KEY.pack(bridge.ifindex, _mac(peer.mac))
    if key in contents.macs or peer.mac == bridge.mac:
        contents.macs[key] = b""  # on two ports: the kernel decides
        return
    contents.macs[key] = _MAC_VALUE.pack(port.ifindex, flags, mtu)
    contents.port_macs.append((port.ifindex, _mac(peer.mac)[:6]))
    to_peer = layout.LINK_PEER if flags & layout.MAC_PEER else 0
    row = contents.links[port.ifindex]
    contents.links[port.ifindex] = replace(row, flags=row.flags | to_peer, mtu=mtu)


def _add_uplink(contents: MapContents, link_state: LinkState, link: Link) -> None:
    """Add another link that routed traffic enters by."""
    l3 = link
    flags = 0
    if link.kind == "loopback" or not link.admin_up or link.kind == "bridge" or len(link.mac) != 17:
        return
    if link.master:
        master = link_state.links.get(link.master)
        if master is None or master.kind != "bridge" or not _is_card(link) or not master.addresses:
            return
        l3, flags = master, layout.LINK_BRIDGED
    elif not link.addresses or link.kind not in _ETHERNET:
        return
    if not link_state.filters.ingress.isdisjoint((link.ifindex, l3.ifindex)):
        contents.refused[link.name] = "another program or filter is attached to its ingress"
        return
    if not link_state.filters.unsafe.isdisjoint((link.ifindex, l3.ifindex)):
        contents.refused[link.name] = _UNSAFE_EGRESS
        flags |= layout.LINK_IN_ONLY
    contents.links[link.ifindex] = LinkRow(link.ifindex, link.name, l3.ifindex, flags, l3.mac)


def _add_egress(contents: MapContents, link_state: LinkState) -> None:
    """Add links that routes may lead out by.

    Not tunnels with many peers, which need the route's next hop and not only the packet's address, and not
    ports of other bridges, which may have their own rules.
    """
    l3 = {row.l3_ifindex for row in contents.links.values()}
    for link in link_state.links.values() if contents.links else ():
        master = link_state.links.get(link.master or 0)
        if master is not None and master.kind == "bridge":
            continue
        is_plain = link.kind in _ETHERNET or (link.kind in _EGRESS_KINDS and not link.master)
        if link.ifindex in link_state.filters.unsafe:
            continue
        if link.ifindex not in contents.links and link.admin_up and (link.ifindex in l3 or is_plain):
            contents.egress[link.ifindex] = LinkRow(
                link.ifindex, link.name, link.ifindex, layout.LINK_OUT, link.mac
            )


def tunnels(links: Mapping[int, Link], bridges: Collection[int]) -> frozenset[int]:
    """Return the tunnels to other hosts among the ports of these bridges."""
    return frozenset(
        each.ifindex for each in links.values() if each.kind == "vxlan" and each.master in bridges
    )


def add_tunnelled(
    contents: MapContents,
    link_state: LinkState,
    tunnelled: Mapping[tuple[int, bytes], int],
    is_at_one_host: Callable[[int, bytes], bool],
) -> None:
    """Add the MACs of other hosts' containers: their tunnel is the port to send to.

    The tunnel itself chooses the host; only if it is one are outer headers remembered.
    """
    for (bridge, mac), port in sorted(tunnelled.items())[: layout.MACS - len(contents.macs)]:
        tunnel, master = link_state.links.get(port), link_state.links.get(bridge)
        key = _MAC_KEY.pack(bridge, mac.ljust(8, b"\0"))
        own = {_mac(each.mac)[:6] for each in (tunnel, master) if each}
        if (
            tunnel is None
            or master is None
            or mac in own
            or not _sends_by(contents, link_state, tunnel, master)
        ):
            continue
        if key in contents.macs:
            contents.macs[key] = b""  # here as well: the kernel decides
            continue
        flags = layout.MAC_ISOLATED if tunnel.port and tunnel.port.isolated else 0
        flags |= layout.MAC_TUNNEL if is_at_one_host(port, mac) else 0
        contents.macs[key] = _MAC_VALUE.pack(port, flags, min(master.mtu, tunnel.mtu, 0xFFFF))
        contents.port_macs.append((port, mac))
    contents.macs = {key: value for key, value in contents.macs.items() if value}


def _add_tunnels(contents: MapContents, link_state: LinkState) -> None:
    """Add the tunnels whose outer headers may be remembered.

    Two with the same VNI and port, for example at different addresses, can't be distinguished.
    """
    found: dict[bytes, list[int]] = {}
    for link in link_state.links.values():
        vni, port = link.details.get("vni"), link.details.get("port")
        if link.kind == "vxlan" and isinstance(vni, int) and isinstance(port, int):
            found.setdefault(_TUNNEL_KEY.pack(vni << 8, port), []).append(link.ifindex)
    contents.tunnels = {
        key: _INDEX.pack(ifindexes[0])
        for key, ifindexes in found.items()
        if len(ifindexes) == 1 and ifindexes[0] in contents.links
    }


def observed_links(contents: MapContents) -> list[int]:
    """Return the links at whose egress the kernel's packets of tunnels may be seen."""
    excluded = layout.LINK_CONTAINER | layout.LINK_TUNNEL | layout.LINK_BRIDGED | layout.LINK_IN_ONLY
    links = contents.links.items() if contents.tunnels else ()
    return [ifindex for ifindex, row in links if not row.flags & excluded]


def _sends_by(contents: MapContents, link_state: LinkState, port: Link, bridge: Link) -> bool:
    """Return whether frames may be sent to a port without the bridge."""
    egress = {port.ifindex, bridge.ifindex} & link_state.filters.egress
    is_plain = not egress and port.ifindex not in link_state.filters.unsafe and bridge.qdisc == "noqueue"
    return port.ifindex in contents.links and port.carrier and is_plain


def drop_pinned(contents: MapContents, pinned: Mapping[tuple[int, bytes], int]) -> None:
    """Leave MACs to the kernel that were set by hand on another port's FDB entry."""
    for (bridge, mac), port in pinned.items():
        key = _MAC_KEY.pack(bridge, mac)
        if key in contents.macs and _MAC_VALUE.unpack(contents.macs[key])[0] != port:
            del contents.macs[key]


def fit_to_maps(contents: MapContents) -> None:
    """Remove the links that the maps have no room for, with their addresses and MACs.

    A link has one MAC at most. The limit per link keeps a container from filling the map with its
    addresses.
    """
    _fit_egress(contents)
    room = layout.LINKS - len(contents.egress)
    left_out = dict.fromkeys(sorted(contents.links)[room:], f"the limit is {layout.LINKS} links")
    left_out |= _exceeding_share(contents, left_out)
    if not left_out:
        return
    for ifindex, why in left_out.items():
        contents.refused[contents.links.pop(ifindex).name] = why
    contents.owners = {
        key: mac for key, mac in contents.owners.items() if OWNER_KEY.unpack(key)[0] not in left_out
    }
    contents.macs = {key: to for key, to in contents.macs.items() if _MAC_VALUE.unpack(to)[0] not in left_out}
    contents.port_macs = [each for each in contents.port_macs if each[0] not in left_out]


def _fit_egress(contents: MapContents) -> None:
    """Use at most half of the room for links that packets only leave by.

    Bridges come first.
    """
    bridges = {row.l3_ifindex for row in contents.links.values()}
    by_use = sorted(contents.egress, key=lambda ifindex: (ifindex not in bridges, ifindex))
    for ifindex in by_use[layout.LINKS // 2 :]:
        why = f"the limit is {layout.LINKS // 2} links that packets only leave by"
        contents.refused[contents.egress.pop(ifindex).name] = why


def _exceeding_share(contents: MapContents, left_out: Collection[int]) -> dict[int, str]:
    """Return the links with too many addresses, with the reason.

    Too many for one link, or for the map: then those with the most addresses are removed first.
    """
    counts = Counter(OWNER_KEY.unpack(key)[0] for key in contents.owners)
    found: dict[int, str] = {}
    total = 0
    for ifindex in sorted(counts.keys() - set(left_out), key=lambda each: (counts[each], each)):
        if counts[ifindex] > layout.OWNERS_EACH:
            found[ifindex] = f"it has {counts[ifindex]} addresses: the limit is {layout.OWNERS_EACH} a link"
        elif total + counts[ifindex] > layout.OWNERS:
            found[ifindex] = f"the limit is {layout.OWNERS} addresses"
        else:
            total += counts[ifindex]
    return found


def _is_card(link: Link) -> bool:
    return link.kind in ("physical", "bond", "team", "vlan")


def _owner_key(ifindex: int, address: str) -> bytes:
    packed = ipaddress.ip_address(address)
    return OWNER_KEY.pack(ifindex, _AF[packed.version], packed.packed)


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", "")).ljust(8, b"\0")


def packet_links(contents: MapContents, links: Mapping[int, Link]) -> PacketLinks:
    """Return the links that accelerated packets enter and leave by, as rules see them."""
    inputs = {row.l3_ifindex for row in contents.links.values()}
    outputs = inputs | contents.egress.keys()
    bridges = {row.l3_ifindex for row in contents.links.values() if row.flags & layout.LINK_CONTAINER}
    return PacketLinks(
        _names_and_indexes(inputs, links),
        _names_and_indexes(outputs, links),
        _names_and_indexes(bridges, links),
    )


def _names_and_indexes(ifindexes: Iterable[int], links: Mapping[int, Link]) -> frozenset[str]:
    known = {each: links[each].name for each in ifindexes if each in links}
    return frozenset(known.values()) | {f"#{each}" for each in known}


def link_row(row: LinkRow, slot: int) -> bytes:
    """Pack a row of the map `links`."""
    mac = _mac(row.mac)[:6] if len(row.mac) == _MAC_LETTERS else bytes(6)
    return _LINK.pack(row.l3_ifindex, slot, row.flags, mac, row.mtu)


def rows(
    current: Mapping[bytes, bytes], wanted: Mapping[bytes, bytes]
) -> Iterator[tuple[bytes, bytes | None]]:
    """Yield the changes between two contents of a map: keys with new values or None."""
    for key in current:
        if key not in wanted:
            yield key, None
    for key, value in wanted.items():
        if current.get(key) != value:
            yield key, value
