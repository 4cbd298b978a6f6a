"""Flow speeds with restarted counters, new entries, clock steps, the fast path."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from core.flows.merge import AGAIN, FAST, KERNEL, PART, FlowTable, table_of
from core.flows.meter import FlowMeter, Reading
from core.model import FASTFLOW_DTYPE, Conntrack, FastFlows
from tests.support.flow_samples import end, flow, table

HOST, LAB = 100, 200
EPOCH = 1_700_000_000.0
OUT = ("172.18.0.2:41822", "1.1.1.1:443")
SNAT = "192.0.2.1:41822"


def counted(octets: int, packets: int = 0, **more: Any) -> np.void:
    """Return the same connection with other counters."""
    return flow(*OUT, seen_as=SNAT, counted=True, bytes=(octets, 0), packets=(packets, 0), id=7, **more)


def host(*rows: np.void) -> Conntrack:
    return table(HOST, *rows, accounting=True)


class Clock:
    """Feeds tables to a meter; Unix time may step, monotonic time doesn't."""

    def __init__(self) -> None:
        self.meter, self.now, self.step = FlowMeter(), 1000.0, 0.0

    def feed(self, *tables: Conntrack, fast: FastFlows | None = None, after: float = 1.0) -> FlowTable:
        self.now += after
        at = EPOCH + self.now + self.step
        readings = [Reading(one, self.now, self.now) for one in tables]
        fast = replace(fast, taken_at=at) if fast else None
        return self.meter.feed(readings, fast, self.now, at)


def fast_flow(src: str, dst: str, new_src: str, new_dst: str, octets: int, **more: Any) -> np.void:
    """Return one direction as the fast path counts it."""
    row = np.zeros(1, FASTFLOW_DTYPE)[0]
    names = (("src", "sport", src), ("dst", "dport", dst), ("new_src", "new_sport", new_src),
             ("new_dst", "new_dport", new_dst))  # fmt: skip
    for address, port, text in names:
        raw, number = end(text)
        row[address], row[port] = np.frombuffer(raw, "u1"), number
    row["family"], row["l4_proto"], row["live"], row["path"] = 4, 6, True, 3
    row["bytes"], row["packets"] = octets, octets // 1000
    for name, value in more.items():
        row[name] = value
    return row


def fast_flows(*rows: np.void) -> FastFlows:
    return FastFlows(HOST, np.array([*rows], FASTFLOW_DTYPE))


def there(octets: int, **more: Any) -> np.void:
    return fast_flow(*OUT, SNAT, OUT[1], octets, **more)


def back(octets: int, **more: Any) -> np.void:
    return fast_flow(OUT[1], SNAT, OUT[1], OUT[0], octets, **more)


def test_one_reading_has_no_rate() -> None:
    assert np.isnan(Clock().feed(host(counted(1000))).bits).all()


def test_a_steady_flow() -> None:
    clock = Clock()
    for second in range(6):
        found = clock.feed(host(counted(second * 125_000, second * 100)))
    assert found.bits.tolist() == [pytest.approx(1e6)]
    assert found.speeds[0].tolist() == pytest.approx([1e6, 0, 100, 0])


def test_the_rate_is_averaged_over_a_few_seconds() -> None:
    clock = Clock()
    for second in range(4):
        clock.feed(host(counted(second * 10_000_000)))
    for _ in range(5):
        found = clock.feed(host(counted(30_000_000)))
    assert found.bits.tolist() == [0]


def test_a_new_connection_is_fast_at_once() -> None:
    clock = Clock()
    clock.feed(host(flow("10.0.0.1:1", "10.0.0.2:2", id=1)))
    found = clock.feed(host(flow("10.0.0.1:1", "10.0.0.2:2", id=1), counted(250_000)))
    assert found.bits[1] == pytest.approx(2e6)


def test_an_older_connection_seen_first_now_is_not_a_burst() -> None:
    clock = Clock()
    clock.feed(host(flow("10.0.0.1:1", "10.0.0.2:2", id=1)))
    old = counted(10**12, start=int((EPOCH + clock.now - 500) * 1e9))
    found = clock.feed(host(flow("10.0.0.1:1", "10.0.0.2:2", id=1), old))
    assert np.isnan(found.bits[1])
    assert found.age[1] == pytest.approx(501, abs=1)


