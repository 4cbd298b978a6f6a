"""All flows of an accelerated Docker network on the dashboard.

A real Docker host, accelerated by `f`: every flow is on the screen with its path, and each byte is counted
once, as conntrack(8) and bpftool count it.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import tarfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from bpf import layout, rpc
from tests.docker.engine import DockerHost
from tests.docker.test_accelerate import Vnet, ends, say, world
from tests.support.fastpath import leftovers
from tests.support.waiting import PATIENCE, wait_until
from tests.ui.driver import Person
from tui.app import VnetApp
from tui.cli.dashboard import DashboardFastPath
from tui.cli.fastpath_agent import FastPathMetrics
from tui.cli.session import ChangeSession
from tui.services import Services
from tui.sources import LiveSource

pytestmark = pytest.mark.root

__all__ = ["world"]

# Other hosts on the same machine may be visible.
SHOP, WEB, DB = (f"{name}{os.getpid()}" for name in ("shop", "web", "db"))
PORT = 8080


@pytest.fixture
def shop(
    inside_docker_host: DockerHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DockerHost]:
    """Yield the network SHOP with WEB, whose port is published, and DB.

    The kernel counts conntrack entries.
    """
    docker = inside_docker_host
    monkeypatch.setenv("DOCKER_HOST", docker.url)
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))
    docker.host.run("sysctl -qw net.netfilter.nf_conntrack_acct=1")
    docker.run("network", "create", SHOP)
    docker.container(WEB, "--network", SHOP, "-p", f"{PORT}:7000")
    docker.container(DB, "--network", SHOP)
    yield docker
    wait_until(lambda: not leftovers(docker.host), "the state before")


@asynccontextmanager
async def dashboard(size: tuple[int, int]) -> AsyncIterator[Person]:
    """Start the program on this host as a user does."""
    fast = DashboardFastPath()
    source = LiveSource(fast.flows)
    app = VnetApp(source, services=Services(ChangeSession, fast.fast_path_service))
    async with app.run_test(size=size) as pilot:
        yield Person(app, pilot, source)  # type: ignore[arg-type]


@pytest.fixture
def talks(shop: DockerHost, world: str) -> Iterator[list[tuple[socket.socket, ...]]]:
    """Yield two connections: from DB, and from outside to the published port."""
    address = shop.run("inspect", "-f", f"{{{{.NetworkSettings.Networks.{SHOP}.IPAddress}}}}", WEB)
    with ExitStack() as stack:
        web = f"/proc/{shop.pid(WEB)}/ns/net"
        inside = ends(shop, address, 7000, f"/proc/{shop.pid(DB)}/ns/net", web)
        outside = ends(shop, "192.0.2.1", PORT, world, web)
        for each in (*inside, *outside):
            stack.enter_context(each)
        yield [inside, outside]


async def talked_until(person: Person, talks: list[tuple[socket.socket, ...]], shown: list[str]) -> None:
    """Talk on both connections until the screen shows them.

    Each needs a line that matches all of these patterns in order.
    """
    end = time.monotonic() + PATIENCE
    while not all(any(re.search(each, line) for line in person.lines) for each in shown):
        assert time.monotonic() < end, person.text
        for client, there in talks:
            await asyncio.to_thread(say, client, there)
        await person.pilot.pause(0.1)


@pytest.mark.parametrize("size", [(80, 24), (130, 40), (200, 60)])
async def test_f_accelerates_and_every_flow_is_shown(
    shop: DockerHost, talks: list[tuple[socket.socket, ...]], size: tuple[int, int], tmp_path: Path
) -> None:
    ports = [client.getsockname()[1] for client, _ in talks]
    async with dashboard(size) as person:
        await person.eventually(SHOP)
        await person.type("W:br⏎")
        await person.eventually("bridge / port")
        await person.type(f"/net:{SHOP}⏎")
        await person.eventually("filtered 3 of")
        await person.press("f")
        await person.eventually("y: apply")
        await person.press("y")
        await person.eventually("fast path on")
        await person.type(":flows⏎")
        await person.type(f"/to:{WEB} dport:7000⏎")
        # In a narrow column only the port follows a long name.
        rows = [rf"{DB} .*{WEB} .* tcp .*bit/s +fast", rf"-world[ :].*{WEB} .* tcp .*bit/s +fast"]
        await talked_until(person, talks, rows)
        wait_until(lambda: measured(shop, ports) == counted(shop, ports), "equal counts")
        assert [fast for _, _, fast in measured(shop, ports).values()] == [True, True]
        wait_until(lambda: metrics_packets() == dumped(shop)["packets"].sum(), "the same number in metrics")
        assert bundled(shop, tmp_path / "b.tar.gz") == [True, True]


def measured(shop: DockerHost, ports: list[int]) -> dict[int, tuple[int, int, int]]:
    """Return (packets, bytes, is fast) of the connections from these ports.

    As `vnet-tui flows` prints them.
    """
    listed = json.loads(Vnet(shop)(f"flows --json 'to:{WEB}' dport:7000"))["flows"]
    return {
        one["origin"]["port"]: (sum(one["packets"]), sum(one["bytes"]), one["path"] == "fast")
        for one in listed
        if one["origin"]["port"] in ports
    }


def counted(shop: DockerHost, ports: list[int]) -> dict[int, tuple[int, int, int]]:
    """Return the same from conntrack(8) and bpftool, each of which sees a part."""
    found = {port: [0, 0, 0] for port in ports}
    for line in shop.host.run("conntrack -L -p tcp").splitlines():
        words = re.findall(r"(sport|packets|bytes)=(\d+)", line)
        port = int(words[0][1])
        if port in found:
            for place, name in enumerate(("packets", "bytes")):
                found[port][place] += sum(int(value) for key, value in words if key == name)
    for key, flow in zip(dumped(shop, "key"), dumped(shop), strict=True):
        port = next((port for port in ports if port in (int(key["sport"]), int(flow["new_dport"]))), None)
        if port is not None:
            found[port][0] += int(flow["packets"])
            found[port][1] += int(flow["bytes"])
            found[port][2] = int(flow["packets"] > 0)
    return {port: (packets, octets, fast) for port, (packets, octets, fast) in found.items()}


def dumped(shop: DockerHost, part: str = "value") -> np.ndarray:
    """Return the keys or values of the map of IPv4 flows, as bpftool dumps it."""
    number = rpc.ask({"do": "maps"}, shop.inode)["maps"]["flows4"]
    rows = json.loads(shop.host.run(f"bpftool -j map dump id {number}"))
    octets = bytes(int(octet, 16) for row in rows for octet in row[part])
    return np.frombuffer(octets, layout.KEY4 if part == "key" else layout.FLOW)


def metrics_packets() -> int | None:
    """Return the packets forwarded by the fast path, from the agent's metrics."""
    numbers = FastPathMetrics()()
    return numbers.packets if numbers else None


def bundled(shop: DockerHost, path: Path) -> list[bool]:
    """Return whether each connection to WEB is shown as fast in a new bundle."""
    Vnet(shop)(f"bundle {path}")
    with tarfile.open(path) as archive:
        (name,) = (name for name in archive.getnames() if name.endswith("/flows.txt"))
        lines = archive.extractfile(name).read().decode().splitlines()  # type: ignore[union-attr]
    return [line.endswith(" fast") for line in lines if f"-> {WEB} " in line and ":7000 " in line]
