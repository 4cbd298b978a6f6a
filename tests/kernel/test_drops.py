"""Dropped packets: real drops by reason and container, in the command and the watcher."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from bpf import build
from bpf import drops as counting
from bpf.drops import DropCounter, Functions
from core.collect.snapshot import read_snapshot
from core.drop_reasons import NO_REASON, explain
from core.drops import DropsUnavailable
from core.metrics.collector import HostCollector
from core.model import Demand, Drop, Drops, Part
from core.netlink.netns import entered
from core.topology import Topology
from core.topology.drops import container_of_drop, link_of_drop
from core.update import Update
from core.watch import Watcher
from tests.support.host import ThrowawayHost
from tests.support.needs import AS_NOBODY
from tests.support.waiting import wait_until
from tui.cli import agent

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "json.md"
CLOSED, REFUSED = 4001, 4002
RULES = f"table ip t {{ chain c {{ type filter hook input priority 0; udp dport {REFUSED} drop; }}; }}"


class Lab:
    """A host with web1 and web2 on a bridge, and `far` behind a link of a smaller MTU."""

    def __init__(self, host: ThrowawayHost) -> None:
        self.host = host
        # A fixed address: else it is that of a port, and changes when one leaves.
        host.run("ip link add br0 address 02:00:00:00:00:01 type bridge")
        host.run("ip addr add 10.1.0.1/24 dev br0")
        host.run("ip link set br0 up")
        host.run("ip link add br1 type bridge stp_state 1")
        host.run("ip link set br1 up")
        host.run("sysctl -qw net.ipv4.ip_forward=1")
        for name, address in (("web1", "10.1.0.2/24"), ("web2", "10.1.0.3/24"), ("web3", "10.1.0.4/24")):
            host.container(name, "br0", address, "10.1.0.1")
        host.namespace("far")
        host.run(f"ip link add up0 mtu 1000 type veth peer name eth0 mtu 1000 netns {host.full('far')}")
        host.run("ip addr add 10.2.0.1/24 dev up0")
        host.run("ip link set up0 up")
        host.run("ip addr add 10.2.0.2/24 dev eth0", inside="far")
        host.run("ip link set eth0 up", inside="far")
        host.run(["nft", RULES])
        host.run("sysctl -qw net.ipv4.conf.eth0.rp_filter=1", inside="web2")
        host.run("ip route add 203.0.113.0/24 dev lo", inside="web2")
        host.run("ip addr add 203.0.113.7/32 dev lo", inside="web1")
        # Learned once, so that the first packets of a test are not dropped while they wait.
        host.run("ping -c 1 -W 5 10.1.0.3", inside="web1")
        host.run("ip neigh add 10.1.0.3 lladdr 02:00:00:00:00:03 dev eth0", inside="web3")
        with entered(f"/run/netns/{host.name}"):
            self.topology = Topology(read_snapshot({Part.LINKS, Part.CONTAINERS}))

    def send(
        self, name: str, address: str, port: int, source: str = "", size: int = 1, whole: bool = False
    ) -> None:
        """Send five datagrams from a namespace; errors are the kernel's answers to earlier ones."""
        with (
            entered(f"/run/netns/{self.host.full(name)}"),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here,
        ):
            if whole:
                here.setsockopt(socket.IPPROTO_IP, 10, 3)  # IP_MTU_DISCOVER, IP_PMTUDISC_PROBE
            if source:
                here.bind((source, 0))
            for _ in range(5):
                with suppress(OSError):
                    here.sendto(b"x" * size, (address, port))

    def fill_a_socket(self) -> None:
        """Send to a socket of web2 that reads nothing, until its buffer is full."""
        with (
            entered(f"/run/netns/{self.host.full('web2')}"),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink,
        ):
            sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            sink.bind(("10.1.0.3", 4003))
            for _ in range(4):
                self.send("web1", "10.1.0.3", 4003, size=1400)

    def send_at_a_listening_port(self) -> None:
        """Send through a port that a bridge with spanning tree lets only listen for 15 seconds."""
        self.host.run("ip link set v-web3 master br1")
        self.send("web3", "10.1.0.3", CLOSED)

    def owner(self, drop: Drop) -> str:
        container = container_of_drop(self.topology, drop)
        return container.name.removeprefix(f"{self.host.prefix}-") if container else ""

    def link(self, drop: Drop) -> str:
        link = link_of_drop(self.topology, drop)
        return link.name if link else ""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    host = ThrowawayHost()
    try:
        yield Lab(host)
    finally:
        host.close()


