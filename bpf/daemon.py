"""Run the daemon: owns the BPF program, its links, the nftables table and maps.

The kernel removes all of them with this process. `bpf/supervisor.py` starts it and cleans up after it:

    python -m bpf.daemon [--flows=N] [--strict] [--tied] TARGET...

N is the number of flows per address family that the maps have room for.
"""

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

from bpf import syscall
from bpf.build import CompileError
from bpf.connections import ConnectionRequests
from bpf.exemptions import Exemptions
from bpf.generation_chain import GenerationChain
from bpf.handlers import PacketCost, handle
from bpf.hostwatch import HostWatch, PolicyWatch, RuleChanges, RuleWatch
from bpf.keepalive import Keepalive, Neighbours
from bpf.maps import Maps, flow_capacity, load
from bpf.preconditions import Preconditions, RuleReader
from bpf.reconcile import Reconciler
from bpf.rpc import Answer, Server, refusal
from bpf.runfile import SUPERVISOR_VARIABLE, clean_up, netns_inode, socket_path, unlock
from core.netlink.events import EventSocket

Action = Callable[[], None]

# Seconds.
RENEW_EVERY = 0.25
DEBOUNCE_LINKS = 0.01
DEBOUNCE_CHAINS, DEBOUNCE_RULES, DEBOUNCE_LIMIT = 0.01, 0.1, 1.0
POLL_EVERY = 1.0
KEEPALIVE_EVERY = 10.0
_PR_SET_PDEATHSIG = 1
_FLOWS, _STRICT, TIED = "--flows=", "--strict", "--tied"


