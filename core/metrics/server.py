"""The HTTP server that Prometheus scrapes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app

from core.collect.engine_http import DeadlineSocket
from core.metrics.collector import HostCollector
from core.metrics.samples import FastPathSource

_MOST_CLIENTS = 16
_PATIENCE = 5.0


class MetricsError(Exception):
    """Metrics cannot be served; the text says why and what to try."""


class MetricsServer:
    """Serves the metrics of this host at `address`, "HOST:PORT" or "[IPV6]:PORT" ("" for the host: every
    address), until it is closed; scrapes run on threads of their own.

    `say` hears of what cannot be read; `fast_path` gives the fast path's numbers. Raises MetricsError.
    """

    def __init__(
        self, address: str, say: Callable[[str], None], fast_path: FastPathSource | None = None
    ) -> None:
        host, port = parsed(address)
        registry = CollectorRegistry()
        registry.register(HostCollector(say, fast_path))
        ProcessCollector(registry=registry)
        try:
            self._server, self._thread = _started(port, host, registry)
        except OSError as error:
            why = error.strerror or str(error)
            raise MetricsError(f"metrics cannot be served at {address}: {why}") from error

    @property
    def port(self) -> int:
        """The TCP port that it listens on."""
        return int(self._server.server_port)

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    """Has so many clients at once: a further one takes the place of the one that has been silent longest."""

    daemon_threads = True
    request_queue_size = 128  # that wait for their turn in the kernel

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self.address_family = found[0]
        self._clients: set[Any] = set()
        self._silent: dict[Any, None] = {}
        self._lock = threading.Lock()
        super().__init__(address, handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a client, which has `_PATIENCE` seconds for its request."""
        client, address = super().get_request()
        deadline = time.monotonic() + _PATIENCE
        return DeadlineSocket(_PATIENCE, deadline, fileno=client.detach()), address

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the client a thread, if there is one for it."""
        with self._lock:
            full = len(self._clients) >= _MOST_CLIENTS
            silent = next(iter(self._silent), None) if full else None
        if silent is not None:
            self._forget(silent)
            with suppress(OSError):
                silent.shutdown(socket.SHUT_RDWR)  # its thread, which waits for it, ends
        elif full:
            self.shutdown_request(request)
            return
        with self._lock:
            self._clients.add(request)
            self._silent[request] = None
        super().process_request(request, client_address)

    def asked(self, client: Any) -> None:
        """A client has sent its whole request."""
        with self._lock:
            self._silent.pop(client, None)

    def _forget(self, client: Any) -> None:
        with self._lock:
            self._clients.discard(client)
            self._silent.pop(client, None)

    def shutdown_request(self, request: Any) -> None:
        """Close a client's connection."""
        self._forget(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or was too slow, is no matter for the log."""


class _Handler(WSGIRequestHandler):
    """Gives a client so long for its request, however it is cut into bytes, and as long for the answer."""

    server: _Server

    def parse_request(self) -> bool:
        """Read the head of the request."""
        whole = super().parse_request()
        self.server.asked(self.connection)
        self.connection.settimeout(_PATIENCE)
        return whole

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not worth a line each."""


def _started(port: int, host: str, registry: CollectorRegistry) -> tuple[_Server, threading.Thread]:
    server = _Server((host or "0.0.0.0", port), _Handler)
    server.set_app(make_wsgi_app(registry))
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    return server, thread


def parsed(address: str) -> tuple[str, int]:
    """Host and port of "HOST:PORT". Raises MetricsError."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise MetricsError(f"{address!r} is no HOST:PORT, such as 127.0.0.1:9742 or [::1]:9742")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise MetricsError(f"{address!r}: write an IPv6 address as [ADDRESS]:PORT")
    return host, int(port)
