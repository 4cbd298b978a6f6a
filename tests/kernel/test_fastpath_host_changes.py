"""The fast path follows containers, addresses, MACs, neighbours and networks."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from bpf import keepalive, maps, syscall
from bpf.attachments import Attachments
from core.netlink.clsact import FAST_PATH, STORM_GUARD, LinkFilter
from core.netlink.netns import entered
from tests.support.fastpath import (
    FastPath,
    Talk,
    attached,
    map_count,
    two_containers_and_an_uplink,
)
from tests.support.host import ThrowawayHost
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.root

_PASS = bytes.fromhex("b7000000000000009500000000000000")  # r0 = 0; exit
_DROP = bytes.fromhex("b7000000020000009500000000000000")  # r0 = TC_ACT_SHOT; exit


def test_a_container_is_accelerated_from_its_first_flow(bridge_host: ThrowawayHost) -> None:
    with FastPath(bridge_host, "br0") as fast:
        bridge_host.container("late", "br0", "10.9.0.9/24", "10.9.0.1")
        assert eventually(lambda: "v-late" in attached(bridge_host))
        with Talk(bridge_host, "late", "b", "10.9.0.3") as talk:
            assert eventually(lambda: fast.forwards(talk, "v-late"))
        subprocess.run(["ip", "netns", "del", bridge_host.full("late")], check=True)
        assert eventually(lambda: "v-late" not in [row["name"] for row in fast.status()["ports"]])
        assert attached(bridge_host) == {"v-a", "v-b", "up0"}


def test_many_containers_start_and_end_under_load(bridge_host: ThrowawayHost) -> None:
    """Two hundred containers, while a connection talks without a pause."""
    names = {number: f"{bridge_host.prefix}-m{number}" for number in range(200)}
    with (
        FastPath(bridge_host, "br0") as fast,
        Talk(bridge_host, "a", "b", "10.9.0.3") as talk,
        _talking(Talk(bridge_host, "b", "world", "192.0.2.2", 7001)),
    ):
        try:
            _batch(f"netns add {name}" for name in names.values())
            _batch(_pairs(names), "-n", bridge_host.name)
            talk.say(20)
            for number, name in names.items():
                _batch((f"addr add 10.9.1.{number}/16 dev eth0", "link set eth0 up"), "-n", name)
            wanted = {f"m{number}" for number in names} | {"v-a", "v-b", "up0"}
            assert eventually(lambda: attached(bridge_host) == wanted)
            assert not fast.status()["refused"]
        finally:
            _batch(f"netns del {name}" for name in names.values())
        assert eventually(lambda: attached(bridge_host) == {"v-a", "v-b", "up0"})
        assert eventually(lambda: fast.forwards(talk))


@contextmanager
def _talking(talk: Talk) -> Iterator[None]:
    """Talk on a thread meanwhile; raise its error at the end."""
    ended = threading.Event()
    rounds: list[int] = []

    def go_on() -> None:
        while not ended.wait(0.002):
            talk.say(5)
            rounds.append(5)

    with talk, ThreadPoolExecutor(1) as pool:
        going = pool.submit(go_on)
        try:
            yield
        finally:
            ended.set()
        going.result(PATIENCE)
        assert sum(rounds) > 100


def _batch(commands: Iterable[str], *options: str) -> None:
    """Run these commands in one ip(8) process."""
    subprocess.run(["ip", *options, "-batch", "-"], input="\n".join(commands) + "\n", text=True, check=True)


def _pairs(names: Mapping[int, str]) -> Iterator[str]:
    for number, name in names.items():
        yield f"link add m{number} type veth peer name eth0 netns {name}"
        yield f"link set m{number} master br0 up"


def test_addresses_and_macs_inside_containers_are_followed(bridge_host: ThrowawayHost) -> None:
    with FastPath(bridge_host, "br0") as fast:
        bridge_host.run("ip addr del 10.9.0.2/24 dev eth0", inside="a")
        bridge_host.run("ip addr add 10.9.0.77/24 dev eth0", inside="a")
        bridge_host.run("ip route replace default via 10.9.0.1", inside="a")
        with Talk(bridge_host, "a", "b", "10.9.0.3", 7001) as talk:
            assert talk.seen_from[0] == "10.9.0.77"
            assert eventually(lambda: fast.forwards(talk))
            bridge_host.run("ip link set eth0 address 02:00:00:00:00:77", inside="a")
            bridge_host.run("ip neigh flush all", inside="b")
            assert eventually(lambda: fast.forwards(talk))


def test_a_spoofed_source_is_not_accelerated(bridge_host: ThrowawayHost) -> None:
    """a sends from b's address by a raw socket, from its own link."""
    with FastPath(bridge_host, "br0") as fast, Talk(bridge_host, "b", "world", "192.0.2.2", udp=True) as talk:
        talk.say(3)
        assert eventually(lambda: fast.forwards(talk, "v-b"))
        local = talk.client.getsockname()
        script = (
            "from scapy.all import IP, UDP, Ether, sendp; import sys\n"
            f"p = Ether(dst=sys.argv[1]) / IP(src='{local[0]}', dst='192.0.2.2') / "
            f"UDP(sport={local[1]}, dport=7000) / b'spoofed'\n"
            "sendp(p, iface='eth0', count=5, verbose=0)\n"
        )
        gateway = bridge_host.json("ip -j link show br0")[0]["address"]
        before = fast.count("FAST", "v-a")

        def noticed() -> bool:
            bridge_host.run([sys.executable, "-c", script, gateway], inside="a")
            return fast.count("SOURCE", "v-a") >= 5

        # Sent repeatedly: while a generation begins, packets are not checked by their source.
        assert eventually(noticed)
        assert fast.count("FAST", "v-a") == before


