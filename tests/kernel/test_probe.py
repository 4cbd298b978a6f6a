"""Probes with real packets: their outcome, the rules that they passed, where they were seen."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bpf.hostwatch import RuleWatch
from bpf.ruleset import read_rules
from core.collect.firewall import read_firewall
from core.collect.nft_netlink import read_tables
from core.model import Namespace
from core.model.probe import DropEvent, PacketTuple, ProbeRequest, ProbeResult, rule_of
from core.netlink.netns import entered
from core.netlink.nfnetlink import Transactions
from core.probe.nft_trace import NftTrace
from core.probe.packets import Marker
from core.probe.run import ProbeError, probe
from tests.support.host import ThrowawayHost
from tests.support.needs import AS_NOBODY
from tests.support.router import router
from tests.support.waiting import scaled, wait_until

pytestmark = pytest.mark.root

_ROOT = Path(__file__).parents[2]
_ANSWERS, _TIMEOUT = scaled(20.0), scaled(0.6)  # seconds: where an answer comes, and where none can come
A, B, A6, B6 = "10.41.1.2", "10.41.2.2", "fd41:1::2", "fd41:2::2"


def space(host: ThrowawayHost, short: str) -> Namespace:
    name = host.full(short)
    return Namespace(host.inode_of(short), names=(name,), entry=f"/run/netns/{name}")


def request(host: ThrowawayHost, target: str = B, protocol: Any = "tcp", **more: Any) -> ProbeRequest:
    """Return a request from a to b through the host; by TCP and UDP to port 80."""
    usual = {
        "port": 0 if protocol == "icmp" else 80, "timeout": _ANSWERS,
        "through": (space(host, "host"),), "destination": space(host, "b"),
    }  # fmt: skip
    return ProbeRequest(space(host, "a"), target, protocol, **(usual | more))


@pytest.fixture(scope="module")
def made() -> Iterator[ThrowawayHost]:
    """Yield a router with two bridges, and container a on one, b on the other."""
    with router(41) as host:
        host.run("sysctl -qw net.ipv4.icmp_ratelimit=0")
        yield host


@pytest.fixture
def routed(made: ThrowawayHost) -> Iterator[ThrowawayHost]:
    """Yield the router, whose rules and conntrack entries are removed after the test."""
    try:
        yield made
    finally:
        for name in ("host", "a", "b"):
            made.run("nft flush ruleset", inside=name)
        made.run("conntrack -F", check=False)
        assert "vnet-trace" not in made.run("nft list tables")


def load(host: ThrowawayHost, rules: str, inside: str = "host") -> None:
    """Load rules; nft wants each closing brace at the end of a line."""
    host.run(["nft", rules.replace(" }", " }\n")], inside=inside)


def handle_of(host: ThrowawayHost, comment: str, inside: str = "host") -> int:
    """Return the handle of the rule with this comment, as nft lists it."""
    listed = host.json("nft -a -j list ruleset", inside)["nftables"]
    (found,) = [one["rule"] for one in listed if one.get("rule", {}).get("comment") == comment]
    return int(found["handle"])


@contextmanager
def listening(host: ThrowawayHost, inside: str, kind: int, port: int, family: int = socket.AF_INET) -> Any:
    """Listen in a namespace; by UDP answer each datagram with `pong`."""
    with entered(f"/run/netns/{host.full(inside)}"):
        server = socket.socket(family, kind)
    with server:
        server.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
        if kind == socket.SOCK_STREAM:
            server.listen()
        else:
            threading.Thread(target=_echo, args=(server,), daemon=True).start()
        yield server


def _echo(server: socket.socket) -> None:
    try:
        data, peer = server.recvfrom(100)
        server.sendto(data + b"pong", peer)
    except OSError:
        return


def links_of(host: ThrowawayHost, result: ProbeResult, role: str = "request") -> list[tuple[str, str]]:
    """Return (link, direction) of each sighting, in order, with names from ip(8)."""
    names = {}
    for short in ("a", "host", "b"):
        for one in host.json("ip -j link", short):
            names[host.inode_of(short), one["ifindex"]] = f"{short}:{one['ifname']}"
    return [(names[one.link], one.direction) for one in result.sightings if one.role == role]


PATH = [
    ("a:eth0", "out"), ("host:v-a", "in"), ("host:br1", "in"), ("host:br2", "out"), ("host:v-b", "out"),
    ("b:eth0", "in"),
]  # fmt: skip


@pytest.mark.parametrize(("target", "family"), [(B, socket.AF_INET), (B6, socket.AF_INET6)])
def test_tcp_answered(routed: ThrowawayHost, target: str, family: int) -> None:
    with listening(routed, "b", socket.SOCK_STREAM, 80, family):
        result = probe(request(routed, target))
    assert (result.outcome, result.sender, result.arrived) == ("answered", target, True)
    assert result.rtt is not None and result.rtt > 0 and not result.problems
    assert links_of(routed, result) == PATH
    back = [(link, {"in": "out", "out": "in"}[way]) for link, way in reversed(PATH)]
    assert links_of(routed, result, "answer") == back
    assert [one.flags for one in result.sightings if one.role == "answer"] == ["SYN, ACK"] * 6
    first, last = result.sightings[0], result.sightings[5]
    macs = {name: routed.json("ip -j link show eth0", name)[0]["address"] for name in ("a", "b")}
    assert (first.ttl, last.ttl) == (64, 63) and first.at <= last.at
    assert (first.src_mac, last.dst_mac) == (macs["a"], macs["b"])


@pytest.mark.parametrize(("target", "family"), [(B, socket.AF_INET), (B6, socket.AF_INET6)])
def test_udp_answered(routed: ThrowawayHost, target: str, family: int) -> None:
    with listening(routed, "b", socket.SOCK_DGRAM, 80, family):
        result = probe(request(routed, target, "udp"))
    assert (result.outcome, result.sender, result.arrived) == ("answered", target, True)
    assert links_of(routed, result) == PATH
    assert len(links_of(routed, result, "answer")) == len(PATH)


@pytest.mark.parametrize("target", [B, B6])
def test_icmp_answered(routed: ThrowawayHost, target: str) -> None:
    result = probe(request(routed, target, "icmp"))
    assert (result.outcome, result.sender, result.arrived) == ("answered", target, True)
    assert links_of(routed, result) == PATH
    assert {one.info for one in result.sightings} == {"echo request", "echo reply"}


def test_dns_answered(routed: ThrowawayHost) -> None:
    seen: list[bytes] = []
    with entered(f"/run/netns/{routed.full('b')}"):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with server:
        server.bind(("0.0.0.0", 53))

        def serve() -> None:
            data, peer = server.recvfrom(600)
            seen.append(data)
            server.sendto(data[:2] + b"\x81\x80" + data[4:], peer)

        thread = threading.Thread(target=serve)
        thread.start()
        result = probe(request(routed, B, "udp", port=53))
        thread.join()
    from scapy.layers.dns import DNS

    assert result.outcome == "answered"
    query = DNS(seen[0])
    assert query.rd == 1 and query.qd[0].qname == b"." and len(bytes(query)) == len(seen[0])


@pytest.mark.parametrize(("protocol", "kind"), [("tcp", -1), ("udp", 3)])
@pytest.mark.parametrize("target", [B, B6])
def test_refused(routed: ThrowawayHost, protocol: str, kind: int, target: str) -> None:
    result = probe(request(routed, target, protocol))
    assert (result.outcome, result.sender, result.arrived) == ("refused", target, True)
    if protocol == "tcp":
        answers = [one for one in result.sightings if one.role == "answer"]
        assert result.error is None and {one.flags for one in answers} == {"RST, ACK"}
    else:
        assert result.error and result.error.name == "port unreachable"
        assert result.error.type == (kind if target == B else 1)


_FORWARD = """table inet f {
 chain sub { tcp dport 80 counter drop comment "the one" ; }
 chain pre { type filter hook prerouting priority raw ; counter ; }
 chain fw { type filter hook forward priority 0 ; meta l4proto udp accept ; counter ; jump sub ; }
}"""


@pytest.mark.parametrize("target", [B, B6])
def test_dropped_by_a_rule(routed: ThrowawayHost, target: str) -> None:
    load(routed, _FORWARD)
    result = probe(request(routed, target))
    assert (result.outcome, result.arrived, result.rtt) == ("no answer", False, None)
    step = result.dropped_by
    assert step is not None and (step.family, step.table, step.chain) == ("inet", "f", "sub")
    assert step.handle == handle_of(routed, "the one") and step.position == 1 and step.role == "request"
    assert step.ns == routed.inode_of("host")
    assert [one.verdict for one in result.steps if one.chain == "fw"] == ["continue", "jump"]
    rule = rule_of(step, read_firewall(space(routed, "host")))
    assert rule is not None and rule.comment == "the one" and rule.verdict == "drop"
    assert links_of(routed, result) == PATH[:3]


def test_dropped_by_a_policy(routed: ThrowawayHost) -> None:
    chain = "chain fw { type filter hook forward priority 0 ; policy drop ; tcp dport 1 accept ; }"
    load(routed, f"table ip f {{ {chain} }}")
    result = probe(request(routed))
    step = result.dropped_by
    assert step is not None and (step.kind, step.chain, step.handle) == ("policy", "fw", 0)
    assert rule_of(step, read_firewall(space(routed, "host"))) is None


def test_answer_dropped(routed: ThrowawayHost) -> None:
    chain = 'chain fw { type filter hook forward priority 0 ; tcp sport 80 drop comment "back" ; }'
    load(routed, f"table inet f {{ {chain} }}")
    with listening(routed, "b", socket.SOCK_STREAM, 80):
        result = probe(request(routed))
    assert (result.outcome, result.arrived) == ("no answer", True)
    assert result.dropped_by is not None and result.dropped_by.role == "answer"
    assert result.dropped_by.handle == handle_of(routed, "back")


@pytest.mark.parametrize("inside", ["a", "b"])
def test_dropped_in_a_container(routed: ThrowawayHost, inside: str) -> None:
    hook = "output" if inside == "a" else "input"
    rule = f'chain c {{ type filter hook {hook} priority 0 ; udp dport 80 drop comment "here" ; }}'
    load(routed, f"table inet f {{ {rule} }}", inside)
    result = probe(request(routed, B, "udp"))
    assert result.arrived is (inside == "b")
    assert result.dropped_by is not None and result.dropped_by.ns == routed.inode_of(inside)
    assert result.dropped_by.handle == handle_of(routed, "here", inside)
    if inside == "a":
        assert result.outcome == "unreachable" and result.error
        assert result.error.name == "dropped by a rule for sent packets"


@pytest.mark.parametrize(
    ("reject", "outcome", "name"),
    [
        ("reject with icmpx admin-prohibited", "unreachable", "administratively prohibited"),
        ("reject with icmpx host-unreachable", "unreachable", "unreachable"),
        ("reject with icmpx port-unreachable", "refused", "port unreachable"),
        ("reject with tcp reset", "refused", ""),
    ],
)
@pytest.mark.parametrize("target", [B, B6])
def test_rejected(routed: ThrowawayHost, reject: str, outcome: str, name: str, target: str) -> None:
    chain = f'chain fw {{ type filter hook forward priority 0 ; tcp dport 80 {reject} comment "no" ; }}'
    load(routed, f"table inet f {{ {chain} }}")
    result = probe(request(routed, target))
    assert (result.outcome, result.arrived) == (outcome, False)
    assert result.dropped_by is not None and result.dropped_by.handle == handle_of(routed, "no")
    if name:
        router = "10.41.1.1" if target == B else "fd41:1::1"
        assert result.error and result.error.name.endswith(name) and result.sender == router
        assert links_of(routed, result, "error")[-1] == ("a:eth0", "in")


def test_rule_of_iptables(routed: ThrowawayHost) -> None:
    for words in ("-A FORWARD -p udp -j ACCEPT", "-A FORWARD -p tcp --dport 80 -j DROP"):
        routed.run(f"iptables {words}")
    result = probe(request(routed))
    step = result.dropped_by
    assert step is not None and (step.family, step.table, step.chain) == ("ip", "filter", "FORWARD")
    rule = rule_of(step, read_firewall(space(routed, "host")))
    assert rule is not None and rule.backend == "iptables-nft" and rule.dport == "80"


def test_no_route(routed: ThrowawayHost) -> None:
    routed.run("ip route add unreachable 192.0.2.0/25", inside="a")
    routed.run("ip route add prohibit 192.0.2.128/25", inside="a")
    try:
        routed.run("ip route del default", inside="b")
        sent = replace(request(routed), namespace=space(routed, "b"), destination=space(routed, "a"))
        result = probe(replace(sent, target="192.0.2.1"))
        assert (result.outcome, result.arrived) == ("unreachable", False)
        assert result.error and result.error.name == "no route to the target" and not result.sightings
        for target, name in (("192.0.2.1", "no route, or an unreachable route"),
                             ("192.0.2.129", "prohibited by a route, or a broadcast address")):  # fmt: skip
            result = probe(request(routed, target))
            assert result.outcome == "unreachable" and result.error and result.error.name == name
    finally:
        routed.run("ip route add default via 10.41.2.1", inside="b")
        routed.run("ip route flush root 192.0.2.0/24", inside="a")


def test_no_route_on_the_way(routed: ThrowawayHost) -> None:
    result = probe(request(routed, "192.0.2.1"))
    assert (result.outcome, result.sender) == ("unreachable", "10.41.1.1")
    assert result.error and result.error.name == "network unreachable" and result.arrived is False


@pytest.mark.parametrize("target", ["10.41.2.77", "fd41:2::77"])
def test_neighbour_doesnt_answer(routed: ThrowawayHost, target: str) -> None:
    result = probe(request(routed, target, "icmp", timeout=_TIMEOUT))
    assert result.outcome == "no answer"
    (entry,) = result.neighbours
    bridge = routed.json("ip -j link show br2")[0]["ifindex"]
    assert (entry.ns, entry.ifindex, entry.address) == (routed.inode_of("host"), bridge, target)
    (listed,) = routed.json(f"ip -j neigh show {target} dev br2")
    assert entry.state in ("incomplete", "failed") and listed["state"][0].lower() in ("incomplete", "failed")


_DNAT = """table ip nat {
 chain pre { type nat hook prerouting priority dstnat ;
  ip daddr 10.41.1.1 tcp dport 8080 dnat to 10.41.2.2:80
  ip daddr 10.41.1.1 udp dport 8080 dnat to 10.41.2.2:80 ; }
 chain post { type nat hook postrouting priority srcnat ;
  oifname "br2" meta l4proto {tcp, udp} masquerade to :40000-40100 ; }
}"""


@pytest.mark.parametrize(("protocol", "kind"), [("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)])
def test_through_nat(routed: ThrowawayHost, protocol: str, kind: int) -> None:
    load(routed, _DNAT)
    with listening(routed, "b", kind, 80):
        result = probe(request(routed, "10.41.1.1", protocol, port=8080))
    assert (result.outcome, result.sender, result.arrived) == ("answered", "10.41.1.1", True)
    assert links_of(routed, result) == PATH
    before, after = result.sightings[0].addresses, result.sightings[5].addresses
    assert (before.src, before.dst, before.dport) == (A, "10.41.1.1", 8080)
    assert (after.src, after.dst, after.dport) == ("10.41.2.1", B, 80) and 40000 <= after.sport <= 40100
    assert len([one for one in result.sightings if one.role == "answer"]) == len(PATH)
    (tracked,) = [one for one in result.tracked if one.ns == routed.inode_of("host")]
    assert tracked.is_translated and tracked.original == before and tracked.reply == after.reverse
    listed = routed.run("conntrack -L")
    assert f"dport=8080 src=10.41.2.2 dst=10.41.2.1 sport=80 dport={after.sport}" in listed.replace("  ", " ")
    chains = {(one.table, one.chain, one.verdict) for one in result.steps if one.role == "request"}
    assert ("nat", "pre", "accept") in chains


def test_bridge_family(routed: ThrowawayHost) -> None:
    routed.container("c", "br1", "10.41.1.3/24")
    chain = 'chain fw { type filter hook forward priority 0 ; tcp dport 80 drop comment "l2" ; }'
    load(routed, f"table bridge f {{ {chain} }}")
    result = probe(replace(request(routed, "10.41.1.3"), destination=space(routed, "c")))
    step = result.dropped_by
    assert step is not None and (step.family, step.handle) == ("bridge", handle_of(routed, "l2"))
    assert (result.outcome, result.arrived) == ("no answer", False)


def test_from_the_host_to_itself(routed: ThrowawayHost) -> None:
    here = space(routed, "host")
    with listening(routed, "host", socket.SOCK_STREAM, 80):
        result = probe(replace(request(routed, "127.0.0.1"), namespace=here, destination=here))
    assert (result.outcome, result.arrived) == ("answered", True)
    assert [one.direction for one in result.sightings if one.role == "request"] == ["out", "in"]


def test_source_address(routed: ThrowawayHost) -> None:
    routed.run("ip addr add 10.41.1.9/24 dev eth0", inside="a")
    try:
        result = probe(request(routed, B, "icmp", source="10.41.1.9"))
        assert result.outcome == "answered" and {one.addresses.src for one in result.sightings} == {
            "10.41.1.9", B,
        }  # fmt: skip
        result = probe(request(routed, B, source="10.99.99.99"))
        assert result.error and result.error.name == "the source address isn't on this host"
    finally:
        routed.run("ip addr del 10.41.1.9/24 dev eth0", inside="a")


def test_link_local_address(routed: ThrowawayHost) -> None:
    (bridge,) = routed.json("ip -j -6 addr show dev br1")
    target = next(one["local"] for one in bridge["addr_info"] if one["scope"] == "link")
    result = probe(request(routed, f"{target}%eth0", "icmp", destination=space(routed, "host")))
    assert (result.outcome, result.sender, result.arrived) == ("answered", target, True)
    with pytest.raises(ProbeError, match="no such link"):
        probe(request(routed, f"{target}%eth9", "icmp"))


def test_other_packets_are_left_out(routed: ThrowawayHost) -> None:
    load(routed, _FORWARD.replace("drop", "accept"))
    with subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{routed.full('a')}", "ping", "-q", "-i", "0.002", B],
        stdout=subprocess.DEVNULL,
    ) as ping:
        before = _received(routed)
        wait_until(lambda: _received(routed) > before + 10, "the ping")
        result = probe(request(routed, B, "icmp"))
        ping.kill()
    assert len(result.sightings) == 2 * len(PATH)
    assert len([one for one in result.steps if one.kind == "policy" and one.chain == "fw"]) == 2


def _received(host: ThrowawayHost) -> int:
    return int(host.json("ip -j -s link show eth0", "a")[0]["stats64"]["rx"]["packets"])


def test_observer(routed: ThrowawayHost) -> None:
    seen: list[PacketTuple] = []

    @contextmanager
    def observe(addresses: PacketTuple) -> Iterator[Sequence[DropEvent]]:
        seen.append(addresses)
        found: list[DropEvent] = []
        yield found
        found.append(DropEvent(1.0, "NETFILTER_DROP", addresses=addresses))

    result = probe(request(routed, observer=observe))
    assert seen == [result.addresses] and [one.reason for one in result.drops] == ["NETFILTER_DROP"]


# ---- rough weather


def test_wrong_requests(routed: ThrowawayHost) -> None:
    for wrong in (
        {"target": "web1"}, {"target": "224.0.0.1"}, {"port": 0}, {"port": 65536}, {"source": "fd00::1"},
    ):  # fmt: skip
        with pytest.raises(ProbeError, match=r"^can't probe .*: .+\. Try: .+"):
            probe(replace(request(routed), **wrong))


def test_namespace_is_gone(host: ThrowawayHost, routed: ThrowawayHost) -> None:
    gone = Namespace(1, names=("gone",), entry="/run/netns/gone")
    with pytest.raises(ProbeError, match="namespace no longer exists"):
        probe(replace(request(routed), namespace=gone))
    result = probe(request(routed, B, "icmp", destination=gone))
    assert result.outcome == "answered" and result.arrived is None
    assert [one.why for one in result.problems] == ["it no longer exists"]


def test_namespace_ends_during_the_probe(host: ThrowawayHost) -> None:
    host.run("ip link add br1 type bridge")
    host.run("ip addr add 10.41.1.1/24 dev br1")
    host.run("ip link set br1 up")
    host.container("a", "br1", "10.41.1.2/24", "10.41.1.1")
    host.container("b", "br1", "10.41.1.3/24", "10.41.1.1")
    load(host, "table inet f { chain c { type filter hook input priority 0 ; drop ; } }", "b")
    removed: list[str] = []

    @contextmanager
    def remove(_: PacketTuple) -> Iterator[Sequence[DropEvent]]:
        for name in ("a", "b"):
            host.run(["ip", "netns", "del", host.full(name)])
            removed.append(name)
        yield ()

    result = probe(request(host, "10.41.1.3", observer=remove))
    assert removed == ["a", "b"] and result.outcome == "no answer"
    assert wait_until(lambda: len(host.json("ip -j link show type veth")) == 0)


def test_unprivileged(routed: ThrowawayHost) -> None:
    code = (
        "from core.model import Namespace\nfrom core.model.probe import ProbeRequest\n"
        "from core.probe.run import ProbeError, probe\n"
        f"namespace = Namespace({routed.inode_of('a')}, entry={space(routed, 'a').entry!r})\n"
        f"try: probe(ProbeRequest(namespace, '{B}'))\n"
        "except ProbeError as error: print(error)\n"
    )
    done = subprocess.run(
        [*AS_NOBODY, sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=_ROOT,
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
    )  # fmt: skip
    expected = f"can't probe {B}: needs CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_RAW. Try: run it as root\n"
    assert (done.stdout, done.stderr) == (expected, "")


def test_trace_fails(routed: ThrowawayHost, monkeypatch: pytest.MonkeyPatch) -> None:
    load(routed, _FORWARD)

    def fail(*_: object) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(Transactions, "commit", fail)
    monkeypatch.setenv("PATH", "")  # nft isn't needed
    result = probe(request(routed, timeout=_TIMEOUT))
    assert (result.outcome, result.steps) == ("no answer", ()) and len(result.sightings) >= 3
    assert [one.sentence for one in result.problems] == [
        "can't trace the firewall rules: Operation not supported. Try: run it as root"
    ]


def test_without_trace(routed: ThrowawayHost) -> None:
    load(routed, _FORWARD)
    result = probe(request(routed, trace=False, timeout=_TIMEOUT))
    assert result.steps == () and not result.problems and len(result.sightings) >= 3


@pytest.mark.needs("iptables-legacy")
def test_legacy_rules_are_named(routed: ThrowawayHost) -> None:
    routed.run("iptables-legacy -A FORWARD -j ACCEPT")
    try:
        result = probe(request(routed, B, "icmp"))
    finally:
        routed.run("iptables-legacy -F")
    assert [one.what for one in result.problems] == ["can't trace the rules of iptables-legacy"]


_HELD = """
import sys
from core.netlink.netns import entered
from core.model.probe import PacketTuple
from core.probe.nft_trace import NftTrace
from core.probe.packets import Marker
with entered(sys.argv[1]):
    trace = NftTrace(1, Marker(PacketTuple("tcp", "10.0.0.1", 1, "10.0.0.2", 2), 4, 6, bytes(4)), True)
