"""Whose connections: from containers, networks and NAT entries to the conntrack entries that concern them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from core.flows import FlowColumns
from core.flows.columns import Column
from core.flows.rules import in_prefixes, translated_by
from core.model import Conntrack, Container, FirewallRule, NatEntry, Network, Ref
from core.nat.inward import expanded

if TYPE_CHECKING:
    from core.topology.index import Topology


def of_names(columns: FlowColumns, is_wanted: Callable[[str], bool]) -> Column:
    """Where one of the two ends is somebody whose name is wanted."""
    ends = (columns.owned(columns.column(end), is_wanted) for end in ("orig_src", "reply_src"))
    return np.logical_or(*ends)


def of_namespaces(topology: Topology, scope: Collection[int]) -> Column:
    """Where the table is one of these namespaces', or an end is an address of one of them."""
    columns = topology.flows
    names = {topology.label(ns) for ns in scope if ns != topology.host}
    names |= {one.name for ns in scope if ns != topology.host for one in topology.containers_in(ns)}
    here = columns.by_table(np.array([table.ns in scope for table in columns.tables], bool))
    return np.asarray(here | of_names(columns, names.__contains__))


def known_as(topology: Topology, container: Container) -> str:
    """The name that a container's addresses go by: that of the one that its namespace is known by; "" where
    its addresses are the host's."""
    if container.netns == topology.host:
        return ""
    return topology.label(container.netns) if container.netns else container.name


def of_network(topology: Topology, network: Network) -> Column:
    """Where one of the two ends is a container's address on that network."""
    columns = topology.flows
    names = {known_as(topology, member) for member in topology.members(network)}
    subnets = ",".join(network.subnets)
    found = np.zeros(len(columns), bool)
    for end in ("orig_src", "reply_src") if subnets else ():
        addresses = columns.column(end)
        found |= in_prefixes(addresses, subnets) & columns.owned(addresses, names.__contains__)
    return found


def of_entry(topology: Topology, entry: NatEntry) -> Column:
    """Where one of a NAT entry's rules fits the translation, in the entry's own namespace."""
    columns = topology.flows
    here = columns.by_table(np.array([table.ns == entry.ns for table in columns.tables], bool))
    found = np.zeros(len(columns), bool)
    for rule in _rules_of(topology, entry):
        found |= translated_by(columns, rule)
    return np.asarray(found & here)


def _rules_of(topology: Topology, entry: NatEntry) -> list[FirewallRule]:
    """A NAT entry's rules; of a rule that translates by a map, the entry's own element."""
    firewall = topology.snapshot.firewalls.get(entry.ns)
    rules = [rule for rule in firewall.rules if rule.rule_id in entry.rules] if firewall else []
    base, _, number = entry.entry_id.rpartition("#")
    if number.isdecimal():
        rules = [list(expanded(rule))[int(number)] if rule.rule_id == base else rule for rule in rules]
    return rules


def found_table(topology: Topology, ref: Ref) -> Conntrack | None:
    """The conntrack entry of a reference as a table of its own, None where it is gone."""
    table = topology.snapshot.conntracks.get(int(ref.key[0]))
    if table is None:
        return None
    found = table.entries[table.entries["id"] == ref.key[1]]
    return replace(table, entries=found[:1]) if len(found) else None
