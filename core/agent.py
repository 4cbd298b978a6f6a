"""The agent: restores rules and sessions, reattaches containers, renews leases."""

from __future__ import annotations

import selectors
import threading
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace

from core.apply import run
from core.collect import engines
from core.etcd_sync import EtcdSync
from core.model import Container
from core.netlink.events import EVERYTHING, EventSocket
from core.netlink.netns import NamespaceGone
from core.operations import (
    HOST,
    CreateVeth,
    NetnsTarget,
    Operation,
    OvsAddPort,
    PersistAttachment,
    SetLink,
    SetRules,
    SetStormGuard,
)
from core.operations.attachments import read_attachments, remove_attachment
from core.operations.executor import Executor, Lines, expected_lines, present_lines
from core.operations.frr import restore_group
from core.operations.settings import saved_rules
from core.state import running_agent, writers_lock
from core.watch.poller import Poller

# Intervals in seconds; kernel and engine events poll at once.
_RULES_INTERVAL = 30.0
_CONTAINERS_INTERVAL = 30.0
_SESSIONS_INTERVAL = 2.0
_ETCD_INTERVAL = 2.0
_RETRY_INTERVAL = 0.2
_MAX_TRIES = 20  # per process of a container
# Of these, the most to skip while the kernel still deletes the veth pair of the container's previous run.
_MAX_TRIES_CLEARING = 15
_ENGINES = {"docker": engines.read_docker, "podman": engines.read_podman}
_SELECT_TIMEOUT = 1.0
_TASKS = {
    "rules": "restore vnet-tui's rules",
    "containers": "attach containers again",
    "sessions": "restore the BGP sessions of overlays",
    "etcd": "renew the leases of overlays and follow their hosts",
}


class Agent:
    """Restores rules and attachments until `stop` is set.

    `log` is called with a sentence for each action and each failure. The agent acts under the writers' lock
    and touches no rule outside vnet's own tables; each attachment is a change in the journal.
    """

    def __init__(self, log: Callable[[str], None], stop: threading.Event) -> None:
        self._log, self._stop = log, stop
        self._rules = RuleRestorer(log)
        self._attachments = AttachmentRestorer(log)
        self._failures: dict[str, str] = {}
        self._rules_poller = self._poller("rules", self._restore_rules, _RULES_INTERVAL)
        self._containers_poller = self._poller("containers", self._attach_containers, _CONTAINERS_INTERVAL)
        self._sessions_poller = self._poller("sessions", self._restore_sessions, _SESSIONS_INTERVAL)
        self._etcd = EtcdSync(log)
        self._etcd_poller = self._poller("etcd", self._sync_with_etcd, _ETCD_INTERVAL)

    def run(self) -> None:
        """Run until `stop` is set.

        Raises StateError, and OSError if kernel events can't be received.
        """
        with running_agent():
            self._run()

    def _run(self) -> None:
        docker_events = threading.Thread(
            target=engines.watch_docker, args=(self._stop, self._containers_poller.mark), daemon=True
        )
        pollers = (self._rules_poller, self._containers_poller, self._sessions_poller, self._etcd_poller)
        events = EventSocket()
        try:
            for poller in pollers:
                poller.mark()
                poller.start()
            docker_events.start()
            self._watch_rules(events)
        finally:
            events.close()
            for poller in pollers:
                poller.stop()

    def _poller(self, part: str, poll: Callable[[], None], interval: float) -> Poller:
        return Poller(part, poll, self._report_failure, interval, debounce=0.05)

    def _watch_rules(self, events: EventSocket) -> None:
        with selectors.DefaultSelector() as selector:
            for descriptor in events.filenos():
                selector.register(descriptor, selectors.EVENT_READ)
            while not self._stop.is_set():
                if selector.select(_SELECT_TIMEOUT) and events.read() & {(None, "nft"), EVERYTHING}:
                    self._rules_poller.mark()

    def _restore_rules(self) -> None:
        self._rules.restore()
        self._failures.pop("rules", None)
        self._rules_poller.set_every(_RULES_INTERVAL)

    def _attach_containers(self) -> None:
        complete = self._attachments.restore()
        self._failures.pop("containers", None)
        self._containers_poller.set_every(_CONTAINERS_INTERVAL if complete else _RETRY_INTERVAL)

    def _restore_sessions(self) -> None:
        """Configure FRRouting again after it restarted; it sends no event."""
        if restore_group():
            self._log("FRRouting had lost the sessions of vnet-tui's overlays: configured again")
        self._failures.pop("sessions", None)

    def _sync_with_etcd(self) -> None:
        self._etcd.sync()
        if self._failures.pop("etcd", ""):
            self._log("the leases and hosts of overlays are up to date again")

    def _report_failure(self, part: str, error: Exception) -> None:
        """Report an error once for as long as it stays the same."""
        if part == "rules":
            self._rules_poller.set_every(_RETRY_INTERVAL)
        if part == "etcd" and part in self._failures:
            return  # its reason varies from poll to poll
        sentence = f"can't {_TASKS[part]}: {error or type(error).__name__}"
        if self._failures.get(part) != sentence:
            self._failures[part] = sentence
            self._log(sentence)


