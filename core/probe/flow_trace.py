"""Trace the packets of an existing flow; nothing is sent or changed."""

from __future__ import annotations

import ipaddress
import math
import os
import select
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

import numpy as np

from core.flows import ConntrackEntry, entry_of
from core.model import Namespace, Problem
from core.model.probe import FlowTrace, FlowTraceRequest, FunctionCall, FunctionFilter, PacketTuple
from core.netlink import netns
from core.netlink.client import NETFILTER, Netlink
from core.netlink.netns import NamespaceGone, entered
from core.probe.context import read_tracked
from core.probe.flow_packets import PROTOCOLS, FlowPackets, flow_filter, flow_tuples, original_tuple
from core.probe.run import ProbeError
from core.probe.sightings import Captured, LinkWatch, stamping
from core.text import failure_sentence
from core.topology import Topology

SECONDS, MAX_SECONDS = 5.0, 60.0
_MOST_NAMESPACES = 16
_MOST_FRAMES, _MOST_CALLS = 4096, 1 << 16
_SETTLE = 0.3  # seconds to go on after both directions were seen
_STAMPS = 1.0  # seconds to wait for time stamps
_STOP = 0.2  # seconds between two looks whether it was stopped
_BATCH = 0.01  # seconds in which the last packet reaches all links


def request_of_flow(
    topology: Topology, ns: int, entry: ConntrackEntry, seconds: float = SECONDS
) -> FlowTraceRequest:
    """Return the request that traces the flow of an entry in `ns`. Raises ProbeError."""
    if entry.l4_proto not in PROTOCOLS:
        what = f"can't trace a flow of protocol {entry.l4_proto}"
        raise ProbeError(failure_sentence(what, "only TCP, UDP and ICMP echo are traced", "vnet-tui capture"))
    tuples = flow_tuples([entry, *_related(topology, ns, entry)])
    return FlowTraceRequest(
        ns, original_tuple(entry), original_tuple(entry, reply=True), tuples,
        tuple(_namespaces(topology, ns, tuples)), min(seconds, MAX_SECONDS),
    )  # fmt: skip


def _related(topology: Topology, ns: int, entry: ConntrackEntry) -> Iterator[ConntrackEntry]:
    """Yield the entries of the same connection in other namespaces."""
    known = set(flow_tuples([entry]))
    ports = [entry.orig_sport, entry.orig_dport, entry.reply_sport, entry.reply_dport]
    for table in topology.snapshot.conntracks.values():
        rows = table.entries
        if table.ns == ns or not len(rows):
            continue
        near = (rows["l4_proto"] == entry.l4_proto) & np.isin(rows["orig_sport"], ports)
        for row in rows[near][:_MOST_FRAMES]:
            found = entry_of(row)
            if {original_tuple(found), original_tuple(found, reply=True)} & known:
                known |= set(flow_tuples([found]))
                yield found


def _namespaces(topology: Topology, ns: int, tuples: Iterable[PacketTuple]) -> Iterator[Namespace]:
    """Yield the namespaces of the flow's ends, and those that their links lead to."""
    addresses = {one for each in tuples for one in (each.src, each.dst)}
    owners = (topology.container_at(ns, one) for one in sorted(addresses))
    ends = [one.netns for one in owners if one is not None and one.netns is not None]
    ends += [
        link.ns
        for link in topology.snapshot.links()
        for one in link.addresses
        if one.address in addresses and not ipaddress.ip_address(one.address).is_loopback
    ]
    peers = []
    for end in dict.fromkeys(ends):
        net = topology.snapshot.nets.get(end)
        found = (topology.peer(link) for link in (net.links.values() if net else ()))
        peers += [peer.ns for peer in found if peer is not None]
    for inode in list(dict.fromkeys((ns, topology.host, *ends, *peers)))[:_MOST_NAMESPACES]:
        if (namespace := topology.snapshot.namespaces.get(inode)) is not None:
            yield namespace


