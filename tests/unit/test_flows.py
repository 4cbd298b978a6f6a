"""Interpretation of entries: names, translations, both ends, also in columns."""

from __future__ import annotations

import ipaddress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.flows import (
    STATES,
    TRANSLATIONS,
    Flow,
    FlowColumns,
    address_bytes,
    address_text,
    entry_of,
    flow_of,
    icmp_text,
    protocol_name,
    sentence,
    state_text,
    status_words,
    translators,
)
from core.flows.columns import halves, is_among
from core.flows.describe import address_texts
from core.model import CONNTRACK_DTYPE, FirewallRule, NatEntry
from core.text import end_text
from tests.support.flow_samples import ICMP, TCP, UDP, UNREPLIED, flow, table

WEB1, WEB2 = "172.18.0.2", "172.18.0.3"
NAMES = {address_bytes(WEB1): "web1", address_bytes(WEB2): "web2", address_bytes("fd00::2"): "web1"}

OUT = flow(f"{WEB1}:41822", "1.1.1.1:443", seen_as="192.0.2.1:41822")
IN = flow("198.51.100.9:5000", "192.0.2.1:8080", f"{WEB1}:80")
BOTH = flow(f"{WEB2}:5000", "192.0.2.1:8080", f"{WEB1}:80", "172.18.0.1:5000")
PLAIN = flow("198.51.100.9:5000", f"{WEB1}:80")
PING = flow(f"{WEB1}:7", f"1.1.1.1:{8 << 8}", seen_as="192.0.2.1:0", l4_proto=ICMP, reply_sport=7)


def interpreted(row: np.void) -> Flow:
    return flow_of(entry_of(row), NAMES)


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        (OUT, "web1 172.18.0.2:41822 -> [SNAT 192.0.2.1:41822] -> 1.1.1.1:443 tcp ESTABLISHED"),
        (IN, "198.51.100.9:5000 -> [DNAT 192.0.2.1:8080] -> web1 172.18.0.2:80 tcp ESTABLISHED"),
        (
            BOTH,
            "web2 172.18.0.3:5000 -> [DNAT 192.0.2.1:8080, SNAT 172.18.0.1:5000] -> web1 172.18.0.2:80"
            " tcp ESTABLISHED",
        ),
        (PLAIN, "198.51.100.9:5000 -> web1 172.18.0.2:80 tcp ESTABLISHED"),
        (PING, "web1 172.18.0.2 -> [SNAT 192.0.2.1] -> 1.1.1.1 icmp echo-request id 7 ASSURED"),
        (
            flow("fd00::2|1", "2001:db8::9|53", l4_proto=UDP, status=UNREPLIED),
            "web1 [fd00::2]:1 -> [2001:db8::9]:53 udp UNREPLIED",
        ),
        (flow("10.0.0.1", "10.0.0.2", l4_proto=89), "10.0.0.1 -> 10.0.0.2 ospf ASSURED"),
    ],
)
def test_sentence(row: np.void, wanted: str) -> None:
    assert sentence(interpreted(row)) == wanted


@pytest.mark.parametrize(
    ("row", "inside", "peer"),
    [
        (OUT, f"web1 {WEB1}:41822", "1.1.1.1:443"),
        (IN, f"web1 {WEB1}:80", "198.51.100.9:5000"),
        (BOTH, f"web1 {WEB1}:80", f"web2 {WEB2}:5000"),
        (PLAIN, f"web1 {WEB1}:80", "198.51.100.9:5000"),
        (flow("10.0.0.1:1", "10.0.0.2:2"), "10.0.0.1:1", "10.0.0.2:2"),
    ],
)
def test_inside_and_peer(row: np.void, inside: str, peer: str) -> None:
    meaning = interpreted(row)
    assert (str(meaning.inside), str(meaning.peer)) == (inside, peer)


def test_a_changed_port_alone_is_a_translation() -> None:
    assert interpreted(flow("10.0.0.1:5", "10.0.0.2:80", seen_as="10.0.0.1:6")).snat == "10.0.0.1:6"
    assert interpreted(flow("10.0.0.1:5", "10.0.0.1:80", "10.0.0.1:8080")).dnat == "10.0.0.1:80"


def test_a_changed_icmp_id_alone_is_a_translation() -> None:
    row = flow("10.0.0.1:5", f"10.0.0.2:{8 << 8}", l4_proto=ICMP, reply_sport=6, reply_dport=0)
    assert interpreted(row).snat == "10.0.0.1 id 6"


def test_icmp_type_is_not_a_translation() -> None:
    """Request and reply always differ in type."""
    row = flow("10.0.0.1:5", f"10.0.0.2:{8 << 8}", l4_proto=ICMP, reply_sport=5, reply_dport=0)
    assert interpreted(row).translation == ""


@given(
    st.binary(min_size=16, max_size=16)
    | st.binary(min_size=4, max_size=4).map(lambda raw: bytes(10) + b"\xff\xff" + raw)
)
def test_addresses_round_trip(raw: bytes) -> None:
    text = address_text(raw)
    assert address_bytes(text) == raw
    wanted = ipaddress.IPv6Address(raw)
    assert text == str(wanted.ipv4_mapped or wanted)


def test_ends() -> None:
    assert end_text("10.0.0.1", 80) == "10.0.0.1:80"
    assert end_text("fd00::1", 80) == "[fd00::1]:80"
    assert end_text("fd00::1", None) == "fd00::1"


