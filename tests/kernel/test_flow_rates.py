"""Rates compared with iperf3, single entries, and sockets compared with ss."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest

from bpf.client import FastFlowReader
from core.collect.conntrack import lookup, lookup_mask, read_conntrack
from core.collect.sockets import Holders, read_sockets
from core.flows import address_text
from core.flows.merge import FAST, KERNEL, FlowTable
from core.model import Namespace
from core.netlink.netns import entered
from core.rates import WINDOWS
from core.watch.rates import FlowSampler, ReadFastFlows
from tests.support.fastpath import FastPath
from tests.support.host import ThrowawayHost
from tests.support.watching import Watched
from tui.views import nat

pytestmark = pytest.mark.root

RULES = """
table ip nat {
  chain postrouting { type nat hook postrouting priority srcnat; oifname "wan0" masquerade; }
}
"""
ATTEMPTS = 3  # at a measurement on a busy machine


def namespace_of(host: ThrowawayHost, short: str = "host") -> Namespace:
    return Namespace(host.inode_of(short), is_host=short == "host", entry=f"/run/netns/{host.full(short)}")


@pytest.fixture
def nat_host(host: ThrowawayHost) -> ThrowawayHost:
    """Return the host of `make_nat_host`."""
    return make_nat_host(host)


def make_nat_host(host: ThrowawayHost) -> ThrowawayHost:
    """Build a container behind masquerade, and a server outside; turn accounting on."""
    host.run("ip link add br0 type bridge")
    host.run("ip addr add 172.30.0.1/24 dev br0")
    host.run("ip link set br0 up")
    host.container("web", "br0", "172.30.0.2/24", "172.30.0.1")
    outside = host.namespace("out")
    host.run(f"ip link add wan0 type veth peer name eth0 netns {outside}")
    host.run("ip addr add 198.51.100.1/24 dev wan0")
    host.run("ip link set wan0 up")
    host.run("ip addr add 198.51.100.9/24 dev eth0", inside="out")
    host.run("ip link set eth0 up", inside="out")
    host.run("sysctl -qw net.ipv4.ip_forward=1 net.netfilter.nf_conntrack_acct=1")
    subprocess.run(
        ["nsenter", f"--net=/run/netns/{host.name}", "nft", "-f", "-"], input=RULES, text=True, check=True
    )
    return host


@contextmanager
def program(host: ThrowawayHost, inside: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    started = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{host.full(inside)}", *words],
        stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield started
    finally:
        started.kill()
        started.wait()
        for pipe in (started.stdout, started.stdin):
            if pipe:
                pipe.close()


def measured(
    nat_host: ThrowawayHost, streams: int, rate: str, fast: ReadFastFlows | None = None
) -> tuple[list[float], dict[str, Any], FlowTable]:
    """Return the meter's and iperf3's values per second, and a late table."""
    reader, spaces = FlowSampler(fast), {nat_host.inode: namespace_of(nat_host)}
    with (
        program(nat_host, "out", "iperf3", "-s", "-1", "--forceflush") as server,
        tempfile.NamedTemporaryFile("r") as report,  # longer than a pipe's buffer
    ):
        assert server.stdout
        while "listening" not in server.stdout.readline():
            pass
        command = f"iperf3 -c 198.51.100.9 -t 7 -P {streams} -b {rate} --json --logfile {report.name}"
        with program(nat_host, "web", *command.split()) as client:
            tables: list[FlowTable] = []
            while client.poll() is None:
                tables.append(reader.read(spaces)[0])
                time.sleep(0.5)
            sums = [float(np.nansum(table.bits)) for table in tables]
            return sums, json.load(report), tables[len(tables) * 2 // 3]


@contextmanager
def accelerated(nat_host: ThrowawayHost) -> Iterator[ReadFastFlows]:
    """Accelerate the host's bridge; yield the reader of its counters."""
    with FastPath(nat_host, "br0"), entered(f"/run/netns/{nat_host.name}"):
        reader = FastFlowReader()
        try:
            yield reader.read
        finally:
            reader.close()


