"""The flows view: rows, order, filter, groups, matrix, details, and its keys."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from core.flows.merge import FlowTable, table_of
from core.model import Ref, Snapshot, flow_ref
from core.topology import Topology
from core.topology.flow_index import FlowView
from core.update import Update
from tests.ui.driver import FedSource, dashboard
from tests.ui.test_conntrack_rows import ENTRIES, HOST, LAB, snapshot
from tui.views import flows_detail, registry
from tui.views.flows import COLUMNS, FlowRows
from tui.views.lists import lay_out
from tui.views.rows import GROUPINGS, FlowViewOptions, ViewContext

NAMES = (*ENTRIES, "inner")
REFS = {name: flow_ref(HOST, place + 1) for place, name in enumerate(ENTRIES)} | {"inner": flow_ref(LAB, 77)}


def measured(taken: Snapshot) -> FlowTable:
    """Return the sample's table with rates: highest for "in", none for "inner"."""
    table = table_of(taken.conntracks, at=taken.taken_at)
    speeds = np.full((len(NAMES), 4), np.nan, np.float32)
    for place, name in enumerate(["in", "out", "six", "dns", "ping", "ssh"]):
        speeds[NAMES.index(name)] = [10.0 ** (6 - place), 0, 1, 1]
    path = np.zeros(len(NAMES), np.uint8)
    path[NAMES.index("in")] = 1
    path[NAMES.index("dns")] = 3
    return replace(table, speeds=speeds, path=path, measured=True)


@pytest.fixture
def flows_view() -> FlowView:
    taken = snapshot()
    return FlowView.of(Topology(taken), measured(taken))


@pytest.fixture
def rows(flows_view: FlowView) -> FlowRows:
    return FlowRows(flows_view.index.topology, flows_view)


def names(rows: FlowRows) -> list[str]:
    known = {ref: name for name, ref in REFS.items()}
    return [known[rows.row(place).ref] for place in range(len(rows))]


def test_cells_of_a_row(rows: FlowRows) -> None:
    row = rows.row(names(rows).index("in"))
    shown_detail = {column.name: cell.text for column, cell in zip(COLUMNS, row.cells, strict=True)}
    assert shown_detail == {
        "from": "198.51.100.9:5000", "via": "DNAT :8080", "to": "web1 172.18.0.2:80", "proto": "tcp",
        "rate": "1.0 Mbit/s", "path": "fast", "state": "ESTABLISHED", "client": "outside", "bytes": "120 B",
        "rtt": "–", "process": "–", "age": "–", "timeout": "1m 00s", "packets": "2", "ns": "host",
        "retrans": "–", "lost": "–", "ooo": "–",
    }  # fmt: skip


def test_order_by_rate_has_unknown_rates_last(rows: FlowRows) -> None:
    descending = ["in", "out", "six", "dns", "ping", "ssh", "inner"]
    assert names(rows.sorted_by("rate", True)) == descending
    assert names(rows.sorted_by("rate", False)) == [*reversed(descending[:-1]), "inner"]


@pytest.mark.parametrize("column", [column.name for column in COLUMNS])
def test_sorting_by_any_column_keeps_all_rows(rows: FlowRows, column: str) -> None:
    one, other = names(rows.sorted_by(column, False)), names(rows.sorted_by(column, True))
    assert sorted(one) == sorted(other) == sorted(NAMES)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("rate:>50k", {"in", "out"}),
        ("rate:<=100", {"ping", "ssh"}),
        ("rate:1k-20k", {"six", "dns"}),
        ("bytes:>1k", {"out"}),
        ("hops:>1", set()),
        ("path:fast", {"in"}),
        ("path:part", {"dns"}),
        ("path:kernel client:outside", set()),
        ("client:outside", {"in"}),
        ("from:web1", {"out", "six"}),
        ("to:web1", {"in"}),
        ("to:1.1.1.1", {"out", "ping"}),
        ("via:dnat", {"in"}),
        ("port:443 !proto:udp", {"out", "six"}),
        ("proto:=tcp state:est !ns:lab", {"out", "in", "six"}),
        ("ns:lab", {"inner"}),
        ("timeout:>1000", {"out"}),
        ("web2", {"dns", "ping"}),
        ("rate:fast", set()),
    ],
)
def test_filters(rows: FlowRows, text: str, wanted: set[str]) -> None:
    assert set(names(rows.matching(text))) == wanted


def test_every_column_is_a_filter_key(rows: FlowRows) -> None:
    assert {column.name for column in COLUMNS} <= set(rows.keys())


