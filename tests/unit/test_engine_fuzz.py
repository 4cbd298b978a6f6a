"""Engines with altered responses cause at most a problem; all commands work."""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.collect.engines import read_docker, read_podman
from core.diagnose import findings
from core.model import Engine, Snapshot
from core.plan import Plan, Refused, plan
from core.plan.requests import Attach, CreateContainer, CreateNetwork, Publish
from core.serialize import from_json, to_json
from core.topology import Topology
from tests.docker.bad_engine import BadEngine, http
from tests.support.mutations import mutated
from tests.support.snapshots import small_builder
from tui.cli.parser import TOPICS
from tui.cli.show import Output, show

SEED = int(os.environ.get("SEED", "1"))
CASES = int(os.environ.get("CASES", "40"))  # of each engine

ID, OTHER, NET = "ab" * 32, "cd" * 32, "ef" * 32
LISTED = [
    {
        "Id": ID, "Names": ["/web1", "/other/alias"], "Image": "nginx", "Command": "nginx -g",
        "Created": 1700000000, "State": "running", "Status": "Up 2 hours", "Labels": {"tier": "front"},
        "Ports": [
            {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
            {"IP": "::", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
            {"PrivatePort": 443, "Type": "tcp"},
        ],
        "HostConfig": {"NetworkMode": "app"}, "Mounts": [],
        "NetworkSettings": {"Networks": {"app": {
            "IPAMConfig": {"IPv4Address": "172.18.0.2"}, "Links": None, "Aliases": ["web"], "NetworkID": NET,
            "EndpointID": OTHER, "Gateway": "172.18.0.1", "IPAddress": "172.18.0.2", "IPPrefixLen": 16,
            "IPv6Gateway": "fd00::1", "GlobalIPv6Address": "fd00::2", "GlobalIPv6PrefixLen": 64,
            "MacAddress": "02:42:ac:12:00:02", "DriverOpts": None, "GwPriority": 0, "DNSNames": None,
        }}},
    },
    {"Id": OTHER, "Names": ["/old"], "Image": "x", "Created": 1, "State": "exited", "Labels": {}, "Ports": [],
     "HostConfig": {"NetworkMode": f"container:{ID}"}, "NetworkSettings": {"Networks": {}}},
]  # fmt: skip
NETWORKS = [
    {
        "Name": "app", "Id": NET, "Created": "2026-01-01T00:00:00Z", "Scope": "local", "Driver": "bridge",
        "EnableIPv4": True, "EnableIPv6": True, "Internal": False, "Attachable": False, "Ingress": False,
        "IPAM": {"Driver": "default", "Options": {}, "Config": [
            {"Subnet": "172.18.0.0/16", "Gateway": "172.18.0.1"},
            {"Subnet": "fd00::/64", "Gateway": "fd00::1"}]},
        "ConfigFrom": {"Network": ""}, "Containers": {}, "Labels": {"com.docker.compose.network": "app"},
        "Options": {"com.docker.network.bridge.name": "br-app", "com.docker.network.driver.mtu": "1450"},
    },
    {"Name": "mac", "Id": "12" * 32, "Driver": "macvlan", "IPAM": {"Config": [{"Subnet": "192.0.2.0/24"}]},
     "Options": {"parent": "eth0"}, "Internal": False, "Labels": None},
    {"Name": "none", "Id": "34" * 32, "Driver": "null", "IPAM": {"Config": None}, "Options": {}},
]  # fmt: skip
LIBPOD_NETWORKS = [
    {"name": "podman", "id": "56" * 32, "driver": "bridge", "network_interface": "podman0", "internal": False,
     "subnets": [{"subnet": "10.88.0.0/16", "gateway": "10.88.0.1"}], "ipv6_enabled": False,
     "options": {"mtu": "1400"}, "labels": {}, "ipam_options": {"driver": "host-local"}},
]  # fmt: skip
ANSWERS = {
    "version": {"Version": "28.5.2", "ApiVersion": "1.51"},
    "all": LISTED,
    "one": {
        "Id": ID,
        "State": {"Status": "running", "Pid": os.getpid()},
        "HostConfig": {"NetworkMode": "app"},
    },
    "networks": NETWORKS,
    "libpod": LIBPOD_NETWORKS,
}
HOST = small_builder().snapshot()
REQUESTS = [
    CreateNetwork("fresh"), CreateNetwork("fresh", ipv6=True), CreateNetwork("fresh", engine="docker"),
    Attach("web1", "fresh"), Attach("web1", "app"), Publish("web1", "81"),
    CreateContainer("c", "bridged", "app"),
]  # fmt: skip


def answering(answers: dict[str, Any]) -> Any:
    def answer(path: str) -> Iterator[bytes]:
        asked = path.partition("?")[0]
        key = "one"
        for end, name in (
            ("/_ping", "version"), ("/version", "version"), ("/containers/json", "all"),
            ("/libpod/networks/json", "libpod"), ("/networks", "networks"),
        ):  # fmt: skip
            if asked.endswith(end):
                key = name
                break
        yield http(json.dumps(answers[key]).encode())

    return answer


def used(engine: Engine) -> None:
    """Run what the commands run on a host with that engine."""
    snapshot = replace(HOST, engines={**HOST.engines, engine.name: engine})
    for as_json in (False, True):
        show(snapshot, TOPICS, Output(io.StringIO(), as_json))
    assert isinstance(from_json(to_json(snapshot)), Snapshot), "what was read can be dumped and opened"
    topology = Topology(snapshot)
    assert isinstance(findings(topology), tuple)
    for request in REQUESTS:
        assert isinstance(plan(request, topology), (Plan, Refused))


@pytest.mark.parametrize("read", [read_docker, read_podman])
def test_a_changed_answer_is_a_problem_at_most(tmp_path: Path, read: Any) -> None:
    states: list[str] = []
    for number in range(CASES):
        answers = mutated(ANSWERS, random.Random(SEED * 1_000_000 + number))
        try:
            with BadEngine(tmp_path / f"{number}", answering({**ANSWERS, **answers})) as server:
                engine = read(str(server.server_address))
            states.append(engine.state)
            used(engine)
        except Exception as error:
            error.add_note(f"SEED={SEED}, case {number}")
            raise
    assert {"ok", "error"} <= set(states) <= {"ok", "error", "absent"}


def test_a_subnet_that_is_none_hides_nothing_else(tmp_path: Path) -> None:
    networks = [
        {**NETWORKS[0], "IPAM": {"Config": [{"Subnet": "no/subnet", "Gateway": "nowhere"}]}},
        *NETWORKS[1:],
    ]
    with BadEngine(tmp_path / "s", answering({**ANSWERS, "networks": networks})) as server:
        engine = read_docker(str(server.server_address))
    assert engine.state == "ok" and len(engine.containers) == 2
    assert {one.name: one.subnets for one in engine.networks} == {
        "app": (),
        "mac": ("192.0.2.0/24",),
        "none": (),
    }
    ((what, why),) = [(one.what, one.why) for one in engine.problems]
    assert (what, why) == ("can't use an address of network app", "docker reports 'no/subnet'")
    used(engine)
