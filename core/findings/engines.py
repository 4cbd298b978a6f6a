"""Rules of an engine that somebody else took away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from core.findings.finding import Finding
from core.model import Chain, Firewall, Network, namespace_ref, network_ref
from core.nat.paths import targets

if TYPE_CHECKING:
    from core.topology import Topology

_OWN = "DOCKER"  # what the names of Docker's chains begin with
_NFT_TABLE = "docker-bridges"  # of its backend for nftables
_PURPOSES = {
    "nat": "published ports and masquerading don't work",
    "filter": "nothing keeps its networks apart, and the policy of FORWARD alone decides what passes",
}


def docker_without_rules(topology: Topology) -> Iterator[Finding]:
    """Docker's chains that no packet comes to any more, as after `iptables -F` or `nft flush ruleset`."""
    firewall, networks = topology.snapshot.firewalls.get(topology.host), _translated(topology)
    if not networks or firewall is None or firewall.problems:
        return
    reached, left = _reached(firewall), any(map(_is_dockers, firewall.chains))
    lost = [table for table in _PURPOSES if table not in reached]
    # Where nothing of Docker's is left, it may also run with iptables=false, and a person's rules translate.
    if not lost or (not left and all(one.kind != "routed" for one in networks)):
        return
    what = "; ".join(_PURPOSES[table] for table in lost)
    words = f"Docker's rules are gone from {' and '.join(lost)}: {what}."
    unless = "" if left else ' (unless it runs with "iptables": false)'
    yield Finding(
        "engine rules",
        namespace_ref(topology.host),
        "Docker's rules are gone",
        words,
        "bad" if left else "warn",
        tuple(network_ref(one.id) for one in networks),
        f"systemctl restart docker{unless}",
    )


def _translated(topology: Topology) -> list[Network]:
    """Docker's networks for which it makes rules on this host."""
    engine = topology.snapshot.engines.get("docker")
    if engine is None or engine.state != "ok":
        return []
    return [
        network
        for network in topology.networks
        if network.engine == "docker"
        and network.driver == "bridge"
        and network.kind in ("nat", "routed")
        and any(":" not in subnet for subnet in network.subnets)
        and (bridge := topology.bridge_link(network))
        and bridge.ns == topology.host
    ]


def _reached(firewall: Firewall) -> set[str]:
    """The tables of iptables in which packets come to a chain of Docker's; all, where it uses nftables."""
    if any(chain.table == _NFT_TABLE for chain in firewall.chains):
        return set(_PURPOSES)
    hooked = {(chain.backend, chain.table, chain.name) for chain in firewall.chains if chain.hook}
    return {
        rule.table
        for rule in firewall.rules
        if rule.family == "ip" and (rule.backend, rule.table, rule.chain) in hooked
        for *_, target in targets(rule)
        if target.startswith(_OWN)
    }


def _is_dockers(chain: Chain) -> bool:
    return chain.family == "ip" and chain.name.startswith(_OWN) and not chain.hook
