"""Watch the host: events say when to read, dumps say what exists."""

from __future__ import annotations

import ctypes
import selectors
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping

from core.collect import conntrack, engines, firewall, frr, links, namespaces, ovs, sockets
from core.collect.host import read_host
from core.collect.snapshot import read_each, read_engines
from core.model import Change, Demand, Namespace, Part, Problem, Ref
from core.netlink.events import RECV_BUFFER, EventSocket, assign_nsids
from core.rates import RateMeter, RuleMeter
from core.update import Update
from core.watch.drops import DropWatch, OpenDrops
from core.watch.poller import Poller
from core.watch.rates import EVERY as _FLOWS_EVERY
from core.watch.rates import (
    BroadcastRates,
    ConntrackTrend,
    FlowSampler,
    NatRates,
    ReadFastFlows,
    ReadGuards,
    SocketReader,
    StormGuards,
)
from core.watch.store import SnapshotStore

_SCAN_EVERY = 2.0  # seconds between cheap scans for namespaces, which send no events
_DEEP_EVERY = 30.0  # seconds between scans of every process's descriptors and mounts
_ENGINES_EVERY = 30.0
_OVS_EVERY = 5.0
_FRR_EVERY = 5.0
_RULES_EVERY = 10.0  # iptables-legacy sends no event, counters neither
_RULES_SHOWN_EVERY = 2.0
_CONNTRACK_EVERY = 1.0
_CONNTRACK_COUNTED_EVERY = 10.0  # where only the number of connections shows
_STATS_EVERY = 1.0
_LISTENERS_EVERY = 1.0  # sockets send no event when they begin or stop to listen
_SOCKETS_EVERY = 2.0
_STATS_HIDDEN_EVERY = 10.0  # the step of the last hour's history
_STORMS_EVERY = 1.0  # broadcast counters of bridges: a storm is reported whatever is in sight
_DROPS_EVERY = 1.0
_DROPS_HIDDEN_EVERY = 5.0  # once counted, for the finding
_NEED_FLOWS = frozenset({Demand.FLOWS, Demand.NAT_RATES})


