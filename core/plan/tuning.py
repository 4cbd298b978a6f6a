"""Plans that tune a bridge with all that hangs on it: BIG TCP, offloads, br_netfilter, RPS and
Docker's DNS in its containers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from core.model import Address, Link, LinkTuning
from core.ops import Place, SetOffloads, SetSteering
from core.plan import bridged, cpus, untracked
from core.plan.base import Refusal, require, when
from core.plan.dispatch import draft_steps
from core.plan.draft import Draft
from core.plan.lifelines import is_lifeline
from core.plan.requests import Tune
from core.plan.sizes import LARGEST_SIZE, PLAIN_SIZE, can_grow, resize, sizes_of
from core.text import safe
from core.topology import Topology

_NONE = LinkTuning()


@dataclass(frozen=True, slots=True)
class Tuned:
    """How a bridge and what hangs on it is tuned: None where the links differ, or the kernel does not tell;
    `rps` is "off" or a mask."""

    big_tcp: int | None = None
    offloads: bool | None = None
    br_netfilter: bool = False
    rps: str | None = None
    no_track_dns: bool | None = None


def tuned(topology: Topology, bridge: Link) -> Tuned:
    """How it is tuned now; of offloads and RPS a snapshot without its part "tuning" does not tell."""
    ends = _ends(topology, bridge)
    sizes = {size for link in (bridge, *ends) if can_grow(link) for _, size in sizes_of(link)}
    offloads = {on for link in ends if _is_virtual(link) for _, on in _offloads_of(topology, link)}
    steering = {one for link in ends for one in _tuning(topology, link).rps_cpus}
    untracking = set(untracked.states(topology, bridge))
    return Tuned(
        sizes.pop() if len(sizes) == 1 else None,
        offloads.pop() if len(offloads) == 1 else None,
        bridged.passes_firewall(topology, bridge),
        _rps_word(steering.pop()) if len(steering) == 1 else None,
        untracking.pop() if len(untracking) == 1 else None,
    )


def _rps_word(mask: str) -> str:
    return mask if cpus.mask(mask) else "off"


@draft_steps.register
def _(request: Tune, draft: Draft) -> str:
    bridge = draft.snapshot.link(request.key)
    require(
        when(bridge is None, "that bridge is gone"),
        when(bridge and bridge.kind != "bridge", f"{safe(bridge.name) if bridge else ''} is no bridge"),
    )
    assert bridge
    before = len(draft.steps)
    if request.br_netfilter is not None:
        bridged.switch(draft, bridge, request.br_netfilter)
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


def _place(draft: Draft, link: Link) -> Place | None:
    """Where it is; a link that nothing can reach stays as it is, which is said."""
    try:
        return draft.place_of(link.ns)
    except Refusal as refusal:
        draft.warn(f"{safe(link.name)} stays as it is: {'; '.join(refusal.reasons)}")
        return None


def _tuning(topology: Topology, link: Link) -> LinkTuning:
    return topology.snapshot.tuning.get(link.ns, {}).get(link.ifindex, _NONE)


def _is_virtual(link: Link) -> bool:
    """Whether it is no card: those may lose their link for seconds when their offloads change."""
    return link.kind != "physical"


# ---- BIG TCP


def _grow(links: Iterable[tuple[Link, Place]], wanted: int, draft: Draft) -> None:
    require(_why_no_size(wanted))
    links = list(links)
    if not any(link.sizes.tso for link, _ in links):
        raise Refusal(["this kernel lets nobody set the size of the largest packets: Linux 5.19 does"])
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


def _warn_of_sizes(wanted: int, draft: Draft) -> None:
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


def _switch_offloads(links: Iterable[tuple[Link, Place]], on: bool, draft: Draft) -> None:
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
        raise Refusal(["no offload can be switched here: no port of the bridge has any, or none is told of"])
    if not on:
        draft.warn("without offloads every packet is cut up and summed by the CPU: bulk traffic gets slower")


# ---- RPS


def _steer(links: Iterable[tuple[Link, Place]], text: str, draft: Draft) -> None:
    wanted = _wanted_cpus(text, draft)
    told = False
    for link, place in links:
        for queue, held in enumerate(_tuning(draft.topology, link).rps_cpus):
            told = True
            if cpus.mask(held) != wanted:
                draft.do(SetSteering(link.name, queue, cpus.written(wanted), held, place))
    if not told:
        raise Refusal(
            ["RPS is not told of here: the bridge has no ports, the kernel no RPS, or sysfs is shut"]
        )
    if wanted:
        draft.warn("RPS spreads flows over CPUs, at a small cost for each packet; one flow stays on one CPU")


def _wanted_cpus(text: str, draft: Draft) -> int:
    """The CPUs that are meant, a bit for each. Raises Refusal."""
    there = cpus.listed(draft.snapshot.host.cpus)
    if text in ("all", "off"):
        return there if text == "all" else 0
    wanted = cpus.mask(text)
    if wanted is None:
        raise Refusal([f'"{safe(text)}" is no mask of CPUs: write all, off, or hexadecimal digits like f'])
    require(when(wanted & ~there, f"{safe(text)} names CPUs that are not there: {cpus.written(there)} are"))
    return wanted
