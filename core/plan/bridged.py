"""Whether what a bridge forwards passes the host's firewall (br_netfilter), and what changes with it."""

from __future__ import annotations

from collections.abc import Iterator

from core.model import Link
from core.ops import SetBridge, SetSysctl
from core.plan.base import require, when
from core.plan.draft import Draft
from core.plan.warnings import warn_of_filters
from core.text import safe
from core.topology import Topology

# The setting of one bridge (ip-link(8)) that has the same effect as the sysctl has for all of them.
_SYSCTLS = {
    "nf_call_iptables": "net.bridge.bridge-nf-call-iptables",
    "nf_call_ip6tables": "net.bridge.bridge-nf-call-ip6tables",
}
_MOST_RULES = 3


def passes_firewall(topology: Topology, bridge: Link) -> bool:
    """Whether what it forwards, of IPv4 or of IPv6, passes the host's firewall."""
    return any(_is_on(topology, bridge, setting) for setting in _SYSCTLS)


def _is_on(topology: Topology, bridge: Link, setting: str) -> bool:
    everywhere = topology.snapshot.host.sysctls.get(_SYSCTLS[setting]) == "1"
    return (everywhere and bridge.ns == topology.host) or _own(bridge, setting)


def _own(bridge: Link, setting: str) -> bool:
    return bool(bridge.bridge and getattr(bridge.bridge, setting))


def switch(draft: Draft, bridge: Link, on: bool) -> None:
    """Add the steps that have a bridge's traffic pass the host's firewall, or not. Raises Refusal."""
    require(
        when(bridge.ns != draft.topology.host, f"{safe(bridge.name)} is not a bridge of the host"),
        when(
            on and _SYSCTLS["nf_call_iptables"] not in draft.snapshot.host.sysctls,
            "br_netfilter is not loaded: modprobe br_netfilter does that",
        ),
    )
    held = {_is_on(draft.topology, bridge, setting) for setting in _SYSCTLS}
    if held != {on}:
        (_switch_on if on else _switch_off)(draft, bridge)


def _switch_on(draft: Draft, bridge: Link) -> None:
    """For this bridge alone."""
    for setting in _SYSCTLS:
        if not _is_on(draft.topology, bridge, setting):
            draft.do(SetBridge(bridge.name, setting, 1, 0))
    name = safe(bridge.name)
    draft.warn(f"packets between containers of {name} pass the host's firewall and conntrack from now on")
    warn_of_filters(draft, bridge.name, ())


def _switch_off(draft: Draft, bridge: Link) -> None:
    """The sysctl is about all bridges: the others are told to go on as they are before it is switched off."""
    for setting, key in _SYSCTLS.items():
        if draft.snapshot.host.sysctls.get(key) == "1":
            others = [one for one in _others(draft, bridge) if not _own(one, setting)]
            draft.do(*(SetBridge(one.name, setting, 1, 0) for one in others))
            draft.do(SetSysctl(key, "0", "1"))
            _warn_of_sysctl(draft, key)
        if _own(bridge, setting):
            draft.do(SetBridge(bridge.name, setting, 0, 1))
    _warn_of_open_bridge(draft, bridge)


def _others(draft: Draft, bridge: Link) -> Iterator[Link]:
    for link in draft.host.links.values():
        if link.kind == "bridge" and link.key != bridge.key:
            yield link


def _warn_of_sysctl(draft: Draft, key: str) -> None:
    draft.warn(
        f"{key} is about every bridge: those that are there keep passing the firewall by a setting of their "
        "own, those made later do not; Docker or Kubernetes may switch it on again when they start"
    )


def _warn_of_open_bridge(draft: Draft, bridge: Link) -> None:
    name = safe(bridge.name)
    draft.warn(
        f"the host's firewall no longer sees packets between containers of {name}: no FORWARD rule holds "
        "between them, neither DOCKER-USER nor Docker's isolation (icc=false) nor Kubernetes' network "
        "policies, and conntrack does not know of them"
    )
    draft.warn(
        f"a published port or service address that leads from {name} back to {name} may stop answering: "
        "the answers go past the translation"
    )
    for text in _without_effect(draft, bridge):
        draft.warn(f"this rule stops working: {text}")


def _without_effect(draft: Draft, bridge: Link) -> Iterator[str]:
    """Rules that keep the bridge's containers apart."""
    firewall = draft.snapshot.firewalls.get(draft.topology.host)
    found = [
        rule
        for rule in (firewall.rules if firewall else ())
        if rule.iif == rule.oif == bridge.name and rule.verdict in ("drop", "reject")
    ]
    for rule in found[:_MOST_RULES]:
        yield f"{safe(rule.chain)}: {safe(rule.text)}"
    if len(found) > _MOST_RULES:
        yield f"and {len(found) - _MOST_RULES} more of its kind"
