"""What was asked for when a container was attached to Docker's networks outlives detach, move and undo."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docker.engine import IMAGE, DockerHost
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root

MAC = "02:aa:bb:cc:dd:01"
SYSCTLS = "com.docker.network.endpoint.sysctls=net.ipv4.conf.IFNAME.log_martians=1"
# What the engine makes afresh, and what it says in passing.
FRESH = {
    "Created", "EndpointID", "SandboxID", "SandboxKey", "NetworkID", "Pid", "StartedAt", "FinishedAt",
    "LastTagTime", "Health", "DNSNames",
}  # fmt: skip


class Person:
    """Who types commands of vnet-tui on the engine's host."""

    def __init__(self, engine: DockerHost, state: Path) -> None:
        self.engine, self.state = engine, state

    def types(self, *words: str) -> str:
        done = self.engine.host.vnet(*words, DOCKER_HOST=self.engine.url, VNET_STATE=str(self.state))
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def inspects(self) -> dict[str, str]:
        """All that Docker says of its networks and containers, by the way that leads to it."""
        networks = json.loads(self.engine.run("network", "inspect", *self._ids("network", "ls", "-q")))
        for network in networks:
            network.pop("Id")
        containers = json.loads(self.engine.run("inspect", *self._ids("ps", "-aq")))
        for one in containers:
            for end in one["NetworkSettings"]["Networks"].values():
                # Docker before 25 counts the id among the names, from the first attachment that it makes on.
                end["Aliases"] = [name for name in end["Aliases"] or () if name != one["Id"][:12]]
        named = {one["Name"]: one for one in (*networks, *containers)}
        return {" ".join(path): value for path, value in flat(named) if not FRESH & set(path)}

    def end(self, container: str, network: str) -> dict[str, Any]:
        """What Docker says of one attachment."""
        ends = self.engine.run("inspect", "-f", "{{json .NetworkSettings.Networks}}", container)
        return dict(json.loads(ends)[network])

    def finds(self, name: str, asked_by: str = "api") -> bool:
        """Whether Docker's DNS knows a name in a container."""
        return (
            "Address" in self.engine.run("exec", asked_by, "nslookup", name, check=False).partition("\n\n")[2]
        )

    def _ids(self, *words: str) -> list[str]:
        return self.engine.run(*words).split()


