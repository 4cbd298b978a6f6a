"""Containers that start, stop, and join or leave networks; networks that are made and removed."""

from __future__ import annotations

from core.diagnose import storm_words
from core.diff.change_list import ChangeList, in_both, missing_in
from core.model import (
    Chain,
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
from core.tags import TABLE, UNTRACKED_TABLE

# These are namespaces or processes first, and told as such.
_PLAIN = ("netns", "process")
_STATES = {"running": "is running", "paused": "was paused", "created": "was created"}


def compare_containers(log: ChangeList) -> None:
    """Tell which containers came, went, changed their state or their networks."""
    if log.old.snapshot.engines is log.new.snapshot.engines:
        return
    before, after = _containers(log.old.snapshot), _containers(log.new.snapshot)
    for uid, container in after.items():
        was = before.get(uid)
        ref = container_ref(container.runtime, container.id)
        if was is None:
            how = "started" if container.state == "running" else f"appeared ({container.state})"
            log.add("added", ref, f"container {container.name} {how}")
        elif was is not container and was != container:
            for sentence in _differences(was, container):
                log.add("changed", ref, f"container {sentence}")
    for uid, container in before.items():
        if uid not in after and _answered(log, container.runtime):
            ref = container_ref(container.runtime, container.id)
            log.add("removed", ref, f"container {container.name} is gone")


def _containers(snapshot: Snapshot) -> dict[str, Container]:
    return {each.uid: each for each in snapshot.containers() if each.runtime not in _PLAIN}


def _answered(log: ChangeList, engine: str) -> bool:
    """Whether the engine answered now: one that is silent has not removed its containers."""
    now = log.new.snapshot.engines.get(engine)
    return now is not None and now.state == "ok"


def _differences(old: Container, new: Container) -> list[str]:
    found = [f"{old.name} is called {new.name} now"] if old.name != new.name else []
    if old.state != new.state:
        found.append(f"{new.name} {_state_words(old.state, new.state)}")
    elif new.state == "running" and old.pid != new.pid:
        found.append(f"{new.name} was started again")
    before = {end.network: end for end in old.endpoints}
    after = {end.network: end for end in new.endpoints}
    for name in missing_in(before, after):
        address = after[name].ipv4 or after[name].ipv6
        found.append(f"{new.name} joined the network {name}{f' with {address}' if address else ''}")
    found += [f"{new.name} left the network {name}" for name in missing_in(after, before)]
    return found


def _state_words(old: str, new: str) -> str:
    if new == "running":
        return "goes on" if old == "paused" else "started"
    return _STATES.get(new, f"stopped ({new})")


def compare_networks(log: ChangeList) -> None:
    """Tell which networks the engines that answered before and after made and removed."""
    old, new = log.old.snapshot.engines, log.new.snapshot.engines
    for name, engine in new.items():
        was = old.get(name)
        if was is not None and was is not engine and was.state == engine.state == "ok":
            _compare_networks(log, was, engine)


def _compare_networks(log: ChangeList, old: Engine, new: Engine) -> None:
    before = {network.id: network for network in old.networks}
    after = {network.id: network for network in new.networks}
    for key in missing_in(before, after):
        log.add("added", network_ref(key), f"network {_words(after[key])} was created")
    for key in missing_in(after, before):
        log.add("removed", network_ref(key), f"network {_words(before[key])} was removed")


def _words(network: Network) -> str:
    return f"{network.name} ({', '.join([network.driver, *network.subnets])})"


_FAST_TABLE = "vnet_fastpath"  # inet, of nftables
_DOCKER_DNS = "127.0.0.11"
Place = tuple[str, str, str, str]


def compare_rules(log: ChangeList) -> None:
    """Tell which rules came and went, chain by chain, and which policies changed."""
    for ns, old, new in in_both(log.old.snapshot.firewalls, log.new.snapshot.firewalls):
        before, after = _apart(_by_id(old), _by_id(new))
        gone = _without_own(log, ns, before, after, "removed")
        come = _without_own(log, ns, after, before, "added")
        rewritten = [key for key, rule in after.items() if key in before and rule.table == TABLE]
        gone, come = gone + [before[key] for key in rewritten], come + [after[key] for key in rewritten]
        gone, come = _without_vnets(log, ns, gone, come)
        gone, come = _without_untracking(log, ns, gone, come)
        _compare_chains(log, ns, "removed", gone, "is gone from", "are gone from")
        _compare_chains(log, ns, "added", come, "was added to", "were added to")
        for key, rule in after.items():
            if key in before and rule.table not in (TABLE, _FAST_TABLE):
                words = f"in {_chain(rule)} of {log.place(ns)} changed to: {rule.text}"
                log.add("changed", namespace_ref(ns), f"rule {before[key].text} {words}")
        _compare_policies(log, ns, old, new)


def _is_own(rule: FirewallRule) -> bool:
    """Whether the fast path itself has made it."""
    return (rule.backend, rule.family, rule.table) == ("nft", "inet", _FAST_TABLE)


def _without_own(
    log: ChangeList, ns: int, rules: dict[str, FirewallRule], others: dict[str, FirewallRule], action: str
) -> list[FirewallRule]:
    """Those that are not among the others, without the fast path's own: that its table came or went is told
    once, in a sentence, and of what it writes anew meanwhile nothing."""
    differ = [rule for key, rule in rules.items() if key not in others]
    own = any(map(_is_own, differ))
    if own and not any(map(_is_own, others.values())):
        words = "was added, it forwards" if action == "added" else "is gone, it forwards nothing"
        sentence = f"the fast path's table {_FAST_TABLE} {words}: {log.place(ns)}"
        log.add(action, namespace_ref(ns), sentence)
    return [rule for rule in differ if not _is_own(rule)] if own else differ


def _by_id(firewall: Firewall) -> dict[str, FirewallRule]:
    return {rule.rule_id: rule for rule in firewall.rules}


def _apart(
    before: dict[str, FirewallRule], after: dict[str, FirewallRule]
) -> tuple[dict[str, FirewallRule], dict[str, FirewallRule]]:
    """Both without those that are the same, or were only written anew: of the same text in the same chain.
    The fast path's own stay, of which others ask whether there are any."""
    gone: dict[tuple[str, str], list[str]] = {}
    for key, rule in before.items():
        if not _is_own(rule):
            gone.setdefault((_chain(rule), rule.text), []).append(key)
    kept: tuple[set[str], set[str]] = set(), set()
    for key, rule in after.items():
        same = gone.get((_chain(rule), rule.text))
        if same:
            # Itself where it is still there.
            there = key if key in same else same[0]
            same.remove(there)
            kept[0].add(there)
            kept[1].add(key)
    return _less(before, kept[0]), _less(after, kept[1])


def _less(rules: dict[str, FirewallRule], keys: set[str]) -> dict[str, FirewallRule]:
    return {key: rule for key, rule in rules.items() if key not in keys}


def _without_vnets(
    log: ChangeList, ns: int, gone: list[FirewallRule], come: list[FirewallRule]
) -> tuple[list[FirewallRule], list[FirewallRule]]:
    """Others' rules; what vnet's own do differently is told in a sentence each."""
    sides = [[rule for rule in rules if rule.table == TABLE] for rules in (gone, come)]
    ports = [{_port(rule) for rule in rules} - {""} for rules in sides]
    went, came = ports[0] - ports[1], ports[1] - ports[0]
    told_of = (("removed", went, "is no longer published"), ("added", came, "is published"))
    for action, names, words in told_of:
        for name in sorted(names):
            log.add(action, namespace_ref(ns), f"port {name} of {log.place(ns)} {words} by vnet")
    less, more = (sum(not _port(rule) for rule in rules) for rules in sides)
    if (less or more) and not went | came:
        words = f"vnet's own rules in {log.place(ns)} follow its networks: {more} more, {less} less"
        log.add("changed", namespace_ref(ns), words)
    others = [[rule for rule in rules if rule.table != TABLE] for rules in (gone, come)]
    return others[0], others[1]


def _without_untracking(
    log: ChangeList, ns: int, gone: list[FirewallRule], come: list[FirewallRule]
) -> tuple[list[FirewallRule], list[FirewallRule]]:
    """The rules but those of `vnet-tui tune` in containers, of which one sentence says what they do."""
    went, came = (any(rule.table == UNTRACKED_TABLE for rule in rules) for rules in (gone, come))
    if went != came:
        words = "no longer tracks" if came else "again tracks"
        sentence = f"conntrack {words} connections of {log.place(ns)}"
        log.add("added" if came else "removed", namespace_ref(ns), sentence)
    dns = (
        (_DOCKER_DNS,) if went != came else ()
    )  # the rules of Docker's that these replaced, or made place for
    others = [
        [
            rule for rule in rules
            if rule.table != UNTRACKED_TABLE and not (rule.src in dns or rule.dst in dns)
        ]
        for rules in (gone, come)
    ]  # fmt: skip
    return others[0], others[1]


def _port(rule: FirewallRule) -> str:
    """The published port ("tcp/8080") that a rule of ours is there for, "" for another."""
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
    ref, where = namespace_ref(ns), log.place(ns)
    for chain, group in groups.items():
        found = [(ref, f"a rule {one} {chain} in {where}: {rule.text}") for rule in group]
        log.add_each(action, found, f"rules {several} {chain} in {where}", ref)


def _compare_policies(log: ChangeList, ns: int, old: Firewall, new: Firewall) -> None:
    before = {_place(chain): chain.policy for chain in old.chains}
    for chain in new.chains:
        was = before.get(_place(chain), chain.policy)
        if was != chain.policy:
            words = f"the policy of {' '.join(_place(chain))} in {log.place(ns)} changed"
            log.add("changed", namespace_ref(ns), f"{words} from {was} to {chain.policy}")


def _place(chain: Chain) -> Place:
    return (chain.backend, chain.family, chain.table, chain.name)


# Shares of nf_conntrack_max; two of them, so that a table near one does not come and go.
NEARLY_FULL = 0.9
ROOM_AGAIN = 0.7

ProblemKey = tuple[str, str, int | None]


def compare_sysctls(log: ChangeList) -> None:
    """Tell which of the kernel's forwarding switches were turned."""
    old, new = log.old.snapshot.host.sysctls, log.new.snapshot.host.sysctls
    if old is new or not old:
        return
    for name, value in new.items():
        if old.get(name, value) != value and not name.endswith("_count"):
            words = f"{name} changed from {old[name]} to {value}"
            log.add("changed", namespace_ref(log.new.host), words)


def compare_conntrack(log: ChangeList) -> None:
    """Tell when a conntrack table gets nearly full: a full one drops new connections."""
    for ns, old, new in in_both(log.old.snapshot.conntracks, log.new.snapshot.conntracks):
        before, after = _share(old), _share(new)
        count = f"{len(new.entries)} of {new.limit} entries"
        words = f"the conntrack table of {log.place(ns)}"
        if before < NEARLY_FULL <= after:
            log.add("changed", namespace_ref(ns), f"{words} is nearly full: {count}")
        elif after < ROOM_AGAIN <= before:
            log.add("changed", namespace_ref(ns), f"{words} has room again: {count}")


def _share(table: Conntrack) -> float:
    return len(table.entries) / table.limit if table.limit else 0.0


def compare_problems(log: ChangeList) -> None:
    """Tell which problems appeared and which are solved."""
    old, new = _problems(log.old.snapshot), _problems(log.new.snapshot)
    for key, problem in new.items():
        if key not in old:
            log.add("added", _ref(problem), f"problem: {_sysctl_words(log, problem)}")
    for key, problem in old.items():
        if key not in new and (problem.ns is None or problem.ns in log.new.snapshot.namespaces):
            log.add("removed", _ref(problem), f"solved: {_sysctl_words(log, problem)}")


def _problems(snapshot: Snapshot) -> dict[ProblemKey, Problem]:
    return {(each.part, each.what, each.ns): each for each in snapshot.problems}


def _ref(problem: Problem) -> Ref:
    key = (problem.part, problem.what) if problem.ns is None else (problem.part, problem.what, problem.ns)
    return Ref("problem", key)


def _sysctl_words(log: ChangeList, problem: Problem) -> str:
    where = "" if problem.ns is None else f" in {log.place(problem.ns)}"
    return f"{problem.what}{where}{f' ({problem.why})' if problem.why else ''}"


def compare_namespaces(log: ChangeList) -> None:
    """Tell which namespaces are new, gone or renamed."""
    old, new = log.old.snapshot.namespaces, log.new.snapshot.namespaces
    if old is new:
        return
    for inode in missing_in(old, new):
        log.add("added", namespace_ref(inode), f"namespace {log.place(inode)} appeared")
    for inode in missing_in(new, old):
        log.add("removed", namespace_ref(inode), f"namespace {log.place(inode)} is gone")
    for inode in (inode for inode in new if inode in old):
        for name in missing_in(old[inode].names, new[inode].names):
            log.add("changed", namespace_ref(inode), f"namespace {log.old.label(inode)} got the name {name}")
        for name in missing_in(new[inode].names, old[inode].names):
            log.add("changed", namespace_ref(inode), f"namespace {log.place(inode)} lost the name {name}")


def compare_storms(log: ChangeList) -> None:
    """Tell of each storm that begins, and of each that is over."""
    old, new = log.old.snapshot, log.new.snapshot
    if old.storms is new.storms:
        return
    before, now = ({_key(storm) for storm in one.storms} for one in (old, new))
    for storm in new.storms:
        bridge = new.link((storm.ns, storm.ifindex))
        if bridge is not None and _key(storm) not in before:
            log.add("added", link_ref(bridge.key), storm_words(storm, bridge))
    for storm in old.storms:
        bridge = old.link((storm.ns, storm.ifindex))
        if bridge is not None and _key(storm) not in now:
            log.add("removed", link_ref(bridge.key), f"the storm of {storm.kind}s on {bridge.name} is over")


def _key(storm: Storm) -> tuple[LinkKey, str]:
    return LinkKey(storm.ns, storm.ifindex), storm.kind
