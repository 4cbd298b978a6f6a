"""Plans that have the kernel forget tracked connections."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from core.flows import Entry, address_text, entry_of, flow_of, sentence
from core.flows.words import TCP, end_text, protocol_name
from core.model import Ref
from core.ops import DeleteConnection
from core.plan.base import require, when
from core.plan.dispatch import draft_steps
from core.plan.draft import Draft
from core.plan.requests import DeleteFlow
from core.text import safe
from core.topology import Topology
from core.topology.ownership import names_in

_GRE = 47
_COARSE = (
    "conntrack(8) cannot tell GRE connections between the same two addresses apart: typed by hand, "
    "the command forgets all of them"
)
_FINAL = "a connection that is forgotten cannot be brought back: this has no undo"


def delete_flow(ns: int, entry: Entry, names: Mapping[bytes, str] = MappingProxyType({})) -> DeleteFlow:
    """The request to forget a conntrack entry of the namespace `ns`; `names` are core.flows.flow_of's."""
    flow = flow_of(entry, names)
    ends = (address_text(entry.orig_src), address_text(entry.orig_dst), entry.orig_sport, entry.orig_dport)
    said, translated = sentence(flow), bool(flow.snat or flow.dnat)
    return DeleteFlow(ns, entry.id, entry.l4_proto, *ends, entry.zone, said, translated)


def delete_flow_at(topology: Topology, ref: Ref) -> DeleteFlow | None:
    """The request to forget the entry that a reference points at; None where it is gone."""
    ns, entry_id = (int(part) for part in ref.key)
    table = topology.snapshot.conntracks.get(ns)
    places = np.flatnonzero(table.entries["id"] == entry_id).tolist() if table else []
    if table is None or not places:
        return None
    return delete_flow(ns, entry_of(table.entries[places[0]]), names_in(topology, ns))


@draft_steps.register
def _(request: DeleteFlow, draft: Draft) -> str:
    require(
        when(request.ns not in draft.snapshot.namespaces, "its namespace is gone, and the connection with it")
    )
    ends = (request.src, request.dst, request.l4_proto, request.sport, request.dport)
    draft.do(DeleteConnection(*ends, request.entry_id, draft.place_of(request.ns), request.zone))
    for words in _what_it_hits(request):
        draft.hit(words)
    draft.warn(_FINAL)
    if request.l4_proto == _GRE:
        draft.warn(_COARSE)
    return f"forget the connection {safe(request.sentence) or _told(request)}"


def _what_it_hits(request: DeleteFlow) -> list[str]:
    """What becomes of the packets that are still to come."""
    words = ["its next packet counts as a new connection and meets all rules again: one of them may drop it"]
    if request.translated:
        words.append(
            "it is translated: by then its port may be another one, and what is under way breaks off"
        )
    elif request.l4_proto == TCP:
        words.append("if it was established, it goes on only where the kernel takes up connections half-way")
    return words


def _told(request: DeleteFlow) -> str:
    ends = end_text(request.src, request.sport or None), end_text(request.dst, request.dport or None)
    return f"{' -> '.join(ends)} {protocol_name(request.l4_proto)}"


__all__ = ["delete_flow", "delete_flow_at"]
