"""The drops view: groups, filter, details, single packets, and why nothing is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.model import Demand, Drop, DroppedPacket, Drops, Part, Problem
from core.topology import Topology
from tests.support.host_builder import HOST
from tests.support.snapshots import HOSTILE_NAME, hostile_host, small_host
from tests.ui.driver import Person, dashboard
from tui.views.drops import DropRows
from tui.views.rows import ViewContext

SNAPSHOT = small_host()
TOPOLOGY = Topology(SNAPSHOT)
CONTAINER = next(one for one in TOPOLOGY.containers.values() if TOPOLOGY.links_of(one))
LINK = TOPOLOGY.links_of(CONTAINER)[0]
NAME = CONTAINER.name
ADDRESS = TOPOLOGY.addresses_of(CONTAINER)[0]
BRIDGE = next(link for link in SNAPSHOT.links() if link.name == "br-app")
DROPS = (
    Drop("TCP_OLD_DATA", LINK.ns, LINK.ifindex, "tcp_rcv", packets=900, rate=9.0),
    Drop("NO_SOCKET", LINK.ns, LINK.ifindex, "__udp4_lib_rcv", packets=40, rate=2.0),
    Drop("NETFILTER_DROP", HOST, BRIDGE.ifindex, "nft_do_chain", ADDRESS, "from", 30, 1.5),
    Drop("NETFILTER_DROP", HOST, 9999, "nft_do_chain", packets=7),
)


def drops(*, uncounted: int = 0, packets: tuple[DroppedPacket, ...] = (), reporting: bool = False) -> Drops:
    return Drops(1000.0, 1010.0, DROPS, uncounted, packets, reporting)


def names(rows: DropRows) -> list[tuple[int, str]]:
    return [(row.depth, row.cells[0].text) for row in rows]


def rows(by: str = "", text: str = "") -> DropRows:
    made = DropRows(ViewContext(TOPOLOGY, drops=drops()), DROPS)
    return made.grouped_by(by).matching(text)


def test_reasons_are_groups_and_what_is_normal_comes_last() -> None:
    assert names(rows()) == [
        (0, "NO_SOCKET"), (1, NAME), (0, "NETFILTER_DROP"), (1, f"from {NAME}"), (1, "host"),
        (0, "TCP_OLD_DATA"), (1, NAME),
    ]  # fmt: skip
    group = next(row for row in rows() if row.cells[0].text == "NETFILTER_DROP")
    assert group.cells[2].sort == 37 and group.cells[4].text.startswith("A firewall rule")
    assert rows().row(3).cells[1].text == "host br-app" and rows().row(4).cells[1].text == "host #9999"


def test_containers_and_links_are_groups() -> None:
    assert names(rows("container")) == [
        (0, NAME), (1, "NO_SOCKET"), (1, "NETFILTER_DROP"), (1, "TCP_OLD_DATA"),
        (0, "no container"), (1, "NETFILTER_DROP"),
    ]  # fmt: skip
    assert [name for depth, name in names(rows("link")) if not depth] == [
        f"{NAME} eth0", "host br-app", "host #9999",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "packets"),
    [
        (f"ct:{NAME}", 970), ("reason:NETFILTER", 37), ("kind:normal", 900), ("kind:rule rate:>1", 30),
        ("link:br-app", 30), (f"addr:{ADDRESS}", 30), ("function:nft", 37), ("!kind:normal", 77),
        ("packets:>100", 900), ("ns:host", 37),
    ],
)  # fmt: skip
@pytest.mark.parametrize("by", ["", "container", "link"])
def test_a_filter_means_the_same_in_each_grouping(by: str, text: str, packets: int) -> None:
    found = rows(by, text)
    assert sum(int(row.cells[2].sort or 0) for row in found if row.depth) == packets
    assert sum(int(row.cells[2].sort or 0) for row in found if not row.depth) == packets


async def opened(person: Person, **more: object) -> None:
    await person.feed(SNAPSHOT, drops=drops(**more))  # type: ignore[arg-type]
    person.dashboard.go_to("drops")
    await person.settle()


async def test_the_view_groups_by_key_and_explains() -> None:
    async with dashboard(SNAPSHOT) as person:
        await opened(person)
        assert "977 packets" in person.text and "No process listens" in person.text
        await person.press("b")
        assert "Drops by container" in person.text and "no container" in person.text
        await person.press("b", "b")
        assert "reason / packets of" in person.text
        await person.press("j")
        assert "see who listens where" in person.text and "__udp4_lib_rcv" in person.text
        await person.press("enter")
        assert person.dashboard.view.name == "containers" and person.dashboard.ref is not None


async def test_only_the_view_demands_counting_and_i_single_packets() -> None:
    async with dashboard(SNAPSHOT) as person:
        assert not any(Demand.DROPS in demand for demand in person.source.demands)
        await person.press("i")
        assert not any(Demand.DROP_PACKETS in demand for demand in person.source.demands)
        await opened(person)
        assert Demand.DROPS in person.source.demands[-1]
        await person.press("i")
        assert {Demand.DROPS, Demand.DROP_PACKETS} <= person.source.demands[-1]
        person.dashboard.go_to("bridges")
        await person.settle()
        assert not person.source.demands[-1] & {Demand.DROPS, Demand.DROP_PACKETS}


async def test_single_packets_are_in_the_details() -> None:
    where = replace(DROPS[1], packets=0, rate=0.0)
    packet = DroppedPacket(1005.0, where, 60, "udp", "203.0.113.9", ADDRESS, 5000, 99)
    other = DroppedPacket(1006.0, replace(DROPS[2], packets=0, rate=0.0), 60, "udp", "203.0.113.8", ADDRESS)
    async with dashboard(SNAPSHOT, size=(200, 50)) as person:
        await opened(person, packets=(packet, other), reporting=True)
        assert "listing each packet" in person.text
        await person.press("j")
        assert "203.0.113.9:5000" in person.text and "203.0.113.8" not in person.text
        await person.feed(SNAPSHOT, drops=drops())
        assert "press i to list each packet" in person.text


async def test_a_full_map_is_mentioned() -> None:
    async with dashboard(SNAPSHOT) as person:
        await opened(person, uncounted=1234)
        assert "1,234 more packets aren't listed: the kernel's map is full" in person.text


async def test_the_reason_why_nothing_is_counted_takes_the_place_of_the_rows() -> None:
    problem = Problem(Part.DROPS, "can't count dropped packets", "it needs CAP_BPF", "sudo vnet-tui")
    snapshot = replace(SNAPSHOT, part_problems={Part.DROPS: (problem,)})
    async with dashboard(snapshot, size=(80, 24)) as person:
        person.dashboard.go_to("drops")
        await person.settle()
        text = " ".join(person.text.split())
        assert "Can't count dropped packets: it needs CAP_BPF. Try: sudo vnet-tui." in text


async def test_names_from_outside_are_text() -> None:
    snapshot = hostile_host()
    container = next(one for one in snapshot.containers() if one.name == HOSTILE_NAME)
    drop = Drop("NO_SOCKET", container.netns or 0, 2, "[red]x", packets=1)
    packet = DroppedPacket(1.0, drop, 1, "udp", "10.0.0.2", "10.0.0.2", 1, 2)
    async with dashboard(snapshot, size=(200, 50)) as person:
        await person.feed(snapshot, drops=Drops(1.0, 2.0, (drop,), packets=(packet,)))
        person.dashboard.go_to("drops")
        await person.settle()
        await person.press("j")
        assert "\x1b" not in person.text and "\u202e" not in person.text
        assert "[red]x" in person.text
