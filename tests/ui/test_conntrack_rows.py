"""The conntrack view: text of visible rows, order, filter, and the detail."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from core.flows import address_bytes, address_text
from core.flows.columns import halves
from core.model import (
    CONNTRACK_DTYPE,
    Address,
    Conntrack,
    Container,
    Endpoint,
    Engine,
    Firewall,
    FirewallRule,
    Host,
    Link,
    Namespace,
    NatEntry,
    NetState,
    Ref,
    Snapshot,
    conntrack_ref,
    container_ref,
    namespace_ref,
    nat_ref,
)
from core.topology import Topology
from tests.support.flow_samples import ICMP, UDP, UNREPLIED, flow, table
from tui.views import lists, query
from tui.views.conntrack import COLUMNS, VIEW, ConntrackRows, conntrack_rows, detail
from tui.views.rows import Row, ViewContext

HOST, LAB = 100, 200
WEB1, WEB2 = "172.18.0.2", "172.18.0.3"

ENTRIES = {
    "out": flow(f"{WEB1}:41822", "1.1.1.1:443", seen_as="192.0.2.1:41822", timeout=432000, counted=True,
                packets=(10, 20), bytes=(1000, 2000)),
    "in": flow("198.51.100.9:5000", "192.0.2.1:8080", f"{WEB1}:80", timeout=60, counted=True, packets=(1, 1),
               bytes=(60, 60)),
    "dns": flow(f"{WEB2}:5353", "1.1.1.53:53", seen_as="192.0.2.1:1053", l4_proto=UDP, status=UNREPLIED,
                timeout=30),
    "ping": flow(f"{WEB2}:7", f"1.1.1.1:{8 << 8}", l4_proto=ICMP, reply_sport=7, reply_dport=0, timeout=29),
    "ssh": flow("198.51.100.9:6000", "192.0.2.1:22", timeout=100, tcp_state=7),
    "six": flow("fd00::2|4000", "2001:db8::9|443", seen_as="2001:db8::1|4000", timeout=99, mark=0x10, zone=3),
}  # fmt: skip
INNER = {"inner": flow("10.9.9.9:1", "10.9.9.8:80", id=77)}
NAMES = (*ENTRIES, *INNER)


def snapshot() -> Snapshot:
    """Return a host with two containers and a namespace, each with a table."""
    card = Link(HOST, 2, "eth0", "physical", addresses=(Address(4, "192.0.2.1", 24),))
    containers = (
        Container("docker", "a1", "web1", endpoints=(Endpoint("br", f"{WEB1}/16", "fd00::2/64"),)),
        Container("docker", "a2", "web2", endpoints=(Endpoint("br", f"{WEB2}/16"),)),
    )
    return Snapshot(
        host=Host(netns=HOST),
        namespaces={HOST: Namespace(HOST, is_host=True), LAB: Namespace(LAB, names=("lab",))},
        nets={HOST: NetState(HOST, {2: card}), LAB: NetState(LAB)},
        conntracks={HOST: table(HOST, *ENTRIES.values()), LAB: table(LAB, *INNER.values())},
        engines={"docker": Engine("docker", "ok", containers=containers)},
    )


@pytest.fixture
def topology() -> Topology:
    return Topology(snapshot())


@pytest.fixture
def rows(topology: Topology) -> ConntrackRows:
    return conntrack_rows(topology)


def all_rows(rows: ConntrackRows) -> list[Row]:
    return [rows.row(place) for place in range(len(rows))]


def names(rows: ConntrackRows) -> list[str]:
    """Return the rows' names in ENTRIES and INNER."""
    known = {conntrack_ref(HOST, place + 1): name for place, name in enumerate(ENTRIES)} | {
        conntrack_ref(LAB, 77): "inner"
    }
    return [known[row.ref] for row in all_rows(rows)]


def cell(rows: ConntrackRows, name: str, column: str) -> str:
    row = rows.row(names(rows).index(name))
    return row.cells[[each.name for each in COLUMNS].index(column)].text


