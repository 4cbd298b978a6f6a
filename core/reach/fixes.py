"""Choose the repair of what stops a packet, at its cause."""

from __future__ import annotations

import ipaddress
from collections import Counter
from dataclasses import dataclass

from core.model import (
    Address,
    Chain,
    Container,
    FirewallRule,
    Link,
    NetState,
    Network,
    NextHop,
    Ref,
    Route,
    link_ref,
    namespace_ref,
    network_ref,
)
from core.model.fix import (
    Fix,
    FixAccept,
    FixAddress,
    FixFirewall,
    FixMasquerade,
    FixPolicyRule,
    FixRoute,
    FixSysctl,
)
from core.reach.answer import Hop
from core.reach.packet import Hook, Packet, parse_address
from core.reach.routing import Lookup, RoutingTables
from core.text import PLAIN_LINK, TABLE, join_short, quoted
from core.topology import Topology

# Matches of echo requests, as iptables-save(8) prints them.
_ECHO_REQUEST = {
    "icmp": "-p icmp -m icmp --icmp-type 8", "icmpv6": "-p ipv6-icmp -m icmp6 --icmpv6-type 128",
}  # fmt: skip
# Examples of addresses outside this host, by whether they are IPv6 (RFC 5737, RFC 3849).
OUTSIDE_ADDRESS = {False: "198.51.100.7", True: "2001:db8:ffff::7"}
_USUAL_TABLES = ("main", "local", "default")
BR_NETFILTER = {False: "net.bridge.bridge-nf-call-iptables", True: "net.bridge.bridge-nf-call-ip6tables"}
IP_FORWARD, IPV6_FORWARD = "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"


@dataclass(frozen=True, slots=True)
class Fault:
    """The cause behind a missing address: the object, in short, and its repair."""

    subject: str = ""
    fix: Fix | None = None
    ref: Ref | None = None


# ---- routes


def delete_end(ns: int, lookup: Lookup) -> Fix | None:
    """Return the repair for a blackhole route, or for a rule that discards packets."""
    if lookup.rule is not None and lookup.rule.table not in _USUAL_TABLES:
        return Fix(
            f"delete the routing policy rule {lookup.rule.priority}", (FixPolicyRule(ns, lookup.rule),)
        )
    if lookup.route is not None:
        steps = (FixRoute(ns, lookup.route, False),)
        return Fix(f"delete the {lookup.end} route to {lookup.route.dst}", steps)
    if lookup.rule is not None:
        return Fix(
            f"delete the routing policy rule {lookup.rule.priority}", (FixPolicyRule(ns, lookup.rule),)
        )
    return None


def missing_route(topology: Topology, ns: int, dst: str) -> tuple[str, Fix | None]:
    """Return what a namespace without a route to an address lacks, and the repair."""
    net, ipv6 = topology.snapshot.nets[ns], ":" in dst
    links = [one for one in net.links.values() if one.kind != "loopback"]
    if not links:
        container = topology.container_of(ns)
        is_docker = container is not None and container.runtime in ("docker", "podman")
        command = f"{container.runtime} network connect NETWORK {quoted(container.name)}" if container else ""
        fix = Fix("attach it to a network", command=command if is_docker else "")
        return "is attached to no network, it has only a loopback link", fix
    own = {one.family for link in links for one in link.addresses if one.scope == "global"}
    family, other = (6, 4) if ipv6 else (4, 6)
    if family not in own and other in own:
        return f"has no IPv{family} address", Fix(
            f"give it an IPv{family} address, or ask for an IPv{other} address"
        )
    what = "default route" if dst in OUTSIDE_ADDRESS.values() else f"route to {dst}"
    return f"has no {what}", default_route(topology, ns, ipv6)


def default_route(topology: Topology, ns: int, ipv6: bool) -> Fix | None:
    """Return the repair for a missing route: a default route by an existing gateway."""
    found = find_gateway(topology, ns, ipv6)
    if found is None:
        return Fix("add a default route", command="ip route add default via GATEWAY")
    link, gateway = found
    route = default_to(gateway, link, ipv6)
    return Fix(f"add the default route via {gateway}", (FixRoute(ns, route, True),))


def default_to(gateway: str, link: Link, ipv6: bool) -> Route:
    """Return a default route via a gateway."""
    family = 6 if ipv6 else 4
    return Route(family, "default", "unicast", (NextHop(gateway, link.ifindex),), protocol="boot")


