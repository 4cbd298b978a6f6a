"""Plans that tune a bridge with all that hangs on it: BIG TCP, offloads, br_netfilter, RPS and
Docker's DNS in its containers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from core.model import Address, Link, LinkTuning
from core.operations import NetnsTarget, SetBridge, SetOffloads, SetSizes, SetSteering, SetSysctl
from core.plan import untracked
from core.plan.builder import CannotPlan, PlanBuilder, draft_steps, require, when
from core.plan.connectivity import is_lifeline, warn_of_filters
from core.plan.requests import Tune
from core.text import safe
from core.topology import Topology

_NONE = LinkTuning()


@dataclass(frozen=True, slots=True)
class TuningState:
    """How a bridge and what hangs on it is tuned: None where the links differ, or the kernel does not tell;
    `rps` is "off" or a mask."""

    big_tcp: int | None = None
    offloads: bool | None = None
    br_netfilter: bool = False
    rps: str | None = None
    no_track_dns: bool | None = None


def tuned(topology: Topology, bridge: Link) -> TuningState:
    """How it is tuned now; of offloads and RPS a snapshot without its part "tuning" does not tell."""
    ends = _ends(topology, bridge)
    sizes = {size for link in (bridge, *ends) if can_grow(link) for _, size in sizes_of(link)}
    offloads = {on for link in ends if _is_virtual(link) for _, on in _offloads_of(topology, link)}
    steering = {one for link in ends for one in _tuning(topology, link).rps_cpus}
    untracking = set(untracked.states(topology, bridge))
    return TuningState(
        sizes.pop() if len(sizes) == 1 else None,
        offloads.pop() if len(offloads) == 1 else None,
        passes_firewall(topology, bridge),
        _rps_word(steering.pop()) if len(steering) == 1 else None,
        untracking.pop() if len(untracking) == 1 else None,
    )


def _rps_word(mask: str) -> str:
    return mask if cpus_of_mask(mask) else "off"


@draft_steps.register
def _(request: Tune, draft: PlanBuilder) -> str:
    bridge = draft.snapshot.link(request.key)
    require(
        when(bridge is None, "that bridge is gone"),
        when(bridge and bridge.kind != "bridge", f"{safe(bridge.name) if bridge else ''} is no bridge"),
    )
    assert bridge
    before = len(draft.steps)
    if request.br_netfilter is not None:
        switch(draft, bridge, request.br_netfilter)
    ends = [(link, place) for link in _ends(draft.topology, bridge) if (place := _place(draft, link))]
    if request.big_tcp is not None:
        _grow([(bridge, draft.place_of(bridge.ns)), *ends], request.big_tcp, draft)
    if request.offloads is not None:
        _switch_offloads(ends, request.offloads, draft)
    if request.rps is not None:
        _steer(ends, request.rps, draft)
    if request.no_track_dns is not None:
        untracked.switch(draft, bridge, request.no_track_dns, request.only)
    require(when(len(draft.steps) == before, f"{safe(bridge.name)} and what hangs on it is so already"))
    draft.guarded |= is_lifeline(bridge.key, draft)
    return f"tune {safe(bridge.name)}: {', '.join(_words(request))}"


def _words(request: Tune) -> Iterator[str]:
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
        yield f"Docker's DNS {'without' if request.no_track_dns else 'with'} conntrack in {_whom(request)}"


def _whom(request: Tune) -> str:
    return ", ".join(map(safe, request.only)) or "its containers"


# ---- what hangs on a bridge


def _ends(topology: Topology, bridge: Link) -> tuple[Link, ...]:
    """The bridge's ports and their other ends."""
    ports = topology.ports_of(bridge.key)
    peers = [peer for port in ports if (peer := topology.peer(port))]
    return tuple({link.key: link for link in (*ports, *peers)}.values())


def _place(draft: PlanBuilder, link: Link) -> NetnsTarget | None:
    """Where it is; a link that nothing can reach stays as it is, which is said."""
    try:
        return draft.place_of(link.ns)
    except CannotPlan as refusal:
        draft.warn(f"{safe(link.name)} stays as it is: {'; '.join(refusal.reasons)}")
        return None


def _tuning(topology: Topology, link: Link) -> LinkTuning:
    return topology.snapshot.tuning.get(link.ns, {}).get(link.ifindex, _NONE)