def flat(told: Any, *path: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Each value and the way to it; null, {} and [] are the same to Docker."""
    if isinstance(told, dict):
        for key, value in told.items():
            yield from flat(value, *path, key)
    elif told or isinstance(told, int):
        yield path, json.dumps(told)


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What is another now, but for MAC addresses that do not follow from an IPv4 address."""
    names = sorted(before.keys() | after.keys())
    return [
        f"{name}: {before.get(name)} -> {after.get(name)}"
        for name in names
        if before.get(name) != after.get(name)
        and not (name.endswith("MacAddress") and "02:42:" not in before.get(name, "02:42:"))
    ]


@pytest.fixture
def person(docker_host: DockerHost, tmp_path: Path) -> Iterator[Person]:
    """A network with everything that can be chosen, one that Docker chose all of, and containers on both."""
    engine = docker_host
    engine.run(
        "network", "create", "--subnet", "10.203.0.0/24", "--ip-range", "10.203.0.64/26",
        "--aux-address", "router=10.203.0.65", "--gateway", "10.203.0.1", "--ipv6", "--subnet", "fd00:3::/64",
        "--attachable", "--label", "com.example.tier=front", "--opt", "com.docker.network.driver.mtu=1400",
        "--opt", "com.docker.network.bridge.enable_icc=true", "app",
    )  # fmt: skip
    engine.run("network", "create", "auto")
    engine.container("api", "--network", "app")
    engine.container("front", "--network", "auto", "--network-alias", "face", "--mac-address", MAC)
    priority = ["--gw-priority", "7"] if engine.version >= (28, 0) else []
    engine.run(
        "network", "connect", "--alias", "www", "--alias", "frontend", "--ip", "10.203.0.99", "--ip6",
        "fd00:3::99", "--link-local-ip", "169.254.9.9", "--link", "api:backend", "--driver-opt", SYSCTLS,
        *priority, "app", "front",
    )  # fmt: skip
    engine.container("plain")
    engine.run("create", "--name", "later", "--network", "app", "--network-alias", "late", IMAGE, "true")
    yield Person(engine, tmp_path / "state")


def test_a_detachment_taken_back_leaves_all_as_docker_says(person: Person) -> None:
    ends = (("front", "app"), ("front", "auto"), ("api", "app"), ("plain", "bridge"), ("later", "app"))
    for end in ends:
        before = person.inspects()
        person.types("detach", *end)
        assert person.inspects() != before
        person.types("undo")
        assert differences(before, person.inspects()) == [], end


def test_the_names_of_a_detached_container_are_found_again(person: Person) -> None:
    wait_until(lambda: person.finds("www") and person.finds("frontend"), "the names")
    person.types("detach", "front", "app")
    assert not person.finds("www")
    text = person.types("undo", "--dry-run")
    for part in (
        "www",
        "frontend",
        "10.203.0.99",
        "fd00:3::99",
        "169.254.9.9",
        "api:backend",
        SYSCTLS[:20],
    ):
        assert part in text, text
    assert ("--gw-priority 7" in text) == (person.engine.version >= (28, 0))
    person.types("undo")
    assert person.finds("www") and person.finds("frontend")
    assert person.finds("backend", asked_by="front")


def test_a_moved_container_keeps_its_names(person: Person) -> None:
    person.engine.run("network", "create", "other")
    person.engine.container("asks", "--network", "other")
    before = person.inspects()
    mac = person.end("front", "app")["MacAddress"]
    text = person.types("move", "front", "app", "other")
    assert "front does not keep on other the address chosen on app: 10.203.0.99, fd00:3::99" in text
    assert "links chosen on app: api:backend" in text
    assert person.finds("www", asked_by="asks") and person.finds("frontend", asked_by="asks")
    moved = person.end("front", "other")
    assert moved["MacAddress"] != mac
    assert moved.get("GwPriority", 0) == (7 if person.engine.version >= (28, 0) else 0)
    person.types("undo")
    assert differences(before, person.inspects()) == []


def test_a_mac_address_that_cannot_be_kept_is_named(person: Person) -> None:
    """Docker before 25 brings back the one of the network that a container was made for."""
    lost = person.engine.version >= (25, 0)
    text = person.types("detach", "front", "auto", "--dry-run")
    assert ("another MAC address on auto" in text) == lost
    person.engine.run("network", "create", "other")
    text = person.types("move", "front", "auto", "other")
    assert f"front does not keep on other the MAC address chosen on auto: {MAC}" in text
    assert "face" in person.end("front", "other")["Aliases"]
    person.types("undo")
    assert (person.end("front", "auto")["MacAddress"] == MAC) != lost


def test_where_docker_has_no_dns_the_lost_names_are_said(person: Person) -> None:
    before = person.inspects()
    text = person.types("move", "front", "app", "bridge")
    assert "front has no other names on bridge, where Docker has no DNS: www, frontend" in text
    person.types("undo")
    assert differences(before, person.inspects()) == []


def test_a_removed_network_comes_back_as_it_was(person: Person) -> None:
    before = person.inspects()
    person.types("network", "rm", "app")
    assert "app Name" not in person.inspects()
    person.types("undo")
    assert differences(before, person.inspects()) == []
    assert person.finds("www")


def test_what_is_made_and_taken_back_leaves_nothing(person: Person) -> None:
    before = person.inspects()
    for words in (
        ("attach", "plain", "app"),
        ("attach", "later", "auto"),
        ("network", "create", "shop", "--engine", "docker"),
        ("publish", "plain", "7080:80"),
        ("network", "create", "ours"),
        ("container", "create", f"n{person.engine.host.prefix}"),
    ):
        person.types(*words)
        person.types("undo")
        assert differences(before, person.inspects()) == [], words


def test_an_address_comes_back_although_docker_would_choose_another(person: Person) -> None:
    """Docker gives the lowest that is free. An address is no fixed one after that, where it need not be."""
    for name in ("low", "high"):
        person.engine.container(name, "--network", "app")
    at = person.end("high", "app")["IPAddress"]
    person.types("detach", "high", "app")
    person.engine.run("rm", "-f", "low")
    person.types("undo")
    assert person.end("high", "app")["IPAddress"] == at
    # Somebody else has it by then: it gets another, for on it must go.
    person.types("detach", "high", "app")
    person.engine.container("quick", "--network", "app", "--ip", at)
    person.types("undo")
    assert person.end("high", "app")["IPAddress"] != at