def find_gateway(
    topology: Topology, ns: int, ipv6: bool, other_than: str = "", down: Link | None = None
) -> tuple[Link, str] | None:
    """Return a link of a namespace and a gateway on its segment, None if unknown.

    Links that are down are left out, except `down`, whose addresses may differ from the snapshot's. The
    gateway is the address of the bridge or router at the link's other end in one of the link's subnets.
    """
    net = topology.snapshot.nets.get(ns)
    for each in net.links.values() if net else ():
        link = down if down is not None and each.key == down.key else each
        if link.kind == "loopback" or (not link.admin_up and link is not down):
            continue
        subnets = [
            ipaddress.ip_network(str(one), strict=False)
            for one in link.addresses
            if (one.family == 6) == ipv6 and one.scope == "global"
        ]
        for address in _gateways_on(topology, link):
            is_other = (":" in address) == ipv6 and address != other_than
            if is_other and any(parse_address(address) in subnet for subnet in subnets):
                return link, address
    return None


def _gateways_on(topology: Topology, link: Link) -> list[str]:
    """Return the addresses of the bridge or router that a link leads to."""
    bridge = topology.bridge_of(link)
    if bridge is not None and bridge.ns != link.ns:
        network = topology.network_of(link)
        own = [one.address for one in bridge.addresses if one.scope == "global"]
        return [*own, *(topology.gateways(network) if network else ())]
    peer = topology.peer(link)
    if peer is not None and peer.ns != link.ns:
        return [one.address for one in peer.addresses if one.scope == "global"]
    return []


def missing_owner(topology: Topology, ns: int, link: Link, address: str, is_gateway: bool) -> Fault:
    """Return why an address doesn't exist: a bridge lost it, or a route is wrong."""
    if not is_gateway:
        return Fault(f"{address} doesn't exist on the segment of {link.name}")
    place, ipv6 = topology.label(ns), ":" in address
    network, bridge = topology.network_of(link), topology.bridge_of(link)
    if network is not None and bridge is not None and bridge.ns != ns:
        has_other = any((one.family == 6) == ipv6 and one.scope == "global" for one in bridge.addresses)
        if address in topology.gateways(network) or not has_other:
            return _gateway_lost(topology, network, bridge, address)
    return wrong_gateway(topology, ns, address, place)


def _gateway_lost(topology: Topology, network: Network, bridge: Link, address: str) -> Fault:
    users = [topology.label(ns) for ns in users_of_gateway(topology, bridge, address)]
    who = f", the gateway of {join_short(users)}" if users else ""
    subject = f"{bridge.name} has lost the address {address}{who}"
    length = _prefix_of(topology, network, bridge, address)
    new = Address(6 if ":" in address else 4, address, length)
    fix = Fix(f"add {new} to {bridge.name}", (FixAddress(bridge.key, new, True),))
    return Fault(subject, fix, link_ref(bridge.key))


def users_of_gateway(topology: Topology, bridge: Link, address: str) -> list[int]:
    """Return the namespaces on a bridge whose routes have a gateway."""
    found = []
    for port in topology.ports_of(bridge.key):
        peer = topology.peer(port)
        net = topology.snapshot.nets.get(peer.ns) if peer else None
        if net and any(hop.gateway == address for route in net.routes for hop in route.nexthops):
            found.append(net.ns)
    return found


def _prefix_of(topology: Topology, network: Network, bridge: Link, address: str) -> int:
    """Return the prefix length that an address of a bridge had."""
    for subnet in network.subnets:
        prefix = ipaddress.ip_network(subnet, strict=False)
        if parse_address(address) in prefix:
            return prefix.prefixlen
    lengths: Counter[int] = Counter()
    for port in topology.ports_of(bridge.key):
        peer = topology.peer(port)
        for one in peer.addresses if peer else ():
            if parse_address(address) in ipaddress.ip_network(str(one), strict=False):
                lengths[one.prefixlen] += 1
    return lengths.most_common(1)[0][0] if lengths else (64 if ":" in address else 24)


def wrong_gateway(topology: Topology, ns: int, address: str, place: str) -> Fault:
    """Return the fault of a route whose gateway doesn't exist."""
    net, ipv6 = topology.snapshot.nets[ns], ":" in address
    who = "the host" if ns == topology.host else place
    subject = f"{who} has the wrong gateway {address}"
    routes = [one for one in net.routes if any(hop.gateway == address for hop in one.nexthops)]
    found = find_gateway(topology, ns, ipv6, address)
    if found is None or not routes:
        command = f"ip route replace {routes[0].dst if routes else 'default'} via GATEWAY"
        return Fault(subject, Fix("replace the gateway", command=command), namespace_ref(ns))
    link, gateway = found
    old = routes[0]
    new = Route(
        old.family, old.dst, old.kind, (NextHop(gateway, link.ifindex),), metric=old.metric, table=old.table,
        protocol=old.protocol,
    )  # fmt: skip
    steps = (FixRoute(ns, old, False), FixRoute(ns, new, True))
    return Fault(subject, Fix(f"replace the gateway {address} by {gateway}", steps), namespace_ref(ns))


