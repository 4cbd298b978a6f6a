"""Format captured packets as lines: time, interface, both ends, protocol, summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from core.capture.packets import PacketTuple, Summary, summary
from core.capture.pcapng import Packet, packet_of

# Returns the owner's name of an address (16 bytes) as seen from a link, by its number.
NameOf = Callable[[int, bytes], str]


class PacketLine(NamedTuple):
    """One packet as text, untrusted and verbatim; `clock` is the local time of day."""

    clock: str
    interface: str
    source: str
    destination: str
    protocol: str
    info: str
    comment: str

    def __str__(self) -> str:
        ends = f"{self.source} → {self.destination}" if self.source or self.destination else "?"
        return f"{self.clock}  {self.interface}  {ends}  {self.protocol}  {self.info}"


class LineMaker:
    """Make lines of the packets of one capture, whose interfaces are given by number."""

    def __init__(
        self, interfaces: Sequence[str], link_types: Sequence[int], name_of: NameOf, brief: bool = False
    ) -> None:
        """With `brief` an end with a name is shown as "web1:80", without its address."""
        self._brief = brief
        self._interfaces, self._link_types, self._name_of = interfaces, link_types, name_of

    def line(self, block: bytes) -> PacketLine:
        """Return the line of a packet block."""
        packet = packet_of(block)
        found = summary(self._link_types[packet.interface], packet.data, packet.length)
        source, destination = self._ends(packet, found)
        name = self._interfaces[packet.interface]
        return PacketLine(
            clock_of(packet.at), name, source, destination, found.protocol, found.info, packet.comment
        )

    def _ends(self, packet: Packet, found: Summary) -> tuple[str, str]:
        ends: PacketTuple | None = found.ends
        if ends is None:
            return found.source, found.destination
        names = (self._name_of(packet.interface, address) for address in (ends.src, ends.dst))
        texts, ports = (found.source, found.destination), (ends.sport, ends.dport)
        source, destination = map(self._end, names, texts, ports)
        return source, destination

    def _end(self, name: str, text: str, port: int) -> str:
        if not name:
            return text
        if not self._brief:
            return f"{name} {text}"
        has_port = text.endswith(f":{port}") and ("." in text or "]" in text)
        return f"{name}:{port}" if has_port else name


def clock_of(at: int) -> str:
    """Format nanoseconds of Unix time as the local time of day with microseconds."""
    seconds, fraction = divmod(at, 1_000_000_000)
    return f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{fraction // 1000:06}"
