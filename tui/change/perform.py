"""The one path of every change: look, plan, show, apply under one lock, tell how it ended."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from core.apply import guard, journal, run
from core.collect.host import missing_capabilities
from core.collect.nft_netlink import read_tables
from core.collect.processes import remote_session
from core.collect.snapshot import FILTERS, HOST_FIREWALL, TUNING, WIRING, read_snapshot
from core.operations import AddAddress, Operation, PersistAttachment, attachments
from core.plan import Plan, Refused, plan_all
from core.plan.requests import Request
from core.state import StateError, planning
from core.tags import TABLE
from core.text import safe
from core.topology import Topology
from tui.change.console import (
    ask,
    in_words,
    print_dry_run,
    print_outcome,
    print_plan,
    print_refused,
    require_rights,
)
from tui.change.history import offer_recovery, refuse_after
from tui.command import CommandError

# What a plan is made from. All that the host's rules say matters to those alone who move a card's address or
# publish ports, who listens to the latter; the rules of other namespaces to those alone who delete these.
type Parts = Sequence[str]
LIGHT: Parts = (WIRING, "containers", FILTERS)
RULED: Parts = (WIRING, "containers", HOST_FIREWALL)
PUBLISHING: Parts = (*RULED, "listeners")
TUNED: Parts = (*RULED, TUNING)
TRACKED: Parts = (WIRING, "containers", "firewall", TUNING)
WHOLE: Parts = (WIRING, "containers", "firewall", "listeners")

type Planner = Callable[[Topology], Plan | Refused]
# Shows a plan and returns whether to go on with it.
type Approve = Callable[[Plan], bool]


def change(options: argparse.Namespace, request: Callable[[Topology], Request], parts: Parts) -> int:
    """Do what one request asks for; returns the exit code. Raises CommandError."""
    return perform(options, lambda topology: planned((request(topology),), topology), parts)


def planned(requests: Sequence[Request], topology: Topology, title: str = "") -> Plan | Refused:
    """The plan for some requests, which takes no address that a change in the journal still wants."""
    return plan_all(requests, topology, _reserved(), remote_session(), title, kept())


def look(parts: Parts, deep: bool = False) -> Topology:
    """The host as it is now; `deep` with every namespace, else with those that anything in sight leads to."""
    return Topology(read_snapshot(parts, deep or parts == WHOLE))


def perform(
    options: argparse.Namespace, planner: Planner, parts: Parts, approve: Approve | None = None
) -> int:
    """Plan and do it, or print its commands (`options.dry_run`); returns the exit code. `approve` is asked
    before anything is done, and again where by then the plan is another one. Raises CommandError."""
    if options.dry_run:
        return _dry_run(_planned_dry(planner, parts), options.json)
    with in_words():
        _require_rights(options, planner, parts)
        offer_recovery(options)
        return _do(options, planner, parts, approve)


def _require_rights(options: argparse.Namespace, planner: Planner, parts: Parts) -> None:
    """Raises CommandError where this process may not do it; the plan tells where only Docker has to."""
    try:
        require_rights()
    except CommandError:
        if getattr(options, "engine", "") == "docker":
            return  # all of its steps are Docker's
        plan: Plan | Refused | None = None
        with suppress(CommandError):
            plan = planner(look(parts))
        if not isinstance(plan, Plan) or not plan.steps:
            raise
        require_rights(plan.steps)


def _planned_dry(planner: Planner, parts: Parts) -> Plan | Refused:
    plan = planner(look(parts))
    return planner(look(parts, deep=True)) if _wants_deep(plan) else plan


def _wants_deep(plan: Plan | Refused) -> bool:
    """Whether to look again at every namespace: before a refusal, and before what can cut a person off, such
    as to bridge a card that a link in a namespace out of sight may hang from."""
    return isinstance(plan, Refused) or plan.guarded


def _dry_run(plan: Plan | Refused, as_json: bool) -> int:
    lacking = missing_capabilities()
    if lacking:
        print(f"vnet-tui: seen without {', '.join(lacking)}: not all may be in sight", file=sys.stderr)
    if isinstance(plan, Refused):
        return print_refused(plan, as_json)
    print_dry_run(plan, as_json)
    return 0


def _do(options: argparse.Namespace, planner: Planner, parts: Parts, approve: Approve | None) -> int:
    approved: Plan | None = None

    def is_approved(plan: Plan) -> bool:
        return approve is None or (approved is not None and same(plan, approved))

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
            print("vnet-tui: things have changed meanwhile; this is what would be done now", file=sys.stderr)
        if approve and not approve(plan):
            return 0
        approved = plan
    code = print_outcome(plan, outcome, options.json)
    return ask(outcome, options.json) if outcome and plan.guarded and outcome.done else code


def attempt(
    planner: Planner,
    parts: Parts,
    is_approved: Callable[[Plan], bool],
    apply: Callable[[Plan], run.Outcome],
    deep: bool = False,
) -> tuple[Plan | Refused, run.Outcome | None]:
    """Plan on a fresh look (`deep` as there) and, where that plan is approved, do it, all under one lock; the
    outcome is None where nothing was begun. Nothing is refused or guarded but on a deep look. Raises
    CommandError, Busy, StateError and GuardError."""
    with planning():
        refuse_after(journal.open_intents())
        plan = _planned_on(look(parts, deep), planner)
        if _wants_deep(plan) and not deep:
            plan = _planned_on(look(parts, deep=True), planner)
        if isinstance(plan, Refused) or not plan.steps or not is_approved(plan):
            return plan, None
        return plan, apply(plan)


def _planned_on(topology: Topology, planner: Planner) -> Plan | Refused:
    _require_our_rules(topology)
    return planner(topology)


def same(one: Plan, other: Plan) -> bool:
    """Whether two plans do the same."""
    return _lasting(one.steps) == _lasting(other.steps)


def _require_our_rules(topology: Topology) -> None:
    """Raises CommandError where our table is there and could not be read: it would be replaced without the
    published ports in it."""
    firewall = topology.snapshot.firewalls.get(topology.host)
    known = any(chain.table == TABLE for chain in firewall.chains) if firewall else False
    try:
        tables = () if known else read_tables()
    except PermissionError:
        return  # then nothing but Docker's work can be done
    if any(table.name == TABLE for table in tables):
        told = "; ".join(f"{one.what} ({one.why})" for one in firewall.problems) if firewall else ""
        raise CommandError(f"nothing was changed: vnet's own rules could not be read: {safe(told)}")


def run_plan(plan: Plan, progress: Callable[[Operation], None] = lambda _: None) -> run.Outcome:
    """Do it, under a guard where it can cut the person off."""
    if plan.guarded:
        return guard.guarded_apply(plan.title, plan.steps, progress=progress)
    return run.apply(plan.title, plan.steps, progress)


def _lasting(steps: Sequence[Operation]) -> list[Operation]:
    """The steps without what changes by the second, such as neighbours and the time that is left of a
    lease."""
    return [step for one in steps if (step := one.lasting())]


def kept() -> tuple[PersistAttachment, ...]:
    """The attachments that the agent makes again; none where that may not be read."""
    try:
        return attachments.kept()
    except StateError:
        return ()


def _reserved() -> list[str]:
    """The addresses of changes that were cut off: they are not free until these are taken back."""
    try:
        open_steps = [step for entry in journal.open_intents() for step in entry.steps]
    except (StateError, OSError):
        return []
    return [step.address.partition("/")[0] for step in open_steps if isinstance(step, AddAddress)]
