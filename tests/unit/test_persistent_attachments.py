"""Plans that change persistent attachments."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.model import OvsBridge, OvsInterface, OvsPort, Route
from core.operations import (
    AddAddress,
    AddRoute,
    ForgetAttachment,
    NetnsTarget,
    Operation,
    OvsAddPort,
    OvsDeletePort,
    PersistAttachment,
    undo_of,
)
from core.plan import Plan, Refused, plan, plan_all, vnet_state
from core.plan.requests import Attach, CreateNetwork, Detach, Join, Move, RemoveNetwork, Request, Separate
from core.topology import Topology
from tests.support.host_builder import HOST, HostBuilder

SHOP_TAG = "vnet:net=shop kind=nat subnet=10.9.0.0/24 gateway=10.9.0.1"
LAB_TAG = "vnet:net=lab kind=internal subnet=10.8.0.0/24 gateway=10.8.0.1"
APP, DB, PLAIN = 70, 71, 72
DB_TAG = "vnet:of=docker:db0 net=shop link=eth0 address=10.9.0.2/24"
LAB_DB_TAG = "vnet:of=docker:db0 net=lab link=eth1 address=10.8.0.2/24"
WIRING = (AddAddress("eth0", "10.9.0.2/24", NetnsTarget(pid=9, inode=9)),)
PERSISTENT = PersistAttachment("docker:db0", "shop", WIRING)


def topology() -> Topology:
    """Return containers: app, db on shop and lab, gone stopped, plain unmanaged."""
    made = HostBuilder()
    made.link(HOST, "eth0", "physical", ["192.0.2.2/24"])
    bridges = [
        made.bridge("br-shop", ["10.9.0.1/24"], alias=SHOP_TAG),
        made.bridge("br-lab", ["10.8.0.1/24"], alias=LAB_TAG),
    ]
    for inode, name in ((APP, "app"), (DB, "db")):
        made.namespace(inode, pids=(inode,))
        made.container("docker", name, inode, id=f"{name}0", pid=inode)
    made.container("docker", "gone", None, id="gone0", pid=None, state="exited")
    made.namespace(PLAIN, names=("plain",))
    made.container("netns", "plain", PLAIN, id="plain", pid=None)
    for bridge, port, address, tag in zip(
        bridges, ("v-db", "v-db-2"), ("10.9.0.2/24", "10.8.0.2/24"), (DB_TAG, LAB_DB_TAG), strict=True
    ):
        outer = made.wire(DB, bridge, port, [address])
        made.links[HOST][outer.ifindex] = replace(outer, alias=tag)
    made.routes[DB] = [Route(4, f"10.{net}.0.0/24", protocol="kernel") for net in (8, 9)]
    return Topology(made.snapshot())


def planned(*requests: Request, persistent: tuple[PersistAttachment, ...] = ()) -> Plan:
    found = plan_all(requests, topology(), persistent=persistent)
    assert isinstance(found, Plan), found
    return found


def attachment_steps(found: Plan) -> list[Operation]:
    return [step for step in found.steps if isinstance(step, (PersistAttachment, ForgetAttachment))]


def test_attachments_of_engine_containers_are_persistent() -> None:
    found = planned(Attach("app", "shop"))
    want = found.steps[-1]
    assert isinstance(want, PersistAttachment) and (want.container, want.network) == ("docker:app0", "shop")
    assert want.steps == tuple(step for step in found.steps if step in want.steps)
    assert [type(step).__name__ for step in want.steps] == [
        "CreateVeth", "SetLink", "SetLink", "AddAddress", "SetLink", "AddRoute",
    ]  # fmt: skip
    assert undo_of(found.steps)[0] == ForgetAttachment(want)


def test_attachments_of_unmanaged_containers_are_not() -> None:
    assert attachment_steps(planned(Attach("plain", "shop"))) == []


def test_detach_and_move_forget_the_attachment_first() -> None:
    found = planned(Detach("db", "shop"), persistent=(PERSISTENT,))
    assert attachment_steps(found) == [ForgetAttachment(PERSISTENT)] and found.steps[0] == ForgetAttachment(
        PERSISTENT
    )
    forgotten, wanted = attachment_steps(
        planned(CreateNetwork("side"), Move("db", "shop", "side"), persistent=(PERSISTENT,))
    )
    assert (
        forgotten == ForgetAttachment(PERSISTENT)
        and isinstance(wanted, PersistAttachment)
        and wanted.network == "side"
    )


def test_detaching_a_stopped_container_forgets_the_attachment() -> None:
    down = replace(PERSISTENT, container="docker:gone0")
    found = planned(Detach("gone", "shop"), persistent=(down,))
    assert found.steps == (ForgetAttachment(down),)
    refused = plan(Detach("gone", "shop"), topology())
    assert isinstance(refused, Refused)


def test_detaching_a_container_that_just_ended() -> None:
    """The kernel removes the veth pair some time after the namespace's last process."""
    found = topology().snapshot
    port = next(link for link in found.links() if link.name == "v-db")
    tag = "vnet:of=docker:gone0 net=shop link=eth0 address=10.9.0.3/24"
    lingering = replace(port, ifindex=99, name="v-gone", alias=tag, lower=2, lower_nsid=None)
    host = replace(found.nets[HOST], links=found.nets[HOST].links | {99: lingering})
    down = replace(PERSISTENT, container="docker:gone0")
    after = Topology(replace(found, nets=found.nets | {HOST: host}))
    made = plan_all((Detach("gone", "shop"),), after, persistent=(down,))
    assert isinstance(made, Plan) and made.steps == (ForgetAttachment(down),)


