"""Which attachments the agent shall make again: an engine's container loses them whenever it restarts."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable
from dataclasses import replace

from core.operations import AddAddress, AddRoute, ForgetAttachment, Operation, PersistAttachment
from core.plan.builder import PlanBuilder, Target
from core.plan.tags import OurNetwork

# Engines whose containers get another network namespace with each start.
_RUNTIMES = ("docker", "podman")


def keep(target: Target, network: OurNetwork, steps: Iterable[Operation], draft: PlanBuilder) -> None:
    """Have the agent do the steps of an attachment again whenever its container restarts."""
    forget(target.uid, network.name, draft)
    if target.uid.partition(":")[0] in _RUNTIMES:
        want(PersistAttachment(target.uid, network.name, tuple(steps)), draft)


def forget(container: str, network: str, draft: PlanBuilder) -> bool:
    """Have the agent do it no more; says whether it would have."""
    before = draft.kept.pop((container, network), None)
    if before is None:
        return False
    draft.do(ForgetAttachment(before))
    return True


def keep_ways(
    target: Target,
    network: OurNetwork,
    draft: PlanBuilder,
    more: Collection[AddRoute] = (),
    less: Collection[AddRoute] = (),
) -> None:
    """Have the agent make other routes when it makes an attachment again."""
    before = draft.kept.get((target.uid, network.name))
    if before is None:
        return
    left = tuple(step for step in before.steps_at(target.place) if step not in (*more, *less))
    forget(before.container, before.network, draft)
    want(replace(before, steps=(*left, *more)), draft)


def addresses(target: Target, network: OurNetwork, draft: PlanBuilder) -> tuple[str, ...]:
    """The addresses that are kept for a container that is to be attached anew, given free for it."""
    before = draft.kept.get((target.uid, network.name))
    adding = [step for step in before.steps if isinstance(step, AddAddress)] if before else []
    found = [ipaddress.ip_interface(step.address) for step in adding]
    draft.used.difference_update(str(one.ip) for one in found)
    return tuple(str(one.ip) for one in found if str(one.network) in network.subnets)


def want(wanted: PersistAttachment, draft: PlanBuilder) -> None:
    """Have the agent do it."""
    draft.do(wanted)
    draft.kept[wanted.container, wanted.network] = wanted
