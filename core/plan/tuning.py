"""Plan to tune a bridge and its ports.

This covers BIG TCP, offloads, br_netfilter, RPS and Docker's DNS.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from core.model import Address, Link, LinkTuning
from core.operations import NetnsTarget, SetBridge, SetOffloads, SetSizes, SetSteering, SetSysctl
from core.plan import untracked
from core.plan.builder import CannotPlan, PlanBuilder, plan_steps, require, when
from core.plan.connectivity import is_critical_link, warn_of_filters
from core.plan.requests import Tune
from core.text import bounds, safe
from core.topology import Topology

_NONE = LinkTuning()


@dataclass(frozen=True, slots=True)
class TuningState:
    """The tuning of a bridge and its ports.

    A value is None where links differ or the kernel doesn't report it. `rps` is "off" or a mask.
    """

    big_tcp: int | None = None
    offloads: bool | None = None
    br_netfilter: bool = False
    rps: str | None = None
    no_track_dns: bool | None = None


def tuned(topology: Topology, bridge: Link) -> TuningState:
    """Return the current tuning; offloads and RPS need the snapshot's part "tuning"."""
    ends = _ends(topology, bridge)
    sizes = {size for link in (bridge, *ends) if supports_big_tcp(link) for _, size in sizes_of(link)}
    offloads = {on for link in ends if _is_virtual(link) for _, on in _offloads_of(topology, link)}
    steering = {one for link in ends for one in _tuning(topology, link).rps_cpus}
    untracking = set(untracked.states(topology, bridge))
    return TuningState(
        sizes.pop() if len(sizes) == 1 else None,
        offloads.pop() if len(offloads) == 1 else None,
        passes_firewall(topology, bridge),
        _rps_text(steering.pop()) if len(steering) == 1 else None,
        untracking.pop() if len(untracking) == 1 else None,
    )


def _rps_text(mask: str) -> str:
    return mask if cpus_of_mask(mask) else "off"


@plan_steps.register
def plan_tune(request: Tune, builder: PlanBuilder) -> str:
    bridge = builder.snapshot.link(request.key)
    require(
        when(bridge is None, "the bridge no longer exists"),
        when(bridge and bridge.kind != "bridge", f"{safe(bridge.name) if bridge else ''} isn't a bridge"),
    )
    assert bridge
    before = len(builder.steps)
    if request.br_netfilter is not None:
        switch_br_netfilter(builder, bridge, request.br_netfilter)
    ends = [(link, place) for link in _ends(builder.topology, bridge) if (place := _place(builder, link))]
    if request.big_tcp is not None:
        _set_big_tcp([(bridge, builder.netns_target(bridge.ns)), *ends], request.big_tcp, builder)
    if request.offloads is not None:
        _switch_offloads(ends, request.offloads, builder)
    if request.rps is not None:
        _set_rps(ends, request.rps, builder)
    if request.no_track_dns is not None:
        untracked.switch_dns_tracking(builder, bridge, request.no_track_dns, request.only)
    require(
        when(
            len(builder.steps) == before,
            "the bridge and its ports already have these settings",
        )
    )
    builder.guarded |= is_critical_link(bridge.key, builder)
    return f"tune {safe(bridge.name)}: {', '.join(_describe(request))}"


def _describe(request: Tune) -> Iterator[str]:
    switched = {True: "on", False: "off"}
    if request.big_tcp is not None:
        yield f"BIG TCP {request.big_tcp if request.big_tcp > PLAIN_SIZE else 'off'}"
    if request.offloads is not None:
        yield f"offloads {switched[request.offloads]}"
    if request.br_netfilter is not None:
        yield f"br_netfilter {switched[request.br_netfilter]}"
    if request.rps is not None:
        yield f"RPS {safe(request.rps)}"
    if request.no_track_dns is not None:
        containers = ", ".join(map(safe, request.only)) or "its containers"
        yield f"Docker's DNS {'without' if request.no_track_dns else 'with'} conntrack in {containers}"


# ---- ports of a bridge


def _ends(topology: Topology, bridge: Link) -> tuple[Link, ...]:
    """Return the bridge's ports and their peers."""
    ports = topology.ports_of(bridge.key)
    peers = [peer for port in ports if (peer := topology.peer(port))]
    return tuple({link.key: link for link in (*ports, *peers)}.values())