def test_an_uplink_goes_down_and_up(bridge_host: ThrowawayHost) -> None:
    with FastPath(bridge_host, "br0") as fast:
        bridge_host.run("ip link set up0 down")
        assert eventually(lambda: "up0" not in attached(bridge_host))
        bridge_host.run("ip link set up0 up")
        assert eventually(lambda: "up0" in attached(bridge_host))
        with Talk(bridge_host, "a", "world", "192.0.2.2") as talk:
            assert eventually(lambda: fast.forwards(talk))


def test_programs_and_filters_of_other_tools_stay(bridge_host: ThrowawayHost) -> None:
    ifindex = bridge_host.json("ip -j link show v-a")[0]["ifindex"]
    program = syscall.load_program(syscall.PROG_SCHED_CLS, _PASS, "somebody")
    with entered(f"/run/netns/{bridge_host.name}"):
        link = syscall.attach_tcx(program, ifindex)
    try:
        with FastPath(bridge_host, "br0") as fast:
            assert attached(bridge_host) == {"v-b", "up0"}
            assert "another program or filter" in fast.status()["refused"]["v-a"]
            os.close(link)
            link = -1
            assert eventually(lambda: attached(bridge_host) == {"v-a", "v-b", "up0"})
            bridge_host.run("tc qdisc add dev v-b clsact")
            bridge_host.run("tc filter add dev v-b ingress protocol all prio 5 u32 match u32 0 0 flowid 1:1")
            assert eventually(lambda: attached(bridge_host) == {"v-a", "up0"})
            bridge_host.run("tc filter del dev v-b ingress prio 5")
            assert eventually(lambda: attached(bridge_host) == {"v-a", "v-b", "up0"})
    finally:
        os.close(program)
        if link >= 0:
            os.close(link)


