"""Find the two ends of each veth or netkit pair, also across namespaces."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from core.model import Link, LinkKey, NetState

PAIR_KINDS = frozenset({"veth", "netkit"})


def resolve(nets: Mapping[int, NetState]) -> dict[LinkKey, LinkKey]:
    """Map each end of a pair to its peer, if both are in `nets`.

    An end names its peer by ifindex and namespace id, which the namespace's `nsids` map to an inode. If an id
    isn't mapped, the peer is the only end anywhere that names this one's ifindex in turn; if there are
    several, none is chosen.
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
    """Return the peer that an end names, if it exists and names that end in turn."""
    net = nets.get(_peer_ns(end, nets) or 0)
    peer = net.links.get(end.lower) if net and end.lower else None
    return peer if peer and peer.kind == end.kind and peer.lower == end.ifindex else None


def _peer_ns(end: Link, nets: Mapping[int, NetState]) -> int | None:
    """Return the namespace of an end's peer, None if unknown."""
    return end.ns if end.lower_nsid is None else nets[end.ns].nsids.get(end.lower_nsid)


def _match_rest(ends: Iterable[Link], nets: Mapping[int, NetState], found: dict[LinkKey, LinkKey]) -> None:
    """Pair ends with an unmapped namespace id if their ifindexes allow only one match."""
    unmapped = [end for end in ends if end.lower and _peer_ns(end, nets) is None]
    by_indexes: defaultdict[tuple[int, int | None], list[Link]] = defaultdict(list)
    for end in unmapped:
        by_indexes[end.ifindex, end.lower].append(end)
    for end in unmapped:
        peers = [peer for peer in by_indexes.get((end.lower or 0, end.ifindex), ()) if _can_pair(end, peer)]
        ends_back = [
            other for other in by_indexes[end.ifindex, end.lower] if peers and _can_pair(peers[0], other)
        ]
        if len(peers) == 1 and len(ends_back) == 1:
            found[end.key] = peers[0].key


def _can_pair(end: Link, other: Link) -> bool:
    return end.ns != other.ns and end.kind == other.kind
