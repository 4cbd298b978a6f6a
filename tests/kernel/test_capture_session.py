"""The captures of the dashboard: packets in memory, filters and files, while traffic goes on."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.capture.targets import find_target
from core.collect.snapshot import read_snapshot
from core.topology import Topology
from tests.support.capturing import PACKET, STATISTICS, blocks, tcpdump
from tests.support.host import ThrowawayHost
from tests.support.waiting import wait_until
from tui.cli.capture import PARTS
from tui.cli.capture_session import CaptureSession, RunningCapture
from tui.command import CommandError

pytestmark = [pytest.mark.root, pytest.mark.needs("tcpdump")]


@pytest.fixture
def running(inside_host: ThrowawayHost) -> Iterator[RunningCapture]:
    """Yield a capture of a veth end with the address 10.30.0.1."""
    host = inside_host
    host.namespace("far")
    host.run(f"ip link add in0 type veth peer name out0 netns {host.full('far')}")
    host.run("ip addr add 10.30.0.1/24 dev in0")
    host.run("ip link set in0 up")
    host.run("ip link set out0 up", inside="far")
    host.run("ip neigh add 10.30.0.2 lladdr 02:00:00:00:00:09 dev in0")
    topology = Topology(read_snapshot(PARTS))
    session = CaptureSession()
    assert session.missing_rights() == ""
    capture = session.start(find_target(topology, "in0"), topology, "udp")
    try:
        yield capture
    finally:
        capture.stop()
        wait_until(lambda: capture.state.ended, "the end of the thread")


def send(count: int, port: int = 9, size: int = 100) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(count):
            sender.sendto(bytes(size), ("10.30.0.2", port))


def test_packets_are_numbered_lines(running: RunningCapture) -> None:
    send(3)
    wait_until(lambda: running.state.last == 3, "the packets")
    (line,) = running.lines(2, 3)
    assert line.protocol == "UDP" and line.info == "Len=100" and line.destination == "10.30.0.2:9"
    assert running.state.dropped == 0 and running.lines(3, 10) == []


def test_a_filter_replaces_the_one_before(running: RunningCapture) -> None:
    def ports_after(count: int) -> set[str]:
        """Send to two ports; return those that are captured, once the last packet is."""
        before = running.state.last
        for _ in range(count):
            send(1)
            send(1, port=53)
        wait_until(lambda: running.state.last >= before + count, "packets to port 53")
        return {line.destination for line in running.lines(before, running.state.last)}

    running.set_filter("udp port 53")
    wait_until(lambda: ports_after(1) == {"10.30.0.2:53"}, "the new filter")
    assert ports_after(5) == {"10.30.0.2:53"}
    with pytest.raises(CommandError, match="can't compile the filter 'udp prot'"):
        running.set_filter("udp prot")


def test_a_file_has_the_packets_in_memory_and_those_that_follow(
    running: RunningCapture, tmp_path: Path
) -> None:
    path = tmp_path / "saved.pcapng"
    send(5)
    wait_until(lambda: running.state.last == 5, "the first packets")
    running.save(path)
    assert running.state.file.startswith(str(path)) and path.stat().st_mode & 0o777 == 0o600
    send(4)
    wait_until(lambda: running.state.last == 9, "the other packets")
    running.end_file()
    send(1)
    wait_until(lambda: running.state.last == 10, "a packet after the file")
    assert len(tcpdump(path)) == 9 and blocks(path.read_bytes())[-1][0] == STATISTICS
    assert running.state.notice.startswith("Wrote 9 packets to ") and not running.state.file
    with pytest.raises(CommandError, match="it exists already"):
        running.save(path)


def test_a_full_disk_ends_the_file_and_not_the_capture(running: RunningCapture, tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "small", str(tmp_path)], check=True)
    try:
        path = tmp_path / "full.pcapng"
        running.save(path)
        send(50, size=1000)
        wait_until(lambda: running.state.notice, "the end of the file")
        assert "No space left on device" in running.state.notice and not running.state.ended
        count = sum(kind == PACKET for kind, _ in blocks(path.read_bytes()))
        assert 5 < count < 50 and len(tcpdump(path)) == count
        before = running.state.last
        send(1)
        wait_until(lambda: running.state.last > before, "another packet")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_the_end_of_the_link_ends_the_capture(running: RunningCapture, inside_host: ThrowawayHost) -> None:
    inside_host.run("ip link del in0")
    wait_until(lambda: running.state.ended, "the end")
    assert running.state.ended == "the end of in0, which no longer exists" and not running.state.error
