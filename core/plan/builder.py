"""Build a plan: the current state, the steps so far, and the state after them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, singledispatch
from types import MappingProxyType
from typing import Any

from core.model import Container, Link, Namespace, NetState
from core.model.etcd import EtcdNetwork
from core.operations import HOST, AddAddress, NetnsTarget, Operation, PersistAttachment, SetRules, SetSysctl
from core.plan import ipam, rules
from core.plan.tags import VnetMember, VnetNetwork, VnetState, vnet_state
from core.text import quoted, safe
from core.topology import Topology


@dataclass(frozen=True, slots=True)
class Plan:
    """The operations of a change (`steps`, in order), with `warnings`.

    `side_effects` are sentences about what else is removed or changes. `guarded`: the change can cut off the
    user's own session.
    """

    title: str
    steps: tuple[Operation, ...]
    warnings: tuple[str, ...] = ()
    side_effects: tuple[str, ...] = ()
    guarded: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """The reasons why there is no plan, as "can't attach web to shop: REASON"."""

    reasons: tuple[str, ...]


class CannotPlan(Exception):
    """Report why a request can't be planned.

    A reason is only what follows "can't attach web to shop: ", with a remedy if one is known ("REASON. Try:
    COMMAND"): plan_all adds the rest, as it knows the request.
    """

    def __init__(self, reasons: Iterable[str]) -> None:
        self.reasons = tuple(reasons)
        super().__init__("; ".join(self.reasons))


def require(*reasons: str) -> None:
    """Raise CannotPlan with the reasons that aren't empty."""
    if given := tuple(reason for reason in reasons if reason):
        raise CannotPlan(given)


def when(condition: object, reason: str) -> str:
    """Return the reason if the condition holds, else ""."""
    return reason if condition else ""


# Further processes of a namespace that NetnsTarget names, in case that the first one ends.
_MAX_OTHER_PIDS = 8


@dataclass
class Target:
    """A container to plan for.

    `place` is its network namespace, `links` are the names of the links inside, `defaults` the address
    families that have a default route, and `destinations` those of its routes.
    """

    uid: str
    name: str
    place: NetnsTarget
    ns: int | None = None
    links: set[str] = field(default_factory=set)
    defaults: set[int] = field(default_factory=set)
    destinations: set[str] = field(default_factory=set)


class PlanBuilder:
    """Collect the steps of one plan and track the state that they lead to.

    `reserved` are addresses and prefixes of plans that aren't applied yet, `session` is the remote address
    of the user's own session ("" for none), `persistent` what the agent makes again at restarts, `etcd` what
    etcd holds for overlays, by name.
    """

    def __init__(
        self,
        topology: Topology,
        reserved: Iterable[str] = (),
        session: str = "",
        persistent: Iterable[PersistAttachment] = (),
        etcd: Mapping[str, EtcdNetwork] = MappingProxyType({}),
    ) -> None:
        self.topology = topology
        self.snapshot = topology.snapshot
        self.session = session
        self.before = vnet_state(topology.snapshot, topology.host)
        self.vnet: VnetState = self.before
        self.frr = topology.snapshot.frr  # after the steps so far
        self.etcd = dict(etcd)  # by network, after the steps so far
        self.reserved = tuple(reserved)
        # By container and network, after the steps so far.
        self.persistent = {(one.container, one.network): one for one in persistent}
        self.steps: list[Operation] = []
        self.warnings: dict[str, None] = {}
        self.side_effects: dict[str, None] = {}
        self.guarded = False
        # Names of namespaces that the steps so far remove.
        self.removed_names: set[str] = set()
        self._rules_last = self._rules_change = False
        # The alias of a named namespace's loopback link after the steps so far, by the namespace's name.
        self.tags: dict[str, str] = {}
        self._sysctls: dict[str, str] = {}
        self._targets: dict[str, Target] = {}

    def add(self, *operations: Operation) -> None:
        """Add steps."""
        self.steps += operations

    def warn(self, sentence: str) -> None:
        """Add a warning, once."""
        if sentence:
            self.warnings.setdefault(sentence)

    def add_side_effect(self, sentence: str) -> None:
        """Add a sentence about what else is removed or changes, once."""
        self.side_effects.setdefault(sentence)

    def update_vnet(self, **changes: Any) -> None:
        """Change fields of `vnet` for the following steps."""
        self.vnet = replace(self.vnet, **changes)
        self._rules_change = True

    def defer_rules(self) -> None:
        """Replace the firewall rules at the end of the plan.

        They must hold until what they protect is removed.
        """
        self._rules_last = True

    def plan(self, title: str) -> Plan:
        """Return the finished plan.

        It replaces vnet's rules once if they differ or are missing.
        """
        steps = list(self.steps)
        after = rules.render(self.vnet)
        before = rules.render(self.before) if self.before.table else rules.EMPTY
        if self._rules_change and after != before:
            change = SetRules(after, before)
            steps.insert(len(steps) if self._rules_last else 0, change)
        return Plan(title, tuple(steps), tuple(self.warnings), tuple(self.side_effects), self.guarded)

    # Current state

    @property
    def host(self) -> NetState:
        """Return the host's links, routes and neighbours."""
        return self.snapshot.nets.get(self.topology.host) or NetState(self.topology.host)

    @cached_property
    def host_names(self) -> set[str]:
        """Return the names of the host's links, with those that the steps so far create."""
        names = {link.name for link in self.host.links.values()}
        # A port of Open vSwitch keeps its name when its link is gone.
        names |= {port.name for bridge in self.snapshot.ovs for port in bridge.ports}
        return names | {name for link in self.host.links.values() for name in link.altnames}

    @cached_property
    def used(self) -> set[str]:
        """Return every address in use, or assigned by this plan."""
        reserved = {one for one in self.reserved if "/" not in one}
        return ipam.used_addresses(self.snapshot) | reserved | set(self._persistent_addresses())

    def _persistent_addresses(self) -> Iterator[str]:
        """Yield the addresses that the agent gives to containers when they start."""
        for one in self.persistent.values():
            if one.container in self.topology.containers:
                adding = (step for step in one.steps if isinstance(step, AddAddress))
                yield from (step.address.partition("/")[0] for step in adding)

    @cached_property
    def prefixes(self) -> dict[ipam.Prefix, str]:
        """Return the prefixes that a new subnet must not overlap, with this plan's own."""
        taken = ipam.taken_prefixes(self.snapshot, everywhere=False)
        reserved = [one for one in self.reserved if "/" in one]
        return taken | {ipam.parse_prefix(one): "a plan in progress" for one in reserved}

    def link(self, name: str) -> Link | None:
        """Return the host's link of that name."""
        return next((link for link in self.host.links.values() if link.name == name), None)

    def netns_target(self, ns: int) -> NetnsTarget:
        """Return how to enter a namespace.

        Raises CannotPlan if it has neither name nor process.
        """
        if ns == self.topology.host:
            return HOST
        space = self.snapshot.namespaces.get(ns)
        names = [name for name in space.names if name not in self.removed_names] if space else []
        if names:
            return NetnsTarget(names[0])
        if space and space.pids:
            return self._by_process(self.main_pid(space), space.pids, ns)
        raise CannotPlan([f"the namespace {safe(self.topology.label(ns))} has neither a name nor a process"])

    def set_sysctl(self, key: str, value: str, before: str) -> None:
        """Add the step that sets a sysctl of the host, once."""
        if self._sysctls.get(key, before) != value:
            self.add(SetSysctl(key, value, self._sysctls.get(key, before)))
            self._sysctls[key] = value

    # Containers

    def target(self, text: str) -> Target:
        """Find a container by name, "runtime:name", uid or the beginning of its id.

        Raises CannotPlan for none, for several, and for one without a namespace of its own.
        """
        if text in self._targets:
            return self._targets[text]
        container = self.container(text)
        ns = container.netns
        label = safe(container.name)
        if ns is None:
            start = f"{container.runtime} start {quoted(container.name)}"
            raise CannotPlan([f"{label} isn't running, so it has no network namespace. Try: {start}"])
        if ns == self.topology.host:
            raise CannotPlan([f"{label} shares the host's network namespace"])
        net = self.snapshot.nets.get(ns)
        links = {link.name for link in net.links.values()} if net else set()
        routes = [route for route in net.routes if route.table == "main"] if net else []
        defaults = {route.family for route in routes if route.dst == "default"}
        destinations = {route.dst for route in routes}
        place = NetnsTarget(container.id) if container.runtime == "netns" else self._process(container)
        target = Target(container.uid, container.name, place, ns, links, defaults, destinations)
        return self._targets.setdefault(container.uid, target)

    def container_uid(self, text: str) -> str:
        """Return the uid of a container, running or not. Raises CannotPlan."""
        target = self._targets.get(text)
        return target.uid if target else self.container(text).uid

    def _process(self, container: Container) -> NetnsTarget:
        if container.pid is None or container.netns is None:
            raise CannotPlan([f"{safe(container.name)} has no process"])
        space = self.snapshot.namespaces.get(container.netns)
        pid = self.main_pid(space) if space and space.pids else container.pid
        return self._by_process(pid, space.pids if space else (), container.netns)

    def main_pid(self, space: Namespace) -> int:
        """Return the process to enter a namespace by.

        A container's main process is preferred, because others may have entered only for a moment.
        """
        inside = self.topology.containers_in(space.inode)
        own = (one.pid for one in inside if one.pid is not None)
        return next(own, space.pids[0])

    def _by_process(self, pid: int, pids: Iterable[int], ns: int) -> NetnsTarget:
        others = tuple(one for one in pids if one != pid)[:_MAX_OTHER_PIDS]
        return NetnsTarget(pid=pid, inode=ns, others=others)

    def container(self, text: str) -> Container:
        """Find a container, running or not. Raises CannotPlan for none and for several."""
        every = self.topology.containers
        for fits in _fits(text):
            found = [container for container in every.values() if fits(container)]
            if len(found) == 1:
                return found[0]
            if found:
                names = ", ".join(f"{one.runtime}:{safe(one.name)}" for one in found)
                raise CannotPlan([f'"{safe(text)}" matches several containers. Try: one of {names}'])
        named = f'there is no container "{safe(text)}"' if text else "no container is given"
        raise CannotPlan([f"{named}. Try: vnet-tui show containers"])

    def add_target(self, target: Target) -> None:
        """Add a container that the steps so far create."""
        self._targets[target.name] = self._targets[target.uid] = target

    def add_name(self, name: str, of: str) -> None:
        """Add a further name of a named namespace that the steps so far create."""
        if target := self._targets.get(f"netns:{of}"):
            self.add_target(replace(target, uid=f"netns:{name}", name=name))

    # vnet's networks

    def network(self, name: str) -> VnetNetwork:
        """Find a network of vnet by its name or its bridge's name. Raises CannotPlan."""
        by_bridge = (one for one in self.vnet.networks.values() if one.bridge == name)
        found = self.vnet.networks.get(name) or next(by_bridge, None)
        if found is None:
            known = ", ".join(map(safe, sorted(self.vnet.networks))) or "none yet"
            exists = any(name in (one.name, one.bridge) for one in self.topology.networks)
            reason = "wasn't made by vnet-tui" if exists else "doesn't exist"
            raise CannotPlan([f'the network "{safe(name)}" {reason} (networks of vnet-tui: {known})'])
        return found

    def add_member(self, member: VnetMember) -> None:
        """Add an attachment that the steps so far create."""
        self.update_vnet(members=(*self.vnet.members, member))

    def drop_member(self, member: VnetMember) -> None:
        """Drop an attachment that the steps so far remove."""
        self.update_vnet(members=tuple(one for one in self.vnet.members if one != member))


def _fits(text: str) -> tuple[Callable[[Container], bool], ...]:
    """Return the ways to match a container by a text, the most exact first."""
    return (
        lambda one: text in (one.uid, f"{one.runtime}:{one.name}"),
        lambda one: one.name == text,
        lambda one: len(text) >= 4 and one.runtime != "netns" and one.id.startswith(text),
    )


@singledispatch
def plan_steps(request: object, builder: PlanBuilder) -> str:
    """Add the steps that a request needs, and return the title. Raises CannotPlan."""
    raise TypeError(f"no planner for {request!r}")
