"""List views: cells, filter terms and details, on ordinary and odd hosts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.model import (
    Change,
    LinkKey,
    OvsBridge,
    OvsController,
    OvsInterface,
    OvsPort,
    PublishedPort,
    Snapshot,
    container_ref,
    link_ref,
    namespace_ref,
    nat_ref,
    network_ref,
)
from core.text import safe
from core.topology import Topology
from core.topology.related import related
from tests.support.host_builder import HOST, HostBuilder
from tests.support.snapshots import (
    HOSTILE_NAME,
    empty_host,
    hostile_host,
    many_namespaces,
    overlay_host,
    rates_of,
    small_builder,
    small_host,
)
from tui.views import registry
from tui.views.rows import LOG_LENGTH, ChangeLog, Detail, Row, Rows, ViewContext


def context_of(snapshot: Snapshot) -> ViewContext:
    log = ChangeLog().extended(
        Change(1_700_000_000.0 + n, "added", link_ref(link.key), f"link {link.name} appeared")
        for n, link in enumerate(snapshot.links())
    )
    return ViewContext(Topology(snapshot), rates_of(snapshot), log)


@pytest.fixture(scope="module")
def context() -> ViewContext:
    return context_of(small_host())


def rows_of(context: ViewContext, view: str) -> Rows:
    found = registry.view_named(view)
    assert found is not None
    return found.list.rows(context)


def all_rows(rows: Rows) -> list[Row]:
    return [rows.row(place) for place in range(len(rows))]


def cells(context: ViewContext, view: str, row: Row) -> dict[str, str]:
    found = registry.view_named(view)
    assert found is not None
    return {column.name: cell.text for column, cell in zip(found.list.columns, row.cells, strict=True)}


def the_row(context: ViewContext, view: str, query: str) -> dict[str, str]:
    rows = rows_of(context, view).matching(query)
    assert len(rows) == 1, f"{query} in {view}: {[row.cells[0].text for row in all_rows(rows)]}"
    return cells(context, view, rows.row(0))


def lines_of(detail: Detail) -> dict[str, str]:
    return {label: cell.text for section in detail.sections for label, cell, _ in section.lines}


ODD = {
    "nothing read yet": Snapshot(pending=frozenset({"links"})),
    "empty": empty_host(),
    "small": small_host(),
    "overlay": overlay_host(),
    "hostile": hostile_host(),
    "many": many_namespaces(),
}


@pytest.mark.parametrize("view", registry.VIEWS, ids=lambda view: view.name)
@pytest.mark.parametrize("host", ODD)
def test_every_view_shows_every_host(view: registry.View, host: str) -> None:
    context = context_of(ODD[host])
    rows = view.list.rows(context)
    for row in all_rows(rows):
        assert len(row.cells) == len(view.list.columns)
        for text in (*(cell.text for cell in row.cells), *row.terms.values()):
            assert text == safe(text), "text from outside is escaped"
        if view.name != "overview":  # the overview has a row per network of an item
            assert rows.index(row.ref) is not None
    for row in all_rows(rows)[:30]:
        detail = registry.detail(context, row.ref)
        assert detail.title == safe(detail.title)
        for section in detail.sections:
            assert all(
                label == safe(label) and cell.text == safe(cell.text) for label, cell, _ in section.lines
            )
        assert all(label == safe(label) for label, _ in detail.related)


@pytest.mark.parametrize("view", registry.VIEWS, ids=lambda view: view.name)
def test_views_work_without_rates(view: registry.View) -> None:
    context = ViewContext(Topology(small_host()))
    assert all_rows(view.list.rows(context)) is not None
    assert view.list.empty and view.list.title


def test_references_are_unique_in_a_view(context: ViewContext) -> None:
    for view in registry.VIEWS:
        if view.name != "overview":
            refs = [row.ref for row in all_rows(view.list.rows(context))]
            assert len(refs) == len(set(refs)), view.name


def test_views_are_found_by_number_name_and_alias() -> None:
    numbers = [view.number for view in registry.VIEWS if view.number]
    assert numbers == list(range(1, 10))
    for alias, name in (
        ("br", "bridges"), ("veth", "veths"), ("ns", "namespaces"), ("nat", "nat"), ("ct", "conntrack"),
        ("flows", "flows"), ("net", "networks"), ("links", "links"), ("overv", "overview"),
    ):  # fmt: skip
        found = registry.view_named(alias)
        assert found is not None and found.name == name
    assert registry.view_named("") is None and registry.view_named("xyzzy") is None
    assert (registry.VIEWS[1].number, registry.VIEWS[1].name) == (2, "bridges")


def test_every_item_is_in_the_rows_of_its_main_view(context: ViewContext) -> None:
    for view in registry.VIEWS:
        for row in all_rows(view.list.rows(context)):
            home = registry.home_of(context.topology, row.ref)
            assert home is not None
            assert home.list.rows(context).index(row.ref) is not None


def test_both_ends_of_a_veth_are_one_row(context: ViewContext) -> None:
    rows = rows_of(context, "veths")
    for end, peer in context.topology.peers.items():
        assert rows.index(link_ref(end)) == rows.index(link_ref(peer))
    row = the_row(context, "veths", "ct:web1")
    assert (row["name"], row["master"], row["peer"], row["ct"]) == ("veth-web1", "br-app", "eth0", "web1")
    assert row["addr"] == "172.18.0.2/16"


def test_rates_of_a_veth_are_those_of_its_outer_end(context: ViewContext) -> None:
    row = the_row(context, "veths", "ct:web1")
    rate = context.rate(next(link.key for link in context.snapshot.links() if link.name == "veth-web1"))
    assert rate is not None and rate.tx_bps == pytest.approx(24e6) and rate.rx_bps == pytest.approx(48e6)
    assert (row["in"], row["out"]) == ("24.0 Mbit/s", "48.0 Mbit/s")


def test_an_mtu_mismatch_is_marked(context: ViewContext) -> None:
    rows = rows_of(context, "veths").matching("mtu:differs")
    assert len(rows) == 1
    row = rows.row(0)
    assert row.cells[0].text == "veth-web2"
    marked = [cell for cell in row.cells if cell.tone == "warn"]
    assert [cell.text for cell in marked] == ["1500/1400"]


def test_a_veth_with_a_hidden_peer() -> None:
    host = HostBuilder()
    host.link(HOST, "lonely", "veth", lower=9, lower_nsid=77)
    context = context_of(host.snapshot())
    assert the_row(context, "veths", "lonely")["peer"] == "unknown"


def test_the_state_names_the_end_that_is_down() -> None:
    host = HostBuilder()
    bridge = host.bridge("br0")
    ns = host.namespace(HOST + 1, names=("x",))
    host.wire(ns, bridge, "v-x", state="down", admin_up=False, carrier=False)
    context = context_of(host.snapshot())
    assert the_row(context, "veths", "v-x")["state"] == "B is down"


def test_ports_are_listed_below_their_bridge(context: ViewContext) -> None:
    rows = all_rows(rows_of(context, "bridges"))
    names = [(row.depth, row.cells[0].text) for row in rows]
    start = names.index((0, "br-app"))
    assert names[start + 1 : start + 4] == [(1, "veth-api"), (1, "veth-web1"), (1, "veth-web2")]
    row = cells(context, "bridges", rows[start])
    assert (row["net"], row["addr"], row["ports"]) == ("app (nat)", "172.18.0.0/16", "3")


def test_a_bridge_counts_entering_traffic_once(context: ViewContext) -> None:
    by_name = {link.name: link for link in context.snapshot.links() if link.ns == HOST}
    bridge = by_name["br-app"].key
    ports = [context.rate(by_name[name].key) for name in ("veth-api", "veth-web1", "veth-web2")]
    own, carried = context.rate(bridge), context.traffic_of(bridge)
    assert own is not None and carried is not None
    assert carried[0] == pytest.approx(own.tx_bps + sum(port.rx_bps for port in ports if port))
    detail = registry.detail(context, link_ref(bridge))
    assert "Forwarding table" in [section.title for section in detail.sections]


def test_an_idle_bridge_is_not_marked_bad() -> None:
    host = HostBuilder()
    host.bridge("docker0", carrier=False, state="down")
    context = context_of(host.snapshot())
    row = rows_of(context, "bridges").row(0)
    assert cells(context, "bridges", row)["state"] == "idle"
    assert all(cell.tone != "bad" for cell in row.cells)


def test_the_network_model_and_its_namespaces(context: ViewContext) -> None:
    assert the_row(context, "containers", "name:web1")["model"] == "bridged"
    assert the_row(context, "containers", "name:sidecar")["model"] == "joined"
    assert the_row(context, "containers", "name:vault")["model"] == "closed"
    assert the_row(context, "containers", "name:monitor")["model"] == "open"
    orphan = rows_of(context, "containers").matching("name:orphan").row(0)
    assert any(cell.tone == "bad" and "dead" in cell.text for cell in orphan.cells)
    sidecar = rows_of(context, "containers").matching("name:sidecar").row(0)
    detail = registry.detail(context, sidecar.ref)
    matrix = next(section for section in detail.sections if section.title == "Namespaces")
    shown = {label.split()[0]: cell.text for label, cell, _ in matrix.lines}
    assert shown == {
        "user": "■ the host's", "mnt": "□ its own", "pid": "□ its own", "uts": "□ its own",
        "net": "◐ shared with web1", "ipc": "□ its own",
    }  # fmt: skip
    assert lines_of(detail)["network mode"] == "container web1"


def test_a_container_row_shows_ports_and_traffic(context: ViewContext) -> None:
    row = the_row(context, "containers", "name:web2")
    assert row["port"] == "127.0.0.1:8081→80"
    assert (row["in"], row["out"]) == ("16.0 Mbit/s", "8.0 Mbit/s")
    reached = [row.cells[0].text for row in all_rows(rows_of(context, "containers").matching("port:80"))]
    assert reached == ["sidecar", "web1", "web2"], "the sidecar shares the namespace of web1"
    assert len(rows_of(context, "containers").matching("port:808")) == 0, "a port is a whole number"
    assert len(rows_of(context, "containers").matching("label:tier=front")) == 1


def test_adjacent_ports_are_shown_as_one_range() -> None:
    host = small_builder()
    made = [PublishedPort("udp", "", port, port + 100) for port in range(5000, 5011)]
    made += [PublishedPort("tcp", "", 443, 443), PublishedPort("tcp", "127.0.0.1", 80, 8080)]
    many = host.container("docker", "many", HOST + 1000, ports=tuple(made))
    context = context_of(host.snapshot())
    row = the_row(context, "containers", "name:many")
    assert row["port"] == "127.0.0.1:80→8080 443→443 5000-5010→5100-5110/udp"
    shown = lines_of(registry.detail(context, container_ref("docker", many.id)))
    assert shown["udp 5000-5010"] == "on every address → 5100-5110"
    for inside_the_range in ("port:5005", "port:5105"):
        assert the_row(context, "containers", f"{inside_the_range} name:many")["name"] == "many"


def test_ports_of_one_address_family_name_it() -> None:
    host = small_builder()
    made = (PublishedPort("tcp", "::", 8091, 80), PublishedPort("tcp", "0.0.0.0", 8092, 80))
    half = host.container("docker", "half", HOST + 1000, ports=(*made, PublishedPort("tcp", "fd00::9", 1, 2)))
    context = context_of(host.snapshot())
    assert the_row(context, "containers", "name:half")["port"] == "[fd00::9]:1→2 [::]:8091→80 8092→80"
    shown = lines_of(registry.detail(context, container_ref("docker", half.id)))
    assert shown["tcp 8091"] == "on every IPv6 address → 80"
    assert shown["tcp 8092"] == "on every IPv4 address → 80"


def test_veths_of_the_host_come_first_and_others_name_their_namespace() -> None:
    host = small_builder()
    inner = host.namespace(HOST + 1, names=("router",))
    far = host.namespace(HOST + 2, names=("leaf",))
    host.link(inner, "a0", "veth", ifindex=2, lower=2, lower_nsid=far)
    host.link(far, "eth0", "veth", ifindex=2, lower=2, lower_nsid=inner)
    rows = [cells(context, "veths", row) for context in [context_of(host.snapshot())] for row in
            all_rows(rows_of(context, "veths"))]  # fmt: skip
    assert [row["name"] for row in rows if " in " in row["name"]] == ["a0 in router"] == [rows[-1]["name"]]
    assert rows[-1]["ct"] == "leaf"
    host.link(inner, "br9", "bridge", ("10.9.0.1/24",))
    bridge = rows_of(context_of(host.snapshot()), "bridges").matching("name:=br9").row(0)
    assert bridge.cells[0].text == "br9 in router"


def test_namespaces_show_their_kind(context: ViewContext) -> None:
    rows = [cells(context, "namespaces", row) for row in all_rows(rows_of(context, "namespaces"))]
    held = {row["name"]: row["kind"] for row in rows}
    assert held["host"] == "the host" and rows[0]["name"] == "host"
    assert held["web1"] == "docker container"
    assert held["blue"] == "ip netns name"


def test_a_namespace_that_cannot_be_entered_says_why() -> None:
    host = small_builder()
    hidden = host.namespace(HOST + 1, mounts=("/run/netns/covered",))
    shown = lines_of(registry.detail(context_of(host.snapshot()), namespace_ref(hidden)))
    assert shown["entered through"].startswith("no path can be reached from here")
    host.spaces[hidden] = replace(host.spaces[hidden], entry="/run/netns/covered")
    shown = lines_of(registry.detail(context_of(host.snapshot()), namespace_ref(hidden)))
    assert shown["entered through"] == "/run/netns/covered"


def test_nat_entries_come_with_their_rules(context: ViewContext) -> None:
    rows = rows_of(context, "nat")
    kinds = [row.cells[0].text for row in all_rows(rows)]
    assert kinds == sorted(kinds, key=["published port", "masquerade", "filter"].index)
    published = rows.matching("port:8080").row(0)
    detail = registry.detail(context, published.ref)
    rules = next(section for section in detail.sections if section.title == "Rules")
    assert "--to-destination 172.18.0.2:80" in rules.lines[0][1].text
    dropped = rows.matching("verdict:drop").row(0)
    assert any(cell.tone == "bad" for cell in dropped.cells)


def test_routes_are_folded_by_namespace(context: ViewContext) -> None:
    rows = all_rows(rows_of(context, "routes"))
    assert rows[0].ref == namespace_ref(HOST) and rows[0].depth == 0
    assert all(row.depth == 1 for row in rows if row.ref.kind != "namespace")
    filtered = rows_of(context, "routes").matching("kind:neighbour addr:172.18.0.2")
    assert [row.cells[0].text for row in all_rows(filtered)] == ["172.18.0.2 (web1)"]
    refusing = rows_of(context, "routes").matching("kind:blackhole").row(0)
    assert refusing.cells[1].tone == "warn"
    detail = registry.detail(context, rows_of(context, "routes").matching("default ns:host").row(0).ref)
    assert lines_of(detail)["next hop"] == "192.0.2.254 dev eth0"


def test_events_are_newest_first_and_link_to_their_item(context: ViewContext) -> None:
    rows = all_rows(rows_of(context, "events"))
    moments = [row.cells[0].sort for row in rows]
    assert moments == sorted(moments, reverse=True)  # type: ignore[type-var]
    detail = registry.detail(context, rows[0].ref)
    assert detail.related[0][1].kind == "link"


def test_the_log_keeps_a_thousand_events_and_their_numbers() -> None:
    change = Change(1.0, "added", namespace_ref(1), "x")
    log = ChangeLog()
    for number in range(3):
        log = log.extended(replace(change, sentence=f"{number}.{each}") for each in range(400))
    numbered = dict(log.numbered())
    assert len(numbered) == LOG_LENGTH
    for ref, kept in numbered.items():
        number = int(ref.key[0])
        assert kept.sentence == f"{number // 400}.{number % 400}"
        assert log.change(ref) is kept
    assert log.change(replace(ref, key=(5,))) is None


@pytest.mark.parametrize(
    ("view", "query", "names"),
    [
        ("overview", "port:8081", {"web2"}),
        ("overview", "ct:=api", {"api"}),
        ("overview", "state:exited", {"old"}),
        ("overview", "proto:udp port:53", {"dns"}),
        ("overview", "addr:172.18.0.0/16 !ct:web1", {"app", "api", "web2", "sidecar"}),
        ("events", "ct:web1", {"link veth-web1 appeared"}),
        ("events", "ns:veth-web2 state:added", {"link veth-web2 appeared"}),
        ("events", "ns:veth-web2 state:removed", set()),
    ],
)
def test_filter_terms_work_in_the_overview_and_in_events(view: str, query: str, names: set[str]) -> None:
    host = small_builder()
    host.container("docker", "old", None, state="exited", pid=None)
    host.container("docker", "dns", None, ports=(PublishedPort("udp", "", 53, 53),))
    found = all_rows(rows_of(context_of(host.snapshot()), view).matching(query))
    assert {row.cells[view == "events"].text for row in found} == names


def test_a_deleted_item_is_shown_as_gone(context: ViewContext) -> None:
    for ref in (link_ref(LinkKey(HOST, 99)), namespace_ref(1), network_ref("x"), nat_ref(HOST, "x")):
        assert "gone" in registry.detail(context, ref).title
    assert "gone" in registry.detail(context, container_ref("docker", "x")).title


def test_hostile_names_stay_readable() -> None:
    context = context_of(hostile_host())
    row = rows_of(context, "containers").row(0)
    assert safe(HOSTILE_NAME) in {
        cell.text for each in all_rows(rows_of(context, "containers")) for cell in each.cells
    }
    assert all("\x1b" not in cell.text and "\n" not in cell.text for cell in row.cells)


def test_stopped_containers_have_no_namespace() -> None:
    host = small_builder()
    old = host.container("docker", "old", None, state="exited", pid=None)
    context = context_of(host.snapshot())
    row = the_row(context, "containers", "name:old")
    assert row["state"] == "exited" and row["in"] == "–"
    assert row["model"] == "–", "it has none until it is started"
    detail = registry.detail(context, container_ref("docker", old.id))
    assert "Namespaces" not in [section.title for section in detail.sections]
    assert the_row(context, "overview", "name:old")["model"] == "–"


def test_open_vswitch_bridges_are_bridges_with_ports() -> None:
    host = HostBuilder()
    own = host.link(HOST, "ovsbr", "tun", ("10.5.0.1/24",))
    ns = host.namespace(HOST + 1, names=("x",))
    port = host.wire(ns, own, "v-x", ("10.5.0.2/24",))
    host.links[HOST][port.ifindex] = replace(port, master=None, port=None)
    host.container("netns", "x", ns, id="x", namespaces={"net": ns})
    switch = OvsBridge(
        "ovsbr",
        "netdev",
        ports=(
            OvsPort("ovsbr", interfaces=(OvsInterface("ovsbr", "internal", own.ifindex),)),
            OvsPort("v-x", tag=7, interfaces=(OvsInterface("v-x", "system", port.ifindex),)),
            OvsPort("lost", interfaces=(OvsInterface("lost", error="could not open network device lost"),)),
        ),
    )
    context = context_of(host.snapshot(ovs=(switch,)))
    rows = all_rows(rows_of(context, "bridges"))
    assert [(row.depth, row.cells[0].text) for row in rows] == [(0, "ovsbr"), (1, "v-x")]
    assert cells(context, "bridges", rows[0])["vlan"] == "ovs"
    lines = lines_of(registry.detail(context, rows[0].ref))
    assert lines["datapath"] == "in user space" and lines["lost"].endswith("device lost")
    assert lines["v-x"] == "VLAN 7, system"
    states = {row.cells[0].text: cells(context, "ovs", row)["state"] for row in rows_of(context, "ovs")}
    assert (states["v-x"], states["lost"]) == ("down", "broken")
    assert the_row(context, "veths", "ct:x")["master"] == "ovsbr VLAN 7"
    leads = [label for label, _ in related(context.topology, container_ref("netns", "x"))]
    assert "bridge ovsbr" in leads


def test_tunnels_of_the_kernels_datapath_have_their_remotes() -> None:
    host = HostBuilder()
    system = host.link(HOST, "ovs-system", "ovs-port")
    own = host.link(HOST, "br-int", "ovs-port")
    shared = host.link(HOST, "vxlan_sys_4789", "vxlan", master=system.ifindex)
    veth = host.link(HOST, "v-x", "veth", master=system.ifindex)
    tunnels = [
        OvsPort(
            f"vx{number}", tag=number,
            interfaces=(
                OvsInterface(
                    f"vx{number}", "vxlan", shared.ifindex,
                    options={"remote_ip": f"192.0.2.{number}", "key": "\x1b[31m7"},
                ),
            ),
        )
        for number in (8, 9)
    ]  # fmt: skip
    ports = (
        OvsPort("br-int", interfaces=(OvsInterface("br-int", "internal", own.ifindex),)),
        OvsPort("v-x", trunks=(5, 6), interfaces=(OvsInterface("v-x", "system", veth.ifindex),)),
        *tunnels,
    )
    switch = OvsBridge(
        "br-int", ports=ports, controllers=(OvsController("tcp:192.0.2.3:6653", True, "master"),)
    )
    context = context_of(host.snapshot(ovs=(switch,)))
    assert the_row(context, "links", "name:v-x")["master"] == "br-int VLAN trunk 5 6"
    assert the_row(context, "links", "vlan:9")["name"] == "vxlan_sys_4789"
    (row,) = [row for row in all_rows(rows_of(context, "bridges")) if row.cells[0].text == "vxlan_sys_4789"]
    assert cells(context, "bridges", row)["vlan"] == "8; 9"
    other = cells(context, "bridges", row)["net"]
    assert "vx8: vxlan to 192.0.2.8 key=" in other and "vx9: vxlan to 192.0.2.9" in other
    assert "\x1b" not in other
    listed = {row.cells[0].text: row for row in all_rows(rows_of(context, "ovs"))}
    assert list(listed) == ["br-int", "tcp:192.0.2.3:6653", "v-x", "vx8", "vx9"]
    assert cells(context, "ovs", listed["vx9"])["end"] == "192.0.2.9"
    assert the_row(context, "ovs", "end:192.0.2.8")["name"] == "vx8"
    for row in listed.values():
        assert registry.detail(context, row.ref).title
    bridge = lines_of(registry.detail(context, listed["br-int"].ref))
    assert bridge["tcp:192.0.2.3:6653"] == "connected master"
    assert the_row(context, "networks", "name:br-int")["kind"] == "ovs"


def test_ports_published_only_by_rules_are_shown() -> None:
    host = small_builder()
    host.rule(
        "DOCKER", "-A DOCKER -p udp --dport 5353 -j DNAT --to-destination 172.18.0.4:53",
        l4_proto="udp", dport="5353", verdict="dnat", to_address="172.18.0.4", to_port="53",
    )  # fmt: skip
    context = context_of(host.snapshot())
    assert the_row(context, "containers", "name:api")["port"] == "5353→53/udp"
    assert len(rows_of(context, "containers").matching("port:5353")) == 1
