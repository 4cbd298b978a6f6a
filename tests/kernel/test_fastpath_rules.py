"""The firewall stays in charge: any tool's change applies from the next packet on."""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import closing

import pytest

from bpf.connections import GENERATIONS
from core.netlink.netns import entered
from tests.support.fastpath import FastPath, Guard, Talk, leftovers, marked, two_containers_and_an_uplink
from tests.support.host import ThrowawayHost
from tests.support.repeated import NFT, Repeated
from tests.support.waiting import eventually

pytestmark = pytest.mark.root


@pytest.fixture
def bridge_host(host: ThrowawayHost) -> Iterator[ThrowawayHost]:
    two_containers_and_an_uplink(host)
    host.run("nft add table inet own")
    host.run(["nft", "add chain inet own forward { type filter hook forward priority 0; }"])
    with Guard(host, "world", "eth0"):
        yield host
        assert eventually(lambda: not leftovers(host)), leftovers(host)


@pytest.fixture
def fast(bridge_host: ThrowawayHost) -> Iterator[FastPath]:
    with FastPath(bridge_host, "br0") as fast:
        yield fast


@pytest.fixture
def out(bridge_host: ThrowawayHost, fast: FastPath) -> Iterator[Talk]:
    with Talk(bridge_host, "a", "world", "192.0.2.2") as talk:
        assert eventually(lambda: fast.forwards(talk))
        yield talk


def _generation(fast: FastPath) -> int:
    return int(fast.status()["generation"])


DROPS = {
    "nft": ("nft insert rule inet own forward ip saddr 10.9.0.2 drop", "nft flush chain inet own forward"),
    "nft by port": (
        "nft insert rule inet own forward tcp dport 7000 drop", "nft flush chain inet own forward",
    ),
    "nft one way": (
        "nft insert rule inet own forward ip daddr 10.9.0.2 drop", "nft flush chain inet own forward",
    ),
    "iptables-nft": ("iptables -I FORWARD -s 10.9.0.2 -j DROP", "iptables -D FORWARD -s 10.9.0.2 -j DROP"),
    "iptables-legacy": (
        "iptables-legacy -I FORWARD -s 10.9.0.2 -j DROP", "iptables-legacy -D FORWARD -s 10.9.0.2 -j DROP",
    ),
}  # fmt: skip


@pytest.mark.parametrize("tool", DROPS)
def test_a_new_drop_rule_stops_a_flow_until_it_is_removed(
    bridge_host: ThrowawayHost, fast: FastPath, out: Talk, tool: str
) -> None:
    put, take = DROPS[tool]
    bridge_host.run(put)
    assert eventually(lambda: not out.passes()) or tool == "nft one way"
    if tool == "nft one way":
        out.server.send(b"back")
        out.client.settimeout(0.4)
        with pytest.raises(TimeoutError):
            while out.client.recv(1000):
                pass
    before = fast.count("FAST", "up0")
    out.server.send(b"y")
    bridge_host.run(take)
    assert eventually(out.passes)
    assert eventually(lambda: out.passes() and fast.count("FAST", "up0") > before)


def test_rules_unrelated_to_a_flow_lose_no_packet(
    bridge_host: ThrowawayHost, fast: FastPath, out: Talk
) -> None:
    for number in range(1, 6):
        bridge_host.run(f"nft add rule inet own forward ip saddr 198.51.100.{number} drop")
        out.say(20)
    assert eventually(lambda: fast.forwards(out))


ELSEWHERE = (
    "nft add rule inet own forward iifname virbr0 limit rate 1/second drop",
    "nft add rule inet own forward oifname virbr0 limit rate 1/second drop",
    "nft add rule inet own forward iifname tun* meta mark set 1",
    "nft add rule inet own forward meta l4proto icmp limit rate 1/second drop",
    "nft add rule inet own forward ip protocol icmp limit rate 1/second drop",
    "iptables -A FORWARD -o virbr0 -p udp -m limit --limit 1/s -j DROP",
    "iptables -A FORWARD -i tailscale0 -m statistic --mode random --probability 0.5 -j DROP",
    "iptables -A FORWARD -p icmp -m limit --limit 1/s -j DROP",
    "iptables-legacy -A FORWARD -i tun+ -m limit --limit 1/s -j DROP",
    "iptables-legacy -A FORWARD -p icmp -m limit --limit 1/s -j DROP",
)


