"""The watcher's snapshots follow changes of the kernel by `ip`."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from core.model import RECORDING_DEMAND, Demand, FastFlows, Namespace, Part, Snapshot
from core.watch import watcher
from tests.support.host import ThrowawayHost
from tests.support.waiting import wait_until
from tests.support.watching import Watched

pytestmark = pytest.mark.root


@pytest.fixture
def watched(inside_host: ThrowawayHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """Yield a watcher that reads rules after events only, not at an interval."""
    monkeypatch.setattr(watcher, "_RULES_EVERY", 3600.0)
    made = Watched()
    made.watcher.start()
    try:
        made.until(lambda s: not s.pending & {"links", "containers", "firewall"})
        yield made
    finally:
        made.watcher.stop()


def names(snapshot: Snapshot, inode: int) -> set[str]:
    net = snapshot.nets.get(inode)
    return {link.name for link in net.links.values()} if net else set()


def test_the_host_is_the_programs_namespace(watched: Watched, host: ThrowawayHost) -> None:
    assert watched.snapshot.host.netns == host.inode
    assert watched.snapshot.namespaces[host.inode].is_host


def test_created_and_removed_links_are_noticed_in_any_namespace(
    watched: Watched, host: ThrowawayHost
) -> None:
    host.namespace("web")
    web = host.inode_of("web")
    watched.until(lambda s: web in s.nets)
    host.run("ip link add br7 type bridge", inside="web")
    watched.until(lambda s: "br7" in names(s, web))
    host.run("ip link del br7", inside="web")
    watched.until(lambda s: "br7" not in names(s, web))
    assert any("br7" in change.sentence and change.action == "added" for change in watched.changes)


def test_watching_does_not_keep_a_removed_namespace_alive(watched: Watched, host: ThrowawayHost) -> None:
    host.run("ip link add br0 type bridge")
    host.container("web", "br0", "10.9.0.2/24")
    web = host.inode_of("web")
    watched.until(lambda s: "eth0" in names(s, web) and "v-web" in names(s, host.inode))
    subprocess.run(["ip", "netns", "del", host.full("web")], check=True)
    watched.until(lambda s: web not in s.namespaces and web not in s.nets)
    watched.until(lambda s: "v-web" not in names(s, host.inode))
    assert "v-web" not in {link["ifname"] for link in host.json("ip -j link")}


def test_rules_are_read_again_when_they_change(watched: Watched, host: ThrowawayHost) -> None:
    host.run("nft add table ip vt")
    host.run("nft add chain ip vt post { type nat hook postrouting priority 100 ; }")
    host.run("nft add rule ip vt post ip saddr 10.9.0.0/24 masquerade")
    watched.until(lambda s: any(r.verdict == "masquerade" for r in s.firewalls[host.inode].rules))
    host.run("nft flush ruleset")
    watched.until(lambda s: not s.firewalls[host.inode].rules)


def test_unchanged_parts_stay_the_same_objects(watched: Watched, host: ThrowawayHost) -> None:
    kept = watched.snapshot.nets[host.inode], watched.snapshot.firewalls[host.inode]
    watched.watcher.refresh()
    seen = len(watched.updates)
    host.namespace("new")
    new = host.inode_of("new")
    watched.until(lambda s: new in s.nets and new in s.firewalls)
    assert len(watched.updates) > seen
    assert (watched.snapshot.nets[host.inode], watched.snapshot.firewalls[host.inode]) == kept
    assert watched.snapshot.nets[host.inode] is kept[0]
    assert watched.snapshot.firewalls[host.inode] is kept[1]


def test_a_thousand_links_in_a_second_end_in_the_right_snapshot(
    watched: Watched, host: ThrowawayHost
) -> None:
    batch = "".join(f"link add t{n} group {7 if n < 999 else 8} type bridge\n" for n in range(1000))
    batch += "link del group 7\n"
    subprocess.run(["ip", "-n", host.name, "-batch", "-"], input=batch, text=True, check=True)
    watched.until(lambda s: {n for n in names(s, host.inode) if n[0] == "t"} == {"t999"}, timeout=90)


def test_an_overrun_is_counted_and_everything_is_read_again(inside_host: ThrowawayHost) -> None:
    host, watched = inside_host, Watched(event_buffer=4096)
    watched.watcher.start()
    try:
        watched.until(lambda s: "links" not in s.pending)
        batch = "".join(f"link add u{n} group 7 type bridge\n" for n in range(300))
        batch += "link del group 7\nlink add last type bridge\n"
        subprocess.run(["ip", "-n", host.name, "-batch", "-"], input=batch, text=True, check=True)
        watched.until(lambda s: names(s, host.inode) == {"lo", "last"}, timeout=60)
        assert watched.watcher.overruns >= 1
        assert any("more kernel events" in change.sentence for change in watched.changes)
    finally:
        watched.watcher.stop()


def test_rates_follow_real_traffic(watched: Watched, host: ThrowawayHost) -> None:
    host.run("ip link add br0 type bridge")
    host.run("ip addr add 10.9.0.1/24 dev br0")
    host.run("ip link set br0 up")
    host.container("web", "br0", "10.9.0.2/24")
    watched.watcher.set_demand({Demand.RATES})
    watched.until(lambda s: "v-web" in names(s, host.inode))
    key = next(link.key for link in watched.snapshot.links() if link.name == "v-web")
    pinging = subprocess.Popen(
        ["ip", "netns", "exec", host.name, "ping", "-q", "-i", "0.02", "-s", "1000", "10.9.0.2"],
        stdout=subprocess.DEVNULL,
    )
    try:
        wanted = pytest.approx(50 * 1042 * 8, rel=0.4)
        wait_until(lambda: (rate := watched.updates[-1].rates.of(key)) is not None and rate.rx_bps == wanted)
    finally:
        pinging.kill()
        pinging.wait()


def test_a_mount_at_another_path_is_found(watched: Watched, host: ThrowawayHost, tmp_path: Path) -> None:
    host.namespace("kept")
    inode = host.inode_of("kept")
    place = tmp_path / "ns"
    place.touch()
    subprocess.run(["mount", "--bind", f"/run/netns/{host.full('kept')}", str(place)], check=True)
    try:
        subprocess.run(["ip", "netns", "del", host.full("kept")], check=True)
        watched.watcher.refresh()
        snapshot = watched.until(lambda s: inode in s.namespaces and not s.namespaces[inode].names)
        assert str(place) in snapshot.namespaces[inode].mounts
    finally:
        wait_until(
            lambda: not subprocess.run(["umount", str(place)], check=False).returncode
        )  # while it is read
    watched.until(lambda s: inode not in s.namespaces)


def test_fast_counters_are_published_with_earlier_conntrack_entries(inside_host: ThrowawayHost) -> None:
    """While flows are shown, two pollers take turns; a recording keeps both results."""
    inside_host.run("nft add table ip t")
    inside_host.run(["nft", "add chain ip t c { type filter hook input priority 0; }"])
    inside_host.run("nft add rule ip t c ct state new accept")
    made = Watched(fast_flows=lambda: FastFlows(inside_host.inode, taken_at=time.time()))
    made.watcher.set_demand({Demand.FLOWS, *RECORDING_DEMAND})
    made.watcher.start()
    looks: set[float] = set()

    def several(snapshot: Snapshot) -> bool:
        inside_host.run("ping -c 1 -W 5 127.0.0.1")
        looks.update(one.taken_at for one in snapshot.conntracks.values())
        return len(looks) > 8

    try:
        made.until(several, 60)
    finally:
        made.watcher.stop()
    pairs = [
        (update.fast.taken_at, table.taken_at)
        for update in made.updates
        if update.fast is not None
        for table in update.snapshot.conntracks.values()
    ]
    assert pairs and all(fast >= table for fast, table in pairs)


def fail_for_a_second(monkeypatch: pytest.MonkeyPatch, owner: object, method: str) -> None:
    """Make a method of that object raise, until events about one change have come."""
    call, end = getattr(owner, method), time.monotonic() + 1.0

    def fail_or_call(*arguments: object) -> object:
        if time.monotonic() < end:
            raise OSError("no answer")
        return call(*arguments)

    monkeypatch.setattr(owner, method, fail_or_call)


def test_a_link_that_a_failed_read_missed_is_read_later(
    watched: Watched, host: ThrowawayHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_for_a_second(monkeypatch, watched.watcher, "_poll_namespaces")
    host.run("ip link add br7 type bridge")
    watched.until(lambda s: s.part_problems.get(Part.LINKS))
    watched.until(lambda s: "br7" in names(s, host.inode) and not s.part_problems[Part.LINKS])


def test_rules_that_a_failed_read_missed_are_read_with_the_next(
    watched: Watched, host: ThrowawayHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.namespace("web")
    web = host.inode_of("web")
    watched.until(lambda s: web in s.firewalls)
    fail_for_a_second(monkeypatch, watched.watcher._rule_meter, "feed")
    host.run("nft table ip here { chain post { ; } ; }")
    watched.until(lambda s: s.part_problems.get(Part.FIREWALL))
    time.sleep(1.0)
    host.run("nft table ip there { chain post { ; } ; }", inside="web")
    watched.until(lambda s: not s.part_problems[Part.FIREWALL])
    assert [chain.table for chain in watched.snapshot.firewalls[host.inode].chains] == ["here"]


def test_after_a_failed_first_read_everything_is_read(
    inside_host: ThrowawayHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched()
    read, failures = watched.watcher._poll_namespaces, [OSError("no answer"), OSError("still none")]

    def poll_namespaces(deep: bool) -> Mapping[int, Namespace]:
        if failures:
            raise failures.pop(0)
        return read(deep)

    monkeypatch.setattr(watched.watcher, "_poll_namespaces", poll_namespaces)
    watched.watcher.start()
    try:
        failed = watched.until(lambda s: Part.LINKS in s.part_problems)
        assert failed.part_problems[Part.LINKS][0].why == "OSError: no answer"
        watched.until(lambda s: names(s, inside_host.inode) == {"lo"} and not s.part_problems[Part.LINKS])
        watched.until(lambda s: inside_host.inode in s.firewalls and "plain" in s.engines)
    finally:
        watched.watcher.stop()