def _is_virtual(link: Link) -> bool:
    """Whether it is no card: those may lose their link for seconds when their offloads change."""
    return link.kind != "physical"


# ---- BIG TCP


def _grow(links: Iterable[tuple[Link, NetnsTarget]], wanted: int, draft: PlanBuilder) -> None:
    require(_why_no_size(wanted))
    links = list(links)
    if not any(link.sizes.tso for link, _ in links):
        raise CannotPlan(["this kernel lets nobody set the size of the largest packets: Linux 5.19 does"])
    if wanted > PLAIN_SIZE and not any(link.sizes.gso_ipv4 for link, _ in links):
        draft.warn("this kernel has BIG TCP for IPv6 alone: for IPv4 it takes Linux 6.3")
    before = len(draft.steps)
    for link, place in links:
        most = max(PLAIN_SIZE, link.sizes.tso)
        if most < wanted:
            draft.warn(f"{safe(link.name)} in {place} allows no more than {most} bytes")
        draft.do(*resize(link, wanted, place))
    if len(draft.steps) > before:
        _warn_of_sizes(wanted, draft)
        if wanted > PLAIN_SIZE and any(_is_routed_ipv6(one) for link, _ in links for one in link.addresses):
            draft.warn(
                "IPv6 that leaves the bridge may nearly stop: up to Linux 6.18 the kernel refuses to route "
                "packets of more than 64 KiB, unless the containers' MTU is 8 bytes below that of the way on"
            )


def _warn_of_sizes(wanted: int, draft: PlanBuilder) -> None:
    draft.warn("connections that are there keep their size: those that begin from now on use the new one")
    if wanted > PLAIN_SIZE:
        draft.warn(
            "captures on these links show packets of more than 64 KiB, with a length of 0 in the IPv4 "
            "header; what leaves by a card is cut up as before"
        )
        draft.warn("containers attached later keep the usual sizes until this is done again")


def _is_routed_ipv6(address: Address) -> bool:
    return address.family == 6 and not address.address.startswith("fe80:")


def _why_no_size(wanted: int) -> str:
    if PLAIN_SIZE <= wanted <= LARGEST_SIZE:
        return ""
    return f"packets of {wanted} bytes: write {PLAIN_SIZE} (no BIG TCP) to {LARGEST_SIZE}"


# ---- offloads


def _is_offload(feature: str) -> bool:
    """Whether it belongs to what ethtool(8) calls tx, tso, gso or gro."""
    return feature in ("tx-generic-segmentation", "rx-gro") or feature.startswith(("tx-checksum-", "tx-tcp"))


def _offloads_of(topology: Topology, link: Link) -> list[tuple[str, bool]]:
    """Those that can be switched, and whether each is wanted on."""
    tuning = _tuning(topology, link)
    return [(name, name in tuning.wanted) for name in tuning.changeable if _is_offload(name)]


def _switch_offloads(links: Iterable[tuple[Link, NetnsTarget]], on: bool, draft: PlanBuilder) -> None:
    told = False
    for link, place in links:
        if not _is_virtual(link):
            draft.warn(f"{safe(link.name)} is a card and keeps its own offloads: ethtool -K changes them")
            continue
        held = _offloads_of(draft.topology, link)
        told = told or bool(held)
        features = tuple((name, on) for name, wanted in held if wanted != on)
        if features:
            draft.do(SetOffloads(link.name, features, tuple((name, not on) for name, _ in features), place))
    if not told:
        raise CannotPlan(
            ["no offload can be switched here: no port of the bridge has any, or none is told of"]
        )
    if not on:
        draft.warn("without offloads every packet is cut up and summed by the CPU: bulk traffic gets slower")


# ---- RPS


def _steer(links: Iterable[tuple[Link, NetnsTarget]], text: str, draft: PlanBuilder) -> None:
    wanted = _wanted_cpus(text, draft)
    told = False
    for link, place in links:
        for queue, held in enumerate(_tuning(draft.topology, link).rps_cpus):
            told = True
            if cpus_of_mask(held) != wanted:
                draft.do(SetSteering(link.name, queue, mask_of_cpus(wanted), held, place))
    if not told:
        raise CannotPlan(
            ["RPS is not told of here: the bridge has no ports, the kernel no RPS, or sysfs is shut"]
        )
    if wanted:
        draft.warn("RPS spreads flows over CPUs, at a small cost for each packet; one flow stays on one CPU")


