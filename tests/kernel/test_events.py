"""Check that events of all namespaces arrive, also in and after a flood."""

from __future__ import annotations

import selectors
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.collect.links import read_nets, read_stats
from core.collect.namespaces import read_namespaces
from core.netlink.events import EVERYTHING, Event, EventSocket, assign_nsids
from tests.kernel.reading import links_of
from tests.support.host import ThrowawayHost
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.root

LINKS_AT_ONCE = 1000


@pytest.fixture
def events(inside_host: ThrowawayHost) -> Iterator[EventSocket]:
    """Open an event socket in the throw-away host."""
    listener = EventSocket()
    yield listener
    listener.close()


def events_until(listener: EventSocket, wanted: Event) -> set[Event]:
    """Return the events until `wanted` is among them."""
    found: set[Event] = set()

    def listen() -> bool:
        found.update(listener.read())
        return wanted in found

    wait_until(listen)
    return found


def nsid_of(host: ThrowawayHost, short: str) -> int:
    """Return the id of one of the host's namespaces, assigned if needed."""
    assign_nsids(ns for ns in read_namespaces(deep=False)[0].values() if set(ns.names) & set(host.names))
    nsid = read_namespaces(deep=False)[0][host.inode_of(short)].nsid
    assert nsid is not None
    return nsid


CHANGES = {
    "ip link add br0 type bridge": "links",
    "ip link set v0 mtu 1300": "links",
    "ip link set v0 alias other": "links",
    "tc qdisc replace dev v0 root tbf rate 1mbit burst 10k latency 10ms": "links",
    "ip addr add 10.1.0.1/24 dev v0": "links",
    "sysctl -qw net.ipv4.conf.v0.rp_filter=2": "links",
    "sysctl -qw net.ipv4.ip_forward=1": "links",
    "sysctl -qw net.ipv6.conf.v0.forwarding=1": "links",
    "ip -6 addr add fd01::1/64 dev v0": "links",
    "ip route add 10.2.0.0/16 dev v0": "routes",
    "ip -6 route add fd02::/64 dev v0": "routes",
    "ip rule add from 10.3.0.0/16 table 7": "routes",
    "ip -6 rule add from fd03::/64 table 7": "routes",
    "ip neigh add 10.1.0.9 lladdr 02:00:00:00:00:09 dev v0": "neighbours",
    "bridge fdb add 02:00:00:00:00:08 dev v0 self": "neighbours",
    "nft add table inet somewhere": "nft",
}


@pytest.mark.parametrize("inside", ["host", "other"])
@pytest.mark.parametrize(("command", "part"), CHANGES.items())
def test_a_change_causes_an_event(
    events: EventSocket, inside_host: ThrowawayHost, command: str, part: str, inside: str
) -> None:
    nsid = None
    if inside == "other":
        inside_host.namespace("other")
        nsid = nsid_of(inside_host, "other")
    inside_host.run("ip link add v0 type veth peer name w0", inside=inside)
    inside_host.run("ip link set v0 up", inside=inside)
    wait_until(lambda: not events.read())
    inside_host.run(command, inside=inside)
    assert {where for where, _ in events_until(events, (nsid, part))} == {nsid}


def test_changes_by_the_kernel_cause_events(events: EventSocket, inside_host: ThrowawayHost) -> None:
    other = inside_host.namespace("other")
    inside_host.run(f"ip link add v0 type veth peer name w0 netns {other}")
    inside_host.run("ip link set v0 up")
    inside_host.run("ip link set w0 up", inside="other")
    wait_until(lambda: inside_host.json("ip -j link show v0")[0]["operstate"] == "UP" and not events.read())
    inside_host.run("ip link set w0 down", inside="other")
    events_until(events, (None, "links"))


def test_without_events_the_result_is_empty_immediately(events: EventSocket) -> None:
    wait_until(lambda: not events.read())
    assert events.read() == set()
    assert events.overruns == 0


def test_a_selector_wakes(events: EventSocket, inside_host: ThrowawayHost) -> None:
    with selectors.DefaultSelector() as selector:
        for descriptor in events.filenos():
            selector.register(descriptor, selectors.EVENT_READ)
        inside_host.run("ip link add br0 type bridge")
        assert selector.select(timeout=PATIENCE)


def test_events_of_a_namespace_arrive_once_it_has_an_id(
    events: EventSocket, inside_host: ThrowawayHost
) -> None:
    inside_host.namespace("other")
    inside_host.run("ip link add br0 type bridge", inside="other")
    assert not [event for event in events.read() if event[1] == "links"]
    nsid = nsid_of(inside_host, "other")
    assert (None, "nsid") in events_until(events, (None, "nsid"))
    inside_host.run("ip link add br1 type bridge", inside="other")
    events_until(events, (nsid, "links"))


def test_assigned_ids_stay(inside_host: ThrowawayHost) -> None:
    name = inside_host.namespace("other")
    inside_host.run(["ip", "netns", "set", name, "31"])
    found, _ = read_namespaces(deep=False)
    gone = inside_host.namespace("gone")
    subprocess.run(["ip", "netns", "del", gone], check=True)
    assign_nsids([*found.values(), *(ns for ns in found.values() if not ns.is_host)])
    assert nsid_of(inside_host, "other") == 31


def batch(host: ThrowawayHost, tmp_path: Path, lines: list[str]) -> None:
    """Run many `ip` commands in one process."""
    file = tmp_path / "batch"
    file.write_text("\n".join(lines))
    host.run(["ip", "-batch", str(file)])


def test_a_thousand_links_are_created_and_deleted_during_reading(
    events: EventSocket, inside_host: ThrowawayHost, tmp_path: Path
) -> None:
    host = inside_host
    found, _ = read_namespaces(deep=False)
    own = found[host.inode]
    failures: list[BaseException] = []
    done = threading.Event()

    def read_all_the_time() -> None:
        try:
            while not done.is_set():
                read_nets([own])
                read_stats([own])
        except BaseException as error:
            failures.append(error)

    reader = threading.Thread(target=read_all_the_time)
    reader.start()
    names = [f"l{number}" for number in range(LINKS_AT_ONCE)]
    batch(host, tmp_path, [f"link add {name} group 5 type ifb" for name in names])
    everything = events_until(events, (None, "links"))
    host.run(f"ip link set {names[-1]} group 6")
    host.run("ip link del group 5")
    everything |= events_until(events, (None, "links"))
    done.set()
    reader.join()
    assert not failures
    assert {where for where, _ in everything} == {None}
    assert links_of(host).keys() == {entry["ifname"] for entry in host.json("ip -j link")}
    assert names[-1] in links_of(host)


def test_recovery_after_an_overrun(inside_host: ThrowawayHost, tmp_path: Path) -> None:
    host = inside_host
    listener = EventSocket(recv_buffer=4096)
    try:
        batch(host, tmp_path, [f"link add b{number} type bridge" for number in range(50)])
        assert EVERYTHING in listener.read()
        assert listener.overruns == 1
        assert len(links_of(host)) == 51 == len(host.json("ip -j link"))
        host.run("ip link del b1")
        assert EVERYTHING not in events_until(listener, (None, "links"))
    finally:
        listener.close()


def test_the_id_of_a_removed_namespace_is_removed(events: EventSocket, inside_host: ThrowawayHost) -> None:
    name = inside_host.namespace("other")
    nsid = nsid_of(inside_host, "other")
    wait_until(lambda: not events.read())
    subprocess.run(["ip", "netns", "del", name], check=True)
    events_until(events, (None, "nsid"))
    wait_until(lambda: nsid not in [entry["nsid"] for entry in inside_host.json("ip -j netns list-id")])