class Watcher:
    """Keep a snapshot current, and give `listener` each update, from own threads.

    `start` returns at once. Conntrack, flows, rule counters and rates are read often only while `set_demand`
    asks for them.
    """

    def __init__(
        self,
        listener: Callable[[Update], None],
        event_buffer: int = RECV_BUFFER,
        fast_flows: ReadFastFlows | None = None,
        open_drops: OpenDrops | None = None,
        read_guards: ReadGuards | None = None,
    ) -> None:
        """`event_buffer` is the size in bytes of the kernel's event queue.

        `fast_flows` reads the fast path's counters, None without one; `open_drops` begins to count dropped
        packets; `read_guards` reads the counters of storm guards.
        """
        self.store = SnapshotStore(listener)
        self._event_buffer = event_buffer
        self._meter = RateMeter()
        self._conntrack_trend = ConntrackTrend()
        self._rule_meter = RuleMeter(self._meter.histories.rules)
        self._nat_rates = NatRates(self._meter.histories.translated)
        self._demand = frozenset({Demand.RATES})
        self._fast_flows = fast_flows
        self._flow_reader, self._socket_reader = FlowSampler(fast_flows), SocketReader()
        self._whole = threading.Event()  # set: the next sample is of all flows
        self._lock = threading.Lock()
        self._dirty_nets: set[int] | None = None  # None: all of them
        self._dirty_rules: set[int] | None = None
        self._deep_due = 0.0
        self._overruns = 0
        self._events: EventSocket | None = None
        self._stopped = threading.Event()
        self._failures: dict[Part, Problem] = {}
        self._nets = self._poller(Part.LINKS, self._poll_nets, _SCAN_EVERY)
        self._rules = self._poller(Part.FIREWALL, self._poll_rules, _RULES_EVERY, debounce=0.1)
        self._containers = self._poller(Part.CONTAINERS, self._poll_engines, _ENGINES_EVERY, debounce=0.1)
        self._ovs = self._poller(Part.OVS, self._poll_ovs, _OVS_EVERY)
        self._frr = self._poller(Part.FRR, self._poll_frr, _FRR_EVERY)
        self._conntrack = self._poller(Part.CONNTRACK, self._poll_conntrack, None, debounce=0.0)
        # The flow sampler limits its share itself: less for all flows than for active ones.
        self._flows = self._poller(Part.FLOWS, self._poll_flows, None, debounce=0.0, share=0.5)
        self._sockets = self._poller(Part.SOCKETS, self._poll_sockets, None, debounce=0.0, share=0.02)
        self._stats = self._poller(Part.STATS, self._poll_stats, _STATS_EVERY, debounce=0.0, share=0.02)
        self._broadcasts = BroadcastRates(self.store, self._meter.histories, self._stats.mark)
        self._guards = StormGuards(self.store, read_guards)
        self._storms = self._poller(Part.STORMS, self._poll_storms, _STORMS_EVERY, debounce=0.0, share=0.01)
        self._listeners = self._poller(
            Part.LISTENERS, self._poll_listeners, _LISTENERS_EVERY, debounce=0.0, share=0.02
        )
        self._drop_watch = DropWatch(self.store, open_drops)
        self._drops = self._poller(Part.DROPS, self._drop_watch.poll, None, debounce=0.0, share=0.05)
        self._pollers = (
            self._nets, self._rules, self._containers, self._ovs, self._frr, self._conntrack, self._stats,
            self._storms, self._flows, self._sockets, self._drops, self._listeners,
        )  # fmt: skip

    def start(self) -> None:
        """Begin to watch."""
        map_large_arrays()
        self._nets.mark()
        self._nets.start()
        threading.Thread(target=self._listen, name="hear-events", daemon=True).start()

    def stop(self) -> None:
        """End all threads; none of them holds anything that outlives the process."""
        self._stopped.set()
        for poller in self._pollers:
            poller.stop()
        self._broadcasts.close()
        self._drop_watch.close()

    def refresh(self) -> None:
        """Read everything again."""
        with self._lock:
            self._dirty_nets = self._dirty_rules = None
            self._deep_due = 0.0
        self._whole.set()
        for poller in self._pollers:
            poller.mark()

    def set_demand(self, demand: Collection[Demand]) -> None:
        """Set the readings that are needed; pollers' intervals follow from it."""
        before, wanted = self._demand, frozenset(demand)
        self._demand = wanted
        self._demand_drops(before, wanted)
        counted = _CONNTRACK_COUNTED_EVERY if Demand.CONNECTION_COUNT in wanted else None
        self._conntrack.set_every(_CONNTRACK_EVERY if Demand.CONNTRACK in wanted else counted)
        self._flows.set_every(_FLOWS_EVERY if wanted & _NEED_FLOWS else None)
        self._sockets.set_every(_SOCKETS_EVERY if Demand.FLOWS in wanted else None)
        self._rules.set_every(_RULES_SHOWN_EVERY if Demand.RULE_COUNTERS in wanted else _RULES_EVERY)
        self._stats.set_every(_STATS_EVERY if Demand.RATES in wanted else _STATS_HIDDEN_EVERY)

    def _demand_drops(self, before: Collection[Demand], wanted: Collection[Demand]) -> None:
        """Count drops from the first demand on; single packets are listed for a while."""
        report = Demand.DROP_PACKETS in wanted and Demand.DROP_PACKETS not in before
        if report or (Demand.DROPS in wanted and Demand.DROPS not in before):
            self._drop_watch.demand(report)
            self._drops.mark()
        if Demand.DROPS in wanted or self._drops.every is not None:
            self._drops.set_every(_DROPS_EVERY if Demand.DROPS in wanted else _DROPS_HIDDEN_EVERY)

    @property
    def overruns(self) -> int:
        """How often the kernel had more events than our socket could hold."""
        return self._overruns

    # ---- looking: what is

    def _poller(
        self,
        part: Part,
        poll: Callable[[], None],
        every: float | None,
        debounce: float = 0.02,
        share: float = 0.1,
    ) -> Poller:
        def poll_and_clear() -> None:
            poll()
            failure = self._failures.pop(part, None)
            if failure and self.store.snapshot.part_problems.get(part) == (failure,):
                self.store.put(part, problems=())

        return Poller(part, poll_and_clear, self._failed, every, debounce, share)

    def _failed(self, name: str, error: Exception) -> None:
        """Report why a part couldn't be read, until it can; all of it is read then."""
        why = f"{type(error).__name__}: {error}"
        part = Part(name)
        self._failures[part] = Problem(part, f"can't read {part}", why, "press r to read again")
        with self._lock:
            if part == Part.LINKS:
                self._dirty_nets = None
            elif part == Part.FIREWALL:
                self._dirty_rules = None
        self.store.put(part, problems=(self._failures[part],))

    def _poll_nets(self) -> None:
        """Read links; the other parts begin after the first time, even if it fails."""
        first = Part.LINKS in self.store.snapshot.pending
        try:
            self._read_nets(first)
        finally:
            if first:
                self._start_other_pollers()

    def _read_nets(self, first: bool) -> None:
        """Read namespaces, then the links of those that are new or dirty."""
        with self._lock:
            dirty, self._dirty_nets = self._dirty_nets, set()
            deep = not first and time.monotonic() >= self._deep_due
            if deep:
                self._deep_due = time.monotonic() + _DEEP_EVERY
        old = self.store.snapshot.namespaces
        known = self._poll_namespaces(deep)
        nets = self.store.snapshot.nets
        # The kernel reuses the inode of a dead namespace: other attributes mean another namespace.
        wanted = [
            ns
            for inode, ns in known.items()
            if dirty is None or inode in dirty or inode not in nets or ns != old.get(inode)
        ]
        read = links.read_nets(wanted, known.values()) if wanted else {}
        kept = {inode: net for inode, net in nets.items() if inode in known}
        self.store.put(Part.LINKS, nets=_keep_equal_parts(kept, read))

    def _poll_namespaces(self, deep: bool) -> Mapping[int, Namespace]:
        """Read namespaces; results of a deep scan stay until the next, while accessible."""
        found, problems = namespaces.read_namespaces(deep=deep)
        old = self.store.snapshot.namespaces
        if not deep:
            found = namespaces.merge_scans(old, found)
        if found.keys() - old.keys():
            assign_nsids(found.values())
            found = namespaces.with_nsids(found)
        self.store.put(Part.NAMESPACES, namespaces=found, problems=problems, host=read_host())
        if found != old:
            self._containers.mark()
            self._mark_rules(found.keys() - old.keys())
        return found

    def _start_other_pollers(self) -> None:
        for poller in self._pollers[1:]:
            poller.mark()
            poller.start()
        # Listening to podman's events would keep its service running; new namespaces reveal its containers.
        threading.Thread(
            target=engines.watch_docker,
            args=(self._stopped, self._containers.mark),
            name="hear-docker",
            daemon=True,
        ).start()

    def _poll_rules(self) -> None:
        snapshot = self.store.snapshot
        with self._lock:
            dirty, self._dirty_rules = self._dirty_rules, set()
        if dirty is not None:  # those with rules are read for their counters
            dirty |= {inode for inode, rules in snapshot.firewalls.items() if rules.rules}
        kept = {i: rules for i, rules in snapshot.firewalls.items() if i in snapshot.namespaces}
        wanted = {i: ns for i, ns in snapshot.namespaces.items() if dirty is None or i in dirty}
        read = firewall.read_firewalls(wanted)
        self._rule_meter.feed(read.values(), time.monotonic())
        self.store.put(Part.FIREWALL, firewalls=_keep_equal_parts(kept, read))

    def _poll_engines(self) -> None:
        self.store.put(Part.CONTAINERS, engines=read_engines(self.store.snapshot.namespaces))

    def _poll_ovs(self) -> None:
        bridges, problems = ovs.read_ovs()
        self.store.put(Part.OVS, ovs=bridges, problems=problems)

    def _poll_frr(self) -> None:
        found, problems = frr.read_frr()
        self.store.put(Part.FRR, frr=found, problems=problems)

    def _poll_listeners(self) -> None:
        read = sockets.read_all_listeners(self.store.snapshot.namespaces)
        old = self.store.snapshot.listeners
        if read != old:
            kept = {inode: found for inode, found in old.items() if inode in read}
            self.store.put(Part.LISTENERS, listeners=_keep_equal_parts(kept, read))

    def _poll_conntrack(self) -> None:
        tables = read_each(conntrack.read_conntrack, self.store.snapshot.namespaces)
        fast = self._fast_flows() if self._fast_flows and Demand.FAST_FLOWS in self._demand else None
        self.store.put(Part.CONNTRACK, fast=fast, conntracks=self._conntrack_trend.with_earlier(tables))

    def _poll_flows(self) -> None:
        if not self._demand & _NEED_FLOWS:
            return
        whole = self._whole.is_set()
        self._whole.clear()
        snapshot = self.store.snapshot
        flows, tables = self._flow_reader.read(snapshot.namespaces, whole)
        self._nat_rates.feed(flows, snapshot.firewalls.values(), flows.taken_at)
        if Demand.FLOWS in self._demand:
            self.store.put_flows(flows)
        if tables is not None:
            self.store.put(
                Part.CONNTRACK,
                fast=self._flow_reader.fast,
                conntracks=self._conntrack_trend.with_earlier(tables),
            )

    def _poll_sockets(self) -> None:
        if Demand.FLOWS in self._demand:
            self._flow_reader.sockets = self._socket_reader.read(self.store.snapshot.namespaces)

    def _poll_storms(self) -> None:
        self._broadcasts.poll()
        self._guards.poll()

    def _poll_stats(self) -> None:
        read = links.read_stats(self.store.snapshot.namespaces.values())
        rates = self._meter.feed(read)
        self._broadcasts.feed(rates)
        self.store.put_rates(rates, publish=Demand.RATES in self._demand)

    # ---- hearing: when to look

    def _listen(self) -> None:
        try:
            self._events = EventSocket(self._event_buffer)
        except OSError as error:
            why = f"{error.strerror}, so changes are seen only every {_SCAN_EVERY:.0f} s"
            problem = Problem(Part.EVENTS, "can't receive kernel events", why)
            self.store.put(Part.EVENTS, problems=(problem,))
            return
        with selectors.DefaultSelector() as selector:
            for descriptor in self._events.filenos():
                selector.register(descriptor, selectors.EVENT_READ)
            while not self._stopped.is_set():
                if selector.select(timeout=1.0):
                    self._on_events(self._events.read())
        self._events.close()

    def _on_events(self, events: set[tuple[int | None, str]]) -> None:
        """Mark the parts that events are about; after an overrun, mark everything."""
        assert self._events is not None
        if self._events.overruns != self._overruns:
            self._overruns = self._events.overruns
            sentence = (
                f"more kernel events came than the socket could hold ({self._overruns} times): "
                "everything is read again"
            )
            self.store.note(Change(time.time(), "changed", Ref("event", ("overrun",)), sentence))
            self.refresh()
            return
        by_nsid = {ns.nsid: inode for inode, ns in self.store.snapshot.namespaces.items()}
        by_nsid[None] = self.store.snapshot.host.netns
        self._mark_rules({by_nsid[nsid] for nsid, part in events if part == "nft" and nsid in by_nsid})
        nets = {by_nsid.get(nsid) for nsid, part in events if part in ("links", "routes", "neighbours")}
        with self._lock:
            if self._dirty_nets is not None:
                self._dirty_nets |= {inode for inode in nets if inode is not None}
        if any(part != "nft" for _, part in events):
            self._nets.mark()

    def _mark_rules(self, inodes: Iterable[int]) -> None:
        inodes = set(inodes)
        if not inodes:
            return
        with self._lock:
            if self._dirty_rules is not None:
                self._dirty_rules |= inodes
        self._rules.mark()


def _keep_equal_parts[Part](old: Mapping[int, Part], read: Mapping[int, Part]) -> dict[int, Part]:
    """Old parts with the new ones that differ; equal parts stay the same object."""
    merged = dict(old)
    for inode, part in read.items():
        if merged.get(inode) != part:
            merged[inode] = part
    return merged


_M_MMAP_THRESHOLD = -3  # malloc.h of glibc
_LARGE = 1 << 20  # bytes


def map_large_arrays() -> None:
    """Make malloc(3) map each large array by itself.

    By default glibc soon takes them from heaps of each thread, which seldom shrink. Other C libraries are
    left unchanged.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
