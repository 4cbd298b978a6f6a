"""A plan in the making: what is, what the steps so far would make of it, and the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, singledispatch
from typing import Any

from core.model import Container, Link, Namespace, NetState
from core.operations import HOST, AddAddress, NetnsTarget, Operation, PersistAttachment, SetRules, SetSysctl
from core.plan import ipam, rules
from core.plan.tags import OurMember, OurNetwork, Ours, ours
from core.text import safe
from core.topology import Topology


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be done: `steps` in their order; `warnings` what a person should know before; `hits` what
    goes as well, in words; `guarded` where it can cut off the person who asks for it."""

    title: str
    steps: tuple[Operation, ...]
    warnings: tuple[str, ...] = ()
    hits: tuple[str, ...] = ()
    guarded: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """Why there is no plan, a sentence each."""

    reasons: tuple[str, ...]


class CannotPlan(Exception):
    """Raised inside planning; becomes Refused."""

    def __init__(self, reasons: Iterable[str]) -> None:
        self.reasons = tuple(reasons)
        super().__init__("; ".join(self.reasons))


def require(*reasons: str) -> None:
    """Raise Refusal with those of the reasons that are not empty."""
    if given := tuple(reason for reason in reasons if reason):
        raise CannotPlan(given)


def when(so: object, reason: str) -> str:
    """The reason where it is so, else ""."""
    return reason if so else ""


# As many further processes as a place names by which it may be reached, should the first have ended.
_OTHERS = 8


@dataclass
class Target:
    """A container to plan for: its uid and name, where it is, the names of the links in there, the
    families in which it has a default route, and the prefixes that its routes lead to."""

    uid: str
    name: str
    place: NetnsTarget
    ns: int | None = None
    links: set[str] = field(default_factory=set)
    defaults: set[int] = field(default_factory=set)
    ways: set[str] = field(default_factory=set)


