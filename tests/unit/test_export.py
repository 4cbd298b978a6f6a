"""`show --json`: documents are complete, equal to the model and documented."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.codec import json_name
from core.diagnose import Finding
from core.export import TOPICS, document_lines
from core.flows import address_bytes, entry_of, flow_of
from core.model import (
    CONNTRACK_DTYPE,
    Address,
    BridgePort,
    BridgeSettings,
    Conntrack,
    ConntrackStats,
    Endpoint,
    FdbEntry,
    FirewallRule,
    Host,
    ModelCard,
    NamespaceUse,
    OvsBridge,
    OvsController,
    OvsFlow,
    OvsInterface,
    OvsPort,
    PolicyRule,
    PortVlan,
    Problem,
    PublishedPort,
    Ref,
    Snapshot,
)
from core.model.overlay import BgpPeer
from core.serialize import CorruptFile, from_json, to_json
from core.text import end_text
from core.topology import Topology
from core.topology.index import names_in
from tests.support.snapshots import HOST, hostile_host, many_namespaces, overlay_host, small_host
from tui.cli.show import Output, show

DOCS = Path(__file__).parents[2] / "docs" / "json.md"
SMALL = small_host()
WEB1 = HOST + 1000


def shown(snapshot: Snapshot, *topics: str, scope: frozenset[int] | None = None) -> Any:
    """Return the decoded document of some topics (none: all)."""
    return json.loads("".join(document_lines(Topology(snapshot), topics or tuple(TOPICS), scope)))


ALL = shown(SMALL)


@pytest.mark.parametrize("snapshot", [Snapshot(), SMALL, hostile_host(), many_namespaces(5)])
def test_every_document_is_ascii_json(snapshot: Snapshot) -> None:
    text = "".join(document_lines(Topology(snapshot), tuple(TOPICS)))
    assert text.isascii() and "\x1b" not in text
    whole = json.loads(text)
    assert whole["schema"] == 1
    assert len(whole["links"]) == len([*snapshot.links()])


def test_one_topic_has_only_its_lists() -> None:
    assert set(shown(SMALL, "nat")) == {"schema", "taken_at", "host", "nat", "problems"}
    assert set(shown(SMALL, "routes")) >= {"routes", "rules", "neighbours"}


def test_each_item_is_on_its_own_line() -> None:
    lines = "".join(document_lines(Topology(SMALL), ("links",))).splitlines()
    links = [json.loads(line.rstrip(",")) for line in lines if line.startswith('{"ns"')]
    assert links == ALL["links"]


def test_a_veth_has_both_ends() -> None:
    pairs = {pair["ends"][0]["name"]: pair["ends"] for pair in ALL["veths"]}
    outer, inner = pairs["veth-web1"]
    assert (outer["namespace"], outer["master_name"]) == ("host", "br-app")
    assert (inner["name"], inner["addresses"]) == ("eth0", ["172.18.0.2/16"])
    assert inner["container"] == next(each["uid"] for each in ALL["containers"] if each["name"] == "web1")
    assert len(ALL["veths"]) == sum(link["kind"] == "veth" for link in ALL["links"]) / 2


def test_a_veth_with_a_hidden_peer_has_one_end() -> None:
    alone = replace(SMALL, nets={HOST: SMALL.nets[HOST]})
    assert [len(pair["ends"]) for pair in shown(alone, "veths")["veths"]] == [1] * len(ALL["veths"])


def test_joined_containers_and_namespaces_agree() -> None:
    networks = {network["name"]: network for network in ALL["networks"]}
    web1 = next(each for each in ALL["containers"] if each["name"] == "web1")
    assert web1["card"]["container"] == web1["uid"] and len(web1["card"]["namespaces"]) == 6
    assert networks["app"]["id"] in web1["networks"] and web1["uid"] in networks["app"]["members"]
    bridge = next(each for each in ALL["bridges"] if each["name"] == "br-app")
    assert bridge["network"] == networks["app"]["id"]
    assert {port["name"] for port in bridge["ports"]} == {"veth-web1", "veth-web2", "veth-api"}
    assert {entry["entry_id"] for entry in ALL["nat"]} >= set(networks["app"]["nat"]) != set()


def test_a_scope_keeps_only_its_own_items() -> None:
    here = shown(SMALL, scope=frozenset({WEB1}))
    assert [link["name"] for link in here["links"]] == ["lo", "eth0"]
    assert [namespace["inode"] for namespace in here["namespaces"]] == [WEB1]
    assert [len(pair["ends"]) for pair in here["veths"]] == [2]
    assert {each["name"] for each in here["containers"]} == {"web1", "sidecar"}
    assert here["bridges"] == []
    assert [each["inside"]["name"] for each in here["conntrack"]] == ["web1", "web1"]
    masquerade = "masquerade app (172.18.0.0/16)"
    assert [each["name"] for each in here["nat"]] == ["web1 tcp 8080 -> 172.18.0.2:80", masquerade]


def test_problems() -> None:
    problems = (Problem("nat", "no"), Problem("nat", "here", ns=WEB1), Problem("nat", "there", ns=5))
    snapshot = replace(SMALL, part_problems={"nat": problems})
    assert [each["what"] for each in shown(snapshot, "nat")["problems"]] == ["no", "here", "there"]
    assert [each["what"] for each in shown(snapshot, "nat", scope=frozenset({WEB1}))["problems"]] == [
        "no",
        "here",
    ]


def test_conntrack_fields() -> None:
    out, published, asked = ALL["conntrack"]
    assert out["inside"] == {"address": "172.18.0.2", "port": 41822, "name": "web1"}
    assert out["outside"] == {"address": "192.0.2.1", "port": 41822}
    assert out["peer"] == {"address": "198.51.100.7", "port": 443, "name": None}
    assert (out["state"], out["assured"], out["l4_proto"]) == ("ESTABLISHED", True, "tcp")
    assert (out["original"]["bytes"], out["reply"]["packets"]) == (96_000, 900)
    assert published["inside"]["name"] == "web1" and published["outside"]["port"] == 8080
    assert asked["l4_number"] == 17


entry_bytes = st.binary(min_size=CONNTRACK_DTYPE.itemsize, max_size=CONNTRACK_DTYPE.itemsize)
addresses = st.sampled_from(["172.18.0.2", "172.18.0.3", "192.0.2.1", "198.51.100.7", "2001:db8::1"])


four_ports = st.lists(st.integers(0, 2), min_size=4, max_size=4)


@given(entry_bytes, st.tuples(*[addresses] * 4), st.sampled_from([1, 6, 17, 47, 58]), four_ports)
def test_conntrack_and_flows_agree(
    raw: bytes, sides: tuple[str, ...], l4_proto: int, ports: list[int]
) -> None:
    rows = np.frombuffer(raw, CONNTRACK_DTYPE).copy()
    rows["counted"], rows["l4_proto"] = rows["counted"].view("u1") & 1, l4_proto
    for name, side in zip(("orig_src", "orig_dst", "reply_src", "reply_dst"), sides, strict=True):
        rows[0][name] = np.frombuffer(address_bytes(side), "u1")
    for name, port in zip(("orig_sport", "orig_dport", "reply_sport", "reply_dport"), ports, strict=True):
        rows[0][name] = port
    snapshot = replace(SMALL, conntracks={HOST: Conntrack(HOST, rows)})
    flow = flow_of(entry_of(rows[0]), names_in(Topology(snapshot), HOST))
    entry = shown(snapshot, "conntrack")["conntrack"][0]
    is_icmp = l4_proto in (1, 58)
    assert (entry["icmp"] or {}).get("id") == (ports[0] if is_icmp else None)
    if flow.snat or flow.dnat:
        known_as = end_text(entry["outside"]["address"], entry["outside"]["port"])
        assert (flow.dnat or flow.snat).startswith(known_as)
    for side, end in (("inside", flow.inside), ("peer", flow.peer)):
        assert entry[side] == {"address": end.address, "port": end.port, "name": end.name or None}
    assert (entry["outside"] is None) == (not flow.translation)
    assert (entry["state"], entry["id"]) == (flow.entry.state, flow.entry.id)
    assert (entry["original"]["packets"] is None) == (not flow.entry.counted)


PLAIN = json.loads(to_json(SMALL))


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Iterate over the paths of all strings, numbers and lists in a JSON value."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from leaves(each, (*path, key))
        return
    yield path
    for place, each in enumerate(value if isinstance(value, list) else ()):
        yield from leaves(each, (*path, place))


ODD = {
    str: ["", "?", "999.999.1.1/99", "::/200", "a:b:c", "80-x", "1.2.3.4/24x", "@s,x"],
    bool: [True, False], int: [0, 7, 255, 2**63 - 1], float: [1e18], list: [[]], type(None): [0, 2**60, "x"],
}  # fmt: skip


@given(st.sampled_from([*leaves(PLAIN["snapshot"])]), st.data())
def test_a_dump_with_odd_values_is_refused_or_shown(path: tuple[str | int, ...], data: st.DataObject) -> None:
    whole = json.loads(json.dumps(PLAIN))
    holder = whole["snapshot"]
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = data.draw(st.sampled_from(ODD[type(holder[path[-1]])]))
    try:
        snapshot = from_json(json.dumps(whole).encode())
    except CorruptFile:
        return
    assert shown(snapshot)["schema"] == 1
    stream = io.StringIO()
    show(snapshot, [*TOPICS], Output(stream))
    assert "Conntrack" in stream.getvalue()


def tables() -> Iterator[tuple[str, set[str]]]:
    """Map each heading of the documentation to the fields in its table."""
    for section in re.split(r"^#{2,3} ", DOCS.read_text(), flags=re.M)[1:]:
        heading, _, body = section.partition("\n")
        rows = re.findall(r"^\| (`[^|]*) \|", body, flags=re.M)
        yield heading, {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def names(kind: type) -> set[str]:
    """Return the fields of a dataclass."""
    return {field.name for field in fields(kind)}


def keys(item: Any) -> set[str]:
    """Return the keys of an object."""
    return set(item)


ONE = {name: items[0] for name, items in ALL.items() if isinstance(items, list) and items}
FLOW = ONE["conntrack"]
OVERLAY = shown(overlay_host(), "overlay")["overlay"][0]
SHAPES = {
    "the document": keys(ALL),
    "host": names(Host),
    "problem": {json_name(name) for name in names(Problem)},
    "finding": names(Finding),
    "reference": names(Ref),
    "namespace": keys(ONE["namespaces"]),
    "link": keys(ONE["links"]),
    "address": names(Address),
    "port": names(BridgePort),
    "vlan": names(PortVlan),
    "bridge settings": names(BridgeSettings),
    "end": keys(next(link["peer"] for link in ALL["links"] if link["peer"])),
    "bridge": keys(ONE["bridges"]) - keys(ONE["links"]),
    "bridge port": keys(ONE["bridges"]["ports"][0]),
    "forwarding entry": names(FdbEntry),
    "Open vSwitch bridge": names(OvsBridge),
    "Open vSwitch port": names(OvsPort),
    "Open vSwitch interface": names(OvsInterface),
    "Open vSwitch controller": names(OvsController),
    "Open vSwitch flow": names(OvsFlow),
    "veth pair": keys(ONE["veths"]),
    "veth end": keys(ONE["veths"]["ends"][0]),
    "container": keys(ONE["containers"]),
    "endpoint": names(Endpoint),
    "published port": names(PublishedPort),
    "card": names(ModelCard),
    "namespace use": names(NamespaceUse),
    "network": keys(ONE["networks"]),
    "NAT entry": keys(ONE["nat"]),
    "conntrack entry": keys(FLOW),
    "conntrack table": keys(ONE["conntrack_tables"]),
    "conntrack counters": names(ConntrackStats),
    "source": keys(ONE["conntrack_tables"]["sources"][0]),
    "flow end": keys(FLOW["inside"]),
    "direction": keys(FLOW["original"]) | keys(FLOW["reply"]),
    "route": keys(ONE["routes"]),
    "next hop": keys(ONE["routes"]["nexthops"][0]),
    "policy rule": names(PolicyRule) | {"ns", "namespace"},
    "neighbour": keys(ONE["neighbours"]),
    "overlay": keys(OVERLAY),
    "BGP session": names(BgpPeer),
    "host of an overlay": keys(OVERLAY["hosts"][1]),
    "MAC of an overlay": keys(OVERLAY["hosts"][1]["macs"][0]),
}


@pytest.mark.parametrize("heading", SHAPES)
def test_every_field_is_documented(heading: str) -> None:
    documented = dict(tables())[heading]
    if heading == "container":
        documented -= {"ns", "ifindex"}  # named inside the row about its links
    assert documented == SHAPES[heading]


def test_every_field_of_a_dump_is_documented() -> None:
    documented = dict(tables())["The dump file"]
    assert names(Snapshot) <= documented
    assert names(FirewallRule) >= {"text"}


@pytest.mark.parametrize("topic", ["veths", "conntrack"])
def test_the_examples_are_the_programs_own(topic: str) -> None:
    example = re.search(rf"<!-- example: {topic} -->\n```json\n(.*?)\n```", DOCS.read_text(), flags=re.S)
    assert example and json.loads(example[1]) == ALL[topic][0 if topic == "veths" else 1]
