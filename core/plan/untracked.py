"""Plans that take conntrack out of containers where nothing but Docker's DNS needs it.

In the namespace of a container on a user-defined network Docker translates 127.0.0.11:53 to its own resolver.
With that, every packet of the container passes conntrack and NAT. Rules where loopback receives can change
the ports without either, for both ends are local: they replace Docker's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from core.model import Chain, Firewall, FirewallRule, Link
from core.operations import NetnsTarget, Operation, SetDockerDns, SetRules
from core.plan.builder import CannotPlan, PlanBuilder
from core.tags import UNTRACKED_TABLE
from core.text import safe
from core.topology import Topology

_DNS = "127.0.0.11"
_TABLE = f"table netdev {UNTRACKED_TABLE}"
OFF = f"{_TABLE}\ndelete {_TABLE}\n"
# In the order in which Docker makes them: nft lists them so.
_CHAINS = (
    ":DOCKER_OUTPUT - [0:0]",
    ":OUTPUT ACCEPT [0:0]",
    ":DOCKER_POSTROUTING - [0:0]",
    ":POSTROUTING ACCEPT [0:0]",
)
# iptables-save lists the base chains that are not there as well.
_NAMES = {"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING", "DOCKER_OUTPUT", "DOCKER_POSTROUTING"}


class ResolverPorts(NamedTuple):
    """Where Docker's resolver listens in a container."""

    tcp: str
    udp: str


@dataclass(frozen=True, slots=True)
class AttachedNamespace:
    """A container's namespace on a bridge: its inode and name, `why` its rules allow nothing here ("" where
    they do), and the ports of its resolver by Docker's rules and by ours, None where these are not there."""

    ns: int
    name: str
    why: str
    docker: ResolverPorts | None
    ours: ResolverPorts | None

    @property
    def on(self) -> bool:
        """Whether ours have replaced Docker's, which Docker may have written again since."""
        return self.ours is not None and self.docker is None


def rules(ports: ResolverPorts) -> str:
    """The text of our table that leads DNS to these ports."""
    hook = 'type filter hook ingress device "lo" priority filter; policy accept;'
    lines = "".join(f"\t\t{line}\n" for line in (hook, *_our_rules(ports)))
    return f"{OFF}{_TABLE} {{\n\tchain lo {{\n{lines}\t}}\n}}\n"


def saved(ports: ResolverPorts) -> str:
    """Docker's rules, as iptables-restore reads them."""
    return "\n".join(("*nat", *_CHAINS, *_docker_rules(ports), "COMMIT\n"))


def spaces(topology: Topology, bridge: Link) -> Iterator[AttachedNamespace]:
    """The containers' namespaces that hang on a bridge, each once."""
    peers = (topology.peer(port) for port in topology.ports_of(bridge.key))
    for ns in dict.fromkeys(peer.ns for peer in peers if peer):
        if ns != topology.host:
            name, firewall = safe(topology.label(ns)), topology.snapshot.firewalls.get(ns)
            docker, ours = _ports(firewall, _is_nat, _docker_rules), _ports(firewall, _is_ours, _our_rules)
            yield AttachedNamespace(ns, name, _why_not(name, firewall, docker, ours), docker, ours)


def states(topology: Topology, bridge: Link) -> frozenset[bool]:
    """Whether Docker's rules are replaced, of those containers where that is possible."""
    return frozenset(one.on for one in spaces(topology, bridge) if not one.why)


def switch(draft: PlanBuilder, bridge: Link, on: bool, only: tuple[str, ...]) -> None:
    """Add the steps for the containers of a bridge, or for those named in `only`. Raises Refusal."""
    found = list(_chosen(draft, list(spaces(draft.topology, bridge)), only))
    refused = [one.why for one in found if one.why]
    if (only and refused) or len(refused) == len(found):
        raise CannotPlan(refused or ["no container is on this bridge"])
    for why in refused:
        draft.warn(f"{why}: it stays as it is")
    changed = [one for one in found if not one.why and (not one.on if on else one.ours)]
    for one in changed:
        draft.do(*(_replaced if on else _restored)(one.docker, one.ours, draft.place_of(one.ns)))
    if on and changed:
        names = ", ".join(one.name for one in changed)
        draft.warn(
            f"Docker's own rules for DNS inside {names} are replaced by vnet's, until the container stops or "
            "this is taken back: names are resolved as before"
        )
        draft.warn(f"conntrack no longer knows of connections inside {names}")
        draft.warn(
            "rules that a container adds later and that ask for a connection's state find those under way "
            "unknown: take this back before. A container that starts again has Docker's rules alone"
        )


def track_again(topology: Topology) -> Iterator[Operation]:
    """The steps that put Docker's rules in place of ours in every namespace that has these."""
    draft = PlanBuilder(topology)
    for ns, firewall in topology.snapshot.firewalls.items():
        if ours := _ports(firewall, _is_ours, _our_rules):
            docker = _ports(firewall, _is_nat, _docker_rules)
            yield from _restored(docker, ours, draft.place_of(ns))


# At every moment one of the two tables is there; where both are, either works.


