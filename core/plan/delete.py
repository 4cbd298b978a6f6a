"""Plans that delete what a reference points at."""

from __future__ import annotations

from core.model import Container, Link, LinkKey, Ref
from core.plan.attachments import detach_member
from core.plan.builder import CannotPlan, PlanBuilder, draft_steps, require, when
from core.plan.connectivity import is_lifeline
from core.plan.ports import withdraw
from core.plan.requests import Delete, RemoveContainer, RemoveNetwork
from core.plan.teardown import delete_bridge, delete_pair, release_port
from core.tags import TABLE
from core.text import safe


@draft_steps.register
def _(request: Delete, draft: PlanBuilder) -> str:
    match request.ref:
        case Ref("link", (int(ns), int(ifindex))):
            return _delete_link(LinkKey(ns, ifindex), draft)
        case Ref("network", (str(network_id),)):
            return _delete_network(network_id, draft)
        case Ref("container", (str(runtime), str(container_id))):
            return _delete_container(runtime, container_id, draft)
        case Ref("namespace", (int(inode),)):
            return _delete_namespace(inode, draft)
        case Ref("nat", (int(_), str(entry_id))):
            return _withdraw(entry_id, draft)
        case Ref(kind, _):
            raise CannotPlan([f"a {kind} cannot be deleted here"])


def _delete_link(key: LinkKey, draft: PlanBuilder) -> str:
    link = draft.snapshot.link(key)
    if link is None:
        raise CannotPlan(["that link is gone already"])
    ends = {link.name} | {peer.name for peer in [draft.topology.peer(link)] if peer}
    network = next(
        (one for one in draft.ours.networks.values() if _is_bridge_of(link, one.bridge, draft)), None
    )
    if network:
        return draft_steps(RemoveNetwork(network.name), draft)
    draft.guarded = is_lifeline(key, draft)
    draft.removing()
    for member in draft.ours.members:
        if member.port in ends and draft.topology.host in _spaces(link, draft):
            detach_member(member, draft)
            container = draft.topology.containers.get(member.container)
            return f"detach {safe(container.name if container else member.container)} from {member.network}"
    _say_what_it_carries(link, draft)
    _delete_other(link, draft)
    return f"delete the link {safe(link.name)}"


def _say_what_it_carries(link: Link, draft: PlanBuilder) -> None:
    """Who loses its network with a link that others made: containers, published ports, the way out."""
    topology, name = draft.topology, safe(link.name)
    draft.warn(f"vnet did not make {name}: whatever made it may need it, or make it again")
    ends = topology.ports_of(link.key) if link.kind == "bridge" else [link]
    sides = [side for end in ends for side in (end, topology.peer(end)) if side]
    cut = {one.uid: safe(one.name) for side in sides for one in _inside(side, draft)}
    if cut:
        draft.hit(f"cut off from {name}: {', '.join(cut.values())}")
    entries = [one for one in topology.nat if one.kind == "published port"]
    ports = [safe(one.name) for one in entries if cut.keys() & set(one.containers)]
    if ports:
        draft.hit(f"published ports that lead nowhere any more: {'; '.join(ports)}")
    if draft.guarded:
        draft.warn(
            "the host's way out, or your own session, goes by it: the change is taken back by itself after "
            "60 s, unless you say that you keep it"
        )


def _inside(link: Link, draft: PlanBuilder) -> tuple[Container, ...]:
    return () if link.ns == draft.topology.host else draft.topology.containers_in(link.ns)


def _is_bridge_of(link: Link, bridge: str, draft: PlanBuilder) -> bool:
    return link.ns == draft.topology.host and link.name == bridge


def _spaces(link: Link, draft: PlanBuilder) -> set[int]:
    peer = draft.topology.peer(link)
    return {link.ns} | ({peer.ns} if peer else set())


def _delete_other(link: Link, draft: PlanBuilder) -> None:
    """Delete a veth pair or a bridge that is not ours; what else there is could not be brought back."""
    if link.kind == "veth":
        peer = draft.topology.peer(link)
        if peer:
            draft.hit(f"its other end goes: {safe(peer.name)} in {safe(draft.topology.label(peer.ns))}")
        delete_pair(draft, link)
    elif link.kind == "bridge":
        place = draft.place_of(link.ns)
        for port in draft.topology.ports_of(link.key):
            draft.hit(f"its port {safe(port.name)} is taken off")
            release_port(draft, port, place)
        delete_bridge(draft, link)
    else:
        raise CannotPlan(
            [f"{safe(link.name)} ({safe(link.kind)}) could not be brought back: vnet leaves it alone"]
        )


def _delete_network(network_id: str, draft: PlanBuilder) -> str:
    network = draft.topology.network(network_id)
    if network is None:
        raise CannotPlan(["that network is gone already"])
    bridge = draft.topology.bridge_link(network)
    if network.engine == "kernel" and bridge:
        return _delete_link(bridge.key, draft)
    return draft_steps(RemoveNetwork(network.name), draft)


def _delete_container(runtime: str, container_id: str, draft: PlanBuilder) -> str:
    container = draft.topology.containers.get(f"{runtime}:{container_id}")
    name = safe(container.name if container else container_id)
    require(when(runtime != "netns", f"{name} is {runtime}'s: {runtime} deletes it"))
    return draft_steps(RemoveContainer(container_id), draft)


def _delete_namespace(inode: int, draft: PlanBuilder) -> str:
    space = draft.snapshot.namespaces.get(inode)
    if space is None or space.is_host or not space.names:
        raise CannotPlan(["only a named namespace can be deleted"])
    return draft_steps(RemoveContainer(space.names[0]), draft)


def _withdraw(entry_id: str, draft: PlanBuilder) -> str:
    entry = next((one for one in draft.topology.nat if one.entry_id == entry_id), None)
    firewall = draft.snapshot.firewalls.get(draft.topology.host)
    rules = [one for one in firewall.rules if one.rule_id in entry.rules] if firewall and entry else []
    comments = {one.comment for one in rules if one.table == TABLE}
    found = [port for port in draft.ours.ports if port.comment() in comments]
    if not found:
        raise CannotPlan(["only what vnet published can be withdrawn: other rules are left alone"])
    withdraw(found, draft)
    return f"withdraw the published port {found[0].port_id}"
