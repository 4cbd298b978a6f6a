"""Plan to run Docker's DNS without conntrack.

This is for containers that need conntrack for nothing else. In the namespace of a container on a user-defined
network Docker translates 127.0.0.11:53 to its own resolver by NAT, so every packet of the container passes
conntrack. Both ends are local: rules at ingress of the loopback link change the ports without conntrack and
replace Docker's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from core.model import Chain, Firewall, FirewallRule, Link
from core.operations import NetnsTarget, Operation, SetDockerDns, SetRules
from core.plan.builder import CannotPlan, PlanBuilder
from core.text import UNTRACKED_TABLE, safe
from core.topology import Topology

_DNS = "127.0.0.11"
_TABLE = f"table netdev {UNTRACKED_TABLE}"
OFF = f"{_TABLE}\ndelete {_TABLE}\n"
# In Docker's order, which nft list keeps.
_CHAINS = (
    ":DOCKER_OUTPUT - [0:0]",
    ":OUTPUT ACCEPT [0:0]",
    ":DOCKER_POSTROUTING - [0:0]",
    ":POSTROUTING ACCEPT [0:0]",
)
# iptables-save also lists base chains that don't exist.
_NAMES = {"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING", "DOCKER_OUTPUT", "DOCKER_POSTROUTING"}


class ResolverPorts(NamedTuple):
    """The ports on which Docker's resolver listens in a container."""

    tcp: str
    udp: str


@dataclass(frozen=True, slots=True)
class AttachedNamespace:
    """A container's namespace on a bridge.

    `ns` is its inode, `why` the reason why it can't be changed ("" for none); `docker` and `vnet` are the
    resolver's ports in Docker's rules and in vnet's (None without such rules).
    """

    ns: int
    name: str
    why: str
    docker: ResolverPorts | None
    vnet: ResolverPorts | None

    @property
    def on(self) -> bool:
        """Return whether vnet-tui's rules replace Docker's.

        Docker may have added its own again since.
        """
        return self.vnet is not None and self.docker is None


def rules(ports: ResolverPorts) -> str:
    """Return vnet's nftables table that redirects DNS to these ports."""
    hook = 'type filter hook ingress device "lo" priority filter; policy accept;'
    lines = "".join(f"\t\t{line}\n" for line in (hook, *_vnet_rules(ports)))
    return f"{OFF}{_TABLE} {{\n\tchain lo {{\n{lines}\t}}\n}}\n"


def saved(ports: ResolverPorts) -> str:
    """Return Docker's rules as input of iptables-restore."""
    return "\n".join(("*nat", *_CHAINS, *_docker_rules(ports), "COMMIT\n"))


def attached_namespaces(topology: Topology, bridge: Link) -> Iterator[AttachedNamespace]:
    """Yield the namespaces of containers on a bridge, each once."""
    peers = (topology.peer(port) for port in topology.ports_of(bridge.key))
    for ns in dict.fromkeys(peer.ns for peer in peers if peer):
        if ns != topology.host:
            name, firewall = safe(topology.label(ns)), topology.snapshot.firewalls.get(ns)
            docker, vnet = (
                _ports(firewall, _is_nat, _docker_rules),
                _ports(firewall, _is_vnet_nat, _vnet_rules),
            )
            yield AttachedNamespace(ns, name, _refusal(name, firewall, docker, vnet), docker, vnet)


def states(topology: Topology, bridge: Link) -> frozenset[bool]:
    """Return whether Docker's rules are replaced, for all containers that allow it."""
    return frozenset(one.on for one in attached_namespaces(topology, bridge) if not one.why)


def switch_dns_tracking(builder: PlanBuilder, bridge: Link, on: bool, only: tuple[str, ...]) -> None:
    """Add the steps for a bridge's containers, or for those named in `only`.

    Raises CannotPlan.
    """
    found = list(_chosen(builder, list(attached_namespaces(builder.topology, bridge)), only))
    refused = [one.why for one in found if one.why]
    if (only and refused) or len(refused) == len(found):
        raise CannotPlan(refused or ["the bridge has no containers"])
    for why in refused:
        builder.warn(f"{why}: it isn't changed")
    changed = [one for one in found if not one.why and (not one.on if on else one.vnet)]
    for one in changed:
        builder.add(
            *(_replace_steps if on else _restore_steps)(one.docker, one.vnet, builder.netns_target(one.ns))
        )
    if on and changed:
        names = ", ".join(one.name for one in changed)
        builder.warn(
            f"vnet-tui's rules replace Docker's DNS rules in {names} until the container stops or you undo "
            "this: names are resolved as before"
        )
        builder.warn(f"conntrack no longer tracks connections in {names}")
        builder.warn(
            "rules with conntrack states that a container adds later don't match existing connections: undo "
            "this before. A container that restarts has only Docker's rules until you repeat this"
        )


def restore_tracking(topology: Topology) -> Iterator[Operation]:
    """Yield the steps that restore Docker's rules in every namespace with vnet's."""
    builder = PlanBuilder(topology)
    for ns, firewall in topology.snapshot.firewalls.items():
        if vnet := _ports(firewall, _is_vnet_nat, _vnet_rules):
            docker = _ports(firewall, _is_nat, _docker_rules)
            yield from _restore_steps(docker, vnet, builder.netns_target(ns))


# One of the two tables exists at any time; with both, either works.


