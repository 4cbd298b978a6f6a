"""Derive owners of addresses and flows, peers and related objects from a snapshot."""

from core.topology.index import Topology

__all__ = ["Topology"]
