"""Describe rules and dropped packets as text.

Names of containers and networks are untrusted text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from core.model import Chain, Firewall, FirewallRule
from core.nat.forward_policy import DroppingChain, ForwardPath, Published
from core.nat.packets import split
from core.nat.raw_entries import Owners
from core.text import join_short, safe
from core.text import quoted as quote

_KNOWN_FLOWS = {"established", "related"}
# The packet mark as printed by nft and iptables-save, with or without a mask.
_MARK = re.compile(
    r"(?<!ct )(?:meta )?mark (?:(?:and|&) (?P<mask>0x[0-9a-f]+) )?== (?P<value>0x[0-9a-f]+)"
    r"|meta mark (?P<plain>0x[0-9a-f]+)|-m mark --mark (?P<both>0x[0-9a-f]+(?:/0x[0-9a-f]+)?)"
)


def first_name(owners: Owners, containers: Iterable[str]) -> str:
    """Return the name of the first container, "" for none: the others joined it."""
    return next((owners.containers[uid].name for uid in containers), "")


def describe_traffic(l4_proto: str, port: str) -> str:
    """Return "tcp 80", "tcp" or ""."""
    return f"{l4_proto} {port}".strip()


def describe_packets(rule: FirewallRule) -> str:
    """Describe a rule's packets without addresses and links: "everything" for all."""
    if rule.understood:
        return "everything"
    found = _MARK.search(rule.text)
    if not found:
        return "some packets"
    mark = found["plain"] or found["both"] or found["value"]
    return f"packets marked {mark}" + (f"/{found['mask']}" if found["mask"] else "")


def describe_destination(rule: FirewallRule) -> str:
    """Describe the destination address or incoming link that a DNAT rule matches."""
    if rule.dst and not rule.dst.startswith("!"):
        return f"on {rule.dst}"
    if rule.iif and not rule.iif.startswith("!"):
        return f"on {rule.iif}"
    return "on every address"


def describe_conditions(rule: FirewallRule) -> str:
    """Describe the other conditions of a NAT rule, for the end of a sentence."""
    parts = []
    if rule.src and rule.verdict in ("dnat", "redirect"):
        negated, sources = split(rule.src)
        parts.append(f"not from {join_short(sources)}" if negated else f"only from {join_short(sources)}")
    if not rule.understood:
        parts.append("under further conditions")
    return "".join(f", {part}" for part in parts)


def describe_side(owners: Owners, ns: int, link: str, addresses: str) -> str:
    """Describe the source or destination by its link and address matches.

    Without both it is "anywhere".
    """
    parts = [_describe_addresses(owners, ns, addresses)] if addresses else []
    if link and not (
        addresses and set(owners.networks_behind(ns, link)) & set(owners.networks_in(ns, addresses))
    ):
        parts.append(_describe_links(owners, ns, link))
    return " via ".join(parts) or "anywhere"


def with_network_name(owners: Owners, network_id: str, text: str) -> str:
    """Return "shop (172.18.0.0/16)", or only the text if it is the network's name."""
    name = owners.networks[network_id].name
    return name if name == text else f"{name} ({text})"


def _describe_addresses(owners: Owners, ns: int, addresses: str) -> str:
    negated, members = split(addresses)
    listed = join_short([_describe_address(owners, ns, member) for member in members])
    return f"anywhere except {listed}" if negated else listed


def _describe_address(owners: Owners, ns: int, address: str) -> str:
    name = first_name(owners, owners.containers_at(ns, address))
    if name:
        return f"{name} ({address})"
    exact = [
        network for network in owners.networks_in(ns, address) if address in owners.networks[network].subnets
    ]
    return with_network_name(owners, exact[0], address) if exact else address


def _describe_links(owners: Owners, ns: int, links: str) -> str:
    negated, members = split(links)
    listed = join_short([_describe_link(owners, ns, member) for member in members])
    return f"anywhere except {listed}" if negated else listed


def _describe_link(owners: Owners, ns: int, link: str) -> str:
    networks = owners.networks_behind(ns, link)
    if networks:
        return with_network_name(owners, networks[0], link)
    name = first_name(owners, owners.containers_behind(ns, link))
    return f"{name} ({link})" if name else link


def describe_filter(rule: FirewallRule) -> str:
    """Describe a filter rule's packets: "tcp 80", "packets of known connections".

    It is "everything" for a rule that matches all packets.
    """
    what = describe_traffic(rule.l4_proto, rule.dport and _ports(rule.dport))
    if rule.sport:
        what = f"{what} from port {_ports(rule.sport)}".strip()
    negated, states = split(rule.ct_state)
    if states and not negated and set(states) <= _KNOWN_FLOWS:
        return f"{what or 'packets'} of known connections"
    if states:
        return f"{what or 'packets'} {'not ' if negated else ''}in state {' or '.join(states)}"
    return what or "everything"


