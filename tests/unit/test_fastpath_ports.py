"""Compute the contents of the fast path's maps from links."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import numpy as np

from bpf import layout
from bpf.hooks import Filters
from bpf.link_state import LinkState, Peer
from bpf.ports import fit_to_maps, link_row, map_contents, rows
from core.model import Address, BridgePort, BridgeSettings, Link

_MAC = "02:00:00:00:00:{:02x}"


def _link(ifindex: int, name: str, kind: str = "veth", **more: object) -> Link:
    return Link(
        ns=1, ifindex=ifindex, name=name, kind=kind, state="up", admin_up=True, carrier=True,
        mac=_MAC.format(ifindex), mtu=1500, qdisc="noqueue", **more,  # type: ignore[arg-type]
    )  # fmt: skip


_BRIDGE = _link(2, "br0", "bridge", bridge=BridgeSettings(), addresses=(Address(4, "10.9.0.1", 24),))
_A = _link(3, "a", master=2, lower=9, lower_nsid=1, port=BridgePort(state="forwarding"))
_B = _link(4, "b", master=2, lower=9, lower_nsid=2, port=BridgePort(state="forwarding", isolated=True))
_UP = _link(5, "up", "physical", addresses=(Address(4, "192.0.2.1", 24),))
_PEERS = {
    (1, 9): Peer(_MAC.format(0xA), 1500, True, ("10.9.0.2", "fd09::2")),
    (2, 9): Peer(_MAC.format(0xB), 1400, True, ("10.9.0.3",)),
}


def _link_state(*links: Link, **more: object) -> LinkState:
    fields: dict[str, object] = {"peers": _PEERS} | more
    return LinkState({each.ifindex: each for each in links or (_BRIDGE, _A, _B, _UP)}, **fields)  # type: ignore[arg-type]


def _macs(found: dict[bytes, bytes]) -> dict[str, tuple[int, int, int]]:
    keys = np.frombuffer(b"".join(found), layout.MAC_KEY)
    values = np.frombuffer(b"".join(found.values()), layout.MAC_VALUE)
    return {
        key["mac"].tobytes().hex(":"): (int(value["ifindex"]), int(value["flags"]), int(value["mtu"]))
        for key, value in zip(keys, values, strict=True)
    }


def test_containers_own_their_addresses_and_are_behind_their_macs() -> None:
    found = map_contents(_link_state(), {2})
    assert _macs(found.macs) == {
        _MAC.format(0xA): (3, layout.MAC_PEER, 1500),
        _MAC.format(0xB): (4, layout.MAC_PEER | layout.MAC_ISOLATED, 1400),
    }
    owners = np.frombuffer(b"".join(found.owners), layout.OWNER_KEY)
    addresses = {
        (
            int(each["ifindex"]),
            str(ipaddress.ip_address(each["address"].tobytes()[: 4 if each["family"] == 2 else 16])),
        )
        for each in owners
    }
    assert addresses == {(3, "10.9.0.2"), (3, "fd09::2"), (4, "10.9.0.3")}
    assert set(found.owners.values()) == {
        bytes.fromhex("02000000000a0000"), bytes.fromhex("02000000000b0000"),
    }  # fmt: skip


def test_ports_have_flags_for_rules_between_them() -> None:
    l2 = map_contents(_link_state(), {2}).links
    assert l2[3].flags == layout.LINK_BRIDGED | layout.LINK_CONTAINER | layout.LINK_L2 | layout.LINK_PEER
    assert l2[4].flags & layout.LINK_ISOLATED
    assert (l2[5].flags, l2[5].l3_ifindex, l2[3].l3_ifindex) == (0, 5, 2)
    either = layout.LINK_IPTABLES | layout.LINK_IP6TABLES
    filtered = map_contents(_link_state(call_ip6tables=True), {2}).links
    assert filtered[3].flags & (layout.LINK_L2 | either) == layout.LINK_IP6TABLES
    filtered = map_contents(_link_state(call_iptables=True), {2}).links
    assert filtered[3].flags & (layout.LINK_L2 | either) == layout.LINK_IPTABLES
    ruled = map_contents(_link_state(), {2}, l2_allowed=False).links
    assert not ruled[3].flags & (layout.LINK_L2 | either)
    row = np.frombuffer(link_row(l2[3], 7), layout.LINK)[0]
    assert (row["l3_ifindex"], row["slot"], row["mtu"]) == (2, 7, 1500)
    assert row["mac"].tobytes().hex(":") == _BRIDGE.mac


def test_links_with_a_queue_or_filter_are_not_bypassed() -> None:
    assert not map_contents(_link_state(filters=Filters(egress=frozenset({2}))), {2}).macs
    assert not map_contents(_link_state(replace(_BRIDGE, qdisc="htb"), _A), {2}).macs
    filtered = map_contents(_link_state(filters=Filters(egress=frozenset({3}))), {2})
    assert _macs(filtered.macs)[_MAC.format(0xA)] == (3, 0, 1500)
    queued = map_contents(_link_state(_BRIDGE, replace(_A, qdisc="fq_codel")), {2})
    assert _macs(queued.macs)[_MAC.format(0xA)] == (3, 0, 1500)
    for only_by_table in (BridgePort("forwarding", learning=False), BridgePort("forwarding", flood=False)):
        assert not map_contents(_link_state(_BRIDGE, replace(_A, port=only_by_table)), {2}).macs
    xdp = map_contents(_link_state(_BRIDGE, _A, peers={(1, 9): replace(_PEERS[1, 9], has_xdp=True)}), {2})
    assert _macs(xdp.macs)[_MAC.format(0xA)] == (3, 0, 1500)


def test_a_mac_of_two_containers_is_left_to_the_kernel() -> None:
    twice = {(1, 9): _PEERS[1, 9], (2, 9): replace(_PEERS[2, 9], mac=_MAC.format(0xA))}
    assert map_contents(_link_state(peers=twice), {2}).macs == {}
    gateway = {(1, 9): replace(_PEERS[1, 9], mac=_BRIDGE.mac)}
    assert map_contents(_link_state(_BRIDGE, _A, peers=gateway), {2}).macs == {}


def test_links_that_are_not_accelerated_have_a_reason() -> None:
    assert map_contents(_link_state(filters=Filters(frozenset({3, 5}))), {2}).refused.keys() == {"a", "up"}
    vlans = replace(_BRIDGE, bridge=BridgeSettings(vlan_filtering=True))
    found = map_contents(_link_state(vlans, _A), {2})
    assert found.links == {} and "VLAN" in found.refused["br0"]
    assert map_contents(_link_state(filters=Filters(frozenset({2}))), {2}).refused.keys() == {"br0"}
    blocking = replace(_A, port=BridgePort(state="blocking"))
    assert "blocking" in map_contents(_link_state(_BRIDGE, blocking), {2}).refused["a"]
    assert map_contents(_link_state(_BRIDGE, replace(_A, admin_up=False)), {2}).refused == {"a": "it is down"}


def test_uplinks_are_links_that_receive_routed_traffic() -> None:
    lo = replace(_link(1, "lo", "loopback"), mac="00:00:00:00:00:00")
    bare = _link(6, "bare", "physical")
    down = replace(_UP, ifindex=7, name="down", admin_up=False)
    bond = _link(8, "bond0", "bond", addresses=_UP.addresses)
    slave = _link(9, "slave", "physical", master=8)
    tunnel = replace(_link(10, "wg0", "wireguard", addresses=_UP.addresses), mac="")
    lan = _link(11, "br-lan", "bridge", bridge=BridgeSettings(), addresses=_UP.addresses)
    card = _link(12, "card", "physical", master=11, port=BridgePort(state="forwarding"))
    guest = _link(13, "guest", master=11, lower=9, lower_nsid=3, port=BridgePort(state="forwarding"))
    found = map_contents(_link_state(_BRIDGE, _A, lo, bare, down, bond, slave, tunnel, lan, card, guest), {2})
    assert set(found.links) == {3, 8, 12}
    assert not map_contents(_link_state(_BRIDGE, _UP), {2}).links
    filtered = map_contents(_link_state(_BRIDGE, _A, lan, card, filters=Filters(frozenset({11}))), {2})
    assert set(filtered.links) == {3} and filtered.refused.keys() == {"card"}
    assert (found.links[12].l3_ifindex, found.links[12].flags) == (11, layout.LINK_BRIDGED)


def test_only_changed_entries_are_written() -> None:
    assert list(rows({b"a": b"1", b"b": b"2"}, {b"b": b"3", b"c": b"4"})) == [
        (b"a", None), (b"b", b"3"), (b"c", b"4"),
    ]  # fmt: skip
    assert not list(rows({b"a": b"1"}, {b"a": b"1"}))


def test_links_beyond_the_maps_capacity_are_left_out_by_name() -> None:
    many = layout.LINKS + 10
    links = [
        replace(_A, ifindex=number, name=f"c{number}", lower=None, lower_nsid=None)
        for number in range(6, many)
    ]
    found = map_contents(_link_state(_BRIDGE, _A, _B, _UP, *links), {2})
    fit_to_maps(found)
    assert len(found.links) + len(found.egress) == layout.LINKS
    assert {3, 4} <= found.links.keys(), "who was there first stays"
    left_out = f"c{many - 1}"
    assert found.refused[left_out] == f"the limit is {layout.LINKS} links"
    assert len(found.refused) == len(links) + 3 - len(found.links)


def _with_addresses(*counts: int) -> LinkState:
    """Return containers with these numbers of addresses."""
    links, peers = [_BRIDGE], {}
    for number, count in enumerate(counts, 10):
        port = BridgePort(state="forwarding")
        links.append(_link(number, f"c{number}", master=2, lower=9, lower_nsid=number, port=port))
        addresses = tuple(f"fd09::{number:x}:{each:x}" for each in range(count))
        peers[number, 9] = Peer(f"02:00:00:00:01:{number:02x}", 1500, True, addresses)
    return _link_state(*links, peers=peers)


def test_a_container_with_many_addresses_leaves_room_for_others() -> None:
    found = map_contents(_with_addresses(layout.OWNERS_EACH + 1, 2, layout.OWNERS_EACH), {2})
    fit_to_maps(found)
    assert set(found.links) == {11, 12}
    assert found.refused == {
        "c10": f"it has {layout.OWNERS_EACH + 1} addresses: the limit is {layout.OWNERS_EACH} a link"
    }
    assert len(found.owners) == layout.OWNERS_EACH + 2
    assert len(found.macs) == len(found.port_macs) == 2


def test_containers_with_most_addresses_are_left_out_first() -> None:
    most = layout.OWNERS // layout.OWNERS_EACH
    found = map_contents(_with_addresses(*[layout.OWNERS_EACH] * most, 3), {2})
    fit_to_maps(found)
    assert found.refused == {f"c{9 + most}": f"the limit is {layout.OWNERS} addresses"}
    assert len(found.owners) <= layout.OWNERS and 10 + most in found.links


def test_many_egress_links_leave_room_for_other_links() -> None:
    many = [_link(number, f"vx{number}", "vxlan") for number in range(10, 10 + layout.LINKS)]
    found = map_contents(_link_state(_BRIDGE, _A, _B, *many), {2})
    fit_to_maps(found)
    assert {3, 4} <= found.links.keys() and 2 in found.egress
    assert len(found.egress) == layout.LINKS // 2
    assert "vx10" not in found.refused
    assert found.refused[f"vx{9 + layout.LINKS}"] == (
        f"the limit is {layout.LINKS // 2} links that packets only leave by"
    )


def test_a_card_with_another_programs_egress_filter_only_receives() -> None:
    found = map_contents(_link_state(filters=Filters(unsafe=frozenset({3, 5}))), {2})
    assert found.links[5].flags & layout.LINK_IN_ONLY and "egress" in found.refused["up"]
    assert _MAC.format(0xA) not in _macs(found.macs) and _MAC.format(0xB) in _macs(found.macs)