def test_rules_that_no_accelerated_packet_reaches_do_not_pause(
    bridge_host: ThrowawayHost, fast: FastPath, out: Talk
) -> None:
    for rule in ELSEWHERE:
        bridge_host.run(rule)
    assert eventually(lambda: fast.forwards(out))
    assert fast.status()["reasons"] == []
    bridge_host.run("iptables-legacy -F FORWARD")
    bridge_host.run("ip link set up0 down")
    bridge_host.run("ip link set up0 name virbr0")
    bridge_host.run("ip link set virbr0 up")
    assert eventually(lambda: fast.is_on("paused"))
    assert all(": limit" in reason for reason in fast.status()["reasons"])


def test_changed_elements_of_other_sets_do_not_pause(
    bridge_host: ThrowawayHost, fast: FastPath, out: Talk
) -> None:
    bridge_host.run(["nft", "add set inet own seen { type ipv4_addr; }"])
    bridge_host.run(["nft", "add set inet own blocked { type ipv4_addr; }"])
    bridge_host.run("nft add rule inet own forward ip saddr @blocked drop")
    assert eventually(lambda: fast.forwards(out))
    for name in ("seen", "blocked"):
        before, paused = fast.count("FAST"), fast.count("PAUSED")
        for number in range(1, 100):
            bridge_host.run(f"nft add element inet own {name} {{ 198.51.100.{number} }}")
            out.say(5)
        assert fast.count("PAUSED") == paused
        assert fast.count("FAST") - before > 500


MANY = 12_000


def _write_many(bridge_host: ThrowawayHost) -> None:
    """Write so many rules that reading them takes longer than a change."""
    many = (f"add rule inet own many ip saddr 198.51.{n >> 8}.{n & 255} drop" for n in range(MANY))
    lines = "\n".join(("add chain inet own many", "add rule inet own forward jump many", *many))
    subprocess.run(
        ["nsenter", f"--net=/run/netns/{bridge_host.name}", "nft", "-f", "-"],
        input=lines,
        text=True,
        check=True,
    )


ELEMENTS = {
    "set": ("add element inet own blocked {{ {} }}", "delete element inet own blocked {{ {} }}"),
    "map": ("add element inet own verdicts {{ {} : drop }}", "delete element inet own verdicts {{ {} }}"),
}


@pytest.mark.parametrize("kind", ELEMENTS)
def test_constantly_changing_elements_do_not_pause_it_with_many_rules(
    bridge_host: ThrowawayHost, fast: FastPath, out: Talk, kind: str
) -> None:
    bridge_host.run(["nft", "add set inet own blocked { type ipv4_addr; }"])
    bridge_host.run(["nft", "add map inet own verdicts { type ipv4_addr : verdict; }"])
    bridge_host.run("nft add rule inet own forward ip saddr @blocked drop")
    bridge_host.run("nft add rule inet own forward ip saddr vmap @verdicts")
    _write_many(bridge_host)
    assert eventually(lambda: fast.forwards(out))
    lines = [each.format("198.18.0.9") for each in ELEMENTS[kind]]
    before, paused = fast.count("FAST", "v-a"), fast.count("PAUSED")
    said = 0
    with Repeated(bridge_host, "host", lines, 10, NFT) as going_on:
        while going_on.done < 30:
            out.say()
            said += 1
    assert fast.count("PAUSED") == paused
    assert fast.count("FAST", "v-a") - before >= 0.75 * said
    bridge_host.run(["nft", ELEMENTS[kind][0].format("10.9.0.2")])
    assert eventually(lambda: not out.passes()), "what is looked up counts at once"