@pytest.mark.parametrize(
    ("link", "where"),
    [("v-a", syscall.TCX_EGRESS), ("br0", syscall.TCX_INGRESS), ("br0", syscall.TCX_EGRESS)],
)
def test_no_other_program_is_bypassed(bridge_host: ThrowawayHost, link: str, where: int) -> None:
    """A program at a container's egress or at a bridge drops everything."""
    ifindex = bridge_host.json(f"ip -j link show {link}")[0]["ifindex"]
    dropping = syscall.load_program(syscall.PROG_SCHED_CLS, _DROP, "dropping")
    held = -1
    with FastPath(bridge_host, "br0") as fast, Talk(bridge_host, "a", "world", "192.0.2.2", udp=True) as talk:
        try:
            talk.say(3)
            assert eventually(lambda: fast.forwards(talk))
            with entered(f"/run/netns/{bridge_host.name}"):
                held = syscall.attach_tcx(dropping, ifindex, where)
            talk.client.settimeout(0.3)
            talk.server.settimeout(0.3)
            assert eventually(lambda: not any(_answers(talk) for _ in range(3)))
            os.close(held)
            held = -1
            assert eventually(lambda: _answers(talk))
        finally:
            os.close(dropping)
            if held >= 0:
                os.close(held)


def _answers(talk: Talk) -> bool:
    with suppress(TimeoutError):
        talk.client.send(b"there")
        _, source = talk.server.recvfrom(100)
        talk.server.sendto(b"back", source)
        return bool(talk.client.recv(100))
    return False


def test_without_tcx_the_program_is_a_clsact_filter(inside_host: ThrowawayHost) -> None:
    two_containers_and_an_uplink(inside_host)
    ifindex = inside_host.json("ip -j link show v-a")[0]["ifindex"]
    inside_host.run("tc qdisc add dev v-a clsact")
    inside_host.run("tc filter add dev v-a ingress protocol all prio 5 u32 match u32 0 0 flowid 1:1")
    loaded = maps.load(1024)
    held = Attachments(loaded.program, tcx=False)
    assert held.sync([ifindex]) == {}
    assert _filters(inside_host) == {5, 0x766E} and [one.ifindex for one in FAST_PATH.attached()] == [ifindex]
    program, observer = maps.reload(loaded)
    held.replace(program)
    assert _filters(inside_host) == {5, 0x766E}
    held.close()
    assert _filters(inside_host) == {5} and [one.ifindex for one in FAST_PATH.attached()] == []
    assert "clsact" in inside_host.run("tc qdisc show dev v-a"), "it was there before"
    for descriptor in (held.program, observer, loaded.observer, *loaded.maps.values()):
        os.close(descriptor)


@pytest.mark.parametrize("others", [False, True])
def test_our_clsact_is_removed_with_our_filter(inside_host: ThrowawayHost, others: bool) -> None:
    two_containers_and_an_uplink(inside_host)
    ifindex = inside_host.json("ip -j link show v-a")[0]["ifindex"]
    program = syscall.load_program(syscall.PROG_SCHED_CLS, _PASS, "ours")
    for _ in range(2):  # the second takes the place of the first
        FAST_PATH.attach(program, ifindex)
    if others:
        inside_host.run("tc filter add dev v-a egress protocol all prio 5 u32 match u32 0 0 flowid 1:1")
    FAST_PATH.detach(ifindex)
    os.close(program)
    assert [one.ifindex for one in FAST_PATH.attached()] == []
    assert ("clsact" in inside_host.run("tc qdisc show dev v-a")) == others


@pytest.mark.parametrize(
    "kinds", [(FAST_PATH, STORM_GUARD), (STORM_GUARD, FAST_PATH)], ids=["fast path first", "guard first"]
)
@pytest.mark.parametrize("last", [0, 1])
def test_our_clsact_is_removed_with_the_last_of_our_filters(
    inside_host: ThrowawayHost, kinds: tuple[LinkFilter, LinkFilter], last: int
) -> None:
    inside_host.run("ip link add lone type bridge")
    ifindex = inside_host.json("ip -j link show lone")[0]["ifindex"]
    program = syscall.load_program(syscall.PROG_SCHED_CLS, _PASS, "ours")
    for kind in kinds:
        kind.attach(program, ifindex)
    os.close(program)
    kinds[1 - last].detach(ifindex)
    assert [one.ifindex for one in kinds[last].attached()] == [ifindex]
    kinds[last].detach(ifindex)
    assert "clsact" not in inside_host.run("tc qdisc show dev lone")


