"""Compare containers, networks, rules, conntrack, namespaces, storms and drops."""

from __future__ import annotations

from dataclasses import replace

from core.diagnose import guard_text, storm_text
from core.diagnose.drops import subject_of
from core.diff.changelist import MANY, ChangeList, Topic, in_both, missing_in
from core.model import (
    Conntrack,
    Container,
    Engine,
    Firewall,
    FirewallRule,
    Network,
    Problem,
    Ref,
    Snapshot,
    Storm,
    container_ref,
    link_ref,
    namespace_ref,
    network_ref,
)
from core.model.refs import LinkKey
from core.text import TABLE, UNTRACKED_TABLE

# Unmanaged containers are reported as namespaces.
_UNMANAGED = ("netns", "process")
_STATES = {"paused": "was paused", "created": "was created"}


def compare_containers(log: ChangeList) -> None:
    """Report containers that appeared, are gone, or changed their state or networks."""
    if log.old.snapshot.engines is log.new.snapshot.engines:
        return
    before, after = _containers(log.old.snapshot), _containers(log.new.snapshot)
    for uid, container in after.items():
        was = before.get(uid)
        ref = container_ref(container.runtime, container.id)
        if was is None:
            verb = "started" if container.state == "running" else f"appeared ({container.state})"
            log.add("added", ref, f"container {container.name} {verb}", Topic.CONTAINER)
        elif was is not container and was != container:
            for sentence in _differences(was, container):
                log.add("changed", ref, f"container {sentence}", Topic.CONTAINER)
    for uid, container in before.items():
        if uid not in after and _has_answered(log, container.runtime):
            ref = container_ref(container.runtime, container.id)
            log.add("removed", ref, f"container {container.name} is gone", Topic.CONTAINER)


def _containers(snapshot: Snapshot) -> dict[str, Container]:
    return {each.uid: each for each in snapshot.containers() if each.runtime not in _UNMANAGED}


def _has_answered(log: ChangeList, engine: str) -> bool:
    """Return whether the engine answered: otherwise its containers may still exist."""
    now = log.new.snapshot.engines.get(engine)
    return now is not None and now.state == "ok"


def _differences(old: Container, new: Container) -> list[str]:
    found = [f"{old.name} was renamed to {new.name}"] if old.name != new.name else []
    if old.state != new.state:
        found.append(f"{new.name} {_state_change(old.state, new.state)}")
    elif new.state == "running" and old.pid != new.pid:
        found.append(f"{new.name} was restarted")
    before = {end.network: end for end in old.endpoints}
    after = {end.network: end for end in new.endpoints}
    for name in missing_in(before, after):
        address = after[name].ipv4 or after[name].ipv6
        found.append(f"{new.name} joined the network {name}{f' with {address}' if address else ''}")
    found += [f"{new.name} left the network {name}" for name in missing_in(after, before)]
    return found


def _state_change(old: str, new: str) -> str:
    if new == "running":
        return "was resumed" if old == "paused" else "started"
    return _STATES.get(new, f"stopped ({new})")


def compare_networks(log: ChangeList) -> None:
    """Report networks created and removed, of engines that answered both times."""
    old, new = log.old.snapshot.engines, log.new.snapshot.engines
    for name, engine in new.items():
        was = old.get(name)
        if was is not None and was is not engine and was.state == engine.state == "ok":
            _compare_networks(log, was, engine)


def _compare_networks(log: ChangeList, old: Engine, new: Engine) -> None:
    before = {network.id: network for network in old.networks}
    after = {network.id: network for network in new.networks}
    for key in missing_in(before, after):
        sentence = f"network {_network_text(after[key])} was created"
        log.add("added", network_ref(key), sentence, Topic.NETWORK)
    for key in missing_in(after, before):
        sentence = f"network {_network_text(before[key])} was removed"
        log.add("removed", network_ref(key), sentence, Topic.NETWORK)


def _network_text(network: Network) -> str:
    return f"{network.name} ({', '.join([network.driver, *network.subnets])})"


_FAST_TABLE = "vnet_fastpath"  # inet, of nftables
_DOCKER_DNS = "127.0.0.11"