def test_it_forwards_between_changes_of_a_few_of_many_rules(
    bridge_host: ThrowawayHost, fast: FastPath, out: Talk
) -> None:
    """Only changed chains are read: each change pauses, none reads all rules."""
    bridge_host.run("nft add chain inet own few")
    bridge_host.run("nft add rule inet own forward jump few")
    _write_many(bridge_host)
    assert eventually(lambda: fast.forwards(out))
    lines = ("add rule inet own few ip saddr 198.18.0.9 drop", "flush chain inet own few")
    before = fast.count("FAST", "v-a")
    with Repeated(bridge_host, "host", lines, 10, NFT) as going_on:
        while going_on.done < 50 or fast.count("FAST", "v-a") < before + 20:
            out.say(5)
            assert going_on.done < 500, "paused for good"
    bridge_host.run("nft add rule inet own few ip saddr 10.9.0.2 drop")
    assert eventually(lambda: not out.passes()), "and each counts at once"


def test_with_very_many_rules_it_resumes_after_a_change(
    bridge_host: ThrowawayHost, fast: FastPath, out: Talk
) -> None:
    """Reading them takes longer than the lease."""
    _write_many(bridge_host)
    assert eventually(lambda: fast.forwards(out))
    bridge_host.run("nft add rule inet own forward ip saddr 198.51.100.1 drop")
    assert eventually(lambda: fast.forwards(out))


def test_strict_pauses_on_rules_about_invalid_packets(
    bridge_host: ThrowawayHost, fast: FastPath, out: Talk
) -> None:
    bridge_host.run("nft add rule inet own forward ct state established,related accept")
    bridge_host.run("nft add rule inet own forward ct state invalid drop")
    assert eventually(lambda: fast.forwards(out))
    fast.ask("targets", targets=["br0"], strict=True)
    assert eventually(lambda: fast.is_on("paused"))
    (reason,) = fast.status()["reasons"]
    assert reason.startswith("inet own forward, handle ") and "invalid" in reason
    before = fast.count("FAST")
    out.say(10)
    assert fast.count("FAST") == before
    bridge_host.run("nft flush chain inet own forward")
    assert eventually(lambda: fast.forwards(out)) and fast.status()["strict"]
    bridge_host.run("nft add rule inet own forward ct state invalid drop")
    assert eventually(lambda: fast.is_on("paused"))
    fast.ask("targets", targets=["br0"], strict=False)
    assert eventually(lambda: fast.forwards(out))


def test_a_rule_that_matches_single_packets_pauses_it_and_is_named(
    bridge_host: ThrowawayHost, fast: FastPath, out: Talk
) -> None:
    bridge_host.run("nft add rule inet own forward limit rate 1000/second burst 1000 packets accept")
    assert eventually(lambda: fast.is_on("paused"))
    (reason,) = fast.status()["reasons"]
    assert reason.startswith("inet own forward, handle ") and reason.endswith(": limit")
    before = fast.count("FAST")
    out.say(10)
    assert fast.count("FAST") == before and fast.count("PAUSED") >= 10
    bridge_host.run("nft flush chain inet own forward")
    assert eventually(lambda: fast.forwards(out))


def test_an_icmp_error_of_a_connection_does_not_admit_its_data(
    bridge_host: ThrowawayHost, fast: FastPath
) -> None:
    with Talk(bridge_host, "a", "world", "192.0.2.2", udp=True) as talk:
        assert eventually(lambda: fast.forwards(talk))
        before = _generation(fast)
        bridge_host.run("nft insert rule inet own forward iifname up0 meta l4proto udp drop")
        assert eventually(lambda: _generation(fast) not in (0, before))
        talk.server.close()
        assert all(eventually(lambda: _is_refused(talk)) for _ in range(5))
        with entered(f"/run/netns/{bridge_host.full('world')}"):
            late = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with closing(late):
            late.bind(("0.0.0.0", 7000))
            for _ in range(20):
                late.sendto(b"late", talk.seen_from)
            talk.client.settimeout(0.4)
            with pytest.raises(TimeoutError):
                talk.client.recv(1000)


