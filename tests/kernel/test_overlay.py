"""Check static VXLAN overlays between hosts by real packets.

The rest is compared with the state of the kernel.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from typing import Any

import pytest

from core.plan.vxlan import gateway_mac, range_of, subnet_by_name, vni_by_name
from tests.support.machine import Machine, link, machine_state, ok, refused
from tests.support.underlay import (
    Underlay,
    addresses_of,
    container,
    flood_list,
    joined,
    overlay_state,
    reaches,
    underlay,
    wait_for_ping,
)

pytestmark = pytest.mark.root

VNI = vni_by_name("blue")
TUNNEL = f"vx{VNI}"
CREATE = "network create blue --kind overlay --remote 192.0.2.2"


@pytest.fixture
def three() -> Iterator[Underlay]:
    """Start three hosts that have joined the overlay `blue`."""
    with joined(3) as found:
        yield found


def details(host: Machine, name: str) -> Any:
    """Return the attributes of a link's kind."""
    return link(host, name)["linkinfo"]["info_data"]


def test_containers_of_all_hosts_reach_each_other(three: Underlay) -> None:
    ends = [
        (host, f"c{number}", container(host, f"c{number}", "blue")) for number, host in enumerate(three.hosts)
    ]
    for host, name, _ in ends:
        for _, _, address in ends:
            wait_for_ping(host, name, address)
    assert len({address for _, _, address in ends}) == 3


def test_hosts_agree_without_talking(three: Underlay) -> None:
    for host in three.hosts:
        own = three.address(host)
        assert (details(host, TUNNEL)["id"], details(host, TUNNEL)["local"]) == (VNI, own)
        assert details(host, TUNNEL)["port"] == 4789
        assert flood_list(host, TUNNEL) == {three.address(one) for one in three.hosts} - {own}
        bridge = link(host, "br-blue")
        assert bridge["address"] == gateway_mac(VNI)
        assert [one["local"] for one in bridge["addr_info"] if one["scope"] == "global"] == [gateway()]
        assert bridge["mtu"] == link(host, TUNNEL)["mtu"] == 1450


def gateway() -> str:
    """Return the gateway of blue."""
    return subnet_by_name("blue", 4).removesuffix("0/20") + "1"


def test_addresses_are_of_each_hosts_range(three: Underlay) -> None:
    for number, host in enumerate(three.hosts):
        own = ipaddress.ip_network(range_of(subnet_by_name("blue", 4), three.address(host)))
        assert ipaddress.ip_address(container(host, f"c{number}", "blue")) in own


def test_the_largest_packet_fits_and_no_larger_one(three: Underlay) -> None:
    one, other, _ = three.hosts
    container(one, "a", "blue")
    address = container(other, "b", "blue")
    wait_for_ping(one, "a", address, 1450 - 28)
    assert not reaches(one, "a", address, 1450 - 27)


def test_requests_for_the_gateway_stay_on_the_host(three: Underlay) -> None:
    """A request for the gateway is answered here, and doesn't cross the tunnel."""
    one, other, _ = three.hosts
    container(one, "a", "blue")
    watch = f"type filter hook ingress device {TUNNEL} priority 0"
    other.run("nft add table netdev watched")
    other.run(["nft", f"add chain netdev watched crossed {{ {watch}; }}"])
    other.run(f"nft add rule netdev watched crossed arp daddr ip {gateway()} counter")
    wait_for_ping(one, "a", gateway())
    one.run("ip neigh flush dev eth0", "a")
    wait_for_ping(one, "a", gateway())
    assert "counter packets 0 bytes 0" in other.run("nft list chain netdev watched crossed")


def test_the_outside_sees_the_local_host(three: Underlay) -> None:
    """Traffic to the outside is translated at the host of the container."""
    one, other, outside = three.hosts
    container(one, "a", "blue")
    wait_for_ping(one, "a", three.address(outside))
    tracked = outside.run("conntrack -L -p icmp")
    assert f"src={three.address(one)} dst={three.address(outside)}" in tracked
    assert three.address(other) not in tracked


def test_another_host_joins_and_leaves() -> None:
    with underlay(3) as found:
        one, other, third = found.hosts
        ok(one, CREATE)
        ok(other, "network join blue --remote 192.0.2.1")
        ok(third, f"network join blue {found.remotes()}")
        assert flood_list(one, TUNNEL) == {"192.0.2.2"}
        assert flood_list(third, TUNNEL) == {"192.0.2.1", "192.0.2.2"}
        for host in (one, other):
            ok(host, f"network join blue {found.remotes()}")
        assert flood_list(one, TUNNEL) == {"192.0.2.2", "192.0.2.3"}
        container(one, "a", "blue")
        address = container(third, "b", "blue")
        wait_for_ping(one, "a", address)
        ok(one, "network leave blue --remote 192.0.2.2")
        assert flood_list(one, TUNNEL) == {"192.0.2.3"}
        ok(third, "network leave blue")
        assert TUNNEL not in third.run("ip -br link") and "br-blue" not in third.run("ip -br link")
        assert not reaches(one, "a", address)


