"""Optional parts of the kernel work as without the fast path.

Tunnels, IPVS, flowtables, helpers, priorities. Each test runs without and with it.
"""

from __future__ import annotations

import re
import socket
import struct
from contextlib import closing
from dataclasses import dataclass

import pytest

from tests.kernel.fastlab import HOST4, MACS, V4, FastLab
from tests.kernel.streams import Stream, is_fast
from tests.support.fastpath import Talk
from tests.support.waiting import eventually

pytestmark = pytest.mark.root


@dataclass(frozen=True)
class Tunnel:
    """A kind of tunnel, and the addresses of its two ends."""

    kind: str
    near: str
    far: str
    family: int = 4


_TUNNELS = [
    Tunnel("gre", "10.77.0.1/30", "10.77.0.2/30"),
    Tunnel("ipip", "10.77.0.1/30", "10.77.0.2/30"),
    Tunnel("sit", "2001:db8:77::1/64", "2001:db8:77::2/64", 6),
]


@pytest.mark.parametrize(
    "tunnel", [pytest.param(each, id=each.kind, marks=pytest.mark.kernel_has(each.kind)) for each in _TUNNELS]
)
def test_packets_routed_into_a_tunnel_are_left_to_the_kernel(lab: FastLab, tunnel: Tunnel) -> None:
    for inside, here, there, own in (
        ("host", HOST4, V4["world"], tunnel.near),
        ("world", V4["world"], HOST4, tunnel.far),
    ):
        lab.run(f"ip link add t9 type {tunnel.kind} local {here} remote {there}", inside=inside)
        lab.run(f"ip addr add {own} dev t9{' nodad' * (tunnel.family == 6)}", inside=inside)
        lab.run("ip link set t9 up", inside=inside)
    with Stream(lab, "a", "world", tunnel.far.split("/")[0], family=tunnel.family) as flow:
        assert flow.flows(300)
        assert lab.counted() == 0
        flow.stop()
        assert flow.lost() == []
        assert [source for source, _ in flow.there.sources] == [tunnel.near.split("/")[0]]


# setsockopt(2) of IPVS: struct ip_vs_service_user, struct ip_vs_dest_user of linux/ip_vs.h.
_ADD_SERVICE, _FLUSH, _ADD_DESTINATION = 1154, 1157, 1159
_SERVICE = struct.Struct("=Hxx4s2sxxI16sII4s")
_DESTINATION = struct.Struct("=4s2sxxIiII")


@pytest.mark.kernel_has("ipvs")
def test_ipvs_pauses_it_and_its_services_work(lab: FastLab) -> None:
    port, to = (struct.pack(">H", each) for each in (6900, 6001))
    service = _SERVICE.pack(
        socket.IPPROTO_UDP, socket.inet_aton(HOST4), port, 0, b"rr", 0, 0, socket.inet_aton("255.255.255.255")
    )
    with (
        Stream(lab, "a", "far", V4["far"]) as flow,
        closing(lab.socket("host", socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)) as control,
    ):
        assert flow.flows()
        assert is_fast(lab, "v-a", "up0")
        control.setsockopt(socket.SOL_IP, _ADD_SERVICE, service)
        control.setsockopt(
            socket.SOL_IP,
            _ADD_DESTINATION,
            service + _DESTINATION.pack(socket.inet_aton(V4["a"]), to, 0, 1, 0, 0),
        )
        if lab.fast:
            assert eventually(lambda: "IPVS" in "".join(lab.fast.status()["reasons"]))
        with Stream(lab, "far", "a", HOST4, port=6001, to=6900) as balanced:
            assert balanced.flows(300)
        assert flow.flows()
        control.setsockopt(socket.SOL_IP, _FLUSH, b"")
        assert is_fast(lab, "v-a", "up0")


_BULK, _BY_DEFAULT = 3, 2  # bands of prio: for a type of service of 8 (throughput), and for none


