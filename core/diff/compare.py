"""Compare two moments that may be far apart, the likeliest suspects first."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

from core.diff import chains, containers, engines, host, links, settings
from core.diff.align import Alignment, align
from core.diff.changelist import ChangeList, RankedChange, Topic
from core.model import Address, Container, Firewall, Link, NetState, Ref, Snapshot, namespace_ref

_RANKS = {topic: rank for rank, topic in enumerate(Topic)}
_COMPARISONS = (
    containers.compare_namespaces, containers.compare_sysctls, host.compare_host, host.compare_ip_settings,
    links.compare_links, links.compare_routing, settings.compare_link_settings,
    settings.compare_kernel_routes, settings.compare_permanent_entries,
    containers.compare_rules, chains.compare_base_chains, chains.compare_rule_order, chains.compare_sets,
    containers.compare_networks, engines.compare_engines, engines.compare_container_settings,
    engines.compare_network_settings, host.compare_listeners, settings.compare_ovs,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference between two snapshots.

    `action` is "added", "removed" or "changed"; `ref` an object of the newer snapshot; `sentence` names
    things verbatim; `at` is when it came about, Unix time in seconds, 0 if unknown."""

    topic: Topic
    action: str
    ref: Ref
    sentence: str
    at: float = 0.0


def differences(old: Snapshot, new: Snapshot) -> tuple[Difference, ...]:
    """Return the differences between two snapshots, the likeliest suspects first.

    Items are matched by name, so that restarts are no differences, also not of the host. Counters, learned
    neighbours, conntrack and what the kernel chooses at random aren't compared."""
    old, new = _readable_in_both(old, new)
    aligned = align(old, new)
    log = ChangeList(_steady(aligned, new), _without_temporary(new), 0.0)
    for compare in _COMPARISONS:
        compare(log)
    _compare_containers(log, aligned, old)
    quiet = _consequences(log)
    found = (
        Difference(one.topic, change.action, _known(log, change.ref), change.sentence)
        for one in sorted(log.ranked, key=lambda one: (_RANKS[one.topic], one.weight))
        if (change := one.change) and (change.action, change.ref) not in quiet
    )
    return tuple(dict.fromkeys(found))


def _readable_in_both(old: Snapshot, new: Snapshot) -> tuple[Snapshot, Snapshot]:
    """Return both without firewalls and engines that one of them couldn't read."""
    unread = old.pending | new.pending
    silent = {name for side in (old, new) for name, one in side.engines.items() if one.state != "ok"}
    silent |= old.engines.keys() ^ new.engines.keys()
    sides = []
    for side in (old, new):
        firewalls = {
            ns: _without_dns_ports(one)
            for ns, one in side.firewalls.items()
            if not one.problems or one.rules or one.chains
        }
        nets = {ns: one for ns, one in side.nets.items() if one.links or not one.problems}
        sides.append(
            replace(
                side, nets=nets, conntracks={}, storms=(), storm_guards=(),
                firewalls={} if "firewall" in unread else firewalls,
                engines={} if "containers" in unread else {
                    name: replace(one, containers=(), networks=()) if name in silent else one
                    for name, one in side.engines.items()
                },
                ovs=() if "ovs" in unread else side.ovs,
            )
        )  # fmt: skip
    return sides[0], sides[1]


# ---- what always differs

# Docker's DNS in containers; each start of a container gives it other ports.
_DNS, _DNS_PORT = "127.0.0.11", re.compile(r"(127\.0\.0\.11:|sport )\d+")


def _without_dns_ports(firewall: Firewall) -> Firewall:
    """Leave out the ports of Docker's DNS in a container's rules."""
    if not any(_DNS in rule.text for rule in firewall.rules):
        return firewall
    rules = tuple(
        replace(rule, text=_DNS_PORT.sub(r"\1PORT", rule.text)) if _DNS in rule.text else rule
        for rule in firewall.rules
    )
    return replace(firewall, rules=rules)


def _steady(aligned: Alignment, new: Snapshot) -> Snapshot:
    """Return the old snapshot with the new values of what the kernel chooses."""
    nets = {}
    for ns, net in aligned.snapshot.nets.items():
        after = new.nets.get(ns)
        made = {index: _settled(link, after, aligned) for index, link in net.links.items()}
        nets[ns] = replace(net, links=made)
    return _without_temporary(replace(aligned.snapshot, nets=nets))


