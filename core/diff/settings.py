"""Compare what no event reports: peers, details, permanent entries, OVS ports.

These comparisons are for two moments that may be far apart; the Events view does without them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from core.diff.changelist import ChangeList, Topic, in_both, missing_in
from core.diff.links import link_text, value_text
from core.model import FdbEntry, Link, NetState, Ref, Route, link_ref, namespace_ref
from core.topology import Topology


def _compare_texts(
    log: ChangeList, ref: Ref, topic: Topic, old: Mapping[str, str], new: Mapping[str, str]
) -> None:
    """Report names that came, went or have another text."""
    for name, text in old.items():
        if name not in new:
            log.add("removed", ref, f"{name} is gone: {text}", topic)
        elif new[name] != text:
            log.add("changed", ref, f"{name} changed from {text} to {new[name]}", topic)
    for name in missing_in(old, new):
        log.add("added", ref, f"{name} was added: {new[name]}", topic)


# ---- links


def compare_link_settings(log: ChangeList) -> None:
    """Report changes of links' qdiscs, offloads, details and other ends."""
    for ns, old, new in in_both(log.old.snapshot.nets, log.new.snapshot.nets):
        for index, link in new.links.items():
            was = old.links.get(index)
            if was is not None and was.kind == link.kind:
                name = f"{link_text(link)} in {log.label(ns)}"
                for topic, sentence in _link_settings(was, link, name):
                    log.add("changed", link_ref(link.key), sentence, topic)
                _compare_peers(log, was, link, name)


def _link_settings(old: Link, new: Link, name: str) -> Iterator[tuple[Topic, str]]:
    for key in sorted(old.details.keys() | new.details.keys()):
        before, after = old.details.get(key), new.details.get(key)
        if before != after:
            words = f"from {_word(before)} to {_word(after)}"
            yield Topic.STATE, f"{key.replace('_', ' ')} of {name} changed {words}"
    if _shapes(old.qdisc) != _shapes(new.qdisc):
        qdiscs = f"from {old.qdisc or 'none'} to {new.qdisc or 'none'}"
        yield Topic.SETTING, f"the qdisc of {name} changed {qdiscs}"
    for verb, offloads in (
        ("off", missing_in(new.offloads, old.offloads)), ("on", missing_in(old.offloads, new.offloads)),
    ):  # fmt: skip
        if offloads:
            yield Topic.SETTING, f"offloads of {name} were turned {verb}: {', '.join(offloads)}"


# What the kernel chooses itself, or a link has only while it is up.
_DEFAULT_QDISCS = ("", "noop", "noqueue", "mq", "pfifo_fast", "fq_codel", "fq", "pfifo")


def _shapes(qdisc: str) -> str:
    """Return a queueing discipline that somebody chose, "" for the kernel's choice."""
    return "" if qdisc in _DEFAULT_QDISCS else qdisc


def _word(value: Any) -> str:
    return "none" if value is None else value_text(value)


def _compare_peers(log: ChangeList, old: Link, new: Link, name: str) -> None:
    """Report a veth whose other end is in another namespace, or another link."""
    before, after = log.old.peer(old), log.new.peer(new)
    if before is None or after is None or before.key == after.key:
        return
    if (before.ns, before.name) != (after.ns, after.name):
        ends = [f"{end.name} in {log.label(end.ns)}" for end in (before, after)]
        sentence = f"the other end of {name} is {ends[1]} (was {ends[0]})"
        log.add("changed", link_ref(new.key), sentence, Topic.STATE, 1)


# ---- routes and neighbours


def compare_kernel_routes(log: ChangeList) -> None:
    """Report routes that the kernel made for an address which still exists."""
    for ns, old, new in in_both(log.old.snapshot.nets, log.new.snapshot.nets):
        before, after = _kernel_routes(old, new), _kernel_routes(new, old)
        for route, net, others, action, verb in (
            *((each, old, after, "removed", "is gone from") for each in before.values()),
            *((each, new, before, "added", "appeared in") for each in after.values()),
        ):
            if (route.dst, route.table, route.nexthops) not in others:
                sentence = f"route {net.route_text(route)} {verb} {log.label(ns)}"
                log.add(action, namespace_ref(ns), sentence, Topic.ROUTE)


def _kernel_routes(net: NetState, other: NetState) -> dict[Hashable, Route]:
    return {
        (route.dst, route.table, route.nexthops): route
        for route in net.routes
        if route.protocol == "kernel" and route.table != "local" and not route.dst.startswith(("fe80:", "ff"))
        and all(_unchanged(net, other, hop.ifindex) for hop in route.nexthops)
    }  # fmt: skip


def _unchanged(net: NetState, other: NetState, ifindex: int | None) -> bool:
    """Return whether a link has the same addresses and state in both."""
    here, there = net.links.get(ifindex or 0), other.links.get(ifindex or 0)
    if here is None or there is None:
        return False
    ours, theirs = ({str(one) for one in link.addresses} for link in (here, there))
    return (here.admin_up, here.state, ours) == (there.admin_up, there.state, theirs)


def compare_permanent_entries(log: ChangeList) -> None:
    """Report neighbours and forwarding entries that somebody set."""
    for ns, old, new in in_both(log.old.snapshot.nets, log.new.snapshot.nets):
        ref, where = namespace_ref(ns), log.label(ns)
        _compare_texts(log, ref, Topic.NEIGHBOUR, _permanent(old, where), _permanent(new, where))
        _compare_texts(log, ref, Topic.BRIDGE, _static(old, where), _static(new, where))


def _permanent(net: NetState, where: str) -> dict[str, str]:
    return {
        f"permanent neighbour {one.address} on {_name(net, one.ifindex)} in {where}": one.mac or "proxy"
        for one in net.neighbours
        if one.proxy or (one.state == "permanent" and one.mac)
    }


def _static(net: NetState, where: str) -> dict[str, str]:
    return {
        f"forwarding entry {one.mac} on {_name(net, one.port)} in {where}": _fdb_text(one)
        for one in net.fdb
        if one.state == "static" or one.dst
    }


def _fdb_text(one: FdbEntry) -> str:
    words = [
        one.state,
        *(["vlan", str(one.vlan)] if one.vlan else []),
        *(["dst", one.dst] if one.dst else []),
    ]
    return " ".join(words)


def _name(net: NetState, ifindex: int) -> str:
    link = net.links.get(ifindex)
    return link.name if link else str(ifindex)


# ---- Open vSwitch


def compare_ovs(log: ChangeList) -> None:
    """Report ports of Open vSwitch that came, went or have another VLAN."""
    before, after = (dict(_ovs_ports(side)) for side in (log.old, log.new))
    ref = namespace_ref(log.new.host)
    _compare_texts(log, ref, Topic.BRIDGE, before, after)


def _ovs_ports(side: Topology) -> Iterator[tuple[str, str]]:
    for bridge in side.snapshot.ovs:
        for port in bridge.ports:
            trunks = ",".join(map(str, port.trunks))
            words = [f"tag {port.tag}"] if port.tag is not None else []
            words += [f"trunks {trunks}"] if trunks else []
            yield (
                f"port {port.name} of OVS bridge {bridge.name}",
                " ".join([*words, port.vlan_mode]).strip() or "no VLAN",
            )
