"""Prove that the fast path works on a kernel.

Packets take it, every byte is equal, rules cut it, and nothing is left after a kill.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.kernel.fastlab import HOST4, HOST6, PUBLISHED, V4, V6, FastLab
from tests.kernel.streams import FAMILIES, Stream, is_fast, talks_fast
from tests.support.fastpath import Talk, attached, leftovers
from tests.support.waiting import PATIENCE, eventually, scaled, wait_until

pytestmark = pytest.mark.root
_GRACE = scaled(10.0)  # seconds after which a rule must be in force, on a busy machine
_BULK = 1 << 18  # bytes


@dataclass(frozen=True)
class TrafficPath:
    """Describe a path: ends, the host's link for the client, the sources seen."""

    here: str
    there: str
    link: str
    seen4: str
    seen6: str
    published: bool = False

    def talk(self, lab: FastLab, family: int, udp: bool, port: int) -> Talk:
        """Open a conversation on this path."""
        own, known = (HOST4, V4) if family == 4 else (HOST6, V6)
        address = own if self.published else known[self.there]
        return Talk(
            lab.host, self.here, self.there, address, 80 if self.published else port, udp=udp,
            to=PUBLISHED if self.published else 0, family=FAMILIES[family],
        )  # fmt: skip


PATHS = {
    "same bridge": TrafficPath("a", "b", "v-a", V4["a"], V6["a"]),
    "translated": TrafficPath("a", "far", "v-a", HOST4, HOST6),
    "published": TrafficPath("far", "a", "up0", V4["far"], V6["far"], published=True),
}


@pytest.fixture(scope="module")
def lab() -> Iterator[FastLab]:
    """Yield bridges with containers, Docker's rules, and the fast path on."""
    with FastLab() as made:
        made.accelerate()
        yield made


def mapped_packets(lab: FastLab) -> int:
    """Return the packets of all flows, as bpftool reads them from the program's maps."""
    assert lab.fast
    ids = lab.fast.ask("maps")["maps"]
    found = 0
    for name in ("flows4", "flows6"):
        for entry in lab.host.json(f"bpftool -j map dump id {ids[name]}"):
            found += int.from_bytes(bytes(int(each, 16) for each in entry["value"][:8]), "little")
    return found


def mapped_of_ten(lab: FastLab, talk: Talk) -> int:
    """Return the packets that ten rounds of a conversation add to the maps.

    The first may be missing: after a pause conntrack has to see one of each direction.
    """
    before = mapped_packets(lab)
    talk.say(10)
    return mapped_packets(lab) - before


@pytest.mark.parametrize("udp", [False, True], ids=["tcp", "udp"])
@pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("name", PATHS)
def test_traffic_is_fast_and_every_byte_is_equal(lab: FastLab, name: str, family: int, udp: bool) -> None:
    path = PATHS[name]
    with path.talk(lab, family, udp, 7000 + family) as talk:
        talk.say(3)
        assert talk.seen_from[0].removeprefix("::ffff:") == (path.seen4 if family == 4 else path.seen6)
        assert talks_fast(lab, talk, path.link), lab.fast and lab.fast.status()
        assert eventually(lambda: mapped_of_ten(lab, talk) >= 20), "packets are not in the program's maps"
        if not udp:
            data = os.urandom(_BULK)
            assert carried(talk.client, talk.server, data) and carried(talk.server, talk.client, data)


def carried(here: socket.socket, there: socket.socket, data: bytes) -> bool:
    """Return whether all data arrives unchanged."""
    sender = threading.Thread(target=here.sendall, args=(data,))
    sender.start()
    arrived = b""
    while len(arrived) < len(data) and (more := there.recv(1 << 16)):
        arrived += more
    sender.join(PATIENCE)
    return arrived == data


@pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
def test_a_new_rule_stops_a_running_flow(lab: FastLab, family: int) -> None:
    tables, address = ("iptables", V4["a"]) if family == 4 else ("ip6tables", V6["a"])
    with Stream(lab, "a", "far", (V4 if family == 4 else V6)["far"], port=6000, family=family) as stream:
        assert stream.flows() and is_fast(lab, "v-a")
        lab.run(f"{tables} -I FORWARD -s {address} -j DROP")
        in_force = time.monotonic() + _GRACE
        assert stream.is_cut(stream.there)
        assert stream.there.latest <= in_force
        lab.run(f"{tables} -D FORWARD 1")
        assert stream.flows(), "it does not go on"
        assert is_fast(lab, "v-a"), lab.fast and lab.fast.status()


def is_gone(lab: FastLab, kind: str = "") -> bool:
    """Return whether no link has the program, attached in that way, nor its table."""
    return not attached(lab.host, kind) and "vnet_fastpath" not in lab.run("nft list tables")


def test_a_killed_fast_path_leaves_nothing_and_connections_continue() -> None:
    with (
        FastLab() as lab,
        Talk(lab.host, "a", "b", V4["b"]) as bridged,
        Talk(lab.host, "a", "far", V4["far"], 7001) as out,
    ):
        fast = lab.accelerate()
        assert {"v-a", "v-b", "v-c", "up0"} <= attached(lab.host)
        assert talks_fast(lab, bridged) and talks_fast(lab, out, "v-a", "up0")
        fast.kill("daemon")
        fast.supervisor.wait(PATIENCE)
        wait_until(lambda: is_gone(lab), "the end of programs and table")
        out.say(20)
        bridged.say(20)
        assert eventually(lambda: not leftovers(lab.host)), leftovers(lab.host)


def test_recover_cleans_up_after_both_processes() -> None:
    with FastLab() as lab, Talk(lab.host, "a", "far", V4["far"], 7002) as out:
        fast = lab.accelerate()
        assert talks_fast(lab, out)
        fast.kill("supervisor", "daemon", number=signal.SIGKILL)
        fast.supervisor.wait(PATIENCE)
        wait_until(lambda: is_gone(lab, "tcx"), "the end of programs and table")
        out.say(20)
        assert "marks" in leftovers(lab.host)
        done = lab.host.vnet("recover")
        assert "cleaned up after a killed fast path" in done.stdout, done.stdout + done.stderr
        assert leftovers(lab.host) == []
        out.say(20)
