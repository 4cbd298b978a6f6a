"""The agent: puts our rules back when something wiped them, and attaches restarted containers again."""

from __future__ import annotations

import selectors
import threading
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace

from core.apply import run
from core.collect import engines
from core.model import Container
from core.netlink.events import EVERYTHING, EventSocket
from core.netlink.netns import NamespaceGone
from core.operations import CreateVeth, NetnsTarget, Operation, PersistAttachment, SetLink, SetRules, nft
from core.operations.attachments import forget, kept
from core.operations.executor import Executor
from core.operations.settings import noted_rules
from core.state import writing
from core.watch.poller import Poller

_RULES_EVERY = 30.0  # seconds; events come at once
_CONTAINERS_EVERY = 30.0
_AGAIN_SOON = 0.2  # seconds after which what could not be attached, or put back, is tried again
_MOST_TRIES = 20  # for one process of a container
# Of these, so many at most pass while the kernel clears away what the container had before its restart.
_CLEARING = 15
_ENGINES = {"docker": engines.read_docker, "podman": engines.read_podman}
_PATIENCE = 1.0


class Agent:
    """Works until `stop` is set. `say` gets a sentence for each thing done, and for each that failed.

    It acts under the writers' lock and touches no rule outside our own tables; each attachment that it makes
    is a change in the journal.
    """

    def __init__(self, say: Callable[[str], None], stop: threading.Event) -> None:
        self._say, self._stop = say, stop
        self._rules = Rules(say)
        self._attachments = Attachments(say)
        self._failures: dict[str, str] = {}
        self._look_rules = self._looker("rules", self._keep_rules, _RULES_EVERY)
        self._look_containers = self._looker("containers", self._keep_attached, _CONTAINERS_EVERY)

    def run(self) -> None:
        """Blocks until told to stop. Raises OSError where kernel events cannot be heard."""
        hearing = threading.Thread(
            target=engines.watch_docker, args=(self._stop, self._look_containers.mark), daemon=True
        )
        lookers = (self._look_rules, self._look_containers)
        events = EventSocket()
        try:
            for looker in lookers:
                looker.mark()
                looker.start()
            hearing.start()
            self._hear(events)
        finally:
            events.close()
            for looker in lookers:
                looker.stop()

    def _looker(self, part: str, look: Callable[[], None], every: float) -> Poller:
        return Poller(part, look, self._failed, every, settle=0.05)

    def _hear(self, events: EventSocket) -> None:
        with selectors.DefaultSelector() as selector:
            for descriptor in events.filenos():
                selector.register(descriptor, selectors.EVENT_READ)
            while not self._stop.is_set():
                if selector.select(_PATIENCE) and events.read() & {(None, "nft"), EVERYTHING}:
                    self._look_rules.mark()

    def _keep_rules(self) -> None:
        self._rules.look()
        self._failures.pop("rules", None)
        self._look_rules.set_every(_RULES_EVERY)

    def _keep_attached(self) -> None:
        complete = self._attachments.look()
        self._failures.pop("containers", None)
        self._look_containers.set_every(_CONTAINERS_EVERY if complete else _AGAIN_SOON)

    def _failed(self, part: str, error: Exception) -> None:
        """Say what went wrong, once for as long as it does."""
        if part == "rules":
            self._look_rules.set_every(_AGAIN_SOON)
        sentence = f"{part}: {error or type(error).__name__}"
        if self._failures.get(part) != sentence:
            self._failures[part] = sentence
            self._say(sentence)


