"""The process that holds the fast path: program, links, table and maps end with it; it keeps the maps true
and the lease alive.

`python -m bpf.daemon [--flows=N] [--strict] [--tied] TARGET...` (N: room for flows of each family) is started
by bpf/supervisor.py, which puts everything right when this process is gone."""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from bpf import loader, syscall
from bpf.connections import Wants
from bpf.generation_chain import Gate
from bpf.handlers import Cost, answer
from bpf.hostwatch import HostWatch
from bpf.keepalive import Neighbours, Upkeep
from bpf.maps import Tables
from bpf.preconditions import Obstacles, RuleReading
from bpf.reconcile import View
from bpf.rpc import Answer, Server
from bpf.rulewatch import Heard, PolicyWatch, RuleWatch
from bpf.runfile import KEEPER, clean_up, here, socket_path, unlock
from core.netlink.events import EventSocket

Action = Callable[[], None]


class Schedule:
    """Actions by name, each with the time at which it is due (of time.monotonic())."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        self._actions: dict[str, tuple[Action, float]] = {}

    def every(self, name: str, seconds: float, action: Action) -> None:
        """From now on, again and again."""
        self._actions[name] = (action, seconds)
        self._due[name] = time.monotonic()

    def once(self, name: str, after: float, action: Action, again: bool = False) -> None:
        """Once, after some seconds; where it is waiting already the earlier time counts, with `again` this
        one."""
        self._actions[name] = (action, 0.0)
        if again or name not in self._due:
            self._due[name] = time.monotonic() + after

    def wait(self) -> float:
        """Seconds until something is due."""
        return max(0.0, min(self._due.values(), default=time.monotonic() + 1) - time.monotonic())

    def run(self) -> None:
        """Do what is due, the earliest first."""
        now = time.monotonic()
        for name in sorted((name for name, at in self._due.items() if at <= now), key=self._due.__getitem__):
            action, seconds = self._actions[name]
            if seconds:
                self._due[name] = time.monotonic() + seconds
            else:
                del self._due[name]
            action()


BEAT = 0.25
SETTLE_LINKS = 0.01
SETTLE_CHAINS, SETTLE_RULES, SETTLE_MOST = 0.01, 0.1, 1.0
TICK = 1.0
UPKEEP = 10.0
_PR_SET_PDEATHSIG = 1
_FLOWS, _STRICT, TIED = "--flows=", "--strict", "--tied"


class Holder:
    """Everything that is held, and what is done when. `tied` says that its keeper ends it with the process
    that started both."""

    def __init__(self, targets: list[str], flows: int, strict: bool, tied: bool) -> None:
        self.tied = tied
        self.schedule = Schedule()
        self.loaded = loader.load(flows)
        self.tables = Tables(self.loaded)
        self.gate = Gate(self.tables, strict)
        self.host = HostWatch()
        self.neighbours = Neighbours()
        self.view = View(
            self.loaded,
            self.tables,
            targets,
            self._wake,
            self.neighbours,
            self._admit_anew,
            self._judge_anew,
        )
        self.upkeep = Upkeep(self.loaded, self.tables, self.neighbours)
        self.events = EventSocket()
        self.rules = RuleWatch()
        self.policies = _policy_watch()
        self.reading = RuleReading()
        self.server = Server(socket_path(here()))
        self.wants = Wants(self.loaded, self.tables.clock)
        self.cost = Cost()
        self.ending = False
        self._unsettled: float | None = None  # since when the rules change
        self._meanwhile = Heard()  # since the rules are being read
        self._has_begun = False
        self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def begin(self) -> None:
        """Turn it on."""
        self.view.look()
        self.settle(self.reading.now(self.view.rule_links))
        self._has_begun = True
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
            (self.rules, self._hear_rules),
            (self.reading, self._take_rules),
            (self.host, self._hear_host),
            *([(self.policies, self._hear_policies)] if self.policies else []),
            *((descriptor, self._hear) for descriptor in self.events.filenos()),
            (self.neighbours, self._hear_neighbours),
            (self.wants, self.wants.serve),
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
        if self.view.waits:
            self.schedule.once("moved", self.view.waits, self.look_soon)

    def _hear_neighbours(self) -> None:
        heard = self.neighbours.heard()
        if heard.moved:
            self.tables.ask_again()
        if heard.filters:
            self.look_soon()

    def _hear_rules(self) -> None:
        """Where only elements of sets changed, the rules are as they were: what is looked up in those sets
        must pass them once more. While rules are being read, what they look up isn't known yet."""
        heard = self.rules.heard(self.gate.port)
        self.reading.note(heard)
        if self.reading.is_busy:
            self._meanwhile.add(heard)
        elif self.gate.found.turns(heard):
            self._pause_and_read()
        elif heard.concerns(self.gate.found.sets):
            self._admit_anew()

    def _hear_policies(self) -> None:
        if self.policies and self.policies.heard():
            self.rules_changed()

    def _hear_host(self) -> None:
        if self.host.heard():
            self._admit_anew()

    def rules_changed(self) -> None:
        """Anything may have changed of what rules there are, or of the links that they are about."""
        self.reading.forget()
        self._pause_and_read()

    def _pause_and_read(self) -> None:
        """All to the kernel at once; on again when the rules stand still, or go on changing for a while: soon
        where only few are to be read."""
        self.gate.pause()
        now = time.monotonic()
        if self._unsettled is None:
            self._unsettled = now
        still = max(SETTLE_CHAINS, self.reading.took) if self.reading.is_short else SETTLE_RULES
        wait = min(still, SETTLE_RULES, max(0.0, self._unsettled + SETTLE_MOST - now))
        self.schedule.once("settle", wait, self._read_rules, again=True)

    def _judge_anew(self) -> None:
        """Packets come in or leave by other links than before: other rules are about them."""
        if self._has_begun:
            self.rules_changed()

    def _read_rules(self) -> None:
        self._unsettled = None
        self._meanwhile = Heard()
        self.reading.start(self.view.rule_links)

    def _take_rules(self) -> None:
        """They were read; where they may judge otherwise since then, they are read again when they stand
        still. After elements that came or went since then they are passed once more in any case."""
        self._hear_rules()
        found, meanwhile = self.reading.take(), self._meanwhile
        if found is None:
            return
        self._meanwhile = Heard()
        if found.turns(meanwhile):
            self._pause_and_read()
        elif self.gate.has_changed_silently():
            self.rules_changed()
        elif self._unsettled is None:
            self.settle(found)

    def settle(self, found: Obstacles) -> None:
        """The rules stand still: forward again if they allow it. The maps are brought up to date before."""
        if self.view.take_bridge_rules(found.bridge_rules):
            self.view.note({None})
        if self.view.is_outdated:
            self._look()
        if self.view.is_outdated:  # the kernel refused
            self.schedule.once("settle", TICK, self._read_rules, again=True)
            return
        self.gate.settle(found)

    def _beat(self) -> None:
        if self.view.notes_new_sysctls() or self.tables.is_late():
            self.rules_changed()
        self.tables.beat()

    def _prepare(self) -> None:
        """Between events, one at a time: each reads conntrack's table."""
        if self.gate.prepare():
            self.schedule.once("prepare", 0.0, self._prepare)

    def _admit_anew(self) -> None:
        """Connections pass the rules once more, without a pause."""
        self.gate.admit_anew()
        self.schedule.once("prepare", 0.0, self._prepare)

    def _tick(self) -> None:
        """What sends no event."""
        if self.gate.has_changed_silently():
            self.rules_changed()
        if self.view.has_changed_silently():
            self.look_soon()
        if self.gate.found.expiring:
            self._admit_anew()
        self.wants.settle_resets()
        self._prepare()
        self.tables.read_sysctls()
        self.cost.rest()

    def end(self) -> None:
        """Orderly: nothing is forwarded from here on, then all goes, then connections and sysctl go back."""
        self.gate.pause()
        self.view.close()
        self.gate.close()
        clean_up()
        self.server.close()
        if not _has_keeper():
            unlock()

    def finish(self) -> None:
        """Leave the loop."""
        self.ending = True
        self._wake()


