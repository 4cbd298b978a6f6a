"""Check conntrack tables of real and inserted entries against `conntrack -L`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.collect.conntrack import read_conntrack, read_usage
from core.flows import address_text, entry_of, flow_of, sentence
from core.model import Namespace
from core.model.conntrack import IPS_ASSURED, IPS_SEEN_REPLY, TCP_STATES
from core.netlink.netns import NamespaceGone
from tests.support.host import ThrowawayHost

pytestmark = pytest.mark.root

IPS_SRC_NAT, IPS_DST_NAT = 1 << 4, 1 << 5  # of linux/netfilter/nf_conntrack_common.h

RULES = """
table inet nat {
  chain prerouting {
    type nat hook prerouting priority dstnat;
    iifname "wan0" tcp dport 8080 dnat ip to 172.30.0.2:80
  }
  chain postrouting { type nat hook postrouting priority srcnat; oifname "wan0" masquerade; }
}
"""

SERVER = """
import socket, sys, threading
def tcp(port):
    with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        while True:
            connection, _ = server.accept()
            with connection:
                connection.sendall(connection.recv(100))
def udp(port):
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.bind(("::", port))
    while True:
        data, peer = sock.recvfrom(100)
        sock.sendto(data, peer)
for serve in (tcp, udp):
    threading.Thread(target=serve, args=(int(sys.argv[1]),), daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""

CLIENT = """
import socket, sys
kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[sys.argv[1]]
family = socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET
with socket.socket(family, kind) as sock:
    sock.settimeout(60)
    sock.connect((sys.argv[2], int(sys.argv[3])))
    sock.sendall(b"x" * 50)
    assert sock.recv(100)
"""


def namespace_of(host: ThrowawayHost, short: str = "host") -> Namespace:
    return Namespace(host.inode_of(short), entry=f"/run/netns/{host.full(short)}")


@contextmanager
def serving(host: ThrowawayHost, inside: str, port: int) -> Iterator[None]:
    command = ["nsenter", f"--net=/run/netns/{host.full(inside)}", sys.executable, "-c", SERVER, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            server.terminate()


def talk(host: ThrowawayHost, inside: str, l4_proto: str, address: str, port: int) -> None:
    host.run([sys.executable, "-c", CLIENT, l4_proto, address, str(port)], inside)


@pytest.fixture
def routed(host: ThrowawayHost) -> ThrowawayHost:
    """Create a container, a host with NAT and published port 8080, and a server."""
    host.run("ip link add br0 type bridge")
    host.run("ip link set br0 up")
    host.run("ip addr add 172.30.0.1/24 dev br0")
    host.run("ip addr add fd00:30::1/64 dev br0 nodad")
    host.container("web", "br0", "172.30.0.2/24", gateway="172.30.0.1")
    host.run("ip addr add fd00:30::2/64 dev eth0 nodad", inside="web")
    host.run("ip route add default via fd00:30::1", inside="web")
    name = host.namespace("out")
    host.run(f"ip link add wan0 type veth peer name eth0 netns {name}")
    for inside, link, number in (("host", "wan0", 1), ("out", "eth0", 9)):
        host.run(f"ip link set dev {link} up", inside)
        host.run(f"ip addr add 192.0.2.{number}/24 dev {link}", inside)
        host.run(f"ip addr add 2001:db8::{number}/64 dev {link} nodad", inside)
    for setting in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.netfilter.nf_conntrack_acct",
                    "net.netfilter.nf_conntrack_timestamp"):  # fmt: skip
        host.run(f"sysctl -qw {setting}=1")
    host.run(["nft", RULES])
    return host


def listed(host: ThrowawayHost, inside: str = "host") -> dict[int, dict[str, Any]]:
    """Return the entries of `conntrack -L` by id."""
    text = host.run("conntrack -L -o xml,id,ktimestamp", inside)
    icmp = host.run("conntrack -L -o extended,id", inside)
    found = {}
    for flow in ET.fromstring(text).iter("flow") if text.strip() else ():
        metas = {meta.get("direction"): meta for meta in flow.iter("meta")}
        entry = {
            **_side(metas["original"], "orig", 0),
            **_side(metas["reply"], "reply", 1),
            **_independent(metas["independent"]),
        }
        entry["tcp_state"] = entry["tcp_state"] if entry["l4_proto"] == 6 else ""
        found[entry["id"]] = entry
    for line in icmp.splitlines():
        number = int(re.findall(r" id=(\d+)", line)[-1])
        for direction, (kind, code, echo) in zip(
            ("orig", "reply"), re.findall(r"type=(\d+) code=(\d+) id=(\d+)", line), strict=False
        ):
            found.get(number, {}).update(
                {f"{direction}_sport": int(echo), f"{direction}_dport": int(kind) << 8 | int(code)}
            )
    return found


def _number(node: ET.Element, path: str) -> int:
    return int(node.findtext(path) or "0", 0)


def _side(meta: ET.Element, direction: str, index: int) -> dict[str, Any]:
    layer4 = meta.find("layer4")
    assert layer4 is not None
    sport, dport = (
        _number(layer4, port) or _number(layer4, key)
        for port, key in (("sport", "srckey"), ("dport", "dstkey"))
    )
    zone = {"zone": _number(meta, "zone")} if meta.find("zone") is not None else {}
    return zone | {
        f"{direction}_src": meta.findtext("layer3/src"),
        f"{direction}_dst": meta.findtext("layer3/dst"),
        "l4_proto": int(layer4.get("protonum", "0")),
        f"{direction}_sport": sport,
        f"{direction}_dport": dport,
        f"packets{index}": _number(meta, "counters/packets"),
        f"bytes{index}": _number(meta, "counters/bytes"),
        "counted": meta.find("counters") is not None,
    }


def _independent(meta: ET.Element) -> dict[str, Any]:
    state = meta.findtext("state") or ""
    zone = {"zone": _number(meta, "zone")} if meta.find("zone") is not None else {}
    return zone | {
        "id": _number(meta, "id"),
        "timeout": _number(meta, "timeout"),
        "mark": _number(meta, "mark"),
        "tcp_state": state,
        "assured": meta.find("assured") is not None,
        "replied": meta.find("unreplied") is None,
        "start": _number(meta, "timestamp/start"),
    }


def decoded(row: np.void) -> dict[str, Any]:
    """Convert a decoded entry to the form of `listed`."""
    entry = entry_of(row)
    addresses = {
        f"{direction}_{end}": address_text(getattr(entry, f"{direction}_{end}"))
        for direction in ("orig", "reply")
        for end in ("src", "dst")
    }
    ports = {
        name: getattr(entry, name) for name in ("orig_sport", "orig_dport", "reply_sport", "reply_dport")
    }
    return addresses | ports | {
        "id": entry.id,
        "l4_proto": entry.l4_proto,
        "timeout": entry.timeout,
        "mark": entry.mark,
        "tcp_state": TCP_STATES[entry.tcp_state] if entry.l4_proto == 6 else "",
        "assured": bool(entry.status & IPS_ASSURED),
        "replied": bool(entry.status & IPS_SEEN_REPLY),
        "counted": entry.counted,
        "packets0": entry.orig_packets,
        "packets1": entry.reply_packets,
        "bytes0": entry.orig_bytes,
        "bytes1": entry.reply_bytes,
        "start": entry.start,
    } | ({"zone": entry.zone} if entry.zone else {})  # fmt: skip


def assert_as_listed(host: ThrowawayHost, inside: str = "host") -> np.ndarray:
    """Return the table, compared with listings before and after.

    Entries that are equal in both must be in it and equal.
    """
    before = listed(host, inside)
    table = read_conntrack(namespace_of(host, inside))
    after = listed(host, inside)
    assert not table.problems
    found = {entry["id"]: entry for entry in map(decoded, table.entries)}
    assert len(found) == len(table.entries)
    assert found.keys() <= before.keys() | after.keys()
    still = {key for key in before.keys() & after.keys() if is_same(before[key], after[key])}
    assert len(still) >= len(found) - 1
    for key in still:
        assert found[key] | {"timeout": 0} == before[key] | {"timeout": 0}
        assert is_same(found[key], before[key])
    return table.entries


def is_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether entries are equal except for the timeout."""
    if abs(one["timeout"] - other["timeout"]) > 3:
        return False
    return {**one, "timeout": 0} == {**other, "timeout": 0}


def test_real_traffic(routed: ThrowawayHost) -> None:
    with serving(routed, "out", 53), serving(routed, "web", 80):
        for address in ("192.0.2.9", "2001:db8::9"):
            routed.run(f"ping -q -c 2 -i 0.2 {address}", inside="web")
            talk(routed, "web", "tcp", address, 53)
            talk(routed, "web", "udp", address, 53)
        talk(routed, "out", "tcp", "192.0.2.1", 8080)
        talk(routed, "host", "udp", "192.0.2.9", 53)
        entries = assert_as_listed(routed)
    names = {bytes(10) + b"\xff\xff" + bytes([172, 30, 0, 2]): "web"}
    sentences = [sentence(flow_of(entry_of(row), names)) for row in entries]
    patterns = [
        r"web 172\.30\.0\.2:(\d+) -> \[SNAT 192\.0\.2\.1:\d+\] -> 192\.0\.2\.9:53 tcp TIME_WAIT",
        r"web 172\.30\.0\.2:(\d+) -> \[SNAT 192\.0\.2\.1:\d+\] -> 192\.0\.2\.9:53 udp REPLIED",
        r"web 172\.30\.0\.2 -> \[SNAT 192\.0\.2\.1\] -> 192\.0\.2\.9 icmp echo-request id \d+ REPLIED",
        r"\[fd00:30::2\]:\d+ -> \[SNAT \[2001:db8::1\]:\d+\] -> \[2001:db8::9\]:53 tcp TIME_WAIT",
        r"fd00:30::2 -> \[SNAT 2001:db8::1\] -> 2001:db8::9 icmpv6 echo-request id \d+ REPLIED",
        r"192\.0\.2\.9:\d+ -> \[DNAT 192\.0\.2\.1:8080\] -> web 172\.30\.0\.2:80 tcp TIME_WAIT",
        r"192\.0\.2\.1:\d+ -> 192\.0\.2\.9:53 udp REPLIED",
    ]
    for pattern in patterns:
        assert sum(bool(re.fullmatch(pattern, one)) for one in sentences) == 1, (pattern, sentences)
    assert (entries["status"] & IPS_SRC_NAT != 0).sum() == 6
    assert (entries["status"] & IPS_DST_NAT != 0).sum() == 1


def test_entries_of_every_protocol(host: ThrowawayHost) -> None:
    ports = "-s 1.2.3.4 -d 5.6.7.8 --sport 5 --dport 6 -t 100"
    for made in (
        f"-p udp {ports} -m 7 -w 3",
        f"-p udp {ports} --orig-zone 5",
        f"-p tcp {ports} --state SYN_SENT",
        f"-p tcp {ports} --state ESTABLISHED -w 9 -u SEEN_REPLY,ASSURED -r 5.6.7.8 -q 9.9.9.9 "
        "--reply-port-src 6 --reply-port-dst 99",
        f"-p sctp {ports} --state ESTABLISHED --orig-vtag 1 --reply-vtag 2",
        "-p gre -s 1.2.3.4 -d 5.6.7.8 --srckey 5 --dstkey 6 -t 100",
        "-p 89 -s 1.2.3.4 -d 5.6.7.8 -t 100",
        "-p icmp -s 1.2.3.4 -d 5.6.7.8 --icmp-type 8 --icmp-code 0 --icmp-id 44 -t 100",
        "-p udp -s fd00::1 -d fd00::2 --sport 5 --dport 6 -t 100",
    ):
        host.run(f"conntrack -I {made}")
    entries = assert_as_listed(host)
    assert {6, 17, 132, 47, 89, 1} <= set(entries["l4_proto"].tolist())
    assert {0, 3, 5, 9} <= set(entries["zone"].tolist())


def test_entries_with_and_without_counters(host: ThrowawayHost) -> None:
    """Entries older than accounting have no counters; others have."""
    host.run("conntrack -I -p udp -s 1.1.1.1 -d 2.2.2.2 --sport 1 --dport 2 -t 100")
    host.run("sysctl -qw net.netfilter.nf_conntrack_acct=1")
    host.run("conntrack -I -p udp -s 1.1.1.1 -d 2.2.2.2 --sport 3 --dport 4 -t 100")
    entries = assert_as_listed(host)
    assert sorted(entries["counted"].tolist()) == [False, True]
    assert read_conntrack(namespace_of(host)).accounting


def test_many_entries(host: ThrowawayHost) -> None:
    script = "from tests.support.bulk_conntrack import insert; insert(20_000)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(
        ["nsenter", f"--net=/run/netns/{host.name}", sys.executable, "-c", script],
        env=environment,
        check=True,
    )
    namespace = namespace_of(host)
    table = read_conntrack(namespace)
    assert read_usage(namespace)[0] == 20_000
    pattern = re.compile(r"src=(\S+) dst=(\S+) sport=(\d+) dport=(\d+)")
    lines = host.run("conntrack -L -o extended,id").splitlines()
    wanted = sorted((int(line.rpartition("id=")[2]), *sum(pattern.findall(line), ())) for line in lines)
    read = [decoded(row) for row in table.entries]
    names = [
        f"{direction}_{what}" for direction in ("orig", "reply") for what in ("src", "dst", "sport", "dport")
    ]
    assert sorted((one["id"], *(str(one[name]) for name in names)) for one in read) == wanted
    assert not table.problems


def test_nothing_tracked(host: ThrowawayHost) -> None:
    table = read_conntrack(namespace_of(host))
    assert (len(table.entries), table.accounting, table.problems) == (0, False, ())
    assert table.limit == int(host.run("sysctl -n net.netfilter.nf_conntrack_max"))
    assert read_usage(namespace_of(host))[0] == 0


def test_vanished_namespace(host: ThrowawayHost) -> None:
    host.namespace("gone")
    namespace = namespace_of(host, "gone")
    subprocess.run(["ip", "netns", "del", host.full("gone")], check=True)
    for read in (read_conntrack, read_usage):
        with pytest.raises(NamespaceGone):
            read(namespace)


def test_no_socket_is_left_open(host: ThrowawayHost) -> None:
    """An open socket would keep the namespace alive."""
    before = len(os.listdir("/proc/self/fd"))
    read_conntrack(namespace_of(host))
    read_usage(namespace_of(host))
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_rights(host: ThrowawayHost) -> None:
    """The result has a problem, in the own namespace and in another one."""
    script = (
        "import os, sys\n"
        "from core.collect.conntrack import read_conntrack\nfrom core.model import Namespace\n"
        "for path in ('/proc/self/ns/net', sys.argv[1]):\n"
        "    table = read_conntrack(Namespace(os.stat(path).st_ino, entry=path))\n"
        "    print(len(table.entries), [problem.why for problem in table.problems])"
    )
    drop = "-net_admin,-sys_admin"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        ["setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}", sys.executable, "-c", script,
         f"/run/netns/{host.name}"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["0 ['needs CAP_NET_ADMIN and CAP_SYS_ADMIN']"] * 2
