"""Where frames arrive: bridges, their ports and VLANs, macvlan, and only the wanted namespaces."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.model import (
    BridgePort,
    BridgeSettings,
    FdbEntry,
    Link,
    OvsBridge,
    OvsInterface,
    OvsPort,
    PortVlan,
    link_ref,
)
from core.model.fix import FixPort, FixVlan
from core.reach.answer import Hop
from core.reach.segment import Attachment, Segments
from core.topology import Topology
from tests.support.host_builder import HOST, HostBuilder

A, B, C = HOST + 1, HOST + 2, HOST + 3


class Segment:
    """A bridge br0 of the host with containers A, B and C, whose ports can be changed."""

    def __init__(self, **bridge: Any) -> None:
        self.host = HostBuilder()
        self.host.namespace(HOST, is_host=True)
        settings = BridgeSettings(bridge_id="8000.02:42:00:00:00:01", **bridge)
        self.bridge = self.host.bridge("br0", ("10.0.0.1/24",), bridge=settings)
        for number, ns in enumerate((A, B, C), 2):
            self.host.namespace(ns)
            self.host.wire(ns, self.bridge, f"v{number}", (f"10.0.0.{number}/24",))

    def link(self, ns: int, name: str = "eth0") -> Link:
        return next(one for one in self.host.links[ns].values() if one.name == name)

    def change(self, name: str, ns: int = HOST, **fields: Any) -> Link:
        """Change a link; fields of BridgePort change its port."""
        link = self.link(ns, name)
        own = {key: fields.pop(key) for key in tuple(fields) if key in BridgePort.__dataclass_fields__}
        own.pop("state", None) if link.port is None else None
        port = replace(link.port, **own) if link.port else None
        self.host.links[ns][link.ifindex] = replace(link, port=port, **fields)
        return self.host.links[ns][link.ifindex]

    def segments(self) -> Segments:
        self.topology = Topology(self.host.snapshot())  # segments don't keep it
        return Segments(self.topology)

    def seen(self, ns: int = A) -> dict[tuple[int, str], str]:
        """Return where frames of a container's eth0 arrive, with what stops them ("" for nothing)."""
        found = self.segments().attachments(self.link(ns))
        result = {(one.link.ns, one.link.name): one.obstacle.subject if one.obstacle else "" for one in found}
        assert len(result) == len(found)
        return result


OPEN = {(HOST, "br0"): "", (B, "eth0"): "", (C, "eth0"): ""}


def test_frames_of_a_container_arrive_at_its_bridge_and_at_all_others() -> None:
    assert Segment().seen() == OPEN


def test_frames_of_the_bridge_itself_arrive_at_all_ports() -> None:
    made = Segment()
    found = made.segments().attachments(made.link(HOST, "br0"))
    assert [(one.link.ns, one.obstacle) for one in found] == [(A, None), (B, None), (C, None)]
    (crossing,) = found[0].crossings
    assert (crossing.entry, crossing.exit) == (None, made.link(HOST, "v2"))
    assert [one.name for one in found[0].links] == ["br0", "v2", "eth0"]


@pytest.mark.parametrize(
    ("both", "stopped"), [(("v2", "v3"), {(B, "eth0"): "v2 is isolated"}), (("v3", "v4"), {}), (("v2",), {})]
)
def test_two_isolated_ports_do_not_reach_each_other(
    both: tuple[str, ...], stopped: dict[tuple[int, str], str]
) -> None:
    """The bridge itself and ports that aren't isolated reach both."""
    made = Segment()
    for name in both:
        made.change(name, isolated=True)
    assert made.seen() == OPEN | stopped


@pytest.mark.parametrize("state", ["blocking", "listening", "learning", "disabled"])
def test_a_port_that_does_not_forward_stops_frames_at_either_side(state: str) -> None:
    made = Segment()
    made.change("v2", state=state)
    words = f"STP state of v2 is {state}"
    assert made.seen(A) == dict.fromkeys(OPEN, words)
    assert made.seen(B) == {(HOST, "br0"): "", (A, "eth0"): words, (C, "eth0"): ""}


