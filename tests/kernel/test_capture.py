"""`vnet-tui capture` with real traffic; its files are read by tcpdump, scapy and by hand."""

from __future__ import annotations

import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from core.netlink.netns import entered
from tests.support.capturing import (
    INTERFACE,
    PACKET,
    ROOT,
    STATISTICS,
    blocks,
    capturing,
    client,
    comments,
    options,
    packets,
    server,
    tcpdump,
)
from tests.support.host import ThrowawayHost
from tests.support.needs import AS_NOBODY
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.root, pytest.mark.needs("tcpdump")]

_RULES = """
table ip nat {
  chain prerouting { type nat hook prerouting priority dstnat; tcp dport 8080 dnat to 10.20.0.2:80; }
  chain postrouting { type nat hook postrouting priority srcnat; ip saddr 10.20.0.0/24 masquerade; }
}
"""


@pytest.fixture
def shop(host: ThrowawayHost) -> Iterator[ThrowawayHost]:
    """Yield a host that forwards its port 8080 to the server in `web`; `db` is beside it."""
    host.run("ip link add br-shop type bridge")
    host.run("ip link set br-shop up")
    host.run("ip addr add 10.20.0.1/24 dev br-shop")
    host.run("sysctl -qw net.ipv4.ip_forward=1")
    for name, address in (("web", "10.20.0.2/24"), ("db", "10.20.0.3/24")):
        host.container(name, "br-shop", address, "10.20.0.1")
    host.run(["nft", _RULES])
    with server(host, "web"):
        yield host


def talk(host: ThrowawayHost, address: str = "10.20.0.1", port: int = 8080) -> None:
    """Open and close one connection from `db`."""
    with client(host, "db", address, port):
        pass


def send(host: ThrowawayHost, inside: str, link: str, frames: list[bytes]) -> None:
    with entered(f"/run/netns/{host.full(inside)}"):
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    with sender:
        sender.bind((link, 0))
        for frame in frames:
            sender.send(frame)


def udp(payload: bytes, number: int = 0) -> bytes:
    """Return a broadcast UDP packet to port 9 of 10.20.0.1."""
    head = struct.pack("!HHHH", 5000 + number, 9, 8 + len(payload), 0)
    ends = socket.inet_aton("10.20.0.3") + socket.inet_aton("10.20.0.1")
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(payload), 0, 0, 64, 17, 0) + ends
    return b"\xff" * 6 + b"\x02\0\0\0\0\x07" + b"\x08\0" + ip + head + payload


def refused(host: ThrowawayHost, *words: str) -> str:
    """Return the error of a capture that must not start."""
    done = host.vnet("capture", *words)
    assert done.returncode == 1 and not done.stdout, done
    return done.stderr


def server_pid(host: ThrowawayHost) -> int:
    """Return the pid of the server as ss(8) reports it."""
    return int(re.findall(r"pid=(\d+)", host.run("ss -Hltnp sport = :80", inside="web"))[0])


# ---- contents


def test_comments_name_containers_processes_and_nat(shop: ThrowawayHost, tmp_path: Path) -> None:
    path = tmp_path / "shop.pcapng"
    answering = server_pid(shop)

    def names_the_server(pid: int) -> bool:
        talk(shop)
        content = path.read_bytes()
        return f"[{answering}]".encode() in content and f"[{pid}]".encode() in content

    with capturing(shop, "br-shop", "--ports", "-w", str(path), "tcp") as one:
        with client(shop, "db", "10.20.0.1", 8080) as pid:
            wait_until(lambda: names_the_server(pid), "both processes in comments")
        assert one.stop() == 0
    lines = tcpdump(path)
    assert len(lines) == len(packets(path)) and any("10.20.0.1.8080" in line for line in lines)
    web, db = shop.full("web"), shop.full("db")
    said = comments(path)
    assert any(
        re.match(rf"{db} (\(\S+\) )?to {web} \(python\S*\[{answering}\]\); ", each) for each in said
    ), said
    assert any(re.match(rf"{db} \(python\S*\[{pid}\]\) to {web}", each) for each in said), said
    assert any(re.match(rf"{web} \(\S+\) to {db}", each) for each in said)
    assert any("DNAT 10.20.0.1:8080" in each and "8080 -> 10.20.0.2:80" in each for each in said)
    assert any("masquerade" in each for each in said)
    assert {each.sniffed_on for each in packets(path)} == {"v-web", "v-db"}
    times = [float(each.time) for each in packets(path)]
    assert times == sorted(times)
    assert path.stat().st_mode & 0o777 == 0o600