@pytest.fixture(scope="module")
def counter(lab: Lab) -> Iterator[DropCounter]:
    made = DropCounter()
    made.set_owners(lab.topology.reachable_addresses())
    yield made
    made.close()


# By reason: what causes it, and whose packets are dropped where.
DROPS: dict[str, tuple[Callable[[Lab], None], str, str]] = {
    "NETFILTER_DROP": (lambda lab: lab.send("web1", "10.1.0.1", REFUSED), "web1", "br0"),
    "NO_SOCKET": (lambda lab: lab.send("web1", "10.1.0.3", CLOSED), "web2", "eth0"),
    "IP_INNOROUTES": (lambda lab: lab.send("web1", "192.0.2.9", CLOSED), "web1", "br0"),
    "IP_RPFILTER": (lambda lab: lab.send("web1", "10.1.0.3", CLOSED, source="203.0.113.7"), "web2", "eth0"),
    "BRIDGE_INGRESS_STP_STATE": (Lab.send_at_a_listening_port, "web3", "v-web3"),
    "PKT_TOO_BIG": (
        lambda lab: lab.send("web1", "10.2.0.2", CLOSED, size=1400, whole=True), "far", "br0",
    ),
    "SOCKET_RCVBUFF": (Lab.fill_a_socket, "web2", "eth0"),
}  # fmt: skip


def of_host(lab: Lab, counter: DropCounter) -> list[Drop]:
    namespaces = lab.topology.snapshot.namespaces
    own = {ns for ns, one in namespaces.items() if any(name in lab.host.names for name in one.names)}
    return [one for one in counter.read()[0] if one.ns in own]


@pytest.mark.parametrize("reason", DROPS)
def test_a_drop_is_counted_by_reason_link_and_container(lab: Lab, counter: DropCounter, reason: str) -> None:
    cause, owner, link = DROPS[reason]

    def count() -> int:
        return sum(
            one.packets
            for one in of_host(lab, counter)
            if (one.reason, lab.owner(one), lab.link(one)) == (reason, owner, link)
        )

    before = count()
    cause(lab)
    expected = 1 if reason == "SOCKET_RCVBUFF" else 5
    wait_until(lambda: count() - before >= expected, reason)
    if reason in ("NETFILTER_DROP", "IP_INNOROUTES", "IP_RPFILTER", "PKT_TOO_BIG"):
        assert count() - before == 5


def test_a_veth_peer_of_a_smaller_mtu_is_explained(lab: Lab, counter: DropCounter) -> None:
    """The kernel gives no reason then, but the function does."""
    lab.host.run("ip link set eth0 mtu 1300", inside="web2")
    try:
        lab.send("web1", "10.1.0.3", CLOSED, size=1400)

        def meanings() -> set[str]:
            own = [one for one in of_host(lab, counter) if lab.owner(one) == "web2"]
            return {explain(one.reason, one.function).meaning for one in own if one.reason == NO_REASON}

        wait_until(lambda: any("larger than the peer's MTU" in one for one in meanings()))
    finally:
        lab.host.run("ip link set eth0 mtu 1500", inside="web2")


def test_the_direction_shows_whose_address_it_is(lab: Lab, counter: DropCounter) -> None:
    lab.send("web1", "10.1.0.1", REFUSED)
    found = wait_until(lambda: [one for one in of_host(lab, counter) if one.reason == "NETFILTER_DROP"])
    assert {(one.direction, one.address) for one in found} == {("from", "10.1.0.2")}
    assert all(one.function for one in found), "root may see the kernel's symbols"


