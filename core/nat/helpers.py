"""The rules that only help a published port: its hairpin masquerade, and the accept of what it lets in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from core.nat.draft import Draft
from core.nat.paths import PlacedRule

# What a helper does, the address and port it is for, and the protocol.
Key = tuple[str, str, str, str]


def fold_helpers(placed: Iterable[PlacedRule], drafts: Sequence[Draft]) -> frozenset[str]:
    """Put the helpers among these rules behind the published ports they belong to; returns their ids.

    Where several ports lead to one place, an engine makes a helper for each: they are dealt out in their
    order; a helper that there are fewer of than ports stands behind each of them."""
    groups: dict[Key, list[str]] = {}
    for one in placed:
        if key := _key(one):
            groups.setdefault(key, []).append(one.rule.rule_id)
    folded: set[str] = set()
    for key, rules in groups.items():
        helped = [draft for draft in drafts if _is_for(key, draft)]
        if helped:
            _deal(rules, helped)
            folded.update(rules)
    return frozenset(folded)


def _key(one: PlacedRule) -> Key | None:
    """What a rule is a helper for, None where it is none."""
    rule = one.effective
    address = rule.dst.removesuffix("/32" if ":" not in rule.dst else "/128")
    if not address or address.startswith("!") or not rule.dport:
        return None
    if rule.verdict == "masquerade" and rule.src == rule.dst:
        return ("hairpin", address, rule.dport, rule.l4_proto)
    if rule.verdict == "accept" and not rule.src and not rule.ct_state and "forward" in one.hooks:
        return ("accept", address, rule.dport, rule.l4_proto)
    return None


def _is_for(key: Key, draft: Draft) -> bool:
    _, address, port, l4_proto = key
    return draft.kind == "published port" and (draft.address, draft.port, draft.l4_proto) == (
        address,
        port,
        l4_proto,
    )


def _deal(rules: Sequence[str], drafts: Sequence[Draft]) -> None:
    for number, draft in enumerate(drafts):
        if len(rules) < len(drafts):
            draft.helping += rules
        else:
            draft.helping += rules[number :: len(drafts)]
