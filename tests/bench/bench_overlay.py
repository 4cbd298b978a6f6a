"""Measure the overlay view with 50 hosts and 1,000 or 10,000 MACs in the kernel."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

from core.collect.snapshot import read_snapshot
from core.diagnose import overlay as findings
from core.export import document_lines
from core.model import Part, Snapshot
from core.overlay import overlays
from core.topology import Topology
from tests.bench.report import Figure
from tests.bench.size import sized
from tests.support.host import ThrowawayHost
from tui.views.overlay import VIEW, detail
from tui.views.rows import ViewContext

HOSTS = 50
SIZES = (sized(1000, 100), sized(10_000, 200))
_REPETITIONS = sized(5, 2)
_CHECKS = (
    findings.too_large_mtus, findings.left_out_hosts, findings.stale_neighbours, findings.duplicates,
    findings.equal_vnis, findings.unreachable_hosts, findings.blocked_tunnels,
)  # fmt: skip


def run() -> list[Figure]:
    """Fill the forwarding table of a VXLAN link, read it and measure each step."""
    figures = []
    for macs in SIZES:
        with closing(ThrowawayHost()) as host:
            fill(host, macs)
            figures += measure(host, macs)
    return figures


def fill(host: ThrowawayHost, macs: int) -> None:
    """Create an overlay with that many MACs and addresses behind 50 hosts."""
    host.run("ip link add up0 type veth peer name up1")
    host.run("ip addr add 192.0.2.1/24 dev up0")
    for line in (
        "ip link set up0 up", "ip link set up1 up", "ip link add br-blue type bridge",
        "ip link add vx42 mtu 1450 type vxlan id 42 local 192.0.2.1 dstport 4789",
        "ip link set vx42 master br-blue up", "ip addr add 10.128.0.1/16 dev br-blue",
        "ip link set br-blue up",
    ):  # fmt: skip
        host.run(line)
    flood = [f"fdb append 00:00:00:00:00:00 dev vx42 dst 192.0.2.{10 + one}" for one in range(HOSTS)]
    numbers = [(one, f"02:00:00:00:{one >> 8:02x}:{one & 255:02x}") for one in range(macs)]
    entries = [f"fdb add {mac} dev vx42 dst 192.0.2.{10 + one % HOSTS} self static" for one, mac in numbers]
    known = [
        f"neigh add 10.128.{1 + (one >> 8)}.{one & 255} lladdr {mac} dev br-blue nud permanent"
        for one, mac in numbers
    ]
    for tool, lines in (("bridge", flood + entries), ("ip", known)):
        path = f"/tmp/{host.name}.batch"
        with open(path, "w") as batch:
            batch.write("\n".join(lines))
        host.run(f"{tool} -batch {path}")
        host.run(f"rm {path}")


def measure(host: ThrowawayHost, macs: int) -> list[Figure]:
    """Measure reading, rows, details, JSON and findings."""
    started = time.perf_counter()
    snapshot = read(host)
    reading = time.perf_counter() - started
    (found,) = [one for one in overlays(Topology(snapshot)) if one.link.ns == host.inode]
    assert sum(len(one.macs) for one in found.remotes) == macs
    assert all(one.addresses for each in found.remotes for one in each.macs)
    what, how = f"{HOSTS} hosts and {macs:,} MACs", f"new topology, median of {_REPETITIONS}"
    return [
        Figure(f"reading the snapshot, {what}", "", f"{reading * 1000:.0f} ms", "once"),
        Figure(f"overlay rows, {what}", "<= 100 ms", timed(snapshot, rows), how),
        Figure(f"overlay details, {what}", "<= 100 ms", timed(snapshot, details), how),
        Figure(f"overlay JSON, {what}", "", timed(snapshot, document), how),
        Figure(f"overlay findings, {what}", "<= 100 ms", timed(snapshot, checks), how),
    ]


def read(host: ThrowawayHost) -> Snapshot:
    """Read links and forwarding tables; only this host's namespace is kept."""
    snapshot = read_snapshot({Part.LINKS, Part.NAMESPACES})
    return replace(snapshot, nets={host.inode: snapshot.nets[host.inode]})


def rows(topology: Topology) -> None:
    """Make all rows and filter them."""
    assert len(VIEW.rows(ViewContext(topology)).matching("mac:02:00:00:00:00:07")) >= 1


def details(topology: Topology) -> None:
    """Make the details of this host and the first other one."""
    for row in (VIEW.rows(ViewContext(topology)).row(place) for place in (0, 1)):
        detail(topology, row.ref)


def document(topology: Topology) -> None:
    """Export the overlay with every MAC."""
    assert sum(map(len, document_lines(topology, ("overlay",)))) > 1000


def checks(topology: Topology) -> None:
    """Run all checks of overlays."""
    for check in _CHECKS:
        list(check(topology))


def timed(snapshot: Snapshot, work: Callable[[Topology], object]) -> str:
    """Return the median duration of work on a new topology."""
    durations = []
    for _ in range(_REPETITIONS):
        topology = Topology(replace(snapshot))
        started = time.perf_counter()
        work(topology)
        durations.append((time.perf_counter() - started) * 1000)
    return f"{statistics.median(durations):.1f} ms"
