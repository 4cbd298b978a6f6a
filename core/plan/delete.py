"""Plan to delete the object that a reference points at."""

from __future__ import annotations

from core.model import Container, Link, LinkKey, Ref
from core.plan.attachments import detach_member
from core.plan.builder import CannotPlan, PlanBuilder, plan_steps
from core.plan.connectivity import is_critical_link
from core.plan.ports import unpublish
from core.plan.requests import Delete, RemoveContainer, RemoveNetwork
from core.plan.teardown import delete_bridge, delete_pair, release_port
from core.text import TABLE, quoted, safe


@plan_steps.register
def plan_delete(request: Delete, builder: PlanBuilder) -> str:
    match request.ref:
        case Ref("link", (int(ns), int(ifindex))):
            return _delete_link(LinkKey(ns, ifindex), builder)
        case Ref("network", (str(network_id),)):
            return _delete_network(network_id, builder)
        case Ref("container", (str(runtime), str(container_id))):
            return _delete_container(runtime, container_id, builder)
        case Ref("namespace", (int(inode),)):
            return _delete_namespace(inode, builder)
        case Ref("nat", (int(_), str(entry_id))):
            return unpublish_entry(entry_id, builder)
        case Ref(kind, _):
            raise CannotPlan([f"vnet-tui doesn't delete objects of the kind {safe(kind)}"])


def _delete_link(key: LinkKey, builder: PlanBuilder) -> str:
    link = builder.snapshot.link(key)
    if link is None:
        raise CannotPlan(["it no longer exists"])
    ends = {link.name} | {peer.name for peer in [builder.topology.peer(link)] if peer}
    network = next(
        (one for one in builder.vnet.networks.values() if _is_bridge_of(link, one.bridge, builder)), None
    )
    if network:
        return plan_steps(RemoveNetwork(network.name), builder)
    builder.guarded = is_critical_link(key, builder)
    builder.defer_rules()
    for member in builder.vnet.members:
        if member.port in ends and builder.topology.host in _namespaces(link, builder):
            detach_member(member, builder)
            container = builder.topology.containers.get(member.container)
            return f"detach {safe(container.name if container else member.container)} from {member.network}"
    _describe_effects(link, builder)
    _delete_other(link, builder)
    return f"delete the link {safe(link.name)}"


def _describe_effects(link: Link, builder: PlanBuilder) -> None:
    """Describe what depends on a link that vnet didn't make.

    This can be containers, published ports and the uplink.
    """
    topology, name = builder.topology, safe(link.name)
    builder.warn(f"vnet-tui didn't create {name}: the program that did may need it, or create it again")
    ends = topology.ports_of(link.key) if link.kind == "bridge" else [link]
    sides = [side for end in ends for side in (end, topology.peer(end)) if side]
    cut = {one.uid: safe(one.name) for side in sides for one in _containers_of(side, builder)}
    if cut:
        builder.add_side_effect(f"disconnected from {name}: {', '.join(cut.values())}")
    entries = [one for one in topology.nat if one.kind == "published port"]
    ports = [safe(one.name) for one in entries if cut.keys() & set(one.containers)]
    if ports:
        builder.add_side_effect(f"published ports that stop working: {'; '.join(ports)}")
    if builder.guarded:
        builder.warn(
            "the host's default route or your own session uses it: the change is undone after 60 s unless "
            "you confirm it"
        )


def _containers_of(link: Link, builder: PlanBuilder) -> tuple[Container, ...]:
    return () if link.ns == builder.topology.host else builder.topology.containers_in(link.ns)


def _is_bridge_of(link: Link, bridge: str, builder: PlanBuilder) -> bool:
    return link.ns == builder.topology.host and link.name == bridge


def _namespaces(link: Link, builder: PlanBuilder) -> set[int]:
    peer = builder.topology.peer(link)
    return {link.ns} | ({peer.ns} if peer else set())


def _delete_other(link: Link, builder: PlanBuilder) -> None:
    """Delete a veth pair or a bridge that vnet didn't make.

    Other links are refused: an undo couldn't restore them.
    """
    if link.kind == "veth":
        peer = builder.topology.peer(link)
        if peer:
            builder.add_side_effect(
                f"its peer is deleted: {safe(peer.name)} in {safe(builder.topology.label(peer.ns))}"
            )
        delete_pair(builder, link)
    elif link.kind == "bridge":
        place = builder.netns_target(link.ns)
        for port in builder.topology.ports_of(link.key):
            builder.add_side_effect(f"its port {safe(port.name)} is detached")
            release_port(builder, port, place)
        delete_bridge(builder, link)
    else:
        raise CannotPlan([f"an undo couldn't restore it (its kind is {safe(link.kind)})"])


def _delete_network(network_id: str, builder: PlanBuilder) -> str:
    network = builder.topology.network(network_id)
    if network is None:
        raise CannotPlan(["it no longer exists"])
    bridge = builder.topology.bridge_link(network)
    if network.engine == "kernel" and bridge:
        return _delete_link(bridge.key, builder)
    return plan_steps(RemoveNetwork(network.name), builder)


def _delete_container(runtime: str, container_id: str, builder: PlanBuilder) -> str:
    container = builder.topology.containers.get(f"{runtime}:{container_id}")
    if runtime == "process":
        raise CannotPlan(["it has no name in /run/netns, and ends with its processes"])
    if runtime != "netns":
        name = quoted(container.name if container else container_id)
        raise CannotPlan([f"it belongs to {runtime}. Try: {runtime} rm {name}"])
    return plan_steps(RemoveContainer(container_id), builder)


def _delete_namespace(inode: int, builder: PlanBuilder) -> str:
    space = builder.snapshot.namespaces.get(inode)
    if space is None or space.is_host or not space.names:
        raise CannotPlan(["only named namespaces can be deleted"])
    return plan_steps(RemoveContainer(space.names[0]), builder)


def unpublish_entry(entry_id: str, builder: PlanBuilder) -> str:
    """Add the steps that remove a published port of vnet; return the title."""
    entry = next((one for one in builder.topology.nat if one.entry_id == entry_id), None)
    firewall = builder.snapshot.firewalls.get(builder.topology.host)
    rules = [one for one in firewall.rules if one.rule_id in entry.rules] if firewall and entry else []
    comments = {one.comment for one in rules if one.table == TABLE}
    found = [port for port in builder.vnet.ports if port.comment() in comments]
    if not found:
        raise CannotPlan(["vnet-tui only removes ports that it published itself"])
    unpublish(found, builder)
    return f"unpublish {found[0].port_id}"