def test_cells_of_a_row(rows: ConntrackRows) -> None:
    texts = [
        [cell(rows, name, column.name) for column in COLUMNS] for name in ("out", "in", "dns", "ping", "ssh")
    ]
    assert texts == [
        ["tcp", "ESTABLISHED", f"web1 {WEB1}:41822", "→", "1.1.1.1:443", "SNAT 192.0.2.1", "3.0 kB", "5d 00h",
         "30", "host"],
        ["tcp", "ESTABLISHED", f"web1 {WEB1}:80", "←", "198.51.100.9:5000", "DNAT :8080", "120 B", "1m 00s",
         "2", "host"],
        ["udp", "UNREPLIED", f"web2 {WEB2}:5353", "→", "1.1.1.53:53", "SNAT 192.0.2.1", "–", "30s", "–",
         "host"],
        ["icmp", "ASSURED", f"web2 {WEB2}", "→", "1.1.1.1", "–", "–", "29s", "–", "host"],
        ["tcp", "TIME_WAIT", "host 192.0.2.1:22", "←", "198.51.100.9:6000", "–", "–", "1m 40s", "–", "host"],
    ]  # fmt: skip
    assert cell(rows, "inner", "ns") == "lab"


def test_names_are_escaped() -> None:
    evil = Container("docker", "x", "a\x1b[31m\n", endpoints=(Endpoint("br", "10.0.0.1/8"),))
    shot = Snapshot(
        host=Host(netns=HOST), conntracks={HOST: table(HOST, flow("10.0.0.1:1", "10.0.0.2:2"))},
        engines={"docker": Engine("docker", "ok", containers=(evil,))},
    )  # fmt: skip
    for text in (one.text for one in conntrack_rows(Topology(shot)).row(0).cells):
        assert text.isprintable()


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("", "out in dns ping ssh six inner"),
        ("web1", "out in six"),
        ("WEB2", "dns ping"),
        ("172.18", "out in dns ping"),
        (".18.0.3", "dns ping"),
        ("443", "out six"),
        ("53", "dns"),
        ("1.1.1.1:4", "out"),
        ("192.0.2.1:", "out in dns ssh"),
        ("fd00", "six"),
        ("fd00::2", "six"),
        ("2001:db8", "six"),
        ("::9", "six"),
        ("udp", "dns"),
        ("unrep", "dns"),
        ("snat", "out dns six"),
        ("lab", "inner"),
        ("nothing", ""),
        ("tcp !443", "in ssh inner"),
        ("ns:lab", "inner"),
        ("ns:200", "inner"),
        ("!ns:lab", "out in dns ping ssh six"),
        ("ct:web1", "out in six"),
        ("proto:icmp", "ping"),
        ("state:time_wait", "ssh"),
        ("state:unreplied", "dns"),
        ("state:est", "out in six inner"),
        ("port:80", "in inner"),
        ("port:8080", "in"),
        ("port:8", ""),
        ("port:400-500", "out six"),
        ("port:http", ""),
        ("sport:41822", "out"),
        ("dport:41822", ""),
        ("dport:80", "in inner"),
        ("addr:172.18.0.0/16", "out in dns ping"),
        ("addr:1.1.1.1", "out ping"),
        ("addr:1.1.1.", "out dns ping"),
        ("addr:1.1.1.5", ""),
        ("addr:198.51", "in ssh"),
        ("addr:fd00::/8", "six"),
        ("addr:2001:", "six"),
        ("addr:2001:db8::", "six"),
        ("addr:web2", "dns ping"),
        ("src:192.0.2.1", "out dns"),
        ("dst:192.0.2.1", "in ssh"),
        ("inside:web1", "out in six"),
        ("inside:198.51.100.9", ""),
        ("peer:198.51.100.9", "in ssh"),
        ("nat:dnat", "in"),
        ("mark:0x10", "six"),
        ("zone:3", "six"),
        ("id:77", "inner"),
        ("mac:02:42", ""),
        ("addr:172.18.0.0/99", ""),
    ],
)
def test_filter(rows: ConntrackRows, query: str, wanted: str) -> None:
    assert sorted(names(rows.matching(query))) == sorted(wanted.split())


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        ("proto", "ping inner in out ssh six dns"),
        ("state", "ping inner in out six ssh dns"),
        ("inside", "inner in out ping dns ssh six"),
        ("peer", "ping out dns inner in ssh six"),
        ("packets", "in out inner ping dns ssh six"),
        ("bytes", "in out inner ping dns ssh six"),
        ("timeout", "inner ping dns in six ssh out"),
        ("ns", "in out ping dns ssh six inner"),
        ("no such column", "out in dns ping ssh six inner"),
    ],
)
def test_order(rows: ConntrackRows, column: str, wanted: str) -> None:
    assert sorted(names(rows)) == sorted(NAMES)
    assert names(rows.sorted_by(column, False)) == wanted.split()


