"""Names and sentences of entries. Names of containers and networks are text from outside, verbatim."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from core.model import Chain, Firewall, FirewallRule
from core.nat.forward_policy import DroppingChain, ForwardPath, Published
from core.nat.owners import Owners
from core.nat.packets import split
from core.text import quoted as quote
from core.text import safe

# Of longer lists only the first few are said.
_SAID = 3
_KNOWN_FLOWS = {"established", "related"}
# The packet's mark as nft and iptables-save print it: all of it, or with a mask.
_MARK = re.compile(
    r"(?<!ct )(?:meta )?mark (?:(?:and|&) (?P<mask>0x[0-9a-f]+) )?== (?P<value>0x[0-9a-f]+)"
    r"|meta mark (?P<plain>0x[0-9a-f]+)|-m mark --mark (?P<both>0x[0-9a-f]+(?:/0x[0-9a-f]+)?)"
)


def listed(texts: Sequence[str]) -> str:
    """A list for a sentence, cut short where it is long."""
    said = ", ".join(texts[:_SAID])
    return said if len(texts) <= _SAID else f"{said} and {len(texts) - _SAID} more"


def host_port(address: str, port: str) -> str:
    """ "172.18.0.2:80", "[fd00::2]:80", or what there is of it."""
    if not port:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def names_of(ties: Owners, containers: Iterable[str]) -> str:
    """The name of the first of these containers, "" where there is none: the others joined it."""
    return next((ties.containers[uid].name for uid in containers), "")


def traffic(l4_proto: str, port: str) -> str:
    """ "tcp 80", "tcp" or ""."""
    return f"{l4_proto} {port}".strip()


def some_packets(rule: FirewallRule) -> str:
    """The packets of a rule that names neither addresses nor links: "everything" where it matches all."""
    if rule.understood:
        return "everything"
    found = _MARK.search(rule.text)
    if not found:
        return "some packets"
    mark = found["plain"] or found["both"] or found["value"]
    return f"packets marked {mark}" + (f"/{found['mask']}" if found["mask"] else "")


def where_to(rule: FirewallRule) -> str:
    """The address or link that packets come in by, for a rule that leads them elsewhere."""
    if rule.dst and not rule.dst.startswith("!"):
        return f"on {rule.dst}"
    if rule.iif and not rule.iif.startswith("!"):
        return f"on {rule.iif}"
    return "on every address"


def conditions(rule: FirewallRule) -> str:
    """What else must hold, for the end of a sentence about a rule that translates."""
    parts = []
    if rule.src and rule.verdict in ("dnat", "redirect"):
        negated, sources = split(rule.src)
        parts.append(f"not from {listed(sources)}" if negated else f"only from {listed(sources)}")
    if not rule.understood:
        parts.append("under further conditions")
    return "".join(f", {part}" for part in parts)


def side(ties: Owners, ns: int, link: str, addresses: str) -> str:
    """Where packets come from or go to, by a link match and an address match: "anywhere" without both."""
    parts = [_by_address(ties, ns, addresses)] if addresses else []
    if link and not (
        addresses and set(ties.networks_behind(ns, link)) & set(ties.networks_in(ns, addresses))
    ):
        parts.append(_by_link(ties, ns, link))
    return " by ".join(parts) or "anywhere"


def network_and(ties: Owners, network_id: str, text: str) -> str:
    """ "shop (172.18.0.0/16)"; the text alone where that is the network's name."""
    name = ties.networks[network_id].name
    return name if name == text else f"{name} ({text})"


def _by_address(ties: Owners, ns: int, addresses: str) -> str:
    negated, members = split(addresses)
    said = listed([_address(ties, ns, member) for member in members])
    return f"anywhere but {said}" if negated else said


def _address(ties: Owners, ns: int, address: str) -> str:
    name = names_of(ties, ties.containers_at(ns, address))
    if name:
        return f"{name} ({address})"
    exact = [
        network for network in ties.networks_in(ns, address) if address in ties.networks[network].subnets
    ]
    return network_and(ties, exact[0], address) if exact else address


def _by_link(ties: Owners, ns: int, links: str) -> str:
    negated, members = split(links)
    said = listed([_link(ties, ns, member) for member in members])
    return f"anywhere but {said}" if negated else said


def _link(ties: Owners, ns: int, link: str) -> str:
    networks = ties.networks_behind(ns, link)
    if networks:
        return network_and(ties, networks[0], link)
    name = names_of(ties, ties.containers_behind(ns, link))
    return f"{name} ({link})" if name else link