def _replace_steps(
    docker: ResolverPorts | None, vnet: ResolverPorts | None, place: NetnsTarget
) -> Iterator[Operation]:
    assert docker
    yield SetRules(rules(docker), rules(vnet) if vnet else OFF, place)
    yield SetDockerDns(saved(docker), False, place)


def _restore_steps(
    docker: ResolverPorts | None, vnet: ResolverPorts | None, place: NetnsTarget
) -> Iterator[Operation]:
    assert vnet
    if not docker:
        yield SetDockerDns(saved(vnet), True, place)
    yield SetRules(OFF, rules(vnet), place)


def _chosen(
    builder: PlanBuilder, found: list[AttachedNamespace], only: tuple[str, ...]
) -> Iterator[AttachedNamespace]:
    if not only:
        yield from found
    for name in only:
        target = builder.target(name)
        space = next((one for one in found if one.ns == target.ns), None)
        if space is None:
            raise CannotPlan([f"{safe(name)} isn't on this bridge"])
        yield space


def _refusal(
    name: str, firewall: Firewall | None, docker: ResolverPorts | None, vnet: ResolverPorts | None
) -> str:
    """Return why a namespace can't be changed, "" if it can.

    It can if it only has Docker's DNS rules, or vnet's instead.
    """
    if firewall is None:
        return f"the firewall rules of {name} weren't read"
    if firewall.problems:
        return f"the firewall rules of {name} weren't read completely: {safe(firewall.problems[0].why)}"
    if any(chain.backend == "iptables-legacy" for chain in firewall.chains):
        return f"{name} has rules of iptables-legacy, which pass packets to conntrack anyway"
    for text in _other_rules(firewall, docker, vnet):
        return f"{name} has other firewall rules than those for Docker's DNS (iptables-nft): {safe(text)}"
    if not docker and not vnet:
        return f"{name} has no rules for Docker's DNS, so they cause no tracking"
    return ""


def _other_rules(
    firewall: Firewall, docker: ResolverPorts | None, vnet: ResolverPorts | None
) -> Iterator[str]:
    """Yield the other rules and chains as text."""
    expected = {
        *_docker_rules(_ports_in(filter(_is_nat, firewall.rules))),
        *_vnet_rules(_ports_in(filter(_is_vnet_nat, firewall.rules))),
    }
    yield from (rule.text for rule in firewall.rules if rule.text not in expected)
    for rule in firewall.rules:
        if not (docker and _is_nat(rule)) and not (vnet and _is_vnet_nat(rule)):
            yield rule.text
    for chain in firewall.chains:
        known = (_is_nat(chain) and chain.name in _NAMES) or _is_vnet_nat(chain)
        if not known or chain.policy == "drop":
            yield f"chain {chain.name} of table {chain.table}"


def _is_nat(one: FirewallRule | Chain) -> bool:
    return (one.backend, one.family, one.table) == ("iptables-nft", "ip", "nat")


def _is_vnet_nat(one: FirewallRule | Chain) -> bool:
    return (one.family, one.table) == ("netdev", UNTRACKED_TABLE)


def _ports(
    firewall: Firewall | None,
    belongs: Callable[[FirewallRule], bool],
    expected: Callable[[ResolverPorts], Sequence[str]],
) -> ResolverPorts | None:
    """Return the ports for which the rules are exactly the `expected` ones, or None."""
    found = list(filter(belongs, firewall.rules)) if firewall else []
    ports = _ports_in(found)
    # Older versions of iptables-save list the chains in another order.
    same = _by_chain([rule.text for rule in found]) == _by_chain(expected(ports))
    return ports if same else None


def _ports_in(rules: Iterable[FirewallRule]) -> ResolverPorts:
    """Return the ports in the first rules for answers, Docker's or vnet's."""
    ports = {rule.l4_proto: rule.sport for rule in reversed(list(rules)) if rule.src == _DNS}
    return ResolverPorts(ports.get("tcp", ""), ports.get("udp", ""))


def _by_chain(texts: Sequence[str]) -> list[str]:
    return sorted(texts, key=lambda text: text.split()[1:2])


def _vnet_rules(ports: ResolverPorts) -> tuple[str, ...]:
    pairs = tuple(ports._asdict().items())
    return (
        *(f"ip daddr {_DNS} {protocol} dport 53 {protocol} dport set {port}" for protocol, port in pairs),
        *(f"ip saddr {_DNS} {protocol} sport {port} {protocol} sport set 53" for protocol, port in pairs),
    )


def _docker_rules(ports: ResolverPorts) -> tuple[str, ...]:
    """Return Docker's rules as iptables-save prints them.

    They are those of dockerd's libnetwork/resolver_unix.go.
    """
    pairs = tuple((f"-p {protocol} -m {protocol}", port) for protocol, port in ports._asdict().items())
    inner = f"-A DOCKER_OUTPUT -d {_DNS}/32", f"-A DOCKER_POSTROUTING -s {_DNS}/32"
    return (
        f"-A OUTPUT -d {_DNS}/32 -j DOCKER_OUTPUT",
        f"-A POSTROUTING -d {_DNS}/32 -j DOCKER_POSTROUTING",
        *(f"{inner[0]} {match} --dport 53 -j DNAT --to-destination {_DNS}:{port}" for match, port in pairs),
        *(f"{inner[1]} {match} --sport {port} -j SNAT --to-source :53" for match, port in pairs),
    )
