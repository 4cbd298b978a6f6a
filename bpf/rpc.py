"""The control socket: one line of JSON asks, one line answers, then it is closed.

Requests are objects with `do`: "status", "maps", "targets" (with `targets`, a list of names, and `strict`),
"capture" and "release" (with `address`), "reload", "off". Answers have `ok`, and where it is false `what`,
`why` and `try`.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from bpf.runfile import here, socket_path

_MOST = 1 << 20
PATIENCE = 20.0  # seconds: on a slow machine a holder that reads rules answers late

Answer = dict[str, Any]


class NotRunning(Exception):
    """Nobody accelerates that network namespace."""


class Server:
    """The listening socket of a holder; only its own user may connect."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        before = os.umask(0o177)
        try:
            self._socket.bind(str(path))
        finally:
            os.umask(before)
        self._socket.listen(16)

    def fileno(self) -> int:
        """What to wait for."""
        return self._socket.fileno()

    def serve(self, answer: Callable[[dict[str, Any]], Answer]) -> None:
        """Answer one that knocked; one that says nothing is not waited for long."""
        with suppress(OSError, ValueError):
            there, _ = self._socket.accept()
            with there:
                there.settimeout(0.2)
                request = json.loads(_line(there))
                told = answer(request if isinstance(request, dict) else {})
                there.sendall(json.dumps(told).encode() + b"\n")

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()


def ask(request: dict[str, Any], inode: int | None = None, patience: float = PATIENCE) -> Answer:
    """Ask the holder of a network namespace (None: this one); raises NotRunning, OSError where it does not
    answer within `patience` seconds."""
    path = socket_path(here() if inode is None else inode)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as there:
        there.settimeout(patience)
        try:
            there.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NotRunning("nothing is accelerated here") from error
        there.sendall(json.dumps(request).encode() + b"\n")
        try:
            answer = json.loads(_line(there))
        except ValueError as error:
            raise NotRunning("it ended while it was asked") from error
    return dict(answer)


def _line(there: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n") and len(data) < _MOST:
        more = there.recv(1 << 16)
        if not more:
            break
        data += more
    return data
