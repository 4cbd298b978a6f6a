"""Check the storm guard: what it limits, what it leaves alone, and that it leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bpf import storm_guard
from core import storms
from core.model import GUARDED, StormLimits
from core.netlink.netns import entered
from tests.support.fastpath import FastPath, Talk
from tests.support.guarded_network import (
    ARP,
    BROADCAST,
    BURST,
    GROUP,
    GUARD,
    LOCAL,
    NET,
    RATE,
    STP,
    Network,
    send,
    send_from_many,
)
from tests.support.host import ThrowawayHost
from tests.support.waiting import wait_until
from tests.support.watching import Watched
from tui.cli.dashboard import read_guards

pytestmark = pytest.mark.root


@pytest.fixture
def net(host: ThrowawayHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))
    yield Network(host)


PROGRAM = "vnet_storm_guard"


def filters(host: ThrowawayHost) -> dict[str, list[str]]:
    """Return the names of BPF filters at the ingress of each link, by tc(8)."""
    found: dict[str, list[str]] = {}
    for link in host.json("ip -j link show"):
        # It may have been deleted since.
        listed = json.loads(host.run(f"tc -j filter show dev {link['ifname']} ingress", check=False) or "[]")
        names = [one["options"]["bpf_name"] for one in listed if "bpf_name" in one.get("options", {})]
        if names:
            found[link["ifname"]] = names
    return found


def objects(kind: str, name: str, users: Collection[int] | None = None) -> set[int]:
    """Return the ids of the kernel's BPF programs or maps of that name, by bpftool(8).

    With `users` only maps of these programs.
    """
    used = {each for one in _bpftool("prog") if users and one["id"] in users for each in one["map_ids"]}
    found = {one["id"] for one in _bpftool(kind) if one.get("name") == name[:15]}
    return found if users is None else found & used


def _bpftool(kind: str) -> list[dict[str, Any]]:
    done = subprocess.run(["bpftool", "-j", kind, "show"], capture_output=True, check=True)
    listed: list[dict[str, Any]] = json.loads(done.stdout)
    return listed


def sticky(entries: str) -> set[str]:
    """Return the MACs with a sticky entry; where bridges have VLANs, there is one entry for each VLAN."""
    return {line.split()[0] for line in entries.splitlines() if "sticky" in line}


def programs(host: ThrowawayHost) -> set[int]:
    """Return the ids of the storm guard's programs at the links of a host, by tc(8)."""
    found = set()
    for link in host.json("ip -j link show"):
        for direction in ("ingress", "egress"):
            listed = json.loads(host.run(f"tc -j filter show dev {link['ifname']} {direction}") or "[]")
            found |= {one["options"]["prog"]["id"] for one in listed if "prog" in one.get("options", {})}
    return found & objects("prog", PROGRAM)


