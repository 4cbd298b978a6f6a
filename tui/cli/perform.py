"""Execute changes: read the host, plan, print, and apply under one lock."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from core.apply import guard, journal, run
from core.collect.etcd import read_networks
from core.collect.host import missing_capabilities
from core.collect.nft_netlink import read_tables
from core.collect.processes import remote_session
from core.collect.snapshot import read_snapshot
from core.model import Link, Part
from core.model.etcd import EtcdNetwork
from core.operations import AddAddress, Operation, PersistAttachment, attachments
from core.plan import Plan, Refused, plan_all, vnet_state
from core.plan.requests import (
    ChangeBridge,
    ChangeLink,
    ChangePort,
    CountTraffic,
    CreateNetwork,
    DeleteFlow,
    JoinOverlay,
    Publish,
    Repair,
    Request,
    Tune,
    Unpublish,
)
from core.state import StateError, planning_lock
from core.text import TABLE, safe, unescape
from core.topology import Topology
from tui.cli.console import (
    OR_DRY_RUN,
    ask_to_confirm,
    command_errors,
    print_dry_run,
    print_outcome,
    print_plan,
    print_refused,
    require_rights,
)
from tui.cli.history import offer_recovery, require_none_interrupted
from tui.command import CommandError

# Parts of a snapshot that plans need. Only plans that move a card's address or publish ports need all rules
# of the host, the latter also the ports in use; only deleting a namespace needs the rules of other
# namespaces.
type Parts = Sequence[Part]
LIGHT: Parts = (Part.WIRING, Part.CONTAINERS, Part.OVS, Part.FILTERS)
RULED: Parts = (Part.WIRING, Part.CONTAINERS, Part.OVS, Part.HOST_FIREWALL)
PUBLISHING: Parts = (*RULED, Part.LISTENERS)
# With forwarding tables.
BRIDGED: Parts = (Part.LINKS, Part.CONTAINERS, Part.OVS, Part.FILTERS)
TUNED: Parts = (*RULED, Part.TUNING)
TRACKED: Parts = (Part.WIRING, Part.CONTAINERS, Part.OVS, Part.FIREWALL, Part.TUNING)
WHOLE: Parts = (Part.WIRING, Part.CONTAINERS, Part.OVS, Part.FIREWALL, Part.LISTENERS)
# Repairs may concern forwarding tables, policy rules and the firewall of every namespace.
REPAIR: Parts = (Part.LINKS, Part.CONTAINERS, Part.OVS, Part.FIREWALL)


def with_frr(parts: Parts) -> Parts:
    """Add FRRouting, which only plans of networks need, as overlays are among them."""
    return (*parts, Part.FRR)


type Planner = Callable[[Topology], Plan | Refused]
# Show a plan; returns whether to apply it.
type Approve = Callable[[Plan], bool]


def change(options: argparse.Namespace, request: Callable[[Topology], Request], parts: Parts) -> int:
    """Execute one request; returns the exit code. Raises CommandError."""
    return perform(options, lambda topology: plan_requests((request(topology),), topology), parts)


def plan_requests(requests: Sequence[Request], topology: Topology, title: str = "") -> Plan | Refused:
    """Plan requests, without addresses that changes in the journal reserve."""
    return plan_all(
        requests, topology, _reserved(), remote_session(), title, persistent_attachments(), _etcd(requests)
    )


# Requests that neither assign addresses nor join or leave a network.
_WITHOUT_ETCD = (
    ChangeBridge,
    ChangeLink,
    ChangePort,
    CountTraffic,
    DeleteFlow,
    Publish,
    Repair,
    Tune,
    Unpublish,
)


def _etcd(requests: Sequence[Request]) -> dict[str, EtcdNetwork]:
    """Read from etcd what these requests may need."""
    if all(isinstance(one, _WITHOUT_ETCD) for one in requests):
        return {}
    networks = [one.network if isinstance(one, JoinOverlay) else one for one in requests]
    return read_networks(
        {one.name: one.etcd for one in networks if isinstance(one, CreateNetwork) and one.etcd}
    )


def read_topology(parts: Parts, deep: bool = False) -> Topology:
    """Read the host, with `deep` every namespace, else those that known links lead to."""
    return Topology(read_snapshot(parts, deep or {*WHOLE} <= {*parts}))


def bridge_named(text: str, topology: Topology, to: str, kinds: str = "bridge or network") -> Link:
    """Return the host's bridge of that name, or of the network of that name or id.

    Raises CommandError: can't `to` it, the host has none of these `kinds`, or several.
    """
    found = topology.bridges_named(text)
    if len(found) == 1:
        return found[0]
    if found:
        reason = "several networks have that name. Try: the name of the bridge"
    else:
        reason = f"the host has no {kinds} of that name. Try: vnet-tui show bridges"
    raise CommandError(f'can\'t {to} "{safe(text)}": {reason}')


def perform(
    options: argparse.Namespace, planner: Planner, parts: Parts, approve: Approve | None = None
) -> int:
    """Plan and apply, or print the commands (`options.dry_run`).

    Returns the exit code. `approve` is called before anything is done, and again if the plan has changed by
    then. Raises CommandError.
    """
    if options.dry_run:
        return _dry_run(_planned_dry(planner, parts), options.json)
    with command_errors():
        _require_rights(options, planner, parts)
        offer_recovery(options)
        return _plan_and_apply(options, planner, parts, approve)


def _require_rights(options: argparse.Namespace, planner: Planner, parts: Parts) -> None:
    """Raise CommandError without the rights; Docker's steps need only its socket."""
    try:
        require_rights(or_try=OR_DRY_RUN)
    except CommandError:
        if getattr(options, "engine", "") == "docker":
            return  # Docker executes all of its steps
        plan: Plan | Refused | None = None
        with suppress(CommandError):
            plan = planner(read_topology(parts))
        if not isinstance(plan, Plan) or not plan.steps:
            raise
        require_rights(plan.steps, or_try=OR_DRY_RUN)


