"""Names for things: the keys by which every part of the program points at one and the same object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class LinkKey(NamedTuple):
    """One link of the host: the inode of its network namespace, and its ifindex there."""

    ns: int
    ifindex: int


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """Points at one object of a snapshot.

    `kind` is one of "namespace", "link", "container", "network", "nat", "flow", "flows", "talk", "talkers",
    "route", "rule", "neighbour", "fdb", "event", "problem"; `key` is what identifies the object among its
    kind: (inode,), (inode, ifindex), (runtime, id), (network id,), (inode, rule id), (inode, conntrack id).
    "flows" are connections together: (what they concern: "ct", "net" or "nat", its name). "talk" is a flow
    as it is measured, with the key of its conntrack entry; "talkers" are flows added up: (by what, the filter
    that selects them).
    """

    kind: str
    key: tuple[int | str, ...]


def namespace_ref(inode: int) -> Ref:
    """The reference of a network namespace."""
    return Ref("namespace", (inode,))


def link_ref(key: LinkKey) -> Ref:
    """The reference of a link, bridges and veth ends among them."""
    return Ref("link", tuple(key))


def container_ref(runtime: str, container_id: str) -> Ref:
    """The reference of a container."""
    return Ref("container", (runtime, container_id))


def network_ref(network_id: str) -> Ref:
    """The reference of a network."""
    return Ref("network", (network_id,))


def nat_ref(inode: int, entry_id: str) -> Ref:
    """The reference of a NAT entry."""
    return Ref("nat", (inode, entry_id))


def flows_ref(what: str, name: str) -> Ref:
    """The reference of all connections of a container ("ct") or network ("net"), or of those that a NAT entry
    ("nat") translates."""
    return Ref("flows", (what, name))


def talk_ref(inode: int, conntrack_id: int) -> Ref:
    """The reference of a flow, as it is measured: that of its conntrack entry."""
    return Ref("talk", (inode, conntrack_id))


def flow_ref(inode: int, conntrack_id: int) -> Ref:
    """The reference of a conntrack entry: the namespace whose table holds it, and its id there."""
    return Ref("flow", (inode, conntrack_id))