def test_interfaces_have_names_and_statistics(shop: ThrowawayHost, tmp_path: Path) -> None:
    path = tmp_path / "web.pcapng"
    with capturing(shop, shop.full("web"), "-w", str(path), "--no-comments", "icmp") as one:
        shop.run("ping -c 3 -i 0.01 10.20.0.2")
        assert one.stop() == 0
    found = blocks(path.read_bytes())
    ((_, interface),) = [each for each in found if each[0] == INTERFACE]
    noted = options(interface, 8)
    mac = shop.json("ip -j link show eth0", inside="web")[0]["address"]
    assert noted[2].decode() == f"{shop.full('web')}/eth0" and noted[6].hex(":") == mac
    assert "v-web" in noted[3].decode() and "br-shop" in noted[3].decode()
    assert noted[9] == b"\x09" and noted[11] == b"\0icmp"
    ((_, statistics),) = [each for each in found if each[0] == STATISTICS]
    counters = options(statistics, 12)
    received, dropped = (int.from_bytes(counters[code], sys.byteorder) for code in (4, 5))
    assert (received, dropped) == (6, 0) == (sum(kind == PACKET for kind, _ in found), 0)
    assert found[-1][0] == STATISTICS
    assert not any(comments(path))


def test_lines_name_both_ends(shop: ThrowawayHost) -> None:
    with capturing(shop, "v-web", "-c", "2", "icmp") as one:
        shop.run("ping -c 1 10.20.0.2")
        assert one.ended() == 0
    asked, answered = one.printed.decode().splitlines()
    web = shop.full("web")
    assert re.match(r"\d\d:\d\d:\d\d\.\d{6}  v-web  host 10.20.0.1 → ", asked)
    assert f"→ {web} 10.20.0.2  ICMP  echo-request" in asked
    assert f"{web} 10.20.0.2 → host 10.20.0.1  ICMP  echo-reply" in answered
    assert "2 packets" in one.said


@pytest.mark.parametrize(("words", "seen"), [("", {7, 8}), ("vlan 7", {7}), ("vlan 7 and udp", {7})])
def test_vlan_tags_are_kept(host: ThrowawayHost, tmp_path: Path, words: str, seen: set[int]) -> None:
    host.namespace("far")
    host.run(f"ip link add in0 type veth peer name out0 netns {host.full('far')}")
    host.run("ip link set in0 up")
    host.run("ip link set out0 up", inside="far")
    path = tmp_path / "vlan.pcapng"
    plain = udp(b"tagged" * 4)
    with capturing(host, "in0", "-w", str(path), *words.split()) as one:
        tagged = [plain[:12] + struct.pack("!HH", 0x8100, vlan) + plain[12:] for vlan in (7, 8)]
        send(host, "far", "out0", [*tagged, plain])
        wait_until(lambda: host.json("ip -j -s link show in0")[0]["stats64"]["rx"]["packets"] >= 3)
        assert one.stop() == 0
    lines = [line for line in tcpdump(path, "-e") if "10.20.0.3" in line]
    assert {int(vlan) for vlan in re.findall(r"vlan (\d+)", "\n".join(lines))} == seen
    raw = [bytes(each) for each in packets(path) if b"tagged" in bytes(each)]
    assert tagged[0] in raw and (plain in raw) is (not words)


def test_a_snap_length_cuts_packets(shop: ThrowawayHost, tmp_path: Path) -> None:
    path = tmp_path / "short.pcapng"
    with capturing(shop, "v-web", "-s", "60", "-c", "1", "-w", str(path), "icmp") as one:
        shop.run("ping -c 1 -s 500 10.20.0.2")
        assert one.ended() == 0
    (body,) = [each for kind, each in blocks(path.read_bytes()) if kind == PACKET]
    assert struct.unpack_from("=5I", body)[3:] == (60, 542)