def test_an_entry_missing_from_one_dump_is_not_a_burst() -> None:
    clock, other = Clock(), flow("10.0.0.1:1", "10.0.0.2:2", id=1)
    for second in range(5):
        clock.feed(host(other, counted(10**12 + second * 125_000)))
    clock.feed(host(other))
    found = clock.feed(host(other, counted(10**12 + 6 * 125_000)))
    assert found.bits[1] == pytest.approx(1e6, rel=0.01)


@pytest.mark.parametrize("restart", [0, 60])
def test_restarted_counters_are_not_a_burst(restart: int) -> None:
    clock = Clock()
    for second in range(1, 6):
        clock.feed(host(counted(second * 125_000)))
    speeds = []
    for second in range(5):
        speeds.append(float(clock.feed(host(counted(restart + second * 125_000))).bits[0]))
    assert speeds == pytest.approx([1e6] * 5)


def test_wrapped_counters_are_not_a_burst() -> None:
    clock, end = Clock(), 2**64
    speeds = []
    for second in range(8):
        found = clock.feed(host(counted((end - 4 * 125_000 + second * 125_000) % end)))
        speeds.append(float(found.bits[0]))
    assert speeds[1:] == pytest.approx([1e6] * 7)


def test_only_the_same_rows_have_the_same_generation() -> None:
    clock, other = Clock(), flow("10.0.0.1:1", "10.0.0.2:2", id=1)
    first = clock.feed(host(other, counted(0)))
    assert clock.feed(host(other, counted(10, tcp_state=7))).generation == first.generation
    marked = clock.feed(host(other, counted(20, mark=3)))
    uncounted = clock.feed(table(HOST, other, counted(20, mark=3)))
    fewer = clock.feed(host(counted(30)))
    changed = [first, marked, uncounted, fewer, clock.feed(host(other))]
    assert len({one.generation for one in changed}) == 5


def test_entries_in_another_order_keep_their_speeds() -> None:
    clock, others = Clock(), [flow(f"10.0.0.{n}:1", "10.0.0.2:2", id=100 + n) for n in range(1, 9)]
    for second in range(6):
        rows = [*others[: second % 8], counted(second * 125_000), *others[second % 8 :]]
        found = clock.feed(host(*rows))
    assert found.bits[5] == pytest.approx(1e6)


def test_the_same_tuple_in_two_namespaces_is_two_flows() -> None:
    clock = Clock()
    for second in range(6):
        found = clock.feed(
            host(counted(second * 125_000)), table(LAB, counted(second * 250_000), accounting=True)
        )
    assert found.bits.tolist() == pytest.approx([1e6, 2e6])


def test_flows_of_a_removed_namespace_are_removed() -> None:
    clock = Clock()
    for second in range(4):
        clock.feed(host(counted(second * 125_000)), table(LAB, counted(second * 250_000)))
    found = clock.feed(host(counted(4 * 125_000)))
    assert (len(found), found.bits[0]) == (1, pytest.approx(1e6))
    assert len(clock.feed()) == 0


@pytest.mark.parametrize("step", [3600.0, -86400.0])
def test_a_step_of_the_clock_does_not_change_rate_and_age(step: float) -> None:
    clock = Clock()
    born = int((EPOCH + 990) * 1e9)
    for second in range(4):
        clock.feed(host(counted(second * 125_000, start=born)))
    clock.step = step
    found = clock.feed(host(counted(4 * 125_000, start=born)))
    assert found.bits[0] == pytest.approx(1e6)
    assert found.age[0] == pytest.approx(clock.now - 990)


def test_an_uncounted_flow_has_no_rate() -> None:
    clock = Clock()
    for _ in range(3):
        found = clock.feed(table(HOST, flow(*OUT)))
    assert np.isnan(found.bits).all()
    assert found.uncounted == (HOST,)


def test_some_entries_are_read_between_dumps() -> None:
    clock, other = Clock(), flow("10.0.0.1:1", "10.0.0.2:2", id=1, counted=True)
    for second in range(3):
        clock.feed(host(other, counted(second * 125_000)))
    assert clock.meter.active_rows(clock.now, 10).tolist() == [1]
    for second in range(3, 8):
        clock.now += 1
        entries = host(counted(second * 125_000, tcp_state=7)).entries
        found = clock.meter.feed_some({HOST: entries}, np.array([1]), None, clock.now, EPOCH + clock.now)
    assert found.bits.tolist() == pytest.approx([0, 1e6])
    assert found.octets[1].tolist() == [7 * 125_000, 0]
    assert found.tables[0].entries["tcp_state"].tolist() == [3, 7]


