"""Plans that give a network another MTU while it is in use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from core.model import Link
from core.ops import CreateVeth, SetLink, Want
from core.plan import kept, validate
from core.plan.base import require, when
from core.plan.dispatch import draft_steps
from core.plan.draft import Draft
from core.plan.requests import ChangeMtu
from core.plan.tags import OurNetwork
from core.text import safe


@draft_steps.register
def _(request: ChangeMtu, draft: Draft) -> str:
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
        kept.forget(want.container, want.network, draft)
        kept.want(_resized(want, request.mtu), draft)
    draft.now(networks={**draft.ours.networks, network.name: replace(network, mtu=request.mtu)})
    return f"set the MTU of the network {network.name} to {request.mtu}"


def _links(network: OurNetwork, draft: Draft) -> Iterator[Link]:
    """The bridge, its ports and their other ends in the containers."""
    names = [network.bridge, *(one.port for one in draft.ours.members if one.network == network.name)]
    there = [link for name in names if (link := draft.link(name))]
    yield from there
    yield from (peer for link in there if link.kind == "veth" and (peer := draft.topology.peer(link)))


def _resized(want: Want, mtu: int) -> Want:
    steps = (replace(one, mtu=mtu) if isinstance(one, CreateVeth) else one for one in want.steps)
    return replace(want, steps=tuple(steps))
