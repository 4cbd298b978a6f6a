"""Curves of past rates in the detail pane: shape, scale, width and window."""

from __future__ import annotations

import math

import numpy as np
import pytest

from core.model import (
    STATS_DTYPE,
    LinkKey,
    LinkStats,
    Ref,
    Snapshot,
    Storm,
    container_ref,
    link_ref,
    nat_ref,
    network_ref,
)
from core.rates import RateMeter, Rates, RuleMeter
from core.topology import Topology
from tests.support.host_builder import HOST
from tests.support.snapshots import small_host
from tests.ui.driver import FedSource, dashboard
from tui.views import formatting, registry
from tui.views.rows import Trend, ViewContext
from tui.widgets.detail import detail_lines

NAN = math.nan


def test_a_curve_scales_the_maximum_of_each_slot_to_the_highest() -> None:
    assert formatting.curve([0, 1, 7], 10, 3) == "▁▂█"
    assert formatting.curve([0, 0, 0], 10, 3) == "▁▁▁"
    assert formatting.curve([NAN, 7, NAN], 10, 3) == " █ "
    assert formatting.curve([NAN, NAN], 10, 2) == "  "
    assert formatting.curve([1, 7, 0, 0], 3, 2) == "█▁"
    assert formatting.curve([7.0], 5, 40) == "█"


@pytest.mark.parametrize("width", [1, 3, 7, 20, 59, 60, 61, 300])
def test_a_curve_fits(width: int) -> None:
    for newest in range(100, 110):
        assert len(formatting.curve([5.0] * 60, newest, width)) <= width


def test_a_bar_keeps_its_slots_as_time_passes() -> None:
    values = [0.0] * 60
    values[30] = 9.0
    before = formatting.curve(values, 119, 12)
    after = formatting.curve([*values[1:], 0.0], 120, 12)
    assert before.index("█") - after.index("█") == 1  # five slots per bar: 120 starts the next one
    assert formatting.curve([*values[2:], 0.0, 0.0], 121, 12) == after


def test_rare_events_are_not_rounded_away() -> None:
    shown = [formatting.frequency(rate) for rate in (0, 0.05, 3.21, 42.4, 1234)]
    assert shown == ["0/s", "0.05/s", "3.2/s", "42/s", "1.2k/s"]


def speeds(snapshot: Snapshot, seconds: int = 70) -> Rates:
    """Return rates: each link receives 8, then 80 Mbit/s, and sends a tenth of it."""
    keys = [link.key for link in snapshot.links()]
    meter = RateMeter()
    rows = np.zeros(len(keys), STATS_DTYPE)
    for row, key in zip(rows, keys, strict=True):
        row["ns"], row["ifindex"] = key
    for second in range(seconds):
        if second:
            octets = 1_000_000 if second < 60 else 10_000_000
            rows["rx_bytes"] += octets
            rows["tx_bytes"] += octets // 10
            rows["rx_packets"] += octets // 1000
            rows["tx_packets"] += octets // 10_000
        meter.feed(LinkStats(50_000.0 + second, rows.copy()))
    rules = RuleMeter(meter.histories.rules)
    for second in range(0, seconds, 10):
        rules.feed(snapshot.firewalls.values(), 50_000.0 + second)
    return meter.rates


def trends_of(snapshot: Snapshot, rates: Rates, ref: Ref) -> dict[str, Trend]:
    detail = registry.detail(ViewContext(Topology(snapshot), rates), ref)
    lines = [line for section in detail.sections for line in section.lines]
    return {label: cell for label, cell, _ in lines if isinstance(cell, Trend)}


def link_key(snapshot: Snapshot, name: str) -> LinkKey:
    return next(link.key for link in snapshot.links() if link.name == name)


def test_a_link_has_both_directions_in_bits_and_packets() -> None:
    snapshot = small_host()
    rates = speeds(snapshot)
    found = trends_of(snapshot, rates, link_ref(link_key(snapshot, "veth-web1")))
    assert [(label, cell.text) for label, cell in found.items()] == [
        ("receives", "80.0 Mbit/s"), ("sends", "8.0 Mbit/s"),
        ("packets in", "10.0k p/s"), ("packets out", "1.0k p/s"),
    ]  # fmt: skip
    assert [curve.title for curve in found["sends"].curves] == ["1 min", "5 min", "1 h"]