def test_description() -> None:
    assert [protocol_name(number) for number in (6, 17, 1, 58, 132, 47, 253)] == [
        "tcp", "udp", "icmp", "icmpv6", "sctp", "gre", "proto 253",
    ]  # fmt: skip
    assert icmp_text(1, 8 << 8) == "echo-request"
    assert icmp_text(1, 3 << 8 | 4) == "destination-unreachable code 4"
    assert icmp_text(58, 129 << 8) == "echo-reply"
    assert icmp_text(58, 250 << 8) == "type 250"
    assert state_text(TCP, 3, UNREPLIED) == "ESTABLISHED"
    assert [state_text(UDP, 0, status) for status in (0x8, 0xA, 0xE)] == ["UNREPLIED", "REPLIED", "ASSURED"]
    assert status_words(0x8) == ("unreplied", "confirmed")
    assert status_words(0x1E) == ("replied", "assured", "confirmed", "source translated")


def test_an_unknown_tcp_state_is_not_an_error() -> None:
    assert state_text(TCP, 200, 0) in STATES


PORT = FirewallRule(
    "iptables-nft", "ip", "nat", "DOCKER", "1", "", "dnat", l4_proto="tcp", dport="8080",
    to_address=WEB1, to_port="80",
)  # fmt: skip
MASQUERADE = FirewallRule(
    "iptables-nft", "ip", "nat", "POSTROUTING", "2", "", "masquerade", src="172.18.0.0/16"
)
ELSEWHERE = FirewallRule(
    "iptables-nft", "ip", "nat", "POSTROUTING", "3", "", "masquerade", src="172.19.0.0/16"
)
NEGATED = FirewallRule("nft", "ip", "nat", "post", "4", "", "snat", dst="!1.0.0.0/8", to_address="192.0.2.1")
UNREADABLE = FirewallRule("nft", "ip", "nat", "post", "5", "", "snat", src="@set")


@pytest.mark.parametrize(("row", "wanted"), [(OUT, ["2"]), (IN, ["1"]), (BOTH, ["1", "2"]), (PLAIN, [])])
def test_rules_that_translated_a_flow(row: np.void, wanted: list[str]) -> None:
    rules = (PORT, MASQUERADE, ELSEWHERE, NEGATED, UNREADABLE)
    entries = [NatEntry(1, f"e{rule.rule_id}", "", "", "", "ip", rules=(rule.rule_id,)) for rule in rules]
    found = translators(FlowColumns([table(1, row)]), entries, rules)
    assert [entry.rules[0] for entry in found] == wanted


ADDRESSES = st.sampled_from(
    [address_bytes(text) for text in (WEB1, WEB2, "1.1.1.1", "fd00::2", "fd00:1::2", "::")]
)
PORTS = st.integers(0, 3)


@st.composite
def rows(draw: st.DrawFn) -> np.void:
    row = np.zeros(1, CONNTRACK_DTYPE)[0]
    for name in ("orig_src", "orig_dst", "reply_src", "reply_dst"):
        row[name] = np.frombuffer(draw(ADDRESSES), "u1")
    for name in ("orig_sport", "orig_dport", "reply_sport", "reply_dport"):
        row[name] = draw(PORTS)
    row["l4_proto"] = draw(st.sampled_from([TCP, UDP, ICMP, 58, 89, 132]))
    row["status"], row["tcp_state"] = draw(st.integers(0, 31)), draw(st.integers(0, 12))
    return row


def column_texts(ends: tuple[np.ndarray, np.ndarray]) -> list[tuple[str, int]]:
    addresses, ports = ends
    texts = [address_text(row.astype(">u8").tobytes()) for row in addresses]
    return list(zip(texts, ports.tolist(), strict=True))


@settings(max_examples=100, deadline=None)
@given(st.lists(rows(), max_size=6), st.lists(rows(), max_size=6))
def test_columns_agree_with_single_entries(first: list[np.void], second: list[np.void]) -> None:
    columns = FlowColumns(
        [table(1, *first), table(2), table(3, *second)], lambda ns: NAMES if ns == 1 else {}
    )
    flows = [flow_of(entry_of(row), NAMES) for row in first] + [flow_of(entry_of(row)) for row in second]
    assert len(columns) == len(flows)
    assert [STATES[code] for code in columns.state] == [one.entry.state for one in flows]
    kinds = [{"SNAT": bool(one.snat), "DNAT": bool(one.dnat)} for one in flows]
    assert [
        {kind: kind in TRANSLATIONS[code] for kind in ("SNAT", "DNAT")} for code in columns.translation
    ] == kinds
    for which in ("inside", "peer"):
        wanted = [(getattr(one, which).address, getattr(one, which).port or 0) for one in flows]
        assert column_texts(getattr(columns, which)()) == wanted


def test_rows_find_their_table() -> None:
    columns = FlowColumns([table(1), table(2, OUT, IN), table(3), table(4, PLAIN)])
    assert [(columns.place(row)[0].ns, columns.place(row)[1]) for row in range(3)] == [(2, 0), (2, 1), (4, 0)]


@given(st.lists(ADDRESSES), st.lists(ADDRESSES))
def test_filter_by_several_addresses(addresses: list[bytes], wanted: list[bytes]) -> None:
    assert is_among(halves(addresses), wanted).tolist() == [one in wanted for one in addresses]


def test_addresses_as_text_agree_with_single_conversion() -> None:
    texts = [
        "10.0.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "::",
        "::1",
        "fd00::2",
        "2001:db8::ffff:1",
        "::fffe:1:2",
    ]
    raws = b"".join(address_bytes(text) for text in texts)
    columns = np.frombuffer(raws, ">u8").astype(np.uint64).reshape(-1, 2)
    assert address_texts(columns) == texts
    assert address_texts(columns[:0]) == []
