"""One snapshot put together: owners of addresses, whose connections, and what leads where."""

from core.topology.index import Topology

__all__ = ["Topology"]
