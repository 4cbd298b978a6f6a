"""Compare base chains, the order of rules, and the elements of maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from core.diff.changelist import MANY, ChangeList, Topic, in_both, missing_in
from core.model import Chain, Firewall, FirewallRule, namespace_ref


def compare_base_chains(log: ChangeList) -> None:
    """Report base chains that came, went or have another hook or priority."""
    for ns, old, new in in_both(log.old.snapshot.firewalls, log.new.snapshot.firewalls):
        where = log.label(ns)
        before, after = ({_chain_key(one): one for one in each.chains if one.hook} for each in (old, new))
        for key, chain in before.items():
            if key not in after:
                sentence = f"chain {key} ({_hook(chain)}) is gone from {where}"
                log.add("removed", namespace_ref(ns), sentence, Topic.FIREWALL, 1)
            elif _place(chain) != _place(after[key]):
                change = f"from {_place(chain)} to {_place(after[key])}"
                log.add(
                    "changed", namespace_ref(ns), f"chain {key} in {where} moved {change}", Topic.FIREWALL
                )
        for key in missing_in(before, after):
            sentence = f"chain {key} ({_hook(after[key])}) was added to {where}"
            weight = 0 if after[key].policy == "drop" else 2
            log.add("added", namespace_ref(ns), sentence, Topic.FIREWALL, weight)


def _chain_key(chain: Chain | FirewallRule) -> str:
    name = chain.name if isinstance(chain, Chain) else chain.chain
    return f"{chain.backend} {chain.family} {chain.table} {name}"


def _place(chain: Chain) -> str:
    return f"{chain.kind} hook {chain.hook} priority {chain.priority}".strip()


def _hook(chain: Chain) -> str:
    return f"{_place(chain)}{f' policy {chain.policy}' if chain.policy else ''}"


def compare_rule_order(log: ChangeList) -> None:
    """Report chains with rules in another order, and maps with other elements."""
    for ns, old, new in in_both(log.old.snapshot.firewalls, log.new.snapshot.firewalls):
        before, after = _by_chain(old), _by_chain(new)
        for key in before.keys() & after.keys():
            common = Counter(rule.text for rule in before[key]) & Counter(rule.text for rule in after[key])
            ours, theirs = _only(before[key], common), _only(after[key], common)
            pairs = list(zip(ours, theirs, strict=True))
            swap = next(((was, now) for was, now in pairs if was.text != now.text), None)
            if swap is not None:
                sentence = (
                    f"the rules of {key} in {log.label(ns)} are in another order: "
                    f"{swap[1].text} now comes before {swap[0].text}"
                )
                log.add("changed", namespace_ref(ns), sentence, Topic.FIREWALL)
            else:
                for was, now in pairs:
                    _compare_maps(log, ns, key, was, now)


def _by_chain(firewall: Firewall) -> dict[str, list[FirewallRule]]:
    groups: dict[str, list[FirewallRule]] = {}
    for rule in firewall.rules:
        groups.setdefault(_chain_key(rule), []).append(rule)
    return groups


def _only(rules: Iterable[FirewallRule], texts: Counter[str]) -> list[FirewallRule]:
    """Return the rules with these texts, each as often as it is counted."""
    left, found = Counter(texts), []
    for rule in rules:
        if left[rule.text] > 0:
            left[rule.text] -= 1
            found.append(rule)
    return found


def _compare_maps(log: ChangeList, ns: int, chain: str, old: FirewallRule, new: FirewallRule) -> None:
    before, after = (
        {*map(_map_text, rule.translations), *(f"{one.value} : {_verdict(one)}" for one in rule.choices)}
        for rule in (old, new)
    )
    if before != after:
        parts = [f"{sign}{text}" for sign, texts in (("-", before - after), ("+", after - before))
                 for text in sorted(texts)]  # fmt: skip
        sentence = f"elements of {old.text} in {chain} of {log.label(ns)} changed: {', '.join(parts)}"
        topic = Topic.NAT if new.translations else Topic.FIREWALL
        log.add("changed", namespace_ref(ns), sentence, topic)


def _map_text(one: Any) -> str:
    left = " ".join(filter(None, (one.l4_proto, one.src, one.dst, one.sport, one.dport)))
    return f"{left} : {one.to_address}{f':{one.to_port}' if one.to_port else ''}"


def _verdict(one: Any) -> str:
    return f"{one.verdict} {one.target}".strip()


def compare_sets(log: ChangeList) -> None:
    """Report sets and maps of nftables with other elements."""
    for ns, old, new in in_both(log.old.snapshot.firewalls, log.new.snapshot.firewalls):
        for name in new.sets:
            before, after = set(old.sets.get(name, new.sets[name])), set(new.sets[name])
            if before == after:
                continue
            removed, added = before - after, after - before
            words = [f"-{text}" for text in sorted(removed)] + [f"+{text}" for text in sorted(added)]
            if len(words) >= MANY:
                words = [f"{len(removed)} removed", f"{len(added)} added"]
            sentence = f"elements of set {name} in {log.label(ns)} changed: {', '.join(words)}"
            log.add("changed", namespace_ref(ns), sentence, Topic.FIREWALL, 1)
