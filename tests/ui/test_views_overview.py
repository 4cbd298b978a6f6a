"""The overview as a drawing: networks, items, layout, and the cursor's moves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.model import Address, Link, Snapshot, namespace_ref
from core.topology import Topology
from tests.support.host_builder import HOST, HostBuilder
from tests.support.snapshots import (
    bridged,
    empty_host,
    hostile_host,
    many_namespaces,
    rates_of,
    small_builder,
    small_host,
)
from tui.views.formatting import ascii_only, width_of
from tui.views.overview import RailRows, rows
from tui.views.rails import Rail, rails
from tui.views.rails_drawing import Drawing, Item, draw
from tui.views.rows import ViewContext

WIDTHS = (40, 80, 130, 200)
HOSTS = {
    "empty": empty_host(),
    "small": small_host(),
    "hostile": hostile_host(),
    "many": many_namespaces(),
    "nothing": Snapshot(),
}


def context_of(snapshot: Snapshot) -> ViewContext:
    return ViewContext(Topology(snapshot), rates_of(snapshot))


def drawing_of(snapshot: Snapshot, width: int = 130, height: int = 60) -> Drawing:
    return draw(context_of(snapshot), width, height)


def rail_named(snapshot: Snapshot, name: str) -> Rail:
    return next(rail for rail in rails(Topology(snapshot)) if rail.name == name)


def names_on(rail: Rail) -> list[list[str]]:
    return [[figure.name for figure in card.figures] for card in rail.cards]


def item_of(drawing: Drawing, snapshot: Snapshot, name: str, rail: str = "") -> Item:
    ref = next(row.ref for row in rows(context_of(snapshot)) if row.cells[0].text == name)
    item = drawing.find(ref, rail)
    assert item is not None
    return item


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("host", HOSTS)
def test_no_line_is_wider_than_the_width(host: str, width: int) -> None:
    for height in (8, 24, 60):
        drawing = drawing_of(HOSTS[host], width, height)
        for line in drawing.lines:
            assert sum(width_of(text) for text, _ in line) <= width
        for item in drawing.items:
            assert 0 <= item.x < item.x + item.width <= width
            assert 0 <= item.y < item.y + item.height <= drawing.height


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("host", HOSTS)
def test_items_and_rows_have_the_same_refs(host: str, width: int) -> None:
    context = context_of(HOSTS[host])
    listed = rows(context)
    drawing = draw(context, width, 60)
    assert [item.ref for item in drawing.items] == [row.ref for row in listed]
    if isinstance(listed, RailRows):
        assert [(item.rail, item.ref) for item in drawing.items] == list(listed.places)


@pytest.mark.parametrize("width", WIDTHS)
def test_items_do_not_overlap(width: int) -> None:
    for host in HOSTS.values():
        taken: dict[tuple[int, int], Item] = {}
        for item in drawing_of(host, width).items:
            for y in range(item.y, item.y + item.height):
                for x in range(item.x, item.x + item.width):
                    assert (x, y) not in taken
                    taken[x, y] = item


def test_every_container_is_drawn_once_for_each_network() -> None:
    text = drawing_of(small_host()).text()
    for name in ("web1", "web2", "sidecar", "blue", "vault", "orphan", "monitor"):
        assert text.count(f" {name} ") == 1, name
    assert text.count(" api ") == 2, "on both of its networks"


def test_rails_end_at_the_target_of_the_network() -> None:
    host = small_host()
    assert rail_named(host, "app").uplink_cell.text == "NAT → eth0 192.0.2.1"
    assert rail_named(host, "app").end == "way"
    assert (rail_named(host, "db").end, rail_named(host, "db").uplink_cell.text) == ("wall", "internal")
    assert rail_named(host, "host lab").uplink_cell.text == "uplink eth0 → 192.0.2.254"
    lines = drawing_of(host).text().splitlines()
    assert any(line.endswith("▶ NAT → eth0 192.0.2.1") for line in lines)
    assert any(line.endswith("┫ internal") for line in lines)


def test_a_rail_shows_subnet_gateway_mtu_and_rate() -> None:
    heading = next(line for line in drawing_of(small_host()).text().splitlines() if line.startswith(" app"))
    for fact in ("172.18.0.0/16", "nat", "gw 172.18.0.1", "mtu 1500", "Mbit/s"):
        assert fact in heading


def test_joined_containers_share_a_box() -> None:
    assert ["web1", "sidecar"] in names_on(rail_named(small_host(), "app"))
    lines = drawing_of(small_host()).text().splitlines()
    web1 = next(y for y, line in enumerate(lines) if "◆ web1" in line)
    sidecar = next(y for y, line in enumerate(lines) if "◐ sidecar" in line)
    assert "├╌ joined" in lines[sidecar - 1]
    assert sidecar > web1


def test_closed_containers_are_apart_and_open_ones_at_the_host() -> None:
    host = small_host()
    assert names_on(rail_named(host, "closed")) == [["vault"]]
    assert names_on(rail_named(host, "host lab")) == [["monitor"]]


def test_findings_have_a_word_and_a_tone() -> None:
    host = small_host()
    figures = {
        figure.name: figure
        for rail in rails(Topology(host))
        for card in rail.cards
        for figure in card.figures
    }
    assert [(cell.text, cell.tone) for cell in figures["web2"].faults] == [
        ("mtu 1400, bridge 1500", "warn"),
        ("17 packets dropped", "warn"),
    ]
    assert [cell.tone for cell in figures["orphan"].faults] == ["bad"]
    assert not figures["web1"].faults
    inks = {ink for line in drawing_of(host).lines for text, ink in line if "mtu 1400, bridge 1500" in text}
    assert inks == {"warn"}


def test_overlapping_subnets_are_named_on_both_rails() -> None:
    host = small_builder()
    host.bridge("br-old", ("172.18.7.1/24",))
    host.networks.append(bridged("old", "br-old", "172.18.7.0/24", "172.18.7.1"))
    snapshot = host.snapshot()
    assert [cell.text for cell in rail_named(snapshot, "old").faults] == ["overlaps app"]
    assert [cell.text for cell in rail_named(snapshot, "app").faults] == ["overlaps old"]
    assert "overlaps old" in drawing_of(snapshot, 80).text()


def test_a_subnet_that_overlaps_the_hosts_is_a_finding() -> None:
    host = small_builder()
    host.bridge("br-lan", ("192.0.2.129/25",))
    host.networks.append(bridged("lan", "br-lan", "192.0.2.128/25", "192.0.2.129"))
    assert [cell.text for cell in rail_named(host.snapshot(), "lan").faults] == ["overlaps eth0"]


@pytest.mark.parametrize(
    ("inner", "words"),
    [
        ({"state": "down", "admin_up": False, "carrier": False}, "link is down"),
        ({"state": "lowerlayerdown", "carrier": False}, "no carrier"),
    ],
)
def test_a_link_that_is_down_is_a_finding(inner: dict[str, object], words: str) -> None:
    host = HostBuilder()
    bridge = host.bridge("br0", ("10.0.0.1/24",))
    ns = host.namespace(HOST + 1, names=("x",))
    host.wire(ns, bridge, "v-x", ("10.0.0.2/24",), **inner)
    host.container("netns", "x", ns, id="x", namespaces={"net": ns})
    (card,) = rail_named(host.snapshot(), "br0").cards
    assert [(cell.text, cell.tone) for cell in card.figures[0].faults] == [(words, "bad")]


def test_a_bridge_that_is_deleted_or_down_is_a_finding() -> None:
    host = small_builder()
    host.networks.append(bridged("lost", "br-lost", "10.9.0.0/24", "10.9.0.1"))
    host.bridge("br-off", ("10.8.0.1/24",), admin_up=False, state="down", carrier=False)
    snapshot = host.snapshot()
    assert [cell.text for cell in rail_named(snapshot, "lost").faults] == ["bridge is gone"]
    assert [cell.text for cell in rail_named(snapshot, "br-off").faults] == ["bridge is down"]


def test_stopped_containers_are_apart() -> None:
    host = small_builder()
    host.container("docker", "old", None, state="exited", pid=None)
    assert names_on(rail_named(host.snapshot(), "not running")) == [["old"]]


def test_an_empty_host_gets_a_hint() -> None:
    text = drawing_of(empty_host(), 80, 24).text()
    assert "No virtual network" in text and "vnet-tui demo" in text
    assert "No virtual network" not in drawing_of(small_host()).text()


def test_before_the_first_links_there_is_nothing() -> None:
    assert len(rows(context_of(Snapshot(pending=frozenset({"links"}))))) == 0


def test_boxes_are_drawn_if_they_fit() -> None:
    assert "╭" in drawing_of(small_host(), 130, 60).text()
    assert "╭" not in drawing_of(small_host(), 130, 20).text()
    assert "╭" not in drawing_of(small_host(), 50, 100).text()
    assert drawing_of(small_host(), 130, 60).height <= 60


def test_wrapped_rows_of_cards_belong_to_the_same_rail() -> None:
    drawing = drawing_of(small_host(), 40, 24)
    lines = drawing.text().splitlines()
    starts = [line[1] for line in lines if line[1:2] in ("┏", "┣", "┗")]
    assert starts.count("┏") == 1 and starts.count("┗") == 1 and "┣" in starts


def test_two_hundred_containers_need_at_most_a_line_each() -> None:
    drawing = drawing_of(many_namespaces(), 130, 40)
    assert drawing.height < 60
    assert "ns199" in drawing.text()


def test_ascii_mode_keeps_the_layout() -> None:
    drawing = drawing_of(small_host())
    for line in drawing.text().splitlines():
        plain = ascii_only(line)
        assert plain.isascii() and len(plain) == len(line)


def test_wide_letters_take_two_cells() -> None:
    host = HostBuilder()
    bridge = host.bridge("br0", ("10.0.0.1/24",))
    for number in range(6):
        ns = host.namespace(HOST + 1 + number, names=(f"容器{number}",))
        host.wire(ns, bridge, f"v{number}", (f"10.0.0.{number + 2}/24",))
        host.container("netns", f"容器{number}", ns, id=str(number), namespaces={"net": ns})
    drawing = drawing_of(host.snapshot(), 60, 60)
    for line in drawing.lines:
        assert sum(width_of(text) for text, _ in line) <= 60
    tops = [line for line in drawing.text().splitlines() if "╭" in line]
    names = next(line for line in drawing.text().splitlines() if "容器0" in line)
    assert width_of(names) == width_of(tops[0]), "boxes stay straight"


# ---- moving


def test_down_and_up_go_from_row_to_row() -> None:
    host = small_host()
    drawing = drawing_of(host)
    top = drawing.items[0]
    assert top.ref == namespace_ref(HOST)
    monitor = drawing.below(top, 0)
    assert monitor == item_of(drawing, host, "monitor")
    app = drawing.below(monitor, 0)
    assert app == item_of(drawing, host, "app")
    assert drawing.above(app, 0) == monitor
    assert drawing.above(top, 0) is None


def test_down_keeps_its_column() -> None:
    host = small_host()
    drawing = drawing_of(host)
    app, web2 = item_of(drawing, host, "app"), item_of(drawing, host, "web2")
    column = web2.x + web2.width // 2
    assert drawing.below(app, column) == web2
    assert drawing.below(web2, column) == item_of(drawing, host, "bridge")


def test_down_goes_through_joined_ones_first() -> None:
    host = small_host()
    drawing = drawing_of(host)
    web1, sidecar = item_of(drawing, host, "web1"), item_of(drawing, host, "sidecar")
    column = web1.x + 3
    assert drawing.below(web1, column) == sidecar
    assert drawing.below(sidecar, column) == item_of(drawing, host, "bridge")
    assert drawing.above(sidecar, column) == web1


def test_left_and_right_go_along_a_rail_and_stop_at_its_ends() -> None:
    host = small_host()
    drawing = drawing_of(host)
    item: Item | None = item_of(drawing, host, "app")
    kinds = []
    while item is not None:
        kinds.append(item.kind)
        last = item
        item = drawing.along(item, 1)
    assert kinds == ["rail", "figure", "figure", "figure", "figure", "uplink"]
    assert last.ref.kind == "nat"
    assert drawing.along(item_of(drawing, host, "app"), -1) is None


def test_every_item_can_be_reached_from_the_first() -> None:
    for width in WIDTHS:
        drawing = drawing_of(small_host(), width)
        seen, ahead = set(), [drawing.items[0]]
        while ahead:
            item = ahead.pop()
            if item in seen:
                continue
            seen.add(item)
            steps = (drawing.below(item, item.x), drawing.along(item, 1), drawing.along(item, -1))
            ahead += [step for step in steps if step is not None]
        assert seen == set(drawing.items), width


def test_the_item_at_a_position_is_the_smallest() -> None:
    host = small_host()
    drawing = drawing_of(host)
    sidecar = item_of(drawing, host, "sidecar")
    assert drawing.at(sidecar.x + 1, sidecar.y + 1) == sidecar
    assert drawing.at(0, 0) == drawing.items[0]
    assert drawing.at(129, 5000) is None


def test_an_item_of_two_networks_is_found_in_the_right_one() -> None:
    host = small_host()
    drawing = drawing_of(host)
    on_app, on_db = item_of(drawing, host, "api", "net-app"), item_of(drawing, host, "api", "net-db")
    assert on_app.ref == on_db.ref and on_app.y < on_db.y


def test_a_network_in_another_namespace_names_it() -> None:
    host = HostBuilder()
    router = host.namespace(HOST + 1, names=("router",))
    host.link(router, "br-far", "bridge", ("10.0.0.1/24",))
    host.container("netns", "router", router, id="router", namespaces={"net": router})
    assert rail_named(host.snapshot(), "br-far").facts[0].text == "in router", "before what may not fit"


def test_the_same_subnet_in_different_namespaces_is_not_a_finding() -> None:
    host = HostBuilder()
    host.bridge("br0", ("10.0.0.1/24",))
    router = host.namespace(HOST + 1, names=("router",))
    host.link(router, "br0", "bridge", ("10.0.0.1/24",))
    for rail in rails(Topology(host.snapshot())):
        assert not rail.faults


def test_overlapping_link_local_addresses_are_not_a_finding() -> None:
    host = HostBuilder()
    for name in ("br0", "br1"):
        link: Link = host.bridge(name, (f"10.{name[-1]}.0.1/24",))
        host.links[HOST][link.ifindex] = replace(
            link, addresses=(*link.addresses, Address(6, "fe80::1", 64, "link"))
        )
    assert not any(rail.faults for rail in rails(Topology(host.snapshot())))


def test_containers_are_ordered_by_name() -> None:
    names = [card[0] for card in names_on(rail_named(small_host(), "app"))]
    assert names == sorted(names)


def test_ports_are_on_the_rail_that_they_are_reached_by() -> None:
    host = small_builder()
    host.rule(
        "DOCKER", "-A DOCKER -p udp --dport 5353 -j DNAT --to-destination 172.18.0.4:53",
        l4_proto="udp", dport="5353", verdict="dnat", to_address="172.18.0.4", to_port="53",
    )  # fmt: skip
    snapshot = host.snapshot()
    shown = {
        rail: [fact.text for card in rail_named(snapshot, rail).cards for fact in card.figures[0].facts]
        for rail in ("app", "db")
    }
    assert "5353→53/udp" in shown["app"]
    assert "5353→53/udp" not in shown["db"]