def test_pinned_flows_stay_on_top_under_a_filter(rows: FlowRows) -> None:
    seen = rows.with_options(FlowViewOptions(pins=frozenset({REFS["ssh"]}))).matching("client:outside")
    assert names(seen.sorted_by("rate", True)) == ["ssh", "in"]
    assert seen.sorted_by("rate", True).row(0).cells[0].text == "◆ 198.51.100.9:6000"


def test_an_ended_flow_has_no_index(rows: FlowRows) -> None:
    assert rows.index(flow_ref(HOST, 999)) is None
    assert rows.index(Ref("link", (HOST, 1))) is None
    assert names(rows)[rows.index(REFS["dns"]) or 0] == "dns"


def grouped(rows: FlowRows, by: str) -> list[list[str]]:
    return [[cell.text for cell in row.cells] for row in rows.with_options(FlowViewOptions(by=by)).grouped()]  # type: ignore


@pytest.mark.parametrize(
    ("by", "first"),
    [
        ("container", ["web1", "3", "1.1 Mbit/s"]),
        ("peer", ["198.51.100.9", "2", "1.0 Mbit/s"]),
        ("port", ["80/tcp", "2", "1.0 Mbit/s"]),
        ("client", ["outside", "1", "1.0 Mbit/s"]),
    ],
)
def test_groups(rows: FlowRows, by: str, first: list[str]) -> None:
    assert grouped(rows, by)[0][:3] == first


def test_a_group_shows_the_share_of_fast_traffic(rows: FlowRows, flows_view: FlowView) -> None:
    shown = {line[0]: dict(zip(range(9), line, strict=False)) for line in grouped(rows, "port")}
    assert (shown["80/tcp"][6], shown["443/tcp"][6], shown["53/udp"][6]) == ("100%", "0%", "0%")
    flow_options = FlowViewOptions(by="client")
    (row,) = rows.with_options(flow_options).grouped()  # type: ignore[union-attr]
    shown_detail = flows_detail.group_detail(
        ViewContext(flows_view.index.topology, flows=flows_view, flow_options=flow_options), row.ref
    )
    assert ("fast", "1 of 1 flow, 100% of the traffic") in [
        (label, cell.text) for label, cell, _ in shown_detail.sections[0].lines
    ]


@pytest.mark.parametrize(("width", "ends"), [(78, 23), (83, 25), (100, 27), (128, 27), (141, 27), (198, 27)])
def test_both_ends_get_room_before_less_important_columns(width: int, ends: int) -> None:
    shown = {placed.column.name: placed.width for placed in lay_out(COLUMNS, width)}
    assert {"proto", "rate", "path"} <= set(shown)
    assert min(shown["from"], shown["to"]) >= ends


@pytest.mark.parametrize(
    ("selects", "title"),
    [
        ("", "all flows"), ("peer:=2001:db8::80", "peer 2001:db8::80"), ("port:=80/tcp", "port 80/tcp"),
        ("ct:web1 peer:192.0.2.1", "ct web1 peer 192.0.2.1"),
    ],
)  # fmt: skip
def test_the_title_of_a_group(selects: str, title: str) -> None:
    assert flows_detail.group_title(selects) == title


def test_a_groups_filter_selects_its_flows(rows: FlowRows) -> None:
    for by in GROUPINGS[1:-1]:
        for row in rows.with_options(FlowViewOptions(by=by)).grouped():  # type: ignore[union-attr]
            assert len(rows.matching(str(row.ref.key[1]))) == row.cells[1].sort, (by, row.ref)


def test_the_matrix_of_sources_and_targets(rows: FlowRows) -> None:
    table = rows.with_options(FlowViewOptions(by="matrix")).grouped()
    titles = [column.title for column in table.columns]
    cells = {
        row.cells[0].text: dict(zip(titles, (cell.text for cell in row.cells), strict=True)) for row in table
    }  # type: ignore
    assert cells["elsewhere"]["web1"] == "1.0 Mbit/s"
    assert cells["web1"]["elsewhere"] == "110 kbit/s"


def test_the_matrix_keeps_the_order_of_its_columns(flows_view: FlowView) -> None:
    """The order does not depend on the rates."""
    titles = []
    for turn in (1, -1):
        table = replace(flows_view.table, speeds=flows_view.table.speeds[::turn])
        other = FlowView.of(flows_view.index.topology, table)
        matrix = FlowRows(other.index.topology, other).with_options(FlowViewOptions(by="matrix")).grouped()
        titles.append([(column.title, column.priority) for column in matrix.columns])
    assert titles[0] == titles[1]
    shown = [title for title, _ in titles[0][1:-1]]
    assert shown == [*sorted(shown[:-1]), "elsewhere"]