def _planned_dry(planner: Planner, parts: Parts) -> Plan | Refused:
    plan = planner(read_topology(parts))
    return planner(read_topology(parts, deep=True)) if _wants_deep(plan) else plan


def _wants_deep(plan: Plan | Refused) -> bool:
    """Return whether to read again with every namespace.

    It is needed before a refusal, and before a change that can cut off the user, such as bridging a card that
    a link in an unseen namespace may depend on.
    """
    return isinstance(plan, Refused) or plan.guarded


def _dry_run(plan: Plan | Refused, as_json: bool) -> int:
    lacking = missing_capabilities()
    if lacking:
        print(f"vnet-tui: read without {', '.join(lacking)}: the plan may be incomplete", file=sys.stderr)
    if isinstance(plan, Refused):
        return print_refused(plan, as_json)
    print_dry_run(plan, as_json)
    return 0


def _plan_and_apply(
    options: argparse.Namespace, planner: Planner, parts: Parts, approve: Approve | None
) -> int:
    approved: Plan | None = None

    def is_approved(plan: Plan) -> bool:
        return approve is None or (approved is not None and same_steps(plan, approved))

    def apply(plan: Plan) -> run.Outcome:
        if approved is None and not options.json:
            print_plan(plan)
            sys.stdout.flush()
        return run_plan(plan)

    while True:
        plan, outcome = attempt(planner, parts, is_approved, apply)
        if isinstance(plan, Refused):
            return print_refused(plan, options.json)
        if outcome or not plan.steps:
            break
        if approved:
            print("vnet-tui: the host has changed meanwhile; the new plan:", file=sys.stderr)
        if approve and not approve(plan):
            return 0
        approved = plan
    code = print_outcome(plan, outcome, options.json)
    return ask_to_confirm(outcome, options.json) if outcome and plan.guarded and outcome.done else code


