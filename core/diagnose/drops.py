"""Find packets that the kernel drops at a high rate."""

from __future__ import annotations

from collections.abc import Iterator

from core.drop_reasons import explain
from core.model import HeavyDrop, Ref, container_ref, link_ref, namespace_ref
from core.model.finding import Finding
from core.topology import Topology


def heavy_drops(topology: Topology) -> Iterator[Finding]:
    """Find high rates of dropped packets; they are known only while drops are counted."""
    for heavy in topology.snapshot.heavy_drops:
        subject = subject_of(topology, heavy)
        if subject is not None:
            ref, name = subject
            reason, link = (
                explain(heavy.reason, heavy.function),
                topology.snapshot.link((heavy.ns, heavy.ifindex)),
            )
            cause = heavy.function or heavy.reason
            where = f" at {link.name} in {topology.label(link.ns)}" if link and heavy.container else ""
            sentence = f"Packets of {name} are dropped{where}, about {heavy.rate:,.0f}/s ({cause})"
            short = f"{cause} {heavy.rate:,.0f}/s"
            advice = reason.advice or "see the view :drops"
            advice = advice.replace("LINK", link.name) if link else advice
            related = (link_ref(link.key),) if link and heavy.container else ()
            yield Finding("drops", ref, short, f"{sentence}: {reason.meaning}.", "warn", related, advice)


def subject_of(topology: Topology, heavy: HeavyDrop) -> tuple[Ref, str] | None:
    """Return the object whose packets are dropped and its name; None if it is gone."""
    if heavy.container:
        container = topology.containers.get(heavy.container)
        return (container_ref(container.runtime, container.id), container.name) if container else None
    link = topology.snapshot.link((heavy.ns, heavy.ifindex))
    if link is not None:
        return link_ref(link.key), f"{link.name} in {topology.label(link.ns)}"
    if heavy.ns in topology.snapshot.namespaces:
        return namespace_ref(heavy.ns), topology.label(heavy.ns)
    return None
