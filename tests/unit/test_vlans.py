"""VLANs of bridge ports: netlink messages, and restoring them after a change."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pyroute2 import IPRoute

from core.model import BridgePort, BridgeSettings, PortVlan
from core.operations import AddVlan, DeleteVlan, Operation, SetBridge, affected, undo_of
from core.operations.links import CreateBridge, DeleteLink
from core.operations.values import from_record, to_record
from core.plan import Plan, plan
from core.plan.requests import RemoveNetwork
from core.topology import Topology
from tests.support.host_builder import HOST, HostBuilder

# The payload after ifinfomsg in messages of bridge(8) 6.15 (strace(1)), and their type.
MESSAGES = {
    ("add", AddVlan("p", 10, 20, untagged=True)): (19, "14001a00 080002000c000a00 0800020014001400"),
    ("add", AddVlan("p", 7, 7, pvid=True, untagged=True)): (19, "0c001a00 0800020006000700"),
    ("add", AddVlan("p", 40, 41, own=True)): (
        19,
        "1c001a00 0600000002000000 0800020008002800 0800020010002900",
    ),
    ("del", AddVlan("p", 7, 7, pvid=True, own=True)): (17, "14001a00 0600000002000000 0800020000000700"),
}


class Compiler:
    """An executor that keeps the message in place of sending it."""

    def __init__(self, iproute: IPRoute) -> None:
        self.iproute = iproute

    def index(self, place: object, link: str) -> int:
        return 4

    @contextmanager
    def rtnetlink(self, place: object) -> Iterator[IPRoute]:
        self.iproute.asyncore.batch = bytearray()
        yield self.iproute


@pytest.mark.parametrize("case", MESSAGES)
def test_messages_are_those_of_bridge(case: tuple[str, AddVlan]) -> None:
    verb, vlan = case
    msg_type, rest = MESSAGES[case]
    with IPRoute() as iproute:
        operation = vlan if verb == "add" else DeleteVlan(vlan)
        operation.execute(Compiler(iproute))  # type: ignore[arg-type]
        message = bytes(iproute.asyncore.batch)
    assert struct.unpack_from("=H", message, 4) == (msg_type,)
    body = message[16:]
    assert (body[0], struct.unpack_from("=i", body, 4)) == (7, (4,))
    assert body[16:] == bytes.fromhex(rest)


def test_commands() -> None:
    vlan = AddVlan("eth0", 7, 7, pvid=True, untagged=True)
    assert vlan.command() == "bridge vlan add dev eth0 vid 7 pvid untagged"
    assert vlan.inverse() == (DeleteVlan(vlan),)
    assert DeleteVlan(vlan).inverse() == (vlan,)
    assert DeleteVlan(vlan).command() == "bridge vlan del dev eth0 vid 7"
    both = AddVlan("br0", 40, 41, own=True)
    assert both.command() == "bridge vlan add dev br0 vid 40-41 self"
    assert DeleteVlan(both).command() == "bridge vlan del dev br0 vid 40-41 self"
    assert from_record(to_record(DeleteVlan(both))) == DeleteVlan(both)
    assert affected([vlan, DeleteVlan(both)]) == {"eth0 in the host", "br0 in the host"}


def removal(port: tuple[PortVlan, ...], **settings: object) -> tuple[Operation, ...]:
    """Return the steps that remove a NIC-bridged network whose NIC has those VLANs."""
    made = HostBuilder()
    bridge = made.link(
        HOST, "br-wire", "bridge", alias="vnet:net=wire kind=nic-bridged uplink=eth0",
        bridge=BridgeSettings(**settings),
    )  # fmt: skip
    made.link(HOST, "eth0", "physical", master=bridge.ifindex, port=BridgePort("forwarding", vlans=port))
    planned = plan(RemoveNetwork("wire"), Topology(made.snapshot()))
    assert isinstance(planned, Plan), planned
    return planned.steps


def vlans_in(steps: tuple[Operation, ...]) -> list[str]:
    return [step.command() for step in steps if isinstance(step, (AddVlan, DeleteVlan))]


def test_a_detached_port_has_only_the_default_vlan_until_undo() -> None:
    steps = removal((PortVlan(1, 1), PortVlan(7, 7, True, True), PortVlan(20, 30)))
    assert vlans_in(steps) == [
        "bridge vlan del dev eth0 vid 1",
        "bridge vlan del dev eth0 vid 7",
        "bridge vlan del dev eth0 vid 20-30",
        "bridge vlan add dev eth0 vid 1 pvid untagged",
    ]
    assert vlans_in(undo_of(steps)) == [
        "bridge vlan del dev eth0 vid 1",
        "bridge vlan add dev eth0 vid 20-30",
        "bridge vlan add dev eth0 vid 7 pvid untagged",
        "bridge vlan add dev eth0 vid 1",
    ]
    commands = [step.command() for step in steps]
    assert commands.index("ip link set eth0 nomaster") > commands.index("bridge vlan del dev eth0 vid 20-30")


@pytest.mark.parametrize("vlans", [(), (PortVlan(1, 1, True, True),)])
def test_default_vlans_need_no_steps(vlans: tuple[PortVlan, ...]) -> None:
    assert vlans_in(removal(vlans)) == []


def test_a_bridge_with_another_default_vlan() -> None:
    """The kernel only changes the default VLAN while filtering is off."""
    own = (PortVlan(5, 5, True, True), PortVlan(9, 9))
    steps = removal((PortVlan(5, 5, True, True),), vlan_filtering=True, vlan_default_pvid=5, vlans=own)
    assert vlans_in(steps) == ["bridge vlan del dev br-wire vid 9 self"]
    changes = [(one.setting, one.value, one.before) for one in steps if isinstance(one, SetBridge)]
    assert changes == [("vlan_filtering", 0, 1), ("vlan_default_pvid", 1, 5)]
    (gone,) = [step for step in steps if isinstance(step, DeleteLink)]
    assert isinstance(gone.again, CreateBridge) and not gone.again.vlan_filtering


def test_a_filtering_bridge_is_made_filtering_again() -> None:
    steps = removal((), vlan_filtering=True)
    (gone,) = [step for step in steps if isinstance(step, DeleteLink)]
    assert isinstance(gone.again, CreateBridge) and gone.again.vlan_filtering