def test_a_groups_detail_and_row_count_the_same_flows_under_a_filter(
    rows: FlowRows, flows_view: FlowView
) -> None:
    text = "client:outside"
    for flow_options in (FlowViewOptions(by="container"), FlowViewOptions(per_hop=True, by="container")):
        for shown, asked in (
            (rows.with_options(flow_options), ""),
            (rows.with_options(flow_options).matching(text), text),
        ):
            context = ViewContext(
                flows_view.index.topology, flows=flows_view, flows_filter=asked, flow_options=flow_options
            )
            for row in shown.grouped():  # type: ignore[union-attr]
                shown_detail = flows_detail.group_detail(context, row.ref).sections[0].lines
                values = {label: cell.text for label, cell, _ in shown_detail}
                assert values["flows"] == row.cells[1].text, (row.ref, asked)
                assert values["fast"].split(" of ")[1].split()[0] == row.cells[1].text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("port:abc", "can't filter by port:abc"),
        ("rate:>zzz", "can't filter by rate:>zzz"),
        ("bytes:9-1", "can't filter by bytes:9-1"),
    ],
)
async def test_an_invalid_filter_is_explained(text: str, reason: str) -> None:
    taken = snapshot()
    async with dashboard(source=FedSource(taken), size=(80, 24)) as person:
        await person.type(":flows⏎")
        await person.eventually("7 flows")
        await person.type(f"/{text}⏎")
        await person.eventually(reason)
        await person.press("b")
        await person.eventually("By container")
        await person.eventually(reason)


async def test_the_grouping_is_shown() -> None:
    taken = snapshot()
    async with dashboard(source=FedSource(taken), size=(80, 24)) as person:
        await person.type(":flows⏎")
        await person.eventually("7 flows")
        assert "8 flow" in person.lines[1]
        for by in GROUPINGS[1:-1]:
            await person.press("b")
            assert f"By {by}" in person.text and "no longer in this list" not in person.text
            assert f"Flows by {by}" in person.text
        await person.press("b")
        assert "Traffic matrix" in person.text
        await person.press("b")
        assert "Not grouped" in person.text


async def test_cut_lines_above_the_columns_end_in_an_ellipsis() -> None:
    taken = snapshot()
    async with dashboard(source=FedSource(taken), size=(44, 24)) as person:
        await person.type(":flows⏎")
        await person.eventually("7 flows")
        await person.press("*")
        await person.eventually("pinned first")
        (line,) = (line for line in person.lines if "pinned first" in line)
        assert line.rstrip().endswith("…")


async def test_columns_that_do_not_fit_are_counted() -> None:
    taken = snapshot()
    source = FedSource(taken)
    async with dashboard(source=source, size=(60, 24)) as person:
        await person.type(":flows⏎")
        await person.eventually("7 flows")
        await person.press(*"bbbbbbb")
        await person.eventually("from \\ to")
        columns = len(person.dashboard.table.columns)
        missing = columns - len(person.dashboard.table.visible_columns())
        assert missing
        assert f"{missing} column{'s' * (missing != 1)} not shown" in person.text


def test_detail_of_a_flow(flows_view: FlowView) -> None:
    context = ViewContext(flows_view.index.topology, flows=flows_view)
    shown_detail = flows_detail.detail(context, REFS["in"])
    assert shown_detail.copy == (
        "198.51.100.9:5000 -> [DNAT 192.0.2.1:8080] -> web1 172.18.0.2:80 tcp ESTABLISHED 1.0 Mbit/s fast"
    )
    texts = {label: cell.text for section in shown_detail.sections for label, cell, _ in section.lines}
    assert texts["client"] == "another host"
    assert texts["sent"] == "1.0 Mbit/s, 1 p/s, 60 B in 1 packet, 0 B of it fast"
    uncounted = flows_detail.detail(context, REFS["ssh"])
    texts = {label: cell.text for section in uncounted.sections for label, cell, _ in section.lines}
    assert texts["traffic"].startswith("not counted")
    assert registry.detail(context, flow_ref(HOST, 999)).title == "this flow is gone"


async def test_keys_of_the_view() -> None:
    taken = snapshot()
    source = FedSource(taken)
    async with dashboard(source=source) as person:
        await person.type(":flows⏎")
        assert source._listener is not None
        source._listener(Update(taken, flows=measured(taken)))
        await person.eventually("1.0 Mbit/s")
        assert person.row() == "198.51.100.9:5000"
        await person.eventually("7 flows, each once")
        await person.eventually("traffic not counted (to count it: W, then A)")
        await person.press("o")
        await person.eventually("7 flows per hop")
        await person.press("b")
        await person.eventually("container")
        assert person.row() == "web1"
        await person.press("⏎")
        await person.eventually("filtered 3 of 7")
        await person.press("*")
        await person.eventually("pinned first")
        await person.press("A")
        await person.eventually("opened with --read-only")