@contextmanager
def stream(net: Network, to: str, source: str) -> Iterator[Callable[[], tuple[int, int]]]:
    """Send numbered datagrams from one container to another; yields what returns sent and received."""
    with (
        entered(f"/run/netns/{net.host.full(to)}"),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind((net.address(to), 0))
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        where = receiver.getsockname()
        with entered(f"/run/netns/{net.host.full(source)}"):
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sender:
            yield lambda: _exchange(sender, receiver, where)


def _exchange(sender: socket.socket, receiver: socket.socket, where: Any) -> tuple[int, int]:
    """Send datagrams for two seconds, a thousand a second; return how many were sent and received."""
    sent = received = 0
    end = time.monotonic() + 2
    receiver.settimeout(0)
    while time.monotonic() < end:
        sender.sendto(sent.to_bytes(4), where)
        sent += 1
        time.sleep(0.001)
        received += _drain(receiver)
    receiver.settimeout(0.5)
    try:
        while received < sent:
            receiver.recv(16)
            received += 1
    except TimeoutError:
        pass
    return sent, received


def _drain(receiver: socket.socket) -> int:
    count = 0
    try:
        while True:
            receiver.recv(16)
            count += 1
    except BlockingIOError:
        return count


@pytest.mark.parametrize(
    ("destination", "ethertype", "kind"),
    [(BROADCAST, LOCAL, "broadcast"), (GROUP, LOCAL, "multicast"), (BROADCAST, ARP, "arp")],
)
def test_a_port_lets_in_only_its_rate_and_burst(
    net: Network, destination: str, ethertype: str, kind: str
) -> None:
    net.guard()
    place, port = GUARDED.index(kind), net.port("web")
    before, began = net.counters(port), time.monotonic()
    send(net, "web", destination, 20_000, ethertype=ethertype)
    seconds, after = time.monotonic() - began, net.counters(port)
    passed = after.passed[place] - before.passed[place]
    assert BURST <= passed <= BURST + RATE * seconds + 1
    assert passed + after.dropped[place] - before.dropped[place] == 20_000
    others = [number for number in range(len(GUARDED)) if number != place]
    assert all(after.dropped[number] == before.dropped[number] for number in others)
    # The other container received no more than that.
    assert net.host.json("ip -j -s link show eth0", inside="db")[0]["stats64"]["rx"]["packets"] <= passed + 50


def test_unicast_and_stp_always_pass(net: Network) -> None:
    net.guard()
    port = net.port("web")
    send(net, "web", BROADCAST, 5000)  # the buckets are empty
    before, received = net.counters(port), net.received(port)
    for destination in (STP, net.mac("db").replace(":", "")):
        send(net, "web", destination, 2000)
    after = net.counters(port)
    assert (after.passed, after.dropped) == (before.passed, before.dropped)
    assert net.received(port) - received >= 4000
    # A thousand ARP requests at once would be too many, but broadcasts don't take what is left for ARP.
    assert net.host.run(f"ping -c1 -W5 {net.address('db')}", inside="web")


def test_frames_to_unknown_receivers_are_limited_where_they_leave(net: Network) -> None:
    net.guard()
    place, port = GUARDED.index("unknown unicast"), net.port("db")
    before, began = net.counters(port), time.monotonic()
    send(net, "web", "02aabbccddee", 20_000)
    seconds, after = time.monotonic() - began, net.counters(port)
    passed = after.passed[place] - before.passed[place]
    assert BURST <= passed <= BURST + RATE * seconds + 1
    assert passed + after.dropped[place] - before.dropped[place] == 20_000
    # Now a sender has that address behind the port: its packets aren't limited.
    send(net, "db", net.mac("web").replace(":", ""), 1, "02aabbccddee")
    send(net, "web", "02aabbccddee", 20_000)
    assert net.counters(port).dropped[place] == after.dropped[place]


def test_a_receiver_that_never_sends_gets_all(net: Network) -> None:
    net.guard()
    net.vnet("container", "create", net.host.full("log"), "--network", NET)
    net.host.names.append(net.host.full("log"))
    port, place = net.port("log"), GUARDED.index("unknown unicast")
    send(net, "web", net.mac("log").replace(":", ""), 20_000)
    assert net.counters(port).dropped[place] == net.counters(port).passed[place] == 0


def test_a_receiver_that_never_sends_gets_all_if_the_bridge_knows_it(net: Network) -> None:
    silent, port, place = "02aabbccddef", net.port("db"), GUARDED.index("unknown unicast")
    net.host.run(f"bridge fdb add 02:aa:bb:cc:dd:ef dev {port} master static")
    net.guard()
    send(net, "web", silent, 20_000)
    assert net.counters(port).dropped[place] == net.counters(port).passed[place] == 0


def test_a_sender_of_dropped_frames_stays_unknown(net: Network) -> None:
    """The bridge doesn't see these frames either."""
    net.guard("on", "--rate", "1", "--burst", "1")
    port, place = net.port("db"), GUARDED.index("unknown unicast")
    for number in range(100):
        source, before = f"02aabbccdf{number:02x}", net.counters(port).dropped[0]
        send(net, "db", BROADCAST, 1, source)
        if net.counters(port).dropped[0] > before:
            break
    send(net, "web", source, 1000)
    assert net.counters(port).dropped[place] > 900


def test_ports_with_many_addresses_or_without_learning_take_unknown_receivers(net: Network) -> None:
    place, ports = GUARDED.index("unknown unicast"), [net.port("db"), net.port("web")]
    net.host.run(f"bridge link set dev {ports[1]} learning off")
    net.guard()
    send(net, "db", "02aabbccddee", 2000)
    assert net.counters(ports[1]).dropped[place] == net.counters(ports[1]).passed[place] == 0
    send_from_many(net, "db", 8200)
    before = net.counters(ports[0]).dropped[place]
    send(net, "web", "02aabbccddee", 2000)
    assert net.counters(ports[0]).dropped[place] == before


def test_a_loop_takes_no_packets_of_others(net: Network) -> None:
    net.loop()
    net.guard("on", *GUARD, "--all-ports")
    net.host.run(f"ping -c1 -W5 {net.address('db')}", inside="web")
    with stream(net, "web", "db") as exchange:
        before, began = [net.counters(port) for port in ("p1", "p2")], time.monotonic()
        # With the MAC address of the receiver: the bridge must not send its packets into the loop.
        send(net, "web", BROADCAST, 1, net.mac("web").replace(":", ""))
        sent, received = exchange()
        after, seconds = [net.counters(port) for port in ("p1", "p2")], time.monotonic() - began
    passed, dropped = (
        [getattr(new, name)[0] - getattr(old, name)[0] for old, new in zip(before, after, strict=True)]
        for name in ("passed", "dropped")
    )
    # What circulates ends with its first drop.
    assert sum(dropped) >= 1
    assert max(passed) <= BURST + RATE * seconds + 1
    assert sent > 500
    assert received == sent


def test_without_the_guard_the_same_loop_is_a_storm(net: Network) -> None:
    net.loop()
    port, before = "p1", net.received("p1")
    send(net, "web", BROADCAST, 1, net.mac("web").replace(":", ""))
    try:
        wait_until(lambda: net.received(port) - before > 20_000, "a storm")
    finally:
        net.host.run("ip link del p2")


def test_it_needs_no_process_and_leaves_nothing(net: Network) -> None:
    untouched = net.host.json("ip -j -d link show"), net.host.run("ip neigh show")
    net.guard()
    ports = {net.port("web"), net.port("db")}
    assert filters(net.host).keys() == ports
    loaded = programs(net.host)
    used = objects("map", "storm_buckets", loaded)
    assert (len(loaded), len(used)) == (4, 2)  # ingress and egress
    assert len(sticky(net.host.run("bridge fdb show"))) == 2
    net.guard("off")
    assert filters(net.host) == {}
    assert "clsact" not in net.host.run("tc qdisc show")
    wait_until(lambda: not loaded & objects("prog", PROGRAM))
    wait_until(lambda: not used & objects("map", "storm_buckets"))
    assert "sticky" not in net.host.run("bridge fdb show")
    assert _links(net.host.json("ip -j -d link show")) == _links(untouched[0])
    assert "extern_learn" not in net.host.run("ip neigh show")


def _links(links: list[Any]) -> list[Any]:
    volatile = ("operstate", "linkinfo", "promiscuity", "allmulti")
    return [{name: value for name, value in one.items() if name not in volatile} for one in links] + [
        one["linkinfo"].get("info_slave_data", {}).get("proxy_arp_wifi") for one in links if "linkinfo" in one
    ]


def test_undo_and_a_second_undo_restore_it(net: Network) -> None:
    net.guard()
    on = filters(net.host)
    net.guard("off")
    net.vnet("undo")
    assert filters(net.host) == on
    assert len(sticky(net.host.run("bridge fdb show"))) == 2
    net.vnet("undo")
    assert filters(net.host) == {}
    assert "guard=" not in net.host.run("ip -d link show")


@pytest.mark.parametrize("begins", [0, 1])
def test_limits_that_cant_be_replaced_stay(
    net: Network, monkeypatch: pytest.MonkeyPatch, begins: int
) -> None:
    """The kernel refuses the first or the second program."""
    net.guard()
    on, running = filters(net.host), programs(net.host)
    loads = iter([storm_guard.load] * begins)

    def load(*arguments: Any) -> int:
        for real in loads:
            return real(*arguments)
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(storm_guard, "load", load)
    with entered(f"/run/netns/{net.host.name}"):
        index = socket.if_nametoindex(next(iter(on)))
        with pytest.raises(OSError, match="memory"):
            storm_guard.attach(index, StormLimits(1, 1, 1))
    assert (filters(net.host), programs(net.host)) == (on, running)


def test_containers_that_come_and_go_are_guarded(net: Network) -> None:
    net.guard()
    earlier = programs(net.host)
    net.container("log")
    port, added = net.port("log"), programs(net.host) - earlier
    assert filters(net.host)[port] == [f"vnet_storm_guard {RATE}/{RATE}/{BURST}"]
    send(net, "log", BROADCAST, 1000)
    assert net.counters(port).dropped[0] > 500
    # It ends as a container does, without being detached.
    net.host.remove("log")
    wait_until(lambda: port not in filters(net.host))
    wait_until(lambda: added and not added & objects("prog", PROGRAM))


def test_removing_the_network_removes_the_guard(net: Network) -> None:
    net.guard()
    loaded = programs(net.host)
    net.vnet("network", "rm", NET)
    wait_until(lambda: loaded and not loaded & objects("prog", PROGRAM))
    net.vnet("undo")
    assert len(filters(net.host)) == 2
    again = programs(net.host)
    net.vnet("cleanup", "--yes")
    wait_until(lambda: again and not again & objects("prog", PROGRAM))


def test_ports_of_others_are_guarded_only_if_asked(net: Network) -> None:
    net.loop()
    done = net.host.vnet("storm", "guard", NET, "on", *GUARD)
    assert "p1" not in filters(net.host)
    assert "not guarded, as vnet-tui didn't attach them: p1, p2. Try: --all-ports" in done.stderr
    done = net.host.vnet("storm", "guard", "p1", "on", *GUARD)
    assert done.returncode == 0 and filters(net.host)["p1"]
    net.guard("off")
    assert filters(net.host) == {}
    net.host.run("ip link add br9 type bridge")
    refused = net.host.vnet("storm", "guard", "br9", "on")
    assert refused.returncode == 1 and "--all-ports" in refused.stderr
    net.host.run("ip link add card type veth peer name end")
    net.host.run("ip link set card master br9 up")
    net.vnet("storm", "guard", "br9", "on", "--all-ports")
    assert filters(net.host).keys() == {"card"}
    net.vnet("cleanup", "--yes")
    assert filters(net.host) == {}


def test_other_filters_stay_and_run(net: Network) -> None:
    port = net.port("web")
    net.host.run(f"tc qdisc add dev {port} clsact")
    net.host.run(f"tc filter add dev {port} ingress protocol all pref 9 u32 match u32 0 0 flowid 1:1")
    net.guard()
    send(net, "web", BROADCAST, 100)
    net.guard("off")
    listed = net.host.json(f"tc -j filter show dev {port} ingress")
    assert {one["pref"] for one in listed} == {9}
    assert "clsact" in net.host.run(f"tc qdisc show dev {port}")


def test_arp_for_a_known_container_isnt_flooded(net: Network) -> None:
    net.container("log")
    wanted = f"arp and arp[24:4] = {int.from_bytes(socket.inet_aton(net.address('db')))}"
    assert _seen(net, "log", wanted, "db") == 1  # without the guard everyone hears the request
    net.guard()
    assert _seen(net, "log", wanted, "db") == 0
    net.guard("off")
    assert _seen(net, "log", wanted, "db") == 1


def _seen(net: Network, watcher: str, expression: str, target: str) -> int:
    """Return whether the watcher sees web's ARP request for the target."""
    net.host.run("ip neigh flush dev eth0", inside="web")
    with tcpdump(net.host, watcher, "eth0", expression) as captured:
        net.host.run(f"ping -c1 -W5 {net.address(target)}", inside="web")
        assert net.mac(target) in net.host.run(f"ip neigh show {net.address(target)}", inside="web")
        # A request that is always flooded, for an address that no container has, comes after it.
        net.host.run("ping -c1 -W1 10.77.0.99", inside="web", check=False)
    return sum("who-has" in line for line in captured)


def test_ipv6_solicitations_reach_only_the_container_they_ask_for(
    host: ThrowawayHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))

    def vnet(*words: str) -> None:
        done = host.vnet(*words)
        assert done.returncode == 0, done.stderr

    def solicit(source: str) -> set[str]:
        """Let a container, or the host, ask for db; return which containers hear it."""
        host.run("ip -6 neigh flush all", inside=source)
        with heard(host, "db") as by_db, heard(host, "log") as by_log:
            host.run(f"ping -c1 -W5 {address}", inside=source)
            # All hear what is sent to all nodes after it.
            link = "br-six" if source == "host" else "eth0"
            host.run(f"ping -c1 -W5 ff02::1%{link}", inside=source)
            found = {"db": by_db(), "log": by_log()}
        wanted = socket.inet_pton(socket.AF_INET6, address)
        return {name for name, targets in found.items() if wanted in targets}

    vnet("network", "create", "six", "--subnet", "10.78.0.0/24", "--subnet", "fd78::/64")
    for name in ("web", "db", "log"):
        vnet("container", "create", host.full(name), "--network", "six")
        host.names.append(host.full(name))
    (found,) = host.json("ip -j -6 addr show eth0 scope global", inside="db")
    address = found["addr_info"][0]["local"]
    wait_until(lambda: host.run(f"ping -c1 -W1 {address}", inside="web", check=False).count("1 received"))
    # The kernel's usual times, ten and thirty seconds.
    quick = "mcast_query_response_interval 100 mcast_startup_query_interval 100"
    host.run(f"ip link set br-six type bridge {quick}")
    assert solicit("web") == solicit("host") == {"db", "log"}
    vnet("storm", "guard", "six", "on")
    wait_until(lambda: solicit("web") == {"db"}, "the bridge to know the members")
    assert solicit("host") == {"db"}
    vnet("container", "create", host.full("new"), "--network", "six")
    host.names.append(host.full("new"))
    (found,) = host.json("ip -j -6 addr show eth0 scope global", inside="new")
    host.run(f"ping -c1 -W5 {found['addr_info'][0]['local']}", inside="web")
    vnet("storm", "guard", "six", "off")
    (link,) = host.json("ip -j -d link show br-six")
    assert link["linkinfo"]["info_data"]["mcast_querier"] == 0
    assert solicit("web") == {"db", "log"}