def _is_refused(talk: Talk) -> bool:
    """Return whether an ICMP error came back."""
    try:
        talk.client.send(b"no one listens")
    except ConnectionRefusedError:
        return True
    return False


def test_other_programs_bits_of_the_mark_are_restored(
    bridge_host: ThrowawayHost, fast: FastPath, out: Talk
) -> None:
    assert marked(bridge_host)
    bridge_host.run("nft add rule inet own forward ct mark 7 drop")
    assert eventually(lambda: fast.is_on("paused"))
    assert "0xff000000 of the ct mark are used" in fast.status()["reasons"][0]
    assert "vnet_fastpath" not in bridge_host.run("nft list tables") and not marked(bridge_host)
    out.say(5)
    bridge_host.run("nft flush chain inet own forward")
    bridge_host.run("nft add rule inet own forward ct mark and 0xff == 7 drop")
    assert eventually(lambda: fast.forwards(out))


def test_without_rules_between_ports_frames_are_forwarded_by_mac(bridge_host: ThrowawayHost) -> None:
    """With br_netfilter off conntrack doesn't see them; a bridge rule ends that."""
    bridge_host.run("sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0")
    with FastPath(bridge_host, "br0") as fast, Talk(bridge_host, "a", "b", "10.9.0.3") as talk:
        assert eventually(lambda: fast.forwards(talk))
        assert not marked(bridge_host)
        bridge_host.run("nft add table bridge own")
        bridge_host.run(["nft", "add chain bridge own forward { type filter hook forward priority 0; }"])
        bridge_host.run("nft add rule bridge own forward ip saddr 10.9.0.2 drop")
        assert eventually(lambda: not talk.passes())
        bridge_host.run("nft delete table bridge own")
        assert eventually(talk.passes)


def test_flushing_all_rules_leaves_our_table_and_the_traffic(
    bridge_host: ThrowawayHost, fast: FastPath
) -> None:
    with Talk(bridge_host, "a", "b", "10.9.0.3") as talk:
        bridge_host.run("nft flush ruleset")
        talk.say(50)
        assert "inet vnet_fastpath" in bridge_host.run("nft list tables")
        assert eventually(lambda: fast.forwards(talk))


def test_deleted_connections_become_fast_again(bridge_host: ThrowawayHost, fast: FastPath) -> None:
    with Talk(bridge_host, "a", "b", "10.9.0.3") as talk:
        assert eventually(lambda: fast.forwards(talk))
        bridge_host.run("conntrack -D -s 10.9.0.2", check=False)
        talk.say(20)
        bridge_host.run("conntrack -F", check=False)
        talk.say(20)
        assert eventually(lambda: fast.forwards(talk))


def _unacknowledged(end: socket.socket) -> int:
    """Return the segments in flight (struct tcp_info, tcpi_unacked)."""
    (segments,) = struct.unpack_from("=I", end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32), 24)
    return int(segments)


def test_a_generation_is_not_reused_while_old_marks_have_it(
    bridge_host: ThrowawayHost, fast: FastPath, out: Talk
) -> None:
    """An idle connection of the first generation must pass the rules 15 changes later."""
    assert eventually(lambda: _unacknowledged(out.server) == 0)  # no late acknowledgement passes other rules
    assert len(marked(bridge_host)) == 1
    passed = 0  # generations; a daemon that was late begins one of its own accord
    while passed < GENERATIONS:
        before = fast.status()["generation"]
        bridge_host.run("nft add rule inet own forward ip saddr 198.51.100.1 accept")
        now = eventually(lambda: _generation(fast) not in (0, before) and _generation(fast))  # noqa: B023
        passed += (now - before) % GENERATIONS
    assert not marked(bridge_host)
    out.say(5)
    assert marked(bridge_host)
    assert eventually(lambda: fast.forwards(out))
