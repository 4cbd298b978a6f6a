"""From what is to what the maps hold: which links are accelerated, who may send from where, behind which
port a MAC is."""

from __future__ import annotations

import ipaddress
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from bpf import layout
from bpf.link_state import Far, Scene
from bpf.rule_analysis import Links
from core.model import Link

_AF = {4: 2, 6: 10}
# The dtypes of bpf/layout.py, packed one by one.
_LINK = struct.Struct("=III6sH8x")
OWNER_KEY = struct.Struct("=II16s")
_MAC_KEY = struct.Struct("=I8s")
_MAC_VALUE = struct.Struct("=IHH")
_WAYS_OUT = ("tun", "wireguard", "dummy")
_MAC_LETTERS = 17
_UNCLEAR = (
    "a program or filter at its egress may look at more than the packet: the kernel sends what leaves by it"
)
_ETHERNET = ("physical", "veth", "vlan", "bond", "team", "tun", "vxlan", "geneve", "gretap", "ip6gretap")


@dataclass(frozen=True, slots=True)
class LinkRow:
    """One link on which the program runs: a row of the map `links`, without its slot."""

    ifindex: int
    name: str
    l3_ifindex: int
    flags: int
    mac: str
    mtu: int = 0


@dataclass(slots=True)
class Contents:
    """What the maps are to hold: bytes by bytes, and the links by ifindex; `outs` are links that packets may
    leave by and on which the program does not run. `refused` are links by name that ought to be accelerated
    and are not, with the reason. `behind` are the MACs behind each port."""

    links: dict[int, LinkRow] = field(default_factory=dict)
    outs: dict[int, LinkRow] = field(default_factory=dict)
    owners: dict[bytes, bytes] = field(default_factory=dict)
    macs: dict[bytes, bytes] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    behind: list[tuple[int, bytes]] = field(default_factory=list)


def far_end(link: Link) -> Far | None:
    """Where the other end of a veth pair is; None where it cannot be told."""
    return (link.lower_nsid, link.lower) if link.kind == "veth" and link.lower else None


def contents(scene: Scene, bridges: Collection[int], l2_allowed: bool = True) -> Contents:
    """What the maps hold for these bridges and the host's uplinks; `l2_allowed` where no rules of the bridge
    family exist."""
    made = Contents()
    for bridge in sorted(bridges):
        if bridge in scene.links:
            _add_bridge(made, scene, scene.links[bridge], l2_allowed)
    for link in scene.links.values() if made.links else ():
        if link.master not in bridges and link.ifindex not in bridges:
            _add_uplink(made, scene, link)
    _add_outs(made, scene)
    return made


def _add_bridge(made: Contents, scene: Scene, bridge: Link, l2_allowed: bool) -> None:
    why = _bridge_refused(scene, bridge)
    if why:
        made.refused[bridge.name] = why
        return
    flags = layout.LINK_BRIDGED | _bridged_by(scene, bridge, l2_allowed)
    for port in scene.links.values():
        if port.master != bridge.ifindex:
            continue
        why = _port_refused(scene, port)
        if why:
            made.refused[port.name] = why
            continue
        own = 0 if _is_card(port) else layout.LINK_CONTAINER
        own |= layout.LINK_ISOLATED if port.port and port.port.isolated else 0
        made.links[port.ifindex] = LinkRow(port.ifindex, port.name, bridge.ifindex, flags | own, bridge.mac)
        _add_container(made, scene, bridge, port)
    made.macs = {key: value for key, value in made.macs.items() if value}


def _bridge_refused(scene: Scene, bridge: Link) -> str:
    if bridge.kind != "bridge" or not bridge.bridge:
        return "it is no Linux bridge"
    if bridge.bridge.vlan_filtering:
        return "its VLAN filtering decides about each frame"
    if bridge.master:
        return "it belongs to a VRF"
    if bridge.ifindex in scene.filters.ingress:
        return "another program or filter sits at its ingress"
    return "" if bridge.admin_up else "it is down"


