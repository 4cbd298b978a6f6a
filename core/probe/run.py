"""Send one probe, and record what the kernel did with it on its path."""

from __future__ import annotations

import errno
import ipaddress
import math
import os
import select
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from core.collect.nft_netlink import read_tables
from core.model import Namespace, Problem
from core.model.probe import (
    DropEvent,
    FunctionCall,
    FunctionFilter,
    Outcome,
    PacketTuple,
    ProbeRequest,
    ProbeResult,
    Role,
    Sighting,
    TraceStep,
    Tracked,
    UnresolvedNeighbour,
)
from core.netlink.client import Netlink
from core.netlink.netns import HOST_PATH, NamespaceGone, entered, entry_of, inode_of
from core.probe.context import open_sockets, read_tracked, read_unresolved
from core.probe.nft_trace import NftTrace
from core.probe.packets import UDP, Marker, decode_packet, socket_filter
from core.probe.sender import Packing, Reply, Sender, local_error
from core.probe.sightings import LinkWatch, sightings_of, wait_for_stamps
from core.text import failure_sentence

MAX_TIMEOUT = 10.0
_AFTER_DROP = 0.3  # seconds to wait for an answer after a rule dropped the probe
# TCP sends its first packet again after a second; the trace is of the first one.
_TRACED = 0.95
_LEGACY = ("ip_tables_names", "ip6_tables_names")
_OUTCOMES: dict[str, Outcome] = {
    "answered": "answered", "refused": "refused", "too big": "unreachable", "expired": "unreachable",
    "unreachable": "unreachable",
}  # fmt: skip
_MAX_PORT = 0xFFFF


class ProbeError(Exception):
    """A probe can't be sent; the text is a sentence for users."""


def probe(request: ProbeRequest) -> ProbeResult:
    """Send the probe and wait for its answer, at most `request.timeout` seconds.

    Raises ProbeError if the request is wrong, a right is missing, or its namespace no longer exists. Whatever
    couldn't be recorded is a problem of the result."""
    check(request)
    with ExitStack() as stack:
        try:
            with entering(request):
                sender = stack.enter_context(make_sender(request))
        except OSError as error:
            return _unsendable(request, error)
        return _recorded(request, sender, stack)


def make_sender(request: ProbeRequest, ttl: int = 0) -> Sender:
    """Return the sender of a request; call it in the sending namespace."""
    packing = Packing(ttl, request.size if request.protocol != "tcp" else 0)
    return Sender(request.target, request.protocol, request.port, request.source, packing)


def check(request: ProbeRequest) -> None:
    """Raise ProbeError for a target, source, port or time-out that can't be used."""
    try:
        target = ipaddress.ip_address(request.target)
        source = ipaddress.ip_address(request.source) if request.source else target
    except ValueError as error:
        raise _error(request, str(error), "an IPv4 or IPv6 address") from None
    if target.version != source.version:
        raise _error(request, f"{request.source} is of the other address family", "a source of the same one")
    if request.protocol != "icmp" and not 0 < request.port <= _MAX_PORT:
        raise _error(request, f"{request.port} is no port", "a port from 1 to 65535")
    if target.is_multicast:
        raise _error(request, "it is a multicast address", "the address of one host")


@contextmanager
def entering(request: ProbeRequest) -> Iterator[None]:
    """Enter the sending namespace; raises ProbeError without it or without rights."""
    namespace = request.namespace
    try:
        with entered(entry_of(namespace), namespace.inode):
            yield
    except NamespaceGone:
        raise _error(request, "its namespace no longer exists", "vnet-tui show namespaces") from None
    except socket.gaierror:  # of an address with a scope
        raise _error(request, "there is no such link in the namespace", "fe80::1%eth0") from None
    except PermissionError as error:
        if error.errno == errno.EACCES:
            raise  # a route that prohibits
        why = "needs CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_RAW"
        raise _error(request, why, "run it as root") from None


def _error(request: ProbeRequest, why: str, remedy: str) -> ProbeError:
    return ProbeError(failure_sentence(f"can't probe {request.target}", why, remedy))


def _unsendable(request: ProbeRequest, error: OSError) -> ProbeResult:
    """Return the result of a packet that the sending host doesn't even make."""
    addresses = PacketTuple(request.protocol, request.source, 0, request.target, request.port)
    reason = local_error(error.errno or errno.EIO)
    return ProbeResult("unreachable", addresses, error=reason, arrived=False if request.destination else None)


