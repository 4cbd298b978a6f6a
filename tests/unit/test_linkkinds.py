"""Check details of links by kind with messages of kernels, also of rare features."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from core.collect.link_kinds import bridge_port, bridge_settings, details, fdb_entry, port_vlans
from core.collect.links import link
from core.model import PortVlan
from core.netlink.client import attribute


def message(*attributes: tuple[int, bytes]) -> bytes:
    """Return the attributes joined."""
    return b"".join(attribute(number, value) for number, value in attributes)


def u8(value: int) -> bytes:
    return struct.pack("=B", value)


def u16(value: int) -> bytes:
    return struct.pack("=H", value)


def u32(value: int) -> bytes:
    return struct.pack("=I", value)


# IFLA_INFO_DATA of `ip link add ... type vlan protocol 802.1ad id 100`, `... type ipvlan mode l3s vepa`,
# `... type bond mode active-backup miimon 100` with an active port, `... type vrf table 10`, and others.
KINDS: list[tuple[str, bytes, dict[str, Any]]] = [
    (
        "vlan",
        message((5, struct.pack("!H", 0x88A8)), (1, u16(100)), (2, struct.pack("=II", 1, 0xFFFFFFFF))),
        {"id": 100, "protocol": "802.1ad"},
    ),
    ("vlan", message((1, u16(7)), (5, struct.pack("!H", 0x8100))), {"id": 7, "protocol": "802.1Q"}),
    ("ipvlan", message((1, u16(2)), (2, u16(2))), {"mode": "l3s", "flag": "vepa"}),
    ("ipvlan", message((1, u16(0)), (2, u16(0))), {"mode": "l2", "flag": "bridge"}),
    ("bond", message((1, u8(1)), (2, u32(4)), (3, u32(100))),
     {"mode": "active-backup", "active_slave": 4, "miimon": 100}),
    ("bond", message((1, u8(4)), (3, u32(0))), {"mode": "802.3ad", "miimon": 0}),
    ("vrf", message((1, u32(10))), {"table": 10}),
    ("macvlan", message((1, u32(4))), {"mode": "bridge"}),
    ("macvtap", message((1, u32(8))), {"mode": "passthru"}),
    ("macvlan", message((1, u32(64))), {"mode": "64"}),
    ("tun", message((3, u8(1)), (1, u32(1000)), (6, u8(1)), (7, u8(0))),
     {"mode": "tun", "owner": 1000, "persist": True, "multi_queue": False}),
    ("vxlan", message((1, u32(42)), (3, u32(0)), (15, struct.pack("!H", 8472)), (7, u8(0)), (25, u8(0))),
     {"vni": 42, "port": 8472, "learning": False, "external": False}),
    ("wireguard", b"", {}),
    ("dummy", b"", {}),
    ("a kind of tomorrow", message((1, u32(1))), {}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "data", "expected"), KINDS)
def test_details(kind: str, data: bytes, expected: dict[str, Any]) -> None:
    assert details(kind, data) == expected


@pytest.mark.parametrize("kind", sorted({kind for kind, _, _ in KINDS}))
def test_missing_details_are_left_out(kind: str) -> None:
    assert details(kind, b"") == {}


def ifinfo(hardware: int, *attributes: tuple[int, bytes]) -> bytes:
    """Return an RTM_NEWLINK message of ifindex 3."""
    return struct.pack("=BxHiII", 0, hardware, 3, 0, 0) + message((3, b"x\0"), *attributes)


@pytest.mark.parametrize(
    ("hardware", "kernel_kind", "kind"),
    [(1, b"", "physical"), (772, b"", "loopback"), (1, b"openvswitch\0", "ovs-port"),
     (1, b"dummy\0", "dummy"), (65534, b"wireguard\0", "wireguard"), (1, b"netkit\0", "netkit")],
)  # fmt: skip
def test_kinds(hardware: int, kernel_kind: bytes, kind: str) -> None:
    info = message((1, kernel_kind)) if kernel_kind else b""
    assert link(ifinfo(hardware, (18, info)), ns=9).kind == kind


def test_a_wireguard_link_has_no_mac() -> None:
    found = link(ifinfo(65534, (18, message((1, b"wireguard\0"))), (4, u32(1420))), ns=9)
    assert (found.mac, found.mtu, found.lower, found.state) == ("", 1420, None, "unknown")


def test_a_vlan_names_its_parent_in_another_namespace() -> None:
    info = message((1, b"vlan\0"), (2, message((1, u16(5)))))
    found = link(ifinfo(1, (5, u32(8)), (37, struct.pack("=i", 2)), (18, info)), ns=9)
    assert (found.lower, found.lower_nsid, found.details) == (8, 2, {"id": 5})


def test_the_id_of_a_dying_namespace_is_minus_one() -> None:
    found = link(ifinfo(1, (5, u32(8)), (37, struct.pack("=i", -1))), ns=9)
    assert found.lower_nsid == -1


def vlan_info(vid: int, flags: int) -> tuple[int, bytes]:
    """Return a struct bridge_vlan_info."""
    return 2, struct.pack("=HH", flags, vid)


def test_vlans_of_a_port() -> None:
    # bridge vlan: 1 PVID Egress Untagged; 10; 20-29; 30-31 Egress Untagged; with a tunnel attribute between.
    spec = message(
        vlan_info(1, 0x06), vlan_info(10, 0), vlan_info(20, 0x08), vlan_info(29, 0x10),
        (3, message((1, u32(7)))), vlan_info(30, 0x0C), vlan_info(31, 0x14),
    )  # fmt: skip
    assert port_vlans(spec) == (
        PortVlan(1, 1, pvid=True, untagged=True),
        PortVlan(10, 10),
        PortVlan(20, 29),
        PortVlan(30, 31, untagged=True),
    )


def test_vlan_settings_of_a_bridge() -> None:
    found = bridge_settings(message((7, u8(1)), (39, u16(20)), (11, bytes.fromhex("8000024200000001"))))
    assert (found.vlan_filtering, found.vlan_default_pvid) == (True, 20)
    assert found.bridge_id == "8000.02:42:00:00:00:01"


def test_a_port_in_an_unknown_state() -> None:
    assert bridge_port(message((1, u8(9)))).state == "9"
    assert bridge_port(b"").state == "disabled"


def test_a_forwarding_entry_with_vlan_and_lock() -> None:
    header = struct.pack("=BxxxiHBB", 7, 4, 0x04, 0x04, 0)
    mac = bytes.fromhex("020000000007")
    found = fdb_entry(header + message((2, mac), (9, u32(2)), (5, u16(10)), (15, u32(2))))
    assert (found.mac, found.port, found.bridge, found.vlan) == ("02:00:00:00:00:07", 4, 2, 10)
    assert (found.state, found.flags) == ("learned", ("master", "locked"))
