"""The HTTP server that Prometheus scrapes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

from core.metrics.collector import HostCollector
from core.metrics.fastpath import FastPathSource


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


def _started(port: int, host: str, registry: CollectorRegistry) -> tuple[WSGIServer, threading.Thread]:
    return start_http_server(port, host or "0.0.0.0", registry)


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
