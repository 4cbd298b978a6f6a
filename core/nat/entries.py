"""All entries of a snapshot: what translates, with its helpers folded behind it, and what filters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

from core.model import Firewall, NatEntry, Network, Snapshot
from core.nat.filters import filter_drafts
from core.nat.owners import Owners
from core.nat.paths import placed_rules
from core.nat.raw_entries import RawEntry, fold_helpers
from core.nat.translations import inward_drafts, outward_drafts

KINDS = ("published port", "dnat", "redirect", "masquerade", "snat", "filter")


def nat_entries(snapshot: Snapshot, networks: Sequence[Network]) -> tuple[NatEntry, ...]:
    """Every translation and forward filter of every namespace, by namespace, kind and place in the rules.

    Rules that do the same are one entry; a hairpin masquerade or an accept that belongs to a published port
    stands behind it. Rules that only jump, return, count or mark are no entries."""
    ties = Owners(snapshot, networks)
    return tuple(chain.from_iterable(_entries(firewall, ties) for firewall in snapshot.firewalls.values()))


def _entries(firewall: Firewall, ties: Owners) -> Iterable[NatEntry]:
    placed = placed_rules(firewall)
    inward = _merged(inward_drafts(firewall.ns, placed, ties))
    folded = fold_helpers(placed, inward)
    rest = [one for one in placed if one.rule.rule_id not in folded]
    outward = _merged(outward_drafts(firewall.ns, rest, ties))
    drafts = [*inward, *outward, *filter_drafts(firewall.ns, rest, ties)]
    drafts.sort(key=lambda draft: KINDS.index(draft.kind))
    return (draft.entry(firewall.ns) for draft in drafts)


def _merged(drafts: Iterable[RawEntry]) -> list[RawEntry]:
    """Drafts that say the same put together."""
    found: dict[tuple[str, ...], RawEntry] = {}
    for draft in drafts:
        known = found.setdefault(draft.same, draft)
        if known is not draft:
            known.take_in(draft)
    return list(found.values())