def _place(builder: PlanBuilder, link: Link) -> NetnsTarget | None:
    """Return the namespace of a link, or None with a warning if it can't be entered."""
    try:
        return builder.netns_target(link.ns)
    except CannotPlan as refusal:
        builder.warn(f"{safe(link.name)} isn't changed: {'; '.join(refusal.reasons)}")
        return None


def _tuning(topology: Topology, link: Link) -> LinkTuning:
    return topology.snapshot.tuning.get(link.ns, {}).get(link.ifindex, _NONE)


def _is_virtual(link: Link) -> bool:
    """Return whether a link isn't a NIC.

    A NIC may lose its carrier for seconds when its offloads change.
    """
    return link.kind != "physical"


# ---- BIG TCP


def _set_big_tcp(links: Iterable[tuple[Link, NetnsTarget]], size: int, builder: PlanBuilder) -> None:
    require(_check_size(size))
    links = list(links)
    if not any(link.sizes.tso for link, _ in links):
        raise CannotPlan(["this kernel can't set the size of the largest packets (Linux 5.19 and later can)"])
    if size > PLAIN_SIZE and not any(link.sizes.gso_ipv4 for link, _ in links):
        builder.warn("this kernel has BIG TCP for IPv6 only: IPv4 needs Linux 6.3")
    before = len(builder.steps)
    for link, place in links:
        most = max(PLAIN_SIZE, link.sizes.tso)
        if most < size:
            builder.warn(f"{safe(link.name)} in {place} allows {most} bytes at most")
        builder.add(*resize(link, size, place))
    if len(builder.steps) > before:
        _warn_of_sizes(size, builder)
        if size > PLAIN_SIZE and any(_is_routed_ipv6(one) for link, _ in links for one in link.addresses):
            builder.warn(
                "IPv6 connections that leave the bridge may become very slow: Linux up to 6.18 doesn't route "
                "packets of more than 64 KiB, unless the containers' MTU is 8 bytes less than the uplink's"
            )


def _warn_of_sizes(size: int, builder: PlanBuilder) -> None:
    builder.warn("only new connections use the new size")
    if size > PLAIN_SIZE:
        builder.warn(
            "captures on these links show packets of more than 64 KiB, with a length of 0 in the IPv4 "
            "header; packets that leave by a NIC are segmented as before"
        )
        builder.warn("containers attached later have the default size until you repeat this")


def _is_routed_ipv6(address: Address) -> bool:
    return address.family == 6 and not address.address.startswith("fe80:")


def _check_size(size: int) -> str:
    if PLAIN_SIZE <= size <= LARGEST_SIZE:
        return ""
    return f"invalid size {size}. Try: {PLAIN_SIZE} (no BIG TCP) to {LARGEST_SIZE} bytes"


# ---- offloads


def _is_offload(feature: str) -> bool:
    """Return whether a feature belongs to tx, tso, gso or gro of ethtool(8)."""
    return feature in ("tx-generic-segmentation", "rx-gro") or feature.startswith(("tx-checksum-", "tx-tcp"))


def _offloads_of(topology: Topology, link: Link) -> list[tuple[str, bool]]:
    """Return the offloads that can be switched, and whether each is requested on."""
    tuning = _tuning(topology, link)
    return [(name, name in tuning.wanted) for name in tuning.changeable if _is_offload(name)]


def _switch_offloads(links: Iterable[tuple[Link, NetnsTarget]], on: bool, builder: PlanBuilder) -> None:
    any_found = False
    for link, place in links:
        if not _is_virtual(link):
            builder.warn(f"{safe(link.name)} is a NIC and keeps its offloads; use ethtool -K to change them")
            continue
        offloads = _offloads_of(builder.topology, link)
        any_found = any_found or bool(offloads)
        features = tuple((name, on) for name, is_on in offloads if is_on != on)
        if features:
            builder.add(
                SetOffloads(link.name, features, tuple((name, not on) for name, _ in features), place)
            )
    if not any_found:
        raise CannotPlan(["no port of the bridge has offloads that can be switched"])
    if not on:
        builder.warn("without offloads the CPU segments and checksums every packet: bulk traffic gets slower")


# ---- RPS


