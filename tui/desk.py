"""Stands between the source's threads and the screen: takes updates in, hands worked-out pictures over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from textual.message import Message

from core.diagnose import Finding
from core.model import PARTS, FastPath, Problem, Ref
from tui.navigation import Stop, Way
from tui.present.rows import Detail, ListView
from tui.present.scene import Scene
from tui.source import Source, Update
from tui.stage import Inbox, Shown, Stage, before, fast_of, retold

if TYPE_CHECKING:
    from core.plan.requests import DeleteFlow


class Worker(threading.Thread):
    """Runs what it is asked to, in the order of the first request of each kind; a request that has not begun
    when another of its kind comes is replaced by it. `deliver(kind, result)` is called from this thread;
    what the work raises is delivered as its result."""

    def __init__(self, deliver: Callable[[str, Any], None]) -> None:
        super().__init__(name="screen-worker", daemon=True)
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

    def ask(self, kind: str, work: Callable[[], Any]) -> None:
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
        """The thread's life."""
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


_SHORTEST = 0.03  # seconds between two pictures that nobody asked for
_SHARE = 0.25  # of the time, at most, for working such pictures out
_SHARE_OF_FLOWS = 0.03  # the same of flows, which are others every second; but one picture a second there is
_EVERY_OF_FLOWS = 0.95


class Arrived(Message):
    """Something new lies in the inbox."""


class RowsReady(Message):
    """The rows for a stop; `number` is that of the request."""

    def __init__(self, stop: Stop, shown: Shown, number: int) -> None:
        super().__init__()
        self.origin, self.shown, self.number = stop, shown, number


class DetailReady(Message):
    """Everything about a thing."""

    def __init__(self, ref: Ref, detail: Detail) -> None:
        super().__init__()
        self.ref, self.detail = ref, detail


class WayReady(Message):
    """Where Enter leads from a stop; None where it leads nowhere."""

    def __init__(self, stop: Stop, way: Way | None) -> None:
        super().__init__()
        self.origin, self.way = stop, way


class Failed(Message):
    """A picture could not be worked out."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class Desk:
    """Every method is for the screen's thread; what is asked for comes back as one of the messages above,
    given to `post`."""

    def __init__(self, source: Source, post: Callable[[Message], object]) -> None:
        self.source = source
        self.paused = False
        self._post = post
        self._stage = Stage(offers_demo=source.live)
        self._inbox = Inbox(lambda: self._hand_over(Arrived()))
        self._worker = Worker(self._deliver)
        self._rested = 0.0
        self._stopped = False
        self._listener: Callable[[Update], None] | None = None
        self._newest: Update | None = None
        self._taken: Update | None = None
        self._fast: FastPath | None = None

    def start(self) -> None:
        """Begin to take updates. The source starts on a thread of its own: its imports would delay keys."""
        self._worker.start()
        threading.Thread(
            target=self.source.start, args=(self._take_in,), name="source-start", daemon=True
        ).start()

    def _take_in(self, update: Update) -> None:
        """Take an update, from any thread, and let the listener hear of it."""
        self._newest = update
        self._inbox.put(update)
        listener = self._listener
        if listener:
            listener(update)

    def stand(self, fast: FastPath) -> None:
        """Show how the fast path stands, from the next picture on."""
        self._fast = fast
        self._hand_over(Arrived())

    def listen(self, listener: Callable[[Update], None] | None) -> None:
        """Let `listener` hear of the newest update, and of each that comes, from the source's threads, also
        while the picture is paused; None for nobody."""
        self._listener = listener
        if listener and self._newest:
            listener(self._newest)

    def stop(self) -> None:
        """Take nothing more."""
        self._stopped = True
        self._worker.stop()
        self.source.stop()

    @property
    def idle(self) -> bool:
        """Whether all that was asked for was handed over."""
        return self._worker.idle

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What could not be read, in the present picture."""
        return self._stage.problems

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is wrong in the present picture."""
        return self._stage.findings

    @property
    def reading(self) -> str:
        """How many parts of the first whole picture were read, "" where all were."""
        pending = self._stage.scene.snapshot.pending
        return f"{len(PARTS - pending)} of {len(PARTS)}" if pending else ""

    @property
    def scene(self) -> Scene:
        """The present picture."""
        return self._stage.scene

    @property
    def shown(self) -> Update | None:
        """The update that the present picture shows; None before the first."""
        return self._taken

    @property
    def hostname(self) -> str:
        """The host's name, "" where it is not known yet."""
        return self._stage.scene.snapshot.host.hostname

    def forgetting(self, ref: Ref) -> DeleteFlow | None:
        """The request to forget a connection of the present picture; None where it is not there any more."""
        from core.plan.containers import (
            delete_flow_at,  # plans are loaded for those alone who change something
        )

        return delete_flow_at(self._stage.scene.topology, ref)

    @property
    def uncounted(self) -> tuple[int, ...]:
        """The namespaces that do not count the traffic of their connections."""
        return self._stage.uncounted

    @property
    def wait(self) -> float:
        """Seconds until the next picture that nobody asked for should be worked out."""
        return max(0.0, self._rested - time.monotonic())

    def rows(self, stop: Stop, view: ListView, number: int) -> None:
        """Ask for the rows of a stop, from the newest update unless paused."""
        state, take = replace(stop.state), not self.paused
        self._worker.ask("rows", lambda: RowsReady(stop, self._shown(view, state, take), number))

    def _shown(self, view: ListView, state: Any, take: bool) -> Shown:
        began = time.monotonic()
        taken = self._inbox.take() if take else None
        if taken:
            update, changes = taken
            self._stage.take(
                update.snapshot, update.rates, changes, retold(update), update.flows, fast_of(update),
                before(update),
            )  # fmt: skip
            self._taken = update
        if take and self._fast is not None:
            self._stage.stand(self._fast)
        shown = self._stage.shown(view, state)
        ended = time.monotonic()
        self._rested = ended + _rest(ended - began, view.name == "flows")
        return shown

    def detail(self, ref: Ref) -> None:
        """Ask for everything about a thing."""
        self._worker.ask("detail", lambda: DetailReady(ref, self._stage.detail(ref)))

    def way(self, stop: Stop, trail: tuple[Ref, ...], target: Ref | None = None) -> None:
        """Ask where Enter leads from the end of the trail."""
        self._worker.ask("way", lambda: WayReady(stop, self._stage.way(trail, target)))

    def _deliver(self, kind: str, result: Any) -> None:
        self._hand_over(Failed(result) if isinstance(result, Exception) else result)

    def _hand_over(self, message: Message) -> None:
        if self._stopped:
            return
        try:
            self._post(message)
        except RuntimeError:  # the event loop ended between the question and the answer
            self._stopped = True


def _rest(took: float, flows: bool) -> float:
    """Seconds without a picture that nobody asked for, after one that took so long."""
    rest = max(_SHORTEST, took * (1 / _SHARE - 1))
    return max(rest, min(_EVERY_OF_FLOWS, took / _SHARE_OF_FLOWS)) if flows else rest
