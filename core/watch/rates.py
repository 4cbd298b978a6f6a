"""Work out rates of NAT rules, conntrack errors, broadcasts and storm guards."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from core.collect import conntrack
from core.collect import sockets as reading
from core.collect.broadcasts import Broadcasts
from core.collect.conntrack import lookup, lookup_mask
from core.collect.host import PeerNames
from core.flows.interpretation import TRANSLATING, translated_by
from core.flows.merge import FlowTable
from core.flows.meter import FlowMeter, Reading
from core.model import (
    Conntrack,
    ConntrackStats,
    FastFlows,
    Firewall,
    FirewallRule,
    GuardCounters,
    LinkKey,
    Namespace,
    Part,
    Sockets,
)
from core.netlink.netns import NamespaceGone
from core.rates import Histories, History, Rates
from core.storms import LIMITS, GuardWatch, StormWatch, group_frames
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
        found = dict(self._rule_speeds(table, firewalls))
        if found and now - self._last < _FORGOTTEN_AFTER:
            self._history.feed([*found], np.array([*found.values()]), self._last, now)
        self._last = now
        self._due = now + (time.thread_time() - spent) / _SHARE

    def _rule_speeds(
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
        self._broadcasts = Broadcasts()
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
        self._broadcasts.follow({link.ifindex: link.name for link in links if link.kind == "bridge"})
        if self._broadcasts.problems != snapshot.part_problems.get(Part.STORMS, ()):
            self._store.put(Part.STORMS, problems=self._broadcasts.problems)
        at, counts = time.monotonic(), self._broadcasts.read()
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
        counts = {LinkKey(host, ifindex): (at, count) for ifindex, count in self._broadcasts.read().items()}
        before, self._broadcast = self._broadcast, counts
        return _rates_between(before, counts)

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
        return _rates_between(before, counts)

    def close(self) -> None:
        """Count no more."""
        self._broadcasts.close()


def _rates_between(before: _Counts, now: _Counts) -> dict[LinkKey, float]:
    """Return counts per second of the keys that existed before and didn't restart."""
    found = {}
    for key, (at, count) in now.items():
        earlier, fewer = before.get(key, (at, 0))
        if at > earlier and count >= fewer:
            found[key] = (count - fewer) / (at - earlier)
    return found


# Reads the counters of all storm guards of the host; `bpf.storm_guard.read_counters`.
ReadGuards = Callable[[], Sequence[GuardCounters]]


class StormGuards:
    """Keep the storm guards of the snapshot current; `poll` is called from one thread."""

    def __init__(self, store: SnapshotStore, read: ReadGuards | None) -> None:
        self._store, self._read = store, read
        self._watch = GuardWatch()

    def poll(self) -> None:
        """Read the counters; without the rights to read them there are no guards."""
        snapshot = self._store.snapshot
        if self._read is None or not snapshot.host.netns:
            return
        try:
            counters = self._read()
        except OSError:
            counters = ()
        found = self._watch.feed(snapshot.host.netns, counters, time.monotonic())
        if found != snapshot.storm_guards:
            self._store.put(Part.STORMS, storm_guards=found)


EVERY = 1.0
_SHARE_OF_ALL = 0.04  # of a core, for reading whole tables
_NAMED = 32  # the fastest flows, whose peers' names may be asked for
_SHARE_OF_SOME = 0.025  # of a core, for reading active entries again

ReadFastFlows = Callable[[], FastFlows]


class FlowSampler:
    """Sample all flows; call `read` about once a second, from one thread."""

    def __init__(self, fast: ReadFastFlows | None = None) -> None:
        self._fast = fast
        self.fast: FastFlows | None = None  # of the last whole sample
        self.sockets: Mapping[int, Sockets] = {}  # given with each table
        self._names = PeerNames()
        self._meter = FlowMeter()
        self._next_whole = 0.0
        self._last_read = -np.inf
        self._max_rows = 256  # entries to read again at once

    def read(
        self, namespaces: Mapping[int, Namespace], whole: bool = False
    ) -> tuple[FlowTable, dict[int, Conntrack] | None]:
        """Return the current flows, and the tables if these were read whole.

        `whole` forces that.
        """
        began = time.monotonic()
        if began - self._last_read > _FORGOTTEN_AFTER:
            self._meter.discard_times()
            whole = True
        self._last_read = began
        if not whole and began < self._next_whole:
            return self._add_names_and_sockets(self._read_some(namespaces)), None
        spent = time.thread_time()
        readings = read_timed(namespaces)
        self.fast = self._read_fast()
        table = self._meter.feed(readings, self.fast, time.monotonic(), time.time())
        spent = time.thread_time() - spent
        self._next_whole = began + max(EVERY * 0.9, spent / _SHARE_OF_ALL)
        return self._add_names_and_sockets(table), {one.table.ns: one.table for one in readings}

    def _add_names_and_sockets(self, table: FlowTable) -> FlowTable:
        """Add sockets and DNS names; the addresses of the fastest flows are resolved."""
        if self._names.reverse:
            self._names.query(self._meter.busiest_addresses(_NAMED))
        return replace(table, sockets=self.sockets, names=self._names.all_names())

    def _read_fast(self) -> FastFlows | None:
        return self._fast() if self._fast is not None else None

    def _read_some(self, namespaces: Mapping[int, Namespace]) -> FlowTable:
        """Read those again that move: the fastest, as many as the share allows."""
        spent = time.thread_time()
        rows = self._meter.active_rows(time.monotonic(), self._max_rows)
        parts, wanted, start = {}, [], 0
        for table in self._meter.table.tables:
            mine = rows[(rows >= start) & (rows < start + len(table.entries))]
            mine = mine[lookup_mask(table.entries[mine - start])]
            if len(mine) and table.ns in namespaces and table.ns not in parts:
                try:
                    parts[table.ns] = lookup(namespaces[table.ns], table.entries[mine - start])
                    wanted.append(mine)
                except (NamespaceGone, OSError):
                    pass
            start += len(table.entries)
        asked = np.concatenate(wanted) if wanted else np.zeros(0, np.intp)
        flows = self._meter.feed_some(parts, asked, self._read_fast(), time.monotonic(), time.time())
        self._adapt_max_rows(time.thread_time() - spent, len(asked))
        return flows

    def _adapt_max_rows(self, spent: float, count: int) -> None:
        """Ask for so many the next time that the share is kept."""
        allowed = EVERY * _SHARE_OF_SOME
        if spent > allowed:
            self._max_rows = max(64, int(self._max_rows * allowed / spent))
        elif count == self._max_rows:
            self._max_rows = min(65536, self._max_rows * 2)


def read_timed(namespaces: Mapping[int, Namespace]) -> list[Reading]:
    """Read the tables of all namespaces with the times of reading.

    Namespaces that vanish meanwhile are left out.
    """
    readings = []
    for namespace in namespaces.values():
        began = time.monotonic()
        try:
            table = conntrack.read_conntrack(namespace)
        except NamespaceGone:
            continue
        readings.append(Reading(table, began, time.monotonic()))
    return readings


class SocketReader:
    """Read sockets and their processes; descriptors of processes are cached."""

    def __init__(self) -> None:
        self._holders = reading.Holders()

    def read(self, namespaces: Mapping[int, Namespace]) -> dict[int, Sockets]:
        """Read the sockets of all namespaces."""
        return reading.read_all(namespaces, self._holders)
