"""From requests to one plan: what would be done, step by step, or why it cannot be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from core.operations import PersistAttachment
from core.plan import (
    attachments,
    containers,
    delete,
    links,
    networks,
    ports,
    tuning,
)
from core.plan.builder import CannotPlan, Plan, PlanBuilder, Refused, draft_steps
from core.plan.requests import Request
from core.topology import Topology

# Each of these registers with draft_steps what it plans.
PLANNERS = (containers, attachments, containers, delete, containers, links, networks, ports, links, tuning)


def plan(
    request: Request,
    topology: Topology,
    reserved: Iterable[str] = (),
    session: str = "",
    kept: Iterable[PersistAttachment] = (),
) -> Plan | Refused:
    """The plan for one request. `reserved` are addresses and prefixes that plans under way hold, `session`
    the address of the other end of the person's remote session ("" for none), `kept` the attachments that
    the agent makes again when containers restart."""
    return plan_all((request,), topology, reserved, session, kept=kept)


def plan_all(
    requests: Sequence[Request],
    topology: Topology,
    reserved: Iterable[str] = (),
    session: str = "",
    title: str = "",
    kept: Iterable[PersistAttachment] = (),
) -> Plan | Refused:
    """One plan for several requests, each building on those before it; all of them or none."""
    draft = PlanBuilder(topology, reserved, session, kept)
    titles: list[str] = []
    reasons: list[str] = []
    for request in requests:
        try:
            titles.append(draft_steps(request, draft))
        except CannotPlan as refusal:
            reasons += refusal.reasons
    if reasons:
        return Refused(tuple(dict.fromkeys(reasons)))
    return draft.plan(title or "; ".join(titles))