def test_an_entry_missing_when_read_again_keeps_its_counters() -> None:
    clock = Clock()
    for second in range(3):
        clock.feed(host(counted(second * 125_000)))
    found = clock.meter.feed_some({}, np.array([0]), None, clock.now + 1, EPOCH)
    assert found.bits.tolist() == [0]


# ---- the fast path


def test_counters_of_both_paths_are_added() -> None:
    found = table_of({HOST: host(counted(1000, 1))}, fast_flows(there(5000), back(70_000)))
    assert (len(found), found.fast_only) == (1, 0)
    assert found.octets[0].tolist() == [6000, 70_000]
    assert found.packets[0].tolist() == [6, 70]
    assert found.fast_bytes[0].tolist() == [5000, 70_000]
    assert found.path.tolist() == [FAST]


def test_a_flow_that_changes_its_path_keeps_its_rate() -> None:
    clock = Clock()
    for second in range(3):
        clock.feed(host(counted(second * 125_000)), fast=fast_flows())
    for second in range(6):
        found = clock.feed(host(counted(250_000)), fast=fast_flows(there((second + 1) * 125_000)))
        assert found.bits[0] == pytest.approx(1e6)
    for second in range(3):
        ended = fast_flows(there(750_000, live=False))
        found = clock.feed(host(counted(250_000 + (second + 1) * 125_000)), fast=ended)
        assert found.bits[0] == pytest.approx(1e6)
    assert found.path.tolist() == [AGAIN]


def test_a_flow_with_one_direction_in_the_kernel_is_part() -> None:
    acks, both = fast_flows(back(500_000)), fast_flows(there(500_000), back(500_000))
    assert table_of({HOST: host(counted(500_000, 500))}, acks).path.tolist() == [PART]
    assert table_of({HOST: host(counted(4000, 4))}, both).path.tolist() == [FAST], "while it was learned"
    handed_back = fast_flows(there(500_000, live=False), back(500_000))
    assert table_of({HOST: host(counted(4000, 4))}, handed_back).path.tolist() == [PART]


def test_earlier_packets_in_the_kernel_do_not_make_a_fast_flow_part() -> None:
    old, both = host(counted(9_000_000, 9000)), fast_flows(there(50_000), back(50_000))
    assert table_of({HOST: old}, both).path.tolist() == [FAST]
    clock = Clock()
    assert clock.feed(old, fast=both).path.tolist() == [FAST]
    assert clock.feed(old, fast=fast_flows(there(99_000), back(99_000))).path.tolist() == [FAST]


def test_the_path_is_that_of_recent_packets() -> None:
    clock = Clock()
    for packets in (0, 9000):
        clock.feed(host(counted(packets * 1000, packets)), fast=fast_flows())
    paths = []
    for second in range(1, 12):
        both = fast_flows(there(second * 125_000), back(second * 60_000))
        paths += clock.feed(host(counted(9_000_000, 9000)), fast=both).path.tolist()
    assert (paths[0], paths[-1]) == (PART, FAST)
    for second in range(1, 12):
        acks = fast_flows(there(11 * 125_000), back((11 + second) * 60_000))
        more = counted(9_000_000 + second * 125_000, 9000 + second * 125)
        paths += clock.feed(host(more), fast=acks).path.tolist()
    assert paths[-1] == PART
    assert clock.meter.feed_some({}, np.zeros(0, int), acks, clock.now + 1, EPOCH).path.tolist() == [PART]


def test_the_fast_path_is_read_after_the_tables() -> None:
    clock, late = Clock(), (0.5, 0.2, 0.1, 0.4, 0.0)
    for second, after in enumerate(late):
        now, octets = clock.now + second, round((second + after) * 125_000)
        fast = replace(fast_flows(there(octets), back(0)), taken_at=EPOCH + now + after)
        found = clock.meter.feed([Reading(host(counted(0)), now, now)], fast, now + 0.6, EPOCH + now + 0.6)
    assert found.bits[0] == pytest.approx(1e6)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("gap", [1, 3])
