"""Names and sentences of entries. Names of containers and networks are text from outside, verbatim."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from core.model import FirewallRule
from core.nat.owners import Owners
from core.nat.packets import split

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