def test_the_repair_of_a_port_waits_if_stp_may_have_opened_a_loop() -> None:
    made = Segment(stp=True, forward_delay=15.0)
    port = made.change("v2", state="blocking")
    (one, *_) = made.segments().attachments(made.link(A))
    assert one.obstacle is not None and one.obstacle.fix is not None
    assert FixPort(port.key, "state", True) in one.obstacle.fix.steps  # all ports lead to containers
    made.host.link(HOST, "up0", "physical", master=made.bridge.ifindex, port=BridgePort("forwarding"))
    (one, *_) = made.segments().attachments(made.link(A))
    assert one.obstacle is not None and one.obstacle.fix is not None
    assert one.obstacle.fix.steps == () and "wait up to 30 s" in one.obstacle.fix.sentence


def test_links_that_are_down_stop_frames() -> None:
    made = Segment()
    down = made.change("v3", admin_up=False, carrier=False)
    assert made.seen() == OPEN | {(B, "eth0"): "v3 is down"}
    found = next(one for one in made.segments().attachments(made.link(A)) if one.link.ns == B)
    assert found.obstacle is not None and found.obstacle.ref == link_ref(down.key)
    made.change("br0", admin_up=False)
    assert made.seen() == dict.fromkeys(OPEN, "br0 is down")


def test_a_locked_port_accepts_only_addresses_in_the_forwarding_table() -> None:
    made = Segment()
    made.change("v2", locked=True)
    assert made.seen() == OPEN  # HostBuilder.wire adds an entry for each container
    made.host.fdb[HOST].clear()
    assert made.seen() == dict.fromkeys(OPEN, "v2 is locked")
    assert made.seen(B) == {(HOST, "br0"): "", (A, "eth0"): "", (C, "eth0"): ""}


def test_hairpin_mode_sends_frames_back() -> None:
    made = Segment()
    made.change("v2", hairpin=True)
    assert made.seen() == OPEN | {(A, "eth0"): ""}


# ---- VLANs


def vlan(vid: int, end: int = 0, own: bool = True) -> tuple[PortVlan, ...]:
    return (PortVlan(vid, end or vid, pvid=own, untagged=own),)


def filtering(**vlans: tuple[PortVlan, ...]) -> Segment:
    """Return a segment that filters VLANs; ports and the bridge (`br0`) are in VLAN 1 by default."""
    made = Segment(vlan_filtering=True, vlans=vlans.pop("br0", vlan(1)))
    for name in ("v2", "v3", "v4"):
        made.change(name, vlans=vlans.get(name, vlan(1)))
    return made


def test_ports_of_different_vlans_do_not_reach_each_other() -> None:
    assert filtering().seen() == OPEN
    made = filtering(v2=vlan(5), v3=vlan(5))
    # The bridge's own link, which is in VLAN 1, doesn't get the frame.
    assert made.seen() == {
        (HOST, "br0"): "br0 isn't in VLAN 5", (B, "eth0"): "", (C, "eth0"): "v4 isn't in VLAN 5",
    }  # fmt: skip
    found = next(one for one in made.segments().attachments(made.link(A)) if one.link.ns == C)
    assert found.obstacle is not None and found.obstacle.fix is not None
    port = made.link(HOST, "v4")
    assert found.obstacle.fix.steps == (FixVlan(port.key, PortVlan(5, 5, True, True), True),)


def test_a_port_without_a_vlan_accepts_nothing() -> None:
    assert filtering(v2=()).seen() == dict.fromkeys(OPEN, "v2 has no VLAN")
    assert filtering(v3=()).seen() == OPEN | {(B, "eth0"): "v3 isn't in VLAN 1"}


def test_a_vlan_link_sends_tagged_frames_which_a_trunk_passes() -> None:
    made = filtering(v2=vlan(5, 9, own=False), v3=vlan(7))
    inner = made.link(A)
    tagged = made.host.link(A, "eth0.7", "vlan", lower=inner.ifindex, details={"id": 7})
    found = made.segments().attachments(tagged)
    assert {(one.link.ns, one.link.name) for one in found if one.obstacle is None} == {(B, "eth0")}
    wrong = made.host.link(A, "eth0.12", "vlan", lower=inner.ifindex, details={"id": 12})
    assert all(one.obstacle for one in made.segments().attachments(wrong))
    back = made.segments().attachments(made.link(B))
    assert {(one.link.ns, one.link.name) for one in back if one.obstacle is None} == {(A, "eth0.7")}


# ---- other links


