"""`tune --no-track-dns`: packets bypass conntrack, Docker's DNS works as before."""

from __future__ import annotations

import json
import re
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from core.apply.run import apply
from core.netlink.netns import entered
from core.operations import NetnsTarget, SetDockerDns, SetRules
from core.plan import untracked
from tests.support import dns
from tests.support.docker_dns import ADDRESS, TCP, UDP, write_rules
from tests.support.fastpath import Talk
from tests.support.host import ThrowawayHost
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.root
A, B = "10.9.0.2", "10.9.0.3"
OTHER_TCP, OTHER_UDP = 41526, 49219


class Pair:
    """Hold bridge br0 with containers a and b.

    b has Docker's rules and answers as its resolver does.
    """

    def __init__(self, host: ThrowawayHost, folder: Path) -> None:
        self.host, self._folder = host, folder
        host.run("ip link add br0 type bridge")
        host.run("ip addr add 10.9.0.1/24 dev br0")
        host.run("ip link set br0 up")
        for name, address in (("a", A), ("b", B)):
            host.container(name, "br0", f"{address}/24", "10.9.0.1")
        self._resolver = dns.Server(self.path, ADDRESS, UDP, TCP)
        write_rules(self.path)

    @property
    def path(self) -> str:
        return f"/run/netns/{self.host.full('b')}"

    def vnet(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.host.vnet(*words, VNET_STATE=str(self._folder))

    def done(self, *words: str) -> str:
        ended = self.vnet(*words)
        assert ended.returncode == 0, ended.stderr + ended.stdout
        return ended.stdout

    def refused(self, *words: str) -> str:
        ended = self.vnet(*words)
        assert ended.returncode
        return ended.stderr + ended.stdout

    def rules(self) -> tuple[Any, str]:
        """Return b's rules from nft and iptables-save, without counters and numbers."""
        found = self.host.json("nft -j list ruleset", "b")["nftables"]
        saved = re.sub(r"\[\d+:\d+\]", "", self.host.run("iptables-nft-save", "b")).splitlines()
        lines = [line for line in saved if not line.startswith("#")]
        return [_uncounted(one) for one in found if "metainfo" not in one], "\n".join(lines)

    def tables(self) -> list[str]:
        return self.host.run("nft list tables", "b").splitlines()

    def entries(self) -> list[str]:
        return self.host.run("conntrack -L", "b").splitlines()

    def resolve(self) -> None:
        """Ask by UDP and TCP, from each of b's addresses."""
        for source in ("", "127.0.0.1", ADDRESS, B):
            for tcp in (False, True):
                answer = dns.ask(self.path, ADDRESS, "shop.example", source=source, tcp=tcp)
                assert len(answer) > len(dns.TEXT), (source, tcp)

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


TUNE = ("tune", "br0", "--no-track-dns")
DOCKERS, OURS = "table ip nat", "table netdev vnet_untracked"


def test_nothing_is_tracked_and_names_are_resolved(pair: Pair) -> None:
    before = pair.rules()
    pair.talk()
    pair.resolve()
    assert pair.entries()
    output = json.loads(pair.done(*TUNE, "--json"))
    assert any("replace Docker's DNS rules" in one for one in output["warnings"])
    assert pair.tables() == [OURS]
    assert pair.entries() == []
    pair.talk()
    pair.resolve()
    assert pair.entries() == []
    # Repeated, it changes nothing: vnet's rules are recognized.
    assert "already have these settings" in pair.refused(*TUNE)
    pair.done("undo")
    assert pair.rules() == before
    pair.talk()
    pair.resolve()
    assert pair.entries()


def test_checksums_are_right_where_the_sender_made_them(pair: Pair) -> None:
    pair.done(*TUNE)
    assert dns.ask(pair.path, ADDRESS, "shop.example", checksum=False)
    with entered(pair.path):
        sending = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
        hearing = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sending, hearing:
        hearing.settimeout(PATIENCE)
        hearing.bind(("127.0.0.1", 0))
        source, asked = hearing.getsockname()[1], dns.question("shop.example")
        header = struct.pack("!4H", source, dns.PORT, 8 + len(asked), 0)
        pseudo = (
            socket.inet_aton("127.0.0.1") + socket.inet_aton(ADDRESS) + struct.pack("!HH", 17, 8 + len(asked))
        )
        header = header[:6] + struct.pack("!H", _checksum(pseudo + header + asked))
        sending.bind(("127.0.0.1", 0))
        sending.sendto(header + asked, (ADDRESS, 0))
        answer, sender = hearing.recvfrom(4096)
        assert sender == (ADDRESS, dns.PORT) and len(answer) > len(dns.TEXT)


def _checksum(data: bytes) -> int:
    words = struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2))
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


@contextmanager
def asking(pair: Pair) -> Iterator[list[str]]:
    """Send DNS queries continuously, and collect the failed ones."""
    failed: list[str] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                dns.ask(pair.path, ADDRESS, "shop.example", patience=2)
            except OSError as error:
                failed.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield failed
    finally:
        over.set()
        thread.join()


