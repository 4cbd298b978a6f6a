"""Findings are worked out again only if what they depend on has changed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from core.diagnose import findings, kept, paths
from core.diagnose.kept import Kept
from core.model import Conntrack, Firewall, FirewallRule, Neighbour, Snapshot
from core.model.conntrack import CONNTRACK_DTYPE
from core.topology import Topology
from tests.support.host_builder import HOST
from tests.support.snapshots import small_host


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    kept.forget()
    yield
    kept.forget()


def valid(before: Snapshot, after: Snapshot) -> Kept | None:
    """Return what is still valid of the findings about a snapshot, None if nothing is."""
    first = kept.kept(Topology(before))
    second = kept.kept(Topology(after))
    return first if first is second else None


def with_neighbour(snapshot: Snapshot, state: str) -> Snapshot:
    net = snapshot.nets[HOST]
    one = Neighbour(4, "192.0.2.77", "02:00:00:00:00:77", 2, state)
    return replace(snapshot, nets={**snapshot.nets, HOST: replace(net, neighbours=(*net.neighbours, one))})


def with_rule(snapshot: Snapshot, text: str, packets: int) -> Snapshot:
    rule = FirewallRule("nft", "ip", "t", "c", rule_id="ip/t/c/7", text=text, packets=packets)
    return replace(snapshot, firewalls={HOST: Firewall(HOST, rules=(rule,))})


def test_learned_neighbours_and_counters_dont_matter() -> None:
    host = small_host()
    assert valid(host, with_neighbour(host, "reachable"))
    assert valid(with_rule(host, "drop", 1), with_rule(host, "drop", 2))
    assert valid(host, replace(host, pending=frozenset(), conntracks={}))


def test_what_stops_packets_matters() -> None:
    host = small_host()
    assert not valid(with_neighbour(host, "stale"), with_neighbour(host, "failed"))
    assert not valid(with_rule(host, "drop", 1), with_rule(host, "accept", 1))
    assert not valid(host, replace(host, nets={ns: net for ns, net in host.nets.items() if ns == HOST}))
    full = Conntrack(HOST, np.zeros(4, CONNTRACK_DTYPE), limit=4)
    assert not valid(replace(host, conntracks={}), replace(host, conntracks={HOST: full}))


def test_evidence_of_counters_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    host = small_host()
    monkeypatch.setattr(kept, "_LONGEST", 0.0)
    assert not valid(with_rule(host, "drop", 1), with_rule(host, "drop", 2))
    assert valid(host, replace(host))


def test_paths_are_followed_once_for_equal_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    host, calls = small_host(), []
    followed = paths.paths
    monkeypatch.setattr(paths, "paths", lambda topology: calls.append(topology) or followed(topology))
    first = findings(Topology(host))
    assert findings(Topology(with_neighbour(host, "stale"))) == first and len(calls) == 1
    assert findings(Topology(with_neighbour(host, "failed"))) == first and len(calls) == 2


def test_a_diagnosis_doesnt_keep_its_topology() -> None:
    topology = Topology(small_host())
    findings(topology)
    alive = weakref.ref(topology)
    gc.disable()
    try:
        del topology
        assert alive() is None
    finally:
        gc.enable()
