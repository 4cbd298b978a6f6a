"""Prometheus metrics of a host's networks, read when they are asked for; needs `prometheus_client`."""

from core.metrics.samples import FastPathNumbers, FastPathSource
from core.metrics.server import MetricsError, MetricsServer

__all__ = ["FastPathNumbers", "FastPathSource", "MetricsError", "MetricsServer"]
