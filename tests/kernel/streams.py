"""Send load through a lab: numbered UDP, and many TCP connections.

UDP has a steady pace in both directions; every TCP byte is checked.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import Self

from tests.kernel.fastlab import FastLab
from tests.support.fastpath import Talk
from tests.support.waiting import PATIENCE, eventually

_HEAD = struct.Struct("=QQd")  # stream, number, time of sending
_TAIL = bytes(range(200))
_SILENCE = 150  # datagrams
_FORCE = {"rcv": 33, "snd": 32}  # SO_RCVBUFFORCE, SO_SNDBUFFORCE
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass
class Received:
    """Hold what arrived at one side: when each number was sent, and its sender."""

    sent_at: dict[int, float] = field(default_factory=dict)
    sources: list[tuple[str, int]] = field(default_factory=list)
    twice: int = 0
    damaged: int = 0

    def take(self, data: bytes, source: tuple[str, int]) -> int:
        """Note a datagram; return its number."""
        _, number, sent = _HEAD.unpack_from(data)
        self.damaged += data[_HEAD.size :] != _TAIL
        self.twice += number in self.sent_at
        self.sent_at[number] = sent
        if not self.sources or self.sources[-1] != source:
            self.sources.append(source)
        return int(number)

    @property
    def latest(self) -> float:
        """Return the newest sending time of all that arrived."""
        return max(self.sent_at.values(), default=0.0)


class Stream:
    """Send numbered UDP from one end to another on a thread until `stop`.

    Each datagram is answered.
    """

    def __init__(
        self, lab: FastLab, here: str, there: str, address: str, port: int = 6000, to: int = 0,
        family: int = 4, pace: float = 0.004, answered: bool = True,
    ) -> None:  # fmt: skip
        self.client, self.server = (self._socket(lab, end, family) for end in (here, there))
        self.server.bind(("::" if family == 6 else "0.0.0.0", port))
        self.client.bind(("::" if family == 6 else "0.0.0.0", port + 1000))
        self._address = (address, to or port)
        self._pace, self._answered = pace, answered
        self.sent = 0
        self.there, self.back = Received(), Received()
        self.errors = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @staticmethod
    def _socket(lab: FastLab, end: str, family: int) -> socket.socket:
        made = lab.socket(end, FAMILIES[family], socket.SOCK_DGRAM)
        made.setblocking(False)
        for option in _FORCE.values():
            made.setsockopt(socket.SOL_SOCKET, option, 8 << 20)
        return made

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            now = time.monotonic()
            if now >= due:
                due = max(due + self._pace, now - 0.05)
                self._send()
            ready, _, _ = select.select([self.client, self.server], [], [], max(0, due - time.monotonic()))
            self._receive(ready)

    def _send(self) -> None:
        try:
            self.client.sendto(_HEAD.pack(id(self), self.sent, time.monotonic()) + _TAIL, self._address)
            self.sent += 1
        except OSError:  # an ICMP error came back: nothing was sent
            self.errors += 1

    def _receive(self, ready: list[socket.socket]) -> None:
        for each in ready:
            try:
                data, source = each.recvfrom(2000)
            except OSError:
                self.errors += 1
                continue
            if each is self.client:
                self.back.take(data, source[:2])
                continue
            self.there.take(data, source[:2])
            if self._answered:
                head = _HEAD.unpack_from(data)
                each.sendto(_HEAD.pack(head[0], head[1], time.monotonic()) + _TAIL, source)

    def flows(self, more: int = 20) -> bool:
        """Wait until that many more came back (or arrived, without answers)."""
        received = self.back if self._answered else self.there
        before = len(received.sent_at)
        return bool(eventually(lambda: len(received.sent_at) >= before + more))

    def is_cut(self, received: Received) -> bool:
        """Wait until none of so many consecutive datagrams arrives at that side."""
        return bool(eventually(lambda: self.sent > max(received.sent_at, default=0) + _SILENCE))

    def stop(self) -> None:
        """Stop sending, and receive what is under way."""
        self._stop.set()
        self._thread.join()
        deadline = time.monotonic() + PATIENCE
        while self.lost() and time.monotonic() < deadline:
            ready, _, _ = select.select([self.client, self.server], [], [], 0.1)
            self._receive(ready)

    def lost(self) -> list[int]:
        """Return the numbers that did not come back (or arrive) after the first that did."""
        received = self.back if self._answered else self.there
        first = min(received.sent_at, default=0)
        return [number for number in range(first, self.sent) if number not in received.sent_at]

    def close(self) -> None:
        """Stop and close."""
        self._stop.set()
        self._thread.join()
        self.client.close()
        self.server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TcpConnections:
    """Talk on many TCP connections in turn, on a thread, until `stop`."""

    def __init__(self, lab: FastLab, ways: list[tuple[str, str, str, int]], count: int) -> None:
        """Open the connections.

        `ways`: from, to, address, the first server's port: each connection has its own.
        """
        self.talks: list[Talk] = []
        for number in range(count):
            here, there, address, port = ways[number % len(ways)]
            self.talks.append(Talk(lab.host, here, there, address, port + number))
        self.rounds = 0
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                for talk in self.talks:
                    talk.say()
                self.rounds += 1
                self._stop.wait(0.02)
        except BaseException as error:
            self.error = error

    def goes_on(self, rounds: int = 3) -> bool:
        """Return whether every connection talks that many times more."""
        before = self.rounds
        eventually(lambda: self.error or self.rounds >= before + rounds)
        assert self.error is None, repr(self.error)
        return self.rounds >= before + rounds

    def close(self) -> None:
        """Stop and close all."""
        self._stop.set()
        self._thread.join()
        for talk in self.talks:
            talk.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_fast(lab: FastLab, *ports: str) -> bool:
    """Wait until the fast path takes packets at each of these ports.

    Always true without a fast path.
    """
    if lab.fast is None:
        return True
    count = lab.fast.count
    before = {port: count("FAST", port) for port in ports}
    return all(eventually(lambda port=port: count("FAST", port) > before[port] + 5) for port in ports)


def talks_fast(lab: FastLab, talk: Talk, *ports: str) -> bool:
    """Wait until ten rounds take the fast path at each of these ports.

    Always true without a fast path.
    """

    def grows(port: str) -> bool:
        before = lab.counted(port)
        talk.say(10)
        return lab.took_fast(port, 10, before)

    return all(eventually(lambda port=port: grows(port)) for port in ports or ("v-a",))
