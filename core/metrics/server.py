"""HTTP server for Prometheus."""

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
from core.metrics.collector import DropSource, HostCollector
from core.metrics.samples import FastPathSource

_MAX_CLIENTS = 16
_TIMEOUT = 5.0


class MetricsError(Exception):
    """The metrics server can't be started; the text says why."""


class MetricsServer:
    """Serves the metrics of this host until `close`; each scrape has its own thread.

    `address` is "HOST:PORT", "[IPV6]:PORT" or ":PORT" for all addresses. `log` gets messages about what can't
    be read, `fast_path` returns the fast path's numbers, `drops` counts dropped packets. Raises MetricsError.
    """

    def __init__(
        self,
        address: str,
        log: Callable[[str], None],
        fast_path: FastPathSource | None = None,
        drops: DropSource | None = None,
    ) -> None:
        host, port = parse_address(address)
        registry = CollectorRegistry()
        registry.register(HostCollector(log, fast_path, drops))
        ProcessCollector(registry=registry)
        try:
            self._server, self._thread = _start(port, host, registry)
        except OSError as error:
            why = error.strerror or str(error)
            raise MetricsError(f"can't serve metrics at {address}: {why}") from error

    @property
    def port(self) -> int:
        """Return the TCP port of the server."""
        return int(self._server.server_port)

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    """Serves up to _MAX_CLIENTS; a further one replaces the one idle for longest."""

    daemon_threads = True
    request_queue_size = 128  # connections waiting in the kernel

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self.address_family = found[0]
        self._clients: set[Any] = set()
        self._idle: dict[Any, None] = {}
        self._lock = threading.Lock()
        super().__init__(address, handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a client, which has `_TIMEOUT` seconds for its request."""
        client, address = super().get_request()
        deadline = time.monotonic() + _TIMEOUT
        return DeadlineSocket(_TIMEOUT, deadline, fileno=client.detach()), address

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve the client on a thread, or refuse it if all others are busy."""
        with self._lock:
            full = len(self._clients) >= _MAX_CLIENTS
            idle = next(iter(self._idle), None) if full else None
        if idle is not None:
            self._forget(idle)
            with suppress(OSError):
                idle.shutdown(socket.SHUT_RDWR)  # ends its thread, which waits for a request
        elif full:
            self.shutdown_request(request)
            return
        with self._lock:
            self._clients.add(request)
            self._idle[request] = None
        super().process_request(request, client_address)

    def request_received(self, client: Any) -> None:
        """Mark a client as busy: its request is complete."""
        with self._lock:
            self._idle.pop(client, None)

    def _forget(self, client: Any) -> None:
        with self._lock:
            self._clients.discard(client)
            self._idle.pop(client, None)

    def shutdown_request(self, request: Any) -> None:
        """Close the connection of a client."""
        self._forget(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors of clients that disconnected or were too slow."""


class _Handler(WSGIRequestHandler):
    """Handles a client with a time limit for the whole request and for the response."""

    server: _Server

    def parse_request(self) -> bool:
        """Read the request line and headers."""
        complete = super().parse_request()
        self.server.request_received(self.connection)
        self.connection.settimeout(_TIMEOUT)
        return complete

    def log_message(self, format: str, *args: Any) -> None:
        """Don't log scrapes."""


def _start(port: int, host: str, registry: CollectorRegistry) -> tuple[_Server, threading.Thread]:
    server = _Server((host or "0.0.0.0", port), _Handler)
    server.set_app(make_wsgi_app(registry))
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    return server, thread


def parse_address(address: str) -> tuple[str, int]:
    """Parse "HOST:PORT" or "[IPV6]:PORT". Raises MetricsError."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise MetricsError(
            f"can't serve metrics at {address!r}: it isn't HOST:PORT. Try: 127.0.0.1:9742 or [::1]:9742"
        )
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise MetricsError(
            f"can't serve metrics at {address!r}: an IPv6 address needs brackets. Try: [{host}]:{port}"
        )
    return host, int(port)
