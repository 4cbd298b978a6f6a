"""Plans that make and delete plain containers: named namespaces."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from core.flows import ConntrackEntry, address_text, entry_of, flow_of, sentence
from core.flows.describe import TCP, end_text, protocol_name
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
from core.plan.builder import CannotPlan, PlanBuilder, Target, draft_steps, require, when
from core.plan.requests import CountTraffic, CreateContainer, DeleteFlow, RemoveContainer
from core.plan.tags import ALIAS_BYTES
from core.plan.teardown import delete_bridge, delete_pair, release_port
from core.tags import tag, words_of
from core.text import safe
from core.topology import Topology
from core.topology.index import names_in


@draft_steps.register
def _(request: CreateContainer, draft: PlanBuilder) -> str:
    taken = _named(request.name, draft) or request.name in draft.tags
    require(
        validate.name(request.name, "container's name"),
        validate.model(request.model),
        when(taken, f"there is a namespace {request.name} already"),
        when(request.model == "bridged" and not request.network, "a bridged container needs a network"),
        when(request.model != "bridged" and request.network, "only a bridged container is on a network"),
        when(request.model == "joined" and not request.joined_with, "joined with which container?"),
        when(request.model != "joined" and request.joined_with, "only a joined container joins another"),
    )
    if request.model in ("joined", "open"):
        _share(request, draft)
    else:
        _make(request, draft)
    return f"make the {request.model} container {request.name}"


def _named(name: str, draft: PlanBuilder) -> Namespace | None:
    spaces = draft.snapshot.namespaces.values()
    return next((space for space in spaces if name in space.names), None)


def _make(request: CreateContainer, draft: PlanBuilder) -> None:
    place = NetnsTarget(request.name)
    draft.tags[request.name] = _tag((request.name,))
    draft.do(
        CreateNamespace(request.name),
        SetLink("lo", "alias", draft.tags[request.name], "", place),
        SetLink("lo", "up", "up", "down", place),
    )
    target = Target(f"netns:{request.name}", request.name, place, links={"lo"})
    draft.made(target)
    if request.network:
        attach(target, draft.network(request.network), request.addresses, "", draft)


def _share(request: CreateContainer, draft: PlanBuilder) -> None:
    """Give the namespace of another container, or the host's, one name more."""
    of = "" if request.model == "open" else _joinable(request.joined_with, draft)
    if of not in draft.tags:
        space = _named(of, draft)
        draft.tags[of] = _loopback(space.inode if space else draft.topology.host, draft).alias
    before = draft.tags[of]
    draft.tags[of] = _tag((*_names(before), request.name))
    draft.also(request.name, of)
    draft.do(JoinNamespace(request.name, of), SetLink("lo", "alias", draft.tags[of], before, NetnsTarget(of)))


def _joinable(text: str, draft: PlanBuilder) -> str:
    """The named namespace that a container to join with is. Raises Refusal."""
    name = text.removeprefix("netns:")
    if name in draft.tags:
        return name
    container = draft.container(text)
    if container.runtime != "netns":
        raise CannotPlan(
            [f"{safe(container.name)} is no named namespace: its own engine joins others with it"]
        )
    return container.id


def _loopback(ns: int, draft: PlanBuilder) -> Link:
    net = draft.snapshot.nets.get(ns)
    found = next((link for link in net.links.values() if link.kind == "loopback"), None) if net else None
    if found is None:
        raise CannotPlan([f"the namespace of {safe(draft.topology.label(ns))} could not be read"])
    return found


def _names(alias: str) -> tuple[str, ...]:
    """The names that the tag on a loopback link tells."""
    words = words_of(alias)
    if words is None and alias:
        raise CannotPlan(["its loopback link has an alias of somebody else's, where our tag would go"])
    return (words or {}).get("name", ())


def _tag(names: tuple[str, ...]) -> str:
    alias = tag(("name", name) for name in names) if names else ""
    if len(alias.encode()) > ALIAS_BYTES:
        raise CannotPlan(["too many containers share this namespace: their names do not fit its tag"])
    return alias


@draft_steps.register
def _(request: RemoveContainer, draft: PlanBuilder) -> str:
    space = _named(request.name, draft)
    if space is None:
        raise CannotPlan([f'there is no named namespace "{safe(request.name)}"'])
    draft.removing()
    others = tuple(name for name in space.names if name != request.name and name not in draft.gone)
    if space.inode == draft.topology.host or others:
        of = "" if space.inode == draft.topology.host else others[0]
        _leave(request.name, of, space, draft)
    else:
        _delete(request.name, space, draft)
    draft.gone.add(request.name)
    return f"delete the container {safe(request.name)}"


def _leave(name: str, of: str, space: Namespace, draft: PlanBuilder) -> None:
    before = _loopback(space.inode, draft).alias
    if name in (words_of(before) or {}).get("name", ()):
        left = tuple(one for one in _names(before) if one != name)
        draft.do(SetLink("lo", "alias", _tag(left), before, NetnsTarget(of)))
    draft.do(LeaveNamespace(name, of))


