"""Check conntrack statistics against `conntrack -S`, and where they are shown."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict

import pytest

from core.collect.conntrack import read_conntrack, read_usage
from core.model import ConntrackStats, Namespace
from tests.support.host import ThrowawayHost
from tests.support.machine import Machine, ok

pytestmark = pytest.mark.root

INSERT = "conntrack -I -p udp -d 2.2.2.2 --dport 2 -t 100 -s"
TRACK = "table inet t { chain out { type filter hook output priority 0; ct state new counter; }; }"
# Five unsolicited ICMP echo replies.
UNSOLICITED = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
    for _ in range(5):
        sock.sendto(bytes([0, 0, 255, 255, 0, 0, 0, 0]), ("127.0.0.1", 0))
"""


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine()
    try:
        yield made
    finally:
        made.close()


def stats(host: ThrowawayHost) -> dict[str, int]:
    """Return the output of `conntrack -S`, summed over CPUs, by our names."""
    sums = dict.fromkeys(asdict(ConntrackStats()), 0)
    for name, count in re.findall(r"(\w+)=(\d+)", host.run("conntrack -S")):
        key = {"chaintoolong": "chain_too_long"}.get(name, name)
        if key in sums:
            sums[key] += int(count)
    return sums


def test_counters_as_conntrack_prints_them(host: ThrowawayHost) -> None:
    for number in range(3):
        host.run(f"{INSERT} 1.1.1.1 --sport {number + 1}")
    host.run(["nft", TRACK])
    host.run([sys.executable, "-c", UNSOLICITED])
    namespace = Namespace(host.inode, entry=f"/run/netns/{host.name}")
    before = stats(host)
    table = read_conntrack(namespace)
    count, limit, alone = read_usage(namespace)
    after = stats(host)
    assert table.stats is not None and alone is not None
    assert table.stats.insert == 3 and table.stats.invalid >= 5
    for one in (table.stats, alone):
        assert all(before[name] <= value <= after[name] for name, value in asdict(one).items())
    assert (count, limit) == (int(host.run("conntrack -C")), table.limit)


def test_show_and_json(machine: Machine) -> None:
    for port in (1, 2):
        machine.run(f"{INSERT} 1.1.1.1 --sport {port}")
    first = ok(machine, "show conntrack").splitlines()[0]
    limit = int(machine.run("sysctl -n net.netfilter.nf_conntrack_max"))
    assert re.search(rf"\b2 of {limit:,} \(under 1%\) · no failures · top sources: 1.1.1.1 100%", first), (
        first
    )
    table = next(
        one for one in json.loads(ok(machine, "show conntrack --json"))["conntrack_tables"] if one["entries"]
    )
    assert table["sources"] == [{"name": None, "address": "1.1.1.1", "entries": 2}]
    assert table["stats"]["insert"] == 2