@contextmanager
def heard(host: ThrowawayHost, inside: str) -> Iterator[Callable[[], set[bytes]]]:
    """Listen at a container's link; the function returns who was asked for until an echo request."""
    with entered(f"/run/netns/{host.full(inside)}"):
        listening = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x86DD))
        listening.bind(("eth0", 0x86DD))
    listening.settimeout(10)

    def targets() -> set[bytes]:
        found = set()
        while True:
            frame = listening.recv(2048)
            if frame[0] & 1 and frame[20] == socket.IPPROTO_ICMPV6 and frame[54] == 135:
                found.add(frame[62:78])
            elif frame[0] & 1 and frame[20] == socket.IPPROTO_ICMPV6 and frame[54] == 128:
                return found

    with listening:
        yield targets


@contextmanager
def tcpdump(host: ThrowawayHost, inside: str, link: str, expression: str) -> Iterator[list[str]]:
    """Capture in the body; the list has a line for each packet afterwards."""
    namespace = f"--net=/run/netns/{host.full(inside)}"
    words = ["nsenter", namespace, "tcpdump", "-Unli", link, expression]
    lines: list[str] = []
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stderr is not None and program.stdout is not None
        while "listening" not in program.stderr.readline():
            assert program.poll() is None
        try:
            yield lines
        finally:
            program.terminate()
            lines += program.stdout.read().splitlines()


