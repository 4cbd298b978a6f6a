"""Deleting connections: by a plan, and by the command that it prints."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from core.apply import journal, run
from core.collect.conntrack import read_conntrack
from core.collect.snapshot import read_snapshot
from core.flows import ConntrackEntry, entry_of
from core.model import Namespace, Part
from core.operations import CreateBridge, DeleteConnection
from core.plan import Plan, Refused, plan
from core.plan.containers import delete_flow
from core.plan.requests import DeleteFlow
from core.topology import Topology
from tests.support.host import ThrowawayHost

pytestmark = pytest.mark.root

PORTS = "-s 1.2.3.4 -d 5.6.7.8 --sport 5 --dport 6 -t 300"
# Each kind, and a similar entry with one difference that must remain.
KINDS: Mapping[str, tuple[str, str]] = {
    "udp": (f"-p udp {PORTS}", f"-p tcp {PORTS} --state ESTABLISHED"),
    "tcp": (f"-p tcp {PORTS} --state ESTABLISHED -u SEEN_REPLY,ASSURED", f"-p tcp {PORTS} --state NONE -w 3"),
    "port": (f"-p udp {PORTS}", "-p udp -s 1.2.3.4 -d 5.6.7.8 --sport 5 --dport 7 -t 300"),
    "zone": (f"-p udp {PORTS} -w 7", f"-p udp {PORTS}"),
    "no-zone": (f"-p udp {PORTS}", f"-p udp {PORTS} -w 7"),
    "orig-zone": (f"-p udp {PORTS} --orig-zone 7", "-p udp -s 1.2.3.4 -d 5.6.7.8 --sport 7 --dport 6 -t 300"),
    "translated": (f"-p udp {PORTS} -r 5.6.7.8 -q 9.9.9.9 --reply-port-src 6 --reply-port-dst 99",
                   "-p udp -s 1.2.3.4 -d 5.6.7.8 --sport 6 --dport 6 -t 300"),
    "icmp": ("-p icmp -s 1.2.3.4 -d 5.6.7.8 --icmp-type 8 --icmp-code 0 --icmp-id 44 -t 300",
             "-p icmp -s 1.2.3.4 -d 5.6.7.8 --icmp-type 8 --icmp-code 0 --icmp-id 45 -t 300"),
    "icmpv6": ("-p icmpv6 -s fd00::1 -d fd00::2 --icmpv6-type 128 --icmpv6-code 0 --icmpv6-id 44 -t 300",
               "-p icmpv6 -s fd00::1 -d fd00::2 --icmpv6-type 128 --icmpv6-code 0 --icmpv6-id 4 -t 300"),
    "ipv6": ("-p udp -s fd00::1 -d fd00::2 --sport 5 --dport 6 -t 300",
             "-p udp -s fd00::1 -d fd00::3 --sport 5 --dport 6 -t 300"),
    "sctp": (f"-p sctp {PORTS} --state ESTABLISHED --orig-vtag 1 --reply-vtag 2", f"-p udp {PORTS}"),
    "gre": ("-p gre -s 1.2.3.4 -d 5.6.7.8 --srckey 5 --dstkey 6 -t 300",
            "-p gre -s 1.2.3.4 -d 5.6.7.8 --srckey 5 --dstkey 7 -t 300"),
    "other": ("-p 89 -s 1.2.3.4 -d 5.6.7.8 -t 300", "-p 89 -s 1.2.3.4 -d 5.6.7.9 -t 300"),
}  # fmt: skip


# Entries that conntrack(8) can't distinguish by its options.
COARSE = ("orig-zone", "gre")


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))


def entries(host: ThrowawayHost, inside: str = "host") -> list[ConntrackEntry]:
    table = read_conntrack(Namespace(host.inode_of(inside), entry=f"/run/netns/{host.full(inside)}"))
    return [entry_of(row) for row in table.entries]


def listed(host: ThrowawayHost, inside: str = "host") -> list[str]:
    """Return the ids in `conntrack -L`."""
    lines = host.run("conntrack -L -o id", inside).splitlines() if inside else []
    lines += host.run("conntrack -L -f ipv6 -o id", inside).splitlines()
    return sorted({line.rpartition("id=")[2] for line in lines})


def planned(request: DeleteFlow) -> Plan:
    made = plan(request, Topology(read_snapshot((Part.LINKS,))))
    assert isinstance(made, Plan), made
    return made


def only_one(host: ThrowawayHost, kind: str) -> tuple[DeleteFlow, str]:
    """Create an entry of a kind and a similar one.

    Returns the request to delete the first, and the other's id.
    """
    host.run(f"conntrack -I {KINDS[kind][0]}")
    (target,) = entries(host)
    host.run(f"conntrack -I {KINDS[kind][1]}")
    (other,) = {str(one.id) for one in entries(host)} - {str(target.id)}
    assert listed(host) == sorted((str(target.id), other))
    return delete_flow(host.inode, target), other


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_selected_entry_is_deleted(inside_host: ThrowawayHost, kind: str) -> None:
    request, other = only_one(inside_host, kind)
    made = planned(request)
    assert run.apply(made.title, made.steps).done
    assert listed(inside_host) == [other]
    if kind in COARSE:
        return
    inside_host.run("conntrack -F")
    request, other = only_one(inside_host, kind)
    (step,) = planned(request).steps
    done = subprocess.run(["bash", "-euc", step.command()], capture_output=True, text=True, check=False)
    assert not done.returncode and "1 flow entries have been deleted" in done.stderr, done.stderr
    assert listed(inside_host) == [other]


def test_a_command_that_deletes_more_entries_has_a_warning(inside_host: ThrowawayHost) -> None:
    request, _ = only_one(inside_host, "gre")
    assert any("all of them" in warning for warning in planned(request).warnings)


def test_deleting_in_another_namespace(inside_host: ThrowawayHost) -> None:
    inside_host.namespace("web")
    for inside in ("host", "web"):
        inside_host.run(f"conntrack -I {KINDS['udp'][0]}", inside)
    (target,) = entries(inside_host, "web")
    made = planned(delete_flow(inside_host.inode_of("web"), target))
    (step,) = made.steps
    assert step.command().startswith(f"ip netns exec {inside_host.full('web')} conntrack -D ")
    assert run.apply(made.title, made.steps).done
    assert (len(listed(inside_host)), len(listed(inside_host, "web"))) == (1, 0)


def test_the_journal_marks_it_as_final(inside_host: ThrowawayHost) -> None:
    inside_host.run(f"conntrack -I {KINDS['udp'][0]}")
    (target,) = entries(inside_host)
    bridge = run.apply("bridge", (CreateBridge("br7"),))
    made = planned(delete_flow(inside_host.inode, target))
    assert any("no undo" in warning for warning in made.warnings)
    assert made.side_effects
    done = run.apply(made.title, made.steps)
    entry = journal.find(done.entry_id)
    assert entry is not None and entry.end == "done" and entry.is_final and entry.steps == made.steps
    earlier = journal.find(bridge.entry_id)
    assert earlier is not None and not earlier.is_final and run.undo(earlier).end == "undone"
    outcome = run.undo(entry)
    assert outcome.end == "failed" and "no undo" in outcome.errors[0]
    assert journal.open_entries() == (), "what has no undo is not offered for one"


def test_a_later_connection_with_the_same_addresses_stays(inside_host: ThrowawayHost) -> None:
    inside_host.run(f"conntrack -I {KINDS['udp'][0]}")
    (old,) = entries(inside_host)
    made = planned(delete_flow(inside_host.inode, old._replace(id=old.id ^ 1)))
    assert run.apply(made.title, made.steps).done, "what is gone already counts as forgotten"
    assert listed(inside_host) == [str(old.id)]


def test_several_entries_and_a_removed_namespace(inside_host: ThrowawayHost) -> None:
    for port in range(5, 9):
        inside_host.run(f"conntrack -I -p udp -s 1.2.3.4 -d 5.6.7.8 --sport {port} --dport 6 -t 300")
    steps = [planned(delete_flow(inside_host.inode, one)).steps[0] for one in entries(inside_host)]
    assert run.apply("forget", tuple(steps)).done
    assert listed(inside_host) == []
    gone = plan(DeleteFlow(1, 2, 17, "1.2.3.4", "5.6.7.8"), Topology(read_snapshot((Part.LINKS,))))
    assert isinstance(gone, Refused) and "gone" in gone.reasons[0]


def test_messages() -> None:
    step = DeleteConnection("fd00::1", "fd00::2", 6, 4000, 443, 9)
    assert step.command() == "conntrack -D -f ipv6 -p tcp -s fd00::1 -d fd00::2 --sport 4000 --dport 443 -w 0"
    assert step.describe() == "delete the tcp connection [fd00::1]:4000 -> [fd00::2]:443"