@pytest.mark.needs("iperf3")
@pytest.mark.parametrize("path", [KERNEL, pytest.param(FAST, marks=pytest.mark.needs("fastpath"))])
@pytest.mark.parametrize(("streams", "rate"), [(1, "80M"), (20, "4M")])
def test_rates_are_within_three_percent_of_iperf3(
    nat_host: ThrowawayHost, streams: int, rate: str, path: int
) -> None:
    with accelerated(nat_host) if path == FAST else nullcontext() as fast:
        for attempt in range(ATTEMPTS):
            sums, report, late = measured(nat_host, streams, rate, fast)
            busy = statistics.median(sorted(sums)[len(sums) // 3 :])
            theirs = statistics.median(one["sum"]["bits_per_second"] for one in report["intervals"])
            if abs(busy / theirs - 1) <= 0.03 or attempt == ATTEMPTS - 1:
                break
    assert busy == pytest.approx(theirs, rel=0.03)
    moving = np.flatnonzero(np.nan_to_num(late.bits) > 100_000)
    assert len(moving) == streams
    assert late.columns.source_translated[moving].all()
    assert late.path[moving].tolist() == [path] * streams


def test_entries_read_again_are_the_same(host: ThrowawayHost) -> None:
    code = "from tests.support.bulk_conntrack import insert; insert(1000)"
    host.run([sys.executable, "-c", code])
    table = read_conntrack(namespace_of(host))
    wanted = table.entries[lookup_mask(table.entries)]
    assert {4, 6} == set(wanted["family"].tolist())
    again = lookup(namespace_of(host), wanted)
    columns = [name for name in wanted.dtype.names or () if name != "timeout"]
    order, other = np.argsort(wanted["id"]), np.argsort(again["id"])
    for name in columns:
        assert np.array_equal(wanted[name][order], again[name][other]), name
    host.run("conntrack -F")
    assert len(lookup(namespace_of(host), wanted)) == 0


@pytest.mark.needs("iperf3")
def test_active_entries_are_read_between_dumps(nat_host: ThrowawayHost) -> None:
    reader, spaces = FlowSampler(), {nat_host.inode: namespace_of(nat_host)}
    with program(nat_host, "out", "iperf3", "-s", "-1", "--forceflush") as server:
        assert server.stdout
        while "listening" not in server.stdout.readline():
            pass
        with program(nat_host, "web", "iperf3", "-c", "198.51.100.9", "-t", "30", "-b", "8M"):
            until = time.monotonic() + 20
            kept, tables = reader.read(spaces)
            while time.monotonic() < until and not (tables is None and np.nansum(kept.bits) > 4e6):
                kept, tables = reader.read(spaces)
                time.sleep(0.2)
    assert tables is None
    assert np.nansum(kept.bits) > 4e6


@pytest.mark.needs("iperf3")
def test_a_nat_rule_has_the_rates_of_its_connections(nat_host: ThrowawayHost) -> None:
    """The rule's own counter has only the first packet of each connection."""
    with program(nat_host, "out", "iperf3", "-s", "-1", "--forceflush") as server:
        assert server.stdout
        while "listening" not in server.stdout.readline():
            pass
        with (
            program(nat_host, "web", "iperf3", "-c", "198.51.100.9", "-t", "60", "-b", "8M"),
            entered(f"/run/netns/{nat_host.name}"),
        ):
            watched = Watched()
            watched.watcher.set_demand(nat.VIEW.demand)
            watched.watcher.start()
            try:
                rates = [0.0, 0.0]
                until = time.monotonic() + 40
                while rates[1] != pytest.approx(8e6, rel=0.1) and time.monotonic() < until:
                    rates = translated(watched)
                    time.sleep(0.2)
            finally:
                watched.watcher.stop()
    assert rates[1] == pytest.approx(8e6, rel=0.1)
    assert rates[0] > 8e6 / 8 / 65536


def translated(watched: Watched) -> list[float]:
    """Return the newest packets/s and bits/s of the masquerade rule's connections."""
    snapshot, rates = watched.snapshot, watched.updates[-1].rates if watched.updates else None
    rules = [
        (firewall.ns, rule.rule_id)
        for firewall in snapshot.firewalls.values()
        if firewall.ns == snapshot.host.netns
        for rule in firewall.rules
        if rule.verdict == "masquerade"
    ]
    history = rates.history("translated", rules, WINDOWS[0]) if rates else None
    known = history.values[~np.isnan(history.values).any(axis=1)] if history else np.zeros((0, 2))
    return [float(value) for value in known[-1]] if len(known) else [0.0, 0.0]


SERVE = """
import socket, sys
server = socket.create_server(("198.51.100.9", 7000))
print("ready", flush=True)
connection, _ = server.accept()
connection.sendall(connection.recv(100))
print("served", flush=True)
sys.stdin.read()
"""
ASK = """
import socket, sys
with socket.create_connection(("198.51.100.9", 7000), 60) as one:
    one.sendall(b"x" * 50)
    assert one.recv(100)
    print("asked", flush=True)
    sys.stdin.read()
"""


def test_sockets_as_ss_prints_them(nat_host: ThrowawayHost) -> None:
    with program(nat_host, "out", sys.executable, "-c", SERVE) as server:
        assert server.stdout and "ready" in server.stdout.readline()
        with program(nat_host, "web", sys.executable, "-c", ASK) as client:
            assert client.stdout and "asked" in client.stdout.readline()
            space = Namespace(
                nat_host.inode_of("web"), pids=(client.pid,), entry=f"/run/netns/{nat_host.full('web')}"
            )
            found = read_sockets(space, Holders())
            output = nat_host.run("ss -tniH state established", inside="web")
    assert len(found.entries) == 1
    one = found.entries[0]
    ends = [
        f"{address_text(bytes(one[at]))}:{one[port]}"
        for at, port in (("local", "lport"), ("remote", "rport"))
    ]
    assert all(each in output for each in ends), output
    theirs = re.search(r"\brtt:([0-9.]+)/", output)
    assert theirs and one["rtt"] / 1000 == pytest.approx(float(theirs[1]), abs=0.01)
    assert (int(one["pid"]), found.commands[int(one["pid"])][:6]) == (client.pid, "python")


@pytest.mark.parametrize("words", ["rtt:<10000", "process:python", "--sockets"])
def test_filters_and_groups_by_process_read_sockets(nat_host: ThrowawayHost, words: str) -> None:
    with program(nat_host, "out", sys.executable, "-c", SERVE) as server:
        assert server.stdout and "ready" in server.stdout.readline()
        with program(nat_host, "web", sys.executable, "-c", ASK) as client:
            assert client.stdout and "asked" in client.stdout.readline()
            flows = json.loads(nat_host.vnet("flows", "--json", "dport:7000", words).stdout)["flows"]
    mine = [one for one in flows if one["ns"] == nat_host.inode]
    assert [[end["pid"] for end in one["processes"]] for one in mine] == [[client.pid, server.pid]]
    assert mine[0]["rtt"] > 0


def test_a_namespace_that_vanishes_is_left_out(host: ThrowawayHost) -> None:
    from core.collect.sockets import read_all
    from core.watch.rates import read_timed

    gone = Namespace(1, entry="/run/netns/there-is-none")
    spaces = {1: gone, host.inode: namespace_of(host)}
    assert [one.table.ns for one in read_timed(spaces)] == [host.inode]
    assert list(read_all(spaces, Holders())) == [host.inode]


UDP_SERVER = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
    server.bind(("0.0.0.0", 7001))
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_an_unconnected_udp_server(nat_host: ThrowawayHost) -> None:
    with program(nat_host, "out", sys.executable, "-c", UDP_SERVER) as server:
        assert server.stdout and "ready" in server.stdout.readline()
        space = Namespace(
            nat_host.inode_of("out"), pids=(server.pid,), entry=f"/run/netns/{nat_host.full('out')}"
        )
        found = read_sockets(space, Holders())
    one = found.entries[found.entries["lport"] == 7001]
    assert len(one) == 1
    assert (int(one["pid"][0]), int(one["l4_proto"][0]), int(one["rport"][0])) == (server.pid, 17, 0)
    assert address_text(bytes(one["local"][0])) == address_text(bytes(one["remote"][0])) == "0.0.0.0"


@pytest.mark.parametrize("whole", [True, False])
def test_flows_of_removed_namespaces_are_removed(host: ThrowawayHost, whole: bool) -> None:
    host.namespace("short")
    for space, count in (("host", 50), ("short", 70)):
        host.run(
            [sys.executable, "-c", f"from tests.support.bulk_conntrack import insert; insert({count})"], space
        )
    spaces = {
        host.inode_of(short): Namespace(host.inode_of(short), entry=f"/run/netns/{host.full(short)}")
        for short in ("host", "short")
    }
    reader = FlowSampler()
    assert len(reader.read(spaces, whole=True)[0]) == 120
    subprocess.run(["ip", "netns", "del", host.full("short")], check=True)
    reader.read(spaces, whole)  # the namespace is gone, the watcher hasn't noticed yet
    assert len(reader.read(spaces, whole=True)[0]) == 50
    assert len(reader.read({host.inode: spaces[host.inode]}, whole=True)[0]) == 50