def test_removing_a_network_forgets_its_attachments() -> None:
    down = replace(PERSISTENT, container="docker:gone0")
    elsewhere = replace(PERSISTENT, network="lab")
    found = planned(RemoveNetwork("shop"), persistent=(PERSISTENT, down, elsewhere))
    assert attachment_steps(found) == [ForgetAttachment(PERSISTENT), ForgetAttachment(down)]
    assert any("gone is no longer attached to shop" in hit for hit in found.side_effects)


def test_a_stopped_container_keeps_its_address() -> None:
    steps = (AddAddress("eth0", "10.9.0.3/24", NetnsTarget(pid=9, inode=9)),)
    down = PersistAttachment("docker:gone0", "shop", steps)
    found = planned(Attach("plain", "shop"), persistent=(down,))
    assert [step.address for step in found.steps if isinstance(step, AddAddress)] == ["10.9.0.4/24"]
    back = planned(Attach("app", "shop"), persistent=(replace(down, container="docker:app0"),))
    assert [step.address for step in back.steps if isinstance(step, AddAddress)] == ["10.9.0.3/24"]
    removed = planned(Attach("plain", "shop"), persistent=(replace(down, container="docker:nobody"),))
    assert [step.address for step in removed.steps if isinstance(step, AddAddress)] == ["10.9.0.3/24"]


def test_routes_to_joined_networks_are_persistent() -> None:
    inside = NetnsTarget(pid=DB, inode=DB)
    lab = PersistAttachment("docker:db0", "lab", (AddAddress("eth1", "10.8.0.2/24", inside),))
    found = planned(CreateNetwork("side", subnets=("10.7.0.0/24",)), Join("lab", "side"), persistent=(lab,))
    (way,) = [step for step in found.steps if isinstance(step, AddRoute)]
    assert (way.dst, way.gateway, way.place) == ("10.7.0.0/24", "10.8.0.1", inside)
    longer = replace(lab, steps=(*lab.steps, way))
    assert attachment_steps(found) == [ForgetAttachment(lab), longer]
    again = planned(
        CreateNetwork("side", subnets=("10.7.0.0/24",)),
        Join("lab", "side"),
        Separate("lab", "side"),
        persistent=(lab,),
    )
    assert attachment_steps(again)[-1] == lab
    there = planned(Join("lab", "shop"), persistent=(lab,))
    assert not [step for step in there.steps if isinstance(step, AddRoute)], "it is on shop itself"


def test_on_open_vswitch_the_entry_of_the_last_run_is_removed_first() -> None:
    made = HostBuilder()
    made.link(HOST, "br-sw", "tun", ["10.9.0.1/24"])
    made.namespace(APP, pids=(APP,))
    made.container("docker", "app", APP, id="app0", pid=APP)
    tag = "vnet:net=sw kind=ovs subnet=10.9.0.0/24 gateway=10.9.0.1"
    lost = OvsPort("v-app", interfaces=(OvsInterface("v-app"),))
    switch = OvsBridge("br-sw", "netdev", ports=(lost,), external_ids={"vnet": tag})
    found = plan(Attach("app", "sw", vlan=7), Topology(made.snapshot(ovs=(switch,))))
    assert isinstance(found, Plan), found
    want = found.steps[-1]
    assert isinstance(want, PersistAttachment)
    assert (want.steps[0], want.steps[2]) == (
        OvsDeletePort("br-sw", "v-app"), OvsAddPort("br-sw", "v-app", 7)
    )  # fmt: skip
    assert want.steps[0] in found.steps


@pytest.mark.parametrize(
    "tag",
    [
        'vnet:net=sw kind=ovs subnet=10.9.0.0/24"; gateway=10.9.0.1', "vnet:net=s%22w kind=ovs",
        "vnet:net=sw kind=nat subnet=10.9.0.0/24 gateway=10.9.0.1", "net=sw", "vnet:kind=ovs",
        "vnet:net=sw kind=ovs subnet=10.9.0.0/24",
    ],
)  # fmt: skip
def test_a_malformed_tag_in_the_database_is_none(tag: str) -> None:
    made = HostBuilder()
    made.link(HOST, "br-sw", "tun", ["10.9.0.1/24"])
    snapshot = made.snapshot(ovs=(OvsBridge("br-sw", external_ids={"vnet": tag}),))
    assert vnet_state(snapshot, HOST).networks == {}