def filtered(rule: FirewallRule) -> str:
    """What a filter lets by or stops: "tcp 80", "answers and related flows", "everything"."""
    what = traffic(rule.l4_proto, rule.dport and _ports(rule.dport))
    if rule.sport:
        what = f"{what} from port {_ports(rule.sport)}".strip()
    negated, states = split(rule.ct_state)
    if states and not negated and set(states) <= _KNOWN_FLOWS:
        return f"{what or 'packets'} of known flows"
    if states:
        return f"{what or 'packets'} {'not ' if negated else ''}in state {' or '.join(states)}"
    return what or "everything"


def _ports(text: str) -> str:
    negated, members = split(text)
    return f"{'not ' if negated else ''}{','.join(members)}"


_WORDS = {
    "out": "new connections out of {bridge}",
    "answers": "answers to {bridge}",
    "published": "new connections to {port} on {bridge}",
    "replies": "answers from {port} on {bridge}",
    "same": "new connections between containers on {bridge} (br_netfilter is on)",
    "joined": "connections from {bridge} to {to}",
}
_DOCKER_TABLE, _FIREWALLD_TABLE = "docker-bridges", "firewalld"
_ZONE_BYTES = 17
_UFW_INPUT = re.compile("ufw6?-before-input")
# What firewalld's policy lets pass; what is known or translated passes firewalld without one.
_BY_ZONE = ("out", "same", "joined")


def drop_words(firewall: Firewall, chain: Chain, found: Sequence[DroppingChain], way: ForwardPath) -> str:
    """What a chain drops, as the beginning of a sentence."""
    certain = any(one.certain for one in found)
    said = [one for one in found if one.certain == certain]
    owner = maker(firewall, said[0])
    who = f"{owner}'s rules" if owner else f"table {safe(chain.table)}"
    verb = ("drop" if owner else "drops") if certain else "may drop"
    families = {family for one in said for family in one.families}
    which = "" if len(families) > 1 else " (IPv6)" if True in families else " (IPv4)"
    port = f"{way.published.address} {way.published.l4_proto}/{way.published.ports}" if way.published else ""
    what = ", ".join(_WORDS[one.kind].format(bridge=way.bridge, port=port, to=way.to) for one in said)
    return f"{who} {verb} {what}{which}"


def maker(firewall: Firewall, found: DroppingChain) -> str:
    """The program whose rule, or whose policy, it is: "" where it is none of those that are known."""
    chain = found.chain
    if chain.table == _FIREWALLD_TABLE:
        return "firewalld"
    if chain.table == _DOCKER_TABLE:
        return "Docker"
    if found.rule is not None:
        # What a person has put into DOCKER-USER is not Docker's.
        own = found.rule.chain != "DOCKER-USER" and found.rule.chain.startswith("DOCKER")
        return "Docker" if own else "ufw" if _is_of_ufw(found.rule.chain) else ""
    there = [
        one.name
        for one in firewall.chains
        if (one.backend, one.family, one.table) == (chain.backend, chain.family, chain.table)
    ]
    if any(map(_is_of_ufw, there)):
        return "ufw"
    return "Docker" if chain.backend != "nft" and "DOCKER-USER" in there else ""


def gatekeeper(firewall: Firewall) -> str:
    """The program whose rules for incoming connections are in force: "ufw", "firewalld", or "" for none. It
    has no say in published ports: these are translated before rules about what the host itself takes."""
    if any(chain.table == "firewalld" and chain.hook == "input" for chain in firewall.chains):
        return "firewalld"
    # `ufw disable` leaves its chains, and the jumps to them, but no rule in them.
    return "ufw" if any(_UFW_INPUT.fullmatch(rule.chain) for rule in firewall.rules) else ""


def restrict_words(firewall: Firewall, l4_proto: str, host_ports: str, ipv6: bool, uplink: str) -> str:
    """The command that lets one network alone come to a published port."""
    tool, by = "ip6tables" if ipv6 else "iptables", f" -i {quote(uplink)}" if uplink else ""
    ports = safe(host_ports.replace("-", ":"))
    return (
        f"{tool} -I {_place_for_others(firewall, ipv6)}{by} -p {l4_proto} ! -s NETWORK -m conntrack "
        f"--ctorigdstport {ports} --ctdir ORIGINAL -j DROP"
    )


