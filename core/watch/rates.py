"""Work out rates of NAT rules, conntrack errors and broadcasts."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from core.collect.broadcasts import Broadcasts
from core.flows.interpretation import TRANSLATING, translated_by
from core.flows.merge import FlowTable
from core.history import History
from core.model import Conntrack, ConntrackStats, Firewall, FirewallRule, LinkKey, Part
from core.rates import Histories, Rates
from core.storms import LIMITS, StormWatch, group_frames
from core.watch.store import SnapshotStore

_SHARE = 0.02  # of a core, for finding the connections of each rule
_FORGOTTEN_AFTER = 15.0  # seconds after which an earlier sample says nothing about the time since


class NatRates:
    """Feed the history of translating rules with the traffic of their connections.

    A rule's own counter sees only the first packet of each connection. Call it from one thread.
    """

    def __init__(self, history: History) -> None:
        self._history = history
        self._last = -np.inf
        self._due = 0.0
        self._generation = -1
        self._rows: dict[tuple[int, str, str], np.ndarray] = {}

    def feed(self, table: FlowTable, firewalls: Iterable[Firewall], now: float) -> None:
        """Take in the flows as they are `now` (monotonic seconds)."""
        if not table.measured or now < self._due:
            return
        spent = time.thread_time()
        if table.generation != self._generation:
            self._generation, self._rows = table.generation, {}
        found = dict(self._figures(table, firewalls))
        if found and now - self._last < _FORGOTTEN_AFTER:
            self._history.feed([*found], np.array([*found.values()]), self._last, now)
        self._last = now
        self._due = now + (time.thread_time() - spent) / _SHARE

    def _figures(
        self, table: FlowTable, firewalls: Iterable[Firewall]
    ) -> Iterator[tuple[tuple[int, str], tuple[float, float]]]:
        """Packets and bits a second of each rule's connections."""
        for firewall in firewalls:
            for rule in firewall.rules:
                if rule.verdict in TRANSLATING:
                    sums = np.nansum(table.speeds[self._rows_of(table, rule, firewall.ns)], axis=0)
                    yield (firewall.ns, rule.rule_id), (float(sums[2:].sum()), float(sums[:2].sum()))

    def _rows_of(self, table: FlowTable, rule: FirewallRule, ns: int) -> np.ndarray:
        key = ns, rule.rule_id, rule.text
        if key not in self._rows:
            here = table.columns.by_table(np.array([one.ns == ns for one in table.columns.tables], bool))
            self._rows[key] = np.flatnonzero(translated_by(table.columns, rule) & here)
        return self._rows[key]


_SECONDS = 60.0


class ConntrackTrend:
    """Remembers each namespace's counters for a minute; any thread may feed it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[int, deque[tuple[float, ConntrackStats]]] = {}

    def with_earlier(self, tables: Mapping[int, Conntrack]) -> dict[int, Conntrack]:
        """Add earlier counters to tables: the first of the last minute, or those before."""
        with self._lock:
            self._seen = {ns: seen for ns, seen in self._seen.items() if ns in tables}
            return {ns: self._one_with_earlier(table) for ns, table in tables.items()}

    def _one_with_earlier(self, table: Conntrack) -> Conntrack:
        if table.stats is None:
            return table
        now = self._clock()
        seen = self._seen.setdefault(table.ns, deque())
        while len(seen) > 1 and now - seen[1][0] >= _SECONDS:
            seen.popleft()
        if not seen or seen[-1][1] != table.stats or now - seen[-1][0] >= 1.0:
            seen.append((now, table.stats))
        at, stats = seen[0]
        return replace(table, stats_before=stats, stats_seconds=now - at) if at < now else table


# (when it was read, how many) by the kind of frame and the bridge
_Counts = dict[LinkKey, tuple[float, int]]


class BroadcastRates:
    """Watch the host's broadcast counters, which costs next to nothing.

    `poll_soon` is called when they rise, to have the links read.
    """

    def __init__(self, store: SnapshotStore, histories: Histories, poll_soon: Callable[[], None]) -> None:
        self._store, self._poll_soon = store, poll_soon
        self._history = histories.group
        self._taps = Broadcasts()
        self._watch = StormWatch()
        self._polled: tuple[float, dict[int, int]] = (0.0, {})
        self._broadcast: _Counts = {}
        self._multicast: _Counts = {}
        self._last = 0.0

    def poll(self) -> None:
        """Follow bridges; poll links if broadcasts rise or a storm may be over."""
        snapshot = self._store.snapshot
        net = snapshot.nets.get(snapshot.host.netns)
        links = net.links.values() if net else ()
        self._taps.follow({link.ifindex: link.name for link in links if link.kind == "bridge"})
        if self._taps.problems != snapshot.part_problems.get(Part.STORMS, ()):
            self._store.put(Part.STORMS, problems=self._taps.problems)
        at, counts = time.monotonic(), self._taps.read()
        before_at, before = self._polled
        self._polled = at, counts
        many = LIMITS["broadcast"].if_mostly * (at - before_at)
        if snapshot.storms or any(counts[one] - before.get(one, counts[one]) >= many for one in counts):
            self._poll_soon()

    def feed(self, rates: Rates) -> None:
        """Detect storms between the last two readings."""
        if rates.counters is None:
            return
        snapshot, now = self._store.snapshot, rates.counters.taken_at
        broadcast = self._rates_of_broadcast(snapshot.host.netns)
        multicast = self._rates_of_multicast(rates)
        frames = [*group_frames(snapshot.nets, rates, broadcast, multicast)]
        if frames and self._last:
            keys = [(each.bridge, kind) for each in frames for kind in ("broadcast", "multicast")]
            figures = np.array([rate for each in frames for rate in (each.broadcast, each.multicast)])
            self._history.feed(keys, figures[:, None], self._last, now)
            self._store.put(Part.STORMS, storms=self._watch.feed(frames, self._last, now))
        self._last = now

    def _rates_of_broadcast(self, host: int) -> dict[LinkKey, float]:
        at = time.monotonic()
        counts = {LinkKey(host, ifindex): (at, count) for ifindex, count in self._taps.read().items()}
        before, self._broadcast = self._broadcast, counts
        return _risen(before, counts)

    def _rates_of_multicast(self, rates: Rates) -> dict[LinkKey, float]:
        """Multicast frames a second of bridges.

        As multicast of a bridge's own link the kernel counts the frames that its ports received for any
        group, except those filtered by multicast snooping.
        """
        assert rates.counters is not None
        rows, at = rates.counters.rows["multicast"], rates.counters.taken_at
        counts = {
            link.key: (at, int(rows[place]))
            for net in self._store.snapshot.nets.values()
            for link in net.links.values()
            if link.kind == "bridge" and (place := rates.places.get(link.key)) is not None
        }
        before, self._multicast = self._multicast, counts
        return _risen(before, counts)

    def close(self) -> None:
        """Count no more."""
        self._taps.close()


def _risen(before: _Counts, now: _Counts) -> dict[LinkKey, float]:
    """Counts a second, of keys that existed before and didn't restart."""
    found = {}
    for key, (at, count) in now.items():
        earlier, fewer = before.get(key, (at, 0))
        if at > earlier and count >= fewer:
            found[key] = (count - fewer) / (at - earlier)
    return found