class Timers:
    """Run named actions when they are due (time.monotonic())."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        self._actions: dict[str, tuple[Action, float]] = {}

    def every(self, name: str, seconds: float, action: Action) -> None:
        """Run an action now and then periodically."""
        self._actions[name] = (action, seconds)
        self._due[name] = time.monotonic()

    def once(self, name: str, after: float, action: Action, restart: bool = False) -> None:
        """Run an action once, `after` seconds from now.

        If the timer is already running, the earlier time counts; with `restart`, the new one.
        """
        self._actions[name] = (action, 0.0)
        if restart or name not in self._due:
            self._due[name] = time.monotonic() + after

    def timeout(self) -> float:
        """Return the seconds until the next action is due."""
        return max(0.0, min(self._due.values(), default=time.monotonic() + 1) - time.monotonic())

    def run(self) -> None:
        """Run the actions that are due, the earliest first."""
        now = time.monotonic()
        for name in sorted((name for name, at in self._due.items() if at <= now), key=self._due.__getitem__):
            action, seconds = self._actions[name]
            if seconds:
                self._due[name] = time.monotonic() + seconds
            else:
                del self._due[name], self._actions[name]
            action()


class Daemon:
    """Own everything that accelerates, and keep it up to date with the host.

    `tied`: the supervisor ends it together with the process that started both.
    """

    def __init__(self, targets: list[str], flows: int, strict: bool, tied: bool) -> None:
        self.tied = tied
        self.timers = Timers()
        self.loaded = load(flows)
        self.maps = Maps(self.loaded)
        self.generations = GenerationChain(self.maps, strict)
        self.host = HostWatch()
        self.neighbours = Neighbours()
        self.reconciler = Reconciler(
            self.loaded,
            self.maps,
            targets,
            self._wake,
            self.neighbours,
            self._readmit,
            self._packet_links_changed,
        )
        self.keepalive = Keepalive(self.loaded, self.maps, self.neighbours)
        self.events = EventSocket()
        self.rules = RuleWatch()
        self.policies = _policy_watch()
        self.rule_reader = RuleReader()
        self.server = Server(socket_path(netns_inode()))
        self.requests = ConnectionRequests(self.loaded.maps, self.maps.clock)
        self.cost = PacketCost()
        self.exemptions = Exemptions(self.maps, self.timers)
        self._stopping = False
        self._unsettled_since: float | None = None  # while rules change
        self._changes_while_reading = RuleChanges()
        self._has_started = False
        self._wake_pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def start(self) -> None:
        """Attach the program and begin to forward."""
        self.reconciler.reconcile()
        self.apply_rules(self.rule_reader.read_now(self.reconciler.packet_links))
        self._has_started = True
        self.maps.renew_lease()

    def run(self) -> None:
        """Handle events and timers until stop() is called.

        Events are handled before the lease is renewed: a daemon that was suspended must not forward by
        what was true before.
        """
        self.timers.every("renew", RENEW_EVERY, self._renew_lease)
        self.timers.every("poll", POLL_EVERY, self._poll)
        self.timers.every("keepalive", KEEPALIVE_EVERY, self.keepalive.run)
        with selectors.DefaultSelector() as selector:
            for descriptor, handler in self._sources():
                selector.register(descriptor, selectors.EVENT_READ, handler)
            while not self._stopping:
                for key, _ in selector.select(self.timers.timeout()):
                    key.data()
                self.timers.run()

    def _sources(self) -> list[tuple[Any, Any]]:
        return [
            (self.rules, self._on_rules),
            (self.rule_reader, self._on_rules_read),
            (self.host, self._on_host),
            *([(self.policies, self._on_policies)] if self.policies else []),
            *((descriptor, self._on_events) for descriptor in self.events.filenos()),
            (self.neighbours, self._on_neighbours),
            (self.requests, self.requests.serve),
            (self.server, lambda: self.server.serve(lambda request: handle(self, request))),
            (self._wake_pipe[0], self._on_wake),
        ]

    def _wake(self) -> None:
        """Reconcile soon; may be called from any thread and from signal handlers."""
        with suppress(OSError):
            os.write(self._wake_pipe[1], b"\0")

    def _on_wake(self) -> None:
        os.read(self._wake_pipe[0], 4096)
        self.reconcile_soon()

    def _on_events(self) -> None:
        events = self.events.read()
        dirty = {nsid for nsid, part in events if part in ("links", "everything")}
        everything = any(part == "everything" for _, part in events)
        if everything or (None, "links") in events or (None, "routes") in events:
            self.maps.raise_epoch()
        if everything or (None, "routes") in events:
            delay = max(DEBOUNCE_LINKS, 3 * self.reconciler.routes_duration)
            self.timers.once("routes", delay, self.reconciler.update_routes)
        if dirty:
            self.reconciler.mark_dirty(dirty, everything)
            self.reconcile_soon(host=False)

    def reconcile_soon(self, host: bool = True) -> None:
        """Reconcile after a short delay, so that one pass handles a burst of events.

        `host`: read the host's own links as well.
        """
        if host:
            self.reconciler.mark_dirty({None})
        self.timers.once("reconcile", max(DEBOUNCE_LINKS, 3 * self.reconciler.duration), self._reconcile)

    def _reconcile(self) -> None:
        """Reconcile, and retry soon if the kernel refuses.

        It may have no memory, or a namespace disappears.
        """
        try:
            self.reconciler.reconcile()
        except OSError:
            self.reconciler.mark_dirty({None}, everything=True)
            self.timers.once("reconcile", POLL_EVERY, self._reconcile)
        if self.reconciler.retry_after:
            self.timers.once("moved", self.reconciler.retry_after, self.reconcile_soon)

    def _on_neighbours(self) -> None:
        changes = self.neighbours.read_events()
        if changes.moved:
            self.maps.raise_epoch()
        if changes.filters:
            self.reconcile_soon()

    def _on_rules(self) -> None:
        """Handle changes of nftables.

        If only set elements changed, the rules need no new analysis: connections that are looked up in
        those sets pass the rules once more. While rules are being read, their sets aren't known yet.
        """
        changes = self.rules.read_events(self.generations.port)
        self.rule_reader.note_changes(changes)
        if self.rule_reader.is_busy:
            self._changes_while_reading.merge(changes)
        elif self.generations.preconditions.needs_analysis(changes):
            self._pause_and_read()
        elif changes.affects(self.generations.preconditions.sets):
            self._readmit()

    def _on_policies(self) -> None:
        if self.policies and self.policies.read_events():
            self.rules_changed()

    def _on_host(self) -> None:
        if self.host.read_events():
            self._readmit()

    def rules_changed(self) -> None:
        """Pause, and read all rules.

        Any rule may have changed, or the links that rules apply to.
        """
        self.rule_reader.invalidate()
        self._pause_and_read()

    def _pause_and_read(self) -> None:
        """Pause, and read the rules once they have stopped changing.

        At the latest after DEBOUNCE_LIMIT. The wait is short if only a few chains have to be read.
        """
        self.generations.pause()
        now = time.monotonic()
        if self._unsettled_since is None:
            self._unsettled_since = now
        quiet = (
            max(DEBOUNCE_CHAINS, self.rule_reader.duration) if self.rule_reader.is_partial else DEBOUNCE_RULES
        )
        wait = min(quiet, DEBOUNCE_RULES, max(0.0, self._unsettled_since + DEBOUNCE_LIMIT - now))
        self.timers.once("read_rules", wait, self._read_rules, restart=True)

    def _packet_links_changed(self) -> None:
        """Read the rules again: packets enter or leave by other links.

        Other rules apply to them there.
        """
        if self._has_started:
            self.rules_changed()

    def _read_rules(self) -> None:
        self._unsettled_since = None
        self._changes_while_reading = RuleChanges()
        self.rule_reader.start(self.reconciler.packet_links)

    def _on_rules_read(self) -> None:
        """Apply the rules that were read.

        If they changed meanwhile so that they need another analysis, they are read again. Set elements that
        changed need no special care: connections pass the rules again anyway.
        """
        self._on_rules()
        result, changes = self.rule_reader.result(), self._changes_while_reading
        if result is None:
            return
        self._changes_while_reading = RuleChanges()
        if result.needs_analysis(changes):
            self._pause_and_read()
        elif self.generations.has_silent_change():
            self.rules_changed()
        elif self._unsettled_since is None:
            self.apply_rules(result)

    def apply_rules(self, preconditions: Preconditions) -> None:
        """Forward again if the rules allow it, after updating the maps."""
        if self.reconciler.set_bridge_rules(preconditions.bridge_rules):
            self.reconciler.mark_dirty({None})
        if self.reconciler.is_dirty:
            self._reconcile()
        if self.reconciler.is_dirty:  # the kernel refused
            self.timers.once("read_rules", POLL_EVERY, self._read_rules, restart=True)
            return
        self.maps.set_tunnel_reasons(preconditions.of_tunnels)
        self.generations.apply(preconditions)

    def _renew_lease(self) -> None:
        if self.reconciler.has_new_sysctls() or self.maps.lease_expired():
            self.rules_changed()
        self.maps.renew_lease()

    def _clear_ahead(self) -> None:
        """Clear one generation's marks at a time, between events.

        Each time the conntrack table is read.
        """
        if self.generations.clear_ahead():
            self.timers.once("clear_ahead", 0.0, self._clear_ahead)

    def _readmit(self) -> None:
        """Let connections pass the rules once more, without a pause."""
        self.generations.readmit()
        self.timers.once("clear_ahead", 0.0, self._clear_ahead)

    def _poll(self) -> None:
        """Check for changes that send no event."""
        if self.generations.has_silent_change():
            self.rules_changed()
        if self.reconciler.has_silent_change():
            self.reconcile_soon()
        if self.generations.preconditions.expiring:
            self._readmit()
        self.requests.handle_resets()
        self._clear_ahead()
        self.maps.read_sysctls()
        self.cost.stop_if_idle()

    def close(self) -> None:
        """Stop forwarding, detach everything, then clear the marks of connections."""
        self.generations.pause()
        self.reconciler.close()
        self.generations.close()
        clean_up()
        self.server.close()
        if not _has_supervisor():
            unlock()

    def stop(self) -> None:
        """End run()."""
        self._stopping = True
        self._wake()


def _policy_watch() -> PolicyWatch | None:
    """Open the socket for IPsec policies; None on kernels without IPsec."""
    with suppress(OSError):
        return PolicyWatch()
    return None


def main(arguments: list[str]) -> int:
    """Run the daemon; the result of its start is one line of JSON on standard output."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    given = [int(each.removeprefix(_FLOWS)) for each in arguments if each.startswith(_FLOWS)]
    flows = given[0] if given else flow_capacity()
    targets = [each for each in arguments if not each.startswith(_FLOWS) and each not in (_STRICT, TIED)]
    try:
        daemon = Daemon(targets, flows, _STRICT in arguments, TIED in arguments)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: daemon.stop())
        if not _has_supervisor():
            daemon.stop()
        daemon.start()
    except (OSError, CompileError, syscall.Rejected) as error:
        _print_answer(refusal("can't turn on the fast path", error))
        return 1
    _print_answer({"ok": True, "pid": os.getpid(), "socket": str(socket_path(netns_inode()))})
    try:
        daemon.run()
    finally:
        daemon.close()
    return 0


def _has_supervisor() -> bool:
    """Return whether the supervisor is alive, which cleans up."""
    return os.environ.get(SUPERVISOR_VARIABLE) == str(os.getppid())


def _print_answer(answer: Answer) -> None:
    with suppress(OSError):
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
