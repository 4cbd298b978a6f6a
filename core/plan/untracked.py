"""Plans that leave the packets of containers untracked where Docker's DNS alone needs conntrack.

In the namespace of a container on a user-defined network Docker translates 127.0.0.11:53 to its own resolver.
With that, every packet of the container passes conntrack and NAT, though none but those of DNS needs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from core.model import Firewall, FirewallRule, Link
from core.ops import SetRules
from core.plan.base import Refusal
from core.plan.draft import Draft
from core.tags import UNTRACKED_TABLE
from core.text import safe
from core.topology import Topology

_DNS, _PORT = "127.0.0.11", "53"
_TABLE = f"table ip {UNTRACKED_TABLE}"
OFF = f"{_TABLE}\ndelete {_TABLE}\n"
_CHAIN = """\
\tchain {0} {{
\t\ttype filter hook {0} priority raw; policy accept;
\t\tip saddr != {1} ip daddr != {1} notrack
\t}}
"""
ON = f"{OFF}{_TABLE} {{\n{''.join(_CHAIN.format(hook, _DNS) for hook in ('prerouting', 'output'))}}}\n"
_CHAINS = ("DOCKER_OUTPUT", "DOCKER_POSTROUTING")  # dockerd's libnetwork/resolver_unix.go


@dataclass(frozen=True, slots=True)
class Space:
    """A container's namespace on a bridge: its inode and name, `why` its rules allow nothing here ("" where
    they do), and whether all but DNS is untracked there already."""

    ns: int
    name: str
    why: str
    on: bool


def spaces(topology: Topology, bridge: Link) -> Iterator[Space]:
    """The containers' namespaces that hang on a bridge, each once."""
    peers = (topology.peer(port) for port in topology.ports_of(bridge.key))
    for ns in dict.fromkeys(peer.ns for peer in peers if peer):
        if ns != topology.host:
            name, firewall = safe(topology.label(ns)), topology.snapshot.firewalls.get(ns)
            on = any(map(_is_ours, firewall.rules)) if firewall else False
            yield Space(ns, name, _why_not(name, firewall), on)


def states(topology: Topology, bridge: Link) -> frozenset[bool]:
    """Whether they are untracked, of those containers where that is possible."""
    return frozenset(one.on for one in spaces(topology, bridge) if not one.why)


def switch(draft: Draft, bridge: Link, on: bool, only: tuple[str, ...]) -> None:
    """Add the steps for the containers of a bridge, or for those named in `only`. Raises Refusal."""
    found = list(_chosen(draft, list(spaces(draft.topology, bridge)), only))
    refused = [one.why for one in found if one.why]
    if (only and refused) or len(refused) == len(found):
        raise Refusal(refused or ["no container is on this bridge"])
    for why in refused:
        draft.warn(f"{why}: it stays as it is")
    changed = [one for one in found if not one.why and one.on != on]
    for one in changed:
        texts = (ON, OFF) if on else (OFF, ON)
        draft.do(SetRules(*texts, draft.place_of(one.ns)))
    if on and changed:
        names = ", ".join(one.name for one in changed)
        draft.warn(
            f"conntrack no longer knows of connections inside {names}, but for those with Docker's DNS"
        )
        draft.warn(
            "rules that a container adds later and that ask for a connection's state find none: "
            "take this back before. A container that starts again has Docker's rules alone"
        )


def track_again(topology: Topology) -> Iterator[SetRules]:
    """The steps that take our table away in every namespace that has it."""
    draft = Draft(topology)
    for ns, firewall in topology.snapshot.firewalls.items():
        if any(map(_is_ours, firewall.rules)):
            yield SetRules(OFF, ON, draft.place_of(ns))


def _chosen(draft: Draft, found: list[Space], only: tuple[str, ...]) -> Iterator[Space]:
    if not only:
        yield from found
    for name in only:
        target = draft.target(name)
        space = next((one for one in found if one.ns == target.ns), None)
        if space is None:
            raise Refusal([f"{safe(name)} is not on this bridge"])
        yield space


def _why_not(name: str, firewall: Firewall | None) -> str:
    """Why its packets can't be left untracked: "" where its rules are Docker's for DNS, and nothing else."""
    if firewall is None:
        return f"the firewall rules of {name} were not read"
    if firewall.problems:
        return f"the firewall rules of {name} could not be read: {safe(firewall.problems[0].why)}"
    if chain := next((one for one in firewall.chains if one.policy == "drop"), None):
        return f"{name} has firewall rules of its own: chain {safe(chain.name)} drops"
    others = [rule for rule in firewall.rules if not (_is_dns(rule) or _is_ours(rule))]
    if others:
        return f"{name} has firewall rules of its own, that may look at connections: {safe(others[0].text)}"
    if not any(rule.verdict == "dnat" for rule in firewall.rules):
        return f"{name} has no rules for Docker's DNS: nothing of it is tracked for their sake"
    return ""


def _is_ours(rule: FirewallRule) -> bool:
    matches = (rule.src, rule.dst, rule.verdict, rule.understood)
    return rule.table == UNTRACKED_TABLE and matches == (f"!{_DNS}", f"!{_DNS}", "notrack", True)


def _is_dns(rule: FirewallRule) -> bool:
    """Whether it is one that Docker writes, by iptables of either kind or by nftables."""
    if rule.family != "ip" or not rule.understood or rule.iif or rule.oif or rule.ct_state:
        return False
    match rule.verdict:
        case "jump":
            return rule.dst == _DNS and rule.target in _CHAINS
        case "dnat":
            return (rule.dst, rule.dport, rule.to_address) == (_DNS, _PORT, _DNS)
        case "snat":
            return (rule.src, rule.to_address, rule.to_port) == (_DNS, "", _PORT) and bool(rule.sport)
    return False
