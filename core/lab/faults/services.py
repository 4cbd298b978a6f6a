"""List faults of the containers' services."""

from __future__ import annotations

from core.lab.faults.fault import Culprit, Fault, Probe

_WEB1_PORT = Probe("internet", "192.0.2.10", port=8080)
_API_TO_CACHE = Probe("api", "cache", port=6379)
_START_WEB1 = ("lab stop web1", "lab start web1")

SERVICES = (
    Fault(
        "service-dead", "web1's service is dead",
        ("lab stop web1",), _WEB1_PORT, Culprit("container", "web1"),
        undo=("lab start web1",),
    ),
    Fault(
        "service-on-loopback", "web1's service listens on 127.0.0.1 only",
        ("lab stop web1", "lab start web1 'serve-http 80 address=127.0.0.1'"),
        _WEB1_PORT, Culprit("container", "web1"), undo=_START_WEB1,
    ),
    Fault(
        "service-on-other-port", "web1's service listens on port 8080, not on 80",
        ("lab stop web1", "lab start web1 'serve-http 8080'"),
        _WEB1_PORT, Culprit("container", "web1"), undo=_START_WEB1,
    ),
    Fault(
        "service-ipv6-only", "cache's service listens on IPv6 only",
        ("lab stop cache", "lab start cache 'serve-http 6379 address=::'"),
        _API_TO_CACHE, Culprit("container", "cache"),
        undo=("lab stop cache", "lab start cache"), ipv6=True,
    ),
    Fault(
        "internal-service-dead", "db's service is dead",
        ("lab stop db",), Probe("api", "db", port=5432), Culprit("container", "db"),
        undo=("lab start db",),
    ),
)  # fmt: skip