def _set_rps(links: Iterable[tuple[Link, NetnsTarget]], text: str, builder: PlanBuilder) -> None:
    cpus = _parse_cpus(text, builder)
    any_found = False
    for link, place in links:
        for queue, mask in enumerate(_tuning(builder.topology, link).rps_cpus):
            any_found = True
            if cpus_of_mask(mask) != cpus:
                builder.add(SetSteering(link.name, queue, mask_of_cpus(cpus), mask, place))
    if not any_found:
        raise CannotPlan(
            ["RPS isn't available: the bridge has no ports, the kernel has no RPS, or sysfs can't be read"]
        )
    if cpus:
        builder.warn(
            "RPS spreads flows over CPUs, at a small cost for each packet; one flow stays on one CPU"
        )


def _parse_cpus(text: str, builder: PlanBuilder) -> int:
    """Return the CPUs of "all", "off" or a mask, one bit each. Raises CannotPlan."""
    present = cpus_of_list(builder.snapshot.host.cpus)
    if text in ("all", "off"):
        return present if text == "all" else 0
    cpus = cpus_of_mask(text)
    if cpus is None:
        raise CannotPlan(
            [f'"{safe(text)}" isn\'t a CPU mask. Try: all, off, or hexadecimal digits such as f']
        )
    require(
        when(cpus & ~present, f"{safe(text)} has CPUs that don't exist. Try: {mask_of_cpus(present)} for all")
    )
    return cpus


_GROUP = 32  # bits between two commas
_MASK = re.compile(r"(?:0x)?[0-9a-fA-F]+(?:,[0-9a-fA-F]{8})*\Z")


def cpus_of_list(text: str) -> int:
    """Return the CPUs of a list such as "0-3,8", one bit each."""
    found = 0
    for part in filter(None, text.split(",")):
        first, last = bounds(part)
        for cpu in range(first, last + 1):
            found |= 1 << cpu
    return found


def cpus_of_mask(text: str) -> int | None:
    """Parse a hexadecimal mask: "f", "0xf", "1,00000000"; None for other text."""
    return int(text.replace(",", ""), 16) if _MASK.match(text) else None


def mask_of_cpus(cpus: int) -> str:
    """Return the mask of these CPUs in the kernel's format."""
    groups = []
    while cpus >> _GROUP:
        groups.append(f"{cpus & (1 << _GROUP) - 1:08x}")
        cpus >>= _GROUP
    return ",".join([f"{cpus:x}", *reversed(groups)])


# The setting of one bridge (ip-link(8)), and the sysctl with the same effect for all bridges.
_SYSCTLS = {
    "nf_call_iptables": "net.bridge.bridge-nf-call-iptables",
    "nf_call_ip6tables": "net.bridge.bridge-nf-call-ip6tables",
}
_MOST_RULES = 3


def passes_firewall(topology: Topology, bridge: Link) -> bool:
    """Return whether bridged packets of IPv4 or IPv6 pass the host's firewall."""
    return any(_is_on(topology, bridge, setting) for setting in _SYSCTLS)


def _is_on(topology: Topology, bridge: Link, setting: str) -> bool:
    everywhere = topology.snapshot.host.sysctls.get(_SYSCTLS[setting]) == "1"
    return (everywhere and bridge.ns == topology.host) or _own(bridge, setting)


def _own(bridge: Link, setting: str) -> bool:
    return bool(bridge.bridge and getattr(bridge.bridge, setting))


def switch_br_netfilter(builder: PlanBuilder, bridge: Link, on: bool) -> None:
    """Plan to switch br_netfilter for a bridge. Raises CannotPlan.

    With it the bridge's traffic passes the host's firewall.
    """
    require(
        when(bridge.ns != builder.topology.host, f"{safe(bridge.name)} isn't a bridge of the host"),
        when(
            on and _SYSCTLS["nf_call_iptables"] not in builder.snapshot.host.sysctls,
            "br_netfilter isn't loaded. Try: modprobe br_netfilter",
        ),
    )
    states = {_is_on(builder.topology, bridge, setting) for setting in _SYSCTLS}
    if states != {on}:
        (_switch_on if on else _switch_off)(builder, bridge)