def _ports(text: str) -> str:
    negated, members = split(text)
    return f"{'not ' if negated else ''}{','.join(members)}"


_DROPPED = {
    "out": "new connections from {bridge}",
    "answers": "replies to {bridge}",
    "published": "new connections to {port} on {bridge}",
    "replies": "replies from {port} on {bridge}",
    "same": "new connections between containers on {bridge} (br_netfilter is on)",
    "joined": "connections from {bridge} to {to}",
}
_DOCKER_TABLE, _FIREWALLD_TABLE = "docker-bridges", "firewalld"
_ZONE_BYTES = 17
_UFW_INPUT = re.compile("ufw6?-before-input")
# Kinds that a firewalld policy allows; known and translated connections pass without one.
_BY_ZONE = ("out", "same", "joined")


def describe_drop(firewall: Firewall, chain: Chain, found: Sequence[DroppingChain], path: ForwardPath) -> str:
    """Describe what a chain drops, as the beginning of a sentence."""
    certain = any(one.certain for one in found)
    drops = [one for one in found if one.certain == certain]
    owner = rule_owner(firewall, drops[0])
    actor = f"{owner}'s rules" if owner else f"table {safe(chain.table)}"
    verb = ("drop" if owner else "drops") if certain else "may drop"
    families = {family for one in drops for family in one.families}
    which = "" if len(families) > 1 else " (IPv6)" if True in families else " (IPv4)"
    end = path.published
    port = f"{end.address} {end.l4_proto}/{end.ports}" if end else ""
    *more, last = (_DROPPED[one.kind].format(bridge=path.bridge, port=port, to=path.to) for one in drops)
    what = f"{', '.join(more)} and {last}" if more else last
    return f"{actor} {verb} {what}{which}"


def rule_owner(firewall: Firewall, found: DroppingChain) -> str:
    """Return the program that made a rule or policy, "" if it isn't known."""
    chain = found.chain
    if chain.table == _FIREWALLD_TABLE:
        return "firewalld"
    if chain.table == _DOCKER_TABLE:
        return "Docker"
    if found.rule is not None:
        # Rules in DOCKER-USER are the user's.
        own = found.rule.chain != "DOCKER-USER" and found.rule.chain.startswith("DOCKER")
        return "Docker" if own else "ufw" if _is_ufw_chain(found.rule.chain) else ""
    chains = [
        one.name
        for one in firewall.chains
        if (one.backend, one.family, one.table) == (chain.backend, chain.family, chain.table)
    ]
    if any(map(_is_ufw_chain, chains)):
        return "ufw"
    return "Docker" if chain.backend != "nft" and "DOCKER-USER" in chains else ""


def host_firewall(firewall: Firewall) -> str:
    """Return the active firewall program: "ufw", "firewalld" or "".

    It filters incoming connections, but not published ports: DNAT comes before the rules for the host's own
    input.
    """
    if any(chain.table == "firewalld" and chain.hook == "input" for chain in firewall.chains):
        return "firewalld"
    # `ufw disable` leaves its chains and the jumps to them, but no rules in them.
    return "ufw" if any(_UFW_INPUT.fullmatch(rule.chain) for rule in firewall.rules) else ""


def restrict_command(firewall: Firewall, l4_proto: str, host_ports: str, ipv6: bool, uplink: str) -> str:
    """Return the command that restricts a published port to one network."""
    tool, link = "ip6tables" if ipv6 else "iptables", f" -i {quote(uplink)}" if uplink else ""
    ports = safe(host_ports.replace("-", ":"))
    return (
        f"{tool} -I {_user_chain(firewall, ipv6)}{link} -p {l4_proto} ! -s NETWORK -m conntrack "
        f"--ctorigdstport {ports} --ctdir ORIGINAL -j DROP"
    )


def _user_chain(firewall: Firewall, ipv6: bool) -> str:
    """Return the iptables chain for the user's own forward rules."""
    family = "ip6" if ipv6 else "ip"
    exists = any(one.name == "DOCKER-USER" and one.family == family for one in firewall.chains)
    return "DOCKER-USER" if exists else "FORWARD"


def _is_ufw_chain(chain: str) -> bool:
    return re.match(r"ufw6?-", chain) is not None


def describe_remedy(chain: Chain, found: Sequence[DroppingChain], path: ForwardPath) -> str:
    """Describe how to allow the packets: the commands follow the last colon."""
    when = " (again whenever Docker starts)" if chain.table == _DOCKER_TABLE else ""
    commands = "; ".join(accept_commands(chain, found, path))
    return f"to allow it, run{when}: {commands}"


