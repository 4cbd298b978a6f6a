"""Live watching: kernel and engine events say when to look, dumps say what is (never the other way)."""

from __future__ import annotations

import ctypes
import selectors
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from core.collect import conntrack, engines, firewall, links, namespaces, ovs
from core.collect.host import read_host
from core.collect.snapshot import read_each, read_engines
from core.model import Change, Namespace, Problem, Ref
from core.netlink.events import RECV_BUFFER, EventSocket, assign_nsids
from core.rates import RateMeter, RuleMeter
from core.watch.flows import EVERY as _FLOWS_EVERY
from core.watch.flows import FastReader, FlowReader, SocketReader
from core.watch.poller import Poller
from core.watch.rates import FrameCounts, TableTrend, Translations
from core.watch.store import SnapshotStore, Update

_SCAN_EVERY = 2.0  # seconds between cheap looks for namespaces, which send no event of their own
_DEEP_EVERY = 30.0  # seconds between looks into every process's descriptors and mounts
_ENGINES_EVERY = 30.0
_OVS_EVERY = 5.0
_RULES_EVERY = 10.0  # iptables-legacy sends no event, counters neither
_RULES_IN_SIGHT_EVERY = 2.0
_CONNTRACK_EVERY = 1.0
_CONNTRACK_COUNTED_EVERY = 10.0  # where only the number of connections shows
_STATS_EVERY = 1.0
_SOCKETS_EVERY = 2.0
_STATS_OUT_OF_SIGHT_EVERY = 10.0  # the step of the last hour's history
_GLANCE_EVERY = 1.0  # at the broadcasts of bridges: a storm is told whatever is in sight

VIEWS_COUNTING_CONNECTIONS = frozenset({"containers", "networks", "nat"})
_VIEWS_WITH_FLOWS = frozenset({"flows", "nat"})  # translations show what their connections carry
VIEWS_WITH_RATES = frozenset({"overview", "bridges", "veths", "links", "networks", "containers", "nat"})