# ---- settings


def forwarding_key(tables: RoutingTables, link: Link, ipv6: bool) -> str:
    """Return the setting that keeps packets of a link from being forwarded."""
    if ipv6:
        return IPV6_FORWARD
    if tables.forwards_at_all(False) is False:
        return IP_FORWARD
    return f"net.ipv4.conf.{link.name.replace('.', '/')}.forwarding"


def set_forwarding(ns: int, key: str) -> Fix:
    """Return the repair for forwarding that is off."""
    return Fix(f"set {key} to 1", (FixSysctl(ns, key, "1", "0"),))


def loosen_rp_filter(ns: int, link: Link, net: NetState) -> Fix:
    """Return the repair for a strict rp_filter: accept any source with a route."""
    own = next((one.rp_filter for one in net.settings if (one.family, one.ifindex) == (4, link.ifindex)), 1)
    key = f"net.ipv4.conf.{link.name.replace('.', '/')}.rp_filter"
    return Fix(f"set {key} to 2 (loose)", (FixSysctl(ns, key, "2", str(own)),))


def raise_limit(ns: int, limit: int) -> Fix:
    """Return the repair for a full conntrack table."""
    key = "net.netfilter.nf_conntrack_max"
    return Fix(f"set {key} to {2 * limit}", (FixSysctl(ns, key, str(2 * limit), str(limit)),))


def end_br_netfilter(topology: Topology, ipv6: bool) -> Fix:
    """Return the repair for rules for routed packets that drop bridged ones."""
    key = BR_NETFILTER[ipv6]
    return Fix(f"set {key} to 0", (FixSysctl(topology.host, key, "0", "1"),))


# ---- rules


def delete_rule(ns: int, rule: FirewallRule) -> Fix:
    """Return the repair for a rule that drops packets."""
    return Fix(f"delete the rule of {rule.table} {rule.chain}", (FixFirewall(ns, rule.rule_id),))


def open_network(name: str, link: str, ipv6: bool = False) -> Fix:
    """Return the advice for a network that Docker closes to other links.

    Docker's documentation, "Packet filtering and firewalls": direct access is dropped since version 28.
    """
    option, family = "-o com.docker.network.bridge.", 6 if ipv6 else 4
    return Fix(
        f"create the network {name} with {option}trusted_host_interfaces={link} or "
        f"{option}gateway_mode_ipv{family}=nat-unprotected; "
        "for all networks start dockerd with --allow-direct-routing"
    )


def _closed_network(topology: Topology, rule: FirewallRule) -> Network | None:
    """Return the network of Docker whose direct access a rule drops."""
    if (rule.table, rule.chain, rule.verdict) != ("raw", "PREROUTING", "drop") or not rule.dst:
        return None
    return next(
        (one for one in topology.networks if one.engine == "docker" and rule.iif == f"!{one.bridge}"), None
    )


def pass_rule(topology: Topology, ns: int, rule: FirewallRule, hook: Hook, ipv6: bool) -> Fix:
    """Return the repair for a rule that drops packets, or the advice for Docker's."""
    network = _closed_network(topology, rule) if ns == topology.host else None
    if network is None:
        return delete_rule(ns, rule)
    return open_network(network.name, next(iter(hook.iifs), "LINK"), ipv6)


def accept(ns: int, chain: Chain, packet: Packet, hook: Hook, is_exposed: bool) -> Fix:
    """Return the repair for a policy that drops packets: a rule that accepts them.

    With `is_exposed` it accepts only this port and destination, no others.
    """
    iif, oif = next(iter(hook.iifs), ""), next(iter(hook.oifs), "")
    add = _nft_accept if chain.backend == "nft" else _iptables_accept
    text = add(chain, packet, iif, oif, is_exposed)
    sentence = f"accept these packets in {chain.table} {chain.name}"
    if all(PLAIN_LINK.fullmatch(one) for one in (iif, oif) if one):
        return Fix(sentence, (FixAccept(ns, chain.backend, chain.family, chain.table, chain.name, text),))
    tool = "ip6tables" if packet.is_ipv6 else "iptables"
    where = f"{chain.family} {quoted(chain.table)} {quoted(chain.name)}"
    before = f"nft add rule {where} " if chain.backend == "nft" else f"{tool} -t {chain.table} "
    return Fix(sentence, command=before + text)


def _nft_accept(chain: Chain, packet: Packet, iif: str, oif: str, is_exposed: bool) -> str:
    """Return a rule in the words of nft(8), as it prints it."""
    parts = [f'iifname "{iif}"'] if iif else []
    parts += [f'oifname "{oif}"'] if oif else []
    if packet.is_reply:
        parts.append("ct state established,related")
    elif is_exposed:
        parts.append(f"{'ip6' if packet.is_ipv6 else 'ip'} daddr {packet.dst}")
        parts += [f"{packet.l4_proto} dport {packet.dport}"] if packet.dport else _echo_request(packet)
    return " ".join([*parts, "accept"])