class RuleRestorer:
    """Keeps vnet's own nftables tables as the last change wrote them."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._text: str | None = None  # the text that `_expected` was derived from
        self._expected = Lines()

    def restore(self) -> None:
        """Load the tables again if one of their rules is missing; manual additions stay.

        The expected rules come from the saved text: a listing may lack rules that were just deleted.
        """
        if self._is_complete(saved_rules()):
            return
        # Another writer may be changing them: check again when it has finished.
        with writers_lock(wait=True):
            text = saved_rules()
            if self._is_complete(text):
                return
            with Executor() as executor:
                SetRules(text, text).execute(executor)
        self._log("rules of vnet-tui's own table were missing: restored")

    def _is_complete(self, text: str) -> bool:
        if text != self._text:
            self._expected = expected_lines(text) if text else Lines()
            self._text = text
        return not self._expected - present_lines()


class AttachmentRestorer:
    """Restores the persistent attachments of engines' containers to vnet's networks."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._seen: set[str] = set()
        self._tries: Counter[tuple[str, str, int]] = Counter()

    def restore(self) -> bool:
        """Make the missing attachments; return whether none must be tried again."""
        persistent = read_attachments()
        done = []
        for runtime in sorted({_runtime(attachment) for attachment in persistent} & _ENGINES.keys()):
            engine = _ENGINES[runtime]()
            if engine.state != "ok":
                continue  # until an event of it, or the next poll
            containers = {container.uid: container for container in engine.containers}
            own = [attachment for attachment in persistent if _runtime(attachment) == runtime]
            self._forget_removed(own, containers.keys())
            self._seen |= containers.keys()
            done += [self._restore(attachment, containers.get(attachment.container)) for attachment in own]
        return all(done)

    def _restore(self, attachment: PersistAttachment, container: Container | None) -> bool:
        if container is None or container.pid is None or container.state != "running":
            return True  # nothing to attach to before its next start
        steps = attachment.steps_at(NetnsTarget(pid=container.pid, inode=container.netns))
        tried = (attachment.container, attachment.network, container.pid)
        if _is_attached(steps) or not _has_bridge(steps) or self._tries[tried] >= _MAX_TRIES:
            return True
        self._tries[tried] += 1
        if _is_clearing(steps) and self._tries[tried] <= _MAX_TRIES_CLEARING:
            return False
        return self._attach(attachment, container, steps)

    def _attach(
        self, attachment: PersistAttachment, container: Container, steps: tuple[Operation, ...]
    ) -> bool:
        # The attachment is part of the change, so that its undo removes it as well.
        operations = (*steps, replace(attachment, steps=steps))
        title = f"attach {container.name} to {attachment.network} again"
        outcome = run.apply(title, operations, wait=True)
        guards = [step for step in operations if isinstance(step, SetStormGuard)]
        if guards and not outcome.done:
            # Without bpf(2) a container has its network rather than its guard.
            errors = "; ".join(outcome.errors)
            outcome = run.apply(title, tuple(step for step in operations if step not in guards), wait=True)
            if outcome.done:
                self._log(f"{container.name} has no storm guard on {attachment.network}: {errors}")
        if outcome.done:
            self._log(f"{container.name} has started: attached to {attachment.network} again")
        else:
            errors = "; ".join(outcome.errors)
            self._log(f"can't attach {container.name} to {attachment.network} again: {errors}")
        return outcome.done

    def _forget_removed(self, found: Collection[PersistAttachment], present: Collection[str]) -> None:
        """Forget the attachments of containers that were removed: they never start again."""
        for attachment in found:
            if attachment.container in self._seen and attachment.container not in present:
                with writers_lock(wait=True):
                    remove_attachment(attachment)
                self._log(
                    f"{attachment.container} was removed: its attachment to {attachment.network} is forgotten"
                )
                self._seen.discard(attachment.container)


def _is_attached(steps: tuple[Operation, ...]) -> bool:
    """Return whether both ends of every veth pair among the steps exist."""
    ends = [
        end
        for step in steps
        if isinstance(step, CreateVeth)
        for end in ((step.place, step.name), (step.peer_place, step.peer))
    ]
    return _all_exist(ends)


def _has_bridge(steps: tuple[Operation, ...]) -> bool:
    """Return whether the network's bridge exists: after a reboot it may not."""
    masters = [(step.place, step.value) for step in steps if isinstance(step, SetLink) and _enslaves(step)]
    return _all_exist([*masters, *((HOST, step.bridge) for step in steps if isinstance(step, OvsAddPort))])


def _enslaves(step: SetLink) -> bool:
    return step.attribute == "master" and bool(step.value)


def _is_clearing(steps: tuple[Operation, ...]) -> bool:
    """Return whether the host's end of the previous veth pair still exists."""
    with Executor() as executor, suppress(LookupError, NamespaceGone):
        pairs = [step for step in steps if isinstance(step, CreateVeth)]
        return any(step.alias and executor.alias(step.place, step.name) == step.alias for step in pairs)
    return False


def _all_exist(links: Collection[tuple[NetnsTarget, str]]) -> bool:
    with Executor() as executor:
        try:
            for place, name in links:
                executor.index(place, name)
        except (LookupError, NamespaceGone):
            return False
    return True


def _runtime(attachment: PersistAttachment) -> str:
    return attachment.container.partition(":")[0]
