"""Receive packets from the rings of several links, in the order of time."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from core.capture import CaptureError, pcapng
from core.capture.context import LiveComments
from core.capture.encoder import LINK_TYPES, Encoder, Record
from core.capture.files import PacketFile, ReaderGone
from core.capture.filter import Filter, compile_filter
from core.capture.ring import RETIRE_MS, Ring
from core.capture.targets import CaptureLink, Target
from core.collect.namespaces import read_namespaces
from core.netlink.netns import NamespaceGone, inode_of
from core.text import safe
from core.topology import Topology

SNAP_LENGTH = 262_144
_TICK = 0.1  # seconds
_CHECK = 1.0  # seconds between checks of the namespaces and readings of the counters
_ALL_COMMENTS = 30.0  # seconds after which all comments are made again
# Packets of several links are sorted; each waits until every ring has handed over what came before it.
_SETTLED = 3 * RETIRE_MS * 1_000_000
_MOST_WAITING = 500_000
_MOST_HELD = 2_000_000  # bytes of the ring


@dataclass(frozen=True, slots=True)
class Limits:
    """When a capture ends.

    `count` in packets (0: no limit), `size` of a file in bytes; with `ring` files the size of each."""

    count: int = 0
    seconds: float = 600.0
    size: int = 256_000_000
    ring: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a capture is.

    `packets` were delivered, `dropped` by the kernel; `size` in bytes of blocks; `ended` is why it has ended,
    "" while it runs; `error` the sentence of a failure."""

    packets: int = 0
    dropped: int = 0
    size: int = 0
    seconds: float = 0.0
    ended: str = ""
    error: str = ""


class Sink(Protocol):
    """Takes packets in the order of time."""

    def add(self, records: Sequence[Record]) -> str:
        """Take packets; return why no more are wanted, or "". Raises CaptureError."""
        ...


@dataclass(slots=True)
class _Source:
    """One link while it is captured."""

    link: CaptureLink
    ring: Ring
    encoder: Encoder
    link_type: int
    entry: str
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """What is captured, and how.

    `promiscuous` also receives packets for other MAC addresses; `comments` names the ends of each packet."""

    target: Target
    topology: Topology
    filter: str = ""
    snap_length: int = SNAP_LENGTH
    promiscuous: bool = True
    comments: bool = True
    limits: Limits = field(default_factory=Limits)
    application: str = "vnet-tui"


def combined_filter(own: str, given: str) -> str:
    """Return a filter that matches what both match."""
    return f"({own}) and ({given})" if own and given else own or given


