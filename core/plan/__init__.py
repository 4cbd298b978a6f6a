"""Compute the operations of requests from a snapshot, or why there is no plan."""

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
from core.plan.builder import CannotPlan, Plan, PlanBuilder, Refused, plan_steps
from core.plan.requests import Request
from core.plan.tags import OurMember, OurNetwork, OurPort, Ours, ours
from core.topology import Topology

__all__ = ["OurMember", "OurNetwork", "OurPort", "Ours", "Plan", "Refused", "ours", "plan", "plan_all"]

# Importing these modules registers their planners with plan_steps.
PLANNERS = (attachments, containers, delete, links, networks, ports, tuning)


def plan(
    request: Request,
    topology: Topology,
    reserved: Iterable[str] = (),
    session: str = "",
    persistent: Iterable[PersistAttachment] = (),
) -> Plan | Refused:
    """Plan one request.

    `reserved` are addresses and prefixes of plans that aren't applied yet, `session` is the remote address of
    the user's own session ("" for none), `persistent` are the attachments that the agent makes again when
    containers restart.
    """
    return plan_all((request,), topology, reserved, session, persistent=persistent)


def plan_all(
    requests: Sequence[Request],
    topology: Topology,
    reserved: Iterable[str] = (),
    session: str = "",
    title: str = "",
    persistent: Iterable[PersistAttachment] = (),
) -> Plan | Refused:
    """Plan several requests, each building on those before it; all or none."""
    builder = PlanBuilder(topology, reserved, session, persistent)
    titles: list[str] = []
    reasons: list[str] = []
    for request in requests:
        try:
            titles.append(plan_steps(request, builder))
        except CannotPlan as refusal:
            reasons += refusal.reasons
    if reasons:
        return Refused(tuple(dict.fromkeys(reasons)))
    return builder.plan(title or "; ".join(titles))