def trace_flow(request: FlowTraceRequest, stopped: Callable[[], bool] = lambda: False) -> FlowTrace:
    """Look for packets of the flow, at most `request.seconds` or until `stopped`.

    It blocks, and ends soon after packets of both directions were seen. Raises ProbeError if it can look
    nowhere."""
    with ExitStack() as stack:
        existed, watches = _exists(request), _Watches(request)
        if request.functions:
            wanted = FunctionFilter(tuple(request.tuples))
            watches.read_calls = stack.enter_context(request.functions(wanted))
        has_stamps = stack.enter_context(stamping(_STAMPS))
        watches.open(stack)
        if not has_stamps:
            time.sleep(_BATCH)
            watches.read()  # these packets were stamped when they were read
        begun = time.monotonic()
        packets = FlowPackets(request.tuples)
        watches.wait(packets, stopped)
        seconds = time.monotonic() - begun
    return FlowTrace(
        request,
        packets.best(watches.calls),
        packets.counts,
        seconds,
        packets.closed,
        existed and not _exists(request),
        tuple(watches.problems),
    )


@dataclass(slots=True)
class _Watches:
    """The capture sockets of a trace, one for each namespace."""

    request: FlowTraceRequest
    watches: list[LinkWatch] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    calls: list[FunctionCall] = field(default_factory=list)
    read_calls: Callable[[], Sequence[FunctionCall]] = tuple

    def open(self, stack: ExitStack) -> None:
        """Open the sockets. Raises ProbeError if none can be opened."""
        program, denied = flow_filter(self.request.tuples), False
        for one in self.request.namespaces:
            try:
                with entered(netns.entry_of(one), one.inode):
                    self.watches.append(stack.enter_context(LinkWatch(one.inode, program)))
            except NamespaceGone:
                self._problem(one, "it no longer exists", "trace again")
            except OSError as error:
                denied = denied or isinstance(error, PermissionError)
                self._problem(one, os.strerror(error.errno or 0), "run it as root")
        if not self.watches:
            what = f"can't trace {self.request.original}"
            why = "needs CAP_SYS_ADMIN and CAP_NET_RAW" if denied else "its namespaces no longer exist"
            raise ProbeError(failure_sentence(what, why, "run it as root" if denied else "vnet-tui flows"))

    def _problem(self, namespace: Namespace, why: str, try_: str) -> None:
        what = "can't look into a namespace of the flow"
        self.problems.append(Problem("probe", what, why, try_, namespace.inode))

    def wait(self, packets: FlowPackets, stopped: Callable[[], bool]) -> None:
        """Read packets until both directions were seen, or the time is over."""
        poller = select.poll()
        for one in self.watches:
            poller.register(one.fileno(), select.POLLIN)
        end, frames, settled = time.monotonic() + self.request.seconds, 0, False
        while (left := end - time.monotonic()) > 0 and frames < _MOST_FRAMES and not stopped():
            poller.poll(math.ceil(min(left, _STOP) * 1000))
            time.sleep(min(_BATCH, max(0.0, left)))
            captured = self.read()
            frames += len(captured)
            packets.add(captured)
            if not settled and len(packets.counts) == len({*self.request.tuples.values()}):
                settled, end = True, min(end, time.monotonic() + _SETTLE)

    def read(self) -> list[Captured]:
        """Read what arrived in all namespaces, in the order of time."""
        found = []
        for one in self.watches:
            one.read()
            found += one.captured
            one.captured.clear()
        if len(self.calls) < _MOST_CALLS:
            self.calls += self.read_calls()
        return sorted(found, key=lambda each: each.at)


def _exists(request: FlowTraceRequest) -> bool:
    """Return whether conntrack has the flow's entry.

    Entries of ICMP and of zones aren't looked up."""
    namespace = next((one for one in request.namespaces if one.inode == request.ns), None)
    if namespace is None or request.original.protocol == "icmp":
        return False
    with (
        suppress(OSError, NamespaceGone),
        entered(netns.entry_of(namespace), namespace.inode),
        Netlink(NETFILTER) as sock,
    ):
        return read_tracked(sock, request.ns, request.original) is not None
    return False