def _wanted_cpus(text: str, draft: PlanBuilder) -> int:
    """The CPUs that are meant, a bit for each. Raises Refusal."""
    there = cpus_of_list(draft.snapshot.host.cpus)
    if text in ("all", "off"):
        return there if text == "all" else 0
    wanted = cpus_of_mask(text)
    if wanted is None:
        raise CannotPlan([f'"{safe(text)}" is no mask of CPUs: write all, off, or hexadecimal digits like f'])
    require(when(wanted & ~there, f"{safe(text)} names CPUs that are not there: {mask_of_cpus(there)} are"))
    return wanted


_GROUP = 32  # bits between two commas
_MASK = re.compile(r"(?:0x)?[0-9a-fA-F]+(?:,[0-9a-fA-F]{8})*\Z")


def cpus_of_list(text: str) -> int:
    """The CPUs of a list such as "0-3,8", a bit for each."""
    found = 0
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        for cpu in range(int(first), int(last or first) + 1):
            found |= 1 << cpu
    return found


def cpus_of_mask(text: str) -> int | None:
    """The CPUs of a hexadecimal mask such as "f", "0xf" or "1,00000000"; None where it is none."""
    return int(text.replace(",", ""), 16) if _MASK.match(text) else None


def mask_of_cpus(cpus: int) -> str:
    """The mask of these CPUs as the kernel takes it."""
    groups = []
    while cpus >> _GROUP:
        groups.append(f"{cpus & (1 << _GROUP) - 1:08x}")
        cpus >>= _GROUP
    return ",".join([f"{cpus:x}", *reversed(groups)])


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


def switch(draft: PlanBuilder, bridge: Link, on: bool) -> None:
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


def _switch_on(draft: PlanBuilder, bridge: Link) -> None:
    """For this bridge alone."""
    for setting in _SYSCTLS:
        if not _is_on(draft.topology, bridge, setting):
            draft.do(SetBridge(bridge.name, setting, 1, 0))
    name = safe(bridge.name)
    draft.warn(f"packets between containers of {name} pass the host's firewall and conntrack from now on")
    warn_of_filters(draft, bridge.name, ())


def _switch_off(draft: PlanBuilder, bridge: Link) -> None:
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


def _others(draft: PlanBuilder, bridge: Link) -> Iterator[Link]:
    for link in draft.host.links.values():
        if link.kind == "bridge" and link.key != bridge.key:
            yield link


def _warn_of_sysctl(draft: PlanBuilder, key: str) -> None:
    draft.warn(
        f"{key} is about every bridge: those that are there keep passing the firewall by a setting of their "
        "own, those made later do not; Docker or Kubernetes may switch it on again when they start"
    )


def _warn_of_open_bridge(draft: PlanBuilder, bridge: Link) -> None:
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


def _without_effect(draft: PlanBuilder, bridge: Link) -> Iterator[str]:
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


# Bytes: what every link takes, what is taken where no size is given, and the kernel's own limit
# (GSO_LEGACY_MAX_SIZE and GSO_MAX_SIZE of linux/netdevice.h).
PLAIN_SIZE, USUAL_SIZE, LARGEST_SIZE = 65536, 262144, 524280
# ip-link(8)'s words, in the order in which the kernel takes them, and the field of PacketSizes of each.
_WORDS = {
    "gso_max_size": "gso",
    "gro_max_size": "gro",
    "gso_ipv4_max_size": "gso_ipv4",
    "gro_ipv4_max_size": "gro_ipv4",
}


def can_grow(link: Link) -> bool:
    """Whether its device allows larger packets than every link does."""
    return link.sizes.tso > PLAIN_SIZE


def sizes_of(link: Link) -> tuple[tuple[str, int], ...]:
    """The sizes that the kernel tells, by ip-link(8)'s words: those of IPv4 are there since Linux 6.3."""
    every = ((word, getattr(link.sizes, field)) for word, field in _WORDS.items())
    return tuple((word, size) for word, size in every if size)


def resize(link: Link, size: int, place: NetnsTarget) -> Iterator[SetSizes]:
    """What gives a link this size, or the most that its device allows; nothing where it is so."""
    held = sizes_of(link)
    wanted = tuple((word, min(size, max(PLAIN_SIZE, link.sizes.tso))) for word, _ in held)
    if wanted != held:
        yield SetSizes(link.name, wanted, held, place)
