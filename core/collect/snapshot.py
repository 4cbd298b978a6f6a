"""One whole snapshot, read at once: what the command line shows."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from core.collect import (
    conntrack,
    engines,
    firewall,
    links,
    namespaces,
    offloads,
    ovs,
    processes,
)
from core.collect.engine_http import has_socket
from core.collect.host import read_host
from core.collect.processes import InitProcess, init_processes
from core.model import Engine, Firewall, Namespace, NetState, Problem, Snapshot
from core.netlink.netns import HOST_PATH, THREAD_PATH, NamespaceGone, inode_of

PARTS = ("namespaces", "links", "firewall", "conntrack", "containers", "ovs", "listeners")
# What plans are made from, not among PARTS: less than "links" (links.read_wiring), the firewall of the host
# alone, or less than that (firewall.read_filters), and for those that tune links how these are tuned.
WIRING, HOST_FIREWALL, FILTERS, TUNING = "wiring", "host firewall", "filters", "tuning"
_ENGINES = ((engines.DOCKER, engines.read_docker), (engines.PODMAN, engines.read_podman))


def read_snapshot(parts: Collection[str] | None = None, deep: bool = True) -> Snapshot:
    """Read the parts asked for (None: all of PARTS); what cannot be read becomes a problem in it.

    Without `deep` the namespaces are those that a shallow look finds (read_namespaces) if their links lead to
    no other one: nothing out of sight has an address on a network in sight then.
    """
    wanted = set(PARTS if parts is None else parts)
    with ThreadPoolExecutor(3, "aside") as pool:
        return _read_beside(_BackgroundReads(pool, wanted), wanted, deep)


class _BackgroundReads:
    """What others are waited for to tell, on other threads, begun at once: the engines, and the tools for the
    host's rules. What this program reads itself is read beside that on one thread: more of them would only
    wait for each other (Python's global lock).
    """

    def __init__(self, pool: ThreadPoolExecutor, wanted: Collection[str]) -> None:
        engines = _ENGINES if "containers" in wanted else ()
        # One that has no socket says so at once.
        self.engines = [pool.submit(read).result if has_socket(kind) else read for kind, read in engines]
        self._firewall: Future[dict[int, Firewall]] | None = None
        if HOST_FIREWALL in wanted and "firewall" not in wanted:
            host = Namespace(inode_of(HOST_PATH), is_host=True, entry=THREAD_PATH)
            self._firewall = pool.submit(firewall.read_firewalls, {host.inode: host})

    def firewalls(self) -> dict[int, Firewall]:
        """The host's alone, nothing where more is wanted, or none."""
        return self._firewall.result() if self._firewall else {}


def _read_beside(aside: _BackgroundReads, wanted: set[str], deep: bool) -> Snapshot:
    """Read all that is wanted while the engines are being asked."""
    found, problems = namespaces.read_namespaces(deep)
    part_problems: dict[str, tuple[Problem, ...]] = {"namespaces": problems}
    fields: dict[str, Any] = {}
    if {"links", WIRING} & wanted or not deep:
        read = links.read_nets if "links" in wanted else links.read_wiring
        fields["nets"] = read(found.values())
        if not deep and any(map(_leads_out_of_sight, fields["nets"].values())):
            return _read_beside(aside, wanted, deep=True)
    inits = init_processes() if "containers" in wanted else ()
    fields["firewalls"] = aside.firewalls()
    if FILTERS in wanted:
        host = {inode: namespace for inode, namespace in found.items() if namespace.is_host}
        fields["firewalls"] = read_each(firewall.read_filters, host)
    if "firewall" in wanted:
        fields["firewalls"] = firewall.read_firewalls(found)
    if "conntrack" in wanted:
        fields["conntracks"] = read_each(conntrack.read_conntrack, found)
    if "containers" in wanted:
        fields["engines"] = _with_unmanaged([answer() for answer in aside.engines], found, inits)
    if TUNING in wanted:
        fields["tuning"] = offloads.read_tuning(found, fields.get("nets", {}))
    if "ovs" in wanted:
        fields["ovs"], part_problems["ovs"] = ovs.read_ovs()
    host_told = read_host("listeners" in wanted)
    return Snapshot(
        taken_at=time.time(), host=host_told, namespaces=found, part_problems=part_problems, **fields
    )


def _leads_out_of_sight(net: NetState) -> bool:
    lower = {link.lower_nsid for link in net.links.values()} - {None}
    return any(nsid not in net.nsids for nsid in lower)


def read_engines(found: Mapping[int, Namespace]) -> dict[str, Engine]:
    """What each container engine tells, and the containers that need none."""
    return _with_unmanaged([read() for _, read in _ENGINES], found)


def _with_unmanaged(
    engines: Sequence[Engine], found: Mapping[int, Namespace], inits: Sequence[InitProcess] | None = None
) -> dict[str, Engine]:
    claimed = frozenset(
        container.pid for engine in engines for container in engine.containers if container.pid
    )
    by_name = {engine.name: engine for engine in engines}
    return by_name | {"plain": processes.read_unmanaged(found, claimed, inits)}


def read_each[Part](read: Callable[[Namespace], Part], found: Mapping[int, Namespace]) -> dict[int, Part]:
    """One part of each namespace, by inode; those that vanished meanwhile are left out."""
    parts = {}
    for inode, namespace in found.items():
        try:
            parts[inode] = read(namespace)
        except NamespaceGone:
            continue
    return parts