def _port_refused(scene: Scene, port: Link) -> str:
    if port.ifindex in scene.filters.ingress:
        return "another program or filter sits at its ingress"
    if not port.admin_up:
        return "it is down"
    if port.port and port.port.state not in ("forwarding", ""):
        return f"its bridge port is {port.port.state}"
    if port.port and port.port.locked:
        return "its bridge port is locked: the bridge admits sources one by one"
    return "" if len(port.mac) == 17 else "it carries no Ethernet frames"


def _bridged_by(scene: Scene, bridge: Link, l2_allowed: bool) -> int:
    """Who has a say in frames from port to port: br_netfilter, of each family for itself, or nobody."""
    own = bridge.bridge
    asked = 0
    if scene.call_iptables or (own and own.nf_call_iptables):
        asked |= layout.LINK_IPTABLES
    if scene.call_ip6tables or (own and own.nf_call_ip6tables):
        asked |= layout.LINK_IP6TABLES
    return asked or (layout.LINK_L2 if l2_allowed else 0)


def _add_container(made: Contents, scene: Scene, bridge: Link, port: Link) -> None:
    """What is behind a port: its addresses may be sent from, its MAC is reached there."""
    far = far_end(port)
    end = scene.ends.get(far) if far else None
    if far is None or end is None:
        return
    for each in end.addresses:
        made.owners[_owner_key(port.ifindex, each)] = _mac(end.mac)
    if not end.up or not port.carrier or bridge.ifindex in scene.filters.egress or bridge.qdisc != "noqueue":
        return
    if port.ifindex in scene.filters.unclear:
        made.refused[port.name] = _UNCLEAR
        return
    if port.port and not (port.port.learning and port.port.flood):
        return  # what is sent there depends on the forwarding table alone
    flags = layout.MAC_ISOLATED if port.port and port.port.isolated else 0
    plain = port.qdisc == "noqueue" and port.ifindex not in scene.filters.egress and not end.has_xdp
    if far[0] is not None and plain:
        flags |= layout.MAC_PEER
    mtu = min(bridge.mtu, port.mtu, end.mtu, 0xFFFF)
    key = _MAC_KEY.pack(bridge.ifindex, _mac(end.mac))
    if key in made.macs or end.mac == bridge.mac:
        made.macs[key] = b""  # claimed twice: the kernel decides
        return
    made.macs[key] = _MAC_VALUE.pack(port.ifindex, flags, mtu)
    made.behind.append((port.ifindex, _mac(end.mac)[:6]))
    peer = layout.LINK_PEER if flags & layout.MAC_PEER else 0
    row = made.links[port.ifindex]
    made.links[port.ifindex] = replace(row, flags=row.flags | peer, mtu=mtu)


def _add_uplink(made: Contents, scene: Scene, link: Link) -> None:
    """Another link by which routed traffic comes in."""
    l3 = link
    flags = 0
    if link.kind == "loopback" or not link.admin_up or link.kind == "bridge" or len(link.mac) != 17:
        return
    if link.master:
        master = scene.links.get(link.master)
        if master is None or master.kind != "bridge" or not _is_card(link) or not master.addresses:
            return
        l3, flags = master, layout.LINK_BRIDGED
    elif not link.addresses or link.kind not in _ETHERNET:
        return
    if not scene.filters.ingress.isdisjoint((link.ifindex, l3.ifindex)):
        made.refused[link.name] = "another program or filter sits at its ingress"
        return
    if not scene.filters.unclear.isdisjoint((link.ifindex, l3.ifindex)):
        made.refused[link.name] = _UNCLEAR
        flags |= layout.LINK_IN_ONLY
    made.links[link.ifindex] = LinkRow(link.ifindex, link.name, l3.ifindex, flags, l3.mac)


def _add_outs(made: Contents, scene: Scene) -> None:
    """Links that routes may lead out by. A tunnel to many peers needs more of a packet than its address (the
    route's next hop), and another bridge may ask rules of its own. No route leads out by a bridge's port."""
    l3 = {row.l3_ifindex for row in made.links.values()}
    for link in scene.links.values() if made.links else ():
        master = scene.links.get(link.master or 0)
        if master is not None and master.kind == "bridge":
            continue
        is_plain = link.kind in _ETHERNET or (link.kind in _WAYS_OUT and not link.master)
        if link.ifindex in scene.filters.unclear:
            continue
        if link.ifindex not in made.links and link.admin_up and (link.ifindex in l3 or is_plain):
            made.outs[link.ifindex] = LinkRow(
                link.ifindex, link.name, link.ifindex, layout.LINK_OUT, link.mac
            )


