"""`vnet-tui record` compared with ip(8); ended by stop, by limits and by kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from core.recording import Recording
from core.serialize import CorruptFile, unpack
from tests.support.host import ThrowawayHost
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "tui.cli"]


def inside(host: ThrowawayHost, *words: str) -> list[str]:
    return ["nsenter", f"--net=/run/netns/{host.name}", *PROGRAM, *words]


def ran(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE)


@contextmanager
def recording(host: ThrowawayHost, path: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run the program recording, from its first written moment on."""
    process = subprocess.Popen(
        inside(host, "record", str(path), *options), cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until(lambda: moments(path) > 0)
        yield process
    finally:
        process.kill()
        process.communicate()


def moments(path: Path) -> int:
    """Return the number of complete moments in a file that may still be written to."""
    try:
        opened = Recording(path)
    except (CorruptFile, OSError):
        return 0
    try:
        return len(opened.frames)
    finally:
        opened.close()


def last_links(path: Path, inode: int) -> dict[str, int]:
    """Return MTUs of the links of a namespace in the last moment."""
    opened = Recording(path)
    try:
        net = opened.moment(len(opened.frames) - 1).snapshot.nets.get(inode)
        return {link.name: link.mtu for link in net.links.values()} if net else {}
    finally:
        opened.close()


def mtus_from_ip(host: ThrowawayHost, short: str = "host") -> dict[str, int]:
    return {link["ifname"]: link["mtu"] for link in host.json("ip -j link", short)}


def test_changes_are_recorded_as_ip_prints_them(host: ThrowawayHost, tmp_path: Path) -> None:
    path = tmp_path / "host.vnetrec"
    host.run("ip link add br-shop type bridge")
    with recording(host, path) as process:
        first = mtus_from_ip(host)
        assert last_links(path, host.inode) == first
        host.container("web", "br-shop", "10.20.0.2/24")
        host.run("ip link set br-shop mtu 1400")
        wait_until(lambda: last_links(path, host.inode) == mtus_from_ip(host))
        wait_until(lambda: last_links(path, host.inode_of("web")) == mtus_from_ip(host, "web"))
        host.run("ip link del v-web")
        wait_until(lambda: last_links(path, host.inode) == mtus_from_ip(host))
        process.send_signal(signal.SIGINT)
        _, output = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and "vnet-tui replay" in output
    opened = Recording(path)
    assert opened.ended == "SIGINT ended it" and not opened.notice
    before = opened.moment(0).snapshot.nets[host.inode].links.values()
    assert {link.name: link.mtu for link in before} == first
    sentences = [change.sentence for changes in opened.changes() for change in changes]
    assert any("v-web" in sentence for sentence in sentences)
    assert any("br-shop" in sentence and "1400" in sentence for sentence in sentences)
    assert opened.moment(len(opened.frames) - 1).stats is not None
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_recording_opens_after_the_recorder_was_killed(host: ThrowawayHost, tmp_path: Path) -> None:
    path = tmp_path / "host.vnetrec"
    with recording(host, path) as process:
        host.run("ip link add br-late type bridge")
        wait_until(lambda: "br-late" in last_links(path, host.inode))
        os.kill(process.pid, signal.SIGKILL)
        process.wait(PATIENCE)
    opened = Recording(path)
    assert "has no end" in opened.notice or "is truncated" in opened.notice
    assert last_links(path, host.inode) == mtus_from_ip(host)


def test_a_recording_ends_after_the_given_time(host: ThrowawayHost, tmp_path: Path) -> None:
    path = tmp_path / "host.vnetrec"
    done = ran(inside(host, "record", str(path), "--for", "4s"))
    assert done.returncode == 0, done.stderr
    opened = Recording(path)
    assert "time" in opened.ended
    first, *others = (frame.mono for frame in opened.frames[:-1])  # the last may be late
    assert all(one - first <= 4.0 for one in others)


def test_errors_of_record(host: ThrowawayHost, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    for name, words in (("there", "it exists already"), ("no/such", "No such file")):
        done = ran(inside(host, "record", str(tmp_path / name)))
        assert done.returncode == 1 and words in done.stderr
        assert "Traceback" not in done.stderr
    assert (tmp_path / "there").read_text() == "mine"


def test_a_bundle_of_this_host_opens(host: ThrowawayHost, tmp_path: Path) -> None:
    host.run("ip link add br-shop type bridge")
    path = tmp_path / "report.tar.gz"
    done = ran(inside(host, "bundle", str(path)))
    assert done.returncode == 0 and "addresses" in done.stderr
    snapshot = unpack(path.read_bytes())
    assert {link.name: link.mtu for link in snapshot.nets[host.inode].links.values()} == mtus_from_ip(host)
    shown = ran([*PROGRAM, "--from", str(path), "show", "links"])
    assert "br-shop" in shown.stdout