def _settled(link: Link, after: NetState | None, aligned: Alignment) -> Link:
    """Return a link with its new MAC address if that was chosen at random.

    A bridge without one of its own takes the lowest of its ports'."""
    now = after.links.get(link.ifindex) if after else None
    if after is None or now is None:
        return link
    is_ports = bool(now.bridge) and now.mac in _port_macs(after, now)
    if (now.key in aligned.recreated or is_ports) and _is_local(link.mac) and _is_local(now.mac):
        link = replace(link, mac=now.mac)
    if link.sizes.gso != now.sizes.gso and link.bridge:  # a bridge takes it from its first port
        link = replace(link, sizes=now.sizes)
    return link


def _port_macs(net: NetState, bridge: Link) -> set[str]:
    return {link.mac for link in net.links.values() if link.master == bridge.ifindex}


def _is_local(mac: str) -> bool:
    """Return whether a MAC address is locally administered, as random ones are."""
    try:
        return bool(int(mac.partition(":")[0] or "0", 16) & 2)
    except ValueError:
        return False


def _without_temporary(snapshot: Snapshot) -> Snapshot:
    """Leave out IPv6 addresses that expire: privacy extensions change them (RFC 8981)."""
    nets = {
        ns: replace(net, links={index: _lasting(link) for index, link in net.links.items()})
        for ns, net in snapshot.nets.items()
    }
    return replace(snapshot, nets=nets)


def _lasting(link: Link) -> Link:
    if not any(map(_expires, link.addresses)):
        return link
    return replace(link, addresses=tuple(one for one in link.addresses if not _expires(one)))


def _expires(address: Address) -> bool:
    return address.family == 6 and address.valid_until > 0


# ---- containers


def _compare_containers(log: ChangeList, aligned: Alignment, old: Snapshot) -> None:
    """Report containers; restarts only on the same host, and not after a reboot."""
    before = len(log.ranked)
    containers.compare_containers(log)
    found = log.ranked[before:]
    restarts = sum(map(_is_restart, found))
    running = [one for one in log.new.snapshot.containers() if one.state == "running" and _is_managed(one)]
    rebooted = restarts > 1 and restarts == len(running)
    if rebooted or old.host.hostname != log.new.snapshot.host.hostname:
        log.ranked[before:] = [one for one in found if not _is_restart(one)]
    for one in found:
        if _is_restart(one):
            one.weight = 3
        elif "stopped" in one.change.sentence or one.change.action == "removed":
            one.topic, one.weight = Topic.STATE, 0


def _is_restart(one: RankedChange) -> bool:
    return one.change.sentence.endswith(" was restarted")


def _is_managed(one: Container) -> bool:
    return one.runtime not in ("netns", "process")


# ---- consequences


def _consequences(log: ChangeList) -> Collection[tuple[str, Ref]]:
    """Return (action, ref) of what follows from a container that came or went.

    Its namespace and the host's end of its veth pair come and go with it."""
    quiet: set[tuple[str, Ref]] = set()
    for side, other, action in ((log.old, log.new, "removed"), (log.new, log.old, "added")):
        gone = side.snapshot.nets.keys() - other.snapshot.nets.keys()
        for ns in gone:
            if any(map(_is_managed, side.containers_in(ns))):
                quiet.add((action, namespace_ref(ns)))
        for link in side.snapshot.links():
            peer = side.peer(link)
            if peer is not None and peer.ns in gone and link.ns not in gone:
                quiet.add((action, Ref("link", tuple(link.key))))
    return quiet


def _known(log: ChangeList, ref: Ref) -> Ref:
    """Return the ref; of an object that is gone, its namespace's or the host's."""
    snapshot = log.new.snapshot
    if ref.kind == "link":
        if snapshot.link((int(ref.key[0]), int(ref.key[1]))) is not None:
            return ref
        ref = namespace_ref(int(ref.key[0]))
    if ref.kind == "namespace" and ref.key[0] not in snapshot.namespaces:
        return namespace_ref(log.new.host)
    if ref.kind == "container" and ":".join(map(str, ref.key)) not in log.new.containers:
        return namespace_ref(log.new.host)
    if ref.kind == "network" and log.new.network(str(ref.key[0])) is None:
        return namespace_ref(log.new.host)
    return ref
