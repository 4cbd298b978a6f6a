"""Retransmits, lost and out-of-order segments of flows on a lossy path, as ss prints them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from core.collect.sockets import read_sockets
from core.model import Sockets
from core.model.conntrack import OOO_INFO
from tests.support.host import ThrowawayHost
from tests.support.waiting import wait_until

from .test_flow_rates import make_nat_host, namespace_of, program

pytestmark = pytest.mark.root

SERVE = """
import socket, sys
server = socket.create_server(("198.51.100.9", 7000))
print("ready", flush=True)
connection, _ = server.accept()
left = int(sys.argv[1])
while left:
    left -= len(connection.recv(65536))
print("received", flush=True)
sys.stdin.read()
"""
SEND = """
import socket, sys
connection = socket.create_connection(("198.51.100.9", 7000), 60)
print("connected", flush=True)
for line in sys.stdin:
    connection.sendall(bytes(int(line)))
    print("sent", flush=True)
"""
SIZE = 3_000_000
LOSSY = "numgen random mod 10 == 0"


@contextmanager
def sending(host: ThrowawayHost) -> Iterator[tuple[Any, Any]]:
    """Run a server outside and a connected client in `web`, through the host's NAT."""
    with program(host, "out", sys.executable, "-c", SERVE, str(SIZE)) as server:
        assert server.stdout and "ready" in server.stdout.readline()
        with program(host, "web", sys.executable, "-c", SEND) as client:
            assert client.stdout and "connected" in client.stdout.readline()
            yield server, client


def drop(host: ThrowawayHost, match: str) -> None:
    """Drop packets to the server that match while the host forwards them."""
    host.run(["nft", "add table ip lossy"])
    host.run(["nft", "add chain ip lossy forward { type filter hook forward priority 0; }"])
    host.run(["nft", f"add rule ip lossy forward ip daddr 198.51.100.9 {match} drop"])


def write(process: Any, line: str) -> None:
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def from_ss(host: ThrowawayHost, short: str) -> dict[str, int]:
    """Return what `ss -ti` prints of the only connection in a namespace."""
    text = host.run("ss -tniH state established", inside=short)
    patterns = {"retrans": r"\bretrans:\d+/(\d+)", "lost": r"\blost:(\d+)", "ooo": r"\brcv_ooopack:(\d+)"}
    found = {name: re.search(pattern, text) for name, pattern in patterns.items()}
    return {name: int(match[1]) if match else 0 for name, match in found.items()}


def counted(sockets: Sockets) -> dict[str, int]:
    assert len(sockets.entries) == 1
    return {name: int(sockets.entries[0][name]) for name in ("retrans", "lost", "ooo")}


@pytest.fixture
def lossy(host: ThrowawayHost) -> ThrowawayHost:
    return make_nat_host(host)


def test_segments_of_a_lossy_path_are_those_of_ss(lossy: ThrowawayHost) -> None:
    drop(lossy, LOSSY)
    with sending(lossy) as (server, client):
        write(client, str(SIZE))
        assert "sent" in client.stdout.readline() and "received" in server.stdout.readline()
        wait_until(lambda: from_ss(lossy, "web")["lost"] == 0)
        theirs = [from_ss(lossy, short) for short in ("web", "out")]
        ours = [counted(read_sockets(namespace_of(lossy, short))) for short in ("web", "out")]
        done = lossy.vnet("flows", "--json", "dport:7000", "retrans:>0", "--per-hop")
        none = lossy.vnet("flows", "--json", "dport:7000", "!retrans:>0")
        sockets = read_sockets(namespace_of(lossy, "out"))
    assert ours == theirs and theirs[0]["retrans"] > 0, (ours, theirs)
    flow = next(one for one in json.loads(done.stdout)["flows"] if one["ns"] == lossy.inode)
    assert flow["retransmits"] == [end["retrans"] for end in theirs]
    assert flow["lost"] == [0, 0]
    if sockets.entries[0]["info"] >= OOO_INFO:  # from Linux 5.4 on
        assert flow["out_of_order"] == [end["ooo"] for end in theirs] and theirs[1]["ooo"] > 0
    assert json.loads(none.stdout)["flows"] == []


def test_segments_that_are_lost_now_are_found_by_a_filter(lossy: ThrowawayHost) -> None:
    with sending(lossy) as (_, client):
        write(client, "100")
        assert "sent" in client.stdout.readline()
        assert json.loads(lossy.vnet("flows", "--json", "lost:>0").stdout)["flows"] == []
        drop(lossy, "tcp dport 7000")
        write(client, "100")
        wait_until(lambda: from_ss(lossy, "web")["lost"] > 0)
        before = from_ss(lossy, "web")["retrans"]
        flows = json.loads(lossy.vnet("flows", "--json", "lost:>0").stdout)["flows"]
        after = from_ss(lossy, "web")["retrans"]
    (flow,) = [one for one in flows if one["ns"] == lossy.inode]
    assert flow["lost"][0] == 1
    assert before <= flow["retransmits"][0] <= after


def test_without_sockets_segments_are_unknown(lossy: ThrowawayHost) -> None:
    with sending(lossy):
        flows = json.loads(lossy.vnet("flows", "--json", "dport:7000").stdout)["flows"]
    assert flows
    for flow in flows:
        assert [flow[key] for key in ("retransmits", "lost", "out_of_order")] == [[None, None]] * 3
