"""BGP sessions of FRRouting in the overlay view, its findings and events."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from core.diff import changes
from core.plan.vxlan import vni_by_name
from core.serialize import unpack
from tests.kernel.test_frr import FLOOD, add_neighbour, destinations, execute, join, operation, with_network
from tests.kernel.test_overlay_evpn import TUNNEL, Fabric
from tests.support.evpn import VNI, EvpnHost, Underlay
from tests.support.machine import link, ok, read_json
from tests.support.underlay import container, underlay
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.root, pytest.mark.needs("frr")]


@pytest.fixture
def three() -> Iterator[list[EvpnHost]]:
    """Yield three hosts with a network and a container each, joined by EVPN."""
    with Underlay(3) as underlay:
        hosts = with_network(underlay)
        join(hosts)
        yield hosts


def shown(host: EvpnHost) -> dict[str, Any]:
    """Return this host's overlay of `show overlay --json`."""
    done = host.vnet("show", "overlay", "--json")
    (found,) = [one for one in json.loads(done.stdout)["overlay"] if one["ns"] == host.inode]
    return found


def remotes(host: EvpnHost) -> dict[str, dict[str, Any]]:
    return {one["address"]: one for one in shown(host)["hosts"] if not one["local"]}


def findings(host: EvpnHost) -> list[str]:
    """Return the findings about sessions."""
    done = host.vnet("doctor", "--json")
    found = json.loads(done.stdout)["findings"]
    return [one["sentence"] for one in found if "BGP session" in one["sentence"]]


def test_sessions_hosts_and_macs_are_those_of_frr_and_the_kernel(three: list[EvpnHost]) -> None:
    first, second, third = three
    add_neighbour(second, "10.77.0.12", second.mac("c"))
    wait_until(lambda: destinations(first, second.mac("c")) == {second.address}, "the MAC")
    printed = first.frr.json("show bgp l2vpn evpn summary")["peers"]
    found = remotes(first)
    assert found.keys() == printed.keys() == {second.address, third.address}
    for address, one in found.items():
        session = one["session"]
        assert (session["state"], session["asn"]) == (printed[address]["state"], printed[address]["remoteAs"])
        assert 0 <= time.time() - session["up_since"] < 600
        assert one["flood"] is True and one["source"] == "extern_learn"
    macs = {one["mac"]: one for one in found[second.address]["macs"]}
    assert macs[second.mac("c")]["source"] == "extern_learn"
    wait_until(
        lambda: "10.77.0.12" in str(remotes(first)[second.address]["macs"]), "the address that FRR announced"
    )
    lines = first.vnet("show", "overlay", "--ns", "host").stdout.splitlines()
    row = next(line for line in lines if second.address in line)
    assert " up " in row and str(VNI) in row
    assert findings(first) == []


def test_a_lost_session_is_a_finding_and_an_event_until_it_is_back(three: list[EvpnHost]) -> None:
    first, second, third = three
    before = snapshot(first)
    second.frr.kill("bgpd")
    wait_until(lambda: not first.frr.is_established(second.address), "the lost session")
    wait_until(lambda: second.address not in destinations(first, FLOOD), "the withdrawn host")
    (sentence,) = findings(first)
    assert sentence.startswith(f"The BGP session with {second.address} isn't established")
    assert remotes(first)[second.address]["flood"] is False
    assert remotes(first)[third.address]["session"]["state"] == "Established"
    lost = snapshot(first)
    events = [one.sentence for one in changes(before, lost, 0.0)]
    assert any(one.startswith(f"the BGP session with {second.address} was lost") for one in events)
    assert f"host {second.address} was removed from the overlay br0" in events

    second.frr.start("bgpd")
    others = [first.address, third.address]
    execute(second, operation(second, others))
    wait_until(lambda: first.frr.is_established(second.address), "the session")
    wait_until(lambda: second.address in destinations(first, FLOOD), "the host")
    assert findings(first) == []
    events = [one.sentence for one in changes(lost, snapshot(first), 0.0)]
    assert f"the BGP session with {second.address} is established" in events


def snapshot(host: EvpnHost) -> Any:
    """Return what `dump` writes on a host."""
    path = f"/run/{host.name}.vnet"
    assert host.vnet("dump", path).returncode == 0
    return unpack(bytes.fromhex(host.run(["xxd", "-p", "-c0", path]).replace("\n", "")))


def test_an_overlay_of_vnet_by_evpn_is_known_without_traffic() -> None:
    with underlay(2) as under:
        fabric = Fabric(under)
        fabric.join()
        host, other = fabric.hosts
        container(host, "a", "blue")
        address = container(other, "b", "blue")

        def theirs() -> dict[str, Any]:
            (overlay,) = read_json(host, "show overlay")["overlay"]
            assert overlay["owner"] == "vnet-tui"
            return {one["mac"]: one for one in overlay["hosts"][1]["macs"]}

        mac = link(other, "eth0", "b")["address"]
        wait_until(lambda: theirs().get(mac, {}).get("addresses") == [address], "what FRR announces")
        assert theirs()[mac]["source"] == "extern_learn"
        found = json.loads(host.vnet("doctor", "--json").stdout)["findings"]
        assert not [one for one in found if one["kind"] in ("overlay", "neighbour", "address", "mtu")]
        text = " ".join(ok(host, f"why a {address}").split())
        assert f"goes through the tunnel {TUNNEL} to the host 192.0.2.2" in text


def test_an_address_that_frr_does_not_announce(three: list[EvpnHost]) -> None:
    first = three[0]
    mac = first.mac("c")

    def state() -> str:
        found = first.frr.json("show evpn arp-cache vni all")[str(VNI)]
        return str(found.get("10.77.0.11", {}).get("state"))

    def about() -> list[dict[str, Any]]:
        found = json.loads(first.vnet("doctor", "--json").stdout)["findings"]
        return [one for one in found if "doesn't announce 10.77.0.11 " in one["sentence"]]

    first.run("bridge link set dev v-c learning off")  # the container sends when it likes
    first.run(f"bridge fdb del {mac} dev v-c master", check=False)
    first.run(f"ip neigh replace 10.77.0.11 lladdr {mac} dev br0 nud permanent")
    wait_until(lambda: state() == "inactive", "an address without its MAC")
    (found,) = about()
    assert found["advice"].endswith(f"run: bridge fdb replace {mac} dev v-c master extern_learn")
    first.run(found["advice"].partition("run: ")[2])
    wait_until(lambda: state() == "active", "the announced address")
    assert about() == []


def test_hosts_that_have_not_joined_an_overlay_are_none_of_its_hosts() -> None:
    """A session belongs to all overlays; each host announces those that it has joined."""
    with underlay(2) as under:
        fabric = Fabric(under)
        fabric.join()
        one, other = fabric.hosts
        ok(one, f"network create green --kind overlay {under.peers()}")

        def hosts(name: str) -> list[str]:
            listed = {each["vni"]: each["hosts"] for each in read_json(one, "show overlay")["overlay"]}
            return [each["address"] for each in listed[vni_by_name(name)] if not each["local"]]

        wait_until(lambda: fabric.frr[one].established() == {under.address(other)}, "the session")
        assert (hosts("blue"), hosts("green")) == ([under.address(other)], [])
        ok(other, f"network join green {under.peers()}")
        wait_until(lambda: hosts("green") == [under.address(other)], "the other host")
