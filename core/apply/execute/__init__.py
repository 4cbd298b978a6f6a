"""Doing operations: `execute` knows each kind's one way into the kernel or the Docker Engine."""

from core.apply.execute import addressing, connections, docker, links, namespaces, settings, tuning
from core.apply.execute.dispatch import execute

__all__ = ["addressing", "connections", "docker", "execute", "links", "namespaces", "settings", "tuning"]