def accept_commands(chain: Chain, found: Sequence[DroppingChain], path: ForwardPath) -> tuple[str, ...]:
    """Return the commands that allow the packets that a chain drops."""
    if chain.table == _FIREWALLD_TABLE and all(one.kind in _BY_ZONE for one in found):
        return tuple(_firewalld_commands(path.bridge))
    make = _nft_commands if chain.backend == "nft" else _iptables_commands
    return tuple(dict.fromkeys(line for one in found for line in make(chain, one, path)))


def _iptables_commands(chain: Chain, found: DroppingChain, path: ForwardPath) -> Iterator[str]:
    tool = "ip6tables" if chain.family == "ip6" else "iptables"
    tool += "-legacy" if chain.backend == "iptables-legacy" else ""
    table = "" if chain.table == "filter" else f" -t {quote(chain.table)}"
    for match in _iptables_matches(chain, found, path):
        yield f"{tool}{table} -I {quote(found.accept_chain)} {match} -j ACCEPT"


def _iptables_matches(chain: Chain, found: DroppingChain, path: ForwardPath) -> Iterator[str]:
    bridge, port = quote(path.bridge), path.published
    outgoing = f" -o {quote(path.to or path.uplink)}" if path.to or path.uplink else f" ! -o {bridge}"
    early = chain.hook == "prerouting"
    match found.kind:
        case "out":
            yield f"-i {bridge}" if early else f"-i {bridge}{outgoing}"
        case "answers":
            yield f"-o {bridge} -m conntrack --ctstate ESTABLISHED,RELATED"
        case "same":
            yield f"-i {bridge} -o {bridge}"
        case "joined":
            yield f"-i {bridge}{outgoing}"
        case "published" if port and early:
            at = f"-d {port.host_ip}" if port.host_ip else "-m addrtype --dst-type LOCAL"
            yield f"{at} -p {port.l4_proto} --dport {_with_colon(port.host_ports)}"
        case "published" if port:
            at = f"-o {bridge} -d {port.address} -p {port.l4_proto} --dport {_with_colon(port.ports)}"
            yield f"{at} -m conntrack --ctstate DNAT"
        case "replies" if port:
            at = f"-i {bridge} -s {port.address} -p {port.l4_proto} --sport {_with_colon(port.ports)}"
            yield at if early else f"{at} -m conntrack --ctstate ESTABLISHED,RELATED"


def _with_colon(ports: str) -> str:
    return ports.replace("-", ":")


def _nft_commands(chain: Chain, found: DroppingChain, path: ForwardPath) -> Iterator[str]:
    where = f"{chain.family} {quote(chain.table)} {quote(found.accept_chain)}"
    for match in _nft_matches(chain, found, path):
        yield f"nft insert rule {where} {match} accept"


def _nft_matches(chain: Chain, found: DroppingChain, path: ForwardPath) -> Iterator[str]:
    bridge, port = quote(path.bridge), path.published
    outgoing = (
        f"oifname {quote(path.to or path.uplink)}" if path.to or path.uplink else f"oifname != {bridge}"
    )
    early = chain.hook == "prerouting"
    match found.kind:
        case "out":
            yield f"iifname {bridge}" if early else f"iifname {bridge} {outgoing}"
        case "answers":
            yield f"oifname {bridge} ct state established,related"
        case "same":
            yield f"iifname {bridge} oifname {bridge}"
        case "joined":
            yield f"iifname {bridge} {outgoing}"
        case "published" if port and early:
            family = _family(port)
            at = f"{family} daddr {port.host_ip}" if port.host_ip else "fib daddr type local"
            yield f"{at} {port.l4_proto} dport {port.host_ports}"
        case "published" if port:
            at = f"oifname {bridge} {_family(port)} daddr {port.address}"
            yield f"{at} {port.l4_proto} dport {port.ports} ct status dnat"
        case "replies" if port:
            at = f"iifname {bridge} {_family(port)} saddr {port.address} {port.l4_proto} sport {port.ports}"
            yield at if early else f"{at} ct state established,related"


def _family(port: Published) -> str:
    return "ip6" if ":" in port.address else "ip"


def _firewalld_commands(bridge: str) -> Iterator[str]:
    """Yield commands for a zone with the bridge, and a policy for its packets.

    firewalld forwards by zones, and the kernel only lets firewalld change its table.
    """
    zone = re.sub(r"[^A-Za-z0-9_-]", "-", bridge)[:_ZONE_BYTES]
    policy = f"{zone}-out"
    for words in (
        f"--new-zone={zone}",
        f"--zone={zone} --add-interface={quote(bridge)}",
        f"--new-policy={policy}",
        f"--policy={policy} --add-ingress-zone={zone}",
        f"--policy={policy} --add-egress-zone=ANY",
        f"--policy={policy} --set-target=ACCEPT",
    ):
        yield f"firewall-cmd --permanent {words}"
    yield "firewall-cmd --reload"