def _policy_watch() -> PolicyWatch | None:
    """None on kernels without IPsec."""
    with suppress(OSError):
        return PolicyWatch()
    return None


def main(arguments: list[str]) -> int:
    """Hold until told otherwise; what happened at the start is one line of JSON on standard output."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    given = [int(each.removeprefix(_FLOWS)) for each in arguments if each.startswith(_FLOWS)]
    flows = given[0] if given else loader.flow_room()
    targets = [each for each in arguments if not each.startswith(_FLOWS) and each not in (_STRICT, TIED)]
    try:
        holder = Holder(targets, flows, _STRICT in arguments, TIED in arguments)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: holder.finish())
        if not _has_keeper():
            holder.finish()
        holder.begin()
    except (OSError, loader.CannotCompile, syscall.Rejected) as error:
        _tell({"ok": False, "what": "the fast path cannot be turned on", "why": str(error), "try": ""})
        return 1
    _tell({"ok": True, "pid": os.getpid(), "socket": str(socket_path(here()))})
    try:
        holder.run()
    finally:
        holder.end()
    return 0


def _has_keeper() -> bool:
    """Whether the keeper that started us lives: it would put everything right."""
    return os.environ.get(KEEPER) == str(os.getppid())


def _tell(told: Answer) -> None:
    with suppress(OSError):
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
