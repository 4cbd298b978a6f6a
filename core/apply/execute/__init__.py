"""Doing operations: `execute` knows each kind's one way into the kernel or the Docker Engine."""

from core.apply.execute import addressing, docker, links, namespaces, settings
from core.apply.execute.dispatch import execute

__all__ = ["addressing", "docker", "execute", "links", "namespaces", "settings"]