def test_macvlan_links_reach_their_siblings_and_what_is_behind_the_parent() -> None:
    host = HostBuilder()
    host.namespace(HOST, is_host=True)
    parent = host.link(HOST, "up0", "physical", ("192.0.2.1/24",))
    for ns in (A, B):
        host.namespace(ns)
        host.link(ns, "eth0", "macvlan", lower=parent.ifindex, lower_nsid=0, details={"mode": "bridge"})
    inner = host.links[A][2]
    topology = Topology(host.snapshot())
    found = Segments(topology).attachments(inner)
    assert [(one.link.ns, one.link.name, one.outside) for one in found] == [
        (B, "eth0", False), (HOST, "up0", True)
    ]  # fmt: skip
    host.links[A][2] = replace(inner, details={"mode": "private"})
    topology = Topology(host.snapshot())
    found = Segments(topology).attachments(host.links[A][2])
    assert [(one.link.ns, one.outside) for one in found] == [(HOST, True)]


def test_a_wrong_forwarding_entry_misdirects_frames() -> None:
    made = Segment()
    port, other = made.link(HOST, "v3"), made.link(HOST, "v4")
    mac = made.link(B).mac
    at = next(one for one in made.segments().attachments(made.link(A)) if one.link.ns == B)
    assert made.segments().misdirected(at, mac) is None
    made.host.fdb[HOST] = [FdbEntry(mac, other.ifindex, made.bridge.ifindex, state="permanent")]
    wrong = made.segments().misdirected(at, mac)
    assert wrong is not None and wrong.subject == f"wrong forwarding entry for {mac}"
    made.host.fdb[HOST] = [FdbEntry(mac, port.ifindex, made.bridge.ifindex, state="permanent")]
    assert made.segments().misdirected(at, mac) is None


# ---- only the wanted namespaces


def random_host(rng: random.Random) -> HostBuilder:
    """Return up to three bridges, connected at random, and namespaces on them."""
    host = HostBuilder()
    host.namespace(HOST, is_host=True)
    bridges = [
        host.bridge(
            f"br{number}",
            bridge=BridgeSettings(vlan_filtering=rng.random() < 0.3, stp=rng.random() < 0.2, vlans=vlan(1)),
        )
        for number in range(rng.randint(1, 3))
    ]
    spaces = [host.namespace(HOST + number) for number in range(1, rng.randint(2, 7))]
    for place, ns in enumerate(spaces):
        for number in range(rng.choice((1, 1, 2))):
            host.wire(ns, rng.choice(bridges), f"v{place}-{number}", name=f"eth{number}")
        _add_inside(rng, host, ns, rng.choice(spaces))
    for number in range(rng.randrange(3)):
        _connect(rng, host, bridges, number)
    if rng.random() < 0.5:
        host.link(HOST, "up0", "physical", master=rng.choice(bridges).ifindex, port=BridgePort("forwarding"))
    for link in tuple(host.links[HOST].values()):
        if link.port is not None:
            host.links[HOST][link.ifindex] = replace(
                link, admin_up=rng.random() < 0.95, port=_random_port(rng)
            )
    return host


def _add_inside(rng: random.Random, host: HostBuilder, ns: int, other: int) -> None:
    """Add a VLAN link or a bridge of its own to a namespace, or a macvlan in another one."""
    kind = rng.choice(("", "", "vlan", "macvlan", "bridge"))
    inner = next(one for one in host.links[ns].values() if one.name == "eth0")
    if kind == "vlan":
        host.link(ns, "eth0.5", "vlan", lower=inner.ifindex, details={"id": 5})
    elif kind == "macvlan":
        name = f"m{len(host.links[other])}"
        host.link(other, name, "macvlan", lower=inner.ifindex, lower_nsid=ns, details={"mode": "bridge"})
    elif kind == "bridge":
        own = host.link(ns, "br", "bridge", bridge=BridgeSettings())
        host.links[ns][inner.ifindex] = replace(
            inner, master=own.ifindex, port=BridgePort("forwarding", hairpin=rng.random() < 0.2)
        )


def _connect(rng: random.Random, host: HostBuilder, bridges: Sequence[Link], number: int) -> None:
    """Connect two bridges of the host, which may be the same, by a veth pair."""
    first = len(host.links[HOST]) + 1
    for name, lower in ((f"x{number}", first + 1), (f"y{number}", first)):
        host.link(
            HOST, name, "veth", master=rng.choice(bridges).ifindex, lower=lower, port=BridgePort("forwarding")
        )