def compare_rules(log: ChangeList) -> None:
    """Report rules added, removed and changed, chain by chain, and changed policies."""
    for ns, old, new in in_both(log.old.snapshot.firewalls, log.new.snapshot.firewalls):
        before, after = _without_same(_by_id(old), _by_id(new))
        removed = _without_fast_path(log, ns, before, after, "removed")
        added = _without_fast_path(log, ns, after, before, "added")
        rewritten = [key for key, rule in after.items() if key in before and rule.table == TABLE]
        removed += [before[key] for key in rewritten]
        added += [after[key] for key in rewritten]
        removed, added = _without_own(log, ns, removed, added)
        removed, added = _without_untracking(log, ns, removed, added)
        _compare_chains(log, ns, "removed", removed, "is gone from", "are gone from")
        _compare_chains(log, ns, "added", added, "was added to", "were added to")
        for key, rule in after.items():
            if key in before and rule.table not in (TABLE, _FAST_TABLE):
                change = f"in {_chain(rule)} of {log.label(ns)} changed to: {rule.text}"
                sentence = f"rule {before[key].text} {change}"
                log.add("changed", namespace_ref(ns), sentence, _topic(rule))
        _compare_policies(log, ns, old, new)


def _is_fast_path(rule: FirewallRule) -> bool:
    """Return whether the fast path created the rule."""
    return (rule.backend, rule.family, rule.table) == ("nft", "inet", _FAST_TABLE)


def _without_fast_path(
    log: ChangeList, ns: int, rules: dict[str, FirewallRule], others: dict[str, FirewallRule], action: str
) -> list[FirewallRule]:
    """Return the rules that aren't in others, except the fast path's.

    One sentence reports that its table was added or removed; rules that it rewrites aren't reported."""
    differing = [rule for key, rule in rules.items() if key not in others]
    has_fast_path = any(map(_is_fast_path, differing))
    if has_fast_path and not any(map(_is_fast_path, others.values())):
        verb, change = ("started", "was added") if action == "added" else ("stopped", "is gone")
        sentence = f"the fast path {verb} in {log.label(ns)}: its table {_FAST_TABLE} {change}"
        log.add(action, namespace_ref(ns), sentence)
    return [rule for rule in differing if not _is_fast_path(rule)] if has_fast_path else differing


def _by_id(firewall: Firewall) -> dict[str, FirewallRule]:
    return {rule.rule_id: rule for rule in firewall.rules}


def _without_same(
    before: dict[str, FirewallRule], after: dict[str, FirewallRule]
) -> tuple[dict[str, FirewallRule], dict[str, FirewallRule]]:
    """Remove the rules from both that have the same text in the same chain.

    The fast path's stay: callers need to know whether there are any."""
    by_text: dict[tuple[str, str], list[str]] = {}
    for key, rule in before.items():
        if not _is_fast_path(rule):
            by_text.setdefault((_chain(rule), rule.text), []).append(key)
    same_before: set[str] = set()
    same_after: set[str] = set()
    for key, rule in after.items():
        candidates = by_text.get((_chain(rule), rule.text))
        if candidates:
            # The rule with the same handle is preferred.
            match = key if key in candidates else candidates[0]
            candidates.remove(match)
            same_before.add(match)
            same_after.add(key)
    return _without(before, same_before), _without(after, same_after)


def _without(rules: dict[str, FirewallRule], keys: set[str]) -> dict[str, FirewallRule]:
    return {key: rule for key, rule in rules.items() if key not in keys}


def _without_own(
    log: ChangeList, ns: int, removed: list[FirewallRule], added: list[FirewallRule]
) -> tuple[list[FirewallRule], list[FirewallRule]]:
    """Remove vnet's own rules, and report what they change instead."""
    own = [[rule for rule in rules if rule.table == TABLE] for rules in (removed, added)]
    ports = [{_port(rule) for rule in rules} - {""} for rules in own]
    unpublished, published = ports[0] - ports[1], ports[1] - ports[0]
    reports = (("removed", unpublished, "is no longer published"), ("added", published, "is published"))
    for action, names, text in reports:
        for name in sorted(names):
            sentence = f"port {name} of {log.label(ns)} {text} by vnet-tui"
            log.add(action, namespace_ref(ns), sentence, Topic.NAT)
    fewer, more = (sum(not _port(rule) for rule in rules) for rules in own)
    if (fewer or more) and not unpublished | published:
        sentence = f"vnet-tui's own rules in {log.label(ns)} were updated: {more} added, {fewer} removed"
        log.add("changed", namespace_ref(ns), sentence, Topic.FIREWALL)
    others = [[rule for rule in rules if rule.table != TABLE] for rules in (removed, added)]
    return others[0], others[1]