def test_a_fast_flow_that_is_read_again_is_not_a_burst(whole: bool, gap: int) -> None:
    """The fast path wasn't readable for a while, or not yet, as in a recording."""
    clock = Clock()
    began = int((EPOCH + clock.now - 60) * 1e9)
    speeds = []
    for second in range(12):
        seen = second not in range(4, 4 + gap) and second
        ways = [way(10**9 + second * 125_000, first_seen=began) for way in (there, back)]
        fast = fast_flows(*ways) if seen else fast_flows()
        if whole or second < 3:
            found = clock.feed(host(counted(7)), fast=fast)
        else:
            clock.now += 1
            at = EPOCH + clock.now
            found = clock.meter.feed_some({}, np.zeros(0, int), replace(fast, taken_at=at), clock.now, at)
        speeds.append(float(found.bits[0]))
    assert np.nanmax(speeds) == pytest.approx(2e6) == speeds[-1]
    assert found.octets[0].tolist() == [10**9 + 11 * 125_000 + 7, 10**9 + 11 * 125_000]


def test_after_a_pause_rates_restart_and_totals_stay() -> None:
    clock, other = Clock(), flow("10.0.0.1:1", "10.0.0.2:2", id=1)
    clock.feed(host(other), fast=fast_flows())
    for second in range(5):
        clock.feed(host(other, counted(second * 125_000, second * 125)), fast=fast_flows())
    clock.meter.discard_times()
    fast = [fast_flows(there(octets), back(60_000)) for octets in (7_000_000, 7_125_000)]
    new = flow("10.0.0.9:1", "10.0.0.2:2", id=9, counted=True, bytes=(10**9, 0))
    found = clock.feed(host(other, counted(500_000, 500), new), fast=fast[0], after=600)
    assert np.isnan(found.bits).all() and not found.measured
    assert found.path.tolist() == [KERNEL, FAST, KERNEL]
    assert found.age[1] == pytest.approx(604.5), "it is still known when it began"
    assert found.octets[1].tolist() == [7_500_000, 60_000]
    found = clock.feed(host(other, counted(500_000, 500), new), fast=fast[1])
    assert found.measured and found.bits[1:].tolist() == pytest.approx([1e6, 0])


def test_counters_of_removed_fast_flows_stay_in_the_sum() -> None:
    clock = Clock()
    clock.feed(host(counted(0)), fast=fast_flows())
    clock.feed(host(counted(0)), fast=fast_flows(there(1_000_000)))
    found = clock.feed(host(counted(500)), fast=fast_flows())
    assert (found.octets[0].tolist(), found.path.tolist()) == ([1_000_500, 0], [KERNEL])
    found = clock.feed(host(counted(500)), fast=fast_flows(there(2000)))
    assert found.octets[0].tolist() == [1_002_500, 0]


def test_fast_flows_are_counted_between_dumps() -> None:
    clock = Clock()
    for second in range(3):
        clock.feed(host(counted(0)), fast=fast_flows(there(second * 125_000), back(0)))
    for second in range(3, 7):
        clock.now += 1
        fast = fast_flows(there(second * 125_000), back(0))
        found = clock.meter.feed_some({}, np.zeros(0, int), fast, clock.now, EPOCH)
    assert found.bits[0] == pytest.approx(1e6)


def test_flows_without_a_conntrack_entry_are_listed() -> None:
    lone = [
        fast_flow("10.0.0.1:5", "10.0.0.2:80", "10.0.0.1:5", "10.0.0.2:80", 4000, first_seen=5),
        fast_flow("10.0.0.2:80", "10.0.0.1:5", "10.0.0.2:80", "10.0.0.1:5", 9000, first_seen=6),
        fast_flow("10.0.0.3:7", "10.0.0.2:80", "10.0.0.3:7", "10.0.0.2:80", 100, first_seen=9),
    ]
    found = table_of({HOST: host(counted(1000))}, fast_flows(*lone, there(5000)))
    assert (len(found), found.fast_only) == (3, 2)
    assert found.octets.tolist() == [[6000, 0], [4000, 9000], [100, 0]]
    rows = found.tables[1].entries
    assert [rows["orig_sport"].tolist(), rows["reply_sport"].tolist()] == [[5, 7], [80, 80]]


def test_the_fast_path_counts_only_for_its_own_namespace() -> None:
    tables = {LAB: replace(host(counted(1000)), ns=LAB)}
    found = table_of(tables, fast_flows(there(5000)))
    assert found.octets.tolist() == [[1000, 0], [5000, 0]]