@pytest.mark.parametrize(
    "command",
    [
        "network join blue --remote 192.0.2.9", "network leave blue --remote 192.0.2.2",
        "network leave blue", "network rm blue",
    ],
)  # fmt: skip
def test_undo_restores_everything(command: str) -> None:
    with underlay(1) as found:
        (host,) = found.hosts
        ok(host, "network create blue --kind overlay --remote 192.0.2.2 --remote 192.0.2.3 --ipv6")
        container(host, "a", "blue")
        before = overlay_state(host)
        ok(host, command)
        assert overlay_state(host) != before
        ok(host, "undo")
        assert overlay_state(host) == before


def test_undo_of_creation_leaves_nothing() -> None:
    with underlay(1) as found:
        (host,) = found.hosts
        before = machine_state(host)
        ok(host, CREATE)
        ok(host, "undo")
        assert machine_state(host) == before


def test_ipv6_underlay_and_dual_stack() -> None:
    with underlay(2, family=6) as found:
        one, other = found.hosts
        for host in found.hosts:
            ok(host, f"network join green --ipv6 {found.remotes()}")
        assert link(one, "br-green")["mtu"] == 1430
        container(one, "a", "green")
        container(other, "b", "green")
        for address in addresses_of(other, "b"):
            wait_for_ping(one, "a", address, 1430 - (48 if ":" in address else 28))


def test_export_and_apply_agree() -> None:
    with underlay(2) as found:
        one, other = found.hosts
        ok(one, f"network join blue {found.remotes()} --ipv6")
        container(one, "a", "blue")
        file = ok(one, "export")
        assert "done" not in ok(one, "apply - --yes", text=file)
        before = overlay_state(one)
        ok(one, "network rm blue")
        ok(one, "apply - --yes", text=file)
        assert overlay_state(one) == before
        ok(other, "network create blue --kind overlay --remote 192.0.2.9 --ipv6")
        changed = file.replace('local = "192.0.2.1"', 'local = "192.0.2.2"').replace(
            'remotes = ["192.0.2.2"]', 'remotes = ["192.0.2.1"]'
        )
        changed = "\n".join(
            line for line in changed.split("[container")[0].splitlines() if "ranges" not in line
        )
        ok(other, "apply - --yes", text=changed)
        assert flood_list(other, TUNNEL) == {"192.0.2.1"}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--remote nowhere", "isn't the address of a host"),
        ("--remote 203.0.113.9", "no route to 203.0.113.9"),
        ("--remote 192.0.2.2 --remote 2001:db8::2", "addresses of one family"),
        ("--vni 16777216 --remote 192.0.2.2", "out of range"),
        ("--local 192.0.2.77 --remote 192.0.2.2", "is not an address of this host"),
        ("--remote 192.0.2.17 --subnet 10.9.0.0/24", "would both assign addresses of 10.9.0.16/28"),
        ("--range 10.8.0.0/28 --remote 192.0.2.2 --subnet 10.9.0.0/24", "is not in 10.9.0.0/24"),
        ("", "no default route"),
    ],
)  # fmt: skip
def test_refusals_say_why_and_change_nothing(words: str, reason: str) -> None:
    with underlay(1) as found:
        (host,) = found.hosts
        before = machine_state(host)
        error = refused(host, "network", "create", "blue", "--kind", "overlay", *words.split())
        assert reason in error and error.startswith("vnet-tui: can't create the network blue")
        assert machine_state(host) == before


def test_a_vni_in_use_is_refused() -> None:
    with underlay(1) as found:
        (host,) = found.hosts
        host.run("ip link add flannel.1 type vxlan id 77 local 192.0.2.1 dstport 4789")
        error = refused(
            host, *["network", "create", "blue", "--kind", "overlay", "--vni", "77", "--remote", "192.0.2.2"]
        )
        assert "the VNI 77 is used by the link flannel.1" in error


def test_a_large_mtu_is_warned_of() -> None:
    with underlay(1) as found:
        (host,) = found.hosts
        made = host.vnet(
            *[
                "network",
                "create",
                "blue",
                "--kind",
                "overlay",
                "--mtu",
                "1500",
                "--remote",
                "192.0.2.2",
                "--dry-run",
                "--json",
            ]
        )
        assert any("larger packets are lost" in one for one in json.loads(made.stdout)["warnings"])


def test_overlays_are_not_joined_with_other_networks(three: Underlay) -> None:
    host = three.hosts[0]
    ok(host, "network create shop")
    assert "on other hosts couldn't answer" in refused(host, "network", "join", "blue", "shop")
