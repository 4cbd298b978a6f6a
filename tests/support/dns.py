"""Serve large DNS answers, and send DNS queries by UDP and TCP."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress

from core.netlink.netns import entered
from tests.support.waiting import PATIENCE

A, TXT = 1, 16
_IN, _OPT, _LARGEST = 1, 41, 4096
_HEADER, _RECORD = struct.Struct("!6H"), struct.Struct("!HHIH")
_EDNS = b"\0" + _RECORD.pack(_OPT, _LARGEST, 0, 0)
TEXT = bytes(range(256)) * 5  # more than a packet without EDNS may hold
PORT = 53


class Server:
    """Answer every query with TEXT in the namespace at that path, until closed."""

    def __init__(self, namespace: str, address: str, udp: int = PORT, tcp: int = PORT) -> None:
        with entered(namespace):
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._socket.bind((address, udp))
            self._listener = socket.create_server((address, tcp))
        for serve in (self._by_udp, self._by_tcp):
            threading.Thread(target=serve, daemon=True).start()

    def _by_udp(self) -> None:
        with suppress(OSError):
            while (received := self._socket.recvfrom(_LARGEST))[0]:  # empty once it is closed
                self._socket.sendto(_answer(received[0]), received[1])

    def _by_tcp(self) -> None:
        with suppress(OSError):
            while True:
                caller, _ = self._listener.accept()
                with caller:
                    answer = _answer(_message(caller))
                    caller.sendall(len(answer).to_bytes(2) + answer)

    def close(self) -> None:
        """Stop answering."""
        for one in (self._socket, self._listener):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def ask(
    namespace: str, server: str, name: str, kind: int = TXT, source: str = "", tcp: bool = False,
    checksum: bool = True, patience: float = PATIENCE,
) -> bytes:  # fmt: skip
    """Return the server's answer to a query from the network namespace at that path.

    Raises OSError.
    """
    with entered(namespace):
        asking = socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
    with asking:
        asking.settimeout(patience)
        asking.bind((source, 0))
        if not checksum:
            asking.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK of asm-generic/socket.h
        asking.connect((server, PORT))  # other senders' datagrams are not received
        asked = question(name, kind)
        asking.sendall((len(asked).to_bytes(2) if tcp else b"") + asked)
        return _message(asking) if tcp else asking.recv(_LARGEST)


def question(name: str, kind: int = TXT) -> bytes:
    """Build a query with EDNS."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return _HEADER.pack(1, 0x100, 1, 0, 0, 1) + labels + b"\0" + struct.pack("!HH", kind, _IN) + _EDNS


def _answer(question: bytes) -> bytes:
    asked = question[_HEADER.size : question.index(b"\0", _HEADER.size) + 5]
    strings = (TEXT[start : start + 255] for start in range(0, len(TEXT), 255))
    data = b"".join(bytes([len(one)]) + one for one in strings)
    header = question[:2] + _HEADER.pack(0, 0x8180, 1, 1, 0, 1)[2:]
    return header + asked + b"\xc0\x0c" + _RECORD.pack(TXT, _IN, 60, len(data)) + data + _EDNS


def _message(stream: socket.socket) -> bytes:
    with stream.makefile("rb") as file:
        return file.read(int.from_bytes(file.read(2)))