class Watcher:
    """Keeps a snapshot true and tells `listener` of each new one, from threads of its own.

    `start` returns at once. `show(view)` says what is in sight: conntrack, rule counters and rates are read
    often only while something shows them.
    """

    def __init__(
        self,
        listener: Callable[[Update], None],
        event_buffer: int = RECV_BUFFER,
        fast_flows: FastReader | None = None,
    ) -> None:
        """`event_buffer` is the size in bytes of what the kernel may queue for us; `fast_flows` reads what
        the fast path counted, None where there is none."""
        self.board = SnapshotStore(listener)
        self._event_buffer = event_buffer
        self._meter = RateMeter()
        self._trend = TableTrend()
        self._rule_meter = RuleMeter(self._meter.histories.rules)
        self._translations = Translations(self._meter.histories.translated)
        self._rates_in_sight = True
        self._view, self._all = "", False
        self._fast_flows = fast_flows
        self._flow_reader, self._socket_reader = FlowReader(fast_flows), SocketReader()
        self._whole = threading.Event()  # the next look at flows shall be at all of them
        self._lock = threading.Lock()
        self._dirty_nets: set[int] | None = None  # None: all of them
        self._dirty_rules: set[int] | None = None
        self._deep_due = 0.0
        self._overruns = 0
        self._events: EventSocket | None = None
        self._stopped = threading.Event()
        self._nets = self._looker("links", self._look_nets, _SCAN_EVERY)
        self._rules = self._looker("firewall", self._look_rules, _RULES_EVERY, settle=0.1)
        self._containers = self._looker("containers", self._look_engines, _ENGINES_EVERY, settle=0.1)
        self._ovs = self._looker("ovs", self._look_ovs, _OVS_EVERY)
        self._conntrack = self._looker("conntrack", self._look_conntrack, None, settle=0.0)
        # Readers of flows keep to a share of their own, less for all of them than for those that move.
        self._flows = self._looker("flows", self._look_flows, None, settle=0.0, share=0.5)
        self._sockets = self._looker("sockets", self._look_sockets, None, settle=0.0, share=0.02)
        self._stats = self._looker("stats", self._look_stats, _STATS_EVERY, settle=0.0, share=0.02)
        self._frames = FrameCounts(self.board, self._meter.histories, self._stats.mark)
        self._glances = self._looker("storms", self._frames.glance, _GLANCE_EVERY, settle=0.0, share=0.01)
        self._lookers = (
            self._nets, self._rules, self._containers, self._ovs, self._conntrack, self._stats, self._glances,
            self._flows, self._sockets,
        )  # fmt: skip

    def start(self) -> None:
        """Begin to watch."""
        give_back_large_tables()
        self._nets.mark()
        self._nets.start()
        threading.Thread(target=self._hear, name="hear-events", daemon=True).start()

    def stop(self) -> None:
        """End all threads; none of them holds anything that outlives the process."""
        self._stopped.set()
        for looker in self._lookers:
            looker.stop()
        self._frames.close()

    def refresh(self) -> None:
        """Read everything again."""
        with self._lock:
            self._dirty_nets = self._dirty_rules = None
            self._deep_due = 0.0
        self._whole.set()
        for looker in self._lookers:
            looker.mark()

    def read_all(self, on: bool) -> None:
        """Have every part read often, in sight or not, as long as that is wanted."""
        self._all = on
        self.show(self._view)

    def show(self, view: str) -> None:
        """Say which view is in sight."""
        self._view = view
        counted = _CONNTRACK_COUNTED_EVERY if view in VIEWS_COUNTING_CONNECTIONS else None
        self._conntrack.set_every(_CONNTRACK_EVERY if view == "conntrack" or self._all else counted)
        self._flows.set_every(_FLOWS_EVERY if view in _VIEWS_WITH_FLOWS else None)
        self._sockets.set_every(_SOCKETS_EVERY if view == "flows" else None)
        self._rules.set_every(_RULES_IN_SIGHT_EVERY if view == "nat" or self._all else _RULES_EVERY)
        self._rates_in_sight = view in VIEWS_WITH_RATES or self._all
        self._stats.set_every(_STATS_EVERY if self._rates_in_sight else _STATS_OUT_OF_SIGHT_EVERY)

    @property
    def overruns(self) -> int:
        """How often the kernel had more events than our socket could hold."""
        return self._overruns

    # ---- looking: what is

    def _looker(
        self,
        part: str,
        look: Callable[[], None],
        every: float | None,
        settle: float = 0.02,
        share: float = 0.1,
    ) -> Poller:
        return Poller(part, look, self._failed, every, settle, share)

    def _failed(self, part: str, error: Exception) -> None:
        why = f"{type(error).__name__}: {error}"
        problem = Problem(part, f"reading {part} failed", why, "press r to read again")
        self.board.put(part, problems=(problem,))

    def _look_nets(self) -> None:
        """Namespaces, then the links of those that are new or dirty."""
        first = "links" in self.board.snapshot.pending
        with self._lock:
            dirty, self._dirty_nets = self._dirty_nets, set()
            deep = not first and time.monotonic() >= self._deep_due
            if deep:
                self._deep_due = time.monotonic() + _DEEP_EVERY
        old = self.board.snapshot.namespaces
        known = self._look_namespaces(deep)
        nets = self.board.snapshot.nets
        # The kernel gives the inode of a namespace that died to the next one: another look is another thing.
        wanted = [
            ns
            for inode, ns in known.items()
            if dirty is None or inode in dirty or inode not in nets or ns != old.get(inode)
        ]
        read = links.read_nets(wanted, known.values()) if wanted else {}
        kept = {inode: net for inode, net in nets.items() if inode in known}
        self.board.put("links", nets=_unchanged_kept(kept, read))
        if first:
            self._start_the_rest()

    def _look_namespaces(self, deep: bool) -> Mapping[int, Namespace]:
        """What a deep scan found stays, as long as it can be entered, until the next deep scan."""
        found, problems = namespaces.read_namespaces(deep=deep)
        old = self.board.snapshot.namespaces
        if not deep:
            found = namespaces.merge_scans(old, found)
        if found.keys() - old.keys():
            assign_nsids(found.values())
            found = namespaces.with_nsids(found)
        self.board.put("namespaces", namespaces=found, problems=problems, host=read_host())
        if found != old:
            self._containers.mark()
            self._mark_rules(found.keys() - old.keys())
        return found

    def _start_the_rest(self) -> None:
        for looker in self._lookers[1:]:
            looker.mark()
            looker.start()
        # podman sends no events that would not keep its service running; its namespaces give it away.
        threading.Thread(
            target=engines.watch_docker,
            args=(self._stopped, self._containers.mark),
            name="hear-docker",
            daemon=True,
        ).start()

    def _look_rules(self) -> None:
        snapshot = self.board.snapshot
        with self._lock:
            dirty, self._dirty_rules = self._dirty_rules, set()
        if dirty is not None:  # those that have rules are read for their counters
            dirty |= {inode for inode, rules in snapshot.firewalls.items() if rules.rules}
        kept = {i: rules for i, rules in snapshot.firewalls.items() if i in snapshot.namespaces}
        wanted = {i: ns for i, ns in snapshot.namespaces.items() if dirty is None or i in dirty}
        read = firewall.read_firewalls(wanted)
        self._rule_meter.feed(read.values(), time.monotonic())
        self.board.put("firewall", firewalls=_unchanged_kept(kept, read))

    def _look_engines(self) -> None:
        self.board.put("containers", engines=read_engines(self.board.snapshot.namespaces))

    def _look_ovs(self) -> None:
        bridges, problems = ovs.read_ovs()
        self.board.put("ovs", ovs=bridges, problems=problems)

    def _look_conntrack(self) -> None:
        tables = read_each(conntrack.read_conntrack, self.board.snapshot.namespaces)
        fast = self._fast_flows() if self._fast_flows and self._all else None
        self.board.put("conntrack", fast=fast, conntracks=self._trend.fed(tables))

    def _look_flows(self) -> None:
        if self._view not in _VIEWS_WITH_FLOWS:
            return
        whole = self._whole.is_set()
        self._whole.clear()
        snapshot = self.board.snapshot
        flows, tables = self._flow_reader.look(snapshot.namespaces, whole)
        self._translations.feed(flows, snapshot.firewalls.values(), flows.taken_at)
        if self._view == "flows":
            self.board.put_flows(flows)
        if tables is not None:
            self.board.put("conntrack", fast=self._flow_reader.fast, conntracks=self._trend.fed(tables))

    def _look_sockets(self) -> None:
        if self._view == "flows":
            self._flow_reader.sockets = self._socket_reader.look(self.board.snapshot.namespaces)

    def _look_stats(self) -> None:
        read = links.read_stats(self.board.snapshot.namespaces.values())
        rates = self._meter.feed(read)
        self._frames.take(rates)
        self.board.put_rates(rates, tell=self._rates_in_sight)

    # ---- hearing: when to look

    def _hear(self) -> None:
        try:
            self._events = EventSocket(self._event_buffer)
        except OSError as error:
            why = f"{error.strerror}: changes are seen every {_SCAN_EVERY:.0f} s only"
            self.board.put("events", problems=(Problem("events", "kernel events are not heard", why),))
            return
        with selectors.DefaultSelector() as selector:
            for descriptor in self._events.filenos():
                selector.register(descriptor, selectors.EVENT_READ)
            while not self._stopped.is_set():
                if selector.select(timeout=1.0):
                    self._heard(self._events.read())
        self._events.close()

    def _heard(self, events: set[tuple[int | None, str]]) -> None:
        """Mark what the events concern; an overrun marks everything, and is said."""
        assert self._events is not None
        if self._events.overruns != self._overruns:
            self._overruns = self._events.overruns
            sentence = (
                f"more kernel events came than could be held ({self._overruns} times): all is read again"
            )
            self.board.note(Change(time.time(), "changed", Ref("event", ("overrun",)), sentence))
            self.refresh()
            return
        by_nsid = {ns.nsid: inode for inode, ns in self.board.snapshot.namespaces.items()}
        by_nsid[None] = self.board.snapshot.host.netns
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


def _unchanged_kept[Part](old: Mapping[int, Part], read: Mapping[int, Part]) -> dict[int, Part]:
    """The old parts, replaced by those read where these differ: equal parts stay the same object."""
    merged = dict(old)
    for inode, part in read.items():
        if merged.get(inode) != part:
            merged[inode] = part
    return merged


_M_MMAP_THRESHOLD = -3  # malloc.h of glibc
_LARGE = 1 << 20  # bytes


def give_back_large_tables() -> None:
    """Have malloc(3) map each large array by itself. Left alone, glibc soon takes them from heaps of which
    each thread has its own, and which shrink seldom. Another C library is left as it is."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
