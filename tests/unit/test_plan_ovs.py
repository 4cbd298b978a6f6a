"""Plans for bridges of Open vSwitch as the kernel's datapath has them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from core.model import OvsBridge, OvsInterface, OvsPort, Problem
from core.operations import (
    DeleteLink,
    Operation,
    OvsAddBridge,
    OvsAddPort,
    OvsDeleteBridge,
    OvsDeletePort,
    OvsSetMtu,
    SetLink,
    SetOffloads,
)
from core.plan import Plan, Refused, plan
from core.plan.requests import Attach, ChangeMtu, CreateNetwork, Detach, RemoveNetwork, Request
from core.topology import Topology
from tests.support.host_builder import HOST, HostBuilder

TAG = "vnet:net=sw kind=ovs subnet=10.9.0.0/24 gateway=10.9.0.1"
WEB_TAG = "vnet:of=netns:web net=sw link=eth0 vlan=10 address=10.9.0.2/24"
WEB, DB = 70, 71


def topology(**more: Any) -> Topology:
    """Return a network with web in VLAN 10; ovs-system is the master of its port."""
    made = HostBuilder()
    system = made.link(HOST, "ovs-system", "ovs-port")
    own = made.link(HOST, "br-sw", "ovs-port", ["10.9.0.1/24"])
    for ns, name in ((WEB, "web"), (DB, "db")):
        made.namespace(ns, names=(name,))
        made.container("netns", name, ns, id=name, pid=None)
    outer = made.wire(WEB, own, "v-web", ["10.9.0.2/24"])
    made.links[HOST][outer.ifindex] = replace(outer, master=system.ifindex, port=None, alias=WEB_TAG)
    ports = (
        OvsPort("br-sw", interfaces=(OvsInterface("br-sw", "internal", own.ifindex),)),
        OvsPort("v-web", 10, interfaces=(OvsInterface("v-web", "system", outer.ifindex),)),
    )
    switch = OvsBridge("br-sw", "system", ports=ports, external_ids={"vnet": TAG})
    return Topology(made.snapshot(**({"ovs": (switch,)} | more)))


def steps(request: Request, of: Topology | None = None) -> tuple[Operation, ...]:
    found = plan(request, of or topology())
    assert isinstance(found, Plan), found
    return found.steps


def masters(found: tuple[Operation, ...]) -> list[Operation]:
    return [step for step in found if isinstance(step, SetLink) and step.attribute == "master"]


def test_detaching_is_left_to_open_vswitch() -> None:
    found = steps(Detach("web", "sw"))
    port = OvsDeletePort("br-sw", "v-web", OvsAddPort("br-sw", "v-web", 10))
    assert port in found and masters(found) == []
    (deleted,) = [step for step in found if isinstance(step, DeleteLink)]
    assert found.index(port) < found.index(deleted), "the entry must not outlive its link"


def test_attaching_needs_no_other_checksums() -> None:
    found = steps(Attach("db", "sw", vlan=20))
    assert OvsAddPort("br-sw", "v-db", 20) in found and masters(found) == []
    assert not [step for step in found if isinstance(step, SetOffloads)]


def test_the_kernels_datapath_is_the_default() -> None:
    found = steps(CreateNetwork("new", "ovs", ("10.8.0.0/24",)))
    (made,) = [step for step in found if isinstance(step, OvsAddBridge)]
    assert (made.name, made.datapath) == ("br-new", "system") and "datapath" not in made.command()


def test_removing_deletes_ports_before_the_bridge() -> None:
    found = [
        step for step in steps(RemoveNetwork("sw")) if isinstance(step, (OvsDeletePort, OvsDeleteBridge))
    ]
    assert [type(step) for step in found] == [OvsDeletePort, OvsDeleteBridge]
    assert masters(steps(RemoveNetwork("sw"))) == []


def test_the_bridges_mtu_is_requested() -> None:
    found = steps(ChangeMtu("sw", 1400))
    assert [step.name for step in found if isinstance(step, OvsSetMtu)] == ["br-sw"]
    assert {step.name for step in found if isinstance(step, SetLink)} == {"v-web", "eth0"}


def test_ports_that_could_not_be_read_are_refused() -> None:
    problem = Problem("ovs", "can't read the Open vSwitch bridges", "database connection failed", "start it")
    stopped = topology(ovs=(), part_problems={"ovs": (problem,)})
    found = plan(Detach("web", "sw"), stopped)
    assert isinstance(found, Refused)
    assert found.reasons == (
        "can't detach web from sw: v-web is a port of Open vSwitch: Open vSwitch isn't running. "
        "Try: systemctl start openvswitch-switch",
    )


def test_wrong_requests_are_refused() -> None:
    for request, words in (
        (Attach("db", "sw", vlan=4095), "out of range"),
        (Attach("db", "sw", vlan=-1), "out of range"),
        (CreateNetwork("new", "ovs", datapath="dpdk"), "unknown datapath"),
        (CreateNetwork("new", "nat", datapath="netdev"), "only an OVS network"),
        (CreateNetwork("new", "ovs", vlan_filtering=True), "always filters"),
    ):
        found = plan(request, topology())
        assert isinstance(found, Refused) and words in found.reasons[0], request