def _without_untracking(
    log: ChangeList, ns: int, removed: list[FirewallRule], added: list[FirewallRule]
) -> tuple[list[FirewallRule], list[FirewallRule]]:
    """Remove the rules of `vnet-tui tune` in containers, and report their effect."""
    was_untracked, is_untracked = (
        any(rule.table == UNTRACKED_TABLE for rule in rules) for rules in (removed, added)
    )
    if was_untracked != is_untracked:
        verb, again = ("no longer tracks", "") if is_untracked else ("tracks", " again")
        sentence = f"conntrack {verb} connections of {log.label(ns)}{again}"
        log.add("added" if is_untracked else "removed", namespace_ref(ns), sentence, Topic.FIREWALL)
    # Docker's DNS rules, which the untracking rules replace.
    dns = (_DOCKER_DNS,) if was_untracked != is_untracked else ()
    others = [
        [
            rule for rule in rules
            if rule.table != UNTRACKED_TABLE and not (rule.src in dns or rule.dst in dns)
        ]
        for rules in (removed, added)
    ]  # fmt: skip
    return others[0], others[1]


def _port(rule: FirewallRule) -> str:
    """Return the published port ("tcp/8080") of a rule of vnet, "" for another rule."""
    words = rule.comment.split()
    return words[2] if words[:2] == [TABLE, "publish"] and len(words) > 2 else ""


def _chain(rule: FirewallRule) -> str:
    return f"{rule.backend} {rule.family} {rule.table} {rule.chain}"


def _compare_chains(
    log: ChangeList, ns: int, action: str, rules: list[FirewallRule], one: str, several: str
) -> None:
    groups: dict[str, list[FirewallRule]] = {}
    for rule in rules:
        groups.setdefault(_chain(rule), []).append(rule)
    ref, where = namespace_ref(ns), log.label(ns)
    for chain, group in groups.items():
        if len(group) >= MANY:
            weight = min(_weight(rule, action) for rule in group)
            log.add(action, ref, f"{len(group)} rules {several} {chain} in {where}", _topic(group[0]), weight)
            continue
        for rule in group:
            sentence = f"a rule {one} {chain} in {where}: {rule.text}"
            log.add(action, ref, sentence, _topic(rule), _weight(rule, action))


_TRANSLATING = ("masquerade", "snat", "dnat", "redirect")


def _topic(rule: FirewallRule) -> Topic:
    return Topic.NAT if rule.verdict in _TRANSLATING else Topic.FIREWALL


def _weight(rule: FirewallRule, action: str) -> int:
    """Return a rule's weight: added drops and removed accepts come first."""
    dropping = ("drop", "reject") if action == "added" else ("accept", *_TRANSLATING)
    return 0 if rule.verdict in dropping else 1


def _compare_policies(log: ChangeList, ns: int, old: Firewall, new: Firewall) -> None:
    before = {chain.key: chain.policy for chain in old.chains}
    for chain in new.chains:
        was = before.get(chain.key, chain.policy)
        if was != chain.policy:
            policy = f"the policy of {' '.join(chain.key)} in {log.label(ns)}"
            sentence = f"{policy} changed from {was} to {chain.policy}"
            log.add("changed", namespace_ref(ns), sentence, Topic.FIREWALL)


# Shares of nf_conntrack_max; two of them, so that a table near the limit isn't reported again and again.
NEARLY_FULL = 0.9
NO_LONGER_FULL = 0.7

ProblemKey = tuple[str, str, int | None]


def compare_sysctls(log: ChangeList) -> None:
    """Report changed sysctls of forwarding."""
    old, new = log.old.snapshot.host.sysctls, log.new.snapshot.host.sysctls
    if old is new or not old:
        return
    for name, value in new.items():
        if old.get(name, value) != value and not name.endswith("_count"):
            sentence = f"{name} changed from {old[name]} to {value}"
            log.add("changed", namespace_ref(log.new.host), sentence, Topic.SYSCTL)


def compare_conntrack(log: ChangeList) -> None:
    """Report conntrack tables that become nearly full: a full one drops connections."""
    for ns, old, new in in_both(log.old.snapshot.conntracks, log.new.snapshot.conntracks):
        before, after = _share(old), _share(new)
        count = f"{len(new.entries)} of {new.limit} entries"
        table = f"the conntrack table of {log.label(ns)}"
        if before < NEARLY_FULL <= after:
            log.add("changed", namespace_ref(ns), f"{table} is nearly full: {count}")
        elif after < NO_LONGER_FULL <= before:
            log.add("changed", namespace_ref(ns), f"{table} is no longer nearly full: {count}")


def _share(table: Conntrack) -> float:
    return len(table.entries) / table.limit if table.limit else 0.0


