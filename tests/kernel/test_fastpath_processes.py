"""The fast path's processes: their end doesn't affect connections and host."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from bpf import syscall
from tests.support.fastpath import (
    FastPath,
    Talk,
    attached,
    leftovers,
    map_count,
    marked,
)
from tests.support.host import ThrowawayHost
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.root


def test_switched_and_translated_traffic_is_forwarded_and_all_is_restored(
    bridge_host: ThrowawayHost,
) -> None:
    with FastPath(bridge_host, "br0") as fast:
        assert attached(bridge_host) == {"v-a", "v-b", "up0"}
        assert bridge_host.run("sysctl -n net.netfilter.nf_conntrack_tcp_be_liberal").strip() == "0"
        with (
            Talk(bridge_host, "a", "b", "10.9.0.3") as inside,
            Talk(bridge_host, "a", "world", "192.0.2.2") as out,
        ):
            assert out.seen_from[0] == "192.0.2.1"
            assert eventually(lambda: fast.forwards(inside)) and eventually(lambda: fast.forwards(out))
            assert eventually(lambda: fast.forwards(out, "up0"))
            assert len(marked(bridge_host)) == 2
            fast.ask("off")
            assert fast.supervisor.wait(PATIENCE) == 0
            assert leftovers(bridge_host) == []
            inside.say(50)
            out.say(50)


def test_the_previous_state_is_restored(bridge_host: ThrowawayHost) -> None:
    """Every sysctl, rule, tc qdisc and filter; no sysctl changes meanwhile either."""
    with Talk(bridge_host, "a", "world", "192.0.2.2") as out:
        out.say(3)
        before = _state_of(bridge_host)
        with FastPath(bridge_host, "br0") as fast:
            assert eventually(lambda: fast.forwards(out))
            during = _state_of(bridge_host)
            assert all(during[what] != before[what] for what in ("rules", "tc"))
            assert during["sysctls"] == before["sysctls"]
            maps = Path(f"/proc/{fast.answer['pid']}/maps").read_text()
            assert "libbcc" not in maps and "libLLVM" not in maps
        assert _state_of(bridge_host) == before
        out.say(3)


def _state_of(host: ThrowawayHost) -> dict[str, str]:
    """Return what could be left, as other tools print it, without counters."""
    sysctls = host.run("sysctl -a -r ^net\\.(ipv|netfilter|bridge)").splitlines()
    settings = [line for line in sysctls if "conntrack_count" not in line and "random" not in line]
    return {
        "sysctls": "\n".join(settings),
        "rules": host.run("nft -s list ruleset"),
        "tc": host.run("tc qdisc show") + host.run("bpftool net"),
    }


@pytest.mark.parametrize("udp", [False, True])
def test_ipv6_is_forwarded_and_translated(bridge_host: ThrowawayHost, udp: bool) -> None:
    with (
        FastPath(bridge_host, "br0") as fast,
        Talk(bridge_host, "a", "world", "2001:db8::2", udp=udp, family=socket.AF_INET6) as out,
    ):
        out.say(3)
        assert eventually(lambda: fast.forwards(out))
        assert out.seen_from[0] == "2001:db8::1"


@pytest.mark.parametrize("whom", [("daemon",), ("supervisor",), ("daemon", "supervisor")])
def test_killed_processes_leave_nothing_and_connections_continue(
    bridge_host: ThrowawayHost, whom: tuple[str, ...]
) -> None:
    with (
        Talk(bridge_host, "a", "b", "10.9.0.3") as inside,
        Talk(bridge_host, "a", "world", "192.0.2.2") as out,
    ):
        with FastPath(bridge_host, "br0") as fast:
            inside.say(100)
            out.say(100)
            assert eventually(lambda: fast.forwards(out))
            fast.kill(*whom)
            fast.supervisor.wait(PATIENCE)
            out.say(50)
            inside.say(50)
            kind = "tcx" if len(whom) == 2 else ""  # what is at clsact is left to the next start
            assert eventually(
                lambda: (
                    not attached(bridge_host, kind)
                    and "vnet_fastpath" not in bridge_host.run("nft list tables")
                )
            )
        if len(whom) == 2:
            assert "marks" in leftovers(bridge_host)
            with FastPath(bridge_host, "br0") as again:
                assert eventually(again.is_on)
        assert eventually(lambda: not leftovers(bridge_host)), leftovers(bridge_host)
        inside.say(50)
        out.say(50)


def test_a_second_instance_is_refused_and_the_first_is_named(bridge_host: ThrowawayHost) -> None:
    with FastPath(bridge_host, "br0") as fast:
        second = FastPath(bridge_host, "all")
        assert second.supervisor.wait(PATIENCE) == 1
        second.end()
        assert not second.answer["ok"] and str(fast.supervisor.pid) in second.answer["why"]
        assert eventually(fast.is_on) and attached(bridge_host) == {"v-a", "v-b", "up0"}


def test_the_daemon_ends_with_the_process_that_it_is_tied_to(bridge_host: ThrowawayHost) -> None:
    with FastPath(bridge_host, "br0", tied=True) as fast:
        assert fast.supervisor.stdin is not None
        fast.supervisor.stdin.close()
        assert fast.supervisor.wait(PATIENCE) == 0


def test_the_lease_of_a_stopped_daemon_expires(bridge_host: ThrowawayHost) -> None:
    with FastPath(bridge_host, "br0") as fast, Talk(bridge_host, "a", "b", "10.9.0.3") as talk:
        assert eventually(lambda: fast.forwards(talk))
        counters = syscall.map_by_id(fast.ask("maps")["maps"]["counters"])
        fast.kill("daemon", number=signal.SIGSTOP)
        leased = eventually(lambda: talk.say(20) or map_count(counters, "LEASE"))
        os.close(counters)
        fast.kill("daemon", number=signal.SIGCONT)
        assert leased
        assert eventually(lambda: fast.forwards(talk))


def test_a_program_is_replaced_without_loss(bridge_host: ThrowawayHost) -> None:
    with FastPath(bridge_host, "br0") as fast, Talk(bridge_host, "a", "world", "192.0.2.2", udp=True) as talk:
        talk.say(3)
        assert eventually(lambda: fast.forwards(talk))
        before = fast.status()["program"]
        for _ in range(5):
            assert fast.ask("reload")["ok"]
            talk.say(20)
        assert fast.status()["program"] != before
        assert eventually(lambda: fast.forwards(talk))


def test_the_cost_is_measured_only_on_request(bridge_host: ThrowawayHost) -> None:
    with FastPath(bridge_host, "br0") as fast, Talk(bridge_host, "a", "b", "10.9.0.3") as talk:
        fast.status(measure=True)
        talk.say(1)
        assert fast.status(measure=True)["ns_per_packet"] is None, "of the first packets, which take longest"
        talk.say(100)
        assert fast.status(measure=True)["ns_per_packet"] > 0
        assert eventually(lambda: fast.forwards(talk))
        assert fast.status(flows=True)["flows"] >= 2
        assert "ns_per_packet" not in fast.status()


def test_captured_packets_are_left_to_the_kernel(bridge_host: ThrowawayHost) -> None:
    with FastPath(bridge_host, "br0") as fast, Talk(bridge_host, "a", "b", "10.9.0.3") as talk:
        assert eventually(lambda: fast.forwards(talk))
        assert fast.ask("capture", address="10.9.0.3")["captured"] == ["10.9.0.3"]
        before = fast.count("FAST")
        talk.say(10)
        assert fast.count("FAST") == before and fast.count("CAPTURED") >= 10
        assert not fast.ask("capture", address="nonsense")["ok"]
        assert fast.ask("release", address="10.9.0.3")["captured"] == []
        assert eventually(lambda: fast.forwards(talk))