def test_a_bridge_and_its_network_count_each_frame_once() -> None:
    snapshot = small_host()
    rates = speeds(snapshot)
    ports = len(Topology(snapshot).ports_of(link_key(snapshot, "br-app")))
    for ref in (link_ref(link_key(snapshot, "br-app")), network_ref("net-app")):
        carries = trends_of(snapshot, rates, ref)["rate"]
        assert carries.text == formatting.bits(80e6 * ports + 8e6)
        assert max(carries.curves[0].values[1:-1]) == pytest.approx(80e6 * ports + 8e6)


def test_a_container_adds_up_its_links() -> None:
    snapshot = small_host()
    api = next(one for one in snapshot.containers() if one.name == "api")
    found = trends_of(snapshot, speeds(snapshot), container_ref(api.runtime, api.id))
    assert found["receives"].text == "160 Mbit/s"  # sum of its two links
    peak = max(value for value in found["receives"].curves[1].values if value == value)
    assert peak == pytest.approx(160e6, rel=1e-3)


def test_nat_rules_show_connections_and_filter_rules_show_traffic() -> None:
    snapshot = small_host()
    rates = speeds(snapshot)
    labels = {
        entry.kind: list(trends_of(snapshot, rates, nat_ref(entry.ns, entry.entry_id)))
        for entry in Topology(snapshot).nat
        if entry.packets is not None
    }
    assert labels["masquerade"] == ["new connections"]
    assert labels["filter"] == ["packets", "traffic"]


@pytest.mark.parametrize("width", [20, 44, 76, 200])
def test_lines_with_curves_fit_any_pane(width: int) -> None:
    snapshot = small_host()
    context = ViewContext(Topology(snapshot), speeds(snapshot))
    detail = registry.detail(context, link_ref(link_key(snapshot, "br-app")))
    for window in range(3):
        lines = [line.lead + line.text for line in detail_lines(detail, width, window)]
        assert any(title in line for line in lines for title in (" 1 min", " 5 min", " 1 h"))
        assert max(map(len, lines)) <= width


async def test_z_changes_the_window() -> None:
    snapshot = small_host()
    source = FedSource(snapshot)
    async with dashboard(source=source, size=(130, 60)) as person:
        await person.feed(snapshot, rates=speeds(snapshot))
        await person.press("3")
        await person.eventually("5 min")
        assert "average" in person.text
        for title in (" 1 h", " 1 min", " 5 min"):
            await person.press("z")
            await person.eventually(title)


async def test_without_rates_there_are_no_curves() -> None:
    async with dashboard(small_host()) as person:
        await person.press("3", "z")
        assert "5 min" not in person.text and "peak" not in person.text


async def test_a_storm_is_shown_in_the_detail_of_its_bridge() -> None:
    snapshot = small_host()
    bridge = link_key(snapshot, "br-app")
    port = link_key(snapshot, "veth-web1")
    storm = Storm(HOST, bridge.ifindex, "broadcast", 12_000.0, 0.97, (port.ifindex,))
    stormy = small_host(storms=(storm,))
    async with dashboard(stormy, size=(160, 50)) as person:
        await person.eventually("broadcast storm, 12,000/s")
        await person.press("2")
        await person.type("/br-app⏎")
        await person.eventually("Broadcast storm on br-app")
        shown = " ".join(line.text for line in person.dashboard.pane.lines)
        assert (
            "about 12,000 frames/s, 97% of all frames that enter it; they enter through veth-web1 (from"
            in shown
        )


def test_a_nat_rule_shows_the_traffic_of_its_connections() -> None:
    snapshot = small_host()
    rates = speeds(snapshot)
    entry = next(entry for entry in Topology(snapshot).nat if entry.kind == "masquerade")
    assert rates.histories is not None
    key = (entry.ns, entry.doing[0])
    rates.histories.translated.feed([key], np.array([[100.0, 1e6]]), 50_000.0, 50_069.0)
    found = trends_of(snapshot, rates, nat_ref(entry.ns, entry.entry_id))
    shown = {label: cell.text for label, cell in found.items() if label != "new connections"}
    assert shown == {"packets": "100 p/s", "traffic": "1.0 Mbit/s"}