def leave_pinned(made: Contents, pinned: Mapping[tuple[int, bytes], int]) -> None:
    """Leave to the kernel what goes to MACs that the forwarding table has at another port, by hand."""
    for (bridge, mac), port in pinned.items():
        key = _MAC_KEY.pack(bridge, mac)
        if key in made.macs and _MAC_VALUE.unpack(made.macs[key])[0] != port:
            del made.macs[key]


def fit(made: Contents) -> None:
    """Leave out what the maps have no room for: links by name, and with them their addresses and MACs, of
    which each has one at most. A container can't take others' room by the addresses that it gives itself."""
    _fit_outs(made)
    room = layout.LINKS - len(made.outs)
    left_out = dict.fromkeys(sorted(made.links)[room:], f"there is room for {layout.LINKS} links")
    left_out |= _over_their_share(made, left_out)
    if not left_out:
        return
    for ifindex, why in left_out.items():
        made.refused[made.links.pop(ifindex).name] = why
    made.owners = {key: mac for key, mac in made.owners.items() if OWNER_KEY.unpack(key)[0] not in left_out}
    made.macs = {key: to for key, to in made.macs.items() if _MAC_VALUE.unpack(to)[0] not in left_out}
    made.behind = [each for each in made.behind if each[0] not in left_out]


def _fit_outs(made: Contents) -> None:
    """No more than half of the room is for links that packets only leave by, bridges before all others."""
    bridges = {row.l3_ifindex for row in made.links.values()}
    by_use = sorted(made.outs, key=lambda ifindex: (ifindex not in bridges, ifindex))
    for ifindex in by_use[layout.LINKS // 2 :]:
        why = f"there is room for {layout.LINKS // 2} links that packets only leave by"
        made.refused[made.outs.pop(ifindex).name] = why


def _over_their_share(made: Contents, left_out: Collection[int]) -> dict[int, str]:
    """Links that have too many addresses, with the reason: for their own share, or for the map, those with
    the most before all others."""
    counts = Counter(OWNER_KEY.unpack(key)[0] for key in made.owners)
    found: dict[int, str] = {}
    total = 0
    for ifindex in sorted(counts.keys() - set(left_out), key=lambda each: (counts[each], each)):
        if counts[ifindex] > layout.OWNERS_EACH:
            found[ifindex] = (
                f"it has {counts[ifindex]} addresses: there is room for {layout.OWNERS_EACH} of each"
            )
        elif total + counts[ifindex] > layout.OWNERS:
            found[ifindex] = f"there is room for {layout.OWNERS} addresses"
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


def rule_links(found: Contents, links: Mapping[int, Link]) -> Links:
    """The links that rules see accelerated packets come in and leave by."""
    come_in = {row.l3_ifindex for row in found.links.values()}
    leave = come_in | found.outs.keys()
    bridges = {row.l3_ifindex for row in found.links.values() if row.flags & layout.LINK_CONTAINER}
    return Links(_named(come_in, links), _named(leave, links), _named(bridges, links))


def _named(ifindexes: Iterable[int], links: Mapping[int, Link]) -> frozenset[str]:
    known = {each: links[each].name for each in ifindexes if each in links}
    return frozenset(known.values()) | {f"#{each}" for each in known}


def link_row(row: LinkRow, slot: int) -> bytes:
    """A row of the map `links`."""
    mac = _mac(row.mac)[:6] if len(row.mac) == _MAC_LETTERS else bytes(6)
    return _LINK.pack(row.l3_ifindex, slot, row.flags, mac, row.mtu)


def rows(kept: Mapping[bytes, bytes], wanted: Mapping[bytes, bytes]) -> Iterator[tuple[bytes, bytes | None]]:
    """What turns one map's contents into another's: keys with their new value, None where they go."""
    for key in kept:
        if key not in wanted:
            yield key, None
    for key, value in wanted.items():
        if kept.get(key) != value:
            yield key, value