print("ready", flush=True)
sys.stdin.read()
"""


def test_killed_process_leaves_no_table(routed: ThrowawayHost) -> None:
    words = [sys.executable, "-c", _HELD, f"/run/netns/{routed.name}"]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT,
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
    ) as process:  # fmt: skip
        assert process.stdout and process.stdout.readline() == "ready\n"
        tables = [one["table"] for one in routed.json("nft -j list tables")["nftables"] if "table" in one]
        assert {one["family"] for one in tables} == {"inet", "bridge"}
        assert all(one["name"].startswith(f"vnet-trace-{process.pid}-") for one in tables)
        routed.run("nft flush ruleset")
        assert "vnet-trace" in routed.run("nft list tables"), "flushed by another program"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert wait_until(lambda: routed.run("nft list tables") == "")


def test_fast_path_ignores_the_table(routed: ThrowawayHost) -> None:
    marker = Marker(PacketTuple("tcp", A, 1, B, 2), 4, 6, bytes(4))
    with entered(f"/run/netns/{routed.name}"), closing(RuleWatch()) as watch:
        before = read_rules()
        with NftTrace(1, marker, True):
            assert select.select([watch], [], [], scaled(20))[0], "no event of the table"
            changes = watch.read_events()
            assert not (changes.rules or changes.chains or changes.sets)
            assert read_rules() == before and not read_rules().has_bridge_rules()
            assert read_tables() == ()
        changes = watch.read_events()
        assert not (changes.rules or changes.chains or changes.sets)
        load(routed, "table inet f { chain c { counter ; } }")
        assert wait_until(lambda: watch.read_events().rules)


def test_traced_rules_are_those_of_nft_monitor(routed: ThrowawayHost) -> None:
    load(routed, _FORWARD)
    monitor = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{routed.name}", "nft", "-a", "monitor", "trace"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert monitor.stdout is not None

        def said() -> str:
            return probe(request(routed)).outcome

        wait_until(lambda: said() and select.select([monitor.stdout], [], [], 0.2)[0], "the monitor")
        line = next(text for text in monitor.stdout if "inet f sub rule" in text)
    finally:
        monitor.kill()
        monitor.communicate()
    assert f"handle {handle_of(routed, 'the one')} (verdict drop)" in line
