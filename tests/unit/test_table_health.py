"""Conntrack usage, failures and sources: findings, the list's head, JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.diagnose import findings
from core.diagnose.subjects import top_sources
from core.export import document_lines
from core.flows import address_bytes
from core.model import CONNTRACK_DTYPE, Conntrack, ConntrackStats, Snapshot
from core.topology import Topology
from core.watch.rates import ConntrackTrend
from tests.support.flow_samples import flow, table
from tests.support.snapshots import HOST, small_host
from tui.views import conntrack
from tui.views.conntrack import conntrack_rows

SMALL = small_host()


def host_with(**fields: object) -> Topology:
    tables = {HOST: replace(SMALL.conntracks[HOST], **fields)}  # type: ignore[arg-type]
    return Topology(replace(SMALL, conntracks=tables))


def filled(count: int, limit: int) -> Topology:
    rows = [flow(f"172.18.0.2:{port}", "198.51.100.7:443") for port in range(1, count + 1)]
    return Topology(replace(SMALL, conntracks={HOST: table(HOST, *rows, limit=limit)}))


@pytest.mark.parametrize(("count", "severities"), [(79, []), (80, []), (81, ["warn"]), (100, ["bad"])])
def test_a_finding_from_four_fifths_on(count: int, severities: list[str]) -> None:
    found = [one for one in findings(filled(count, 100)) if one.kind == "conntrack"]
    assert [one.severity for one in found] == severities
    tones = {cell.tone for cell in conntrack_rows(filled(count, 100)).head}
    assert tones == set(severities or ["dim"])


def test_growing_failures_are_a_finding() -> None:
    now, before = ConntrackStats(drop=7, insert_failed=3, early_drop=9), ConntrackStats(drop=2, early_drop=9)
    here = host_with(stats=now, stats_before=before, stats_seconds=58.2)
    found = [one for one in findings(here) if one.kind == "conntrack"]
    assert [(one.severity, one.short) for one in found] == [
        ("bad", "conntrack: packets dropped"), ("warn", "conntrack: inserts fail"),
    ]  # fmt: skip
    assert "5 packets" in found[0].sentence and "within 58 s" in found[0].sentence
    line, most = conntrack_rows(here).head
    assert most.text.startswith("top sources: web1")
    assert "3 failed inserts (+3 in 58s) · 7 drops (+5 in 58s) · 9 early drops" in line.text
    assert line.tone == "bad"


def test_constant_failures_are_not_a_finding() -> None:
    same = ConntrackStats(drop=7, insert_failed=3)
    for before in (same, None, ConntrackStats(drop=9)):
        here = host_with(stats=same, stats_before=before, stats_seconds=9.0)
        assert [one for one in findings(here) if one.kind == "conntrack" and "drop" in one.short] == []


def test_the_head_names_the_main_sources_and_stays_above_the_rows() -> None:
    rows = conntrack_rows(Topology(SMALL))
    (line,) = rows.head
    assert "of 262,144 (under 1%)" in line.text and line.text.endswith(
        "top sources: web1 33%, api 33%, 198.51.100.9 33%"
    )
    assert rows.matching("nothing-such").head == rows.sorted_by("peer", True).head == rows.head
    assert conntrack.health_line(Topology(Snapshot())) == ()


def test_the_json_has_the_same_numbers() -> None:
    here = host_with(stats=ConntrackStats(found=4, drop=1))
    (table,) = json.loads("".join(document_lines(here, ("conntrack",))))["conntrack_tables"]
    assert (table["entries"], table["limit"], table["stats"]["drop"]) == (3, 262144, 1)
    assert sum(one["entries"] for one in table["sources"]) == 3
    assert table["sources"][0]["name"] == "web1"


sources = st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2", "192.0.2.1"])


@given(st.lists(sources, max_size=40))
def test_sources_are_counted_right(addresses: list[str]) -> None:
    entries = np.zeros(len(addresses), CONNTRACK_DTYPE)
    for row, address in zip(entries, addresses, strict=True):
        row["orig_src"] = np.frombuffer(address_bytes(address), "u1")
    names = {address_bytes("10.0.0.1"): "web", address_bytes("fd00::1"): "web"}
    found = top_sources(Conntrack(1, entries), names, 10)
    counts = {address: addresses.count(address) for address in {*addresses}}
    web = counts.pop("10.0.0.1", 0) + counts.pop("fd00::1", 0)
    wanted = counts | ({"web": web} if web else {})
    assert {one.name or one.address: one.entries for one in found} == wanted
    assert [one.entries for one in found] == sorted((one.entries for one in found), reverse=True)


def test_the_trend_covers_a_minute() -> None:
    now = [100.0]
    trend = ConntrackTrend(lambda: now[0])

    def fed(drops: int) -> Conntrack:
        return trend.with_earlier({5: Conntrack(5, stats=ConntrackStats(drop=drops))})[5]

    assert fed(3).stats_before is None and fed(3).grown("drop") == 0
    now[0] += 10
    assert (fed(5).grown("drop"), fed(5).stats_seconds) == (2, 10.0)
    now[0] += 59
    assert fed(5).grown("drop") == 0 or fed(5).stats_seconds > 60
    now[0] += 120
    assert fed(5).grown("drop") == 0
    now[0] += 3600
    assert (fed(9).grown("drop"), fed(9).stats_seconds >= 60) == (4, True)
    trend.with_earlier({})
    now[0] += 1
    assert fed(20).stats_before is None, "a namespace that was away is another one"
