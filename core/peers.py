"""Which two links are the ends of one pair, also where they lie in different namespaces."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from core.model import Link, LinkKey, NetState

PAIR_KINDS = frozenset({"veth", "netkit"})


def resolve(nets: Mapping[int, NetState]) -> dict[LinkKey, LinkKey]:
    """For each end of a pair the other end, both ways; ends whose other end is not in `nets` are left out.

    An end names its peer by ifindex and by a namespace id, which the namespace's `nsids` translate. Where an
    id is not translated, the peer is the one end anywhere that names this one's ifindex in turn; where there
    are several such, nothing is guessed.
    """
    ends = [link for net in nets.values() for link in net.links.values() if link.kind in PAIR_KINDS]
    found: dict[LinkKey, LinkKey] = {}
    for end in ends:
        peer = _named_peer(end, nets)
        if peer:
            found[end.key], found[peer.key] = peer.key, end.key
    _match_rest([end for end in ends if end.key not in found], nets, found)
    return found


def _named_peer(end: Link, nets: Mapping[int, NetState]) -> Link | None:
    """The peer that an end names, if it is there and names that end's ifindex back."""
    net = nets.get(_peer_ns(end, nets) or 0)
    peer = net.links.get(end.lower) if net and end.lower else None
    return peer if peer and peer.kind == end.kind and peer.lower == end.ifindex else None


def _peer_ns(end: Link, nets: Mapping[int, NetState]) -> int | None:
    """The namespace of an end's peer, None where it is not known."""
    return end.ns if end.lower_nsid is None else nets[end.ns].nsids.get(end.lower_nsid)


def _match_rest(ends: Iterable[Link], nets: Mapping[int, NetState], found: dict[LinkKey, LinkKey]) -> None:
    """Pair the ends whose namespace id nobody translates, where the ifindexes leave one possibility."""
    lost = [end for end in ends if end.lower and _peer_ns(end, nets) is None]
    by_indexes: defaultdict[tuple[int, int | None], list[Link]] = defaultdict(list)
    for end in lost:
        by_indexes[end.ifindex, end.lower].append(end)
    for end in lost:
        there = [peer for peer in by_indexes.get((end.lower or 0, end.ifindex), ()) if _may_pair(end, peer)]
        here = [peer for peer in by_indexes[end.ifindex, end.lower] if there and _may_pair(there[0], peer)]
        if len(there) == 1 and len(here) == 1:
            found[end.key] = there[0].key


def _may_pair(end: Link, other: Link) -> bool:
    return end.ns != other.ns and end.kind == other.kind
