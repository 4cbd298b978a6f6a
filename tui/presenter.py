"""Run view queries on a worker thread; pass updates in and results out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from textual.message import Message

from core.diagnose import Finding
from core.model import RECORDING_DEMAND, WATCHED_PARTS, Change, Demand, FastPath, OvsBridge, Problem, Ref
from core.text import safe
from core.update import Update
from tui.baseline import Baseline
from tui.sources import Mode, ReplaySource, Source
from tui.view_model import HistoryEntry, ViewData, ViewModel, ViewTarget
from tui.views.formatting import wrapped
from tui.views.rows import Detail, ListView, ViewContext

if TYPE_CHECKING:
    from core.flows import ConntrackEntry
    from core.plan.requests import DeleteFlow
    from core.reach import Answer
    from core.topology import Topology
    from tui.services import FlowTracer
    from tui.views.answers import AnswerLine


class Worker(threading.Thread):
    """Run requests in a thread, in the order of the first request of each kind.

    A request that hasn't begun is replaced by a newer one of its kind. `deliver(kind, result)` is called from
    this thread; an exception is delivered as the result.
    """

    def __init__(self, deliver: Callable[[str, Any], None], name: str = "screen-worker") -> None:
        super().__init__(name=name, daemon=True)
        self._deliver = deliver
        self._requests: dict[str, Callable[[], Any]] = {}
        self._wake = threading.Condition()
        self._stopped = False
        self._busy = False

    @property
    def idle(self) -> bool:
        """Whether nothing is asked for or under way."""
        with self._wake:
            return not self._requests and not self._busy

    def submit(self, kind: str, work: Callable[[], Any]) -> None:
        """Have `work` done soon."""
        with self._wake:
            self._requests[kind] = work
            self._wake.notify()

    def stop(self) -> None:
        """End the thread after the work under way."""
        with self._wake:
            self._stopped = True
            self._wake.notify()

    def run(self) -> None:
        """Run the thread."""
        while True:
            with self._wake:
                self._busy = False
                self._wake.wait_for(lambda: self._requests or self._stopped)
                if self._stopped:
                    return
                kind = next(iter(self._requests))
                work = self._requests.pop(kind)
                self._busy = True
            try:
                result = work()
            except Exception as error:
                result = error
            self._deliver(kind, result)


class UpdateQueue:
    """Hold the newest update and all changes since the last `pop`.

    `notify` is called, from any thread, when an update comes into an empty queue.
    """

    def __init__(self, notify: Callable[[], None]) -> None:
        self._notify = notify
        self._lock = threading.Lock()
        self._update: Update | None = None
        self._changes: list[Change] = []

    def put(self, update: Update) -> None:
        """Take in an update, from any thread."""
        with self._lock:
            first = self._update is None
            self._update = update
            if update.replaces_log:
                self._changes.clear()
            self._changes += update.changes
        if first:
            self._notify()

    def pop(self) -> tuple[Update, tuple[Change, ...]] | None:
        """Return the newest update and all changes since the last call; None without one."""
        with self._lock:
            update, self._update = self._update, None
            changes, self._changes = tuple(self._changes), []
        return (update, changes) if update else None


_MIN_INTERVAL = 0.03  # seconds between two updates on the screen
_MAX_SHARE = 0.25  # of the time, at most, for working updates out
_MAX_FLOWS_SHARE = 0.03  # the same for flows, which change every second; but once a second they are shown
_FLOWS_INTERVAL = 0.95
_MAX_DIAGNOSIS_SHARE = 0.1  # the same for finding what is wrong, on a thread of its own
_DIAGNOSIS_INTERVAL = 0.9


class UpdateArrived(Message):
    """A new update waits."""


class RowsReady(Message):
    """The rows for a stop; `number` is that of the request."""

    def __init__(self, entry: HistoryEntry, data: ViewData, number: int) -> None:
        super().__init__()
        self.entry, self.data, self.number = entry, data, number


class DetailReady(Message):
    """Carry the details of an object."""

    def __init__(self, ref: Ref, detail: Detail) -> None:
        super().__init__()
        self.ref, self.detail = ref, detail


class TargetReady(Message):
    """Carry where Enter leads from a stop; None if nowhere."""

    def __init__(self, entry: HistoryEntry, target: ViewTarget | None) -> None:
        super().__init__()
        self.entry, self.target = entry, target


class QueryFailed(Message):
    """A picture could not be worked out."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class Presenter:
    """Connect the source and the screen.

    Call all methods from the screen's thread; results come as the messages above, given to `post`.
    """

    def __init__(self, source: Source, post: Callable[[Message], object]) -> None:
        self.source = source
        self.paused = False
        self._post = post
        self._view_model = ViewModel(offers_demo=source.live)
        self._queue = UpdateQueue(lambda: self._post_safely(UpdateArrived()))
        self._worker = Worker(self._deliver)
        self._diagnoser = Worker(self._deliver, "diagnosis")
        self._examined: Topology | None = None
        self._ended = threading.Event()
        self._rest = 0.0
        self._next_at = 0.0
        self._stopped = False
        self._listener: Callable[[Update], None] | None = None
        self._newest: Update | None = None
        self._current: Update | None = None
        self._fast: FastPath | None = None
        self._demand: frozenset[Demand] = frozenset()
        self.baseline: Baseline | None = None

    def start(self) -> None:
        """Start the source, in a thread: its imports would delay keys."""
        if self.source.live:
            self._view_model.set_muted(_muted_ids())
        self._worker.start()
        self._diagnoser.start()
        threading.Thread(
            target=self.source.start, args=(self._on_update,), name="source-start", daemon=True
        ).start()

    def _on_update(self, update: Update) -> None:
        """Queue an update, from any thread, and pass it to the listener."""
        self._newest = update
        self._queue.put(update)
        listener = self._listener
        if listener:
            listener(update)

    def set_fast_path(self, fast: FastPath) -> None:
        """Show how the fast path stands, from the next picture on."""
        self._fast = fast
        self._post_safely(UpdateArrived())

    def toggle_muted(self, name: str) -> str:
        """Mute the finding with that id, or show it again; return why that failed, or ""."""
        from core.muted import set_muted
        from core.state import StateError

        ids = self._view_model.context.muted ^ {name}
        try:
            set_muted(ids)
        except (StateError, OSError) as error:
            return str(error)
        self._view_model.set_muted(ids)
        self._post_safely(UpdateArrived())
        return ""

    def probe_lines(self, topology: Topology, answer: Answer, width: int) -> list[AnswerLine]:
        """Send the probe of an answer; return its result as lines. Call it on a thread."""
        if not self.source.live:
            return [[("can't send a probe: this is no live host", "warn")]]
        from tui.command import CommandError
        from tui.probing import verified
        from tui.views.answers import verification_lines
        from tui.views.packet_path import path_lines

        try:
            found = verified(topology, answer)
        except CommandError as error:
            return [[(safe(str(error)), "warn")]]
        return [*verification_lines(found, width), [], *path_lines(topology, found.result, width, wraps=True)]

    def ovs_flow_reader(self, bridge: OvsBridge) -> FlowTracer:
        """Return what reads the OpenFlow flows of a bridge. Call it on a thread."""

        def read(stopped: Callable[[], bool]) -> Callable[[int], list[AnswerLine]]:
            from core.collect.ovs import read_flows
            from core.tools import ToolFailed
            from tui.views.ovs_flows import flow_lines

            try:
                flows = read_flows(bridge)
            except ToolFailed as failure:
                text = safe(f"can't read the flows of {bridge.name}: {failure.why}. Try: {failure.try_}")
                return lambda width: [[(line, "warn")] for line in wrapped(text, width)]
            return lambda width: [*flow_lines(bridge, flows, width)]

        return read

    def flow_tracer(self, ns: int, entry: ConntrackEntry) -> FlowTracer:
        """Return what traces a flow, by its conntrack entry in `ns`. Call it on a thread."""
        topology = self.context.topology

        def trace(stopped: Callable[[], bool]) -> Callable[[int], list[AnswerLine]]:
            from core.probe.flow_trace import SECONDS
            from tui.command import CommandError
            from tui.probing import traced
            from tui.views.packet_path import flow_lines

            try:
                found, notes = traced(topology, ns, entry, SECONDS, stopped)
            except CommandError as error:
                text = safe(str(error))
                return lambda width: [[(line, "warn")] for line in wrapped(text, width)]
            return lambda width: [*flow_lines(topology, found, width, notes)]

        return trace

    def set_baseline(self, baseline: Baseline) -> None:
        """Set the moment with which `:diff` compares, from the next picture on."""
        self.baseline = baseline
        self._post_safely(UpdateArrived())

    def set_demand(self, demand: frozenset[Demand]) -> None:
        """Set the readings that the view on the screen needs."""
        self._demand = demand
        self._update_demand()

    def _update_demand(self) -> None:
        self.source.set_demand(self._demand | (RECORDING_DEMAND if self._listener else frozenset()))

    def set_listener(self, listener: Callable[[Update], None] | None) -> None:
        """Give a recorder the newest update and each that comes, even while paused.

        None removes it. It is called from the source's threads. All that a recording contains is read often
        meanwhile.
        """
        self._listener = listener
        self._update_demand()
        if listener and self._newest:
            listener(self._newest)

    def stop(self) -> None:
        """Take nothing more."""
        self._stopped = True
        self._ended.set()
        self._worker.stop()
        self._diagnoser.stop()
        self.source.stop()

    @property
    def idle(self) -> bool:
        """Whether all that was asked for was handed over."""
        is_shown = self._diagnoser.idle and self._view_model.shows_newest_findings
        return is_shown and self._worker.idle

    @property
    def player(self) -> ReplaySource | None:
        """The source, if it plays a recording."""
        return self.source if isinstance(self.source, ReplaySource) else None

    @property
    def mode(self) -> Mode:
        """How the picture comes about, as the header shows it."""
        if self.player:
            return "replay"
        return "paused" if self.paused else "live" if self.source.live else "offline"

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Everything that couldn't be read for the current picture."""
        return self._view_model.problems

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is wrong in the present picture."""
        return self._view_model.findings

    @property
    def progress(self) -> str:
        """How many parts of the first whole picture were read, "" where all were."""
        pending = self._view_model.context.snapshot.pending
        return f"{len(WATCHED_PARTS - pending)} of {len(WATCHED_PARTS)}" if pending else ""

    @property
    def context(self) -> ViewContext:
        """The present picture."""
        return self._view_model.context

    @property
    def current_update(self) -> Update | None:
        """The update that the present picture shows; None before the first."""
        return self._current

    @property
    def hostname(self) -> str:
        """The host's name, "" where it is not known yet."""
        return self._view_model.context.snapshot.host.hostname

    def delete_request(self, ref: Ref) -> DeleteFlow | None:
        """Return the request to forget a connection, None if it is gone."""
        from core.plan.containers import (
            delete_flow_at,  # imported only for changes
        )

        return delete_flow_at(self._view_model.context.topology, ref)

    @property
    def uncounted(self) -> tuple[int, ...]:
        """The namespaces that do not count the traffic of their connections."""
        return self._view_model.uncounted

    @property
    def delay(self) -> float:
        """Seconds until the next update should be shown."""
        return max(0.0, self._next_at - time.monotonic())

    def request_rows(self, entry: HistoryEntry, view: ListView, number: int) -> None:
        """Ask for the rows of a stop, from the newest update unless paused."""
        state, fresh = replace(entry.state), not self.paused
        self._worker.submit("rows", lambda: RowsReady(entry, self._view_data(view, state, fresh), number))

    def _view_data(self, view: ListView, state: Any, fresh: bool) -> ViewData:
        began = time.monotonic()
        newest = self._queue.pop() if fresh else None
        if newest:
            update, changes = newest
            self._view_model.apply_update(update, changes)
            self._current = update
        if fresh and self._fast is not None:
            self._view_model.set_fast_path(self._fast)
        self._view_model.set_baseline(self.baseline)
        data = self._view_model.view_data(view, state)
        if self._view_model.context.topology is not self._examined:
            self._examined = self._view_model.context.topology
            self._diagnoser.submit("findings", self._diagnose)
        ended = time.monotonic()
        self._next_at = ended + _pause_after(ended - began, view.name == "flows")
        return data

    def _diagnose(self) -> Message | None:
        """Find what is wrong, after a rest in proportion to how long it took before."""
        self._ended.wait(self._rest)
        began = time.monotonic()
        changed = self._view_model.diagnose()
        took = time.monotonic() - began
        self._rest = min(_DIAGNOSIS_INTERVAL, took * (1 / _MAX_DIAGNOSIS_SHARE - 1))
        return UpdateArrived() if changed else None

    def request_detail(self, ref: Ref) -> None:
        """Ask for everything about a thing."""
        self._worker.submit("detail", lambda: DetailReady(ref, self._view_model.detail(ref)))

    def request_target(
        self, entry: HistoryEntry, history: tuple[Ref, ...], target: Ref | None = None
    ) -> None:
        """Ask where Enter leads from the end of the history."""
        self._worker.submit("target", lambda: TargetReady(entry, self._view_model.target(history, target)))

    def _deliver(self, kind: str, result: Any) -> None:
        if result is not None:
            self._post_safely(QueryFailed(result) if isinstance(result, Exception) else result)

    def _post_safely(self, message: Message) -> None:
        if self._stopped:
            return
        try:
            self._post(message)
        except RuntimeError:  # the event loop ended meanwhile
            self._stopped = True


def _muted_ids() -> frozenset[str]:
    """Return the ids of muted findings, none where the state can't be read."""
    from core.muted import muted_ids
    from core.state import StateError

    try:
        return muted_ids()
    except StateError:
        return frozenset()


def _pause_after(took: float, flows: bool) -> float:
    """Return the seconds to wait after a query of that duration before an update."""
    rest = max(_MIN_INTERVAL, took * (1 / _MAX_SHARE - 1))
    return max(rest, min(_FLOWS_INTERVAL, took / _MAX_FLOWS_SHARE)) if flows else rest
