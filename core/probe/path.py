"""Measure the path MTU, and list the hops of a path, with bounded time.

Both send probes as `core.probe.run` does, and read the ICMP errors about them: "fragmentation needed" with
the MTU of the next link (RFC 1191, RFC 8201), and "time exceeded".
"""

from __future__ import annotations

import errno
import select
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import batched

from core.model.probe import Hop, IcmpError, MtuStep, PathMtu, ProbeRequest, Sighting
from core.probe.run import check, entering, make_sender, probe
from core.probe.sender import Reply, Sender, local_error

_SMALLEST, _LARGEST = {4: 68, 6: 1280}, 65535  # bytes of a packet that every link carries, and of any packet
_SHORTEST_WAIT, _LONGEST_WAIT = 0.1, 1.0  # seconds for one answer
_ROUND_TRIPS = 4  # for one answer, and a little more
_UDP_PORT = 33434  # the first port of traceroute(8)
_MOST_HOPS = 30
_AT_ONCE = 4  # hops probed at the same time
_SILENT_HOPS = 8  # in a row, after which the rest is taken for silent too


def path_mtu(request: ProbeRequest, seconds: float = 5.0) -> PathMtu:
    """Measure the path MTU by ICMP echo or UDP; for a request by TCP by ICMP echo.

    Takes at most about `seconds`. Raises ProbeError as `probe` does."""
    check(request)
    if request.protocol == "tcp":
        request = replace(request, protocol="icmp")
    measurement = _Measurement(request, time.monotonic() + seconds)
    if not measurement.begin() and request.protocol == "icmp" and not measurement.error:
        measurement.request = replace(request, protocol="udp", port=_UDP_PORT)
        measurement.begin()
    return measurement.result()


@dataclass(slots=True)
class _Measurement:
    """Find the largest packet that fits: `fits` does, `too_large` doesn't."""

    request: ProbeRequest
    end: float
    fits: int = 0
    too_large: int = _LARGEST + 1
    wait: float = _LONGEST_WAIT
    steps: list[MtuStep] = field(default_factory=list)
    error: IcmpError | None = None

    def begin(self) -> bool:
        """Send the smallest packet; return whether it was answered."""
        began = time.monotonic()
        size = _SMALLEST[6 if ":" in self.request.target else 4]
        reply = self._attempt(size) or self._attempt(size)
        if reply is None or not _arrived(reply):
            self.error = reply.error if reply else None
            return False
        self.fits = size
        likely = _ROUND_TRIPS * (reply.at - began)
        self.wait = min(max(likely, _SHORTEST_WAIT), _LONGEST_WAIT)
        return True

    def result(self) -> PathMtu:
        """Follow the reported limits down, then search between what is left."""
        if not self.fits:
            return PathMtu(None, error=self.error)
        while self._follow():
            pass
        silent = self.too_large - self.fits > 1 and not self.error
        if silent:
            self._search()
        complete = self.too_large - self.fits <= 1
        last_hop = self._last_hop() if silent and complete else ""
        last_seen = self._last_seen() if silent and complete else None
        steps = tuple(self.steps)
        return PathMtu(self.fits, steps, silent, last_hop, last_seen, complete, self.error)

    def _follow(self) -> bool:
        """Try the largest size that may fit; return whether another limit was reported."""
        size = self.too_large - 1
        reply = self._attempt(size) or self._attempt(size)
        if reply is None or time.monotonic() > self.end:
            self.too_large = size if reply is None else self.too_large
            return False
        return self._took(size, reply) and self.fits < size

    def _took(self, size: int, reply: Reply) -> bool:
        """Use a reply to a packet of that size; return whether it says how to go on."""
        if _arrived(reply):
            self.fits = size
            return True
        if reply.kind != "too big" or reply.error is None:
            self.error = reply.error
            return False
        mtu = reply.error.mtu
        if not self.fits <= mtu < size:  # RFC 1191: old routers report 0
            self.too_large = size
            return False
        self.steps.append(MtuStep(mtu, reply.sender))
        self.too_large = mtu + 1
        return True

    def _search(self) -> None:
        """Bisect while larger packets vanish."""
        while self.too_large - self.fits > 1 and time.monotonic() < self.end and not self.error:
            size = (self.fits + self.too_large) // 2
            reply = self._attempt(size)
            if reply is None:
                self.too_large = size
            else:
                self._took(size, reply)

    def _attempt(self, size: int, ttl: int = 0) -> Reply | None:
        left = self.end - time.monotonic()
        request = replace(self.request, size=size)
        return _ask(request, ttl, min(self.wait, left)) if left > 0 else None

    def _last_hop(self) -> str:
        """Return the last router that a too large packet reaches, "" if none answers."""
        last = ""
        for ttl in range(1, _MOST_HOPS):
            reply = self._attempt(self.too_large, ttl)
            if reply is None or reply.kind != "expired":
                break
            last = reply.sender
        return last

    def _last_seen(self) -> Sighting | None:
        """Return where a too large packet is seen last on this host."""
        request = replace(self.request, size=self.too_large, timeout=self.wait, trace=False)
        seen = [one for one in probe(request).sightings if one.role == "request"]
        return seen[-1] if seen else None