def _recorded(request: ProbeRequest, sender: Sender, stack: ExitStack) -> ProbeResult:
    """Send, record and wait; return everything that was found."""
    records = [stack.enter_context(_Record(one, sender.marker)) for one in _path(request)]
    for record in records:
        record.open(request.trace)
    wait_for_stamps()
    marker = sender.marker
    observer = request.observer(marker.addresses) if request.observer else nullcontext(())
    functions = request.functions(_filter(marker)) if request.functions else nullcontext(tuple)
    with observer as drops, functions as read_calls:
        reply = sender.send() or _wait(sender, records, min(request.timeout, MAX_TIMEOUT))
        for record in records:
            record.read()
        calls = read_calls()
    result = _result(request, sender, reply, records, tuple(drops))
    return replace(result, functions=tuple(_with_roles(marker, calls, result.sightings)))


def _filter(marker: Marker) -> FunctionFilter:
    port = marker.addresses.sport if marker.proto == UDP else 0
    return FunctionFilter((), marker.proto, marker.mark[:4], marker.acknowledgement[-4:], port)


def _with_roles(
    marker: Marker, calls: Iterable[FunctionCall], sightings: Iterable[Sighting]
) -> Iterator[tuple[Role, FunctionCall]]:
    """Yield the calls with packets of the probe, and what these are to it."""
    requests = {one.addresses for one in sightings if one.role == "request"}
    for call in calls:
        packet = decode_packet(call.headers)
        role = marker.role_of(packet, requests) if packet else None
        if role:
            yield role, call


def _path(request: ProbeRequest) -> tuple[Namespace, ...]:
    """Return the namespaces to record in; without `through`, the host's among them."""
    if request.through:
        return request.namespaces
    host = Namespace(inode_of(HOST_PATH), is_host=True)
    return replace(request, through=(host,)).namespaces


@dataclass(slots=True)
class _Record:
    """Record the probe in one namespace; what can't be recorded becomes a problem."""

    namespace: Namespace
    marker: Marker
    links: LinkWatch | None = None
    trace: NftTrace | None = None
    netfilter: Netlink | None = None
    route: Netlink | None = None
    traced_until: float = math.inf
    problems: list[Problem] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> _Record:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def open(self, trace: bool) -> None:
        """Open all sockets in the namespace."""
        try:
            with entered(entry_of(self.namespace), self.namespace.inode):
                self._open_sockets()
                if trace:
                    self._open_trace()
        except NamespaceGone:
            self._problem("can't look into a namespace of the path", "it no longer exists", "probe again")
        except OSError as error:
            self._problem("can't look into a namespace of the path", _reason(error), "run it as root")

    def _open_sockets(self) -> None:
        self.netfilter, self.route = open_sockets()
        self._stack.enter_context(self.netfilter)
        self._stack.enter_context(self.route)
        try:
            self.links = self._stack.enter_context(
                LinkWatch(self.namespace.inode, socket_filter(self.marker))
            )
        except OSError as error:
            self._problem("can't capture packets on links", _reason(error), "run it as root")

    def _open_trace(self) -> None:
        """Trace the rules of nftables, if there are any."""
        what = "can't trace the firewall rules"
        try:
            if legacy_rules():
                self._problem("can't trace the rules of iptables-legacy", "only nftables is traced", "")
            if tables := read_tables():
                with_bridge = any(one.family == "bridge" for one in tables)
                trace = NftTrace(self.namespace.inode, self.marker, with_bridge)
                self.trace = self._stack.enter_context(trace)
        except OSError as error:
            self._problem(what, _reason(error), "run it as root")

    def _problem(self, what: str, why: str, try_: str) -> None:
        self.problems.append(Problem("probe", what, why, try_, self.namespace.inode))

    @property
    def sources(self) -> list[LinkWatch | NftTrace]:
        """What has to be read when its descriptor is readable."""
        return [one for one in (self.links, self.trace) if one]

    def read(self) -> None:
        """Read everything that has arrived."""
        if self.links:
            self.links.read()
        if self.trace:
            self.trace.read_events(keep=time.monotonic() < self.traced_until)

    @property
    def has_drop(self) -> bool:
        """Whether a rule dropped a packet of the probe."""
        return bool(self.trace and self.trace.has_drop)

    def steps(self) -> tuple[TraceStep, ...]:
        """Return the traced steps."""
        if self.trace and self.trace.lost:
            self._problem("can't trace all firewall rules", "the kernel lost events", "probe again")
        return self.trace.steps() if self.trace else ()


def legacy_rules() -> bool:
    """Return whether the thread's namespace has tables of iptables-legacy."""
    for name in _LEGACY:
        try:
            if Path("/proc/thread-self/net", name).read_text().split():
                return True
        except OSError:
            continue
    return False