class PlanBuilder:
    """Collects the steps of one plan, for one request or many, and keeps what follows from them in mind.

    `reserved` are addresses and prefixes of plans that are not done yet, `session` the address of the other
    end of the person's own remote session ("" for none), `kept` what the agent makes again at restarts.
    """

    def __init__(
        self,
        topology: Topology,
        reserved: Iterable[str] = (),
        session: str = "",
        kept: Iterable[PersistAttachment] = (),
    ) -> None:
        self.topology = topology
        self.snapshot = topology.snapshot
        self.session = session
        self.before = ours(topology.snapshot, topology.host)
        self.ours: Ours = self.before
        self.reserved = tuple(reserved)
        # By container and network, as the steps so far would leave it.
        self.kept = {(want.container, want.network): want for want in kept}
        self.steps: list[Operation] = []
        self.warnings: dict[str, None] = {}
        self.hits: dict[str, None] = {}
        self.guarded = False
        # Names of namespaces that the steps so far would take away.
        self.gone: set[str] = set()
        self._removed = self._concerns_rules = False
        # The alias that the loopback link of a named namespace would have, by the namespace's name.
        self.tags: dict[str, str] = {}
        self._sysctls: dict[str, str] = {}
        self._targets: dict[str, Target] = {}

    def do(self, *operations: Operation) -> None:
        """Add steps."""
        self.steps += operations

    def warn(self, sentence: str) -> None:
        """Say something before, once."""
        if sentence:
            self.warnings.setdefault(sentence)

    def hit(self, sentence: str) -> None:
        """Tell what goes as well, once."""
        self.hits.setdefault(sentence)

    def now(self, **changes: Any) -> None:
        """Note that what is ours would differ in these fields of Ours."""
        self.ours = replace(self.ours, **changes)
        self._concerns_rules = True

    def removing(self) -> None:
        """The rules must hold until what they protect is gone: replace them at the end."""
        self._removed = True

    def plan(self, title: str) -> Plan:
        """The finished plan, with the rules replaced once if they would differ, or are gone."""
        steps = list(self.steps)
        after = rules.render(self.ours)
        before = rules.render(self.before) if self.before.table else rules.EMPTY
        if self._concerns_rules and after != before:
            change = SetRules(after, before)
            steps.insert(len(steps) if self._removed else 0, change)
        return Plan(title, tuple(steps), tuple(self.warnings), tuple(self.hits), self.guarded)

    # What is there

    @property
    def host(self) -> NetState:
        """The host's links, routes and neighbours."""
        return self.snapshot.nets.get(self.topology.host) or NetState(self.topology.host)

    @cached_property
    def host_names(self) -> set[str]:
        """The names of the host's links, those that the steps so far would make among them."""
        names = {link.name for link in self.host.links.values()}
        return names | {name for link in self.host.links.values() for name in link.altnames}

    @cached_property
    def used(self) -> set[str]:
        """Every address in use or handed out by this plan."""
        held = {one for one in self.reserved if "/" not in one}
        return ipam.used_addresses(self.snapshot) | held | set(self._kept_addresses())

    def _kept_addresses(self) -> Iterator[str]:
        """The addresses of containers that get them back when they start."""
        for want in self.kept.values():
            if want.container in self.topology.containers:
                adding = (step for step in want.steps if isinstance(step, AddAddress))
                yield from (step.address.partition("/")[0] for step in adding)

    @cached_property
    def prefixes(self) -> dict[ipam.Prefix, str]:
        """What a new subnet must not overlap with, this plan's own new subnets among them."""
        taken = ipam.taken_prefixes(self.snapshot, everywhere=False)
        held = [one for one in self.reserved if "/" in one]
        return taken | {ipam.parse_prefix(one): "a plan that is under way" for one in held}

    def link(self, name: str) -> Link | None:
        """The host's link of that name."""
        return next((link for link in self.host.links.values() if link.name == name), None)

    def place_of(self, ns: int) -> NetnsTarget:
        """How a namespace is reached. Raises Refusal where it has neither name nor process."""
        if ns == self.topology.host:
            return HOST
        space = self.snapshot.namespaces.get(ns)
        names = [name for name in space.names if name not in self.gone] if space else []
        if names:
            return NetnsTarget(names[0])
        if space and space.pids:
            return self._by_process(self.holder(space), space.pids, ns)
        raise CannotPlan(
            [f"{safe(self.topology.label(ns))} has neither a name nor a process to be reached by"]
        )

    def sysctl(self, key: str, value: str, before: str) -> None:
        """Set one kernel setting of the host, once."""
        if self._sysctls.get(key, before) != value:
            self.do(SetSysctl(key, value, self._sysctls.get(key, before)))
            self._sysctls[key] = value

    # Containers

    def target(self, text: str) -> Target:
        """The container that a person means by its name, "runtime:name", uid or the beginning of its id.
        Raises Refusal where it is none, several, or without a namespace of its own."""
        if text in self._targets:
            return self._targets[text]
        container = self.container(text)
        ns = container.netns
        label = safe(container.name)
        if ns is None:
            raise CannotPlan([f"{label} is not running: it has no network namespace to attach to"])
        if ns == self.topology.host:
            raise CannotPlan([f"{label} shares the host's own network: there is nothing to attach"])
        net = self.snapshot.nets.get(ns)
        links = {link.name for link in net.links.values()} if net else set()
        routes = [route for route in net.routes if route.table == "main"] if net else []
        defaults = {route.family for route in routes if route.dst == "default"}
        ways = {route.dst for route in routes}
        place = NetnsTarget(container.id) if container.runtime == "netns" else self._process(container)
        made = Target(container.uid, container.name, place, ns, links, defaults, ways)
        return self._targets.setdefault(container.uid, made)

    def uid_of(self, text: str) -> str:
        """The uid of the container that a text names, running or not. Raises Refusal."""
        made = self._targets.get(text)
        return made.uid if made else self.container(text).uid

    def _process(self, container: Container) -> NetnsTarget:
        if container.pid is None or container.netns is None:
            raise CannotPlan([f"{safe(container.name)} has no process to be reached by"])
        space = self.snapshot.namespaces.get(container.netns)
        pid = self.holder(space) if space and space.pids else container.pid
        return self._by_process(pid, space.pids if space else (), container.netns)

    def holder(self, space: Namespace) -> int:
        """The process by which a namespace is best reached: a container's own one, that lasts, before others,
        which may have entered it for a moment."""
        inside = self.topology.containers_in(space.inode)
        own = (one.pid for one in inside if one.pid is not None)
        return next(own, space.pids[0])

    def _by_process(self, pid: int, pids: Iterable[int], ns: int) -> NetnsTarget:
        others = tuple(one for one in pids if one != pid)[:_OTHERS]
        return NetnsTarget(pid=pid, inode=ns, others=others)

    def container(self, text: str) -> Container:
        """The container that a text names. Raises Refusal where it is none or several."""
        every = self.topology.containers
        for fits in _fits(text):
            found = [container for container in every.values() if fits(container)]
            if len(found) == 1:
                return found[0]
            if found:
                names = ", ".join(f"{one.runtime}:{safe(one.name)}" for one in found)
                raise CannotPlan([f'"{safe(text)}" may be {names}: say which'])
        raise CannotPlan([f'there is no container "{safe(text)}"'])

    def made(self, target: Target) -> None:
        """Note a container that the steps so far would make."""
        self._targets[target.name] = self._targets[target.uid] = target

    def also(self, name: str, of: str) -> None:
        """Note a further name of a named namespace that the steps so far would make."""
        if made := self._targets.get(f"netns:{of}"):
            self.made(replace(made, uid=f"netns:{name}", name=name))

    # Networks of ours

    def network(self, name: str) -> OurNetwork:
        """A network of ours by its name, or by its bridge's. Raises Refusal."""
        by_bridge = (one for one in self.ours.networks.values() if one.bridge == name)
        found = self.ours.networks.get(name) or next(by_bridge, None)
        if found is None:
            there = ", ".join(map(safe, sorted(self.ours.networks))) or "none yet"
            shown = any(name in (one.name, one.bridge) for one in self.topology.networks)
            told = f'"{safe(name)}" is no network' if shown else f'there is no network "{safe(name)}"'
            raise CannotPlan([f"{told} of vnet's (those are: {there})"])
        return found

    def add_member(self, member: OurMember) -> None:
        """Note an attachment that the steps so far would make."""
        self.now(members=(*self.ours.members, member))

    def drop_member(self, member: OurMember) -> None:
        """Note an attachment that the steps so far would take away."""
        self.now(members=tuple(one for one in self.ours.members if one != member))


def _fits(text: str) -> tuple[Callable[[Container], bool], ...]:
    """How a text may name a container, the surest way first."""
    return (
        lambda one: text in (one.uid, f"{one.runtime}:{one.name}"),
        lambda one: one.name == text,
        lambda one: len(text) >= 4 and one.runtime != "netns" and one.id.startswith(text),
    )


@singledispatch
def draft_steps(request: object, draft: PlanBuilder) -> str:
    """Add the steps that a request needs to a draft; returns its title. Raises Refusal."""
    raise TypeError(f"no way to plan {request!r}")