def _replaced(
    docker: ResolverPorts | None, ours: ResolverPorts | None, place: NetnsTarget
) -> Iterator[Operation]:
    assert docker
    yield SetRules(rules(docker), rules(ours) if ours else OFF, place)
    yield SetDockerDns(saved(docker), False, place)


def _restored(
    docker: ResolverPorts | None, ours: ResolverPorts | None, place: NetnsTarget
) -> Iterator[Operation]:
    assert ours
    if not docker:
        yield SetDockerDns(saved(ours), True, place)
    yield SetRules(OFF, rules(ours), place)


def _chosen(
    draft: PlanBuilder, found: list[AttachedNamespace], only: tuple[str, ...]
) -> Iterator[AttachedNamespace]:
    if not only:
        yield from found
    for name in only:
        target = draft.target(name)
        space = next((one for one in found if one.ns == target.ns), None)
        if space is None:
            raise CannotPlan([f"{safe(name)} is not on this bridge"])
        yield space


def _why_not(
    name: str, firewall: Firewall | None, docker: ResolverPorts | None, ours: ResolverPorts | None
) -> str:
    """Why it stays as it is: "" where its rules are Docker's for DNS, or ours instead, and no others."""
    if firewall is None:
        return f"the firewall rules of {name} were not read"
    if firewall.problems:
        return f"the firewall rules of {name} could not be read: {safe(firewall.problems[0].why)}"
    if any(chain.backend == "iptables-legacy" for chain in firewall.chains):
        return (
            f"{name} has rules of iptables-legacy: it would gain nothing, as these pass packets to conntrack"
        )
    for text in _others(firewall, docker, ours):
        return f"{name} has firewall rules besides those of iptables-nft for Docker's DNS: {safe(text)}"
    if not docker and not ours:
        return f"{name} has no rules for Docker's DNS: nothing of it is tracked for their sake"
    return ""


def _others(firewall: Firewall, docker: ResolverPorts | None, ours: ResolverPorts | None) -> Iterator[str]:
    """The other rules and chains there, in words."""
    written = {
        *_docker_rules(_named(filter(_is_nat, firewall.rules))),
        *_our_rules(_named(filter(_is_ours, firewall.rules))),
    }
    yield from (rule.text for rule in firewall.rules if rule.text not in written)
    for rule in firewall.rules:
        if not (docker and _is_nat(rule)) and not (ours and _is_ours(rule)):
            yield rule.text
    for chain in firewall.chains:
        known = (_is_nat(chain) and chain.name in _NAMES) or _is_ours(chain)
        if not known or chain.policy == "drop":
            yield f"chain {chain.name} of table {chain.table}"


def _is_nat(one: FirewallRule | Chain) -> bool:
    return (one.backend, one.family, one.table) == ("iptables-nft", "ip", "nat")


def _is_ours(one: FirewallRule | Chain) -> bool:
    return (one.family, one.table) == ("netdev", UNTRACKED_TABLE)


def _ports(
    firewall: Firewall | None,
    belongs: Callable[[FirewallRule], bool],
    written: Callable[[ResolverPorts], Sequence[str]],
) -> ResolverPorts | None:
    """The ports for which the rules that belong there are exactly the `written` ones."""
    there = list(filter(belongs, firewall.rules)) if firewall else []
    found = _named(there)
    # Older versions of iptables-save list the chains in another order.
    same = _by_chain([rule.text for rule in there]) == _by_chain(written(found))
    return found if same else None


def _named(rules: Iterable[FirewallRule]) -> ResolverPorts:
    """The ports that the first rules for answers name, of Docker's or of ours."""
    ports = {rule.l4_proto: rule.sport for rule in reversed(list(rules)) if rule.src == _DNS}
    return ResolverPorts(ports.get("tcp", ""), ports.get("udp", ""))


def _by_chain(texts: Sequence[str]) -> list[str]:
    return sorted(texts, key=lambda text: text.split()[1:2])


def _our_rules(ports: ResolverPorts) -> tuple[str, ...]:
    pairs = tuple(ports._asdict().items())
    return (
        *(f"ip daddr {_DNS} {protocol} dport 53 {protocol} dport set {port}" for protocol, port in pairs),
        *(f"ip saddr {_DNS} {protocol} sport {port} {protocol} sport set 53" for protocol, port in pairs),
    )


def _docker_rules(ports: ResolverPorts) -> tuple[str, ...]:
    """As iptables-save prints what dockerd's libnetwork/resolver_unix.go writes."""
    pairs = tuple((f"-p {protocol} -m {protocol}", port) for protocol, port in ports._asdict().items())
    inner = f"-A DOCKER_OUTPUT -d {_DNS}/32", f"-A DOCKER_POSTROUTING -s {_DNS}/32"
    return (
        f"-A OUTPUT -d {_DNS}/32 -j DOCKER_OUTPUT",
        f"-A POSTROUTING -d {_DNS}/32 -j DOCKER_POSTROUTING",
        *(f"{inner[0]} {match} --dport 53 -j DNAT --to-destination {_DNS}:{port}" for match, port in pairs),
        *(f"{inner[1]} {match} --sport {port} -j SNAT --to-source :53" for match, port in pairs),
    )