def _random_port(rng: random.Random) -> BridgePort:
    return BridgePort(
        rng.choice(("forwarding",) * 6 + ("blocking",)), isolated=rng.random() < 0.2,
        hairpin=rng.random() < 0.1, locked=rng.random() < 0.1,
        vlans=rng.choice((vlan(1), vlan(1), vlan(5), vlan(1, 9, own=False), ())),
    )  # fmt: skip


def relevant(found: Sequence[Attachment], wanted: frozenset[int]) -> list[Attachment]:
    return [one for one in found if one.link.ns in wanted or one.outside]


@given(st.randoms(use_true_random=False))
def test_wanted_namespaces_have_the_same_attachments(rng: random.Random) -> None:
    topology = Topology(random_host(rng).snapshot())
    spaces = sorted(topology.snapshot.nets)
    for link in topology.snapshot.links():
        if link.kind in ("loopback", "physical"):
            continue
        whole = Segments(topology).attachments(link)
        wanted = frozenset(rng.sample(spaces, rng.randint(0, min(3, len(spaces)))))
        some = Segments(topology).attachments(link, wanted)
        assert relevant(some, wanted) == relevant(whole, wanted)
        assert len(some) <= len(whole)


def test_random_hosts_have_attachments_to_leave_out() -> None:
    """Otherwise the test above would compare too little."""
    left_out = obstacles = outside = 0
    for seed in range(100):
        topology = Topology(random_host(random.Random(seed)).snapshot())
        for link in topology.snapshot.links():
            whole = Segments(topology).attachments(link)
            left_out += len(whole) - len(Segments(topology).attachments(link, {HOST}))
            obstacles += sum(one.obstacle is not None for one in whole)
            outside += sum(one.outside for one in whole)
    assert min(left_out, obstacles, outside) > 100


# ---- Open vSwitch


def switched(normal: bool = True, **tags: int | None) -> dict[tuple[int, str], Hop | None]:
    """Return where frames of A arrive on a bridge of Open vSwitch, with what stops them."""
    host = HostBuilder()
    system = host.link(HOST, "ovs-system", "ovs-port")
    own = host.link(HOST, "sw", "ovs-port", ("10.0.0.1/24",))
    ports = [OvsPort("sw", tags.get("sw"), interfaces=(OvsInterface("sw", "internal", own.ifindex),))]
    for ns, name in ((A, "a"), (B, "b"), (C, "c")):
        host.namespace(ns)
        outer = host.wire(ns, own, name)
        host.links[HOST][outer.ifindex] = replace(outer, master=system.ifindex, port=None)
        ports.append(OvsPort(name, tags.get(name), interfaces=(OvsInterface(name, "system", outer.ifindex),)))
    topology = Topology(host.snapshot(ovs=(OvsBridge("sw", ports=tuple(ports), normal=normal),)))
    inner = next(link for link in host.links[A].values() if link.name == "eth0")
    found = Segments(topology).attachments(inner)
    assert any(one.outside for one in found) != normal
    return {(one.link.ns, one.link.name): one.obstacle for one in found if not one.outside}


OPEN_SWITCH = ((HOST, "sw"), (B, "eth0"), (C, "eth0"))


@pytest.mark.parametrize(
    ("tags", "stopped"),
    [
        ({}, set()),
        ({"a": 10, "b": 10, "c": 20}, {(HOST, "sw"), (C, "eth0")}),
        ({"a": 10, "b": 10, "c": 10, "sw": 10}, set()),
        ({"b": 10}, {(B, "eth0")}),
        ({"a": 10}, {(HOST, "sw"), (B, "eth0"), (C, "eth0")}),
    ],
)
@pytest.mark.parametrize("normal", [True, False])
def test_access_ports_of_open_vswitch(
    normal: bool, tags: dict[str, int], stopped: set[tuple[int, str]]
) -> None:
    found = switched(normal, **tags)
    assert set(found) == set(OPEN_SWITCH)
    assert {end for end, obstacle in found.items() if obstacle is not None} == stopped
    verdicts = {obstacle.verdict for obstacle in found.values() if obstacle is not None}
    assert verdicts <= {"stop" if normal else "unknown"}