@pytest.mark.kernel_has("prio")
@pytest.mark.parametrize(("updates", "band"), [(1, _BULK), (0, _BY_DEFAULT)])
def test_the_type_of_service_chooses_the_queue(lab: FastLab, updates: int, band: int) -> None:
    """By the packet's priority, unless net.ipv4.ip_forward_update_priority is 0."""
    lab.run("tc qdisc add dev up0 root handle 1: prio")
    lab.run(f"sysctl -qw net.ipv4.ip_forward_update_priority={updates}")
    with Stream(lab, "a", "far", V4["far"]) as flow:
        flow.client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 8)
        assert flow.flows(600)  # the sysctl is read once a second
        assert is_fast(lab, "v-a", "up0")
        before = _queued(lab)
        assert flow.flows(300)
        grown = {each: packets - before[each] for each, packets in _queued(lab).items()}
    assert grown.pop(band) >= 300
    assert sum(grown.values()) < 50


def _queued(lab: FastLab) -> dict[int, int]:
    """Return packets by band of the queueing discipline at up0."""
    lines = lab.run("tc -s class show dev up0")
    found = re.findall(r"class prio 1:(\d+) .*?Sent \d+ bytes (\d+) pkt", lines, re.DOTALL)
    return {int(band): int(packets) for band, packets in found}


@pytest.mark.needs("ebtables")
@pytest.mark.parametrize(("chain", "there"), [("FORWARD", "b"), ("INPUT", "far")])
def test_rules_of_ebtables_stop_bridged_and_routed_frames(lab: FastLab, chain: str, there: str) -> None:
    with Stream(lab, "a", there, V4[there]) as flow:
        assert flow.flows()
        assert is_fast(lab, "v-a")
        lab.run(f"ebtables -A {chain} -s {MACS['a']} -p IPv4 --ip-protocol udp -j DROP")
        assert flow.is_cut(flow.there)
        lab.run(f"ebtables -D {chain} -s {MACS['a']} -p IPv4 --ip-protocol udp -j DROP")
        assert flow.flows()
        assert is_fast(lab, "v-a")


_FTP = """
table ip ftp {
  ct helper it { type "ftp" protocol tcp; }
  chain in { type filter hook prerouting priority 0; tcp dport 21 ct helper set "it"; }
  chain pass { type filter hook forward priority 5; }
}
"""


@pytest.mark.kernel_has("ftp_helper")
def test_a_connection_expected_by_a_helper_belongs_to_the_helper(lab: FastLab) -> None:
    """The kernel forwards what FTP's helper reads; the data connection is accelerated.

    For rules it still belongs to the helper.
    """
    lab.run_with("nft -f -", _FTP)
    with Talk(lab.host, "a", "far", V4["far"], port=21) as control:
        for line in (b"220 Hello\r\n", b"227 Entering Passive Mode (198,51,100,2,27,88).\r\n"):
            control.server.sendall(line)
            assert control.client.recv(100) == line
        assert "dport=7000" in lab.run("conntrack -L expect")
        before = lab.counted("v-a")
        control.say(100)
        assert lab.counted("v-a") == before
        with Talk(lab.host, "a", "far", V4["far"], port=27 * 256 + 88) as data:
            data.say(100)  # fast where the kernel doesn't give it the helper as well
            lab.run(["nft", 'add rule ip ftp pass ct helper "ftp" drop'])
            data.server.settimeout(2)
            data.client.send(b"nothing of this arrives")
            with pytest.raises(TimeoutError):
                data.server.recv(100)


_OFFLOAD = """
table inet off {
  flowtable f { hook ingress priority 0; devices = { docker0, up0 }; }
  chain pass { type filter hook forward priority 5; meta l4proto udp flow add @f; }
}
"""


def _is_offloaded(lab: FastLab) -> bool:
    return any("[OFFLOAD]" in line for line in lab.conntrack("dport=6000"))


@pytest.mark.kernel_has("flowtable")
def test_flows_in_a_flowtable_stay_there(lab: FastLab) -> None:
    lab.run_with("nft -f -", _OFFLOAD)
    with Stream(lab, "a", "far", V4["far"]) as flow:
        assert flow.flows()
        assert eventually(lambda: _is_offloaded(lab))
        if lab.fast:
            assert eventually(lambda: "flow" in "".join(lab.fast.status()["reasons"]))
        lab.run("nft flush chain inet off pass")
        if lab.fast:
            assert eventually(lab.fast.is_on)
        assert flow.flows(300)
        forwarded = lab.counted()
        # On a slow machine the flowtable may have given it back.
        assert forwarded == 0 or not _is_offloaded(lab)
        lab.run("nft delete table inet off")
        assert is_fast(lab, "v-a", "up0")