def test_a_flow_is_captured_before_and_after_translation(shop: ThrowawayHost, tmp_path: Path) -> None:
    path = tmp_path / "flow.pcapng"
    with ExitStack() as stack:
        stack.enter_context(client(shop, "db", "10.20.0.1", 8080))
        rows = wait_until(lambda: shop.run("conntrack -L -p tcp --dport 8080"), "the connection")
        (port,) = re.findall(r"src=10.20.0.3 dst=10.20.0.1 sport=(\d+) dport=8080", rows)
        with capturing(shop, f"10.20.0.3:{port}-10.20.0.1:8080", "-w", str(path)) as one:
            talk(shop)
            shop.run("ping -c 1 10.20.0.2")
            stack.close()
            wait_until(lambda: path.stat().st_size > 1000, "the flow's last packets")
            assert one.stop() == 0
    lines = "\n".join(tcpdump(path))
    assert f"10.20.0.3.{port} > 10.20.0.1.8080" in lines and f"10.20.0.1.{port} > 10.20.0.2.80" in lines
    pairs = set(re.findall(r"IP (\S+) > (\S+):", lines))
    assert all(any(end.endswith(f".{port}") for end in pair) for pair in pairs) and "ICMP" not in lines


def test_standard_output_can_be_piped(shop: ThrowawayHost) -> None:
    with capturing(shop, "v-web", "-w", "-", "-c", "4", "icmp") as one:
        shop.run("ping -c 2 -i 0.01 10.20.0.2")
        assert one.ended() == 0
    done = subprocess.run(["tcpdump", "-n", "-r", "-"], input=one.printed, capture_output=True, check=True)
    assert done.stdout.count(b"ICMP echo") == 4


# ---- files


def test_a_ring_keeps_the_newest_files(shop: ThrowawayHost, tmp_path: Path) -> None:
    path = tmp_path / "ring.pcapng"
    other = tmp_path / "ring-notes.pcapng"
    other.write_text("not part of it")
    words = ("--ring", "2", "--max-size", "20k", "-w", str(path), "udp")
    with capturing(shop, "v-db", *words) as one:
        send(shop, "db", "eth0", [udp(b"x" * 400, number) for number in range(200)])
        wait_until((tmp_path / "ring-00005.pcapng").exists, "the fifth file")
        assert one.stop() == 0
    files = sorted(tmp_path.glob("ring-0*"))
    assert len(files) == 2 and other.read_text() == "not part of it" and not path.exists()
    assert all(each.stat().st_size <= 20_000 and blocks(each.read_bytes()) for each in files)
    text = "\n".join(line for each in files for line in tcpdump(each))
    ports = [int(port) for port in re.findall(r"10\.20\.0\.3\.(\d+)", text)]
    assert ports == list(range(ports[0], 5200)) and len(ports) > 20
    assert all(each.stat().st_mode & 0o777 == 0o600 for each in files)


def test_a_full_disk_leaves_whole_blocks(shop: ThrowawayHost, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "small", str(folder)], check=True)
    try:
        path = folder / "full.pcapng"
        with capturing(shop, "v-db", "-w", str(path), "udp") as one:
            send(shop, "db", "eth0", [udp(b"x" * 400, number) for number in range(200)])
            assert one.ended() == 1
        assert f"can't write {path}: No space left on device. Try: " in one.said
        assert "Traceback" not in one.said
        found = blocks(path.read_bytes())
        count = sum(kind == PACKET for kind, _ in found)
        assert 20 < count < 200 and len(tcpdump(path)) == count
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_size_limit_ends_the_capture(shop: ThrowawayHost, tmp_path: Path) -> None:
    path = tmp_path / "limited.pcapng"
    with capturing(shop, "v-db", "-w", str(path), "--max-size", "10k", "udp") as one:
        send(shop, "db", "eth0", [udp(b"x" * 400, number) for number in range(50)])
        assert one.ended() == 0
    assert "until the size limit of 10,000 bytes" in one.said
    assert path.stat().st_size <= 10_000 and blocks(path.read_bytes())[-1][0] == STATISTICS


def test_no_file_is_replaced(shop: ThrowawayHost, tmp_path: Path) -> None:
    path, link = tmp_path / "there.pcapng", tmp_path / "link.pcapng"
    path.write_text("precious")
    link.symlink_to(tmp_path / "elsewhere")
    for each in (path, link):
        assert f"can't write {each}: it exists already. Try: " in refused(shop, "v-web", "-w", str(each))
    assert path.read_text() == "precious" and not (tmp_path / "elsewhere").exists()


