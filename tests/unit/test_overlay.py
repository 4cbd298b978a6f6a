"""Overlays of snapshots: MACs, their addresses, findings and events."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from core.diagnose.overlay import equal_vnis, too_large_mtus
from core.diff import changes
from core.model import BridgePort, FdbEntry, Link
from core.model.overlay import BgpPeer, EvpnNeighbor, Frr, Vni
from core.overlay import Overlay, OverlayMac, overlays
from core.topology import Topology
from tests.support.host_builder import HOST, HostBuilder

NEAR, FAR = "192.0.2.7", "192.0.2.8"
MAC = "02:00:00:00:08:01"


class Host(HostBuilder):
    """A host whose bridge br-blue has a tunnel and the port tap0."""

    def __init__(self) -> None:
        super().__init__()
        self.link(HOST, "eth0", "physical", ("192.0.2.1/24",))
        self.blue = self.bridge("br-blue", ("10.0.0.1/24",))
        enslaved = {"master": self.blue.ifindex, "port": BridgePort("forwarding")}
        self.tap = self.link(HOST, "tap0", "tun", **enslaved)
        self.tunnel = self.vxlan("vx42", mtu=1450, **enslaved)
        self.fdb[HOST] = []

    def vxlan(self, name: str, ns: int = HOST, udp_port: int = 4789, **fields: Any) -> Link:
        details = {"vni": 42, "local": "192.0.2.1", "port": udp_port}
        return self.link(ns, name, "vxlan", details=details, **fields)

    def remote(self, mac: str, host: str, link: Link | None = None) -> None:
        """Let the tunnel know a MAC behind another host."""
        link = link or self.tunnel
        self.fdb[link.ns].append(FdbEntry(mac, link.ifindex, None, flags=("self",), dst=host))

    def move(self, mac: str, host: str) -> None:
        """Let a MAC be behind another host than before."""
        self.fdb[HOST] = [one for one in self.fdb[HOST] if one.mac != mac]
        self.remote(mac, host)

    def topology(self, **fields: Any) -> Topology:
        return Topology(self.snapshot(**fields))

    def overlay(self, **fields: Any) -> Overlay:
        (found,) = overlays(self.topology(**fields))
        return found


def macs_of(overlay: Overlay, address: str) -> dict[str, OverlayMac]:
    (host,) = (one for one in overlay.hosts if one.address == address)
    return {mac.mac: mac for mac in host.macs}


@pytest.mark.parametrize(
    ("link", "vni", "known"), [("vx42", 42, True), ("vx9", 42, False), ("vx42", 9, False)]
)
def test_addresses_that_only_frr_knows(link: str, vni: int, known: bool) -> None:
    host = Host()
    host.remote(MAC, FAR)
    neighbor = EvpnNeighbor(vni, "10.0.0.9", MAC, FAR)
    frr = Frr(True, "10.3", vnis=(Vni(42, link, "br-blue", "192.0.2.1"),), neighbors=(neighbor,))
    assert macs_of(host.overlay(frr=frr), FAR)[MAC].addresses == (("10.0.0.9",) if known else ())


def test_the_gateway_is_on_each_host() -> None:
    host = Host()
    host.remote(MAC, FAR)
    host.remote(host.blue.mac, FAR)
    found = macs_of(host.overlay(), FAR)
    assert found[host.blue.mac].is_gateway and not found[MAC].is_gateway


def test_macs_that_a_port_of_this_host_learned() -> None:
    host = Host()
    host.fdb[HOST] += [
        FdbEntry("02:00:00:00:00:05", host.tap.ifindex, host.blue.ifindex),
        FdbEntry(host.tap.mac, host.tap.ifindex, host.blue.ifindex, state="permanent"),
    ]
    found = macs_of(host.overlay(), "192.0.2.1")
    assert set(found) == {host.blue.mac, "02:00:00:00:00:05"}
    assert found["02:00:00:00:00:05"] == OverlayMac("02:00:00:00:00:05", "learned", link=host.tap.key)


# ---- findings


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("vx42", "set the MTU of br-blue to 1450 on this host, then on the others"),
        ("flannel.1", "set the MTU of flannel to 1450"),
        ("vxlan.calico", "set the MTU of Calico to 1450"),
    ],
)
def test_the_mtu_of_other_programs_is_left_to_them(name: str, advice: str) -> None:
    host = Host()
    tunnel = host.tunnel if name == "vx42" else host.vxlan(name, udp_port=8472)
    host.links[HOST][tunnel.ifindex] = replace(tunnel, mtu=1500)
    host.remote(MAC, FAR, tunnel)
    (found,) = too_large_mtus(host.topology())
    assert (found.advice, found.fix is None) == (advice, name != "vx42")


@pytest.mark.parametrize("same_underlay", [True, False])
def test_equal_vnis_of_separate_underlays_are_no_finding(same_underlay: bool) -> None:
    host = Host()
    inner = host.namespace(HOST + 1)
    host.vxlan("other", HOST if same_underlay else inner, udp_port=8472)
    assert len(overlays(host.topology())) == 2
    assert len(list(equal_vnis(host.topology()))) == same_underlay


# ---- events


def events(before: Topology, after: Topology) -> list[str]:
    return [one.sentence for one in changes(before.snapshot, after.snapshot, 0.0)]


def test_the_gateway_does_not_move() -> None:
    """Each host's gateway sends with the same MAC, so the tunnel learns it again and again."""
    host = Host()
    for mac in (MAC, host.blue.mac):
        host.remote(mac, NEAR)
    before = host.topology()
    for mac in (MAC, host.blue.mac):
        host.move(mac, FAR)
    moved = [one for one in events(before, host.topology()) if "moved" in one]
    assert moved == [f"MAC {MAC} moved from {NEAR} to {FAR} in the overlay br-blue"]


@pytest.mark.parametrize("version", ["", "10.3"])
def test_sessions_found_at_first_are_not_new(version: str) -> None:
    host = Host()
    session = BgpPeer(FAR, 65000, "Established")
    found = events(
        host.topology(frr=Frr(True, version)), host.topology(frr=Frr(True, "10.3", peers=(session,)))
    )
    assert found == ([f"the BGP session with {FAR} is established"] if version else [])
