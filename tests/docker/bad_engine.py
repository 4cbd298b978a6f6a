"""Serve wrong answers on a unix socket, as a broken container engine would."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

# By path of the request: pieces of the raw answer, each sent as it comes.
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
    """Serve `answers` at `path` within a block; `asked` lists the requested paths.

    `over` is set at the block's end, so that endless answers can end.
    """

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
    """Return a complete answer."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
