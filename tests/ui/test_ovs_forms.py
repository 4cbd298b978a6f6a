"""Create a network on Open vSwitch, and attach containers, by the forms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.host import ThrowawayHost
from tests.support.ovs import switch_of
from tests.ui.change_forms import (
    BRIDGE,
    NET,
    apply_form,
    closed,
    dialog_shows,
    host_dashboard,
    keys,
    select,
    shows,
    values,
)

pytestmark = pytest.mark.root


@pytest.fixture
def switch(
    inside_host: ThrowawayHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ThrowawayHost]:
    """Create a host with a running Open vSwitch, and enter it."""
    monkeypatch.setenv("OVS_RUNDIR", str(tmp_path))
    with switch_of(inside_host, tmp_path):
        yield inside_host


async def test_create_and_attach_with_a_vlan(switch: ThrowawayHost) -> None:
    name = switch.namespace("web")
    async with host_dashboard() as person:
        await keys(person, "n")
        await keys(person, *NET, "tab", *"ovs")
        assert "datapath" in values(person) and "vlans" not in values(person)
        following = list(values(person)).index("datapath") - list(values(person)).index("kind")
        await keys(person, *["tab"] * following, *"netdev")
        assert values(person)["datapath"] == "netdev"
        await shows(person, f"ovs-vsctl add-br {BRIDGE}")
        await apply_form(person)
        assert switch.run("ovs-vsctl list-br").split() == [BRIDGE]
        await keys(person, "a")
        await keys(person, *name, "tab", *NET, "tab", "tab", "tab", *"12")
        assert values(person)["vlan"] == "12"
        await shows(person, "tag=12")
        await apply_form(person)
        (port,) = switch.run(f"ovs-vsctl list-ports {BRIDGE}").split()
        assert switch.run(f"ovs-vsctl get port {port} tag").strip() == "12"


async def test_other_networks_have_no_vlan_field(switch: ThrowawayHost) -> None:
    name = switch.namespace("web")
    async with host_dashboard() as person:
        await keys(person, "n")
        await keys(person, *NET)
        assert "datapath" not in values(person)
        await apply_form(person)
        await keys(person, "a")
        await keys(person, *name, "tab", *NET)
        assert "vlan" not in values(person)


async def test_flows_of_a_bridge_are_shown_with_counters(switch: ThrowawayHost) -> None:
    switch.run("ovs-vsctl add-br br0 -- set bridge br0 datapath_type=netdev")
    switch.run("ovs-ofctl add-flow br0 priority=5,tcp,tp_dst=4711,actions=drop")
    switch.run(
        "ovs-vsctl add-port br0 vx0 tag=30 -- set interface vx0 type=vxlan options:remote_ip=192.0.2.9"
    )
    async with host_dashboard() as person:
        await select(person, "ovs", "br0")
        await shows(person, "vx0", "192.0.2.9", "30")
        await person.press("x")
        await shows(person, "tcp,tp_dst=4711", "0 packets", "NORMAL")
        await person.press("escape")
        await closed(person)
        switch.run("ovs-ofctl del-flows br0")
        await person.press("x")
        await shows(person, "br0 has no flow: it drops all packets")
        await person.press("escape")
        await closed(person)
        await select(person, "bridges", "br0")
        switch.run("ovs-vsctl del-br br0")
        await person.press("x")
        await dialog_shows(person, "can't read the flows of br0")