def test_names_are_resolved_during_changes(pair: Pair) -> None:
    switches = 8
    with asking(pair) as failed:
        for _ in range(switches // 2):
            pair.done(*TUNE)
            pair.done("undo")
    assert len(failed) <= switches, failed


@pytest.mark.parametrize(
    ("backend", "why"), [("iptables-legacy", "rules of iptables-legacy"), ("nft", "other firewall rules")]
)
def test_other_forms_of_dockers_rules_stay(pair: Pair, backend: str, why: str) -> None:
    pair.host.run("nft delete table ip nat", "b")
    write_rules(pair.path, backend)
    before = pair.rules()
    assert why in pair.refused(*TUNE)
    assert pair.rules() == before


def test_turning_it_off_and_undo(pair: Pair) -> None:
    before = pair.rules()
    pair.done(*TUNE, "--only", pair.host.full("b"))
    on = pair.rules()
    pair.done(*TUNE, "off")
    assert pair.rules() == before
    pair.done("undo")
    assert pair.rules() == on


def test_cleanup_removes_it(pair: Pair) -> None:
    before = pair.rules()
    pair.done(*TUNE)
    pair.done("cleanup", "--yes")
    assert pair.rules() == before
    assert "nothing to do" in pair.done("cleanup", "--yes")


def test_the_printed_commands_do_the_same(pair: Pair) -> None:
    before = pair.rules()
    commands = pair.done(*TUNE, "--dry-run")
    assert pair.rules() == before
    pair.done(*TUNE)
    by_plan = pair.rules()
    off = pair.done(*TUNE, "off", "--dry-run")
    pair.done("undo")
    pair.host.run(["sh", "-euc", commands])
    assert pair.rules() == by_plan
    pair.host.run(["sh", "-euc", off])
    assert pair.rules() == before


def test_docker_writes_its_rules_again(pair: Pair) -> None:
    """Write rules for a resolver at other ports, as a restarted dockerd does."""
    pair.done(*TUNE)
    pair.close()
    pair._resolver = dns.Server(pair.path, ADDRESS, OTHER_UDP, OTHER_TCP)
    write_rules(pair.path, tcp=OTHER_TCP, udp=OTHER_UDP)
    pair.resolve()
    pair.done(*TUNE)
    assert pair.tables() == [OURS]
    pair.resolve()
    pair.done("undo")
    assert sorted(pair.tables()) == [DOCKERS, OURS]
    pair.resolve()
    pair.done("undo")
    assert pair.tables() == [DOCKERS]
    pair.resolve()


def test_off_keeps_rules_that_docker_wrote_again(pair: Pair) -> None:
    before = pair.rules()
    pair.done(*TUNE)
    write_rules(pair.path)
    pair.done(*TUNE, "off")
    assert pair.rules() == before


def test_rules_that_changed_meanwhile_stay(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Rules changed after they were read: vnet's table, added first, is removed."""
    monkeypatch.setenv("VNET_STATE", str(tmp_path))
    before = pair.rules()
    ports = untracked.ResolverPorts(str(OTHER_TCP), str(OTHER_UDP))
    place = NetnsTarget(pair.host.full("b"), inode=pair.host.inode_of("b"))
    steps = (
        SetRules(untracked.rules(ports), untracked.OFF, place),
        SetDockerDns(untracked.saved(ports), False, place),
    )
    outcome = apply("tune", steps)
    assert outcome.end == "undone" and "has changed" in outcome.errors[0]
    assert pair.rules() == before
    pair.resolve()


@pytest.mark.parametrize(
    "rule",
    ["ct state established accept", "tcp dport 80 redirect to :8080", "meta mark set ct mark", "counter"],
)
def test_containers_with_other_rules_are_left_alone(pair: Pair, rule: str) -> None:
    pair.host.run("nft add table ip own", "b")
    pair.host.run(["nft", "add chain ip own out { type nat hook output priority 0; }"], "b")
    pair.host.run(["nft", f"add rule ip own out {rule}"], "b")
    before = pair.rules()
    output = pair.refused(*TUNE)
    assert f"{pair.host.full('b')} has other firewall rules" in output and rule in output
    assert pair.rules() == before


def test_an_undo_skips_ended_containers(pair: Pair) -> None:
    pair.done(*TUNE, "--br-netfilter", "off")
    assert pair.tables() == [OURS]
    pair.close()
    pair.host.run(f"ip netns del {pair.host.full('b')}")
    pair.done("undo")
    assert pair.host.run("sysctl -n net.bridge.bridge-nf-call-iptables").strip() == "1"


def test_there_are_no_findings(pair: Pair) -> None:
    inode = pair.host.inode_of("b")

    def shown() -> list[str]:
        """Return findings and problems of b."""
        output = json.loads(pair.done("show", "--json"))
        wrong = [json.dumps(one) for one in (*output["findings"], *output["problems"])]
        assert bool([one for one in output["nat"] if one["ns"] == inode]) is (DOCKERS in pair.tables())
        return [one for one in wrong if str(inode) in one or pair.host.full("b") in one]

    before = shown()
    pair.done(*TUNE)
    assert shown() == before
