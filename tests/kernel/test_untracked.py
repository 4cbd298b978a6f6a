"""`tune --no-track-dns`: ordinary packets of a container pass conntrack by, Docker's DNS works as before."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.collect.netns import entered
from tests.support.docker_dns import ADDRESS, BACKENDS, TCP, UDP, write_rules
from tests.support.fastpath import Talk
from tests.support.host import ThrowawayHost
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.root
A, B = "10.9.0.2", "10.9.0.3"


class Pair:
    """The bridge br0 with the containers a and b; b has Docker's rules and answers as its resolver does."""

    def __init__(self, host: ThrowawayHost, folder: Path) -> None:
        self.host, self._folder = host, folder
        host.run("ip link add br0 type bridge")
        host.run("ip addr add 10.9.0.1/24 dev br0")
        host.run("ip link set br0 up")
        for name, address in (("a", A), ("b", B)):
            host.container(name, "br0", f"{address}/24", "10.9.0.1")
        with entered(self.path):
            self._resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._resolver.bind((ADDRESS, UDP))
            self._listener = socket.create_server((ADDRESS, TCP))
        self._resolver.settimeout(PATIENCE)

    @property
    def path(self) -> str:
        return f"/run/netns/{self.host.full('b')}"

    def vnet(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.host.vnet(*words, VNET_STATE=str(self._folder))

    def done(self, *words: str) -> str:
        ended = self.vnet(*words)
        assert ended.returncode == 0, ended.stderr + ended.stdout
        return ended.stdout

    def rules(self) -> list[dict[str, Any]]:
        """All of b's rules, without the counters' values."""
        told = self.host.json("nft -j list ruleset", "b")["nftables"]
        return [_uncounted(one) for one in told if "metainfo" not in one]

    def untracked(self) -> bool:
        return any(one.get("table", {}).get("name") == "vnet_untracked" for one in self.rules())

    def entries(self) -> list[str]:
        return self.host.run("conntrack -L", "b").splitlines()

    def resolve(self) -> None:
        """Ask by UDP and TCP, and see where the answer comes from."""
        with entered(self.path):
            asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            asking.settimeout(PATIENCE)
            caller = socket.create_connection((ADDRESS, 53), PATIENCE)
        with asking, caller:
            asking.sendto(b"query", (ADDRESS, 53))
            query, source = self._resolver.recvfrom(99)
            self._resolver.sendto(query[::-1], source)
            assert asking.recvfrom(99) == (b"yreuq", (ADDRESS, 53))
            answering, _ = self._listener.accept()
            with answering:
                answering.sendall(b"answer")
                assert caller.recv(99) == b"answer"

    def talk(self) -> None:
        """Ordinary traffic in both directions, over the bridge and over loopback."""
        for udp, here, there, address in (
            (False, "a", "b", B),
            (True, "a", "b", B),
            (False, "b", "a", A),
            (True, "b", "b", "127.0.0.1"),
        ):
            with Talk(self.host, here, there, address, udp=udp) as talk:
                talk.say(3)

    def close(self) -> None:
        self._resolver.close()
        self._listener.close()


def _uncounted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _uncounted(one) for key, one in value.items() if key not in ("counter", "handle")}
    return [_uncounted(one) for one in value] if isinstance(value, list) else value


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    host = ThrowawayHost()
    try:
        made = Pair(host, tmp_path)
        yield made
        made.close()
    finally:
        host.close()


def ordinary(entries: list[str]) -> list[str]:
    return [line for line in entries if f"dst={ADDRESS}" not in line.split()]


@pytest.mark.parametrize("backend", BACKENDS)
def test_dns_alone_is_tracked(pair: Pair, backend: str) -> None:
    write_rules(pair.path, backend)
    before = pair.rules()
    pair.talk()
    assert ordinary(pair.entries())
    told = json.loads(pair.done("tune", "br0", "--no-track-dns", "--json"))
    assert any("conntrack no longer knows" in one for one in told["warnings"])
    pair.host.run("conntrack -F", "b")
    pair.talk()
    pair.resolve()
    assert ordinary(pair.entries()) == []
    found = {line.split()[0] for line in pair.entries()}
    assert found == {"udp", "tcp"}
    # Again, there is nothing to do; and what we wrote is neither wrong nor foreign.
    again = pair.vnet("tune", "br0", "--no-track-dns")
    assert again.returncode and "so already" in again.stderr + again.stdout
    pair.done("undo")
    assert pair.rules() == before
    pair.talk()
    pair.resolve()
    assert ordinary(pair.entries())


def test_off_and_its_undo(pair: Pair) -> None:
    write_rules(pair.path)
    before = pair.rules()
    pair.done("tune", "br0", "--no-track-dns", "--only", pair.host.full("b"))
    on = pair.rules()
    assert pair.untracked()
    pair.done("tune", "br0", "--no-track-dns", "off")
    assert pair.rules() == before
    pair.done("undo")
    assert pair.rules() == on


def test_cleanup_takes_it_away(pair: Pair) -> None:
    write_rules(pair.path)
    before = pair.rules()
    pair.done("tune", "br0", "--no-track-dns")
    pair.done("cleanup", "--yes")
    assert pair.rules() == before
    assert "nothing to do" in pair.done("cleanup", "--yes")


def test_the_commands_do_the_same(pair: Pair) -> None:
    write_rules(pair.path)
    commands = pair.done("tune", "br0", "--no-track-dns", "--dry-run")
    assert not pair.untracked()
    pair.done("tune", "br0", "--no-track-dns")
    by_plan = pair.rules()
    pair.done("undo")
    pair.host.run(["sh", "-euc", commands])
    assert pair.rules() == by_plan


@pytest.mark.parametrize(
    "rule",
    ["ct state established accept", "tcp dport 80 redirect to :8080", "meta mark set ct mark", "counter"],
)
def test_other_rules_are_a_reason_to_leave_it(pair: Pair, rule: str) -> None:
    write_rules(pair.path)
    pair.host.run("nft add table ip own", "b")
    pair.host.run(["nft", "add chain ip own out { type nat hook output priority 0; }"], "b")
    pair.host.run(["nft", f"add rule ip own out {rule}"], "b")
    before = pair.rules()
    refused = pair.vnet("tune", "br0", "--no-track-dns")
    assert refused.returncode
    told = refused.stderr + refused.stdout
    assert f"{pair.host.full('b')} has firewall rules of its own" in told and rule in told
    assert pair.rules() == before


def test_a_container_that_has_ended_does_not_keep_its_undo_from_the_rest(pair: Pair) -> None:
    write_rules(pair.path)
    pair.done("tune", "br0", "--no-track-dns", "--br-netfilter", "off")
    assert pair.untracked()
    pair.close()
    pair.host.run(f"ip netns del {pair.host.full('b')}")
    pair.done("undo")
    assert pair.host.run("sysctl -n net.bridge.bridge-nf-call-iptables").strip() == "1"


def test_nothing_is_shown_as_wrong(pair: Pair) -> None:
    write_rules(pair.path)
    inode = pair.host.inode_of("b")

    def shown() -> list[str]:
        """What is wrong with b, or could not be read of it, and what its rules translate."""
        told = json.loads(pair.done("show", "--json"))
        wrong = [json.dumps(one) for one in (*told["findings"], *told["problems"])]
        about = [one for one in wrong if str(inode) in one or pair.host.full("b") in one]
        return about + [one["name"] for one in told["nat"] if one["ns"] == inode]

    before = shown()
    pair.done("tune", "br0", "--no-track-dns")
    assert before and shown() == before