def test_with_the_fast_path(net: Network) -> None:
    net.guard()
    with (
        FastPath(net.host, f"br-{NET}") as fast,
        Talk(net.host, "web", "db", net.address("db"), udp=True) as talk,
    ):
        wait_until(fast.is_on)
        wait_until(lambda: fast.forwards(talk, net.port("web")))
        assert fast.forwards(talk, net.port("db"))
        with stream(net, "web", "db") as exchange:
            sent, received = exchange()
        assert received == sent
        send(net, "web", BROADCAST, 2000)
        assert net.counters(net.port("web")).dropped[0] > 1000
    assert filters(net.host).keys() == {net.port("web"), net.port("db")}


def test_loop_names_both_ports_and_blocks_one(net: Network) -> None:
    done = net.host.vnet("storm", "loop", NET, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["loops"] == []
    net.loop()
    before = net.host.run(f"bridge fdb show br br-{NET}").count("permanent")
    with tcpdump(net.host, "host", "p1", "ether proto 0x88b5") as captured:
        done = net.host.vnet("storm", "loop", NET, "--json")
    assert done.returncode == 1 and json.loads(done.stdout)["loops"] == [["p1", "p2"]]
    assert 2 <= sum("ethertype" in line for line in captured) <= 6, "the probes circulate"
    assert net.host.run(f"bridge fdb show br br-{NET}").count("permanent") == before
    net.vnet("storm", "loop", NET, "--block", "--yes")
    assert "DOWN" in net.host.run("ip -br link show p2")
    assert "UP" in net.host.run("ip -br link show p1")
    assert json.loads(net.vnet("storm", "loop", NET, "--json"))["loops"] == []
    net.vnet("undo")
    wait_until(lambda: net.forwards("p2"))


def test_printed_commands_do_the_same(net: Network, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "vnet-tui"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m tui.cli "$@"\n')
    program.chmod(0o755)
    printed = net.guard("on", *GUARD, "--dry-run")
    assert filters(net.host) == {}
    net.host.run(["env", f"PATH={folder}:/usr/sbin:/usr/bin:/sbin:/bin", "bash", "-euc", printed])
    typed, entries = filters(net.host), net.host.run("bridge fdb show")
    again = net.host.vnet("storm", "guard", NET, "on", *GUARD)
    assert again.returncode == 1 and "already" in again.stderr
    assert len(typed) == 2 and len(sticky(entries)) == 2


def test_a_dropping_guard_is_a_finding(net: Network) -> None:
    net.guard()
    send(net, "web", BROADCAST, 2000)
    found = json.loads(net.host.vnet("doctor", "--json").stdout)
    (finding,) = [one for one in found["findings"] if "storm guard" in one["sentence"]]
    assert net.port("web") in finding["sentence"] and "broadcast" in finding["sentence"]


def test_status_lists_each_port(net: Network) -> None:
    net.guard()
    send(net, "web", BROADCAST, 2000)
    status = json.loads(net.guard("status", "--json"))
    ports = {one["port"]: one for one in status["ports"]}
    web, db = ports[net.port("web")]["classes"], ports[net.port("db")]["classes"]
    assert (
        web["broadcast"]["rate"] == RATE and web["broadcast"]["dropping"] and not db["broadcast"]["dropping"]
    )
    assert web["broadcast"]["dropped"] > 1000
    text = net.guard("status")
    assert "dropping" in text and "multicast" in text


def test_the_dashboard_reports_begin_and_end_of_drops(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storms, "CALM", 2.0)
    net.guard()
    port = net.port("web")
    with entered(f"/run/netns/{net.host.name}"):
        watched = Watched(read_guards=read_guards)
        watched.watcher.start()
        try:
            watched.until(lambda snapshot: len(snapshot.storm_guards) == 2 and snapshot.nets)
            send(net, "web", BROADCAST, 5000)
            snapshot = watched.until(lambda snapshot: any(one.drops for one in snapshot.storm_guards))
            watched.until(lambda snapshot: not any(one.drops for one in snapshot.storm_guards))
        finally:
            watched.watcher.stop()
    (guard,) = [one for one in snapshot.storm_guards if one.drops]
    assert [one.kind for one in guard.drops] == ["broadcast"] and guard.dropped[0] > 1000
    link = snapshot.link((guard.ns, guard.ifindex))
    assert link is not None and link.name == port
    found = [change.sentence for change in watched.changes if "storm guard" in change.sentence]
    assert f"The storm guard of {port} drops broadcast frames" in found[0]
    assert found[-1] == f"the storm guard of {port} no longer drops broadcast frames"
