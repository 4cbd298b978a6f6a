"""The process that holds the fast path: program, links, table and maps end with it; it keeps the maps true
and the lease alive.

`python -m bpf.holder [--flows=N] TARGET...` (N: room for flows of each family) is started by bpf/keeper.py,
which puts everything right when this process is gone.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import signal
import sys
from contextlib import suppress
from typing import Any

from bpf import loader, obstacles, restore, runtime, syscall, sysctls
from bpf.answers import answer
from bpf.control import Answer, Server
from bpf.gate import Gate
from bpf.neighbours import Neighbours
from bpf.rulewatch import RuleWatch
from bpf.schedule import Schedule
from bpf.status import Cost
from bpf.tables import Tables
from bpf.traffic import Upkeep
from bpf.view import View
from core.collect.events import EventSocket

BEAT = 0.25
SETTLE_LINKS = 0.01
SETTLE_RULES = 0.1
TICK = 1.0
UPKEEP = 10.0
_PR_SET_PDEATHSIG = 1
_FLOWS = "--flows="


class Holder:
    """Everything that is held, and what is done when."""

    def __init__(self, targets: list[str], flows: int) -> None:
        self.schedule = Schedule()
        self.loaded = loader.load(flows)
        self.tables = Tables(self.loaded)
        self.gate = Gate(self.tables)
        self.view = View(self.loaded, self.tables, targets, self._wake)
        self.neighbours = Neighbours()
        self.upkeep = Upkeep(self.loaded, self.tables, self.neighbours)
        self.events = EventSocket()
        self.rules = RuleWatch()
        self.server = Server(runtime.socket_path(runtime.here()))
        self.cost = Cost()
        self.ending = False
        self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def begin(self) -> None:
        """Turn it on."""
        sysctls.write(sysctls.LIBERAL, "1")
        self.view.look()
        self.settle()
        self.tables.beat()

    def run(self) -> None:
        """Until the end. What happened is taken in before the lease is renewed: who was stopped for a
        while must not forward by what was true before."""
        self.schedule.every("beat", BEAT, self._beat)
        self.schedule.every("tick", TICK, self._tick)
        self.schedule.every("upkeep", UPKEEP, self.upkeep.run)
        with selectors.DefaultSelector() as selector:
            for descriptor, handler in self._sources():
                selector.register(descriptor, selectors.EVENT_READ, handler)
            while not self.ending:
                for key, _ in selector.select(self.schedule.wait()):
                    key.data()
                self.schedule.run()

    def _sources(self) -> list[tuple[Any, Any]]:
        return [
            *((descriptor, self._hear) for descriptor in self.events.filenos()),
            (self.rules, self._hear_rules),
            (self.neighbours, self._hear_neighbours),
            (self.server, lambda: self.server.serve(lambda request: answer(self, request))),
            (self._woken[0], self._hear_wake),
        ]

    def _wake(self) -> None:
        """From any thread, and from signals: look again."""
        with suppress(OSError):
            os.write(self._woken[1], b"\0")

    def _hear_wake(self) -> None:
        os.read(self._woken[0], 4096)
        self.look_soon()

    def _hear(self) -> None:
        events = self.events.read()
        dirty = {nsid for nsid, part in events if part in ("links", "everything")}
        everything = any(part == "everything" for _, part in events)
        if everything or (None, "links") in events or (None, "routes") in events:
            self.tables.ask_again()
        if everything or (None, "routes") in events:
            self.schedule.once(
                "routes", max(SETTLE_LINKS, 3 * self.view.routes_took), self.view.look_at_routes
            )
        if dirty:
            self.view.note(dirty, everything)
            self.look_soon(host=False)

    def look_soon(self, host: bool = True) -> None:
        """Bring maps and links up to date, together with what happens right after; `host` also by what the
        host's own links are."""
        if host:
            self.view.note({None})
        self.schedule.once("look", max(SETTLE_LINKS, 3 * self.view.took), self._look)

    def _look(self) -> None:
        """A look that the kernel refuses (memory, a namespace that ends) is repeated soon."""
        try:
            self.view.look()
        except OSError:
            self.view.note({None}, everything=True)
            self.schedule.once("look", TICK, self._look)

    def _hear_neighbours(self) -> None:
        heard = self.neighbours.heard()
        if heard.moved:
            self.tables.ask_again()
        if heard.filters:
            self.look_soon()

    def _hear_rules(self) -> None:
        if self.rules.heard(self.gate.port):
            self.rules_changed()

    def rules_changed(self) -> None:
        """All to the kernel at once; on again when the rules stand still."""
        self.gate.pause()
        self.schedule.once("settle", SETTLE_RULES, self.settle, again=True)

    def settle(self) -> None:
        """The rules stand still: look at them, and forward again if they allow it. The maps are brought up to
        date before."""
        found = obstacles.find()
        if self.view.take_bridge_rules(found.bridge_rules):
            self.view.note({None})
        if self.view.is_outdated:
            self._look()
        if self.view.is_outdated:  # the kernel refused
            self.schedule.once("settle", TICK, self.settle, again=True)
            return
        self.gate.settle(found)

    def _beat(self) -> None:
        if self.view.notes_new_sysctls() or self.tables.is_late():
            self.rules_changed()
        self.tables.beat()

    def _tick(self) -> None:
        """What sends no event."""
        if self.gate.has_changed_silently():
            self.rules_changed()
        if self.view.has_changed_silently():
            self.look_soon()
        self.tables.read_timeouts()
        self.cost.rest()

    def end(self) -> None:
        """Orderly: nothing is forwarded from here on, then all goes, then connections and sysctl go back."""
        self.gate.pause()
        self.view.close()
        self.gate.close()
        restore.restore()
        self.server.close()
        if not _has_keeper():
            runtime.unlock()

    def finish(self) -> None:
        """Leave the loop."""
        self.ending = True
        self._wake()


def main(arguments: list[str]) -> int:
    """Hold until told otherwise; what happened at the start is one line of JSON on standard output."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    given = [int(each.removeprefix(_FLOWS)) for each in arguments if each.startswith(_FLOWS)]
    flows = given[0] if given else loader.flow_room()
    targets = [each for each in arguments if not each.startswith(_FLOWS)]
    try:
        holder = Holder(targets, flows)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: holder.finish())
        if not _has_keeper():
            holder.finish()
        holder.begin()
    except (OSError, loader.CannotCompile, syscall.Rejected) as error:
        _tell({"ok": False, "what": "the fast path cannot be turned on", "why": str(error), "try": ""})
        return 1
    _tell({"ok": True, "pid": os.getpid(), "socket": str(runtime.socket_path(runtime.here()))})
    try:
        holder.run()
    finally:
        holder.end()
    return 0


def _has_keeper() -> bool:
    """Whether the keeper that started us lives: it would put everything right."""
    return os.environ.get(runtime.KEEPER) == str(os.getppid())


def _tell(told: Answer) -> None:
    with suppress(OSError):
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
