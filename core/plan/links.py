"""Plans that change settings of links, bridges and bridge ports."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

from core.model import BridgePort, BridgeSettings, Link, LinkKey
from core.operations import CreateVeth, NetnsTarget, PersistAttachment, SetBridge, SetLink, SetPort
from core.plan import validate
from core.plan.attachments import forget, persist
from core.plan.builder import CannotPlan, PlanBuilder, draft_steps, require, when
from core.plan.connectivity import is_lifeline
from core.plan.requests import ChangeBridge, ChangeLink, ChangeMtu, ChangePort
from core.plan.tags import ALIAS_BYTES, OurNetwork
from core.plan.teardown import address_operation, own_addresses, permanent_neighbours, routes_of
from core.tags import words_of
from core.text import safe

# ip-link(8)'s names for a bridge's settings: the field of BridgeSettings, how many of its units make one of
# the field's, the least and the most.
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
    "group_fwd_mask": ("group_fwd_mask", 1, 0, 65535),
    "nf_call_iptables": ("nf_call_iptables", 1, 0, 1),
    "nf_call_ip6tables": ("nf_call_ip6tables", 1, 0, 1),
}
PORT_FLAGS = tuple(one.name for one in fields(BridgePort) if one.type == "bool")


def _link(key: LinkKey, draft: PlanBuilder) -> tuple[Link, NetnsTarget]:
    link = draft.snapshot.link(key)
    if link is None:
        raise CannotPlan(["that link is gone"])
    if is_lifeline(key, draft):
        draft.guarded = True
    return link, draft.place_of(link.ns)


@draft_steps.register
def _(request: ChangeLink, draft: PlanBuilder) -> str:
    link, place = _link(request.key, draft)
    before = len(draft.steps)
    if request.mtu is not None and request.mtu != link.mtu:
        _change_mtu(link, request.mtu, place, draft)
    if request.alias is not None and request.alias != link.alias:
        _change_alias(link, request.alias, place, draft)
    if request.up is not None and request.up != link.admin_up:
        _change_state(link, request.up, place, draft)
    if request.name is not None and request.name != link.name:
        _rename(link, request.name, place, draft)
    require(when(len(draft.steps) == before, f"{safe(link.name)} is so already"))
    return f"change the link {safe(link.name)}"


def _change_mtu(link: Link, mtu: int, place: NetnsTarget, draft: PlanBuilder) -> None:
    require(validate.mtu(mtu, ipv6=any(one.family == 6 and one.scope == "global" for one in link.addresses)))
    master = draft.snapshot.link((link.ns, link.master)) if link.master is not None else None
    if master:
        draft.warn(validate.mtu_of_path(mtu, master.name, master.mtu))
    peer = draft.topology.peer(link)
    if peer and peer.mtu != mtu:
        draft.warn(
            f"the other end, {safe(peer.name)}, keeps its MTU {peer.mtu}: larger packets are lost there"
        )
    draft.do(SetLink(link.name, "mtu", str(mtu), str(link.mtu), place))


def _change_alias(link: Link, alias: str, place: NetnsTarget, draft: PlanBuilder) -> None:
    name = safe(link.name)
    require(
        when(words_of(link.alias) is not None, f"the alias of {name} is the tag by which vnet knows it"),
        when(words_of(alias) is not None, 'an alias that begins with "vnet:" is a tag of vnet\'s own'),
        when(len(alias.encode()) > ALIAS_BYTES, f"the alias is longer than {ALIAS_BYTES} bytes"),
        when(any(sign in alias for sign in "\0\n"), "an alias holds no line break"),
    )
    draft.do(SetLink(link.name, "alias", alias, link.alias, place))


def _change_state(link: Link, up: bool, place: NetnsTarget, draft: PlanBuilder) -> None:
    if not up:
        net = draft.snapshot.nets[link.ns]
        over = [one for one in net.routes if any(hop.ifindex == link.ifindex for hop in one.nexthops)]
        for route in over:
            if route.table == "main" and route.protocol != "kernel":
                draft.hit(f"the route {route.dst} over it goes, and up alone does not bring it back")
        if any(one.family == 6 and one.scope == "global" for one in link.addresses):
            draft.hit("its IPv6 addresses go, as the kernel does with a link that is down")
        # The kernel takes them away with the state: named, so that an undo brings them back.
        draft.do(*routes_of(draft, link, place), *permanent_neighbours(draft, link, place))
        for address in reversed([one for one in own_addresses(link) if one.family == 6]):
            draft.do(*address_operation(link.name, address, place).inverse())
    words = {True: "up", False: "down"}
    draft.do(SetLink(link.name, "up", words[up], words[not up], place))


def _rename(link: Link, name: str, place: NetnsTarget, draft: PlanBuilder) -> None:
    net = draft.snapshot.nets[link.ns]
    require(
        validate.link_name(name),
        when(any(one.name == name for one in net.links.values()), f"there is a link {safe(name)} already"),
        when(link.kind == "loopback", "the loopback link keeps its name"),
        when(_member_inside(link, draft), f"{safe(link.name)} is named in the tag of its other end: move it"),
    )
    ours = [one for one in draft.ours.networks.values() if one.bridge == link.name]
    if place == draft.place_of(draft.topology.host) and ours:
        renamed = replace(ours[0], bridge=name)
        draft.now(networks={**draft.ours.networks, renamed.name: renamed})
    draft.do(SetLink(link.name, "name", name, link.name, place))


def _member_inside(link: Link, draft: PlanBuilder) -> bool:
    peer = draft.topology.peer(link)
    return any(
        peer and member.port == peer.name and link.name == member.link for member in draft.ours.members
    )


@draft_steps.register
def _(request: ChangeBridge, draft: PlanBuilder) -> str:
    link, place = _link(request.key, draft)
    known = ", ".join(BRIDGE_SETTINGS)
    require(
        when(link.kind != "bridge", f"{safe(link.name)} is no bridge"),
        when(
            request.setting not in BRIDGE_SETTINGS,
            f'bridges have no setting "{safe(request.setting)}": {known}',
        ),
    )
    field, factor, least, most = BRIDGE_SETTINGS[request.setting]
    before = round(getattr(link.bridge or BridgeSettings(), field) * factor)
    require(
        when(
            not least <= request.value <= most,
            f"{request.setting} is {least} to {most}, not {request.value}",
        ),
        when(before == request.value, f"{request.setting} of {safe(link.name)} is {before} already"),
    )
    if request.setting == "stp_state" and request.value:
        draft.warn("with STP on, each port listens and learns before it forwards: up to 30 s of silence")
    draft.do(SetBridge(link.name, request.setting, request.value, before, place))
    return f"set {request.setting} of {safe(link.name)} to {request.value}"


@draft_steps.register
def _(request: ChangePort, draft: PlanBuilder) -> str:
    link, place = _link(request.key, draft)
    known = ", ".join(PORT_FLAGS)
    if link.port is None:
        raise CannotPlan([f"{safe(link.name)} is no port of a bridge"])
    require(when(request.flag not in PORT_FLAGS, f'ports have no flag "{safe(request.flag)}": {known}'))
    before = bool(getattr(link.port, request.flag))
    state = "on" if before else "off"
    require(when(before == request.on, f"{request.flag} of {safe(link.name)} is {state} already"))
    draft.do(SetPort(link.name, request.flag, request.on, before, place))
    return f"switch {request.flag} of {safe(link.name)} {'on' if request.on else 'off'}"


@draft_steps.register
def _resize(request: ChangeMtu, draft: PlanBuilder) -> str:
    network = draft.ours.networks.get(request.name)
    require(when(network is None, f"there is no network {safe(request.name)} of vnet's"))
    assert network is not None
    way = draft.topology.uplink(draft.topology.host) if network.kind != "internal" else None
    require(validate.mtu(request.mtu, ipv6=any(":" in one for one in network.subnets)))
    draft.warn(validate.mtu_of_path(request.mtu, way[0].name, way[0].mtu) if way else "")
    steps = [
        SetLink(link.name, "mtu", str(request.mtu), str(link.mtu), draft.place_of(link.ns))
        for link in _links(network, draft)
        if link.mtu != request.mtu
    ]
    # No link sends what the next one does not take: the bridge grows first and shrinks last.
    draft.do(*(steps if request.mtu > network.mtu else reversed(steps)))
    for want in [one for one in draft.kept.values() if one.network == network.name]:
        forget(want.container, want.network, draft)
        persist(_resized(want, request.mtu), draft)
    draft.now(networks={**draft.ours.networks, network.name: replace(network, mtu=request.mtu)})
    return f"set the MTU of the network {network.name} to {request.mtu}"


def _links(network: OurNetwork, draft: PlanBuilder) -> Iterator[Link]:
    """The bridge, its ports and their other ends in the containers."""
    names = [network.bridge, *(one.port for one in draft.ours.members if one.network == network.name)]
    there = [link for name in names if (link := draft.link(name))]
    yield from there
    yield from (peer for link in there if link.kind == "veth" and (peer := draft.topology.peer(link)))


def _resized(want: PersistAttachment, mtu: int) -> PersistAttachment:
    steps = (replace(one, mtu=mtu) if isinstance(one, CreateVeth) else one for one in want.steps)
    return replace(want, steps=tuple(steps))
