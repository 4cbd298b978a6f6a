"""Refs: the keys by which cursor, cross-references and commands address an object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class LinkKey(NamedTuple):
    """A link's key: the inode of its network namespace, and its ifindex there."""

    ns: int
    ifindex: int


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """The key of one object of a snapshot.

    `kind` is one of "namespace", "link", "container", "network", "nat", "flow", "flows", "talk", "talkers",
    "route", "rule", "neighbour", "fdb", "event", "problem"; `key` identifies the object within its kind:
    (inode,), (inode, ifindex), (runtime, id), (network id,), (inode, rule id), (inode, conntrack id).
    "flow" is a conntrack entry; "flows" are all connections of an object: ("ct", "net" or "nat", its name).
    "talk" is a flow with its rates, by the key of its conntrack entry; "talkers" is a group of flows: (what
    they are grouped by, the filter that selects them).
    """

    kind: str
    key: tuple[int | str, ...]


def namespace_ref(inode: int) -> Ref:
    """Return the ref of a network namespace."""
    return Ref("namespace", (inode,))


def link_ref(key: LinkKey) -> Ref:
    """Return the ref of a link (including bridges and veth ends)."""
    return Ref("link", tuple(key))


def container_ref(runtime: str, container_id: str) -> Ref:
    """Return the ref of a container."""
    return Ref("container", (runtime, container_id))


def network_ref(network_id: str) -> Ref:
    """Return the ref of a network."""
    return Ref("network", (network_id,))


def nat_ref(inode: int, entry_id: str) -> Ref:
    """Return the ref of a NAT entry."""
    return Ref("nat", (inode, entry_id))


def flows_ref(what: str, name: str) -> Ref:
    """Return the ref of all connections of an object ("ct", "net" or "nat")."""
    return Ref("flows", (what, name))


def talk_ref(inode: int, conntrack_id: int) -> Ref:
    """Return the ref of a flow with its rates, by its conntrack entry."""
    return Ref("talk", (inode, conntrack_id))


def flow_ref(inode: int, conntrack_id: int) -> Ref:
    """Return the ref of a conntrack entry: its namespace, and its id in that table."""
    return Ref("flow", (inode, conntrack_id))