def test_a_wrong_filter_makes_no_file(shop: ThrowawayHost, tmp_path: Path) -> None:
    path = tmp_path / "none.pcapng"
    said = refused(shop, "v-web", "-w", str(path), "port", "and")
    assert re.search(r"can't compile the filter 'port and': .*syntax error.*\. Try: man pcap-filter", said)
    assert not path.exists()


# ---- names, rights and ends


def test_unknown_and_ambiguous_names(shop: ThrowawayHost) -> None:
    web = shop.full("web")
    assert f"Try: {web}" in refused(shop, f"{web}x")
    assert "no container, network, link or namespace has that name" in refused(shop, "nothing-like-it")
    said = refused(shop, "eth0")
    assert "have a link of that name" in said and re.search(r"Try: \S+/eth0", said)
    assert "conntrack has no such entry" in refused(shop, "10.20.0.3:1-10.20.0.9:2")
    assert "there is no file" in refused(shop, "v-web", "--ring", "2")


def test_the_reader_of_lines_may_end(shop: ThrowawayHost) -> None:
    with capturing(shop, "v-web", "icmp") as one:
        assert one.process.stdout is not None
        one.process.stdout.close()
        one.process.stdout = None
        shop.run("ping -c 1 10.20.0.2")
        assert one.ended() == 0
    assert "until its reader ended" in one.said and "Traceback" not in one.said


def test_a_terminal_without_unicode(shop: ThrowawayHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    with capturing(shop, "v-web", "-c", "1", "icmp") as one:
        shop.run("ping -c 1 10.20.0.2")
        assert one.ended() == 0
    assert b"ICMP" in one.printed and one.printed.isascii()


def test_a_link_that_disappears_ends_the_capture(shop: ThrowawayHost, tmp_path: Path) -> None:
    path = tmp_path / "gone.pcapng"
    with capturing(shop, "v-web", "-w", str(path)) as one:
        shop.run("ip link set v-web down")
        shop.run("ip link set v-web up")
        shop.run("ping -c 1 -W 20 10.20.0.2", check=False)
        shop.run("ip link del v-web")
        assert one.ended() == 0
    assert "until the end of v-web, which no longer exists" in one.said
    assert any("ICMP echo" in line for line in tcpdump(path)), "it went on while the link was down"


def test_a_container_that_ends_is_not_kept_alive(host: ThrowawayHost, tmp_path: Path) -> None:
    host.run("ip link add br-shop type bridge")
    host.container("web", "br-shop", "10.20.0.2/24")
    with capturing(host, host.full("web"), "-w", str(tmp_path / "web.pcapng")) as one:
        subprocess.run(["ip", "netns", "del", host.full("web")], check=True)
        host.names.remove(host.full("web"))
        assert one.ended() == 0
    assert f"until the end of {host.full('web')}/eth0, which no longer exists" in one.said
    wait_until(lambda: "v-web" not in host.run("ip link"), "the end of the namespace and its veth")


def test_a_user_without_rights_is_refused(shop: ThrowawayHost) -> None:
    words = ["nsenter", f"--net=/run/netns/{shop.name}", *AS_NOBODY, sys.executable, "-m", "tui.cli"]
    done = subprocess.run([*words, "capture", "v-web"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "can't capture packets: this process lacks CAP_NET_RAW" in done.stderr and "sudo" in done.stderr


@pytest.mark.parametrize("filtered", [0, 1])
def test_a_bridge_with_br_netfilter_is_not_promiscuous(shop: ThrowawayHost, filtered: int) -> None:
    """The host would route copies of bridged packets that DNAT has changed, and reset connections."""
    setting = "net.bridge.bridge-nf-call-iptables"
    if "= " not in shop.run(f"sysctl {setting}", check=False):
        pytest.skip("br_netfilter isn't loaded")
    shop.run(f"sysctl -qw {setting}={filtered} net.bridge.bridge-nf-call-ip6tables=0")

    def promiscuity(link: str) -> int:
        return int(shop.json(f"ip -j -d link show {link}")[0]["promiscuity"])

    before = promiscuity("v-db")
    with capturing(shop, "br-shop", "tcp") as one:
        assert promiscuity("br-shop") == 1 - filtered
        assert promiscuity("v-db") == before + filtered
        talk(shop)
        assert one.stop() == 0
    assert ("br_netfilter is on" in one.said) is bool(filtered)
    assert b"RST" not in one.printed
    assert promiscuity("br-shop") == 0