def attempt(
    planner: Planner,
    parts: Parts,
    is_approved: Callable[[Plan], bool],
    apply: Callable[[Plan], run.Outcome],
    deep: bool = False,
) -> tuple[Plan | Refused, run.Outcome | None]:
    """Plan on a new snapshot and, if approved, apply, all under one lock.

    The outcome is None if nothing was begun. With `deep` False, plans that are refused or guarded are made
    again on a deep snapshot. Raises CommandError, Busy, StateError and GuardError.
    """
    with planning_lock():
        require_none_interrupted(journal.open_entries())
        plan = _planned_on(read_topology(parts, deep), planner)
        if _wants_deep(plan) and not deep:
            plan = _planned_on(read_topology(parts, deep=True), planner)
        if isinstance(plan, Refused) or not plan.steps or not is_approved(plan):
            return plan, None
        return plan, apply(plan)


def _planned_on(topology: Topology, planner: Planner) -> Plan | Refused:
    _require_vnet_rules(topology)
    return planner(topology)


def same_steps(one: Plan, other: Plan) -> bool:
    """Return whether two plans have the same effect."""
    return _comparable(one.steps) == _comparable(other.steps)


def _require_vnet_rules(topology: Topology) -> None:
    """Raise CommandError if vnet's table exists but couldn't be read.

    It would be replaced without its published ports.
    """
    firewall = topology.snapshot.firewalls.get(topology.host)
    known = any(chain.table == TABLE for chain in firewall.chains) if firewall else False
    _require_ovs(topology)
    try:
        tables = () if known else read_tables()
    except PermissionError:
        return  # then only Docker's steps can be executed
    if any(table.name == TABLE for table in tables):
        reasons = "; ".join(f"{one.what}: {one.why}" for one in firewall.problems) if firewall else ""
        why = f" ({safe(reasons)})" if reasons else ""
        raise CommandError(f"can't change networks: vnet-tui's own rules couldn't be read{why}")


def _require_ovs(topology: Topology) -> None:
    """Raise CommandError if Open vSwitch can't be read and a network is on it.

    The rules of that network would be removed.
    """
    problem = next((one for one in topology.snapshot.problems if one.part == Part.OVS), None)
    firewall = topology.snapshot.firewalls.get(topology.host)
    if problem is None or firewall is None:
        return
    vnet = vnet_state(topology.snapshot, topology.host)
    comments = (one.comment.split(" ") for one in firewall.rules if one.table == TABLE)
    names = {unescape(words[2]) for words in comments if words[:2] == [TABLE, "in"] and words[3:] == ["ovs"]}
    if unknown := sorted(names - set(vnet.networks)):
        raise CommandError(
            f"can't change networks: {', '.join(map(safe, unknown))} is on a bridge of Open vSwitch, "
            f"which can't be read: {safe(problem.why)}. Try: {safe(problem.try_)}"
        )


def run_plan(plan: Plan, progress: Callable[[Operation], None] = lambda _: None) -> run.Outcome:
    """Do it, under a guard where it can cut the person off."""
    if plan.guarded:
        return guard.guarded_apply(plan.title, plan.steps, progress=progress)
    return run.apply(plan.title, plan.steps, progress)


def _comparable(steps: Sequence[Operation]) -> list[Operation]:
    """Return the steps without what changes by the second.

    That is neighbours, and the time that is left of a lease.
    """
    return [step for one in steps if (step := one.comparable())]


def persistent_attachments() -> tuple[PersistAttachment, ...]:
    """Return the persistent attachments, none if the state can't be read."""
    try:
        return attachments.read_attachments()
    except StateError:
        return ()


def _reserved() -> list[str]:
    """Return the addresses of interrupted changes.

    They stay reserved until the changes are undone.
    """
    try:
        open_steps = [step for entry in journal.open_entries() for step in entry.steps]
    except (StateError, OSError):
        return []
    return [step.address.partition("/")[0] for step in open_steps if isinstance(step, AddAddress)]
