"""Read a whole snapshot at once, for commands."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from core.collect import (
    conntrack,
    engines,
    firewall,
    frr,
    links,
    namespaces,
    offloads,
    ovs,
    processes,
    sockets,
)
from core.collect.engine_http import has_socket
from core.collect.host import read_host
from core.collect.processes import InitProcess, init_processes
from core.collect.storm_guard import read_storm_guards
from core.model import WATCHED_PARTS, Engine, Firewall, Namespace, NetState, Part, Problem, Snapshot
from core.netlink.netns import HOST_PATH, THREAD_PATH, NamespaceGone, inode_of

PARTS = WATCHED_PARTS | {Part.LISTENERS}
_ENGINES = ((engines.DOCKER, engines.read_docker), (engines.PODMAN, engines.read_podman))


def read_snapshot(parts: Collection[Part] | None = None, deep: bool = True) -> Snapshot:
    """Read `parts` (None: all of PARTS); errors become problems of the snapshot.

    Without `deep` the namespaces are those of a shallow scan (read_namespaces), unless their links lead to
    others: if none does, no undiscovered namespace has an address on a known network.
    """
    wanted = set(PARTS if parts is None else parts)
    with ThreadPoolExecutor(3, "background reads") as pool:
        return _read_parts(_BackgroundReads(pool, wanted), wanted, deep)


class _BackgroundReads:
    """Reads that wait for other programs (engines, firewall tools), on threads.

    The other parts are read on one thread meanwhile; more threads would only wait for Python's global lock.
    """

    def __init__(self, pool: ThreadPoolExecutor, wanted: Collection[Part]) -> None:
        engines = _ENGINES if Part.CONTAINERS in wanted else ()
        # An engine without a socket fails at once.
        self.engines = [pool.submit(read).result if has_socket(kind) else read for kind, read in engines]
        self.frr = pool.submit(frr.read_frr).result if Part.FRR in wanted else None
        self.ovs = pool.submit(ovs.read_ovs).result if Part.OVS in wanted else lambda: ((), ())
        self._firewall: Future[dict[int, Firewall]] | None = None
        if Part.HOST_FIREWALL in wanted and Part.FIREWALL not in wanted:
            host = Namespace(inode_of(HOST_PATH), is_host=True, entry=THREAD_PATH)
            self._firewall = pool.submit(firewall.read_firewalls, {host.inode: host})

    def firewalls(self) -> dict[int, Firewall]:
        """Return the host's firewall, if only that one is wanted."""
        return self._firewall.result() if self._firewall else {}


def _read_parts(background: _BackgroundReads, wanted: set[Part], deep: bool) -> Snapshot:
    """Read the other parts while the background reads run."""
    found, problems = namespaces.read_namespaces(deep)
    part_problems: dict[str, tuple[Problem, ...]] = {Part.NAMESPACES: problems}
    fields: dict[str, Any] = {}
    if {Part.LINKS, Part.WIRING} & wanted or not deep:
        read = links.read_nets if Part.LINKS in wanted else links.read_wiring
        fields["nets"] = read(found.values())
        if not deep and any(map(_leads_to_unknown, fields["nets"].values())):
            return _read_parts(background, wanted, deep=True)
        hosts = [one.inode for one in found.values() if one.is_host]
        fields["storm_guards"] = read_storm_guards(hosts[0]) if hosts else ()
    inits = init_processes() if Part.CONTAINERS in wanted else ()
    fields["firewalls"] = background.firewalls()
    if Part.FILTERS in wanted:
        host_only = {inode: namespace for inode, namespace in found.items() if namespace.is_host}
        fields["firewalls"] = read_each(firewall.read_filters, host_only)
    if Part.FIREWALL in wanted:
        fields["firewalls"] = firewall.read_firewalls(found)
    if Part.CONNTRACK in wanted:
        fields["conntracks"] = read_each(conntrack.read_conntrack, found)
    if Part.CONTAINERS in wanted:
        fields["engines"] = _with_unmanaged([read() for read in background.engines], found, inits)
    if Part.TUNING in wanted:
        fields["tuning"] = offloads.read_tuning(found, fields.get("nets", {}))
    if Part.LISTENERS in wanted:
        fields["listeners"] = sockets.read_all_listeners(found)
    if Part.OVS in wanted:
        fields["ovs"], part_problems[Part.OVS] = background.ovs()
    if Part.OVS_FLOWS in wanted:
        fields["ovs"] = ovs.with_normal(fields.get("ovs", ()))
    if background.frr:
        fields["frr"], part_problems[Part.FRR] = background.frr()
    host = read_host(Part.LISTENERS in wanted)
    return Snapshot(taken_at=time.time(), host=host, namespaces=found, part_problems=part_problems, **fields)


def _leads_to_unknown(net: NetState) -> bool:
    nsids = {link.lower_nsid for link in net.links.values()} - {None}
    return any(nsid not in net.nsids for nsid in nsids)


def read_engines(found: Mapping[int, Namespace]) -> dict[str, Engine]:
    """Read every container engine, and the unmanaged containers."""
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
    """Read one part of each namespace, by inode; those that are gone are left out."""
    parts = {}
    for inode, namespace in found.items():
        try:
            parts[inode] = read(namespace)
        except NamespaceGone:
            continue
    return parts
