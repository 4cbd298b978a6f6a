"""Measure creating networks and attachments, against Docker and netavark.

Also many at once, and a file that changes nothing. It runs on a small machine (tests.support.machine), so
that other networks of this one don't count.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path

from core.apply import journal
from core.apply import run as engine
from core.collect.snapshot import read_snapshot
from core.plan import Plan, plan_all
from core.plan.desired_state import difference, parse
from core.plan.requests import Attach, CreateNetwork, Request
from core.state import planning_lock
from core.topology import Topology
from tests.bench.report import Figure, paired, percentile
from tests.bench.size import sized
from tests.docker.engine import DockerHost
from tests.support.host import ThrowawayHost
from tests.support.machine import Machine
from tui.cli.perform import LIGHT

NETAVARK = "/usr/lib/podman/netavark"
CURVE = sized((10, 100, 500), (3,))
_REPETITIONS = sized(15, 2)
# Seconds until kernel and engine have removed what a measurement made.
_SETTLED = 0.15
_NET, _WEB = "vtbench", "bweb"
_CONTAINER_ID, _NETWORK_ID = "c" * 64, "d" * 64


def side_by_side(docker: DockerHost) -> Iterator[Figure]:
    """Measure one NAT network with one container, alternating with the other engine."""
    plain = docker.host.namespace("plain")
    docker.container(_WEB)
    how = f"alternating, median of {_REPETITIONS}; vnet-tui's time includes reading, plan and journal"
    against_docker = paired(lambda: by_vnet(plain), lambda: by_docker(docker), _REPETITIONS)
    yield Figure(
        "NAT network + one container, engine time", "<= 0.1 x docker", against_docker.with_minima(), how
    )
    if Path(NETAVARK).exists():
        against = paired(lambda: by_vnet(plain), lambda: by_netavark(docker.host, plain), _REPETITIONS)
        yield Figure("the same", "<= 0.33 x netavark setup", against.with_minima(), how)


def run() -> list[Figure]:
    """Measure the ratios with Docker and netavark, and how long many take, twice."""
    machine = Machine()
    try:
        output = machine.run([sys.executable, "-m", "tests.bench.bench_change"])
    finally:
        machine.close()
    return [Figure(*figure) for figure in json.loads(output)]


def measured() -> list[Figure]:
    """Measure on the machine that this runs on."""
    with state_directory():
        docker = DockerHost()
        try:
            docker.start()
            docker.import_image()
            os.environ["DOCKER_HOST"] = docker.url
            with inside(docker.host):
                figures = list(side_by_side(docker))
        finally:
            os.environ.pop("DOCKER_HOST", None)
            docker.close()
        return figures + [figure for count in CURVE for figure in many(count)]


def by_vnet(container: str) -> float:
    """Create the network and attach the container; undo outside the measured time."""
    requests = (CreateNetwork(_NET), Attach(container, _NET))
    seconds, _ = timed(lambda: change(lambda _: requests))
    entry = next(journal.history())
    assert not engine.undo(entry).errors
    time.sleep(_SETTLED)
    return seconds


def change(requests: Callable[[Topology], tuple[Request, ...]]) -> int:
    """Read, plan and apply, as the command line does; return the number of steps."""
    with planning_lock():
        topology = Topology(read_snapshot(LIGHT, deep=False))
        plan = plan_all(requests(topology), topology)
        assert isinstance(plan, Plan), plan
        if plan.steps:
            outcome = engine.apply(plan.title, plan.steps)
            assert outcome.done, outcome.errors
        return len(plan.steps)


def by_docker(docker: DockerHost) -> float:
    """Do the same by the `docker` command."""
    seconds, _ = timed(
        lambda: (docker.run("network", "create", _NET), docker.run("network", "connect", _NET, _WEB))
    )
    docker.run("network", "disconnect", _NET, _WEB)
    docker.run("network", "rm", _NET)
    time.sleep(_SETTLED)
    return seconds


def by_netavark(host: ThrowawayHost, container: str) -> float:
    """Do the same by netavark."""
    network = {
        "name": _NET, "id": _NETWORK_ID, "driver": "bridge", "network_interface": "nv0", "internal": False,
        "ipv6_enabled": False, "dns_enabled": False, "ipam_options": {"driver": "host-local"},
        "subnets": [{"subnet": "10.99.0.0/24", "gateway": "10.99.0.1"}],
    }  # fmt: skip
    configuration = {
        "container_id": _CONTAINER_ID, "container_name": "plain", "network_info": {_NET: network},
        "networks": {_NET: {"interface_name": "eth0", "static_ips": ["10.99.0.2"]}},
    }  # fmt: skip
    seconds, _ = timed(lambda: _netavark("setup", container, configuration))
    _netavark("teardown", container, configuration)
    time.sleep(_SETTLED)
    return seconds


def _netavark(verb: str, container: str, configuration: dict[str, object]) -> None:
    subprocess.run(
        [NETAVARK, "-c", tempfile.gettempdir(), verb, f"/run/netns/{container}"],
        input=json.dumps(configuration), text=True, check=True, capture_output=True,
    )  # fmt: skip


def many(count: int) -> Iterator[Figure]:
    """Apply a file with that many containers on one network, twice."""
    prefix = f"vb{os.getpid()}"
    names = [f"{prefix}x{number}" for number in range(count)]
    text = '[network.many]\nsubnets = ["10.98.0.0/16"]\n'
    text += "".join(f"[container.{name}]\n" for name in names)
    text += "".join(f'[[attach]]\ncontainer = "netns:{name}"\nnetwork = "many"\n' for name in names)
    host = ThrowawayHost()
    try:
        with inside(host):
            desired = parse(text)
            first, steps = timed(lambda: change(lambda topology: difference(desired, topology)))
            again = []
            for _ in range(5):
                seconds, more = timed(lambda: change(lambda topology: difference(desired, topology)))
                assert more == 0
                again.append(seconds)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        host.close()
    how = f"{steps} steps, once"
    yield Figure(
        f"{count} containers by one file", "<= 10 ms each", f"{first / count * 1000:.1f} ms each", how
    )
    measured = f"no operation; {percentile(again, 0.5):.2f} s"
    yield Figure(f"the file of {count} again", "no operation, <= 0.5 s", measured, "median of 5")


def timed[T](work: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds of some work, and its result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


@contextmanager
def inside(host: ThrowawayHost) -> Iterator[None]:
    """Take the throw-away host for the host in the block."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{host.name}", os.O_RDONLY)
    os.setns(there, os.CLONE_NEWNET)
    try:
        yield
    finally:
        os.setns(home, os.CLONE_NEWNET)
        os.close(home)
        os.close(there)


@contextmanager
def state_directory() -> Iterator[None]:
    """Use a separate journal in the block."""
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("VNET_STATE")
        os.environ["VNET_STATE"] = folder
        try:
            yield
        finally:
            os.environ.pop("VNET_STATE")
            if before is not None:
                os.environ["VNET_STATE"] = before


if __name__ == "__main__":
    print(json.dumps([astuple(figure) for figure in measured()]))
