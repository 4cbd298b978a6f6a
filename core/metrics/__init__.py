"""Serve Prometheus metrics of a host's networks, read at each scrape.

Needs `prometheus_client`.
"""

from core.metrics.samples import FastPathNumbers, FastPathSource
from core.metrics.server import MetricsError, MetricsServer

__all__ = ["FastPathNumbers", "FastPathSource", "MetricsError", "MetricsServer"]
