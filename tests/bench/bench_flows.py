"""Measure 100,000 flows: repaint, command against conntrack(8), rates against iperf3."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from tests.bench.bench_conntrack import COUNT
from tests.bench.report import Figure, paired
from tests.bench.size import sized
from tests.support.bulk_conntrack import room_for_entries

FAST = sized(2000, 100)  # connections that the fast path carries
NAME = f"bench{os.getpid()}-fl"


def run() -> list[Figure]:
    """Measure all figures in a new namespace."""
    with room_for_entries(2 * COUNT):
        subprocess.run(["ip", "netns", "add", NAME], check=True)
        try:
            command = ["nsenter", f"--net=/run/netns/{NAME}", sys.executable, "-m", "tests.bench.bench_flows"]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        finally:
            subprocess.run(["ip", "netns", "del", NAME], check=True)
    figures = [Figure(**figure) for figure in json.loads(done.stdout)]
    return [*figures, *_against_iperf3()]


def _against_iperf3() -> Iterator[Figure]:
    """Measure unlimited traffic with the measurement of the tests."""
    from tests.kernel import test_flow_rates
    from tests.support.host import ThrowawayHost

    for fast, streams in sized(tuple(product((False, True), (1, 20))), ((True, 1),)):
        host = ThrowawayHost()
        try:
            nat_host = test_flow_rates.make_nat_host(host)
            with test_flow_rates.accelerated(nat_host) if fast else nullcontext() as reader:
                sums, report, _ = test_flow_rates.measured(nat_host, streams, "0", reader)
        finally:
            host.close()
        measured = float(np.median(sorted(sums)[len(sums) // 3 :]))
        reported = float(np.median([one["sum"]["bits_per_second"] for one in report["intervals"]]))
        yield Figure(
            f"rate of {streams} unlimited iperf3 stream{'s' * (streams > 1)}" + ", on the fast path" * fast,
            "within 3 % of iperf3's report",
            f"{100 * (measured / reported - 1):+.1f} %",
            f"{measured / 1e9:.2f} against {reported / 1e9:.2f} Gbit/s, medians of 7 s",
        )


def measure() -> list[Figure]:
    """Measure the figures in the caller's namespace."""
    from core.model import Namespace
    from core.netlink.netns import HOST_PATH, inode_of
    from tests.support.bulk_conntrack import insert

    Path("/proc/sys/net/netfilter/nf_conntrack_acct").write_text("1")
    insert(COUNT, timeout=36_000)
    spaces = {1: Namespace(inode_of(HOST_PATH), is_host=True, entry=HOST_PATH)}
    return [*_repaint(spaces), _command()]


def _repaint(spaces) -> Iterator[Figure]:
    """Measure merging, sorting and filtering, all computed again."""
    from core.flows.meter import FlowMeter
    from core.model import Host, Snapshot
    from core.topology import Topology
    from core.topology.flow_index import FlowView
    from core.watch.rates import read_timed
    from tui.views.flows import COLUMNS, FlowRows
    from tui.views.rows import GROUPINGS, FlowViewOptions

    readings, meter = read_timed(spaces), FlowMeter()
    ns = readings[0].table.ns
    fast = _fast_flows(readings[0].table, FAST)
    topology = Topology(Snapshot(host=Host(netns=ns), conntracks={ns: readings[0].table}))

    def paint(text: str = "", sort: str = "rate", flow_options: FlowViewOptions = FlowViewOptions()) -> None:  # noqa: B008
        table = meter.feed(readings, replace(fast, taken_at=time.time()), time.monotonic(), time.time())
        rows = FlowRows(topology, FlowView.of(topology, table), flow_options)
        shown = rows.matching(text).grouped().sorted_by(sort, True)
        for place in range(min(50, len(shown))):
            shown.row(place)

    filters = ("172.18", "443", "addr:172.18.0.0/17", "rate:>1k", "state:est !port:443", "client:outside")
    groups = [by for by in GROUPINGS if by]
    for what, works in (
        ("merge + sort", {one.name: lambda c=one.name: paint(sort=c) for one in COLUMNS}),
        ("merge + filter + sort", {text: lambda t=text: paint(t) for text in filters}),
        ("merge + group", {by: lambda b=by: paint(flow_options=FlowViewOptions(by=b)) for by in groups}),
    ):
        times = {name: _best(work) for name, work in works.items()}
        worst = max(times, key=times.__getitem__)
        yield Figure(
            f"{COUNT:,} flows, {FAST:,} of them fast: {what} + 50 lines",
            "<= 60 ms, off the event loop",
            f"{times[worst] * 1000:.0f} ms",
            f"slowest of {len(times)}: {worst}",
        )  # fmt: skip


def _fast_flows(table, count):
    """Return a table's first connections as the fast path counts them.

    Both directions of each.
    """
    from core.model import FASTFLOW_DTYPE, FastFlows

    entries, parts = table.entries[:count], []
    for one, other in (("orig", "reply"), ("reply", "orig")):
        flows = np.zeros(count, FASTFLOW_DTYPE)
        fields = (("src", f"{one}_src"), ("dst", f"{one}_dst"), ("new_src", f"{other}_dst"),
                ("new_dst", f"{other}_src"), ("sport", f"{one}_sport"), ("dport", f"{one}_dport"),
                ("new_sport", f"{other}_dport"), ("new_dport", f"{other}_sport"))  # fmt: skip
        for field, source in (*fields, ("family", "family"), ("l4_proto", "l4_proto")):
            flows[field] = entries[source]
        flows["packets"], flows["bytes"], flows["live"] = 10, 1000, True
        parts.append(flows)
    return FastFlows(table.ns, np.concatenate(parts))


def _best(work: Callable[[], None]) -> float:
    times = []
    for _ in range(5):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def _command() -> Figure:
    def run_flows() -> float:
        return _timed([sys.executable, "-m", "tui.cli", "flows", "--json"])

    ratio = paired(run_flows, lambda: _timed(["conntrack", "-L"]), repetitions=sized(7, 2))
    return Figure(
        f"`flows --json` on {COUNT:,} entries", "<= 2.5 x `conntrack -L`", str(ratio), "median of 7"
    )


def _timed(words: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    json.dump([figure.__dict__ for figure in measure()], sys.stdout)
