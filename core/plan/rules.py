"""Render vnet's nftables table from its networks and ports."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence

from core.plan.tags import VnetNetwork, VnetPort, VnetState
from core.text import TABLE, bounds, end_text, escape

# Both texts of SetRules begin with this: it deletes the table, whether it existed or not.
EMPTY = f"table inet {TABLE}\ndelete table inet {TABLE}\n"
_LOOPBACK = "127.0.0.0/8"


def render(vnet: VnetState) -> str:
    """Return the input of `nft -f` that replaces vnet's table, or removes it.

    It is removed if there is nothing to do. NAT and filter chains are in one table of family inet (since
    Linux 5.2). The forward chain only decides for vnet's own bridges; another table may still drop what it
    accepts.
    """
    if not vnet.networks and not vnet.ports:
        return EMPTY
    networks = sorted(vnet.networks.values(), key=lambda network: network.name)
    ports = sorted(vnet.ports, key=lambda port: (port.port_id, port.address))
    chains = [
        _chain("guard", "type filter hook prerouting priority raw; policy accept;", _guard(networks)),
        _chain("publish", "", map(_publish, ports)),
        _chain("prerouting", "type nat hook prerouting priority dstnat; policy accept;", ["jump publish"]),
        _chain("output", "type nat hook output priority dstnat; policy accept;", ["jump publish"]),
        _chain(
            "postrouting",
            "type nat hook postrouting priority srcnat; policy accept;",
            _postrouting(networks, ports, vnet.joined),
        ),
        _chain(
            "forward", "type filter hook forward priority filter; policy accept;", _forward(networks, vnet)
        ),
    ]
    return f"{EMPTY}table inet {TABLE} {{\n{'\n'.join(chains)}}}\n"


def _chain(name: str, hook: str, rules: Iterable[str]) -> str:
    lines = [*([hook] if hook else []), *rules]
    body = "".join(f"\t\t{line}\n" for line in lines)
    return f"\tchain {name} {{\n{body}\t}}\n"


def _comment(*words: str) -> str:
    return f'comment "{" ".join((TABLE, *words))}"'


def _guard(networks: Sequence[VnetNetwork]) -> Iterator[str]:
    """Yield the drops that keep containers off the host's 127.0.0.0/8.

    A port published on 127.0.0.1 needs route_localnet on the bridge, which would let its containers in.
    """
    for network in networks:
        if network.subnets:
            comment = _comment("loopback", escape(network.name))
            yield f'iifname "{network.bridge}" ip daddr {_LOOPBACK} drop {comment}'


def _publish(port: VnetPort) -> str:
    """Return the DNAT rule of a published port."""
    family = "ip6" if ":" in port.address else "ip"
    if port.host_ip:
        local = f"{family} daddr {port.host_ip}"
    else:
        local = f"meta nfproto {'ipv6' if family == 'ip6' else 'ipv4'} fib daddr type local"
    outside = "" if family == "ip" else "ip6 daddr != ::1 " if not port.host_ip else ""
    match = f"{local} {outside}{port.l4_proto} dport {port.host_ports}"
    return f'{match} counter {_destination(port, family)} comment "{port.comment()}"'


def _destination(port: VnetPort, family: str) -> str:
    host, inside = bounds(port.host_ports), bounds(port.container_ports)
    if host == inside:
        return f"dnat {family} to {port.address}"
    if host[0] == host[1]:
        return f"dnat {family} to {end_text(port.address, inside[0])}"
    pairs = zip(range(host[0], host[1] + 1), range(inside[0], inside[1] + 1), strict=True)
    elements = ", ".join(f"{outer} : {port.address} . {inner}" for outer, inner in pairs)
    return f"dnat {family} to {port.l4_proto} dport map {{ {elements} }}"


def _postrouting(
    networks: Sequence[VnetNetwork], ports: Sequence[VnetPort], joined: Iterable[tuple[str, str]]
) -> Iterator[str]:
    by_name = {network.name: network for network in networks}
    for address in dict.fromkeys(port.address for port in ports):
        yield from _hairpin(address, networks)
    for one, other in sorted(joined):
        if one in by_name and other in by_name:
            yield from _untranslated(by_name[one], by_name[other])
            yield from _untranslated(by_name[other], by_name[one])
    for network in networks:
        yield from _masquerade(network)


def _hairpin(address: str, networks: Sequence[VnetNetwork]) -> Iterator[str]:
    """Yield the masquerade rules by which answers come back through the host.

    They are for a container that uses a port published on its own network, and for the host's loopback
    address.
    """
    family = "ip6" if ":" in address else "ip"
    found = next(((network, subnet) for network in networks for subnet in _of_family(network, family)
                 if ipaddress.ip_address(address) in ipaddress.ip_network(subnet)), None)  # fmt: skip
    sources = [found[1]] if found else []
    sources += [_LOOPBACK] if family == "ip" else []
    for source in sources:
        yield (
            f"ct status dnat {family} saddr {source} {family} daddr {address} counter masquerade "
            f"{_comment('hairpin', address)}"
        )


def _untranslated(network: VnetNetwork, other: VnetNetwork) -> Iterator[str]:
    for family in ("ip", "ip6"):
        for subnet in _of_family(network, family):
            yield f'{family} saddr {subnet} oifname "{other.bridge}" accept {_join(network, other)}'


def _masquerade(network: VnetNetwork) -> Iterator[str]:
    families = ("ip", "ip6") if network.nat66 else ("ip",)
    for family in families if network.is_translated else ():
        for subnet in _of_family(network, family):
            yield (
                f'{family} saddr {subnet} oifname != "{network.bridge}" counter masquerade '
                f"{_comment('nat', escape(network.name))}"
            )


def _of_family(network: VnetNetwork, family: str) -> tuple[str, ...]:
    return tuple(subnet for subnet in network.subnets if (":" in subnet) == (family == "ip6"))


def _join(network: VnetNetwork, other: VnetNetwork) -> str:
    return _comment("join", *sorted(map(escape, (network.name, other.name))))


def _forward(networks: Sequence[VnetNetwork], vnet: VnetState) -> Iterator[str]:
    """Yield the rules of the forward chain.

    Their order: same bridge, published ports, joined pairs, isolation, then each kind.
    """
    by_kind = {"nat": [one for one in networks if one.is_translated]}
    by_kind |= {kind: [one for one in networks if one.kind == kind] for kind in ("internal", "routed")}
    isolated = [one for group in by_kind.values() for one in group]
    for network in networks:
        # With br_netfilter bridged packets pass this chain as well.
        marks = ("ovs",) if network.kind == "ovs" else ()
        bridge, comment = network.bridge, _comment("in", escape(network.name), *marks)
        yield f'iifname "{bridge}" oifname "{bridge}" accept {comment}'
    if vnet.ports:
        yield f"ct status dnat accept {_comment('published')}"
    for one, other in sorted(vnet.joined):
        if one in vnet.networks and other in vnet.networks:
            first, second = vnet.networks[one], vnet.networks[other]
            for source, target in ((first, second), (second, first)):
                match = f'iifname "{source.bridge}" oifname "{target.bridge}"'
                yield f"{match} counter accept {_join(source, target)}"
    if len(isolated) > 1:
        yield f"iifname {_any(isolated)} oifname {_any(isolated)} counter drop {_comment('apart')}"
    for direction in ("iifname", "oifname") if by_kind["internal"] else ():
        yield f"{direction} {_any(by_kind['internal'])} counter drop {_comment('internal')}"
    if by_kind["nat"]:
        yield f"iifname {_any(by_kind['nat'])} counter accept {_comment('out')}"
        states = "ct state established,related"
        yield f"oifname {_any(by_kind['nat'])} {states} counter accept {_comment('answers')}"
        yield f"oifname {_any(by_kind['nat'])} counter drop {_comment('unasked')}"
    for direction in ("iifname", "oifname") if by_kind["routed"] else ():
        yield f"{direction} {_any(by_kind['routed'])} counter accept {_comment('routed')}"


def _any(networks: Sequence[VnetNetwork]) -> str:
    names = [f'"{network.bridge}"' for network in networks]
    return names[0] if len(names) == 1 else f"{{ {', '.join(names)} }}"