def _delete(name: str, space: Namespace, draft: PlanBuilder) -> None:
    """Empty a namespace link by link, then delete it."""
    left = tag((("left", name), ("ns", str(space.inode)))) if space.pids else ""
    if left:
        draft.hit(_staying(space))
    firewall = draft.snapshot.firewalls.get(space.inode)
    if firewall and firewall.rules and not left:
        draft.hit("its own firewall rules go with it, and an undo does not bring them back")
    inside = {one.uid for one in draft.topology.containers_in(space.inode)}
    for member in [one for one in draft.ours.members if one.container in inside]:
        draft.hit(f"it is detached from {member.network}")
        detach_member(member, draft)
    gone = {one.link for one in draft.before.members if one.container in inside}
    net = draft.snapshot.nets.get(space.inode)
    links = [link for link in net.links.values() if link.name not in gone] if net else []
    for link in sorted(links, key=lambda one: one.kind == "bridge"):
        _delete_inside(link, left, draft)
    draft.do(DeleteNamespace(name, left, draft.holder(space) if left else 0))


def _staying(space: Namespace) -> str:
    """What becomes of the processes inside, in words."""
    command, more = safe(space.command), len(space.pids) - 1
    first = f"process {space.pids[0]}{f' ({command})' if command else ''}"
    who = f"{first} and {more} more go on in it" if more else f"{first} goes on in it"
    return (
        f"{who} without a network: an undo gives the same namespace its name and links back, as long as one "
        "of its processes runs; after that, only an empty one"
    )


def _delete_inside(link: Link, left: str, draft: PlanBuilder) -> None:
    place = draft.place_of(link.ns)
    if link.kind == "loopback":
        _reset_loopback(link, left, place, draft)
    elif link.kind == "veth":
        draft.hit(f"its link {safe(link.name)} goes, with the other end")
        delete_pair(draft, link)
    elif link.kind == "bridge":
        draft.hit(f"its bridge {safe(link.name)} goes")
        for port in draft.topology.ports_of(link.key):
            if port.kind != "veth":
                release_port(draft, port, place)
        delete_bridge(draft, link)
    else:
        raise CannotPlan(
            [f"its link {safe(link.name)} ({safe(link.kind)}) could not be brought back: move it out"]
        )


def _reset_loopback(link: Link, alias: str, place: NetnsTarget, draft: PlanBuilder) -> None:
    for address in reversed(link.addresses):
        if address.scope not in ("host", "link"):
            draft.do(DeleteAddress("lo", str(address), place))
    if link.admin_up:
        draft.do(SetLink("lo", "up", "down", "up", place))
    if link.alias != alias:
        draft.do(SetLink("lo", "alias", alias, link.alias, place))


SETTING = "net.netfilter.nf_conntrack_acct"


@draft_steps.register
def _accounting(request: CountTraffic, draft: PlanBuilder) -> str:
    found = [ns for ns in request.namespaces if ns in draft.snapshot.namespaces]
    require(when(not found, "every namespace with connections counts their traffic already"))
    for ns in found:
        draft.do(SetSysctl(SETTING, "1", "0", draft.place_of(ns)))
    draft.warn("only connections that begin from now on are counted")
    names = [safe(draft.topology.label(ns)) for ns in found]
    return (
        f"count the traffic of connections in {', '.join(names[:3])}{' and more' if len(names) > 3 else ''}"
    )


_GRE = 47
_COARSE = (
    "conntrack(8) cannot tell GRE connections between the same two addresses apart: typed by hand, "
    "the command forgets all of them"
)
_FINAL = "a connection that is forgotten cannot be brought back: this has no undo"


def delete_flow(
    ns: int, entry: ConntrackEntry, names: Mapping[bytes, str] = MappingProxyType({})
) -> DeleteFlow:
    """The request to forget a conntrack entry of the namespace `ns`; `names` are core.flows.flow_of's."""
    flow = flow_of(entry, names)
    ends = (address_text(entry.orig_src), address_text(entry.orig_dst), entry.orig_sport, entry.orig_dport)
    said, translated = sentence(flow), bool(flow.snat or flow.dnat)
    return DeleteFlow(ns, entry.id, entry.l4_proto, *ends, entry.zone, said, translated)


def delete_flow_at(topology: Topology, ref: Ref) -> DeleteFlow | None:
    """The request to forget the entry that a reference points at; None where it is gone."""
    ns, entry_id = (int(part) for part in ref.key)
    table = topology.snapshot.conntracks.get(ns)
    places = np.flatnonzero(table.entries["id"] == entry_id).tolist() if table else []
    if table is None or not places:
        return None
    return delete_flow(ns, entry_of(table.entries[places[0]]), names_in(topology, ns))


@draft_steps.register
def _flows(request: DeleteFlow, draft: PlanBuilder) -> str:
    require(
        when(request.ns not in draft.snapshot.namespaces, "its namespace is gone, and the connection with it")
    )
    ends = (request.src, request.dst, request.l4_proto, request.sport, request.dport)
    draft.do(DeleteConnection(*ends, request.entry_id, draft.place_of(request.ns), request.zone))
    for words in _what_it_hits(request):
        draft.hit(words)
    draft.warn(_FINAL)
    if request.l4_proto == _GRE:
        draft.warn(_COARSE)
    return f"forget the connection {safe(request.sentence) or _told(request)}"


def _what_it_hits(request: DeleteFlow) -> list[str]:
    """What becomes of the packets that are still to come."""
    words = ["its next packet counts as a new connection and meets all rules again: one of them may drop it"]
    if request.translated:
        words.append(
            "it is translated: by then its port may be another one, and what is under way breaks off"
        )
    elif request.l4_proto == TCP:
        words.append("if it was established, it goes on only where the kernel takes up connections half-way")
    return words


def _told(request: DeleteFlow) -> str:
    ends = end_text(request.src, request.sport or None), end_text(request.dst, request.dport or None)
    return f"{' -> '.join(ends)} {protocol_name(request.l4_proto)}"


__all__ = ["delete_flow", "delete_flow_at"]
