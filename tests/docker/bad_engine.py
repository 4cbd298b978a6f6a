"""A server on a unix socket that answers like an engine gone wrong: bad input for the collectors."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

# What a request's path leads to: pieces of the raw answer, each sent as it comes.
Answers = Callable[[str], Iterator[bytes]]


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, BadEngine)
        with contextlib.suppress(OSError):
            while (request := self.rfile.readline()).strip():
                while self.rfile.readline().strip():
                    pass
                path = request.split()[1].decode()
                self.server.asked.append(path)
                for piece in self.server.answers(path):
                    self.wfile.write(piece)


class BadEngine(socketserver.ThreadingUnixStreamServer):
    """Serves `answers` at `path` within a `with` block; `asked` lists the paths requested, `over` is set at
    the block's end, so that endless answers can end."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, path: Path, answers: Answers) -> None:
        super().__init__(str(path), _Handler)
        self.answers = answers
        self.asked: list[str] = []
        self.over = threading.Event()

    def __enter__(self) -> BadEngine:
        threading.Thread(target=self.serve_forever, args=(0.005,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()


def http(body: bytes, status: str = "200 OK") -> bytes:
    """A complete answer."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
