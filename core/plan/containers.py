"""Plan unmanaged containers (named namespaces), and changes of their connections."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from core.flows import ConntrackEntry, address_text, entry_of, flow_of, sentence
from core.flows.describe import TCP, protocol_name
from core.model import Link, Namespace, Ref
from core.operations import (
    CreateNamespace,
    DeleteAddress,
    DeleteConnection,
    DeleteNamespace,
    JoinNamespace,
    LeaveNamespace,
    NetnsTarget,
    SetLink,
    SetSysctl,
)
from core.plan import validate
from core.plan.attachments import attach, detach_member
from core.plan.builder import CannotPlan, PlanBuilder, Target, plan_steps, require, when
from core.plan.requests import CountTraffic, CreateContainer, DeleteFlow, RemoveContainer
from core.plan.tags import ALIAS_BYTES
from core.plan.teardown import delete_bridge, delete_pair, release_port
from core.text import end_text, format_tag, parse_tag, safe
from core.topology import Topology
from core.topology.index import names_in


@plan_steps.register
def plan_create_container(request: CreateContainer, builder: PlanBuilder) -> str:
    exists = _namespace_named(request.name, builder) or request.name in builder.tags
    require(
        validate.name(request.name, "container's name"),
        validate.model(request.model),
        when(exists, f"there is already a namespace {request.name}"),
        when(request.model == "bridged" and not request.network, "a bridged container needs a network"),
        when(request.model != "bridged" and request.network, "only a bridged container can be on a network"),
        when(
            request.model == "joined" and not request.joined_with,
            "a joined container needs the name of the container that it joins",
        ),
        when(request.model != "joined" and request.joined_with, "only a joined container joins another"),
    )
    if request.model in ("joined", "open"):
        _join_namespace(request, builder)
    else:
        _create(request, builder)
    return f"create the {request.model} container {request.name}"


def _namespace_named(name: str, builder: PlanBuilder) -> Namespace | None:
    spaces = builder.snapshot.namespaces.values()
    return next((space for space in spaces if name in space.names), None)


def _create(request: CreateContainer, builder: PlanBuilder) -> None:
    place = NetnsTarget(request.name)
    builder.tags[request.name] = _tag((request.name,))
    builder.add(
        CreateNamespace(request.name),
        SetLink("lo", "alias", builder.tags[request.name], "", place),
        SetLink("lo", "up", "up", "down", place),
    )
    target = Target(f"netns:{request.name}", request.name, place, links={"lo"})
    builder.add_target(target)
    if request.network:
        attach(target, builder.network(request.network), request.addresses, "", builder)


def _join_namespace(request: CreateContainer, builder: PlanBuilder) -> None:
    """Add a name to the namespace of another container, or of the host."""
    of = "" if request.model == "open" else _joinable(request.joined_with, builder)
    if of not in builder.tags:
        space = _namespace_named(of, builder)
        builder.tags[of] = _loopback(space.inode if space else builder.topology.host, builder).alias
    before = builder.tags[of]
    builder.tags[of] = _tag((*_names(before), request.name))
    builder.add_name(request.name, of)
    builder.add(
        JoinNamespace(request.name, of), SetLink("lo", "alias", builder.tags[of], before, NetnsTarget(of))
    )


def _joinable(text: str, builder: PlanBuilder) -> str:
    """Return the named namespace of the container to join. Raises CannotPlan."""
    name = text.removeprefix("netns:")
    if name in builder.tags:
        return name
    container = builder.container(text)
    if container.runtime != "netns":
        name = safe(container.name)
        raise CannotPlan([f"{name} isn't a named namespace: only those and the host can be joined"])
    return container.id


def _loopback(ns: int, builder: PlanBuilder) -> Link:
    net = builder.snapshot.nets.get(ns)
    found = next((link for link in net.links.values() if link.kind == "loopback"), None) if net else None
    if found is None:
        raise CannotPlan([f"the links of {safe(builder.topology.label(ns))} weren't read"])
    return found


def _names(alias: str) -> tuple[str, ...]:
    """Return the names in the tag of a loopback link."""
    values = parse_tag(alias)
    if values is None and alias:
        raise CannotPlan(["the loopback link of that namespace has an alias of its own, not vnet-tui's tag"])
    return (values or {}).get("name", ())


def _tag(names: tuple[str, ...]) -> str:
    alias = format_tag(("name", name) for name in names) if names else ""
    if len(alias.encode()) > ALIAS_BYTES:
        raise CannotPlan(["too many containers share this namespace: their names don't fit in its tag"])
    return alias


@plan_steps.register
def plan_remove_container(request: RemoveContainer, builder: PlanBuilder) -> str:
    space = _namespace_named(request.name, builder)
    if space is None:
        raise CannotPlan([f'there is no named namespace "{safe(request.name)}"'])
    builder.defer_rules()
    others = tuple(name for name in space.names if name != request.name and name not in builder.removed_names)
    if space.inode == builder.topology.host or others:
        of = "" if space.inode == builder.topology.host else others[0]
        _leave(request.name, of, space, builder)
    else:
        _delete(request.name, space, builder)
    builder.removed_names.add(request.name)
    return f"delete the container {safe(request.name)}"


def _leave(name: str, of: str, space: Namespace, builder: PlanBuilder) -> None:
    before = _loopback(space.inode, builder).alias
    if name in (parse_tag(before) or {}).get("name", ()):
        left = tuple(one for one in _names(before) if one != name)
        builder.add(SetLink("lo", "alias", _tag(left), before, NetnsTarget(of)))
    builder.add(LeaveNamespace(name, of))


def _delete(name: str, space: Namespace, builder: PlanBuilder) -> None:
    """Empty a namespace link by link, then delete it."""
    left = format_tag((("left", name), ("ns", str(space.inode)))) if space.pids else ""
    if left:
        builder.add_side_effect(_describe_processes(space))
    firewall = builder.snapshot.firewalls.get(space.inode)
    if firewall and firewall.rules and not left:
        builder.add_side_effect("its own firewall rules are deleted, and an undo can't restore them")
    inside = {one.uid for one in builder.topology.containers_in(space.inode)}
    for member in [one for one in builder.vnet.members if one.container in inside]:
        builder.add_side_effect(f"it is detached from {member.network}")
        detach_member(member, builder)
    gone = {one.link for one in builder.before.members if one.container in inside}
    net = builder.snapshot.nets.get(space.inode)
    links = [link for link in net.links.values() if link.name not in gone] if net else []
    for link in sorted(links, key=lambda one: one.kind == "bridge"):
        _delete_inside(link, left, builder)
    builder.add(DeleteNamespace(name, left, builder.main_pid(space) if left else 0))


def _describe_processes(space: Namespace) -> str:
    """Describe what happens to the processes of a namespace that loses its name."""
    command, more = safe(space.command), len(space.pids) - 1
    first = f"process {space.pids[0]}{f' ({command})' if command else ''}"
    who = f"{first} and {more} more keep running" if more else f"{first} keeps running"
    return (
        f"{who} without a network. An undo restores the name and the links of this namespace while one of "
        "its processes runs; after that, it creates an empty namespace"
    )


def _delete_inside(link: Link, left: str, builder: PlanBuilder) -> None:
    place = builder.netns_target(link.ns)
    if link.kind == "loopback":
        _reset_loopback(link, left, place, builder)
    elif link.kind == "veth":
        builder.add_side_effect(f"its link {safe(link.name)} is deleted, with its peer")
        delete_pair(builder, link)
    elif link.kind == "bridge":
        builder.add_side_effect(f"its bridge {safe(link.name)} is deleted")
        for port in builder.topology.ports_of(link.key):
            if port.kind != "veth":
                release_port(builder, port, place)
        delete_bridge(builder, link)
    else:
        raise CannotPlan([f"an undo couldn't restore its link {safe(link.name)} ({safe(link.kind)})"])


def _reset_loopback(link: Link, alias: str, place: NetnsTarget, builder: PlanBuilder) -> None:
    for address in reversed(link.addresses):
        if address.scope not in ("host", "link"):
            builder.add(DeleteAddress("lo", str(address), place))
    if link.admin_up:
        builder.add(SetLink("lo", "up", "down", "up", place))
    if link.alias != alias:
        builder.add(SetLink("lo", "alias", alias, link.alias, place))


ACCOUNTING_SYSCTL = "net.netfilter.nf_conntrack_acct"


@plan_steps.register
def plan_count_traffic(request: CountTraffic, builder: PlanBuilder) -> str:
    found = [ns for ns in request.namespaces if ns in builder.snapshot.namespaces]
    require(when(not found, "traffic is already counted in every namespace with connections"))
    for ns in found:
        builder.add(SetSysctl(ACCOUNTING_SYSCTL, "1", "0", builder.netns_target(ns)))
    builder.warn("only new connections are counted")
    names = [safe(builder.topology.label(ns)) for ns in found]
    return (
        f"count the traffic of connections in {', '.join(names[:3])}{' and more' if len(names) > 3 else ''}"
    )


_GRE = 47
_GRE_WARNING = (
    "conntrack(8) can't distinguish GRE connections between the same two addresses: if you run the command "
    "yourself, it deletes all of them"
)
_NO_UNDO = "a deleted connection can't be restored: this has no undo"


def delete_flow(
    ns: int, entry: ConntrackEntry, names: Mapping[bytes, str] = MappingProxyType({})
) -> DeleteFlow:
    """Return the request to delete a conntrack entry of a namespace.

    `names` as for core.flows.flow_of.
    """
    flow = flow_of(entry, names)
    ends = (address_text(entry.orig_src), address_text(entry.orig_dst), entry.orig_sport, entry.orig_dport)
    translated = bool(flow.snat or flow.dnat)
    return DeleteFlow(ns, entry.id, entry.l4_proto, *ends, entry.zone, sentence(flow), translated)


def delete_flow_at(topology: Topology, ref: Ref) -> DeleteFlow | None:
    """Return the request to delete the entry of a reference; None if it is gone."""
    ns, entry_id = (int(part) for part in ref.key)
    table = topology.snapshot.conntracks.get(ns)
    places = np.flatnonzero(table.entries["id"] == entry_id).tolist() if table else []
    if table is None or not places:
        return None
    return delete_flow(ns, entry_of(table.entries[places[0]]), names_in(topology, ns))


@plan_steps.register
def plan_delete_flow(request: DeleteFlow, builder: PlanBuilder) -> str:
    require(when(request.ns not in builder.snapshot.namespaces, "the connection is gone with its namespace"))
    ends = (request.src, request.dst, request.l4_proto, request.sport, request.dport)
    builder.add(DeleteConnection(*ends, request.entry_id, builder.netns_target(request.ns), request.zone))
    for effect in _effects(request):
        builder.add_side_effect(effect)
    builder.warn(_NO_UNDO)
    if request.l4_proto == _GRE:
        builder.warn(_GRE_WARNING)
    return f"delete the connection {safe(request.sentence) or _describe_ends(request)}"


def _effects(request: DeleteFlow) -> list[str]:
    """Describe what happens to later packets of the connection."""
    effects = ["its next packet starts a new connection and passes all rules again: one of them may drop it"]
    if request.translated:
        effects.append("NAT may choose another port for it, which breaks the connection")
    elif request.l4_proto == TCP:
        effects.append(
            "an established connection continues only if conntrack picks it up (nf_conntrack_tcp_loose)"
        )
    return effects


def _describe_ends(request: DeleteFlow) -> str:
    ends = end_text(request.src, request.sport or None), end_text(request.dst, request.dport or None)
    return f"{' -> '.join(ends)} {protocol_name(request.l4_proto)}"
