"""Plan changes of settings of links, bridges and bridge ports."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

from core.model import BridgePort, BridgeSettings, Link, LinkKey
from core.operations import CreateVeth, NetnsTarget, PersistAttachment, SetBridge, SetLink, SetPort
from core.plan import ovs, validate
from core.plan.attachments import forget_attachment, persist_attachment
from core.plan.builder import CannotPlan, PlanBuilder, plan_steps, require, when
from core.plan.connectivity import is_critical_link
from core.plan.requests import ChangeBridge, ChangeLink, ChangeMtu, ChangePort
from core.plan.tags import ALIAS_BYTES, VnetNetwork
from core.plan.teardown import address_operation, own_addresses, permanent_neighbours, routes_of
from core.text import parse_tag, safe

# Bridge settings by their names in ip-link(8): the field of BridgeSettings, ip's units for one unit of the
# field, minimum and maximum.
BRIDGE_SETTINGS = {
    "stp_state": ("stp", 1, 0, 1),
    "vlan_filtering": ("vlan_filtering", 1, 0, 1),
    "vlan_default_pvid": ("vlan_default_pvid", 1, 0, 4094),
    "ageing_time": ("ageing_time", 100, 0, 100_000_000),
    "forward_delay": ("forward_delay", 100, 200, 3000),
    "hello_time": ("hello_time", 100, 100, 1000),
    "max_age": ("max_age", 100, 600, 4000),
    "priority": ("priority", 1, 0, 65535),
    "mcast_snooping": ("mcast_snooping", 1, 0, 1),
    "mcast_querier": ("mcast_querier", 1, 0, 1),
    "group_fwd_mask": ("group_fwd_mask", 1, 0, 65535),
    "nf_call_iptables": ("nf_call_iptables", 1, 0, 1),
    "nf_call_ip6tables": ("nf_call_ip6tables", 1, 0, 1),
}
PORT_FLAGS = tuple(one.name for one in fields(BridgePort) if one.type == "bool")


def _link(key: LinkKey, builder: PlanBuilder) -> tuple[Link, NetnsTarget]:
    link = builder.snapshot.link(key)
    if link is None:
        raise CannotPlan(["it no longer exists"])
    if is_critical_link(key, builder):
        builder.guarded = True
    return link, builder.netns_target(link.ns)


@plan_steps.register
def plan_change_link(request: ChangeLink, builder: PlanBuilder) -> str:
    link, place = _link(request.key, builder)
    before = len(builder.steps)
    require(when(request == ChangeLink(request.key), "no setting is given. Try: vnet-tui link set --help"))
    if request.mtu is not None and request.mtu != link.mtu:
        _change_mtu(link, request.mtu, place, builder)
    if request.alias is not None and request.alias != link.alias:
        _change_alias(link, request.alias, place, builder)
    if request.up is not None and request.up != link.admin_up:
        _change_state(link, request.up, place, builder)
    if request.name is not None and request.name != link.name:
        _rename(link, request.name, place, builder)
    require(when(len(builder.steps) == before, "it already has these settings"))
    return f"change the link {safe(link.name)}"


def _change_mtu(link: Link, mtu: int, place: NetnsTarget, builder: PlanBuilder) -> None:
    require(validate.mtu(mtu, ipv6=any(one.family == 6 and one.scope == "global" for one in link.addresses)))
    master = builder.snapshot.link((link.ns, link.master)) if link.master is not None else None
    if master:
        builder.warn(validate.mtu_of_path(mtu, master.name, master.mtu))
    peer = builder.topology.peer(link)
    if peer and peer.mtu != mtu:
        builder.warn(f"its peer {safe(peer.name)} keeps the MTU {peer.mtu}: larger packets are dropped there")
    builder.add(ovs.mtu_step(link, mtu, place, builder))


def _change_alias(link: Link, alias: str, place: NetnsTarget, builder: PlanBuilder) -> None:
    name = safe(link.name)
    require(
        when(parse_tag(link.alias) is not None, f"the alias of {name} is a tag that vnet-tui needs"),
        when(parse_tag(alias) is not None, 'aliases that begin with "vnet:" are reserved for vnet-tui'),
        when(len(alias.encode()) > ALIAS_BYTES, f"the alias is longer than {ALIAS_BYTES} bytes"),
        when(any(char in alias for char in "\0\n"), "an alias can't contain a line break"),
    )
    builder.add(SetLink(link.name, "alias", alias, link.alias, place))


def _change_state(link: Link, up: bool, place: NetnsTarget, builder: PlanBuilder) -> None:
    if not up:
        net = builder.snapshot.nets[link.ns]
        routes = [one for one in net.routes if any(hop.ifindex == link.ifindex for hop in one.nexthops)]
        for route in routes:
            if route.table == "main" and route.protocol != "kernel":
                builder.add_side_effect(
                    f"the route to {route.dst} over it is deleted; setting the link up doesn't restore it"
                )
        if any(one.family == 6 and one.scope == "global" for one in link.addresses):
            builder.add_side_effect(
                "its IPv6 addresses are deleted: the kernel does that when a link goes down"
            )
        # The kernel deletes these anyway: as steps, an undo restores them.
        builder.add(*routes_of(builder, link, place), *permanent_neighbours(builder, link, place))
        for address in reversed([one for one in own_addresses(link) if one.family == 6]):
            builder.add(*address_operation(link.name, address, place).inverse())
    states = {True: "up", False: "down"}
    builder.add(SetLink(link.name, "up", states[up], states[not up], place))


def _rename(link: Link, name: str, place: NetnsTarget, builder: PlanBuilder) -> None:
    net = builder.snapshot.nets[link.ns]
    require(
        validate.link_name(name),
        when(any(one.name == name for one in net.links.values()), f"there is already a link {safe(name)}"),
        when(link.kind == "loopback", "the loopback link can't be renamed"),
        when(builder.topology.ovs_ports_of(link), "Open vSwitch would lose it: its ports have fixed names"),
        when(_is_inner_end(link, builder), "the tag of its peer contains its name"),
    )
    networks = [one for one in builder.vnet.networks.values() if one.bridge == link.name]
    if place == builder.netns_target(builder.topology.host) and networks:
        renamed = replace(networks[0], bridge=name)
        builder.update_vnet(networks={**builder.vnet.networks, renamed.name: renamed})
    builder.add(SetLink(link.name, "name", name, link.name, place))


def _is_inner_end(link: Link, builder: PlanBuilder) -> bool:
    peer = builder.topology.peer(link)
    return any(
        peer and member.port == peer.name and link.name == member.link for member in builder.vnet.members
    )


@plan_steps.register
def plan_change_bridge(request: ChangeBridge, builder: PlanBuilder) -> str:
    link, place = _link(request.key, builder)
    known = ", ".join(BRIDGE_SETTINGS)
    require(
        when(link.kind != "bridge", f"{safe(link.name)} isn't a bridge"),
        when(
            request.setting not in BRIDGE_SETTINGS,
            f'unknown setting "{safe(request.setting)}". Try: one of {known}',
        ),
    )
    field, factor, least, most = BRIDGE_SETTINGS[request.setting]
    before = round(getattr(link.bridge or BridgeSettings(), field) * factor)
    require(
        when(
            not least <= request.value <= most,
            f"{request.setting} must be {least} to {most}, not {request.value}",
        ),
        when(before == request.value, f"it is already {before}"),
    )
    if request.setting == "stp_state" and request.value:
        builder.warn("with STP each port listens and learns before it forwards: up to 30 s without traffic")
    builder.add(SetBridge(link.name, request.setting, request.value, before, place))
    return f"set {request.setting} of {safe(link.name)} to {request.value}"


@plan_steps.register
def plan_change_port(request: ChangePort, builder: PlanBuilder) -> str:
    link, place = _link(request.key, builder)
    known = ", ".join(PORT_FLAGS)
    if link.port is None:
        raise CannotPlan([f"{safe(link.name)} isn't a bridge port"])
    require(when(request.flag not in PORT_FLAGS, f'unknown flag "{safe(request.flag)}". Try: one of {known}'))
    before = bool(getattr(link.port, request.flag))
    state = "on" if before else "off"
    require(when(before == request.on, f"it is already {state}"))
    builder.add(SetPort(link.name, request.flag, request.on, before, place))
    return f"switch {request.flag} of {safe(link.name)} {'on' if request.on else 'off'}"


@plan_steps.register
def plan_change_mtu(request: ChangeMtu, builder: PlanBuilder) -> str:
    network = builder.vnet.networks.get(request.name)
    require(when(network is None, f"vnet-tui has no network {safe(request.name)}"))
    assert network is not None
    uplink = builder.topology.uplink(builder.topology.host) if network.kind != "internal" else None
    require(validate.mtu(request.mtu, ipv6=any(":" in one for one in network.subnets)))
    builder.warn(validate.mtu_of_path(request.mtu, uplink[0].name, uplink[0].mtu) if uplink else "")
    steps = [
        ovs.mtu_step(link, request.mtu, builder.netns_target(link.ns), builder)
        for link in _links(network, builder)
        if link.mtu != request.mtu
    ]
    # A link must never send packets larger than the next one accepts: the bridge grows first, shrinks last.
    builder.add(*(steps if request.mtu > network.mtu else reversed(steps)))
    for attachment in [one for one in builder.persistent.values() if one.network == network.name]:
        forget_attachment(attachment.container, attachment.network, builder)
        persist_attachment(_with_mtu(attachment, request.mtu), builder)
    builder.update_vnet(networks={**builder.vnet.networks, network.name: replace(network, mtu=request.mtu)})
    return f"set the MTU of the network {network.name} to {request.mtu}"


def _links(network: VnetNetwork, builder: PlanBuilder) -> Iterator[Link]:
    """Yield the bridge, its ports and their peers in the containers."""
    names = [network.bridge, *(one.port for one in builder.vnet.members if one.network == network.name)]
    links = [link for name in names if (link := builder.link(name))]
    yield from links
    yield from (peer for link in links if link.kind == "veth" and (peer := builder.topology.peer(link)))


def _with_mtu(attachment: PersistAttachment, mtu: int) -> PersistAttachment:
    steps = (replace(one, mtu=mtu) if isinstance(one, CreateVeth) else one for one in attachment.steps)
    return replace(attachment, steps=tuple(steps))
