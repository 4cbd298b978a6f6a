"""Name findings by ids that stay the same after restarts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from hashlib import blake2b

from core.model import Ref
from core.model.finding import Finding
from core.topology import Topology

# Counts, but not addresses and prefixes.
_COUNTS = re.compile(r"(?<![\w.:/])\d[\d,]*(?![\w:]|[./]\d)")


def findings_by_id(topology: Topology, found: Iterable[Finding]) -> dict[str, Finding]:
    """Return findings by short ids that stay the same after restarts.

    An id is made of kind and names; counts don't belong to it. Of several with equal names, each further one
    has a number in it.
    """
    result: dict[str, Finding] = {}
    seen: Counter[tuple[str, ...]] = Counter()
    for one in found:
        refs = [one.ref]
        if one.ref.kind == "conntrack":  # its id is new with each connection
            refs = [each for each in one.related if each.kind == "nat"] or refs
        words = (one.kind, *_name(topology, refs[0]), _COUNTS.sub("", one.short))
        seen[words] += 1
        text = "\0".join((*words, str(seen[words]) if seen[words] > 1 else ""))
        result[blake2b(text.encode("utf-8", "surrogatepass"), digest_size=3).hexdigest()] = one
    return result


def _name(topology: Topology, ref: Ref) -> tuple[str, ...]:
    """Return the names of an object: its namespace's and its own."""
    match ref.kind, ref.key:
        case "link", (int(ns), int(index)):
            link = topology.snapshot.link((ns, index))
            return topology.label(ns), link.name if link else ""
        case "network", (str(network_id),):
            network = topology.network(network_id)
            return (network.name if network else network_id,)
        case "container", (str(runtime), str(container_id)):
            container = topology.containers.get(f"{runtime}:{container_id}")
            return runtime, container.name if container else container_id
        case ("nat", (int(ns), str(entry_id))):
            entry = topology.nat_entry(ref)
            return topology.label(ns), entry.name if entry else entry_id
        case (_, (int(ns), *_)):
            return (topology.label(ns),)
    return tuple(map(str, ref.key))