def test_reversed_order_keeps_blanks_last_and_is_stable(rows: ConntrackRows) -> None:
    assert names(rows.sorted_by("bytes", True)) == ["out", "in", "inner", "ping", "dns", "ssh", "six"]
    assert names(rows.sorted_by("proto", True)) == ["dns", "inner", "in", "out", "ssh", "six", "ping"]
    assert names(rows.sorted_by("translation", True))[-3:] == ["inner", "ping", "ssh"]


def test_filter_and_order_combine(rows: ConntrackRows) -> None:
    found = rows.sorted_by("timeout", True).matching("tcp").sorted_by("state", False).matching("!inner")
    assert names(found) == ["inner", "in", "out", "six", "ssh"]


def test_index_finds_an_entry(rows: ConntrackRows) -> None:
    shown = rows.matching("!icmp").sorted_by("timeout", False)
    for place, row in enumerate(all_rows(shown)):
        assert shown.index(row.ref) == place
    assert shown.index(conntrack_ref(HOST, 4)) is None
    assert shown.index(conntrack_ref(LAB, 1)) is None
    assert shown.index(namespace_ref(HOST)) is None


def test_an_empty_table() -> None:
    rows = conntrack_rows(Topology(Snapshot(conntracks={HOST: Conntrack(HOST)})))
    assert len(rows) == 0
    assert len(rows.matching("tcp").sorted_by("inside", True)) == 0
    assert rows.index(conntrack_ref(HOST, 1)) is None


def test_the_view_fits_a_small_terminal() -> None:
    shown = {placed.column.name for placed in lists.lay_out(COLUMNS, 78)}
    assert {"proto", "state", "inside", "peer"} <= shown
    assert len(VIEW.rows(ViewContext(Topology(snapshot())))) == len(NAMES)


def lines(topology: Topology, ref: Ref) -> dict[str, list[str]]:
    """Return the detail's lines by section, each as "label: text"."""
    found = detail(topology, ref)
    return {part.title: [f"{label}: {one.text}" for label, one, _ in part.lines] for part in found.sections}


def test_detail_of_an_entry(topology: Topology) -> None:
    topology.__dict__["nat"] = ()
    found = lines(topology, conntrack_ref(HOST, 1))
    assert found["Connection"] == [
        f": web1 {WEB1}:41822 -> [SNAT 192.0.2.1:41822] -> 1.1.1.1:443 tcp ESTABLISHED",
        f"inside: web1 {WEB1}:41822", "peer: 1.1.1.1:443",
        f"translation: packets from {WEB1}:41822 get the source 192.0.2.1:41822",
    ]  # fmt: skip
    assert found["Original direction"] == [
        f"from: {WEB1}:41822",
        "to: 1.1.1.1:443",
        "traffic: 1.0 kB in 10 packets",
    ]
    assert found["Reply direction"] == [
        "from: 1.1.1.1:443",
        "to: 192.0.2.1:41822",
        "traffic: 2.0 kB in 20 packets",
    ]
    assert "expires in: 5d 00h without a packet" in found["State"]


def test_detail_of_an_uncounted_ping(topology: Topology) -> None:
    topology.__dict__["nat"] = ()
    found = lines(topology, conntrack_ref(HOST, 4))
    assert found["Original direction"] == [
        f"from: {WEB2}", "to: 1.1.1.1", "ICMP: echo-request, id 7",
        "traffic: not counted: nf_conntrack_acct is off",
    ]  # fmt: skip


def test_detail_links_to_container_rule_and_namespace() -> None:
    rule = FirewallRule("nft", "ip", "nat", "post", "r1", "", "masquerade", src="172.18.0.0/16")
    topology = Topology(replace(snapshot(), firewalls={HOST: Firewall(HOST, rules=(rule,))}))
    topology.__dict__["nat"] = (
        NatEntry(HOST, "n1", "masquerade", "way out", "", "ip", rules=("r1",)),
        NatEntry(LAB, "n2", "masquerade", "elsewhere", "", "ip", rules=("r1",)),
    )
    related = [ref for _, ref in detail(topology, conntrack_ref(HOST, 1)).related]
    assert related == [container_ref("docker", "a1"), nat_ref(HOST, "n1"), namespace_ref(HOST)]


