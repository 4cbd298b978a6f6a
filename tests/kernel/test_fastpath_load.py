"""Under load: connections don't notice changes of the fast path and the host."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from bpf import syscall
from core.netlink.netns import entered
from tests.kernel.fastlab import HOST4, PUBLISHED, V4, V6, FastLab
from tests.kernel.streams import Stream, TcpConnections, is_fast, talks_fast
from tests.support import bulk_conntrack
from tests.support.fastpath import FastPath, Talk, attached, leftovers, map_count
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.root
PORTS = {"v-a", "v-b", "v-c", "up0", "up1"}


class Load:
    """A hundred TCP connections, and UDP in all directions."""

    def __init__(self, lab: FastLab, stack: ExitStack, connections: int = 100) -> None:
        self.lab = lab
        ways = [
            ("a", "far", V4["far"], 8000),
            ("a", "b", V4["b"], 8000),
            ("c", "far", V4["far"], 8000),
        ]
        self.crowd = stack.enter_context(TcpConnections(lab, ways, connections))
        self.streams = [
            stack.enter_context(Stream(lab, "a", "far", V4["far"])),
            stack.enter_context(Stream(lab, "far", "a", HOST4, port=80, to=PUBLISHED)),
            stack.enter_context(Stream(lab, "b", "a", V6["a"], port=6002, family=6)),
        ]

    def goes_on(self) -> bool:
        """Talk once on every connection."""
        return self.crowd.goes_on() and all(stream.flows() for stream in self.streams)

    def check(self) -> None:
        """Check that nothing was lost, damaged or repeated."""
        for stream in self.streams:
            stream.stop()
            assert stream.lost() == []
            assert [(each.damaged, each.twice) for each in (stream.there, stream.back)] == [(0, 0)] * 2
        assert self.crowd.goes_on()


@pytest.fixture
def lab() -> Iterator[FastLab]:
    with FastLab() as made:
        yield made


def is_gone(what: str, number: int) -> bool:
    """Return whether the kernel no longer has a program or map of that id."""
    done = subprocess.run(["bpftool", what, "show", "id", str(number)], capture_output=True, check=False)
    return done.returncode != 0


def test_start_stop_and_replacement_lose_no_packet(lab: FastLab) -> None:
    with ExitStack() as stack:
        load = Load(lab, stack)
        assert load.goes_on()
        fast = lab.accelerate()
        assert load.goes_on() and is_fast(lab, *(PORTS - {"up1"}))
        before = fast.status()
        for _ in range(10):
            assert fast.ask("reload")["ok"]
            assert load.goes_on()
        assert fast.status()["program"] != before["program"] and is_fast(lab, "v-a", "up0")
        lab.end_fast()
        assert load.goes_on()
        load.check()
        assert eventually(lambda: all(is_gone("map", number) for number in before["maps"].values()))


@pytest.mark.parametrize("whom", [("daemon",), ("supervisor",), ("daemon", "supervisor")], ids="+".join)
def test_killed_under_load(lab: FastLab, whom: tuple[str, ...]) -> None:
    with ExitStack() as stack:
        load = Load(lab, stack)
        fast = lab.accelerate()
        assert load.goes_on() and is_fast(lab, "v-a", "up0")
        program = fast.status()["program"]
        fast.kill(*whom)
        fast.supervisor.wait(PATIENCE)
        assert load.goes_on()
        assert eventually(lambda: not attached(lab.host) and is_gone("prog", program))
        if whom == ("daemon", "supervisor"):
            lab.fast = None
            assert leftovers(lab.host)
            _repair(lab)
        assert eventually(lambda: not leftovers(lab.host)), leftovers(lab.host)
        assert load.goes_on()
        load.check()


def _repair(lab: FastLab) -> None:
    """Start again, which cleans up after two killed processes."""
    with FastPath(lab.host, "all") as again:
        assert eventually(again.is_on)


def test_stopped_and_continued_under_load(lab: FastLab) -> None:
    with ExitStack() as stack:
        load = Load(lab, stack, 20)
        fast = lab.accelerate()
        assert load.goes_on() and is_fast(lab, "v-a", "up0")
        maps = fast.status()["maps"]
        fast.kill("daemon", number=signal.SIGSTOP)
        lab.run("iptables -I DOCKER-USER -s 198.18.0.0/15 -j DROP")
        counters = syscall.map_by_id(maps["counters"])
        while not map_count(counters, "LEASE"):
            assert load.goes_on()
        os.close(counters)
        assert load.goes_on()
        fast.kill("daemon", number=signal.SIGCONT)
        assert is_fast(lab, "v-a", "up0")
        load.check()


def test_the_host_changes_under_load(lab: FastLab) -> None:
    """Other containers start and end, MTUs change, the uplink goes down and up."""
    with ExitStack() as stack:
        load = Load(lab, stack, 20)
        lab.accelerate()
        assert load.goes_on() and is_fast(lab, "v-a", "up0")
        for mtu in (1400, 1300, 1500):
            lab.run(f"ip link set up0 mtu {mtu}")
            lab.run(f"ip link set docker0 mtu {mtu}")
            assert load.goes_on()
        _start_and_end_containers(lab, load)
        assert load.goes_on() and is_fast(lab, "v-a", "up0")
        load.check()
    assert eventually(lambda: attached(lab.host) == PORTS)


def _start_and_end_containers(lab: FastLab, load: Load) -> None:
    made = [lab.host.namespace(f"x{number}") for number in range(4)]
    for turn in range(15):
        for number, name in enumerate(made):
            lines = f"link add x{number} type veth peer name eth0 netns {name}\n"
            lines += f"link set x{number} master docker0 up\n"
            lab.ip("host", lines)
            lab.ip(f"x{number}", f"addr add 172.17.1.{number + 1}/16 dev eth0\nlink set eth0 up\n")
        lab.ip("host", "".join(f"link del x{number}\n" for number in range(4)))
        if turn % 5 == 0:
            assert load.goes_on()


def test_an_uplink_that_goes_down_ends_only_its_connections(lab: FastLab) -> None:
    """Masquerade drops connections of the link: UDP returns, TCP inside goes on."""
    with ExitStack() as stack:
        crowd = stack.enter_context(TcpConnections(lab, [("a", "b", V4["b"], 8000)], 10))
        out = stack.enter_context(Stream(lab, "a", "far", V4["far"]))
        lab.accelerate()
        assert crowd.goes_on() and out.flows() and is_fast(lab, "v-a", "up0")
        lab.run("ip link set up0 down")
        assert eventually(lambda: "up0" not in attached(lab.host))
        assert crowd.goes_on()
        lab.ip("host", "link set up0 up\nroute replace default via 192.0.2.2\n")
        assert crowd.goes_on() and out.flows() and is_fast(lab, "v-a", "up0")


def test_a_veth_is_deleted_and_created_again(lab: FastLab) -> None:
    with ExitStack() as stack:
        load = Load(lab, stack, 6)
        lab.accelerate()
        with Stream(lab, "b", "c", V4["c"], port=6004) as stream:
            assert stream.flows() and is_fast(lab, "v-c")
            lab.run("ip link del v-c")
            assert eventually(lambda: "v-c" not in attached(lab.host))
            lab.join("c", "br-two", V4["c"], V6["c"], "02:00:00:00:18:22")
            assert stream.flows() and is_fast(lab, "v-c")
        assert eventually(lambda: attached(lab.host) == PORTS)
        for each in load.streams:
            each.stop()
            assert each.lost() == []


def test_a_full_conntrack_table(lab: FastLab) -> None:
    """Existing connections go on, new ones are refused until there is room again."""
    lab.accelerate()
    with (
        Talk(lab.host, "a", "far", V4["far"], 7500) as tcp,
        Stream(lab, "far", "a", HOST4, port=80, to=PUBLISHED) as udp,
    ):
        assert talks_fast(lab, tcp) and udp.flows()
        assert eventually(lambda: _is_refused_while_full(lab))
        lab.run(
            "iptables -I DOCKER-USER -s 198.18.0.0/15 -j DROP"
        )  # all connections have to pass the rules again
        assert talks_fast(lab, tcp) and udp.flows()
        udp.stop()
        assert udp.lost() == []
        with entered(f"/run/netns/{lab.host.name}"):
            bulk_conntrack.flush_ipv6()
        with Talk(lab.host, "a", "far", V4["far"], 7502) as again:
            assert talks_fast(lab, again) and talks_fast(lab, tcp)


def _is_refused_while_full(lab: FastLab) -> bool:
    """Fill the table; return whether a new connection is refused then.

    It isn't if an entry expired, or was replaced by the kernel, meanwhile.
    """
    limit = int(lab.run("sysctl -n net.netfilter.nf_conntrack_max"))
    with entered(f"/run/netns/{lab.host.name}"), pytest.raises(OSError, match="memory"):  # full
        bulk_conntrack.insert(limit)
    try:
        with Talk(lab.host, "a", "far", V4["far"], 7501, patience=1.5):
            return False
    except OSError:
        return True