_WITHOUT_TCX = """
import errno, sys
from bpf import {module}, syscall
def refuse(*_):
    raise OSError(errno.EINVAL, "no tcx")
syscall.attach_tcx = syscall.attached = refuse
{more}
sys.exit({module}.main(sys.argv[{skipped}:]))
"""


def test_a_kernel_without_tcx(bridge_host: ThrowawayHost, tmp_path: Path) -> None:
    """After kill -9 its filters stay without effect until the next start."""
    daemon = tmp_path / "daemon"  # stands in for the interpreter: `python -P -m bpf.daemon TARGET...`
    code = _WITHOUT_TCX.format(module="daemon", more="", skipped=4)
    daemon.write_text(f'#!/bin/sh\nexec {sys.executable} -c {shlex.quote(code)} "$@"\n')
    daemon.chmod(0o755)
    supervisor = _WITHOUT_TCX.format(module="supervisor", more=f"sys.executable = {str(daemon)!r}", skipped=1)
    bridge_host.run("ip link add vx7 type vxlan id 7 local 192.0.2.1 dstport 4789")
    bridge_host.run("ip link set vx7 master br0 up")
    with (
        Talk(bridge_host, "a", "world", "192.0.2.2") as out,
        FastPath(bridge_host, "br0", run=["-c", supervisor]) as fast,
    ):
        out.say(3)
        assert eventually(lambda: fast.forwards(out)) and eventually(lambda: fast.forwards(out, "up0"))
        assert _at_clsact(bridge_host) == {"v-a", "v-b", "vx7", "up0"}
        assert _observed(bridge_host) == {"up0"}
        assert fast.ask("reload")["ok"]
        out.say(20)
        assert eventually(lambda: fast.forwards(out))
        bridge_host.run("ip link del v-b")
        assert eventually(lambda: "v-b" not in [row["name"] for row in fast.status()["ports"]])
        counters = syscall.map_by_id(fast.ask("maps")["maps"]["counters"])
        try:
            fast.kill("daemon", "supervisor")
            fast.supervisor.wait(PATIENCE)
            assert eventually(lambda: out.say(20) or map_count(counters, "LEASE"))
        finally:
            os.close(counters)
        assert (_at_clsact(bridge_host), _observed(bridge_host)) == ({"v-a", "vx7", "up0"}, {"up0"})
        with FastPath(bridge_host, "br0") as again:
            assert eventually(lambda: again.forwards(out))
            assert not _at_clsact(bridge_host) | _observed(bridge_host)
        out.say(20)
        assert not _at_clsact(bridge_host) | _observed(bridge_host)


def _at_clsact(host: ThrowawayHost, where: str = "ingress", program: str = "vnet_fastpath") -> set[str]:
    """Return the links with one of our filters, as tc(8) lists them."""
    names = [link["ifname"] for link in host.json("ip -j link show")]
    return {name for name in names if program in host.run(f"tc filter show dev {name} {where}", check=False)}


def _observed(host: ThrowawayHost) -> set[str]:
    """Return the links with the program for outer headers of tunnels."""
    return _at_clsact(host, "egress", "vnet_observer")


def _filters(host: ThrowawayHost) -> set[int]:
    return {each["pref"] for each in host.json("tc -j filter show dev v-a ingress")}


def test_networks_by_name_and_all(bridge_host: ThrowawayHost) -> None:
    bridge_host.run("ip link add br9 type bridge")
    bridge_host.run("ip link set br9 alias 'vnet: net=shop' up")
    bridge_host.container("c", "br9", "10.10.0.2/24")
    with FastPath(bridge_host, "shop", "nowhere") as fast:
        assert attached(bridge_host) == {"v-c", "up0"}
        assert fast.status()["unknown"] == ["nowhere"] and fast.status()["bridges"] == ["br9"]
        fast.ask("targets", targets=["all"])
        assert attached(bridge_host) == {"v-a", "v-b", "v-c", "up0"}
        bridge_host.run("ip link set br9 down")
        assert eventually(lambda: attached(bridge_host) == {"v-a", "v-b", "up0"})
        assert fast.status()["refused"]["br9"] == "it is down"


