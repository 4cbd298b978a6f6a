"""FRRouting's configuration as text: what is vnet-tui's, and what to type."""

from __future__ import annotations

import ipaddress
import json

import pytest

from core.collect.frr import parse
from core.frr_config import group_for, lines, parse_config, router_id_for
from core.model.overlay import BgpConfig, EvpnGroup, Frr

OWN = """
router bgp 65000
 bgp router-id 192.0.2.1
 neighbor vnet-tui peer-group
 neighbor vnet-tui description created by vnet-tui with its BGP instance
 neighbor vnet-tui remote-as internal
 neighbor vnet-tui update-source 192.0.2.1
 neighbor 192.0.2.10 peer-group vnet-tui
 neighbor 192.0.2.9 peer-group vnet-tui
 neighbor 192.0.2.9 password secret
 !
 address-family ipv4 unicast
  no neighbor vnet-tui activate
 exit-address-family
 !
 address-family l2vpn evpn
  neighbor vnet-tui activate
  neighbor vnet-tui route-reflector-client
  advertise-all-vni
 exit-address-family
exit
!
end
"""
GROUP = EvpnGroup(65000, "192.0.2.1", ("192.0.2.9", "192.0.2.10"), True, "192.0.2.1")
RUNNING = Frr(True, "10.3", ("zebra", "bgpd"))


def test_own_configuration_is_recognized() -> None:
    assert parse_config(OWN) == BgpConfig(65000, GROUP)


def test_an_instance_with_foreign_lines_is_kept() -> None:
    config = parse_config(OWN.replace(" neighbor vnet-tui peer-group", " no bgp ebgp-requires-policy\n"
                                      " neighbor vnet-tui peer-group"))  # fmt: skip
    assert config.group and config.group.router_id == ""
    assert "no router bgp 65000" not in lines(config.group, None)
    assert lines(GROUP, None) == ("no router bgp 65000",)


@pytest.mark.parametrize(
    ("text", "asn", "evpn"),
    [
        ("router bgp 1.10 as-notation dot\n", 65546, ()),
        ("router bgp 65001 vrf red\n address-family l2vpn evpn\n  advertise-all-vni\n", 0,
         ("advertise-all-vni in router bgp 65001 vrf red",)),
        ("router bgp 1\n bgp default l2vpn-evpn\n", 1, ("bgp default l2vpn-evpn",)),
        ("router bgp 1\n address-family l2vpn evpn\n  vni 7\n", 1, ("vni 7",)),
        ("router ospf\n network 10.0.0.0/8 area 0\nexit\n", 0, ()),
    ],
)  # fmt: skip
def test_instances_and_evpn_of_others(text: str, asn: int, evpn: tuple[str, ...]) -> None:
    assert parse_config(text) == BgpConfig(asn, evpn=evpn)


@pytest.mark.parametrize(
    ("frr", "source", "reason"),
    [
        (Frr(), "192.0.2.1", "isn't installed"),
        (Frr(True), "192.0.2.1", "zebra and bgpd can't be reached"),
        (Frr(True, "7.5.1", ("zebra", "bgpd")), "192.0.2.1", "too old"),
        (RUNNING, "2001:db8::1", "no IPv6 tunnels"),
        (Frr(True, "10.3", ("zebra", "bgpd"), config=BgpConfig(1)), "192.0.2.1", "is in AS 1, not 65000"),
        (Frr(True, "10.3", ("zebra", "bgpd"), config=BgpConfig(65000, neighbors=("192.0.2.2",))),
         "192.0.2.1", "already has a BGP neighbor 192.0.2.2"),
        (Frr(True, "10.3", ("zebra", "bgpd"), config=BgpConfig(65000, GROUP)),
         "192.0.2.7", "use the address"),
    ],
)  # fmt: skip
def test_reasons_name_static_vxlan(frr: Frr, source: str, reason: str) -> None:
    found = group_for(frr, source, ["192.0.2.2"], 65000)
    assert isinstance(found, str) and reason in found
    assert "Try: " in found and "static VXLAN, with --remote" in found


def test_groups_keep_the_instance_that_exists() -> None:
    assert group_for(RUNNING, "192.0.2.1", ["192.0.2.10", "192.0.2.9"], reflector=True) == GROUP
    other = Frr(True, "8.4.4", ("zebra", "bgpd"), config=BgpConfig(64999))
    assert group_for(other, "192.0.2.1", ["192.0.2.9"]) == EvpnGroup(64999, "192.0.2.1", ("192.0.2.9",))


def test_router_ids_are_addresses_and_differ() -> None:
    assert router_id_for("192.0.2.1") == "192.0.2.1"
    derived = {router_id_for(f"2001:db8::{number:x}") for number in range(1, 3000)}
    assert len(derived) == 2999
    assert all(1 <= int(ipaddress.IPv4Address(each)) >> 24 <= 126 for each in derived)


def test_large_tables_are_parsed() -> None:
    hosts, macs = 300, 30_000
    rows = {
        f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}": {
            "type": "remote", "remoteVtep": f"10.0.{number % hosts >> 8}.{number % hosts & 255}",
            "localSequence": 0, "remoteSequence": 2, "isDuplicate": False,
        }
        for number in range(macs)
    }  # fmt: skip
    peers = {f"10.0.{n >> 8}.{n & 255}": {"remoteAs": 65000, "bgpState": "Active"} for n in range(hosts)}
    flood = [{"ip": address, "flood": "HER"} for address in peers]
    vni = {"vni": 7, "vxlanInterface": "vx0", "vtepIp": "10.0.9.9", "remoteVteps": flood}
    found = parse("10.3", ("zebra", "bgpd"), {
        "show running-config": "", "show bgp vrfs json": '{"vrfs": {}}',
        "show bgp neighbors json": json.dumps(peers), "show evpn vni detail json": json.dumps([vni]),
        "show evpn mac vni all json": json.dumps({"7": {"numMacs": macs, "macs": rows}}),
        "show evpn arp-cache vni all json": '{"7": {"numArpNd": 0}}',
    })  # fmt: skip
    assert (len(found.peers), len(found.macs), found.vnis[0].remotes) == (hosts, macs, tuple(sorted(peers)))
    assert {each.sequence for each in found.macs} == {2}