def _arrived(reply: Reply) -> bool:
    return reply.kind in ("answered", "refused")


def _ask(request: ProbeRequest, ttl: int, seconds: float) -> Reply | None:
    """Send one packet and return its reply, None if none comes."""
    with ExitStack() as stack:
        try:
            with entering(request):
                sender = stack.enter_context(make_sender(request, ttl))
        except OSError as error:
            return Reply("unreachable", error=local_error(error.errno or errno.EIO))
        return _replies([sender], seconds)[0]


def _replies(senders: list[Sender], seconds: float) -> list[Reply | None]:
    """Send all packets, and wait for their replies."""
    found = [sender.send() for sender in senders]
    poller = select.poll()
    places = {sender.fileno(): place for place, sender in enumerate(senders)}
    for sender, reply in zip(senders, found, strict=True):
        if reply is None:
            poller.register(sender.fileno(), select.POLLIN | (select.POLLOUT if sender.is_stream else 0))
    end = time.monotonic() + seconds
    while None in found and (left := end - time.monotonic()) > 0:
        for descriptor, _ in poller.poll(left * 1000):
            place = places[descriptor]
            found[place] = senders[place].read()
            if found[place]:
                poller.unregister(descriptor)
    return found


def hops(request: ProbeRequest, seconds: float = 5.0, most: int = _MOST_HOPS) -> tuple[Hop, ...]:
    """List the routers up to the target, or up to an error, as traceroute(8) does.

    Silent routers have no address; those at the end are left out. Takes at most about `seconds`. Raises
    ProbeError as `probe` does."""
    check(request)
    end, found = time.monotonic() + seconds, list[Hop]()
    for ttls in batched(range(1, most + 1), _AT_ONCE):
        left = end - time.monotonic()
        silent = len(found) - max((one.ttl for one in found if one.address), default=0)
        if left <= 0 or silent >= _SILENT_HOPS:
            break
        for hop in _hops_at(request, ttls, min(left, request.timeout)):
            found.append(hop)
            if hop.is_target or hop.error:
                return tuple(found)
    while found and not found[-1].address:
        found.pop()
    return tuple(found)


def _hops_at(request: ProbeRequest, ttls: tuple[int, ...], seconds: float) -> Iterator[Hop]:
    """Probe some TTLs at once; yield their hops."""
    with ExitStack() as stack:
        try:
            with entering(request):
                senders = [stack.enter_context(make_sender(request, ttl)) for ttl in ttls]
        except OSError as error:
            yield Hop(ttls[0], error=local_error(error.errno or errno.EIO))
            return
        replies = _replies(senders, seconds)
    for ttl, sender, reply in zip(ttls, senders, replies, strict=True):
        yield _hop(ttl, reply, reply.at - sender.sent_at) if reply else Hop(ttl)


def _hop(ttl: int, reply: Reply, seconds: float) -> Hop:
    if reply.kind == "expired":
        return Hop(ttl, reply.sender, seconds)
    return Hop(ttl, reply.sender, seconds, _arrived(reply), None if _arrived(reply) else reply.error)