def _switch_on(builder: PlanBuilder, bridge: Link) -> None:
    """Switch br_netfilter on for this bridge only."""
    for setting in _SYSCTLS:
        if not _is_on(builder.topology, bridge, setting):
            builder.add(SetBridge(bridge.name, setting, 1, 0))
    name = safe(bridge.name)
    builder.warn(f"packets between containers of {name} will pass the host's firewall and conntrack")
    warn_of_filters(builder, bridge.name, ())


def _switch_off(builder: PlanBuilder, bridge: Link) -> None:
    """Switch br_netfilter off for this bridge.

    The sysctl applies to all bridges: the others get a setting of their own first.
    """
    for setting, key in _SYSCTLS.items():
        if builder.snapshot.host.sysctls.get(key) == "1":
            others = [one for one in _other_bridges(builder, bridge) if not _own(one, setting)]
            builder.add(*(SetBridge(one.name, setting, 1, 0) for one in others))
            builder.add(SetSysctl(key, "0", "1"))
            _warn_of_sysctl(builder, key)
        if _own(bridge, setting):
            builder.add(SetBridge(bridge.name, setting, 0, 1))
    _warn_of_open_bridge(builder, bridge)


def _other_bridges(builder: PlanBuilder, bridge: Link) -> Iterator[Link]:
    for link in builder.host.links.values():
        if link.kind == "bridge" and link.key != bridge.key:
            yield link


def _warn_of_sysctl(builder: PlanBuilder, key: str) -> None:
    builder.warn(
        f"{key} applies to every bridge: existing ones keep passing the firewall by their own setting, new "
        "ones don't; Docker or Kubernetes may switch it on again when they start"
    )


def _warn_of_open_bridge(builder: PlanBuilder, bridge: Link) -> None:
    name = safe(bridge.name)
    builder.warn(
        f"the host's firewall no longer sees packets between containers of {name}: FORWARD rules, "
        "DOCKER-USER, Docker's isolation (icc=false) and Kubernetes network policies don't apply to them, "
        "and conntrack doesn't track them"
    )
    builder.warn(
        f"containers of {name} may no longer reach published ports or service addresses of {name}: the "
        "answers bypass NAT"
    )
    for text in _isolation_rules(builder, bridge):
        builder.warn(f"this rule stops working: {text}")


def _isolation_rules(builder: PlanBuilder, bridge: Link) -> Iterator[str]:
    """Yield the rules that isolate the bridge's containers from each other."""
    firewall = builder.snapshot.firewalls.get(builder.topology.host)
    found = [
        rule
        for rule in (firewall.rules if firewall else ())
        if rule.iif == rule.oif == bridge.name and rule.verdict in ("drop", "reject")
    ]
    for rule in found[:_MOST_RULES]:
        yield f"{safe(rule.chain)}: {safe(rule.text)}"
    if len(found) > _MOST_RULES:
        yield f"and {len(found) - _MOST_RULES} more such rules"


# Bytes: accepted by every link (GSO_LEGACY_MAX_SIZE of linux/netdevice.h), the default for BIG TCP, and the
# kernel's limit (GSO_MAX_SIZE).
PLAIN_SIZE, USUAL_SIZE, LARGEST_SIZE = 65536, 262144, 524280
# Names in ip-link(8), in the order that the kernel needs, and their fields of PacketSizes.
_SIZE_FIELDS = {
    "gso_max_size": "gso",
    "gro_max_size": "gro",
    "gso_ipv4_max_size": "gso_ipv4",
    "gro_ipv4_max_size": "gro_ipv4",
}


def supports_big_tcp(link: Link) -> bool:
    """Return whether the device allows packets larger than PLAIN_SIZE."""
    return link.sizes.tso > PLAIN_SIZE


def sizes_of(link: Link) -> tuple[tuple[str, int], ...]:
    """Return the link's sizes by their names in ip-link(8).

    Those of IPv4 exist since Linux 6.3.
    """
    sizes = ((name, getattr(link.sizes, field)) for name, field in _SIZE_FIELDS.items())
    return tuple((name, size) for name, size in sizes if size)


def resize(link: Link, size: int, place: NetnsTarget) -> Iterator[SetSizes]:
    """Yield the operation that sets this size, limited by the device, if it differs."""
    before = sizes_of(link)
    after = tuple((name, min(size, max(PLAIN_SIZE, link.sizes.tso))) for name, _ in before)
    if after != before:
        yield SetSizes(link.name, after, before, place)
