"""Read the fast path's flows as columns."""

from __future__ import annotations

import ipaddress
import signal
import time
from collections.abc import Iterator

import pytest

from bpf.client import FastFlowReader
from core.model.fastpath import FAST_PATHS
from core.netlink.netns import entered
from tests.support.fastpath import FastPath, Talk, leftovers, two_containers_and_an_uplink
from tests.support.host import ThrowawayHost
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.root


@pytest.fixture
def bridge_host(host: ThrowawayHost) -> Iterator[ThrowawayHost]:
    two_containers_and_an_uplink(host)
    yield host
    assert eventually(lambda: not leftovers(host)), leftovers(host)


def _address(octets: bytes) -> str:
    found = ipaddress.IPv6Address(octets)
    return str(found.ipv4_mapped or found)


def test_flows_have_their_path_and_counters(bridge_host: ThrowawayHost) -> None:
    with entered(f"/run/netns/{bridge_host.name}"):
        reader = FastFlowReader()
        assert len(reader.read().entries) == 0
        with FastPath(bridge_host, "br0") as fast:
            with (
                Talk(bridge_host, "a", "world", "192.0.2.2") as out,
                Talk(bridge_host, "a", "b", "10.9.0.3") as inside,
            ):

                def all_four() -> bool:
                    out.say(10)
                    inside.say(10)
                    packets = reader.read().entries["packets"]
                    return len(packets) == 4 and bool((packets >= 10).all())

                assert eventually(all_four)
                flows = reader.read()
                assert flows.ns == bridge_host.inode and not flows.entries.flags.writeable
                port = out.client.getsockname()[1]
                (row,) = flows.entries[(flows.entries["sport"] == port)]
                assert _address(row["src"].tobytes()) == "10.9.0.2"
                assert _address(row["dst"].tobytes()) == _address(row["new_dst"].tobytes()) == "192.0.2.2"
                assert _address(row["new_src"].tobytes()) == "192.0.2.1"
                assert (row["dport"], row["new_sport"]) == (7000, out.seen_from[1])
                assert FAST_PATHS[row["path"]] == "translated" and row["live"] and row["family"] == 4
                assert row["packets"] >= 10 and row["bytes"] > 160 * 10
                assert 0 <= row["last_seen"] - row["first_seen"] < 60e9
                assert abs(time.time_ns() - int(row["last_seen"])) < 60e9
                (back,) = flows.entries[(flows.entries["new_dport"] == port)]
                assert (
                    _address(back["new_dst"].tobytes()) == "10.9.0.2"
                    and back["in_ifindex"] == row["out_ifindex"]
                )
                paths = sorted(FAST_PATHS[each] for each in flows.entries["path"])
                assert paths == ["same bridge"] * 2 + ["translated"] * 2
            assert eventually(lambda: not reader.read().entries["live"].any())
            fast.ask("off")
            fast.supervisor.wait(PATIENCE)
            assert len(reader.read().entries) == 0
        reader.close()


def test_flows_of_a_daemon_that_does_not_answer_are_counted(bridge_host: ThrowawayHost) -> None:
    with entered(f"/run/netns/{bridge_host.name}"):
        reader = FastFlowReader()
        with FastPath(bridge_host, "br0") as fast, Talk(bridge_host, "a", "world", "192.0.2.2") as out:

            def both() -> bool:
                out.say(10)
                return len(reader.read().entries) == 2

            assert eventually(both)
            fast.kill("daemon", number=signal.SIGSTOP)
            assert len(reader.read().entries) == 2
            fast.kill("daemon", number=signal.SIGCONT)
        assert len(reader.read().entries) == 0, "it has ended"
        reader.close()
