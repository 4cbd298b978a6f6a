"""Report hosts that join or leave overlays, and MACs that move between hosts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from core.diff.changelist import ChangeList, Topic, in_both
from core.model import Link, LinkKey, NetState, Ref, link_ref, namespace_ref
from core.model.link import ALL_ZERO
from core.model.overlay import ESTABLISHED
from core.overlay import overlay_of
from core.topology import Topology

_HERE = "this host"


def compare_overlays(log: ChangeList) -> None:
    """Report changes of flood lists, and moved MACs.

    Other entries change all the time.
    """
    for _, old, new in in_both(log.old.snapshot.nets, log.new.snapshot.nets):
        if old.fdb is not new.fdb:
            for link in new.links.values():
                if link.kind == "vxlan" and link.ifindex in old.links:
                    _compare_flood_lists(log, link, old, new)
                    _compare_macs(log, link, old, new)


def _compare_flood_lists(log: ChangeList, link: Link, old: NetState, new: NetState) -> None:
    before, after = _flood_list(old, link), _flood_list(new, link)
    for action, changed, verb in (
        ("added", after - before, "was added to"), ("removed", before - after, "was removed from"),
    ):  # fmt: skip
        found = [
            (Ref("vtep", (*link.key, one)), f"host {one} {verb} the overlay {_name(log.new, link)}")
            for one in sorted(changed)
        ]
        log.add_each(action, found, f"hosts {verb.replace('was', 'were')} the overlay {_name(log.new, link)}",
                     link_ref(link.key), Topic.NETWORK)  # fmt: skip


def _flood_list(net: NetState, link: Link) -> set[str]:
    return {one.dst for one in net.fdb if one.port == link.ifindex and one.mac == ALL_ZERO and one.dst}


def _name(topology: Topology, link: Link) -> str:
    network = topology.network_of(link)
    return network.name if network else link.name


def _compare_macs(log: ChangeList, link: Link, old: NetState, new: NetState) -> None:
    before, after, name = _places(old, link), _places(new, link), _name(log.new, link)
    found = [
        (
            Ref("vtep", (*link.key, "" if after[mac] == _HERE else after[mac])),
            f"{_who(log.new, link.key, mac)} moved from {was} to {after[mac]} in the overlay {name}",
        )
        for mac, was in before.items()
        if mac in after and was != after[mac]
    ]
    log.add_each("changed", found, f"MACs moved in the overlay {name}",
                 link_ref(link.key), Topic.NEIGHBOUR)  # fmt: skip


def _places(net: NetState, link: Link) -> Mapping[str, str]:
    """Map MACs to the host that they are behind, but the gateway's, which all have."""
    remote = {one.mac: one.dst for one in net.fdb if one.port == link.ifindex and one.dst}
    found = dict(remote)
    for one in net.fdb if link.master is not None else ():
        if one.bridge == link.master and one.port != link.ifindex and one.state != "permanent":
            found[one.mac] = _HERE
    bridge = net.links.get(link.master or 0)
    for mac in (ALL_ZERO, bridge.mac if bridge else ""):
        found.pop(mac, None)
    return found


def _who(topology: Topology, key: LinkKey, mac: str) -> str:
    """Name a MAC by its container or address, if known."""
    names = list(_names(topology, key, mac))
    return f"MAC {mac} ({names[0]})" if names else f"MAC {mac}"


def _names(topology: Topology, key: LinkKey, mac: str) -> Iterator[str]:
    overlay = overlay_of(topology, key)
    found = [one for host in overlay.hosts for one in host.macs if one.mac == mac] if overlay else []
    yield from (topology.containers[one.container].name for one in found if one.container)
    yield from (address for one in found for address in one.addresses)


def compare_sessions(log: ChangeList) -> None:
    """Report BGP sessions of FRRouting that were lost or established."""
    old, new = log.old.snapshot.frr, log.new.snapshot.frr
    if old is new or not old.version:  # not read before, or FRRouting didn't run
        return
    before = {one.address for one in old.peers if one.state == ESTABLISHED}
    after = {one.address for one in new.peers if one.state == ESTABLISHED}
    errors = {one.address: one.error for one in new.peers}
    ref = namespace_ref(log.new.host)
    for address in sorted(before - after):
        why = f": {errors[address]}" if errors.get(address) else ""
        log.add("changed", ref, f"the BGP session with {address} was lost{why}", Topic.NETWORK, 0)
    for address in sorted(after - before):
        log.add("changed", ref, f"the BGP session with {address} is established", Topic.NETWORK)