def _place_for_others(firewall: Firewall, ipv6: bool) -> str:
    """The chain of iptables for rules of one's own about what is forwarded."""
    family = "ip6" if ipv6 else "ip"
    there = any(one.name == "DOCKER-USER" and one.family == family for one in firewall.chains)
    return "DOCKER-USER" if there else "FORWARD"


def _is_of_ufw(chain: str) -> bool:
    return re.match(r"ufw6?-", chain) is not None


def allow_words(chain: Chain, found: Sequence[DroppingChain], way: ForwardPath) -> str:
    """How to let that pass: the commands, which follow the last colon; rules of others are not edited."""
    when = " (again whenever Docker starts)" if chain.table == _DOCKER_TABLE else ""
    ways = "; ".join(commands(chain, found, way))
    return f"vnet doesn't edit other tools' rules; to allow it, run{when}: {ways}"


def commands(chain: Chain, found: Sequence[DroppingChain], way: ForwardPath) -> tuple[str, ...]:
    """The commands that let pass what a chain drops."""
    if chain.table == _FIREWALLD_TABLE and all(one.kind in _BY_ZONE for one in found):
        return tuple(_by_firewalld(way.bridge))
    made = _by_nft if chain.backend == "nft" else _by_iptables
    return tuple(dict.fromkeys(line for one in found for line in made(chain, one, way)))


def _by_iptables(chain: Chain, found: DroppingChain, way: ForwardPath) -> Iterator[str]:
    tool = "ip6tables" if chain.family == "ip6" else "iptables"
    tool += "-legacy" if chain.backend == "iptables-legacy" else ""
    table = "" if chain.table == "filter" else f" -t {quote(chain.table)}"
    for match in _iptables_matches(chain, found, way):
        yield f"{tool}{table} -I {quote(found.where)} {match} -j ACCEPT"


def _iptables_matches(chain: Chain, found: DroppingChain, way: ForwardPath) -> Iterator[str]:
    bridge, port = quote(way.bridge), way.published
    outwards = f" -o {quote(way.to or way.uplink)}" if way.to or way.uplink else f" ! -o {bridge}"
    early = chain.hook == "prerouting"
    match found.kind:
        case "out":
            yield f"-i {bridge}" if early else f"-i {bridge}{outwards}"
        case "answers":
            yield f"-o {bridge} -m conntrack --ctstate ESTABLISHED,RELATED"
        case "same":
            yield f"-i {bridge} -o {bridge}"
        case "joined":
            yield f"-i {bridge}{outwards}"
        case "published" if port and early:
            at = f"-d {port.host_ip}" if port.host_ip else "-m addrtype --dst-type LOCAL"
            yield f"{at} -p {port.l4_proto} --dport {_colon(port.host_ports)}"
        case "published" if port:
            at = f"-o {bridge} -d {port.address} -p {port.l4_proto} --dport {_colon(port.ports)}"
            yield f"{at} -m conntrack --ctstate DNAT"
        case "replies" if port:
            at = f"-i {bridge} -s {port.address} -p {port.l4_proto} --sport {_colon(port.ports)}"
            yield at if early else f"{at} -m conntrack --ctstate ESTABLISHED,RELATED"


def _colon(ports: str) -> str:
    return ports.replace("-", ":")


def _by_nft(chain: Chain, found: DroppingChain, way: ForwardPath) -> Iterator[str]:
    where = f"{chain.family} {quote(chain.table)} {quote(found.where)}"
    for match in _nft_matches(chain, found, way):
        yield f"nft insert rule {where} {match} accept"


def _nft_matches(chain: Chain, found: DroppingChain, way: ForwardPath) -> Iterator[str]:
    bridge, port = quote(way.bridge), way.published
    outwards = f"oifname {quote(way.to or way.uplink)}" if way.to or way.uplink else f"oifname != {bridge}"
    early = chain.hook == "prerouting"
    match found.kind:
        case "out":
            yield f"iifname {bridge}" if early else f"iifname {bridge} {outwards}"
        case "answers":
            yield f"oifname {bridge} ct state established,related"
        case "same":
            yield f"iifname {bridge} oifname {bridge}"
        case "joined":
            yield f"iifname {bridge} {outwards}"
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


def _by_firewalld(bridge: str) -> Iterator[str]:
    """It alone writes its table (the kernel refuses other processes), and forwards by zones: the bridge gets
    one of its own, and a policy that lets out of it."""
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