def test_freed_packets_are_no_drops(lab: Lab, counter: DropCounter) -> None:
    """Delivered datagrams, and buffers of netlink and UNIX sockets, end without a drop."""
    before = {(one.reason, one.ns, one.function): one.packets for one in counter.read()[0]}
    with entered(f"/run/netns/{lab.host.full('web2')}"):
        sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sink.bind(("10.1.0.3", 4004))
        lab.host.run("ip -6 addr", inside="web2")
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sink, left, right:
        for _ in range(50):
            left.send(b"x")
            right.recv(1)
        for _ in range(10):
            lab.send("web1", "10.1.0.3", 4004)
        sink.settimeout(20)
        assert [sink.recv(1) for _ in range(50)] == [b"x"] * 50
    web = (lab.host.inode_of("web1"), lab.host.inode_of("web2"))
    for one in counter.read()[0]:
        rise = one.packets - before.get((one.reason, one.ns, one.function), 0)
        assert one.ns not in web or rise < 50, one
        assert not one.function.startswith(("netlink", "unix")), one


def test_single_packets_have_addresses_and_ports(lab: Lab, counter: DropCounter) -> None:
    counter.report(True)
    found = []
    try:
        lab.send("web1", "10.1.0.3", CLOSED, size=7)
        wait_until(lambda: found.extend(counter.packets()) or [one for one in found if one.dport == CLOSED])
        packet = next(one for one in found if one.dport == CLOSED)
        assert (packet.l4_proto, packet.src, packet.dst) == ("udp", "10.1.0.2", "10.1.0.3")
        assert packet.where.reason == "NO_SOCKET" and packet.sport > 0 and packet.length >= 7
        assert abs(packet.at - time.time()) < 300
    finally:
        counter.report(False)
    lab.send("web1", "10.1.0.3", CLOSED)
    assert counter.packets() == []


def test_a_full_map_counts_what_it_leaves_out(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "ENTRIES", 1)
    small = DropCounter()
    try:
        lab.send("web1", "10.1.0.1", REFUSED)
        lab.send("web1", "10.1.0.3", CLOSED)
        wait_until(lambda: small.read()[1] >= 5)
        assert len(small.read()[0]) <= 1
    finally:
        small.close()


