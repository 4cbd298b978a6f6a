"""Talk over the control socket: a line of JSON as request, a line as answer.

Requests are objects with `do`: "status", "maps", "targets" (with `targets`, a list of names, and `strict`),
"capture" and "release" (with `address`), "trace" (with `addresses`, `holder`, `seconds`), "untrace" (with
`holder`), "reload", "off". Answers have `ok`, and if it is false `what`
("can't VERB OBJECT"), `why` and `try` ("" if there is no remedy).
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from bpf.runfile import netns_inode, socket_path
from core.text import failure_sentence

_MAX_REQUEST = 1 << 20
TIMEOUT = 20.0  # seconds: on a slow machine a daemon that reads rules answers late

Answer = dict[str, Any]


class NotRunning(Exception):
    """No daemon runs in that network namespace."""


class Server:
    """Listen on the daemon's socket; only its own user may connect."""

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
        """Return the descriptor to wait for."""
        return self._socket.fileno()

    def serve(self, handle: Callable[[dict[str, Any]], Answer]) -> None:
        """Answer one client; don't wait long for one that sends nothing."""
        with suppress(OSError, ValueError):
            connection, _ = self._socket.accept()
            with connection:
                connection.settimeout(0.2)
                request = json.loads(_line(connection))
                reply = handle(request if isinstance(request, dict) else {})
                connection.sendall(json.dumps(reply).encode() + b"\n")

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def refusal(what: str, why: str | Exception, remedy: str = "") -> Answer:
    """Return the answer to a request that can't be executed.

    `what` is "can't VERB OBJECT", `why` the reason or the error that has it.
    """
    if isinstance(why, OSError) and why.strerror:
        why = f"{why.strerror} ({why.filename})" if why.filename else why.strerror
    return {"ok": False, "what": what, "why": str(why), "try": remedy}


def refusal_text(answer: Answer) -> str:
    """Return a refusal as a sentence: "can't VERB OBJECT: REASON. Try: COMMAND"."""
    what = answer.get("what") or "can't execute the request"
    return failure_sentence(what, answer.get("why") or "", answer.get("try") or "")


def ask(request: dict[str, Any], inode: int | None = None, timeout: float = TIMEOUT) -> Answer:
    """Send a request to the daemon of a network namespace (None: this one).

    Raises NotRunning, and OSError if there is no answer within `timeout` seconds.
    """
    path = socket_path(netns_inode() if inode is None else inode)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NotRunning("nothing is accelerated here") from error
        connection.sendall(json.dumps(request).encode() + b"\n")
        try:
            answer = json.loads(_line(connection))
        except ValueError as error:
            raise NotRunning("the daemon ended before it answered") from error
    return dict(answer)


def _line(connection: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n") and len(data) < _MAX_REQUEST:
        more = connection.recv(1 << 16)
        if not more:
            break
        data += more
    return data
