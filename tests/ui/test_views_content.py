"""Lists and details: findings, both ends of a pair, names and addresses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.model import Host, Ref, container_ref, network_ref
from core.topology import Topology
from tests.support.host_builder import HOST
from tests.support.snapshots import bridged, small_builder, small_host
from tests.ui.driver import dashboard
from tui.views import registry
from tui.views.rows import Detail, Row, Rows, ViewContext

CONTEXT = ViewContext(Topology(small_host()))


def rows_of(view: str, context: ViewContext = CONTEXT) -> Rows:
    found = registry.view_named(view)
    assert found is not None
    return found.list.rows(context)


def matching(view: str, text: str, context: ViewContext = CONTEXT) -> list[Row]:
    rows = rows_of(view, context).matching(text)
    return [rows.row(place) for place in range(len(rows))]


def cell(view: str, row: Row, column: str) -> str:
    found = registry.view_named(view)
    assert found is not None
    names = [each.name for each in found.list.columns]
    return row.cells[names.index(column)].text


def detail_of(name: str, context: ViewContext = CONTEXT) -> Detail:
    container = next(one for one in context.topology.containers.values() if one.name == name)
    return registry.detail(context, container_ref(container.runtime, container.id))


def attention(detail: Detail) -> list[tuple[str, Ref | None]]:
    section = detail.sections[0]
    shown = section.lines if section.title == "Findings" else ()
    return [(cell.text, ref) for label, cell, ref in shown if label not in ("try", "F", "repair")]


def test_a_detail_starts_with_findings() -> None:
    shown = attention(detail_of("web2"))
    assert [words.partition(":")[0] for words, _ in shown] == [
        "eth0 of web2 has MTU 1400, but its bridge br-app has 1500",
        "A rule dropped 17 packets of web2",
    ]
    assert [ref.kind for _, ref in shown if ref] == ["link", "nat"]
    assert not attention(detail_of("db"))


def test_an_overlap_is_shown_on_both_networks() -> None:
    host = small_builder()
    host.bridge("br-old", ("172.18.7.1/24",))
    host.networks.append(bridged("old", "br-old", "172.18.7.0/24", "172.18.7.1"))
    context = ViewContext(Topology(host.snapshot()))
    for mine, other in (("net-app", "net-old"), ("net-old", "net-app")):
        ((words, ref),) = attention(registry.detail(context, network_ref(mine)))
        assert "overlap" in words and ref == network_ref(other)


@pytest.mark.parametrize("view", ["overview", "bridges", "nat", "conntrack", "veths", "containers"])
def test_ns_matches_the_containers_of_both_ends(view: str) -> None:
    assert matching(view, "ns:web1"), view
    assert len(matching(view, "ns:web1")) < len(rows_of(view))


def test_a_dead_joined_namespace_is_shown_as_dead() -> None:
    (matrix,) = [section for section in detail_of("orphan").sections if section.title == "Namespaces"]
    (net,) = [cell for title, cell, _ in matrix.lines if title.startswith("net")]
    assert (net.text, net.tone) == ("gone: was ffffffffffff's", "bad")


def test_a_dead_join_links_to_the_restarted_container() -> None:
    host = small_builder()
    ns = host.namespace(HOST + 50, names=("side",))
    target = next(one for one in host.containers if one.name == "db")
    host.container("docker", "side", ns, network_mode=f"container:{target.id}")
    context = ViewContext(Topology(host.snapshot()))
    (matrix,) = [section for section in detail_of("side", context).sections if section.title == "Namespaces"]
    (line,) = [line for line in matrix.lines if line[0].startswith("net")]
    assert (line[1].text, line[2]) == ("gone: was db's", container_ref("docker", target.id))


def filter_context() -> ViewContext:
    host = small_builder()
    world = host.namespace(HOST + 60, names=("world",))
    host.container("netns", "world", world, id="world", namespaces={"net": world})
    uplink = host.link(HOST, "up0", "veth", ("203.0.113.2/24",), lower=2, lower_nsid=world)
    host.link(world, "wan0", "veth", ("203.0.113.1/24",), lower=uplink.ifindex, lower_nsid=0)
    host.routes[HOST][0] = replace(
        host.routes[HOST][0],
        nexthops=(replace(host.routes[HOST][0].nexthops[0], gateway="203.0.113.1", ifindex=uplink.ifindex),),
    )
    for name, iif, oif in (("out", "br-app", "up0"), ("in", "up0", "br-app"), ("self", "br-app", "br-app")):
        host.rule("FORWARD", name, table="filter", iif=iif, oif=oif, verdict="accept", packets=1, bytes=60)
    return ViewContext(Topology(host.snapshot()))


def test_a_filter_rule_shows_its_networks_and_direction() -> None:
    context = filter_context()
    found = {row.cells[1].text: row for row in matching("nat", "kind:filter accept", context)}
    shown = {name: cell("nat", row, "whose") for name, row in found.items()}
    assert shown == {
        "accept br-app -> up0": "from app",
        "accept up0 -> br-app": "to app",
        "accept br-app -> br-app": "within app",
    }
    assert cell("nat", found["accept br-app -> br-app"], "outside") == "–"
    assert cell("nat", found["accept br-app -> up0"], "hits") == "1 packet"
    world = next(one for one in context.topology.containers.values() if one.name == "world")
    assert not context.topology.nat_of(world), "the world behind the uplink is not one container"


def test_hits_of_nat_rules_are_connections() -> None:
    (row,) = matching("nat", "port:8080")
    assert (cell("nat", row, "hits"), cell("nat", row, "bytes")) == ("310 conns", "–")
    lines = [line for section in registry.detail(CONTEXT, row.ref).sections for line in section.lines]
    assert "310" in [text.text for title, text, _ in lines if title == "connections"]
    assert any("first packet" in text.text for _, text, _ in lines)


def test_a_network_lists_its_containers_addresses_on_it() -> None:
    sections = registry.detail(CONTEXT, network_ref("net-app")).sections
    (members,) = [section.lines for section in sections if section.title == "Containers"]
    assert [cell.text for name, cell, _ in members if name == "api"] == ["172.18.0.4"]


def test_routes_and_rules_show_their_address_family() -> None:
    for row in matching("routes", "!kind:namespace"):
        assert cell("routes", row, "family") == f"IPv{row.terms['family']}"


def test_addresses_are_shown_in_short() -> None:
    shown = {row.cells[0].text: cell("containers", row, "addr") for row in matching("containers", "")}
    assert (shown["api"], shown["web1"], shown["monitor"]) == ("172.18.0.4 +1", "172.18.0.2", "the host's")


def test_containers_with_the_same_name_get_a_suffix() -> None:
    host = small_builder()
    ns = host.namespace(HOST + 50, names=("web1",))
    host.container("netns", "web1", ns, id="other", pid=None, namespaces={"net": ns})
    names = [
        row.cells[0].text for row in matching("containers", "web1", ViewContext(Topology(host.snapshot())))
    ]
    assert {name for name in names if name.startswith("web1")} == {"web1 [1001]", f"web1 [{ns}]"}


def test_a_container_wired_without_a_bridge_is_routed() -> None:
    context = filter_context()
    world = next(one for one in context.topology.containers.values() if one.name == "world")
    assert context.topology.cards[world.uid].model == "routed"
    (row,) = matching("containers", "name:world", context)
    assert cell("containers", row, "model") == "routed"


def test_containers_without_a_network_are_grouped_by_reason() -> None:
    from tui.views.rails import rails

    shown = {
        rail.name: [figure.name for card in rail.cards for figure in card.figures]
        for rail in rails(filter_context().topology)
        if not rail.drawn
    }
    assert shown == {"closed": ["vault"], "no bridge": ["world"], "cut off": ["orphan"]}


def test_a_container_that_cannot_be_entered_is_unknown() -> None:
    host = small_builder()
    ns = host.namespace(HOST + 50, names=("shut",))
    host.links[ns].clear()
    host.container("netns", "shut", ns, id="shut", pid=None, namespaces={"net": ns})
    context = ViewContext(
        Topology(host.snapshot(host=Host(netns=HOST, missing_capabilities=("CAP_SYS_ADMIN",))))
    )
    (row,) = matching("containers", "name:shut", context)
    assert cell("containers", row, "model") == "unknown"
    (space,) = matching("namespaces", "name:shut", context)
    assert cell("namespaces", space, "links") == "?"
    assert [row.cells[1].text for row in matching("overview", "shut", context)] == ["? unknown"]


def test_a_narrow_list_keeps_the_mtu_column() -> None:
    from tui.views.lists import lay_out

    found = registry.view_named("veths")
    assert found is not None
    for width in (78, 84, 128):
        assert "mtu" in [placed.column.name for placed in lay_out(found.list.columns, width)]


@pytest.mark.parametrize("width", [78, 84, 128])
def test_narrow_lists_keep_translation_and_published_ports(width: int) -> None:
    from tui.views.lists import lay_out

    for name, wanted in (("conntrack", {"way", "translation"}), ("containers", {"port", "addr"})):
        found = registry.view_named(name)
        assert found is not None
        assert wanted <= {placed.column.name for placed in lay_out(found.list.columns, width)}


async def test_enter_in_the_panel_of_findings_goes_to_its_item() -> None:
    async with dashboard(small_host()) as person:
        assert " 3 findings " in person.lines[0] and "not read" not in person.lines[0]
        await person.press("exclamation_mark")
        assert "A rule dropped 17 packets of web2" in person.text
        await person.press("j", "enter")
        await person.settle()
        assert "Veth pairs" in person.lines[2] or "Veth pairs" in person.text
        assert "eth0 of web2 has MTU 1400" in person.text
        await person.press("escape")
        assert person.dashboard.nav.current.view == "overview"
