"""The Docker collector, compared with `docker inspect` and the kernel."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from core.collect.engines import read_docker, watch_docker
from core.collect.processes import read_unmanaged
from core.model import NAMESPACE_KINDS, Container, Namespace, Network
from tests.docker.engine import IMAGE, DockerHost
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.root

WEIRD = {
    "markup": "[bold red]not bold[/] [/nothing] \\[x]",
    "escape": "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "rtl": "\u202eabc\u2066\u05d0\u05d1",
    "long": "x" * 255,
    "lines": "one\ntwo\r\n\tthree",
    "\u202e[b]key": "value",
    "empty": "",
}


def inspect(engine: DockerHost, name: str) -> dict[str, Any]:
    """Return what `docker inspect` prints about one object."""
    return dict(json.loads(engine.run("inspect", name))[0])


def containers(engine: DockerHost) -> dict[str, Container]:
    found = read_docker(engine.socket)
    assert (found.state, found.problems) == ("ok", ())
    return {container.name: container for container in found.containers}


def networks(engine: DockerHost) -> dict[str, Network]:
    return {network.name: network for network in read_docker(engine.socket).networks}


def assert_as_inspected(container: Container, inspected: dict[str, Any]) -> None:
    """Compare everything that both have."""
    assert container.uid == f"docker:{inspected['Id']}"
    assert f"/{container.name}" == inspected["Name"]
    assert container.state == inspected["State"]["Status"]
    assert container.pid == (inspected["State"]["Pid"] or None)
    assert container.image == inspected["Config"]["Image"]
    assert container.labels == (inspected["Config"]["Labels"] or {})
    assert container.command == " ".join([inspected["Path"], *inspected["Args"]])
    created = datetime.fromisoformat(inspected["Created"][:19] + "+00:00")
    assert datetime.fromisoformat(container.created) == created
    ends = {
        name: (
            f"{end['IPAddress']}/{end['IPPrefixLen']}" if end["IPAddress"] else "",
            f"{end['GlobalIPv6Address']}/{end['GlobalIPv6PrefixLen']}" if end["GlobalIPv6Address"] else "",
            end["Gateway"],
            end["MacAddress"],
        )
        for name, end in inspected["NetworkSettings"]["Networks"].items()
    }
    assert {end.network: (end.ipv4, end.ipv6, end.gateway, end.mac) for end in container.endpoints} == ends


def test_every_network_mode(docker_host: DockerHost) -> None:
    docker_host.run("network", "create", "user-net")
    asked = {"br": "bridge", "no": "none", "ho": "host", "us": "user-net"}
    ids = {name: docker_host.container(name, "--network", mode) for name, mode in asked.items()}
    docker_host.container("jo", "--network", "container:br")
    docker_host.run("create", "--name", "new", IMAGE, "ls", "/")
    docker_host.run("run", "--name", "gone", "--network", "none", IMAGE, "true")
    found = containers(docker_host)
    assert found.keys() == {"br", "no", "ho", "us", "jo", "new", "gone"}
    for name, container in found.items():
        assert_as_inspected(container, inspect(docker_host, name))
    modes = {name: container.network_mode for name, container in found.items()}
    assert modes == asked | {"jo": f"container:{ids['br']}", "new": "bridge", "gone": "none"}
    assert found["new"].namespaces == found["gone"].namespaces == {}


def test_namespaces(docker_host: DockerHost) -> None:
    docker_host.container("own")
    docker_host.container("open", "--network", "host", "--pid", "host", "--uts", "host", "--ipc", "host")
    docker_host.container("with", "--network", "container:own", "--pid", "container:own")
    found = containers(docker_host)
    for name, container in found.items():
        pid = docker_host.pid(name)
        links = {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in NAMESPACE_KINDS}
        assert {kind: f"{kind}:[{inode}]" for kind, inode in container.namespaces.items()} == links
    assert found["open"].netns == docker_host.inode
    assert found["with"].namespaces["pid"] == found["own"].namespaces["pid"]


def test_published_ports(docker_host: DockerHost) -> None:
    docker_host.container(
        "pub", "-p", "8080:80", "-p", "127.0.0.1:5300:53/udp", "-p", "10.200.0.1:9000-9001:90-91",
        "--expose", "7000", "-p", "8081:80", "-p", "[::]:8091:80", "-p", "0.0.0.0:8092:80",
    )  # fmt: skip
    docker_host.container("too", "--network", "container:pub")
    found = containers(docker_host)
    inspected = inspect(docker_host, "pub")["NetworkSettings"]["Ports"]
    expected = {
        (inside.split("/")[1], end["HostIp"], int(end["HostPort"]), int(inside.split("/")[0]))
        for inside, ends in inspected.items()
        for end in ends or ()
    }
    both = {(proto, *ports) for proto, ip, *ports in expected if ip == "0.0.0.0"} & {
        (proto, *ports) for proto, ip, *ports in expected if ip == "::"
    }
    every = {(proto, "" if (proto, *ports) in both else ip, *ports) for proto, ip, *ports in expected}
    assert {("tcp", "::", 8091, 80), ("tcp", "0.0.0.0", 8092, 80), ("tcp", "", 8080, 80)} <= every
    ports = [
        (port.l4_proto, port.host_ip, port.host_port, port.container_port) for port in found["pub"].ports
    ]
    assert len(ports) == len(set(ports)) == 7
    assert set(ports) == every
    assert found["too"].ports == (), "they are the other one's"


def test_hostile_text_stays_verbatim(docker_host: DockerHost) -> None:
    labels = [word for key, value in WEIRD.items() for word in ("--label", f"{key}={value}")]
    docker_host.run("network", "create", *labels, "weird")
    docker_host.container("we.i-rd_", *labels)
    container, network = containers(docker_host)["we.i-rd_"], networks(docker_host)["weird"]
    assert container.labels == network.labels == WEIRD
    assert inspect(docker_host, "we.i-rd_")["Config"]["Labels"] == WEIRD


def test_networks(docker_host: DockerHost) -> None:
    create = ("network", "create", "--label", "a=b")
    docker_host.run(*create, "--subnet", "10.201.0.0/24", "--gateway", "10.201.0.9", "named",
                    "-o", "com.docker.network.bridge.name=nm0",
                    "-o", "com.docker.network.driver.mtu=1400")  # fmt: skip
    docker_host.run(*create, "--internal", "inner")
    docker_host.run(*create, "--ipv6", "--subnet", "fd00:7::/64", "--subnet", "10.202.0.0/24", "both")
    docker_host.container("six", "--network", "both")
    found = networks(docker_host)
    bridges = {link["ifname"] for link in docker_host.host.json("ip -j link show type bridge")}
    assert found.keys() == {"bridge", "host", "none", "named", "inner", "both"}
    for name, network in found.items():
        [inspected] = json.loads(docker_host.run("network", "inspect", name))
        pools = inspected["IPAM"]["Config"] or []
        assert (network.engine, network.id, network.driver) == (
            "docker",
            inspected["Id"],
            inspected["Driver"],
        )
        assert network.internal == inspected["Internal"] == (name == "inner")
        assert network.labels == inspected["Labels"]
        assert list(network.subnets) == [pool["Subnet"] for pool in pools]
        assert list(network.gateways) == [pool["Gateway"] for pool in pools if "Gateway" in pool]
        assert network.ns == docker_host.inode
        assert network.bridge in bridges if network.driver == "bridge" else network.bridge == ""
    assert {network.bridge for network in found.values()} == bridges | {""}
    assert (found["named"].mtu, found["named"].bridge) == (1400, "nm0")
    assert found["bridge"].bridge == "docker0"
    assert_as_inspected(containers(docker_host)["six"], inspect(docker_host, "six"))
    assert containers(docker_host)["six"].endpoints[0].ipv6.startswith("fd00:7::")


def test_states(docker_host: DockerHost) -> None:
    docker_host.container("lives")
    docker_host.container("waits")
    docker_host.run("pause", "waits")
    docker_host.container("ended")
    docker_host.run("stop", "ended")
    docker_host.run("rename", "lives", "lives-on")
    found = containers(docker_host)
    states = {name: container.state for name, container in found.items()}
    assert states == {"lives-on": "running", "waits": "paused", "ended": "exited"}
    assert found["waits"].netns and not found["ended"].netns


def test_an_engines_containers_are_not_plain_ones(docker_host: DockerHost) -> None:
    docker_host.container("mine")
    [mine] = containers(docker_host).values()
    assert mine.pid and mine.netns
    namespaces = {mine.netns: Namespace(mine.netns, names=("mine",))}
    claimed = read_unmanaged(namespaces, frozenset({mine.pid})).containers
    assert not [container for container in claimed if container.netns == mine.netns]
    found = {(c.runtime, c.name, c.pid) for c in read_unmanaged(namespaces, frozenset()).containers}
    assert ("netns", "mine", mine.pid) in found, "without the engine it is a plain one"


@pytest.fixture
def calls(docker_host: DockerHost) -> Iterator[list[float]]:
    """Yield the calls of `dirty` by a running watcher, which ends with the test."""
    made: list[float] = []
    stop = threading.Event()
    watcher = threading.Thread(target=watch_docker, args=(stop, lambda: made.append(1), docker_host.socket))
    watcher.start()
    wait_until(lambda: made, "the call at the start")
    yield made
    stop.set()
    watcher.join(PATIENCE)
    assert not watcher.is_alive()


def assert_noticed(calls: list[float], what: str) -> None:
    wait_until(lambda: calls, f"a call after {what}")


@pytest.mark.parametrize(
    "words",
    [
        "rename aa bb",
        "pause aa",
        "kill aa",
        "network create other",
        "network disconnect bridge aa",
        "rm -f aa",
    ],
)
def test_events_are_noticed(docker_host: DockerHost, calls: list[float], words: str) -> None:
    docker_host.container("aa")
    wait_until(lambda: len(calls) > 1, "the calls for the start")
    wait_until(lambda: quiet(calls), "the end of the events of the start")
    docker_host.run(*words.split())
    assert_noticed(calls, words)


def quiet(calls: list[float]) -> bool:
    """Forget the calls so far; return whether there were none."""
    seen = len(calls)
    calls.clear()
    threading.Event().wait(0.5)
    return not seen


def test_an_exec_in_a_container_is_not_an_event(docker_host: DockerHost, calls: list[float]) -> None:
    docker_host.container("aa")
    wait_until(lambda: quiet(calls), "the end of the events of the start")

    def exec_is_silent() -> bool:
        docker_host.run("exec", "aa", "true")
        docker_host.run("top", "aa")
        return quiet(calls)

    wait_until(exec_is_silent, "looking inside without an event")


def test_an_engine_stopped_and_started_again(docker_host: DockerHost, calls: list[float]) -> None:
    docker_host.container("aa", "--restart", "always")
    before = containers(docker_host)["aa"]
    calls.clear()
    docker_host.stop()
    assert_noticed(calls, "the end of the engine")
    stopped = read_docker(docker_host.socket)
    assert (stopped.state, stopped.containers) == ("stopped", ())
    [problem] = stopped.problems
    assert "Docker isn't running" in problem.why and "systemctl start docker" in problem.try_
    wait_until(lambda: quiet(calls), "the end of the events of the stop")
    docker_host.start()
    assert_noticed(calls, "the start of the engine")
    wait_until(lambda: containers(docker_host)["aa"].state == "running", "the container's restart")
    after = containers(docker_host)["aa"]
    assert (after.uid, after.pid) == (before.uid, docker_host.pid("aa"))
    assert after.pid != before.pid
    wait_until(lambda: quiet(calls), "the end of the events of the start")
    docker_host.container("cc", "--network", "none")
    assert_noticed(calls, "an event of the new engine")