def test_detail_of_a_deleted_entry(topology: Topology) -> None:
    for ref in (conntrack_ref(HOST, 999), conntrack_ref(5, 1)):
        assert detail(topology, ref).title == "this connection is gone"


ipv4 = st.binary(min_size=4, max_size=4).map(lambda raw: bytes(10) + b"\xff\xff" + raw)
# Few different hextets, some of them zero, so that fragments match.
ipv6 = st.lists(st.sampled_from([0, 0, 1, 0x10, 0xDB8, 0x2001, 0xFD00]), min_size=8, max_size=8).map(
    lambda hextets: np.array(hextets, ">u2").tobytes()
)


@st.composite
def fragments(draw: st.DrawFn, address: st.SearchStrategy[bytes]) -> tuple[list[bytes], str]:
    """Draw some addresses, and a piece of the text of one of them."""
    addresses = draw(st.lists(address, min_size=1, max_size=5))
    text = address_text(addresses[0])
    start = draw(st.integers(0, len(text) - 1))
    return addresses, text[start : draw(st.integers(start + 1, len(text)))]


@settings(max_examples=300, deadline=None)
@given(fragments(ipv4))
def test_filter_by_a_piece_of_an_ipv4_address(drawn: tuple[list[bytes], str]) -> None:
    addresses, fragment = drawn
    texts = [address_text(raw) for raw in addresses]
    stored = halves(addresses)
    assert query.containing(stored, fragment).tolist() == [fragment in text for text in texts]
    assert query.ending(stored, fragment).tolist() == [text.endswith(fragment) for text in texts]


@settings(max_examples=300, deadline=None)
@given(fragments(ipv6))
def test_filter_by_a_piece_of_an_ipv6_address(drawn: tuple[list[bytes], str]) -> None:
    """A piece matches the short text of an address, and the one with all zeros."""
    addresses, fragment = drawn
    found = query.containing(halves(addresses), fragment).tolist()
    for raw, hit in zip(addresses, found, strict=True):
        written_out = ":".join(f"{hextet:x}" for hextet in np.frombuffer(raw, ">u2"))
        if fragment in address_text(raw):
            assert hit
        elif "::" not in fragment:
            assert hit == (fragment in written_out)


@settings(max_examples=100, deadline=None)
@given(st.lists(ipv4 | ipv6, max_size=5), ipv4 | ipv6)
def test_a_whole_address_matches_only_itself(addresses: list[bytes], wanted: bytes) -> None:
    text = address_text(wanted)
    assume(text == "::" or not text.endswith("::"))  # "fd00::" matches what begins with it
    found = query.matching(halves(addresses), text)
    assert found is not None
    assert found.tolist() == [raw == wanted for raw in addresses]


def test_filter_by_the_text_of_a_port() -> None:
    ports = np.arange(65536)
    for piece, at_start in itertools.product(("0", "44", "65535", "80"), (False, True)):
        wanted = [str(port).startswith(piece) if at_start else piece in str(port) for port in range(65536)]
        assert query.numbers(ports, piece, at_start).tolist() == wanted


def test_a_large_table_sorted_by_each_column() -> None:
    """Sorting by a column gives the same order as sorting its rows' text."""
    rng = np.random.default_rng(1)
    entries = np.zeros(3000, CONNTRACK_DTYPE)
    entries["id"] = np.arange(3000)
    for name in ("orig_src", "orig_dst", "reply_src", "reply_dst"):
        entries[name][:] = np.frombuffer(address_bytes("10.0.0.0"), "u1")
        entries[name][:, 15] = rng.integers(0, 9, 3000)
    for name in ("orig_sport", "orig_dport", "reply_sport", "reply_dport"):
        entries[name] = rng.integers(1, 5, 3000)
    entries["l4_proto"], entries["tcp_state"] = rng.choice([6, 17], 3000), rng.integers(0, 9, 3000)
    rows = conntrack_rows(Topology(Snapshot(conntracks={1: Conntrack(1, entries)})))
    for column in ("proto", "state", "inside", "peer"):
        place = [each.name for each in COLUMNS].index(column)
        texts = [row.cells[place].text for row in all_rows(rows.sorted_by(column, False))]
        assert texts == sorted(texts, key=str.casefold)
