"""Compute the operations of requests from a snapshot, or why there is no plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from types import MappingProxyType

from core.model import LinkKey, Ref
from core.model.etcd import EtcdNetwork
from core.operations import PersistAttachment
from core.plan import (
    attachments,
    containers,
    delete,
    links,
    networks,
    overlay,
    ports,
    repair,
    repair_rules,
    storm_guard,
    tuning,
)
from core.plan.builder import CannotPlan, Plan, PlanBuilder, Refused, plan_steps
from core.plan.requests import PHRASES, CreateNetwork, Request
from core.plan.tags import VnetMember, VnetNetwork, VnetPort, VnetState, vnet_state
from core.text import safe
from core.topology import Topology

__all__ = [
    "Plan", "Refused", "VnetMember", "VnetNetwork", "VnetPort", "VnetState", "describe", "plan", "plan_all",
    "vnet_state",
]  # fmt: skip

# Importing these modules registers their planners with plan_steps.
PLANNERS = (
    attachments, containers, delete, links, networks, overlay, ports, repair, repair_rules, storm_guard,
    tuning,
)  # fmt: skip

_MAX_VALUE = 60  # characters of a name in a refusal


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
    etcd: Mapping[str, EtcdNetwork] = MappingProxyType({}),
) -> Plan | Refused:
    """Plan several requests, each building on those before it; all or none.

    `etcd` is what etcd holds for the overlays that this host has joined or asks for, by name.
    """
    builder = PlanBuilder(topology, reserved, session, persistent, etcd)
    titles: list[str] = []
    reasons: list[str] = []
    for request in requests:
        try:
            titles.append(plan_steps(request, builder))
        except CannotPlan as refusal:
            phrase = describe(request, topology)
            reasons += [f"can't {phrase}: {reason}" for reason in refusal.reasons]
    if reasons:
        return Refused(tuple(dict.fromkeys(reasons)))
    return builder.plan(title or "; ".join(titles))


def describe(request: Request, topology: Topology) -> str:
    """Return what a request does: "attach web to shop", safe to print."""
    values = {one.name: getattr(request, one.name) for one in fields(request)}
    if container := topology.containers.get(values.get("container", "")):
        values["container"] = container.name  # forms give "netns:web" for web
    return PHRASES[type(request)].format_map(
        {name: _value(value, topology) for name, value in values.items()}
    )


def _value(value: object, topology: Topology) -> str:
    match value:
        case LinkKey():
            return _link_name(value, topology)
        case Ref(kind, key):
            return _ref_name(kind, key, topology)
        case CreateNetwork(name=name):
            value = name
    text = str(value)
    return safe(text if len(text) <= _MAX_VALUE else text[: _MAX_VALUE - 1] + "…") or '""'


def _link_name(key: LinkKey, topology: Topology) -> str:
    link = topology.snapshot.link(key)
    return safe(link.name) if link else "the link"


def _ref_name(kind: str, key: tuple[int | str, ...], topology: Topology) -> str:
    """Return "the network shop", or only "the network" if it no longer exists."""
    match kind, key:
        case "link", (int(ns), int(index)):
            link = topology.snapshot.link(LinkKey(ns, index))
            name = link.name if link else ""
        case "network", (str(network_id),):
            network = topology.network(network_id)
            name = network.name if network else ""
        case "container", (str(runtime), str(container_id)):
            container = topology.containers.get(f"{runtime}:{container_id}")
            name = container.name if container else container_id
        case "namespace", (int(inode),):
            name = topology.label(inode)
        case "nat", (int(), str()):
            entry = topology.nat_entry(Ref(kind, key))
            kind, name = ("NAT entry", entry.name if entry else "")
        case _:
            name = ""
    return f"the {kind} {safe(name)}".rstrip()