def compare_problems(log: ChangeList) -> None:
    """Report problems that appeared and that were solved."""
    old, new = _problems(log.old.snapshot), _problems(log.new.snapshot)
    for key, problem in new.items():
        if key not in old:
            log.add("added", _ref(problem), f"problem: {_problem_text(log, problem)}")
    for key, problem in old.items():
        if key not in new and (problem.ns is None or problem.ns in log.new.snapshot.namespaces):
            log.add("removed", _ref(problem), f"solved: {_problem_text(log, problem)}")


def _problems(snapshot: Snapshot) -> dict[ProblemKey, Problem]:
    return {(each.part, each.what, each.ns): each for each in snapshot.problems}


def _ref(problem: Problem) -> Ref:
    key = (problem.part, problem.what) if problem.ns is None else (problem.part, problem.what, problem.ns)
    return Ref("problem", key)


def _problem_text(log: ChangeList, problem: Problem) -> str:
    where = "" if problem.ns is None else f" in {log.label(problem.ns)}"
    return f"{problem.what}{where}{f' ({problem.why})' if problem.why else ''}"


def compare_namespaces(log: ChangeList) -> None:
    """Report namespaces that appeared, are gone or were renamed."""
    old, new = log.old.snapshot.namespaces, log.new.snapshot.namespaces
    if old is new:
        return
    for inode in missing_in(old, new):
        log.add("added", namespace_ref(inode), f"namespace {log.label(inode)} appeared", Topic.CONTAINER)
    for inode in missing_in(new, old):
        log.add("removed", namespace_ref(inode), f"namespace {log.label(inode)} is gone", Topic.STATE)
    for inode in (inode for inode in new if inode in old):
        for name in missing_in(old[inode].names, new[inode].names):
            log.add("changed", namespace_ref(inode), f"namespace {log.old.label(inode)} was named {name}")
        for name in missing_in(new[inode].names, old[inode].names):
            log.add("changed", namespace_ref(inode), f"namespace {log.label(inode)} lost the name {name}")


def compare_storms(log: ChangeList) -> None:
    """Report storms that began and ended."""
    old, new = log.old.snapshot, log.new.snapshot
    if old.storms is new.storms:
        return
    before, now = ({_storm_key(storm) for storm in one.storms} for one in (old, new))
    for storm in new.storms:
        bridge = new.link((storm.ns, storm.ifindex))
        if bridge is not None and _storm_key(storm) not in before:
            log.add("added", link_ref(bridge.key), storm_text(storm, bridge))
    for storm in old.storms:
        bridge = old.link((storm.ns, storm.ifindex))
        if bridge is not None and _storm_key(storm) not in now:
            log.add("removed", link_ref(bridge.key), f"the {storm.kind} storm on {bridge.name} has ended")


def compare_storm_guards(log: ChangeList) -> None:
    """Report storm guards that begin and stop to drop frames."""
    old, new = log.old.snapshot, log.new.snapshot
    if old.storm_guards is new.storm_guards:
        return
    before, now = (
        {
            (LinkKey(guard.ns, guard.ifindex), drops.kind): drops
            for guard in one.storm_guards
            for drops in guard.drops
        }
        for one in (old, new)
    )
    for (key, kind), drops in now.items():
        port = new.link(key)
        if port is not None and (key, kind) not in before:
            log.add("added", link_ref(key), guard_text(port.name, drops))
    for key, kind in before.keys() - now.keys():
        port = new.link(key)
        if port is not None:
            log.add("removed", link_ref(key), f"the storm guard of {port.name} no longer drops {kind} frames")


def _storm_key(storm: Storm) -> tuple[LinkKey, str]:
    return LinkKey(storm.ns, storm.ifindex), storm.kind


def compare_heavy_drops(log: ChangeList) -> None:
    """Report high rates of dropped packets that began and ended."""
    old, new = log.old.snapshot.heavy_drops, log.new.snapshot.heavy_drops
    if old is new:
        return
    before, now = ({replace(one, rate=0.0) for one in each} for each in (old, new))
    for heavy in new:
        subject = subject_of(log.new, heavy)
        if subject is not None and replace(heavy, rate=0.0) not in before:
            rate = f"about {heavy.rate:,.0f}/s"
            log.add(
                "added",
                subject[0],
                f"packets of {subject[1]} are dropped, {rate}: {heavy.function or heavy.reason}",
            )
    for heavy in old:
        subject = subject_of(log.old, heavy)
        if subject is not None and replace(heavy, rate=0.0) not in now:
            log.add(
                "removed",
                subject[0],
                f"packets of {subject[1]} are no longer dropped: {heavy.function or heavy.reason}",
            )
