"""Containers come and go: others' connections stay fast, changes take effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from bpf.hostwatch import HostWatch
from core.netlink.netns import entered
from tests.kernel.fastlab import V4, FastLab
from tests.kernel.streams import Stream
from tests.support.churn import Churn, flap, reroute
from tests.support.fastpath import FastPath
from tests.support.host import ThrowawayHost
from tests.support.repeated import Repeated
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root

CONTAINERS = 60
_LEFT_OUT = ("NOT_IP", "MULTICAST")  # what the bridge floods


_MISTAKEN = 3


def seen(fast: FastPath, *ports: str) -> dict[str, int]:
    """Return packets by verdict of these links."""
    found: dict[str, int] = {}
    for row in fast.status()["ports"]:
        for name, count in row["verdicts"].items() if row["name"] in ports else ():
            found[name] = found.get(name, 0) + (0 if name in _LEFT_OUT else count)
    return found


def test_other_connections_stay_fast(lab: FastLab) -> None:
    fast = lab.accelerate()
    with (
        Stream(lab, "a", "b", V4["b"], pace=0.002) as near,
        Stream(lab, "b", "far", V4["far"], port=6001, pace=0.002) as out,
    ):
        for stream, port in ((near, 6000), (out, 6001)):
            assert stream.flows()
            wait_until(lambda port=port: lab.conntrack(f"dport={port}", "[ASSURED]"), "a settled connection")
        before, generation = seen(fast, "v-a", "v-b", "up0"), fast.status()["generation"]
        with Churn(lab.host, "docker0", "172.17.2") as churn:
            wait_until(lambda: churn.gone >= CONTAINERS or churn.error, "containers")
        after = seen(fast, "v-a", "v-b", "up0")
        gained = {name: count - before.get(name, 0) for name, count in after.items()}
        assert gained["FAST"] >= 0.9 * sum(gained.values()), gained
        # A container that ends while it is read may look like another: then connections pass the rules once
        # more.
        assert not gained.get("PAUSED") and fast.status()["generation"] <= generation + _MISTAKEN
        for stream in (near, out):
            stream.stop()
            assert stream.lost() == []


def reuse(lab: FastLab) -> Churn:
    """Start containers with the addresses of deleted ones."""
    return Churn(lab.host, "docker0", "172.17.2", addresses=5)


@pytest.mark.parametrize("change", [flap, reroute, reuse])
def test_endless_changes_do_not_starve_other_connections(
    lab: FastLab, change: Callable[[FastLab], Repeated | Churn]
) -> None:
    """Each may begin a generation, of which there are only fifteen."""
    fast = lab.accelerate()
    with Stream(lab, "a", "b", V4["b"], pace=0.002) as stream:
        assert stream.flows()
        wait_until(lambda: lab.conntrack("dport=6000", "[ASSURED]"), "a settled connection")
        before = seen(fast, "v-a", "v-b")
        with change(lab) as going_on:
            wait_until(lambda: going_on.done >= CONTAINERS * 2, "changes")
        gained = {name: count - before.get(name, 0) for name, count in seen(fast, "v-a", "v-b").items()}
        assert gained["FAST"] >= 0.75 * sum(gained.values()), gained
        assert not gained.get("PAUSED") and gained.get("GENERATION"), gained
        stream.stop()
        assert stream.lost() == []


@pytest.fixture
def lab() -> Iterator[FastLab]:
    with FastLab() as made:
        yield made


# Whether it matters to rules, preparation, and change (ip(8), "in" in the containers' namespace): the
# containers x and y are on br0 by v-x and v-y, up0 leads to far.
_NEW_LINKS = (
    "link add {0} {2}type veth peer name {1} netns SPACE; link set {0} master br0 up; in link set {1} up"
)
LINKS = {
    "a container comes": (False, "", _NEW_LINKS.format("k0", "k1", "")),
    "it is put on the bridge first": (
        False, "", "link add k0 type veth peer name k1 netns SPACE; link set k0 master br0; "
        "in link set k1 up; link set k0 up",
    ),
    "a container goes": (False, "", "link del v-x"),
    "a container ends": (False, "", "in link del x"),
    "a port goes down and up": (False, "", "link set v-x down; link set v-x up"),
    "a container's MAC": (False, "", "link set v-x address 02:00:00:00:00:99"),
    "a port's group": (True, "", "link set v-x group 7"),
    "a port's name": (True, "", "link set v-x down; link set v-x name other; link set other up"),
    "a port's group while it has no carrier": (
        True, "in link set x down", "link set v-x group 7; in link set x up"
    ),
    "a port leaves its bridge": (True, "", "link set v-x nomaster"),
    "another port has its number": (
        True, f"{_NEW_LINKS.format('k0', 'k1', 'index 5000 ')}; link del k0",
        _NEW_LINKS.format("k2", "k3", "index 5000 "),
    ),
    "the uplink loses its carrier": (True, "", "in link set far down"),
    "the uplink has a carrier again": (True, "in link set far down", "in link set far up"),
    "another uplink comes": (
        True, "", "link add k0 type veth peer name k1 netns SPACE; link set k0 up; in link set k1 up"
    ),
    "the uplink's MAC": (True, "", "link set up0 address 02:00:00:00:00:99"),
}  # fmt: skip
_HOST = (
    "link add br0 address 02:00:00:00:00:01 type bridge; link set br0 up; "
    f"{_NEW_LINKS.format('v-x', 'x', '')}; {_NEW_LINKS.format('v-y', 'y', '')}; "
    "link add up0 type veth peer name far netns SPACE; link set up0 up; in link set far up"
)


def type_in(host: ThrowawayHost, lines: str) -> None:
    """Run the commands of a case, and wait for the kernel's events."""
    for line in filter(None, lines.split("; ")):
        inside = line.startswith("in ")
        command = f"ip {line.removeprefix('in ')}".replace("SPACE", host.full("space"))
        host.run(command, "space" if inside else "host")
    wait_until(lambda: all(map(is_settled, host.json("ip -j link"))), "carriers")


def is_settled(link: dict[str, Any]) -> bool:
    """A carrier is there immediately, its effects a moment later."""
    return link["ifname"] == "lo" or (link["operstate"] == "UP") == ("LOWER_UP" in link["flags"])


@pytest.mark.parametrize("name", LINKS)
def test_link_events_start_a_generation_if_rules_can_see_them(name: str) -> None:
    matters, before, then = LINKS[name]
    host = ThrowawayHost()
    try:
        host.namespace("space")
        type_in(host, _HOST)
        with entered(f"/run/netns/{host.name}"), closing(HostWatch()) as watch:
            type_in(host, before)
            watch.read_events()
            type_in(host, then)
            assert watch.read_events() is matters
    finally:
        host.close()
