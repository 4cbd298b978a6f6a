"""Keys of objects (refs), and the problems and findings that refer to objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from core.text import failure_sentence


class LinkKey(NamedTuple):
    """A link's key: the inode of its network namespace, and its ifindex there."""

    ns: int
    ifindex: int


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """The key of one object of a snapshot.

    `kind` is one of "namespace", "link", "container", "network", "nat", "conntrack", "connections", "flow",
    "flow group", "drop", "route", "rule", "neighbour", "fdb", "vtep", "event", "problem", "ovs"; `key`
    identifies the object within its kind: (inode,), (inode, ifindex), (runtime, id), (network id,), (inode,
    rule id), (inode, conntrack id). "drop" is a reason, or packets that were dropped for it: the keys of a
    line of the view. "conntrack" is a conntrack entry; "connections" are all connections of an object: ("ct",
    "net" or "nat", its name). "flow" is a flow with its rates, by the key of its conntrack entry; "flow
    group" is a group of flows: (what they are grouped by, the filter that selects them). "ovs" is part of
    Open vSwitch: (bridge,), (bridge, port), (bridge, port, interface), (bridge, "controller", number). "vtep"
    is a host of an overlay: (inode, ifindex of the tunnel link, its address, "" for this host).
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


def ovs_ref(*key: int | str) -> Ref:
    """Return the ref of a bridge, port, interface or controller of Open vSwitch."""
    return Ref("ovs", key)


def network_ref(network_id: str) -> Ref:
    """Return the ref of a network."""
    return Ref("network", (network_id,))


def nat_ref(inode: int, entry_id: str) -> Ref:
    """Return the ref of a NAT entry."""
    return Ref("nat", (inode, entry_id))


def connections_ref(what: str, name: str) -> Ref:
    """Return the ref of all connections of an object ("ct", "net" or "nat")."""
    return Ref("connections", (what, name))


def flow_ref(inode: int, conntrack_id: int) -> Ref:
    """Return the ref of a flow with its rates, by its conntrack entry."""
    return Ref("flow", (inode, conntrack_id))


def conntrack_ref(inode: int, conntrack_id: int) -> Ref:
    """Return the ref of a conntrack entry: its namespace, and its id in that table."""
    return Ref("conntrack", (inode, conntrack_id))


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that could not be read.

    `part` names the part of the snapshot ("namespaces", "links", "nat", "conntrack", "docker", "podman",
    "ovs", "routes"); `what` begins with "can't", `why` is the reason, and `try_` a remedy ("" for none). `ns`
    is the namespace concerned, if any. Problems with the same part, `what` and `ns` count as the same one.
    """

    part: str
    what: str
    why: str = ""
    try_: str = ""
    ns: int | None = None

    @property
    def sentence(self) -> str:
        """Return "WHAT: WHY. Try: TRY_" without the empty parts."""
        return failure_sentence(self.what, self.why, self.try_)