def _reason(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "needs CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_RAW"
    return os.strerror(error.errno) if error.errno else str(error)


def _wait(sender: Sender, records: Sequence[_Record], seconds: float) -> Reply | None:
    """Wait for the answer, and read the records meanwhile; None if none comes.

    After a rule has dropped a packet of the probe, it waits only for what that rule sends back."""
    poller = select.poll()
    poller.register(sender.fileno(), select.POLLIN | (select.POLLOUT if sender.is_stream else 0))
    sources = {one.fileno(): record for record in records for one in record.sources}
    for record in records:
        record.traced_until = sender.sent_at + _TRACED
    for descriptor in sources:
        poller.register(descriptor, select.POLLIN)
    end, dropped = time.monotonic() + seconds, False
    while (left := end - time.monotonic()) > 0:
        ready = [descriptor for descriptor, _ in poller.poll(math.ceil(left * 1000))]
        if sender.fileno() in ready and (reply := sender.read()):
            return reply
        for record in {id(sources[one]): sources[one] for one in ready if one in sources}.values():
            record.read()
        if not dropped and any(record.has_drop for record in records):
            dropped, end = True, min(end, time.monotonic() + _AFTER_DROP)
    return None


def _result(
    request: ProbeRequest,
    sender: Sender,
    reply: Reply | None,
    records: Sequence[_Record],
    drops: tuple[DropEvent, ...],
) -> ProbeResult:
    captured = [each for record in records if record.links for each in record.links.captured]
    sightings = sightings_of(captured, sender.marker)
    steps = tuple(step for record in records for step in record.steps())
    return ProbeResult(
        _OUTCOMES[reply.kind] if reply else "no answer",
        sender.marker.addresses,
        rtt=_round_trip(request, sender, reply, sightings),
        sender=reply.sender if reply else "",
        error=reply.error if reply else None,
        arrived=_arrived(request, records, sightings),
        steps=steps,
        sightings=_on_links(request, sightings),
        tracked=_tracked(records, sender.marker.addresses, sightings),
        neighbours=() if reply and reply.kind == "answered" else _unresolved(records, request, sightings),
        drops=drops,
        problems=tuple(problem for record in records for problem in record.problems),
    )


def _on_links(request: ProbeRequest, sightings: tuple[Sighting, ...]) -> tuple[Sighting, ...]:
    if not request.links:
        return sightings
    return tuple(one for one in sightings if one.link in request.links)


def _round_trip(
    request: ProbeRequest, sender: Sender, reply: Reply | None, sightings: Sequence[Sighting]
) -> float | None:
    """Return seconds between request and answer, by the kernel's clock where possible."""
    if reply is None or reply.kind not in ("answered", "refused"):
        return None
    home = [one for one in sightings if one.link.ns == request.namespace.inode]
    sent = next((one.at for one in home if (one.role, one.direction) == ("request", "out")), None)
    got = next((one.at for one in home if one.role != "request" and one.direction == "in"), None)
    if sent is None or got is None or got < sent:
        return reply.at - sender.sent_at
    return got - sent


def _arrived(request: ProbeRequest, records: Sequence[_Record], sightings: Sequence[Sighting]) -> bool | None:
    """Return whether the request reached a link of the target's namespace."""
    if request.destination is None:
        return None
    inode = request.destination.inode
    if not any(record.namespace.inode == inode and record.links for record in records):
        return None
    return any((one.link.ns, one.role, one.direction) == (inode, "request", "in") for one in sightings)


def _tracked(
    records: Sequence[_Record], sent: PacketTuple, sightings: Sequence[Sighting]
) -> tuple[Tracked, ...]:
    """Return the conntrack entries of the request in each namespace that has one."""
    found = []
    for record in records:
        inode = record.namespace.inode
        seen = [one.addresses for one in sightings if (one.link.ns, one.role) == (inode, "request")]
        for addresses in dict.fromkeys((sent, *seen)):
            entry = read_tracked(record.netfilter, inode, addresses) if record.netfilter else None
            if entry:
                found.append(entry)
                break
    return tuple(found)


def _unresolved(
    records: Sequence[_Record], request: ProbeRequest, sightings: Sequence[Sighting]
) -> tuple[UnresolvedNeighbour, ...]:
    """Return next hops that don't answer ARP or NDP, in namespaces that had to send."""
    found = []
    for record in records:
        inode = record.namespace.inode
        seen = {one.addresses.dst for one in sightings if (one.link.ns, one.role) == (inode, "request")}
        if inode == request.namespace.inode:
            seen.add(request.target.partition("%")[0])
        for target in sorted(seen):
            entry = read_unresolved(record.route, inode, target) if record.route else None
            if entry:
                found.append(entry)
    return tuple(found)