class Capture:
    """One capture; `run` receives until a limit, `stop`, or the end of all links.

    The sockets are opened in the namespaces of the links and closed at the end of `run`; a namespace that
    has no other user ends the capture of its links. Raises CaptureError in `open`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.link_types: tuple[int, ...] = ()
        self.names: tuple[str, ...] = tuple(link.name for link in settings.target.links)
        self._comments = LiveComments(settings.topology, {link.key.ns for link in settings.target.links})
        self._sources: list[_Source] = []
        self._sinks: list[Sink] = []
        self._waiting: list[Record] = []
        self._lock = threading.Lock()
        self._why = ""
        self._filters: dict[int, Filter] | None = None
        self._filter_text = settings.filter
        self._progress = Progress()
        self._began = time.time_ns()
        self._started = time.monotonic()
        self._is_pending = False
        self._held: list[tuple[_Source, bytes]] = []

    # ---- before

    def open(self) -> None:
        """Open the sockets; packets count from now on. Raises CaptureError."""
        settings = self.settings
        try:
            self._filters = self.compile(settings.filter)
            for number, link in enumerate(settings.target.links):
                self._sources.append(self._open(number, link))
            self.link_types = tuple(source.link_type for source in self._sources)
            self._apply_filters(first=True)
        except BaseException:
            self.close()
            raise
        self._started, self._began = time.monotonic(), time.time_ns()

    def compile(self, text: str) -> dict[int, Filter]:
        """Compile a filter for each type of link. Raises CaptureError."""
        both = combined_filter(self.settings.target.filter, text)
        types = dict.fromkeys(self.link_types or (pcapng.ETHERNET, pcapng.RAW_IP))
        compiled, failure = {}, None
        for link_type in types:
            try:
                compiled[link_type] = compile_filter(both, link_type, self.settings.snap_length)
            except CaptureError as error:
                failure = failure or error
        if failure and (pcapng.ETHERNET not in compiled or self.link_types):
            raise failure
        return compiled

    def set_filter(self, text: str) -> None:
        """Use another filter from now on, from any thread. Raises CaptureError."""
        compiled = self.compile(text)
        with self._lock:
            self._filters, self._filter_text = compiled, text

    def _open(self, number: int, link: CaptureLink) -> _Source:
        title = safe(link.name)
        try:
            if not link.entry:
                raise NamespaceGone
            ring = Ring(link.entry, link.key, len(self.settings.target.links))
        except NamespaceGone:
            raise CaptureError(f"can't capture {title}: its namespace no longer exists") from None
        except PermissionError:
            raise CaptureError(
                "can't capture packets: this process lacks CAP_NET_RAW or CAP_SYS_ADMIN. "
                "Try: run it with sudo"
            ) from None
        except OSError as error:
            raise CaptureError(f"can't capture {title}: {error.strerror or error}") from None
        link_type = LINK_TYPES.get(ring.hardware_type)
        if link_type is None:
            ring.close()
            raise CaptureError(f"can't capture {title}: its packets have hardware type {ring.hardware_type}")
        commenter = self._comments.commenter(link.key.ns) if self.settings.comments else None
        encoder = Encoder(number, link_type, commenter, link.is_loopback)
        return _Source(link, ring, encoder, link_type, link.entry)

    def _apply_filters(self, first: bool = False) -> None:
        with self._lock:
            filters, self._filters = self._filters, None
        if filters is None:
            return
        for source in self._sources:
            chosen = filters.get(source.link_type)
            if chosen is None:  # a tunnel, which has no such packets
                chosen = compile_filter("less 0", source.link_type, self.settings.snap_length)
            source.encoder.accepts = None if chosen.in_kernel else chosen.accepts
            try:
                if first:
                    source.ring.start(chosen, self.settings.promiscuous and source.link.promiscuous)
                elif not source.gone:
                    chosen.attach(source.ring.socket)
            except OSError as error:
                name = safe(source.link.name)
                raise CaptureError(f"can't capture {name}: {error.strerror or error}") from None

    # ---- files

    def header(self) -> bytes:
        """Return the blocks that a file begins with."""
        settings, host = self.settings, self.settings.topology.snapshot.host
        title = f"{settings.target.title} on {host.hostname or os.uname().nodename}"
        blocks = [pcapng.section(settings.application, f"Linux {os.uname().release}", title)]
        text = combined_filter(settings.target.filter, self._filter_text)
        for source in self._sources:
            link = source.link
            block = pcapng.interface(
                source.link_type, settings.snap_length, link.name, link.description, source.ring.mac, text
            )
            blocks.append(block)
        return b"".join(blocks)

    def trailer(self) -> bytes:
        """Return the statistics of each link, which a file ends with."""
        now, found = time.time_ns(), []
        for number, source in enumerate(self._sources):
            ring = source.ring
            delivered = max(0, ring.received - ring.dropped)
            found.append(pcapng.statistics(number, self._began, now, ring.received, ring.dropped, delivered))
        return b"".join(found)

    def new_file(self, path: Path | None) -> PacketFile:
        """Create a file for this capture; None is standard output. Raises CaptureError."""
        limits = self.settings.limits
        return PacketFile(path, self.header(), self._counted_trailer, limits.size, limits.ring)

    def _counted_trailer(self) -> bytes:
        for source in self._sources:
            source.ring.count()
        return self.trailer()

    # ---- while it runs

    def add_sink(self, sink: Sink) -> None:
        """Give all further packets to a sink as well, from any thread."""
        with self._lock:
            self._sinks = [*self._sinks, sink]

    def remove_sink(self, sink: Sink) -> None:
        """Give it no more packets."""
        with self._lock:
            self._sinks = [one for one in self._sinks if one is not sink]

    def stop(self, why: str) -> None:
        """End the capture soon, from any thread or a signal handler."""
        self._why = self._why or why

    @property
    def progress(self) -> Progress:
        """The progress so far."""
        return self._progress

    @property
    def comments(self) -> LiveComments:
        """What names the ends of packets."""
        return self._comments

    def run(self) -> Progress:
        """Receive until the end; the sockets are closed then."""
        error = ""
        try:
            why, is_full = self._receive()
            why = why if is_full else self._deliver(self._drain()) or why
        except ReaderGone:
            why = "its reader ended"
        except CaptureError as failure:
            why, error = "an error", str(failure)
        except OSError as failure:
            why, error = "an error", f"can't continue the capture: {failure.strerror or failure}"
        finally:
            for source in self._sources:
                source.ring.count()
        self._update(why, error)
        return self._progress

    def close(self) -> None:
        """Close the sockets; call it after `run`, when files are complete."""
        for source in self._sources:
            source.ring.close()

    def _receive(self) -> tuple[str, bool]:
        """Deliver packets until the end; return why, and whether no more are wanted."""
        poller = select.poll()
        for source in self._sources:
            poller.register(source.ring.socket, select.POLLIN)
        checked = renewed = time.monotonic()
        while True:
            events = dict(poller.poll(_TICK * 1000))
            if full := self._deliver(self._read()):
                return full, True
            for source in self._sources:
                if events.get(source.ring.socket.fileno(), 0) & ~select.POLLIN and source.ring.is_gone():
                    self._lose(source, poller)
            now = time.monotonic()
            if now >= checked + _CHECK:
                checked = now
                self._check_namespaces(poller)
            if now >= renewed + _ALL_COMMENTS:
                renewed = now
                for source in self._sources:
                    source.encoder.renew(all_comments=True)
            self._apply_filters()
            self._update()
            if why := self._over(now):
                return why, False

    def _over(self, now: float) -> str:
        if self._why:
            return self._why
        if all(source.gone for source in self._sources):
            names = ", ".join(safe(source.link.name) for source in self._sources[:3])
            return f"the end of {names}, which no longer exists"
        limits = self.settings.limits
        return f"the time limit of {limits.seconds:g} s" if now >= self._started + limits.seconds else ""

    def _read(self, last: bool = False) -> list[Record]:
        """Return the packets that have arrived, in the order of time.

        Few packets with a new flow wait until connections and sockets may be read again, unless they are the
        `last`: a short connection would be over before its comment is complete."""
        filled = [
            *self._held,
            *((source, block) for source in self._sources for block in source.ring.blocks()),
        ]
        may_wait = not last and self._comments.is_due_soon and sum(len(one) for _, one in filled) < _MOST_HELD
        if self._held and may_wait:
            self._held = filled
            return []
        encoded, self._held = [source.encoder.encode(block) for source, block in filled], []
        if self.settings.comments:
            self._is_pending = self._is_pending or any(one.encoder.new_flows for one in self._sources)
            if self._is_pending and may_wait:
                self._held, encoded = filled, []
                self._renew_comments()
            elif self._is_pending and self._comments.is_due and self._comments.refresh():
                self._renew_comments()
                self._is_pending = False
                encoded = [source.encoder.encode(block) for source, block in filled]
        records = [record for each in encoded for record in each]
        return records if len(self._sources) == 1 else self._sorted(records)

    def _renew_comments(self) -> None:
        for source in self._sources:
            source.encoder.new_flows = False
            source.encoder.renew()

    def _sorted(self, records: list[Record], all_of_them: bool = False) -> list[Record]:
        """Sort packets of several links; the newest wait for older ones of other links."""
        waiting = self._waiting
        waiting += records
        waiting.sort(key=_time)
        settled = time.time_ns() - _SETTLED
        count = len(waiting)
        if not all_of_them and count < _MOST_WAITING:
            while count and waiting[count - 1][0] > settled:
                count -= 1
        ready, self._waiting = waiting[:count], waiting[count:]
        return ready

    def _drain(self) -> list[Record]:
        """Return the packets of blocks that the kernel still fills, and those that wait."""
        time.sleep(2 * RETIRE_MS / 1000)
        records = self._read(last=True)
        return records + self._sorted([], all_of_them=True) if len(self._sources) > 1 else records

    def _deliver(self, records: list[Record]) -> str:
        """Give packets to all sinks; return why the capture ends, "" if it goes on."""
        limit, done = self.settings.limits.count, self._progress.packets
        if limit:
            records = records[: max(0, limit - done)]
        with self._lock:
            sinks = self._sinks
        full = ""
        for sink in sinks if records else ():
            full = sink.add(records) or full
        size = self._progress.size + sum(len(block) for _, block in records)
        self._progress = Progress(done + len(records), self._progress.dropped, size, self._seconds)
        if limit and self._progress.packets >= limit:
            return full or f"the limit of {limit:,} packets"
        return full

    def _update(self, why: str = "", error: str = "") -> None:
        made = self._progress
        dropped = sum(source.ring.dropped for source in self._sources)
        self._progress = Progress(made.packets, dropped, made.size, self._seconds, why, error)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _lose(self, source: _Source, poller: select.poll) -> None:
        """Stop receiving from a link that no longer exists."""
        source.gone = True
        source.ring.count()
        poller.unregister(source.ring.socket)

    def _check_namespaces(self, poller: select.poll) -> None:
        """Count drops; end the capture in namespaces that only its sockets keep alive."""
        for source in self._sources:
            source.ring.count()
            if not source.gone and not _is_there(source.entry, source.link.key.ns):
                source.entry = _other_entry(source.link.key.ns)
                if not source.entry:
                    self._lose(source, poller)


def _time(record: Record) -> int:
    return record[0]


def _is_there(entry: str, ns: int) -> bool:
    with suppress(OSError):
        return inode_of(entry) == ns
    return False


def _other_entry(ns: int) -> str:
    """Return another path of a namespace, "" if there is none."""
    for deep in (False, True):
        found = read_namespaces(deep)[0].get(ns)
        if found is not None and found.entry:
            return found.entry
    return ""


def thread_of(capture: Capture, ended: Callable[[Progress], None]) -> threading.Thread:
    """Return a thread that runs an opened capture and reports its end."""

    def run() -> None:
        ended(capture.run())

    return threading.Thread(target=run, name="capture", daemon=True)