class Rules:
    """Our own nftables tables: what they were last made to say, and whether they still do."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._text: str | None = None  # the text that `_good` belongs to
        self._good = nft.Lines()

    def look(self) -> None:
        """Put the tables back where something of theirs is missing. What was added by hand is left alone.

        What must be there is known from the text alone: a listing may be one that others have shrunk already.
        """
        if self._is_whole(noted_rules()):
            return
        # Another writer may be in the middle of a change of them: look again once it has ended.
        with writing(wait=True):
            text = noted_rules()
            if self._is_whole(text):
                return
            with Executor() as executor:
                SetRules(text, text).execute(executor)
        self._say("rules of vnet's own table were gone: put back")

    def _is_whole(self, text: str) -> bool:
        if text != self._text:
            self._good = nft.expected(text) if text else nft.Lines()
            self._text = text
        return not self._good - nft.present()


class Attachments:
    """The attachments of engines' containers to our own networks that are kept across restarts."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._seen: set[str] = set()
        self._tries: Counter[tuple[str, str, int]] = Counter()

    def look(self) -> bool:
        """Attach what should be attached and is not; says whether nothing is left to be tried again."""
        found = kept()
        done = []
        for runtime in sorted({_runtime(want) for want in found} & _ENGINES.keys()):
            engine = _ENGINES[runtime]()
            if engine.state != "ok":
                continue  # its events, or the next look, will tell
            containers = {container.uid: container for container in engine.containers}
            asked = [want for want in found if _runtime(want) == runtime]
            self._forget_removed(asked, containers.keys())
            self._seen |= containers.keys()
            done += [self._attached(want, containers.get(want.container)) for want in asked]
        return all(done)

    def _attached(self, want: PersistAttachment, container: Container | None) -> bool:
        if container is None or container.pid is None or container.state != "running":
            return True  # nothing to attach to before its next start
        steps = want.steps_at(NetnsTarget(pid=container.pid, inode=container.netns))
        tried = (want.container, want.network, container.pid)
        if _is_there(steps) or not _has_bridge(steps) or self._tries[tried] >= _MOST_TRIES:
            return True
        self._tries[tried] += 1
        if _is_clearing(steps) and self._tries[tried] <= _CLEARING:
            return False
        return self._attach(want, container, steps)

    def _attach(self, want: PersistAttachment, container: Container, steps: tuple[Operation, ...]) -> bool:
        # With the wish itself, so that who takes this back is rid of the attachment.
        again = (*steps, replace(want, steps=steps))
        outcome = run.apply(f"attach {container.name} to {want.network} again", again, wait=True)
        if outcome.done:
            self._say(f"{container.name} has started: attached to {want.network} again")
        else:
            self._say(f"{container.name} is not attached to {want.network}: {'; '.join(outcome.errors)}")
        return outcome.done

    def _forget_removed(self, found: Collection[PersistAttachment], present: Collection[str]) -> None:
        """Containers that were there and are not any more will never start again."""
        for want in found:
            if want.container in self._seen and want.container not in present:
                with writing(wait=True):
                    forget(want)
                self._say(f"{want.container} is gone: its attachment to {want.network} is forgotten")
                self._seen.discard(want.container)


def _is_there(steps: tuple[Operation, ...]) -> bool:
    """Whether both ends of every veth pair among the steps are where they belong."""
    ends = [
        end
        for step in steps
        if isinstance(step, CreateVeth)
        for end in ((step.place, step.name), (step.peer_place, step.peer))
    ]
    return _are_there(ends)


def _has_bridge(steps: tuple[Operation, ...]) -> bool:
    """Whether the network that the steps attach to is there: after a restart of the machine it may not be."""
    masters = [(step.place, step.value) for step in steps if isinstance(step, SetLink) and _enslaves(step)]
    return _are_there(masters)


def _enslaves(step: SetLink) -> bool:
    return step.attribute == "master" and bool(step.value)


def _is_clearing(steps: tuple[Operation, ...]) -> bool:
    """Whether the host's end of the veth pair that the container had before is still about to go."""
    with Executor() as executor, suppress(LookupError, NamespaceGone):
        made = [step for step in steps if isinstance(step, CreateVeth)]
        return any(step.alias and executor.alias(step.place, step.name) == step.alias for step in made)
    return False


def _are_there(links: Collection[tuple[NetnsTarget, str]]) -> bool:
    with Executor() as executor:
        try:
            for place, name in links:
                executor.index(place, name)
        except (LookupError, NamespaceGone):
            return False
    return True


def _runtime(want: PersistAttachment) -> str:
    return want.container.partition(":")[0]
