"""One whole snapshot, read at once: what the command line shows."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from core.collect import conntrack, docker, firewall, links, namespaces, ovs, plain, podman
from core.collect.host import read_host
from core.collect.netns import NamespaceGone
from core.model import Engine, Namespace, Problem, Snapshot

PARTS = ("namespaces", "links", "firewall", "conntrack", "containers", "ovs", "listeners")
# Instead of "firewall": that of the host alone.
HOST_FIREWALL = "host firewall"


def read_snapshot(parts: Collection[str] | None = None) -> Snapshot:
    """Read the parts asked for (None: all of PARTS; HOST_FIREWALL is less than "firewall"); what cannot be
    read becomes a problem in it."""
    wanted = set(PARTS if parts is None else parts)
    found, problems = namespaces.read_namespaces(deep=True)
    part_problems: dict[str, tuple[Problem, ...]] = {"namespaces": problems}
    fields: dict[str, Any] = {}
    if "links" in wanted:
        fields["nets"] = links.read_nets(found.values())
    if "firewall" in wanted:
        fields["firewalls"] = read_each(firewall.read_firewall, found)
    elif HOST_FIREWALL in wanted:
        host = {inode: namespace for inode, namespace in found.items() if namespace.is_host}
        fields["firewalls"] = read_each(firewall.read_firewall, host)
    if "conntrack" in wanted:
        fields["conntracks"] = read_each(conntrack.read_conntrack, found)
    if "containers" in wanted:
        fields["engines"] = read_engines(found)
    if "ovs" in wanted:
        fields["ovs"], part_problems["ovs"] = ovs.read_ovs()
    host_told = read_host("listeners" in wanted)
    return Snapshot(
        taken_at=time.time(), host=host_told, namespaces=found, part_problems=part_problems, **fields
    )


def read_engines(found: Mapping[int, Namespace]) -> dict[str, Engine]:
    """What each container engine tells, and the containers that need none."""
    engines = {"docker": docker.read_docker(), "podman": podman.read_podman()}
    claimed = frozenset(
        container.pid for engine in engines.values() for container in engine.containers if container.pid
    )
    return engines | {"plain": plain.read_plain(found, claimed)}


def read_each[Part](read: Callable[[Namespace], Part], found: Mapping[int, Namespace]) -> dict[int, Part]:
    """One part of each namespace, by inode; those that vanished meanwhile are left out."""
    parts = {}
    for inode, namespace in found.items():
        try:
            parts[inode] = read(namespace)
        except NamespaceGone:
            continue
    return parts