def test_counters_of_past_namespaces_make_room(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    made = DropCounter()
    web1, web2 = lab.host.inode_of("web1"), lab.host.inode_of("web2")
    try:
        lab.send("web1", "10.1.0.3", CLOSED)
        wait_until(lambda: any(one.ns == web2 for one in made.read()[0]))
        made.keep_namespaces({web1})
        assert any(one.ns == web2 for one in made.read()[0]), "there is room"
        monkeypatch.setattr(counting, "ENTRIES", 1)
        made.keep_namespaces({web1})
        assert not any(one.ns == web2 for one in made.read()[0])
    finally:
        made.close()


def test_it_ends_with_its_descriptors(lab: Lab) -> None:
    made = DropCounter()
    links = [*made._links]
    made.close()
    for descriptor in links:
        with pytest.raises(OSError):
            socket.socket(fileno=descriptor)


# ---- the command


@pytest.fixture
def traffic(lab: Lab) -> Iterator[None]:
    """Send packets that are dropped, until the test ends."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(0.05):
            lab.send("web1", "10.1.0.1", REFUSED)
            lab.send("web1", "10.1.0.3", CLOSED)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    stop.set()
    thread.join()


def drops(lab: Lab, *arguments: str) -> str:
    done = lab.host.vnet("drops", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_filters_and_explains(lab: Lab, traffic: None) -> None:
    name = lab.host.full("web2")
    text = drops(lab, "--over", "1.5", f"ct:{name}")
    assert "NO_SOCKET" in text and f"{name} eth0" in text
    assert "No process listens on this port" in text and "NETFILTER_DROP" not in text
    grouped = drops(lab, "--over", "1.5", "--by", "container", "reason:NETFILTER")
    line = next(line for line in grouped.splitlines() if line.startswith(lab.host.full("web1")))
    assert "NETFILTER_DROP" in line


def fields_of(heading: str) -> set[str]:
    section = re.search(rf"^### {heading}\n(.*?)^##", DOCS.read_text(), flags=re.M | re.S)
    assert section
    return set(re.findall(r"^\| `([^`|]*)` \|", section[1], flags=re.M))


def test_json_has_the_documented_fields(lab: Lab, traffic: None) -> None:
    found = json.loads(drops(lab, "--json", "--over", "1.5", f"ns:{lab.host.prefix}"))
    assert found.keys() == fields_of("the drops")
    by_reason: dict[str, Any] = {one["reason"]: one for one in found["drops"]}
    assert all(one.keys() == fields_of("drop") for one in found["drops"])
    closed = by_reason["NO_SOCKET"]
    assert closed["container"] == lab.host.full("web2") and closed["kind"] == "fault"
    assert closed["packets"] > 0 and closed["packets_per_second"] > 0
    assert closed["ns"] == lab.host.inode_of("web2")


def test_packets_are_listed_with_containers(lab: Lab, traffic: None) -> None:
    lines = drops(lab, "--packets", "--json", "--over", "1.5", f"port:{REFUSED}").splitlines()
    packets = [json.loads(line) for line in lines]
    expected = fields_of("dropped packet") | fields_of("drop") - {
        "packets", "packets_per_second", "meaning", "try",
    }  # fmt: skip
    assert packets and packets[0].keys() == expected
    assert {(one["dport"], one["reason"]) for one in packets} == {(REFUSED, "NETFILTER_DROP")}
    assert packets[0]["containers"][0] == lab.host.full("web1")


def test_normal_reasons_are_listed_on_request(lab: Lab) -> None:
    """A frame of an EtherType that nothing handles is one."""
    frame = b"\xff" * 6 + b"\x02\0\0\0\0\1" + b"\x88\xb5" + bytes(50)
    stop = threading.Event()

    def send() -> None:
        with entered(f"/run/netns/{lab.host.full('web1')}"):
            here = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            here.bind(("eth0", 0))
        while not stop.wait(0.05):
            here.send(frame)
        here.close()

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        wanted = ("reason:UNHANDLED_PROTO", f"ns:{lab.host.full('web2')}")
        listed = json.loads(drops(lab, "--json", "--all", "--over", "1.5", *wanted))["drops"]
        usual = json.loads(drops(lab, "--json", "--over", "1.5", *wanted))
    finally:
        stop.set()
        thread.join()
    assert {one["kind"] for one in listed} == {"normal"}
    assert usual["drops"] == [] and usual["left_out"] > 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--over", "0"), "can't count for 0 seconds"),
        (("--packets", "--follow"), "can't follow single packets"),
        (("--from", "host.vnet"), "can't count drops of a file"),
        (("sort:1",), "can't filter by sort: there is no such column"),
    ],
)
def test_wrong_options_are_refused(lab: Lab, words: tuple[str, ...], says: str) -> None:
    from_file = words[0] == "--from"
    done = lab.host.vnet(*words, "drops") if from_file else lab.host.vnet("drops", *words)
    assert done.returncode == 1 and says in done.stderr


# ---- metrics


def test_the_agent_counts_for_metrics(lab: Lab, traffic: None) -> None:
    labels = {"container": lab.host.full("web2"), "link": "eth0", "reason": "NO_SOCKET"}

    def value() -> float:
        samples = (one for family in collector._scrape() for one in family.samples)
        wanted = (one for one in samples if one.name == "vnet_dropped_packets_total")
        return sum(one.value for one in wanted if labels.items() <= one.labels.items())

    with entered(f"/run/netns/{lab.host.name}"):
        collector = HostCollector(pytest.fail, drops=agent._drop_source())
        first = wait_until(value, "the counter")
        wait_until(lambda: value() > first, "a higher counter")


def test_drops_without_metrics_are_refused(lab: Lab) -> None:
    done = lab.host.vnet("agent", "--drops")
    assert done.returncode == 1 and "can't count drops: only metrics show them. Try: --metrics" in done.stderr


# ---- what may be missing


@pytest.mark.needs("nobody")
def test_without_rights_it_names_them(host: ThrowawayHost) -> None:
    words = ["nsenter", f"--net=/run/netns/{host.name}", *AS_NOBODY, sys.executable, "-m", "tui.cli", "drops"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "vnet-tui: can't count dropped packets: it needs CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN. "
        "Try: sudo vnet-tui drops\n"
    )


def unavailable(cache: Path) -> str:
    with pytest.raises(DropsUnavailable) as caught:
        DropCounter(cache)
    return str(caught.value)


def test_without_bcc_it_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bcc.py").write_text("raise ModuleNotFoundError(\"No module named 'bcc'\")")
    environment = build.python_environment() | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    monkeypatch.setattr(build, "python_environment", lambda: environment)
    assert "BCC isn't installed. Try: apt install" in unavailable(tmp_path / "cache")


def test_without_type_information_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (build, counting):
        monkeypatch.setattr(module, "VMLINUX", tmp_path / "vmlinux")
    assert "no type information (BTF). Try: a kernel built with" in unavailable(tmp_path)


def test_a_kernel_without_reasons_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_nothing(*_: object) -> None:
        raise build.CompileError("the kernel's type information has no enum skb_drop_reason")

    monkeypatch.setattr(build, "_compile", compile_nothing)
    assert "reports no drop reasons. Try: Linux 5.17 or newer" in unavailable(tmp_path)


def test_lockdown_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "lockdown_level", lambda: "confidentiality")
    assert "lockdown forbids it. Try: boot without" in unavailable(tmp_path)


def test_hidden_symbols_leave_functions_unknown(tmp_path: Path) -> None:
    hidden = tmp_path / "kallsyms"
    hidden.write_text("0000000000000000 T tcp_v4_rcv\n0000000000000000 t ip_rcv\n")
    functions = Functions(hidden)
    functions.resolve([0xFFFF_FFFF_8100_0000])
    assert functions.name(0xFFFF_FFFF_8100_0000) == ""
    first, second, before = 0xFFFF_FFFF_8100_0FFF, 0xFFFF_FFFF_8100_1004, 0xFFFF_FFFF_8000_0000
    hidden.write_text(
        "ffffffff81000000 T tcp_v4_rcv.isra.0\nffffffff81001000 t ip_rcv\nffffffff82000000 d data\n"
    )
    functions = Functions(hidden)
    functions.resolve([first, second, before])
    assert [functions.name(one) for one in (first, second, before)] == ["tcp_v4_rcv", "ip_rcv", ""]


# ---- the watcher


class _Counters:
    """Count how often a reader is opened; pass on what it reads."""

    def __init__(self) -> None:
        self.opened = 0

    def __call__(self) -> DropCounter:
        self.opened += 1
        return DropCounter()


@contextmanager
def watching(host: ThrowawayHost, opening: Callable[[], Any]) -> Iterator[tuple[Watcher, list[Update]]]:
    updates: list[Update] = []
    with entered(f"/run/netns/{host.name}"):
        watcher = Watcher(updates.append, open_drops=opening)
        watcher.start()
        try:
            wait_until(lambda: updates and not updates[-1].snapshot.pending, "the first snapshot")
            yield watcher, updates
        finally:
            watcher.stop()


def test_the_watcher_counts_only_from_the_first_demand_on(
    lab: Lab, traffic: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.drops.LASTING", 0.5)
    opening = _Counters()
    with watching(lab.host, opening) as (watcher, updates):
        assert opening.opened == 0 and updates[-1].drops is None
        watcher.set_demand({Demand.DROPS})

        def newest() -> Drops | None:
            return updates[-1].drops

        wait_until(lambda: (now := newest()) and any(one.rate > 0 for one in now.drops), "a rate")
        found = newest()
        assert found and {"NO_SOCKET", "NETFILTER_DROP"} <= {one.reason for one in found.drops}
        assert not found.packets
        watcher.set_demand({Demand.DROPS, Demand.DROP_PACKETS})
        wait_until(lambda: (now := newest()) and now.reporting and now.packets, "single packets")
        watcher.set_demand({Demand.RATES})
        watcher.set_demand({Demand.DROPS})
        wait_until(lambda: updates[-1].snapshot.heavy_drops, "a high rate that lasts")
        assert opening.opened == 1
        snapshot = updates[-1].snapshot
        names = {one.name for heavy in snapshot.heavy_drops for one in snapshot.containers()
                 if one.uid == heavy.container}  # fmt: skip
        assert names <= {lab.host.full("web1"), lab.host.full("web2")} and names


def test_the_watcher_reports_why_it_cannot_count(host: ThrowawayHost) -> None:
    def refuse() -> DropCounter:
        raise DropsUnavailable("it needs CAP_BPF", "sudo vnet-tui")

    with watching(host, refuse) as (watcher, updates):
        watcher.set_demand({Demand.DROPS})
        wait_until(lambda: updates[-1].snapshot.part_problems.get(Part.DROPS), "the problem")
        problem = updates[-1].snapshot.part_problems[Part.DROPS][0]
        assert problem.sentence == "can't count dropped packets: it needs CAP_BPF. Try: sudo vnet-tui"