def _echo_request(packet: Packet) -> list[str]:
    """Return the match of nft(8) for a packet of ping(8), none for other packets."""
    return [f"{packet.l4_proto} type echo-request"] if packet.l4_proto in _ECHO_REQUEST else []


def _iptables_accept(chain: Chain, packet: Packet, iif: str, oif: str, is_exposed: bool) -> str:
    """Return a rule as iptables-save(8) prints it."""
    parts = [f"-A {chain.name}"]
    if is_exposed and not packet.is_reply:
        parts.append(f"-d {packet.dst}/{128 if packet.is_ipv6 else 32}")
    parts += [f"-i {iif}"] if iif else []
    parts += [f"-o {oif}"] if oif else []
    if packet.is_reply:
        parts.append("-m conntrack --ctstate RELATED,ESTABLISHED")
    elif is_exposed and packet.dport:
        parts.append(f"-p {packet.l4_proto} -m {packet.l4_proto} --dport {packet.dport}")
    elif is_exposed and packet.l4_proto in _ECHO_REQUEST:
        parts.append(_ECHO_REQUEST[packet.l4_proto])
    return " ".join([*parts, "-j ACCEPT"])


def untranslated(topology: Topology, ns: int, packet: Packet, link: Link) -> Hop | None:
    """Return a hop for a private source address that leaves by the uplink without NAT.

    It passes if its network is meant to be so.
    """
    source = parse_address(packet.src)
    own = (ipaddress.ip_network(str(one), strict=False) for one in link.addresses)
    if not source.is_private or any(source in subnet for subnet in own):
        return None
    place, text = topology.label(ns), f"{packet.src} leaves by {link.name} untranslated"
    found = next(
        (
            (one, subnet)
            for one in topology.networks
            for subnet in one.subnets
            if (one.ns or topology.host) == ns and source in ipaddress.ip_network(subnet, strict=False)
        ),
        None,
    )
    fix, ref, who = None, namespace_ref(ns), packet.src
    if found is not None and found[0].bridge:
        network, subnet = found
        ref, who = network_ref(network.id), f"{network.name} ({subnet})"
        if keeps_source(topology, network, packet.is_ipv6):
            note = f"hosts outside need a route to {subnet} by {_router_words(topology, ns)}"
            return Hop("nat", place, f"{text}, as {network.name} is routed: {note}", ref=ref, subject=note)
        steps = (FixMasquerade(ns, subnet, network.bridge),)
        fix = Fix(f"masquerade packets of {subnet} that leave {network.bridge}", steps)
    evidence = (f"no masquerade or snat rule matches {packet.src} at {link.name}",)
    return Hop("nat", place, text, "warn", evidence, ref, fix, f"no rule masquerades {who}")


def _router_words(topology: Topology, ns: int) -> str:
    return "this host" if ns == topology.host else topology.label(ns)


def keeps_source(topology: Topology, network: Network, ipv6: bool = False) -> bool:
    """Return whether a network was created so that its packets keep their source."""
    if network.gateway_mode.get("ipv6" if ipv6 else "ipv4") == "routed" or not network.masquerade:
        return True
    firewall = topology.snapshot.firewalls.get(network.ns or topology.host)
    return any(
        rule.table == TABLE and rule.verdict == "accept" and network.bridge in rule.iif.split(",")
        for rule in (firewall.rules if firewall and network.engine == "kernel" else ())
        if "routed" in rule.comment
    )


def hairpin(topology: Topology, ns: int, packet: Packet) -> Fix | None:
    """Return the advice for answers that bypass the namespace that translates."""
    rule = f"saddr {packet.src} {'ip6' if packet.is_ipv6 else 'ip'} daddr {packet.dst} masquerade"
    family = "ip6" if packet.is_ipv6 else "ip"
    command = f"nft add rule {family} nat postrouting {family} {rule}"
    return Fix(f"masquerade what {topology.label(ns)} forwards to {packet.dst}", command=command)


# ---- services


def start_service(container: Container | None, what: str, is_limited: bool) -> Fix:
    """Return the advice for a port on which nothing listens, or not at this address."""
    name = container.name if container else "the host"
    if is_limited:
        return Fix(f"let the service on {what} of {name} listen on all addresses (0.0.0.0 or ::)")
    if container is not None and container.runtime in ("docker", "podman"):
        return Fix(f"start the service in {name}", command=f"{container.runtime} logs {quoted(name)}")
    return Fix(f"start the service on {what} of {name}")