def test_a_neighbour_that_only_the_fast_path_uses_is_confirmed(inside_host: ThrowawayHost) -> None:
    two_containers_and_an_uplink(inside_host)
    inside_host.run("ping -c 1 -W 20 10.9.0.2")
    (known,) = inside_host.json("ip -j neigh show dev br0 10.9.0.2")
    neighbours = keepalive.Neighbours()
    try:
        inside_host.run(f"ip neigh replace 10.9.0.2 dev br0 lladdr {known['lladdr']} nud stale")
        bridge = inside_host.json("ip -j link show br0")[0]["ifindex"]
        assert (
            not neighbours.read_events().moved
            and neighbours.has_stale({bridge})
            and not neighbours.has_stale({bridge + 1})
        )
        assert neighbours.confirm({bytes(6)}) == 0
        assert neighbours.confirm({bytes.fromhex(known["lladdr"].replace(":", ""))}) == 1
        state = inside_host.json("ip -j neigh show dev br0 10.9.0.2")[0]["state"]
        assert state != ["STALE"]
        inside_host.run("ip neigh replace 10.9.0.2 dev br0 lladdr 02:00:00:00:00:01 nud reachable")
        assert neighbours.read_events().moved
        inside_host.run("ip neigh del 10.9.0.2 dev br0")
        assert neighbours.read_events().moved
    finally:
        neighbours.close()


def test_used_forwarding_table_entries_do_not_age(inside_host: ThrowawayHost) -> None:
    two_containers_and_an_uplink(inside_host)
    port = inside_host.json("ip -j link show v-a")[0]["ifindex"]
    mac = inside_host.json("ip -j link show eth0", inside="a")[0]["address"]
    inside_host.run("ip link set br0 type bridge fdb_flush")
    keepalive.refresh_fdb([(port, bytes.fromhex(mac.replace(":", "")))])
    entries = {(each["mac"], each["ifname"]) for each in inside_host.json("bridge -j fdb show br br0")}
    assert (mac, "v-a") in entries


def test_a_single_next_hop_object_is_a_plain_route(bridge_host: ThrowawayHost) -> None:
    """FRR and systemd-networkd write such routes; a group is left to the kernel."""
    bridge_host.run("ip route add 203.0.113.0/24 via 192.0.2.2")
    bridge_host.run("ip addr add 203.0.113.9/32 dev lo", inside="world")
    with FastPath(bridge_host, "br0") as fast, Talk(bridge_host, "a", "world", "203.0.113.9") as talk:
        bridge_host.run("ip nexthop add id 7 via 192.0.2.2 dev up0")
        bridge_host.run("ip nexthop add id 8 group 7")
        bridge_host.run("ip route replace 203.0.113.0/24 nhid 7")
        assert eventually(lambda: fast.forwards(talk))
        bridge_host.run("ip route replace 203.0.113.0/24 nhid 8")
        before = fast.count("MULTIPATH", "v-a")
        assert eventually(lambda: talk.say() or fast.count("MULTIPATH", "v-a") > before)
        bridge_host.run("ip route replace 203.0.113.0/24 nhid 7")
        assert eventually(lambda: fast.forwards(talk))


def test_packets_for_a_static_forwarding_entry_go_to_its_port(bridge_host: ThrowawayHost) -> None:
    """With a static forwarding table entry the container gets nothing."""
    mac = bridge_host.json("ip -j link show eth0", inside="b")[0]["address"]
    with FastPath(bridge_host, "br0") as fast, Talk(bridge_host, "a", "b", "10.9.0.3", udp=True) as talk:
        assert eventually(lambda: fast.forwards(talk))
        bridge_host.run(f"bridge fdb replace {mac} dev v-a master static sticky")
        talk.client.settimeout(0.3)
        talk.server.settimeout(0.3)
        assert eventually(lambda: not any(_answers(talk) for _ in range(3)))
        bridge_host.run(f"bridge fdb del {mac} dev v-a master")
        assert eventually(lambda: _answers(talk))
